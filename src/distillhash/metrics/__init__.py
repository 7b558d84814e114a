"""Quality of codes: retrieval by labels and across image and text, exact over ties; and statistics that need no labels.

What numba compiles is imported when it is first used: a trained method is applied without numba.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from distillhash.metrics.code_statistics import bit_statistics
from distillhash.metrics.neighbours import find_neighbours, neighbour_recall, recall_measures, replicated_neighbours

if TYPE_CHECKING:
    from distillhash.metrics.cross_modal import (
        CodedPairs,
        evaluate_cross_modal,
        own_items,
        query_metrics,
        shared_labels,
        word_overlap,
    )
    from distillhash.metrics.retrieval import evaluate_codes, evaluate_queries

__all__ = [
    "CodedPairs",
    "bit_statistics",
    "evaluate_codes",
    "evaluate_cross_modal",
    "evaluate_queries",
    "find_neighbours",
    "neighbour_recall",
    "own_items",
    "query_metrics",
    "recall_measures",
    "replicated_neighbours",
    "shared_labels",
    "word_overlap",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'distillhash.metrics' has no attribute {name!r}")
    from distillhash.metrics import cross_modal, retrieval

    return getattr(cross_modal if hasattr(cross_modal, name) else retrieval, name)
