"""Find near-duplicates, and move them to a trash folder if asked.

distillhash dedup photos/ --out dups.json --html review.html
distillhash dedup photos/ --apply        # moves what the review showed; undone by:
distillhash dedup photos/ --undo
distillhash dedup inbox/ --reference photos/
distillhash dedup inbox/ --reference photos.index
distillhash dedup photos/ --backbone onnx:sscd.onnx --image-size 224
distillhash dedup --not-duplicate a.jpg b.jpg
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distillhash.cli.common import (
    SOURCE_HELP,
    add_backbone_options,
    add_reading_options,
    backbone_options,
    command_line,
    model_options,
    open_argument,
    report_skipped,
    say,
)
from distillhash.errors import DataError, ParameterError
from distillhash.files import user_folder

if TYPE_CHECKING:
    from distillhash.backbones import Backbone
    from distillhash.dedup.codes import Settings
    from distillhash.dedup.job import Indexed, LeakReport, Report, Verdicts
    from distillhash.dedup.journal import Move
    from distillhash.dedup.trash import Outcome
    from distillhash.sources import Source

_SHOWN = 10  # files that are named one by one
_KINDS = {
    "file": "same file",
    "pixels": "same pixels",
    "copy": "copy",
    "edited": "edited copy",
    "similar": "similar",
    "scene": "same scene",
}
_MOVED = ("file", "pixels", "copy")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    add = parser.add_argument
    add("source", metavar="SOURCE", nargs="?", help=SOURCE_HELP)
    add("--out", metavar="FILE", help="groups as JSON")
    add("--csv", metavar="FILE", help="one line an image")
    add("--html", metavar="FILE", help="a page with thumbnails and distances, complete in itself")
    add_radius_options(parser)
    text = "report what of SOURCE this collection, or index, holds already; it stays whole"
    add("--reference", metavar="SOURCE|INDEX", help=text)
    add("--ignore-same-folder", action="store_true", help="never link two images of one folder")
    add("--first-frame", action="store_true", help="animations and documents with the same first frame are duplicates")
    add("--keep", metavar="LIST", help="what makes the better image (default: resolution,size,sharpness,format)")
    moving = parser.add_mutually_exclusive_group()
    text = "move nothing (the default), and list what --apply would move"
    moving.add_argument("--dry-run", action="store_true", help=text)
    moving.add_argument("--apply", action="store_true", help="move all but the keeper of each group to the trash")
    moving.add_argument("--undo", action="store_true", help="bring back everything that is in the trash")
    moving.add_argument(
        "--not-duplicate",
        nargs=2,
        metavar=("A", "B"),
        action="append",
        default=[],
        help="remember that two files are no duplicates",
    )
    text = "what --apply moves (default: file,pixels,copy; also edited, similar, scene)"
    add("--kinds", metavar="LIST", default=",".join(_MOVED), help=text)
    add(
        "--link", action="store_true", help="with --apply: put hard links in the place of identical files, move nothing"
    )
    add("--trash", metavar="DIR", help="default: .distillhash-trash in the folder SOURCE")
    add("--anywhere", action="store_true", help="with --undo: also to places outside of SOURCE that the journal names")
    add("--verdicts", metavar="FILE", help="where --not-duplicate is kept (default: the user's data folder)")
    add_reading_options(parser)


def add_radius_options(parser: argparse.ArgumentParser) -> None:
    """What ``dedup`` and ``leaks`` share."""
    parser.add_argument("--model", metavar="DIR", help="compare codes of this model (default: made for the collection)")
    parser.add_argument("--radius", type=int, metavar="BITS", help="default: calibrated on the images")
    parser.add_argument(
        "--false-pairs",
        type=float,
        metavar="N",
        help="accept about N false pairs (default: 1 per 100 found or 1000 images)",
    )
    size = "that of its training, or its own"
    add_backbone_options(parser, default="efficientnet-lite0 at 224 pixels", auto=size)
    parser.add_argument("--mirror", action="store_true", help="no longer needed: mirrored copies are found without it")


def settings(arguments: argparse.Namespace, model: str | None = None) -> Settings:
    """What both jobs take; codes are those of ``model`` where one is named."""
    from distillhash.dedup.codes import Settings

    return Settings(
        model=arguments.model,
        backbone=_backbone(arguments, model),
        radius=arguments.radius,
        most_false_pairs=arguments.false_pairs,
        **model_options(arguments),
        max_pixels=arguments.max_pixels,
        progress=not arguments.quiet,
    )


def say_calibration(arguments: argparse.Namespace, report: Report | LeakReport) -> dict[str, Any]:
    """Say what was skipped and how the radius was chosen; the keys of the summary for what was skipped."""
    listed = Path(arguments.out or arguments.verb).with_suffix(".skipped.json")
    found = report_skipped(arguments, report.skipped, listed)
    say(arguments, report.calibration.sentence())
    return found


def _backbone(arguments: argparse.Namespace, model: str | None) -> Backbone | None:
    """The feature extractor that the options ask for; None where they ask for none. ``model`` is what has one already."""
    options = backbone_options(arguments)
    if arguments.backbone is None and not any(options.values()):
        return None
    if (model := arguments.model or model) is not None:
        names = ("--backbone", "--image-size", "--weights", "--backbone-set")
        raise ParameterError(f"codes are those of {model}, which has its own backbone; leave out {', '.join(names)}")
    from distillhash.backbones import make_backbone
    from distillhash.dedup.codes import DEFAULT_BACKBONE

    name = arguments.backbone or DEFAULT_BACKBONE
    made = make_backbone(name, device=arguments.device, engine=arguments.engine, **options)
    return made if arguments.image_size is not None else made.enlarged() or made


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Find, report, move; or undo; or remember."""
    if arguments.undo:
        return _undo(arguments)
    verdicts = _verdicts(arguments)
    if arguments.not_duplicate:
        if verdicts.path is None:
            raise DataError("there is no folder to remember verdicts in; give --verdicts FILE")
        for a, b in arguments.not_duplicate:
            verdicts.add(Path(a), Path(b))
        say(arguments, f"{len(verdicts)} pairs are kept apart: {verdicts.path}")
        return {"verdicts": str(verdicts.path), "n_verdicts": len(verdicts)}
    if arguments.source is None:
        raise ParameterError("dedup needs a SOURCE, or --undo with --trash DIR, or --not-duplicate A B")
    if arguments.reference is not None and (arguments.keep is not None or arguments.ignore_same_folder):
        option = "--ignore-same-folder" if arguments.keep is None else "--keep"
        raise ParameterError(f"{option} is for one collection; with --reference, what that holds is kept: leave it out")
    from distillhash.dedup.job import FIRST_FRAME, find_duplicates
    from distillhash.dedup.journal import Move
    from distillhash.dedup.keep import CRITERIA, parse_policy
    from distillhash.dedup.review import check_place, report_csv, report_json, review_page, write_text

    policy = CRITERIA if arguments.keep is None else parse_policy(arguments.keep)
    chosen = {_KINDS.get(name.strip()) for name in arguments.kinds.split(",")}
    if None in chosen:
        raise ParameterError(f"kinds takes some of {','.join(_KINDS)}, got {arguments.kinds!r}")
    if arguments.link:
        chosen = {_KINDS["file"]}
    if arguments.first_frame:
        chosen.add(FIRST_FRAME)
    trash = _trash(arguments) if arguments.apply else None
    journal = trash and not trash.is_symlink() and not arguments.link and trash / "journal"
    for place in (arguments.out, arguments.csv, arguments.html, journal):
        if place:
            check_place(Path(place))
    if arguments.html:
        import_module("jinja2")  # if it is missing, say so now
    source = open_argument(arguments, arguments.source)
    if trash is not None and source.path(0) is None:
        raise DataError(f"--apply moves files, and the items of {arguments.source} are no files of their own")
    is_index = arguments.reference is not None and _is_index(arguments.reference)
    chosen_settings = settings(arguments, f"the index {arguments.reference}" if is_index else None)
    reference: Source | Indexed | None = None
    if arguments.reference is not None:
        reference = _index(arguments) if is_index else open_argument(arguments, arguments.reference)
    report = find_duplicates(
        source,
        chosen_settings,
        reference=reference,
        policy=policy,
        ignore_same_folder=arguments.ignore_same_folder,
        first_frame=arguments.first_frame,
        verdicts=verdicts,
    )
    summary = report_json(report) | say_calibration(arguments, report)
    say(arguments, f"{report.n_duplicates:,} duplicates in {len(report.groups):,} groups, by {report.codes}")
    if n_items := sum(map(len, report.first_frames)):
        remedy = "--first-frame makes them duplicates"
        say(arguments, f"{n_items:,} items agree in their first frame alone and stay; {remedy}")
    written: dict[str, Callable[[], str]] = {
        "out": lambda: json.dumps(summary, indent=1) + "\n",
        "csv": lambda: report_csv(report),
        "html": lambda: review_page(report, command_line(arguments), arguments.source),
    }
    for name, text in written.items():
        if file := getattr(arguments, name):
            write_text(Path(file), text())
            say(arguments, f"{name}: {file}")
    moves, stay = [], []
    for keeper, *others in [*report.groups, *report.scenes]:
        for item in others:
            if item.facts is None or item.match not in chosen:
                continue
            if keeper.source.path(keeper.row) is None:
                reason = f"it matches {keeper.path} of {keeper.source.name}, which is no file of its own"
                stay.append((item.path, reason))
            else:
                moves.append(Move(item.path, item.facts.digest, keeper.path, item.distance))
    files = [item for group in report.groups for item in group[1:] if item.facts is not None]
    n_near = sum(item.match == "near" for item in files)
    if n_near:
        reason = "the picture they match cannot be read, or has changed since it was indexed"
        say(arguments, f"{n_near:,} of them stay, because {reason}")
    if stay:
        say(arguments, f"{len(stay):,} of them stay, because what they match is no file of its own")
    if rest := len(files) - n_near - sum(item.match in chosen for item in files):
        taken = "the kind file, which --link takes" if arguments.link else f"--kinds {arguments.kinds}"
        say(arguments, f"{rest:,} of them are of other kinds than {taken}, and stay")
    if arguments.dry_run:
        for move in moves:
            say(arguments, f"would {'link' if arguments.link else 'move'}: {move.path} (kept: {move.keeper})")
        summary["would_move"] = [move.path for move in moves]
    if trash is None:
        say(arguments, "nothing was moved; --apply moves all but the keepers to the trash, --undo brings them back")
        return summary
    if (why := report.calibration.unknown) is not None and arguments.radius is None:
        raise DataError(f"nothing was moved: no radius can be chosen, for {why}; give --radius BITS")
    return summary | _apply(arguments, moves, stay, trash)


