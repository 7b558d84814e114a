"""Write codes as a file that another engine loads.

distillhash export --codes codes.parquet --to faiss
distillhash export --codes codes.parquet --to pgvector --name photos --out photos.sql
"""

import argparse
from pathlib import Path
from typing import Any

from distillhash.cli.common import say

FORMAT_NAMES = ("parquet", "npy", "faiss", "faiss-hnsw", "milvus", "pgvector", "opensearch", "elasticsearch", "vespa")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    add = parser.add_argument
    add("--codes", required=True, metavar="FILE", help="codes.npz or codes.parquet from encode")
    add("--to", required=True, choices=FORMAT_NAMES, help="the engine or format; see docs/export.md")
    add("--out", metavar="FILE", help="default: beside the codes, named after them and the format")
    add("--name", metavar="NAME", help="of the table, collection or index, where the file has one (default: codes)")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Read, write, list what was written."""
    from distillhash.codes import Codes
    from distillhash.errors import ParameterError
    from distillhash.export import FORMATS, export_codes

    source = Path(arguments.codes)
    out = Path(arguments.out or source.with_suffix(FORMATS[arguments.to].endings[0]))
    if out.resolve() == source.resolve():
        raise ParameterError(f"--out {out} is the file the codes come from; choose another name")
    codes, keys = Codes.load(source)
    files = export_codes(codes, keys, arguments.to, out, name=arguments.name)
    say(arguments, f"{len(codes)} codes of {codes.n_bits} bits: {', '.join(map(str, files))}")
    return {"to": arguments.to, "files": [str(file) for file in files], "n_codes": len(codes), "n_bits": codes.n_bits}
