"""Reports of a trained model: what training did, and how well the codes retrieve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash.bench.report import ReportData, RunRow, SampleNeighbour, SampleQuery, write_report
from distillhash.bench.versions import versions
from distillhash.codes import Codes, hamming_distances
from distillhash.metrics import bit_statistics, neighbour_recall
from distillhash.models import HashModel
from distillhash.sources import ImageSource, Skipped, Source, encode_thumbnail, open_source
from distillhash.supervision.similarity import judge_pairs

REPORT_ITEMS = 1000
SAMPLE_QUERIES = 8
SAMPLE_NEIGHBOURS = 10
THUMBNAIL = 96


@dataclass(frozen=True)
class Side:
    """One encoded source: queries or database.

    Attributes:
        source: Where the items come from.
        rows: ``(m,)`` rows of the items that could be used.
        codes: ``m`` codes.
        features: ``(m, d) float32``.
        labels: Labels of those rows, or None.
        skipped: The other items.
    """

    source: Source
    rows: NDArray[np.intp]
    codes: Codes
    features: NDArray[np.float32]
    labels: NDArray[Any] | None
    skipped: list[Skipped]


def encode_side(model: HashModel, source: Any, *, progress: bool = False, max_pixels: int | None = None) -> Side:
    """Encode a source and keep what a report needs."""
    opened = open_source(source)
    batches = list(model.encode_batches(opened, progress=progress, max_pixels=max_pixels))
    skipped = [item for batch in batches for item in batch.skipped]
    rows = np.concatenate([batch.rows for batch in batches]) if batches else np.zeros(0, np.intp)
    features = np.concatenate([batch.features for batch in batches]) if batches else np.zeros((0, 1), np.float32)
    labels = None if opened.labels is None else opened.labels[rows]
    return Side(
        opened, rows, Codes.concatenate([batch.codes for batch in batches], model.n_bits), features, labels, skipped
    )


def write_training_report(path: Path, model: HashModel, source: Source, *, command: str) -> Path:
    """Report of a training run, from at most 1,000 of its items; labels are not read."""
    rng = np.random.default_rng(model.hasher.seed)
    rows = np.sort(rng.choice(len(source), min(len(source), REPORT_ITEMS), replace=False))
    side = encode_side(model, source.select(rows))
    items = f"{model.training['n_used']} items of {source.name}; shown: {len(side.codes)} of them"
    data = ReportData(
        title=f"{model.n_bits}-bit codes",
        subtitle=_subtitle(model),
        command=command,
        versions=versions(),
        seed=model.hasher.seed,
        created=_now(),
        source=items,
        losses=_losses(model),
        bits=bit_statistics(side.codes) if len(side.codes) else None,
        recall=_recall(side, side, same_items=True),
        pairs=_pairs(model, None),
        samples=sample_queries(side, side, seed=model.hasher.seed, same_items=True),
        skipped=model.skipped_,
    )
    write_report(path, data)
    return path


def write_evaluation_report(
    path: Path,
    model: HashModel,
    query: Side,
    database: Side,
    metrics: dict[str, Any],
    *,
    command: str,
    others: Sequence[RunRow] = (),
    train_labels: NDArray[Any] | None = None,
) -> Path:
    """Report of an evaluation; losses and pair labels appear when the model was just trained.

    ``others`` are runs to compare with; ``train_labels`` judge the pair labels, for diagnosis only.
    """
    label = f"{model.hasher.method}, {model.n_bits} bits"
    data = ReportData(
        title=f"Quality of {model.n_bits}-bit codes",
        subtitle=_subtitle(model),
        command=command,
        versions=versions(),
        seed=model.hasher.seed,
        created=_now(),
        source=f"{len(query.codes)} queries of {query.source.name} against {len(database.codes)} items of {database.source.name}",
        runs=[RunRow(label, metrics), *others],
        focus=label,
        losses=_losses(model),
        bits=bit_statistics(database.codes),
        recall=_recall(query, database),
        pairs=_pairs(model, train_labels),
        samples=sample_queries(query, database, seed=model.hasher.seed),
        skipped=[*query.skipped, *database.skipped],
    )
    write_report(path, data)
    return path


def sample_queries(query: Side, database: Side, *, seed: int, same_items: bool = False) -> list[SampleQuery]:
    """A few queries drawn by ``seed`` with their nearest images; empty for sources without images."""
    if not isinstance(query.source, ImageSource) or not isinstance(database.source, ImageSource):
        return []
    if not len(query.codes) or not len(database.codes):
        return []
    chosen = np.random.default_rng(seed).permutation(len(query.codes))[:SAMPLE_QUERIES]
    samples = []
    for position in chosen:
        distances = hamming_distances(query.codes[int(position)], database.codes)[0].astype(np.int64)
        order = np.argsort(distances, kind="stable")
        if same_items:
            order = order[order != position]
        neighbours = [
            SampleNeighbour(
                _thumbnail(database.source, int(database.rows[place])),
                database.source.keys[database.rows[place]],
                int(distances[place]),
                _relevant(query, int(position), database, int(place)) if not same_items else None,
            )
            for place in order[:SAMPLE_NEIGHBOURS]
        ]
        row = int(query.rows[position])
        samples.append(SampleQuery(_thumbnail(query.source, row), query.source.keys[row], neighbours))
    return samples


def _thumbnail(source: ImageSource, row: int) -> bytes:
    return encode_thumbnail(source.read(row), THUMBNAIL)[0]


def _relevant(query: Side, position: int, database: Side, place: int) -> bool | None:
    if query.labels is None or database.labels is None:
        return None
    a, b = query.labels[position], database.labels[place]
    return bool((np.asarray(a) & np.asarray(b)).any()) if query.labels.ndim == 2 else bool(a == b)


def _recall(query: Side, database: Side, *, same_items: bool = False) -> dict[str, Any] | None:
    if len(query.codes) < 2 or len(database.codes) < 2:
        return None
    depths = [depth for depth in (10, 100, 1000) if depth < len(database.codes)] or [len(database.codes)]
    return neighbour_recall(
        query.codes, database.codes, query.features, database.features, ks=(10,), depths=depths, same_items=same_items
    )


def _pairs(model: HashModel, labels: NDArray[Any] | None) -> list[dict[str, Any]]:
    """The diagnosis of every set of pair labels, judged where ``labels`` of the training items are at hand."""
    history = model.hasher.history_
    rows: list[dict[str, Any]] = history.get("diagnosis", [])
    if labels is None or not rows:
        return rows
    # The first set is the initial one, the last the one trained on; with one set they are the same.
    sets = [getattr(model.hasher, name) for name in ("initial_pairs_", "pairs_")][: len(rows)]
    return [{**row, **judge_pairs(pairs, labels[history["rows"]])} for row, pairs in zip(rows, sets, strict=True)]


def _losses(model: HashModel) -> dict[str, list[float]]:
    history = model.hasher.history_
    losses = {"hash function": history["loss"]} if history.get("loss") else {}
    for number, values in enumerate(history.get("estimate_loss", ()), start=1):
        losses[f"pair probabilities {number}"] = values
    return losses


def _subtitle(model: HashModel) -> str:
    return f"{model.hasher.method} on {model.backbone_name}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