def _is_index(reference: str) -> bool:
    """Whether the reference is an index, or what is left of one in a folder without images."""
    from distillhash.index import is_address
    from distillhash.sources import open_source

    if is_address(reference) or not is_address(reference, damaged=True):
        return is_address(reference)
    try:
        open_source(reference)
    except DataError:
        return True
    return False


def _index(arguments: argparse.Namespace) -> Indexed:
    """The index that new images are looked up in."""
    from distillhash.dedup.job import Indexed
    from distillhash.index.address import folder_of, shown
    from distillhash.search import open_searcher
    from distillhash.serve.pictures import Pictures
    from distillhash.sources import MAX_PIXELS

    place, max_pixels = arguments.reference, arguments.max_pixels
    searcher = open_searcher(place, arguments.model, **model_options(arguments), max_pixels=max_pixels)
    pictures = Pictures(folder_of(place), max_pixels=max_pixels or MAX_PIXELS)
    return Indexed(shown(place), searcher, pictures.read)


def _verdicts(arguments: argparse.Namespace) -> Verdicts:
    """The verdicts given, or those in the user's data folder; none where there is no such folder."""
    from distillhash.dedup.job import Verdicts

    data = user_folder("data")
    if arguments.verdicts:
        return Verdicts(Path(arguments.verdicts))
    try:
        return Verdicts(None if data is None else data / "not-duplicates.tsv")
    except DataError:  # it cannot be read, so this user has never written there
        return Verdicts()


