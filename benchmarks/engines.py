"""Exact Hamming search against FAISS, usearch, DuckDB, LanceDB and numpy: latency against N, batches, bytes a code.

    pip install -e '.[dev,bench-engines]'
    python benchmarks/engines.py --out results/hamming-search

Every engine runs in a process of its own on one core (two for "2 threads"). They take turns: in every round each answers a few queries
in a row, so that a disturbance meets all alike and each has its own codes in cache as far as they fit. Given are the median and the best
of all calls, and CPU time, which other jobs disturb less. Distances are compared with ours. Writes table.md, table.json, latency.svg.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from code_shapes import made_codes
from engines_report import write_report

OURS, FAISS = "distillhash", "FAISS flat"
TWO, AVX2, CLUSTERED = "distillhash, 2 threads", "distillhash, AVX2", "distillhash, clustered"
FAST = {OURS, FAISS, TWO, AVX2, CLUSTERED}
OTHERS = ("numpy", "usearch exact", "DuckDB", "LanceDB flat")
N_QUERIES = 500
IN_A_ROW = {
    True: 24,
    False: 5,
}  # single queries of a round: of the engines that scan compiled, and of those that take their time
WARMING = {
    True: 8,
    False: 1,
}  # of them, while caches forget the engine before and the clock comes up; the first is reported by itself
BATCHES = 3  # of a round; the first is not counted
Rows = NDArray[np.uint8]


class Ours:
    """This package; one thread, two, compiled for AVX2, or the clustered structure."""

    def __init__(self, packed: Rows, _folder: Path, name: str) -> None:
        from distillhash import Codes
        from distillhash.hamming import nearest, planes_of, warm_up
        from distillhash.hamming.clustered import ClusteredCodes

        n_bits = 8 * packed.shape[1]

        def as_planes(rows: Rows) -> NDArray[Any]:
            return planes_of(Codes.from_packed(rows, n_bits))

        self._planes_of = as_planes
        self._planes, self._threads = self._planes_of(packed), 2 if name == TWO else 1
        self._nearest, self._structure = nearest, None
        if name == CLUSTERED:
            self._structure = ClusteredCodes(self._planes)
        else:
            warm_up(n_bits)
        arrays = {} if self._structure is None else self._structure.arrays()
        self.bytes = self._planes.nbytes * (2 if arrays else 1) + sum(array.nbytes for array in arrays.values())

    def load(self, query: Rows) -> None:
        """Take the queries; reading their bits is no part of a search."""
        self._query = self._planes_of(query)

    def search(self, first: int, stop: int, k: int) -> NDArray[Any]:
        """Distances of queries ``first`` to ``stop``."""
        query = self._query[:, first:stop]
        if self._structure is not None:
            return self._structure.nearest(query, k)[1]
        return self._nearest(query, self._planes, k, threads=self._threads)[1]

    def read(self) -> float:
        """CPU seconds to read the planes once: the best of numpy's sum and of a compiled loop."""
        from numba import njit

        def joined(words: Any) -> Any:
            a = b = c = d = np.uint64(0)
            for i in range(0, len(words) - 31, 32):
                for j in range(8):
                    a |= words[i + j]
                    b |= words[i + 8 + j]
                    c |= words[i + 16 + j]
                    d |= words[i + 24 + j]
            return a | b | c | d

        words, compiled = self._planes.ravel().view(np.uint64), njit(nogil=True)(joined)
        compiled(words)
        taken = []
        for read in (compiled, np.add.reduce) * 15:
            begin = time.thread_time()
            read(words)
            taken.append(time.thread_time() - begin)
        return min(taken)


class Numpy:
    """Every distance, then a partition."""

    def __init__(self, packed: Rows, _folder: Path) -> None:
        self._words = np.ascontiguousarray(packed.view(np.uint64).T)
        self.bytes = packed.nbytes

    def load(self, query: Rows) -> None:
        """Take the queries."""
        self._query = query.view(np.uint64)

    def search(self, first: int, stop: int, k: int) -> NDArray[Any]:
        """Distances of queries ``first`` to ``stop``."""
        found = []
        for code in self._query[first:stop]:
            far = np.zeros(self._words.shape[1], np.uint16)
            for word, plane in zip(code, self._words, strict=True):
                far += np.bitwise_count(plane ^ word)
            found.append(np.sort(np.partition(far, k - 1)[:k]))
        return np.array(found, np.int32)


