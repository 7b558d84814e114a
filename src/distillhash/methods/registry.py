"""Every method by name: those of this package, and those that other packages register.

A package registers a method by an entry point of the group ``distillhash.methods``. Its name is the method's, its value the class:

    [project.entry-points."distillhash.methods"]
    my-method = "my_package:MyMethod"

A class is imported when its method is first used, so listing the names needs no torch.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from distillhash.errors import FormatError, ParameterError
from distillhash.methods.base import Hasher, read_model_folder

GROUP = "distillhash.methods"
DEFAULT_METHOD = "distillhash-nested"
DEFAULT_FINE_TUNING_METHOD = "distillhash-contrast"
DEFAULT_IMAGE_TEXT_METHOD = "cross-contrast"

BUILT_IN = {
    "agh": "agh:AGH",
    "bihalf": "bihalf:BiHalf",
    "ccaitq": "ccaitq:CCAITQ",
    "cibhash": "cibhash:CIBHash",
    "cimon": "cimon:CIMON",
    "cross-contrast": "cross_contrast:CrossContrast",
    "crovca": "crovca:CroVCA",
    "deepbit": "deepbit:DeepBit",
    "dgh": "dgh:DGH",
    "distillhash": "distillhash:DistillHash",
    "distillhash-contrast": "distillhash_contrast:DistillHashContrast",
    "distillhash-initial": "distillhash:DistillHashInitial",
    "distillhash-nested": "distillhash_nested:DistillHashNested",
    "dmuh": "dmuh:DMUH",
    "dsg": "dsg:DSG",
    "dsh": "dsh:DSH",
    "duh-eg": "duh_eg:DUHEG",
    "greedyhash": "greedyhash:GreedyHash",
    "hashing-baseline": "hashing_baseline:HashingBaseline",
    "itq": "itq:ITQ",
    "lsh": "lsh:LSH",
    "mls3rduh": "mls3rduh:MLS3RDUH",
    "nsh": "nsh:NSH",
    "overview": "overview:Overview",
    "pcah": "pcah:PCAH",
    "pudh": "pudh:PUDH",
    "sdc": "sdc:SDC",
    "sgh": "sgh:SGH",
    "sh": "sh:SH",
    "sph": "sph:SpH",
    "ssdh": "ssdh:SSDH",
    "tbh": "tbh:TBH",
    "ugach": "ugach:UGACH",
    "urph": "urph:URPH",
}
"""Module and class of every method of this package."""

_IMAGE_TEXT = {"ccaitq", "cross-contrast", "duh-eg", "ugach"}  # of the built-in ones; known without importing them


@cache
def _methods() -> dict[str, EntryPoint]:
    """Where each method's class is. Another package cannot replace a built-in method."""
    built_in = {name: EntryPoint(name, f"distillhash.methods.{place}", GROUP) for name, place in BUILT_IN.items()}
    return {point.name: point for point in entry_points(group=GROUP)} | built_in


def method_names(*, image_text: bool = False) -> list[str]:
    """Names of the methods that learn from features, or with ``image_text`` from image-text pairs, sorted.

    Methods of other packages that cannot be imported are left out; :func:`method_class` tells why.
    """
    return sorted(name for name in _methods() if _needs_texts(name) == image_text)


def _needs_texts(name: str) -> bool | None:
    """None for a method that cannot be imported."""
    if name in BUILT_IN:
        return name in _IMAGE_TEXT
    try:
        return method_class(name).needs_texts
    except ParameterError:
        return None


def method_class(method: str) -> type[Hasher]:
    """The class behind ``NAME`` or ``NAME:PRESET``.

    Raises:
        ParameterError: the name is unknown, or its class cannot be imported or is no :class:`Hasher`.
    """
    name = str(method).partition(":")[0]  # a model's config may hold anything there
    if name not in _methods():
        raise ParameterError(f"unknown method {method!r}; choose one of {', '.join(sorted(_methods()))}")
    point = _methods()[name]
    try:
        found = point.load()
    except Exception as error:  # another package's code may raise anything
        raise ParameterError(f"method {name!r} cannot be imported from {point.value} ({error})") from error
    if not (isinstance(found, type) and issubclass(found, Hasher) and getattr(found, "method", "") == name):
        raise ParameterError(
            f"{point.value}, registered as method {name!r}, must be a subclass of distillhash.Hasher with method = {name!r}"
        )
    return found


def make_hasher(method: str, n_bits: int, *, seed: int = 0, **hyperparameters: Any) -> Hasher:
    """An unfitted hasher.

    Args:
        method: A method of features or of image-text pairs (:func:`method_names`), or ``NAME:PRESET``.
        n_bits: Code length.
        seed: Controls everything random in ``fit``.
        **hyperparameters: Fields of the method's class. ``preset`` names a set of them (``PRESETS`` of the class), such as ``paper`` of
            ``distillhash``; fields given by name override the preset's.

    Raises:
        ParameterError: unknown method, preset or hyper-parameter, or a value out of range.
    """
    cls, preset = method_class(method), str(method).partition(":")[2]
    if preset and "preset" in hyperparameters:
        raise ParameterError(f"{method!r} names a preset already; leave out preset={hyperparameters['preset']!r}")
    if preset := hyperparameters.pop("preset", preset):
        hyperparameters = cls.preset(preset) | hyperparameters
    cls.check_names(hyperparameters)
    return cls(n_bits, seed=seed, **hyperparameters)


def table_name(method: str) -> str:
    """What a row of a table is called for ``NAME`` or ``NAME:PRESET``: a paper's name is kept for that paper's method."""
    cls, (name, _, preset) = method_class(method), method.partition(":")
    if preset and not cls.preset(preset):  # the defaults by their name
        preset = ""
    return cls.TABLE_NAMES.get(preset, f"{name}, preset {preset}" if preset else name)


def load_hasher(path: str | Path) -> Hasher:
    """Read a hasher that :meth:`Hasher.save` wrote; :class:`FormatError` for a folder that is absent, damaged, or of a newer format."""
    return hasher_from(*read_model_folder(path))


def hasher_from(config: dict[str, Any], tensors: dict[str, NDArray[Any]]) -> Hasher:
    """The fitted hasher described by the contents of a model folder."""
    try:
        method, parameters = config["method"], {**config["parameters"]}
        for name in method_class(method).RETIRED:
            parameters.pop(name, None)
        hasher = make_hasher(method, parameters.pop("n_bits"), seed=parameters.pop("seed"), **parameters)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise FormatError(f"the model's config.json does not describe a usable hasher: {error}") from error
    return hasher.restore(config, tensors)
