"""The training loop: a network, inputs that batches are drawn from, and a loss of a batch.

Under :mod:`torch.distributed` (``torchrun``) each process trains on its share of every epoch, and gradients are averaged. A loss over
pairs then sees the pairs inside each process's batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from distillhash.errors import DataError
from distillhash.pytorch import Tensor, nn, torch

Optimizer = Literal["sgd", "adam", "adamw"]
Schedule = Literal["constant", "step", "cosine"]
Rows = NDArray[np.intp]
Targets = Callable[[Rows], tuple[Tensor, ...]]
"""What the loss compares the outputs for a batch of rows with."""


class Batch(NamedTuple):
    """Everything that was drawn for one step."""

    inputs: Tensor
    rows: Rows  # of the data that the inputs come from, in order; inputs of two views hold all rows twice
    targets: tuple[Tensor, ...] = ()  # what the loss compares the outputs with


class Inputs(Protocol):
    """Where the loop draws its batches from."""

    def __len__(self) -> int: ...

    def batch(self, rows: Rows, rng: np.random.Generator) -> Batch:
        """Draw a batch for ``rows``; ``rng`` makes every random choice."""


class Images(Protocol):
    """Images that a backbone can be trained on."""

    def __len__(self) -> int: ...

    def batch(self, rows: Rows, rng: np.random.Generator) -> Tensor:
        """Augmented and normalised images, ``(len(rows), 3, size, size)``."""


@dataclass(frozen=True)
class TrainableImages:
    """Images, and the backbone's network that turns them into features and is trained in place."""

    inputs: Images
    trunk: nn.Module


class CachedFeatures:
    """Features ``(n, d) float32`` in memory; with views ``(n_views, n, d)`` each row is one of them, or the plain one, at random."""

    def __init__(self, features: NDArray[np.float32], views: NDArray[np.float32] | None = None) -> None:
        self._views = [features] if views is None else [features, *views]
        self._deviation = float(np.std(features - features.mean(axis=0))) if len(features) else 0.0

    def __len__(self) -> int:
        return len(self._views[0])

    def batch(self, rows: Rows, rng: np.random.Generator) -> Batch:
        """One view of every row, ``(len(rows), d)``."""
        if len(self._views) == 1:
            return Batch(torch.from_numpy(self._views[0][rows]), rows)
        return Batch(self._take(rng.integers(len(self._views), size=len(rows)), rows), rows)

    def pair(self, rows: Rows, rng: np.random.Generator, noise: float) -> Batch:
        """Two different views of every row, ``(2 len(rows), d)``: the first of all rows, then the second of all.

        Without views: twice the features with Gaussian noise, whose standard deviation is ``noise`` times that of the features.
        """
        n_views = len(self._views)
        if n_views == 1:
            features = self._views[0][rows]
            draw = rng.standard_normal((2, *features.shape), np.float32) * np.float32(noise * self._deviation)
            return Batch(torch.from_numpy(np.concatenate(features + draw)), rows)
        first = rng.integers(n_views, size=len(rows))
        second = (first + rng.integers(1, n_views, size=len(rows))) % n_views
        return Batch(torch.cat([self._take(first, rows), self._take(second, rows)]), rows)

    def _take(self, chosen: NDArray[np.intp], rows: Rows) -> Tensor:
        inputs = np.empty((len(rows), self._views[0].shape[1]), np.float32)
        for number, view in enumerate(self._views):
            mine = chosen == number
            inputs[mine] = view[rows[mine]]
        return torch.from_numpy(inputs)


@dataclass(frozen=True)
class ImageRows:
    """Some rows of the images, augmented anew in every batch."""

    images: Images
    rows: Rows

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, rows: Rows, rng: np.random.Generator) -> Batch:
        """One augmentation of every image."""
        return Batch(self.images.batch(self.rows[rows], rng), rows)

    def pair(self, rows: Rows, rng: np.random.Generator, noise: float) -> Batch:  # noqa: ARG002  # images need no noise
        """Two augmentations of every image: the first of all rows, then the second of all."""
        return Batch(torch.cat([self.images.batch(self.rows[rows], rng) for _ in range(2)]), rows)


