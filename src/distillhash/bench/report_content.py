"""What the report says: its sentences, its tiles, its metric rows, and its figures with the numbers behind them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from distillhash.bench import figures

if TYPE_CHECKING:
    from distillhash.bench.report import ReportData, RunRow

_DASH = "\N{EN DASH}"


@dataclass(frozen=True)
class Metric:
    """One metric over all runs, as text, with the places of the best value."""

    name: str
    meaning: str
    values: list[str]
    best: list[bool]


@dataclass(frozen=True)
class Tile:
    """One number to read first, and what to hold it against."""

    name: str
    value: str
    versus: str


@dataclass(frozen=True)
class Figure:
    """One figure with the numbers it draws, for those who cannot see it or want to check it."""

    title: str
    caption: str
    svg: str
    columns: list[str]
    rows: list[list[str]]


def focused_run(data: ReportData) -> RunRow | None:
    """The run that everything but the comparison describes: the one named, or the one with the best MAP."""
    best = max(data.runs, key=lambda run: float(run.metrics["map"]), default=None)
    return next((run for run in data.runs if run.label == data.focus), best)


def summary(data: ReportData) -> list[str]:
    """The report in sentences that need no knowledge of the field."""
    run, sizes = focused_run(data), _sizes(data)
    sentences = []
    if "n_bits" in sizes:
        images = "Each image" if run else f"Each of {count(sizes.get('n_database', sizes.get('n')))} images"
        size = format_bytes(-(-sizes["n_bits"] // 8))
        sentences.append(f"{images} is described by a code of {sizes['n_bits']} bits ({size}).")
    if run:
        m = run.metrics
        which = f" for {run.label}, one of the {len(data.runs)} compared" if len(data.runs) > 1 else ""
        sentences += [
            f"For each of {count(m['n_queries'])} query images, the {count(m['n_database'])} images of the database are "
            "sorted by how many bits of their codes differ.",
            "How early those with the query's label come is measured by the mean average precision (MAP): "
            f"{decimal(m['map'])}{which}, where 1 is perfect and a random order scores {decimal(m['map_random'])}.",
        ]
    if data.recall:
        k, depth = _telling(data.recall)
        found, chance = (percent(data.recall[f"{name}@{depth}"]) for name in (f"recall{k}", "random"))
        sentences.append(
            f"Labels aside, {found} of the {k} images nearest to a query by the original features are among its first "
            f"{count(depth)} results; by chance it would be {chance}."
        )
    return sentences


def tiles(data: ReportData) -> list[Tile]:
    """The few numbers to read first."""
    shown, sizes, run = [], _sizes(data), focused_run(data)
    if run:
        m = run.metrics
        shown.append(Tile("Mean average precision", decimal(m["map"]), f"random order {decimal(m['map_random'])}"))
        if "precision@10" in m:
            versus = f"mean of {count(m['n_queries'])} queries"
            shown.append(Tile("Relevant among the first 10", percent(m["precision@10"]), versus))
    if data.recall:
        k, depth = _telling(data.recall)
        versus = f"{k} nearest, in the first {count(depth)}; by chance {percent(data.recall[f'random@{depth}'])}"
        shown.append(Tile("Feature neighbours kept", percent(data.recall[f"recall{k}@{depth}"]), versus))
    if "n_bits" in sizes:
        n_bytes = -(-sizes["n_bits"] // 8)
        shown.append(
            Tile("Size of a code", format_bytes(n_bytes), f"{format_bytes(n_bytes * 10**6)} for a million images")
        )
    return shown


def bit_tiles(bits: Mapping[str, Any]) -> list[Tile]:
    """:func:`distillhash.metrics.code_statistics.bit_statistics` in four numbers."""
    constant = bits["constant_bits"]
    commonest = f"of {count(bits['n'])} images; the commonest holds {percent(bits['largest_bucket_fraction'])}"
    return [
        Tile("Effective bits", f"{bits['effective_bits']:.1f}", f"of {bits['n_bits']}; fewer when bits are correlated"),
        Tile("Mean imbalance", decimal(bits["mean_abs_balance"]), f"0 is best; constant bits: {constant or 'none'}"),
        Tile("Mean correlation", decimal(bits["mean_abs_correlation"]), "between two bits, without sign; 0 is best"),
        Tile("Distinct codes", percent(bits["unique_fraction"]), commonest),
    ]


def _sizes(data: ReportData) -> Mapping[str, Any]:
    run = focused_run(data)
    return run.metrics if run else data.recall or data.bits or {}


def _telling(recall: Mapping[str, Any]) -> tuple[int, int]:
    """The neighbourhood nearest to 10, and the smallest depth that can hold ten times that, else the largest."""
    k = min(recall["ks"], key=lambda k: abs(k - 10))
    enough = [depth for depth in recall["depths"] if depth >= 10 * k]
    return int(k), int(min(enough, default=max(recall["depths"])))


# (key as a regular expression, name, meaning). What is not listed is not shown; depths are filled in.
_RANKING = [
    ("map", "MAP", "Mean average precision: how early the relevant images come. 1 is perfect."),
    (r"map@(\d+)", "MAP@{}", "The same for the first {} results, divided by the relevant images that fit there."),
    (
        r"map@(\d+)_hits",
        "MAP@{}, hits",
        "The variant many papers print, divided by the relevant images found: misses are free.",
    ),
    ("map_random", "MAP, random order", "What a random order scores with these labels."),
]
_FIRST = [
    (r"precision@(\d+)", "Precision@{}", "Share of the top {} that is relevant."),
    (r"recall@(\d+)", "Recall@{}", "Share of all relevant images found in the top {}."),
]
_LOOKUP = [
    (
        "precision_radius2",
        "Precision, radius 2",
        "Share of relevant images within 2 bits of the query; 0 if none are there.",
    ),
    ("empty_radius2", "Empty, radius 2", "Share of queries with nothing within 2 bits."),
]
_NO_BEST, _LOWER_IS_BETTER = {"map_random"}, {"empty_radius2"}


def metric_groups(runs: Sequence[RunRow]) -> list[tuple[str, list[Metric]]]:
    """The metrics that the runs have, grouped by the question they answer."""
    groups = [("Whole ranking", _RANKING), ("First results", _FIRST), ("Lookup within a radius", _LOOKUP)]
    table = [(title, _metrics_of(runs, patterns)) for title, patterns in groups]
    if runs:
        spans = [f"{decimal(run.metrics['map_worst'])} {_DASH} {decimal(run.metrics['map_best'])}" for run in runs]
        meaning = "Worst and best order of images at equal distance; MAP is the exact average."
        table[0][1].insert(1, Metric("MAP, range over ties", meaning, spans, [False] * len(runs)))
    return [(title, metrics) for title, metrics in table if metrics]


def _metrics_of(runs: Sequence[RunRow], patterns: Sequence[tuple[str, str, str]]) -> list[Metric]:
    keys = list(dict.fromkeys(key for run in runs for key in run.metrics))
    metrics = []
    for pattern, name, meaning in patterns:
        for key in keys:
            match = re.fullmatch(pattern, key)
            if match is None:
                continue
            values = [run.metrics.get(key) for run in runs]
            known = [value for value in values if value is not None]
            winner = decimal(min(known) if key in _LOWER_IS_BETTER else max(known))
            shown = [decimal(value) for value in values]
            marked = len(runs) > 1 and key not in _NO_BEST
            depths = [count(int(group)) for group in match.groups()]
            # Best by what is printed: a difference that cannot be seen is none.
            best = [marked and value == winner for value in shown]
            metrics.append(Metric(name.format(*match.groups()), meaning.format(*depths), shown, best))
    return metrics


def ranking_figures(runs: Sequence[RunRow]) -> list[Figure]:
    """Precision and recall by radius, and precision by depth, of all runs."""
    if not runs:
        return []
    lookups = {run.label: run.metrics["pr_radius"] for run in runs if "pr_radius" in run.metrics}
    tops = {run.label: run.metrics["topn"] for run in runs if "topn" in run.metrics}
    radii = max((len(curve["recall"]) for curve in lookups.values()), default=0)
    shown = []
    if lookups:
        shown.append(
            Figure(
                "Precision and recall by radius",
                "All images within a radius r of the query are returned. A larger radius finds more of the relevant images "
                "and brings more of the others.",
                figures.pr_by_radius(lookups).svg(),
                ["Radius", *(f"{label}: {side}" for label in lookups for side in ("precision", "recall"))],
                [
                    [
                        str(radius),
                        *(_at(curve[side], radius) for curve in lookups.values() for side in ("precision", "recall")),
                    ]
                    for radius in range(radii)
                ],
            )
        )
    if tops:
        depths = sorted({depth for curve in tops.values() for depth in curve["n"]})
        columns = [dict(zip(curve["n"], curve["precision"], strict=True)) for curve in tops.values()]
        # Ranking everything at random, each place is relevant with the same probability: the last precision of a full lookup.
        random = next(iter(lookups.values()))["precision"][-1] if lookups else None
        shown.append(
            Figure(
                "Precision of the first results",
                "Share of relevant images among the first N results, for every N a person might look at.",
                figures.topn_precision(tops, random).svg(),
                ["N", *tops],
                [[count(depth), *(decimal(column.get(depth)) for column in columns)] for depth in depths],
            )
        )
    return shown


def recall_figure(recall: Mapping[str, Any]) -> Figure:
    """Recall of the feature neighbours by depth."""
    curve, ks = recall["curve"], recall["ks"]
    series = [curve[f"recall{k}"] for k in ks]
    return Figure(
        "Feature neighbours found",
        "Of the images nearest to a query by the features the codes were made from, the share found among the first results.",
        figures.neighbour_recall(recall).svg(),
        ["Results", *(f"{k} nearest" for k in ks), "Random order"],
        [
            [count(depth), *(decimal(values[i]) for values in series), decimal(curve["random"][i])]
            for i, depth in enumerate(curve["depth"])
        ],
    )


def bit_figures(bits: Mapping[str, Any]) -> list[Figure]:
    """Balance and correlation of the bits."""
    correlation = bits["correlation"]
    pairs = [(correlation[i][j], i + 1, j + 1) for i in range(len(correlation)) for j in range(i)]
    strongest = sorted(pairs, key=lambda pair: -abs(pair[0]))[:20]
    return [
        Figure(
            "Balance of the bits",
            "0: half of the images have the bit set. +1 or -1: all images agree, and the bit says nothing.",
            figures.bit_balance(bits["balance"]).svg(),
            ["Bit", "Mean sign"],
            [[str(i), f"{value:+.3f}"] for i, value in enumerate(bits["balance"], start=1)],
        ),
        Figure(
            "Correlation of the bits",
            "Blank is best: two correlated bits tell the same thing twice. The numbers list the strongest pairs.",
            figures.bit_correlation(correlation).svg(),
            ["Bit", "Bit", "Correlation"],
            [[str(j), str(i), f"{value:+.3f}"] for value, i, j in strongest],
        ),
    ]


def loss_figure(losses: Mapping[str, Sequence[float]]) -> Figure:
    """Loss by epoch."""
    epochs = max(len(values) for values in losses.values())
    return Figure(
        "Training loss",
        "The quantity that training makes small, after each pass over the images. It should fall and level off.",
        figures.training_loss(losses).svg(),
        ["Epoch", *losses],
        [[str(epoch + 1), *(_at(values, epoch, 4) for values in losses.values())] for epoch in range(epochs)],
    )


def _at(values: Sequence[float], place: int, digits: int = 3) -> str:
    return decimal(values[place], digits) if place < len(values) else _DASH


def decimal(value: float | None, digits: int = 3) -> str:
    """A fixed number of digits; a dash for a value that is not known."""
    return _DASH if value is None else f"{value:.{digits}f}"


def percent(value: float) -> str:
    """Whole percents, one digit more below 10%; never rounded to nothing or to all."""
    if 0 < value < 0.0005:
        return "<0.1%"
    if 0.995 <= value < 1:
        return ">99%"
    return f"{100 * value:.1f}%" if 0 < value < 0.0995 else f"{100 * value:.0f}%"


def format_bytes(value: int) -> str:
    """A size in bytes, in MB from a million on."""
    if value >= 10**6:
        return f"{value / 10**6:,.0f} MB"
    return "1 byte" if value == 1 else f"{value:,} bytes"


def count(value: int) -> str:
    """A whole number with thousands separated."""
    return f"{value:,}"
