"""The contract that every method keeps: the constructor stores, ``fit`` learns, ``encode`` is pure.

Attributes that ``fit`` sets end in an underscore. A fitted hasher saves to a folder with ``config.json`` (the hyper-parameters) and
``model.safetensors`` (what was learned); nothing is pickled.
"""

from __future__ import annotations

import json
import operator
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, fields
from functools import cache
from hashlib import blake2b
from numbers import Integral, Real
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
from annotated_types import Interval
from numpy.typing import NDArray

from distillhash.codes import Codes
from distillhash.errors import (
    DataError,
    FormatError,
    MissingDependencyError,
    NotFittedError,
    ParameterError,
    first_line,
)
from distillhash.files import read_file, write_atomic
from distillhash.methods.decoder import PREFIX, Decoder
from distillhash.sources.vectors import LARGEST

if TYPE_CHECKING:
    from distillhash.methods.training import TrainableImages

Floats = NDArray[np.float64]
Layers = list[tuple[Floats, Floats]]
FORMAT_VERSION = 1
Kind = Literal[
    "data-independent",
    "shallow",
    "pair labels",
    "pseudo labels",
    "contrastive",
    "generative",
    "similarity preserving",
    "regularised",
    "supervised",
    "cross-modal",
]
_BLOCK = 4096
_MAX_CONFIG, MAX_WEIGHTS = 16 * 2**20, 4 * 2**30
SMALLEST = 1e-12
"""The largest feature to learn from is no smaller, so that squares fit a float32."""
_OTHER_DATA = "remove rows far from the others, give more varied ones, or use another method (lsh)"


@dataclass(frozen=True)
class TrainingSet:
    """What a method may learn from; it takes what it can use. See :meth:`Hasher.fit`."""

    features: NDArray[Any]
    views: NDArray[Any] | None = None
    images: TrainableImages | None = None
    labels: NDArray[Any] | None = None
    teacher: NDArray[Any] | None = None


