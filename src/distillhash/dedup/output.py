"""Reports as JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from distillhash.dedup.calibration import Calibration
from distillhash.dedup.job import Item, LeakReport, Report
from distillhash.errors import DataError

_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet would run a file name that begins so
_COLUMNS = (
    "group",
    "keep",
    "path",
    "distance",
    "match",
    "phash_distance",
    "width",
    "height",
    "bytes",
    "format",
    "sharpness",
)


def report_json(report: Report) -> dict[str, Any]:
    """``{"radius", "expected_false_pairs", "groups": [{"keeper", "members": [{"path", "distance"}]}]}`` and more, keeper included."""
    return {
        "radius": report.calibration.radius,
        "expected_false_pairs": report.calibration.expected_false_pairs,
        "groups": [{"keeper": group[0].path, "members": [_item(item) for item in group]} for group in report.groups],
        "n_items": report.n_items,
        "n_groups": len(report.groups),
        "n_duplicates": report.n_duplicates,
        "n_aliases": report.n_aliases,
        "codes": report.codes,
        "calibration": calibration_json(report.calibration),
    }


def leaks_json(report: LeakReport) -> dict[str, Any]:
    """``{"radius", "expected_false_pairs", "leaks": [{"test", "train", "distance", "match", "n_matches"}], ...}``."""
    return {
        "radius": report.calibration.radius,
        "expected_false_pairs": report.calibration.expected_false_pairs,
        "leaks": [
            {
                "test": leak.test.path,
                "train": leak.train.path,
                "distance": leak.test.distance,
                "match": leak.test.match,
                "phash_distance": leak.test.phash_distance,
                "n_matches": leak.n_matches,
            }
            for leak in report.leaks
        ],
        "n_train": report.n_train,
        "n_test": report.n_test,
        "n_leaks": len(report.leaks),
        "codes": report.codes,
        "calibration": calibration_json(report.calibration),
    }


def calibration_json(calibration: Calibration) -> dict[str, Any]:
    """All of a calibration, with its sentence."""
    return {"sentence": calibration.sentence(), **asdict(calibration)}


def report_csv(report: Report) -> str:
    """One line an image: group number, whether it is kept, and what is known of it. Names that a spreadsheet would run are quoted."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows(_rows(report))
    return stream.getvalue()


def _rows(report: Report) -> Iterator[list[object]]:
    for number, group in enumerate(report.groups, 1):
        for item in group:
            path = "'" + item.path if item.path.startswith(_FORMULA) else item.path
            row = [
                number,
                "yes" if item.match == "keeper" else "no",
                path,
                item.distance,
                item.match,
                item.phash_distance,
            ]
            facts = item.facts
            known = (
                []
                if facts is None
                else [facts.width, facts.height, facts.bytes, facts.format, round(facts.sharpness, 3)]
            )
            yield ["" if value is None else value for value in [*row, *known, *[""] * (5 - len(known))]]


def _item(item: Item) -> dict[str, Any]:
    facts = item.facts
    known = (
        {}
        if facts is None
        else {
            "width": facts.width,
            "height": facts.height,
            "bytes": facts.bytes,
            "format": facts.format,
            "sharpness": round(facts.sharpness, 3),
            "digest": facts.digest,
        }
    )
    return {
        "path": item.path,
        "distance": item.distance,
        "match": item.match,
        "phash_distance": item.phash_distance,
        **known,
    }


def write_text(path: Path, text: str) -> None:
    """Write a file whole, under a temporary name first.

    Raises:
        DataError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
        temporary.replace(path)
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror}); give another place") from error


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write one JSON object."""
    write_text(path, json.dumps(content, indent=1) + "\n")
