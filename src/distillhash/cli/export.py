"""Write codes as a file that another engine loads, or a model as an ONNX file.

distillhash export --codes codes.parquet --to faiss
distillhash export --codes codes.parquet --to pgvector --name photos --out photos.sql
distillhash export --model model --to onnx --out model.onnx
"""

import argparse
from pathlib import Path
from typing import Any

from distillhash.cli.common import SOURCE_HELP, say
from distillhash.errors import DataError, ParameterError

FORMAT_NAMES = ("parquet", "npy", "faiss", "faiss-hnsw", "milvus", "pgvector", "opensearch", "elasticsearch", "vespa")
_MOST_ROWS = 200  # of --data, on which codes are compared


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    add = parser.add_argument
    add("--codes", metavar="FILE", help="codes.npz or codes.parquet from encode")
    add("--model", metavar="DIR", help="model folder written by train, for --to onnx")
    add("--to", required=True, choices=(*FORMAT_NAMES, "onnx"), help="the engine or format; see docs/export.md")
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


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Read, write, list what was written."""
    wanted, others = ("--model", "--codes or --name") if arguments.to == "onnx" else ("--codes", "--model or --data")
    given = {"--model": arguments.model, "--codes": arguments.codes, "--name": arguments.name, "--data": arguments.data}
    if given[wanted] is None or any(given[option] is not None for option in others.split(" or ")):
        raise ParameterError(f"--to {arguments.to} takes {wanted}, and not {others}")
    if arguments.int8 and arguments.data is None:
        raise ParameterError("--int8 needs --data SOURCE, images like those to encode; give at least 20, better 200")
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
    model, stored = load_model(folder, device="cpu"), read_model_files(folder)
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
