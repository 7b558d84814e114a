"""Numerical steps that several methods share: principal components, rotations, canonical correlations, k-means, and the anchor graph.

The anchor graph is that of AGH and DGH.

Paper: Liu, Wang, Kumar, Chang, "Hashing with graphs", ICML 2011. https://icml.cc/2011/papers/6_icmlpaper.pdf

Symbols: u_1..m -> anchors; s -> neighbours; sigma -> bandwidth; Z -> second result of ``build_graph`` (n, m), s entries per row,
rows sum to 1; Lambda = diag(Z^T 1). The graph A = Z Lambda^-1 Z^T between all items is never formed.
Departs from the paper in: only the constant eigenvector is removed, by deflation; the release drops every eigenvalue above .999.
A graph of c unconnected parts has c eigenvalues 1, and c - 1 of them tell the parts apart. Anchors that are nobody's neighbour are
dropped, and there are at most n / 2. K-means starts from random rows, runs 5 rounds as in the release and sees at most 20,000 rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from distillhash.errors import DataError
from distillhash.methods.base import sample_rows

Floats = NDArray[np.float64]
_BLOCK = 4096
_KMEANS_ROWS = 20_000
_KMEANS_ROUNDS = 5  # of the anchors


def row_blocks(features: NDArray[Any]) -> Iterator[Floats]:
    """The rows in float64 and C order, 4,096 at a time, so that a memory map is never loaded whole."""
    for start in range(0, len(features), _BLOCK):
        yield np.ascontiguousarray(features[start : start + _BLOCK], np.float64)


def directions(features: NDArray[Any]) -> Floats:
    """Rows of length 1 in float64; a row of zeros stays zero."""
    values = np.asarray(features, np.float64)
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    return np.asarray(values / np.where(lengths > 0, lengths, 1))


def principal_components(features: NDArray[Any], k: int) -> tuple[Floats, Floats]:
    """Mean and the ``k`` leading eigenvectors of the covariance, by an exact symmetric eigen-decomposition.

    ``mean (d,)`` and ``components (d, k)`` float64, orthonormal columns by falling variance, largest entry positive. Features are read in
    blocks, so a memory map is never loaded whole. :class:`DataError` where ``k`` exceeds the number of features.
    """
    from scipy.linalg import eigh

    n, d = features.shape
    if k > d:
        raise DataError(
            f"{k} bits need at least {k} features for a principal direction each, got {d} feature(s); ask for fewer bits"
        )
    mean = np.mean(features, axis=0, dtype=np.float64)
    covariance = np.zeros((d, d))
    for block in row_blocks(features):
        centred = block - mean
        covariance += centred.T @ centred
    _, vectors = eigh(covariance / n, subset_by_index=(d - k, d - 1))
    components = vectors[:, ::-1]
    signs = np.sign(components[np.argmax(np.abs(components), axis=0), np.arange(k)])
    return np.asarray(mean), components * np.where(signs == 0, 1, signs)


def procrustes_rotation(rows: Floats, iterations: int, rng: np.random.Generator) -> tuple[Floats, list[float]]:
    """ITQ's rotation: lowers ``||B - V R||_F^2`` over signs B and rotations R by alternating updates of the two.

    ``R (k, k)`` for V = ``rows (n, k)``, and the error per row before each update, which never rises. ``rng`` draws the first rotation.
    Gong et al., "Iterative quantization", TPAMI 2013. https://doi.org/10.1109/TPAMI.2012.193
    """
    k = rows.shape[1]
    R, _ = np.linalg.qr(rng.standard_normal((k, k)))
    losses = []
    for _ in range(iterations):
        rotated = rows @ R
        B = np.where(rotated >= 0, 1.0, -1.0)
        losses.append(float(np.sum((B - rotated) ** 2) / len(rows)))
        S, _, T = np.linalg.svd(B.T @ rows)
        R = (S @ T).T
    return R, losses


def orthonormal_projection(rows: NDArray[Any], n_bits: int, iterations: int, rng: np.random.Generator) -> Floats:
    """As :func:`procrustes_rotation`, for any number of bits: ``R (k, n_bits)`` with R^T R = I, or R R^T = I where k < n_bits.

    With more columns than bits the alternation chooses the subspace too, as the one with the largest sum of ``abs(rows @ R)``.
    """
    k = rows.shape[1]
    R, _ = np.linalg.qr(rng.standard_normal((max(k, n_bits), min(k, n_bits))))
    R = R if k >= n_bits else R.T
    for _ in range(iterations):
        signs = np.where(rows @ R.astype(rows.dtype) >= 0, 1, -1).astype(rows.dtype)
        S, _, T = np.linalg.svd((rows.T @ signs).astype(np.float64), full_matrices=False)
        R = S @ T
    return np.asarray(R)


def canonical_directions(
    X: Floats, Y: Floats, k: int, regularisation: float, within: Floats | None = None
) -> tuple[Floats, Floats, Floats]:
    """Regularised canonical correlation of centred images and texts, by the singular values of the whitened cross-covariance.

    Hotelling, "Relations between two sets of variates", Biometrika 1936. From ``X (t, d)`` images and ``Y (t, e)`` texts, row by row:
    ``W_x (d, k)``, ``W_y (e, k)``, and the correlations ``(k,)`` in [0, 1], falling. The largest entry of a left singular vector is
    positive, because LAPACK's sign is arbitrary. ``regularisation`` is a ridge, as a share of each side's mean variance. ``within (d, d)``,
    the scatter of an image's augmented views where a row of X is their mean, is added to the covariance of X: it is unrelated to Y.
    :class:`DataError` where ``k`` exceeds a side's number of features, or a side is constant.
    """
    if k > min(X.shape[1], Y.shape[1]):
        raise DataError(
            f"{k} bits need at least {k} features on either side for a canonical direction each, got {X.shape[1]} of images and "
            f"{Y.shape[1]} of texts; ask for fewer bits"
        )
    covariances = [side.T @ side / len(side) for side in (X, Y)]
    if within is not None:
        covariances[0] = covariances[0] + within
    white_x = _whitener(covariances[0], regularisation, "images")
    white_y = _whitener(covariances[1], regularisation, "texts")
    left, values, right = np.linalg.svd(white_x @ (X.T @ Y / len(X)) @ white_y, full_matrices=False)
    signs = np.where(left[np.argmax(np.abs(left[:, :k]), axis=0), np.arange(k)] < 0, -1.0, 1.0)
    return white_x @ left[:, :k] * signs, white_y @ right[:k].T * signs, np.clip(values[:k], 0, 1)


def _whitener(covariance: Floats, regularisation: float, name: str) -> Floats:
    """The symmetric inverse square root of the regularised covariance."""
    ridge = regularisation * float(np.trace(covariance)) / len(covariance)
    if not ridge > 0:
        raise DataError(f"the features of the {name} are all alike; there is nothing to correlate")
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray((vectors / np.sqrt(np.maximum(values, 0) + ridge)) @ vectors.T)


def k_means(features: NDArray[Any], k: int, rounds: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Lloyd's k-means from at most ``k`` random rows, for so many ``rounds``; convergence is not tested.

    Centres ``(k', d)`` and each one's share of the rows ``(k',)``; empty groups are left out. More than 20,000 rows are sampled down.
    """
    from scipy.cluster.vq import kmeans2

    rows = np.ascontiguousarray(features[sample_rows(len(features), _KMEANS_ROWS, rng)], np.float64)
    start = rows[np.sort(rng.choice(len(rows), min(k, len(rows)), replace=False))]
    with warnings.catch_warnings():  # it warns of empty groups, which are left out below
        warnings.simplefilter("ignore", UserWarning)
        centres, labels = kmeans2(rows, start, iter=rounds, minit="matrix")
    counts = np.bincount(labels, minlength=len(centres))
    return centres[counts > 0], counts[counts > 0] / len(rows)


def squared_distances(features: Floats, centres: Floats) -> Floats:
    """Squared Euclidean distances ``(n, m)``, by one matrix product."""
    origin = centres.mean(axis=0)  # a shift changes no distance, and avoids cancellation when features lie far from 0
    x, u = features - origin, centres - origin
    squared = np.sum(x**2, axis=1)[:, None] - 2 * (x @ u.T) + np.sum(u**2, axis=1)
    return np.asarray(np.maximum(squared, 0))


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
