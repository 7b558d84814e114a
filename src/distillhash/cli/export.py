"""Write codes as a file that another engine loads, or a model as a folder for the Hugging Face hub.

distillhash export --codes codes.parquet --to faiss
distillhash export --codes codes.parquet --to pgvector --name photos --out photos.sql
distillhash export --model model --to hub --out folder --license apache-2.0
"""

import argparse
import json
from pathlib import Path
from typing import Any

from distillhash.cli.common import say

FORMAT_NAMES = ("parquet", "npy", "faiss", "faiss-hnsw", "milvus", "pgvector", "opensearch", "elasticsearch", "vespa")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    add = parser.add_argument
    add("--codes", metavar="FILE", help="codes.npz or codes.parquet from encode")
    add("--model", metavar="DIR", help="model folder written by train, for --to hub")
    add("--to", required=True, choices=(*FORMAT_NAMES, "hub"), help="see docs/export.md, and for hub docs/hub.md")
    add("--out", metavar="FILE", help="default: beside the codes, named after them and the format")
    add("--name", metavar="NAME", help="of the table, collection or index, where the file has one (default: codes)")
    add("--license", metavar="ID", help="with --to hub: the licence of the model, such as apache-2.0")
    add(
        "--measures",
        metavar="FILE",
        help="with --to hub: what `distillhash evaluate --json` printed, for the model card",
    )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Read, write, list what was written."""
    from distillhash.codes import Codes
    from distillhash.errors import ParameterError
    from distillhash.export import FORMATS, export_codes

    to_hub = arguments.to == "hub"
    for option in ("codes", "name") if to_hub else ("model", "license", "measures"):
        if getattr(arguments, option) is not None:
            raise ParameterError(f"--to {arguments.to} takes no --{option}; leave it out")
    if to_hub:
        return _to_hub(arguments)
    if arguments.codes is None:
        raise ParameterError(f"--to {arguments.to} needs --codes FILE, which encode writes")
    source = Path(arguments.codes)
    out = Path(arguments.out or source.with_suffix(FORMATS[arguments.to].endings[0]))
    if out.resolve() == source.resolve():
        raise ParameterError(f"--out {out} is the file the codes come from; choose another name")
    codes, keys = Codes.load(source)
    files = export_codes(codes, keys, arguments.to, out, name=arguments.name)
    say(arguments, f"{len(codes)} codes of {codes.n_bits} bits: {', '.join(map(str, files))}")
    return {"to": arguments.to, "files": [str(file) for file in files], "n_codes": len(codes), "n_bits": codes.n_bits}


def _to_hub(arguments: argparse.Namespace) -> dict[str, Any]:
    """Write a folder for the hub."""
    from distillhash.errors import DataError, ParameterError
    from distillhash.files import read_file
    from distillhash.models import load_model

    if arguments.model is None or arguments.out is None:
        raise ParameterError("--to hub needs --model DIR, which train writes, and --out FOLDER")
    measures = None
    if arguments.measures:
        try:
            found = json.loads(read_file(arguments.measures, limit=2**20))
            measures = {name: value for name, value in found.items() if type(value) in (int, float)}
        except (OSError, ValueError, RecursionError, AttributeError) as error:
            raise DataError(
                f"{arguments.measures} is not what `distillhash evaluate --json` printed ({error})"
            ) from error
    model = load_model(arguments.model)
    model.save_pretrained(arguments.out, license=arguments.license, measures=measures)
    say(
        arguments,
        f"{model.hasher.method}, {model.n_bits} bits: {arguments.out}   upload: hf upload OWNER/NAME {arguments.out}",
    )
    return {"to": "hub", "folder": arguments.out, "fingerprint": model.fingerprint, "n_bits": model.n_bits}
