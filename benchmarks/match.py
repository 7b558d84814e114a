"""Look-ups within a radius among many codes: the scan, the tables of substrings, and FAISS; and false matches, stated and counted.

    python benchmarks/match.py --out results/match/table.json
    python benchmarks/match.py --features features.npy --out results/match/false-matches.json

The first command makes codes (code_shapes.py) and looks up queries of the same shape, on all cores. *scan* is
:func:`distillhash.hamming.within`, *index* what ``Index.range_search`` of a folder or of ``memory://`` does for a batch, once its tables
are made. Of FAISS, *flat* compares all codes, *multi-hash* is its multi-index hashing with as many tables and bits, exact at these radii.
Seconds are wall time, with CPU time beside it. ``same`` says that all answers agree.

The second takes real features ``(n, d)``: a fifth of the rows is looked up in the others, of which no copies are known. Stated is what
``dedup --reference INDEX`` and ``POST /match`` say of these look-ups, from a sample of the indexed ones; counted are all matches.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from code_shapes import made_codes
from distillhash import Codes, make_hasher
from distillhash.bench.runs import versions
from distillhash.dedup.calibration import calibrate_lookups
from distillhash.files import cores
from distillhash.hamming import planes_of, warm_up, within
from distillhash.hamming.substrings import SubstringTables

RADII = {32: (1, 2, 4), 64: (2, 4, 6, 8), 128: (4, 8, 12, 16), 256: (8, 16, 24, 32)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=10_000_000)
    parser.add_argument("--bits", default="64,128")
    parser.add_argument("--queries", type=int, default=5_000)
    parser.add_argument("--faiss-queries", type=int, default=200, help="of the slower ways of FAISS")
    parser.add_argument("--shapes", default="clustered,uniform")
    parser.add_argument("--without-faiss", action="store_true")
    parser.add_argument("--features", type=Path, help="count false matches of codes of these")
    parser.add_argument("--methods", default="itq,lsh", help="that make these codes")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    records = []
    measure = timed if arguments.features is None else counted
    for record in measure(arguments):
        print(json.dumps(record), flush=True)
        records.append(record)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        command = " ".join(["python benchmarks/match.py", *sys.argv[1:]])
        report = {"command": command, "cores": cores(), "versions": versions(), "records": records}
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


def timed(arguments: argparse.Namespace) -> Any:
    """A record for each shape, length and radius."""
    for n_bits in map(int, arguments.bits.split(",")):
        warm_up(n_bits)
        for shape in arguments.shapes.split(","):
            codes, queries = made_codes(shape, arguments.items, n_bits, arguments.queries)
            yield from compared(shape, codes, queries, arguments)


def compared(shape: str, codes: Codes, queries: Codes, arguments: argparse.Namespace) -> Any:
    """Records of one set of codes."""
    planes, query = planes_of(codes), planes_of(queries)
    tables = SubstringTables(planes)
    tables._saved(0)  # draws the pairs
    tables._tables, build = seconds(tables._made)
    head: dict[str, Any] = {"shape": shape, "items": len(codes), "n_bits": codes.n_bits, "queries": len(queries)}
    held = sum(table.nbytes for table in tables._tables)
    yield head | {"way": "index, tables", **build, "bytes": held, "codes_bytes": planes.nbytes,
                  "n_tables": len(tables._tables.rows), "key_bits": tables._groups.width}  # fmt: skip
    multi: Any = None
    bits = codes.n_bits // len(tables._tables.rows)
    if not arguments.without_faiss:
        import faiss

        faiss.omp_set_num_threads(cores())
        packed, few = codes.packed, queries.packed[: arguments.faiss_queries]
        flat = faiss.IndexBinaryFlat(codes.n_bits)
        flat.add(packed)
        before = resident()
        multi = faiss.IndexBinaryMultiHash(codes.n_bits, len(tables._tables.rows), min(bits, tables._groups.width))
        _, build = seconds(partial(multi.add, packed))
        yield head | {"way": "faiss multi-hash", **build, "bytes": resident() - before}
    for radius in RADII[codes.n_bits]:
        ways: dict[str, tuple[Any, Callable[[Any], Any]]] = {
            "scan": (query.T, lambda some: within(some.T, planes, radius)),  # noqa: B023  # called before the next radius
            "index": (query.T, lambda some: tables.within(some.T, radius)),  # noqa: B023
        }
        if multi is not None:
            multi.nflip = radius // multi.nhash
            for name, index in (("faiss flat", flat), ("faiss multi-hash", multi)):
                ways[name] = few, partial(_range_search, index, radius)
        record = head | {"radius": radius, "uses_tables": tables._saved(radius) > 0}
        answers = {}
        for name, (asked, way) in ways.items():
            way(asked[:8])  # may compile
            answers[name], spent = seconds(partial(way, asked))
            record |= {f"{name}_per_second": round(len(asked) / spent["seconds"]),
                       f"{name}_cpu_us": round(1e6 * spent["cpu_seconds"] / len(asked), 1)}  # fmt: skip
        limits = answers["scan"][0]
        record["hits"] = round(float(limits[-1]) / len(queries), 2)
        record["same"] = all(map(np.array_equal, answers["scan"], answers["index"]))
        for name in [name for name in ways if name.startswith("faiss")]:
            found, wanted = answers[name][0], limits[: arguments.faiss_queries + 1]
            record["same"] &= bool(np.array_equal(found.astype(np.int64), wanted))
        yield record


def _range_search(index: Any, radius: int, queries: Any) -> Any:
    return index.range_search(queries, radius + 1)  # FAISS leaves out what lies at the radius


def seconds(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What ``work`` gives, and the wall time and CPU time it takes."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = work()
    return found, {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}


def resident() -> int:
    """Bytes of memory in use."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def counted(arguments: argparse.Namespace) -> Any:
    """A record for each method, length and number of false matches to accept."""
    features = np.load(arguments.features, mmap_mode="r")
    order = np.random.default_rng(0).permutation(len(features))
    new, held = np.sort(order[: len(order) // 5]), np.sort(order[len(order) // 5 :])
    for method in arguments.methods.split(","):
        for n_bits in map(int, arguments.bits.split(",")):
            hasher = make_hasher(method, n_bits=n_bits, seed=0).fit(np.array(features[held[:5000]]))
            database, queries = (hasher.encode(np.array(features[rows])) for rows in (held, new))
            options: dict[str, Any] = {"n_held": len(database), "n_lookups": len(queries), "copies": None}
            for per_thousand in (1, 10):
                most = per_thousand * len(queries) / 1000
                for sample, across in ((len(database), False), (len(database) // 5, False), (len(database) // 5, True)):
                    others = queries if across else None
                    found = calibrate_lookups(database[:sample], others, most_false=most, **options)
                    limits, _, _ = within(planes_of(queries), planes_of(database), found.radius)
                    yield {
                        "method": method,
                        "n_bits": n_bits,
                        "held": len(database),
                        "look-ups": len(queries),
                        "sample": sample,
                        "across": across,
                        "radius": found.radius,
                        "stated": found.expected_false_pairs,
                        "interval": found.false_pairs_interval,
                        "counted": int(limits[-1]),
                    }


if __name__ == "__main__":
    main()
