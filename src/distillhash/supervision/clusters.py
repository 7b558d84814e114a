"""Clusters of items, and the pair labels that contradict them."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from distillhash.errors import DataError
from distillhash.supervision.neighbours import nearest_neighbours, neighbour_graph
from distillhash.supervision.similarity import Floats, PairLabels, unit_rows

Clustering = Literal["spectral", "kmeans"]
ROWS_PER_CLUSTER = 10
_BLOCK = 1024


def assign_clusters(
    features: NDArray[Any],
    distances: Floats,
    n_clusters: int,
    *,
    method: Clustering = "spectral",
    n_neighbours: int = 30,
    seed: int = 0,
) -> NDArray[np.int32]:
    """A cluster for every item, ``(n,) int32``: by k-means of unit rows, or of the spectral embedding of the neighbour graph.

    Spectral (Ng, Jordan, Weiss, NIPS 2001): k-means on the leading eigenvectors of the normalised graph of neighbours, mutual ones weighted
    twice. A Gaussian affinity is nearly flat on unit vectors; neighbours are not. At most one cluster per ``ROWS_PER_CLUSTER`` rows (but
    two) is made, because clusters of one item would contradict every similar pair. ``distances`` are the rows' ``(n, n)`` cosine distances.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    n = len(features)
    k = min(n_clusters, max(2, n // ROWS_PER_CLUSTER))
    if k == 1 or n < 4:
        return np.zeros(n, np.int32)
    rows = unit_rows(features) if method == "kmeans" else _spectral_rows(distances, k, min(n_neighbours, n - 1), seed)
    with warnings.catch_warnings():  # it warns of fewer different rows than clusters, which is no fault
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = KMeans(k, n_init=1, random_state=seed % 2**32).fit(rows).labels_
    return np.asarray(found, np.int32)


def _spectral_rows(distances: Floats, k: int, n_neighbours: int, seed: int) -> NDArray[np.float64]:
    """Rows of length 1 of the ``k`` leading eigenvectors of D^-1/2 A D^-1/2."""
    from scipy.sparse import diags_array
    from scipy.sparse.linalg import ArpackError, eigsh

    n = len(distances)
    directed = neighbour_graph(nearest_neighbours(distances, n_neighbours), np.ones((n, n_neighbours)))
    graph = directed + directed.T
    scale = diags_array(1 / np.sqrt(graph.sum(axis=1)))
    start = np.random.default_rng(seed).standard_normal(n)
    try:
        _, vectors = eigsh((scale @ graph @ scale).tocsr(), k, which="LA", v0=start)
    except (
        ArpackError
    ) as error:  # equal eigenvalues, as of items that are all alike; whether it happens depends on rounding
        raise DataError(
            f"the neighbour graph of {n} items has no {k} clusters that can be told apart ({error}); "
            "give more varied items, set clustering to kmeans, or use another method (itq)"
        ) from error
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(norms > 0, norms, 1))


def drop_contradictions(pairs: PairLabels, clusters: NDArray[np.integer[Any]]) -> PairLabels:
    """Keep +1 inside a cluster and -1 across clusters; the other labels become 0."""
    kept = pairs.copy()
    for start in range(0, len(pairs), _BLOCK):
        block = kept[start : start + _BLOCK]
        same = clusters[start : start + _BLOCK, None] == clusters[None]
        block[same != (block > 0)] = 0
    return kept
