"""URPH: codes that rank as the features do.

Paper: Karaman, Lin, Hu, Chang, "Unsupervised Rank-Preserving Hashing for Large-Scale Image Retrieval", ICMR 2019.
https://arxiv.org/abs/1903.01545

Symbols: r_qi = cos(x_q, x_i) -> similarities of the features; s_qi = <u_q, u_i> / K, u = tanh(outputs) -> of the codes. Every row
of a batch is a query over the others. ``rank_loss="listwise"``: KL(softmax(r_q / t1) || softmax(s_q / t2)), mean over queries.
``"pairwise"``: the hinge max(0, margin - (s_qi - s_qj)) over the pairs whose ranks by r_q are half a list apart, weighted by 1 /
log2(1 + rank of i), the rank counted from 1.

``preset="nearest"`` is about the first ranks and keeps more of them than ``itq``. b = sign(R' S P' (x / |x| - f m)): m -> mean of the rows
of length 1; P -> their w K leading principal directions; S = diag((sigma_1 / sigma_j)^a) -> weights by the standard deviations sigma; R
-> orthonormal (w K, K), by ITQ's alternation, which with w > 1 chooses the subspace too (with w < 1, R R' = I). Then S P R is trained to
lower the mean of -log softmax(c <b_q, b_i> / K) over each query's nearest rows in the batch, b with the gradient of tanh, c learned. Two
halves of the rows, each judged by what was learned from the other, choose w, a, f in turn, and whether the training is kept.

RECONSTRUCTED: of the paper only the abstract was found. The loss rests on "considering each training sample as a query and aiming to obtain
the same retrieval results using the produced hash codes as those obtained with the original features", the decoder on "a decoder trained to
obtain an approximated reconstruction of the original features". Losses, network and numbers are our interpretation.

Departs from the paper in:
1. Which rank loss the paper uses is not known; three are here. The default ranks whole batches.
2. The decoder is the closed-form one that every method has. It re-ranks better than a trained one did.
3. Cosines are of centred features, with ``nearest`` of the features as they are. Batches are random rows.
4. The start from ITQ, and the choice by rows held out, are ours.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
from annotated_types import Ge, Gt
from numpy.typing import NDArray

from distillhash.codes import Codes
from distillhash.errors import DataError, ParameterError
from distillhash.methods.base import TrainingSet, sample_rows
from distillhash.methods.heads import Data, HeadHasher, passes, tanh_through_sign, unit_features
from distillhash.methods.linear_algebra import directions, orthonormal_projection, principal_components
from distillhash.methods.training import Batch, CachedFeatures, Targets, one_thread, row_targets, train
from distillhash.metrics.neighbours import neighbour_recall
from distillhash.pytorch import Tensor, functional, nn, torch

Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]
_ROTATIONS = 30
_QUERIES = 256
_STARTS, _SHORT = 4, 32
_TRIAL_ROWS = 5_000
_FEWEST_TO_JUDGE = 50
_SMALLEST_DEVIATION = 1e-4  # of the largest: what lies below is rounding


class Choice(NamedTuple):
    """Principal directions for each bit, the power a, the share of the mean that is taken away, and whether there is training."""

    width: float = 1.5
    power: float = 0.0
    share: float = 0.9
    trained: bool = False


# Tried in this order. A candidate must find more than noise explains: by a share of _NOISE / number of rows.
_OPTIONS: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("width", (0.5, 1.0)),
    ("power", (0.25, 0.5)),
    ("share", (1.0, 0.75)),
    ("trained", (True,)),
)
_NOISE = 10.0


class URPH(HeadHasher):
    """Rank-preserving codes. Further hyper-parameters: see :class:`HeadHasher`.

    With ``start="itq"``, ``history_["choice"]`` holds the chosen width, power and share, and whether training was kept;
    ``history_["held_out"]`` lists what was tried with the neighbour recall of rows that were held out.

    Attributes:
        start: ``random`` weights, or ``itq``, which takes ``rank_loss="nearest"`` and learns from fixed features.
        rank_loss: ``listwise``, ``pairwise``, or, with ``start="itq"``, ``nearest``.
        neighbours: Nearest rows of a batch that ``nearest`` keeps in front.
        feature_temperature: t1.
        code_temperature: t2.
        margin: Margin of the pairwise hinge.
        quantisation: Weight of the ``mean (|u| - 1)^2``.
        balance: Weight of the mean over bits of (mean u)^2.
    """

    method = "urph"
    title = "Unsupervised Rank-Preserving Hashing for Large-Scale Image Retrieval"
    venue, year = "ICMR", 2019
    kind = "similarity preserving"
    reconstructed = "losses, network and numbers"
    RETIRED = frozenset({"decoder_hidden", "decoder_epochs"})
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "nearest": {
            "start": "itq",
            "rank_loss": "nearest",
            "batch_size": 3000,
            "epochs": 40,
            "learning_rate": 2e-3,
            "schedule": "cosine",
        },
    }
    batch_size: Annotated[int, Ge(2)] = 256
    start: Literal["random", "itq"] = "random"
    rank_loss: Literal["listwise", "pairwise", "nearest"] = "listwise"
    neighbours: Annotated[int, Ge(1)] = 3
    feature_temperature: Annotated[float, Gt(0)] = 0.1
    code_temperature: Annotated[float, Gt(0)] = 0.2
    margin: Annotated[float, Ge(0)] = 0.1
    quantisation: Annotated[float, Ge(0)] = 0.1
    balance: Annotated[float, Ge(0)] = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.start == "itq") != (self.rank_loss == "nearest"):
            raise ParameterError(
                f"start={self.start!r} does not go with rank_loss={self.rank_loss!r}; take preset='nearest', or start='random'"
            )
        if self.start == "itq" and self.hidden:
            raise ParameterError(f"start='itq' trains one linear layer; leave out hidden={self.hidden}")

    def _fit(self, given: TrainingSet) -> None:
        if self.start == "random":
            super()._fit(given)
            return
        if given.images is not None:
            raise ParameterError(
                "start='itq' learns from fixed features and cannot fine-tune a backbone; leave that out"
            )
        unit = directions(self._data(given).features).astype(np.float32)
        choice = self._choose(unit)
        self.history_["choice"] = choice._asdict()
        basis, rng = self._basis(unit), np.random.default_rng(self.seed)
        found = [self._learn_projection(unit, basis, choice, start) for start in range(self._n_starts)]
        sample = unit[sample_rows(len(unit), _TRIAL_ROWS // 2, rng)]
        best = max(found, key=lambda one: _recall(one[0], one[1], sample)) if len(found) > 1 else found[0]
        self.mean_, weight = best
        self.layers_ = [(weight, np.zeros(self.n_bits))]

    def _choose(self, unit: Floats32) -> Choice:
        """The first choice, unless another finds more neighbours: two halves of the rows, each judged by what the other learned."""
        best, tried = Choice(), list[tuple[Choice, float]]()
        rows = np.random.default_rng(self.seed).permutation(len(unit))[:_TRIAL_ROWS]
        halves = unit[rows[::2]], unit[rows[1::2]]
        if len(halves[1]) < _FEWEST_TO_JUDGE:
            return best
        bases, gain = [self._basis(half) for half in halves], 1 + _NOISE / len(rows)

        def recall(choice: Choice) -> float:
            values = [
                _recall(*self._learn_projection(half, basis, choice, start), other)
                for half, basis, other in zip(halves, bases, halves[::-1], strict=True)
                for start in range(self._n_starts)
            ]
            found = float(np.mean(values))
            tried.append((choice, found))
            return found

        highest = recall(best)
        for name, values in _OPTIONS:
            others = [best._replace(**{name: value}) for value in values]
            found = [recall(other) for other in others]
            if max(found) > highest * gain:
                highest = max(found)
                best = others[found.index(highest)]
        self.history_["held_out"] = [(choice._asdict(), value) for choice, value in tried]
        return best

    @property
    def _n_starts(self) -> int:
        """Random starts: short codes differ by .01 in recall, long ones hardly."""
        return _STARTS if self.n_bits <= _SHORT else 1

    def _basis(self, unit: Floats32) -> tuple[Floats, Floats]:
        """Mean and as many principal directions as any choice takes: the first takes most."""
        return principal_components(unit, min(math.ceil(Choice().width * self.n_bits), unit.shape[1]))

    def _learn_projection(
        self, unit: Floats32, basis: tuple[Floats, Floats], choice: Choice, start: int
    ) -> tuple[Floats, Floats]:
        """What is taken from rows of length 1, ``(d,)``, and the weights ``(d, n_bits)`` that follow."""
        mean, components = basis
        mean, components = choice.share * mean, components[:, : math.ceil(choice.width * self.n_bits)]
        rows = (unit - mean.astype(np.float32)) @ components.astype(np.float32)
        deviations = rows.std(axis=0, dtype=np.float64)
        kept = deviations > _SMALLEST_DEVIATION * deviations.max()
        if not kept.any():
            raise DataError(
                "all features point the same way, which tells nothing about neighbours; give more varied ones"
            )
        scale = (deviations[kept] / deviations.max()) ** -choice.power
        rows, components = rows[:, kept] * scale.astype(np.float32), components[:, kept] * scale
        R = orthonormal_projection(rows, self.n_bits, _ROTATIONS, np.random.default_rng((self.seed, start)))
        if choice.trained:
            R = self._train_projection(unit, rows, R)
        return mean, components @ R

    def _train_projection(self, unit: Floats32, rows: Floats32, start: Floats) -> Floats:
        """``start (m, n_bits)`` after training on ``rows (n, m)``, which keeps the ranking of ``unit (n, d)``."""
        size = float(np.abs(rows @ start).mean())
        network = _Projection(start / size)
        n_batches = -(-len(rows) // self.batch_size)
        settings = replace(self._settings(passes(self.epochs, len(rows))), batch_size=-(-len(rows) // n_batches))

        def loss(outputs: Tensor, batch: Batch) -> Tensor:
            (directions,) = batch.targets
            codes, wanted = tanh_through_sign(outputs), directions[:_QUERIES] @ directions.T
            found = codes[:_QUERIES] @ codes.T * (network.sharpness() / self.n_bits)
            return nearest_loss(wanted, found, self.neighbours)

        targets = row_targets(torch.from_numpy(unit))
        inputs = CachedFeatures(rows)
        with one_thread():
            self.history_["loss"] = train(
                network, inputs, loss, settings, seed=self.seed, targets=targets, device=self.device
            )
        return network.weight.detach().cpu().double().numpy() * size

    def _project(self, features: Floats) -> Floats:
        return super()._project(directions(features) if self.start == "itq" else features)

    def targets(self, data: Data) -> Targets:
        """Directions of the centred features."""
        return row_targets(unit_features(data.features, centre=True))

    def batch_loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The rank loss, the quantisation error and the balance of the bits."""
        (unit,) = batch.targets
        codes = torch.tanh(outputs)
        wanted, found = unit @ unit.T, codes @ codes.T / self.n_bits
        if self.rank_loss == "listwise":
            ranking = listwise_loss(wanted, found, self.feature_temperature, self.code_temperature)
        else:
            ranking = pairwise_loss(wanted, found, self.margin)
        quantisation = (codes.abs() - 1).square().mean()
        return ranking + self.quantisation * quantisation + self.balance * codes.mean(dim=0).square().mean()

    def restore(self, config: dict[str, Any], tensors: dict[str, NDArray[Any]]) -> Self:
        """As every method; the trained decoder in folders of earlier versions is left out, ``fit_decoder`` gives another."""
        return super().restore(
            config, {name: array for name, array in tensors.items() if not name.startswith("decoder_")}
        )


