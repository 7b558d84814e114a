"""Models: a feature extractor and a hasher, from images, vectors or sentences to codes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from distillhash.errors import FormatError
from distillhash.methods.base import read_model_folder
from distillhash.models.hash_model import Encoded, HashModel
from distillhash.models.image_text import CrossModalModel, PairFeatures

if TYPE_CHECKING:
    from distillhash.backbones import Engine, FeatureCache

__all__ = ["CrossModalModel", "Encoded", "HashModel", "PairFeatures", "load_model"]


def load_model(
    path: str | Path,
    *,
    device: str = "auto",
    engine: Engine = "auto",
    cache: FeatureCache | None = None,
    allow_download: bool = False,
) -> HashModel:
    """Read a model that :meth:`HashModel.save` wrote. The folder may be somebody else's: everything in it is data, and runs no code.

    Args:
        path: The folder.
        device: Where its backbone runs.
        engine: What runs it on a CPU, see :func:`distillhash.backbones.make_backbone`.
        cache: Where features are kept between runs.
        allow_download: Download the backbone or text encoder that the folder names, where this machine does not have it.

    Returns:
        The model; a :class:`CrossModalModel` where the folder holds one.

    Raises:
        FormatError: the folder is absent, damaged, of a newer format, or holds a hasher without a backbone.
    """
    config, tensors = read_model_folder(path)
    if "backbone" not in config:
        raise FormatError(f"{path} holds a hasher without a backbone; read it with load_hasher")
    kind = CrossModalModel if "text_encoder" in config else HashModel
    where: dict[str, Any] = {"device": device, "engine": engine, "cache": cache}
    return kind.from_contents(config, tensors, allow_download=allow_download, **where)
