"""What the methods trained by gradient descent share: hyper-parameters, training data, and the forms that a hash function can take.

The deep methods' networks are a pretrained backbone with its last layer replaced. On cached features that last part, the head, is all
there is to train: one linear layer on standardised features, or a hidden layer below it. With ``images`` the backbone is trained too,
after the head: gradients of a random head would undo what the backbone knows (Kumar et al., "Fine-Tuning can Distort Pretrained
Features", ICLR 2022).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Any, ClassVar

import numpy as np
from annotated_types import Ge, Gt
from numpy.typing import NDArray

from distillhash.methods import training
from distillhash.methods.base import Activation, AffineLayers, Hasher, Layers, TrainingSet, sample_rows, shapes_of
from distillhash.methods.training import Batch, CachedFeatures, ImageRows, Inputs, Rows, Targets, one_thread, train
from distillhash.pytorch import Tensor, functional, nn, torch
from distillhash.supervision.similarity import Floats, row_blocks

MANY = 50_000
"""Rows learned from by default; of more, neighbours come from a graph (:mod:`distillhash.supervision.graph`) where they would take n^2."""


def passes(epochs: int, n: int) -> int:
    """How many passes over ``n`` rows see no more rows than ``epochs`` over 50,000, at least one."""
    return min(epochs, max(1, epochs * MANY // n))


class TrainedHasher(Hasher):
    """Base of the methods trained by gradient descent. ``history_`` records ``loss`` per epoch and ``rows``, the rows learned from.

    Methods that train one head also record ``iteration_loss``, the loss of each step.

    A subclass gives the loss (:meth:`batch_loss`) and, where it needs them, what the outputs are compared with (:meth:`targets`) and how
    batches are drawn (:meth:`batches`).

    Attributes:
        max_train: Rows learned from at most, drawn by the seed.
        epochs: Passes over the rows. Above 50,000 rows there are fewer passes, at least one, so that all passes together see no more rows
            than those of 50,000 would.
        batch_size: Rows a step.
        learning_rate: Step size.
        optimizer: ``sgd`` (momentum .9), ``adam``, or ``adamw`` (weight decay apart from the gradient).
        schedule: How the step size falls: ``constant``, ``step`` (to a tenth for the last fifth) or ``cosine`` (to zero).
        adam_eps: Adam's epsilon.
        weight_decay: L2 penalty.
        fine_tune_epochs: Passes over the images that train backbone and head together, once the head has learned from the features.
        fine_tune_rate: Step size there.
        fine_tune_batch: Rows a step there, at most ``batch_size``; the default backbone takes about 30 MB an image at 128 pixels.
        device: torch device to train on.
    """

    fine_tunes: ClassVar[bool] = True
    takes_many: ClassVar[bool] = True
    """Whether time and memory are linear in the rows; else ``max_train`` bounds them."""

    max_train: Annotated[int, Ge(2)] = MANY
    epochs: Annotated[int, Ge(1)] = 30
    batch_size: Annotated[int, Ge(2)] = 64
    learning_rate: Annotated[float, Gt(0)] = 1e-3
    optimizer: training.Optimizer = "adam"
    schedule: training.Schedule = "constant"
    adam_eps: Annotated[float, Gt(0)] = 1e-8
    weight_decay: Annotated[float, Ge(0)] = 0.0
    fine_tune_epochs: Annotated[int, Ge(1)] = 3
    fine_tune_rate: Annotated[float, Gt(0)] = 1e-4
    fine_tune_batch: Annotated[int, Ge(2)] = 64
    device: str = "cpu"

    @abstractmethod
    def batch_loss(self, outputs: Any, batch: Batch) -> Tensor:
        """The scalar that training lowers, of the network's outputs for ``batch.inputs``."""

    def targets(self, data: Data) -> Targets | None:  # noqa: ARG002  # subclasses use it
        """What ``batch.targets`` are for given rows; None where the loss needs none, or :meth:`batches` gives them."""
        return None

    def batches(self, source: CachedFeatures | ImageRows) -> Inputs:
        """What batches are drawn from: by default one view of every row."""
        return source

    def above(self, trunk: nn.Module, network: nn.Module) -> nn.Module:
        """``network`` on the outputs of ``trunk``, to train both on images."""
        return nn.Sequential(trunk, network)

    def _data(self, given: TrainingSet) -> Data:
        """The rows to learn from, at most ``max_train``; recorded as ``history_["rows"]``."""
        rows = sample_rows(len(given.features), self.max_train, np.random.default_rng(self.seed))
        self.history_["rows"] = rows
        return Data(given, rows)

    def _settings(self, epochs: int, *, fine_tune: bool = False) -> training.TrainingSettings:
        rate = self.fine_tune_rate if fine_tune else self.learning_rate
        rows = min(self.batch_size, self.fine_tune_batch) if fine_tune else self.batch_size
        options = self.optimizer, self.weight_decay, self.adam_eps, self.schedule
        return training.TrainingSettings(epochs, rows, rate, *options)

    def _train(
        self,
        network: nn.Module,
        data: Data,
        targets: Targets | None = None,
        *,
        epochs: int | None = None,
        trunk: nn.Module | None = None,
        **options: Any,
    ) -> tuple[nn.Module, list[float]]:
        """Train ``network`` on cached features and then, where there are images, on these with the ``trunk`` (the data's) below it.

        Gives the network, with its trunk where that was trained too, and the mean loss of each epoch. ``options`` are those of ``train``.
        """
        options = {"seed": self.seed, "targets": targets, "device": self.device} | options
        settings = self._settings(passes(self.epochs if epochs is None else epochs, len(data.features)))
        with one_thread():
            losses = train(network, self.batches(data.cached), self.batch_loss, settings, **options)
        if data.images is None or data.trunk is None:
            return network, losses
        network = self.above(_Trunk(data.trunk if trunk is None else trunk).requires_grad_(True), network)
        settings = self._settings(self.fine_tune_epochs, fine_tune=True)
        losses += train(network, self.batches(data.images), self.batch_loss, settings, **options)
        return network, losses


