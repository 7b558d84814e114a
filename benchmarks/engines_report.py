"""Table, JSON and plot of benchmarks/engines.py."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from distillhash.bench.runs import versions

matplotlib.use("svg")
import matplotlib.pyplot as plt  # after the backend is chosen

PACKAGES = ("faiss-cpu", "usearch", "duckdb", "lancedb", "numba", "numpy")
OURS, FAISS = "distillhash", "FAISS flat"


def write_report(folder: Path, records: list[dict[str, Any]], command: str) -> None:
    """Write table.md, table.json and latency.svg."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {**versions(), **{package: version(package) for package in PACKAGES}}
    machine = f"{_processor()}, {platform.system()} {platform.machine()}"
    report = {"command": command, "versions": found, "machine": machine, "records": records}
    (folder / "table.json").write_text(json.dumps(report, indent=1) + "\n")
    (folder / "table.md").write_text("\n".join(_lines(records, command, found, machine)) + "\n")
    _plot(records, folder / "latency.svg")


def _lines(records: list[dict[str, Any]], command: str, found: dict[str, str], machine: str) -> Iterator[str]:
    yield "# Exact Hamming search, one core\n"
    yield f"`{command}` on {machine}; " + ", ".join(f"{name} {number}" for name, number in found.items()) + ".\n"
    yield "Milliseconds a query: median (best) of all calls; CPU is the median of CPU time. A batch has 500 queries. *x FAISS* compares"
    yield "medians of CPU time. *First* is CPU time of the first query after another engine had the core: caches and clock have to come up."
    yield "*Read* is the least CPU time to read the codes once on one core, and its share of our best single query.\n"
    for shape, n, n_bits in dict.fromkeys((record["shape"], record["items"], record["n_bits"]) for record in records):
        rows = [
            record for record in records if (record["shape"], record["items"], record["n_bits"]) == (shape, n, n_bits)
        ]
        by_name = {record["engine"]: record for record in rows}
        faiss, ours = by_name[FAISS], by_name[OURS]
        yield f"## {n:,} {shape} codes of {n_bits} bits, k = {ours['k']}\n"
        share = ours["read_ms"] / ours["single_cpu_best_ms"]
        yield f"Read {ours['read_ms']:.3f} ms = {n * n_bits / 8e6 / ours['read_ms']:.1f} GB/s; share {share:.0%}.\n"
        yield "| engine | one query | CPU | x FAISS | first | in a batch | CPU | x FAISS | bytes/code | build, s | distances |"
        yield "|---|---|---|---|---|---|---|---|---|---|---|"
        for record in rows:
            cells = [record["engine"], *_timing(record, faiss, "single"), f"{record['first_cpu_ms']:.3g}"]
            cells += _timing(record, faiss, "batch")
            cells += [f"{record['bytes_per_code']:.1f}", f"{record['build_seconds']:.1f}"]
            yield "| " + " | ".join([*cells, "same" if record["same_distances"] else "**differ**"]) + " |"
        yield ""


def _timing(record: dict[str, Any], faiss: dict[str, Any], kind: str) -> list[str]:
    if f"{kind}_ms" not in record:
        return ["", "", ""]
    ratio = faiss[f"{kind}_cpu_ms"] / record[f"{kind}_cpu_ms"]
    wall = f"{record[f'{kind}_ms']:.3g} ({record[f'{kind}_best_ms']:.3g})"
    # Two threads take as much CPU time as one, so there it says nothing; and the clock is at the mercy of other jobs.
    return [wall, f"{record[f'{kind}_cpu_ms']:.3g}", "" if "2 threads" in record["engine"] else f"{ratio:.2g}"]


def _plot(records: list[dict[str, Any]], file: Path) -> None:
    chosen = [record for record in records if record["n_bits"] == 64 and record["shape"] == "clustered"]
    figure, (latency, size) = plt.subplots(1, 2, figsize=(10, 4), width_ratios=(2, 1))
    names = list(dict.fromkeys(record["engine"] for record in chosen))
    for place, name in enumerate(names):
        points = sorted((record["items"], record["single_ms"]) for record in chosen if record["engine"] == name)
        latency.loglog(*zip(*points, strict=True), marker="o", label=name, color=f"C{place}")
        largest = max((record for record in chosen if record["engine"] == name), key=lambda record: record["items"])
        size.barh(len(names) - place, largest["bytes_per_code"], color=f"C{place}")
    latency.set(xlabel="codes of 64 bits", ylabel="one query, ms (median)")
    latency.grid(alpha=0.3, which="both")
    latency.legend(fontsize=7)
    size.set(xlabel="bytes a code", yticks=len(names) - np.arange(len(names)), yticklabels=names)
    size.tick_params(axis="y", labelsize=7)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    values = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return f"{values.get('model name', platform.processor())} (family {values.get('cpu family')}, model {values.get('model')})"