@typing.dataclass_transform(eq_default=False)
@dataclass(eq=False, repr=False)
class Hasher(ABC):
    """A hash method: learns from features, maps features to codes.

    Subclasses become dataclasses by themselves: fields are the hyper-parameters, stored as given and never changed by ``fit``.

    Attributes:
        n_bits: Code length K.
        seed: Controls everything random in ``fit``; equal seeds, data and threads give equal codes on one machine.
        method: Name in the registry.
        title, venue, year: Of the paper.
        kind: Family of the method.
        reconstructed: What neither the paper's text nor its authors' code was at hand for, in a phrase; empty where nothing is.
        uses_views: Whether ``fit`` learns from augmented views where there are some.
        chooses_views: Whether it does as well without them where they teach nothing
            (:func:`~distillhash.supervision.agreement.recognised_views`).
        uses_teacher: Whether ``fit`` learns from features of larger images where there are some.
        needs_labels: Whether ``fit`` needs class labels; all but the supervised methods refuse them.
        needs_texts: Whether ``fit`` needs image-text pairs.
        fine_tunes: Whether ``fit`` can train the backbone below its head as well.
        PRESETS: Named sets of hyper-parameters.
        TABLE_NAMES: What a row of a table is called, by preset (``""``: the defaults), where that is not the method's name. ``bench``
            runs the defaults and the preset ``paper`` of methods that name it here.
        RETIRED: Hyper-parameters of earlier versions; model folders may name them.
        ARRAYS: Learned arrays by name and shape, such as ``{"weight": "dk"}`` for ``weight_``, ``(n_features_, n_bits)``.
        n_features_: Width d of the features seen in ``fit``.
        history_: What training recorded (losses per epoch, pair diagnosis); empty for methods without training. Not saved.
    """

    method: ClassVar[str]
    title: ClassVar[str]
    venue: ClassVar[str]
    year: ClassVar[int]
    kind: ClassVar[Kind]
    reconstructed: ClassVar[str] = ""
    uses_views: ClassVar[bool] = False
    chooses_views: ClassVar[bool] = False
    uses_teacher: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False
    needs_texts: ClassVar[bool] = False
    fine_tunes: ClassVar[bool] = False
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {}
    TABLE_NAMES: ClassVar[dict[str, str]] = {}
    RETIRED: ClassVar[frozenset[str]] = frozenset()
    ARRAYS: ClassVar[dict[str, str]] = {}

    n_bits: Annotated[int, Interval(ge=1, le=4096)]
    _: KW_ONLY
    seed: Annotated[int, Interval(ge=0, lt=2**63 - 8)] = 0  # methods add small numbers to it

    def __init_subclass__(cls) -> None:
        dataclass(eq=False, repr=False)(cls)

    def __post_init__(self) -> None:
        for name, declared in _declared(type(self)).items():
            _check_parameter(name, getattr(self, name), declared)
        self.history_: dict[str, Any] = {}
        self.n_features_: int | None = None
        self._decoder: Decoder | None = None

    @classmethod
    def preset(cls, name: str) -> dict[str, Any]:
        """The hyper-parameters of a preset; :class:`ParameterError` for an unknown one."""
        if name not in cls.PRESETS:
            choices = f"choose one of {', '.join(cls.PRESETS)}" if cls.PRESETS else "it has none"
            raise ParameterError(f"unknown preset {name!r} of {cls.method}; {choices}")
        return dict(cls.PRESETS[name])

    @classmethod
    def check_names(cls, names: Iterable[str]) -> None:
        """Raise :class:`ParameterError` for a name that is not one of a hyper-parameter."""
        known = {field.name for field in fields(cls)} - {"n_bits", "seed"}
        unknown = sorted(set(names) - known)
        if unknown:
            options = ", ".join(sorted(known | ({"preset"} if cls.PRESETS else set())))
            raise ParameterError(f"{cls.method} has no hyper-parameter {unknown[0]!r}; it takes {options or 'none'}")

    @classmethod
    def about(cls) -> dict[str, Any]:
        """Where the method comes from and what it learns from, JSON-able."""
        inputs = "images" if cls.needs_texts else "features"
        others = [cls.uses_views and "views", cls.needs_labels and "labels", cls.needs_texts and "texts"]
        *first, last = [inputs, *filter(None, others)]
        uses = f"{', '.join(first)} and {last}" if first else last
        paper = {name: getattr(cls, name) for name in ("title", "venue", "year", "kind")}
        return {**paper, "uses": uses, "teacher": cls.uses_teacher, "reconstructed": cls.reconstructed}

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The hyper-parameters and their values, JSON-able. Name and argument are scikit-learn's."""
        del deep  # a hasher contains no other estimator
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}

    def set_params(self, **parameters: Any) -> Self:
        """Change hyper-parameters; what was learned is forgotten. A name or value that is refused changes nothing."""
        type(self).check_names(set(parameters) - {"n_bits", "seed"})
        fresh = type(self)(**{**self.get_params(), **parameters})
        self.__dict__ = fresh.__dict__
        return self

    @property
    def is_fitted(self) -> bool:
        """Whether ``fit`` or ``load`` has run."""
        return self.n_features_ is not None

    def fit(
        self,
        features: NDArray[Any],
        *,
        views: NDArray[Any] | None = None,
        images: TrainableImages | None = None,
        labels: NDArray[Any] | None = None,
        teacher: NDArray[Any] | None = None,
    ) -> Self:
        """Learn, without labels unless the method is a supervised one.

        Args:
            features: ``(n, d)`` finite floats (an array or a memory map), n >= 2.
            views: ``(n_views, n, d)`` features of augmented copies; methods that cannot use them ignore them.
            images: The ``n`` images and the backbone's network, to train the backbone in place together with the head.
            labels: ``(n,)`` integer classes or ``(n, n_labels)`` bool, for the methods that need them and no others.
            teacher: ``(n, d)`` better features of the same images from the same network, such as those at a larger size. Only training
                uses them; methods that cannot use them ignore them.

        Returns:
            self.

        Raises:
            DataError: wrong shape, NaN or infinity, or too little data for ``n_bits``.
            ParameterError: ``images`` for a method that cannot fine-tune; labels missing, or given to an unsupervised method.
        """
        if images is not None and not self.fine_tunes:
            raise ParameterError(
                f"{self.method} learns from fixed features and cannot fine-tune a backbone; leave that out"
            )
        features = check_features(features)
        if len(features) < 2:
            raise DataError(f"{self.method} needs at least 2 rows to learn from, got {len(features)}")
        if self.needs_labels and labels is None:
            raise ParameterError(f"{self.method} is supervised: it needs labels; give them, or use another method")
        if labels is not None and not self.needs_labels:
            raise ParameterError(f"{self.method} learns without labels; leave them out")
        if labels is not None and (labels.ndim not in (1, 2) or len(labels) != len(features)):
            raise DataError(f"labels must be ({len(features)},) or ({len(features)}, n_labels), got {labels.shape}")
        if views is not None and np.shape(views)[1:] != features.shape:
            raise DataError(f"views must be (n_views, {len(features)}, {features.shape[1]}), got {np.shape(views)}")
        if teacher is not None and np.shape(teacher) != features.shape:
            raise DataError(f"the teacher's features must be {features.shape}, got {np.shape(teacher)}")
        for view in () if views is None else views:
            check_features(view, "views")
        if teacher is not None:
            check_features(teacher, "teacher's features")
        self.history_ = {}
        self._learn(lambda: self._fit(TrainingSet(features, views, images, labels, teacher)), features.shape[1])
        if images is None:  # else these are not the features of the trained backbone
            self.fit_decoder(features)
        return self

    def _learn(self, fit: Callable[[], None], n_features: int) -> None:
        """Run ``fit``; fitted afterwards, unless what it learned is not finite or it cannot compute it: :class:`DataError`."""
        self.n_features_ = self._decoder = None
        try:
            with np.errstate(all="ignore"):
                fit()
                finite = all(np.isfinite(array).all() for array in self.state().values())
        except np.linalg.LinAlgError as error:
            raise DataError(f"{self.method} cannot learn from these features ({error}); {_OTHER_DATA}") from error
        if not finite:
            raise DataError(f"{self.method} learned numbers that are not finite; {_OTHER_DATA}")
        self.n_features_ = n_features

    @abstractmethod
    def _fit(self, given: TrainingSet) -> None: ...

    @abstractmethod
    def _project(self, features: Floats) -> Floats:
        """Real outputs for a block of features, ``(b, n_bits) float64``."""

    def state(self) -> dict[str, NDArray[Any]]:
        """What was learned, as named arrays: by default those of ``ARRAYS``."""
        return {name: getattr(self, f"{name}_") for name in self.ARRAYS}

    def _set_state(self, state: dict[str, NDArray[Any]]) -> None:
        for name, axes in self.ARRAYS.items():
            shape = tuple(self.n_bits if axis == "k" else self.n_features_ for axis in axes)
            if state[name].shape != shape:
                raise ValueError(f"{name} of shape {state[name].shape} for {self.n_bits} bits")
            setattr(self, f"{name}_", state[name])

    def project(self, features: NDArray[Any]) -> NDArray[np.float32]:
        """Real outputs before the sign.

        Args:
            features: ``(n, d)`` finite floats, n >= 0.

        Returns:
            ``(n, n_bits) float32``. Computed in float64, in blocks: row i depends on feature row i only, so batch size and row
            order change nothing.

        Raises:
            NotFittedError: before ``fit``.
            DataError: another width than in ``fit``, or a value that is not finite.
        """
        self._check_fitted()
        return project_blocks(self._project, features, self.n_features_, self.n_bits, "features")

    def _check_fitted(self, remedy: str = "call fit(features) first") -> None:
        if not self.is_fitted:
            raise NotFittedError(f"this {self.method} hasher is not fitted; {remedy}")

    def encode(self, features: NDArray[Any]) -> Codes:
        """Codes of features: the sign of :meth:`project`, x >= 0 -> +1 (DistillHash Eq. 12). Row i is feature row i."""
        return Codes.from_projection(self.project(features), self.class_bits)

    def fit_decoder(self, features: NDArray[Any]) -> Self:
        """Fit the decoder of a fitted hasher to ``(n, d)`` finite features, in closed form: see :mod:`distillhash.methods.decoder`.

        ``fit`` does so itself, except with ``images``: call this with the features of the trained backbone then.
        """
        self._check_fitted()
        try:
            self._decoder = Decoder.fit(self.encode, check_features(features), self.n_bits)
        except DataError:  # among others from outputs that are not finite
            self.n_features_ = None
            raise
        return self

    @property
    def decoder(self) -> Decoder:
        """From codes to features; :class:`ParameterError` for a model that was trained by a version without decoders."""
        self._check_fitted()
        if self._decoder is None:
            raise ParameterError(
                f"this {self.method} model has no decoder; call fit_decoder(features), or train it again"
            )
        return self._decoder

    def reconstruct(self, codes: Codes) -> NDArray[np.float32]:
        """Features that the codes stand for, ``(n, d) float32``, scaled to a length of about 1: see :class:`Decoder`.

        :class:`DataError` for codes of another length; other errors are those of :attr:`decoder`.
        """
        return self.decoder.reconstruct(codes)

    def wants_views(self, features: NDArray[Any]) -> bool:  # noqa: ARG002
        """Whether :meth:`fit` would learn from augmented views of images with these features ``(n, d)``; else they need not be made."""
        return self.uses_views

    @property
    def class_bits(self) -> int:
        """Bits of the part of a code that tells kinds apart, see :class:`~distillhash.codes.Codes`; 0 for codes of one part."""
        return 0

    def save(self, path: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors`` into the folder ``path`` (created if absent)."""
        write_model_folder(path, self.config(), self.tensors())

    def tensors(self) -> dict[str, NDArray[Any]]:
        """What ``model.safetensors`` holds of a fitted hasher: the state and the decoder."""
        return self.state() | ({} if self._decoder is None else self._decoder.tensors())

    def config(self) -> dict[str, Any]:
        """What ``config.json`` says of a fitted hasher; :class:`NotFittedError` before ``fit``."""
        self._check_fitted("there is nothing to save")
        return {
            "format_version": FORMAT_VERSION,
            "method": self.method,
            "parameters": self.get_params(),
            "n_features": self.n_features_,
        }

    def restore(self, config: dict[str, Any], tensors: dict[str, NDArray[Any]]) -> Self:
        """Take what was learned from the contents of a model folder, which somebody else may have made up."""
        width = config.get("n_features")
        decoder = {name: array for name, array in tensors.items() if name.startswith(PREFIX)}
        tensors = {name: array for name, array in tensors.items() if name not in decoder}
        try:
            if type(width) is not int or not any(width in array.shape for array in tensors.values()):
                raise ValueError(f"no array is {width!r} wide")
            for name, array in tensors.items():
                if array.dtype.kind not in "fi" or (array.dtype.kind == "i" and array.size > 1):  # a counter is one
                    raise ValueError(f"{name} must hold floats, not {array.dtype}")
                if not np.isfinite(array).all():
                    raise ValueError(f"{name} holds NaN or infinity")
            self.n_features_ = width
            self._set_state(tensors)
            if shapes_of(self.state()) != shapes_of(tensors):
                raise ValueError(f"it holds {', '.join(sorted(tensors))}")
            self._decoder = Decoder.from_tensors(decoder, self.n_bits, width)
            self._try_out()
        except ModuleNotFoundError as error:
            self.n_features_ = None
            raise MissingDependencyError(
                f"{self.method} needs {error.name} to be applied; pip install 'distillhash[train]'"
            ) from error
        except Exception as error:  # whatever the numbers in the file lead to, in the code of any package
            self.n_features_ = None
            raise FormatError(
                f"the model folder does not hold a {self.method} of {self.n_bits} bits ({first_line(error)}); train it again"
            ) from error
        return self

    def _try_out(self) -> None:
        """Project two rows, which fails where arrays do not fit each other."""
        assert self.n_features_ is not None
        self.project(np.eye(2, self.n_features_))

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.get_params().items())
        return f"{type(self).__name__}({arguments})"


class AffineHasher(Hasher):
    """A method whose projection is ``(x - mean_) weight_ + bias_``, in float64: every linear method."""

    ARRAYS: ClassVar[dict[str, str]] = {"mean": "d", "weight": "dk", "bias": "k"}

    def _set_affine(self, mean: NDArray[Any], weight: NDArray[Any], bias: NDArray[Any] | None = None) -> None:
        self.mean_: Floats = np.asarray(mean, np.float64)
        self.weight_: Floats = np.asarray(weight, np.float64)
        self.bias_: Floats = np.zeros(self.n_bits) if bias is None else np.asarray(bias, np.float64)

    def _project(self, features: Floats) -> Floats:
        return (features - self.mean_) @ self.weight_ + self.bias_


Activation = Literal["relu", "gelu", "tanh"]


@dataclass(frozen=True)
class AffineLayers:
    """A hash function ``x - mean``, then affine layers with an activation between them, in float64."""

    mean: Floats  # (d,)
    layers: Layers  # weight (n_in, n_out) and bias (n_out,)
    activation: Activation

    def __call__(self, features: Floats) -> Floats:
        """Real outputs ``(b, n_bits)`` of ``(b, d)`` features."""
        outputs = features - self.mean
        for index, (weight, bias) in enumerate(self.layers):
            outputs = (_activate(outputs, self.activation) if index else outputs) @ weight + bias
        return outputs

    def state(self, prefix: str = "") -> dict[str, NDArray[Any]]:
        """``mean``, and ``weight_i`` and ``bias_i`` of layer i, each name after ``prefix``."""
        arrays = {f"{prefix}mean": self.mean}
        for index, (weight, bias) in enumerate(self.layers):
            arrays |= {f"{prefix}weight_{index}": weight, f"{prefix}bias_{index}": bias}
        return arrays

    @classmethod
    def from_state(
        cls, state: dict[str, NDArray[Any]], n_layers: int, n_bits: int, activation: Activation, prefix: str = ""
    ) -> Self:
        """Read what :meth:`state` gave; ValueError where shapes do not fit each other or ``n_bits``."""
        mean = state[f"{prefix}mean"]
        if mean.ndim != 1:
            raise ValueError(f"{prefix}mean of shape {mean.shape}")
        layers = [(state[f"{prefix}weight_{i}"], state[f"{prefix}bias_{i}"]) for i in range(n_layers)]
        width = len(mean)
        for index, (weight, bias) in enumerate(layers):
            if weight.ndim != 2 or len(weight) != width or bias.shape != weight.shape[1:]:
                raise ValueError(f"{prefix}weight_{index} of shape {weight.shape} after {width} values")
            width = weight.shape[1]
        if width != n_bits:
            raise ValueError(f"{width} outputs for {n_bits} bits")
        return cls(mean, layers, activation)


def _activate(values: Floats, activation: Activation) -> Floats:
    """ReLU, the exact GELU x Phi(x), or tanh."""
    if activation == "relu":
        return np.maximum(values, 0)
    if activation == "tanh":
        return np.tanh(values)
    from scipy.special import ndtr

    return np.asarray(values * ndtr(values))


@cache
def _declared(cls: type[Hasher]) -> dict[str, Any]:
    """The declared type of every hyper-parameter, with its bounds."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in fields(cls)}


_KINDS: dict[Any, tuple[type, str]] = {
    bool: (bool, "true or false"),
    int: (Integral, "an integer"),
    float: (Real, "a number"),
    str: (str, "text"),
    type(None): (type(None), "null"),
}


def _check_parameter(name: str, value: object, declared: Any) -> None:
    """Raise :class:`ParameterError` unless ``value`` has the declared type and lies in its bounds."""
    words = []
    for kind in typing.get_args(declared) if typing.get_origin(declared) in (typing.Union, UnionType) else (declared,):
        kind, *bounds = typing.get_args(kind) if typing.get_origin(kind) is Annotated else (kind,)
        if typing.get_origin(kind) is Literal:
            if value in typing.get_args(kind):
                return
            words.append(f"one of {', '.join(map(str, typing.get_args(kind)))}")
            continue
        accepted, word = _KINDS[kind]
        if isinstance(value, accepted) and isinstance(value, bool) == (kind is bool):
            _check_bounds(name, value, bounds)
            return
        words.append(word)
    raise ParameterError(f"{name} must be {' or '.join(words)}, got {value!r}")


_LIMITS: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "ge": ("at least", operator.ge),
    "gt": ("above", operator.gt),
    "le": ("at most", operator.le),
    "lt": ("below", operator.lt),
}


