"""``distillhash bench``: methods compared under one protocol."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from distillhash.cli.common import SOURCE_HELP, add_verb, command_line, parse_settings, say
from distillhash.errors import ParameterError


def add_parser(subparsers: Any) -> None:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "bench",
        "compare methods under one protocol",
        [
            "distillhash bench --data cifar10:data --protocol cifar10-distillhash --methods itq,distillhash --bits 32 --out results/mine",
            "distillhash bench --data cifar10:data --protocol cifar10-distillhash --methods lsh --bits 16,32 --seeds 0,1 --out lsh",
        ],
        run,
    )
    parser.add_argument("--data", required=True, metavar="SOURCE", help=SOURCE_HELP)
    parser.add_argument("--protocol", required=True, help="see `distillhash ls protocols`")
    parser.add_argument("--methods", required=True, help="names, separated by commas")
    parser.add_argument("--bits", required=True, help="code lengths, separated by commas")
    parser.add_argument("--seeds", default="0,1,2", help="default: 0,1,2")
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="folder for table.md, table.json and provenance.json"
    )
    parser.add_argument("--backbone", default="efficientnet-lite0", help="see `distillhash ls backbones`")
    parser.add_argument("--image-size", type=int, metavar="N", help="side in pixels images are resized to")
    parser.add_argument("--weights", metavar="FILE", help="weights for backbones that do not carry theirs")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"), help="default: auto")
    parser.add_argument(
        "--cache", metavar="DIR", help="where features are kept between runs (default: the user's cache)"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a hyper-parameter of the methods"
    )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the matrix and write the tables."""
    from distillhash.backbones import FeatureCache, make_backbone
    from distillhash.bench.protocol import load_protocol
    from distillhash.bench.run import Provenance, prepare, run_matrix, write_tables
    from distillhash.bench.versions import versions
    from distillhash.methods import make_hasher
    from distillhash.sources import open_source

    methods = arguments.methods.split(",")
    bits, seeds = integers("--bits", arguments.bits), integers("--seeds", arguments.seeds)
    settings = parse_settings(arguments.set)
    for method in methods:  # wrong names fail before hours of work, not after
        for n_bits in bits:
            make_hasher(method, n_bits, **settings)
    protocol = load_protocol(arguments.protocol)
    source = open_source(arguments.data)
    backbone = make_backbone(
        arguments.backbone, image_size=arguments.image_size, weights=arguments.weights, device=arguments.device
    )
    prepared = prepare(source, protocol, backbone, cache=FeatureCache(arguments.cache), progress=not arguments.quiet)

    def announce(record: dict[str, Any]) -> None:
        say(
            arguments,
            f"{record['method']:<20} {record['n_bits']:>4} bits  seed {record['seed']}  MAP {record['map']:.4f}  "
            f"fit {record['fit_seconds']:.1f} s",
        )

    records = run_matrix(prepared, methods, bits, seeds, settings=settings, on_record=announce)
    provenance = Provenance(
        command=command_line(arguments),
        protocol=protocol.name,
        split_sha256=prepared.split.checksum,
        source=source.name,
        backbone=prepared.backbone,
        seeds=seeds,
        versions=versions(),
        settings=settings,
    )
    out = Path(arguments.out)
    write_tables(out, records, protocol, provenance)
    say(arguments, f"tables: {out / 'table.md'}")
    return {"out": str(out), "n_records": len(records), "records": records}


def integers(option: str, text: str) -> list[int]:
    """Comma-separated integers of an option."""
    try:
        return [int(word) for word in text.split(",")]
    except ValueError as error:
        raise ParameterError(f"{option} takes integers separated by commas, got {text!r}") from error
