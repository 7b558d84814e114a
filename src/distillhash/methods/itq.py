"""ITQ: iterative quantisation.

Paper: Gong, Lazebnik, Gordo, Perronnin, "Iterative quantization: a Procrustean approach to learning binary codes for
large-scale image retrieval", CVPR 2011 / TPAMI 2013. https://doi.org/10.1109/TPAMI.2012.193

Symbols: V = (X - mu) P -> PCA projection (n, n_bits); R -> rotation (n_bits, n_bits); B -> signs. Minimises ||B - V R||_F^2.
Departs from the paper in: nothing known; sign(0) is +1. The stated 50 iterations are the default.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from annotated_types import Ge

from distillhash.methods.base import AffineHasher, TrainingSet
from distillhash.methods.linear_algebra import principal_components, procrustes_rotation, row_blocks


class ITQ(AffineHasher):
    """PCA, then the rotation that loses least by taking signs: b = sign(R^T P^T (x - mu)).

    ``history_["loss"]`` holds the quantisation error ||B - V R||^2 / n before each update; it never rises. The seed draws the
    first rotation; between seeds MAP differs by about .005.

    Attributes:
        iterations: Alternating updates.
    """

    method = "itq"
    title = "Iterative Quantization: A Procrustean Approach to Learning Binary Codes"
    venue, year = "CVPR", 2011
    kind = "shallow"
    iterations: Annotated[int, Ge(1)] = 50

    def _fit(self, given: TrainingSet) -> None:
        mean, components = principal_components(given.features, self.n_bits)
        V = np.concatenate([(block - mean) @ components for block in row_blocks(given.features)])  # (n, n_bits)
        R, losses = procrustes_rotation(V, self.iterations, np.random.default_rng(self.seed))
        self.history_ = {"loss": losses}
        self._set_affine(mean, components @ R)
