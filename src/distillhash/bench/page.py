"""The page of a benchmark: its tables and figures in one self-contained HTML file, and the figures as SVG and PNG beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from distillhash.bench import figures
from distillhash.bench.protocol import Protocol
from distillhash.bench.report import packaged, write_whole
from distillhash.bench.run import Provenance, Run
from distillhash.bench.tables import LEVEL, RESAMPLES, Row, make_rows
from distillhash.methods import method_class, method_names

LOSS_METHODS = ("distillhash", "distillhash-initial")


class Figure(NamedTuple):
    """A figure of the page: file name without suffix, title, drawing, and what it shows."""

    name: str
    title: str
    drawing: figures.Drawing
    caption: str


def make_figures(runs: Sequence[Run], protocol: Protocol) -> list[Figure]:
    """MAP against code length; per length top-N precision and precision-recall by lookup (Figures 1-3); training loss (Figure 4).

    Methods that the protocol's paper compares are drawn together, all others together, best first.
    """
    rows = [row for row in make_rows(runs) if any(row.maps.values())]
    compared = [row for row in rows if row.method in protocol.published]
    others = [row for row in rows if row.method not in protocol.published]
    groups = [(part, name) for part, name in ((compared, "the paper's methods"), (others, "other methods")) if part]
    found = []
    for index, (part, name) in enumerate(groups):
        suffix = "" if index == 0 else "-others"
        title = f", {name}" if len(groups) > 1 else ""
        series = {
            row.method: [(n, float(np.mean(v)), min(v), max(v)) for n, v in row.maps.items() if v] for row in part
        }
        random = next(run.record["map_random"] for run in runs if not run.failed)
        found.append(
            Figure(
                f"map{suffix}",
                f"MAP by code length{title}",
                figures.method_comparison(series, "MAP", baseline=("random ranking", random)),
                "Mean over seeds; the band spans them.",
            )
        )
        for n_bits in sorted({run.record["n_bits"] for run in runs}):
            mine = {row.method: _curves(runs, row.method, n_bits) for row in part}
            mine = {method: curves for method, curves in mine.items() if curves}
            if not mine:
                continue
            tops = {method: curves["topn"] for method, curves in mine.items()}
            lookups = {method: curves["pr_radius"] for method, curves in mine.items()}
            found += [
                Figure(
                    f"topn-{n_bits}{suffix}",
                    f"Top-N precision, {n_bits} bits{title}",
                    figures.topn_precision(tops),
                    "Hamming ranking, ties in expectation, mean over queries and seeds.",
                ),
                Figure(
                    f"pr-{n_bits}{suffix}",
                    f"Precision and recall of hash lookup, {n_bits} bits{title}",
                    figures.pr_by_radius(lookups),
                    "One point a radius; an empty lookup has precision 0.",
                ),
            ]
    found += _loss_figures(runs)
    return found


def _loss_figures(runs: Sequence[Run]) -> list[Figure]:
    found = []
    for method in LOSS_METHODS:
        losses = {
            f"{run.record['n_bits']} bits": run.record["loss"]
            for run in sorted(runs, key=lambda run: (-run.record["seed"], run.record["n_bits"]))
            if run.record["method"] == method and run.record.get("loss")
        }
        if losses:
            caption = "Mean over each epoch; the lowest seed."
            found.append(Figure(f"loss-{method}", f"Training loss of {method}", figures.training_loss(losses), caption))
    return found


def _curves(runs: Sequence[Run], method: str, n_bits: int) -> dict[str, Mapping[str, Any]]:
    """The two curves of a method at one length, averaged over seeds; empty when it failed."""
    mine = [
        run.record
        for run in runs
        if run.record["method"] == method and run.record["n_bits"] == n_bits and not run.failed
    ]
    return {
        name: {key: np.mean([record[name][key] for record in mine], axis=0).tolist() for key in mine[0][name]}
        for name in (("topn", "pr_radius") if mine else ())
    }


def write_page(folder: Path, runs: Sequence[Run], protocol: Protocol, provenance: Provenance, created: str) -> None:
    """``report.html``, and ``figures/*.svg`` and ``*.png``.

    Raises:
        DistillHashError: a file cannot be written.
    """
    from jinja2 import Environment, StrictUndefined

    drawn = make_figures(runs, protocol)
    for figure in drawn:
        write_whole(folder / "figures" / f"{figure.name}.svg", _document(figure.drawing.svg()))
        write_whole(folder / "figures" / f"{figure.name}.png", figure.drawing.png())
    rows, lengths = make_rows(runs), sorted({run.record["n_bits"] for run in runs})
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    random = [run.record["map_random"] for run in runs if not run.failed]
    html = environment.from_string(packaged("bench.html.j2")).render(
        style=packaged("page.css"),
        protocol=protocol,
        provenance=provenance,
        created=created,
        rows=rows,
        lengths=lengths,
        methods={name: method_class(name) for name in method_names()},
        best={n: _best(rows, n) for n in lengths},
        figures=[(figure.title, figure.drawing.svg(), figure.caption) for figure in drawn],
        failures=[(row.method, error) for row in rows for error in row.errors],
        random=float(np.mean(random)) if random else None,
        level=LEVEL,
        resamples=RESAMPLES,
    )
    write_whole(folder / "report.html", html.encode("utf-8", "backslashreplace"))


def _best(rows: Sequence[Row], n_bits: int) -> str | None:
    measured = [row for row in rows if row.maps.get(n_bits) and not row.uses_labels]
    return max(measured, key=lambda row: float(np.mean(row.maps[n_bits]))).method if measured else None


def _document(svg: str) -> bytes:
    """An ``<svg>`` element as a file of its own."""
    if "xmlns=" not in svg:
        svg = svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    return ('<?xml version="1.0" encoding="utf-8"?>\n' + svg + "\n").encode()
