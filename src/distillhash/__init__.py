"""Compact binary codes for images, learned without labels, and exact Hamming search over them.

Importing the package loads neither torch nor numba; each name below is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "Codes",
    "CrossModalModel",
    "HashModel",
    "Hasher",
    "load_hasher",
    "load_model",
    "make_hasher",
    "method_names",
]

_HOME = {
    "Codes": "distillhash.codes",
    "CrossModalModel": "distillhash.models.image_text",
    "HashModel": "distillhash.models.hash_model",
    "Hasher": "distillhash.methods",
    "load_hasher": "distillhash.methods",
    "load_model": "distillhash.models.hash_model",
    "make_hasher": "distillhash.methods",
    "method_names": "distillhash.methods",
}

if TYPE_CHECKING:
    from distillhash.codes import Codes
    from distillhash.methods import Hasher, load_hasher, make_hasher, method_names
    from distillhash.models.hash_model import HashModel, load_model
    from distillhash.models.image_text import CrossModalModel


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'distillhash' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
