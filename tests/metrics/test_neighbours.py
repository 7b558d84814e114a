"""Neighbour recall against plain loops and enumeration of tie orders."""

from itertools import pairwise, permutations

import numpy as np
import pytest

from distillhash.codes import Codes, hamming_distances
from distillhash.errors import DataError, ParameterError
from distillhash.metrics import neighbour_recall, neighbours, replicated_neighbours


def random_codes(rng: np.random.Generator, n: int, n_bits: int) -> Codes:
    return Codes.from_signs(rng.choice([-1, 1], size=(n, n_bits)))


def brute_force_recall(
    query_codes: Codes, codes: Codes, queries: np.ndarray, features: np.ndarray, k: int, depth: int, same_items: bool
) -> float:
    """Neighbours by a full sort of cosines; the ranking averaged over every order that respects distance."""
    recalls = []
    for row, distances in enumerate(hamming_distances(query_codes, codes)):
        items = [j for j in range(len(codes)) if not (same_items and j == row)]
        norms = np.linalg.norm(queries[row]) * np.linalg.norm(features, axis=1)
        by_cosine = np.argsort(-(features @ queries[row]) / norms)
        nearest = set([j for j in by_cosine.tolist() if j in items][:k])
        orders = [
            order for order in permutations(items) if all(distances[a] <= distances[b] for a, b in pairwise(order))
        ]
        recalls.append(np.mean([len(nearest & set(order[:depth])) / len(nearest) for order in orders]))
    return float(np.mean(recalls))


@pytest.mark.parametrize("same_items", [False, True])
@pytest.mark.parametrize("n_bits", [1, 2, 12])
@pytest.mark.parametrize("block", [3, 10**6])
def test_recall_equals_the_average_over_all_tie_orders(
    n_bits: int, same_items: bool, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "_PAIR_BLOCK", block)
    rng = np.random.default_rng(n_bits)
    codes, features = random_codes(rng, 7, n_bits), rng.normal(size=(7, 5))
    query_codes, queries = (codes, features) if same_items else (random_codes(rng, 3, n_bits), rng.normal(size=(3, 5)))
    ks, depths = (1, 3, 50), (1, 2, 5, 100)
    report = neighbour_recall(query_codes, codes, queries, features, ks, depths, same_items=same_items)
    for k in ks:
        for depth in depths:
            expected = brute_force_recall(query_codes, codes, queries, features, k, depth, same_items)
            assert report[f"recall{k}@{depth}"] == pytest.approx(expected, abs=1e-12), (k, depth)
    assert report["random@2"] == pytest.approx(2 / (7 - same_items))
    assert report["recall3@100"] == report["random@100"] == report["recall50@100"] == 1.0


@pytest.mark.parametrize("n_bits", [33, 127])
def test_recall_agrees_with_monte_carlo_and_its_curve_with_its_values(n_bits: int) -> None:
    rng = np.random.default_rng(n_bits)
    features = rng.normal(size=(211, 9)).astype(np.float32)
    codes = Codes.from_projection(features @ rng.normal(size=(9, n_bits)))
    report = neighbour_recall(codes, codes, features, features, ks=(10,), depths=(10, 50), same_items=True)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -2)
    nearest = np.argsort(-cosine, axis=1)[:, :10]
    distances = hamming_distances(codes, codes).astype(float)
    np.fill_diagonal(distances, 1e9)
    sampled = []
    for _ in range(200):
        first = np.argsort(distances + 0.5 * rng.random(distances.shape), axis=1)[:, :50]
        sampled.append(np.mean([np.isin(nearest[row], first[row]).mean() for row in range(211)]))
    assert report["recall10@50"] == pytest.approx(np.mean(sampled), abs=0.002)
    curve = report["curve"]
    assert curve["depth"][0] == 1
    assert curve["depth"][-1] == 50
    assert curve["recall10"][-1] == report["recall10@50"]
    assert curve["random"][-1] == report["random@50"] == 50 / 210
    assert np.all(np.diff(curve["recall10"]) >= -1e-12)


