"""Vision models of `transformers`: DINOv2, CLIP, SigLIP, ViT, ResNet and others, from a local folder or the hub.

The feature is the first of these that the model has:

1. the image embedding of a two-tower model (CLIP, SigLIP: ``get_image_features``); the text tower is dropped;
2. of DINOv2 and DINOv3 the class token and the mean of the patch tokens, both after the last layer norm, side by side, as its authors
   evaluate it (Oquab et al., "DINOv2", TMLR 2024); the option ``pool=model`` takes the next;
3. ``pooler_output``: DINOv2's class token, the pooled map of ResNet and ConvNeXt, flattened;
4. the class token of the last hidden state, or the mean over a last map.

A checkpoint that was saved without the pooling layer its class has (``google/vit-base-patch16-224``, DINO) falls to the fourth: that
layer would be drawn at random. Any other weight that the checkpoint lacks is an error.

A model's folder is data: weights are read from safetensors alone, and code that comes with a model is never run nor asked about.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distillhash.backbones.base import MAX_SIZE, Backbone
from distillhash.errors import DataError, FormatError, MissingDependencyError, ParameterError, first_line
from distillhash.files import MAX_FILE_SIZE, open_regular, read_file
from distillhash.pytorch import Tensor, nn, torch

_TEXT_PARTS = ("text_model", "text_projection", "logit_scale", "logit_bias")
_MAX_CONFIG = 16 * 2**20
_MAX_LAYERS = 1000
_CLASS_AND_MEAN = ("dinov2", "dinov2_with_registers", "dinov3_vit")
PIXEL_OPTIONS = ("mean", "std", "rescale_factor", "channels")


class HuggingFace(Backbone):
    """``hf:NAME``: a model and its preprocessing, by folder or hub name. Without ``allow_download`` it must be on this machine."""

    def __init__(
        self,
        name: str,
        *,
        image_size: int | None = None,
        device: str = "auto",
        allow_download: bool = True,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        options = check_options(f"hf:{name}", options or {}, (*PIXEL_OPTIONS, "pool"))
        place = find_model(name, f"hf:{name}", allow_download=allow_download)
        model = load_transformer(place, f"hf:{name}", "image", _TEXT_PARTS, allow_download=allow_download)
        processor = read_processor(lambda file: _read_config(place, f"hf:{name}", file, allow_download))
        self._model_type = str(model.config.model_type)
        self._pool = options.get("pool", "class+mean" if self._model_type in _CLASS_AND_MEAN else "model")
        if self._pool not in ("model", "class+mean"):
            raise ParameterError(f"hf:{name}: pool must be model or class+mean, got {self._pool!r:.80}")
        network = _Features(model, self._pool == "class+mean")
        self.mean, self.std = pixel_statistics(f"hf:{name}", options, processor)
        self.channels = choose_channels(f"hf:{name}", options, processor)
        size = image_size or size_in(processor) or size_in(model.config.to_dict()) or self.default_size
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

    def preprocessing(self) -> dict[str, Any]:
        """With the way of pooling, where it is not the model's own."""
        return {**super().preprocessing(), **({} if self._pool == "model" else {"pool": self._pool})}


class _Features(nn.Module):
    def __init__(self, model: Any, class_and_mean: bool) -> None:
        super().__init__()
        self.model, self._class_and_mean = model, class_and_mean

    def forward(self, images: Tensor) -> Tensor:
        pooled: Any
        if self._class_and_mean:
            tokens = self.model(pixel_values=images).last_hidden_state
            first_patch = 1 + getattr(self.model.config, "num_register_tokens", 0)
            pooled = torch.cat([tokens[:, 0], tokens[:, first_patch:].mean(dim=1)], dim=1)
        elif hasattr(self.model, "get_image_features"):
            found = self.model.get_image_features(pixel_values=images)
            pooled = found if isinstance(found, Tensor) else found.pooler_output
        else:
            outputs = self.model(pixel_values=images)
            pooled = getattr(outputs, "pooler_output", None)
            if pooled is None:
                hidden = outputs.last_hidden_state
                pooled = hidden[:, 0] if hidden.ndim == 3 else hidden.mean(dim=(2, 3))
        flat: Tensor = pooled.flatten(1)
        return flat


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
    return parse_config(found, name) if found else None


