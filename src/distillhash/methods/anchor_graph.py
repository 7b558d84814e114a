"""The anchor graph under AGH and DGH, and the short k-means that places its anchors.

Paper: Liu, Wang, Kumar, Chang, "Hashing with graphs", ICML 2011. https://icml.cc/2011/papers/6_icmlpaper.pdf

Symbols: u_1..m -> anchors; s -> neighbours; sigma -> bandwidth; Z -> second result of ``build_graph`` (n, m), s entries a row,
rows sum to 1; Lambda = diag(Z^T 1) -> ``mass``. The graph A = Z Lambda^-1 Z^T between all items is never formed.
Departs from the paper in: only the trivial eigenvector (the constant) is taken out, and by deflation, where the release drops every
eigenvalue above .999: a graph of c unconnected parts has c eigenvalues 1, and c - 1 of them tell the parts apart. Anchors that no
item is near are dropped, and there are at most n / 2. K-means starts from random rows, runs 5 rounds as in the release and sees at
most 20,000 rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash.errors import DataError
from distillhash.methods.base import sample_rows

_MAX_ROWS = 20_000
_ROUNDS = 5
_BLOCK = 4096

Array = NDArray[np.float64]


@dataclass(frozen=True)
class AnchorGraph:
    """Anchors and how items hang on them.

    Attributes:
        anchors: ``(m, d) float64``.
        bandwidth: sigma of the weights exp(-distance^2 / sigma^2), above 0.
        neighbours: Anchors an item hangs on, at most m.
    """

    anchors: Array
    bandwidth: float
    neighbours: int

    def near(self, features: Array) -> tuple[NDArray[np.intp], Array]:
        """Each row's ``neighbours`` nearest anchors, and its weights on them, both ``(b, neighbours)``; weights sum to 1."""
        index, squared = nearest(features, self.anchors, self.neighbours)
        return index, weights_of(squared, self.bandwidth)

    def embed(self, features: Array, values: Array) -> Array:
        """``Z(features) values``: each row's weighted mean of the ``(m, k)`` values of its anchors."""
        index, weights = self.near(features)
        total = weights[:, :1] * values[index[:, 0]]
        for j in range(1, self.neighbours):
            total += weights[:, j : j + 1] * values[index[:, j]]
        return total

    def state(self) -> dict[str, NDArray[Any]]:
        """The arrays that :func:`graph_from` reads."""
        return {"anchors": self.anchors, "bandwidth": np.array([self.bandwidth])}


def graph_from(state: dict[str, NDArray[Any]], neighbours: int) -> AnchorGraph:
    """The graph that :meth:`AnchorGraph.state` describes."""
    anchors, bandwidth = state["anchors"], state["bandwidth"]
    if anchors.ndim != 2 or bandwidth.shape != (1,):
        raise ValueError(f"anchors of shape {anchors.shape}, bandwidth of shape {bandwidth.shape}")
    return AnchorGraph(anchors, float(bandwidth[0]), min(neighbours, len(anchors)))


