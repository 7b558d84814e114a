"""What people and programs get: reports as JSON and CSV, and the review page."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from shlex import quote
from typing import Any

from PIL import Image

from distillhash.dedup.job import FIRST_FRAME, SCENE_MATCH, Item, LeakReport, Report
from distillhash.errors import DataError
from distillhash.files import check_target, write_atomic
from distillhash.output import csv_cell, escaped
from distillhash.sources import BadItemError, ImageSource, decode_thumbnail, encode_thumbnail

GROUPS_SHOWN = 300
MEMBERS_SHOWN = 11
THUMBNAIL = 240  # longest side in pixels; shown at half of it on fine screens

_DOUBT = {
    "similar": 0,
    SCENE_MATCH: 0,
    FIRST_FRAME: 1,
    "near": 2,
    "edited copy": 3,
    "copy": 4,
    "same pixels": 5,
    "same file": 6,
}
_FACTS = ("width", "height", "bytes", "format", "n_frames", "damage", "sharpness")


def report_json(report: Report) -> dict[str, Any]:
    """``{"radius", "expected_false_pairs", "groups": [{"keeper", "members": [{"path", "distance"}]}]}`` and more, keeper included."""
    return _calibrated(report) | {
        "groups": [_as_json(group) for group in report.groups],
        "same_first_frame": [_as_json(group) for group in report.first_frames],
        "same_scene": [_as_json(group) for group in report.scenes],
        "n_items": report.n_items,
        "n_groups": len(report.groups),
        "n_duplicates": report.n_duplicates,
        "n_aliases": report.n_aliases,
        "n_looked_at": report.n_looked_at,
    }


def _calibrated(report: Report | LeakReport) -> dict[str, Any]:
    found = report.calibration
    calibration = {"sentence": found.sentence(), **asdict(found)}
    head = {"radius": found.radius, "expected_false_pairs": found.expected_false_pairs}
    return head | {"codes": report.codes, "calibration": calibration}


def leaks_json(report: LeakReport) -> dict[str, Any]:
    """``{"radius", "expected_false_pairs", "leaks": [{"test", "train", "distance", "match", "n_matches"}], ...}``."""
    return _calibrated(report) | {
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
    }


def report_csv(report: Report) -> str:
    """One line per image: group number, whether it is kept, and what is known of it, through :func:`distillhash.output.csv_cell`.

    Groups of which the first frames alone agree, and those of one scene, come last; all of their items are kept.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("group", "keep", "path", "distance", "match", "edits", "phash_distance", *_FACTS))
    for number, group in enumerate([*report.groups, *report.first_frames, *report.scenes], 1):
        for item in group:
            keep = "yes" if item.match == "keeper" or number > len(report.groups) else "no"
            known = map(_facts(item).get, _FACTS)
            edits = ", ".join(item.edits)
            values = (item.distance, item.match, edits, item.phash_distance)
            writer.writerow([number, keep, csv_cell(item.path), *values, *known])
    return stream.getvalue()


def check_place(path: Path) -> None:
    """Raise the :class:`DataError` of :func:`write_text` before there is a text."""
    with _writing(path):
        check_target(path)


def write_text(path: Path, text: str) -> None:
    """Write a file whole; a :class:`DataError` where it cannot be written."""
    with _writing(path):
        write_atomic(path, text.encode("utf-8", "backslashreplace"))


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror}); give another place") from error


def _as_json(group: list[Item]) -> dict[str, Any]:
    return {"keeper": group[0].path, "members": [_item(item) for item in group]}


def _item(item: Item) -> dict[str, Any]:
    found: dict[str, Any] = {"path": item.path, "distance": item.distance, "match": item.match}
    found |= {"phash_distance": item.phash_distance, "found_by": item.found_by, "edits": list(item.edits)}
    return found if item.facts is None else found | _facts(item) | {"digest": item.facts.digest}


def _facts(item: Item) -> dict[str, Any]:
    """What files report of an image; nothing for vectors."""
    if item.facts is None:
        return {}
    return {name: getattr(item.facts, name) for name in _FACTS[:-1]} | {"sharpness": round(item.facts.sharpness, 3)}


