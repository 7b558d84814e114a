"""The ranking of two-part codes: the nearest by all bits first, then those of the same kind.

A code of b bits has s class bits and b - s neighbour bits (:class:`~distillhash.codes.Codes`). For a query, d is the Hamming distance over
all bits and c the distance over the class bits alone. Two keys order the items, smaller first:

    nearest:  HEAD_WEIGHTS[0] (d - c) + HEAD_WEIGHTS[1] c    (equal ones: smaller c first)
    kind:     TAIL_WEIGHTS[0] (d - c) + TAIL_WEIGHTS[1] c    (equal ones: smaller c first)

The ranking by ``both`` begins with the head: the :data:`HEAD` smallest by ``nearest``, and all others with the same d and c as the last of
them. The rest follow by ``kind``. Items with equal d and c are tied. Both keys are Hamming distances that count the bits of the two parts
differently; docs/distillhash-nested.md has the measurements behind the weights.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from distillhash.codes import Codes, bytes_per_code, hamming_distances
from distillhash.errors import ParameterError

By = Literal["both", "nearest", "kind"]
Ints = NDArray[np.int64]

HEAD = 40
"""Items that the ranking by both takes by ``nearest``, at least."""
HEAD_WEIGHTS = (2, 1)
TAIL_WEIGHTS = (1, 8)
LARGEST_KEY = 2**16 - 2
"""A key above it is not held by the lanes of the compiled search."""
_NO_KEY = 1 << 60

_CELL_BLOCK = 1 << 22  # cells ordered at once: about 200 MB


def check_by(by: str, class_bits: int) -> None:
    """Raise :class:`ParameterError` for an unknown ranking, or one that codes of a single part do not have."""
    if by not in get_args(By):
        raise ParameterError(f"by must be one of {', '.join(get_args(By))}, got {by!r}")
    if by != "both" and not class_bits:
        raise ParameterError(
            f"these codes have one part, and so one ranking, got by={by!r}; leave it out (distillhash-nested gives two parts where it "
            "finds large kinds)"
        )


def weighted(distances: NDArray[Any], class_distances: NDArray[Any], weights: tuple[int, int]) -> Ints:
    """The key of a ranking from d and c, of any one shape."""
    total, kind = np.asarray(distances, np.int64), np.asarray(class_distances, np.int64)
    return weights[0] * (total - kind) + weights[1] * kind


def order(distances: NDArray[Any], class_distances: NDArray[Any], by: By = "both") -> NDArray[np.intp]:
    """Rows of one query's ``(n,)`` distances in the order of the ranking, tied rows ascending."""
    nearest, kind = (weighted(distances, class_distances, weights) for weights in (HEAD_WEIGHTS, TAIL_WEIGHTS))
    by_nearest = np.lexsort((class_distances, nearest))
    if by == "nearest":
        return by_nearest
    by_kind = np.lexsort((class_distances, kind))
    if by == "kind" or len(distances) <= HEAD:
        return by_kind if by == "kind" else by_nearest
    last = by_nearest[HEAD - 1]
    is_nearer = nearest < nearest[last]
    is_head = is_nearer | ((nearest == nearest[last]) & (np.asarray(class_distances) <= class_distances[last]))
    return np.concatenate([by_nearest[: is_head.sum()], by_kind[~is_head[by_kind]]])


def first_of(
    ids: NDArray[Any], distances: NDArray[Any], class_distances: NDArray[Any], k: int, by: By = "both"
) -> tuple[Ints, NDArray[np.int32]]:
    """The ``k`` first of the ranking among candidates of each query: ids and distances ``(q, k)``, tied ones by ascending id.

    Arrays are ``(q, m)``. A distance of -1 marks a place without a candidate, here and at the end of the answer. No candidate comes twice.
    Candidates that hold the max(k, HEAD) smallest by ``nearest`` and the k smallest by ``kind`` give the answer over all items.
    """
    absent = np.asarray(distances) < 0
    nearest, kind = (
        np.where(absent, _NO_KEY, weighted(distances, class_distances, weights) << 20 | class_distances)
        for weights in (HEAD_WEIGHTS, TAIL_WEIGHTS)
    )
    keys = kind if by == "kind" else nearest
    if by == "both" and min(k, nearest.shape[1]) > HEAD:
        last = np.partition(nearest, HEAD - 1, axis=1)[:, HEAD - 1 : HEAD]
        keys = np.where(nearest <= last, nearest - _NO_KEY, kind)  # the head is before all others
    places = np.lexsort((ids, keys), axis=1)[:, :k]
    answer = np.full((2, len(places), k), -1, np.int64)
    answer[0, :, : places.shape[1]] = np.take_along_axis(ids, places, 1)
    answer[1, :, : places.shape[1]] = np.take_along_axis(distances, places, 1)
    return answer[0], answer[1].astype(np.int32)


def cell_count(codes: Codes) -> int:
    """Number of values that :func:`cells` can take."""
    return (codes.n_bits - codes.class_bits + 1) * (codes.class_bits + 1)


def cells(queries: Codes, database: Codes) -> Ints:
    """``(q, n)`` cell of every pair: one integer (d - c) (s + 1) + c for d and c; codes of one part (s = 0) have the distance d."""
    distances = hamming_distances(queries, database).astype(np.int64)
    if not queries.class_bits:
        return distances
    class_distances = hamming_distances(class_part(queries), class_part(database))
    return (distances - class_distances) * (queries.class_bits + 1) + class_distances


def class_part(codes: Codes) -> Codes:
    """The class bits alone, at least one, as codes of one part."""
    packed = codes.packed[:, : bytes_per_code(codes.class_bits)].copy()
    packed[:, -1] &= 0xFF << (-codes.class_bits % 8) & 0xFF
    return Codes(packed, codes.class_bits)


def cell_levels(counts: Ints, class_bits: int) -> Ints:
    """The place of every cell among the occupied ones in the ranking by ``both``, ``(q, cells)``, from the number of items in each.

    Places count from 0, each query for itself; a cell without items has one more than the last of all.
    """
    neighbour_distances, class_distances = divmod(np.arange(counts.shape[1]), class_bits + 1)
    distances = neighbour_distances + class_distances
    by_nearest, by_kind = (
        np.lexsort((class_distances, weighted(distances, class_distances, weights)))
        for weights in (HEAD_WEIGHTS, TAIL_WEIGHTS)
    )
    sequence = np.concatenate([by_nearest, by_kind])
    levels, step = np.full(counts.shape, -1, np.int64), max(1, _CELL_BLOCK // counts.shape[1])
    for start in range(0, len(counts), step):
        items = counts[start : start + step]
        sorted_items = items[:, by_nearest]
        is_head = np.empty(items.shape, bool)
        is_head[:, by_nearest] = np.cumsum(sorted_items, axis=1) - sorted_items < HEAD
        occupied = items > 0
        chosen = np.hstack([(occupied & is_head)[:, by_nearest], (occupied & ~is_head)[:, by_kind]])
        rows, columns = np.nonzero(chosen)
        sums = chosen.sum(axis=1)
        levels[start + rows, sequence[columns]] = np.arange(len(rows)) - (np.cumsum(sums) - sums)[rows]
    levels[levels < 0] = levels.max() + 1
    return levels


def by_level(levels: Ints, counts: Ints) -> Ints:
    """Numbers of items at every level of :func:`cell_levels`, in order, ``(q, L)``, from those in every cell; 0 past the last level."""
    ordered = np.zeros((len(levels), int(levels.max()) + 1), np.int64)
    np.put_along_axis(ordered, levels, counts, axis=1)
    return ordered
