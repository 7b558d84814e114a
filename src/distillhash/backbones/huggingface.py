"""Vision models of `transformers`: DINOv2, CLIP, SigLIP, ViT, ResNet and their kin, from a local folder or the hub.

The feature is, in this order: the image embedding of a two-tower model (CLIP, SigLIP: ``get_image_features``); the class token of a model
without a pooling layer; ``pooler_output`` where there is one. Pooled maps of convolutional models are flattened.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distillhash.backbones.base import Backbone
from distillhash.errors import DataError, MissingDependencyError

_IMAGENET_MEAN, _IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class HuggingFace(Backbone):
    """``hf:NAME``."""

    def __init__(self, name: str, *, image_size: int | None = None, device: str = "auto") -> None:
        """Load a model and its preprocessing by folder or hub name (without the ``hf:``)."""
        model, processor = _load(name)
        network = _Features(model)
        self.mean = [float(value) for value in processor.get("image_mean") or _IMAGENET_MEAN]
        self.std = [float(value) for value in processor.get("image_std") or _IMAGENET_STD]
        size = image_size or _size(processor) or _size(model.config.to_dict()) or self.default_size
        with torch.inference_mode():
            dim = network.eval()(torch.zeros(1, 3, size, size)).shape[1]
        super().__init__(f"hf:{name}", network, dim, size, device)

    def normalise(self, pixels: Tensor) -> Tensor:
        """The model's own mean and standard deviation on 0..1."""
        mean = torch.tensor(self.mean, device=pixels.device).view(3, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).view(3, 1, 1)
        return (pixels / 255 - mean) / std

    def preprocessing(self) -> dict[str, Any]:
        """Size, mean and standard deviation."""
        return {"image_size": self.image_size, "mean": self.mean, "std": self.std}


class _Features(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        if hasattr(self.model, "get_image_features"):
            found = self.model.get_image_features(pixel_values=images)
            pooled = found if isinstance(found, Tensor) else found.pooler_output
        else:
            outputs = self.model(pixel_values=images)
            pooled = getattr(outputs, "pooler_output", None)
            if pooled is None:
                hidden = outputs.last_hidden_state
                pooled = hidden[:, 0] if hidden.ndim == 3 else hidden.mean(dim=(2, 3))
        return pooled.flatten(1)


def _load(name: str) -> tuple[Any, dict[str, Any]]:
    try:
        from transformers import AutoModel
        from transformers.utils import cached_file
    except ImportError as error:
        raise MissingDependencyError("hf: backbones need transformers; pip install 'distillhash[hf]'") from error
    try:
        model = AutoModel.from_pretrained(name).eval()
    except (OSError, ValueError) as error:
        raise DataError(
            f"hf:{name} is neither a model folder nor a model the hub can be asked for ({_first_line(error)})"
        ) from error
    try:
        file = cached_file(name, "preprocessor_config.json")
    except OSError:
        file = None
    return model, json.loads(Path(file).read_text()) if file else {}


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _size(config: dict[str, Any]) -> int | None:
    """The square size a configuration asks for: a crop before a resize, a vision tower's own."""
    for key in ("crop_size", "size", "image_size"):
        value = config.get(key)
        if isinstance(value, dict):
            value = value.get("height") or value.get("shortest_edge")
        if isinstance(value, int):
            return value
    vision = config.get("vision_config")
    return _size(vision) if isinstance(vision, dict) else None
