"""A decoder in closed form: from codes back to the directions of features, by ridge regression from bits.

S are the signs of n training rows (n, K), X their features, each divided by its length (n, d). The direction of a code s is m + s W, with
m the mean of X and W = (S'S + (K / 4) I)^-1 S'(X - m). The ridge K / 4 is that of a Gaussian prior on W under which the code explains four
fifths of the variance. It does not depend on n. On held-out rows of three data sets it was within .01 of the best ridge in neighbour
recall, from 100 to 5,000 rows. Features of length 1 did better than raw ones, because lengths do not count in a cosine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash.codes import Codes
from distillhash.errors import DataError

Floats = NDArray[np.float64]
PREFIX = "ridge_decoder."
_BLOCK = 4096


@dataclass(frozen=True)
class Decoder:
    """From codes to directions of features; only the direction of what it gives means something.

    Attributes:
        mean: ``(d,) float32``, of the directions learned from.
        weight: ``(n_bits, d) float32``.
    """

    mean: NDArray[np.float32]
    weight: NDArray[np.float32]

    @classmethod
    def fit(cls, encode: Callable[[NDArray[Any]], Codes], features: NDArray[Any], n_bits: int) -> Decoder:
        """Learn from ``(n, d)`` finite features and their codes, in float64 and in blocks: a memory map is never loaded whole."""
        n, d = features.shape
        mean = sum((_directions(block).sum(axis=0) for block in _blocks(features)), np.zeros(d)) / n
        gram, products = n_bits / 4 * np.eye(n_bits), np.zeros((n_bits, d))
        for block in _blocks(features):
            signs = encode(block).signs().astype(np.float64)
            gram += signs.T @ signs
            products += signs.T @ (_directions(block) - mean)
        weight = np.linalg.solve(gram, products)
        return cls(mean.astype(np.float32), weight.astype(np.float32))

    def reconstruct(self, codes: Codes) -> NDArray[np.float32]:
        """The directions that ``n`` codes stand for, ``(n, d) float32``; their lengths are near 1 or below.

        Row i depends on code i only. :class:`DataError` for codes of another length, or where a damaged decoder gives no finite values.
        """
        self._check(codes)
        rebuilt = np.empty((len(codes), len(self.mean)), np.float32)
        for start in range(0, len(codes), _BLOCK):
            signs = codes[start : start + _BLOCK].signs().astype(np.float64)
            with np.errstate(over="ignore"):
                rebuilt[start : start + _BLOCK] = self.mean + signs @ self._wide
        if not np.isfinite(rebuilt).all():
            raise DataError("this decoder gives no finite features for codes such as these; train the model again")
        return rebuilt

    def cosines(self, features: NDArray[Any], codes: Codes) -> Floats:
        """Cosines of ``q`` features ``(q, d)`` and the directions of ``n`` codes, ``(q, n)``; 0 for a feature or a direction of zeros.

        Uses x.(m + s W) = x.m + s.(W x) and |m + s W|^2 = m.m + 2 s.(W m) + s.(W W' s), so the ``(n, d)`` directions are never made.
        """
        self._check(codes)
        queries, mean = _directions(np.asarray(features, np.float64)), self.mean.astype(np.float64)
        answers, at_mean = self._wide @ queries.T, queries @ mean  # (n_bits, q) and (q,)
        found = np.empty((len(queries), len(codes)))
        for start in range(0, len(codes), _BLOCK):
            signs = codes[start : start + _BLOCK].signs().astype(np.float64)
            squares = mean @ mean + np.einsum("ij,ij->i", signs @ self._gram + 2 * (self._wide @ mean), signs)
            lengths = np.sqrt(np.maximum(squares, 0))
            products = (signs @ answers).T + at_mean[:, None]
            found[:, start : start + _BLOCK] = np.divide(
                products, lengths, out=np.zeros_like(products), where=lengths > 0
            )
        return np.clip(found, -1, 1, out=found)

    @cached_property
    def _wide(self) -> Floats:
        return self.weight.astype(np.float64)

    @cached_property
    def _gram(self) -> Floats:
        return np.asarray(self._wide @ self._wide.T)

    def _check(self, codes: Codes) -> None:
        if codes.n_bits != len(self.weight):
            raise DataError(f"this decoder takes codes of {len(self.weight)} bits, got {codes.n_bits}")

    def tensors(self) -> dict[str, NDArray[Any]]:
        """The arrays, as a model file names them."""
        return {f"{PREFIX}mean": self.mean, f"{PREFIX}weight": self.weight}

    @classmethod
    def from_tensors(cls, tensors: dict[str, NDArray[Any]], n_bits: int, n_features: int) -> Decoder | None:
        """What :meth:`tensors` gave; None where there are none, and ValueError for any others."""
        if not tensors:
            return None
        wanted = {f"{PREFIX}mean": (n_features,), f"{PREFIX}weight": (n_bits, n_features)}
        if {name: array.shape for name, array in tensors.items()} != wanted:
            raise ValueError(f"its decoder is not one from {n_bits} bits to {n_features} features")
        for name, array in tensors.items():
            if array.dtype != np.float32 or not np.isfinite(array).all():
                raise ValueError(f"{name} must hold float32, all of them finite")
        return cls(tensors[f"{PREFIX}mean"], tensors[f"{PREFIX}weight"])


def _blocks(features: NDArray[Any]) -> Iterator[Floats]:
    for start in range(0, len(features), _BLOCK):
        yield np.ascontiguousarray(features[start : start + _BLOCK], np.float64)


def _directions(rows: Floats) -> Floats:
    """Rows ``(n, d)`` divided by their lengths; rows of zeros stay."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0))
