"""Cross-modal contrast: the codes of an image and of its text attract, all others of the batch repel.

Paper: Chen, Kornblith, Norouzi, Hinton, "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020
(https://arxiv.org/abs/2002.05709), for the loss; Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
ICML 2021 (https://arxiv.org/abs/2103.00020), for contrasting an image with its text; Qiu et al., "Unsupervised Hashing with Contrastive
Information Bottleneck", IJCAI 2021 (https://arxiv.org/abs/2105.06138), for doing so on codes. No paper proposes just this; it is the
project's contrastive hash function with a text as the second view.

Symbols: u -> real outputs; c = sign(u) -> code, with the gradient of tanh(u); tau -> temperature. Loss: NT-Xent over (c_image, c_text) of a
batch of pairs: each of the 2 b codes has its partner as positive and the 2 (b - 1) others of both modalities as negatives.

Departs from the paper in:
1. Codes instead of real embeddings; the two views are modalities with a hash function each, instead of augmentations through one.
2. The hash functions are linear in the canonical variables of images and texts, and start from those of CCA-ITQ. From a random start, or
   with a hidden layer (``hidden``), some hundreds of pairs are learned by heart; docs/cross-modal.md has the numbers.
3. An image comes with one of its texts, drawn anew every epoch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distillhash.methods.crossmodal.base import CrossModalHasher, Side, TrainingPairs
from distillhash.methods.crossmodal.canonical import code_rotation
from distillhash.methods.crossmodal.towers import InputKind, PairInputs, Standardised, Tower, standardise
from distillhash.methods.head_hasher import check_choice, check_not_negative, check_positive
from distillhash.pairs.losses import nt_xent
from distillhash.training import TrainingSettings, one_thread, train

_ROTATION_UPDATES = 50


@dataclass(eq=False, repr=False)
class CrossContrast(CrossModalHasher):
    """Contrastive codes of images and texts. ``history_["loss"]`` holds the mean loss of each epoch.

    Attributes:
        temperature: tau.
        inputs: What the hash functions see: the ``features``, or canonical variables, ``correlated`` across the modalities.
        ridge: Of those, as a share of each modality's mean variance.
        hidden: Width of a hidden layer; 0 trains linear hash functions, which start from CCA-ITQ's on correlated inputs (unless there
            are more bits than canonical variables). Everything else starts at random.
        epochs: Passes over the images.
        batch_size: Pairs a step.
        learning_rate: Adam's step size at the start; it falls to zero along a cosine.
        weight_decay: AdamW's.
        device: torch device to train on.
    """

    method = "cross-contrast"
    activation = "relu"
    temperature: float = 0.3
    inputs: InputKind = "correlated"
    ridge: float = 5.0
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
        image, text = self._towers(seen)
        if not self.hidden and self.inputs == "correlated" and self.n_bits <= images.shape[1]:
            _start_from_rotation((image, text), (images[pairs.owners], texts), self.seed)
        network = _Towers(image, text, images.shape[1])

        def loss(codes: tuple[Tensor, Tensor], rows: NDArray[np.intp]) -> Tensor:
            del rows
            return nt_xent(*codes, temperature=self.temperature)

        with one_thread():
            self.history_["loss"] = train(
                network, PairInputs(images, texts, pairs), loss, self._settings(), seed=self.seed, device=self.device
            )
        return image.side(seen[0]), text.side(seen[1])

    def _towers(self, seen: tuple[Standardised, Standardised]) -> tuple[Tower, Tower]:
        generator = torch.Generator().manual_seed(self.seed)
        image, text = (Tower(side.width, self.hidden, self.n_bits, self.activation, generator) for side in seen)
        return image, text


def _start_from_rotation(
    towers: tuple[Tower, Tower], rows: tuple[NDArray[np.float32], NDArray[np.float32]], seed: int
) -> None:
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
    """Rows of an image beside a text to the codes of both."""

    def __init__(self, image: Tower, text: Tower, n_image_inputs: int) -> None:
        super().__init__()
        self.image, self.text, self._split = image, text, n_image_inputs

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return tanh_sign(self.image(rows[:, : self._split])), tanh_sign(self.text(rows[:, self._split :]))


def tanh_sign(outputs: Tensor) -> Tensor:
    """Signs in {-1, +1}, 0 -> +1, with the gradient of tanh(outputs): an output far from zero is left alone."""
    soft = torch.tanh(outputs)
    return soft + (torch.where(outputs >= 0, 1.0, -1.0) - soft).detach()
