"""UGACH: a generator proposes the negatives from which a discriminator learns the codes of images and texts.

Paper: Zhang, Peng, Yuan, "Unsupervised Generative Adversarial Cross-modal Hashing", AAAI 2018. https://arxiv.org/abs/1712.00358

Symbols: G, D -> two networks of one shape, each an image and a text path tanh(W1 x + b1) -> sg(W2 h + b2) in (0, 1)^K; q(a, b) ->
||a - b||^2; p(x | query) = softmax(-q) over candidates -> generator; l = max(0, m + q(query, positive) - q(query, negative)), m = K / 8 ->
discriminator. D minimises the mean l, G maximises E[log p . reward(l)] by policy gradient. Positives come from the correlation graph.
The hash function is D's: a bit is 1 where its output is 1/2 or more.

Schedule: D learns from own pairs against random negatives. Then come rounds: G draws negatives, D learns from them, G learns from D's
hinge. Both directions are trained, image to text and text to image.

Departs from the paper in: (``preset="code"`` follows the release in 1, 2 and 4)
1. A hidden layer of 512 (paper: 8,192) on canonical variables of both modalities instead of the features.
2. Adam and larger batches instead of SGD with single triplets; initial weights by fan-in instead of a truncated normal of deviation .1;
   smaller steps of discriminator and generator.
3. The pool that negatives are drawn from has at least 64 items (1/50 of a small training set is a handful). Graph positives are not
   drawn from it; the release draws them and drops them. Of an image's several texts one is drawn at a time; the graph has their mean.
4. Weight decay 1e-4 (release: .01 over all weights and biases, which dominates the early loss of wide layers).
5. The discriminator of the last round; the release keeps the best on the labels of the test queries.

Followed though doubtful: the generator's probabilities in the policy gradient are a softmax over the two samples alone. That gradient is
biased, and zero for one sample. All rewards are positive, so the probability of every sample is raised. ``log_prob="pool"`` (a softmax
over the pool drawn from) and ``baseline="mean"`` (rewards less their mean) correct both; the generator then learns, and the codes are
worse, see the page of the method.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from annotated_types import Ge, Gt, Interval
from numpy.typing import NDArray

from distillhash.errors import ParameterError
from distillhash.methods.base import AffineLayers
from distillhash.methods.image_text import CrossModalHasher, InputKind, Tower, TrainingPairs, standardise
from distillhash.methods.training import one_thread
from distillhash.pytorch import Tensor, functional, nn, torch
from distillhash.supervision.neighbours import neighbour_graph

Reward = Literal["sigmoid", "softplus"]
Baseline = Literal["mean", "none"]
Rows = NDArray[np.intp]
IMAGE, TEXT = 0, 1
DIRECTIONS = ((IMAGE, TEXT), (TEXT, IMAGE))
_LEAST_POOL = 64
_BLOCK = 1024


def squared_distances(queries: Tensor, candidates: Tensor) -> Tensor:
    """``q(a, b) = ||a - b||^2`` of every row of ``(b, K)`` with every row of ``(p, K)``: ``(b, p)``, at least 0."""
    squares = (queries**2).sum(dim=1)[:, None] + (candidates**2).sum(dim=1)
    return (squares - 2 * queries @ candidates.T).clamp(min=0)


def triplet_hinge(query: Tensor, positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    """``max(0, m + q(query, positive) - q(query, negative))`` row by row, ``(b,)``: 0 where the positive is m nearer."""
    near, far = ((query - positive) ** 2).sum(dim=-1), ((query - negative) ** 2).sum(dim=-1)
    return torch.relu(margin + near - far)


def reward(losses: Tensor, kind: Reward) -> Tensor:
    """The reward of a generated negative for the discriminator's hinge on it: ``sg(l)`` (release) or ``log(1 + exp(l))`` (paper)."""
    return torch.sigmoid(losses) if kind == "sigmoid" else functional.softplus(losses)


def sample_candidates(
    scores: NDArray[np.float64], excluded: NDArray[np.bool_], k: int, rng: np.random.Generator
) -> NDArray[np.intp]:
    """``k`` candidates for each query ``(b, k)``, drawn with replacement with the probabilities ``softmax(scores)`` of ``(b, p)`` scores.

    ``excluded`` candidates are not drawn, unless all of a query are.
    """
    allowed = ~excluded | excluded.all(axis=1, keepdims=True)
    masked = np.where(allowed, scores, -np.inf)
    weights = np.exp(masked - masked.max(axis=1, keepdims=True))
    cumulative = np.cumsum(weights, axis=1)
    drawn = rng.random((len(scores), k)) * cumulative[:, -1:]
    columns = (cumulative[:, None, :] <= drawn[:, :, None]).sum(axis=2)
    return np.asarray(np.minimum(columns, scores.shape[1] - 1))


