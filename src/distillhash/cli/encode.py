"""Turn images or embeddings into codes.

distillhash encode photos/ --model model --out codes.parquet
distillhash encode cifar10:data#test --model model --out codes.npz
"""

import argparse
from pathlib import Path
from typing import Any

from distillhash.cli.common import SOURCE_HELP, add_reading_options, model_options, open_argument, report_skipped, say


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    add = parser.add_argument
    add("source", metavar="SOURCE", help=SOURCE_HELP)
    add("--model", required=True, metavar="DIR", help="model folder written by train")
    add("--out", required=True, metavar="FILE", help="codes.npz or codes.parquet; one key and code per item")
    add_reading_options(parser)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Encode and write."""
    from distillhash.codes import Codes
    from distillhash.errors import ParameterError
    from distillhash.models import load_model
    from distillhash.search import origin_of
    from distillhash.sources.base import nothing_usable

    out = Path(arguments.out)
    if out.suffix not in (".npz", ".parquet"):
        raise ParameterError(f"--out must end in .npz or .parquet, got {arguments.out}")
    model = load_model(arguments.model, **model_options(arguments))
    source = open_argument(arguments, arguments.source)
    codes, keys, skipped = [], [], []
    for batch in model.encode_batches(source, progress=not arguments.quiet, max_pixels=arguments.max_pixels):
        codes.append(batch.codes)
        keys += [source.keys[row] for row in batch.rows]
        skipped += batch.skipped
    summary = report_skipped(arguments, skipped, out.with_name(out.stem + ".skipped.json"))
    if not keys:
        raise nothing_usable(arguments.source, skipped)
    out.parent.mkdir(parents=True, exist_ok=True)
    Codes.concatenate(codes, model.n_bits).save(out, keys=keys, origin=origin_of(source))
    say(arguments, f"{len(keys)} codes of {model.n_bits} bits: {out}")
    return {"codes": str(out), "n_codes": len(keys), "n_bits": model.n_bits, **summary}
