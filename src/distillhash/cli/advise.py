"""Measure how many bytes a vector needs to keep its nearest neighbours, on your own data and without labels.

distillhash advise embeddings.npy --recall .9
distillhash advise embeddings.npy --bytes 16 --out advice
distillhash advise photos/ --max-images 5000 --out advice
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from distillhash.cli.common import (
    SOURCE_HELP,
    add_backbone_options,
    add_reading_options,
    backbone_name,
    chosen_columns,
    command_line,
    integers,
    make_sized_backbone,
    open_argument,
    open_cache,
    refuse_skipped,
    say,
)
from distillhash.errors import DataError, ParameterError


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    add = parser.add_argument
    add("source", metavar="SOURCE", help=SOURCE_HELP)
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--recall", type=float, help="the share of the 10 nearest that must be found (default: 0.9)")
    target.add_argument("--bytes", type=int, metavar="N", help="what a vector may take, instead")
    add("--out", metavar="DIR", help="folder for report.html, table.md and table.json")
    add("--seeds", default="0", help="of the split and the methods, separated by commas; means over them (default: 0)")
    add("--max-images", type=int, default=50_000, metavar="N", help="use at most N items (default: 50000)")
    add_backbone_options(parser)
    add_reading_options(parser)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure, advise, and write the report where ``--out`` says."""
    recall, n_bytes, seeds = arguments.recall, arguments.bytes, integers("--seeds", arguments.seeds)
    if recall is None and n_bytes is None:
        recall = 0.9
    if recall is not None and not 0 < recall <= 1:
        raise ParameterError(f"--recall must be above 0 and at most 1, got {recall:g}")
    if n_bytes is not None and n_bytes < 1:
        raise ParameterError(f"--bytes must be at least 1, got {n_bytes}")
    if min(seeds) < 0:
        raise ParameterError(f"--seeds must be at least 0, got {min(seeds)}")
    if arguments.max_images < 1:
        raise ParameterError(f"--max-images must be at least 1, got {arguments.max_images}")
    import numpy as np

    from distillhash.backbones import extract_features
    from distillhash.bench import advice, report
    from distillhash.methods.base import check_features, sample_rows
    from distillhash.methods.registry import method_class
    from distillhash.sources import EmbeddingSource

    if arguments.out is not None:  # where it cannot be made, this fails now and not after minutes
        Path(arguments.out).mkdir(parents=True, exist_ok=True)
    source = open_argument(arguments, arguments.source)
    name, progress = backbone_name(arguments, source), not arguments.quiet
    if isinstance(source, EmbeddingSource) != (name == "embeddings"):
        kind = "embeddings" if isinstance(source, EmbeddingSource) else "images"
        raise DataError(f"{source.name} holds {kind}, which --backbone {name} does not take; leave it out")
    chosen = sample_rows(len(source), arguments.max_images, np.random.default_rng(seeds[0]))
    sample = source if len(chosen) == len(source) else source.select(chosen)
    table = extract_features(
        sample,
        make_sized_backbone(arguments, sample),
        cache=open_cache(arguments),
        progress=progress,
        max_pixels=arguments.max_pixels,
    )
    refuse_skipped(arguments, table.skipped)
    if table.skipped:
        first = table.skipped[0]
        say(arguments, f"{len(table.skipped)} items could not be used (first: {first.key}: {first.reason})")
    features = check_features(table.features)
    tables, notes = [], list[str]()
    for seed in seeds:
        parts = advice.split(features, seed)
        cells, more = advice.measure(parts, seed=seed, progress=progress)
        tables.append(cells)
        notes += more
    cells, notes, sizes = advice.mean_of(tables), list(dict.fromkeys(notes)), parts.sizes()
    found = advice.advise(cells, recall=recall, n_bytes=n_bytes, n_items=sizes["n_database"])
    given = {"--backbone": arguments.backbone, "--image-size": arguments.image_size, "--weights": arguments.weights}
    if not isinstance(source, EmbeddingSource) and method_class(found.cell.method).uses_views:
        given["--views"] = 0  # as it was measured
    columns = {f"--{name.replace('_', '-')}": value for name, value in chosen_columns(arguments).items()}
    settings = [word for pair in arguments.backbone_set for word in ("--backbone-set", pair)]
    steps = advice.commands(found.cell, [arguments.source, *_words(columns)], [*_words(given), *settings])
    say(arguments, *_lines(cells), *notes, "", f"{found.sentence} {found.others}", *(f"    {step}" for step in steps))
    summary: dict[str, Any] = {
        "advice": found.sentence,
        "others": found.others,
        "choice": found.cell.record(),
        "commands": steps,
    }
    summary |= {**sizes, "seeds": seeds, "notes": notes, "cells": [cell.record() for cell in cells]}
    summary["n_skipped"] = len(table.skipped)
    if arguments.out is not None:
        out = Path(arguments.out)
        context: dict[str, Any] = {"source": source.name, "sizes": sizes, "seeds": seeds, "notes": notes}
        report.write_advice(out, cells, found, **context, steps=steps, command=command_line(arguments))
        say(arguments, f"report: {out / 'report.html'}")
        summary["report"] = str(out / "report.html")
    return summary


def _words(options: dict[str, Any]) -> list[str]:
    """The options that were given, as words of a command line."""
    return [word for name, value in options.items() if value is not None for word in (name, str(value))]


def _lines(cells: list[Any]) -> list[str]:
    """The table for a terminal."""
    from distillhash.bench.advice import RERANK

    head = f"{'bytes':>6} {'recall@10':>9} {'recall@100':>10} {'fit, s':>7} {'encode, us':>10} {'search, ms':>10}"
    lines = [f"{'method, length, ranked by':<46} {head}"]
    for cell in cells:
        ranked = RERANK.get(cell.form, "Hamming distance")
        name = f"{cell.method}, {cell.n_bits} bits, {ranked}" if cell.n_bits else cell.name
        times = f"{cell.fit_seconds:>7.2f} {cell.encode_us:>10.1f} {cell.search_ms:>10.3f}"
        lines.append(f"{name:<46} {cell.n_bytes:>6} {cell.recalls[0]:>9.3f} {cell.recalls[1]:>10.3f} {times}")
    return lines
