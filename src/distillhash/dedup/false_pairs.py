"""How many pairs of different pictures lie within a radius: the tail of the collection's own distances.

Random pairs alone cannot say: at the radii of interest there is one in a million or less, and what few there are at tiny distances are
real duplicates. So pairs are counted at every distance from 0 to a distance that about one pair in a hundred reaches, and the counts are
read as a sum of two parts (Poisson maximum likelihood):

* pairs of different pictures, exp(a + b t - c t^2) with b, c >= 0: the logarithm of a density's lower tail is smooth, rising and concave
  (for a Gaussian it is exactly this); the many pairs at the upper end fix it, the lower end follows;
* duplicates, in the shape that known edits of the collection's own images have (copy against original, and copy against copy), in
  unknown numbers.

The interval comes from a Bayesian bootstrap over pictures (Rubin 1981), where near copies count as one picture: a pair of scenes that is
close brings all pairs of their copies with it, so pairs are far from independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distillhash.codes import Codes
from distillhash.hamming import within

Floats = NDArray[np.float64]

TAIL = 0.01  # share of random pairs that are counted
FEWEST = 300  # pairs in the tail, where there are as many
MOST_COMPARED = 2**29  # pairs looked at; above, a random part of the items is compared with all
MOST_KEPT = 2**21  # pairs of the tail kept for the bootstrap
REPLICATES = 100
LEVEL = 0.9
_QUERIES = 64
_SMOOTHING = 0.08  # width of the kernel over distances of edits, relative to the distance


@dataclass(frozen=True)
class PairCounts:
    """Pairs of a collection by distance.

    Attributes:
        distance: ``(p,) int32`` of every counted pair, up to ``furthest``.
        left: ``(p,)`` one row of each.
        right: ``(p,)`` the other.
        furthest: Largest distance counted.
        share: Counted pairs per pair of the collection (1: all of them).
        nearest: ``(furthest + 1,)`` pairs at each distance when an item has at most ``crowd`` of them, in pairs of the collection.
    """

    distance: NDArray[np.int32]
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    furthest: int
    share: float
    nearest: Floats

    def histogram(self) -> Floats:
        """``(furthest + 1,)`` counted pairs at each distance."""
        return np.bincount(self.distance, minlength=self.furthest + 1).astype(np.float64)


def count_pairs(
    codes: Codes, others: Codes | None = None, *, reach: int = 0, seed: int = 0, crowd: int = 10
) -> PairCounts:
    """Count the pairs of the tail; all pairs of a small collection, those of randomly chosen items of a large one.

    Args:
        codes: ``n`` codes, n >= 1 (2 without ``others``).
        others: ``m`` codes; the pairs counted are then those of a code and another collection's, which has the rows from ``n`` on.
        reach: Count at least up to this distance, but not beyond the median of random pairs.
        seed: Chooses the items.
        crowd: An item adds at most this many of its pairs to :attr:`PairCounts.nearest`, so that a thousand copies of one picture do not
            outweigh everything else.
    """
    n, n_database = len(codes), len(codes if others is None else others)
    rng = np.random.default_rng(seed)
    queries = codes.words()
    words = np.asfortranarray(queries if others is None else others.words())
    furthest, share = _furthest(queries, words, reach, others is None, rng)
    most = min(MOST_COMPARED / n_database, MOST_KEPT / (share * n_database))
    n_queries = max(1, min(n, max(_QUERIES, int(most))))
    rows = np.sort(rng.permutation(n)[:n_queries])
    parts: list[tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]] = []
    nearest = np.zeros(furthest + 1)
    for start in range(0, n_queries, _QUERIES):
        query = rows[start : start + _QUERIES]
        limits, found, distances = within(queries[query], words, furthest)
        owner = np.repeat(np.arange(len(query)), np.diff(limits))
        if others is None:
            other = found != query[owner]
            owner, found, distances = owner[other], found[other], distances[other]
        firsts = np.searchsorted(owner, np.arange(len(query)))
        few = np.arange(len(owner)) - firsts[owner] < crowd
        nearest += np.bincount(distances[few], minlength=furthest + 1)
        once = found > query[owner] if others is None and n_queries == n else np.ones(len(found), bool)
        parts.append((distances[once], query[owner[once]], found[once] + (0 if others is None else n)))
    distance, left, right = (np.concatenate(column) for column in zip(*parts, strict=True))
    twice = others is None  # a pair is met from both its ends
    met = n_queries / n * (2 if twice and n_queries < n else 1)
    return PairCounts(distance, left, right, furthest, met, nearest * (n / n_queries) / (2 if twice else 1))


def _furthest(
    queries: NDArray[np.uint64], words: NDArray[np.uint64], reach: int, own: bool, rng: np.random.Generator
) -> tuple[int, float]:
    """The largest distance to count, and the share of random pairs within it."""
    pairs = len(queries) * len(words)
    share = max(TAIL, min(0.3, FEWEST / pairs))
    a, b = rng.integers(0, len(queries), 200_000), rng.integers(0, len(words), 200_000)
    if own:
        a, b = a[a != b], b[a != b]
    distances = np.concatenate(
        [
            np.bitwise_count(queries[a[i : i + 4096]] ^ words[b[i : i + 4096]]).sum(axis=1)
            for i in range(0, len(a), 4096)
        ]
    )
    furthest = int(min(np.quantile(distances, 0.5), max(np.quantile(distances, share), reach)))
    return furthest, max(float(np.mean(distances <= furthest)), 1e-6)


@dataclass(frozen=True)
class Tail:
    """The two parts of the counts, ``(furthest + 1,)`` each, in pairs of the whole collection.

    Attributes:
        false: Pairs of different pictures at each distance.
        duplicates: Pairs of copies at each distance.
        replicates: ``(REPLICATES, furthest + 1)`` of ``false``, from the bootstrap.
    """

    false: Floats
    duplicates: Floats
    replicates: Floats

    def within(self, radius: int) -> float:
        """Expected number of false pairs within ``radius`` bits."""
        return float(self.false[: radius + 1].sum())

    def interval(self, radius: int) -> tuple[float, float]:
        """The ``LEVEL`` interval of the same."""
        sums = self.replicates[:, : radius + 1].sum(axis=1)
        low, high = np.quantile(sums, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return float(low), float(high)


def fit_tail(
    counts: PairCounts, shapes: Sequence[NDArray[np.integer]], picture: NDArray[np.int64], *, seed: int = 0
) -> Tail:
    """Split the counts into false pairs and duplicates.

    Args:
        counts: From :func:`count_pairs`.
        shapes: Distances between known copies, one array for each kind of pair; empty where no copies could be made.
        picture: ``(n,)`` number of the picture that every row shows; near copies have the same number.
        seed: Draws the bootstrap.
    """
    known = np.array([_density(shape, counts.furthest) for shape in shapes if len(shape)])
    known = known.reshape(-1, counts.furthest + 1)
    start, (false, duplicates) = _fit(counts.histogram(), known, None)
    rng = np.random.default_rng(seed)
    _, numbers = np.unique(picture, return_inverse=True)
    left, right = numbers[counts.left], numbers[counts.right]
    replicates = np.empty((REPLICATES, counts.furthest + 1))
    for replicate in replicates:
        weight = rng.standard_exponential(numbers.max() + 1)
        weight /= weight.mean()
        weights = weight[left] * weight[right]
        replicate[:] = _fit(np.bincount(counts.distance, weights, counts.furthest + 1), known, start)[1][0]
    return Tail(false / counts.share, duplicates / counts.share, replicates / counts.share)


def _density(distances: NDArray[np.integer], furthest: int) -> Floats:
    """Shape of a set of distances: a Gaussian kernel whose width grows with the distance; what lies beyond ``furthest`` is cut off."""
    grid = np.arange(furthest + 1)
    values, counts = np.unique(distances, return_counts=True)
    density = np.zeros(furthest + 1)
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        kernel = np.exp(-0.5 * ((grid - value) / (1 + _SMOOTHING * value)) ** 2)
        density += count * kernel / max(kernel.sum(), 1e-300)
    return density / len(distances)


def _fit(histogram: Floats, known: Floats, start: Floats | None) -> tuple[Floats, tuple[Floats, Floats]]:
    """Maximum likelihood: parameters, and (false, duplicates). Slopes and amounts are exponentials, so they cannot turn negative."""
    from scipy.optimize import minimize

    furthest = len(histogram) - 1
    t = (np.arange(furthest + 1) - furthest) / max(furthest, 1)
    total = max(float(histogram.sum()), 1.0)

    def parts(theta: Floats) -> tuple[Floats, Floats]:
        slope, bend = np.exp(np.clip(theta[1:3], -20, 8))
        shape = np.exp(np.clip(slope * t - bend * t * t, -700, 0))
        return np.exp(np.clip(theta[0], -50, 50)) * shape, np.exp(np.clip(theta[3:], -50, 50)) @ known

    def loss(theta: Floats) -> tuple[float, Floats]:
        false, duplicates = parts(theta)
        rate = false + duplicates + 1e-12
        residual = 1 - histogram / rate
        slope, bend = np.exp(np.clip(theta[1:3], -20, 8))
        by_amount = np.exp(np.clip(theta[3:], -50, 50)) * (known @ residual)
        gradient = [residual @ false, residual @ (false * slope * t), -residual @ (false * bend * t * t), *by_amount]
        return float(rate.sum() - histogram @ np.log(rate)) / total, np.array(gradient) / total

    top = max(float(histogram[-max(3, furthest // 20) :].mean()), 0.1)
    few = np.full(len(known), np.log(max(float(histogram[: furthest // 2 + 1].sum()), 0.5) / max(len(known), 1)))
    starts = [start] if start is not None else [np.r_[np.log(top), np.log(b), -1.0, few] for b in (4.0, 8.0, 16.0)]
    found = [minimize(loss, begin, jac=True, method="L-BFGS-B", options={"maxiter": 500}) for begin in starts]
    best = min(found, key=lambda one: one.fun)
    return np.asarray(best.x), parts(best.x)
