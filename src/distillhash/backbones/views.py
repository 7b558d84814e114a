"""Augmented views, computed on batches: random resized crop, flip, rotation, colour.

DistillHash (CVPR 2019, 4.4) augments by random rotation and flipping; the crop and the colours are those of contrastive methods, milder,
but every other view has no colour (docs/distillhash-contrast.md has the measurement). Crop, flip and rotation are one affine map, so
pixels are interpolated once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distillhash.errors import ParameterError
from distillhash.pytorch import Tensor, functional, torch


@dataclass(frozen=True)
class ViewSettings:
    """How strongly views differ from the image."""

    smallest_crop: float = 0.35  # share of the area that a crop keeps at least
    ratio: float = 4 / 3  # the aspect ratio of a crop lies between 1 / ratio and ratio
    degrees: float = 15.0  # rotation lies within this either way
    flip: float = 0.5  # probability of a horizontal flip
    colour: float = 0.4  # brightness, contrast and saturation are scaled by 1 - colour to 1 + colour
    grey: float = 0.5  # probability of losing colour

    def __post_init__(self) -> None:
        if not 0 < self.smallest_crop <= 1 or self.ratio < 1:
            raise ParameterError(
                f"smallest_crop must lie in (0, 1] and ratio be at least 1, got {self.smallest_crop}, {self.ratio}"
            )


@dataclass(frozen=True)
class View:
    """One augmented copy, the ``number``-th of a job's ``seed``, of every image: what it is stored under, and what draws it."""

    settings: ViewSettings
    seed: int
    number: int

    def key(self, content: bytes) -> bytes:
        """The cache key of the view of an image with this digest."""
        return content + self.number.to_bytes(4, "big")

    def seeds(self, content: bytes) -> Sequence[int]:
        """The numbers that draw the view; it depends on nothing else."""
        return (self.seed, self.number, int.from_bytes(content, "big"))


def augment(pixels: Tensor, seeds: Sequence[Sequence[int]], settings: ViewSettings) -> Tensor:
    """One augmented view of each of ``(n, 3, s, s)`` images in 0..255, as ``float32`` of the same shape and range.

    ``seeds`` are one sequence of integers per image; the same integers give the same view, whatever else is in the batch.
    """
    drawn = np.stack([_draw(np.random.default_rng(seed), settings) for seed in seeds]).astype(np.float32)
    numbers = torch.from_numpy(drawn).to(pixels.device)
    (n, _, _, side), affine = pixels.shape, numbers[:, :6].view(-1, 2, 3, 1)
    centres = (2 * torch.arange(side, device=pixels.device) + 1) / side - 1  # of the pixels
    across, down = affine[:, :, 0] * centres, affine[:, :, 1] * centres + affine[:, :, 2]  # (n, 2, s) each
    # Brightness, contrast about the mean luma, and saturation about each pixel's luma: one affine map of the three channels.
    brightness, contrast, saturation = numbers[:, 6:, None, None].unbind(1)
    luma = torch.tensor([[0.299, 0.587, 0.114]], device=pixels.device)
    channels = brightness * contrast * (saturation * torch.eye(3, device=pixels.device) + (1 - saturation) * luma)
    of_mean = brightness * (1 - contrast) * luma
    views = torch.empty((n, 3, side * side), device=pixels.device)
    step = 1 if pixels.device.type == "cpu" else max(n, 1)  # one image at a time stays in a processor's cache
    for part in (slice(start, start + step) for start in range(0, n, step)):
        grid = (across[part, :, None] + down[part, :, :, None]).permute(0, 2, 3, 1)
        images = pixels[part].to(torch.float32)
        sampled = functional.grid_sample(
            images, grid, mode="bilinear", padding_mode="reflection", align_corners=False
        ).flatten(2)
        mean = sampled.mean(dim=2, keepdim=True)
        torch.baddbmm(of_mean[part] @ mean, channels[part], sampled, out=views[part]).clamp_(0, 255)
    return views.view(pixels.shape)


def _draw(rng: np.random.Generator, settings: ViewSettings) -> list[float]:
    """The six numbers of an affine map and three colour factors."""
    area = rng.uniform(settings.smallest_crop, 1)
    aspect = math.exp(rng.uniform(-math.log(settings.ratio), math.log(settings.ratio)))
    width, height = min(math.sqrt(area * aspect), 1.0), min(math.sqrt(area / aspect), 1.0)
    x, y = rng.uniform(-1, 1) * (1 - width), rng.uniform(-1, 1) * (1 - height)
    angle = math.radians(rng.uniform(-settings.degrees, settings.degrees))
    side = -1.0 if rng.random() < settings.flip else 1.0
    cos, sin = math.cos(angle), math.sin(angle)
    colour = [rng.uniform(1 - settings.colour, 1 + settings.colour) for _ in range(3)]
    if rng.random() < settings.grey:
        colour[2] = 0.0
    return [width * cos * side, -width * sin, x, height * sin * side, height * cos, y, *colour]
