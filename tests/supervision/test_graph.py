"""Neighbours of large sets: lists of a graph, overlap of lists, walks, and pairs distilled from partners alone."""

import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from distillhash.errors import MissingDependencyError
from distillhash.supervision.flip_rate import distil_pairs, distil_partners
from distillhash.supervision.graph import graph_neighbours, has_graphs, nearest_by_overlap, walk_partners
from distillhash.supervision.neighbours import nearest_neighbours, neighbourhood_mean
from distillhash.supervision.similarity import (
    LabelRule,
    Thresholds,
    cosine_distances,
    describe_partners,
    label_pairs,
    unit_rows,
)

needs_faiss = pytest.mark.skipif(not has_graphs(), reason="FAISS is not installed")


def groups(n: int, n_groups: int, flipped: float, d: int = 64) -> NDArray[np.float32]:
    """Rows of signs scaled to length 1, around centres of signs: with d = 64 cosines are exact in float32."""
    rng = np.random.default_rng(0)
    centres = np.where(rng.random((n_groups, d)) < 0.5, -1.0, 1.0)
    rows = centres[rng.integers(n_groups, size=n)] * np.where(rng.random((n, d)) < flipped, -1, 1)
    return np.asarray(rows / d**0.5, np.float32)


@needs_faiss
@pytest.mark.parametrize(("n", "k"), [(2, 1), (30, 29), (700, 12)])
def test_graph_lists_are_the_nearest_in_order(n: int, k: int) -> None:
    rows = unit_rows(np.random.default_rng(n).standard_normal((n, 16)))
    found = graph_neighbours(rows, k, seed=0)
    exact = np.argsort(-(rows @ rows.T) + 9 * np.eye(n), axis=1, kind="stable")[:, :k]
    assert found.shape == (n, k) and found.dtype == np.int32
    assert (found[:, :, None] == exact[:, None]).any(axis=2).mean() > 0.9
    cosines = (rows[:, None] * rows[found]).sum(axis=2)
    assert (np.diff(cosines, axis=1) <= 1e-6).all()
    assert not (found == np.arange(n)[:, None]).any()
    assert all(len(set(row)) == k for row in found.tolist())
    np.testing.assert_array_equal(found, graph_neighbours(rows, k, seed=0))


@needs_faiss
def test_a_row_whose_cells_hold_too_few_is_compared_with_all() -> None:
    far = np.vstack([np.tile([[1.0, 0.0]], (3, 1)), np.tile([[0.0, 1.0]], (3, 1))])
    rows = unit_rows(np.repeat(far, 40, axis=0) + 0.01 * np.random.default_rng(0).standard_normal((240, 2)))
    found = graph_neighbours(rows, 200, seed=0)
    assert all(len({*row, i}) == 201 for i, row in enumerate(found.tolist()))


def test_without_faiss_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingDependencyError, match=r"distillhash\[faiss\]"):
        graph_neighbours(np.eye(3, dtype=np.float32), 1, seed=0)


@pytest.mark.parametrize(("n", "m", "k"), [(2, 1, 1), (7, 3, 2), (33, 10, 10), (2100, 5, 4)])
def test_overlap_equals_sets(n: int, m: int, k: int) -> None:
    rng = np.random.default_rng(0)
    lists = np.array([rng.choice(np.delete(np.arange(n), i), m, replace=False) for i in range(n)], np.int32)
    found = nearest_by_overlap(lists, k)
    sets = [set(row) | {i} for i, row in enumerate(lists.tolist())]
    for i in [*range(min(n, 33)), n - 1]:
        distances = [1 - len(sets[i] & other) / len(sets[i] | other) for other in sets]
        order = sorted((round(distance, 9), j) for j, distance in enumerate(distances) if j != i)
        assert found[i].tolist() == [j for _, j in order[:k]]


def test_walks_follow_the_graph() -> None:
    ring = (np.arange(50, dtype=np.int32)[:, None] + [1, 2]) % 50
    found = walk_partners(ring.astype(np.int32), 3, 2, seed=0)
    steps = (found[:, :3] - np.arange(50)[:, None]) % 50
    assert found.shape == (50, 5) and ((steps >= [1, 2, 3]) & (steps <= [2, 4, 6])).all()
    assert len(np.unique(found[:, 3:])) > 30
    np.testing.assert_array_equal(found, walk_partners(ring.astype(np.int32), 3, 2, seed=0))


@pytest.mark.parametrize(
    ("n", "o", "skipped", "rule"),
    [
        (400, 3, 0, "three-way"),
        (400, 3, 2, "three-way"),
        (400, 3, 0, "two-way"),
        pytest.param(5000, 4, 2, "three-way", marks=pytest.mark.long),
    ],
)
def test_partners_are_distilled_as_all_pairs_are(n: int, o: int, skipped: int, rule: LabelRule) -> None:
    rows = groups(n, 8, 0.15)
    distances = cosine_distances(rows)
    thresholds = Thresholds(0.7, 0.95, fallback=False)
    near = nearest_neighbours(distances, 29)
    if n == 5000 and has_graphs():  # on the same lists both must agree, whether or not they are exact
        near = graph_neighbours(rows, 29, seed=0)
    around = np.hstack([np.arange(n, dtype=np.int32)[:, None], near])
    partners = walk_partners(near, 3, 3, seed=1)
    partners[0, 0] = 0  # a row with itself has no label
    initial = label_pairs(distances, thresholds, rule=rule)
    similar, dissimilar = (neighbourhood_mean((initial == sign).astype(np.float32), around) for sign in (1, -1))
    with np.errstate(divide="ignore", invalid="ignore"):
        logits = np.nan_to_num(np.log(similar) - np.log(dissimilar), nan=0.0, posinf=np.inf, neginf=-np.inf)
    bounding = near[:, : o + skipped]
    dense = distil_pairs(logits, bounding[:, :o], bounding[:, skipped:], keep_certain=True)
    found, first, estimated = distil_partners(
        rows,
        thresholds,
        around,
        bounding,
        partners,
        n_neighbours=o,
        skip_for_positive=skipped,
        rule=rule,
        keep_certain=True,
    )
    own = np.arange(n)[:, None]
    np.testing.assert_array_equal(found, dense[own, partners])
    np.testing.assert_array_equal(first, initial[own, partners])
    other = partners != own
    np.testing.assert_allclose(estimated[other], logits[own, partners][other], rtol=1e-5, atol=1e-6)
    assert {-1, 0, 1} <= set(found.ravel().tolist())


def test_partners_are_described() -> None:
    labels = np.array([[1, 0], [-1, -1], [1, 1], [0, 0]], np.int8)
    found = describe_partners(labels, "distilled pairs")
    assert found["step"] == "distilled pairs"
    assert (found["coverage_positive"], found["coverage_negative"]) == (3 / 8, 2 / 8)
    assert (found["without_positive"], found["positives_per_item"]) == (0.5, 0.75)


@needs_faiss
@pytest.mark.long
def test_overlap_equals_that_of_all_pairs_at_5000() -> None:
    rows = unit_rows(np.random.default_rng(0).standard_normal((5000, 8)))
    lists = graph_neighbours(rows, 30, seed=0)
    members = np.eye(5000, dtype=np.float32)
    np.put_along_axis(members, lists.astype(np.int64), 1, axis=1)
    shared = members @ members.T
    distances = 1 - shared / (62 - shared)
    np.fill_diagonal(distances, 2)
    expected = np.argsort(distances, axis=1, kind="stable")[:, :20]
    np.testing.assert_array_equal(nearest_by_overlap(lists, 20), expected)
