"""ITQ: iterative quantisation.

Paper: Gong, Lazebnik, Gordo, Perronnin, "Iterative quantization: a Procrustean approach to learning binary codes for
large-scale image retrieval", CVPR 2011 / TPAMI 2013. https://doi.org/10.1109/TPAMI.2012.193

Symbols: V = (X - mu) P -> PCA projection (n, n_bits); R -> rotation (n_bits, n_bits); B -> signs. Minimises ||B - V R||_F^2.
Departs from the paper in: nothing known; sign(0) is +1. The stated 50 iterations are the default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge

from distillhash.methods.base import AffineHasher, TrainingSet
from distillhash.methods.linear_algebra import principal_components


@dataclass(eq=False, repr=False)
class ITQ(AffineHasher):
    """PCA, then the rotation that loses least by taking signs: b = sign(R^T P^T (x - mu)).

    ``history_["loss"]`` holds the quantisation error ||B - V R||^2 / n before each update; it never rises. The seed draws the
    first rotation and moves MAP by about .005.

    Attributes:
        iterations: Alternating updates.
    """

    method = "itq"
    title = "Iterative Quantization: A Procrustean Approach to Learning Binary Codes"
    venue = "CVPR"
    year = 2011
    kind = "shallow"
    iterations: Annotated[int, Ge(1)] = 50

    def _fit(self, given: TrainingSet) -> None:
        features = given.features
        mean, components = principal_components(features, self.n_bits)
        blocks = (np.asarray(features[i : i + 4096], np.float64) - mean for i in range(0, len(features), 4096))
        V = np.concatenate([block @ components for block in blocks])  # (n, n_bits)
        rng = np.random.default_rng(self.seed)
        R, _ = np.linalg.qr(rng.standard_normal((self.n_bits, self.n_bits)))
        losses = []
        for _ in range(self.iterations):
            rotated = V @ R
            B = np.where(rotated >= 0, 1.0, -1.0)
            losses.append(float(np.sum((B - rotated) ** 2) / len(V)))
            S, _, T = np.linalg.svd(B.T @ V)  # Procrustes: the rotation nearest to mapping V on B
            R = (S @ T).T
        self.history_ = {"loss": losses}
        self._set_affine(mean, components @ R)
