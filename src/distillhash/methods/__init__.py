"""The methods, one file per paper, behind one contract."""

from distillhash.methods.base import Hasher
from distillhash.methods.registry import (
    METHODS,
    MethodInfo,
    default_views,
    load_hasher,
    make_hasher,
    method_class,
    method_names,
    uses_teacher,
)

__all__ = [
    "METHODS",
    "Hasher",
    "MethodInfo",
    "default_views",
    "load_hasher",
    "make_hasher",
    "method_class",
    "method_names",
    "uses_teacher",
]
