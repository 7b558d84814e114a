"""What ``distillhash evaluate`` does with a model of images and texts."""

from __future__ import annotations

import argparse
from typing import Any

from distillhash.bench.image_text import evaluate_model
from distillhash.cli.common import say
from distillhash.errors import DataError, ParameterError
from distillhash.models.image_text import CrossModalModel

_SHOWN = ("map", "hit@1", "hit@5", "hit@10", "ndcg@10")


def run_pairs(arguments: argparse.Namespace, model: CrossModalModel) -> dict[str, Any]:
    """Encode both sides of both sources and print the metrics of either direction."""
    if arguments.report:
        raise ParameterError("--report is for models of images alone; leave it out")
    report = evaluate_model(
        model,
        arguments.query,
        arguments.database,
        progress=not arguments.quiet,
        max_pixels=arguments.max_pixels,
    )
    skipped = report.pop("skipped")
    if skipped and arguments.strict:
        raise DataError(f"{len(skipped)} items could not be used, first {skipped[0].key}: {skipped[0].reason}")
    say(
        arguments, f"{model.hasher.method}, {model.n_bits} bits: {report['n_images']} images, {report['n_texts']} texts"
    )
    for direction in ("image_to_text", "text_to_image"):
        for name, metrics in report[direction].items():
            numbers = "  ".join(f"{key} {metrics[key]:.4f}" for key in _SHOWN)
            say(arguments, f"  {direction.replace('_', ' '):<14} {name:<7} {numbers}")
    if skipped:
        first = skipped[0]
        say(arguments, f"{len(skipped)} items could not be used (first: {first.key}: {first.reason}); --json lists all")
    left_out = [{"key": item.key, "reason": item.reason} for item in skipped]
    facts = {"method": model.hasher.method, "backbone": model.backbone_name}
    return {**report, **facts, "n_skipped": len(skipped), "skipped": left_out}
