"""Methods that hash images and texts into one space, one file per paper, behind one contract."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from distillhash.errors import ParameterError
from distillhash.methods import MethodInfo
from distillhash.methods.base import instantiate
from distillhash.methods.image_text import CrossModalHasher, TrainingPairs

__all__ = [
    "CROSS_METHODS",
    "DEFAULT_CROSS_METHOD",
    "CrossModalHasher",
    "TrainingPairs",
    "cross_method_class",
    "cross_method_names",
    "make_cross_hasher",
]

KIND, PAIRS, PAIRS_AND_VIEWS = "cross-modal", "images and texts", "images, views and texts"
DEFAULT_CROSS_METHOD = "cross-contrast"
"""What ``train --pairs`` takes: the best measured."""

CROSS_METHODS = {
    "ccaitq": MethodInfo(
        "ccaitq",
        "CCAITQ",
        "Iterative Quantization: A Procrustean Approach to Learning Binary Codes (its CCA)",
        "TPAMI",
        2013,
        KIND,
        PAIRS,
    ),
    "cross-contrast": MethodInfo(
        "cross_contrast",
        "CrossContrast",
        "Contrastive codes with a text as one more view of an image",
        "this project",
        2026,
        KIND,
        PAIRS_AND_VIEWS,
    ),
    "ugach": MethodInfo(
        "ugach",
        "UGACH",
        "Unsupervised Generative Adversarial Cross-modal Hashing",
        "AAAI",
        2018,
        KIND,
        PAIRS,
    ),
}
"""Every cross-modal method by name."""


def cross_method_names() -> list[str]:
    """Names of all cross-modal methods, sorted."""
    return sorted(CROSS_METHODS)


def cross_method_class(method: str) -> type[CrossModalHasher]:
    """The class behind a name.

    Raises:
        ParameterError: unknown name.
    """
    if method not in CROSS_METHODS:
        raise ParameterError(f"unknown cross-modal method {method!r}; choose one of {', '.join(cross_method_names())}")
    info = CROSS_METHODS[method]
    found: type[CrossModalHasher] = getattr(import_module(f"distillhash.methods.{info.module}"), info.class_name)
    return found


def make_cross_hasher(method: str, n_bits: int, *, seed: int = 0, **hyperparameters: Any) -> CrossModalHasher:
    """An unfitted cross-modal hasher.

    Args:
        method: One of :func:`cross_method_names`.
        n_bits: Code length.
        seed: Controls everything random in ``fit``.
        **hyperparameters: Fields of the method's class; for ``ugach`` also ``reading`` (``code``, ``recommended``), which sets several
            at once and yields to those given by name.

    Raises:
        ParameterError: unknown method or hyper-parameter, or a value out of range.
    """
    return instantiate(cross_method_class(method), n_bits, seed, hyperparameters)
