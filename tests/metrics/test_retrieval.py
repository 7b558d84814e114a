"""The metrics against enumeration of every tie order, Monte-Carlo, plain loops, and a library."""

from itertools import pairwise, permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from distillhash.codes import Codes, hamming_distances
from distillhash.errors import DataError, ParameterError
from distillhash.metrics.retrieval import evaluate_codes


def random_codes(rng: np.random.Generator, n: int, n_bits: int) -> Codes:
    return Codes.from_signs(rng.choice([-1, 1], size=(n, n_bits)))


def mean_of(values: list[Any]) -> float:
    return float(np.mean(values))


def average_precision(relevant: list[bool], depth: int, divisor: str) -> float:
    """Plain textbook loop over one ranking."""
    hits, total = 0, 0.0
    for place, is_relevant in enumerate(relevant[:depth], start=1):
        if is_relevant:
            hits += 1
            total += hits / place
    by = {"hits": hits, "min": min(depth, sum(relevant))}[divisor]
    return total / by if by else 0.0


def all_rankings(distances: NDArray[Any], relevance: NDArray[Any]) -> list[list[bool]]:
    """Every order of the items that is sorted by distance: all orders of every tie."""
    return [
        [bool(relevance[i]) for i in order]
        for order in permutations(range(len(distances)))
        if all(distances[a] <= distances[b] for a, b in pairwise(order))
    ]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 7), n_bits=st.integers(1, 4), depth=st.integers(1, 8))
def test_equals_the_average_over_all_tie_orders(seed: int, n: int, n_bits: int, depth: int) -> None:
    rng = np.random.default_rng(seed)
    query, database = random_codes(rng, 1, n_bits), random_codes(rng, n, n_bits)
    labels = rng.integers(0, 2, n)
    if not labels.any():
        labels[0] = 1
    report = evaluate_codes(query, database, np.ones(1, int), labels, cutoffs=(depth,), topn=(depth,))
    rankings = all_rankings(hamming_distances(query, database)[0], labels == 1)
    relevant = int((labels == 1).sum())

    full = [average_precision(r, n, "min") for r in rankings]
    assert report["map"] == pytest.approx(mean_of(full), abs=1e-12)
    assert report["map_best"] == pytest.approx(max(full), abs=1e-12)
    assert report["map_worst"] == pytest.approx(min(full), abs=1e-12)
    assert report[f"map@{depth}"] == pytest.approx(
        mean_of([average_precision(r, min(depth, n), "min") for r in rankings]), abs=1e-12
    )
    assert report[f"map@{depth}_hits"] == pytest.approx(
        mean_of([average_precision(r, depth, "hits") for r in rankings]), abs=1e-12
    )
    assert report[f"precision@{depth}"] == pytest.approx(mean_of([sum(r[:depth]) / depth for r in rankings]), abs=1e-12)
    assert report[f"recall@{depth}"] == pytest.approx(mean_of([sum(r[:depth]) / relevant for r in rankings]), abs=1e-12)
    everything = [[labels[i] == 1 for i in order] for order in permutations(range(n))]
    assert report["map_random"] == pytest.approx(
        mean_of([average_precision(r, n, "min") for r in everything]), abs=1e-12
    )


@pytest.mark.parametrize(("n", "n_bits"), [(33, 1), (200, 12), (500, 33)])
def test_agrees_with_monte_carlo(n: int, n_bits: int) -> None:
    rng = np.random.default_rng(n)
    queries, database = random_codes(rng, 3, n_bits), random_codes(rng, n, n_bits)
    query_labels, labels = rng.integers(0, 3, 3), rng.integers(0, 3, n)
    report = evaluate_codes(queries, database, query_labels, labels, cutoffs=(20,), topn=(20,))
    distances = hamming_distances(queries, database).astype(float)
    samples: dict[str, list[float]] = {"map": [], "map@20": [], "map@20_hits": [], "precision@20": []}
    for _ in range(4000):
        orders = np.argsort(distances + rng.random(distances.shape) * 0.5, axis=1)
        rankings = [(labels[order] == label).tolist() for order, label in zip(orders, query_labels, strict=True)]
        samples["map"].append(mean_of([average_precision(r, n, "min") for r in rankings]))
        samples["map@20"].append(mean_of([average_precision(r, 20, "min") for r in rankings]))
        samples["map@20_hits"].append(mean_of([average_precision(r, 20, "hits") for r in rankings]))
        samples["precision@20"].append(mean_of([np.mean(r[:20]) for r in rankings]))
    for key, values in samples.items():
        standard_error = np.std(values) / np.sqrt(len(values))
        assert abs(report[key] - np.mean(values)) < 5 * standard_error + 1e-9, key


def test_without_ties_equals_scikit_learn() -> None:
    # Codes 0, 1, 11, 111, ... are at distances 0..n_bits from the first: no ties, so AP is the library's.
    n_bits = 40
    database = Codes.from_signs(np.where(np.tri(n_bits + 1, n_bits, -1) > 0, 1, -1))
    query = database[:1]
    labels = np.random.default_rng(0).integers(0, 2, n_bits + 1)
    report = evaluate_codes(query, database, np.ones(1, int), labels)
    expected = average_precision_score(labels, -np.arange(n_bits + 1))
    assert [report["map"], report["map_best"], report["map_worst"]] == pytest.approx([expected] * 3)