def build_graph(
    features: NDArray[Any], n_anchors: int, neighbours: int, rng: np.random.Generator
) -> tuple[AnchorGraph, Any]:
    """Place anchors by k-means, hang the items on them and set the bandwidth.

    Args:
        features: ``(n, d)``.
        n_anchors: Anchors m; at most one for every two rows, because an anchor that is a row says nothing of its surroundings.
        neighbours: s.
        rng: Draws the rows that k-means starts from.

    Returns:
        The graph, and Z ``(n, m)`` in CSR form, every column of which has an entry.

    Raises:
        DataError: all rows sit on their anchors: there are too few different ones for a graph.
    """
    from scipy.sparse import csr_array

    anchors, _ = k_means(features, max(2, min(n_anchors, len(features) // 2)), _ROUNDS, rng)
    s = min(neighbours, len(anchors))
    found = [nearest(block, anchors, s) for block in blocks(features)]
    index, squared = (np.concatenate(part) for part in zip(*found, strict=True))
    bandwidth = float(np.mean(np.sqrt(squared[:, -1])))
    if bandwidth <= 1e-9 * float(np.abs(anchors).max()):
        raise DataError(f"an anchor graph needs rows that differ more; these sit on their anchors ({len(anchors)})")
    used, column = np.unique(index, return_inverse=True)  # without anchors that are nobody's neighbour
    rows = np.arange(0, index.size + 1, s)
    Z = csr_array((weights_of(squared, bandwidth).ravel(), column.ravel(), rows), shape=(len(index), len(used)))
    return AnchorGraph(anchors[used], bandwidth, s), Z


def weights_of(squared: Array, bandwidth: float) -> Array:
    """exp(-squared / bandwidth^2), scaled so that each row sums to 1. The first column must be the smallest."""
    # Taking the smallest out first changes no weight, and keeps rows far from every anchor from becoming 0 / 0. The floor keeps
    # an anchor that is only just somebody's neighbour from having no mass at all.
    weights = np.maximum(np.exp((squared[:, :1] - squared) / bandwidth**2), 1e-12)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def graph_eigenvectors(weights: Any, k: int) -> tuple[Array, Array]:
    """The ``k`` leading eigenvectors of A other than the constant one, as values of the anchors.

    Args:
        weights: Z, ``(n, m)`` CSR, no empty column.
        k: Eigenvectors wanted.

    Returns:
        W ``(m, k)`` with (Z W)^T (Z W) = n I and 1^T Z W = 0, largest entry of a column positive; eigenvalues ``(k,)``, falling.

    Raises:
        DataError: A has fewer than k such eigenvectors.
    """
    from scipy.linalg import eigh

    n, m = weights.shape
    mass = np.asarray(weights.sum(axis=0)).ravel()
    root = np.sqrt(mass)
    M = (weights.T @ weights).toarray() / np.outer(root, root)
    trivial = root / np.linalg.norm(root)  # A's constant eigenvector, eigenvalue 1
    values, vectors = eigh(M - np.outer(trivial, trivial))
    values, vectors = values[::-1], vectors[:, ::-1]
    usable = int(np.sum(values > 1e-9))
    if usable < k:
        raise DataError(
            f"{k} eigenvectors are wanted, but the graph of {m} anchors on {n} rows has {usable}; "
            "ask for fewer bits, raise n_anchors or give more (different) rows"
        )
    W = np.sqrt(n) * vectors[:, :k] / np.sqrt(values[:k]) / root[:, None]
    signs = np.sign(W[np.argmax(np.abs(W), axis=0), np.arange(k)])
    return W * signs, values[:k]


def k_means(features: NDArray[Any], k: int, rounds: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Lloyd's k-means from ``k`` random rows.

    Args:
        features: ``(n, d)``; more than 20,000 rows are sampled down.
        k: Groups wanted; at most one for each row.
        rounds: Rounds of assigning and averaging, no convergence test.
        rng: Draws the sample and the first centres.

    Returns:
        Centres ``(k', d)`` and each one's share of the rows ``(k',)``; empty groups are left out.
    """
    from scipy.cluster.vq import kmeans2

    rows = np.asarray(features[sample_rows(len(features), _MAX_ROWS, rng)], np.float64)
    start = rows[np.sort(rng.choice(len(rows), min(k, len(rows)), replace=False))]
    with warnings.catch_warnings():  # it warns of empty groups, which go below
        warnings.simplefilter("ignore", UserWarning)
        centres, labels = kmeans2(rows, start, iter=rounds, minit="matrix")
    counts = np.bincount(labels, minlength=len(centres))
    return centres[counts > 0], counts[counts > 0] / len(rows)


def nearest(features: Array, centres: Array, s: int) -> tuple[NDArray[np.intp], Array]:
    """Indices of the ``s`` nearest centres, by rising distance, and the squared distances, both ``(b, s)``."""
    squared = squared_distances(features, centres)
    index = np.argpartition(squared, s - 1, axis=1)[:, :s] if s < len(centres) else np.argsort(squared, axis=1)
    near = np.take_along_axis(squared, index, axis=1)
    order = np.argsort(near, axis=1, kind="stable")
    return np.take_along_axis(index, order, axis=1), np.take_along_axis(near, order, axis=1)


def squared_distances(features: Array, centres: Array) -> Array:
    """Squared Euclidean distances ``(n, m)``, by one matrix product."""
    origin = centres.mean(axis=0)  # a shift changes no distance, and spares digits when features lie far from 0
    x, u = features - origin, centres - origin
    squared = np.sum(x**2, axis=1)[:, None] - 2 * (x @ u.T) + np.sum(u**2, axis=1)
    return np.asarray(np.maximum(squared, 0))


def blocks(features: NDArray[Any]) -> Iterator[Array]:
    """The rows in float64, a block at a time."""
    for start in range(0, len(features), _BLOCK):
        yield np.asarray(features[start : start + _BLOCK], np.float64)
