"""Tables of finished runs: mean and spread over seeds, the paper's numbers beside, and what the differences are worth."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distillhash.bench.protocols import Protocol
from distillhash.bench.runs import FINE_TUNED, Provenance, Run, by_cell, run_name
from distillhash.files import write_atomic
from distillhash.methods import method_class, method_names, table_name

RESAMPLES, LEVEL = 2000, 0.95
RECONSTRUCTED = "\N{DAGGER}"
MEASURES = {
    "map": "MAP",
    "map@1000": "MAP@1000",
    "precision@10": "P@10",
    "precision@100": "P@100",
    "neighbour_recall@10": "neighbour recall@10",
}
"""The keys of a record that are shown side by side, with their names in tables."""
MEASURES_LEGEND = (
    "MAP over the whole database, MAP@1000 (divided by the relevant items that fit there), P@10 and P@100 (the relevant share of the first "
    "10 and 100) judge by labels. Neighbour recall@10 needs none: it is the share of the 10 nearest by cosine of the features that are "
    "among the first 10, over at most 1,000 queries."
)


ELSEWHERE_LEGEND = (
    "MAP@1000 divided by the relevant items found there, as most repositories compute it (`map@1000_hits`). Rows in italics are printed by "
    "others for as many queries and items, drawn by them, and with their backbone: levels do not compare."
)


@dataclass(frozen=True)
class Difference:
    """MAP of a method minus that of the best, over the same queries: mean, and the bounds of its bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One method, frozen or fine-tuned: per length MAP and all :data:`MEASURES` of each seed, difference from the best, costs, errors."""

    method: str
    fine_tuned: bool
    maps: dict[int, list[float]]
    measures: dict[int, dict[str, list[float]]]  # no value where a record lacks the measure
    differences: dict[int, Difference]
    fit_seconds: float
    peak_rss_mb: float
    errors: list[str]

    @property
    def name(self) -> str:
        """What it is called: the method, and whether the backbone was trained with it."""
        return run_name(self.frozen_name, fine_tuned=self.fine_tuned)

    @property
    def frozen_name(self) -> str:
        """The name without that; a protocol's published numbers go by it."""
        return table_name(self.method)

    @property
    def marked_name(self) -> str:
        """The name with what a reader must know of the row."""
        mark = f" {RECONSTRUCTED}" if method_class(self.method).reconstructed else ""
        return f"{self.name}{mark}{' (uses labels)' if self.uses_labels else ''}"

    @property
    def uses_labels(self) -> bool:
        """Whether it learns from labels: then it is not compared with the others."""
        return method_class(self.method).needs_labels

    def is_best(self, n_bits: int) -> bool:
        """Whether it is the method that the others are compared with at that length."""
        return bool(self.maps[n_bits]) and n_bits not in self.differences and not self.uses_labels

    def mean(self, n_bits: int) -> str:
        """Mean MAP over seeds as text."""
        values = self.maps[n_bits]
        return f"{np.mean(values):.4f}" if values else "failed" if self.errors else ""

    def spread(self, n_bits: int) -> str:
        """Sample standard deviation over seeds as text; empty for one seed."""
        values = self.maps[n_bits]
        return f"{np.std(values, ddof=1):.4f}" if len(values) > 1 else ""

    def measure(self, n_bits: int, key: str) -> str:
        """Mean over seeds of one of :data:`MEASURES`, three digits."""
        values = self.measures[n_bits][key]
        return decimal(float(np.mean(values)) if values else None)

    def measure_spread(self, n_bits: int, key: str) -> str:
        """Its sample standard deviation over seeds, three digits; empty for one seed."""
        values = self.measures[n_bits][key]
        return decimal(float(np.std(values, ddof=1))) if len(values) > 1 else ""

    def cell(self, n_bits: int) -> str:
        """Mean, and the sample standard deviation in parentheses."""
        spread = self.spread(n_bits)
        return f"{self.mean(n_bits)} ({spread})" if spread else self.mean(n_bits)


