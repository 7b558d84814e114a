"""Search over codes of two parts against plain Hamming search of the same codes: one thread, one query at a time and in batches.

    taskset -c 0 python benchmarks/two_part_search.py --out results/two-part-search/table.json

All ways take turns, 20 queries in a row, then a batch each. Times are CPU microseconds a query, medians over the turns. Answers of a few
queries are compared with the definition in :mod:`distillhash.hamming.ranking`.

uniform     independent fair bits
clustered   n / 1000 centres, 4 to 16 % of the bits flipped (a rate for each centre), and a tenth of uniform noise
kinds       the same, but centres belong to 20 kinds, which decide the class part; 3 % of its bits are flipped
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

from code_shapes import made_codes
from distillhash import Codes
from distillhash.bench.runs import versions
from distillhash.hamming import nearest, planes_of, warm_up
from distillhash.hamming.ranking import order

IN_A_ROW = 20  # queries
N_KINDS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--bits", type=int, default=256)
    parser.add_argument("--class-bits", default="32,48,64")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("-k", type=int, default=100)
    parser.add_argument("--shapes", default="uniform,clustered,kinds")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    records = []
    for shape in arguments.shapes.split(","):
        for class_bits in map(int, arguments.class_bits.split(",")):
            warm_up(arguments.bits, class_bits)
            records.append(compared(shape, class_bits, arguments))
            print(json.dumps(records[-1]), flush=True)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        command = " ".join(["python benchmarks/two_part_search.py", *sys.argv[1:]])
        report = {"command": command, "versions": versions(), "records": records}
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


def two_part_codes(shape: str, n: int, n_bits: int, class_bits: int, n_queries: int) -> tuple[Codes, Codes]:
    """A database of ``n`` codes, and queries."""
    if shape != "kinds":
        return made_codes(shape, n, n_bits, n_queries)
    parts = []
    for codes, seed in zip(made_codes("clustered", n, n_bits, n_queries), (2, 3), strict=True):
        signs = codes.signs()
        # The kind is a function of the code's cluster: the side of random directions.
        directions = np.random.default_rng(1).standard_normal((n_bits, 8), np.float32)
        kind = (signs[:, class_bits:].astype(np.float32) @ directions[class_bits:] > 0) @ (1 << np.arange(8)) % N_KINDS
        centres = np.random.default_rng(4).integers(0, 2, (N_KINDS, class_bits))
        flips = np.random.default_rng(seed).random((len(codes), class_bits), np.float32) < 0.03
        signs[:, :class_bits] = 2 * (centres[kind] ^ flips) - 1
        parts.append(Codes.from_signs(signs))
    return parts[0], parts[1]


def compared(shape: str, class_bits: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One record: the times of all ways, and their ratios to that of plain search."""
    codes, wanted = two_part_codes(shape, arguments.items, arguments.bits, class_bits, arguments.queries)
    database, query = planes_of(codes), planes_of(wanted)
    options: Any = {"database": database, "k": arguments.k, "threads": 1}
    ways: dict[str, Callable[[Any], Any]] = {"plain": partial(nearest, **options)}
    ways |= {by: partial(nearest, class_bits=class_bits, by=by, **options) for by in ("both", "nearest", "kind")}
    one: dict[str, list[float]] = {name: [] for name in ways}
    batch: dict[str, list[float]] = {name: [] for name in ways}
    for start in range(0, query.shape[1], IN_A_ROW):
        for name, way in ways.items():
            for i in range(start, min(start + IN_A_ROW, query.shape[1])):
                begin = time.thread_time()
                way(query[:, i : i + 1])
                one[name].append(1e6 * (time.thread_time() - begin))
        for name, way in ways.items():
            begin = time.thread_time()
            way(query)
            batch[name].append(1e6 * (time.thread_time() - begin) / query.shape[1])
    record: dict[str, Any] = {"shape": shape, "items": arguments.items, "n_bits": arguments.bits,
                              "class_bits": class_bits, "k": arguments.k,
                              "same": all(same(codes, wanted[i], ways, class_bits) for i in range(3))}  # fmt: skip
    for kind, times in (("one", one), ("batch", batch)):
        for name in ways:
            record[f"{name}_{kind}_us"] = round(float(np.median(times[name])), 1)
        for name in list(ways)[1:]:
            record[f"{name}/plain_{kind}"] = round(record[f"{name}_{kind}_us"] / record[f"plain_{kind}_us"], 2)
    return record


def same(codes: Codes, query: Codes, ways: dict[str, Callable[[Any], Any]], class_bits: int) -> bool:
    """Whether the answers to one query are what the definition says."""
    differing = np.unpackbits(codes.packed ^ query.packed, axis=1, count=codes.n_bits)
    distances, of_class = differing.sum(axis=1, dtype=np.int64), differing[:, :class_bits].sum(axis=1, dtype=np.int64)
    answers = [(ways[by](planes_of(query))[0][0], order(distances, of_class, by)) for by in ("both", "nearest", "kind")]
    return all(np.array_equal(found, expected[: len(found)]) for found, expected in answers)


if __name__ == "__main__":
    main()
