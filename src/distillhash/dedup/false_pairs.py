"""How many pairs of different pictures lie within a radius: the tail of the collection's own distances.

Random pairs alone cannot say: at the radii of interest there is one in a million or less, and what few there are at tiny distances are
real duplicates. So pairs are counted at every distance from 0 to a distance that about one pair in a hundred reaches, and the counts are
read as a sum of two parts (Poisson maximum likelihood):

* pairs of different pictures, a power of the distance: near any point, the number of others within a distance grows with a power of it,
  the local dimension (Houle 2017; Amsaleg et al., KDD 2015). The power may change once, slowly, over a factor of e below the largest
  distance, and stays what it is from there on; the many pairs at the upper end fix it, the lower end follows;
* duplicates, in about the shape that known edits of the collection's own images have (copy against original, and copy against copy), in
  unknown numbers.

The interval comes from a Bayesian bootstrap over pictures (Rubin 1981), where near copies count as one picture: a pair of scenes that is
close brings all pairs of their copies with it, so pairs are far from independent. A pair weighs what its two pictures weigh together, and
a pair of copies what its one picture weighs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash.codes import Codes
from distillhash.hamming import planes_of, within
from distillhash.hamming.search import Planes

Floats = NDArray[np.float64]

TAIL = 0.01  # share of random pairs that are counted
FEWEST = 300  # pairs in the tail, where there are as many
MOST_COMPARED = 2**29  # pairs looked at; above, a random part of the items is compared with all
MOST_KEPT = 2000  # pairs at one distance kept for the bootstrap, about
REPLICATES = 50
LEVEL = 0.9
USUAL_POWER, POWER_SPREAD = 10.0, 3.0
"""Where there is little to go by: the density is assumed to rise with this power of the distance, or a higher one."""
BEND_SPREAD = 0.3
"""How far the logarithm of the power is assumed to change."""
KNOTS, WARP_SPREAD = 8, 0.1
"""Known copies are few, so their shape is uncertain: it may be warped by about this much at each of these places."""
CERTAINLY = 10
"""At distances where copies are so many times as frequent as false pairs, two near items count as one picture for the bootstrap."""
ENOUGH = 100.0
"""Pairs at one distance beyond which more say no more: else a million at the upper end would bend the curve away from the few below."""
_QUERIES = 64
_SMOOTHING = 0.08  # width of the kernel over distances of edits, relative to the distance


@dataclass(frozen=True)
class PairCounts:
    """Pairs of a collection by distance.

    Attributes:
        histogram: ``(furthest + 1,)`` counted pairs at each distance.
        share: Counted pairs per pair of the collection (1: all of them).
        nearest: ``(furthest + 1,)`` pairs at each distance when an item has at most ``crowd`` of them, in pairs of the collection.
        distance: ``(p,)`` of the counted pairs, of which those at crowded distances are a random part.
        weight: ``(p,)`` how many counted pairs each stands for.
        left: ``(p,)`` one row of each.
        right: ``(p,)`` the other.
    """

    histogram: Floats
    share: float
    nearest: Floats
    distance: NDArray[np.int32]
    weight: Floats
    left: NDArray[np.int64]
    right: NDArray[np.int64]


def count_pairs(
    codes: Codes, others: Codes | None = None, *, reach: int = 0, seed: int = 0, crowd: int = 10
) -> PairCounts:
    """Count the pairs of the tail; all pairs of a small collection, those of randomly chosen items of a large one.

    Args:
        codes: ``n`` codes, n >= 1 (2 without ``others``).
        others: ``m`` codes; the pairs counted are then those of a code and another collection's, which has the rows from ``n`` on.
        reach: Count at least up to this distance, but not into the bulk of random pairs.
        seed: Chooses the items.
        crowd: An item adds at most this many of its pairs to :attr:`PairCounts.nearest`, so that a thousand copies of one picture do not
            outweigh everything else.
    """
    own, n, n_database = others is None, len(codes), len(codes if others is None else others)
    rng = np.random.default_rng(seed)
    queries = planes_of(codes)
    database = queries if others is None else planes_of(others)
    pilot = _random_distances(queries, database, own, rng)
    furthest = _furthest(pilot, reach, n * n_database // (2 if own else 1))
    n_queries = max(1, min(n, max(_QUERIES, MOST_COMPARED // n_database)))
    rows = np.sort(rng.permutation(n)[:n_queries])
    shares = np.bincount(pilot, minlength=furthest + 1)[: furthest + 1] / len(pilot)
    kept_share = np.minimum(1, MOST_KEPT / np.maximum(shares * n_queries * n_database, 1))
    histogram, nearest = np.zeros(furthest + 1), np.zeros(furthest + 1)
    parts: list[tuple[NDArray[Any], ...]] = []
    for start in range(0, n_queries, _QUERIES):
        query = rows[start : start + _QUERIES]
        limits, found, distances = within(queries[:, query], database, furthest)
        owner = np.repeat(np.arange(len(query)), np.diff(limits))
        if own:
            other = found != query[owner]
            owner, found, distances = owner[other], found[other], distances[other]
        firsts = np.searchsorted(owner, np.arange(len(query)))
        few = np.arange(len(owner)) - firsts[owner] < crowd
        nearest += np.bincount(distances[few], minlength=furthest + 1)
        once = found > query[owner] if own and n_queries == n else np.ones(len(found), bool)
        histogram += np.bincount(distances[once], minlength=furthest + 1)
        once &= rng.random(len(once), np.float32) < kept_share[distances]
        kept = distances[once]
        parts.append((kept, 1 / kept_share[kept], query[owner[once]], found[once] + (0 if own else n)))
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    met = n_queries / n * (2 if own and n_queries < n else 1)  # a pair of one's own is met from both its ends
    return PairCounts(histogram, met, nearest * (n / n_queries) / (2 if own else 1), *columns)


def _furthest(pilot: NDArray[np.int64], reach: int, n_pairs: int) -> int:
    """Where counting stops: beyond all copies if that can be, but below the bulk of random pairs, where there are enough to know it."""
    tail = float(np.quantile(pilot, max(TAIL, min(0.3, FEWEST / n_pairs))))
    bulk = 0.1 if n_pairs >= 10 * FEWEST else 0.5 if n_pairs >= 20 else None
    return int(max(tail, reach if bulk is None else min(reach, float(np.quantile(pilot, bulk)))))


def _random_distances(queries: Planes, database: Planes, own: bool, rng: np.random.Generator) -> NDArray[np.int64]:
    """Distances of 200,000 random pairs."""
    a, b = rng.integers(0, queries.shape[1], 200_000), rng.integers(0, database.shape[1], 200_000)
    if own:
        a, b = a[a != b], b[a != b]
    blocks = (slice(start, start + 4096) for start in range(0, len(a), 4096))
    return np.concatenate(
        [np.bitwise_count(queries[:, a[i]] ^ database[:, b[i]]).sum(axis=0, dtype=np.int64) for i in blocks]
    )


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


def fit_tail(counts: PairCounts, shapes: Sequence[NDArray[np.integer[Any]]], *, seed: int = 0) -> Tail:
    """Split the counts into false pairs and duplicates.

    Args:
        counts: From :func:`count_pairs`.
        shapes: Distances between known copies, one array for each kind of pair; empty where no copies could be made.
        seed: Draws the bootstrap.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # products of a few hundred numbers: threads would only wait for each other
        return _fit_tail(counts, shapes, seed)


