from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.cluster import SpectralClustering
from sklearn.metrics import adjusted_rand_score

from distillhash.supervision.clusters import Clustering, assign_clusters, drop_contradictions
from distillhash.supervision.neighbours import nearest_neighbours
from distillhash.supervision.similarity import cosine_distances


def blobs(n: int, groups: int, spread: float = 0.15, d: int = 24) -> tuple[NDArray[Any], NDArray[Any]]:
    rng = np.random.default_rng(n)
    truth = np.arange(n) % groups
    return (rng.standard_normal((groups, d))[truth] + spread * rng.standard_normal((n, d))).astype(np.float32), truth


@pytest.mark.parametrize("method", ["spectral", "kmeans"])
@pytest.mark.parametrize("groups", [2, 5])
def test_separate_groups_are_found(method: Clustering, groups: int) -> None:
    x, truth = blobs(150, groups)
    found = assign_clusters(x, cosine_distances(x), groups, method=method, n_neighbours=8, seed=1)
    assert adjusted_rand_score(truth, found) == 1


def test_spectral_clusters_agree_with_the_library_on_overlapping_groups() -> None:
    x, truth = blobs(240, 4, spread=0.9)
    distances = cosine_distances(x)
    ours = assign_clusters(x, distances, 4, n_neighbours=15)
    graph = np.zeros((240, 240))
    np.put_along_axis(graph, nearest_neighbours(distances, 15), 1, axis=1)
    theirs = SpectralClustering(4, affinity="precomputed", random_state=0).fit_predict(graph + graph.T)
    assert adjusted_rand_score(ours, theirs) > 0.9
    assert adjusted_rand_score(ours, truth) >= adjusted_rand_score(theirs, truth) - 0.02


@pytest.mark.parametrize("method", ["spectral", "kmeans"])
def test_equal_seeds_give_equal_clusters_and_small_sets_few(method: Clustering) -> None:
    x, _ = blobs(120, 6, spread=1.0)
    distances = cosine_distances(x)
    first, again = (assign_clusters(x, distances, 70, method=method, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert len(np.unique(first)) == 12  # one per 10 rows
    assert len(np.unique(assign_clusters(x[:5], distances[:5, :5], 70, method=method))) == 2
    assert not assign_clusters(x[:3], distances[:3, :3], 70, method=method).any()
    assert not assign_clusters(x, distances, 1, method=method).any()


@pytest.mark.parametrize("n", [1, 33, 1100])
def test_contradictions_are_dropped_as_in_a_loop(n: int) -> None:
    rng = np.random.default_rng(n)
    pairs = rng.integers(-1, 2, (n, n)).astype(np.int8)
    clusters = rng.integers(0, 4, n)
    kept = drop_contradictions(pairs, clusters)
    for i, j in rng.integers(0, n, (500, 2)):
        agrees = (clusters[i] == clusters[j]) == (pairs[i, j] == 1)
        assert kept[i, j] == (pairs[i, j] if agrees else 0)


def test_one_cluster_leaves_positives_and_singletons_leave_negatives() -> None:
    pairs = np.where(np.random.default_rng(0).random((20, 20)) < 0.5, 1, -1).astype(np.int8)
    np.testing.assert_array_equal(drop_contradictions(pairs, np.zeros(20, int)), np.maximum(pairs, 0))
    alone = np.minimum(pairs, 0)
    np.fill_diagonal(alone, np.maximum(np.diag(pairs), 0))
    np.testing.assert_array_equal(drop_contradictions(pairs, np.arange(20)), alone)
