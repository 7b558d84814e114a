"""Options and small steps that several verbs share."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distillhash.errors import DataError, ParameterError
from distillhash.files import MAX_FILE_SIZE, write_atomic
from distillhash.output import escaped

if TYPE_CHECKING:
    from distillhash.backbones import Backbone, FeatureCache
    from distillhash.codes import Codes
    from distillhash.models import HashModel
    from distillhash.sources import Skipped, Source
    from distillhash.sources.pairs import PairSource

SOURCE_HELP = (
    "a folder of images, a list file, a .parquet image table, a .npy/.npz/.parquet of embeddings, tar shards, or digits:, "
    "cifar10:DIR, flickr25k:DIR, nuswide:DIR; append #train, #test or #a:b to select"
)
DEFAULT_BACKBONE = "efficientnet-lite2"
INDEX_HELP = "an index folder, postgresql://host/database?table=NAME or milvus://host:port/collection"


def add_device_options(parser: argparse.ArgumentParser, *, ray: bool = False) -> None:
    """What computes features; :func:`where` reads them."""
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"), help="default: auto")
    parser.add_argument(
        "--engine",
        default="auto",
        choices=("auto", "onnx", "torch", *(["ray"] if ray else [])),
        help="what runs the network on a CPU: ONNX Runtime or torch (default: auto, the faster one there is)"
        + ("; ray: the missing shards of --shard all/n as Ray tasks" if ray else ""),
    )


def add_compute_options(parser: argparse.ArgumentParser, *, ray: bool = False) -> None:
    """Where features are computed and kept."""
    add_device_options(parser, ray=ray)
    parser.add_argument("--cache", metavar="DIR", help="where features are kept (default: the user's cache)")
    parser.add_argument("--no-cache", action="store_true", help="keep no features")
    add_download_option(parser)


def add_download_option(parser: argparse.ArgumentParser) -> None:
    """Consent to what a model folder, perhaps somebody else's, names."""
    text = "fetch weights, or run a TorchScript file, that a model only names"
    parser.add_argument("--allow-download", action="store_true", help=text)


def add_reading_options(parser: argparse.ArgumentParser, *, columns: bool = True, ray: bool = False) -> None:
    """Options of every verb that reads a source: which items count, which ``columns`` of a table, and the compute options."""
    parser.add_argument("--strict", action="store_true", help="exit 1 if any item could not be used")
    parser.add_argument("--max-pixels", type=int, metavar="N", help="skip images with more pixels than this")
    parser.add_argument(
        "--max-file-size",
        type=_file_size,
        metavar="MIB",
        default=MAX_FILE_SIZE,
        help="skip files with more MiB than this, or write 64K, 1G (default: 256)",
    )
    if columns:
        add_column_options(parser)
    add_compute_options(parser, ray=ray)


def add_column_options(parser: argparse.ArgumentParser) -> None:
    """Options that choose columns of a table."""
    parser.add_argument("--image-column", metavar="NAME", help="column of images in a table (a.b: b in the struct a)")
    parser.add_argument("--embedding-column", metavar="NAME", help="the column of embeddings in a table or .npz")
    parser.add_argument("--label-column", metavar="NAME", help="the column of labels in a table or .npz")


def chosen_columns(arguments: argparse.Namespace) -> dict[str, Any]:
    """The columns that the options choose, as ``open_source`` takes them."""
    return {name: getattr(arguments, name, None) for name in ("image_column", "embedding_column", "label_column")}


def add_method_options(parser: argparse.ArgumentParser) -> None:
    """Options that choose a feature extractor, and ``--set``, which :func:`parse_settings` reads."""
    add_backbone_options(parser)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="hyper-parameter of a method")


def add_backbone_options(
    parser: argparse.ArgumentParser,
    *,
    default: str = f"{DEFAULT_BACKBONE}; below 64 pixels efficientnet-lite0",
    auto: str = "by the sizes of the images",
) -> None:
    """Options that choose a feature extractor; ``default`` and ``auto`` say what it is without them."""
    parser.add_argument("--backbone", help=f"see `distillhash ls backbones` (default for images: {default})")
    parser.add_argument(
        "--image-size",
        type=_image_size,
        metavar="N",
        help=f"side in pixels images are resized to, or auto: {auto} (default: auto)",
    )
    parser.add_argument("--weights", metavar="FILE", help="weights for backbones that do not carry theirs")
    parser.add_argument(
        "--backbone-set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="option of the backbone: precision; of files and hf: also mean, std, rescale_factor, channels, pool, layout, output",
    )


