"""DistillHash: learn from the pairs whose labels can be trusted.

Paper: Yang, Liu, Deng, Liu, Tao, "DistillHash: Unsupervised Deep Hashing by Distilling Data Pairs", CVPR 2019, pp. 2946-2955.
https://arxiv.org/abs/1905.03465

Algorithm 1: (1) noisy pair labels S~ from feature distances, Eq. (2); (2) the probability eta~ = P(S~ = +1 | pair) for all
training pairs; (3) flip-rate bounds from neighbourhoods, Eq. (8); (4) pairs kept by Theorem 1; then a hash network trained on
the kept pairs by maximum likelihood, Eq. (10)-(11); codes by the sign rule, Eq. (12).

Symbols: S~ -> initial_pairs_; eta~ -> sigmoid of the logits in ``_estimate``; o -> n_neighbours; p -> n_outputs; c -> scale;
S -> pairs_; K -> n_bits.

The paper leaves much open, and its released code does something else in nearly every step. Three presets set the options
together (``make_hasher("distillhash", n_bits, preset=...)``); any option can be set by itself as well.

- ``paper``: the text to the letter. Three-way labels at alpha = beta = 2, a network of p = 48 outputs for eta~, c = 1, SGD.
- ``code``: the authors' release with its diagonal slip mended. Two-way labels, squared loss, eta~ = sg(<u, u> / 2), 20
  neighbours with the item itself, of which the bound for positives skips the first two, Adam with epsilon 1.
- ``recommended`` (default; "distillhash, local estimate" in tables): eta~ estimated by averaging labels over neighbourhoods instead of
  by a network, alpha = 1.5, beta = 0, c = 1/2, Adam. Not the paper's method but ours; chosen by labelled queries that were
  carved from the database side. docs/distillhash-study.md says what each of these gives.

Departs from the paper in:
1. The backbone is whatever the features come from, frozen unless fine-tuned, and then without dropout and
   with the batch normalisation it was learned with; the paper fine-tunes VGG16 end to end.
2. Batch size, epochs and step size are for a head on standardised features.
3. Eq. (10) is a log-likelihood and is maximised; the text says minimised. The word "log" in Eq. (11) is dropped.
4. The mean of Eq. (10) runs over labelled pairs of a batch of images (the batch holds images, not pairs).
5. ``recommended`` estimates eta~ from neighbourhoods; the paper's network is ``estimate="network"``. Such an estimate can be exactly
   0 or 1, where the strict tests of Theorem 1 keep nothing; those pairs are kept too (``keep_certain``), however few labels they rest on.
6. Self-pairs and self-distances are left out unless asked for. More than ``max_train`` rows are sampled down.
7. Where ``max_train`` allows more than 50,000 rows, pairs are distilled from 8 partners of every row: where four random walks along the
   graph of its neighbours end, and four random rows (:func:`~distillhash.supervision.graph.walk_partners`). A batch holds rows and their
   partners. Neighbours come from FAISS, thresholds from 10,000 rows.
"""

from __future__ import annotations

import copy
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from annotated_types import Ge, Gt
from numpy.typing import NDArray

from distillhash.errors import DataError, ParameterError
from distillhash.methods.heads import MANY, Data
from distillhash.methods.ssdh import PairHasher
from distillhash.methods.training import CachedFeatures, ImageRows, Inputs, Targets, WithPartners, pair_targets
from distillhash.supervision.neighbours import nearest_neighbours, neighbourhood_mean
from distillhash.supervision.similarity import (
    BoundRule,
    Floats,
    PairLabels,
    Thresholds,
    confusion,
    describe_partners,
    mirror_upper,
    probability_histogram,
    unit_rows,
)

WALKS, RANDOM = 4, 4  # partners of a row among many


