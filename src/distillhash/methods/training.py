"""The one training loop: a network, a way to make its inputs, and a loss over rows.

Inputs come from cached features, from cached augmented views, or from images through a trainable backbone; the loop does not
know which. Under :mod:`torch.distributed` (``torchrun``) each process takes its share of every epoch's permutation and
gradients are averaged; a pair loss then sees the pairs inside each process's batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distillhash.errors import DataError, ParameterError

Optimizer = Literal["sgd", "adam", "adamw"]
Schedule = Literal["constant", "step", "cosine"]


class Inputs(Protocol):
    """Training inputs, addressed by row."""

    def __len__(self) -> int: ...

    def batch(self, rows: NDArray[np.intp], rng: np.random.Generator) -> Tensor:
        """Network inputs for ``rows``; ``rng`` draws whatever is random about them (a view, an augmentation)."""
        ...

    def pair(self, rows: NDArray[np.intp], rng: np.random.Generator, noise: float) -> tuple[Tensor, Tensor]:
        """Two views of ``rows``; where there are no views, ``noise`` makes them (see :class:`CachedFeatures`)."""
        ...


class CachedFeatures:
    """Inputs from features in memory: ``(n, d)``, or views ``(n_views, n, d)`` of which each row draws one at random."""

    def __init__(self, features: NDArray[np.float32], views: NDArray[np.float32] | None = None) -> None:
        """Keep references; with ``views`` the plain features count as one more view."""
        self._views = [features] if views is None else [features, *views]
        if any(view.shape != features.shape for view in self._views):
            raise DataError(f"views must be (n_views, {features.shape[0]}, {features.shape[1]})")
        self._deviation = float(np.std(features - features.mean(axis=0))) if len(features) else 0.0

    def __len__(self) -> int:
        return len(self._views[0])

    def batch(self, rows: NDArray[np.intp], rng: np.random.Generator) -> Tensor:
        """``(len(rows), d) float32``."""
        if len(self._views) == 1:
            return torch.from_numpy(self._views[0][rows])
        return self._take(rng.integers(len(self._views), size=len(rows)), rows)

    def pair(self, rows: NDArray[np.intp], rng: np.random.Generator, noise: float) -> tuple[Tensor, Tensor]:
        """Two different views of every row.

        Without views: twice the features with Gaussian noise, whose standard deviation is ``noise`` times that of the features.
        """
        n_views = len(self._views)
        if n_views == 1:
            features = self._views[0][rows]
            draw = rng.standard_normal((2, *features.shape), np.float32) * np.float32(noise * self._deviation)
            return torch.from_numpy(features + draw[0]), torch.from_numpy(features + draw[1])
        first = rng.integers(n_views, size=len(rows))
        second = (first + rng.integers(1, n_views, size=len(rows))) % n_views
        return self._take(first, rows), self._take(second, rows)

    def _take(self, chosen: NDArray[np.intp], rows: NDArray[np.intp]) -> Tensor:
        inputs = np.empty((len(rows), self._views[0].shape[1]), np.float32)
        for number, view in enumerate(self._views):
            mine = chosen == number
            inputs[mine] = view[rows[mine]]
        return torch.from_numpy(inputs)


class TwoViews:
    """Two views of every row in one batch: the first of all rows, then the second of all."""

    def __init__(self, inputs: Inputs, noise: float) -> None:
        """``noise`` as in :meth:`CachedFeatures.pair`."""
        self._inputs, self._noise = inputs, noise

    def __len__(self) -> int:
        return len(self._inputs)

    def batch(self, rows: NDArray[np.intp], rng: np.random.Generator) -> Tensor:
        """``(2 len(rows), ...)``."""
        return torch.cat(self._inputs.pair(rows, rng, self._noise))

    def pair(self, rows: NDArray[np.intp], rng: np.random.Generator, noise: float) -> tuple[Tensor, Tensor]:
        """The inputs' own."""
        return self._inputs.pair(rows, rng, noise)