def backbone_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """How the feature extractor is made, as ``make_backbone`` takes it."""
    chosen = parse_settings(arguments.backbone_set, "--backbone-set")
    return {"image_size": arguments.image_size, "weights": arguments.weights, "options": chosen}


def _image_size(text: str) -> int | None:
    """A number of pixels, or None for ``auto``."""
    if not re.fullmatch(r"auto|\d+", text):
        raise argparse.ArgumentTypeError(f"must be auto or a number of pixels such as 224, got {text!r}")
    return None if text == "auto" else int(text)


def backbone_name(arguments: argparse.Namespace, source: Source) -> str:
    """The backbone asked for, else the default for the kind of source."""
    from distillhash.backbones.efficientnet_lite import SMALLEST
    from distillhash.sources import EmbeddingSource

    if arguments.backbone or isinstance(source, EmbeddingSource):
        return arguments.backbone or "embeddings"
    is_small = arguments.image_size is not None and arguments.image_size < SMALLEST[DEFAULT_BACKBONE]
    return "efficientnet-lite0" if is_small else DEFAULT_BACKBONE


def make_sized_backbone(arguments: argparse.Namespace, source: Source) -> Backbone:
    """The backbone that the options ask for, at the image size that they give or that suits the source."""
    from distillhash.backbones import make_backbone, sized_for

    name, options = backbone_name(arguments, source), backbone_options(arguments)
    backbone = make_backbone(name, device=arguments.device, engine=arguments.engine, **options)
    return backbone if arguments.image_size is not None else sized_for(backbone, source, quiet=arguments.quiet)


def open_argument(arguments: argparse.Namespace, spec: str | Sequence[str]) -> Source:
    """A source of the command line, opened as the reading options say."""
    from distillhash.index import is_address
    from distillhash.index.address import shown
    from distillhash.sources import open_source

    try:
        source = open_source(spec, max_file_size=arguments.max_file_size, **chosen_columns(arguments))
    except DataError as error:
        if not isinstance(spec, str) or not is_address(spec, damaged=True):
            raise
        what = f"{shown(spec)} looks like an index, which is no source of images or vectors"
        remedy = "`distillhash dedup NEW --reference INDEX` compares with an index"
        raise DataError(f"{what}; give {arguments.verb} what was indexed; {remedy}") from error
    arguments.opened = [*getattr(arguments, "opened", []), source]
    return source


def open_pairs_argument(arguments: argparse.Namespace, spec: str) -> PairSource:
    """A source of image-text pairs, opened as the reading options and ``--caption-column`` say."""
    from distillhash.sources.pairs import open_pairs

    limits = {"max_file_size": arguments.max_file_size}
    return open_pairs(spec, caption_column=arguments.caption_column, **limits, **chosen_columns(arguments))


