"""DSH: density sensitive hashing.

Paper: Jin, Li, Lin, Cai, "Density sensitive hashing", IEEE Transactions on Cybernetics 44(8), 2014. https://arxiv.org/abs/1205.2930

Symbols: mu_1..k -> centres; nu -> shares of the rows; r-adjacent -> one is among the r nearest centres of the other. A pair's
median plane is w^T x = t with w = mu_i - mu_j, t = ((mu_i + mu_j) / 2)^T w; its entropy -P0 log P0 - P1 log P1 counts the shares of the
groups on either side.
Departs from the paper in: pairs are identified by their indices, where the release drops pairs of equal distance; empty k-means groups
and pairs of coinciding centres are dropped; k is at most the number of rows; k-means sees at most 20,000 rows.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt
from numpy.typing import NDArray

from distillhash.errors import DataError
from distillhash.methods.base import AffineHasher, TrainingSet
from distillhash.methods.linear_algebra import k_means, squared_distances


class DSH(AffineHasher):
    """Median planes between neighbouring k-means groups, those of highest entropy: b = sign(w^T x - t).

    Not Deep Supervised Hashing, which shares the letters.

    Attributes:
        alpha: Groups per bit.
        r: Nearest groups that make a pair.
        iterations: Rounds of k-means.
    """

    method = "dsh"
    title = "Density Sensitive Hashing"
    venue, year = "IEEE Trans. Cybernetics", 2014
    kind = "shallow"
    alpha: Annotated[float, Gt(0)] = 1.5
    r: Annotated[int, Ge(1)] = 3
    iterations: Annotated[int, Ge(1)] = 3

    def _fit(self, given: TrainingSet) -> None:
        mean = np.asarray(np.mean(given.features, axis=0, dtype=np.float64))
        k = max(2, round(self.alpha * self.n_bits))
        centres, shares = k_means(given.features, k, self.iterations, np.random.default_rng(self.seed))
        largest = float(np.abs(centres).max())
        centres = centres - mean
        pairs = adjacent_pairs(centres, self.r)
        w = centres[pairs[:, 0]] - centres[pairs[:, 1]]
        t = np.sum((centres[pairs[:, 0]] + centres[pairs[:, 1]]) / 2 * w, axis=1)
        apart = np.linalg.norm(w, axis=1) > 1e-9 * largest
        w, t = w[apart], t[apart]
        if len(w) < self.n_bits:
            raise DataError(
                f"dsh needs a pair of neighbouring groups for each of {self.n_bits} bits, and found {len(w)} "
                f"({len(centres)} groups that differ, r = {self.r}); "
                "ask for fewer bits, raise alpha or r, or give more (different) rows"
            )
        best = np.argsort(-entropy((w @ centres.T > t[:, None]) @ shares), kind="stable")[: self.n_bits]
        self._set_affine(mean, w[best].T, -t[best])


def adjacent_pairs(centres: NDArray[np.float64], r: int) -> NDArray[np.intp]:
    """All r-adjacent pairs ``(p, 2)``, i < j, each once, in order."""
    squared = squared_distances(centres, centres)
    np.fill_diagonal(squared, np.inf)
    near = np.argsort(squared, axis=1, kind="stable")[:, : min(r, len(centres) - 1)]
    i = np.repeat(np.arange(len(centres)), near.shape[1])
    j = near.ravel()
    return np.unique(np.stack([np.minimum(i, j), np.maximum(i, j)], axis=1), axis=0)


def entropy(share: NDArray[np.float64]) -> NDArray[np.float64]:
    """Entropy in nats of a bit that is 1 with the given probability."""
    p = np.clip(np.stack([share, 1 - share]), 0, 1)
    return np.asarray(-np.sum(p * np.log(np.where(p > 0, p, 1)), axis=0))