def review_page(report: Report, command: str, source: str) -> str:
    """The page as HTML.

    Groups come by falling doubt: first those that the perceptual hash does not confirm, then by distance. Beyond ``GROUPS_SHOWN`` groups
    and ``MEMBERS_SHOWN`` members of a group only counts are shown; the JSON and CSV files hold everything.
    """
    from jinja2 import Environment, StrictUndefined

    template = (files("distillhash.dedup") / "review.html.j2").read_text("utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    ordered = sorted(report.groups, key=_doubt)
    near = [row for row in report.calibration.curve if row["radius"] <= 2 * report.calibration.radius + 8]
    groups, first_frames, scenes = (
        [_group(group, report.calibration.radius) for group in found[:GROUPS_SHOWN]]
        for found in (ordered, report.first_frames, report.scenes)
    )
    page = environment.from_string(template)
    return page.render(
        report=report,
        calibration=report.calibration,
        curve=near[:: max(1, len(near) // 12)],  # about a dozen radii around the chosen one
        groups=groups,
        n_hidden=len(ordered) - len(groups),
        first_frames=first_frames,
        n_first_hidden=len(report.first_frames) - len(first_frames),
        scenes=scenes,
        n_scenes_hidden=len(report.scenes) - len(scenes),
        freed=size_text(sum(item.facts.bytes for group in report.groups for item in group[1:] if item.facts)),
        command=escaped(command),
        source=escaped(source),
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


def _group(group: list[Item], radius: int) -> dict[str, Any]:
    """One group on the page; ``command`` keeps its first member apart from the keeper in later runs."""
    keeper, *members = group
    doubtful = sorted(members, key=lambda item: (_DOUBT[item.match], -item.distance, item.path))
    hides = escaped(keeper.path) != keeper.path  # a command cannot be written with names that must be escaped
    named = [item for item in doubtful if not hides and escaped(item.path) == item.path]
    apart = next((item for item in named if item.facts is not None and item.match != "same file"), None)
    command = None if apart is None else f"distillhash dedup --not-duplicate {quote(keeper.path)} {quote(apart.path)}"
    first, cards = _card(keeper, radius), [_card(item, radius, keeper) for item in doubtful[:MEMBERS_SHOWN]]
    return {"keeper": first, "members": cards, "n_hidden": len(members) - len(cards), "command": command}


def _card(item: Item, radius: int, keeper: Item | None = None) -> dict[str, Any]:
    """One image on the page, and what of its keeper lies on it; without a picture for vectors and for what can no longer be read."""
    facts, thumbnail = item.facts, None
    if isinstance(item.source, ImageSource):
        with suppress(BadItemError):
            content, media_type = encode_thumbnail(item.source.read(item.row), THUMBNAIL)
            thumbnail = f"data:{media_type};base64,{base64.b64encode(content).decode()}"
    text = "" if facts is None else f"{facts.width} x {facts.height}, {size_text(facts.bytes)}, {facts.format}"
    if facts is not None and facts.n_frames != 1:
        text += f", {facts.n_frames or 'many'} frames"
    if facts is not None and facts.damage is not None:
        text += f", damaged: {facts.damage}"
    nearness = round(100 * (1 - item.distance / (radius + 1)))
    return {
        "item": item,
        "name": escaped(item.path),
        "thumbnail": thumbnail,
        "part": None if keeper is None else _part(item, keeper),
        "facts": text,
        "nearness": max(0, nearness),
    }


def _part(item: Item, keeper: Item) -> str | None:
    """What of the keeper lies on an edited copy, mirrored as it is, as a picture for the page; None where the whole does."""
    found = item.aligned
    if found is None or not (found.mirrored or "cropped" in item.edits) or not isinstance(keeper.source, ImageSource):
        return None
    try:
        image = Image.fromarray(decode_thumbnail(keeper.source.read(keeper.row), 2 * THUMBNAIL))
    except BadItemError:
        return None
    if "cropped" in item.edits:
        left, top, right, bottom = (min(max(side, 0.0), 1.0) for side in found.box)
        image = image.crop((left * image.width, top * image.height, right * image.width, bottom * image.height))
    if found.mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=84)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
