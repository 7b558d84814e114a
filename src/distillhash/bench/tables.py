"""Tables of finished runs: mean and spread over seeds, the paper's numbers beside, and what the differences are worth."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash.bench.protocol import Protocol
from distillhash.bench.run import Provenance, Run
from distillhash.methods import method_class, method_names

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Difference:
    """MAP of a method minus that of the best, over the same queries: mean, and the bounds of its bootstrap interval."""

    mean: float
    low: float
    high: float

    @property
    def significant(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Row:
    """One method: per code length the MAP of each seed, and the difference from the best; costs; errors."""

    method: str
    maps: dict[int, list[float]]
    differences: dict[int, Difference]
    fit_seconds: float
    peak_rss_mb: float
    errors: list[str]

    @property
    def uses_labels(self) -> bool:
        """Whether it learns from labels: then it is no rival of the others."""
        return method_class(self.method).needs_labels

    def cell(self, n_bits: int) -> str:
        """Mean, and the sample standard deviation in parentheses."""
        values = self.maps.get(n_bits, [])
        if not values:
            return "failed" if self.errors else ""
        spread = f" ({np.std(values, ddof=1):.4f})" if len(values) > 1 else ""
        return f"{np.mean(values):.4f}{spread}"


def make_rows(runs: Sequence[Run]) -> list[Row]:
    """One row per method, in order of their mean MAP, best first; methods that learn from labels last.

    The best method of a code length is the one with the highest mean among those without labels. Each query's average precision is averaged
    over seeds, and the queries are resampled in pairs (:func:`scipy.stats.bootstrap`, percentile interval).
    """
    lengths = sorted({run.record["n_bits"] for run in runs})
    methods = sorted({run.record["method"] for run in runs})
    per_query: dict[tuple[str, int], NDArray[np.float64]] = {}
    for method in methods:
        for n_bits in lengths:
            mine = [
                run.average_precision
                for run in runs
                if run.record["method"] == method
                and run.record["n_bits"] == n_bits
                and run.average_precision is not None
            ]
            if mine:
                per_query[method, n_bits] = np.mean(np.asarray(mine, np.float64), axis=0)
    best = {
        n_bits: max(
            (method for method in methods if (method, n_bits) in per_query and not method_class(method).needs_labels),
            key=lambda method: float(np.nanmean(per_query[method, n_bits])),
            default=None,
        )
        for n_bits in lengths
    }
    rows = []
    for method in methods:
        records = [run.record for run in runs if run.record["method"] == method]
        good = [record for record in records if "error" not in record]
        differences = {
            n_bits: bootstrap_difference(per_query[method, n_bits], per_query[other, n_bits])
            for n_bits in lengths
            if (other := best[n_bits]) is not None and other != method and (method, n_bits) in per_query
        }
        rows.append(
            Row(
                method,
                {n: [r["map"] for r in good if r["n_bits"] == n] for n in lengths},
                differences,
                float(np.median([r["fit_seconds"] for r in good])) if good else float("nan"),
                float(np.max([r["peak_rss_mb"] for r in good])) if good else float("nan"),
                sorted({f"{r['n_bits']} bits: {r['error']}" for r in records if "error" in r}),
            )
        )

    def order(row: Row) -> tuple[bool, float]:
        means = [np.mean(values) for values in row.maps.values() if values]
        return row.uses_labels, -float(np.mean(means)) if means else 1.0

    return sorted(rows, key=order)


def bootstrap_difference(mine: NDArray[np.float64], others: NDArray[np.float64]) -> Difference:
    """Paired bootstrap over queries of the mean difference; queries without relevant items (NaN) are left out."""
    from scipy.stats import bootstrap

    gaps = (mine - others)[~np.isnan(mine)]
    if len(gaps) < 2 or np.ptp(gaps) == 0:
        return Difference(float(gaps.mean()), float(gaps.mean()), float(gaps.mean()))
    interval = bootstrap(
        (gaps,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=50,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Difference(float(gaps.mean()), float(interval.low), float(interval.high))


def write_tables(folder: Path, runs: Sequence[Run], protocol: Protocol, provenance: Provenance) -> None:
    """``table.json`` (the records) and ``table.md``."""
    folder.mkdir(parents=True, exist_ok=True)
    records = [{key: value for key, value in run.record.items() if key != "identity"} for run in runs]
    (folder / "table.json").write_text(json.dumps(_rounded(records), indent=1) + "\n")
    (folder / "table.md").write_text(markdown(runs, protocol, provenance))


def markdown(runs: Sequence[Run], protocol: Protocol, provenance: Provenance) -> str:
    """The tables as Markdown."""
    rows = make_rows(runs)
    lengths = sorted({run.record["n_bits"] for run in runs})
    lines = [f"# {protocol.name}: MAP over the whole database", ""]
    lines += ["| method | " + " | ".join(f"{n} bits" for n in lengths) + " | fit, s | memory, MB |"]
    lines += ["|" + "---|" * (len(lengths) + 3)]
    for row in rows:
        cells = [row.cell(n) for n in lengths]
        name = f"{row.method} (uses labels)" if row.uses_labels else row.method
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {row.fit_seconds:.1f} | {row.peak_rss_mb:.0f} |")
        if row.method in protocol.published:
            printed = [protocol.published[row.method].get(str(n)) for n in lengths]
            cells = [f"*{value:.4f}*" if value is not None else "" for value in printed]
            lines.append("| *printed in the paper* | " + " | ".join(cells) + " | | |")
    lines += ["", *_conditions(runs, protocol, provenance), ""]
    if any(row.differences for row in rows):
        lines += [
            "## Differences from the best",
            "",
            f"MAP minus that of the best method without labels at that length, and the {LEVEL:.0%} interval of a paired bootstrap over "
            f"queries ({RESAMPLES} resamples). A star marks an interval without 0.",
            "",
            "| method | " + " | ".join(f"{n} bits" for n in lengths) + " |",
            "|" + "---|" * (len(lengths) + 1),
        ]
        for row in rows:
            cells = [_difference(row.differences.get(n), bool(row.maps.get(n))) for n in lengths]
            lines.append(f"| {row.method} | " + " | ".join(cells) + " |")
        lines.append("")
    lines += _second_table(rows, lengths, protocol)
    failures = [f"- {row.method}, {error}" for row in rows for error in row.errors]
    if failures:
        lines += ["## Failed", "", *failures, ""]
    return "\n".join(lines)


def _difference(difference: Difference | None, measured: bool) -> str:
    if difference is None:
        return "best" if measured else ""
    star = "\\*" if difference.significant else ""
    return f"{difference.mean:+.4f}{star} [{difference.low:+.4f}, {difference.high:+.4f}]"


def _second_table(rows: Sequence[Row], lengths: Sequence[int], protocol: Protocol) -> list[str]:
    """Table 2 of the paper, DistillHash against its ablation, when both are there."""
    by_name = {row.method: row for row in rows}
    if not {"distillhash", "distillhash-initial"} <= by_name.keys():
        return []
    lines = ["## DistillHash and its ablation (Table 2)", "", "| | " + " | ".join(f"{n} bits" for n in lengths) + " |"]
    lines += ["|" + "---|" * (len(lengths) + 1)]
    measured = [
        [np.mean(values) if (values := by_name[name].maps.get(n)) else np.nan for n in lengths]
        for name in ("distillhash", "distillhash-initial")
    ]
    lines.append("| gain measured | " + " | ".join(f"{a - b:+.4f}" for a, b in zip(*measured, strict=True)) + " |")
    if {"distillhash", "distillhash-initial"} <= protocol.published.keys():
        printed = [protocol.published[name] for name in ("distillhash", "distillhash-initial")]
        gains = [f"{printed[0][str(n)] - printed[1][str(n)]:+.4f}" if str(n) in printed[0] else "" for n in lengths]
        lines.append("| *gain printed in the paper* | " + " | ".join(gains) + " |")
    return [*lines, ""]


def _conditions(runs: Sequence[Run], protocol: Protocol, provenance: Provenance) -> list[str]:
    random = [run.record["map_random"] for run in runs if not run.failed]
    backbone = provenance.backbone
    features = backbone["name"]
    if "image_size" in backbone:
        features += f" at {backbone['image_size']} pixels, frozen"
    if provenance.n_views:
        features += f"; {provenance.n_views} augmented views of the training images for the methods that use views"
    if provenance.teacher:
        guided = ", ".join(name for name in method_names() if method_class(name).uses_teacher)
        features += f"; the training images at the size that the backbone was trained with, for {guided}"
    words = [f"Random ranking: {np.mean(random):.4f}."] if random else []
    words += [
        f"Exact expectation over ties. Seeds {', '.join(map(str, provenance.seeds))}; last epoch; in parentheses the sample standard "
        "deviation.",
        f"Features: {features}. Time: median over lengths and seeds; memory: highest of the process while fitting, features included.",
    ]
    if protocol.published:
        words.append(f"Printed numbers: {protocol.paper}, VGG16, fine-tuned for the deep methods.")
    versions = ", ".join(f"{name} {version}" for name, version in provenance.versions.items())
    return [
        " ".join(words),
        "",
        f"Command: `{provenance.command}`",
        f"Split: `{provenance.split_sha256}`. Versions: {versions}.",
    ]


def _rounded(value: Any) -> Any:
    """Six significant digits are more than a table needs, and keep its file small."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return value