class HeadHasher(TrainedHasher):
    """Base of the methods that train a head of affine layers. Further hyper-parameters: see :class:`TrainedHasher`.

    Attributes:
        hidden: Width of a hidden layer; 0 trains one linear layer, None makes it as wide as the features.
    """

    activation: ClassVar[Activation] = "relu"
    batch_norm: ClassVar[bool] = False

    hidden: Annotated[int, Ge(0)] | None = 0

    def _fit(self, given: TrainingSet) -> None:
        data = self._data(given)
        targets = self.targets(data)
        head = self._head(data, self.n_bits, self.seed)
        self.history_["iteration_loss"] = list[float]()
        network, self.history_["loss"] = self._train(
            self.network(head, data), data, targets, every_step=self.history_["iteration_loss"]
        )
        self._keep(head)
        self.finish(data, network)

    def network(self, head: Head, data: Data) -> nn.Module:  # noqa: ARG002  # subclasses use it
        """What is trained: the head, by default, or a network that contains it."""
        return head

    def finish(self, data: Data, network: nn.Module) -> None:
        """Do what comes after training."""

    def _head(self, data: Data, n_outputs: int, seed: int) -> Head:
        hidden = data.features.shape[1] if self.hidden is None else self.hidden
        return Head(data.features, n_outputs, seed, hidden, self.activation, self.batch_norm)

    def _keep(self, head: Head) -> None:
        self.mean_: NDArray[np.float64] = head.mean
        self.layers_: Layers = head.fold()

    @property
    def _affine(self) -> AffineLayers:
        return AffineLayers(self.mean_, self.layers_, self.activation)

    def _project(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        return self._affine(features)

    def state(self) -> dict[str, NDArray[Any]]:
        """The mean and each layer's weight and bias."""
        return self._affine.state()

    def _set_state(self, state: dict[str, NDArray[Any]]) -> None:
        layers = AffineLayers.from_state(state, 1 if self.hidden == 0 else 2, self.n_bits, self.activation)
        if len(layers.mean) != self.n_features_:
            raise ValueError(f"a mean of {len(layers.mean)} features for {self.n_features_}")
        self.mean_, self.layers_ = layers.mean, layers.layers


class TwoViewHasher(HeadHasher):
    """Base of the methods whose loss compares two views of every row: the outputs of the first views, then those of the second.

    Attributes:
        noise: Standard deviation of the noise that makes views where there are none, in units of that of the features.
    """

    uses_views: ClassVar[bool] = True

    noise: Annotated[float, Ge(0)] = 1.0

    def batches(self, source: CachedFeatures | ImageRows) -> Inputs:
        """Two views of every row."""
        return training.TwoViews(source, self.noise)


class ModuleHasher(TrainedHasher):
    """Base of the methods whose hash function, ``network_``, is a torch module. Hyper-parameters: see :class:`TrainedHasher`."""

    @abstractmethod
    def network(self, n_features: int) -> nn.Module:
        """A fresh module from ``(b, n_features)`` to ``(b, n_bits)``.

        Its weights may be drawn from torch's own generator, which ``fit`` seeds. In eval mode an output must depend on its own row alone.
        """

    def _fit(self, given: TrainingSet) -> None:
        data = self._data(given)
        targets = self.targets(data)
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            network = self.network(data.features.shape[1])
            _, self.history_["loss"] = self._train(network, data, targets)
        self.network_: nn.Module = network.cpu().double().eval()

    def _project(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        with torch.inference_mode():
            return np.asarray(self.network_(torch.from_numpy(np.require(features, requirements="W"))).numpy())

    def state(self) -> dict[str, NDArray[Any]]:
        """The module's parameters and buffers, by their names."""
        return {name: tensor.numpy() for name, tensor in self.network_.state_dict().items()}

    def _set_state(self, state: dict[str, NDArray[Any]]) -> None:
        assert self.n_features_ is not None  # restore sets it first
        with torch.device("meta"):  # takes no memory, whatever the hyper-parameters in a file say
            wanted = shapes_of(self.network(self.n_features_).state_dict())
        if wanted != shapes_of(state):
            raise ValueError(f"its arrays are not those of {wanted}")
        with torch.random.fork_rng():
            network = self.network(self.n_features_).double().eval()
        network.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in state.items()})
        self.network_ = network


