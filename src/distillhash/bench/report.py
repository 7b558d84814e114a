"""Reports: one self-contained HTML page from one template, for ``train``, ``evaluate``, ``demo`` and ``bench``.

A page carries its styles, figures and images inside, runs no script, and forbids loading anything by its content-security policy.
It can be mailed, archived, or opened years later. File names are untrusted text and are escaped.
"""

import base64
import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from distillhash.bench import figures
from distillhash.bench.advice import ASYMMETRIC, DECODER, FLOATS, KEPT, METHODS, SYMMETRIC, Advice, Cell, versus
from distillhash.bench.protocols import Protocol
from distillhash.bench.runs import LOSS_ITERATIONS, Provenance, Run, by_cell, run_name, versions
from distillhash.bench.tables import (
    ELSEWHERE_LEGEND,
    LEVEL,
    MEASURES,
    MEASURES_LEGEND,
    RESAMPLES,
    Row,
    best_measures,
    decimal,
    describe_features,
    elsewhere_table,
    learned_from_fewer,
    make_rows,
    markdown_lines,
    mean_random,
    reconstructed_lines,
    write_tables,
)
from distillhash.codes import Codes, hamming_distances
from distillhash.errors import DataError, DistillHashError
from distillhash.files import write_atomic
from distillhash.hamming import ranking
from distillhash.methods import method_class
from distillhash.metrics import bit_statistics, neighbour_recall
from distillhash.metrics.neighbours import DEPTHS
from distillhash.models import HashModel
from distillhash.output import escaped
from distillhash.sources import ImageSource, Skipped, Source, encode_thumbnail, open_source
from distillhash.sources.registry import split_selections
from distillhash.supervision.similarity import judge_pairs

REPORT_ITEMS = 1000
SAMPLE_QUERIES = 8
SAMPLE_NEIGHBOURS = 10
THUMBNAIL = 96
SKIPPED_SHOWN = 200
DRAWN_TOGETHER = 13  # lines of one figure that can be told apart
DESCRIBED_RUNS = 4  # with more runs the metrics table needs the full width, and the explanations go below it
LOSS_NAMES = ("distillhash", "distillhash, local estimate", "distillhash-initial")
_IMAGE_TYPES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif"}
_DASH = "\N{EN DASH}"


class SampleNeighbour(NamedTuple):
    """One result: an encoded PNG, JPEG or GIF thumbnail, its name, its distance in bits, and whether its label agrees."""

    image: bytes
    caption: str
    distance: int
    relevant: bool | None = None


class SampleQuery(NamedTuple):
    """One query image and its nearest results, nearest first."""

    image: bytes
    caption: str
    neighbours: Sequence[SampleNeighbour]


class Metric(NamedTuple):
    """One metric over all runs, as text, and which values are the best."""

    name: str
    meaning: str
    values: list[str]
    best: list[bool]


class ReportFigure(NamedTuple):
    """A drawing, and the numbers it draws (for those who cannot see it or want to check it)."""

    drawing: figures.Drawing
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()


class BenchFigure(NamedTuple):
    """A figure of a benchmark; ``name`` is that of its files, without suffix."""

    name: str
    title: str
    caption: str
    drawing: figures.Drawing


@dataclass(frozen=True)
class ReportData:
    """All a report shows. What is None or empty has no section, except ``skipped``: an empty list says that nothing was."""

    title: str
    subtitle: str
    command: str  # the exact command line that made the report
    versions: Mapping[str, str]
    facts: Mapping[str, Any]  # other things needed to make it again, such as the data and the seed
    runs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # of evaluate_codes, by label
    focus: str | None = None  # the run that everything else describes, by its label; None: the one with the best MAP
    losses: Mapping[str, Sequence[float]] = field(default_factory=dict)  # one value an epoch
    bits: Mapping[str, Any] | None = None  # of code_statistics.bit_statistics
    recall: Mapping[str, Any] | None = None  # of neighbours.neighbour_recall
    trained_on: bool = False  # the queries are items of the source that the model was trained on
    pairs: Sequence[Mapping[str, Any]] = ()  # of similarity.describe_pairs and judge_pairs
    samples: Sequence[SampleQuery] = ()
    skipped: Sequence[Skipped] | None = None
    comparison: Mapping[str, Any] = field(default_factory=dict)  # tables and figures of a benchmark
    advice: Mapping[str, Any] = field(default_factory=dict)  # of bytes and recall, see write_advice


