"""URPH: codes that rank as the features do, and a decoder to rank the best once more.

Paper: Karaman, Lin, Hu, Chang, "Unsupervised Rank-Preserving Hashing for Large-Scale Image Retrieval", ICMR 2019.
https://arxiv.org/abs/1903.01545

Symbols: r_qi = cos(x_q, x_i) -> similarities of the features; s_qi = <u_q, u_i> / K, u = tanh(outputs) -> of the codes. Every row
of a batch is a query over the others. ``rank_loss="listwise"``: KL(softmax(r_q / t1) || softmax(s_q / t2)), mean over queries.
``"pairwise"``: the hinge max(0, margin - (s_qi - s_qj)) over the pairs whose ranks by r_q are half a list apart, weighted by 1 /
log2(1 + rank of i), the rank counted from 1. A decoder from codes to features re-ranks candidates: the query's own feature against
the reconstructed ones, no stored features needed.

RECONSTRUCTED: the paper's abstract tells the aim (ranking by codes as by features, every training item a query, an optional decoder,
search on codes and re-ranking by reconstructed features). Losses, network and numbers are our interpretation.

Departs from the paper in:
1. Which rank loss the paper uses is not known; both are here and the listwise one is the default.
2. The decoder is trained afterwards on the finished codes, so that it cannot cost ranking.
3. Cosines are of centred features. Batches are random rows: at some thousand training rows they hold neighbours enough.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax, mse_loss, softmax

from distillhash.codes import Codes
from distillhash.errors import DataError
from distillhash.methods.base import AffineLayers
from distillhash.methods.heads import Data, HeadHasher, affine, linear, unit_features
from distillhash.methods.training import Batch, CachedFeatures, Targets, one_thread, row_targets, train


class URPH(HeadHasher):
    """Rank-preserving codes with a decoder. Further hyper-parameters: see :class:`HeadHasher`.

    ``history_["decoder_loss"]`` records the decoder's mean squared error per epoch.

    Attributes:
        rank_loss: ``listwise`` or ``pairwise``.
        feature_temperature: t1.
        code_temperature: t2.
        margin: Margin of the pairwise hinge.
        quantisation: Weight of the mean (|u| - 1)^2.
        balance: Weight of the mean over bits of (mean u)^2.
        decoder_hidden: Width of the decoder's hidden layer, in units of the code length.
        decoder_epochs: Passes over the rows that train the decoder.
    """

    method = "urph"
    title = "Unsupervised Rank-Preserving Hashing for Large-Scale Image Retrieval"
    venue, year = "ICMR", 2019
    kind = "similarity preserving"
    batch_size: Annotated[int, Ge(2)] = 256
    rank_loss: Literal["listwise", "pairwise"] = "listwise"
    feature_temperature: Annotated[float, Gt(0)] = 0.1
    code_temperature: Annotated[float, Gt(0)] = 0.2
    margin: Annotated[float, Ge(0)] = 0.1
    quantisation: Annotated[float, Ge(0)] = 0.1
    balance: Annotated[float, Ge(0)] = 0.1
    decoder_hidden: Annotated[int, Ge(1)] = 4
    decoder_epochs: Annotated[int, Ge(1)] = 10

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

    def finish(self, data: Data, network: nn.Module) -> None:
        """Train the decoder on the finished codes."""
        signs = np.where(data.outputs(network) >= 0, 1, -1).astype(np.float32)
        features, width = torch.from_numpy(data.features), self.decoder_hidden * self.n_bits
        generator = torch.Generator().manual_seed(self.seed + 1)
        first = linear(self.n_bits, width, generator, gain=2.0)
        second = linear(width, data.features.shape[1], generator)
        with torch.no_grad():
            second.bias.copy_(features.mean(dim=0))
        decoder, settings = nn.Sequential(first, nn.ReLU(), second), self._settings(self.decoder_epochs)
        options: dict[str, Any] = {"seed": self.seed, "targets": row_targets(features), "device": self.device}

        def loss(rebuilt: Tensor, batch: Batch) -> Tensor:
            return mse_loss(rebuilt, batch.targets[0])

        with one_thread():
            self.history_["decoder_loss"] = train(decoder, CachedFeatures(signs), loss, settings, **options)
        layers = [affine(first), affine(second)]
        self.decoder_: AffineLayers = AffineLayers(np.zeros(self.n_bits), layers, "relu")

    def reconstruct(self, codes: Codes) -> NDArray[np.float32]:
        """Features that the codes stand for, ``(n, d) float32``; :class:`DataError` for codes of another length, or no finite features."""
        if codes.n_bits != self.n_bits:
            raise DataError(f"this decoder takes codes of {self.n_bits} bits, got {codes.n_bits}")
        with np.errstate(all="ignore"):
            features = np.asarray(self.decoder_(codes.signs().astype(np.float64)), np.float32)
        if not np.isfinite(features).all():
            raise DataError("this decoder gives no finite features for codes such as these; train it again")
        return features

    def state(self) -> dict[str, NDArray[Any]]:
        """The head's layers and the decoder's."""
        decoder = self.decoder_.state("decoder_")
        del decoder["decoder_mean"]  # zeros
        return super().state() | decoder

    def _set_state(self, state: dict[str, NDArray[Any]]) -> None:
        super()._set_state(state)
        state = state | {"decoder_mean": np.zeros(self.n_bits)}
        self.decoder_ = AffineLayers.from_state(state, 2, len(self.mean_), "relu", "decoder_")

    def _try_out(self) -> None:
        super()._try_out()
        self.reconstruct(Codes.from_projection(np.eye(2, self.n_bits)))


def _others(square: Tensor) -> Tensor:
    """``(b, b - 1)``: each row of ``(b, b)`` without its own place."""
    own = torch.eye(len(square), dtype=torch.bool, device=square.device)
    return square[~own].view(len(square), len(square) - 1)


def listwise_loss(wanted: Tensor, found: Tensor, feature_temperature: float, code_temperature: float) -> Tensor:
    """Mean over queries of KL(softmax(wanted / t1) || softmax(found / t2)), each row without its own place. Both are ``(b, b)``."""
    targets = softmax(_others(wanted) / feature_temperature, dim=1)
    logs = log_softmax(_others(found) / code_temperature, dim=1)
    return kl_div(logs, targets, reduction="batchmean")


def pairwise_loss(wanted: Tensor, found: Tensor, margin: float) -> Tensor:
    """Weighted mean hinge: each item against the one half of the list further down in the order of the features."""
    order = _others(wanted).argsort(dim=1, descending=True, stable=True)
    ranked = _others(found).gather(1, order)
    # An item is compared with one half of the list further down, where the features' order is sure.
    step = max(1, ranked.shape[1] // 2)
    gaps = ranked[:, :-step] - ranked[:, step:]
    weights = 1 / torch.log2(torch.arange(gaps.shape[1], device=gaps.device) + 2.0)
    return ((margin - gaps).clamp(min=0) * weights).sum(dim=1).mean() / weights.sum()
