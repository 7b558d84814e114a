"""What every backbone offers: pixels in, features out, and an identity that caches and models can rely on."""

from __future__ import annotations

import json
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy, deepcopy
from functools import cached_property
from hashlib import blake2b
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from distillhash.errors import DataError, FormatError, MissingDependencyError, ParameterError
from distillhash.pytorch import Tensor, nn, torch

Pixels = NDArray[np.uint8] | NDArray[np.float32]
Engine = Literal["auto", "onnx", "torch"]
Run = Callable[[Pixels], NDArray[np.float32]]
"""Features ``(n, d)`` of pixels ``(n, size, size, 3)`` in 0..255; a row depends on its own image alone."""

FLOAT32, BF16 = "float32", "bf16"
MAX_SIZE = 2048  # a pass over a batch of these takes gigabytes
_precision = threading.Lock()  # torch's setting is that of the process
BATCH, DEVICE_BATCH = 16, 128  # on a CPU larger batches fall out of the cache; an accelerator needs them to fill it


class Backbone(ABC):
    """A pretrained feature extractor."""

    name: str
    dim: int  # width d of the features
    image_size: int  # side in pixels of the square images it takes
    device: str  # where it runs
    batch_size: int  # images that are embedded together
    default_size: ClassVar[int] = 224
    trained_size: int | None = None  # of the weights, where that is known and larger than the default
    mean: Sequence[float] = (0.485, 0.456, 0.406)  # ImageNet's, of channels in 0..1
    std: Sequence[float] = (0.229, 0.224, 0.225)
    channels: str = "rgb"  # or bgr: the order in which the network takes them; mean and std are of the same order
    precision: str = FLOAT32  # or bf16: numbers of 16 bits, which another engine or processor rounds otherwise

    def __init__(self, name: str, dim: int, image_size: int, device: str = "cpu") -> None:
        if not 16 <= image_size <= MAX_SIZE:
            raise ParameterError(f"the image size must be from 16 to {MAX_SIZE} pixels, got {image_size}")
        self.name, self.dim, self.image_size = name, dim, image_size
        self.device = choose_device(device)
        self.batch_size = images_a_pass(self.device)

    def preprocessing(self) -> dict[str, Any]:
        """What is done to pixels and the size, as JSON-able data for model files and cache keys."""
        order = {} if self.channels == "rgb" else {"channels": self.channels}
        return {"image_size": self.image_size, "mean": list(self.mean), "std": list(self.std), **order}

    def config(self) -> dict[str, Any]:
        """What :func:`distillhash.backbones.backbone_from_config` needs."""
        return {"name": self.name, **self._described()}

    def _described(self) -> dict[str, Any]:
        """What decides the features beside the weights."""
        return self.preprocessing() | ({"precision": BF16} if self.precision == BF16 else {})

    def architecture(self) -> str:
        """The network's name in the fingerprint, whatever folder the weights lie in."""
        return self.name

    @cached_property
    def fingerprint(self) -> str:
        """Identity of architecture, preprocessing and weights: BLAKE2 over all of them, 32 hex digits."""
        described = json.dumps({"name": self.architecture(), **self._described()}, sort_keys=True)
        digest = blake2b(described.encode(), digest_size=16)
        for name, array in self.tensors().items():
            digest.update(f"{name}:{array.dtype}:{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    @abstractmethod
    def embed(self, pixels: Pixels) -> NDArray[np.float32]:
        """Features ``(n, d) float32`` of images ``(n, size, size, 3)``: uint8, or floats in 0..255 as augmentation makes.

        On a CPU a row does not depend on the rows beside it.
        """

    def embed_floats(self, pixels: Tensor) -> NDArray[np.float32]:
        """The same for a ``(n, 3, size, size)`` tensor, on any device."""
        return self.embed(pixels.cpu().permute(0, 2, 3, 1).numpy())

    def prepare(self) -> None:  # noqa: B027  # others have nothing to prepare
        """Make what :meth:`embed` runs, which threads would race for."""

    def enlarged(self) -> Self | None:
        """The same network, sharing its weights, for images of the size that it was trained with; None where they are not smaller."""
        if self.trained_size is None or self.image_size >= self.trained_size:
            return None
        return self.at_size(self.trained_size)

    def at_size(self, image_size: int) -> Self:
        """The same network, sharing its weights, for images of another size."""
        other = copy(self)
        other.image_size = image_size
        for name in ("fingerprint", "runs"):
            other.__dict__.pop(name, None)
        return other

    def tensors(self) -> dict[str, NDArray[Any]]:
        """The weights by name; none where the architecture's name stands for them."""
        return {}

    def load_tensors(self, tensors: dict[str, NDArray[Any]]) -> None:  # noqa: ARG002
        """Replace the weights, as after fine-tuning; other names or shapes are a :class:`FormatError`."""
        raise self._other_weights()

    def _other_weights(self) -> FormatError:
        return FormatError(f"the stored weights do not fit backbone {self.name}; train the model again")

    def refresh(self) -> None:  # noqa: B027  # others cannot be trained
        """Forget what was derived from the weights; call after training the network, wherever that was."""

    def check_trainable(self) -> None:
        """Raise :class:`ParameterError` where the network cannot be fine-tuned."""
        raise ParameterError(
            f"{self.name} cannot be fine-tuned, because ONNX Runtime computes no gradients; leave out fine-tuning"
        )


class TorchBackbone(Backbone):
    """A network of torch. On a CPU another engine may run it, see :attr:`runs`."""

    network: nn.Module  # trainable, normalised (n, 3, size, size) floats to (n, d); features come from it in eval mode
    exports: ClassVar[bool] = False  # whether ``network`` is known to be faster in ONNX Runtime

    def __init__(self, name: str, network: nn.Module, dim: int, image_size: int, device: str) -> None:
        super().__init__(name, dim, image_size, device)
        self.engine: Callable[[TorchBackbone], Run | None] | None = None  # makes ``runs``
        self.network = channels_last(network.eval().to(self.device))

    def normalise(self, pixels: Tensor) -> Tensor:
        """The weights' own preprocessing: ``(n, 3, h, w)`` floats in 0..255 to what ``network`` takes."""
        mean = torch.tensor(self.mean, device=pixels.device).view(3, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).view(3, 1, 1)
        ordered = pixels.flip(1) if self.channels == "bgr" else pixels
        return (ordered / 255 - mean) / std

    def embed(self, pixels: Pixels) -> NDArray[np.float32]:
        """See :meth:`Backbone.embed`."""
        if self.runs is not None:
            return self.runs(pixels)
        return self.embed_floats(torch.from_numpy(pixels).permute(0, 3, 1, 2))

    def embed_floats(self, pixels: Tensor) -> NDArray[np.float32]:
        """See :meth:`Backbone.embed_floats`. Forward passes of torch have a fixed size; short ones are padded."""
        if self.runs is not None:
            return self.runs(pixels.permute(0, 2, 3, 1).numpy())
        features = np.empty((len(pixels), self.dim), np.float32)
        with torch.inference_mode(), whole_float32(self.device):
            for start in range(0, len(pixels), self.batch_size):
                part = pixels[start : start + self.batch_size].to(self.device)
                shape = (self.batch_size, *part.shape[1:])
                batch = torch.empty(shape, device=self.device, memory_format=torch.channels_last)
                batch[: len(part)], batch[len(part) :] = part, 0
                out = self.inference(self.normalise(batch).to(self._dtype))
                features[start : start + len(part)] = out[: len(part)].float().cpu().numpy()
        return features

    def prepare(self) -> None:
        """See :meth:`Backbone.prepare`."""
        if self.runs is None:
            _ = self.inference

    @cached_property
    def runs(self) -> Run | None:
        """What runs the network on a CPU in the place of torch; None where nothing does. Made once from ``network``."""
        return None if self.engine is None or self.precision == BF16 else self.engine(self)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "runs"}  # a session cannot be copied

    @cached_property
    def inference(self) -> nn.Module:
        """The network that torch runs in :meth:`embed`; made once from ``network``, see :meth:`refresh`."""
        network = self.optimised().eval()
        return network if self.precision == FLOAT32 else deepcopy(network).to(self._dtype)

    @property
    def _dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.precision == BF16 else torch.float32

    def optimised(self) -> nn.Module:
        """A faster equal of ``network``, which stays as it is; ``network`` itself where there is none."""
        return self.network

    def tensors(self) -> dict[str, NDArray[Any]]:
        """The weights by name."""
        return {name: tensor.detach().cpu().numpy() for name, tensor in self.network.state_dict().items()}

    def load_tensors(self, tensors: dict[str, NDArray[Any]]) -> None:
        """See :meth:`Backbone.load_tensors`."""
        try:
            self.network.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in tensors.items()})
        except (RuntimeError, TypeError) as error:  # TypeError: a dtype that torch lacks
            raise self._other_weights() from error
        self.refresh()

    def check_trainable(self) -> None:
        """Every network of torch can be."""

    def refresh(self) -> None:
        """See :meth:`Backbone.refresh`."""
        self.network.to(self.device).eval()
        for name in ("fingerprint", "inference", "runs"):
            self.__dict__.pop(name, None)


