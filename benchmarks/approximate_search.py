"""Approximate search: the clustered structure with a recall asked for, against FAISS's inverted file.

    taskset -c 1 python benchmarks/approximate_search.py --out results/hamming-search/approximate.json

One thread, one query at a time, k = 10. Recall is the share of the true 10 nearest distances that are reached by queries that neither has
seen. FAISS: IndexBinaryIVF with --lists lists, trained on --train rows; every number of lists to visit is one record.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from code_shapes import made_codes
from distillhash.bench.runs import versions
from distillhash.hamming import ClusteredCodes, nearest, planes_of

K = 10


class Trial:
    """One shape of codes, and what was measured on it."""

    def __init__(self, shape: str, n: int, n_bits: int, n_queries: int) -> None:
        self.shape = shape
        self.database, self.query = made_codes(shape, n, n_bits, n_queries)
        self.planes, self.words = planes_of(self.database), planes_of(self.query)
        self.last = nearest(self.words, self.planes, K, threads=1)[1][:, -1:]
        self.records: list[dict[str, Any]] = []

    def measure(self, engine: str, search: Callable[[int], NDArray[Any]], **facts: Any) -> None:
        """Time ``search``, which gives the distances of a query by its number."""
        search(0)
        taken, found = [], []
        for i in range(len(self.last)):
            begin = time.thread_time()
            found.append(search(i))
            taken.append(time.thread_time() - begin)
        record = {
            "shape": self.shape, "engine": engine, **facts, "recall": round(float((np.stack(found) <= self.last).mean()), 3),
            "mean_us": round(1e6 * float(np.mean(taken))), "median_us": round(1e6 * float(np.median(taken))),
        }  # fmt: skip
        self.records.append(record)
        print(json.dumps(record), flush=True)

    def ours(self) -> None:
        """The scan, and the structure with a recall asked for."""
        planes, words = self.planes, self.words
        self.measure("scan", lambda i: nearest(words[:, i : i + 1], planes, K, threads=1)[1][0])
        begin = time.perf_counter()
        structure = ClusteredCodes(planes, threads=1)
        build_s = round(time.perf_counter() - begin, 1)

        def search(recall: float | None, i: int) -> NDArray[Any]:
            return np.asarray(structure.nearest(words[:, i : i + 1], K, recall=recall, threads=1)[1][0])

        self.measure("distillhash", partial(search, None), build_s=build_s)
        for recall in (0.8, 0.9, 0.95, 0.99):
            reached = structure.recalls[structure.recalls[:, 1] >= recall]
            measured = round(float(reached[0, 1]), 3) if len(reached) else "never: exact"
            self.measure("distillhash", partial(search, recall), asked=recall, measured_at_build=measured)

    def faiss(self, n_lists: int, n_train: int) -> None:
        """FAISS's inverted file."""
        import faiss

        faiss.omp_set_num_threads(1)
        begin = time.perf_counter()
        quantizer = faiss.IndexBinaryFlat(self.database.n_bits)
        inverted = faiss.IndexBinaryIVF(quantizer, self.database.n_bits, n_lists)
        inverted.train(self.database.packed[:n_train])
        inverted.add(self.database.packed)
        build_s = round(time.perf_counter() - begin, 1)
        for visited in (1, 4, 16, 64, 256):
            inverted.nprobe = visited
            self.measure(
                "FAISS IVF",
                lambda i: np.asarray(inverted.search(self.query.packed[i : i + 1], K)[0][0]),
                lists_visited=visited,
                build_s=build_s,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=2_000_000)
    parser.add_argument("--bits", type=int, default=64)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--lists", type=int, default=2048)
    parser.add_argument("--train", type=int, default=100_000)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    records: list[dict[str, Any]] = []
    for shape in ("clustered", "uniform"):
        trial = Trial(shape, arguments.items, arguments.bits, arguments.queries)
        trial.ours()
        trial.faiss(arguments.lists, arguments.train)
        records += trial.records
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        command = " ".join(["python benchmarks/approximate_search.py", *sys.argv[1:]])
        report = {"command": command, "versions": versions(), "records": records}
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