def _apply(
    arguments: argparse.Namespace, moves: list[Move], stay: list[tuple[str, str]], trash: Path
) -> dict[str, Any]:
    """Move, or link; ``stay`` has files that stay, each with its reason."""
    from distillhash.dedup.trash import Outcome, companion_moves, link, move

    root, outcome = _collection(arguments), Outcome()
    if arguments.link:
        outcome = link(moves, root, progress=not arguments.quiet)
        text = "are hard links to their keepers now"
    else:
        together, held = companion_moves(moves)
        stay, apart = held + stay, dict(held)
        going = [one for one in moves if one.path not in apart]
        if going:
            outcome = move(going, trash, root, together=together, progress=not arguments.quiet)
        words = [arguments.source, "--undo", *(["--trash", str(trash)] if arguments.trash else [])]
        remedy = f" to {trash}; `distillhash dedup {shlex.join(words)}` brings them back"
        text = f"moved{remedy if outcome.done else ''}"
    outcome.left += stay
    n_done, left = len(outcome.done), [list(pair) for pair in outcome.left]
    say(arguments, f"{n_done:,} files {text}")
    _say_left(arguments, outcome, "left as it is" if arguments.link else "left in its place")
    done = {"n_linked": n_done} if arguments.link else {"trash": str(trash), "n_moved": n_done}
    return {**done, "left": left, "exit_code": 1 if left else 0}


