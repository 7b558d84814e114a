"""Learn a hash model from unlabelled images or embeddings.

distillhash train photos/ --bits 64 --out model
distillhash train embeddings.npy --bits 256 --preserve neighbours --out model
distillhash train photos/ --method distillhash --bits 64 --out model --set hidden=1024
distillhash train --pairs captions.csv --method ugach --bits 64 --out model
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distillhash.cli.common import (
    SOURCE_HELP,
    add_method_options,
    add_reading_options,
    backbone_name,
    backbone_options,
    command_line,
    open_argument,
    open_cache,
    open_pairs_argument,
    parse_settings,
    report_skipped,
    say,
    where,
)
from distillhash.errors import ParameterError

if TYPE_CHECKING:
    from distillhash.models import HashModel
    from distillhash.sources import Source

MAX_NOTES = 5


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    add = parser.add_argument
    add("source", metavar="SOURCE", help=SOURCE_HELP)
    add(
        "--pairs",
        action="store_true",
        help="SOURCE holds image-text pairs (see `distillhash ls pairs`); learn codes for both",
    )
    add(
        "--preserve",
        choices=("both", "neighbours", "classes"),
        help="what codes are to keep: the nearest neighbours of the features, the kinds of the items, or both (default: both)",
    )
    add(
        "--method",
        help="overrides --preserve; see `distillhash ls methods` (default: distillhash-nested; with --fine-tune: "
        "distillhash-contrast; with --pairs: cross-contrast)",
    )
    add("--text-encoder", metavar="NAME", help="with --pairs: see `distillhash ls text-encoders` (default: minilm)")
    add("--bits", type=int, default=64, help="code length (default: 64)")
    add("--out", required=True, metavar="DIR", help="model folder to write")
    add_method_options(parser)
    add("--seed", type=int, default=0, help="default: 0")
    add(
        "--views",
        type=int,
        metavar="N",
        help="augmented copies of each image to train on (default: 6 for the methods that use them, see `distillhash ls methods`; "
        "the default method uses none where the features hardly see the augmentation)",
    )
    add("--fine-tune", action="store_true", help="train the backbone as well (slow without an accelerator)")
    add("--max-images", type=int, default=50_000, metavar="N", help="learn from at most N (default: 50000)")
    add("--caption-column", metavar="NAME", help="with --pairs: the column of texts in a table or CSV")
    add_reading_options(parser)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train and write the model folder with its report."""
    from distillhash.bench.report import write_training_report

    model, source, images = _make_model(arguments)
    hasher = model.hasher
    started = time.perf_counter()
    limits = {"max_images": arguments.max_images, "max_pixels": arguments.max_pixels}
    progress = not arguments.quiet
    model.fit(source, n_views=arguments.views, fine_tune=arguments.fine_tune, progress=progress, **limits)
    seconds = time.perf_counter() - started
    out = Path(arguments.out)
    skipped = report_skipped(arguments, model.skipped_, out / "skipped.json")
    for note in list(dict.fromkeys(getattr(model, "notes_", [])))[:MAX_NOTES]:
        say(arguments, note)
    model.save(out)
    report = out / "report.html"
    write_training_report(report, model, images, command=command_line(arguments))
    if (share := model.training.get("views_recognised")) is not None:
        use = (
            f"{model.training['n_views']} views of each image are used"
            if model.training["n_views"]
            else "none are used"
        )
        say(arguments, f"the features recognise {share:.0%} of the augmented views: {use}")
    if chosen := hasher.history_.get("chosen"):
        say(arguments, _in_words(chosen, hasher.n_bits))
    trained = f"trained {hasher.method}, {hasher.n_bits} bits, on {model.training['n_used']} items in {seconds:.1f} s"
    say(arguments, trained, f"model: {out}   report: {report}")
    return {
        "model": str(out),
        "report": str(report),
        "method": hasher.method,
        "n_bits": hasher.n_bits,
        "backbone": model.backbone_name,
        "image_size": model.backbone.preprocessing().get("image_size"),
        "seed": hasher.seed,
        "fingerprint": model.fingerprint,
        "seconds": seconds,
        **model.training,
        **skipped,
        "loss": hasher.history_.get("loss"),
        "diagnosis": hasher.history_.get("diagnosis"),
        "chosen": hasher.history_.get("chosen"),
    }


