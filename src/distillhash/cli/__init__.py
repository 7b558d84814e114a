"""The command line: an index of verbs, one small file each. Nothing heavy is imported before a verb runs."""

import argparse
import contextlib
import io
import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from textwrap import indent
from typing import NoReturn

from distillhash.distributed import launched, launched_rank, tell
from distillhash.errors import DataError, DistillHashError, ParameterError, SkippedItemsWarning
from distillhash.output import escaped

VERBS = (
    "demo",
    "train",
    "encode",
    "merge",
    "index",
    "search",
    "serve",
    "dedup",
    "leaks",
    "export",
    "evaluate",
    "advise",
    "bench",
    "ls",
)


EXTRAS = {"jinja2": "dedup", "onnx": "onnx", "onnxruntime": "onnx", "pyarrow": "parquet"}
"""Which extra brings a package that the base installation lacks; ``train`` brings all others."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Refuse words; they may come from a file name with control characters."""
        super().error(escaped(message))


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``distillhash VERB ...``; the docstring of a verb's module is its summary and its examples."""
    from distillhash import __version__

    parser = _Parser(
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
    """Run one verb; returns the exit status: 0 done, 1 failed, 2 usage."""
    words = sys.argv[1:] if argv is None else list(argv)
    _prepare_output()
    arguments = build_parser().parse_args(words)
    arguments.words, arguments.say_failure = words, partial(_say_failure, as_json=arguments.json)
    try:
        if launched() and arguments.verb != "train":
            raise ParameterError(f"{arguments.verb} runs in one process; torchrun is for train")
        if not _exists_here():  # libraries end the process with words of their own
            raise DataError("the working directory is gone; change to one that is there")
        summary = arguments.run(arguments)
        if arguments.json:
            print(json.dumps(summary))  # noqa: T201  # stdout is where --json goes
        sys.stdout.flush()
        return int(summary.get("exit_code", 0))
    except ModuleNotFoundError as error:
        if "DISTILLHASH_DEBUG" in os.environ:
            raise
        package = (error.name or "").partition(".")[0]
        extra = EXTRAS.get(package, "train")
        message = f"`distillhash {arguments.verb}` needs {package} here; pip install 'distillhash[{extra}]'"
        if package == "torch" and hasattr(arguments, "model") and arguments.verb != "export":
            export = "distillhash export --model DIR --to onnx --out m.onnx"
            message += f"; or make an ONNX file of the model where torch is (`{export}`) and give --model m.onnx here"
        exit_code = 1
    except DistillHashError as error:
        message, exit_code = str(error), error.exit_code
    except KeyboardInterrupt:
        message, exit_code = "interrupted; what was computed is kept, run the same command to go on", 130
    except BrokenPipeError:  # the reader went away, as in `distillhash ls methods | head -1`
        _drop_output()
        return 1
    except MemoryError:
        message, exit_code = "out of memory; use fewer items (--max-images, SOURCE#0:10000) or fewer bits", 1
    except OSError as error:
        message, exit_code = f"{error.filename or 'a file'}: {error.strerror or error}", 1
    except Exception as error:
        if "DISTILLHASH_DEBUG" in os.environ:
            raise
        last = traceback.extract_tb(error.__traceback__)[-1]
        message, exit_code = (
            (
                f"unexpected {type(error).__name__} at {Path(last.filename).name}:{last.lineno}: {error}; this is a fault of distillhash, "
                "please report it with the traceback that the environment variable DISTILLHASH_DEBUG=1 shows"
            ),
            1,
        )
    tell(message, exit_code)
    arguments.say_failure(message, exit_code)
    return exit_code


def _say_failure(message: str, exit_code: int, *, as_json: bool) -> None:
    try:
        sys.stderr.write(f"distillhash: {escaped(message)}\n")
        sys.stderr.flush()
        if as_json:
            print(json.dumps({"error": message, "exit_code": exit_code}), flush=True)  # noqa: T201
    except OSError:  # nobody can be told
        _drop_output()


def _prepare_output() -> None:
    """Let names in any encoding be printed, and warnings look like other messages. Of several processes the first one prints."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or launched_rank():  # None: closed by whoever started the process
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115  # until the process ends
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

    class Escaping(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return f"distillhash: {escaped(super().format(record))}"

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Escaping())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    warnings.simplefilter("ignore", SkippedItemsWarning)  # verbs count and list skipped items themselves
    warnings.filterwarnings("ignore", module="PIL")  # of odd metadata


def _exists_here() -> bool:
    try:
        return bool(os.getcwd())  # noqa: PTH109  # Path.cwd() is the same call
    except OSError:
        return False


def _drop_output() -> None:
    """Keep the interpreter from writing to a stdout that is gone when it ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
