"""The embedded store at size: rows added a second, time to the first answer, memory.

    python benchmarks/store.py --items 10000000 --out results/store

Codes of 64 bits with paths as keys and digests, in batches of 50,000, in a folder below --out that is deleted afterwards. Every step is
a process of its own, so that its memory is its own: add, the first search (which reads all rows and writes the cache file), a search
with the cache file there, an add of one more batch, and a search after that. With ``--order shuffled`` keys come in no order, which is
the worst for the index of keys.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from distillhash import Codes
from distillhash.index import open_index

BATCH = 50_000
N_BITS = 64
STEPS = ("add", "first search", "search with a cache file", "add a batch", "search after that")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=10_000_000)
    parser.add_argument("--order", choices=("sorted", "shuffled"), default="sorted")
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    folder = Path(arguments.out) / "index"
    if arguments.step:
        print(json.dumps(measured(folder, arguments.step, arguments.items, arguments.order)))
        return
    shutil.rmtree(folder, ignore_errors=True)
    records = []
    for step in STEPS:
        command = [sys.executable, __file__, *sys.argv[1:], "--step", step]
        records.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        print(records[-1], flush=True)
    bytes_an_item = sum(file.stat().st_size for file in folder.iterdir()) / arguments.items
    shutil.rmtree(folder)
    text = json.dumps({"items": arguments.items, "order": arguments.order, "n_bits": N_BITS,
                       "bytes an item on disk": round(bytes_an_item, 1), "steps": records}, indent=1)  # fmt: skip
    (Path(arguments.out) / f"{arguments.order}.json").write_text(text + "\n")


def measured(folder: Path, step: str, n: int, order: str) -> dict[str, Any]:
    record: dict[str, Any] = {"step": step}
    started, cpu = time.perf_counter(), time.process_time()
    if step.startswith("add"):
        first = 0 if step == "add" else n
        seconds = 0.0
        with open_index(folder, n_bits=N_BITS, create=True) as index:
            for start in range(first, n if step == "add" else n + BATCH, BATCH):
                codes, keys, digests = batch(start, order)
                before = time.perf_counter()
                index.add(codes, keys=keys, digests=digests)
                seconds += time.perf_counter() - before
        record["rows/s"] = round((n if step == "add" else BATCH) / seconds)
    else:
        with open_index(folder) as index:
            query = batch(0, order)[0][:1]
            index.search(query, 10)
            record["seconds to the first answer"] = round(time.perf_counter() - started, 2)
            before = time.perf_counter()
            index.search(query, 10)
            record["milliseconds for the next"] = round(1e3 * (time.perf_counter() - before), 1)
    record["CPU seconds"] = round(time.process_time() - cpu, 1)
    record["peak MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    record["load of the machine"] = round(os.getloadavg()[0], 1)
    return record


def batch(start: int, order: str) -> tuple[Codes, list[str], list[bytes]]:
    """A batch as a walk over folders gives it; shuffled, the folder of every item is a hash of its number."""
    packed = np.random.default_rng(start).integers(0, 256, (BATCH, N_BITS // 8), np.uint8)
    numbers = range(start, start + BATCH)
    folders = (f"{i // 1000:08d}" if order == "sorted" else f"{i * 2654435761 % 2**32:08x}" for i in numbers)
    keys = [f"/photos/{name}/img_{i:08d}.jpg" for name, i in zip(folders, numbers, strict=True)]
    return Codes.from_packed(packed, N_BITS), keys, [i.to_bytes(16) for i in numbers]


if __name__ == "__main__":
    main()
