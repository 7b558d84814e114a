"""MLS3RDUH: reconstructing the local semantic similarity structure on the data manifold.

Paper: Tu, Mao, Wei, "MLS3RDUH: Deep Unsupervised Hashing via Manifold based Local Semantic Similarity Structure Reconstructing",
IJCAI 2020, pp. 3466-3472. https://doi.org/10.24963/ijcai.2020/479

Symbols: k, o -> sizes of an item's neighbourhoods by cosine and by diffusion; S -> targets_; u -> relaxed codes; K -> n_bits.
S_ij = 1 if j is in both neighbourhoods of i, 0 if in the cosine one only, else the cosine; where the two directions differ, 1 goes before
0 and 0 before the cosine; then S <- 2 S - 1. Loss: mean log cosh(<u_i, u_j> / K - S_ij) over a batch, u = tanh(outputs), i = j included.

Departs from the paper in:
1. The backbone is whatever the features come from, frozen unless fine-tuned; the paper trains a network end to end.
2. Optimiser, batch size and epochs are for a head on standardised features (released: SGD 0.04, batch 128, 150 epochs).
3. Items without mutual neighbours keep the cosines of all their pairs; the release also takes them out of the others' neighbourhoods.
4. An item does not count as its own diffusion neighbour. Negative cosines count as 0, as released.
5. More than ``max_train`` rows are sampled down, because S is n x n.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Gt, Interval
from numpy.typing import NDArray

from distillhash.errors import DataError
from distillhash.methods.heads import Data, HeadHasher
from distillhash.methods.training import Batch, Targets, pair_targets
from distillhash.pytorch import Tensor, torch
from distillhash.supervision.losses import log_cosh_loss
from distillhash.supervision.neighbours import nearest_neighbours, neighbour_graph
from distillhash.supervision.similarity import Floats, PairLabels, cosine_distances, describe_pairs, mirror_upper

_BLOCK = 512


def mutual_neighbour_graph(distances: Floats, neighbours: NDArray[np.int32]) -> Any:
    """Symmetric sparse ``(n, n)``: edges between items that are each among the other's neighbours, weighted by cosines above 0."""
    weights = np.maximum(1 - np.take_along_axis(distances, neighbours, axis=1), 0)
    directed = neighbour_graph(neighbours, weights)
    graph = directed.minimum(directed.T).tocsr()  # 0 where one direction is missing
    graph.eliminate_zeros()
    return graph


def diffuse(graph: Any, alpha: float) -> Floats:
    """Random walks on a graph that restart with probability 1 - alpha: F = (1 - alpha) (I - alpha D^-1/2 A D^-1/2)^-1, exactly.

    A are the graph's weights and D its degrees (Zhou, Weston, Gretton, Bousquet, Schoelkopf, "Ranking on Data Manifolds", NIPS 2003).
    ``(n, n) float32``, symmetric; an item without edges keeps its walk to itself. The matrix has its eigenvalues in [1 - alpha, 1 + alpha],
    so a Cholesky factor in single precision is accurate enough. Factor and inverse overwrite it: 4 n^2 bytes, n^3 multiplications.
    """
    from scipy.linalg.lapack import spotrf, spotri

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


class MLS3RDUH(HeadHasher):
    """Cosine targets, corrected where the manifold agrees or disagrees with them. Further hyper-parameters: see :class:`HeadHasher`.

    ``targets_`` is S; ``pairs_`` (and ``initial_pairs_``, the same) says which pairs became +1 or -1, for ``history_["diagnosis"]``.

    Attributes:
        neighbour_share: k as a share of the training rows.
        manifold_ratio: o in units of k.
        diffusion: Chance that the random walk goes on.
    """

    method = "mls3rduh"
    title = "MLS3RDUH: Deep Unsupervised Hashing via Manifold based Local Semantic Similarity Structure Reconstructing"
    venue, year = "IJCAI", 2020
    kind = "pair labels"
    neighbour_share: Annotated[float, Interval(gt=0, le=1)] = 0.06
    manifold_ratio: Annotated[float, Gt(0)] = 1.5
    diffusion: Annotated[float, Interval(ge=0, lt=1)] = 0.99
    takes_many = False
    max_train: Annotated[int, Ge(2)] = 10_000  # memory for all pairs is about 11 bytes times its square

    def targets(self, data: Data) -> Targets:
        """S of the pairs of a batch."""
        self.targets_: NDArray[np.float16] = self._similarities(cosine_distances(data.features))
        self.pairs_: PairLabels = (self.targets_ == 1).astype(np.int8) - (self.targets_ == -1).astype(np.int8)
        np.fill_diagonal(self.pairs_, 0)
        self.initial_pairs_ = self.pairs_
        self.history_["diagnosis"] = [describe_pairs(self.pairs_, "pairs settled by both neighbourhoods")]
        return pair_targets(self.targets_)

    def batch_loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Log cosh of the errors of relaxed codes."""
        (wanted,) = batch.targets
        return log_cosh_loss(torch.tanh(outputs), wanted.to(outputs))

    def _similarities(self, distances: Floats) -> NDArray[np.float16]:
        n = len(distances)
        k = min(max(1, int(self.neighbour_share * n)), n - 1)
        o = min(max(1, int(self.manifold_ratio * k)), n - 1)
        near = nearest_neighbours(distances, k)
        graph = mutual_neighbour_graph(distances, near)
        alone = np.diff(graph.indptr) == 0
        walks = diffuse(graph, self.diffusion)
        with np.errstate(divide="ignore"):
            np.divide(1, walks, out=walks)  # the longest walk first; out of reach is infinitely far
        reached = nearest_neighbours(walks, o)
        del walks
        settled = three_cases(near, reached, alone)
        targets = np.empty((n, n), np.float16)
        for start in range(0, n, _BLOCK):
            rows = slice(start, min(start + _BLOCK, n))
            cosines = np.maximum(1 - distances[rows], 0)
            # Which case wins where the directions differ: the larger code, see three_cases.
            case = np.maximum(settled[rows], settled[:, rows].T)
            targets[rows] = 2 * np.select([case == 2, case == 1], [np.float32(1), np.float32(0)], cosines) - 1
        np.fill_diagonal(targets, 1)
        return targets


def three_cases(near: NDArray[np.int32], reached: NDArray[np.int32], alone: NDArray[np.bool_]) -> NDArray[np.int8]:
    """For item i and each j: 2 if j is in both neighbourhoods of i, 1 if it is in ``near`` only, else 0; 0 for items ``alone``."""
    n = len(near)
    cases = np.zeros((n, n), np.int8)
    np.put_along_axis(cases, near, 1, axis=1)
    np.put_along_axis(cases, reached, 2 * np.take_along_axis(cases, reached, axis=1), axis=1)
    cases[alone] = 0
    cases[:, alone] = 0
    return cases
