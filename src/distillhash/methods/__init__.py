"""The methods, one file per paper, behind one contract."""

from __future__ import annotations

from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from distillhash.errors import FormatError, ParameterError
from distillhash.methods.base import Hasher, read_model_folder

__all__ = ["Hasher", "load_hasher", "make_hasher", "method_class", "method_names"]

# name -> (module, class, one line for `distillhash ls methods`); modules are imported when a method is used.
_METHODS = {
    "distillhash": ("distillhash", "DistillHash", "pairs distilled by flip-rate bounds (CVPR 2019)"),
    "distillhash-initial": ("distillhash_initial", "DistillHashInitial", "DistillHash*: the same without distilling"),
    "itq": ("itq", "ITQ", "PCA and the best rotation to the cube (CVPR 2011)"),
    "lsh": ("lsh", "LSH", "random hyperplanes (STOC 2002)"),
    "pcah": ("pcah", "PCAH", "signs of principal components (TPAMI 2012)"),
    "ssdh": ("ssdh", "SSDH", "half-Gaussian pair labels, squared loss (IJCAI 2018)"),
}


def method_names() -> list[str]:
    """Names of all methods, sorted."""
    return sorted(_METHODS)


def method_summaries() -> dict[str, str]:
    """One line per method."""
    return {name: _METHODS[name][2] for name in method_names()}


def method_class(method: str) -> type[Hasher]:
    """The class behind a name.

    Raises:
        ParameterError: unknown name.
    """
    if method not in _METHODS:
        raise ParameterError(f"unknown method {method!r}; choose one of {', '.join(method_names())}")
    module, name, _ = _METHODS[method]
    found: type[Hasher] = getattr(import_module(f"distillhash.methods.{module}"), name)
    return found


def make_hasher(method: str, n_bits: int, *, seed: int = 0, **hyperparameters: Any) -> Hasher:
    """An unfitted hasher.

    Args:
        method: One of :func:`method_names`.
        n_bits: Code length.
        seed: Controls everything random in ``fit``.
        **hyperparameters: Fields of the method's class; for ``distillhash`` also ``reading`` (``paper``, ``code``,
            ``recommended``), which sets several at once and yields to those given by name.

    Raises:
        ParameterError: unknown method or hyper-parameter, or a value out of range.
    """
    cls = method_class(method)
    readings: dict[str, dict[str, Any]] = getattr(cls, "READINGS", {})
    if readings and "reading" in hyperparameters:
        reading = hyperparameters.pop("reading")
        if reading not in readings:
            raise ParameterError(f"unknown reading {reading!r} of {method}; choose one of {', '.join(readings)}")
        hyperparameters = {**readings[reading], **hyperparameters}
    known = {field.name for field in fields(cls)} - {"n_bits", "seed"}
    unknown = sorted(set(hyperparameters) - known)
    if unknown:
        options = ", ".join(sorted(known | ({"reading"} if readings else set()))) or "none"
        raise ParameterError(f"{method} has no hyper-parameter {unknown[0]!r}; it takes {options}")
    try:
        return cls(n_bits, seed=seed, **hyperparameters)
    except TypeError as error:  # a value of the wrong type met a comparison
        raise ParameterError(f"a hyper-parameter of {method} has the wrong type ({error})") from error


def load_hasher(path: str | Path) -> Hasher:
    """Read a hasher that :meth:`Hasher.save` wrote.

    Raises:
        FormatError: the folder is absent, damaged, or of a newer format.
    """
    return hasher_from(*read_model_folder(path))


def hasher_from(config: dict[str, Any], tensors: dict[str, NDArray[Any]]) -> Hasher:
    """The fitted hasher described by the contents of a model folder."""
    try:
        parameters, method = dict(config["parameters"]), config["method"]
        hasher = make_hasher(method, parameters.pop("n_bits"), seed=parameters.pop("seed"), **parameters)
    except (KeyError, TypeError, ParameterError) as error:
        raise FormatError(f"the model's config.json does not describe a usable hasher: {error}") from error
    return hasher.restore(config, tensors)
