"""Hashing-Baseline: principal components, a random rotation, signs; nothing is trained.

Paper: Moummad, Zaher, Rauch, Joly, "Hashing-Baseline: Rethinking Hashing in the Age of Pretrained Models", arXiv 2509.14427, 2025.
https://arxiv.org/abs/2509.14427

Symbols: V -> the n_bits leading principal directions of the training features; mu -> mean_; R -> a random orthogonal matrix
(n_bits, n_bits). b = [R V^T (x - mu) > 0]. It is the start of ``itq``, whose updates of R are left out.
Departs from the paper in:
1. The principal components are exact; released: a randomised low-rank approximation.
2. Codes are compared by Hamming distance, the query's as well; the paper's numbers compare sigmoids of the query's outputs with the bits
   of the database.
"""

from __future__ import annotations

import numpy as np

from distillhash.methods.base import AffineHasher, TrainingSet
from distillhash.methods.linear_algebra import principal_components


class HashingBaseline(AffineHasher):
    """b = sign(R V^T (x - mu)), R random and orthogonal: every bit gets a share of every principal direction. The seed draws R."""

    method = "hashing-baseline"
    title = "Hashing-Baseline: Rethinking Hashing in the Age of Pretrained Models"
    venue, year = "arXiv", 2025
    kind = "shallow"

    def _fit(self, given: TrainingSet) -> None:
        mean, components = principal_components(given.features, self.n_bits)
        R, upper = np.linalg.qr(np.random.default_rng(self.seed).standard_normal((self.n_bits, self.n_bits)))
        self._set_affine(mean, components @ (R * np.sign(np.diag(upper))))  # these signs make R uniformly distributed
