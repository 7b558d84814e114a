"""Cross-modal contrast: the codes of an image and of its text attract, all others of the batch repel.

Paper: none; it is ``distillhash-contrast``, the project's own method, with a text as one more view of the image. Its loss is that of Chen,
Kornblith, Norouzi, Hinton, "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020
(https://arxiv.org/abs/2002.05709) and, with several positives, of Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020
(https://arxiv.org/abs/2004.11362); contrasting an image with its text is Radford et al., ICML 2021 (https://arxiv.org/abs/2103.00020).

1. Both modalities become canonical variables, scaled by their correlations: directions that say nothing about the other modality shrink.
   An image is the mean of its augmented views there, and directions in which they differ shrink as well, which is the invariant metric of
   ``distillhash-contrast`` with the texts in it; captions of one image do the same on their side.
2. The hash functions are linear in these and start from those of CCA-ITQ.
3. A batch holds images, each with one of its texts; L = mean over the codes i of the mean over positives j of
   -log softmax_j(cos(b_i, b_j) / tau). Positives are the codes of the same item. b = sign(u), the gradient taken through tanh(u).
4. With ``neighbourhood``, a batch holds a neighbour of each image too, and all neighbours are positives: N(i) is that share of the items
   whose lists of nearest neighbours, by images and mean texts together, overlap most with that of i. Off by default: see
   docs/methods/cross-contrast.md for what it does to captions.

Departs from the paper in: nothing known (there is none).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distillhash.errors import ParameterError
from distillhash.methods.heads import check_choice, check_not_negative, check_positive, tanh_through_sign
from distillhash.methods.image_text import (
    CrossModalHasher,
    InputKind,
    PairInputs,
    Side,
    Standardised,
    Tower,
    TrainingPairs,
    standardise,
)
from distillhash.methods.linear_algebra import code_rotation
from distillhash.methods.training import Inputs, TrainingSettings, one_thread, train
from distillhash.supervision.agreement import agreeing_neighbours, centred_unit
from distillhash.supervision.losses import neighbour_contrast
from distillhash.supervision.neighbourhoods import NeighbourhoodInputs

Floats = NDArray[np.float32]
_ROTATION_UPDATES = 50
_PART = 10_000  # items among which neighbours are found; memory is about 4 bytes times its square


@dataclass(eq=False, repr=False)
class CrossContrast(CrossModalHasher):
    """Contrastive codes of images and texts. ``history_["loss"]`` holds the mean loss of each epoch.

    Attributes:
        temperature: tau.
        inputs: What the hash functions see: the ``features``, or canonical variables, ``correlated`` across the modalities.
        ridge: Of those, as a share of each modality's mean variance.
        neighbourhood: Share of the items that make up N(i), at least 5 of them; 0 has no neighbours as positives.
        hidden: Width of a hidden layer; 0 trains linear hash functions, which start from CCA-ITQ's on correlated inputs (unless there
            are more bits than canonical variables). Everything else starts at random.
        epochs: Passes over the images.
        batch_size: Pairs a step.
        learning_rate: Adam's step size at the start; it falls to zero along a cosine.
        weight_decay: AdamW's.
        device: torch device to train on.
    """

    method = "cross-contrast"
    title = "Contrastive codes with a text as one more view of an image"
    venue = "this project"
    year = 2026
    kind = "cross-modal"
    uses_views = True
    activation = "relu"
    temperature: float = 0.2
    inputs: InputKind = "correlated"
    ridge: float = 3.0
    neighbourhood: float = 0.0
    hidden: int = 0
    epochs: int = 20
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    device: str = "cpu"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "temperature", "ridge")
        check_not_negative(self, "hidden", "weight_decay")
        check_choice("inputs", self.inputs, InputKind)
        if not 0 <= self.neighbourhood <= 1:
            raise ParameterError(f"neighbourhood must be at least 0 and at most 1, got {self.neighbourhood}")
        self._settings()

    @property
    def n_layers(self) -> int:
        """Two with a hidden layer."""
        return 2 if self.hidden else 1

    def _settings(self) -> TrainingSettings:
        return TrainingSettings(
            self.epochs, self.batch_size, self.learning_rate, "adamw", self.weight_decay, schedule="cosine"
        )

    def _fit_pairs(self, pairs: TrainingPairs) -> tuple[Side, Side]:
        seen = standardise(pairs, self.inputs, self.ridge)
        images, texts = seen[0](pairs.images), seen[1](pairs.texts)
        inputs: Inputs = PairInputs(images, texts, pairs)
        neighbourhoods = None
        if self.neighbourhood:
            inputs = neighbourhoods = NeighbourhoodInputs(
                inputs, self._neighbourhoods(images, seen[1](pairs.mean_texts()))
            )
        image, text = self._towers(seen)
        if not self.hidden and self.inputs == "correlated" and self.n_bits <= images.shape[1]:
            _start_from_rotation((image, text), (images[pairs.owners], texts), self.seed)

        def loss(codes: Tensor, rows: NDArray[np.intp]) -> Tensor:
            same = (
                torch.eye(len(rows), dtype=torch.bool)
                if neighbourhoods is None
                else neighbourhoods.positives(all_in_batch=True)
            )
            return neighbour_contrast(codes, same.repeat(2, 2).to(codes.device), temperature=self.temperature)

        with one_thread():
            self.history_["loss"] = train(
                _Towers(image, text, images.shape[1]),
                inputs,
                loss,
                self._settings(),
                seed=self.seed,
                device=self.device,
            )
        return image.side(seen[0]), text.side(seen[1])

    def _towers(self, seen: tuple[Standardised, Standardised]) -> tuple[Tower, Tower]:
        generator = torch.Generator().manual_seed(self.seed)
        image, text = (Tower(side.width, self.hidden, self.n_bits, self.activation, generator) for side in seen)
        return image, text

    def _neighbourhoods(self, images: Floats, texts: Floats) -> NDArray[np.int32]:
        """N(i) of every item ``(n, k)``, found within random parts of at most 10,000."""
        n = len(images)
        parts = np.array_split(np.random.default_rng(self.seed).permutation(n), -(-n // _PART))
        smallest = min(len(part) for part in parts)
        kept = min(max(5, round(self.neighbourhood * smallest)), smallest - 1)
        compared = np.hstack([centred_unit(images), centred_unit(texts)])
        neighbours = np.empty((n, kept), np.int32)
        for part in map(np.sort, parts):
            neighbours[part] = part[agreeing_neighbours(compared[part], kept, kept)]
        return neighbours


def _start_from_rotation(towers: tuple[Tower, Tower], rows: tuple[Floats, Floats], seed: int) -> None:
    """Set linear towers to CCA-ITQ's hash functions, with outputs of mean square 1 (where tanh has a gradient)."""
    n_bits = towers[0].n_outputs
    leading = [side[:, :n_bits].astype(np.float64) for side in rows]
    rotation, _ = code_rotation(np.concatenate(leading), seed, _ROTATION_UPDATES)
    with torch.no_grad():
        for tower, side in zip(towers, leading, strict=True):
            weight = rotation / max(float(np.sqrt(np.mean((side @ rotation) ** 2))), 1e-12)
            layer = tower.layers[0]
            assert isinstance(layer, nn.Linear)
            layer.weight.zero_()
            layer.weight[:, :n_bits] = torch.from_numpy(weight.T)


class _Towers(nn.Module):
    """Rows of an image beside a text to codes ``(2 b, n_bits)``, those of the images first."""

    def __init__(self, image: Tower, text: Tower, n_image_inputs: int) -> None:
        super().__init__()
        self.image, self.text, self._split = image, text, n_image_inputs

    def forward(self, rows: Tensor) -> Tensor:
        outputs = [self.image(rows[:, : self._split]), self.text(rows[:, self._split :])]
        return tanh_through_sign(torch.cat(outputs))
