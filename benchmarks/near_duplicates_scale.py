"""Time and memory of grouping clustered codes.

    python benchmarks/near_duplicates_scale.py --items 200000,2000000

A quarter as many pictures as codes, each code a picture's with about a third of the radius flipped. Prints one JSON object per size:
seconds to find the codes that have a neighbour, to group them, and to count pairs for the calibration, and the process's peak memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import time

import numpy as np

from distillhash import Codes
from distillhash.dedup.false_pairs import count_pairs
from distillhash.dedup.groups import near_rows, star_groups


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", default="200000,2000000")
    parser.add_argument("--bits", type=int, default=512)
    parser.add_argument("--radius", type=int, default=64)
    arguments = parser.parse_args()
    star_groups(clustered(64, arguments.bits, arguments.radius), arguments.radius)  # compiles
    near_rows(clustered(64, arguments.bits, arguments.radius), arguments.radius)
    for n in map(int, arguments.items.split(",")):
        codes = clustered(n, arguments.bits, arguments.radius)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        started = time.perf_counter()
        near = near_rows(codes, arguments.radius)
        found = time.perf_counter()
        stars = star_groups(codes[near], arguments.radius)
        grouped = time.perf_counter()
        count_pairs(codes)
        counted = time.perf_counter()
        record = {
            "items": n,
            "groups": len(stars.groups()),
            "find_s": round(found - started, 1),
            "group_s": round(grouped - found, 1),
            "count_s": round(counted - grouped, 1),
            "rss_before_mb": round(before),
            "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        }
        print(json.dumps(record), flush=True)


def clustered(n: int, n_bits: int, radius: int) -> Codes:
    """Copies of ``n / 4`` random pictures."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (max(n // 4, 1), n_bits // 8), np.uint8)
    packed = pictures[rng.integers(0, len(pictures), n)]
    for start in range(0, n, 50_000):
        flips = rng.random((len(packed[start : start + 50_000]), n_bits), np.float32) < radius / n_bits / 3
        packed[start : start + 50_000] ^= np.packbits(flips, axis=1)
    return Codes.from_packed(packed, n_bits)


if __name__ == "__main__":
    main()
