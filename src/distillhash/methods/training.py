"""The training loop: a network, inputs that batches are drawn from, and a loss of a batch.

In a group of processes (:mod:`distillhash.distributed`) a backbone is trained by all of them. Each decodes its :class:`Share` of every
batch and passes it through the backbone. The features are gathered, so every process computes the head and the loss of the whole
batch, and the gradients are averaged. Order and random draws are those of one process, and so is the result, up to rounding. What is
trained on features alone every process trains for itself, with equal results: an exchange would take as long as a step.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from distillhash.distributed import average, copy_first, gathered, rank_and_size, shared_objects
from distillhash.errors import DataError, first_line
from distillhash.files import read_file, write_atomic
from distillhash.pytorch import Tensor, nn, torch

Optimizer = Literal["sgd", "adam", "adamw"]
Schedule = Literal["constant", "step", "cosine"]
Rows = NDArray[np.intp]
KEEP_SECONDS = 600.0
"""How often a checkpoint is written within an epoch."""
MAX_CHECKPOINT = 2**36
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

    def batch(self, rows: Rows, seeds: NDArray[np.int64]) -> Tensor:
        """Images, normalised and each augmented by its seed ``(len(rows), 1)``: ``(len(rows), 3, size, size)``."""


@dataclass(frozen=True)
class TrainableImages:
    """Images, and the backbone's network that turns them into features and is trained in place; where to keep how far that is."""

    inputs: Images
    trunk: nn.Module
    checkpoint: Checkpoint | None = None


