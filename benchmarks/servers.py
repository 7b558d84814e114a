"""Postgres and Milvus as index engines: exact and approximate, one after the other, over the same codes.

    python tests/engine_servers.py FOLDER &      # starts both and prints their addresses
    python benchmarks/servers.py --postgres ADDRESS --milvus ADDRESS --out results/servers

Clustered codes are stored as ``distillhash index`` does it, in batches of 50,000 with keys and digests. Then queries are asked for one at
a time, and all in one call. Recall is by distance: the share of answers that are no farther than the true k-th neighbour. Times are on
the clock, and CPU is that of this process, not of the server; the load of the machine stands beside them. ``memory://`` is our own engine
over the same codes, for comparison. Tables and collections are named ``bench_...`` and stay.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from code_shapes import made_codes
from distillhash import Codes
from distillhash.bench.runs import versions
from distillhash.index import Index, open_index

BATCH = 50_000
N_BITS = 64
K = 10
EFS = (10, 40, 100, 400)
PROBES = (1, 8, 32, 128)
N_LISTS = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codes", type=int, default=200_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--postgres", metavar="ADDRESS", help="postgresql://... with at least one option")
    parser.add_argument("--milvus", metavar="ADDRESS", help="milvus://host:port")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    arguments = parser.parse_args()
    database, queries = made_codes("clustered", arguments.codes, N_BITS, arguments.queries)
    with open_index("memory://", N_BITS) as memory:
        memory.add(database)
        memory.prepare()
        farthest = memory.search(queries, K).distances[:, -1]
        records = [{"engine": "memory", "setting": "exact"} | asked(memory, queries, farthest)]
    name = f"bench_{secrets.token_hex(3)}"
    if arguments.postgres:
        records += on_postgres(f"{arguments.postgres}&table={name}", database, queries, farthest)
    if arguments.milvus:
        for kind in ("BIN_FLAT", "BIN_IVF_FLAT"):
            place = f"{arguments.milvus}/{name}_{kind}?patience=600"
            records += on_milvus(place, kind, database, queries, farthest)
    arguments.out.mkdir(parents=True, exist_ok=True)
    report = {
        "command": " ".join(["python benchmarks/servers.py", *sys.argv[1:]]),
        "versions": versions(),
        "codes": arguments.codes,
        "n_bits": N_BITS,
        "k": K,
        "records": records,
    }
    (arguments.out / "servers.json").write_text(json.dumps(report, indent=1) + "\n")
    (arguments.out / "table.md").write_text(table(records))


def on_postgres(place: str, database: Codes, queries: Codes, farthest: NDArray[np.int32]) -> Iterator[dict[str, Any]]:
    import psycopg

    address, _, table = place.rpartition("&table=")

    def size() -> int:
        with psycopg.connect(address) as connection:
            row = connection.execute("SELECT pg_total_relation_size(%s::regclass)", [table]).fetchone()
        return int(row[0])

    with open_index(place, N_BITS, create=True) as index:
        record = {"engine": "postgres", "setting": "exact"} | filled(index, database)
        before = size()
        yield shown(record | {"bytes a code": round(before / len(database))} | asked(index, queries, farthest))
    with open_index(f"{place}&index=hnsw") as index:
        built = clocked(index.prepare)
    for ef in EFS:
        with open_index(f"{place}&index=hnsw&ef={ef}") as index:
            record = {"engine": "postgres", "setting": f"hnsw, ef {ef}", "build s": built}
            record["bytes a code"] = round(size() / len(database))
            yield shown(record | asked(index, queries, farthest))


def on_milvus(
    place: str, kind: str, database: Codes, queries: Codes, farthest: NDArray[np.int32]
) -> Iterator[dict[str, Any]]:
    from pymilvus import MilvusClient

    name = place.rpartition("/")[2].partition("?")[0]
    lists = f"&nlist={N_LISTS}" if kind == "BIN_IVF_FLAT" else ""
    with open_index(f"{place}&index={kind}{lists}", N_BITS, create=True) as index:
        record = {"engine": "milvus", "setting": f"{kind}, just added"} | filled(index, database)
        yield shown(record | asked(index, queries, farthest))
    client = MilvusClient(place.replace("milvus://", "http://").rpartition("/")[0], timeout=600)

    def seal() -> None:
        client.flush(name)
        while client.describe_index(name, "code")["pending_index_rows"]:
            time.sleep(0.2)
        client.release_collection(name)  # or the server uses the index in its own time
        client.load_collection(name)

    built = clocked(seal)
    client.close()
    for probes in PROBES if lists else (0,):
        option, words = (f"{lists}&nprobe={probes}", f", nprobe {probes}") if probes else ("", ", sealed")
        with open_index(f"{place}&index={kind}{option}") as index:
            record = {"engine": "milvus", "setting": kind + words, "build s": built}
            yield shown(record | asked(index, queries, farthest))


def filled(index: Index, database: Codes) -> dict[str, Any]:
    """Store the codes; how many a second."""
    seconds, cpu = 0.0, time.process_time()
    for start in range(0, len(database), BATCH):
        part = database[start : start + BATCH]
        keys = [f"/photos/{i // 1000:08d}/img_{i:08d}.jpg" for i in range(start, start + len(part))]
        digests = [i.to_bytes(16) for i in range(start, start + len(part))]
        seconds += clocked(lambda: index.add(part, keys=keys, digests=digests), digits=6)  # noqa: B023
    return {"codes/s": round(len(database) / seconds), "add CPU s": round(time.process_time() - cpu, 1)}


def asked(index: Index, queries: Codes, farthest: NDArray[np.int32]) -> dict[str, Any]:
    """Times and recall of searches, after one that warms up."""
    index.search(queries[:1], K)
    cpu = time.process_time()
    single = [clocked(lambda: index.search(queries[i : i + 1], K), digits=6) for i in range(len(queries))]  # noqa: B023
    cpu = time.process_time() - cpu
    begin = time.perf_counter()
    found = index.search(queries, K).distances
    batch = time.perf_counter() - begin
    return {
        "ms one query": round(1e3 * statistics.median(single), 3),
        "CPU ms": round(1e3 * cpu / len(queries), 3),
        "ms in a batch": round(1e3 * batch / len(queries), 3),
        f"recall@{K}": round(float(((found >= 0) & (found <= farthest[:, None])).mean()), 4),
        "load": round(os.getloadavg()[0], 1),
    }


def clocked(work: Callable[[], object], digits: int = 1) -> float:
    begin = time.perf_counter()
    work()
    return round(time.perf_counter() - begin, digits)


def shown(record: dict[str, Any]) -> dict[str, Any]:
    print(json.dumps(record), flush=True)
    return record


def table(records: list[dict[str, Any]]) -> str:
    columns = ["engine", "setting", "codes/s", "build s", "bytes a code", "ms one query", "CPU ms", "ms in a batch"]
    columns += [f"recall@{K}", "load"]
    rows = [columns, ["---"] * len(columns), *([record.get(name, "") for name in columns] for record in records)]
    return "".join(f"| {' | '.join(map(str, row))} |\n" for row in rows)


if __name__ == "__main__":
    main()
