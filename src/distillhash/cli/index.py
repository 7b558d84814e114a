"""Add images, embeddings or codes to an index, or remove items.

distillhash index photos/ --model model --index photos.index
distillhash index photos/ --index photos.index --prune
distillhash index vectors.npy --model model --index vectors.index --keep-vectors int8
distillhash index codes.parquet --model model --index milvus://localhost:19530/photos
distillhash index --index photos.index --remove 17 42 --compact
"""

import argparse
from pathlib import Path
from typing import Any

from distillhash.cli.common import (
    INDEX_HELP,
    SOURCE_HELP,
    add_reading_options,
    model_options,
    open_argument,
    report_skipped,
    say,
)
from distillhash.errors import ParameterError


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    add = parser.add_argument
    add("source", nargs="?", metavar="SOURCE", help=SOURCE_HELP + "; or codes.npz/.parquet from encode")
    add("--model", metavar="DIR", help="model folder; an index folder keeps it, so it is needed the first time only")
    add("--index", required=True, metavar="DIR|URI", help=f"{INDEX_HELP}, made if absent")
    add(
        "--keep-vectors",
        choices=("int8", "float16"),
        help="with a new index folder: keep every item's features beside its code from now on, for search --rerank vectors",
    )
    add("--prune", action="store_true", help="remove the items that are gone from SOURCE")
    add("--replace", action="store_true", help="let codes replace items of the same name that come from another source")
    add("--remove", nargs="+", type=int, metavar="ID", default=[], help="ids to remove")
    add("--compact", action="store_true", help="give the space of removed items back to the disk")
    add_reading_options(parser)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Remove, then add what is new or changed and drop what is gone, then compact."""
    if arguments.source is None and not arguments.remove and not arguments.compact:
        raise ParameterError("nothing to do: give a SOURCE to add, --remove with ids, or --compact")
    if arguments.source is None and (arguments.prune or arguments.replace):
        raise ParameterError("--prune and --replace are about a SOURCE; give it")
    from distillhash.index.address import folder_of, shown
    from distillhash.search import is_codes_file, open_searcher

    codes = arguments.source is not None and is_codes_file(arguments.source)
    if codes and arguments.keep_vectors is not None:  # before an index is made that could take no codes
        raise ParameterError(f"{arguments.source} holds codes alone, no vectors to keep; leave out --keep-vectors")
    compute = model_options(arguments) | {"max_pixels": arguments.max_pixels}
    compute["keep_vectors"] = arguments.keep_vectors
    with open_searcher(arguments.index, arguments.model, create=arguments.source is not None, **compute) as searcher:
        index = searcher.index
        removed = index.remove(arguments.remove) if arguments.remove else 0
        summary: dict[str, Any] = {"index": shown(arguments.index), "removed": removed}
        if arguments.source is not None:
            options = {"prune": arguments.prune, "progress": not arguments.quiet}
            if codes:
                added = searcher.add_codes(arguments.source, replace=arguments.replace, **options)
            else:
                added = searcher.add(open_argument(arguments, arguments.source), **options)
            counts = added._asdict()
            skipped = counts.pop("skipped")
            summary |= {**counts, "n_skipped": 0}
            if not codes:
                summary |= report_skipped(arguments, skipped, (folder_of(arguments.index) or Path()) / "skipped.json")
        if arguments.compact:
            index.compact()
        index.prepare(searcher.class_bits)  # so that the first search need not
        summary["n_items"] = len(index)
    done = ("added", "updated", "renamed", "unchanged", "pruned", "removed")
    always = {"added", "updated", "unchanged", "removed"}
    parts = [f"{summary[name]} {name}" for name in done if summary.get(name) or (name in always and name in summary)]
    say(arguments, f"{', '.join(parts)}; {summary['n_items']} items in {summary['index']}")
    if summary.get("gone"):
        say(arguments, f"{summary['gone']} items are gone from {arguments.source}; remove them with --prune")
    return summary