def _recall(mean: Floats, weight: Floats, unit: Floats32) -> float:
    """Neighbour recall of the codes of ``unit (n, d)`` among themselves, from at most 1,000 of them."""
    codes = Codes.from_projection((unit - mean) @ weight)
    found: float = neighbour_recall(codes, codes, unit, unit, [10], [10], same_items=True)["recall10@10"]
    return found


class _Projection(nn.Module):
    """A linear map ``(m, n_bits)``, and the factor c that turns similarities of codes into logits."""

    def __init__(self, start: Floats) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.from_numpy(start.astype(np.float32)))
        self.log_sharpness = nn.Parameter(torch.zeros(()))

    def sharpness(self) -> Tensor:
        return 25 * torch.exp(
            3 * self.log_sharpness
        )  # 15 to 30 at the end, on all data; 3: it learns faster than the weights

    def forward(self, rows: Tensor) -> Tensor:
        """``(b, m)`` to ``(b, n_bits)``."""
        return rows @ self.weight


def nearest_loss(wanted: Tensor, found: Tensor, k: int) -> Tensor:
    """Mean of -log softmax(found) over each query's k nearest others by ``wanted``. Both are ``(q, n)``; query i is row i of the n."""
    own = torch.eye(*wanted.shape, dtype=torch.bool, device=wanted.device)
    nearest = wanted.masked_fill(own, -torch.inf).topk(min(k, wanted.shape[1] - 1), dim=1).indices
    return -functional.log_softmax(found.masked_fill(own, -torch.inf), dim=1).gather(1, nearest).mean()


