"""Cross-modal metrics against every order of every tie, and against plain loops."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from distillhash.codes import Codes, hamming_distances
from distillhash.errors import DataError, ParameterError
from distillhash.metrics.cross_modal import (
    LEAST_GAIN,
    CodedPairs,
    evaluate_cross_modal,
    own_items,
    query_metrics,
    shared_labels,
    word_overlap,
)
from distillhash.metrics.retrieval import evaluate_codes


def in_order(gains: list[float], k: int) -> dict[str, float]:
    """The metrics of one ranking without ties, as their definitions say."""
    relevant = [gain >= LEAST_GAIN for gain in gains]
    precisions = [sum(relevant[: i + 1]) / (i + 1) for i, there in enumerate(relevant) if there]
    dcg = sum(gain / math.log2(i + 2) for i, gain in enumerate(gains[:k]))
    ideal = sum(gain / math.log2(i + 2) for i, gain in enumerate(sorted(gains, reverse=True)[:k]))
    return {
        "map": sum(precisions) / sum(relevant),
        f"hit@{k}": float(any(relevant[:k])),
        f"recall@{k}": sum(relevant[:k]) / sum(relevant),
        f"ndcg@{k}": dcg / ideal,
    }


def over_ties(distances: NDArray[Any], gains: NDArray[Any], k: int) -> dict[str, float]:
    """The mean over all orders that sort ``distances``."""
    rankings = [
        [float(gains[i]) for i in order]
        for order in itertools.permutations(range(len(distances)))
        if all(distances[a] <= distances[b] for a, b in itertools.pairwise(order))
    ]
    found = [in_order(ranking, k) for ranking in rankings]
    return {name: sum(metrics[name] for metrics in found) / len(found) for name in found[0]}


@pytest.mark.parametrize("k", [1, 2, 4, 9])
def test_ties_are_averaged_exactly(k: int) -> None:
    rng = np.random.default_rng(k)
    distances = rng.integers(0, 3, (12, 6))
    gains = rng.choice([0.0, 0.1, 0.2, 0.7, 1.0], (12, 6))
    gains[:, 0] = 0.5  # something is relevant to everyone
    found = query_metrics(distances, gains, (k,))
    for row in range(12):
        for name, value in over_ties(distances[row], gains[row], k).items():
            assert found[name][row] == pytest.approx(value, abs=1e-9), (row, name)


def test_floats_are_ranked_and_ties_among_them_kept() -> None:
    distances = np.array([[0.3, 0.1, 0.1, 2.5], [4.0, 3.0, 2.0, 1.0]])
    gains = np.array([[1, 0, 1, 0], [0, 0, 1, 1.0]])
    found = query_metrics(distances, gains, (1, 2))
    for row in range(2):
        for k in (1, 2):
            for name, value in over_ties(distances[row], gains[row], k).items():
                assert found[name][row] == pytest.approx(value, abs=1e-9)


def means(metrics: dict[str, NDArray[Any]]) -> dict[str, float]:
    """Over the queries that have a relevant item, and how many have one or none."""
    empty = np.isnan(metrics["map"])
    counts = {"n_queries": int((~empty).sum()), "queries_without_relevant": int(empty.sum())}
    return {name: float(np.mean(values[~empty])) for name, values in metrics.items()} | counts


def test_map_and_recall_are_those_of_evaluate_codes() -> None:
    rng = np.random.default_rng(0)
    query, database = (Codes.from_signs(rng.choice([-1, 1], (n, 10))) for n in (30, 50))
    asked, held = (rng.integers(0, 4, n) for n in (30, 50))
    found = query_metrics(hamming_distances(query, database), np.equal.outer(asked, held).astype(float), (1, 10))
    expected = evaluate_codes(query, database, asked, held)
    for name in ("map", "recall@1", "recall@10"):
        assert found[name].mean() == pytest.approx(expected[name], abs=1e-12)


def test_both_directions() -> None:
    rng = np.random.default_rng(1)
    n, owners = 7, np.repeat(np.arange(7), 3)
    pairs = CodedPairs(
        Codes.from_signs(rng.choice([-1, 1], (n, 6))), Codes.from_signs(rng.choice([-1, 1], (21, 6))), owners
    )
    keys = [f"k{i}" for i in range(n)]
    report = evaluate_cross_modal(pairs, pairs, {"own": own_items(keys, keys)}, (10,))
    own = np.equal.outer(np.arange(n), owners).astype(float)
    distances = hamming_distances(pairs.images, pairs.texts)
    assert report["image_to_text"]["own"] == means(query_metrics(distances, own, (10,)))
    assert report["text_to_image"]["own"] == means(query_metrics(distances.T, own.T, (10,)))


def test_own_items_and_labels() -> None:
    gains = own_items(["a", "b", "c"], ["c", "x", "a"])
    np.testing.assert_array_equal(gains(np.array([0, 1, 2])), [[0, 0, 1], [0, 0, 0], [1, 0, 0]])
    multi = shared_labels(np.array([[1, 0, 1], [0, 0, 0]]), np.array([[0, 0, 1], [0, 1, 0]]))
    np.testing.assert_array_equal(multi(np.array([0, 1])), [[1, 0], [0, 0]])
    single = shared_labels(np.array([4, 5]), np.array([5, 5, 4]))
    np.testing.assert_array_equal(single(np.array([1])), [[1, 1, 0]])
    with pytest.raises(DataError, match="different kinds"):
        shared_labels(np.zeros(2), np.zeros((2, 3)))


def test_word_overlap_is_jaccard_of_content_words() -> None:
    asked = [["A dog on the beach.", "The DOG barks"], ["of the"]]
    found = [["a beach"], ["dog dog dog", "barks on a beach!"], ["cars"]]
    table = word_overlap(asked, found)(np.array([0, 1]))
    sets = {"dog", "beach", "barks"}
    others = ({"beach"}, {"dog", "barks", "beach"}, {"cars"})
    expected = [len(sets & other) / len(sets | other) for other in others]
    np.testing.assert_allclose(table, np.array([expected, [0.0, 0, 0]]))
    with pytest.raises(DataError, match="no content word"):
        word_overlap([["of"]], [["the"]])


def test_queries_without_an_answer_are_counted_and_bad_tables_refused() -> None:
    found = query_metrics(np.array([[0, 1], [1, 0]]), np.array([[1, 0], [0, 0.0]]), (1,))
    assert found["hit@1"][0] == 1.0 and all(np.isnan(values[1]) for values in found.values())
    codes = Codes.from_signs(np.ones((2, 4)))
    pairs = CodedPairs(codes, codes, np.arange(2))
    report = evaluate_cross_modal(pairs, pairs, {"own": own_items(["a", "b"], ["a", "c"])})["image_to_text"]["own"]
    assert (report["n_queries"], report["queries_without_relevant"], report["hit@1"]) == (1, 1, 0.5)
    with pytest.raises(DataError, match="no query has a relevant item"):
        evaluate_cross_modal(pairs, pairs, {"own": own_items(["a", "b"], ["c", "d"])})
    with pytest.raises(DataError, match="must be one table"):
        query_metrics(np.zeros((2, 2), int), np.zeros((2, 3)))
    with pytest.raises(ParameterError, match="at least 1, got 0"):
        query_metrics(np.zeros((2, 2), int), np.ones((2, 2)), (0,))
