"""Vision models of `transformers`: DINOv2, CLIP, SigLIP, ViT, ResNet and others, from a local folder or the hub.

The feature is the first of these that the model has:

1. the image embedding of a two-tower model (CLIP, SigLIP: ``get_image_features``); the text tower is dropped;
2. ``pooler_output``: DINOv2's normalised class token, the pooled map of ResNet and ConvNeXt, flattened;
3. the class token of the last hidden state, or the mean over a last map.

A checkpoint that was saved without the pooling layer its class has (``google/vit-base-patch16-224``, DINO) falls to the third: that
layer would be drawn at random. Any other weight that the checkpoint lacks is an error.

A model's folder is data: weights are read from safetensors alone, and code that comes with a model is never run nor asked about.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distillhash.backbones.base import MAX_SIZE, Backbone
from distillhash.errors import DataError, FormatError, MissingDependencyError, ParameterError, first_line
from distillhash.files import MAX_FILE_SIZE, open_regular, read_file

_TEXT_PARTS = ("text_model", "text_projection", "logit_scale", "logit_bias")
_MAX_CONFIG = 16 * 2**20
_MAX_LAYERS = 1000


class HuggingFace(Backbone):
    """``hf:NAME``: a model and its preprocessing, by folder or hub name. Without ``allow_download`` it must be on this machine."""

    def __init__(
        self, name: str, *, image_size: int | None = None, device: str = "auto", allow_download: bool = True
    ) -> None:
        place = find_model(name, f"hf:{name}", allow_download=allow_download)
        model = load_transformer(place, f"hf:{name}", "image", _TEXT_PARTS, allow_download=allow_download)
        processor = _read_config(place, f"hf:{name}", "preprocessor_config.json", allow_download) or {}
        network = _Features(model)
        mean, std = processor.get("image_mean") or self.mean, processor.get("image_std") or self.std
        if not processor.get("do_normalize", True):
            mean, std = [0, 0, 0], [1, 1, 1]
        self.mean, self.std = (_three_numbers(f"hf:{name}", values) for values in (mean, std))
        self._model_type = str(model.config.model_type)
        size = image_size or _size(processor) or _size(model.config.to_dict()) or self.default_size
        try:
            if not 16 <= size <= MAX_SIZE:
                raise ValueError(f"sizes are from 16 to {MAX_SIZE}")
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


def load_transformer(place: str, name: str, kind: str, other_parts: tuple[str, ...], *, allow_download: bool) -> Any:
    """A model of transformers as float32 (checkpoints may be halves), from what :func:`find_model` found; ``name`` is for messages.

    Of a two-tower model only the tower ``kind`` (``image`` or ``text``) is kept: ``other_parts``, the attributes of the other one, are
    deleted. A checkpoint may lack the weights of its pooling layer, which is then left out, and no others.
    """
    from transformers import AutoConfig, AutoModel

    described = _read_config(place, name, "config.json", allow_download)
    if described is None:
        raise DataError(f"{name} is neither a folder with a model nor one of the hub; give its folder or name")
    _check_depth(described, name)
    weights = described.get("transformers_weights")
    if weights is not None and (not isinstance(weights, str) or Path(weights).name != weights):
        raise DataError(
            f"{name}: config.json names {weights!r:.80} as its weights; give a model that holds them directly"
        )
    try:
        with quietly(place):
            config = AutoConfig.from_pretrained(place, **reading_options(allow_download))
            # A config can name implementations on the hub, which are code.
            config._attn_implementation = config._experts_implementation = None
            model, loading = AutoModel.from_pretrained(
                place,
                config=config,
                output_loading_info=True,
                use_safetensors=True,
                adapter_kwargs={"local_files_only": not allow_download},
                **reading_options(allow_download),
            )
    except Exception as error:  # a config can be wrong in any way
        raise DataError(
            f"{name} cannot be read ({first_line(error)}); give a model that transformers has built in, with weights in safetensors"
        ) from error
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


def reading_options(allow_download: bool) -> dict[str, Any]:
    """How everything of transformers is read: code that comes with a model is never run, and nothing is asked on the terminal."""
    return {"trust_remote_code": False, "local_files_only": not allow_download}


def refuse_remote_path(place: str) -> None:
    r"""Raise :class:`FormatError` for a path on another computer: ``\\server\share``, ``//server/share``, a URL."""
    if place.replace("\\", "/").startswith("//") or "://" in place:
        raise FormatError(f"the model names files on another computer, {place!r:.200}; copy them here and train again")


