"""The command line: an index of verbs, one small file each. Nothing heavy is imported before a verb runs."""

import argparse
import json
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from textwrap import indent

from distillhash.errors import DistillHashError, SkippedItemsWarning

VERBS = ("demo", "train", "encode", "index", "search", "serve", "dedup", "leaks", "export", "evaluate", "bench", "ls")


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``distillhash VERB ...``; the docstring of a verb's module is its summary and its examples."""
    from distillhash import __version__

    parser = argparse.ArgumentParser(
        prog="distillhash",
        description="Compact binary codes for images, learned without labels, and exact Hamming search over them.",
        epilog="Exit status: 0 done, 1 failed, 2 usage. Start with `distillhash demo`.",
    )
    parser.add_argument("--version", action="version", version=f"distillhash {__version__}")
    subparsers = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name in VERBS:
        module = import_module(f"distillhash.cli.{name}")
        summary, _, examples = (module.__doc__ or name).partition("\n\n")
        verb = subparsers.add_parser(
            name,
            help=f"{summary[0].lower()}{summary[1:].rstrip('.')}",
            description=summary,
            epilog="examples:\n" + indent(examples.rstrip(), "  "),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        verb.add_argument("--json", action="store_true", help="print exactly one JSON object on stdout")
        verb.add_argument("--quiet", action="store_true", help="no progress and no text on stderr but errors")
        verb.set_defaults(run=module.run)
        module.add_options(verb)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    arguments = build_parser().parse_args(words)
    arguments.words = words
    logging.basicConfig(level=logging.WARNING, format="distillhash: %(message)s", stream=sys.stderr)
    warnings.simplefilter("ignore", SkippedItemsWarning)  # verbs count and list skipped items themselves
    try:
        summary = arguments.run(arguments)
        if arguments.json:
            print(json.dumps(summary), flush=True)  # noqa: T201  # stdout is where --json goes
        return int(summary.get("exit_code", 0))
    except DistillHashError as error:
        message, exit_code = str(error), error.exit_code
    except KeyboardInterrupt:
        message, exit_code = "interrupted; what was computed is kept, run the same command to go on", 130
    except BrokenPipeError:  # the reader went away, as in `distillhash ls methods | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except MemoryError:
        message, exit_code = "out of memory; use fewer images (--max-images) or fewer bits", 1
    except OSError as error:
        message, exit_code = f"{error.filename or 'a file'}: {error.strerror or error}", 1
    sys.stderr.write(f"distillhash: {message}\n")
    if arguments.json:
        print(json.dumps({"error": message, "exit_code": exit_code}), flush=True)  # noqa: T201
    return exit_code
