"""Turn images or embeddings into codes.

distillhash encode photos/ --model model --out codes.parquet
distillhash encode cifar10:data#test --model model --out codes.npz
distillhash encode 'shards/{00000..00063}.tar' --model model --shard 17/64 --out codes/
distillhash encode photos/ --model model --shard all/64 --out codes/ --engine ray
"""

import argparse
import json
import os
import re
import socket
from collections.abc import Iterator, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distillhash.cli.common import (
    SOURCE_HELP,
    add_reading_options,
    chosen_columns,
    found_damaged,
    model_options,
    open_argument,
    refuse_skipped,
    report_skipped,
    say,
)
from distillhash.cli.merge import MOST_SHARDS, Digest, Shard, read_codes, read_shard
from distillhash.errors import DataError, DistillHashError, MissingDependencyError, ParameterError, first_line
from distillhash.files import MAX_FILE_SIZE
from distillhash.output import escaped

if TYPE_CHECKING:
    from distillhash.codes import Codes
    from distillhash.models import HashModel
    from distillhash.sources import Skipped, Source


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
    return _encode_shards(arguments, on_ray=on_ray)


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
        for codes, keys in _batches(arguments, model, source, skipped):
            n += len(keys)
            yield codes, keys
        summary.update(report_skipped(arguments, skipped, out.with_name(out.stem + ".skipped.json")))
        if not n:
            raise nothing_usable(arguments.source, skipped)

    n = write_codes(out, parts(), model.n_bits, model.hasher.class_bits, origin=origin_of(source))
    say(arguments, f"{n} codes of {model.n_bits} bits: {out}")
    return {"codes": str(out), "n_codes": n, "n_bits": model.n_bits, **summary}


def _batches(
    arguments: argparse.Namespace, model: "HashModel", source: "Source", skipped: "list[Skipped]"
) -> "Iterator[tuple[Codes, list[str]]]":
    """Codes and keys, in order; items without a code go to ``skipped``."""
    for batch in model.encode_batches(source, progress=not arguments.quiet, max_pixels=arguments.max_pixels):
        skipped += batch.skipped
        yield batch.codes, [source.keys[row] for row in batch.rows]


def _encode_shards(arguments: argparse.Namespace, *, on_ray: bool) -> dict[str, Any]:
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
        for codes, keys in _batches(arguments, model, part, skipped) if rows else ():
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
    run(argparse.Namespace(**options | {"quiet": True}))
    return str(ray.get_runtime_context().get_node_id())
