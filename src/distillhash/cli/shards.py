"""Shards of a run of ``encode``: one file each, which says what it is part of; encoded here, or by Ray on many machines."""

import argparse
import json
import os
import re
import shlex
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distillhash.cli.common import (
    chosen_columns,
    code_batches,
    found_damaged,
    model_options,
    open_argument,
    refuse_skipped,
    say,
)
from distillhash.errors import DataError, DistillHashError, FormatError, MissingDependencyError, first_line
from distillhash.files import MAX_FILE_SIZE
from distillhash.output import escaped

if TYPE_CHECKING:
    from distillhash.codes import Codes
    from distillhash.models import HashModel
    from distillhash.sources import Skipped, Source

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


def all_shards(folder: Path) -> list[Shard]:
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


def encode_shards(arguments: argparse.Namespace, *, on_ray: bool) -> dict[str, Any]:
    """The shards that are asked for and not there yet, each in a file of its own."""
    from distillhash.models import load_model

    number, count = arguments.shard
    folder = Path(arguments.out)
    model = load_model(arguments.model, **model_options(arguments))
    source = open_argument(arguments, arguments.source)
    run = _described(arguments, model, source, count)
    shards = [replace(run, number=one) for one in (range(count) if number is None else [number])]
    missing = [shard for shard in shards if not _is_there(folder, shard)]
    summary: dict[str, Any] = {"shards": str(folder), "n_written": len(missing), "n_there": len(shards) - len(missing)}
    if on_ray:
        summary["n_nodes"] = _run_on_ray(arguments, missing)
    else:
        for shard in missing:
            _encode_shard(arguments, model, source, shard)
    written = [read_shard(shard.path(folder)) for shard in shards]
    skipped = [pair for shard in written for pair in shard.skipped or []]
    summary["n_skipped"], summary["n_damaged"] = len(skipped), sum(len(shard.damaged or []) for shard in written)
    summary["n_codes"] = sum(len(shard.rows) for shard in shards) - len(skipped)
    if skipped:
        say(
            arguments,
            f"{len(skipped)} items could not be used (first: {skipped[0][0]}: {skipped[0][1]}); merge lists them",
        )
    done = f"{summary['n_codes']} codes of {model.n_bits} bits in {len(shards)} of {count} shards"
    say(arguments, f"{done} ({summary['n_there']} were there): {folder}")
    return summary | {"n_bits": model.n_bits}


def _described(arguments: argparse.Namespace, model: "HashModel", source: "Source", count: int) -> Shard:
    """What all shards of a run say of themselves."""
    from distillhash.search import origin_of
    from distillhash.sources import EmbeddingSource
    from distillhash.sources.base import RowKeys
    from distillhash.sources.registry import split_selections

    options = {f"--{name.replace('_', '-')}": column for name, column in chosen_columns(arguments).items()}
    options["--max-pixels"] = arguments.max_pixels
    if arguments.max_file_size != MAX_FILE_SIZE:
        options["--max-file-size"] = f"{arguments.max_file_size >> 10}K"
    options = {option: str(value) for option, value in options.items() if value is not None}
    origin = origin_of(source)
    facts = [origin, split_selections(source.name)[1], len(source), sorted(options.items())]
    digest = blake2b(json.dumps(facts).encode(), digest_size=16)
    keys: Sequence[str] = source.keys
    if isinstance(keys, RowKeys):
        keys = [keys[0], keys[-1]]  # the others follow from the facts
    for key in keys:
        digest.update(key.encode("utf-8", "surrogatepass") + b"\0")
    if isinstance(source, EmbeddingSource):
        digest.update(repr((source.vectors.shape, source.vectors[[0, -1]].tolist())).encode())
    words = ["encode", arguments.source, "--model", arguments.model]
    words += [word for option in options.items() for word in option]
    return Shard(count, len(source), str(model.fingerprint), digest.hexdigest(), origin, words)


def _is_there(folder: Path, shard: Shard) -> bool:
    """Whether a shard was written; an error where the file is damaged or of another run."""
    path = shard.path(folder)
    if not path.exists():
        return False
    found = read_shard(path)
    shard.refuse_other(path, found)
    read_codes(path, found)
    return True


