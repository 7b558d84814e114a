"""Options and small steps that several verbs share."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distillhash.errors import DataError, ParameterError

if TYPE_CHECKING:
    from distillhash.backbones import FeatureCache
    from distillhash.sources import Skipped

SOURCE_HELP = (
    "a folder of images, a list file, a .parquet image table, a .npy/.npz/.parquet of embeddings, or digits:, cifar10:DIR, "
    "flickr25k:DIR, nuswide:DIR; append #train, #test or #a:b to select"
)
INDEX_HELP = "an index folder, postgresql://host/database?table=NAME or milvus://host:port/collection"


def add_verb(
    subparsers: Any,
    name: str,
    summary: str,
    examples: Sequence[str],
    run: Callable[[argparse.Namespace], dict[str, Any]],
) -> argparse.ArgumentParser:
    """A verb's parser with its examples, ``--json`` and ``--quiet``."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog="examples:\n" + "\n".join(f"  {example}" for example in examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print exactly one JSON object on stdout")
    parser.add_argument("--quiet", action="store_true", help="no progress and no text on stderr but errors")
    parser.set_defaults(run=run)
    return parser


def add_reading_options(parser: argparse.ArgumentParser) -> None:
    """Options of every verb that turns images into features."""
    parser.add_argument("--strict", action="store_true", help="exit 1 if any item could not be used")
    parser.add_argument("--max-pixels", type=int, metavar="N", help="skip images with more pixels than this")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"), help="default: auto")
    parser.add_argument(
        "--cache", metavar="DIR", help="where features are kept between runs (default: the user's cache)"
    )
    parser.add_argument("--no-cache", action="store_true", help="keep no features")


def open_cache(arguments: argparse.Namespace) -> FeatureCache | None:
    """The feature cache that ``--cache`` and ``--no-cache`` ask for."""
    from distillhash.backbones import FeatureCache

    if arguments.no_cache:
        return None
    return FeatureCache(arguments.cache)


def say(arguments: argparse.Namespace, text: str) -> None:
    """A line for people, on stderr."""
    if not arguments.quiet:
        sys.stderr.write(text + "\n")


def command_line(arguments: argparse.Namespace) -> str:
    """The command as it was typed, for provenance."""
    return shlex.join(["distillhash", *arguments.words])


def parse_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """``--set name=value`` words as hyper-parameters; a value is JSON where it can be, else text.

    Raises:
        ParameterError: a word without ``=``.
    """
    settings: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise ParameterError(f"--set takes name=value, got {pair!r}")
        try:
            settings[name.replace("-", "_")] = json.loads(text)
        except ValueError:
            settings[name.replace("-", "_")] = text
    return settings


def report_skipped(arguments: argparse.Namespace, skipped: Sequence[Skipped], path: Path) -> dict[str, Any]:
    """List skipped items in ``path`` and say so; the keys that every summary carries. The file is absent when nothing was skipped.

    Raises:
        DataError: with ``--strict``, if there are any.
    """
    path.unlink(missing_ok=True)
    if not skipped:
        return {"n_skipped": 0}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([{"key": item.key, "reason": item.reason} for item in skipped], indent=1) + "\n")
    first = skipped[0]
    text = f"{len(skipped)} items could not be used (first: {first.key}: {first.reason}); all are listed in {path}"
    if arguments.strict:
        raise DataError(f"{text}; --strict makes that an error")
    say(arguments, text)
    return {"n_skipped": len(skipped), "skipped": str(path)}
