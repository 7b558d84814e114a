"""Compact binary codes for images, learned without labels, and exact Hamming search over them.

Importing the package loads neither torch nor numba; each name below is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distillhash.codes import Codes
    from distillhash.methods import Hasher, load_hasher, make_hasher, method_names
    from distillhash.methods.estimator import BinaryHasher
    from distillhash.models import CrossModalModel, HashModel, load_model

__version__ = "0.2.0"

__all__ = [
    "BinaryHasher",
    "Codes",
    "CrossModalModel",
    "HashModel",
    "Hasher",
    "load_hasher",
    "load_model",
    "make_hasher",
    "method_names",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'distillhash' has no attribute {name!r}")
    if name == "BinaryHasher":
        from distillhash.methods.estimator import BinaryHasher

        return BinaryHasher
    if name == "Codes":
        from distillhash.codes import Codes

        return Codes
    if name in ("CrossModalModel", "HashModel", "load_model"):
        from distillhash import models

        return getattr(models, name)
    from distillhash import methods

    return getattr(methods, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