def _check_bounds(name: str, value: Any, bounds: list[Any]) -> None:
    if isinstance(value, int) and abs(value) >= 2**63:
        raise ParameterError(f"{name} must lie within 2**63 of 0, got one of {value.bit_length()} bits")
    if isinstance(value, Real) and not np.isfinite(float(value)):
        raise ParameterError(f"{name} must be a finite number, got {value!r}")
    for bound in bounds:
        limits = {kind: getattr(bound, kind) for kind in _LIMITS if getattr(bound, kind, None) is not None}
        if not all(_LIMITS[kind][1](value, limit) for kind, limit in limits.items()):
            wanted = " and ".join(f"{_LIMITS[kind][0]} {limit}" for kind, limit in limits.items())
            raise ParameterError(f"{name} must be {wanted}, got {value!r}")


def write_model_folder(path: str | Path, config: dict[str, Any], tensors: dict[str, NDArray[Any]]) -> None:
    """Write ``model.safetensors`` and then ``config.json``, which gets its BLAKE2 digest, the model's ``fingerprint`` in indexes."""
    from safetensors.numpy import save

    folder = Path(path)
    data = save({name: np.ascontiguousarray(array) for name, array in tensors.items()})
    config = {**config, "fingerprint": blake2b(data, digest_size=16).hexdigest()}
    try:
        write_atomic(folder / "model.safetensors", data, durable=True)
        write_atomic(folder / "config.json", (json.dumps(config, indent=2) + "\n").encode(), durable=True)
    except OSError as error:
        raise DataError(f"the model cannot be written to {folder} ({error.strerror}); give another folder") from error