def _others(square: Tensor) -> Tensor:
    """``(b, b - 1)``: each row of ``(b, b)`` without its own place."""
    own = torch.eye(len(square), dtype=torch.bool, device=square.device)
    return square[~own].view(len(square), len(square) - 1)


def listwise_loss(wanted: Tensor, found: Tensor, feature_temperature: float, code_temperature: float) -> Tensor:
    """Mean over queries of KL(softmax(wanted / t1) || softmax(found / t2)), each row without its own place. Both are ``(b, b)``."""
    targets = functional.softmax(_others(wanted) / feature_temperature, dim=1)
    logs = functional.log_softmax(_others(found) / code_temperature, dim=1)
    return functional.kl_div(logs, targets, reduction="batchmean")


def pairwise_loss(wanted: Tensor, found: Tensor, margin: float) -> Tensor:
    """Weighted mean hinge: each item against the one half of the list further down in the order of the features."""
    order = _others(wanted).argsort(dim=1, descending=True, stable=True)
    ranked = _others(found).gather(1, order)
    # An item is compared with one half of the list further down, where the features' order is sure.
    step = max(1, ranked.shape[1] // 2)
    gaps = ranked[:, :-step] - ranked[:, step:]
    weights = 1 / torch.log2(torch.arange(gaps.shape[1], device=gaps.device) + 2.0)
    return ((margin - gaps).clamp(min=0) * weights).sum(dim=1).mean() / weights.sum()