def _plain(value: Any) -> Any:
    """A value of the page: text of a file name or a label may hold escape sequences and what reverses the direction of writing."""
    return escaped(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def write_report(path: str | Path, data: ReportData) -> None:
    """Write the report as one HTML file, which appears whole or not at all; the same data give the same bytes."""
    from jinja2 import Environment, StrictUndefined

    figures.load_matplotlib(Path(path).parent)
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_plain
    )
    environment.filters |= {"data_uri": _data_uri, "count": "{:,}".format, "bytes": format_bytes}
    environment.filters |= {"percent": percent, "decimal": decimal}
    environment.globals |= {"method_class": method_class, "skipped_shown": SKIPPED_SHOWN}
    environment.globals |= {"level": LEVEL, "resamples": RESAMPLES}
    focus = data.focus or max(data.runs, key=lambda label: float(data.runs[label]["map"]), default=None)
    run = data.runs[focus] if focus else None
    main_recall = None
    if data.recall:
        # The neighbourhood nearest to 10, and the smallest depth that can hold it, else the largest.
        k, depths = min(data.recall["ks"], key=lambda k: abs(k - 10)), data.recall["depths"]
        main_recall = k, min((depth for depth in depths if depth >= k), default=max(depths))
    folder = files("distillhash.bench")
    html = environment.from_string(folder.joinpath("report.html.j2").read_text(encoding="utf-8")).render(
        style=folder.joinpath("page.css").read_text(encoding="utf-8"),
        data=data,
        focus=focus,
        run=run,
        sizes=run or data.recall or data.bits or {},
        main_recall=main_recall,
        metrics=metric_groups(data.runs),
        described=len(data.runs) <= DESCRIBED_RUNS,
        figures=_figures(data),
        pairs_judged=any("precision_positive" in row for row in data.pairs),
        samples_judged=any(item.relevant is not None for query in data.samples for item in query.neighbours),
        failures=[(row.name, error) for row in data.comparison.get("rows", ()) for error in row.errors],
    )
    # A file name may hold bytes that are no text (Python keeps them as lone surrogates); show them as escapes.
    try:
        write_atomic(path, html.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise DistillHashError(f"cannot write the report to {path} ({error.strerror}); choose another place") from error


class EncodedSource(NamedTuple):
    """One encoded source, queries or database: ``m`` codes, their rows in the source, features ``(m, d)`` and labels."""

    source: Source
    rows: NDArray[np.intp]
    codes: Codes
    features: NDArray[np.float32]
    labels: NDArray[Any] | None
    skipped: list[Skipped]


def encode_source(
    model: HashModel, source: Any, *, progress: bool = False, max_pixels: int | None = None
) -> EncodedSource:
    """Encode a source and keep what a report needs."""
    opened = open_source(source)
    batches = list(model.encode_batches(opened, progress=progress, max_pixels=max_pixels))
    skipped = [item for batch in batches for item in batch.skipped]
    rows = np.concatenate([batch.rows for batch in batches]) if batches else np.zeros(0, np.intp)
    features = np.concatenate([batch.features for batch in batches]) if batches else np.zeros((0, 1), np.float32)
    codes = Codes.concatenate([batch.codes for batch in batches], model.n_bits)
    labels = None if opened.labels is None else opened.labels[rows]
    return EncodedSource(opened, rows, codes, features, labels, skipped)


def shared_items(
    query_spec: str, database_spec: str, query: EncodedSource, database: EncodedSource
) -> NDArray[np.intp]:
    """The row of every query in the database, -1 where it is not there: items with one key, where both are selected from one source."""
    if len({os.path.realpath(split_selections(spec)[0]) for spec in (query_spec, database_spec)}) > 1:
        return np.full(len(query.codes), -1)
    keys, others = ([side.source.keys[row] for row in side.rows] for side in (query, database))
    rows = {key: row for row, key in enumerate(others)}
    return np.array([rows.get(key, -1) for key in keys], np.intp)


def write_training_report(path: Path, model: HashModel, source: Source, *, command: str) -> None:
    """Report of a training run, from at most 1,000 of its items; labels are not read."""
    rng = np.random.default_rng(model.hasher.seed)
    rows = np.sort(rng.choice(len(source), min(len(source), REPORT_ITEMS), replace=False))
    shown = encode_source(model, source.select(rows))
    items = f"{model.training['n_used']} items of {source.name}; shown: {len(shown.codes)} of them"
    fields: dict[str, Any] = {"title": f"{model.n_bits}-bit codes", "command": command, "skipped": model.skipped_}
    fields |= {"trained_on": True, "same_items": True}
    _write_model_report(path, model, shown, shown, items, None, **fields)


def write_evaluation_report(
    path: Path,
    model: HashModel,
    query: EncodedSource,
    database: EncodedSource,
    metrics: dict[str, Any],
    *,
    command: str,
    others: Mapping[str, Mapping[str, Any]] | None = None,
    train_labels: NDArray[Any] | None = None,
    same_items: bool | NDArray[np.intp] = False,
) -> None:
    """Report of an evaluation, with ``others`` to compare with, by label; ``train_labels`` judge the pair labels, as a diagnosis.

    ``metrics`` without a MAP, as of sources without labels, are not shown. ``same_items`` is that of ``neighbour_recall``.
    """
    label = f"{model.hasher.method}, {model.n_bits} bits"
    sizes = f"{len(query.codes)} queries of {query.source.name} against {len(database.codes)} items of {database.source.name}"
    fields: dict[str, Any] = {"title": f"Quality of {model.n_bits}-bit codes", "command": command}
    fields |= {"same_items": same_items, "skipped": [*query.skipped, *database.skipped]}
    if "map" in metrics:
        fields |= {"runs": {label: metrics, **(others or {})}, "focus": label}
    _write_model_report(path, model, query, database, sizes, train_labels, **fields)


def _write_model_report(
    path: Path,
    model: HashModel,
    query: EncodedSource,
    database: EncodedSource,
    data: str,
    train_labels: NDArray[Any] | None,
    same_items: bool | NDArray[np.intp],
    **fields: Any,
) -> None:
    """Fill in the fields that every report of a model has alike."""
    history, seed = model.hasher.history_, model.hasher.seed
    losses = {"hash function": history["loss"]} if history.get("loss") else {}
    for number, values in enumerate(history.get("estimate_loss", ()), start=1):
        losses[f"pair probabilities {number}"] = values
    recall, n = None, len(database.codes)
    if len(query.codes) >= 2 and n >= 2:
        depths = [depth for depth in (*DEPTHS, 1000) if depth < n] or [n]
        sides = query.codes, database.codes, query.features, database.features
        recall = neighbour_recall(*sides, depths=depths, same_items=same_items)
    pairs = history.get("diagnosis", [])
    if train_labels is not None and pairs:
        # The first set is the initial one, the last the one trained on; with one set they are the same.
        sets = [getattr(model.hasher, name) for name in ("initial_pairs_", "pairs_")][: len(pairs)]
        judged = [judge_pairs(labels, train_labels[history["rows"]]) for labels in sets]
        pairs = [row | more for row, more in zip(pairs, judged, strict=True)]
    report = ReportData(
        subtitle=f"{model.hasher.method} on {model.backbone_name}",
        versions=versions(),
        facts={"Data": data, "Seed": seed, "Made": datetime.now(UTC).isoformat(timespec="seconds")},
        losses=losses,
        bits=bit_statistics(database.codes) if n else None,
        recall=recall,
        pairs=pairs,
        samples=_sample_queries(query, database, seed),
        **fields,
    )
    write_report(path, report)


def _sample_queries(query: EncodedSource, database: EncodedSource, seed: int) -> list[SampleQuery]:
    """A few queries drawn by ``seed`` with their nearest images; empty for sources without images."""
    images, asked = database.source, query.source
    if not isinstance(asked, ImageSource) or not isinstance(images, ImageSource) or not len(database.codes):
        return []
    samples = []
    for position in np.random.default_rng(seed).permutation(len(query.codes))[:SAMPLE_QUERIES]:
        distances = hamming_distances(query.codes[int(position)], database.codes)[0].astype(np.int64)
        if database.codes.class_bits:
            asked_part = ranking.class_part(query.codes[int(position)])
            class_distances = hamming_distances(asked_part, ranking.class_part(database.codes))[0]
            order = ranking.order(distances, class_distances)
        else:
            order = np.argsort(distances, kind="stable")
        if query is database:
            order = order[order != position]
        neighbours = [
            SampleNeighbour(
                encode_thumbnail(images.read(int(database.rows[place])), THUMBNAIL)[0],
                images.keys[database.rows[place]],
                int(distances[place]),
                _relevant(query, int(position), database, int(place)),
            )
            for place in order[:SAMPLE_NEIGHBOURS]
        ]
        row = int(query.rows[position])
        samples.append(SampleQuery(encode_thumbnail(asked.read(row), THUMBNAIL)[0], asked.keys[row], neighbours))
    return samples


def _relevant(query: EncodedSource, position: int, database: EncodedSource, place: int) -> bool | None:
    """Whether two items share a label; None within one source, as in training, where labels are not read."""
    if query is database or query.labels is None or database.labels is None:
        return None
    a, b = query.labels[position], database.labels[place]
    return bool((np.asarray(a) & np.asarray(b)).any()) if query.labels.ndim == 2 else bool(a == b)


def write_results(folder: Path, runs: Sequence[Run], protocol: Protocol, provenance: Provenance) -> None:
    """The tables, ``figures/*.svg`` and ``*.png``, and ``report.html``."""
    rows = make_rows(runs)
    write_tables(folder, runs, rows, protocol, provenance)
    figures.load_matplotlib(folder)
    drawn = bench_figures(runs, rows, protocol)
    for figure in drawn:
        write_atomic(folder / "figures" / f"{figure.name}.svg", figure.drawing.svg_file())
        write_atomic(folder / "figures" / f"{figure.name}.png", figure.drawing.png())
    features, settings = describe_features(provenance), provenance.settings
    facts: dict[str, Any] = {"Data": provenance.source, "Split": provenance.split_sha256, "Features": features}
    facts |= {"Settings": settings} if settings else {}
    fewer = learned_from_fewer(runs, provenance.n_train)
    facts |= {"Training items": fewer} if fewer else {}
    facts |= {"Made": datetime.now(UTC).isoformat(timespec="seconds")}
    lengths = sorted({run.record["n_bits"] for run in runs})
    comparison = {"rows": rows, "lengths": lengths, "protocol": protocol, "figures": drawn}
    comparison |= {"measures": MEASURES, "legend": MEASURES_LEGEND, "best": best_measures(rows)}
    comparison |= {"seeds": provenance.seeds, "random": mean_random(runs), "reconstructed": reconstructed_lines(rows)}
    comparison |= {"elsewhere": elsewhere_table(runs, rows, protocol, provenance), "elsewhere_legend": ELSEWHERE_LEGEND}
    data = ReportData(
        title=protocol.name,
        subtitle=protocol.summary,
        command=provenance.command,
        versions=provenance.versions,
        facts=facts,
        comparison=comparison,
    )
    write_report(folder / "report.html", data)


_ADVICE_COLUMNS = ("Compressor", "Bytes", "Recall@10", "Recall@100", "Fit, s", "Encode, us", "Search, ms")


def write_advice(
    folder: Path,
    cells: Sequence[Cell],
    found: Advice,
    *,
    source: str,
    sizes: Mapping[str, int],
    seeds: Sequence[int],
    steps: Sequence[str],
    notes: Sequence[str],
    command: str,
) -> None:
    """``report.html``, ``table.md`` and ``table.json``: what ``advise`` measured, and the commands (``steps``) for what it found."""
    made = datetime.now(UTC).isoformat(timespec="seconds")
    facts: dict[str, Any] = {"Data": source, "Seeds": ", ".join(map(str, seeds)), "Made": made}
    rows, compared, used = [_advice_row(cell) for cell in cells], versus(cells), versions()
    with suppress(PackageNotFoundError):
        used["faiss-cpu"] = version("faiss-cpu")
    record = {"command": command, "versions": used, **facts, **sizes, "notes": list(notes)}
    record |= {"cells": [cell.record() for cell in cells]}
    write_atomic(folder / "table.json", (json.dumps(record, indent=1) + "\n").encode())
    write_atomic(folder / "table.md", _advice_markdown(rows, compared, found, record).encode())
    advice: dict[str, Any] = {
        "sentence": found.sentence,
        "others": found.others,
        "commands": steps,
        "sizes": sizes,
        "notes": notes,
    }
    figures.load_matplotlib(folder)
    advice |= {"columns": _ADVICE_COLUMNS, "rows": rows, "versus": compared, "figures": _advice_figures(cells)}
    title, subtitle = "Bytes a vector, and the neighbours kept", source
    data = ReportData(title, subtitle, command, used, facts, advice=advice)
    write_report(folder / "report.html", data)


def _advice_row(cell: Cell) -> list[str]:
    recall = f"{decimal(cell.recalls[0])} ({cell.spread:.3f})" if cell.spread else decimal(cell.recalls[0])
    times = (
        f"{value:.2g}" if value < 10 else f"{value:,.0f}"
        for value in (cell.fit_seconds, cell.encode_us, cell.search_ms)
    )
    name = f"{cell.method}, {cell.n_bits} bits, {cell.form}" if cell.n_bits else cell.name
    return [name, f"{cell.n_bytes:,}", recall, decimal(cell.recalls[1]), *times]


def _advice_markdown(
    rows: Sequence[Sequence[str]],
    compared: Sequence[tuple[Cell, Cell | None]],
    found: Advice,
    record: Mapping[str, Any],
) -> str:
    used = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    sizes = f"{record['n_train']:,} training rows, {record['n_queries']:,} queries, {record['n_database']:,} in the database"
    lines = [
        f"# Bytes a vector against neighbour recall: {escaped(record['Data'])}",
        "",
        f"{found.sentence} {found.others}",
        "",
    ]
    lines += [
        f"{sizes}, {record['dimensions']:,} dimensions; seeds {record['Seeds']} (in parentheses the sample standard deviation).",
        "",
    ]
    lines += [
        f"Command: `{record['command']}`. Versions: {used}.",
        "",
        *(f"- {escaped(note)}" for note in record["notes"]),
        "",
    ]
    lines += [*markdown_lines([_ADVICE_COLUMNS, *rows]), ""]
    if compared:
        table = [["compressor", "bytes", "recall@10", "ours", "bytes", "best of ours"]]
        for cell, own in compared:
            ours = ["", "", ""] if own is None else [decimal(own.recalls[0]), str(own.n_bytes), own.name]
            winner = 3 if own is not None and own.recalls[0] >= cell.recalls[0] else 2
            row = [cell.name, str(cell.n_bytes), decimal(cell.recalls[0]), *ours]
            table.append([f"**{text}**" if place == winner else text for place, text in enumerate(row)])
        lines += [
            "## At the same bytes",
            "",
            "The best of ours in at most as many bytes; the better recall is bold.",
            "",
        ]
        lines += [*markdown_lines(table), ""]
    return "\n".join(lines)


def _advice_figures(cells: Sequence[Cell]) -> list[BenchFigure]:
    """Our codes in all forms; the best of ours against the others."""
    forms = {SYMMETRIC: ":", ASYMMETRIC: "--", DECODER: "-", KEPT: "-."}
    ours, others = dict[str, list[tuple[float, float]]](), dict[str, list[tuple[float, float]]]()
    styles: dict[str, tuple[str, str]] = {}
    for cell in cells:
        point = float(cell.n_bytes), cell.recalls[0]
        if cell.is_ours:
            ours.setdefault(cell.name, []).append(point)
            styles[cell.name] = ("1" if cell.method == METHODS[0] else "2", forms[cell.form])
        elif (cell.method != FLOATS and cell.form in ("", SYMMETRIC)) or cell.method == "RaBitQ":
            others.setdefault(cell.method, []).append(point)
    colours = {"PQ": "5", "OPQ": "4", "RaBitQ": "3", "int8": "7", "sign": "muted", "sign, raw": "ink"}
    styles |= {name: (colours[name], "-") for name in others}
    points = [point for own in ours.values() for point in own]
    frontier = [
        (size, max(recall for other, recall in points if other <= size)) for size in {size for size, _ in points}
    ]
    frontiers = {"best of ours": frontier, **others}
    styles["best of ours"] = ("1", "-")
    drawings = [figures.bytes_and_recall(series, styles, "Neighbour recall@10") for series in (ours, frontiers)]
    captions = (
        "Hamming distance (symmetric), re-ranked by the query's projection (asymmetric), by the decoder, by kept int8 vectors.",
        "Ours: the largest recall of any method and form in at most so many bytes.",
    )
    titles = "Codes, and what re-ranking adds", "Against other compressors"
    return [BenchFigure(f"advice-{i}", *texts) for i, texts in enumerate(zip(titles, captions, drawings, strict=True))]


def bench_figures(runs: Sequence[Run], rows: Sequence[Row], protocol: Protocol) -> list[BenchFigure]:
    """MAP against code length; per length top-N precision and precision-recall by lookup (Figures 1-3); training loss (Figure 4).

    Methods that the protocol's paper compares are drawn together, all others best first, at most :data:`DRAWN_TOGETHER` in one figure.
    """
    cells, found = by_cell(runs), list[BenchFigure]()
    measured = [row for row in rows if any(row.maps.values())]
    compared = [row for row in measured if row.frozen_name in protocol.published]
    others = [row for row in measured if row.frozen_name not in protocol.published]
    drawn = [(compared, "", "the paper's methods")] if compared else []
    for number, start in enumerate(range(0, len(others), DRAWN_TOGETHER), start=1):
        suffix = ("-others" if compared else "") + (f"-{number}" if number > 1 else "")
        part_name = f", part {number}" if len(others) > DRAWN_TOGETHER else ""
        drawn.append((others[start : start + DRAWN_TOGETHER], suffix, f"other methods{part_name}"))
    for part, suffix, name in drawn:
        title = f", {name}" if len(drawn) > 1 else ""
        for key, shown, random in (
            ("map", "MAP", mean_random(runs)),
            ("neighbour_recall@10", "Neighbour recall@10", None),
        ):
            points = {
                row.name: [(n, float(np.mean(v)), min(v), max(v)) for n, one in row.measures.items() if (v := one[key])]
                for row in part
            }
            if points := {method: line for method, line in points.items() if line}:
                drawing = figures.method_comparison(points, shown, baseline=("random ranking", random))
                caption = "Mean over seeds; the band spans them."
                file = f"{key.partition('@')[0].replace('_', '-')}{suffix}"
                found.append(BenchFigure(file, f"{shown} by code length{title}", caption, drawing))
        for n in sorted({n for _, n in cells}):
            finished = {row.name: cells[row.name, n] for row in part if (row.name, n) in cells}
            if not finished:
                continue
            drawing = figures.topn_precision({method: _mean_curve(mine, "topn") for method, mine in finished.items()})
            caption = "Ties in expectation, mean over queries and seeds."
            found.append(BenchFigure(f"topn-{n}{suffix}", f"Top-N precision, {n} bits{title}", caption, drawing))
            drawing = figures.pr_by_radius({name: _mean_curve(mine, "pr_radius") for name, mine in finished.items()})
            caption = "One point per radius; an empty lookup has precision 0."
            lookup = f"Precision and recall of hash lookup, {n} bits{title}"
            found.append(BenchFigure(f"pr-{n}{suffix}", lookup, caption, drawing))
    trained = [run_name(name, fine_tuned=fine_tuned) for fine_tuned in (False, True) for name in LOSS_NAMES]
    for trained_name in trained:
        records = {n: mine[0].record for (name, n), mine in sorted(cells.items()) if name == trained_name}
        for key, every in (("iteration_loss", LOSS_ITERATIONS), ("loss", 0)):  # records of older versions have epochs
            losses = {f"{n} bits": values for n, record in records.items() if (values := record.get(key))}
            if losses and len(losses) == len(records):
                drawing = figures.training_loss(losses, iterations=every)
                caption = f"Mean over {f'every {every} iterations' if every else 'each epoch'}; the lowest seed."
                file = f"loss-{re.sub('[, ]+', '-', trained_name)}"
                found.append(BenchFigure(file, f"Training loss of {trained_name}", caption, drawing))
                break
    return found


def _mean_curve(runs: Sequence[Run], name: str) -> dict[str, list[float]]:
    curves = [run.record[name] for run in runs]
    return {key: np.mean([curve[key] for curve in curves], axis=0).tolist() for key in curves[0]}


# Group -> (key as a regular expression, name, meaning). What is not listed is not shown; depths are filled in.
_METRICS = {
    "Whole ranking": [
        ("map", "MAP", "Mean average precision: how early the relevant images come. 1 is perfect."),
        ("map_best", "MAP, range over ties", "Worst and best order of images at equal distance; MAP is the exact average."),
        (r"map@(\d+)", "MAP@{}", "The same for the first {} results, divided by the relevant images that fit there."),
        (r"map@(\d+)_hits", "MAP@{}, hits", "The variant many papers print, divided by the relevant images found: misses are free."),
        ("map_random", "MAP, random order", "What a random order scores with these labels."),
    ],
    "First results": [
        (r"precision@(\d+)", "Precision@{}", "Share of the top {} that is relevant."),
        (r"recall@(\d+)", "Recall@{}", "Share of all relevant images found in the top {}."),
    ],
    "Neighbours by features, without labels": [
        (r"neighbour_recall@(\d+)", "Neighbour recall@{}", "Share of the 10 nearest by cosine of the features that are in the top {}."),
    ],
    "Lookup within a radius": [
        ("precision_radius2", "Precision, radius 2", "Share of relevant images within 2 bits of the query; 0 if none are there."),
        ("empty_radius2", "Empty, radius 2", "Share of queries with nothing within 2 bits."),
    ],
}  # fmt: skip


def metric_groups(runs: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, list[Metric]]]:
    """The metrics that the runs have, grouped by the question they answer."""
    keys = dict.fromkeys(key for metrics in runs.values() for key in metrics)
    groups = []
    for title, patterns in _METRICS.items():
        rows = []
        for pattern, name, meaning in patterns:
            for match in filter(None, (re.fullmatch(pattern, key) for key in keys)):
                key, values = match[0], [metrics.get(match[0]) for metrics in runs.values()]
                shown = [decimal(value) for value in values]
                known = [value for value in values if value is not None]
                winner = decimal(min(known) if key == "empty_radius2" else max(known))
                # Best by what is printed: a difference that cannot be seen is none.
                best = [len(runs) > 1 and key not in ("map_random", "map_best") and value == winner for value in shown]
                if key == "map_best":
                    shown = [f"{decimal(m['map_worst'])} {_DASH} {decimal(m['map_best'])}" for m in runs.values()]
                depths = [f"{int(depth):,}" for depth in match.groups()]
                rows.append(Metric(name.format(*match.groups()), meaning.format(*depths), shown, best))
        if rows:
            groups.append((title, rows))
    return groups


