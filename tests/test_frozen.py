"""Behaviour that must survive any change of the code's inner order.

Everything here goes through public names, the command line and a real server process, so modules may move freely. What is pinned: names
and signatures, verbs and options, exit statuses, keys of JSON answers, HTTP routes, file formats, the codes of every method, and
folders that an earlier version wrote (``tests/frozen``). More may be added to any of them; nothing may go.

The fixtures are written anew by ``python tests/test_frozen.py`` (with ``--codes`` the codes of the methods alone). That is only for the
day when results are meant to change: then look at the difference, and say in the commit why it is right. Inputs are never written anew.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import distillhash
from distillhash import Codes, HashModel, load_hasher, load_model, make_hasher, method_names
from distillhash.cli import main
from distillhash.index import open_index
from distillhash.metrics import evaluate_codes

HERE = Path(__file__).parent / "frozen"
N_BITS = 32
TOLERANCE = 1 / 1000  # of the bits of a method may differ: processors round differently

METHODS = (
    "agh bihalf cibhash cimon crovca deepbit dgh distillhash distillhash-contrast distillhash-initial dmuh dsg dsh greedyhash itq lsh "
    "mls3rduh nsh pcah pudh sdc sgh sh sph ssdh tbh urph"
).split()
PAIR_METHODS = ["ccaitq", "cross-contrast", "ugach"]
SUPERVISED = {"dmuh"}
SETTINGS: dict[str, dict[str, Any]] = {
    # By default the graph of so few rows falls into parts; their order is then a matter of rounding.
    "agh": {"n_anchors": 60, "n_neighbours": 12},
    "dgh": {"n_anchors": 60, "n_neighbours": 12},
    "ugach": {"pretrain_epochs": 20, "rounds": 2},  # quick
}


# --------------------------------------------------------------------------------------------------------------------------------------
# The codes of every method


def inputs() -> dict[str, NDArray[Any]]:
    """``features (256, 64)``, ``views (2, 256, 64)``, ``texts (256, 40)``, ``labels (256,)``: ten groups that overlap, no near ties.

    The number of rows is a power of two, so that shares of rows are exact and ties between them are ties on every processor.
    """
    with np.load(HERE / "features.npz") as arrays:
        return dict(arrays)


def make(method: str) -> Any:
    """A hasher by name; the methods for images and texts have had a maker of their own."""
    settings = SETTINGS.get(method, {})
    try:
        return make_hasher(method, n_bits=N_BITS, seed=0, **settings)
    except Exception:
        if not hasattr(distillhash, "make_cross_hasher"):
            raise
        return distillhash.make_cross_hasher(method, n_bits=N_BITS, seed=0, **settings)


def method_codes(method: str) -> dict[str, Codes]:
    """The codes that a method learns from the fixed input, by their names in ``codes.npz``."""
    given = inputs()
    if method in PAIR_METHODS:
        hasher = make(method).fit(given["features"], given["texts"], views=given["views"])
        return {
            f"{method}/images": hasher.encode_images(given["features"]),
            f"{method}/texts": hasher.encode_texts(given["texts"]),
        }
    hasher = make(method)
    labels = given["labels"] if method in SUPERVISED else None
    hasher.fit(given["features"], views=given["views"], labels=labels)
    return {method: hasher.encode(given["features"])}


def golden(name: str) -> Codes:
    """Codes that were stored."""
    with np.load(HERE / "codes.npz") as arrays:
        return Codes.from_packed(arrays[name], N_BITS)


def n_different(a: Codes, b: Codes) -> int:
    assert (a.n_bits, len(a)) == (b.n_bits, len(b))
    return int(np.bitwise_count(a.packed ^ b.packed).sum())


def test_every_method_is_there() -> None:
    assert set(METHODS) <= set(method_names())


@pytest.mark.parametrize("method", [*METHODS, *PAIR_METHODS])
def test_codes_of_the_method(method: str) -> None:
    for name, codes in method_codes(method).items():
        assert n_different(codes, golden(name)) <= TOLERANCE * codes.n_bits * len(codes), name


@pytest.mark.parametrize("method", [*METHODS, *PAIR_METHODS])
def test_the_golden_codes_say_something(method: str) -> None:
    for name in [method] if method in METHODS else [f"{method}/images", f"{method}/texts"]:
        codes = golden(name)
        assert codes.packed.shape == (256, 4) and len(np.unique(codes.packed, axis=0)) > 5


def write_codes() -> None:
    arrays = {name: codes.packed for method in [*METHODS, *PAIR_METHODS] for name, codes in method_codes(method).items()}
    np.savez_compressed(HERE / "codes.npz", **arrays)


def write_inputs() -> None:
    """The fixed input. It was drawn once; another BLAS would draw it a little differently."""
    rng = np.random.default_rng(20260)
    scale = 0.93 ** np.arange(64)
    centres = rng.standard_normal((10, 64)) * 1.3
    labels = np.arange(256) % 10
    x = (centres[labels] + 0.7 * rng.standard_normal((256, 64))) * scale * 3
    x = x @ np.linalg.qr(rng.standard_normal((64, 64)))[0] + 0.3
    views = x + 0.25 * scale.mean() * rng.standard_normal((2, 256, 64))
    texts = (x - x.mean(0)) @ rng.standard_normal((64, 40)) / 8
    texts += 0.3 * rng.standard_normal(texts.shape)
    floats = {"features": x, "views": views, "texts": texts}
    np.savez_compressed(
        HERE / "features.npz",
        labels=labels,
        **{name: values.astype(np.float32) for name, values in floats.items()},  # type: ignore[arg-type]
    )


if __name__ == "__main__":
    if not (HERE / "features.npz").exists():
        write_inputs()
    write_codes()