def policy_loss(log_probabilities: Tensor, rewards: Tensor, baseline: Baseline) -> Tensor:
    """REINFORCE: ``-mean(log p(sample) (reward - b))``, whose gradient is that of the expected reward, negated.

    ``baseline="mean"`` subtracts the batch's mean reward; ``none`` is the release. No gradient passes through the rewards.
    """
    rewards = rewards.detach()
    if baseline == "mean":
        rewards = rewards - rewards.mean()
    return -(log_probabilities * rewards).mean()


def correlation_graph(images: NDArray[Any], texts: NDArray[Any], neighbours: int) -> Any:
    """The positives of every item: the union of its ``neighbours`` nearest items in image and in text space, itself among them.

    Directed, as in the authors' release: if j is a positive of i, i need not be one of j. ``(n, n)`` bool in CSR form.
    """
    lists = np.hstack([nearest_rows(side, neighbours) for side in (images, texts)])
    graph = neighbour_graph(lists, np.ones(lists.shape, bool))
    graph.sum_duplicates()
    return graph


def nearest_rows(features: NDArray[Any], k: int) -> NDArray[np.intp]:
    """The ``min(k, n)`` nearest rows of each row by Euclidean distance, ``(n, k)``: itself first, ties to the lower row."""
    values = np.asarray(features, np.float64)
    squares = np.einsum("ij,ij->i", values, values)
    nearest = []
    for start in range(0, len(values), _BLOCK):
        block = values[start : start + _BLOCK]
        distances = squares - 2 * (block @ values.T)  # less the row's own square, which changes no order
        np.fill_diagonal(distances[:, start:], -np.inf)
        nearest.append(np.argsort(distances, axis=1, kind="stable")[:, :k])
    return np.concatenate(nearest)


class Triplets(NamedTuple):
    """Rows of queries in one modality, and of their positives and negatives in the other."""

    direction: tuple[int, int]
    query: Rows
    positive: Rows
    negative: Rows


class UGACH(CrossModalHasher):
    """The adversarial game. ``preset="code"`` sets what the release does; options given by name win.

    ``history_["loss"]`` holds D's mean hinge of each pre-training epoch and round, ``history_["reward"]`` G's mean reward of each round,
    and ``history_["hardness"]`` D's hinge on drawn negatives less that on uniform ones, before D learns from them.

    Attributes:
        hidden: Width of the hidden layers.
        inputs: What the networks see: the ``features``, or canonical variables, ``correlated`` across the modalities.
        ridge: Of those, as a share of each modality's mean variance.
        neighbours: Length of the graph's two lists, the item itself included; 1 leaves only an item's own pair.
        margin: m, as a share of the bits.
        pretrain_epochs: Passes of D over own pairs with random negatives.
        rounds: Adversarial rounds; 0 keeps the pre-trained D.
        adversarial: G draws the rounds' negatives; without it they are drawn uniformly and G is not trained.
        pool: Share of the items among which negatives are drawn in a round (64 at least).
        negatives: Negatives a query and round.
        discriminator_epochs, generator_epochs: Passes a round.
        samples: Draws a query of the policy gradient.
        log_prob, reward, baseline: Terms of the policy gradient.
        batch_size: Triplets, or queries, a step.
        pretrain_rate, discriminator_rate, generator_rate: Step sizes.
        weight_decay: L2 penalty on weights and biases.
        optimizer, init: How networks are trained, and where they start.
        device: torch device to train on.
    """

    method = "ugach"
    title = "Unsupervised Generative Adversarial Cross-modal Hashing"
    venue, year = "AAAI", 2018
    kind = "cross-modal"
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "recommended": {},
        "code": {
            "hidden": 8192,
            "inputs": "features",
            "batch_size": 1,
            "pretrain_rate": 0.01,
            "discriminator_rate": 0.001,
            "generator_rate": 0.01,
            "weight_decay": 0.01,
            "optimizer": "sgd",
            "init": "truncated-normal",
        },
    }

    hidden: Annotated[int, Ge(1)] = 512
    inputs: InputKind = "correlated"
    ridge: Annotated[float, Gt(0)] = 10.0
    neighbours: Annotated[int, Ge(1)] = 5
    margin: Annotated[float, Gt(0)] = 0.125
    pretrain_epochs: Annotated[int, Ge(0)] = 30
    rounds: Annotated[int, Ge(0)] = 30
    adversarial: bool = True
    pool: Annotated[float, Interval(gt=0, le=1)] = 0.02
    negatives: Annotated[int, Ge(1)] = 2
    discriminator_epochs: Annotated[int, Ge(1)] = 1
    generator_epochs: Annotated[int, Ge(0)] = 2
    samples: Annotated[int, Ge(1)] = 2
    log_prob: Literal["pool", "sampled"] = "sampled"
    reward: Reward = "sigmoid"
    baseline: Baseline = "none"
    batch_size: Annotated[int, Ge(1)] = 64
    pretrain_rate: Annotated[float, Gt(0)] = 1e-3
    discriminator_rate: Annotated[float, Gt(0)] = 1e-4
    generator_rate: Annotated[float, Gt(0)] = 1e-5
    weight_decay: Annotated[float, Ge(0)] = 1e-4
    optimizer: Literal["adam", "sgd"] = "adam"
    init: Literal["fan-in", "truncated-normal"] = "fan-in"
    device: str = "cpu"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.log_prob == "sampled" and self.samples < 2:
            raise ParameterError("log_prob=sampled compares the samples of a query: samples must be at least 2, got 1")

    def _fit_pairs(self, pairs: TrainingPairs) -> tuple[AffineLayers, AffineLayers]:
        with one_thread():
            image, text = Game(self, pairs).play()
        return image.fold(), text.fold()