def _in_words(chosen: dict[str, Any], n_bits: int) -> str:
    """What the default method chose from the features."""
    from distillhash.methods.distillhash_nested import SMALLEST

    parts = f"{chosen['class_bits']} class bits and {n_bits - chosen['class_bits']} neighbour bits"
    form = parts if chosen["class_bits"] else f"{n_bits} bits in one part"
    if not chosen["fine"] and chosen["neighbourhood"] <= SMALLEST:
        return f"too few items to tell their scale, so large kinds are assumed: {form}"
    scale = "small groups" if chosen["fine"] else "large kinds"
    return f"the items form {scale} (neighbourhoods of {chosen['neighbourhood']}): {form}"


def _make_model(arguments: argparse.Namespace) -> tuple[HashModel, Any, Source]:
    """The model to train, what it learns from, and the images (or vectors) among that."""
    from distillhash.backbones.base import choose_device
    from distillhash.methods import make_hasher, method_class, method_names
    from distillhash.methods.registry import DEFAULT_FINE_TUNING_METHOD, DEFAULT_IMAGE_TEXT_METHOD, DEFAULT_METHOD
    from distillhash.models import CrossModalModel, HashModel
    from distillhash.sources.pairs import PairSource
    from distillhash.texts import DEFAULT_TEXT_ENCODER

    pairs, encoder = arguments.pairs, arguments.text_encoder
    if encoder is not None and not pairs:
        raise ParameterError(f"--text-encoder {encoder} needs texts; add --pairs, or leave it out")
    default = DEFAULT_FINE_TUNING_METHOD if arguments.fine_tune else DEFAULT_METHOD
    method = arguments.method or (DEFAULT_IMAGE_TEXT_METHOD if pairs else default)
    if method_class(method).needs_texts and not pairs:
        raise ParameterError(f"{method} learns from image-text pairs; add --pairs")
    if pairs and not method_class(method).needs_texts:
        choices = ", ".join(method_names(image_text=True))
        raise ParameterError(f"{method} learns from images alone; leave out --pairs, or choose one of {choices}")
    settings = parse_settings(arguments.set)
    if method == DEFAULT_METHOD and arguments.preserve:
        settings.setdefault("preserve", arguments.preserve)
    if arguments.preserve and pairs:
        raise ParameterError(
            f"--preserve {arguments.preserve} is for images or embeddings alone; leave out --pairs or it"
        )
    if arguments.fine_tune and arguments.method is None and arguments.preserve in ("both", "neighbours"):
        raise ParameterError(
            f"--fine-tune trains {method}, which learns classes alone; leave out --preserve {arguments.preserve}, or --fine-tune"
        )
    if not pairs and method_class(method).fine_tunes and (arguments.device != "auto" or arguments.fine_tune):
        settings.setdefault("device", choose_device(arguments.device))
    hasher = make_hasher(method, arguments.bits, seed=arguments.seed, **settings)
    if arguments.caption_column is not None and not pairs:
        raise ParameterError(f"--caption-column {arguments.caption_column} needs texts; add --pairs, or leave it out")
    source = (open_pairs_argument if pairs else open_argument)(arguments, arguments.source)
    images = source.images if isinstance(source, PairSource) else source
    parts: dict[str, Any] = {"hasher": hasher, "cache": open_cache(arguments), **where(arguments)}
    made = backbone_options(arguments)
    parts |= {"backbone": backbone_name(arguments, images), "backbone_options": made.pop("options"), **made}
    if not isinstance(source, PairSource):
        return HashModel(**parts), source, source
    encoder = encoder or (DEFAULT_TEXT_ENCODER if isinstance(source.texts, list) else "embeddings")
    return CrossModalModel(text_encoder=encoder, **parts), source, images
