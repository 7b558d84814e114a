"""LSH: random hyperplanes.

Paper: Charikar, "Similarity estimation techniques from rounding algorithms", STOC 2002. https://doi.org/10.1145/509907.509965

Symbols: W -> weight_ (d, n_bits), mu -> mean_. Two directions at angle t differ in one bit with probability t / pi.
Departs from the paper in: features are centred on the training mean first (``centre=False`` gives the original), because
features after a ReLU are all positive and their angles are small. Learns nothing else.
"""

from __future__ import annotations

import numpy as np

from distillhash.methods.base import AffineHasher, TrainingSet


class LSH(AffineHasher):
    """Sign of random projections: b = sign(W^T (x - mu)), W ~ N(0, 1).

    Attributes:
        centre: Subtract the training mean first.
    """

    method = "lsh"
    title = "Similarity Estimation Techniques from Rounding Algorithms"
    venue, year = "STOC", 2002
    kind = "data-independent"
    centre: bool = True

    def _fit(self, given: TrainingSet) -> None:
        n_features = given.features.shape[1]
        mean = np.asarray(given.features.mean(axis=0, dtype=np.float64)) if self.centre else np.zeros(n_features)
        self._set_affine(mean, np.random.default_rng(self.seed).standard_normal((n_features, self.n_bits)))
