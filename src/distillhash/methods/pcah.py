"""PCAH: signs of the leading principal components.

Paper: Wang, Kumar, Chang, "Semi-supervised hashing for large-scale search", TPAMI 2012 (PCA hashing as the unsupervised case).
https://doi.org/10.1109/TPAMI.2012.48

Symbols: P -> weight_ (d, n_bits), the top eigenvectors of the training covariance; mu -> mean_.
MAP often falls with the code length: later components carry noise and count as much as the first.
Departs from the paper in: the sign of each eigenvector is fixed (largest entry positive), so that codes repeat exactly.
"""

from __future__ import annotations

from distillhash.methods.base import AffineHasher, TrainingSet
from distillhash.methods.linear_algebra import principal_components


class PCAH(AffineHasher):
    """b = sign(P^T (x - mu)). Exact and deterministic; the seed changes nothing."""

    method = "pcah"
    title = "Semi-Supervised Hashing for Large-Scale Search (its PCA baseline)"
    venue, year = "TPAMI", 2012
    kind = "shallow"

    def _fit(self, given: TrainingSet) -> None:
        self._set_affine(*principal_components(given.features, self.n_bits))
