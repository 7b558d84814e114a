"""``distillhash evaluate``: retrieval metrics of a model, by the labels a source carries."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distillhash.cli.common import SOURCE_HELP, add_reading_options, add_verb, command_line, open_cache, say
from distillhash.errors import DataError

if TYPE_CHECKING:
    from distillhash.bench.model_report import Side


def add_parser(subparsers: Any) -> None:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "evaluate",
        "measure how well a model retrieves, by the labels a source carries or, across modalities, by its pairs",
        [
            "distillhash evaluate --model model --query digits:#test --database digits:#train",
            "distillhash evaluate --model model --query cifar10:data#test --database cifar10:data#train --report eval.html",
            "distillhash evaluate --model crossmodal --query pairs.parquet#800: --database pairs.parquet#800:",
        ],
        run,
    )
    parser.add_argument("--model", required=True, metavar="DIR", help="model folder written by train")
    parser.add_argument("--query", required=True, metavar="SOURCE", help=SOURCE_HELP)
    parser.add_argument("--database", required=True, metavar="SOURCE", help="as --query")
    parser.add_argument("--report", metavar="FILE", help="also write a self-contained HTML report")
    add_reading_options(parser)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Encode both sides and print the metrics."""
    from distillhash.bench.model_report import encode_side, write_evaluation_report
    from distillhash.metrics.retrieval import evaluate_codes
    from distillhash.models import load_model

    model = load_model(arguments.model, device=arguments.device, cache=open_cache(arguments))
    from distillhash.models.image_text import CrossModalModel

    if isinstance(model, CrossModalModel):
        from distillhash.cli.evaluate_pairs import run_pairs

        return run_pairs(arguments, model)
    sides: list[Side] = []
    for role in ("query", "database"):
        side = encode_side(
            model, getattr(arguments, role), progress=not arguments.quiet, max_pixels=arguments.max_pixels
        )
        if side.labels is None:
            raise DataError(
                f"{side.source.name} carries no labels, which evaluation needs; give class sub-folders, a label column, or a "
                "list file with labels"
            )
        sides.append(side)
    skipped = [item for side in sides for item in side.skipped]
    if skipped and arguments.strict:
        raise DataError(f"{len(skipped)} items could not be used, first {skipped[0].key}: {skipped[0].reason}")
    query, database = sides
    assert query.labels is not None and database.labels is not None
    metrics = evaluate_codes(query.codes, database.codes, query.labels, database.labels)
    summary: dict[str, Any] = {**metrics, "method": model.hasher.method, "backbone": model.backbone_name}
    summary["n_skipped"] = len(skipped)
    say(
        arguments,
        f"{model.hasher.method}, {model.n_bits} bits: {len(query.codes)} queries, {len(database.codes)} in the database",
    )
    for name in ("map", "map@1000", "map@5000", "precision@100", "recall@1000", "precision_radius2", "map_random"):
        say(arguments, f"  {name:<18} {metrics[name]:.4f}")
    if arguments.report:
        path = write_evaluation_report(
            Path(arguments.report), model, query, database, metrics, command=command_line(arguments)
        )
        summary["report"] = str(path)
        say(arguments, f"report: {path}")
    return summary