def make_rows(runs: Sequence[Run]) -> list[Row]:
    """One row per method, frozen and fine-tuned apart, in order of their mean MAP, best first; methods that learn from labels last.

    The best method of a code length is the one with the highest mean among those without labels. Each query's average precision is averaged
    over seeds, and the queries are resampled in pairs (:func:`scipy.stats.bootstrap`, percentile interval).
    """
    lengths = sorted({run.record["n_bits"] for run in runs})
    per_query = {
        cell: np.mean([np.asarray(run.average_precision, np.float64) for run in found], axis=0)
        for cell, found in by_cell(runs).items()
    }
    methods = {run.name: (str(run.record["method"]), run.fine_tuned) for run in runs}
    best: dict[int, str] = {}
    for name, n in per_query:
        mean, labelled = np.nanmean(per_query[name, n]), method_class(methods[name][0]).needs_labels
        if not labelled and (n not in best or mean > np.nanmean(per_query[best[n], n])):
            best[n] = name
    rows = []
    for name in sorted(methods):
        records = [run.record for run in runs if run.name == name]
        good = [record for record in records if "error" not in record]
        maps = {n: [r["map"] for r in good if r["n_bits"] == n] for n in lengths}
        measures = {
            n: {key: [r[key] for r in good if r["n_bits"] == n and key in r] for key in MEASURES} for n in lengths
        }
        differences = {
            n: bootstrap_difference(per_query[name, n], per_query[best[n], n])
            for n in lengths
            if name != best.get(n, name) and (name, n) in per_query
        }
        seconds = float(np.median([r["fit_seconds"] for r in good])) if good else float("nan")
        memory = max((r["peak_rss_mb"] for r in good), default=float("nan"))
        errors = sorted({f"{r['n_bits']} bits: {r['error']}" for r in records if "error" in r})
        rows.append(Row(*methods[name], maps, measures, differences, seconds, memory, errors))

    def order(row: Row) -> tuple[bool, float]:
        means = [np.mean(values) for values in row.maps.values() if values]
        return row.uses_labels, -float(np.mean(means)) if means else 1.0

    return sorted(rows, key=order)


def best_measures(rows: Sequence[Row]) -> dict[int, dict[str, str]]:
    """Per code length the highest mean of every measure among the methods without labels, as :meth:`Row.measure` writes it."""
    found = [row.measures for row in rows if not row.uses_labels]

    def best(n_bits: int, key: str) -> str:
        means = [float(np.mean(values)) for one in found if (values := one[n_bits][key])]
        return decimal(max(means, default=None))

    return {n: {key: best(n, key) for key in MEASURES} for n in (found[0] if found else ())}


def decimal(value: float | None, digits: int = 3) -> str:
    """A fixed number of digits; a dash for a value that is not known."""
    return "\N{EN DASH}" if value is None else f"{value:.{digits}f}"


def bootstrap_difference(mine: NDArray[np.float64], others: NDArray[np.float64]) -> Difference:
    """Paired bootstrap over queries of the mean difference; queries without relevant items (NaN) are left out."""
    from scipy.stats import bootstrap

    gaps = (mine - others)[~np.isnan(mine)]
    if len(gaps) < 2 or np.ptp(gaps) == 0:
        return Difference(float(gaps.mean()), float(gaps.mean()), float(gaps.mean()))
    options = {"n_resamples": RESAMPLES, "confidence_level": LEVEL, "method": "percentile", "batch": 50}
    interval = bootstrap((gaps,), np.mean, rng=np.random.default_rng(0), **options).confidence_interval
    return Difference(float(gaps.mean()), float(interval.low), float(interval.high))


def write_tables(
    folder: Path, runs: Sequence[Run], rows: Sequence[Row], protocol: Protocol, provenance: Provenance
) -> None:
    """``provenance.json``, ``table.json`` (the records) and ``table.md``."""
    write_atomic(folder / "provenance.json", (json.dumps(asdict(provenance), indent=1) + "\n").encode())
    records = [{key: value for key, value in run.record.items() if key != "identity"} for run in runs]
    # Six significant digits are more than a table needs, and keep its file small.
    rounded = json.loads(json.dumps(records), parse_float=lambda digits: float(f"{float(digits):.6g}"))
    write_atomic(folder / "table.json", (json.dumps(rounded, indent=1) + "\n").encode())
    write_atomic(folder / "table.md", _markdown(runs, rows, protocol, provenance).encode())


