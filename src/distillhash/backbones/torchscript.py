"""``torchscript:FILE``: a network saved by ``torch.jit.save``, as Meta publishes SSCD (Pizzi et al., CVPR 2022) for copy detection.

The file says neither how large its images are nor how they are normalised, so the image size and the options ``mean`` and ``std`` (of
channels in 0..1) are needed; ``rescale_factor`` and ``channels`` are as for ``onnx:``. The network takes ``(n, 3, size, size)`` floats,
normalised, and gives ``(n, d)``.

A TorchScript file is a program. It runs on torch's own interpreter and calls none of Python, but torch has operators that read and write
files. A file that the user names is run; one that a model folder names is run where the user agrees, see
:func:`distillhash.backbones.backbone_from_config`.
"""

import warnings
from collections.abc import Mapping
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from distillhash.backbones.base import TorchBackbone
from distillhash.backbones.huggingface import PIXEL_OPTIONS, check_options, choose_channels, pixel_statistics
from distillhash.errors import DataError, FormatError, MissingDependencyError, ParameterError, first_line
from distillhash.files import read_file
from distillhash.pytorch import HAS_TORCH, Tensor, nn, torch

_MAX_BYTES = 2**32


class TorchScriptFile(TorchBackbone):
    """The network of a file. With the option ``digest`` the file must have it, or is refused before it runs."""

    def __init__(
        self,
        file: str,
        *,
        image_size: int | None = None,
        device: str = "auto",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        name, self._path = f"torchscript:{file}", Path(file).absolute()
        options = check_options(name, options or {}, (*PIXEL_OPTIONS, "digest"))
        if image_size is None:
            raise ParameterError(
                f"{name} does not say how large its images are; give --image-size (Python: image_size)"
            )
        if "mean" not in options and "std" not in options:
            raise ParameterError(
                f"{name} does not say how pixels are normalised; give --backbone-set mean=... and std=... (Python: options), "
                "of channels in 0..1"
            )
        self.mean, self.std = pixel_statistics(name, options, {})
        self.channels = choose_channels(name, options, {})
        script, self._digest = _read(name, self._path, options.get("digest"))
        super().__init__(name, _Features(name, script), 0, image_size, device)
        self._try()

    def architecture(self) -> str:
        """The digest of the file: it may move."""
        return f"torchscript:{self._digest}"

    def config(self) -> dict[str, Any]:
        """With the file's absolute path and its digest."""
        return {**super().config(), "name": f"torchscript:{self._path}", "digest": self._digest}

    def check_trainable(self) -> None:
        """Refuse a network without weights that can be trained, as after ``torch.jit.freeze``."""
        if not any(weight.requires_grad for weight in self.network.parameters()):
            raise ParameterError(f"{self.name} was saved without trainable weights; leave out fine-tuning")

    def _try(self) -> None:
        """Features of noise, which tell their width."""
        size, n = self.image_size, 2
        noise = np.random.default_rng(0).integers(0, 256, (n, size, size, 3)).astype(np.uint8)
        with torch.inference_mode():
            pixels = torch.from_numpy(noise).permute(0, 3, 1, 2).to(self.device)
            self.dim = self.network(self.normalise(pixels)).shape[1]
        found = self.embed(noise)
        if not np.isfinite(found).all():
            raise DataError(f"{self.name} makes NaN or infinity of an image; save it again, in float32")
        if np.abs(self.embed(noise[1:]) - found[1:]).max() > 1e-4 * np.abs(found).max():
            raise DataError(f"{self.name} gives an image other features beside other images; save it in eval mode")


class _Features(nn.Module):
    """The network, which fails with one sentence."""

    def __init__(self, name: str, script: nn.Module) -> None:
        super().__init__()
        self._name, self.script = name, script

    def forward(self, images: Tensor) -> Tensor:
        try:
            found = self.script(images)
        except Exception as error:  # a program can fail in any way
            raise DataError(
                f"{self._name} fails on {len(images)} images, {tuple(images.shape)} floats ({first_line(error)}); give --image-size a size "
                "that it takes, or save it again for any number of images"
            ) from error
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(images) or 0 in found.shape:
            made = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise DataError(
                f"{self._name} makes {made!s:.80} of {len(images)} images, not (n, d); save a network that gives one vector an image"
            )
        return found


def _read(name: str, path: Path, expected: Any) -> tuple[Any, str]:
    """The network, on the CPU, and the digest of its file; a file with another than ``expected`` is refused."""
    if not HAS_TORCH:
        raise MissingDependencyError(f"{name} needs PyTorch; pip install 'distillhash[train]'")
    try:
        data = read_file(path, limit=_MAX_BYTES)
    except OSError as error:
        remedy = "give a TorchScript file" if expected is None else "put it back there, or train again"
        raise DataError(f"{name}: {path} cannot be read ({error.strerror}); {remedy}") from error
    found = blake2b(data, digest_size=16).hexdigest()
    if expected is not None and found != str(expected):
        raise FormatError(
            f"{name} (digest {found}) is not the file the model was trained with ({expected!s:.80}); put that one there, or train again"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch recommends another format
            script = torch.jit.load(BytesIO(data), map_location="cpu")  # type: ignore[no-untyped-call]  # it has no types
    except Exception as error:  # a damaged archive, or a program that fails
        raise FormatError(
            f"{name} is not a TorchScript file, or is damaged; save it again by torch.jit.save"
        ) from error
    return script, found
