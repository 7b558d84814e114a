"""Similarity along the data manifold: a graph of mutual neighbours, and random walks on it.

Paper: Zhou, Weston, Gretton, Bousquet, Schoelkopf, "Ranking on Data Manifolds", NIPS 2003; used by MLS3RDUH (IJCAI 2020). With A the
graph's weights and d its degrees, a walk that restarts with probability 1 - alpha spreads

    F = (1 - alpha) (I - alpha D^-1/2 A D^-1/2)^-1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash.errors import DataError, ParameterError
from distillhash.pairs.similarity import Floats, mirror_upper


def mutual_neighbour_graph(distances: Floats, neighbours: NDArray[np.int32]) -> Any:
    """Edges between items that are each among the other's neighbours, weighted by cosine.

    Args:
        distances: ``(n, n)`` cosine distances.
        neighbours: ``(n, k) int32``, the items themselves left out.

    Returns:
        Symmetric sparse ``(n, n) float32``; cosines of 0 and below make no edge.
    """
    from scipy.sparse import csr_array

    n, k = neighbours.shape
    weights = np.maximum(1 - np.take_along_axis(distances, neighbours, axis=1), 0).ravel()
    directed = csr_array((weights, neighbours.ravel(), np.arange(0, n * k + 1, k)), shape=(n, n))
    graph = csr_array(directed.minimum(directed.T))  # 0 where one direction is missing
    graph.eliminate_zeros()
    return graph


def diffuse(graph: Any, alpha: float) -> Floats:
    """F of every pair, exactly.

    Args:
        graph: Symmetric sparse ``(n, n)`` weights of at least 0. An item without edges keeps its walk to itself.
        alpha: Chance to walk on, in [0, 1).

    Returns:
        ``(n, n) float32``, symmetric, at least 0. I - alpha D^-1/2 A D^-1/2 has its eigenvalues in [1 - alpha, 1 + alpha], so a Cholesky
        factor in single precision is accurate enough; factor and inverse overwrite the matrix: 4 n^2 bytes, n^3 multiplications.

    Raises:
        ParameterError: ``alpha`` is out of range.
    """
    from scipy.linalg.lapack import spotrf, spotri

    if not 0 <= alpha < 1:
        raise ParameterError(f"the diffusion must lie in [0, 1), got {alpha}")
    degrees = np.asarray(graph.sum(axis=1), np.float64)
    scale = np.where(degrees > 0, 1 / np.sqrt(np.where(degrees > 0, degrees, 1)), 0)
    edges = graph.tocoo()
    matrix = np.zeros(graph.shape, np.float32)
    rows, columns = edges.coords
    matrix[rows, columns] = -alpha * edges.data * scale[rows] * scale[columns]
    matrix[np.diag_indices_from(matrix)] += 1
    # LAPACK works in place on column-major arrays; a symmetric matrix is its own transpose.
    factor, failed = spotrf(matrix.T, lower=1, overwrite_a=1)
    inverse, failed_too = spotri(factor, lower=1, overwrite_c=1)
    if failed or failed_too:
        raise DataError(f"the neighbour graph cannot be diffused at {alpha}; lower that")
    walks: Floats = inverse.T
    mirror_upper(walks)
    walks *= np.float32(1 - alpha)
    return np.maximum(walks, 0, out=walks)
