"""What people and programs get: reports as JSON and CSV, and the review page."""

from __future__ import annotations

import base64
import csv
import io
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from shlex import quote
from typing import Any

from distillhash.dedup.calibration import Calibration
from distillhash.dedup.job import Item, LeakReport, Report
from distillhash.errors import DataError
from distillhash.files import write_atomic
from distillhash.sources import BadItemError, ImageSource, encode_thumbnail

GROUPS_SHOWN = 300
MEMBERS_SHOWN = 11
THUMBNAIL = 240
"""Longest side in pixels; shown at half of it on fine screens."""

_DOUBT = {"similar": 0, "near": 1, "same picture": 2, "same pixels": 3, "same file": 4}
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet would run a file name that begins so
_FACTS = ("width", "height", "bytes", "format", "sharpness")


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
        "calibration": _calibration_json(report.calibration),
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
        "calibration": _calibration_json(report.calibration),
    }


def report_csv(report: Report) -> str:
    """One line per image: group number, whether it is kept, and what is known of it. Names that a spreadsheet would run are quoted."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("group", "keep", "path", "distance", "match", "phash_distance", *_FACTS))
    for number, group in enumerate(report.groups, 1):
        for item in group:
            path = "'" + item.path if item.path.startswith(_FORMULA) else item.path
            keep = "yes" if item.match == "keeper" else "no"
            facts = _facts(item)
            known = [facts.get(name) for name in _FACTS]
            writer.writerow([number, keep, path, item.distance, item.match, item.phash_distance, *known])
    return stream.getvalue()


def write_text(path: Path, text: str) -> None:
    """Write a file whole.

    Raises:
        DataError: it cannot be written.
    """
    try:
        write_atomic(path, text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror}); give another place") from error


def _calibration_json(calibration: Calibration) -> dict[str, Any]:
    return {"sentence": calibration.sentence(), **asdict(calibration)}


def _item(item: Item) -> dict[str, Any]:
    found = {
        "path": item.path,
        "distance": item.distance,
        "match": item.match,
        "phash_distance": item.phash_distance,
        **_facts(item),
    }
    return found if item.facts is None else found | {"digest": item.facts.digest}


def _facts(item: Item) -> dict[str, Any]:
    """What files report of an image; nothing for vectors."""
    if item.facts is None:
        return {}
    return {name: getattr(item.facts, name) for name in _FACTS[:-1]} | {"sharpness": round(item.facts.sharpness, 3)}


@dataclass(frozen=True)
class Card:
    """One image on the page."""

    item: Item
    thumbnail: str | None
    facts: str
    nearness: int


@dataclass(frozen=True)
class GroupCard:
    """One group on the page; ``command`` keeps its first member apart from the keeper in later runs."""

    keeper: Card
    members: list[Card]
    n_hidden: int
    command: str | None


def review_page(report: Report, command: str, source: str) -> str:
    """The page as HTML.

    Groups come by falling doubt: first those that the perceptual hash does not confirm, then by distance. Beyond ``GROUPS_SHOWN`` groups
    and ``MEMBERS_SHOWN`` members of a group only counts are shown; the JSON and CSV files hold everything.

    Args:
        report: What :func:`distillhash.dedup.job.find_duplicates` found.
        command: The command that made it.
        source: What was searched.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    ordered = sorted(report.groups, key=_doubt)
    return environment.from_string((files("distillhash.dedup") / "review.html.j2").read_text("utf-8")).render(
        report=report,
        calibration=report.calibration,
        curve=_chosen_rows(report.calibration),
        groups=[_group(group, report.calibration.radius) for group in ordered[:GROUPS_SHOWN]],
        n_hidden=max(0, len(ordered) - GROUPS_SHOWN),
        freed=size_text(sum(item.facts.bytes for group in report.groups for item in group[1:] if item.facts)),
        command=command,
        source=source,
    )


def size_text(n_bytes: int) -> str:
    """Bytes as people say them: ``812 B``, ``3.4 MB``."""
    size = float(n_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


def _doubt(group: list[Item]) -> tuple[int, int, str]:
    members = group[1:]
    return min(_DOUBT[item.match] for item in members), -max(item.distance for item in members), group[0].path


def _group(group: list[Item], radius: int) -> GroupCard:
    keeper, *members = group
    doubtful = sorted(members, key=lambda item: (_DOUBT[item.match], -item.distance, item.path))
    shown = doubtful[:MEMBERS_SHOWN]
    apart = next((item for item in doubtful if item.facts is not None and item.match != "same file"), None)
    command = None if apart is None else f"distillhash dedup --not-duplicate {quote(keeper.path)} {quote(apart.path)}"
    return GroupCard(_card(keeper, radius), [_card(item, radius) for item in shown], len(members) - len(shown), command)


def _card(item: Item, radius: int) -> Card:
    facts = item.facts
    text = "" if facts is None else f"{facts.width} x {facts.height}, {size_text(facts.bytes)}, {facts.format}"
    return Card(item, _thumbnail(item), text, round(100 * (1 - item.distance / (radius + 1))))


def _thumbnail(item: Item) -> str | None:
    """A small picture as a data address; None for vectors and for what can no longer be read."""
    if not isinstance(item.source, ImageSource):
        return None
    try:
        content, media_type = encode_thumbnail(item.source.read(item.row), THUMBNAIL)
    except BadItemError:
        return None
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def _chosen_rows(calibration: Calibration) -> list[dict[str, float | None]]:
    """About a dozen radii around the chosen one, for the table."""
    near = [row for row in calibration.curve if row["radius"] <= 2 * calibration.radius + 8]
    return near[:: max(1, len(near) // 12)]
