"""DUH-EG: texts from outside say which images belong together, and are one more view of each image.

Paper: Song, Liu, Zhu, Zhou, Peng, Hu, "Deep Unsupervised Hashing via External Guidance", ICML 2025.
https://openreview.net/forum?id=tAwNFWTXSr; equations and numbers from the authors' release.

Symbols: N -> representative texts, of length 1 (``representative_texts``); e_i = unit(softmax(N q_i / t_N) N) -> the external feature of
image i, of which q_i is the feature that is matched (``external_features``); v1, v2, e -> tanh outputs of two views of every image and
of its external feature; S_ij = [<e_i, e_j> > ``alike``]. Contrast of a with b: the mean over i of -log of the share of the positives, S_ij,
in softmax_j(cos(a_i, b_j) / t). Loss: the contrasts of v1 with e, v2 with e and v1 with v2; without views that of v1 with e.

The paper finds external texts for images alone: q_i is the image itself, as CLIP has images and nouns of WordNet in one space. No backbone
here shares a space with a text encoder. So the method learns from image-text pairs: q_i is the mean of the image's own texts, and N is
chosen among all texts. Whoever has features in one space does as the paper does::

    nouns = representative_texts(noun_features, 800, 0.9, seed=0)
    make_hasher("duh-eg", 64, match_temperature=0).fit(images, external_features(images, nouns, 0.004), views=views)

Departs from the paper in:
1. The matched feature is the mean text (above). The text function also encodes texts that are no external features, such as a query.
2. N holds the text nearest to each of ``clusters`` centres, and those whose cosine with their centre is above ``representative``. The
   release computes both and writes down the second alone. Centres are those of one run of k-means on rows of length 1; released:
   spherical k-means, the best of ten runs.
3. Inputs are standardised by one scale a modality; released: divided by their lengths.
4. Adam at 1e-3, falling to zero, in batches of 128; released: 1e-4, warmed up over 10 epochs and falling to 1e-5, in batches of 512.
5. Codes are signs. The released evaluation ranks by tanh outputs, so the published MAP is that of real vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Gt, Interval
from numpy.typing import NDArray

from distillhash.methods.base import AffineLayers
from distillhash.methods.heads import affine, linear
from distillhash.methods.image_text import CrossModalHasher, Standardised, TrainingPairs
from distillhash.methods.linear_algebra import directions, k_means, row_blocks
from distillhash.methods.training import Batch, CachedFeatures, TrainingSettings, one_thread, train
from distillhash.pytorch import Tensor, functional, nn, torch


class DUHEG(CrossModalHasher):
    """External guidance. ``history_["loss"]`` holds the mean loss of each epoch, ``history_["texts"]`` how many texts represent all.

    Attributes:
        clusters: Groups of texts, of each of which the one nearest to the centre represents it.
        representative: Cosine with its centre above which a text is kept as well.
        match_temperature: t_N of the matching; 0 takes the mean text of an image as its external feature.
        alike: Cosine of external features above which images are positives.
        temperature: t of the contrasts.
        hidden: Width of the hidden layers.
        epochs: Passes over the images.
        batch_size: Images a step.
        learning_rate: Adam's step size at the start; it falls to zero along a cosine.
        device: torch device to train on.
    """

    method = "duh-eg"
    title = "Deep Unsupervised Hashing via External Guidance"
    venue, year = "ICML", 2025
    kind = "cross-modal"
    uses_views = True
    activation = "relu"
    clusters: Annotated[int, Ge(1)] = 800
    representative: Annotated[float, Interval(ge=-1, le=1)] = 0.9
    match_temperature: Annotated[float, Ge(0)] = 0.004
    alike: Annotated[float, Interval(ge=-1, le=1)] = 0.97
    temperature: Annotated[float, Gt(0)] = 0.8
    hidden: Annotated[int, Ge(1)] = 512
    epochs: Annotated[int, Ge(1)] = 60
    batch_size: Annotated[int, Ge(2)] = 128
    learning_rate: Annotated[float, Gt(0)] = 1e-3
    device: str = "cpu"

    def _fit_pairs(self, pairs: TrainingPairs) -> tuple[AffineLayers, AffineLayers]:
        external = directions(pairs.mean_texts())
        if self.match_temperature:
            texts = representative_texts(pairs.texts, self.clusters, self.representative, seed=self.seed)
            self.history_["texts"] = len(texts)
            external = external_features(external, texts, self.match_temperature)
        seen = Standardised(pairs.images), Standardised(external)
        views = None if pairs.views is None else np.stack([seen[0](view) for view in pairs.views])
        inputs = _Triples(CachedFeatures(seen[0](pairs.images), views), views is not None, seen[1](external), external)
        generator = torch.Generator().manual_seed(self.seed)
        image, text = (_layers(side.width, self.hidden, self.n_bits, generator) for side in seen)
        network = _Towers(image, text, (seen[0].width, seen[1].width))
        settings = TrainingSettings(self.epochs, self.batch_size, self.learning_rate, "adam", schedule="cosine")
        with one_thread():
            losses = train(network, inputs, self._loss, settings, seed=self.seed, device=self.device)
        self.history_["loss"] = losses
        return _fold(image, seen[0]), _fold(text, seen[1])

    def _loss(self, outputs: tuple[Tensor, Tensor], batch: Batch) -> Tensor:
        images, e = outputs
        (external,) = batch.targets
        positives = external @ external.T > self.alike
        positives.fill_diagonal_(True)
        views = images.chunk(len(images) // len(e))
        loss = torch.stack([guided_contrast(view, e, positives, self.temperature) for view in views]).sum()
        if len(views) == 1:
            return loss
        return loss + guided_contrast(views[0], views[1], positives, self.temperature)


def representative_texts(
    texts: NDArray[Any], clusters: int, representative: float, *, seed: int
) -> NDArray[np.float64]:
    """N ``(m, e)``, rows of length 1, of ``texts (t, e)`` without duplicates: the nearest to a centre, and those near to theirs."""
    unit = np.unique(directions(texts), axis=0)
    centres = directions(k_means(unit, clusters, 20, np.random.default_rng(seed))[0])
    cosines = unit @ centres.T
    own = cosines.argmax(axis=1)
    kept = cosines[np.arange(len(unit)), own] > representative
    kept[cosines.argmax(axis=0)] = True
    return np.asarray(unit[kept])


def external_features(matched: NDArray[Any], texts: NDArray[Any], temperature: float) -> NDArray[np.float64]:
    """External features ``(n, e)``, rows of length 1, of ``matched (n, e)`` and representative ``texts (m, e)`` in one space."""
    blocks = []
    texts = directions(texts)
    for block in row_blocks(matched):
        logits = directions(block) @ texts.T / temperature
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        blocks.append(directions(shares @ texts))
    return np.concatenate(blocks)


def guided_contrast(first: Tensor, second: Tensor, positives: Tensor, temperature: float) -> Tensor:
    """Mean over the rows of ``first (b, K)`` of -log of the share of its ``positives (b, b)`` among the rows of ``second (b, K)``."""
    logits = functional.normalize(first) @ functional.normalize(second).T / temperature
    right = logits.masked_fill(~positives, -torch.inf)
    return (logits.logsumexp(dim=1) - right.logsumexp(dim=1)).mean()


@dataclass(frozen=True)
class _Triples:
    """Batches of one or two views of images beside their external features; the target is these as they are."""

    images: CachedFeatures
    two_views: bool
    texts: NDArray[np.float32]
    external: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.texts)

    def batch(self, rows: NDArray[np.intp], rng: np.random.Generator) -> Batch:
        """``(b, d + e)`` or ``(b, 2 d + e)``."""
        drawn = self.images.pair(rows, rng, 0) if self.two_views else self.images.batch(rows, rng)
        views = drawn.inputs.chunk(len(drawn.inputs) // len(rows))
        inputs = torch.cat([*views, torch.from_numpy(self.texts[rows])], dim=1)
        return Batch(inputs, rows, (torch.from_numpy(self.external[rows].astype(np.float32)),))


class _Towers(nn.Module):
    """Tanh outputs of the images, one view after the other, and of the external features."""

    def __init__(self, image: nn.Module, text: nn.Module, widths: tuple[int, int]) -> None:
        super().__init__()
        self.image, self.text = image, text
        self.image_width, self.text_width = widths

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        images, texts = rows[:, : -self.text_width], rows[:, -self.text_width :]
        views = images.chunk(images.shape[1] // self.image_width, dim=1)
        return torch.cat([torch.tanh(self.image(view)) for view in views]), torch.tanh(self.text(texts))


def _layers(width: int, hidden: int, n_bits: int, generator: torch.Generator) -> nn.Sequential:
    first = linear(width, hidden, generator, gain=2.0)
    return nn.Sequential(first, nn.BatchNorm1d(hidden), nn.ReLU(), linear(hidden, n_bits, generator))


def _fold(network: nn.Sequential, inputs: Standardised) -> AffineLayers:
    """The same function of raw features in float64; the batch normalisation goes into the first layer."""
    first, norm, _, last = network.cpu().double()
    assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear) and isinstance(norm, nn.BatchNorm1d)
    assert norm.running_var is not None and norm.running_mean is not None
    scale = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).detach().numpy()
    weight, bias = affine(first)
    bias = (bias - norm.running_mean.numpy()) * scale + norm.bias.detach().numpy()
    return AffineLayers(inputs.mean, [(inputs.fold(weight * scale), bias), affine(last)], "relu")