@dataclass(frozen=True)
class TwoViews:
    """Batches of two views of every row: the first of all rows, then the second of all."""

    source: CachedFeatures | ImageRows
    noise: float

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, rows: Rows, rng: np.random.Generator) -> Batch:
        """``(2 len(rows), ...)``."""
        return self.source.pair(rows, rng, self.noise)


class WithNeighbours:
    """Batches of rows and a random neighbour of each, the neighbours last. The target says who is whose positive, ``(2 b, 2 b) bool``."""

    def __init__(
        self,
        inputs: Inputs,
        neighbours: NDArray[np.int32],
        *,
        all_positives: bool = True,
        parts: list[Rows] | None = None,
    ) -> None:
        """Positives are equal rows and ``(n, k)`` neighbours in either direction, or else only the neighbour drawn for a row.

        With ``parts`` of the rows, each about as large as the others, every batch is drawn from one of them at random: where neighbours
        were looked for within parts, those across parts are not known, and would count as negatives.
        """
        self._inputs, self._neighbours, self._all, self._parts = inputs, neighbours, all_positives, parts
        self._places = np.full(len(neighbours), -1, np.int32)

    def __len__(self) -> int:
        return len(self._inputs)

    def batch(self, rows: Rows, rng: np.random.Generator) -> Batch:
        """``(2 len(rows), ...)``."""
        if self._parts is not None:
            part = self._parts[rng.integers(len(self._parts))]
            rows = part[rng.choice(len(part), min(len(rows), len(part)), replace=False)]
        partners = self._neighbours[rows, rng.integers(self._neighbours.shape[1], size=len(rows))]
        drawn = np.concatenate([rows, partners])
        if self._all:
            positives = torch.from_numpy(self._near(drawn) | np.equal.outer(drawn, drawn))
        else:
            positives = torch.eye(len(drawn), dtype=torch.bool).roll(len(rows), dims=0)
        return self._inputs.batch(drawn, rng)._replace(targets=(positives,))

    def _near(self, drawn: Rows) -> NDArray[np.bool_]:
        """Which of the drawn rows is a neighbour of which, in either direction."""
        items, which = np.unique(drawn, return_inverse=True)
        self._places[items] = np.arange(len(items))
        listed = np.zeros(
            (len(items), len(items) + 1), bool
        )  # the last column takes neighbours that were not drawn: place -1
        np.put_along_axis(listed, self._places[self._neighbours[items]], True, axis=1)
        self._places[items] = -1
        near = listed[:, :-1] | listed[:, :-1].T
        return np.asarray(near[np.ix_(which, which)])


class WithPartners:
    """Batches of b rows and the partners of each, ``(n, c)``, which come last.

    The target ``(b, b c)`` has the labels ``(n, c)`` of rows and their own partners, and 0 for others' partners.
    """

    def __init__(self, inputs: Inputs, partners: NDArray[np.int32], labels: NDArray[np.int8]) -> None:
        self._inputs, self._partners, self._labels = inputs, partners, labels

    def __len__(self) -> int:
        return len(self._inputs)

    def batch(self, rows: Rows, rng: np.random.Generator) -> Batch:
        """``((1 + c) len(rows), ...)``."""
        b, c = len(rows), self._partners.shape[1]
        pairs = torch.zeros((b, b * c), dtype=torch.int8)
        pairs[torch.arange(b)[:, None], torch.arange(b * c).view(b, c)] = torch.from_numpy(self._labels[rows])
        drawn = np.concatenate([rows, self._partners[rows].ravel()])
        return self._inputs.batch(drawn, rng)._replace(targets=(pairs,))


def row_targets(*tensors: Tensor) -> Targets:
    """Rows of ``(n, ...)`` tensors."""
    return lambda rows: tuple(tensor[rows] for tensor in tensors)


def pair_targets(*matrices: NDArray[Any]) -> Targets:
    """Rows and columns of ``(n, n)`` arrays: what belongs to the pairs of a batch."""
    return lambda rows: tuple(torch.from_numpy(matrix[np.ix_(rows, rows)]) for matrix in matrices)


