"""Quality of codes: retrieval by labels and across image and text, exact over ties; and statistics that need no labels."""

from distillhash.metrics.code_statistics import bit_statistics
from distillhash.metrics.cross_modal import (
    CodedPairs,
    evaluate_cross_modal,
    own_items,
    query_metrics,
    shared_labels,
    word_overlap,
)
from distillhash.metrics.neighbours import find_neighbours, neighbour_recall, recall_measures, replicated_neighbours
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