class Game:
    """One training run: the data, both networks, their optimisers. A network is a tower for images and one for texts."""

    def __init__(self, options: UGACH, pairs: TrainingPairs) -> None:
        self.options, self.pairs = options, pairs
        self.rng = np.random.default_rng(options.seed)
        self.inputs = standardise(pairs, options.inputs, options.ridge)
        self.features = [
            torch.from_numpy(seen(side)).to(options.device)
            for seen, side in zip(self.inputs, (pairs.images, pairs.texts), strict=True)
        ]
        self.graph = correlation_graph(pairs.images, pairs.mean_texts(), options.neighbours)
        self.n = len(pairs.images)
        generator = torch.Generator().manual_seed(options.seed)
        self.D, self.G = (self._network(generator) for _ in range(2))

    def play(self) -> tuple[Tower, Tower]:
        """Pre-train D, then the rounds; D's towers."""
        options, history = self.options, self.options.history_
        history |= {"loss": [], "reward": [], "hardness": []}
        optimizer = self._optimizer(self.D, options.pretrain_rate)
        for _ in range(options.pretrain_epochs):
            triplets = [self._random_triplets(direction) for direction in DIRECTIONS]
            history["loss"].append(self._learn(optimizer, triplets))
        optimizer = self._optimizer(self.D, options.discriminator_rate)
        generator_optimizer = self._optimizer(self.G, options.generator_rate)
        for _ in range(options.rounds):
            triplets = [self._drawn_triplets(direction) for direction in DIRECTIONS]
            history["hardness"].append(self._hardness(triplets))
            losses = [self._learn(optimizer, triplets) for _ in range(options.discriminator_epochs)]
            history["loss"].append(losses[-1])
            if options.adversarial and options.generator_epochs:
                rewards = [self._teach(generator_optimizer) for _ in range(options.generator_epochs)]
                history["reward"].append(rewards[-1])
        return self.D

    def _network(self, generator: torch.Generator) -> tuple[Tower, Tower]:
        options = self.options
        image, text = (Tower(seen, options.hidden, options.n_bits, "tanh", generator) for seen in self.inputs)
        if options.init == "truncated-normal":
            for parameter in nn.ModuleList([image, text]).parameters():
                if parameter.ndim == 2:
                    nn.init.trunc_normal_(parameter, std=0.1, a=-0.2, b=0.2, generator=generator)
        return image.to(options.device), text.to(options.device)

    def _optimizer(self, network: tuple[Tower, Tower], rate: float) -> torch.optim.Optimizer:
        kind = torch.optim.SGD if self.options.optimizer == "sgd" else torch.optim.Adam
        return kind(nn.ModuleList(network).parameters(), lr=rate, weight_decay=self.options.weight_decay)

    def _rows(self, items: Rows, modality: int) -> Rows:
        """Feature rows of items: the image itself, or one of its texts drawn at random."""
        return items if modality == IMAGE else self.pairs.draw_texts(items, self.rng)

    def _codes(self, network: tuple[Tower, Tower], modality: int, rows: Rows) -> Tensor:
        """Codes in (0, 1)^K."""
        return torch.sigmoid(network[modality](self.features[modality][torch.from_numpy(rows)]))

    def _random_triplets(self, direction: tuple[int, int]) -> Triplets:
        """Every item with its own partner, against another item."""
        items = np.arange(self.n)
        others = (items + self.rng.integers(1, self.n, self.n)) % self.n
        query, positive = (self._rows(items, modality) for modality in direction)
        return Triplets(direction, query, positive, self._rows(others, direction[1]))

    def _drawn_triplets(self, direction: tuple[int, int]) -> Triplets:
        """Every item with graph positives, against negatives from a fresh pool that G draws, or chance."""
        options = self.options
        items, pool = np.arange(self.n), self._pool()
        queries, candidates = self._rows(items, direction[0]), self._rows(pool, direction[1])
        scores, positive = np.zeros((self.n, len(pool))), self.graph[items][:, pool].toarray()
        if options.adversarial:
            with torch.inference_mode():
                codes = self._codes(self.G, direction[0], queries), self._codes(self.G, direction[1], candidates)
                scores = -squared_distances(*codes).cpu().double().numpy()
        columns = sample_candidates(scores, positive, options.negatives, self.rng).ravel()
        repeated = np.repeat(items, options.negatives)
        positives = self._rows(self._draw_positives(repeated), direction[1])
        return Triplets(direction, queries[repeated], positives, candidates[columns])

    def _draw_positives(self, items: Rows) -> Rows:
        """One positive of each item, uniformly."""
        starts, counts = self.graph.indptr[items], np.diff(self.graph.indptr)[items].astype(np.int64)
        return np.asarray(self.graph.indices[starts + self.rng.integers(counts)])

    def _pool(self) -> Rows:
        size = min(self.n, max(_LEAST_POOL, round(self.options.pool * self.n)))
        return self.rng.choice(self.n, size, replace=False)

    def _hardness(self, drawn: list[Triplets]) -> float:
        """D's mean hinge on the drawn negatives less that on uniform ones, for the same queries and positives."""
        differences = []
        with torch.inference_mode():
            for triplets in drawn:
                chance = self._rows(self.rng.integers(self.n, size=len(triplets.query)), triplets.direction[1])
                uniform = triplets._replace(negative=chance)
                differences.append(float((self._hinge(triplets).mean() - self._hinge(uniform).mean()).item()))
        return float(np.mean(differences))

    def _hinge(self, triplets: Triplets) -> Tensor:
        asked, found = triplets.direction
        return triplet_hinge(
            self._codes(self.D, asked, triplets.query),
            self._codes(self.D, found, triplets.positive),
            self._codes(self.D, found, triplets.negative),
            self.options.margin * self.options.n_bits,
        )

    def _learn(self, optimizer: torch.optim.Optimizer, given: list[Triplets]) -> float:
        """One epoch of D, alternating between batches of both directions; its mean hinge."""
        total = count = 0.0
        for triplets in self._batches(given):
            losses = self._hinge(triplets)
            _step(optimizer, losses.mean())
            total, count = total + float(losses.detach().sum()), count + len(losses)
        return total / count

    def _batches(self, given: list[Triplets]) -> Iterator[Triplets]:
        orders = [self.rng.permutation(len(triplets.query)) for triplets in given]
        for start in range(0, max(map(len, orders)), self.options.batch_size):
            for triplets, order in zip(given, orders, strict=True):
                rows = order[start : start + self.options.batch_size]
                if len(rows):
                    yield Triplets(triplets.direction, *(part[rows] for part in triplets[1:]))

    def _teach(self, optimizer: torch.optim.Optimizer) -> float:
        """One epoch of G over all queries in both directions; its mean reward."""
        options = self.options
        total = count = 0.0
        order, pool = self.rng.permutation(self.n), self._pool()
        for start in range(0, self.n, options.batch_size):
            items = order[start : start + options.batch_size]
            for asked, found in DIRECTIONS:
                queries, candidates = self._rows(items, asked), self._rows(pool, found)
                codes = self._codes(self.G, asked, queries), self._codes(self.G, found, candidates)
                scores = -squared_distances(*codes)  # (b, p)
                positive = self.graph[items][:, pool].toarray()
                drawn = sample_candidates(scores.detach().cpu().double().numpy(), positive, options.samples, self.rng)
                repeated = np.repeat(np.arange(len(items)), options.samples)
                positives = self._rows(self._draw_positives(items[repeated]), found)
                with torch.inference_mode():
                    triplets = (asked, found), queries[repeated], positives, candidates[drawn.ravel()]
                    hinge = self._hinge(Triplets(*triplets))
                rewards = reward(hinge, options.reward).view(drawn.shape).clone()
                columns = torch.from_numpy(drawn).to(scores.device)
                if options.log_prob == "pool":
                    logs = scores.log_softmax(dim=1).gather(1, columns)
                else:
                    logs = scores.gather(1, columns).log_softmax(dim=1)
                _step(optimizer, policy_loss(logs, rewards, options.baseline))
                total, count = total + float(rewards.sum()), count + rewards.numel()
        return total / count


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    optimizer.step()
