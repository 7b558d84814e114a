"""DGH: discrete graph hashing.

Paper: Liu, Mu, Kumar, Chang, "Discrete graph hashing", NIPS 2014. https://papers.nips.cc/paper/5594-discrete-graph-hashing

Symbols: Z, Lambda, A = Z Lambda^-1 Z^T -> methods/linear_algebra.py; B -> signs (n, n_bits); Y -> its balanced, uncorrelated
neighbour, 1^T Y = 0 and Y^T Y = n I; H -> the n_bits smoothest graph functions. Maximises tr(B^T A B) + rho tr(B^T Y) by alternating
over B (signed gradient steps: B <- sign(2 A B + rho Y)) and Y (``nearest_uncorrelated``). An unseen row gets sign(B^T Z Lambda^-1 z).

RECONSTRUCTED: rho and the numbers of anchors and neighbours, which section 5 of the paper states. The equations of its sections 2 and 3 are
those of two public sources that agree, a reader's notes (which copy Eq. (1)-(8)) and an implementation with rho = .1, up to 300 steps of
B and 20 rounds. The abstract says of them: "a tractable alternating maximization algorithm is then proposed to explicitly deal with the
discrete constraints".

Departs from the paper in:
1. What :mod:`distillhash.methods.linear_algebra` lists.
2. Training ends early once the objective no longer rises.
3. Variant ``r`` turns H towards its signs from a random start. The paper's is ``weighted-r``, Eq. (8): H weighted by the eigenvalues, from
   R = I, and B starts as the signs of that (``preset="paper"``).
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray

from distillhash.errors import DataError
from distillhash.methods.base import Hasher, TrainingSet
from distillhash.methods.linear_algebra import AnchorGraph, build_graph, graph_eigenvectors, procrustes_rotation

_SIGN_STEPS = 300
_ROTATION_STEPS = 100
_LEAST_GAIN = 1e-10


class DGH(Hasher):
    """Codes are found as signs, not by rounding: no step lowers the objective.

    ``history_["objective"]`` holds (tr(B^T A B) + rho tr(B^T Y)) / (n n_bits) at the start and after each half-step.
    ``graph_`` holds the anchors, ``weight_ (m, n_bits)`` the mean codes around them, Lambda^-1 Z^T B.

    Attributes:
        variant: Start from the graph functions rotated towards their signs (r), the same weighted by their eigenvalues (weighted-r), or as
            they are (i).
        rho: Weight of balanced and uncorrelated bits.
        iterations: Rounds of B and then Y, at most.
        n_anchors: Anchors m; at most one for every two rows.
        n_neighbours: Anchors s with a weight for an item.
    """

    method = "dgh"
    title = "Discrete Graph Hashing"
    venue, year = "NIPS", 2014
    kind = "shallow"
    reconstructed = "rho, numbers of anchors and neighbours"
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"paper": {"variant": "weighted-r"}}
    TABLE_NAMES: ClassVar[dict[str, str]] = {"": "dgh, random start", "paper": "dgh"}
    variant: Literal["r", "weighted-r", "i"] = "r"
    rho: Annotated[float, Ge(0)] = 0.3
    iterations: Annotated[int, Ge(1)] = 20
    n_anchors: Annotated[int, Ge(2)] = 300
    n_neighbours: Annotated[int, Ge(1)] = 3

    def _fit(self, given: TrainingSet) -> None:
        n = len(given.features)
        if n <= self.n_bits:
            raise DataError(f"{self.n_bits} uncorrelated bits need more than {self.n_bits} rows, got {n}")
        rng = np.random.default_rng(self.seed)
        self.graph_, Z = build_graph(given.features, self.n_anchors, self.n_neighbours, rng)
        W, eigenvalues = graph_eigenvectors(Z, self.n_bits)
        average = spread_to_anchors(Z)
        Y = Z @ W  # Y^T Y = n I
        if self.variant == "r":
            Y = Y @ procrustes_rotation(Y, _ROTATION_STEPS, rng)[0]
        B = np.where(Y >= 0, 1.0, -1.0)
        if self.variant == "weighted-r":
            R, B = weighted_rotation(Y, eigenvalues)
            Y = Y @ R
        objective = [self._objective(B, Y, Z, average)]
        for _ in range(self.iterations):
            before = objective[-1]
            B = climb(B, Y, self.rho, Z, average)
            objective.append(self._objective(B, Y, Z, average))
            Y = nearest_uncorrelated(B, rng)
            objective.append(self._objective(B, Y, Z, average))
            if objective[-1] - before <= _LEAST_GAIN * abs(before):
                break
        self.weight_: NDArray[np.float64] = np.asarray(average @ B)
        self.history_ = {"objective": objective}

    def _objective(self, B: NDArray[np.float64], Y: NDArray[np.float64], Z: Any, average: Any) -> float:
        smooth = np.sum(B * (Z @ (average @ B)))
        return float((smooth + self.rho * np.sum(B * Y)) / B.size)

    def _project(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.graph_.embed(features, self.weight_)

    def state(self) -> dict[str, NDArray[Any]]:
        """The graph and the mean codes around its anchors."""
        return {**self.graph_.state(), "weight": self.weight_}

    def _set_state(self, state: dict[str, NDArray[Any]]) -> None:
        graph, weight = AnchorGraph.from_state(state, self.n_neighbours, self.n_features_), state["weight"]
        if weight.shape != (len(graph.anchors), self.n_bits):
            raise ValueError(f"weight of shape {weight.shape} for {self.n_bits} bits")
        self.graph_, self.weight_ = graph, weight


def spread_to_anchors(Z: Any) -> Any:
    """Lambda^-1 Z^T ``(m, n)``: maps values of the rows to their weighted means around the anchors. A = Z times this."""
    from scipy.sparse import diags_array

    return (diags_array(1 / np.asarray(Z.sum(axis=0)).ravel()) @ Z.T).tocsr()


def weighted_rotation(
    Y: NDArray[np.float64], eigenvalues: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Raises tr(R^T diag(eigenvalues) Y^T B), Eq. (8), by turns from R = I: the rotation R ``(k, k)`` and signs B ``(n, k)``."""
    weighted, R, B = Y * eigenvalues, np.eye(Y.shape[1]), np.zeros_like(Y)
    for _ in range(_ROTATION_STEPS):
        following = np.where(weighted @ R >= 0, 1.0, -1.0)
        if np.array_equal(following, B):
            break
        B = following
        U, _, V = np.linalg.svd(weighted.T @ B)
        R = U @ V
    return R, B


