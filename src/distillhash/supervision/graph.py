"""Graphs of nearest neighbours of large sets: lists from FAISS, what agrees with a list, and partners by walks along it.

Exact neighbours of n rows take n^2 cosines: 10^12 of a million. An inverted file (Sivic and Zisserman, ICCV 2003; here that of FAISS)
groups the rows by k-means into 4 sqrt(n) cells and searches the 16 cells nearest to each row. Of a million rows it finds 96% of the
nearest 32 and more (results/large-training).
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
from numba import prange
from numpy.typing import NDArray

from distillhash.errors import MissingDependencyError
from distillhash.hamming.compilation import compiled
from distillhash.supervision.neighbours import neighbour_graph
from distillhash.supervision.similarity import Floats

NO_FAISS = "neighbours among so many rows need FAISS; pip install 'distillhash[faiss]', or learn from fewer rows"
_PROBED, _ROUNDS, _ROWS_A_CELL = 16, 10, 64
_BLOCK = 16_384
_CHUNK = 2048


def has_graphs() -> bool:
    """Whether FAISS is installed."""
    return find_spec("faiss") is not None


def graph_neighbours(rows: Floats, k: int, *, seed: int) -> NDArray[np.int32]:
    """About the ``k`` nearest others of every row by cosine, ``(n, k) int32``, nearest first, equal ones by ascending index.

    ``rows (n, d)`` have length 1. k < n. A row whose cells hold too few others is compared with all. ``seed`` draws the cells; equal seeds
    and threads give equal lists. :class:`MissingDependencyError` without FAISS.
    """
    try:
        import faiss
    except ImportError as error:
        raise MissingDependencyError(NO_FAISS) from error
    n, d = rows.shape
    rows = np.ascontiguousarray(rows, np.float32)
    n_cells = max(1, min(round(4 * n**0.5), n // 39))  # FAISS wants 39 rows a cell
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(d), d, n_cells, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed, index.cp.niter, index.cp.max_points_per_centroid = seed % 2**31, _ROUNDS, _ROWS_A_CELL
    index.train(rows)
    index.add(rows)
    found = np.empty((n, k), np.int32)
    for start in range(0, n, _BLOCK):
        own = np.arange(start, min(start + _BLOCK, n))
        index.nprobe = min(_PROBED, n_cells)
        cosines, near = index.search(rows[own], k + 1)
        short = np.flatnonzero((near < 0).any(axis=1))
        if len(short):
            index.nprobe = n_cells
            cosines[short], near[short] = index.search(rows[own[short]], k + 1)
        cosines[near == own[:, None]] = -np.inf  # the row itself goes last
        order = np.lexsort((near, -cosines), axis=1)[:, :k]
        found[own] = np.take_along_axis(near, order, axis=1)
    return found


def nearest_by_overlap(neighbours: NDArray[np.int32], k: int) -> NDArray[np.int32]:
    """The ``k`` items whose neighbour lists have the largest Jaccard overlap with an item's own, each list with the item itself.

    ``(n, k) int32`` from lists ``(n, m)``, k <= m: largest overlap first, equal ones by ascending index. Nothing is kept that shares no
    neighbour, so only pairs that share one are looked at: about n m^2 of them.
    """
    lists = np.hstack([np.arange(len(neighbours), dtype=np.int32)[:, None], neighbours])
    holders = neighbour_graph(lists, np.ones(lists.shape, np.int8)).T.tocsr()
    found: NDArray[np.int32] = _nearest_by_overlap(lists, holders.indptr, holders.indices, k)
    return found


@compiled(parallel=True)
def _nearest_by_overlap(lists: Any, starts: Any, holders: Any, k: Any) -> Any:
    n, m = lists.shape
    found = np.empty((n, k), np.int32)
    for chunk in prange((n + _CHUNK - 1) // _CHUNK):
        counts, touched = np.zeros(n, np.int32), np.empty(n, np.int32)
        for i in range(chunk * _CHUNK, min((chunk + 1) * _CHUNK, n)):
            n_touched = 0
            for j in lists[i]:
                for place in range(starts[j], starts[j + 1]):
                    other = holders[place]
                    if counts[other] == 0:
                        touched[n_touched] = other
                        n_touched += 1
                    counts[other] += 1
            counts[i] = 0
            # Distances lie in [0, 1] and order like their bits: one integer key holds (distance, index).
            distances, others, n_others = np.empty(n_touched, np.float32), np.empty(n_touched, np.uint64), 0
            for other in touched[:n_touched]:
                if counts[other]:
                    shared = np.float32(counts[other])
                    distances[n_others] = np.float32(1) - shared / (np.float32(2 * m) - shared)
                    others[n_others] = other
                    n_others += 1
                    counts[other] = 0
            keys = (distances[:n_others].view(np.uint32).astype(np.uint64) << np.uint64(32)) | others[:n_others]
            keys = np.sort(np.partition(keys, k - 1)[:k])
            for place in range(k):
                found[i, place] = np.int32(keys[place] & np.uint64(0xFFFFFFFF))
    return found


def walk_partners(neighbours: NDArray[np.int32], n_walks: int, n_random: int, *, seed: int) -> NDArray[np.int32]:
    """Partners of every row: where random walks of 1, 2, ... ``n_walks`` steps along ``neighbours (n, m)`` end, and random rows.

    ``(n, n_walks + n_random) int32``, by ``seed``. A row may be its own partner.
    """
    n, m = neighbours.shape
    rng = np.random.default_rng(seed)
    partners = rng.integers(n, size=(n, n_walks + n_random), dtype=np.int32)
    at = np.arange(n)
    for step in range(n_walks):
        at = neighbours[at, rng.integers(m, size=n)]
        partners[:, step] = at
    return partners