class Share:
    """The rows of a batch that this process passes through the backbone.

    The processes have as many each; where a batch does not divide, some rows come twice, and the copies are dropped again.
    """

    def __init__(self) -> None:
        self._rank, self._world = rank_and_size()
        self._n = 0  # rows of the batch that was drawn last

    def __deepcopy__(self, _memo: object) -> Share:
        return self  # copies of a network see the same batches

    def take(self, n: int) -> Rows | slice:
        """Which of the ``n`` rows of a batch are this process's own."""
        self._n = n
        if self._world == 1:
            return slice(None)
        return np.array_split(np.resize(np.arange(n), self._size * self._world), self._world)[self._rank]

    def gather(self, features: Tensor) -> Tensor:
        """Features of the whole batch from those of every process's share; of two views, those of the first come first."""
        if self._world == 1:
            return features
        everyone: Tensor = _Gathered.apply(features)  # type: ignore[no-untyped-call]  # torch's apply has no types
        by_view = everyone.view(self._world, -1, self._size, features.shape[1]).transpose(0, 1)
        return by_view.flatten(1, 2)[:, : self._n].flatten(0, 1)

    @property
    def _size(self) -> int:
        return -(-self._n // self._world)


class _Gathered(torch.autograd.Function):
    """The rows of every process. Each takes the gradient of its own, times their number, because gradients are averaged in the end."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.size = len(rows)
        return gathered(rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        rank, world = rank_and_size()
        return gradients[0][rank * ctx.size : (rank + 1) * ctx.size] * world


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
    share: Share = field(default_factory=Share)

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, rows: Rows, rng: np.random.Generator) -> Batch:
        """One augmentation of every image; ``inputs`` are those of this process's share."""
        return Batch(self._draw(rows, rng), rows)

    def pair(self, rows: Rows, rng: np.random.Generator, noise: float) -> Batch:  # noqa: ARG002  # images need no noise
        """Two augmentations of every image: the first of all rows, then the second of all."""
        return Batch(torch.cat([self._draw(rows, rng) for _ in range(2)]), rows)

    def _draw(self, rows: Rows, rng: np.random.Generator) -> Tensor:
        seeds, mine = rng.integers(2**63, size=(len(rows), 1)), self.share.take(len(rows))
        return self.images.batch(self.rows[rows[mine]], seeds[mine])


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


@dataclass(frozen=True)
class DrawnTargets:
    """Targets that are drawn from ``generator``, whose state a checkpoint keeps."""

    draw: Targets
    generator: torch.Generator

    def __call__(self, rows: Rows) -> tuple[Tensor, ...]:
        """Those of a batch."""
        return self.draw(rows)


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


def mixed_precision(device: torch.device | str) -> torch.dtype | None:
    """What a backbone computes with while it is trained.

    bfloat16 on CUDA devices that have it, and float16 on older ones; None elsewhere, which means float32.
    """
    if torch.device(device).type != "cuda":
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


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
    with_backbone: bool = False,
    checkpoint: Checkpoint | None = None,
) -> list[float]:
    """Train ``network`` in place and leave it in eval mode; the mean loss of each epoch.

    ``loss(outputs, batch)`` is a scalar of whatever the network returns. ``targets`` gives the targets of a batch's rows; None keeps those
    that ``inputs`` give. ``rows`` are those to train on; None takes all. ``seed`` controls row order and the inputs' randomness; on the CPU
    a run is repeated bit for bit. The loss of each step is appended to ``every_step``. :class:`DataError` where the loss is not finite.
    ``with_backbone`` says that the inputs are images: a group of processes shares them. The training goes on from its ``checkpoint``, if
    there is one, and keeps it up to date.
    """
    network.to(device).train()
    grouped = with_backbone and rank_and_size()[1] > 1
    if grouped:
        copy_first(network.state_dict().values())
    parts = getattr(targets, "generator", None), *(getattr(part, "generator", None) for part in network.modules())
    run = _Run(
        network,
        settings.build(network.parameters()),
        torch.amp.GradScaler(enabled=with_backbone and mixed_precision(device) == torch.float16),
        np.random.default_rng(seed),
        [generator for generator in parts if isinstance(generator, torch.Generator)],
    )
    rows = np.arange(len(inputs)) if rows is None else rows
    stage = None if checkpoint is None else checkpoint.stage(run)
    while run.epoch < settings.epochs:
        if not run.done:
            run.order = rows[run.rng.permutation(len(rows))]
        while run.done < len(rows):
            chosen = run.order[run.done : run.done + settings.batch_size]
            if len(chosen) >= 2:  # a single row has no pairs, and no batch statistics
                for group in run.optimizer.param_groups:
                    group["lr"] = settings.rate((run.epoch + run.done / len(rows)) / settings.epochs)
                batch = inputs.batch(chosen, run.rng)
                wanted = batch.targets if targets is None else targets(batch.rows)
                batch = Batch(batch.inputs.to(device), batch.rows, tuple(target.to(device) for target in wanted))
                value = loss(network(batch.inputs), batch)
                run.optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(run.scaler.scale(value))
                if grouped:
                    average(tensor.grad for tensor in network.parameters() if tensor.grad is not None)
                run.scaler.step(run.optimizer)
                run.scaler.update()
                run.losses.append(float(value.detach()))
            run.done += settings.batch_size
            if stage is not None:
                stage.keep_sometimes()
        steps = run.losses[run.n_before :]
        run.history.append(math.fsum(steps) / max(len(steps), 1))
        if not np.isfinite(run.history[-1]):
            raise DataError(
                f"the loss became {run.history[-1]} in epoch {run.epoch + 1} at a step size of {settings.learning_rate}; lower "
                "learning_rate, or fine_tune_rate where the backbone is trained"
            )
        run.epoch, run.done, run.n_before = run.epoch + 1, 0, len(run.losses)
        if stage is not None:
            stage.keep()
    if every_step is not None:
        every_step += run.losses
    network.eval()
    return run.history


