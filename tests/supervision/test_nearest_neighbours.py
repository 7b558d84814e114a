from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from distillhash.errors import DataError, ParameterError
from distillhash.supervision.neighbours import first_of_both, nearest_neighbours, neighbourhood_mean


def distances_with_ties(n: int, seed: int = 0) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    half = np.triu(rng.integers(0, 4, (n, n)) / np.float32(3), 1).astype(np.float32)
    return half + half.T


@pytest.mark.parametrize("include_self", [False, True])
@pytest.mark.parametrize(("n", "k"), [(2, 1), (7, 3), (33, 32), (700, 5)])
def test_equals_sorting_by_distance_then_index(n: int, k: int, include_self: bool) -> None:
    distances = distances_with_ties(n)
    found = nearest_neighbours(distances, k, include_self=include_self)
    for i in range(n):
        others = sorted((float(distances[i, j]), j) for j in range(n) if j != i)
        expected = [i, *(j for _, j in others)] if include_self else [j for _, j in others]
        assert found[i].tolist() == expected[:k]


@pytest.mark.parametrize(("n", "m"), [(1, 1), (7, 3), (33, 10)])
def test_neighbourhood_mean_equals_four_loops(n: int, m: int) -> None:
    rng = np.random.default_rng(n)
    values = rng.random((n, n)).astype(np.float32)
    around = np.array([rng.choice(n, m, replace=False) for _ in range(n)], np.int32)
    mean = neighbourhood_mean(values, around)
    for i in range(n):
        for j in range(n):
            assert mean[i, j] == pytest.approx(np.mean([values[k, c] for k in around[i] for c in around[j]]), rel=1e-5)


@pytest.mark.parametrize(("n", "a", "k"), [(0, 2, 3), (1, 0, 1), (7, 3, 3), (33, 4, 9)])
def test_first_of_both_equals_a_loop(n: int, a: int, k: int) -> None:
    rng = np.random.default_rng(n)
    lists = [np.argsort(rng.random((n, 12)), axis=1)[:, :length].astype(np.int32) for length in (a, k)]
    found = first_of_both(*lists)
    assert found.shape == (n, k)
    for row, first, second in zip(found.tolist(), *(items.tolist() for items in lists), strict=True):
        assert row == (first + [item for item in second if item not in first])[:k]


def test_refusals() -> None:
    with pytest.raises(ParameterError, match=r"1\.\.4 for 5 items, got 5"):
        nearest_neighbours(distances_with_ties(5), 5)
    with pytest.raises(DataError, match="at least 0"):
        nearest_neighbours(np.full((3, 3), np.nan, np.float32), 1)
