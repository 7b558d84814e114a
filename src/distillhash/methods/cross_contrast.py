"""Cross-modal contrast: the codes of an image and of its text attract, all others of the batch repel.

Paper: none. This is ``distillhash-contrast``, the project's own method, with a text as one more view of the image. Its loss is that of
Chen, Kornblith, Norouzi, Hinton, "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020
(https://arxiv.org/abs/2002.05709) and, with several positives, of Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020
(https://arxiv.org/abs/2004.11362). Contrasting an image with its text is Radford et al., ICML 2021 (https://arxiv.org/abs/2103.00020).

1. Both modalities become canonical variables, scaled by their correlations: directions unrelated to the other modality shrink.
   An image is the mean of its augmented views there, and directions in which the views differ shrink as well. This is the invariant
   metric of ``distillhash-contrast`` with the texts in it. Several captions of one image do the same on their side.
2. The hash functions are linear in these and start from those of CCA-ITQ.
3. A batch holds images, each with one of its texts; L = mean over the codes i of the mean over positives j of
   -log softmax_j(cos(b_i, b_j) / tau). Positives are the codes of the same item. b = sign(u), the gradient taken through tanh(u).
4. With ``neighbourhood``, a batch holds a neighbour of each image too, and all neighbours are positives: N(i) is that share of the items
   whose lists of nearest neighbours, by images and mean texts together, overlap most with that of i. Off by default: see
   docs/methods/cross-contrast.md for what it does to captions.

Departs from the paper in: nothing known (there is none).
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt, Interval
from numpy.typing import NDArray

from distillhash.methods import image_text
from distillhash.methods.base import AffineLayers
from distillhash.methods.heads import tanh_through_sign
from distillhash.methods.image_text import CrossModalHasher, Tower, TrainingPairs, code_rotation
from distillhash.methods.training import Batch, Inputs, TrainingSettings, WithNeighbours, one_thread, train
from distillhash.pytorch import Tensor, nn, torch
from distillhash.supervision.agreement import agreeing_neighbours, centred_unit, random_parts
from distillhash.supervision.losses import neighbour_contrast

Floats = NDArray[np.float32]
_ROTATION_UPDATES = 50
_PART = 10_000  # items among which neighbours are found; memory is about 4 bytes times its square


class CrossContrast(CrossModalHasher):
    """Contrastive codes of images and texts. ``history_["loss"]`` holds the mean loss of each epoch.

    Attributes:
        temperature: tau.
        inputs: What the hash functions see: the ``features``, or canonical variables, ``correlated`` across the modalities.
        ridge: Of those, as a share of each modality's mean variance.
        neighbourhood: Share of the items that make up N(i), at least 5 of them; 0 has no neighbours as positives.
        hidden: Width of a hidden layer; 0 trains linear hash functions, which start from CCA-ITQ's on enough correlated inputs.
        epochs: Passes over the images.
        batch_size: Pairs a step.
        learning_rate: Adam's step size at the start; it falls to zero along a cosine.
        weight_decay: AdamW's.
        device: torch device to train on.
    """

    method = "cross-contrast"
    title = "Contrastive codes with a text as one more view of an image"
    venue, year = "this project", 2026
    kind = "cross-modal"
    uses_views = True
    activation = "relu"
    temperature: Annotated[float, Gt(0)] = 0.2
    inputs: image_text.InputKind = "correlated"
    ridge: Annotated[float, Gt(0)] = 3.0
    neighbourhood: Annotated[float, Interval(ge=0, le=1)] = 0.0
    hidden: Annotated[int, Ge(0)] = 0
    epochs: Annotated[int, Ge(1)] = 20
    batch_size: Annotated[int, Ge(2)] = 128
    learning_rate: Annotated[float, Gt(0)] = 1e-3
    weight_decay: Annotated[float, Ge(0)] = 0.0
    device: str = "cpu"

    def _fit_pairs(self, pairs: TrainingPairs) -> tuple[AffineLayers, AffineLayers]:
        seen = image_text.standardise(pairs, self.inputs, self.ridge)
        images, texts = seen[0](pairs.images), seen[1](pairs.texts)
        inputs: Inputs = image_text.PairInputs(images, texts, pairs)
        if self.neighbourhood:
            inputs = WithNeighbours(inputs, self._neighbourhoods(images, seen[1](pairs.mean_texts())))
        generator = torch.Generator().manual_seed(self.seed)
        image, text = (Tower(side, self.hidden, self.n_bits, self.activation, generator) for side in seen)
        if not self.hidden and self.inputs == "correlated" and self.n_bits <= images.shape[1]:
            _start_from_rotation((image, text), (images[pairs.owners], texts), self.n_bits, self.seed)
        network = TwoTowers(image, text)
        steps = self.epochs, self.batch_size, self.learning_rate
        settings = TrainingSettings(*steps, "adamw", self.weight_decay, schedule="cosine")

        def loss(codes: Tensor, batch: Batch) -> Tensor:
            return neighbour_contrast(codes, batch.targets[0].repeat(2, 2), temperature=self.temperature)

        with one_thread():
            self.history_["loss"] = train(network, inputs, loss, settings, seed=self.seed, device=self.device)
        return image.fold(), text.fold()

    def _neighbourhoods(self, images: Floats, texts: Floats) -> NDArray[np.int32]:
        """N(i) of every item ``(n, k)``, found within random parts of at most 10,000."""
        parts, kept = random_parts(len(images), _PART, self.neighbourhood, self.seed)
        compared = np.hstack([centred_unit(images), centred_unit(texts)])
        neighbours = np.empty((len(images), kept), np.int32)
        for part in parts:
            neighbours[part] = part[agreeing_neighbours(compared[part], kept, kept)]
        return neighbours


def _start_from_rotation(towers: tuple[Tower, Tower], rows: tuple[Floats, Floats], n_bits: int, seed: int) -> None:
    """Set linear towers to CCA-ITQ's hash functions, with outputs of mean square 1 (where tanh has a gradient)."""
    leading = [side[:, :n_bits].astype(np.float64) for side in rows]
    rotation, _ = code_rotation(np.concatenate(leading), _ROTATION_UPDATES, seed)
    with torch.no_grad():
        for tower, side in zip(towers, leading, strict=True):
            scale = max(float(np.sqrt(np.mean((side @ rotation) ** 2))), 1e-12)
            layer = tower[0]
            assert isinstance(layer, nn.Linear)
            layer.weight.zero_()
            layer.weight[:, :n_bits] = torch.from_numpy((rotation / scale).T)


class TwoTowers(nn.Module):
    """Rows of an image beside a text to codes ``(2 b, n_bits)``, those of the images first."""

    def __init__(self, image: Tower, text: Tower) -> None:
        super().__init__()
        self.image, self.text = image, text

    def forward(self, rows: Tensor) -> Tensor:
        """Signs with the gradient of tanh."""
        n = self.image.inputs.width
        return tanh_through_sign(torch.cat([self.image(rows[:, :n]), self.text(rows[:, n:])]))
