"""Compare methods under one protocol.

distillhash bench --data cifar10:data --protocol cifar10-distillhash --methods itq,distillhash --bits 32 --out results/mine
distillhash bench --data cifar10:data --protocol cifar10-distillhash --methods lsh --bits 16,32 --seeds 0,1 --out lsh
distillhash bench --data photos/ --protocol folder --methods ssdh,distillhash --bits 32 --fine-tune --out results/tuned
"""

import argparse
from pathlib import Path
from typing import Any

from distillhash.cli.common import (
    SOURCE_HELP,
    add_column_options,
    add_compute_options,
    add_method_options,
    chosen_columns,
    command_line,
    integers,
    make_sized_backbone,
    open_cache,
    parse_settings,
    say,
)
from distillhash.errors import ParameterError


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    add = parser.add_argument
    add("--data", required=True, metavar="SOURCE", help=SOURCE_HELP)
    add("--protocol", required=True, help="see `distillhash ls protocols`")
    add(
        "--methods",
        required=True,
        help="NAME or NAME:PRESET, separated by commas; all: every method that needs no labels, also as its paper has it",
    )
    add("--bits", required=True, help="code lengths, separated by commas")
    add("--seeds", default="0,1,2", help="default: 0,1,2")
    add("--out", required=True, metavar="DIR", help="for tables, figures, report.html; a stopped run goes on there")
    add_method_options(parser)
    add("--views", type=int, metavar="N", help="augmented views for the methods that use them (default: 6)")
    add(
        "--fine-tune",
        action="store_true",
        help="train the backbone with every method, from its pretrained weights (slow without an accelerator)",
    )
    add("--shrink", action="store_true", help="draw the protocol's proportions from a smaller copy of its data set")
    add_column_options(parser)
    add_compute_options(parser)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the matrix and write the tables."""
    from distillhash.bench.protocols import load_protocol
    from distillhash.bench.report import write_results
    from distillhash.bench.runs import Provenance, add_kept_runs, prepare, run_matrix, versions
    from distillhash.methods import make_hasher, method_class, method_names
    from distillhash.models.hash_model import DEFAULT_VIEWS
    from distillhash.sources import EmbeddingSource, open_source

    methods = arguments.methods.split(",")
    if "all" in methods:
        named = [(name, method_class(name)) for name in method_names()]
        every = [name for name, cls in named if not cls.needs_labels and (cls.fine_tunes or not arguments.fine_tune)]
        every += [f"{name}:paper" for name in every if "paper" in method_class(name).TABLE_NAMES]
        methods = [*every, *(method for method in methods if method not in ("all", *every))]
    bits, seeds = integers("--bits", arguments.bits), integers("--seeds", arguments.seeds)
    settings = parse_settings(arguments.set)
    if preset := settings.pop("preset", None):
        methods = [f"{method}:{preset}" for method in methods]
    for method in methods:  # wrong names fail before hours of work, not after
        for n_bits in bits:
            make_hasher(method, n_bits, **settings)
    fixed = [method for method in methods if not method_class(method).fine_tunes]
    if arguments.fine_tune and fixed:
        raise ParameterError(
            f"{', '.join(fixed)} cannot fine-tune a backbone; leave out --fine-tune, or {'it' if len(fixed) == 1 else 'them'}"
        )
    n_views = DEFAULT_VIEWS if arguments.views is None else arguments.views
    if n_views < 0:
        raise ParameterError(f"--views must be at least 0, got {n_views}")
    protocol = load_protocol(arguments.protocol)
    source = open_source(arguments.data, **chosen_columns(arguments))
    use_views = not isinstance(source, EmbeddingSource) and any(method_class(method).uses_views for method in methods)
    prepared = prepare(
        source,
        protocol,
        make_sized_backbone(arguments, source),
        cache=open_cache(arguments),
        n_views=n_views if use_views else 0,
        choose_views=arguments.views is None,
        teacher=any(method_class(method).uses_teacher for method in methods),
        shrink=arguments.shrink,
        fine_tune=arguments.fine_tune,
        progress=not arguments.quiet,
    )
    out, n_runs, runs = Path(arguments.out), len(methods) * len(bits) * len(seeds), []
    for number, (done, kept) in enumerate(run_matrix(prepared, methods, bits, seeds, settings, out / "runs"), start=1):
        record = done.record
        cell = f"{done.name:<30} {record['n_bits']:>4} bits  seed {record['seed']}"
        measured = "MAP {map:.4f}  neighbour recall@10 {neighbour_recall@10:.4f}  fit {fit_seconds:.1f} s"
        result = record["error"] if done.failed else measured.format(**record)
        say(arguments, f"[{number}/{n_runs}] {cell}  {result}{'  (kept from before)' if kept else ''}")
        runs.append(done)
    runs = add_kept_runs(runs, out / "runs", prepared, settings)
    provenance = Provenance(
        command=command_line(arguments),
        protocol=protocol.name,
        split_sha256=prepared.split.checksum,
        source=source.name,
        backbone=prepared.backbone,
        seeds=sorted({run.record["seed"] for run in runs}),
        versions=versions(),
        n_train=len(prepared.split.train),
        n_views=0 if prepared.views is None else len(prepared.views),
        teacher=prepared.teacher is not None,
        views_teach=prepared.views_teach,
        fine_tuned=any(run.fine_tuned for run in runs),
        settings=settings,
    )
    write_results(out, runs, protocol, provenance)
    say(arguments, f"tables: {out / 'table.md'}, page: {out / 'report.html'}")
    records, n_failed = [run.record for run in runs], sum(run.failed for run in runs)
    return {"out": str(out), "n_records": len(runs), "n_failed": n_failed, "records": records}
