"""Models: a feature extractor and a hasher, from images, vectors or sentences to codes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from distillhash.errors import FormatError, ParameterError
from distillhash.methods.base import read_model_folder
from distillhash.models.hash_model import Encoded, HashModel
from distillhash.models.image_text import CrossModalModel, PairFeatures

if TYPE_CHECKING:
    from distillhash.backbones import Engine, FeatureCache

ONNX_NAME = "model.onnx"

__all__ = ["CrossModalModel", "Encoded", "HashModel", "PairFeatures", "load_model", "onnx_file", "stored_fingerprint"]


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
    file = onnx_file(path)
    options: dict[str, Any] = {"device": device, "engine": engine, "cache": cache, "allow_download": allow_download}
    if file is None:
        return HashModel.from_folder(path, **options)
    from distillhash.models.onnx import ExportedBackbone, read_onnx

    config, tensors, data = read_onnx(file)
    model = HashModel.kind_of(config, file).from_contents(config, tensors, **options)
    if model.backbone_name != "embeddings":
        if engine == "torch" or device not in ("auto", "cpu"):
            option = "--engine torch" if engine == "torch" else f"--device {device}"
            raise ParameterError(f"{file} is run by ONNX Runtime on the CPU; leave out {option}")
        assert model._saved_backbone is not None  # as from_contents has set it
        model._device, model.backbone = "cpu", ExportedBackbone(str(file), data, *model._saved_backbone)
        if model.backbone.dim != model.hasher.n_features_:
            raise FormatError(f"{file}: its network does not belong to its hash function; export the model again")
    return model


def stored_fingerprint(path: str | Path) -> str:
    """The fingerprint of a stored model, without its backbone being built. Errors are those of :func:`load_model`."""
    file = onnx_file(path)
    if file is None:
        return str(read_model_folder(path)[0]["fingerprint"])
    from distillhash.models.onnx import read_onnx

    return str(read_onnx(file)[0]["fingerprint"])


def onnx_file(path: str | Path) -> Path | None:
    """The ONNX file that a model is read from: ``path`` itself, or ``model.onnx`` in a folder without ``config.json``; None for others."""
    place = Path(path)
    if place.is_file():
        return place
    inside = place / ONNX_NAME
    return inside if inside.is_file() and not (place / "config.json").exists() else None