class DistillHash(PairHasher):
    """Distilled pairs and the likelihood. Further hyper-parameters: see :class:`PairHasher`.

    Of more than 50,000 rows (``estimate="local"``, ``bounds="full"``, no ``self_pairs``), ``partners_ (n, 8)`` are the rows that each is
    paired with, and ``pairs_ (n, 8)`` the distilled labels.

    Attributes:
        estimate: How eta~ is found: ``local`` averages the noisy labels over neighbour pairs; ``network`` is trained on them (the paper);
            ``held-out`` trains two, on half of the rows each, and takes the estimate of a pair from one that was not trained on it.
        local_neighbours: Neighbourhood size of ``local``, the item included.
        n_outputs: Outputs p of the estimating network.
        estimate_scale: Scale c of the inner product in its eta~.
        estimate_epochs: Its passes over the rows.
        n_neighbours: Neighbourhood size o of the flip-rate bounds.
        include_self: Count an item as its own first neighbour in the bounds.
        skip_for_positive: How many of the nearest neighbours the bound for positives leaves out (released: 2).
        bounds: Which neighbour pairs bound the flip rates (:func:`distillhash.supervision.flip_rate.distil_pairs`).
        keep_certain: Keep pairs whose eta~ is exactly 0 or 1 as well (:func:`~distillhash.supervision.flip_rate.distil_pairs`). Of the
            ``local_neighbours`` squared neighbour pairs, one that is labelled is enough for that.
        candidates: Distil from ``all`` pairs (Algorithm 1) or only from those ``labelled`` at first.
    """

    method = "distillhash"
    title = "DistillHash: Unsupervised Deep Hashing by Distilling Data Pairs"
    venue, year = "CVPR", 2019
    kind = "pair labels"
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "recommended": {},
        "paper": {
            "labels": "three-way",
            "alpha": 2.0,
            "beta": 2.0,
            "estimate": "network",
            "scale": 1.0,
            "estimate_scale": 1.0,
            "keep_certain": False,
            "optimizer": "sgd",
            "learning_rate": 1e-3,
        },
        "code": {
            "labels": "two-way",
            "alpha": 2.0,
            "beta": 2.0,
            "self_distances": True,
            "self_pairs": True,
            "loss": "squared",
            "estimate": "network",
            "n_outputs": 32,
            "estimate_scale": 0.5,
            "n_neighbours": 20,
            "include_self": True,
            "skip_for_positive": 2,
            "keep_certain": False,
            "optimizer": "adam",
            "adam_eps": 1.0,
            "learning_rate": 1e-3,
            "batch_size": 80,
            "estimate_epochs": 50,
            "epochs": 20,
        },
    }

    TABLE_NAMES: ClassVar[dict[str, str]] = {
        "": "distillhash, local estimate",
        "paper": "distillhash",
        "code": "distillhash, released code",
    }

    alpha: Annotated[float, Ge(0)] = 1.5
    estimate: Literal["local", "network", "held-out"] = "local"
    local_neighbours: Annotated[int, Ge(1)] = 30
    n_outputs: Annotated[int, Ge(1)] = 48
    estimate_scale: Annotated[float, Gt(0)] = 0.5
    estimate_epochs: Annotated[int, Ge(1)] = 10
    n_neighbours: Annotated[int, Ge(1)] = 4
    include_self: bool = False
    skip_for_positive: Annotated[int, Ge(0)] = 0
    bounds: BoundRule = "full"
    keep_certain: bool = True
    candidates: Literal["all", "labelled"] = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.partners_: NDArray[np.int32] | None = None

    def targets(self, data: Data) -> Targets | None:
        """The distilled labels; None where batches bring theirs."""
        self.partners_ = None
        return super().targets(data)

    def batches(self, source: CachedFeatures | ImageRows) -> Inputs:
        """Rows, with their partners where there are many."""
        return source if self.partners_ is None else WithPartners(source, self.partners_, self.pairs_)

    def _many_targets(self, data: Data, thresholds: Thresholds) -> None:
        from distillhash.supervision.flip_rate import (
            distil_partners,  # here: it imports numba, which only training needs
        )
        from distillhash.supervision.graph import graph_neighbours, walk_partners

        if self.estimate != "local" or self.bounds != "full" or self.self_pairs:
            raise ParameterError(
                f"more than {MANY} rows are distilled with estimate='local', bounds='full' and without self_pairs alone, got "
                f"{self.estimate!r}, {self.bounds!r} and {self.self_pairs}; lower max_train ({self.max_train}) to {MANY} or less"
            )

        rows, o, skipped = unit_rows(data.features), self.n_neighbours, self.skip_for_positive
        own = np.arange(len(rows), dtype=np.int32)[:, None]
        near = graph_neighbours(rows, max(self.local_neighbours - 1, o + skipped), seed=self.seed)
        ranked = np.hstack([own, near]) if self.include_self else near
        self.partners_ = walk_partners(near, WALKS, RANDOM, seed=self.seed)
        self.pairs_, initial, _ = distil_partners(
            rows,
            thresholds,
            np.hstack([own, near[:, : self.local_neighbours - 1]]),
            ranked[:, : o + skipped],
            self.partners_,
            n_neighbours=o,
            skip_for_positive=skipped,
            rule=self.labels,
            keep_certain=self.keep_certain,
        )
        if self.candidates == "labelled":
            self.pairs_[initial == 0] = 0
        self.history_["diagnosis"].append(describe_partners(self.pairs_, "distilled pairs"))
        self._check_pairs(self.pairs_)

    def _pairs(self, distances: Floats, data: Data) -> PairLabels:
        from distillhash.supervision.flip_rate import distil_pairs  # here: it imports numba, which only training needs

        logits = self._estimate(distances, data)
        self.history_["probability_histogram"] = probability_histogram(logits)
        o, skipped = self.n_neighbours, self.skip_for_positive
        most = min(o + skipped, len(distances) - 1 + self.include_self)
        ranked = nearest_neighbours(distances, most, include_self=self.include_self)
        for_positive = ranked[:, min(skipped, most - 1) :]
        pairs = distil_pairs(logits, ranked[:, :o], for_positive, bounds=self.bounds, keep_certain=self.keep_certain)
        if self.candidates == "labelled":
            pairs[self.initial_pairs_ == 0] = 0
        self._record("distilled pairs", pairs)
        self.history_["confusion"] = confusion(self.initial_pairs_, pairs)
        self._check_pairs(pairs)
        return pairs

    def _check_pairs(self, pairs: PairLabels) -> None:
        """:class:`DataError` where labels of one sign are missing: a loss with one sign collapses."""
        if not (pairs > 0).any() or not (pairs < 0).any():
            sign = "similar" if not (pairs > 0).any() else "dissimilar"
            raise DataError(
                f"no {sign} pairs were distilled from {len(pairs)} items; their distances may not have the shape that the rule "
                f"expects: use another method (itq), or change alpha ({self.alpha}), estimate_scale ({self.estimate_scale}) "
                f"or estimate ({self.estimate})"
            )

    def _estimate(self, distances: Floats, data: Data) -> Floats:
        """Logits of eta~ for every pair, ``(n, n) float32``."""
        if self.estimate == "local":
            return self._local_estimate(distances)
        n = len(distances)
        if self.estimate == "network":
            return self._gram(self._estimating_outputs(np.arange(n), data, self.seed + 1))
        halves = np.array_split(np.random.default_rng(self.seed).permutation(n), 2)
        first = self._gram(self._estimating_outputs(np.sort(halves[0]), data, self.seed + 1))
        second = self._gram(self._estimating_outputs(np.sort(halves[1]), data, self.seed + 2))
        logits = (first + second) * np.float32(0.5)  # pairs across the halves were seen by neither
        for half, other in ((halves[0], second), (halves[1], first)):
            logits[np.ix_(half, half)] = other[np.ix_(half, half)]
        return logits

    def _local_estimate(self, distances: Floats) -> Floats:
        size = min(self.local_neighbours, len(distances))
        around = nearest_neighbours(distances, size, include_self=True)
        similar = neighbourhood_mean((self.initial_pairs_ > 0).astype(np.float32), around)
        dissimilar = neighbourhood_mean((self.initial_pairs_ < 0).astype(np.float32), around)
        with np.errstate(divide="ignore", invalid="ignore"):
            logits = np.log(similar, out=similar) - np.log(dissimilar, out=dissimilar)
        # No labelled pair around (-inf minus -inf): nothing is known, eta~ = 1/2.
        return np.asarray(np.nan_to_num(logits, copy=False, nan=0.0, posinf=np.inf, neginf=-np.inf))

    def _estimating_outputs(self, rows: NDArray[np.intp], data: Data, seed: int) -> Floats:
        """Relaxed outputs for all rows of a network trained on the initial labels among ``rows``."""
        head, targets = self._head(data, self.n_outputs, seed), pair_targets(self.initial_pairs_)
        trunk = copy.deepcopy(data.trunk)  # the network trained next starts from the pretrained weights again
        epochs = self.estimate_epochs
        network, losses = self._train(head, data, targets, epochs=epochs, seed=seed, rows=rows, trunk=trunk)
        self.history_.setdefault("estimate_loss", []).append(losses)
        outputs = data.outputs(network)
        return np.asarray(np.tanh(outputs)) if self.relaxation == "tanh" else outputs

    def _gram(self, outputs: Floats) -> Floats:
        scaled = outputs * np.float32(np.sqrt(self.estimate_scale))
        logits = np.asarray(scaled @ scaled.T, np.float32)
        mirror_upper(logits)
        return logits


class DistillHashInitial(PairHasher):
    """DistillHash*: the paper's own ablation (Table 2), which trains on the initial noisy labels and distils nothing.

    Symbols: S~ -> ``initial_pairs_ = pairs_`` (Eq. 2); c -> scale; loss: Eq. (10)-(11). Hyper-parameters: see :class:`PairHasher`.
    Departs from the paper in: items 1, 2, 4 and 5 of :mod:`distillhash.methods.ssdh`, and the scale c of the inner product, 1/2 as in
    the authors' release where the paper prints 1. The preset ``paper`` has the thresholds, c and optimiser of the text.
    """

    method = "distillhash-initial"
    title = "DistillHash*: the same without distilling"
    venue, year = "CVPR", 2019
    kind = "pair labels"
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"beta": 2.0, "scale": 1.0, "optimizer": "sgd", "learning_rate": 1e-3}
    }
    TABLE_NAMES: ClassVar[dict[str, str]] = {"": "distillhash-initial, beta = 0", "paper": "distillhash-initial"}