def _file_size(text: str) -> int:
    """Bytes: a number of MiB, or a number with K, M or G."""
    match = re.fullmatch(r"(\d+)([KMG]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None or int(match[1]) < 1:
        raise argparse.ArgumentTypeError(f"must be a number of MiB such as 256, or 64K or 1G, got {text!r}")
    return int(match[1]) << {"K": 10, "M": 20, "": 20, "G": 30}[match[2].upper()]


def open_cache(arguments: argparse.Namespace) -> FeatureCache | None:
    """The feature cache that ``--cache`` and ``--no-cache`` ask for."""
    from distillhash.backbones import FeatureCache

    return None if arguments.no_cache else FeatureCache(arguments.cache)


def model_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """How a model folder is loaded, see :func:`distillhash.load_model`."""
    return {**where(arguments), "cache": open_cache(arguments), "allow_download": arguments.allow_download}


def where(arguments: argparse.Namespace) -> dict[str, Any]:
    """What runs the backbone, as models and indexes take it."""
    engine = "auto" if arguments.engine == "ray" else arguments.engine  # each of Ray's tasks takes the best there is
    return {"device": arguments.device, "engine": engine}


def say(arguments: argparse.Namespace, *lines: str) -> None:
    """Lines for people, on stderr; names in them are escaped."""
    if not arguments.quiet:
        sys.stderr.writelines(f"{escaped(line)}\n" for line in lines)


def command_line(arguments: argparse.Namespace) -> str:
    """The command as it was typed, for provenance."""
    return escaped(shlex.join(["distillhash", *arguments.words]))


def integers(option: str, text: str) -> list[int]:
    """Comma-separated integers of an option."""
    try:
        return [int(word) for word in text.split(",")]
    except ValueError as error:
        raise ParameterError(f"{option} takes integers separated by commas, got {text!r}") from error


def parse_settings(pairs: Sequence[str], option: str = "--set") -> dict[str, Any]:
    """``name=value`` words of ``--set`` or another option; a value is JSON where it can be, else text."""
    settings: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        name = name.replace("-", "_")
        if not equals or not name:
            raise ParameterError(f"{option} takes name=value, got {pair!r}")
        if option == "--set" and name in ("method", "n_bits", "seed"):
            raise ParameterError(f"--set takes hyper-parameters, got {pair!r}; method, bits and seed have own options")
        try:
            settings[name] = json.loads(text)
        except (ValueError, RecursionError):
            settings[name] = text
    return settings


def refuse_skipped(arguments: argparse.Namespace, skipped: Sequence[Skipped]) -> None:
    """What ``--strict`` asks for where skipped items are not listed in a file."""
    if skipped and arguments.strict:
        raise DataError(f"{len(skipped)} items could not be used, first {skipped[0].key}: {skipped[0].reason}")


def found_damaged(arguments: argparse.Namespace) -> dict[str, str]:
    """Key and damage of items of the opened sources that are damaged and were used."""
    return {key: reason for source in getattr(arguments, "opened", []) for key, reason in source.damaged.items()}


def report_skipped(
    arguments: argparse.Namespace, skipped: Sequence[Skipped], path: Path, damaged: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Say which items were skipped, and which are damaged and were used; the keys that every summary carries.

    Skipped items are listed in ``path``, damaged ones (of the opened sources unless given) beside it, with ``damaged`` in its name; a list
    that would be empty is absent.
    """
    found = found_damaged(arguments) if damaged is None else damaged
    beside = path.with_name(path.name.replace("skipped", "damaged"))
    counts, text = _listed("damaged", sorted(found.items()), "are damaged and were used", beside)
    summary, more = _listed("skipped", [(item.key, item.reason) for item in skipped], "could not be used", path)
    say(arguments, *text)
    if more and arguments.strict:
        raise DataError(f"{more[0]}; --strict makes that an error")
    say(arguments, *more)
    return summary | counts


def _listed(kind: str, items: Sequence[tuple[str, str]], what: str, path: Path) -> tuple[dict[str, Any], list[str]]:
    """Write the list; keys of the summary, and what to say of it."""
    if not items:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        return {f"n_{kind}": 0}, []
    text = f"{len(items)} items {what} (first: {items[0][0]}: {items[0][1]})"
    listed = json.dumps([{"key": key, "reason": reason} for key, reason in items], indent=1) + "\n"
    try:
        write_atomic(path, listed.encode())
    except OSError as error:  # the list is a service, not the job
        return {f"n_{kind}": len(items)}, [f"{text}; they cannot be listed in {path} ({error.strerror})"]
    return {f"n_{kind}": len(items), kind: str(path)}, [f"{text}; all are listed in {path}"]


def code_batches(
    arguments: argparse.Namespace, model: HashModel, source: Source, skipped: list[Skipped]
) -> Iterator[tuple[Codes, list[str]]]:
    """Codes and keys, in order; items without a code go to ``skipped``."""
    for batch in model.encode_batches(source, progress=not arguments.quiet, max_pixels=arguments.max_pixels):
        skipped += batch.skipped
        yield batch.codes, [source.keys[row] for row in batch.rows]