def _encode_shard(arguments: argparse.Namespace, model: "HashModel", source: "Source", shard: Shard) -> None:
    """Write one shard, which appears whole or not at all."""
    import numpy as np

    from distillhash.codes import codes_table

    rows = shard.rows
    part = source.select(np.arange(rows.start, rows.stop))
    skipped: list[Skipped] = []
    digest = Digest()
    origin = json.dumps(json.loads(shard.origin) | {"is_part": True})
    path = shard.path(Path(arguments.out))
    with codes_table(path, model.n_bits, model.hasher.class_bits, origin=origin) as table:
        for codes, keys in code_batches(arguments, model, part, skipped) if rows else ():
            digest.add(codes, keys)
            table.add(codes, keys)
        refuse_skipped(arguments, skipped)
        own = set(part.keys)
        damaged = sorted([key, reason] for key, reason in found_damaged(arguments).items() if key in own)
        unused = [[item.key, item.reason] for item in skipped]
        table.describe(replace(shard, content=digest.hex(), skipped=unused, damaged=damaged).metadata())


def _run_on_ray(arguments: argparse.Namespace, shards: Sequence[Shard]) -> int:
    """Encode shards as Ray tasks, one processor each, and again where a worker or its node dies; the number of nodes that took part.

    Ray moves no data: tasks read the source and write their shard themselves, in folders that all nodes see at the same place.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingDependencyError("--engine ray needs Ray; pip install 'distillhash[ray]'") from error
    from distillhash.output import Progress

    if not shards:
        return 0
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        if place := re.fullmatch(r"(?:ray://)?([^:/]+):([0-9]{1,5})", os.environ.get("RAY_ADDRESS", "")):
            socket.create_connection((place[1], int(place[2])), 10).close()  # Ray itself tries for minutes
        ray.init(ignore_reinit_error=True, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    except (OSError, OverflowError, RuntimeError, ValueError) as error:
        where = os.environ.get("RAY_ADDRESS", "")
        raise DistillHashError(
            f"Ray cannot be started or reached ({first_line(error)}); RAY_ADDRESS is {where!r}, start a node with `ray start`"
        ) from error
    if ray.cluster_resources().get("CPU", 0) < 1:
        raise DataError("the Ray cluster has no processor for a task; start its nodes with --num-cpus 1 or more")
    task = ray.remote(num_cpus=1, num_gpus=int(arguments.device == "cuda"), max_retries=5)(_ray_task)
    options = {name: value for name, value in vars(arguments).items() if name not in ("run", "opened")}
    waiting = {task.remote(options | {"shard": (shard.number, shard.count)}, os.getcwd()): shard for shard in shards}  # noqa: PTH109
    nodes: set[str] = set()
    failed: list[str] = []
    with Progress("shards", len(shards), unit="shards", quiet=arguments.quiet) as shown:
        while waiting:
            done, _ = ray.wait(list(waiting))
            shard = waiting.pop(done[0])
            try:
                nodes.add(ray.get(done[0]))
            except ray.exceptions.RayError as error:
                failed.append(f"shard {shard.number}: {first_line(getattr(error, 'cause', None) or error)}")
            shown.advance(1)
    if failed:
        raise DistillHashError(
            f"{len(failed)} of {len(shards)} shards failed ({escaped(failed[0])}); run again to make those alone"
        )
    return len(nodes)


def _ray_task(options: dict[str, Any], folder: str) -> str:
    """Encode one shard on whatever node this is; returns the node."""
    import ray

    try:
        os.chdir(folder)  # relative names are those of the caller
    except OSError as error:
        raise DataError(
            f"a Ray node does not see the folder {folder} ({error.strerror}); run where all nodes share one"
        ) from error
    os.environ["DISTILLHASH_CORES"] = "1"  # what a task asked for
    encode_shards(argparse.Namespace(**options | {"quiet": True}), on_ray=False)
    return str(ray.get_runtime_context().get_node_id())
