"""The anchor graph of AGH and DGH.

Paper: Liu, Wang, Kumar, Chang, "Hashing with graphs", ICML 2011. https://icml.cc/2011/papers/6_icmlpaper.pdf

Symbols: u_1..m -> anchors; s -> neighbours; sigma -> bandwidth; Z -> second result of ``build_graph`` (n, m), s entries per row,
rows sum to 1; Lambda = diag(Z^T 1). The graph A = Z Lambda^-1 Z^T between all items is never formed.
Departs from the paper in: only the constant eigenvector is removed, by deflation; the release drops every eigenvalue above .999.
A graph of c unconnected parts has c eigenvalues 1, and c - 1 of them tell the parts apart. Anchors that are nobody's neighbour are
dropped, and there are at most n / 2. K-means starts from random rows, runs 5 rounds as in the release and sees at most 20,000 rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from distillhash.errors import DataError
from distillhash.methods.linear_algebra import Floats, k_means, row_blocks, squared_distances

_KMEANS_ROUNDS = 5


@dataclass(frozen=True)
class AnchorGraph:
    """Anchors, and what determines the weights of an item on them."""

    anchors: Floats  # (m, d)
    bandwidth: float  # sigma of the weights exp(-distance^2 / sigma^2), above 0
    neighbours: int  # anchors with a weight, the nearest of an item; at most m

    def embed(self, features: Floats, values: Floats) -> Floats:
        """``Z(features) values``: each row's weighted mean of the ``(m, k)`` values of its anchors."""
        index, squared = _nearest(features, self.anchors, self.neighbours)
        weights = weights_of(squared, self.bandwidth)
        total = weights[:, :1] * values[index[:, 0]]
        for j in range(1, self.neighbours):
            total += weights[:, j : j + 1] * values[index[:, j]]
        return total

    def state(self) -> dict[str, NDArray[Any]]:
        """The arrays that :meth:`from_state` reads."""
        return {"anchors": self.anchors, "bandwidth": np.array([self.bandwidth])}

    @classmethod
    def from_state(cls, state: dict[str, NDArray[Any]], neighbours: int, n_features: int | None) -> Self:
        """The graph that :meth:`state` describes; ValueError where it is none of ``n_features``."""
        anchors, bandwidth = state["anchors"], state["bandwidth"]
        if anchors.ndim != 2 or anchors.shape[1] != n_features or bandwidth.shape != (1,) or not bandwidth[0] > 0:
            raise ValueError(f"anchors of shape {anchors.shape}, bandwidth of shape {bandwidth.shape}")
        return cls(anchors, float(bandwidth[0]), min(neighbours, len(anchors)))


def build_graph(
    features: NDArray[Any], n_anchors: int, neighbours: int, rng: np.random.Generator
) -> tuple[AnchorGraph, Any]:
    """Place anchors by k-means, set the bandwidth and weight the items' anchors: the graph, and Z ``(n, m)`` in CSR form.

    At most one anchor for every two rows, because an anchor that is a row tells nothing about its surroundings. :class:`DataError` where
    all rows coincide with their anchors: there are too few different ones for a graph.
    """
    from scipy.sparse import csr_array

    anchors, _ = k_means(features, max(2, min(n_anchors, len(features) // 2)), _KMEANS_ROUNDS, rng)
    s = min(neighbours, len(anchors))
    found = [_nearest(block, anchors, s) for block in row_blocks(features)]
    index, squared = (np.concatenate(part) for part in zip(*found, strict=True))
    bandwidth = float(np.mean(np.sqrt(squared[:, -1])))
    if bandwidth <= 1e-9 * float(np.abs(anchors).max()):
        raise DataError(f"an anchor graph needs rows that differ more; these sit on their anchors ({len(anchors)})")
    used, column = np.unique(index, return_inverse=True)  # without anchors that are nobody's neighbour
    rows = np.arange(0, index.size + 1, s)
    Z = csr_array((weights_of(squared, bandwidth).ravel(), column.ravel(), rows), shape=(len(index), len(used)))
    return AnchorGraph(anchors[used], bandwidth, s), Z


def weights_of(squared: Floats, bandwidth: float) -> Floats:
    """exp(-squared / bandwidth^2), scaled so that each row sums to 1. The first column must be the smallest."""
    # The smallest is subtracted first: that changes no weight, and rows far from every anchor do not become 0 / 0. The floor
    # gives an anchor with only distant rows some mass.
    weights = np.maximum(np.exp((squared[:, :1] - squared) / bandwidth**2), 1e-12)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def graph_eigenvectors(weights: Any, k: int) -> tuple[Floats, Floats]:
    """The ``k`` leading eigenvectors of A other than the constant one, as values at the anchors.

    From Z ``(n, m)`` without an empty column: W ``(m, k)`` with (Z W)^T (Z W) = n I and 1^T Z W = 0, largest entry of a column positive;
    eigenvalues ``(k,)``, falling. :class:`DataError` where A has fewer than k such eigenvectors.
    """
    from scipy.linalg import eigh

    n, m = weights.shape
    root = np.sqrt(np.asarray(weights.sum(axis=0)).ravel())
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
    return W * np.sign(W[np.argmax(np.abs(W), axis=0), np.arange(k)]), values[:k]


def _nearest(features: Floats, centres: Floats, s: int) -> tuple[NDArray[np.intp], Floats]:
    """Indices of the ``s`` nearest centres, by rising distance, and the squared distances, both ``(b, s)``."""
    squared = squared_distances(features, centres)
    index = np.argpartition(squared, s - 1, axis=1)[:, :s] if s < len(centres) else np.argsort(squared, axis=1)
    near = np.take_along_axis(squared, index, axis=1)
    order = np.argsort(near, axis=1, kind="stable")
    return np.take_along_axis(index, order, axis=1), np.take_along_axis(near, order, axis=1)
