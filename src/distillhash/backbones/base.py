"""What every backbone offers: pixels in, features out, and an identity that caches and models can rely on."""

import json
from collections.abc import Sequence
from copy import copy
from functools import cached_property
from hashlib import blake2b
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from distillhash.errors import DataError, FormatError, ParameterError
from distillhash.pytorch import Tensor, nn, torch

MAX_SIZE = 2048  # a pass over a batch of these takes gigabytes
BATCH, DEVICE_BATCH = 16, 128  # on a CPU larger batches fall out of the cache; an accelerator needs them to fill it


class Backbone:
    """A pretrained feature extractor."""

    name: str
    dim: int  # width d of the features
    image_size: int  # side in pixels of the square images it takes
    network: nn.Module  # trainable, normalised (n, 3, size, size) floats to (n, d); features come from it in eval mode
    default_size: ClassVar[int] = 224
    trained_size: int | None = None  # of the weights, where that is known and larger than the default
    mean: Sequence[float] = (0.485, 0.456, 0.406)  # ImageNet's, of channels in 0..1
    std: Sequence[float] = (0.229, 0.224, 0.225)
    channels: str = "rgb"  # or bgr: the order in which the network takes them; mean and std are of the same order
    trainable: ClassVar[bool] = True  # whether ``network`` can be fine-tuned

    def __init__(self, name: str, network: nn.Module, dim: int, image_size: int, device: str) -> None:
        if not 16 <= image_size <= MAX_SIZE:
            raise ParameterError(f"the image size must be from 16 to {MAX_SIZE} pixels, got {image_size}")
        self.name, self.dim, self.image_size = name, dim, image_size
        self.device = choose_device(device)
        self.batch_size = images_a_pass(self.device)
        self.network = channels_last(network.eval().to(self.device))

    def normalise(self, pixels: Tensor) -> Tensor:
        """The weights' own preprocessing: ``(n, 3, h, w)`` floats in 0..255 to what ``network`` takes."""
        mean = torch.tensor(self.mean, device=pixels.device).view(3, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).view(3, 1, 1)
        return (self.ordered(pixels) / 255 - mean) / std

    def ordered(self, pixels: Tensor) -> Tensor:
        """``(n, 3, h, w)`` RGB in the order of the network's channels."""
        return pixels.flip(1) if self.channels == "bgr" else pixels

    def preprocessing(self) -> dict[str, Any]:
        """What :meth:`normalise` does and the size, as JSON-able data for model files and cache keys."""
        order = {} if self.channels == "rgb" else {"channels": self.channels}
        return {"image_size": self.image_size, "mean": list(self.mean), "std": list(self.std), **order}

    def config(self) -> dict[str, Any]:
        """What :func:`distillhash.backbones.backbone_from_config` needs."""
        return {"name": self.name, **self.preprocessing()}

    def architecture(self) -> str:
        """The network's name in the fingerprint, whatever folder the weights lie in."""
        return self.name

    @cached_property
    def fingerprint(self) -> str:
        """Identity of architecture, preprocessing and weights: BLAKE2 over all of them, 32 hex digits."""
        described = json.dumps({"name": self.architecture(), **self.preprocessing()}, sort_keys=True)
        digest = blake2b(described.encode(), digest_size=16)
        for name, array in self.tensors().items():
            digest.update(f"{name}:{array.dtype}:{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def embed(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features ``(n, d) float32`` of images ``(n, size, size, 3) uint8``.

        Forward passes have a fixed size (short ones are padded), so on a CPU a row does not depend on the rows beside it.
        """
        return self.embed_floats(torch.from_numpy(pixels).permute(0, 3, 1, 2))

    def embed_floats(self, pixels: Tensor) -> NDArray[np.float32]:
        """The same for a ``(n, 3, size, size)`` tensor of values in 0..255 (uint8, or floats as augmentation makes)."""
        features = np.empty((len(pixels), self.dim), np.float32)
        with torch.inference_mode():
            for start in range(0, len(pixels), self.batch_size):
                part = pixels[start : start + self.batch_size].to(self.device)
                shape = (self.batch_size, *part.shape[1:])
                batch = torch.empty(shape, device=self.device, memory_format=torch.channels_last)
                batch[: len(part)], batch[len(part) :] = part, 0
                out = self.inference(self.normalise(batch))
                features[start : start + len(part)] = out[: len(part)].float().cpu().numpy()
        return features

    def enlarged(self) -> Self | None:
        """The same network, sharing its weights, for images of the size that it was trained with; None where they are not smaller."""
        if self.trained_size is None or self.image_size >= self.trained_size:
            return None
        return self.at_size(self.trained_size)

    def at_size(self, image_size: int) -> Self:
        """The same network, sharing its weights, for images of another size."""
        other = copy(self)
        other.image_size = image_size
        other.__dict__.pop("fingerprint", None)
        return other

    @cached_property
    def inference(self) -> nn.Module:
        """The network that :meth:`embed` runs; made once from ``network``, see :meth:`refresh`."""
        return self.optimised().eval()

    def optimised(self) -> nn.Module:
        """A faster equal of ``network``, which stays as it is; ``network`` itself where there is none."""
        return self.network

    def tensors(self) -> dict[str, NDArray[Any]]:
        """The weights by name."""
        return {name: tensor.detach().cpu().numpy() for name, tensor in self.network.state_dict().items()}

    def load_tensors(self, tensors: dict[str, NDArray[Any]]) -> None:
        """Replace the weights, as after fine-tuning; other names or shapes are a :class:`FormatError`."""
        try:
            self.network.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in tensors.items()})
        except (RuntimeError, TypeError) as error:  # TypeError: a dtype that torch lacks
            raise FormatError(f"the stored weights do not fit backbone {self.name}; train the model again") from error
        self.refresh()

    def check_trainable(self) -> None:
        """Raise :class:`ParameterError` where ``network`` cannot be fine-tuned."""
        if not self.trainable:
            raise ParameterError(
                f"{self.name} cannot be fine-tuned, because ONNX Runtime computes no gradients; leave out fine-tuning"
            )

    def refresh(self) -> None:
        """Forget what was derived from the weights; call after training ``network``, wherever that was."""
        self.network.to(self.device).eval()
        for name in ("fingerprint", "inference"):
            self.__dict__.pop(name, None)


def images_a_pass(device: str) -> int:
    """How many images a forward pass takes on ``cpu`` or on an accelerator."""
    return BATCH if device == "cpu" else DEVICE_BATCH


def channels_last(network: nn.Module) -> nn.Module:
    """``network`` with its weights laid out for channels-last images, in place."""
    moved: nn.Module = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack this form
    return moved


def choose_device(device: str) -> str:
    """``device``, or for ``auto`` the best there is: cuda, then mps, then cpu; a device that is absent is a :class:`ParameterError`."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return next(name for name, there in available.items() if there)
    if not available.get(device.partition(":")[0], False):
        there = ", ".join(name for name, present in available.items() if present)
        raise ParameterError(f"device {device!r} is not available here; choose auto or one of {there}")
    return device


class Embeddings(Backbone):
    """The backbone of sources that are vectors already: features are the vectors, as float32. It cannot embed images."""

    def __init__(self) -> None:
        super().__init__("embeddings", nn.Identity(), 0, self.default_size, "cpu")

    def normalise(self, pixels: Tensor) -> Tensor:  # noqa: ARG002
        """Raise :class:`DataError`: vectors need no pixels."""
        raise DataError("the backbone 'embeddings' takes vectors, not images; use another such as efficientnet-lite2")

    def preprocessing(self) -> dict[str, Any]:
        """None."""
        return {}