@dataclass(frozen=True)
class TrainingSettings:
    """How long and how fast to train; see :class:`distillhash.methods.heads.TrainedHasher`."""

    epochs: int
    batch_size: int = 64
    learning_rate: float = 1e-3
    optimizer: Optimizer = "sgd"
    weight_decay: float = 0.0
    adam_eps: float = 1e-8  # the authors' release of DistillHash uses 1.0, which makes Adam momentum SGD in effect
    schedule: Schedule = "constant"

    def build(self, parameters: Any) -> torch.optim.Optimizer:
        """The optimiser over ``parameters``."""
        if self.optimizer == "sgd":
            return torch.optim.SGD(parameters, self.learning_rate, momentum=0.9, weight_decay=self.weight_decay)
        kind = torch.optim.Adam if self.optimizer == "adam" else torch.optim.AdamW
        return kind(parameters, self.learning_rate, eps=self.adam_eps, weight_decay=self.weight_decay)

    def rate(self, done: float) -> float:
        """The step size after a share ``done`` of the training, in 0..1."""
        if self.schedule == "cosine":
            return self.learning_rate * (1 + math.cos(math.pi * done)) / 2
        return self.learning_rate * (0.1 if self.schedule == "step" and done >= 0.8 else 1.0)


def train(
    network: nn.Module,
    inputs: Inputs,
    loss: Callable[[Any, Batch], Tensor],
    settings: TrainingSettings,
    *,
    seed: int,
    targets: Targets | None = None,
    rows: Rows | None = None,
    device: str = "cpu",
    every_step: list[float] | None = None,
) -> list[float]:
    """Train ``network`` in place and leave it in eval mode; the mean loss of each epoch, in this process.

    ``loss(outputs, batch)`` is a scalar of whatever the network returns. ``targets`` gives the targets of a batch's rows; None keeps those
    that ``inputs`` give. ``rows`` are those to train on; None takes all. ``seed`` controls row order and the inputs' randomness; on the CPU
    a run is repeated bit for bit. The loss of each step is appended to ``every_step``. :class:`DataError` where the loss is not finite.
    """
    rank, world, step_network = 0, 1, network.to(device).train()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        step_network = nn.parallel.DistributedDataParallel(network)  # its backward pass averages gradients
    rng = np.random.default_rng(seed)
    draws = rng if world == 1 else np.random.default_rng((seed, rank))  # all processes permute alike, and draw apart
    rows = np.arange(len(inputs)) if rows is None else rows
    optimizer = settings.build(network.parameters())
    history: list[float] = []
    for epoch in range(settings.epochs):
        order = rows[rng.permutation(len(rows))]
        order = np.resize(order, -(-len(order) // world) * world)[rank::world]  # as many rows in every process
        total = steps = 0.0
        for start in range(0, len(order), settings.batch_size):
            chosen = order[start : start + settings.batch_size]
            if len(chosen) < 2:  # a single row has no pairs, and no batch statistics
                continue
            for group in optimizer.param_groups:
                group["lr"] = settings.rate((epoch + start / len(order)) / settings.epochs)
            batch = inputs.batch(chosen, draws)
            wanted = batch.targets if targets is None else targets(batch.rows)
            batch = Batch(batch.inputs.to(device), batch.rows, tuple(target.to(device) for target in wanted))
            value = loss(step_network(batch.inputs), batch)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(value)
            optimizer.step()
            total, steps = total + float(value.detach()), steps + 1
            if every_step is not None:
                every_step.append(float(value.detach()))
        history.append(total / max(steps, 1.0))
        if not np.isfinite(history[-1]):
            raise DataError(
                f"the loss became {history[-1]} in epoch {epoch + 1} at a step size of {settings.learning_rate}; lower learning_rate, or "
                "fine_tune_rate where the backbone is trained"
            )
    network.eval()
    return history


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch's operations on one thread of the CPU.

    A small head gains nothing from a second thread, and on two busy cores one thread was ten times faster. Results are the same.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