def _markdown(runs: Sequence[Run], rows: Sequence[Row], protocol: Protocol, provenance: Provenance) -> str:
    lengths = sorted({run.record["n_bits"] for run in runs})
    header = [f"{n} bits" for n in lengths]
    table = [["method", *header, "fit, s", "memory, MB"]]
    for row in rows:
        table.append([row.marked_name, *map(row.cell, lengths), f"{row.fit_seconds:.1f}", f"{row.peak_rss_mb:.0f}"])
        if printed := protocol.published.get(row.frozen_name):
            cells = [f"*{printed[str(n)]:.4f}*" if str(n) in printed else "" for n in lengths]
            table.append(["*printed in the paper*", *cells, "", ""])
    lines = [f"# {protocol.name}: MAP over the whole database", "", *markdown_lines(table), ""]
    lines += [*_conditions(runs, protocol, provenance), "", *reconstructed_lines(rows)]
    if beside := elsewhere_table(runs, rows, protocol, provenance):
        lines += ["## MAP@1000, beside rows of other papers", "", ELSEWHERE_LEGEND, "", *markdown_lines(beside), ""]
    lines += ["## Classes and neighbours", "", MEASURES_LEGEND, ""]
    for n in lengths:
        both = [[row.marked_name, *(_measured(row, n, key) for key in MEASURES)] for row in rows]
        lines += [f"### {n} bits", "", *markdown_lines([["method", *MEASURES.values()], *both]), ""]
    if any(row.differences for row in rows):
        table = [["method", *header], *([row.marked_name, *(_difference(row, n) for n in lengths)] for row in rows)]
        legend = (
            f"MAP minus that of the best method without labels at that length, and the {LEVEL:.0%} interval of a paired bootstrap over "
            f"queries ({RESAMPLES} resamples). A star marks an interval without 0."
        )
        lines += ["## Differences from the best", "", legend, "", *markdown_lines(table), ""]
    lines += _second_table(rows, lengths, protocol)
    failures = [f"- {row.name}, {error}" for row in rows for error in row.errors]
    return "\n".join([*lines, "## Failed", "", *failures, ""] if failures else lines)


def elsewhere_table(
    runs: Sequence[Run], rows: Sequence[Row], protocol: Protocol, provenance: Provenance
) -> list[list[str]]:
    """MAP@1000 of every row, below it what papers print for that method, last their other methods; empty where none is printed."""
    if not protocol.elsewhere:
        return []
    lengths, cells, backbone = sorted({run.record["n_bits"] for run in runs}), by_cell(runs), provenance.backbone
    ours = backbone["name"] + (f" at {backbone['image_size']} pixels" if "image_size" in backbone else "")
    table = [["method", "backbone", *(f"{n} bits" for n in lengths), "from"]]

    def printed(method: str) -> list[list[str]]:
        return [
            [f"*{row.method}*", row.backbone, *(decimal(row.values.get(str(n))) for n in lengths), row.source]
            for row in protocol.elsewhere
            if row.method == method
        ]

    for row in rows:
        means = (
            np.mean([run.record["map@1000_hits"] for run in cells[row.name, n]]) if (row.name, n) in cells else None
            for n in lengths
        )
        state = "trained" if row.fine_tuned else "frozen"
        table.append([row.marked_name, f"{ours}, {state}", *map(decimal, means), "this run"])
        table += printed(row.frozen_name) if not row.fine_tuned else []
    measured = {row.frozen_name for row in rows}
    for method in dict.fromkeys(row.method for row in protocol.elsewhere if row.method not in measured):
        table += printed(method)
    return table


