"""Write codes as a file that another engine loads, or a model as an ONNX file or a folder for the Hugging Face hub.

distillhash export --codes codes.parquet --to faiss
distillhash export --codes codes.parquet --to pgvector --name photos --out photos.sql
distillhash export --model model --to onnx --out model.onnx
distillhash export --model model --to hub --out folder --license apache-2.0
"""

import argparse
import json
from pathlib import Path
from typing import Any

from distillhash.cli.common import SOURCE_HELP, add_download_option, say
from distillhash.errors import DataError, ParameterError

FORMAT_NAMES = ("parquet", "npy", "faiss", "faiss-hnsw", "milvus", "pgvector", "opensearch", "elasticsearch", "vespa")
# What an export of a model needs, and may have.
_OF_MODELS = {"onnx": ("model", "data", "int8"), "hub": ("model", "license", "measures")}
_MOST_ROWS = 200  # of --data, on which codes are compared


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    add = parser.add_argument
    add("--codes", metavar="FILE", help="codes.npz or codes.parquet from encode")
    add("--model", metavar="DIR", help="model folder written by train, for --to onnx and --to hub")
    formats = (*FORMAT_NAMES, *_OF_MODELS)
    add(
        "--to",
        required=True,
        choices=formats,
        help="the engine or format; see docs/export.md, docs/onnx.md, docs/hub.md",
    )
    add("--out", metavar="FILE", help="default: beside the codes or the model, named after them and the format")
    add("--name", metavar="NAME", help="of the table, collection or index, where the file has one (default: codes)")
    add(
        "--data",
        metavar="SOURCE",
        help=f"on which codes of --to onnx are compared (default: drawn rows): {SOURCE_HELP}",
    )
    add(
        "--int8",
        action="store_true",
        help="of --to onnx: faster, with other codes and a fingerprint of its own; needs --data",
    )
    add("--license", metavar="ID", help="with --to hub: the licence of the model, such as apache-2.0")
    add("--measures", metavar="FILE", help="with --to hub: for its card, what `distillhash evaluate --json` printed")
    add_download_option(parser)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Read, write, list what was written."""
    needed, *others = _OF_MODELS.get(arguments.to, ("codes", "name"))
    for option in ("codes", "name", "model", "data", "int8", "license", "measures"):
        if option not in (needed, *others) and getattr(arguments, option):
            raise ParameterError(f"--to {arguments.to} takes no --{option}; leave it out")
    if getattr(arguments, needed) is None:
        raise ParameterError(f"--to {arguments.to} needs --{needed}")
    if arguments.int8 and arguments.data is None:
        raise ParameterError("--int8 needs --data SOURCE, images like those to encode; give at least 20, better 200")
    if arguments.to == "hub":
        return _export_to_hub(arguments)
    return _export_model(arguments) if arguments.to == "onnx" else _export_codes(arguments)


def _export_codes(arguments: argparse.Namespace) -> dict[str, Any]:
    from distillhash.codes import Codes
    from distillhash.export import FORMATS, export_codes

    source = Path(arguments.codes)
    out = Path(arguments.out or source.with_suffix(FORMATS[arguments.to].endings[0]))
    if out.resolve() == source.resolve():
        raise ParameterError(f"--out {out} is the file the codes come from; choose another name")
    codes, keys = Codes.load(source)
    files = export_codes(codes, keys, arguments.to, out, name=arguments.name)
    say(arguments, f"{len(codes)} codes of {codes.n_bits} bits: {', '.join(map(str, files))}")
    return {"to": arguments.to, "files": [str(file) for file in files], "n_codes": len(codes), "n_bits": codes.n_bits}


def _export_model(arguments: argparse.Namespace) -> dict[str, Any]:
    from distillhash.methods.base import read_model_files
    from distillhash.models import load_model, stored_fingerprint
    from distillhash.models.onnx import write_onnx

    folder = Path(arguments.model)
    out = Path(arguments.out or folder.with_name(f"{folder.resolve().name}.onnx"))
    model = load_model(folder, device="cpu", allow_download=arguments.allow_download)
    stored = read_model_files(folder)
    rows = None if arguments.data is None else _rows(model, arguments.data)
    n_bits, n_different = write_onnx(model, stored, out, rows, int8=arguments.int8)
    text = f"{n_different} of {n_bits} bits differ from those of encode, on {n_bits // model.n_bits} rows"
    fingerprint = stored_fingerprint(out)
    say(arguments, f"{model.hasher.method}, {model.n_bits} bits: {out}; {text}")
    return {
        "to": "onnx",
        "files": [str(out)],
        "n_bits": model.n_bits,
        "fingerprint": fingerprint,
        "n_compared": n_bits,
        "n_different": n_different,
    }


def _rows(model: Any, spec: str) -> Any:
    """The first images, decoded for the model, or vectors of a source."""
    import numpy as np

    from distillhash.sources import BadItemError, EmbeddingSource, ImageSource, decode_resized, open_source

    source = open_source(spec)
    if isinstance(source, EmbeddingSource) != (model.backbone_name == "embeddings"):
        raise DataError(f"--data {spec} is not of the kind that the model takes ({model.backbone_name}); give another")
    if isinstance(source, EmbeddingSource):
        return np.array(source.vectors[:_MOST_ROWS], np.float32)
    assert isinstance(source, ImageSource)
    images: list[Any] = []
    for row in range(len(source)):
        try:
            images.append(decode_resized(source.read(row), model.backbone.image_size))
        except BadItemError:
            continue
        if len(images) == _MOST_ROWS:
            break
    if not images:
        raise DataError(f"no image of --data {spec} can be read; give another")
    return np.stack(images)


def _export_to_hub(arguments: argparse.Namespace) -> dict[str, Any]:
    from distillhash.files import read_file
    from distillhash.models import load_model

    folder = Path(arguments.model)
    out = Path(arguments.out or folder.with_name(f"{folder.resolve().name}.hub"))
    measures = None
    if arguments.measures:
        try:
            found = json.loads(read_file(arguments.measures, limit=2**20))
            measures = {name: value for name, value in found.items() if type(value) in (int, float)}
        except (OSError, ValueError, RecursionError, AttributeError) as error:
            raise DataError(
                f"{arguments.measures} is not what `distillhash evaluate --json` printed ({error})"
            ) from error
    model = load_model(folder, allow_download=arguments.allow_download)
    model.save_pretrained(out, license=arguments.license, measures=measures)
    say(
        arguments,
        f"{model.hasher.method}, {model.n_bits} bits: {out}   upload: hf upload OWNER/NAME {out}",
    )
    return {"to": "hub", "folder": str(out), "fingerprint": model.fingerprint, "n_bits": model.n_bits}
