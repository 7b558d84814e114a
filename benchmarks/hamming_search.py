"""The clustered structure against our own scan, on codes of three shapes: one thread, k = 10 and 100, one query at a time and in batches.

    taskset -c 0 python benchmarks/hamming_search.py --out results/hamming-search/clustered.json

Both take turns, 25 queries in a row, so that each finds in cache what it left there. Times are CPU microseconds a query: means, since
a tenth of the clustered queries are noise and much dearer, and medians. Answers are compared. "structure" is :class:`ClusteredCodes` as
it is; "unplanned" is the same, used whether or not it was measured to pay. With ``--masked`` half of the rows are not allowed.
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

from code_shapes import SHAPES, made_codes
from distillhash.bench.runs import versions
from distillhash.hamming import nearest, planes_of, warm_up
from distillhash.hamming.clustered import ClusteredCodes

IN_A_ROW = 25  # queries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=10_000_000)
    parser.add_argument("--bits", type=int, default=64)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--masked", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    warm_up(arguments.bits)
    records = []
    for shape in arguments.shapes.split(","):
        for record in compared(shape, arguments):
            print(json.dumps(record), flush=True)
            records.append(record)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        command = " ".join(["python benchmarks/hamming_search.py", *sys.argv[1:]])
        report = {"command": command, "versions": versions(), "records": records}
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


def compared(shape: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One record for each k."""
    database, query = (
        planes_of(codes) for codes in made_codes(shape, arguments.items, arguments.bits, arguments.queries)
    )
    allowed = np.random.default_rng(0).random(arguments.items) < 0.5 if arguments.masked else None
    begin = time.perf_counter(), time.process_time()
    structure = ClusteredCodes(database)
    built = time.perf_counter() - begin[0], time.process_time() - begin[1]
    n_bytes = database.nbytes + sum(array.nbytes for array in structure.arrays().values())
    unplanned = ClusteredCodes.from_arrays(database, structure.arrays())
    unplanned.largest_k = 1000
    records = []
    for k in (10, 100):
        options: Any = {"k": k, "allowed": allowed}
        ways: dict[str, Callable[[Any], Any]] = {
            "scan": partial(nearest, database=database, threads=1, **options),
            "structure": partial(structure.nearest, **options),
            "unplanned": partial(unplanned.nearest, **options),
        }
        record: dict[str, Any] = {"shape": shape, "items": arguments.items, "n_bits": arguments.bits, "k": k,
                                  "masked": arguments.masked, "build_seconds": round(built[0], 1),
                                  "build_cpu_seconds": round(built[1], 1),
                                  "bytes_per_code_beside_planes": round(n_bytes / arguments.items, 2),
                                  "planned": k <= structure.largest_k}  # fmt: skip
        answers = [way(query) for way in ways.values()]
        record["same"] = all(
            np.array_equal(one, other) for found in answers for one, other in zip(found, answers[0], strict=True)
        )
        one: dict[str, list[float]] = {name: [] for name in ways}
        for start in range(0, query.shape[1], IN_A_ROW):
            for name, way in ways.items():
                for i in range(start, min(start + IN_A_ROW, query.shape[1])):
                    begin_cpu = time.thread_time()
                    way(query[:, i : i + 1])
                    one[name].append(1e6 * (time.thread_time() - begin_cpu))
        for name, way in ways.items():
            begin_cpu = time.thread_time()
            way(query)
            batch = 1e6 * (time.thread_time() - begin_cpu) / query.shape[1]
            record |= {f"{name}_us": round(float(np.mean(one[name])), 1), f"{name}_batch_us": round(batch, 1)}
            record[f"{name}_median_us"] = round(float(np.median(one[name])), 1)
        record["scan/structure"] = round(record["scan_us"] / record["structure_us"], 2)
        record["scan/structure_batch"] = round(record["scan_batch_us"] / record["structure_batch_us"], 2)
        records.append(record)
    return records


if __name__ == "__main__":
    main()