def read_model_folder(path: str | Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Configuration and tensors of a model folder; :class:`FormatError` where they are absent, damaged, newer or do not fit.

    The folder may be somebody else's: both files are data, at most 16 MiB and 4 GiB, and no value in them is trusted.
    """
    from safetensors.numpy import load

    folder = Path(path)
    try:
        config = json.loads(read_file(folder / "config.json", limit=_MAX_CONFIG), parse_constant=_refuse_constant)
        data = read_file(folder / "model.safetensors", limit=MAX_WEIGHTS)
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(
            f"{folder} is not a model folder, or is damaged ({first_line(error)}); give a folder that train wrote"
        ) from error
    version = config.get("format_version") if isinstance(config, dict) else None
    if type(version) is not int or version < 1:
        raise FormatError(f"{folder}/config.json is not that of a model; give a folder that train wrote")
    if version > FORMAT_VERSION:
        raise FormatError(f"{folder} has format {version}, this one reads up to {FORMAT_VERSION}; upgrade distillhash")
    if blake2b(data, digest_size=16).hexdigest() != config.get("fingerprint"):
        raise FormatError(
            f"{folder}/model.safetensors is damaged or does not belong to its config.json; train it again"
        )
    try:
        return config, load(data)
    except Exception as error:  # safetensors raises its own error, and KeyError for types that NumPy lacks
        raise FormatError(f"{folder}/model.safetensors is damaged ({first_line(error)}); train it again") from error


def shapes_of(arrays: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of every array or tensor; a file has no single numbers, but arrays of one."""
    return {name: tuple(array.shape) or (1,) for name, array in arrays.items()}


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def project_blocks(
    project: Callable[[Floats], Floats], features: NDArray[Any], width: int | None, n_bits: int, name: str
) -> NDArray[np.float32]:
    """``(n, n_bits) float32``: ``project`` of ``(n, width)`` finite features in float64, block by block; :class:`DataError` for others."""
    features = np.asarray(features)
    if features.ndim != 2 or features.shape[1] != width:
        raise DataError(f"{name} must be (n, {width}) as in fit, got shape {features.shape}")
    projection = np.empty((len(features), n_bits), np.float32)
    for start in range(0, len(features), _BLOCK):
        block = np.asarray(features[start : start + _BLOCK])
        _largest(block, start, name)
        with np.errstate(all="ignore"):
            outputs = project(np.ascontiguousarray(block, np.float64))
        # Only what a model file made up can give more than a float32 holds.
        if not (np.abs(outputs) <= np.finfo(np.float32).max).all():
            raise DataError(f"this hash function gives no finite outputs for {name} such as these; train it again")
        projection[start : start + len(block)] = outputs
    return projection


def check_features(features: NDArray[Any], name: str = "features") -> NDArray[Any]:
    """The array itself if it is ``(n, d)``, numeric, finite and of usable size; :class:`DataError` otherwise. A memory map stays one."""
    features = np.asanyarray(features)
    if features.ndim != 2 or features.shape[1] == 0:
        raise DataError(f"{name} must be a 2-d array (n, d) with d >= 1, got shape {features.shape}")
    if features.dtype.kind not in "fiu":
        raise DataError(f"{name} must be numbers, got dtype {features.dtype}")
    starts = range(0, len(features), _BLOCK)
    largest = max((_largest(np.asarray(features[start : start + _BLOCK]), start, name) for start in starts), default=0)
    if 0 < largest < SMALLEST:
        raise DataError(
            f"the largest of the {name} is {largest:.3g}; it must be at least {SMALLEST:g} (multiply all of them by one number)"
        )
    return features


def _largest(block: NDArray[Any], start: int, name: str) -> float:
    """The largest magnitude in rows that begin at ``start``; :class:`DataError` for NaN, infinity, and what is above ``LARGEST``."""
    largest = max(-float(block.min(initial=0)), float(block.max(initial=0)))
    if largest <= LARGEST:
        return largest
    with np.errstate(over="ignore"):
        wide = np.asarray(block, np.float64)
    bad = int(np.flatnonzero(~(np.abs(wide) <= LARGEST).all(axis=1))[0])
    if not np.isfinite(wide[bad]).all():
        raise DataError(f"{name} must be finite; row {start + bad} holds NaN or infinity (remove or repair such rows)")
    raise DataError(
        f"{name} must lie within {LARGEST:g} of 0; row {start + bad} holds {np.abs(wide[bad]).max():.3g} "
        "(remove such rows, or divide all of them by one number)"
    )


def sample_rows(n: int, most: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """All of ``range(n)``, or ``most`` of them drawn without replacement, ascending."""
    return np.arange(n) if n <= most else np.sort(rng.choice(n, most, replace=False))