@dataclass
class _Run:
    """A training under way: all that its further steps depend on."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    rng: np.random.Generator
    generators: list[torch.Generator]
    order: Rows = field(default_factory=lambda: np.empty(0, np.intp))  # of the rows in this epoch
    epoch: int = 0
    done: int = 0  # rows of this epoch
    n_before: int = 0  # steps of earlier epochs
    losses: list[float] = field(default_factory=list)
    history: list[float] = field(default_factory=list)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything, as named arrays."""
        tensors = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        for number, parameter in enumerate(self.network.parameters()):
            state = self.optimizer.state.get(parameter, {})
            tensors |= {f"optimizer.{number}.{name}": value for name, value in state.items() if torch.is_tensor(value)}
        tensors |= {f"generator.{number}": generator.get_state() for number, generator in enumerate(self.generators)}
        tensors["generator"] = torch.get_rng_state()
        numbers: dict[str, Any] = {"epoch": self.epoch, "done": self.done, "n_before": self.n_before}
        numbers |= {"rng": self.rng.bit_generator.state, "scaler": self.scaler.state_dict()}
        return {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in tensors.items()} | {
            "order": self.order,
            "losses": np.array(self.losses),
            "history": np.array(self.history),
            "numbers": np.frombuffer(json.dumps(numbers).encode(), np.uint8),
        }

    def restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Take what :meth:`arrays` gave."""
        tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
        own = {name.removeprefix("network."): name for name in tensors if name.startswith("network.")}
        self.network.load_state_dict({name: tensors[long] for name, long in own.items()})
        for number, parameter in enumerate(self.network.parameters()):
            prefix = f"optimizer.{number}."
            for name in (name for name in tensors if name.startswith(prefix)):
                value = tensors[name]
                if value.shape == parameter.shape:  # the memory layout decides the last bit of an update
                    value = torch.empty_like(parameter, requires_grad=False).copy_(value)
                self.optimizer.state[parameter][name.removeprefix(prefix)] = value
        for number, generator in enumerate(self.generators):
            generator.set_state(tensors[f"generator.{number}"])
        torch.set_rng_state(tensors["generator"])
        numbers = json.loads(arrays["numbers"].tobytes())
        self.rng.bit_generator.state, scaler = numbers.pop("rng"), numbers.pop("scaler")
        self.scaler.load_state_dict(scaler)
        self.epoch, self.done, self.n_before = (int(numbers[name]) for name in ("epoch", "done", "n_before"))
        self.order, self.losses, self.history = arrays["order"], arrays["losses"].tolist(), arrays["history"].tolist()


class Checkpoint:
    """A folder that keeps how far a fit's trainings of the backbone are, so that the same fit goes on after it was stopped.

    One safetensors file a training: network, optimiser, order of the rows, and the state of every random generator. It is written after
    every epoch and every ten minutes, and appears whole or not at all. In a group of processes the first one reads and writes.
    """

    def __init__(self, folder: str | Path, facts: dict[str, Any]) -> None:
        """``facts`` are what the result depends on, JSON-able; :class:`DataError` if the folder has a training with others."""
        self.folder, self.facts = Path(folder), json.loads(json.dumps(facts))
        self._n_stages = 0

    def stage(self, run: _Run) -> _Stage:
        """The next training of the fit; ``run`` is brought to where its file is."""
        self._n_stages += 1
        path = self.folder / f"training-{self._n_stages}.safetensors"
        stage = _Stage(path, self.facts, run)
        stage.go_on()
        return stage

    def remove(self) -> None:
        """Delete the files, and the folder if it holds nothing else."""
        with suppress(OSError):
            for path in (*self.folder.glob("training-*.safetensors"), *self.folder.glob(".*.partial")):
                path.unlink()
            self.folder.rmdir()


@dataclass
class _Stage:
    """The file of one training."""

    path: Path
    facts: dict[str, Any]
    run: _Run
    kept: float = field(default_factory=time.monotonic)

    def keep(self) -> None:
        """Write the file."""
        from safetensors.numpy import save

        self.kept = time.monotonic()
        if rank_and_size()[0] == 0:
            facts = np.frombuffer(json.dumps(self.facts).encode(), np.uint8)
            write_atomic(self.path, save({"facts": facts, **self.run.arrays()}), durable=True)

    def keep_sometimes(self) -> None:
        """Write the file if the last one is old."""
        if time.monotonic() - self.kept >= KEEP_SECONDS:
            self.keep()

    def go_on(self) -> None:
        """Bring the run to where the file is, if there is one."""
        rank, world = rank_and_size()
        data = self._read() if rank == 0 else b""
        if world > 1:
            buffer = torch.zeros(shared_objects(len(data))[0], dtype=torch.uint8)
            if rank == 0:
                buffer.numpy()[:] = np.frombuffer(data, np.uint8)
            copy_first([buffer])
            data = buffer.numpy().tobytes()
        if data:
            self._restore(data)

    def _read(self) -> bytes:
        try:
            return read_file(self.path, limit=MAX_CHECKPOINT)
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise DataError(f"the checkpoint {self.path} cannot be read ({error.strerror}); delete it") from error

    def _restore(self, data: bytes) -> None:
        from safetensors.numpy import load

        try:
            arrays = load(data)
            facts = json.loads(arrays.pop("facts").tobytes())
            others = sorted(
                name for name in self.facts.keys() | facts.keys() if facts.get(name) != self.facts.get(name)
            )
            if not others:
                self.run.restore(arrays)
        except Exception as error:  # whatever a damaged file raises
            raise DataError(
                f"the checkpoint {self.path} is damaged ({first_line(error)}); delete {self.path.parent} to start again"
            ) from error
        if others:
            raise DataError(
                f"{self.path.parent} keeps an unfinished training with another {' and '.join(others)}; finish it with its own command, "
                "delete that folder, or give another --out"
            )


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
