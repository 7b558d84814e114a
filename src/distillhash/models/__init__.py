"""Models: a feature extractor and a hasher, from images, vectors or sentences to codes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from distillhash.models.hash_model import Encoded, HashModel
from distillhash.models.image_text import CrossModalModel, PairFeatures

if TYPE_CHECKING:
    from distillhash.backbones import FeatureCache

__all__ = ["CrossModalModel", "Encoded", "HashModel", "PairFeatures", "load_model"]


def load_model(
    path: str | Path, *, device: str = "auto", cache: FeatureCache | None = None, allow_download: bool = False
) -> HashModel:
    """Read a model that :meth:`HashModel.save` wrote. The folder may be somebody else's: everything in it is data, and runs no code.

    Args:
        path: The folder.
        device: Where its backbone runs.
        cache: Where features are kept between runs.
        allow_download: Download the backbone or text encoder that the folder names, where this machine does not have it.

    Returns:
        The model; a :class:`CrossModalModel` where the folder holds one.

    Raises:
        FormatError: the folder is absent, damaged, of a newer format, or holds a hasher without a backbone.
    """
    return HashModel.from_folder(path, device=device, cache=cache, allow_download=allow_download)