def _figures(data: ReportData) -> dict[str, ReportFigure]:
    """The figures of a model's report, as far as there are numbers for them."""
    found = {}
    if data.runs:
        lookups, tops = ({label: run[key] for label, run in data.runs.items()} for key in ("pr_radius", "topn"))
        sides = {f"{label}: {side}": lookups[label][side] for label in lookups for side in ("precision", "recall")}
        rows = [[str(r), *map(decimal, values)] for r, values in enumerate(zip_longest(*sides.values()))]
        found["pr"] = ReportFigure(figures.pr_by_radius(lookups), ["Radius", *sides], rows)
        depths = sorted({depth for curve in tops.values() for depth in curve["n"]})
        by_depth = [dict(zip(curve["n"], curve["precision"], strict=True)) for curve in tops.values()]
        rows = [[f"{depth:,}", *(decimal(column.get(depth)) for column in by_depth)] for depth in depths]
        # Within the largest radius everything is returned: the last precision of a lookup is that of a random order.
        random = next(iter(lookups.values()))["precision"][-1]
        found["topn"] = ReportFigure(figures.topn_precision(tops, random), ["N", *tops], rows)
    if data.recall:
        curve, names = data.recall["curve"], [f"{k} nearest" for k in data.recall["ks"]]
        series = zip(*(curve[f"recall{k}"] for k in data.recall["ks"]), curve["random"], strict=True)
        rows = [[f"{depth:,}", *map(decimal, values)] for depth, values in zip(curve["depth"], series, strict=True)]
        drawing = figures.neighbour_recall(data.recall)
        found["recall"] = ReportFigure(drawing, ["Results", *names, "Random order"], rows)
    if data.bits:
        balance, correlation = data.bits["balance"], data.bits["correlation"]
        rows = [[str(i), f"{value:+.3f}"] for i, value in enumerate(balance, start=1)]
        found["balance"] = ReportFigure(figures.bit_balance(balance), ["Bit", "Mean sign"], rows)
        pairs = [(correlation[i][j], i + 1, j + 1) for i in range(len(correlation)) for j in range(i)]
        strongest = sorted(pairs, key=lambda pair: -abs(pair[0]))[:20]
        rows = [[str(j), str(i), f"{value:+.3f}"] for value, i, j in strongest]
        found["correlation"] = ReportFigure(figures.bit_correlation(correlation), ["Bit", "Bit", "Correlation"], rows)
    if any(data.losses.values()):
        epochs = enumerate(zip_longest(*data.losses.values()), start=1)
        rows = [[str(epoch), *(decimal(value, 4) for value in values)] for epoch, values in epochs]
        found["loss"] = ReportFigure(figures.training_loss(data.losses), ["Epoch", *data.losses], rows)
    return found


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


def _data_uri(image: bytes) -> str:
    for magic, kind in _IMAGE_TYPES.items():
        if image.startswith(magic):
            return f"data:{kind};base64,{base64.b64encode(image).decode()}"
    raise DataError(f"a thumbnail must be a PNG, JPEG or GIF image, got {len(image)} bytes starting with {image[:8]!r}")
