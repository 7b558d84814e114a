"""Neighbourhood agreement against plain loops."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh

from distillhash.supervision.agreement import (
    RootRows,
    agreeing_neighbours,
    centred_unit,
    invariant_metric,
    recognised_views,
    root_rows,
    scatter_of_neighbours,
    scatter_of_views,
)


def draw(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_root_rows() -> None:
    found = root_rows(np.array([[1.0, -4.0, 0.0, 4.0], [0.0, 0.0, 0.0, 0.0]]))
    np.testing.assert_allclose(found, np.array([[1, -2, 0, 2], [0, 0, 0, 0]]) / 3)
    x = draw(5, 7)
    np.testing.assert_allclose(np.linalg.norm(root_rows(x), axis=1), 1, rtol=1e-6)
    assert root_rows(x).dtype == np.float32


def test_recognised_views_equals_a_loop() -> None:
    x = draw(30, 5) + 3
    views = x + draw(2, 30, 5, seed=1)
    mean, found = x.mean(axis=0), 0
    for view in views:
        for i, row in enumerate(view - mean):
            cosines = [row @ other / np.sqrt(row @ row * (other @ other)) for other in x - mean]
            found += int(cosines.index(max(cosines)) == i)
    assert recognised_views(x, views) == found / 60
    assert 0.2 < found / 60 < 0.9
    assert recognised_views(x, x[None]) == 1


def test_root_rows_with_a_gradient() -> None:
    x = draw(5, 7)
    x[2] = 0
    x[3, 4] = 0
    rows = torch.from_numpy(x).requires_grad_()
    rooted = RootRows()(rows)
    np.testing.assert_allclose(rooted.detach(), root_rows(x), atol=2e-6)
    torch.autograd.backward(rooted.sum())
    assert rows.grad is not None and torch.isfinite(rows.grad).all()


def test_scatters_equal_loops() -> None:
    x, views = draw(6, 4), draw(3, 6, 4, seed=1)
    expected = np.zeros((4, 4))
    for i in range(6):
        own = np.stack([x[i], *views[:, i]]).astype(float)
        for row in own:
            off = row - own.mean(axis=0)
            expected += np.outer(off, off) / (4 * 6)
    found = scatter_of_views((x + views.sum(axis=0)) / 4, (x, *views))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    neighbours = np.array([[1, 2], [0, 2], [0, 1], [4, 5], [3, 5], [3, 4]], np.int32)
    expected = np.zeros((4, 4))
    for i in range(6):
        for j in neighbours[i]:
            off = x[i].astype(float) - x[j]
            expected += np.outer(off, off) / (2 * 12)
    np.testing.assert_allclose(scatter_of_neighbours(x, neighbours), expected, atol=1e-6)


@pytest.mark.parametrize("emphasis", [0.0, 0.25, 1.0])
def test_the_metric_solves_the_eigenproblem(emphasis: float) -> None:
    a, b = draw(30, 6), draw(30, 6, seed=1)
    total, within = 9 * (a.T @ a).astype(float), (b.T @ b).astype(float)
    ridge = 0.1
    metric = invariant_metric(total, within, directions=3, emphasis=emphasis, ridge=ridge)
    t = total + ridge * np.trace(total) / 6 * np.eye(6)
    w = within + ridge * np.trace(within) / 6 * np.eye(6)
    ratios = eigh(t, w, eigvals_only=True)[::-1][:3]
    assert metric.shape == (6, 3)
    np.testing.assert_allclose(metric.T @ w @ metric, np.diag((ratios - 1) ** (2 * emphasis)), atol=1e-8)
    np.testing.assert_allclose(metric.T @ t @ metric, np.diag(ratios * (ratios - 1) ** (2 * emphasis)), atol=1e-8)


def test_the_metric_turns_from_what_views_change() -> None:
    rng = np.random.default_rng(0)
    kind = rng.integers(2, size=200)
    x = np.column_stack([kind, 5 * rng.standard_normal(200)]).astype(
        np.float32
    )  # the second column is noise, and large
    views = x + np.column_stack([0.1 * rng.standard_normal(200), 5 * rng.standard_normal(200)]).astype(np.float32)
    metric = invariant_metric(
        np.cov(x.T), scatter_of_views(((x + views) / 2).astype(np.float32), (x, views)), directions=1, ridge=1e-6
    )
    assert abs(metric[0, 0]) > 20 * abs(metric[1, 0])


def test_degenerate_scatters() -> None:
    found = invariant_metric(np.zeros((3, 3)), np.zeros((3, 3)), directions=5)
    assert found.shape == (3, 3) and np.isfinite(found).all()


def test_agreeing_neighbours_equal_a_loop_over_sets() -> None:
    x = np.random.default_rng(0).standard_normal((600, 4))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    sets = [set(row.tolist()) for row in np.argsort(-unit @ unit.T, axis=1)[:, :11]]  # each with the item itself
    found = agreeing_neighbours(x, 10, 7)
    for i in (0, 1, 511, 512, 599):
        shared = [len(sets[i] & other) / len(sets[i] | other) for other in sets]
        assert found[i].tolist() == [j for j in np.argsort(-np.array(shared), kind="stable") if j != i][:7]


def test_agreeing_neighbours_follow_clusters() -> None:
    rng = np.random.default_rng(0)
    x = np.repeat(np.eye(5), 12, axis=0) + 0.05 * rng.standard_normal((60, 5))
    found = agreeing_neighbours(centred_unit(x), 11, 11)
    for i, row in enumerate(found):
        assert set(row) == set(range(i // 12 * 12, i // 12 * 12 + 12)) - {i}


def test_a_hub_is_near_to_all_but_agrees_with_none() -> None:
    # The last item lies between two clusters: it is among everyone's neighbours by cosine, its list is half of each cluster's.
    angles = np.concatenate([np.linspace(-0.62, -0.5, 10), np.linspace(0.5, 0.62, 10), [0.0]])
    x = np.column_stack([np.cos(angles), np.sin(angles)])
    found = agreeing_neighbours(x, 10, 9)
    assert not (found[:20] == 20).any()