def find_model(place: str, name: str, *, allow_download: bool) -> str:
    """The folder of a model, or its name on the hub where it may be downloaded; ``name`` is for messages.

    Without ``allow_download`` nothing of the hub's client runs that could reach the network; the user's cache of the hub is looked at.
    :class:`DataError` where there is no such model, or its folder holds anything but folders and regular files of bearable size.
    """
    try:
        from huggingface_hub import try_to_load_from_cache
        from transformers import AutoModel as _  # noqa: F401  # only whether it is installed
    except ImportError as error:
        raise MissingDependencyError(f"{name} needs transformers; pip install 'distillhash[hf]'") from error
    try:
        if not Path(place).is_dir() and not allow_download:
            found = try_to_load_from_cache(place, "config.json")
            if not isinstance(found, str):
                remedy = "add --allow-download (Python: allow_download=True) to fetch it from the hub, or give a folder"
                raise DataError(f"{name} is not on this machine; {remedy}")
            place = str(Path(found).parent)
        for file in sorted(Path(place).iterdir()) if Path(place).is_dir() else ():
            if not file.is_dir():
                with open_regular(file) as opened:
                    size = opened.seek(0, 2)
                if size > MAX_FILE_SIZE and file.suffix != ".safetensors":
                    raise OSError(None, f"it has {size:,} bytes, over the limit of {MAX_FILE_SIZE:,}", str(file))
                if file.name.endswith(".index.json"):
                    _check_parts(file)
    except DataError:
        raise
    except (OSError, ValueError) as error:  # ValueError: no possible name
        reason, which = getattr(error, "strerror", None) or first_line(error), getattr(error, "filename", None) or place
        raise DataError(f"{name}: {which} cannot be read ({reason}); give another folder") from error
    return place


def _check_parts(file: Path) -> None:
    """Raise :class:`OSError` where a list of the files of weights names any that are not files of its own folder, which were checked."""
    try:
        parts = set(json.loads(read_file(file, limit=_MAX_CONFIG))["weight_map"].values())
        is_sound = all((file.parent / part).parent == file.parent and part not in ("", ".", "..") for part in parts)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        is_sound = False
    if not is_sound:
        raise OSError(None, "it names files of weights that are not in its folder", str(file))


@contextmanager
def quietly(place: str) -> Iterator[None]:
    """Without transformers' own reports, and its bars where it only reads a folder; a download may show one."""
    from transformers.utils import logging

    level, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    if Path(place).is_dir():
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def _read_config(place: str, name: str, file: str, allow_download: bool) -> dict[str, Any] | None:
    """A configuration file of a model, or None where it has none."""
    from transformers.utils import cached_file

    try:
        found = cached_file(place, file, local_files_only=not allow_download)
    except (OSError, ValueError):  # it has none; or this is no name of the hub
        return None
    try:
        config = json.loads(read_file(found, limit=_MAX_CONFIG)) if found else None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{name}: {file} cannot be read ({first_line(error)}); give a complete model") from error
    if config is not None and not isinstance(config, dict):
        raise DataError(f"{name}: {file} does not hold a configuration; give a complete model")
    return config


def _check_depth(described: Any, name: str) -> None:
    """Raise :class:`DataError` where a configuration asks for so many layers that making them would not end."""
    for key, value in described.items():
        numbers = [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, int)]
        if max(numbers, default=0) > _MAX_LAYERS and re.search("layer|depth|block", key):
            asked = f"{key} = {value!r:.80}; the limit is {_MAX_LAYERS}"
            raise DataError(f"{name}: config.json asks for {asked}, give another model")
        if isinstance(value, dict):
            _check_depth(value, name)


def _three_numbers(name: str, values: Any) -> list[float]:
    numbers = values if isinstance(values, list | tuple) else []
    if len(numbers) != 3 or not all(isinstance(one, int | float) and abs(one) < 1e9 for one in numbers):
        raise DataError(f"{name}: preprocessor_config.json must give a number for each channel, got {values!r:.80}")
    return [float(one) for one in numbers]


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
