"""Models: a feature extractor and a hasher, from images, vectors or sentences to codes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from distillhash.methods.base import read_model_folder
from distillhash.models.hash_model import ONNX_NAME, Encoded, HashModel, onnx_file
from distillhash.models.image_text import CrossModalModel, PairFeatures

if TYPE_CHECKING:
    from distillhash.backbones import Engine, FeatureCache

__all__ = [
    "ONNX_NAME",
    "CrossModalModel",
    "Encoded",
    "HashModel",
    "PairFeatures",
    "load_model",
    "onnx_file",
    "stored_fingerprint",
]


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
        path: The folder, or an ONNX file that `distillhash export --to onnx` made of one; that needs no torch.
        device: Where its backbone runs.
        engine: What runs it on a CPU, see :func:`distillhash.backbones.make_backbone`.
        cache: Where features are kept between runs.
        allow_download: Download the backbone or text encoder that the folder names, where this machine does not have it.

    Returns:
        The model; a :class:`CrossModalModel` where the folder holds one.

    Raises:
        FormatError: the folder is absent, damaged, of a newer format, or holds a hasher without a backbone.
    """
    return HashModel.from_folder(path, device=device, engine=engine, cache=cache, allow_download=allow_download)


def stored_fingerprint(path: str | Path) -> str:
    """The fingerprint of a stored model, without its backbone being built. Errors are those of :func:`load_model`."""
    file = onnx_file(path)
    if file is None:
        return str(read_model_folder(path)[0]["fingerprint"])
    from distillhash.models.onnx import read_onnx

    return str(read_onnx(file)[0]["fingerprint"])