def _fit_tail(counts: PairCounts, shapes: Sequence[NDArray[np.integer[Any]]], seed: int) -> Tail:
    furthest = len(counts.histogram) - 1
    known = np.array([_density(shape, furthest) for shape in shapes if len(shape)]).reshape(-1, furthest + 1)
    start, (false, duplicates) = _fit(counts.histogram, known, None)
    rng = np.random.default_rng(seed)
    certain = int(np.cumprod(duplicates[1:] > CERTAINLY * false[1:]).sum())
    left, right, n_pictures = _pictures(counts.left, counts.right, counts.distance <= certain)
    replicates = np.empty((REPLICATES, furthest + 1))
    for replicate in replicates:
        weight = rng.standard_exponential(n_pictures)
        weight /= weight.mean()
        weights = counts.weight * np.where(left == right, weight[left], weight[left] * weight[right])
        histogram = np.bincount(counts.distance, weights, furthest + 1).astype(np.float64)
        replicate[:] = _fit(histogram, known, start)[1][0]
    return Tail(false / counts.share, duplicates / counts.share, replicates / counts.share)


def _pictures(
    left: NDArray[np.int64], right: NDArray[np.int64], near: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """The pictures that the two sides of every pair show, and how many there are; rows joined by near pairs are one picture."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows, numbers = np.unique(np.concatenate([left, right]), return_inverse=True)
    left, right = numbers[: len(left)], numbers[len(left) :]
    graph = coo_array((np.ones(int(near.sum()), np.int8), (left[near], right[near])), shape=(len(rows), len(rows)))
    n, picture = connected_components(graph, directed=False)
    return picture[left], picture[right], int(n)


def _density(distances: NDArray[np.integer[Any]], furthest: int) -> Floats:
    """Shape of a set of distances: a Gaussian kernel whose width grows with the distance; what lies beyond ``furthest`` is cut off."""
    grid = np.arange(furthest + 1)
    values, counts = np.unique(distances, return_counts=True)
    density = np.zeros(furthest + 1)
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        kernel = np.exp(-0.5 * ((grid - value) / (1 + _SMOOTHING * value)) ** 2)
        density += count * kernel / max(kernel.sum(), 1e-300)
    return density / len(distances)


def _fit(histogram: Floats, known: Floats, start: Floats | None) -> tuple[Floats, tuple[Floats, Floats]]:
    """Penalised maximum likelihood: parameters, and (false, duplicates).

    Powers and amounts are exponentials, so they cannot turn negative.
    """
    from scipy.optimize import minimize

    furthest = len(histogram) - 1
    depth = np.log((furthest + 0.5) / (np.arange(furthest + 1) + 0.5))
    by_last = np.minimum(depth, 1) ** 2 / 2 + np.maximum(depth - 1, 0)  # integrals over the logarithm of the distance
    by_first = depth - by_last
    shapes = np.vstack([known, np.full(furthest + 1, 1 / (furthest + 1))])
    trust = np.minimum(1, ENOUGH / np.maximum(histogram, 1))
    knots = np.linspace(0, furthest, KNOTS)
    hats = np.array([np.interp(np.arange(furthest + 1), knots, row) for row in np.eye(KNOTS)])
    amounts, warps = slice(3, 3 + len(shapes)), slice(3 + len(shapes), None)

    def parts(theta: Floats) -> tuple[Floats, Floats]:
        first, last = np.exp(np.clip(theta[1:3], -20, 8))
        shape = np.exp(np.clip(-first * by_first - last * by_last, -700, 0))
        warp = np.exp(np.clip(theta[warps] @ hats, -5, 5))
        return np.exp(np.clip(theta[0], -50, 50)) * shape, np.exp(np.clip(theta[amounts], -50, 50)) @ shapes * warp

    def loss(theta: Floats) -> tuple[float, Floats]:
        false, duplicates = parts(theta)
        rate = false + duplicates + 1e-12
        residual = trust * (1 - histogram / rate)
        first, last = np.exp(np.clip(theta[1:3], -20, 8))
        lacking, bend = max(USUAL_POWER - last, 0.0) / POWER_SPREAD, (theta[2] - theta[1]) / BEND_SPREAD
        warp = np.exp(np.clip(theta[warps] @ hats, -5, 5))
        gradient = [
            residual @ false,
            -(residual @ (false * by_first)) * first - bend / BEND_SPREAD,
            -(residual @ (false * by_last)) * last - lacking * last / POWER_SPREAD + bend / BEND_SPREAD,
            *(np.exp(np.clip(theta[amounts], -50, 50)) * (shapes @ (residual * warp))),
            *(hats @ (residual * duplicates) + theta[warps] / WARP_SPREAD**2),
        ]
        value = float(trust @ (rate - histogram * np.log(rate)))
        value += (lacking**2 + bend**2 + float(np.sum((theta[warps] / WARP_SPREAD) ** 2))) / 2
        return value / total, np.array(gradient) / total

    total = max(float(trust @ histogram), 1.0)
    top = max(float(histogram[-max(3, furthest // 20) :].mean()), 0.1)
    few = np.full(len(shapes), np.log(max(float(histogram[: furthest // 2 + 1].sum()), 0.5) / len(shapes)))
    starts = (
        [start]
        if start is not None
        else [np.r_[np.log(top), np.log(b), np.log(b), few, np.zeros(KNOTS)] for b in (5.0, 10.0, 20.0)]
    )
    precise = {"maxiter": 500, "ftol": 1e-12, "gtol": 1e-10}
    found = [minimize(loss, begin, jac=True, method="L-BFGS-B", options=precise) for begin in starts]
    best = min(found, key=lambda one: float(one.fun))
    return np.asarray(best.x), parts(best.x)
