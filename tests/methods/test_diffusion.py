from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.sparse import csr_array

from distillhash.methods.mls3rduh import diffuse, mutual_neighbour_graph
from distillhash.supervision.neighbours import nearest_neighbours
from distillhash.supervision.similarity import cosine_distances


def features(n: int, d: int = 12) -> NDArray[Any]:
    return np.random.default_rng(n).standard_normal((n, d)).astype(np.float32)


@pytest.mark.parametrize(("n", "k"), [(2, 1), (33, 4), (90, 30)])
def test_the_graph_equals_a_loop(n: int, k: int) -> None:
    distances = cosine_distances(features(n))
    near = nearest_neighbours(distances, k)
    found = mutual_neighbour_graph(distances, near).toarray()
    for i in range(n):
        for j in range(n):
            mutual = j in near[i] and i in near[j]
            assert found[i, j] == pytest.approx(max(1 - distances[i, j], 0) if mutual else 0)
    np.testing.assert_array_equal(found, found.T)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.99])
def test_diffusion_equals_the_sum_of_all_walks(alpha: float) -> None:
    distances = cosine_distances(features(60))
    graph = mutual_neighbour_graph(distances, nearest_neighbours(distances, 6))
    dense = graph.toarray().astype(np.float64)
    degrees = dense.sum(axis=1)
    scale = np.diag([d**-0.5 if d > 0 else 0 for d in degrees])
    step = np.eye(60)
    total = np.zeros((60, 60))
    for _ in range(4000):  # F = (1 - alpha) sum_t alpha^t (D^-1/2 A D^-1/2)^t
        total += (1 - alpha) * step
        step = alpha * step @ scale @ dense @ scale
    found = diffuse(graph, alpha)
    np.testing.assert_allclose(found, total, rtol=2e-3, atol=1e-7)
    np.testing.assert_array_equal(found, found.T)


def test_walks_stay_in_their_component_and_items_alone_stay_put() -> None:
    graph = csr_array(np.array([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], np.float32))
    walks = diffuse(graph, 0.9)
    assert walks[0, 1] > 0.4 and not walks[:2, 2:].any() and walks[2, 3] == 0
    np.testing.assert_allclose(walks[2, 2], 0.1, rtol=1e-6)
