"""Turn images or embeddings into codes.

distillhash encode photos/ --model model --out codes.parquet
distillhash encode cifar10:data#test --model model --out codes.npz
distillhash encode 'shards/{00000..00063}.tar' --model model --shard 17/64 --out codes/
distillhash encode photos/ --model model --shard all/64 --out codes/ --engine ray
"""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distillhash.cli.common import (
    SOURCE_HELP,
    add_reading_options,
    code_batches,
    model_options,
    open_argument,
    report_skipped,
    say,
)
from distillhash.cli.shards import MOST_SHARDS, encode_shards
from distillhash.errors import ParameterError

if TYPE_CHECKING:
    from distillhash.codes import Codes
    from distillhash.sources import Skipped


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    add = parser.add_argument
    add("source", metavar="SOURCE", help=SOURCE_HELP)
    add("--model", required=True, metavar="DIR", help="model folder written by train")
    add(
        "--out",
        required=True,
        metavar="FILE|DIR",
        help="codes.npz or codes.parquet, or with --shard a folder; one key and code per item",
    )
    add(
        "--shard",
        type=_shard,
        metavar="i/n",
        help="encode part i (from 0) of n into DIR/codes-0000i.parquet, unless it is there; all/n: all that are missing. "
        "`distillhash merge` joins them",
    )
    add_reading_options(parser, ray=True)


def _shard(text: str) -> tuple[int | None, int]:
    """Number (None for all) and count of shards."""
    match = re.fullmatch(r"(all|\d{1,6})/(\d{1,6})", text)
    number, count = (None, 0) if match is None else (None if match[1] == "all" else int(match[1]), int(match[2]))
    if not 1 <= count <= MOST_SHARDS or (number or 0) >= count:
        raise argparse.ArgumentTypeError(
            f"must be i/n, or all/n, with i from 0 to n - 1 and n at most {MOST_SHARDS}, got {text!r}"
        )
    return number, count


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Encode and write."""
    is_file = Path(arguments.out).suffix in (".npz", ".parquet")
    if arguments.shard is None and arguments.engine == "ray":
        raise ParameterError(
            "--engine ray encodes shards; give --shard all/n, a folder as --out, and join them by `distillhash merge`"
        )
    if arguments.shard is None and not is_file:
        raise ParameterError(f"--out must end in .npz or .parquet, got {arguments.out}")
    if arguments.shard is not None and is_file:
        raise ParameterError(
            f"with --shard, --out is a folder, got {arguments.out}; `distillhash merge` makes the file"
        )
    if arguments.shard is None:
        return _encode_file(arguments)
    on_ray = arguments.engine == "ray"
    arguments.engine = "auto" if on_ray else arguments.engine  # what each task computes with
    return encode_shards(arguments, on_ray=on_ray)


def _encode_file(arguments: argparse.Namespace) -> dict[str, Any]:
    """The codes of the whole source in one file."""
    from distillhash.codes import write_codes
    from distillhash.models import load_model
    from distillhash.search import origin_of
    from distillhash.sources.base import nothing_usable

    out = Path(arguments.out)
    model = load_model(arguments.model, **model_options(arguments))
    source = open_argument(arguments, arguments.source)
    skipped: list[Skipped] = []
    summary: dict[str, Any] = {}

    def parts() -> "Iterator[tuple[Codes, list[str]]]":
        n = 0
        for codes, keys in code_batches(arguments, model, source, skipped):
            n += len(keys)
            yield codes, keys
        summary.update(report_skipped(arguments, skipped, out.with_name(out.stem + ".skipped.json")))
        if not n:
            raise nothing_usable(arguments.source, skipped)

    n = write_codes(out, parts(), model.n_bits, model.hasher.class_bits, origin=origin_of(source))
    say(arguments, f"{n} codes of {model.n_bits} bits: {out}")
    return {"codes": str(out), "n_codes": n, "n_bits": model.n_bits, **summary}