def markdown_lines(table: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table; its first row is the header."""
    header, *rows = ("|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|" for cells in table)
    return [header, "|" + "---|" * len(table[0]), *rows]


def _measured(row: Row, n_bits: int, key: str) -> str:
    spread = row.measure_spread(n_bits, key)
    return f"{row.measure(n_bits, key)} ({spread})" if spread else row.measure(n_bits, key)


def _difference(row: Row, n_bits: int) -> str:
    if n_bits not in row.differences:
        return "best" if row.is_best(n_bits) else ""
    difference = row.differences[n_bits]
    star = "\\*" if difference.low > 0 or difference.high < 0 else ""
    return f"{difference.mean:+.4f}{star} [{difference.low:+.4f}, {difference.high:+.4f}]"


def _second_table(rows: Sequence[Row], lengths: Sequence[int], protocol: Protocol) -> list[str]:
    """Table 2 of the paper, DistillHash against its ablation, when both are there."""
    both = ("distillhash", "distillhash-initial")
    table = [["", *(f"{n} bits" for n in lengths)]]
    for fine_tuned in (False, True):
        maps = {row.frozen_name: row.maps for row in rows if row.fine_tuned == fine_tuned}
        if maps.keys() >= set(both):
            means = [[np.mean(maps[name][n]) if maps[name][n] else np.nan for n in lengths] for name in both]
            gains = [f"{a - b:+.4f}" for a, b in zip(*means, strict=True)]
            table.append([run_name("gain measured", fine_tuned=fine_tuned), *gains])
    if len(table) == 1:
        return []
    if protocol.published.keys() >= set(both):
        full, ablated = (protocol.published[name] for name in both)
        printed = [f"{full[str(n)] - ablated[str(n)]:+.4f}" if str(n) in full else "" for n in lengths]
        table.append(["*gain printed in the paper*", *printed])
    return ["## DistillHash and its ablation (Table 2)", "", *markdown_lines(table), ""]


def reconstructed_lines(rows: Sequence[Row]) -> list[str]:
    """What was reconstructed in the methods of the rows; empty where nothing was."""
    phrases = {row.frozen_name: what for row in rows if (what := method_class(row.method).reconstructed)}
    if not phrases:
        return []
    found = "; ".join(f"{name}: {phrases[name]}" for name in sorted(phrases))
    return [
        f"{RECONSTRUCTED} Reconstructed, since neither the paper's text nor its authors' code was at hand: {found}.",
        "",
    ]


def _conditions(runs: Sequence[Run], protocol: Protocol, provenance: Provenance) -> list[str]:
    random = mean_random(runs)
    words = [] if random is None else [f"Random ranking: {random:.4f}."]
    words += [
        f"Exact expectation over ties. Seeds {', '.join(map(str, provenance.seeds))}; last epoch; in parentheses the sample standard "
        "deviation.",
        f"Features: {describe_features(provenance)}. Time: median over lengths and seeds; memory: highest of the process while "
        "fitting, features included.",
    ]
    if fewer := learned_from_fewer(runs, provenance.n_train):
        words.append(fewer)
    if protocol.published:
        words.append(f"Printed numbers: {protocol.paper}, VGG16, fine-tuned for the deep methods.")
    found = ", ".join(f"{name} {version}" for name, version in provenance.versions.items())
    split = f"Split: `{provenance.split_sha256}`. Versions: {found}."
    return [" ".join(words), "", f"Command: `{provenance.command}`", split]


def mean_random(runs: Sequence[Run]) -> float | None:
    """MAP of a random ranking; None where no run finished."""
    random = [run.record["map_random"] for run in runs if not run.failed]
    return float(np.mean(random)) if random else None


def learned_from_fewer(runs: Sequence[Run], n_train: int) -> str:
    """Which methods learned from fewer items than the training set has, in words; empty where none did."""
    found = {run.name: n for run in runs if not run.failed and (n := run.record.get("n_train", n_train)) < n_train}
    if not found:
        return ""
    listed = ", ".join(f"{name} from {n:,}" for name, n in sorted(found.items()))
    return f"Of {n_train:,} training items some methods learned from fewer (their max_train): {listed}."


def describe_features(provenance: Provenance) -> str:
    """The features that all methods got, in words."""
    backbone = provenance.backbone
    words = backbone["name"]
    if "image_size" in backbone:
        words += f" at {backbone['image_size']} pixels, frozen"
    if provenance.fine_tuned:
        words += (
            f" unless a row says {FINE_TUNED}: then trained with the method, with neighbours by the pretrained features"
        )
    if provenance.n_views:
        words += f"; {provenance.n_views} augmented views of the training images for the methods that use views"
        choosing = ", ".join(name for name in method_names() if method_class(name).chooses_views)
        words += "" if provenance.views_teach else f" (not {choosing}: the features hardly see the augmentation)"
    if provenance.teacher:
        guided = ", ".join(name for name in method_names() if method_class(name).uses_teacher)
        words += f"; the training images at the size that the backbone was trained with, for {guided}"
    return str(words)
