"""SpH: spherical hashing.

Paper: Heo, Lee, He, Chang, Yoon, "Spherical hashing", CVPR 2012 / TPAMI 2015. https://doi.org/10.1109/CVPR.2012.6248024

Symbols: p_k -> pivots_ (n_bits, d); t_k -> radii_ (n_bits,); o_ij, the rows inside spheres i and j -> overlap. Bit k says
whether ||x - p_k|| <= t_k. Wanted: half of the rows in each sphere, a quarter in each pair of spheres.
Departs from the paper in: training stops after 100 rounds at the latest (the release does not stop); pivots start from means of 5
random rows, as in the release; a radius lies midway between the two middle distances, so that no training row is on the sphere;
more than 20,000 rows are sampled down. Codes are compared by the plain Hamming distance; the paper divides it by the number of +1 bits
that both codes have.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray

from distillhash.methods.base import Hasher, TrainingSet, sample_rows
from distillhash.methods.linear_algebra import squared_distances

_MAX_ROWS = 20_000
_STARTERS = 5


class SpH(Hasher):
    """Hyperspheres that repel each other until bits are balanced and pairwise independent: b_k = sign(t_k - ||x - p_k||).

    ``history_`` holds, for each round, ``overlap_error = mean |o_ij - n/4| / (n/4)`` and ``overlap_spread`` = std(o_ij) / (n/4) over the
    pairs of spheres.

    Attributes:
        max_iterations: Rounds at most.
        mean_tolerance, std_tolerance: Training stops once overlap_error and overlap_spread are at most these.
    """

    method = "sph"
    title = "Spherical Hashing"
    venue, year = "CVPR", 2012
    kind = "shallow"
    ARRAYS: ClassVar[dict[str, str]] = {"pivots": "kd", "radii": "k"}
    max_iterations: Annotated[int, Ge(1)] = 100
    mean_tolerance: Annotated[float, Ge(0)] = 0.10
    std_tolerance: Annotated[float, Ge(0)] = 0.15

    def _fit(self, given: TrainingSet) -> None:
        rng = np.random.default_rng(self.seed)
        rows = np.asarray(given.features[sample_rows(len(given.features), _MAX_ROWS, rng)], np.float64)
        n = len(rows)
        starters = min(_STARTERS, (n + 1) // 2)  # with all rows as starters every sphere would have the same pivot
        pivots = np.stack([rows[rng.choice(n, starters, replace=False)].mean(axis=0) for _ in range(self.n_bits)])
        errors, spreads = [], []
        upper = np.triu_indices(self.n_bits, 1)
        for _ in range(self.max_iterations):
            radii, inside = halve(rows, pivots)
            overlap = inside.T @ inside
            if self.n_bits == 1:
                break
            errors.append(float(np.mean(np.abs(overlap[upper] - n / 4)) / (n / 4)))
            spreads.append(float(np.std(overlap[upper]) / (n / 4)))
            if errors[-1] <= self.mean_tolerance and spreads[-1] <= self.std_tolerance:
                break
            pivots = pivots + forces(overlap, pivots, n)
        else:
            radii, _ = halve(rows, pivots)
        self.history_ = {"overlap_error": errors, "overlap_spread": spreads}
        self.pivots_: NDArray[np.float64] = pivots
        self.radii_: NDArray[np.float64] = radii

    def _project(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(self.radii_ - np.sqrt(squared_distances(features, self.pivots_)))


def halve(rows: NDArray[np.float64], pivots: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The radii that put half of the rows in each sphere ``(k,)``, and which rows are inside ``(n, k)``, 0 or 1."""
    distances = np.sqrt(squared_distances(rows, pivots))
    half = len(rows) // 2
    middle = np.partition(distances, (half - 1, half), axis=0)[half - 1 : half + 1]
    radii = middle.mean(axis=0)
    return radii, (distances <= radii).astype(np.float64)


def forces(overlap: NDArray[np.float64], pivots: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """Displacement of each pivot ``(k, d)``: away from spheres that share more than n / 4 rows, towards those that share fewer."""
    strength = 0.5 * (overlap - n / 4) / (n / 4)
    np.fill_diagonal(strength, 0)
    return np.asarray((strength.sum(axis=1)[:, None] * pivots - strength @ pivots) / len(pivots))
