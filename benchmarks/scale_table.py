"""The table of docs/scale.md, worked out from the rates in results/: bytes, core-hours and money from 10^4 to 10^9 images.

    python benchmarks/scale_table.py --price 0.04 --write docs/scale.md

Nothing is measured here. Every number is a measured rate times the number of images, so it holds as far as the step is linear; the page
says where it is not. Without ``--write`` the table is printed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"
SIZES = (10**4, 10**6, 10**8, 10**9)
BEGIN, END = "<!-- made by benchmarks/scale_table.py -->\n", "<!-- end -->\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--price", type=float, default=0.04, help="dollars a core-hour (default: 0.04)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table between the marks in this file")
    arguments = parser.parse_args()
    text = table(arguments.price)
    if arguments.write is None:
        print(text, end="")
        return
    page = arguments.write.read_text()
    before, _, rest = page.partition(BEGIN)
    arguments.write.write_text(before + BEGIN + text + END + rest.partition(END)[2])


def table(price: float) -> str:
    """The table as Markdown: one row a rate."""
    heads = [["", "rate", *(f"10^{len(str(n)) - 1}" for n in SIZES)], ["---"] * (2 + len(SIZES))]
    rows = [*heads, *extraction(price), *folder(), *servers()]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def extraction(price: float) -> Iterator[list[str]]:
    for place in ("lite2-cifar10", "lite2"):
        result = read("extraction", place, "table.json")["results"][0]
        ms = result["medians"]["cpu"]["encoding"]
        name = f"extraction, {result['backbone']} at {result['image_size']}"
        yield row(f"{name}: core-hours", f"{ms:.1f} ms an image", short, ms / 3.6e6)
        yield row("- dollars", f"{price:g} a core-hour", short, ms / 3.6e6 * price)


def folder() -> Iterator[list[str]]:
    store = read("store", "sorted.json")
    add, first = store["steps"][:2]
    disk, memory = store["bytes an item on disk"], first["peak MB"] * 1e6 / store["items"]
    wait = first["seconds to the first answer"] / store["items"]
    scans = read("hamming-search", "table.json")["records"]
    wanted = {"engine": "distillhash", "items": 10**7, "n_bits": 64}
    short_codes = next(one["single_ms"] for one in scans if wanted.items() <= one.items()) / 1e10
    scans = read("two-part-search", "table.json")["records"]
    wanted = {"shape": "clustered", "items": 10**6, "n_bits": 256}
    long_codes = next(one["plain_one_us"] for one in scans if wanted.items() <= one.items()) / 1e12
    yield row("codes alone, 64 bits", "8 bytes", size, 8)
    yield row("codes alone, 256 bits", "32 bytes", size, 32)
    yield row("folder: disk, 64 bits", f"{disk:g} bytes an item", size, disk)
    yield row("- memory of the first search", f"{memory:.0f} bytes an item", size, memory)
    yield row("- adding", f"{add['rows/s']:,} items/s", time, 1 / add["rows/s"])
    yield row("- first answer, no cache file", f"{1e6 * wait:.2f} us an item", time, wait)
    yield row("- a query of 64 bits, one core", f"{1e9 * short_codes:.2f} ns a code", time, short_codes)
    yield row("- a query of 256 bits, one core", f"{1e9 * long_codes:.2f} ns a code", time, long_codes)


def servers() -> Iterator[list[str]]:
    report = read("servers", "servers.json")
    n = report["codes"]
    found = {f"{record['engine']} {record['setting']}": record for record in report["records"]}
    exact, hnsw = found["postgres exact"], found["postgres hnsw, ef 100"]
    milvus, scan = found["milvus BIN_FLAT, just added"]["codes/s"], exact["ms one query"] / 1e3 / n
    more = hnsw["bytes a code"] - exact["bytes a code"]
    yield row("Postgres: disk", f"{exact['bytes a code']} bytes a code", size, exact["bytes a code"])
    yield row("- adding", f"{exact['codes/s']:,} codes/s", time, 1 / exact["codes/s"])
    yield row("- a query, exact", f"{1e9 * scan:.0f} ns a code", time, scan)
    yield row("- HNSW: disk beside that", f"{more} bytes a code", size, more)
    yield row("- HNSW: building", f"{1e6 * hnsw['build s'] / n:.0f} us a code", time, hnsw["build s"] / n)
    yield row("Milvus: adding", f"{milvus:,} codes/s", time, 1 / milvus)


def row(name: str, rate: str, shown: Callable[[float], str], per_item: float) -> list[str]:
    return [name, rate, *(shown(per_item * n) for n in SIZES)]


def read(*parts: str) -> Any:
    return json.loads(RESULTS.joinpath(*parts).read_text())


def short(value: float) -> str:
    """Two digits that count."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def size(n_bytes: float) -> str:
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= factor:
            return f"{short(n_bytes / factor)} {unit}"
    return f"{short(n_bytes / 1e3)} kB"


def time(seconds: float) -> str:
    for unit, factor in (("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if seconds >= factor:
            return f"{short(seconds / factor)} {unit}"
    return f"{short(1e3 * seconds)} ms"


if __name__ == "__main__":
    main()