def images_a_pass(device: str) -> int:
    """How many images a forward pass takes on ``cpu`` or on an accelerator."""
    return BATCH if device == "cpu" else DEVICE_BATCH


@contextmanager
def whole_float32(device: str) -> Iterator[None]:
    """Convolutions in all bits of float32, for one thread at a time: by default CUDA rounds their inputs, which changes codes."""
    if device.partition(":")[0] != "cuda":
        yield
        return
    newer = hasattr(torch.backends.cudnn, "conv")  # torch refuses the older setting where the newer one was used
    cudnn: Any = torch.backends.cudnn
    settings = cudnn.conv if newer else cudnn
    name, whole = ("fp32_precision", "ieee") if newer else ("allow_tf32", False)
    with _precision:
        before = getattr(settings, name)
        setattr(settings, name, whole)
        try:
            yield
        finally:
            setattr(settings, name, before)


def channels_last(network: nn.Module) -> nn.Module:
    """``network`` with its weights laid out for channels-last images, in place."""
    moved: nn.Module = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack this form
    return moved


def choose_device(device: str) -> str:
    """``device``, or for ``auto`` the best there is: cuda, then mps, then cpu; a device that is absent is a :class:`ParameterError`."""
    try:
        available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    except MissingDependencyError:  # ONNX Runtime takes the CPU
        available = {"cpu": True}
    if device == "auto":
        return next(name for name, there in available.items() if there)
    if not available.get(device.partition(":")[0], False):
        there = ", ".join(name for name, present in available.items() if present)
        raise ParameterError(f"device {device!r} is not available here; choose auto or one of {there}")
    return device


class Embeddings(Backbone):
    """The backbone of sources that are vectors already: features are the vectors, as float32. It cannot embed images."""

    def __init__(self) -> None:
        super().__init__("embeddings", 0, self.default_size)

    def embed(self, pixels: Pixels) -> NDArray[np.float32]:  # noqa: ARG002
        """Raise :class:`DataError`: vectors need no pixels."""
        raise DataError("the backbone 'embeddings' takes vectors, not images; use another such as efficientnet-lite2")

    def preprocessing(self) -> dict[str, Any]:
        """None."""
        return {}
