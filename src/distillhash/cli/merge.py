"""Join the shards that encode --shard wrote into one file of codes.

distillhash merge shards/ --out codes.parquet
distillhash merge shards/ --out codes.npz --strict
"""

import argparse
import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distillhash.cli.common import report_skipped, say
from distillhash.errors import DataError, FormatError, ParameterError
from distillhash.output import escaped

if TYPE_CHECKING:
    from distillhash.codes import Codes

    Part = tuple[Codes, list[str]]

MOST_SHARDS = 100_000
_FIELD = "distillhash.shard"
_LISTED = 10  # missing shards that a message names


@dataclass(frozen=True)
class Shard:
    """What a shard says of itself, and what the others of its run say alike: all up to ``command``."""

    count: int  # shards of the source
    n_rows: int  # items of the source
    model: str  # fingerprint
    source: str  # digest of what the source is, of its keys, and of the options that decide what is skipped
    origin: str  # of the whole source, see distillhash.search.origin_of
    command: list[str]  # words that make it, without --shard and --out
    number: int = 0
    content: str = ""  # digest of the codes and keys
    skipped: list[list[str]] | None = None  # key and reason
    damaged: list[list[str]] | None = None  # of items that were used

    @property
    def rows(self) -> range:
        """The rows of the source that are this shard's: consecutive ones, as many as those of the others, give or take one."""
        return range(self.n_rows * self.number // self.count, self.n_rows * (self.number + 1) // self.count)

    def metadata(self) -> Mapping[str, str]:
        """What is kept in the file."""
        return {_FIELD: json.dumps(asdict(self))}

    def path(self, folder: Path) -> Path:
        """The file of this shard."""
        return folder / f"codes-{self.number:05}.parquet"

    def refuse_other(self, path: Path, other: "Shard") -> None:
        """A :class:`DataError` unless the shard ``other`` at ``path`` belongs to the same run."""
        alike = {"count": "number of shards", "model": "model (fingerprint)", "source": "source, or its options"}
        for field, what in alike.items():
            one, two = getattr(self, field), getattr(other, field)
            if one != two:
                raise DataError(
                    f"{path} is of another {what}: {two}, not {one} (it was made by `{other.line()}`); "
                    "delete it, or take another folder"
                )

    def line(self, *more: str) -> str:
        """The command that makes it, with ``more`` words."""
        return escaped(shlex.join(["distillhash", *self.command, *more]))


class Digest:
    """Digest of codes and keys, however they are batched."""

    def __init__(self) -> None:
        self._codes, self._keys = blake2b(digest_size=16), blake2b(digest_size=16)

    def add(self, codes: "Codes", keys: Sequence[str]) -> None:
        """Take in more of them."""
        self._codes.update(codes.packed.tobytes())
        self._keys.update(b"".join(key.encode("utf-8", "surrogatepass") + b"\0" for key in keys))

    def hex(self) -> str:
        """Both digests as text."""
        return self._codes.hexdigest() + self._keys.hexdigest()


def read_shard(path: Path) -> Shard:
    """What the shard at ``path`` says of itself; a :class:`FormatError` where it is damaged, or not the shard of its name."""
    from distillhash.sources.parquet import open_parquet

    try:
        with open_parquet(path) as table:
            stated = (table.metadata.metadata or {}).get(_FIELD.encode())
        if stated is None:
            raise ValueError("it says nothing of shards")
        shard = Shard(**json.loads(stated))
        integers = (shard.count, shard.n_rows, shard.number)
        texts = [shard.model, shard.source, shard.origin, shard.content, *shard.command]
        pairs = [*(shard.skipped or []), *(shard.damaged or [])]
        texts += [text for pair in pairs for text in pair]
        if {*map(type, integers)} != {int} or {*map(type, texts)} != {str} or any(len(pair) != 2 for pair in pairs):
            raise ValueError("facts of another kind")
        if (
            not (0 <= shard.number < shard.count <= MOST_SHARDS and shard.n_rows >= 0)
            or shard.path(path.parent) != path
        ):
            raise ValueError(f"it states shard {shard.number}/{shard.count}")
        return shard
    except (OSError, ValueError, TypeError, RecursionError, DataError) as error:
        raise _damaged(path, error) from error


def read_codes(path: Path, shard: Shard) -> "Part":
    """The codes and keys of a shard; a :class:`FormatError` unless all of them are there, as they were written."""
    from distillhash.codes import Codes

    codes, keys = Codes.load(path)
    digest = Digest()
    digest.add(codes, keys or [])
    if digest.hex() != shard.content or len(codes) + len(shard.skipped or []) != len(shard.rows):
        raise _damaged(path, ValueError("its content is not what was written"))
    return codes, keys or []


def _damaged(path: Path, error: Exception) -> FormatError:
    reason = getattr(error, "strerror", None) or str(error).partition("\n")[0][:200]
    return FormatError(
        f"{path} is not a whole shard ({reason}); delete it, and make it again with `distillhash encode`"
    )


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
    shards = _all_shards(folder)
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


def _all_shards(folder: Path) -> list[Shard]:
    """The facts of all shards of a run, in order; a :class:`DataError` where some are missing or belong to another run."""
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; give the one that `distillhash encode --shard i/n --out DIR` wrote to")
    paths = sorted(path for path in folder.iterdir() if re.fullmatch(r"codes-\d{5}\.parquet", path.name))
    if not paths:
        raise DataError(
            f"{folder} holds no shards; write some with `distillhash encode SOURCE --model DIR --shard i/n --out {folder}`"
        )
    shards = []
    for path in paths:
        shards.append(read_shard(path))
        shards[0].refuse_other(path, shards[-1])
    count = shards[0].count
    missing = sorted(set(range(count)).difference(shard.number for shard in shards))
    if missing:
        listed = ", ".join(map(str, missing[:_LISTED])) + " ..." * (len(missing) > _LISTED)
        line = shards[0].line("--shard", f"{missing[0]}/{count}", "--out", str(folder))
        raise DataError(
            f"{len(missing)} of {count} shards are missing in {folder} ({listed}); make the first by `{line}`, all by --shard all/{count}"
        )
    return shards


def _alike(first: "Codes", parts: "Iterable[Part]") -> "Iterator[Part]":
    """Codes and keys of shards, which are all of one length."""
    from distillhash.codes import check_same_length

    for codes, keys in parts:
        check_same_length(first, codes)
        yield codes, keys