class Head(nn.Sequential):
    """Layers on standardised features, which fold into affine maps of the raw features.

    One scale for all features conditions the optimisation and keeps the angles that targets come from.
    """

    def __init__(
        self,
        sample: Floats,
        n_outputs: int,
        seed: int,
        hidden: int = 0,
        activation: Activation = "relu",
        batch_norm: bool = False,
    ) -> None:
        """Standardise by ``sample (n, d)``; the weights are drawn from ``seed`` alone."""
        standardise, generator = Standardise(sample), torch.Generator().manual_seed(seed)
        layers: list[nn.Module] = []
        width = sample.shape[1]
        if hidden:
            layers.append(linear(width, hidden, generator, gain=2.0))
            layers.append(nn.ReLU() if activation == "relu" else nn.GELU())
        layers.append(linear(hidden or width, n_outputs, generator))
        if batch_norm:
            layers.append(nn.BatchNorm1d(n_outputs))
        super().__init__(standardise, *layers)
        self.mean, self.scale = standardise.exact_mean, standardise.scale

    def fold(self) -> Layers:
        """Weight ``(in, out)`` and bias of each layer; the scale goes into the first, batch normalisation into the last."""
        folded = [affine(layer) for layer in self if isinstance(layer, nn.Linear)]
        weight, bias = folded[0]
        folded[0] = (weight / self.scale, bias)
        norm = self[-1]
        if isinstance(norm, nn.BatchNorm1d):
            assert norm.running_var is not None and norm.running_mean is not None
            factor = _double(norm.weight) / np.sqrt(_double(norm.running_var) + norm.eps)
            weight, bias = folded[-1]
            folded[-1] = (weight * factor, (bias - _double(norm.running_mean)) * factor + _double(norm.bias))
        return folded


class Standardise(nn.Module):
    """(x - mean) / scale, with numbers that are not trained: the mean and the one scale of a sample ``(n, d)``."""

    mean: Tensor

    def __init__(self, sample: NDArray[Any]) -> None:
        super().__init__()
        self.exact_mean = np.asarray(sample.mean(axis=0, dtype=np.float64))
        blocks = [sample[rows] for rows in row_blocks(len(sample))]
        squares = [np.mean((block - self.exact_mean) ** 2) * (len(block) / len(sample)) for block in blocks]
        self.scale = float(np.sqrt(np.sum(squares))) or 1.0
        self.register_buffer("mean", torch.tensor(self.exact_mean, dtype=torch.float32))

    def forward(self, features: Tensor) -> Tensor:
        """``(b, d)`` to ``(b, d)``."""
        return (features - self.mean) / self.scale


