"""Batches of exact Hamming search on 1, 2, ... threads: how much faster than on one.

    python benchmarks/thread_scaling.py --out results/hamming-search

Batches of 500 queries for their 100 nearest among clustered codes, in one process; the numbers of threads take turns, batch by batch.
Given are medians over all turns, and quartiles of the ratio within a turn, which are far apart where something else runs on the cores.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np

from code_shapes import made_codes
from distillhash.bench.versions import versions
from distillhash.hamming import nearest, planes_of, warm_up
from distillhash.hamming.pool import cores

K, N_QUERIES = 100, 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--bits", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--turns", type=int, default=40, help="at 1M codes; fewer where there are more")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    busy = os.getloadavg()[0]
    records = []
    for n in arguments.items:
        for n_bits in arguments.bits:
            records.append(measure(n, n_bits, max(24, arguments.turns * 1_000_000 // n)))
            print(json.dumps(records[-1]), flush=True)
    if arguments.out:
        facts = {"load_average_before": round(busy, 1), "cores": cores(), "versions": versions(), "records": records}
        (arguments.out / "threads.json").write_text(json.dumps(facts, indent=1) + "\n")


def measure(n: int, n_bits: int, turns: int) -> dict[str, object]:
    database, query = map(planes_of, made_codes("clustered", n, n_bits, N_QUERIES))
    warm_up(n_bits)
    counts = sorted({1, *(2**i for i in range(1, 10) if 2**i <= cores()), cores()})
    expected = nearest(query, database, K, threads=1)
    taken = np.empty((turns + 1, len(counts)))
    for turn in range(turns + 1):
        for place, threads in enumerate(counts):
            begin = time.perf_counter()
            found = nearest(query, database, K, threads=threads)
            taken[turn, place] = time.perf_counter() - begin
            assert np.array_equal(found[0], expected[0]) and np.array_equal(found[1], expected[1])
    taken = taken[1:]
    ratios = taken[:, :1] / taken
    return {
        "items": n,
        "n_bits": n_bits,
        "turns": turns,
        "threads": {
            threads: {
                "ms_a_query": round(1e3 * float(np.median(taken[:, place])) / N_QUERIES, 4),
                "ratio_of_medians": round(float(np.median(taken[:, 0]) / np.median(taken[:, place])), 2),
                "ratio_quartiles": [
                    round(float(np.quantile(ratios[:, place], share)), 2) for share in (0.25, 0.5, 0.75)
                ],
            }
            for place, threads in enumerate(counts)
        },
    }


if __name__ == "__main__":
    main()
