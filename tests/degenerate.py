"""Inputs that every method must learn from or refuse in one sentence, and settings small enough to try them all."""

from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash import Hasher, make_hasher
from distillhash.methods import method_class

_SMALL = {
    "epochs": 1,
    "hidden": 8,
    "latent": 4,
    "estimate_epochs": 1,
    "iterations": 3,
    "max_iterations": 5,
    "pretrain_epochs": 1,
    "rounds": 1,
}


def quick(method: str, n_bits: int, **options: Any) -> Hasher:
    """A hasher that learns in milliseconds; hidden layers are kept where there are some, but narrow."""
    defaults = {field.name: field.default for field in fields(method_class(method))}
    small = {name: value for name, value in _SMALL.items() if defaults.get(name)}
    return make_hasher(method, n_bits, **small, **options)


def _inputs() -> dict[str, NDArray[Any]]:
    n, d = 40, 16
    x = np.random.default_rng(0).standard_normal((n, d)).astype(np.float32)
    wide, column, odd = x.astype(np.float64), np.arange(d), np.arange(n) % 2 == 1

    def first_row(values: NDArray[Any], factor: float) -> NDArray[Any]:
        return np.concatenate([values[:1] * values.dtype.type(factor), values[1:]])

    with np.errstate(over="ignore"):
        infinite = (first_row(wide, 1e6)).astype(np.float16)
    return {
        "a row of 1e25": first_row(x, 1e25),
        "a row of 1e38": first_row(np.clip(x, -1, 1), 1e38),
        "a row of 1e300": first_row(wide, 1e300),
        "a row of 1e11": first_row(np.clip(x, -1, 1), 1e11),
        "a row of 1e10 in float64": first_row(wide, 1e10),
        "a row of 1e-40": first_row(x, 1e-40),
        "all 1e-40": x * np.float32(1e-40),
        "all 1e-11": x * np.float32(1e-11),
        "all 1e20": x * np.float32(1e20),
        "far from 0": wide + 1e8,
        "one row": x[:1],
        "two rows": x[:2],
        "three rows": x[:3],
        "fewer rows than bits": x[:7],
        "one dimension": x[:, :1],
        "one dimension, two rows": x[:2, :1],
        "one dimension, two values": odd[:, None].astype(np.float32),
        "fewer dimensions than bits": x[:, :5],
        "constant axes": np.where(column < 13, np.float32(1.5), x),
        "a constant column": np.where(column == 3, np.float32(7), x),
        "one column that varies": np.where(column == 3, x, np.float32(7)),
        "all rows equal": np.repeat(x[:1], n, axis=0),
        "constant 0.1": np.full((n, d), 0.1, np.float32),
        "zeros": np.zeros((n, d), np.float32),
        "all rows but one equal": np.concatenate([np.repeat(x[:1], n - 1, axis=0), x[1:2]]),
        "duplicates": x[np.arange(n) % 10],
        "two different rows": x[np.arange(n) % 2],
        "opposite rows": np.where(odd[:, None], x[0], -x[0]),
        "two tight clusters": np.where(odd[:, None], x[0], -x[0]) + 1e-6 * x,
        "rank 1": np.outer(np.arange(n) - 7.3, x[0]),
        "unit vectors": np.eye(d, dtype=np.float32)[np.arange(n) % d],
        "mostly zeros": x * (np.random.default_rng(1).random((n, d)) < 0.05),
        "integers": (x * 10).astype(np.int64),
        "bytes": np.abs(x * 40).astype(np.uint8),
        "integers of 2**63": np.full((n, d), 2**63, np.uint64),
        "float16": x.astype(np.float16),
        "float16 with an infinity": infinite,
        "longdouble": wide.astype(np.longdouble),
        "big-endian": x.astype(">f4"),
        "Fortran order": np.asfortranarray(x),
        "a view with steps": np.repeat(np.repeat(x, 2, axis=0), 2, axis=1)[::2, ::2],
        "negative strides": x[::-1, ::-1],
        "one row in memory": np.broadcast_to(x[:1], (n, d)),
    }


INPUTS = _inputs()
for _array in INPUTS.values():
    _array.flags.writeable = False
