"""The ranking of two-part codes: the nearest by all bits first, then those of the same kind.

A code of b bits has s class bits and b - s neighbour bits (:class:`~distillhash.codes.Codes`). For a query, d is the Hamming distance over
all bits and c the distance over the class bits alone. Two keys order the items, smaller first:

    nearest:  HEAD_WEIGHTS[0] (d - c) + HEAD_WEIGHTS[1] c    (equal ones: smaller c first)
    kind:     TAIL_WEIGHTS[0] (d - c) + TAIL_WEIGHTS[1] c    (equal ones: smaller c first)

The ranking by ``both`` begins with the head: the :data:`HEAD` smallest by ``nearest``, and all others with the same d and c as the last of
them. The rest follow by ``kind``. Items with equal d and c are tied. Both keys are Hamming distances that count the bits of the two parts
differently; docs/neighbours-and-classes.md has the measurements behind the weights.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from distillhash.errors import ParameterError

By = Literal["both", "nearest", "kind"]
Ints = NDArray[np.int64]

HEAD = 40
"""Items that the ranking by both takes by ``nearest``, at least."""
HEAD_WEIGHTS = (4, 2)
TAIL_WEIGHTS = (1, 8)


def check_by(by: str, class_bits: int) -> None:
    """Raise :class:`ParameterError` for an unknown ranking, or one that codes of a single part do not have."""
    if by not in get_args(By):
        raise ParameterError(f"by must be one of {', '.join(get_args(By))}, got {by!r}")
    if by != "both" and not class_bits:
        raise ParameterError(
            f"codes of one part have one ranking, got by={by!r}; leave it out, or train with --preserve both"
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