def _undo(arguments: argparse.Namespace) -> dict[str, Any]:
    from distillhash.dedup.trash import undo

    trash = _trash(arguments)
    outcome = undo(trash, _collection(arguments), anywhere=arguments.anywhere, progress=not arguments.quiet)
    where = f" to {', '.join(sorted(outcome.collections))}" if outcome.done else ""
    say(arguments, f"{len(outcome.done):,} files brought back from {trash}{where}")
    _say_left(arguments, outcome, "not brought back")
    if outcome.n_other:
        say(arguments, f"{outcome.n_other:,} files of other collections stay in {trash}")
    if outcome.n_gone:
        text = "files are neither in the trash nor in their place: deleted, moved or renamed"
        say(arguments, f"{outcome.n_gone:,} {text}")
    less = outcome.left or (outcome.n_other and not outcome.done)
    return {
        "trash": str(trash),
        "n_restored": len(outcome.done),
        "restored": outcome.done,
        "left": [list(pair) for pair in outcome.left],
        "n_gone": outcome.n_gone,
        "n_other": outcome.n_other,
        "exit_code": 1 if less else 0,
    }


def _say_left(arguments: argparse.Namespace, outcome: Outcome, what: str) -> None:
    for path, reason in outcome.left[:_SHOWN]:
        say(arguments, f"{what}: {path}: {reason}")
    if len(outcome.left) > _SHOWN:
        say(arguments, f"{what}: {len(outcome.left) - _SHOWN:,} more; --json lists them all")
    for note in outcome.notes[:_SHOWN]:
        say(arguments, note)


def _collection(arguments: argparse.Namespace) -> Path | None:
    """The folder SOURCE, without a selection (``FOLDER#0:100``); None for any other source, or none."""
    folder = arguments.source or ""
    while "#" in folder and not Path(folder).exists():
        folder = folder.rpartition("#")[0]
    if folder and ":" not in folder and not Path(folder).exists():
        raise DataError(f"there is no {arguments.source}; give the folder where the files are now")
    return Path(folder) if folder and Path(folder).is_dir() else None


def _trash(arguments: argparse.Namespace) -> Path:
    from distillhash.dedup.trash import FOLDER_NAME

    folder = _collection(arguments)
    if arguments.trash:
        return Path(arguments.trash)
    if folder is None:
        raise ParameterError("the trash lies in the folder SOURCE by default; give --trash DIR for any other source")
    return folder / FOLDER_NAME
