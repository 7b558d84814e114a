"""Vision models of `transformers`: DINOv2, CLIP, SigLIP, ViT, ResNet and others, from a local folder or the hub.

The feature is the first of these that the model has:

1. the image embedding of a two-tower model (CLIP, SigLIP: ``get_image_features``); the text tower is dropped;
2. ``pooler_output``: DINOv2's normalised class token, the pooled map of ResNet and ConvNeXt, flattened;
3. the class token of the last hidden state, or the mean over a last map.

A checkpoint that was saved without the pooling layer its class has (``google/vit-base-patch16-224``, DINO) falls to the third: that
layer would be drawn at random. Any other weight that the checkpoint lacks is an error.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distillhash.backbones.base import Backbone
from distillhash.errors import DataError, MissingDependencyError, ParameterError

_TEXT_PARTS = ("text_model", "text_projection", "logit_scale", "logit_bias")


class HuggingFace(Backbone):
    """``hf:NAME``: a model and its preprocessing, by folder or hub name."""

    def __init__(self, name: str, *, image_size: int | None = None, device: str = "auto") -> None:
        model = load_transformer(name, f"hf:{name}", "image", _TEXT_PARTS)
        from transformers.utils import cached_file  # after the error that explains how to install it

        try:
            file = cached_file(name, "preprocessor_config.json")
        except OSError:  # it has none
            file = None
        processor: dict[str, Any] = json.loads(Path(file).read_text()) if file else {}
        network = _Features(model)
        mean, std = processor.get("image_mean") or self.mean, processor.get("image_std") or self.std
        if not processor.get("do_normalize", True):
            mean, std = [0, 0, 0], [1, 1, 1]
        self.mean, self.std = [float(value) for value in mean], [float(value) for value in std]
        self._model_type = str(model.config.model_type)
        size = image_size or _size(processor) or _size(model.config.to_dict()) or self.default_size
        try:
            with torch.inference_mode():
                dim = network.eval()(torch.zeros(1, 3, size, size)).shape[1]
        except Exception as error:  # models refuse in their own ways: TypeError, ValueError, RuntimeError...
            raise ParameterError(
                f"hf:{name} does not take {size} x {size} images ({first_line(error)}); give a vision model and a size it takes"
            ) from error
        super().__init__(f"hf:{name}", network, dim, size, device)

    def architecture(self) -> str:
        """The model's type: a folder may move."""
        return f"hf:{self._model_type}"


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


def load_transformer(place: str, name: str, kind: str, other_parts: tuple[str, ...]) -> Any:
    """A model of transformers as float32 (checkpoints may be halves), from the folder or hub name ``place``; ``name`` is for messages.

    Of a two-tower model only the tower ``kind`` (``image`` or ``text``) is kept: ``other_parts``, the attributes of the other one, are
    deleted. A checkpoint may lack the weights of its pooling layer, which is then left out, and no others.
    """
    try:
        from transformers import AutoModel
    except ImportError as error:
        raise MissingDependencyError(f"{name} needs transformers; pip install 'distillhash[hf]'") from error
    try:
        model, loading = AutoModel.from_pretrained(place, output_loading_info=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{name} is neither a folder with a model nor one of the hub ({first_line(error)})") from error
    for part in other_parts:
        if hasattr(model, f"get_{kind}_features") and hasattr(model, part):
            delattr(model, part)
    missing = sorted(loading["missing_keys"])
    lacking = [key for key in missing if not key.startswith(("pooler.", *other_parts))]
    if lacking:
        raise DataError(
            f"the checkpoint of {name} lacks {len(lacking)} weights, first {lacking[0]}; they would be random, give a complete one"
        )
    if any(key.startswith("pooler.") for key in missing):
        model.pooler = None
    return model.eval().float()


def first_line(error: Exception) -> str:
    """The first line of a message, or the error's name."""
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
