"""Exact nearest neighbours by cosine distance, and averages over neighbourhoods."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash.errors import DataError, ParameterError

_BLOCK = 512


def nearest_neighbours(distances: NDArray[np.float32], k: int, *, include_self: bool = False) -> NDArray[np.int32]:
    """The ``k`` nearest items of every item, nearest first, equal distances by ascending index.

    ``(n, k) int32`` from ``(n, n) float32`` distances of at least 0. k is at most n - 1, or n with ``include_self``, which puts the item
    itself at rank 0. Deterministic.
    """
    n = len(distances)
    most = n if include_self else n - 1
    if not 1 <= k <= most:
        raise ParameterError(f"the number of neighbours must lie in 1..{most} for {n} items, got {k}")
    if include_self:
        own = np.arange(n, dtype=np.int32)[:, None]
        return own if k == 1 else np.hstack([own, nearest_neighbours(distances, k - 1)])
    blocks = (distances[start : start + _BLOCK] for start in range(0, n, _BLOCK))
    return nearest_in_blocks(blocks, k)


def nearest_in_blocks(blocks: Iterable[NDArray[np.float32]], k: int) -> NDArray[np.int32]:
    """:func:`nearest_neighbours` of distances whose rows come in blocks ``(b, n) float32``, so that memory never holds all of them."""
    found, start = [], 0
    for distances in blocks:
        block = np.array(distances, np.float32)
        if not (block >= 0).all():
            raise DataError("distances must be numbers of at least 0")
        block += np.float32(0)  # -0.0 would sort last below
        # Non-negative floats order like their bit patterns: one integer key holds (distance, index).
        keys = (block.view(np.uint32).astype(np.uint64) << np.uint64(32)) | np.arange(block.shape[1], dtype=np.uint64)
        rows = np.arange(len(block))
        keys[rows, start + rows] = np.uint64(2**64 - 1)
        nearest = np.sort(np.partition(keys, k - 1, axis=1)[:, :k], axis=1)
        found.append((nearest & np.uint64(0xFFFFFFFF)).astype(np.int32))
        start += len(block)
    return np.concatenate(found)


def first_of_both(first: NDArray[np.int32], second: NDArray[np.int32]) -> NDArray[np.int32]:
    """``(n, k)``: in every row the items of ``first (n, a)``, a <= k, followed by those of ``second (n, k)`` that are not among them."""
    known = np.zeros(second.shape, bool)
    for column in first.T:
        known |= second == column[:, None]
    new_first = np.argsort(known, axis=1, kind="stable")
    missing = second.shape[1] - first.shape[1]
    return np.hstack([first, np.take_along_axis(second, new_first[:, :missing], axis=1)])


def neighbour_graph(neighbours: NDArray[Any], weights: NDArray[Any]) -> Any:
    """Sparse ``(n, n)`` matrix in CSR form whose entry (i, neighbours[i, j]) is ``weights[i, j]``; both are ``(n, k)``."""
    from scipy.sparse import csr_array

    n, k = neighbours.shape
    return csr_array((weights.ravel(), neighbours.ravel(), np.arange(0, n * k + 1, k)), shape=(n, n))


def neighbourhood_mean(values: NDArray[np.float32], neighbours: NDArray[np.int32]) -> NDArray[np.float32]:
    """Mean of ``values[k, l]`` over k in the neighbours of i and l in those of j, for every pair (i, j): ``(n, n) float32``.

    The mean separates into two sparse products: ``2 n^2 m`` additions. Sums of 0/1 values are exact, so a symmetric input gives a
    symmetric mean.
    """
    members = neighbour_graph(neighbours, np.ones(neighbours.shape, np.float32))
    row_sums = members @ values
    sums = np.ascontiguousarray((members @ np.ascontiguousarray(row_sums.T)).T, np.float32)
    sums /= neighbours.shape[1] ** 2
    return sums