def test_scale_does_not_matter_and_huge_or_zero_features_are_fine() -> None:
    rng = np.random.default_rng(4)
    features = rng.normal(size=(33, 6))
    codes = random_codes(rng, 33, 12)
    scaled = features * 10.0 ** rng.integers(-150, 150, size=(33, 1))
    plain = neighbour_recall(codes, codes, features, features, same_items=True)
    again = neighbour_recall(codes, codes, scaled, scaled, same_items=True)
    assert again["recall10@10"] == pytest.approx(plain["recall10@10"])
    features[5] = 0
    assert 0 <= neighbour_recall(codes, codes, features, features, depths=(3,), same_items=True)["recall10@3"] <= 1


def test_many_queries_are_sampled_by_the_seed() -> None:
    rng = np.random.default_rng(0)
    codes, features = random_codes(rng, 60, 12), rng.normal(size=(60, 4))

    def run(seed: int, max_queries: int = 7) -> dict[str, float]:
        options = {"same_items": True, "max_queries": max_queries, "seed": seed}
        return neighbour_recall(codes, codes, features, features, **options)  # type: ignore[arg-type]  # mixed options

    assert run(0)["n_queries"] == 7
    assert run(0) == run(0)
    assert run(0) != run(1)
    assert run(0, 60) == run(1, 60)


def test_bad_input_is_named() -> None:
    rng = np.random.default_rng(0)
    codes, features = random_codes(rng, 7, 12), rng.normal(size=(7, 4))
    none = codes[:0], features[:0]
    with pytest.raises(DataError, match="got 0 queries and 7 items"):
        neighbour_recall(none[0], codes, none[1], features)
    with pytest.raises(DataError, match="got 1 queries and 0 items"):
        neighbour_recall(codes[:1], codes[:1], features[:1], features[:1], same_items=True)
    with pytest.raises(DataError, match="same_items needs as many"):
        neighbour_recall(codes[:2], codes, features[:2], features, same_items=True)
    with pytest.raises(DataError, match="one row for each code"):
        neighbour_recall(codes, codes, features[:3], features)
    with pytest.raises(DataError, match="4 dimensions and database features 3"):
        neighbour_recall(codes, codes, features, features[:, :3])
    with pytest.raises(DataError, match="NaN"):
        neighbour_recall(codes, codes, features * np.nan, features)
    with pytest.raises(ParameterError, match="k must be at least 1, got 0"):
        neighbour_recall(codes, codes, features, features, ks=(0,))
    with pytest.raises(ParameterError, match="at least one k"):
        neighbour_recall(codes, codes, features, features, ks=())


@pytest.mark.parametrize(("n", "share"), [(2, 1.0), (5, 0.5), (7, 0.3)])
def test_replicated_neighbours_equal_the_mean_over_all_tie_orders(n: int, share: float) -> None:
    rng = np.random.default_rng(n)
    first, second = (Codes.from_projection(rng.standard_normal((n, bits))) for bits in (3, 5))
    k = max(1, round(share * (n - 1)))
    total = 0.0
    for i in range(n):
        others = [j for j in range(n) if j != i]
        nearest = []
        for codes in (first, second):
            signs = codes.signs()
            distances = {j: int((signs[i] != signs[j]).sum()) for j in others}
            orders = [set(sorted(order, key=lambda j: distances[j])[:k]) for order in permutations(others)]
            nearest.append(orders)
        total += float(np.mean([len(a & b) / k for a in nearest[0] for b in nearest[1]]))
    assert replicated_neighbours(first, second, share) == pytest.approx(total / n, rel=1e-5)


def test_replicated_neighbours_of_equal_and_of_unrelated_codes() -> None:
    rng = np.random.default_rng(0)
    x, y = (Codes.from_projection(rng.standard_normal((400, 64))) for _ in range(2))
    distinct = Codes.from_projection(np.where(np.tril(np.ones((40, 40))) > 0, 1.0, -1.0))
    assert replicated_neighbours(distinct, distinct, 1 / 39) == pytest.approx(
        (1 + 38 * 0.5 + 1) / 40
    )  # inner items: two at distance 1
    assert replicated_neighbours(x, y, 0.1) == pytest.approx(0.1, abs=0.02)
    assert replicated_neighbours(x, x, 0.1) > 0.7
    with pytest.raises(DataError, match="got 400 and 40"):
        replicated_neighbours(x, distinct)
    with pytest.raises(ParameterError, match="share must be above 0"):
        replicated_neighbours(x, y, 0)
