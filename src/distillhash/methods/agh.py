"""AGH: anchor graph hashing, with one or two layers.

Paper: Liu, Wang, Kumar, Chang, "Hashing with graphs", ICML 2011. https://icml.cc/2011/papers/6_icmlpaper.pdf

Symbols: Z, Lambda, A = Z Lambda^-1 Z^T and W -> methods/linear_algebra.py; y_k = Z w_k -> ``embed``, the k-th smoothest function on
the graph, after the constant. One layer: bit k = sign(y_k). Two layers: half as many functions, two bits each. The second bit splits
the rows with y > 0 at b+ (``upper_``) and the others at b- (``lower_``), so that f = (y - b+ above 0, b- - y below) is balanced,
1^T f = 0, and smoothest, min f^T (I - A) f.
Departs from the paper in: what :mod:`distillhash.methods.linear_algebra` lists. With an odd number of bits and two layers the last
function gives a first-layer bit only. Where no edge of the graph joins the two sides, b+ and b- are undetermined and each side is split at
its mean. Three neighbours are the default; the demonstration in the authors' release has 300 anchors and 2 neighbours, "please tune this
parameter on different datasets" (``preset="paper"``).
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray

from distillhash.methods.base import Hasher, TrainingSet
from distillhash.methods.linear_algebra import AnchorGraph, build_graph, graph_eigenvectors


class AGH(Hasher):
    """Signs of the smoothest functions on a graph of items and anchors.

    ``graph_`` holds the anchors, ``weight_ (m, k)`` the functions' values there, ``upper_`` and ``lower_ (n_bits - k,)`` b+ and b-, and
    ``history_["eigenvalues"]`` the eigenvalues of A that the bits come from.

    Attributes:
        layers: 1, or 2 for two bits from each function.
        n_anchors: Anchors m; at most one for every two rows.
        n_neighbours: Anchors s with a weight for an item.
    """

    method = "agh"
    title = "Hashing with Graphs"
    venue, year = "ICML", 2011
    kind = "shallow"
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"paper": {"n_neighbours": 2}}
    layers: Literal[1, 2] = 2
    n_anchors: Annotated[int, Ge(2)] = 300
    n_neighbours: Annotated[int, Ge(1)] = 3

    @property
    def _n_functions(self) -> int:
        return -(-self.n_bits // self.layers)  # one eigenvector for each bit of the first layer

    def _fit(self, given: TrainingSet) -> None:
        rng = np.random.default_rng(self.seed)
        self.graph_, Z = build_graph(given.features, self.n_anchors, self.n_neighbours, rng)
        self.weight_, eigenvalues = graph_eigenvectors(Z, self._n_functions)
        pairs = [second_thresholds(Z @ w, Z) for w in self.weight_.T[: self.n_bits - self._n_functions]]
        self.upper_, self.lower_ = np.array(pairs, np.float64).reshape(-1, 2).T
        self.history_ = {"eigenvalues": eigenvalues.tolist()}

    def _project(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        first = self.graph_.embed(features, self.weight_)
        split = first[:, : len(self.upper_)]
        return np.hstack([first, np.where(split > 0, split - self.upper_, self.lower_ - split)])

    def state(self) -> dict[str, NDArray[Any]]:
        """The graph, the functions at its anchors and the thresholds of the second layer."""
        return {**self.graph_.state(), "weight": self.weight_, "upper": self.upper_, "lower": self.lower_}

    def _set_state(self, state: dict[str, NDArray[Any]]) -> None:
        graph = AnchorGraph.from_state(state, self.n_neighbours, self.n_features_)
        weight, upper, lower = state["weight"], state["upper"], state["lower"]
        second = (self.n_bits - self._n_functions,)
        if weight.shape != (len(graph.anchors), self._n_functions) or upper.shape != second or lower.shape != second:
            raise ValueError(f"weight of shape {weight.shape} for {self.n_bits} bits")
        self.graph_, self.weight_, self.upper_, self.lower_ = graph, weight, upper, lower


def second_thresholds(y: NDArray[np.float64], Z: Any) -> tuple[float, float]:
    """b+ and b- of one graph function ``y (n,)`` with mean 0, in closed form.

    f = |y| - b+ 1 + (b+ + b-) [y <= 0], and I - A maps 1 to 0: smoothness fixes b+ + b-, and balance what is left.
    """
    n = len(y)
    above = (y > 0).astype(np.float64)
    mass = np.asarray(Z.sum(axis=0)).ravel()
    left, right = Z.T @ above, (Z.T @ np.abs(y)) / mass  # x^T A y needs only Z^T x and Z^T y
    n_above = float(above.sum())
    total = float(y @ above)
    roughness = n_above - float(left @ (left / mass))
    if roughness <= 1e-9 * n:
        # No edge crosses 0. Stay just short of the mean, or rounding would split a side on which y is constant.
        return (1 - 1e-6) * total / n_above, -(1 - 1e-6) * total / (n - n_above)
    both = (total - float(left @ right)) / roughness
    return (2 * total + (n - n_above) * both) / n, (n_above * both - 2 * total) / n
