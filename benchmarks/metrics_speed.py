"""The full metrics report against the usual loop, in one run: 10,000 queries x 50,000 codes of 64 bits, 10 classes.

    python benchmarks/metrics_speed.py

The usual loop is what hashing repositories run: a float product per query, argsort, and one pass for AP. It is timed on some of the
queries and scaled. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np

from distillhash.codes import Codes
from distillhash.metrics.retrieval import evaluate_codes


def usual_loop(query: np.ndarray, database: np.ndarray, query_labels: np.ndarray, database_labels: np.ndarray) -> float:
    """Mean AP by sorting, as it is commonly written."""
    total = 0.0
    for signs, label in zip(query, query_labels, strict=True):
        distances = 0.5 * (database.shape[1] - database @ signs)
        relevant = (database_labels == label)[np.argsort(distances)]
        places = np.flatnonzero(relevant) + 1
        total += float(np.mean(np.arange(1, len(places) + 1) / places))
    return total / len(query)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--database", type=int, default=50_000)
    parser.add_argument("--bits", type=int, default=64)
    parser.add_argument("--loop-queries", type=int, default=300, help="queries the usual loop is timed on")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    centres = rng.choice([-1, 1], (10, arguments.bits))

    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        labels = rng.integers(0, 10, n)
        flips = rng.random((n, arguments.bits)) < 0.3
        return np.where(flips, -centres[labels], centres[labels]), labels

    (query, query_labels), (database, database_labels) = draw(arguments.queries), draw(arguments.database)
    query_codes, database_codes = Codes.from_signs(query), Codes.from_signs(database)
    evaluate_codes(query_codes[:10], database_codes[:100], query_labels[:10], database_labels[:100])  # compile
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        report = evaluate_codes(query_codes, database_codes, query_labels, database_labels)
        seconds.append(time.perf_counter() - started)
    few = slice(0, arguments.loop_queries)
    started = time.perf_counter()
    loop_map = usual_loop(query[few].astype(float), database.astype(float), query_labels[few], database_labels)
    loop_seconds = (time.perf_counter() - started) * arguments.queries / arguments.loop_queries
    result = {
        "report_seconds": round(float(np.median(seconds)), 2),
        "usual_loop_seconds": round(loop_seconds, 1),
        "ratio": round(loop_seconds / float(np.median(seconds)), 1),
        "map": round(report["map"], 4),
        "usual_loop_map_on_its_queries": round(loop_map, 4),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
