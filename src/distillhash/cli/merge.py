"""Join the shards that encode --shard wrote into one file of codes.

distillhash merge shards/ --out codes.parquet
distillhash merge shards/ --out codes.npz --strict
"""

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distillhash.cli.common import report_skipped, say
from distillhash.cli.shards import all_shards, read_codes
from distillhash.errors import ParameterError

if TYPE_CHECKING:
    from distillhash.codes import Codes

    Part = tuple[Codes, list[str]]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    add = parser.add_argument
    add("folder", metavar="DIR", help="what `distillhash encode --shard i/n --out DIR` wrote")
    add(
        "--out",
        required=True,
        metavar="FILE",
        help="codes.npz or codes.parquet; the file that encode writes without --shard",
    )
    add("--strict", action="store_true", help="exit 1 if any item could not be used")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Check that the shards are all there and belong together, and join them in the order of the source."""
    from distillhash.codes import write_codes
    from distillhash.files import remove_partial
    from distillhash.sources import Skipped
    from distillhash.sources.base import nothing_usable

    folder, out = Path(arguments.folder), Path(arguments.out)
    if out.suffix not in (".npz", ".parquet"):
        raise ParameterError(f"--out must end in .npz or .parquet, got {arguments.out}")
    shards = all_shards(folder)
    if any(out.resolve() == shard.path(folder).resolve() for shard in shards):
        raise ParameterError(f"--out {out} is one of the shards; choose another name")
    skipped = [Skipped(*pair) for shard in shards for pair in shard.skipped or []]
    damaged = {key: reason for shard in shards for key, reason in shard.damaged or []}
    summary = report_skipped(arguments, skipped, out.with_name(out.stem + ".skipped.json"), damaged)
    if len(skipped) >= shards[0].n_rows:
        raise nothing_usable(str(folder), skipped)
    first, _ = read_codes(shards[0].path(folder), shards[0])
    parts = (read_codes(shard.path(folder), shard) for shard in shards)
    n = write_codes(out, _alike(first, parts), first.n_bits, first.class_bits, origin=shards[0].origin)
    remove_partial(folder)
    say(arguments, f"{n} codes of {first.n_bits} bits from {len(shards)} shards: {out}")
    return {"codes": str(out), "n_codes": n, "n_bits": first.n_bits, "n_shards": len(shards), **summary}


def _alike(first: "Codes", parts: "Iterable[Part]") -> "Iterator[Part]":
    """Codes and keys of shards, which are all of one length."""
    from distillhash.codes import check_same_length

    for codes, keys in parts:
        check_same_length(first, codes)
        yield codes, keys