@pytest.mark.parametrize("n_bits", [1, 12, 33, 127])
@pytest.mark.parametrize("n", [1, 7, 33])
def test_radius_curves_by_loop(n: int, n_bits: int) -> None:
    rng = np.random.default_rng(n + n_bits)
    queries, database = random_codes(rng, 7, n_bits), random_codes(rng, n, n_bits)
    query_labels, labels = rng.integers(0, 2, 7), rng.integers(0, 2, n)
    query_labels[0] = labels[0]
    report = evaluate_codes(queries, database, query_labels, labels)
    distances = hamming_distances(queries, database)
    answerable = [i for i in range(7) if (labels == query_labels[i]).any()]
    for radius in range(n_bits + 1):
        precisions, recalls = [], []
        for i in answerable:
            found = [j for j in range(n) if distances[i, j] <= radius]
            hits = sum(labels[j] == query_labels[i] for j in found)
            precisions.append(hits / len(found) if found else 0.0)
            recalls.append(hits / (labels == query_labels[i]).sum())
        assert report["pr_radius"]["precision"][radius] == pytest.approx(np.mean(precisions))
        assert report["pr_radius"]["recall"][radius] == pytest.approx(np.mean(recalls))
    assert report["queries_without_relevant"] == 7 - len(answerable)
    empty = [not (distances[i] <= min(2, n_bits)).any() for i in answerable]
    assert report["empty_radius2"] == pytest.approx(np.mean(empty))
    assert report["precision_radius2"] == report["pr_radius"]["precision"][min(2, n_bits)]


@pytest.mark.parametrize("n_labels", [1, 3, 24, 70])
def test_multi_label_relevance_is_a_shared_label(n_labels: int) -> None:
    rng = np.random.default_rng(n_labels)
    queries, database = random_codes(rng, 7, 12), random_codes(rng, 50, 12)
    query_labels = (rng.random((7, n_labels)) < 0.3).astype(np.uint8)
    labels = (rng.random((50, n_labels)) < 0.3).astype(np.uint8)
    query_labels[0] = labels[0] = 1
    report = evaluate_codes(queries, database, query_labels, labels)
    distances = hamming_distances(queries, database)
    values = []
    for i in range(7):  # one query at a time, relevance as a class: the single-label path is checked above
        relevant = np.array([bool((query_labels[i] & row).any()) for row in labels])
        if relevant.any():
            values.append(evaluate_codes(queries[i], database, np.ones(1, int), relevant.astype(int))["map"])
    assert distances.shape == (7, 50)
    assert report["map"] == pytest.approx(np.mean(values))
    assert report["queries_without_relevant"] == 7 - len(values)


def test_database_order_and_flipped_bits_change_nothing() -> None:
    rng = np.random.default_rng(5)
    queries, database = random_codes(rng, 9, 33), random_codes(rng, 300, 33)
    query_labels, labels = rng.integers(0, 5, 9), rng.integers(0, 5, 300)
    report = evaluate_codes(queries, database, query_labels, labels)
    order = rng.permutation(300)
    assert evaluate_codes(queries, database[order], query_labels, labels[order]) == report
    flip = rng.choice([-1, 1], 33)
    flipped = [Codes.from_signs(codes.signs() * flip) for codes in (queries, database)]
    assert evaluate_codes(flipped[0], flipped[1], query_labels, labels) == report


def test_random_codes_score_the_prevalence() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 400)
    report = evaluate_codes(random_codes(rng, 200, 32), random_codes(rng, 4000, 32), labels[::20], labels)
    assert report["map"] == pytest.approx(0.1, abs=0.004)
    assert report["map_random"] == pytest.approx(0.1, abs=0.004)
    assert report["map_worst"] < report["map"] < report["map_best"]


def test_one_level_is_a_random_ranking() -> None:
    same = Codes.from_signs(np.ones((30, 16)))
    labels = np.arange(30) % 3
    report = evaluate_codes(same[:3], same, labels[:3], labels)
    assert report["map"] == pytest.approx(report["map_random"], abs=1e-12)


def test_report_is_json_and_lists_the_contract_keys() -> None:
    import json

    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 40)
    report = evaluate_codes(random_codes(rng, 40, 8), random_codes(rng, 40, 8), labels, labels)
    assert json.loads(json.dumps(report)) == report
    depths = [f"{name}@{n}" for name in ("precision", "recall") for n in (1, 10, 100, 1000)]
    wanted = ["map", "map@1000", "map@5000", "map@1000_hits", "pr_radius", "precision_radius2", "empty_radius2"]
    assert {*depths, *wanted, "map_random", "map_worst", "map_best"} <= set(report)
    assert len(report["pr_radius"]["precision"]) == 9


def test_refusals() -> None:
    codes = Codes.from_signs(np.ones((3, 8)))
    with pytest.raises(DataError, match=r"query labels must be \(3,\)"):
        evaluate_codes(codes, codes, np.zeros(2, int), np.zeros(3, int))
    with pytest.raises(DataError, match="different kinds"):
        evaluate_codes(codes, codes, np.zeros(3, int), np.zeros((3, 2), int))
    with pytest.raises(DataError, match="must be integers"):
        evaluate_codes(codes, codes, np.zeros(3), np.zeros(3))
    with pytest.raises(DataError, match="no query has a relevant item"):
        evaluate_codes(codes, codes, np.zeros(3, int), np.ones(3, int))
    with pytest.raises(DataError, match="at least one query"):
        evaluate_codes(codes[:0], codes, np.zeros(0, int), np.ones(3, int))
    with pytest.raises(DataError, match="0 or 1"):
        evaluate_codes(codes, codes, np.full((3, 2), 2), np.ones((3, 2), int))
    with pytest.raises(ParameterError, match="at least 1, got 0"):
        evaluate_codes(codes, codes, np.zeros(3, int), np.zeros(3, int), cutoffs=(0,))
