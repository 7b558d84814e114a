"""The quality report: plain numbers and thumbnails in, one self-contained HTML file out.

The file carries its styles, figures and images inside, runs no script, and may not load anything (its own content-security
policy forbids it), so it can be mailed, archived, or opened years later. File names are untrusted text and are escaped.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from distillhash.bench import report_content as content
from distillhash.errors import DataError, DistillHashError
from distillhash.sources.base import Skipped

SKIPPED_SHOWN = 200
DESCRIBED_RUNS = 4  # with more, the table needs the width, and what its metrics say goes below it
_IMAGE_TYPES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif"}


@dataclass(frozen=True)
class RunRow:
    """One set of codes: a label such as ``"distillhash, 64 bits"``, and its :func:`distillhash.metrics.retrieval.evaluate_codes`."""

    label: str
    metrics: Mapping[str, Any]


@dataclass(frozen=True)
class SampleNeighbour:
    """One result: an encoded PNG, JPEG or GIF thumbnail, its name, its distance in bits, and whether its label agrees."""

    image: bytes
    caption: str
    distance: int
    relevant: bool | None = None


@dataclass(frozen=True)
class SampleQuery:
    """One query image and its nearest results, nearest first."""

    image: bytes
    caption: str
    neighbours: Sequence[SampleNeighbour]


@dataclass(frozen=True)
class ReportData:
    """All a report shows. What is None or empty has no section, except ``skipped``: an empty list says that nothing was.

    Attributes:
        title: Heading, such as ``"Quality of 64-bit codes"``.
        subtitle: One line under it, such as the method and the backbone.
        command: The exact command line that made the report.
        versions: Package or tool -> version; ``commit`` is welcome.
        seed: The random seed, or several as text.
        created: UTC time, ISO 8601.
        source: What was measured: the source and its sizes, in words.
        runs: The codes compared by labels.
        focus: Label of the run that everything but the comparison describes; None: the one with the best MAP.
        losses: Name -> loss after each epoch.
        bits: :func:`distillhash.metrics.code_statistics.bit_statistics`.
        recall: :func:`distillhash.metrics.neighbour_recall`.
        pairs: Steps of the pair labels, as :func:`distillhash.supervision.similarity.describe_pairs` and ``judge_pairs`` give them.
        samples: Queries with their nearest images.
        skipped: Items that could not be read; None where the report read no items.
        notes: Sentences for the reader: caveats, departures.
    """

    title: str
    subtitle: str
    command: str
    versions: Mapping[str, str]
    seed: int | str
    created: str
    source: str
    runs: Sequence[RunRow] = ()
    focus: str | None = None
    losses: Mapping[str, Sequence[float]] = field(default_factory=dict)
    bits: Mapping[str, Any] | None = None
    recall: Mapping[str, Any] | None = None
    pairs: Sequence[Mapping[str, Any]] = ()
    samples: Sequence[SampleQuery] = ()
    skipped: Sequence[Skipped] | None = None
    notes: Sequence[str] = ()


def write_report(path: str | Path, data: ReportData) -> None:
    """Write the report as one HTML file; the same data give the same bytes.

    The file appears whole or not at all, and missing parent folders are made.

    Args:
        path: The HTML file; replaced if it exists.
        data: What to show.

    Raises:
        DataError: a thumbnail is not a PNG, JPEG or GIF image.
        DistillHashError: the file cannot be written.
    """
    # A file name may hold bytes that are no text (Python keeps them as lone surrogates); show them as escapes.
    write_whole(Path(path), render_report(data).encode("utf-8", "backslashreplace"))


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under a temporary name first, so that it appears whole or not at all; missing folders are made.

    Raises:
        DistillHashError: the file cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(content)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise DistillHashError(f"cannot write the report to {path} ({error.strerror}); choose another place") from error


def render_report(data: ReportData) -> str:
    """The HTML of :func:`write_report` as text."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    formats = {"percent": content.percent, "count": content.count, "decimal": content.decimal}
    environment.filters |= {"data_uri": _data_uri, "tail": _tail, **formats}
    source = packaged("report.html.j2")
    run = content.focused_run(data)
    return environment.from_string(source).render(
        style=packaged("page.css"),
        data=data,
        focus=run.label if run and len(data.runs) > 1 else None,
        summary=content.summary(data),
        tiles=content.tiles(data),
        metrics=content.metric_groups(data.runs),
        described=len(data.runs) <= DESCRIBED_RUNS,
        ranking_figures=content.ranking_figures(data.runs),
        recall_figure=content.recall_figure(data.recall) if data.recall else None,
        bit_tiles=content.bit_tiles(data.bits) if data.bits else [],
        bit_figures=content.bit_figures(data.bits) if data.bits else [],
        loss_figure=content.loss_figure(data.losses) if any(data.losses.values()) else None,
        pairs_judged=any("precision_positive" in row for row in data.pairs),
        samples_judged=any(item.relevant is not None for query in data.samples for item in query.neighbours),
        skipped_shown=SKIPPED_SHOWN,
    )


def packaged(name: str) -> str:
    """A template or style sheet of this package."""
    return files("distillhash.bench").joinpath(name).read_text(encoding="utf-8")


def _tail(name: str, width: int) -> str:
    """The end of a long name, which is what tells the files of one folder apart."""
    return name if len(name) <= width else "\N{HORIZONTAL ELLIPSIS}" + name[1 - width :]


def _data_uri(image: bytes) -> str:
    for magic, kind in _IMAGE_TYPES.items():
        if image.startswith(magic):
            return f"data:{kind};base64,{base64.b64encode(image).decode()}"
    raise DataError(f"a thumbnail must be a PNG, JPEG or GIF image, got {len(image)} bytes starting with {image[:8]!r}")
