"""DistillHash-contrast: distilled neighbourhoods as positives of a contrastive loss on binary codes. This project's own method.

Not in a paper. DistillHash (CVPR 2019) trains on the pairs whose label can be trusted. Here a pair is trusted when the two neighbourhoods
agree. The pairs train the loss of supervised contrastive learning (Khosla et al., NeurIPS 2020), with an image's neighbours in place of
its class. docs/distillhash-contrast.md has the measurements behind every choice.

1. Features become their signed square roots at unit length (:func:`~distillhash.supervision.agreement.root_rows`).
2. A linear metric weighs each direction by how much more images differ in it than the augmented views of one image do, or, without views,
   than nearest neighbours do (:func:`~distillhash.supervision.agreement.invariant_metric`). Images are compared in it by their features,
   by the mean over their views, and by the teacher where there is one: features of larger images, which are not needed once the hash
   function is learned (Vapnik and Vashist 2009 call such features privileged).
3. An image's neighbourhood N(i) is the ``neighbourhood`` share of images whose lists of nearest neighbours overlap most with its own
   (:func:`~distillhash.supervision.agreement.agreeing_neighbours`). With fewer than 2,000 images part of it is the nearest by plain cosine.
4. A batch holds B images and, for each, one of N(i), every one as a random view. Pairs (i, j) with j in N(i), or i in N(j), are positives;
   all others are negatives. A random tenth of the features of each row is left out, which matters most where there are no views. Loss:
   :func:`~distillhash.supervision.losses.neighbour_contrast` on the codes sign(u), with the gradient of tanh(u).
5. u is the sum of two outputs: those of a linear hash function that is not trained (:func:`linear_start`), and those of a hidden layer
   that is.

Neighbourhoods are found within random parts of at most ``part`` images, so that time is linear and memory constant in the number of
images. With more than 50,000 images each batch comes from one part. Where fewer than 8 images of a part would be neighbours, of more than
50,000 images, parts are larger, so that 32 are, and a graph finds them (:mod:`distillhash.supervision.graph`).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from annotated_types import Ge, Gt, Interval
from numpy.typing import NDArray

from distillhash.methods.base import Layers, TrainingSet, sample_rows
from distillhash.methods.heads import MANY, Head, HeadHasher, straight_through_sign, tanh_through_sign
from distillhash.methods.itq import ITQ
from distillhash.methods.training import Batch, CachedFeatures, ImageRows, Inputs, Schedule, WithNeighbours
from distillhash.pytorch import Tensor, nn, torch
from distillhash.supervision import agreement
from distillhash.supervision.agreement import centred_unit, random_parts, root_rows
from distillhash.supervision.losses import neighbour_contrast
from distillhash.supervision.neighbours import first_of_both, nearest_neighbours
from distillhash.supervision.similarity import Floats, cosine_distances, row_blocks, unit_rows

Weight = NDArray[np.float64]

ROTATED = 10_000  # rows that ITQ learns from at most: its rotation has n_bits^2 numbers and needs no more of them
FEWEST, LISTED = 8, 32  # neighbours in a part: fewer want a larger part, in which so many are
SHARP, SOFT = 0.3, 0.5  # temperatures with and without views
SPREAD = 3.0  # standard deviation of the outputs that the head starts from
CODES: dict[str, Callable[[Tensor], Tensor]] = {  # by ``gradient``
    "tanh": tanh_through_sign,
    "identity": straight_through_sign,
    "relaxed": torch.tanh,
}
# With fewer images the head learns less and keeps more of its start, because they teach little. Long codes keep still more of it.
ENOUGH = 2_000


class DistillHashContrast(HeadHasher):
    """Distilled neighbourhoods and contrastive codes. Further hyper-parameters: see :class:`HeadHasher`.

    ``neighbours_`` are the rows of N(i), ``(m, k)``, among ``history_["rows"]``: those that agree, nearest first, and then the plain ones.
    ``temperature_`` is the tau of the training.

    Attributes:
        root: Take signed square roots of the features, for the neighbourhoods and for the head.
        metric: Compare features in the ``invariant`` metric or by plain ``cosine``.
        directions: Directions that the metric keeps.
        emphasis: How much the metric favours directions that views leave alone.
        neighbourhood: Share of the images (of a part) that make up N(i); at least 5 of them.
        agreement: Order them by ``overlap`` of neighbour lists or by ``cosine`` alone.
        positives: ``all`` neighbours in the batch, or only the ``one`` drawn with the image; the others are negatives then.
        start: Standard deviation of the outputs of the linear hash function that the head starts from: the larger, the more of it stays.
            None takes 3, and with n < 2,000 images 3 (2,000 / n)^e, where e = log2(n_bits) - 3.5, from 0 to 5; 0 starts from nothing.
        plain_share: Share of the plain features in what the start is made from, and share of the nearest by plain cosine in N(i). None
            takes 0, and with n < 2,000 images 1 - (n / 2,000)^2.
        gradient: What stands for the codes in training: sign(u) with the gradient of ``tanh``, or of the ``identity``; or ``relaxed``,
            tanh(u) itself, so that outputs near 0 count little.
        temperature: tau; None takes 0.3 where there are views, and 0.5 where there are none: positives are less pure then.
        dropout: Share of the features that are left out in training, drawn anew for every row.
        max_seen: Limit on the rows of all passes together without views: equal rows teach the mistakes of the neighbourhoods.
        part: Images among which neighbourhoods are found; memory is about 4 bytes times its square.
    """

    method = "distillhash-contrast"
    title = "Distilled neighbourhoods and contrastive codes"
    venue, year = "this project", 2026
    kind = "contrastive"
    uses_views = True
    chooses_views = True
    uses_teacher = True
    hidden: Annotated[int, Ge(0)] = 1024
    epochs: Annotated[int, Ge(1)] = 20
    batch_size: Annotated[int, Ge(2)] = 256
    schedule: Schedule = "cosine"
    root: bool = True
    metric: Literal["invariant", "cosine"] = "invariant"
    directions: Annotated[int, Ge(1)] = 256
    emphasis: Annotated[float, Ge(0)] = 0.25
    neighbourhood: Annotated[float, Interval(gt=0, le=1)] = 0.02
    agreement: Literal["overlap", "cosine"] = "overlap"
    positives: Literal["all", "one"] = "all"
    start: Annotated[float, Ge(0)] | None = None
    plain_share: Annotated[float, Interval(ge=0, le=1)] | None = None
    gradient: Literal["tanh", "identity", "relaxed"] = "tanh"
    temperature: Annotated[float, Gt(0)] | None = None
    dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.1
    max_seen: Annotated[int, Ge(1)] = 50_000
    part: Annotated[int, Ge(20)] = 10_000

    def _fit(self, given: TrainingSet) -> None:
        data = self._data(given)
        self.neighbours_ = self._neighbourhoods(data.features, data.views, data.teacher)
        self.temperature_ = self.temperature or (SHARP if data.views is not None else SOFT)
        features = self._transform(data.features)
        head = Head(features, self.n_bits, self.seed, self.hidden)
        start = self._start(features, data.features, data.teacher)
        plain_mean = data.features.mean(axis=0, dtype=np.float64)
        del features  # training takes the plain ones
        module: nn.Module = head
        if start is not None:
            zero_last_layer(head)
            module = PlusLinear(module, head.mean, start.features)
        if self.root:
            module = nn.Sequential(agreement.RootRows(), module)
        if start is not None and start.plain is not None:
            module = PlusLinear(module, plain_mean, start.plain)
        dropped = FeatureDropout(self.dropout, torch.Generator().manual_seed(self.seed + 1))
        epochs = self.epochs
        if data.views is None:
            epochs = min(epochs, max(1, round(self.max_seen / len(data.features))))
        _, self.history_["loss"] = self._train(nn.Sequential(dropped, module), data, epochs=epochs)
        self._keep(head)
        self.plain_: NDArray[np.float64] | None = None if start is None else start.plain
        if start is not None:
            self.layers_ = add_start(self.layers_, start.features)
        if self.plain_ is not None:
            self.layers_[-1][1][:] -= plain_mean @ self.plain_

    def batches(self, source: CachedFeatures | ImageRows) -> Inputs:
        """Images and a neighbour of each."""
        parts = self._parts if len(source) > MANY and len(self._parts) > 1 else None
        return WithNeighbours(source, self.neighbours_, all_positives=self.positives == "all", parts=parts)

    def batch_loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The contrastive loss of the codes."""
        (positives,) = batch.targets
        return neighbour_contrast(CODES[self.gradient](outputs), positives, temperature=self.temperature_)

    def _transform(self, features: NDArray[Any]) -> NDArray[Any]:
        return root_rows(features) if self.root else features

    def _start(self, features: Floats, plain: Floats, teacher: Floats | None) -> LinearStart | None:
        spread = self.start
        if spread is None:  # the limit of 5 keeps numbers finite for a few images and thousands of bits
            spread = SPREAD / _trusted(len(features)) ** float(np.clip(np.log2(self.n_bits) - 3.5, 0, 5))
        if not spread:
            return None
        teacher, share = None if teacher is None else self._transform(teacher), self._plain_share(len(features))
        return linear_start(features, plain, teacher, self.n_bits, spread=spread, plain_share=share, seed=self.seed)

    def _plain_share(self, n: int) -> float:
        return 1 - _trusted(n) ** 2 if self.plain_share is None else self.plain_share

    def _project(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        outputs = super()._project(self._transform(features))
        return outputs if self.plain_ is None else outputs + features @ self.plain_

    def state(self) -> dict[str, NDArray[Any]]:
        """The head, and the weights of plain features ``(d, n_bits)`` where the start has some."""
        return super().state() | ({} if self.plain_ is None else {"plain": self.plain_})

    def _set_state(self, state: dict[str, NDArray[Any]]) -> None:
        super()._set_state(state)
        plain = state.get("plain")
        if plain is not None and plain.shape != (len(self.mean_), self.n_bits):
            raise ValueError(f"plain weights of shape {plain.shape}")
        self.plain_ = plain

    def _neighbourhoods(self, features: Floats, views: Floats | None, teacher: Floats | None) -> NDArray[np.int32]:
        """N(i) of every row ``(m, k)``; the same k in every part."""
        from distillhash.supervision.graph import graph_neighbours, nearest_by_overlap  # here, as it imports numba

        n = len(features)
        size = self.part
        if n > MANY and self.neighbourhood * size < FEWEST:
            size = -(-n // max(1, round(self.neighbourhood * n / LISTED)))
        self._parts, kept = random_parts(n, size, self.neighbourhood, self.seed)
        compared = self._compared(features, views, teacher, kept)
        agreeing = kept - round(kept * self._plain_share(n))
        neighbours = np.empty((n, kept), np.int32)

        def nearest(rows: Floats) -> NDArray[np.int32]:
            if len(rows) > self.part:
                return graph_neighbours(rows, kept, seed=self.seed)
            return nearest_neighbours(cosine_distances(rows), kept)

        for part in self._parts:
            found = nearest(compared[part])
            if self.agreement == "overlap":
                found = nearest_by_overlap(found, kept)
            if agreeing < kept:
                found = first_of_both(found[:, :agreeing], nearest(centred_unit(features[part])))
            neighbours[part] = part[found]
        return neighbours

    def _compared(self, features: Floats, views: Floats | None, teacher: Floats | None, kept: int) -> Floats:
        """What cosines are taken of: features, the mean over views and the teacher's features side by side, in the metric."""
        features, blocks = self._transform(features), row_blocks(len(features))
        kinds: list[Callable[[slice], NDArray[Any]]] = [lambda block: features[block]]
        metric: NDArray[np.float64] | None = None
        if views is not None:

            def mean_of_copies(block: slice) -> NDArray[Any]:
                """Computed anew each time: an array of the roots of all views would be the largest of all."""
                total = sum(self._transform(view[block]) for view in views)
                return np.asarray((features[block] + total) / (len(views) + 1))

            kinds.append(mean_of_copies)
        if teacher is not None:
            kinds.append(lambda block: self._transform(teacher[block]))
        if self.metric == "invariant":
            if views is None:  # nearest neighbours, few of them and in one part of the rows, stand in for views
                rows = np.sort(np.random.default_rng(self.seed).permutation(len(features))[: self.part])
                near = nearest_neighbours(cosine_distances(centred_unit(features[rows])), min(10, kept))
                within = agreement.scatter_of_neighbours(features[rows], near)
            else:
                within = np.zeros((features.shape[1],) * 2)
                for block in blocks:
                    copies = chain([features[block]], (self._transform(view[block]) for view in views))
                    share = len(features[block]) / len(features)
                    within += agreement.scatter_of_views(mean_of_copies(block), copies) * share
            total = agreement.scatter_of_items(features)
            metric = agreement.invariant_metric(total, within, directions=self.directions, emphasis=self.emphasis)

        def whole(kind: Callable[[slice], NDArray[Any]]) -> NDArray[Any]:
            return np.concatenate([kind(block) if metric is None else kind(block) @ metric for block in blocks])

        return np.hstack([centred_unit(whole(kind)) for kind in kinds])


def _trusted(n: int) -> float:
    return min(1.0, n / ENOUGH)


class LinearStart(NamedTuple):
    """Weights ``(d, n_bits)`` of the features and, unless None, of the plain features, each less their mean."""

    features: Weight
    plain: Weight | None


def linear_start(
    features: Floats,
    plain: Floats,
    teacher: Floats | None,
    n_bits: int,
    *,
    spread: float,
    plain_share: float,
    seed: int,
) -> LinearStart:
    """A linear hash function of features and plain features, less their means, which the head starts from.

    It is ITQ (Gong et al., CVPR 2011) of what a ridge regression (Hoerl and Kennard, Technometrics 1970) predicts: better features of the
    same images where there are any, otherwise the features themselves, whose directions of little variance it shrinks. A regression from
    few images predicts little of others; with few of them the plain features stand beside what it predicts. The start is not trained;
    layers beside it are, whose outputs are 0 at first. The gradient of a sign through tanh vanishes where outputs are large, so the bits
    that the start is sure of stay: few images change little of it, many images much.

    ``plain (n, d)`` are the features before the transformation, with a ``plain_share`` of the squared length of what ITQ is given.
    ``teacher (n, d)`` are the regression's targets; None takes ``features (n, d)``. ``spread`` is the outputs' standard deviation. ITQ
    gives at most min(n - 1, d) bits; for longer codes all directions are random.
    """
    n, d = features.shape
    kinds = [(features, features.mean(axis=0))]
    maps = [_regression(features, features if teacher is None else teacher)]
    del teacher  # as large as the features, and no longer needed
    if plain_share:
        kinds.append((plain, plain.mean(axis=0)))
        maps.append(_emphasis(plain))
        for number, share in enumerate((1 - plain_share, plain_share)):
            rows, mean = kinds[number]
            lengths = [np.linalg.norm((rows[block] - mean) @ maps[number], axis=1) for block in row_blocks(n)]
            maps[number] *= np.sqrt(share) / (float(np.concatenate(lengths).mean()) or 1.0)
    rng = np.random.default_rng(seed)
    if n_bits <= min(n - 1, d):
        sample = sample_rows(n, ROTATED, rng)
        seen = [(rows[sample] - mean) @ weight for (rows, mean), weight in zip(kinds, maps, strict=True)]
        rotation = ITQ(n_bits, seed=seed).fit(unit_rows(np.hstack(seen))).weight_
    else:
        rotation = rng.standard_normal((len(maps) * d, n_bits))
    weights = [weight @ part for weight, part in zip(maps, np.split(rotation, len(maps)), strict=True)]
    outputs = [
        sum((rows[block] - mean) @ weight for (rows, mean), weight in zip(kinds, weights, strict=True))
        for block in row_blocks(n)
    ]
    scale = spread / (float(np.std(np.concatenate(outputs))) or 1.0)
    return LinearStart(weights[0] * scale, weights[1] * scale if plain_share else None)


def _emphasis(rows: NDArray[Any]) -> Weight:
    """Symmetric ``(d, d)``: scales every principal direction by the fourth root of its standard deviation, relative to the largest."""
    from scipy.linalg import eigh

    variances, directions = eigh(_products(rows, rows))
    relative = np.maximum(variances, 0) / (variances[-1] if variances[-1] > 0 else 1.0)
    return np.asarray((directions * relative**0.125) @ directions.T)


def _regression(inputs: NDArray[Any], targets: NDArray[Any]) -> Weight:
    """Ridge regression ``(d, d)`` between rows less their means; the penalty counts as much as one row of mean length."""
    from scipy.linalg import solve

    products = _products(inputs, inputs)
    penalty = np.trace(products) / len(inputs) or 1.0
    return np.asarray(solve(products + penalty * np.eye(len(products)), _products(inputs, targets), assume_a="pos"))


def _products(left: NDArray[Any], right: NDArray[Any]) -> Weight:
    """Products ``(d, d)`` of the columns of two sets of rows, each less its mean."""
    means = left.mean(axis=0), right.mean(axis=0)
    products = np.zeros((left.shape[1], right.shape[1]))
    for block in row_blocks(len(left)):
        off = left[block] - means[0]
        products += off.T @ (off if right is left else right[block] - means[1])
    return products


def zero_last_layer(layers: nn.Sequential) -> None:
    """Make layers give 0 until they learn."""
    last = layers[-1]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)


class PlusLinear(nn.Module):
    """Outputs of a module, plus those of a linear map that is not trained."""

    mean: Tensor
    weight: Tensor

    def __init__(self, module: nn.Module, mean: NDArray[np.float64], weight: Weight) -> None:
        super().__init__()
        self.module = module
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("weight", torch.tensor(weight, dtype=torch.float32))

    def forward(self, inputs: Tensor) -> Tensor:
        """``(b, d)`` to ``(b, n_bits)``."""
        outputs: Tensor = (inputs - self.mean) @ self.weight + self.module(inputs)
        return outputs


def add_start(layers: Layers, start: NDArray[np.float64]) -> Layers:
    """One or two layers with ReLU between that give what ``layers`` gave plus the start.

    Past a hidden layer it goes as two units a bit, for x = relu(x) - relu(-x).
    """
    (weight, bias), *rest = layers
    if not rest:
        return [(weight + start, bias)]
    (last, last_bias), n_bits = rest[0], start.shape[1]
    return [
        (np.hstack([weight, start, -start]), np.concatenate([bias, np.zeros(2 * n_bits)])),
        (np.vstack([last, np.eye(n_bits), -np.eye(n_bits)]), last_bias),
    ]


class FeatureDropout(nn.Module):
    """Dropout that draws from a given generator, so that the seed decides it."""

    def __init__(self, share: float, generator: torch.Generator) -> None:
        super().__init__()
        self.share, self.generator = share, generator

    def forward(self, features: Tensor) -> Tensor:
        """``(b, d)`` to ``(b, d)``."""
        if not self.training or not self.share:
            return features
        kept = torch.rand(features.shape, generator=self.generator) >= self.share
        return features * kept.to(features) / (1 - self.share)