class _Trunk(nn.Module):
    """A backbone's network that stays in eval mode while its weights are trained: no dropout, and fixed batch normalisation.

    Statistics of augmented batches would replace those that the weights were learned with, and MAP falls (docs/distillhash-contrast.md).
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.network(inputs)
        return outputs

    def train(self, mode: bool = True) -> _Trunk:
        super().train(mode)
        self.network.eval()
        return self


class Data:
    """The rows learned from, as :class:`TrainingSet` has them; features, views and teacher in float32.

    ``cached`` (features and views) and ``images`` are training inputs. ``trunk`` is the backbone's network where it is trained too.
    """

    def __init__(self, given: TrainingSet, rows: Rows) -> None:
        chosen = slice(None) if len(rows) == len(given.features) else rows  # all of them are not copied
        self.features: Floats = _floats(given.features[chosen])
        self.views = None if given.views is None else _floats(given.views[:, chosen])
        self.teacher = None if given.teacher is None else _floats(given.teacher[chosen])
        self.labels = None if given.labels is None else given.labels[rows]
        self.cached = CachedFeatures(self.features, self.views)
        self.images = None if given.images is None else ImageRows(given.images.inputs, rows)
        self.trunk = None if given.images is None else given.images.trunk

    def outputs(self, network: nn.Module) -> Floats:
        """Outputs of a trained network for every row, in order: for images where the backbone was trained, else for plain features."""
        device = next(network.parameters()).device
        rng = np.random.default_rng(0)
        inputs: Inputs = CachedFeatures(self.features) if self.images is None else self.images
        blocks = []
        with torch.inference_mode():
            for start in range(0, len(inputs), 64):
                rows = np.arange(start, min(start + 64, len(inputs)))
                blocks.append(network(inputs.batch(rows, rng).inputs.to(device)).cpu().numpy())
        return np.concatenate(blocks)


def _floats(values: NDArray[Any]) -> Floats:
    """float32 that torch can share: a copy only where the values are of another type or layout, or may not be written."""
    return np.require(values, np.float32, ["C", "W"])


def _double(tensor: Tensor) -> NDArray[np.float64]:
    return np.asarray(tensor.detach().cpu().double().numpy())


def linear(n_inputs: int, n_outputs: int, generator: torch.Generator, gain: float = 1.0) -> nn.Linear:
    """A linear layer whose outputs have variance ``gain`` on inputs of variance 1; zero bias."""
    layer = nn.Linear(n_inputs, n_outputs)
    with torch.no_grad():
        nn.init.normal_(layer.weight, std=(gain / n_inputs) ** 0.5, generator=generator)
        nn.init.zeros_(layer.bias)
    return layer


def affine(layer: nn.Linear) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weight ``(in, out)`` and bias of a layer."""
    return _double(layer.weight).T, _double(layer.bias)


def straight_through_sign(outputs: Tensor) -> Tensor:
    """Signs in {-1, +1}, 0 -> +1; the gradient passes as if they were ``outputs``."""
    signs = torch.where(outputs >= 0, 1.0, -1.0)
    return outputs + (signs - outputs).detach()


def tanh_through_sign(outputs: Tensor) -> Tensor:
    """Signs in {-1, +1}, 0 -> +1; the gradient passes as if they were ``tanh(outputs)``, so bits far from 0 hold still."""
    smooth = torch.tanh(outputs)
    return smooth + (torch.where(outputs >= 0, 1.0, -1.0) - smooth).detach()


def half_batch_cosines(rows: Tensor) -> Tensor:
    """Cosines of each row of the first half of a batch with its partner in the second, ``(b // 2,)``; an odd row is left out."""
    half = len(rows) // 2
    return functional.cosine_similarity(rows[:half], rows[half : 2 * half])


def unit_features(features: NDArray[Any], *, centre: bool) -> Tensor:
    """Rows of length 1, ``(n, d)``, whose products are the cosines that codes are to keep; ``centre`` removes the mean first."""
    values = np.asarray(features, np.float32)
    if centre:
        values = values - values.mean(axis=0)
    return functional.normalize(torch.from_numpy(values))
