"""Batches of exact Hamming search on 1, 2, ... threads: how much faster than on one.

    python benchmarks/thread_scaling.py --out results/hamming-search

Batches of 500 queries for their 100 nearest among clustered codes, in one process; the numbers of threads take turns of four batches, the
first of which is not counted: a core that had nothing to do comes back slowly. Given are medians over all batches, and quartiles over the
turns of the ratio of their medians, which are far apart where something else runs on the cores.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np

from code_shapes import made_codes
from distillhash.bench.runs import versions
from distillhash.files import cores
from distillhash.hamming import nearest, planes_of, warm_up

K, N_QUERIES = 100, 500
IN_A_ROW = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--bits", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--turns", type=int, default=30, help="at 1M codes; fewer where there are more")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    busy = os.getloadavg()[0]
    records = []
    for n in arguments.items:
        for n_bits in arguments.bits:
            records.append(measure(n, n_bits, max(8, arguments.turns * 1_000_000 // n)))
            print(json.dumps(records[-1]), flush=True)
    if arguments.out:
        facts = {"load_average_before": round(busy, 1), "cores": cores(), "versions": versions(), "records": records}
        (arguments.out / "threads.json").write_text(json.dumps(facts, indent=1) + "\n")


def measure(n: int, n_bits: int, turns: int) -> dict[str, object]:
    database, query = map(planes_of, made_codes("clustered", n, n_bits, N_QUERIES))
    warm_up(n_bits)
    counts = sorted({1, *(2**i for i in range(1, 10) if 2**i <= cores()), cores()})
    expected = nearest(query, database, K, threads=1)
    taken = np.empty((turns, len(counts), IN_A_ROW))
    for turn in range(turns):
        for place, threads in enumerate(counts):
            for batch in range(IN_A_ROW):
                begin = time.perf_counter()
                found = nearest(query, database, K, threads=threads)
                taken[turn, place, batch] = time.perf_counter() - begin
                assert np.array_equal(found[0], expected[0]) and np.array_equal(found[1], expected[1])
    taken = taken[:, :, 1:]
    medians = np.median(taken, axis=(0, 2))
    of_turns = np.median(taken, axis=2)
    ratios = of_turns[:, :1] / of_turns
    return {
        "items": n,
        "n_bits": n_bits,
        "turns": turns,
        "threads": {
            threads: {
                "ms_a_query": round(1e3 * float(medians[place]) / N_QUERIES, 4),
                "ratio_of_medians": round(float(medians[0] / medians[place]), 2),
                "ratio_quartiles": [
                    round(float(np.quantile(ratios[:, place], share)), 2) for share in (0.25, 0.5, 0.75)
                ],
            }
            for place, threads in enumerate(counts)
        },
    }


if __name__ == "__main__":
    main()