@dataclass(frozen=True)
class TrainableImages:
    """Images as inputs, and the backbone's network that turns them into features and is trained in place."""

    inputs: Inputs
    trunk: nn.Module


@dataclass(frozen=True)
class TrainingSettings:
    """How long and how fast to train.

    Attributes:
        epochs: Passes over the rows.
        batch_size: Rows a step (images; a pair loss uses all pairs of the batch).
        learning_rate: Step size at the start.
        optimizer: ``sgd`` (momentum 0.9), ``adam``, or ``adamw``.
        weight_decay: L2 penalty.
        adam_eps: Epsilon of Adam; the authors' release uses 1.0, which makes it momentum SGD in effect.
        schedule: ``constant``; ``step``, a tenth for the last fifth of the epochs; ``cosine``, to zero step by step.
    """

    epochs: int
    batch_size: int = 64
    learning_rate: float = 1e-3
    optimizer: Optimizer = "sgd"
    weight_decay: float = 0.0
    adam_eps: float = 1e-8
    schedule: Schedule = "constant"

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 2:
            raise ParameterError(
                f"epochs must be at least 1 and batch_size at least 2, got {self.epochs}, {self.batch_size}"
            )
        if self.optimizer not in get_args(Optimizer):
            raise ParameterError(f"optimizer must be one of {', '.join(get_args(Optimizer))}, got {self.optimizer!r}")
        if self.schedule not in get_args(Schedule):
            raise ParameterError(f"schedule must be one of {', '.join(get_args(Schedule))}, got {self.schedule!r}")
        if not self.learning_rate > 0:
            raise ParameterError(f"learning_rate must be positive, got {self.learning_rate}")

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
    loss: Callable[[Any, NDArray[np.intp]], Tensor],
    settings: TrainingSettings,
    *,
    seed: int,
    device: str = "cpu",
    on_epoch: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Train ``network`` in place and leave it in eval mode.

    Args:
        network: Maps a batch of inputs to outputs.
        inputs: Where batches come from.
        loss: ``loss(outputs, rows) -> scalar``, with whatever the network returns.
        settings: Epochs, batch size, optimiser.
        seed: Controls row order and the inputs' randomness; on the CPU a run is repeated bit for bit.
        device: Where to train.
        on_epoch: Called with (epoch, mean loss) after each epoch.

    Returns:
        Mean loss of each epoch.

    Raises:
        DataError: the loss is not finite.
    """
    rng = np.random.default_rng(seed)
    network.to(device).train()
    rank, world, step_network = _distributed(network)
    optimizer = settings.build(network.parameters())
    history: list[float] = []
    for epoch in range(settings.epochs):
        order = rng.permutation(len(inputs))[rank::world]
        total = steps = 0.0
        for start in range(0, len(order), settings.batch_size):
            rows = order[start : start + settings.batch_size]
            if len(rows) < 2:  # a single row has no pairs, and no batch statistics
                continue
            for group in optimizer.param_groups:
                group["lr"] = settings.rate((epoch + start / len(order)) / settings.epochs)
            value = loss(step_network(inputs.batch(rows, rng).to(device)), rows)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(value)
            optimizer.step()
            total, steps = total + float(value.detach()), steps + 1
        history.append(total / max(steps, 1.0))
        if not np.isfinite(history[-1]):
            raise DataError(
                f"the loss became {history[-1]} in epoch {epoch + 1}; lower learning_rate ({settings.learning_rate})"
            )
        if on_epoch is not None:
            on_epoch(epoch, history[-1])
    network.eval()
    return history


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch's operations on one thread of the CPU.

    A small head gains nothing from a second thread, and when another program holds that core the two wait for each other: measured on
    two busy cores, one thread is ten times faster. The results are the same bit for bit.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _distributed(network: nn.Module) -> tuple[int, int, nn.Module]:
    """This process's rank, the number of processes, and the network whose backward averages gradients."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0, 1, network
    wrapped = nn.parallel.DistributedDataParallel(network)
    return torch.distributed.get_rank(), torch.distributed.get_world_size(), wrapped
