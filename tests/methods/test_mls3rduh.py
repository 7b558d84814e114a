"""MLS3RDUH: the targets from the released definition and the loss, against plain loops."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array

from distillhash.errors import ParameterError
from distillhash.methods import make_hasher
from distillhash.methods.mls3rduh import diffuse, mutual_neighbour_graph, three_cases
from distillhash.supervision.losses import log_cosh_loss
from distillhash.supervision.neighbours import nearest_neighbours
from distillhash.supervision.similarity import cosine_distances


def clustered(n: int = 120, d: int = 20, seed: int = 0) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((6, d))
    return np.maximum(centres[np.arange(n) % 6] + 0.6 * rng.standard_normal((n, d)), 0).astype(np.float32)


def mls(**options: Any) -> Any:
    return make_hasher("mls3rduh", 8, **{"epochs": 1, **options})


def expected_targets(x: NDArray[Any], k: int, o: int, alpha: float) -> NDArray[Any]:
    n = len(x)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosines = (unit @ unit.T).astype(np.float64)
    np.fill_diagonal(cosines, -np.inf)
    near = [set(np.argsort(-row)[:k].tolist()) for row in cosines]
    A = np.zeros((n, n))
    for i in range(n):
        for j in near[i]:
            if i in near[j]:
                A[i, j] = max(cosines[i, j], 0)
    degrees = A.sum(axis=1)
    alone = degrees == 0
    roots = np.sqrt(np.where(alone, 1, degrees))
    F = (1 - alpha) * np.linalg.inv(np.eye(n) - alpha * A / np.outer(roots, roots))
    np.fill_diagonal(F, -1)
    reached = [set(np.argsort(-row)[:o].tolist()) for row in F]
    S = np.maximum(cosines, 0)
    for i in range(n):
        for j in near[i]:
            if not (alone[i] or alone[j]):
                S[i, j] = 1 if j in reached[i] else 0
    final = S.copy()
    for i in range(n):
        for j in range(n):
            if S[i, j] == 1 or S[j, i] == 1:
                final[i, j] = 1
            elif S[i, j] == 0 or S[j, i] == 0:
                final[i, j] = 0
    np.fill_diagonal(final, 1)
    return np.asarray(2 * final - 1)


@pytest.mark.parametrize(("share", "ratio", "k", "o"), [(0.06, 1.5, 7, 10), (0.2, 1.0, 24, 24)])
def test_targets_equal_a_loop(share: float, ratio: float, k: int, o: int) -> None:
    x = clustered()
    hasher = mls(neighbour_share=share, manifold_ratio=ratio, diffusion=0.9).fit(x)
    expected = expected_targets(x, k, o, 0.9)
    np.testing.assert_allclose(hasher.targets_, expected, atol=2e-3)
    assert (expected == -1).any() and (expected == 1).sum() > 120  # all three cases occur
    off = ~np.eye(120, dtype=bool)
    np.testing.assert_array_equal(hasher.pairs_[off], np.where(abs(expected) == 1, expected, 0)[off])
    assert not hasher.pairs_.diagonal().any()


def test_items_alone_keep_their_cosines() -> None:
    near = np.array([[1, 2], [0, 2], [0, 1], [0, 1]], np.int32)
    reached = np.array([[1], [0], [0], [0]], np.int32)
    cases = three_cases(near, reached, np.array([False, False, False, True]))
    np.testing.assert_array_equal(cases, [[0, 2, 1, 0], [2, 0, 1, 0], [2, 1, 0, 0], [0, 0, 0, 0]])
    x = clustered(40)
    x[0] = 0
    x[1] = 0  # rows without a direction: no cosine is above 0, so they have no mutual neighbours
    targets = mls(neighbour_share=0.1).fit(x).targets_
    cosines = 1 - cosine_distances(x)
    np.testing.assert_allclose(targets[0, 1:], 2 * cosines[0, 1:] - 1, atol=1e-3)


def test_log_cosh_equals_a_plain_loop_and_does_not_overflow() -> None:
    rng = np.random.default_rng(0)
    u, S = rng.standard_normal((7, 12)), rng.uniform(-1, 1, (7, 7))
    expected = np.mean([np.log(np.cosh(u[i] @ u[j] / 12 - S[i, j])) for i in range(7) for j in range(7)])
    assert float(log_cosh_loss(torch.from_numpy(u), torch.from_numpy(S))) == pytest.approx(expected, rel=1e-9)
    far = log_cosh_loss(torch.full((2, 1), 100.0), torch.zeros(2, 2))
    assert float(far) == pytest.approx(1e4 - np.log(2))


def test_two_moons_follow_the_manifold() -> None:
    # Two arcs on the sphere whose ends nearly touch: the walk stays on an arc where the cosine jumps across.
    from sklearn.datasets import make_moons

    plane, truth = make_moons(200, noise=0.04, random_state=0)
    x = np.hstack([plane, np.full((200, 1), 1.5)]).astype(np.float32)
    targets = mls(neighbour_share=0.2, manifold_ratio=1.0).fit(x).targets_.astype(float)
    same = truth[:, None] == truth[None]
    off = ~np.eye(200, dtype=bool)
    assert same[(targets == 1) & off].mean() > same[(targets == -1) & off].mean() + 0.4


def test_constant_features_do_not_crash_and_options_are_checked() -> None:
    assert len(mls().fit(np.ones((20, 5), np.float32)).encode(np.ones((3, 5)))) == 3
    cases: list[tuple[dict[str, Any], str]] = [
        ({"neighbour_share": 0}, "neighbour_share must be above 0 and at most 1, got 0"),
        ({"neighbour_share": 1.1}, "neighbour_share must be above 0 and at most 1, got 1.1"),
        ({"manifold_ratio": -1}, "manifold_ratio must be above 0, got -1"),
        ({"diffusion": 1}, "diffusion must be at least 0 and below 1, got 1"),
    ]
    for options, message in cases:
        with pytest.raises(ParameterError, match=message):
            mls(**options)


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
