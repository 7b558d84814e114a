"""Measure how well a model retrieves: by labels, by the nearest neighbours of the features, or by image-text pairs.

distillhash evaluate --model model --query digits:#test --database digits:#train
distillhash evaluate --model model --query cifar10:data#test --database cifar10:data#train --report eval.html
distillhash evaluate --model model --query new.npy --database embeddings.npy
distillhash evaluate --model crossmodal --query pairs.parquet#800: --database pairs.parquet#800:
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distillhash.cli.common import (
    SOURCE_HELP,
    add_reading_options,
    command_line,
    model_options,
    open_argument,
    open_pairs_argument,
    refuse_skipped,
    say,
)
from distillhash.errors import ParameterError

if TYPE_CHECKING:
    from distillhash.models import CrossModalModel, HashModel

SHOWN = (
    *("map", "map@1000", "map@5000", "precision@10", "precision@100", "recall@1000", "precision_radius2", "map_random"),
    *("neighbour_recall@10", "neighbour_recall@40", "neighbour_recall@100"),
)
SHOWN_OF_PAIRS = ("map", "hit@1", "hit@5", "hit@10", "ndcg@10")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    add = parser.add_argument
    add("--model", required=True, metavar="DIR", help="model folder written by train")
    add("--query", required=True, metavar="SOURCE", help=SOURCE_HELP)
    add("--database", required=True, metavar="SOURCE", help="as --query")
    add("--report", metavar="FILE", help="also write a self-contained HTML report")
    add("--caption-column", metavar="NAME", help="the column of texts in a table or CSV of image-text pairs")
    add_reading_options(parser)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Encode both sides and print the metrics."""
    from distillhash.models import CrossModalModel, load_model

    model = load_model(arguments.model, **model_options(arguments))
    found = _by_pairs(arguments, model) if isinstance(model, CrossModalModel) else _by_codes(arguments, model)
    return {**found, "method": model.hasher.method, "backbone": model.backbone_name}


def _by_codes(arguments: argparse.Namespace, model: HashModel) -> dict[str, Any]:
    from distillhash.bench.report import encode_source, shared_items, write_evaluation_report
    from distillhash.metrics import evaluate_codes

    if arguments.caption_column is not None:
        raise ParameterError("--caption-column is for models of images and texts; leave it out")
    specs, options = (arguments.query, arguments.database), {"max_pixels": arguments.max_pixels}
    query, database = (
        encode_source(model, open_argument(arguments, spec), progress=not arguments.quiet, **options) for spec in specs
    )
    skipped = [*query.skipped, *database.skipped]
    refuse_skipped(arguments, skipped)
    labels: Any = query.labels, database.labels
    without = [side.source.name for side in (query, database) if side.labels is None]
    if without:
        labels = None, None
        say(arguments, f"{without[0]} carries no labels: only the recall of neighbours is measured")
    same_items = shared_items(*specs, query, database)
    features: dict[str, Any] = {"query_features": query.features, "database_features": database.features}
    if not without and len(database.codes) == 1:  # perhaps the query itself: there is nothing to rank
        features = {}
    metrics = evaluate_codes(query.codes, database.codes, *labels, **features, same_items=same_items)
    sizes = f"{len(query.codes)} queries, {len(database.codes)} in the database"
    say(arguments, f"{model.hasher.method}, {model.n_bits} bits: {sizes}")
    for name in filter(metrics.__contains__, SHOWN):
        say(arguments, f"  {name:<20} {metrics[name]:.4f}")
    summary = {**metrics, "n_skipped": len(skipped)}
    if arguments.report:
        shown: dict[str, Any] = {"command": command_line(arguments), "same_items": same_items}
        write_evaluation_report(Path(arguments.report), model, query, database, metrics, **shown)
        say(arguments, f"report: {arguments.report}")
        summary["report"] = arguments.report
    return summary


def _by_pairs(arguments: argparse.Namespace, model: CrossModalModel) -> dict[str, Any]:
    from distillhash.bench.image_text import evaluate_model

    if arguments.report:
        raise ParameterError("--report is for models of images alone; leave it out")
    query = open_pairs_argument(arguments, arguments.query)
    same = arguments.database == arguments.query
    sources = query, query if same else open_pairs_argument(arguments, arguments.database)
    report = evaluate_model(model, *sources, progress=not arguments.quiet, max_pixels=arguments.max_pixels)
    skipped = report.pop("skipped")
    refuse_skipped(arguments, skipped)
    sizes = f"{report['n_images']} images, {report['n_texts']} texts"
    say(arguments, f"{model.hasher.method}, {model.n_bits} bits: {sizes}")
    for direction in ("image_to_text", "text_to_image"):
        for name, metrics in report[direction].items():
            numbers = "  ".join(f"{key} {metrics[key]:.4f}" for key in SHOWN_OF_PAIRS)
            say(arguments, f"  {direction.replace('_', ' '):<14} {name:<7} {numbers}")
    if skipped:
        first = skipped[0]
        say(arguments, f"{len(skipped)} items could not be used (first: {first.key}: {first.reason}); --json lists all")
    left_out = [{"key": item.key, "reason": item.reason} for item in skipped]
    return {**report, "n_skipped": len(skipped), "skipped": left_out}