def climb(B: NDArray[np.float64], Y: NDArray[np.float64], rho: float, Z: Any, average: Any) -> NDArray[np.float64]:
    """Signed gradient steps until B no longer changes. A is positive semi-definite, so no step lowers the objective."""
    for _ in range(_SIGN_STEPS):
        gradient = 2 * (Z @ (average @ B)) + rho * Y
        following = np.where(gradient == 0, B, np.sign(gradient))
        if np.array_equal(following, B):
            break
        B = following
    return B


def nearest_uncorrelated(B: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """The Y with 1^T Y = 0 and Y^T Y = n I that maximises tr(B^T Y), for ``B (n, k)`` with k < n.

    Where centred B has fewer than k independent columns, random orthogonal directions complete it.
    """
    n, k = B.shape
    U, values, V = np.linalg.svd(B - B.mean(axis=0), full_matrices=False)
    rank = int(np.sum(values > 1e-9 * np.sqrt(n * k)))
    if rank < k:
        fixed = np.hstack([np.full((n, 1), 1 / np.sqrt(n)), U[:, :rank]])
        Q, _ = np.linalg.qr(np.hstack([fixed, rng.standard_normal((n, k - rank))]))
        U = np.hstack([U[:, :rank], Q[:, rank + 1 :]])
    return np.asarray(np.sqrt(n) * U @ V)
