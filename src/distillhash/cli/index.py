"""``distillhash index``: add a source to an index, or remove items from it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from distillhash.cli.common import SOURCE_HELP, add_reading_options, add_verb, open_cache, report_skipped, say
from distillhash.errors import ParameterError


def add_parser(subparsers: Any) -> None:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "index",
        "add images, embeddings or codes to an index, or remove items",
        [
            "distillhash index photos/ --model model --index photos.index",
            "distillhash index --index photos.index --remove 17 42",
        ],
        run,
    )
    parser.add_argument("source", nargs="?", metavar="SOURCE", help=SOURCE_HELP + "; or codes.npz/.parquet from encode")
    parser.add_argument("--model", metavar="DIR", help="model folder; kept in the index, so needed the first time only")
    parser.add_argument("--index", required=True, metavar="DIR", help="index folder, made if absent")
    parser.add_argument("--remove", nargs="+", type=int, metavar="ID", default=[], help="ids to remove")
    add_reading_options(parser)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Remove, then add what is new or changed."""
    if arguments.source is None and not arguments.remove:
        raise ParameterError("nothing to do: give a SOURCE to add, or --remove with ids")
    from distillhash.indexing import add_codes_file, add_source, index_model, is_codes_file, open_model_index

    folder = Path(arguments.index)
    model = index_model(folder, arguments.model, device=arguments.device, cache=open_cache(arguments))
    with open_model_index(folder, model) as index:
        removed = index.remove(arguments.remove) if arguments.remove else 0
        summary: dict[str, Any] = {"index": str(folder), "removed": removed}
        if arguments.source is not None and is_codes_file(arguments.source):
            summary |= {**vars(add_codes_file(index, arguments.source)), "n_skipped": 0}
        elif arguments.source is not None:
            added = add_source(
                index, model, arguments.source, progress=not arguments.quiet, max_pixels=arguments.max_pixels
            )
            summary |= {"added": added.added, "updated": added.updated, "unchanged": added.unchanged}
            summary |= report_skipped(arguments, added.skipped, folder / "skipped.json")
        summary["n_items"] = len(index)
    parts = [f"{summary[name]} {name}" for name in ("added", "updated", "unchanged", "removed") if name in summary]
    say(arguments, f"{', '.join(parts)}; {summary['n_items']} items in {folder}")
    return summary