def parse_config(path: str | Path, name: str) -> dict[str, Any]:
    """A configuration file; :class:`DataError` where it holds none."""
    file = Path(path).name
    try:
        config = json.loads(read_file(path, limit=_MAX_CONFIG))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{name}: {file} cannot be read ({first_line(error)}); give a complete model") from error
    if not isinstance(config, dict):
        raise DataError(f"{name}: {file} does not hold a configuration; give a complete model")
    return config


def read_processor(read: Callable[[str], dict[str, Any] | None]) -> dict[str, Any]:
    """How pixels are made, from the files of a model, which ``read`` gives by name; empty where nothing says it."""
    nested = (read("processor_config.json") or {}).get("image_processor")
    return nested if isinstance(nested, dict) else read("preprocessor_config.json") or {}


def check_options(name: str, options: Mapping[str, Any], allowed: Sequence[str]) -> dict[str, Any]:
    """``options``, where all are ``allowed``; else :class:`ParameterError`."""
    for option in options:
        if option not in allowed:
            raise ParameterError(f"{name} has no option {option!r:.80}; choose from {', '.join(allowed)}")
    return dict(options)


def choose_channels(name: str, options: Mapping[str, Any], processor: Mapping[str, Any]) -> str:
    """``rgb`` or ``bgr``: what the options say, else the processor."""
    channels = options.get("channels", "bgr" if processor.get("do_flip_channel_order") else "rgb")
    if channels not in ("rgb", "bgr"):
        raise ParameterError(f"{name}: channels must be rgb or bgr, got {channels!r:.80}")
    return str(channels)


def pixel_statistics(
    name: str, options: Mapping[str, Any], processor: Mapping[str, Any]
) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of the channels in 0..1: those of the options, else of the processor, else ImageNet's.

    Pixels times ``rescale_factor`` are what they are of; another factor than 1/255 goes into them.
    """
    if ("mean" in options) != ("std" in options):
        raise ParameterError(f"{name}: mean and std belong together; give both")
    if "mean" in options:
        mean, std = _three_numbers(name, options["mean"]), _three_numbers(name, options["std"])
        factor: Any = 1 / 255
    else:
        mean = _three_numbers(name, processor.get("image_mean") or Backbone.mean)
        std = _three_numbers(name, processor.get("image_std") or Backbone.std)
        if not processor.get("do_normalize", "do_flip_channel_order" not in processor):  # MobileViT does not normalise
            mean, std = [0.0] * 3, [1.0] * 3
        factor = processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 1
        if processor.get("rescale_offset"):  # EfficientNet: to -1..1 first
            mean = [one + 1 for one in mean]
        if processor.get("include_top"):  # EfficientNet divides twice
            std = [one * one for one in std]
    scale = 255 * _three_numbers(name, options.get("rescale_factor", factor))[0]
    if min(*std, scale) <= 0:
        raise DataError(f"{name}: std and rescale_factor must be above 0, got {std} and {scale / 255:g}")
    if abs(scale - 1) < 1e-6:
        return mean, std
    return [one / scale for one in mean], [one / scale for one in std]


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
    """A number for each channel: of three, or of one for all; or the same as text, separated by commas."""
    try:
        if isinstance(values, str):
            values = [float(word) for word in values.split(",")]
        numbers = list(values) * (3 if len(values) == 1 else 1) if isinstance(values, list | tuple) else [values] * 3
    except ValueError:
        numbers = []
    if len(numbers) != 3 or not all(isinstance(one, int | float) and abs(one) < 1e9 for one in numbers):
        raise DataError(
            f"{name}: mean, std and rescale_factor must be numbers, one for each channel, got {values!r:.80}"
        )
    return [float(one) for one in numbers]


def size_in(config: Mapping[str, Any]) -> int | None:
    """The square size a configuration asks for: a crop before a resize, a vision tower's own."""
    for key in ("crop_size", "size", "image_size"):
        value = config.get(key)
        if key == "crop_size" and config.get("do_center_crop") is False:
            continue
        if isinstance(value, dict):
            value = value.get("height") or value.get("shortest_edge")
        if isinstance(value, int):
            return value
    vision = config.get("vision_config")
    return size_in(vision) if isinstance(vision, dict) else None
