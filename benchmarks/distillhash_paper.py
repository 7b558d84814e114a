"""Every table and figure of the DistillHash paper by one command.

    python benchmarks/distillhash_paper.py cifar10:DIR --protocol cifar10-distillhash --out results/NAME

| the paper's | in OUT |
|---|---|
| Tables 1 and 2 | table.md, the printed numbers below each row |
| Figures 1-3 (a), (b); (c), (d) | figures/topn-16, topn-32; pr-16, pr-32, and of the other lengths |
| Figure 4 | figures/loss-distillhash..., by iteration |
| Figure 5 (a), (b) | figures/figure5-o, figure5-p, and figure5.json |

As in the paper, SSDH, DeepBit, SGH and both rows of DistillHash train VGG16 with the hash function; ``--frozen`` leaves the backbone as it
is for all. A stopped command goes on where it stopped. docs/protocols.md says what is the paper's and what is ours.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from distillhash.bench import figures
from distillhash.bench.protocols import load_protocol
from distillhash.bench.report import write_results
from distillhash.bench.runs import Prepared, Provenance, Run, prepare, run_matrix, versions
from distillhash.cli.common import (
    add_backbone_options,
    add_column_options,
    add_compute_options,
    chosen_columns,
    integers,
    make_sized_backbone,
    open_cache,
)
from distillhash.files import write_atomic
from distillhash.models.hash_model import DEFAULT_VIEWS
from distillhash.sources import ImageSource, open_source

IMAGES = 64_000
"""What DistillHash sees in training: Figure 4 has 1,000 iterations of 64 images."""
SWEEPS = {"n_neighbours": ("o", (2, 4, 8, 12, 16, 20)), "n_outputs": ("p", (16, 32, 48, 64, 96, 128))}
"""Figure 5: option -> its letter and values; the other is at the paper's."""


@dataclass(frozen=True)
class Part:
    """Rows of Table 1 that share their settings."""

    methods: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    fine_tune: bool = True


def parts(n_train: int) -> list[Part]:
    """All rows. Step size, momentum and batch of DistillHash are the paper's, those of SSDH its authors' release."""
    passes = {"fine_tune_rate": 1e-3, "fine_tune_epochs": max(1, round(IMAGES / n_train))}
    ssdh = {"batch_size": 24, "adam_eps": 1.0, "fine_tune_rate": 1e-3, "fine_tune_epochs": 10}
    return [
        Part(("lsh", "sh", "itq", "pcah", "dsh", "sph"), fine_tune=False),
        Part(("deepbit", "sgh")),
        Part(("ssdh:paper",), ssdh),
        Part(("distillhash:paper", "distillhash-initial:paper"), passes),
    ]


def run_parts(prepared: Prepared, chosen: list[Part], bits: list[int], seeds: list[int], folder: Path) -> Iterator[Run]:
    for part in chosen:
        given = prepared if part.fine_tune else replace(prepared, trainable=None)
        for run, kept in run_matrix(given, part.methods, bits, seeds, part.settings, folder):
            result = run.record.get("error") or f"MAP {run.record['map']:.4f}"
            cell = f"{run.name}, {run.record['n_bits']} bits, seed {run.record['seed']}"
            print(f"{cell}: {result}{' (kept)' if kept else ''}", flush=True)
            yield run


def figure5(prepared: Prepared, bits: list[int], seeds: list[int], out: Path, command: str) -> None:
    """MAP by o and by p, a curve a code length: mean over seeds, the band spans them."""
    part = Part(("distillhash:paper",), parts(len(prepared.split.train))[-1].settings)
    table: list[dict[str, Any]] = []
    for option, (letter, values) in SWEEPS.items():
        curves: dict[str, list[tuple[float, float, float, float]]] = {f"{n} bits": [] for n in bits}
        for value in values:
            swept = replace(part, settings=part.settings | {option: value})
            runs = [*run_parts(prepared, [swept], bits, seeds, out / "runs" / f"{letter}-{value}")]
            for n in bits:
                maps = [run.record["map"] for run in runs if run.record["n_bits"] == n and not run.failed]
                if maps:
                    curves[f"{n} bits"].append((value, float(np.mean(maps)), min(maps), max(maps)))
                    table.append({"option": letter, "value": value, "n_bits": n, "map": maps})
        drawing = figures.sensitivity({name: line for name, line in curves.items() if line}, letter)
        write_atomic(out / "figures" / f"figure5-{letter}.svg", drawing.svg_file())
        write_atomic(out / "figures" / f"figure5-{letter}.png", drawing.png())
    record = {"command": command, "settings": part.settings, "seeds": seeds, "cells": table}
    write_atomic(out / "figure5.json", (json.dumps(record, indent=1) + "\n").encode())


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--protocol", required=True)
    parser.add_argument("--bits", default="16,32,64,128")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", choices=("tables", "figure5"), help="Tables 1-2 and Figures 1-4, or Figure 5 alone")
    parser.add_argument("--frozen", action="store_true", help="train no backbone")
    parser.add_argument("--shrink", action="store_true", help="as in `distillhash bench`")
    add_backbone_options(parser)
    add_column_options(parser)
    add_compute_options(parser)
    parser.set_defaults(backbone="vgg16", quiet=False)
    return parser


def main(words: list[str]) -> None:
    arguments = make_parser().parse_args(words)
    bits, seeds = integers("--bits", arguments.bits), integers("--seeds", arguments.seeds)
    source = open_source(arguments.source, **chosen_columns(arguments))
    prepared = prepare(
        source,
        load_protocol(arguments.protocol),
        make_sized_backbone(arguments, source),
        cache=open_cache(arguments),
        n_views=DEFAULT_VIEWS if isinstance(source, ImageSource) and arguments.only != "figure5" else 0,
        choose_views=True,
        shrink=arguments.shrink,
        fine_tune=not arguments.frozen,
        progress=True,
    )
    chosen, out = parts(len(prepared.split.train)), arguments.out
    command = shlex.join(["python", "benchmarks/distillhash_paper.py", *words])
    if arguments.only != "figure5":
        runs = [*run_parts(prepared, chosen, bits, seeds, out / "runs")]
        provenance = Provenance(
            command=command,
            protocol=prepared.protocol.name,
            split_sha256=prepared.split.checksum,
            source=source.name,
            backbone=prepared.backbone,
            seeds=seeds,
            versions=versions(),
            n_train=len(prepared.split.train),
            n_views=0 if prepared.views is None else len(prepared.views),
            views_teach=prepared.views_teach,
            fine_tuned=not arguments.frozen,
            settings={"parts": [asdict(part) for part in chosen]},
        )
        write_results(out, runs, prepared.protocol, provenance)
    if arguments.only != "tables":
        figure5(prepared, bits, seeds, out, command)


if __name__ == "__main__":
    main(sys.argv[1:])
