"""Exact Hamming search against FAISS's IndexBinaryFlat, one thread each, interleaved in one run.

    taskset -c 0 python benchmarks/hamming_search.py

Prints one JSON object per code length and number of queries: milliseconds of a call (median) and the ratio. Answers are compared.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial

import faiss
import numpy as np
from numpy.typing import NDArray

from distillhash import Codes
from distillhash.hamming import nearest, planes_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--bits", default="64,128,256")
    parser.add_argument("--queries", default="1,256")
    parser.add_argument("-k", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    faiss.omp_set_num_threads(1)
    rng = np.random.default_rng(0)
    for n_bits in map(int, arguments.bits.split(",")):
        database, query = (Codes.from_packed(clustered(rng, n, n_bits), n_bits) for n in (arguments.items, 256))
        index = faiss.IndexBinaryFlat(n_bits)
        index.add(database.packed)
        planes = planes_of(database)
        for q in map(int, arguments.queries.split(",")):
            part = query[:q]
            part_planes, part_packed = planes_of(part), np.array(part.packed)
            ours, theirs = times(
                partial(nearest, part_planes, planes, arguments.k, threads=1),
                partial(index.search, part_packed, arguments.k),
                arguments.rounds,
            )
            same = np.array_equal(
                nearest(part_planes, planes, arguments.k)[1], index.search(part_packed, arguments.k)[0]
            )
            record = {
                "items": arguments.items,
                "n_bits": n_bits,
                "queries": q,
                "k": arguments.k,
                "same_distances": same,
            }
            print(json.dumps(record | {"ours_ms": ours, "faiss_ms": theirs, "faiss/ours": round(theirs / ours, 2)}))


def clustered(rng: np.random.Generator, n: int, n_bits: int) -> NDArray[np.uint8]:
    """Codes around 1,000 centres with a tenth of the bits flipped, like the codes of real images rather than noise."""
    centres = np.random.default_rng(1).integers(0, 2, (1000, n_bits), np.uint8)
    bits = centres[rng.integers(0, 1000, n)]
    bits ^= rng.random(bits.shape, np.float32) < 0.1
    return np.packbits(bits, axis=1)


def times(ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Median milliseconds of both, taking turns."""
    found: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 1):
        for call, seconds in zip((ours, theirs), found, strict=True):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
    return round(1e3 * float(np.median(found[0][1:])), 3), round(1e3 * float(np.median(found[1][1:])), 3)


if __name__ == "__main__":
    main()