class Faiss:
    """IndexBinaryFlat."""

    def __init__(self, packed: Rows, _folder: Path) -> None:
        import faiss

        faiss.omp_set_num_threads(1)
        self._index = faiss.IndexBinaryFlat(8 * packed.shape[1])
        self._index.add(packed)
        self.bytes = packed.nbytes

    def load(self, query: Rows) -> None:
        """Take the queries."""
        self._query = query

    def search(self, first: int, stop: int, k: int) -> NDArray[Any]:
        """Distances of queries ``first`` to ``stop``."""
        return np.asarray(self._index.search(self._query[first:stop], k)[0])


class Usearch(Faiss):
    """``usearch.index.search(exact=True)`` over the packed array."""

    def __init__(self, packed: Rows, _folder: Path) -> None:
        from usearch.index import MetricKind, search

        self._packed, self._search, self._metric = packed, search, MetricKind.Hamming
        self.bytes = packed.nbytes

    def search(self, first: int, stop: int, k: int) -> NDArray[Any]:
        """Distances of queries ``first`` to ``stop``."""
        found = self._search(self._packed, self._query[first:stop], k, self._metric, exact=True, threads=1)
        return np.asarray(found.distances).reshape(stop - first, -1)


class DuckDB(Faiss):
    """``bit_count(xor(...))`` over UBIGINT columns of a table on disk; one query at a time."""

    def __init__(self, packed: Rows, folder: Path) -> None:
        import duckdb
        import pyarrow as pa

        self._words = [f"w{place}" for place in range(packed.shape[1] // 8)]
        columns = dict(zip(self._words, packed.view(np.uint64).T, strict=True))
        codes = pa.table({"id": np.arange(len(packed)), **columns})
        self._connection = duckdb.connect(str(folder / "codes.duckdb"), config={"threads": 1})
        self._connection.register("codes_in", codes)
        self._connection.execute("CREATE TABLE codes AS SELECT * FROM codes_in")
        self._connection.execute("CHECKPOINT")
        self.bytes = (folder / "codes.duckdb").stat().st_size

    def search(self, first: int, stop: int, k: int) -> NDArray[Any]:
        """Distances of queries ``first`` to ``stop``."""
        distance = " + ".join(f"bit_count(xor({word}, ?::UBIGINT))" for word in self._words)
        statement = f"SELECT id, {distance} AS distance FROM codes ORDER BY distance, id LIMIT {k}"
        words = self._query[first:stop].view(np.uint64)
        found = [self._connection.execute(statement, row.tolist()).fetchnumpy()["distance"] for row in words]
        return np.stack(found)


class LanceDB(Faiss):
    """A flat search over a fixed-size list of bytes; one query at a time."""

    def __init__(self, packed: Rows, folder: Path) -> None:
        import lancedb
        import pyarrow as pa

        vectors = pa.FixedSizeListArray.from_arrays(pa.array(packed.ravel()), packed.shape[1])
        table = pa.table({"id": np.arange(len(packed)), "vector": vectors})
        self._table = lancedb.connect(folder / "lance").create_table("codes", table)
        self.bytes = sum(file.stat().st_size for file in (folder / "lance").rglob("*") if file.is_file())

    def search(self, first: int, stop: int, k: int) -> NDArray[Any]:
        """Distances of queries ``first`` to ``stop``."""
        return np.stack(
            [
                self._table.search(row).distance_type("hamming").limit(k).to_arrow()["_distance"].to_numpy()
                for row in self._query[first:stop]
            ]
        )


CLASSES: dict[str, Any] = {
    "numpy": Numpy,
    FAISS: Faiss,
    "usearch exact": Usearch,
    "DuckDB": DuckDB,
    "LanceDB flat": LanceDB,
}


def worker(name: str, folder: Path) -> None:
    """Serve one engine: a line of JSON in, a line of JSON out."""
    if name not in (TWO, CLUSTERED):  # the structure is built on all cores, and searched by one thread
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what engines print does not get among the replies
    packed, query = np.load(folder / "database.npy"), np.load(folder / "query.npy")
    with tempfile.TemporaryDirectory() as own:
        begin = time.perf_counter()
        engine = CLASSES.get(name, partial(Ours, name=name))(packed, Path(own))
        engine.load(query)
        reply: dict[str, Any] = {"build_seconds": time.perf_counter() - begin, "bytes": engine.bytes}
        print(json.dumps(reply), file=replies, flush=True)
        for line in sys.stdin:
            order = json.loads(line)
            if order["do"] == "read":
                reply = {"seconds": engine.read()}
            elif order["do"] == "distances":
                reply = {"distances": np.sort(engine.search(0, order["stop"], order["k"]), axis=1).astype(int).tolist()}
            else:
                wall, cpu = [], []
                for first, stop in order["parts"]:
                    begins = time.perf_counter(), time.process_time()
                    engine.search(first, stop, order["k"])
                    wall.append(time.perf_counter() - begins[0])
                    cpu.append(time.process_time() - begins[1])
                reply = {"wall": wall, "cpu": cpu}
            print(json.dumps(reply), file=replies, flush=True)


class Worker:
    """An engine in a process of its own."""

    def __init__(self, name: str, folder: Path) -> None:
        environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        if name == AVX2:
            environment |= {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": ""}
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--worker", name, "--folder", str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self.built = self._reply()

    def ask(self, **order: Any) -> dict[str, Any]:
        """Send an order, wait for the reply."""
        assert self._process.stdin is not None
        print(json.dumps(order), file=self._process.stdin, flush=True)
        return self._reply()

    def _reply(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"an engine died with exit code {self._process.wait()}; see above")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@contextmanager
def workers(names: list[str], folder: Path) -> Iterator[dict[str, Worker]]:
    with ExitStack() as stack:
        found = {}
        for name in names:
            found[name] = Worker(name, folder)
            stack.callback(found[name].close)
        yield found


def measure(shape: str, n: int, n_bits: int, k: int, rounds: int) -> list[dict[str, Any]]:
    """All engines over one database."""
    names = [OURS, FAISS]
    if n_bits == 64:
        names += [AVX2, *OTHERS]
    if n >= 10_000_000:
        names.append(CLUSTERED)
    if n >= 1_000_000:
        names.append(TWO)
    batched = FAST if n >= 1_000_000 else set()
    k = min(k, n)
    with tempfile.TemporaryDirectory() as folder:
        database, query = made_codes(shape, n, n_bits, N_QUERIES)
        np.save(Path(folder) / "database.npy", database.packed)
        np.save(Path(folder) / "query.npy", query.packed)
        with workers(names, Path(folder)) as engines:
            expected = engines[OURS].ask(do="distances", stop=3, k=k)
            records = {
                name: {"engine": name, "shape": shape, "items": n, "n_bits": n_bits, "k": k, "single": [], "single_cpu": [],
                       "first_cpu": [], "batch": [], "batch_cpu": [], "build_seconds": round(engine.built["build_seconds"], 2),
                       "bytes_per_code": round(engine.built["bytes"] / n, 2),
                       "same_distances": engine.ask(do="distances", stop=3, k=k) == expected}
                for name, engine in engines.items()
            }  # fmt: skip
            for turn in range(rounds):
                for name, engine in engines.items():
                    length, warming = IN_A_ROW[name in FAST], WARMING[name in FAST]
                    first = turn * (length - warming) % (N_QUERIES - length)
                    parts = [(place, place + 1) for place in range(first, first + length)]
                    found = engine.ask(do="search", parts=parts, k=k)
                    records[name]["first_cpu"] += found["cpu"][:1]
                    records[name]["single"] += found["wall"][warming:]
                    records[name]["single_cpu"] += found["cpu"][warming:]
            for _ in range(max(1, rounds // 3)):
                for name in sorted(batched & set(names)):
                    found = engines[name].ask(do="search", parts=[(0, N_QUERIES)] * BATCHES, k=k)
                    records[name]["batch"] += [seconds / N_QUERIES for seconds in found["wall"][1:]]
                    records[name]["batch_cpu"] += [seconds / N_QUERIES for seconds in found["cpu"][1:]]
            reading = engines[OURS].ask(do="read")["seconds"]
    for record in records.values():
        for key in ("single", "single_cpu", "first_cpu", "batch", "batch_cpu"):
            taken = 1e3 * np.array(record.pop(key))
            if len(taken):
                record[f"{key}_ms"] = round(float(np.median(taken)), 4)
                record[f"{key}_best_ms"] = round(float(taken.min()), 4)
        record["read_ms"] = round(1e3 * reading, 4)
    return list(records.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", default="10000,100000,1000000,10000000")
    parser.add_argument("-k", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker, arguments.folder)
        return
    sizes = [int(size) for size in arguments.items.split(",")]
    plans = [("clustered", n, 64) for n in sizes] + [("clustered", n, 128) for n in sizes if n >= 1_000_000]
    records = []
    for shape, n, n_bits in plans:
        for record in measure(shape, n, n_bits, arguments.k, arguments.rounds):
            print(json.dumps(record), flush=True)
            records.append(record)
    if arguments.out:
        write_report(arguments.out, records, " ".join(["python benchmarks/engines.py", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
