"""Metrics of codes of two parts against loops over the reference ranking, in every order of its ties."""

from itertools import permutations, product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from distillhash.codes import Codes, hamming_distances
from distillhash.errors import DataError, ParameterError
from distillhash.hamming import ranking
from distillhash.metrics import (
    evaluate_codes,
    evaluate_queries,
    find_neighbours,
    neighbour_recall,
    recall_measures,
    replicated_neighbours,
    retrieval,
)

Array = NDArray[Any]


def two_parts(rng: np.random.Generator, n: int, n_bits: int, class_bits: int) -> Codes:
    return Codes.from_projection(rng.standard_normal((n, n_bits)), class_bits)


def distances(a: Codes, b: Codes) -> tuple[Array, Array]:
    """Over all bits and over the class bits, counted one by one."""
    differ = a.signs()[:, None] != b.signs()[None]
    return differ.sum(axis=2), differ[:, :, : a.class_bits].sum(axis=2)


def tie_groups(d: Array, c: Array) -> list[list[int]]:
    """The items of one query in the order of the reference, those with equal (d, c) together."""
    groups: list[list[int]] = []
    for item in ranking.order(d, c).tolist():
        if groups and (d[groups[-1][0]], c[groups[-1][0]]) == (d[item], c[item]):
            groups[-1].append(item)
        else:
            groups.append([item])
    return groups


def all_orders(d: Array, c: Array) -> list[list[int]]:
    return [
        [item for group in orders for item in group]
        for orders in product(*(list(permutations(group)) for group in tie_groups(d, c)))
    ]


def average_precision(relevant: list[bool], depth: int) -> tuple[float, int]:
    """The sum of precision over the hits among the first ``depth``, and their number."""
    hits, total = 0, 0.0
    for place, is_relevant in enumerate(relevant[:depth], start=1):
        if is_relevant:
            hits += 1
            total += hits / place
    return total, hits


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("n_bits", "class_bits", "head"), [(4, 1, 2), (4, 2, 3), (5, 4, 1), (3, 1, 40)])
def test_metrics_equal_the_average_over_all_tie_orders(
    seed: int, n_bits: int, class_bits: int, head: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranking, "HEAD", head)
    rng = np.random.default_rng(seed)
    query, database = two_parts(rng, 1, n_bits, class_bits), two_parts(rng, 7, n_bits, class_bits)
    labels, depth = np.append(rng.integers(0, 2, 6), 1), int(rng.integers(1, 8))
    report = evaluate_codes(query, database, np.ones(1, int), labels, (depth,), (depth,))
    (d,), (c,) = distances(query, database)
    lists = [[bool(labels[item]) for item in order] for order in all_orders(d, c)]
    total = int(labels.sum())
    whole = [average_precision(found, 7)[0] / total for found in lists]
    cut = [average_precision(found, depth) for found in lists]
    expected = {
        "map": np.mean(whole),
        "map_best": max(whole),
        "map_worst": min(whole),
        f"map@{depth}": np.mean([value for value, _ in cut]) / min(depth, total),
        f"map@{depth}_hits": np.mean([value / hits if hits else 0 for value, hits in cut]),
        f"precision@{depth}": np.mean([hits for _, hits in cut]) / depth,
        f"recall@{depth}": np.mean([hits for _, hits in cut]) / total,
    }
    assert {key: report[key] for key in expected} == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("multi_label", [False, True])
def test_metrics_of_larger_codes_agree_with_random_tie_orders(
    multi_label: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    queries, database = two_parts(rng, 6, 12, 5), two_parts(rng, 150, 12, 5)
    labels: Any = [rng.integers(0, 3, len(side)) for side in (queries, database)]
    relevant = labels[0][:, None] == labels[1]
    if multi_label:
        labels = [rng.random((len(side), 4)) < 0.3 for side in (queries, database)]
        labels[0][2] = False  # nothing is relevant to this query
        relevant = (labels[0][:, None] & labels[1][None]).any(axis=2)
    report, values = evaluate_queries(queries, database, labels[0], labels[1], (60,), (10, 60))
    assert report["class_bits"] == 5
    found: dict[str, list[Array]] = {"map": [], "map@60": [], "precision@10": [], "precision@60": []}
    d, c = distances(queries, database)
    asked = np.flatnonzero(relevant.any(axis=1))
    groups = [tie_groups(d[row], c[row]) for row in asked]
    for _ in range(400):
        lists = [
            relevant[row][np.concatenate([rng.permutation(group) for group in parts])]
            for row, parts in zip(asked, groups, strict=True)
        ]
        totals = [int(found.sum()) for found in lists]
        whole = [average_precision(one.tolist(), 150)[0] / n for one, n in zip(lists, totals, strict=True)]
        found["map"].append(np.array(whole))
        cut = [average_precision(one.tolist(), 60)[0] / min(60, n) for one, n in zip(lists, totals, strict=True)]
        found["map@60"].append(np.array(cut))
        for depth in (10, 60):
            found[f"precision@{depth}"].append(np.array([one[:depth].mean() for one in lists]))
    for key, sampled in found.items():
        means = np.mean(sampled, axis=1)
        assert abs(report[key] - np.mean(means)) < 5 * np.std(means) / 20 + 1e-9, key
    np.testing.assert_allclose(values[asked], np.mean(found["map"], axis=0), atol=0.01)
    # Lookups count all bits, as those of the same codes of one part.
    plain = Codes(queries.packed, 12), Codes(database.packed, 12)
    one_part = evaluate_codes(*plain, *labels)
    for key in ("pr_radius", "precision_radius2", "empty_radius2", "map_random", "queries_without_relevant"):
        assert report[key] == one_part[key]
    assert report["map"] != one_part["map"] and "class_bits" not in one_part
    monkeypatch.setattr(retrieval, "_PAIR_BLOCK", 1)  # one query at a time
    monkeypatch.setattr(ranking, "_CELL_BLOCK", 1)
    again = evaluate_codes(queries, database, labels[0], labels[1], (60,), (10, 60))
    for key, value in report.items():
        if isinstance(value, float):
            assert again[key] == pytest.approx(value), key
    assert again["topn"]["precision"] == pytest.approx(report["topn"]["precision"])


@pytest.mark.parametrize("class_bits", [1, 8, 13, 64, 70])
def test_cells_hold_both_distances(class_bits: int) -> None:
    rng = np.random.default_rng(class_bits)
    a, b = two_parts(rng, 3, 77, class_bits), two_parts(rng, 9, 77, class_bits)
    d, c = distances(a, b)
    assert (ranking.cells(a, b) == (d - c) * (class_bits + 1) + c).all()
    assert ranking.cells(a, b).max() < ranking.cell_count(a) == (78 - class_bits) * (class_bits + 1)
    plain = Codes(a.packed, 77), Codes(b.packed, 77)
    assert (ranking.cells(*plain) == hamming_distances(*plain)).all()


@pytest.mark.parametrize("n", [1, 39, 40, 41, 300])
def test_levels_are_the_places_of_the_reference(n: int) -> None:
    rng = np.random.default_rng(n)
    queries, database = two_parts(rng, 5, 16, 6), two_parts(rng, n, 16, 6)
    cells = ranking.cells(queries, database)
    counts = np.array([np.bincount(row, minlength=ranking.cell_count(queries)) for row in cells])
    levels = ranking.cell_levels(counts, 6)
    ordered = ranking.by_level(levels, counts)
    for row, (d, c) in enumerate(zip(*distances(queries, database), strict=True)):
        groups = tie_groups(d, c)
        for place, group in enumerate(groups):
            assert set(levels[row, cells[row, group]].tolist()) == {place}
        sizes = [len(group) for group in groups]
        assert ordered[row].tolist() == sizes + [0] * (ordered.shape[1] - len(sizes))


@pytest.mark.parametrize("seed", range(6))
def test_neighbour_recall_equals_the_average_over_all_tie_orders(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "HEAD", 2)
    rng = np.random.default_rng(seed)
    codes, features = two_parts(rng, 7, 4, 2), rng.standard_normal((7, 3))
    own = np.array([0, -1, 2, 3, 4, 5, 6])
    report = neighbour_recall(codes, codes, features, features, (3,), (1, 4), same_items=own)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    for depth in (1, 4):
        expected = []
        for row, (d, c) in enumerate(zip(*distances(codes, codes), strict=True)):
            others = np.setdiff1d(np.arange(7), own[row])
            nearest = set(others[np.argsort(-unit[others] @ unit[row])[:3]].tolist())
            orders = all_orders(d[others], c[others])
            expected.append(np.mean([len(nearest & set(others[order[:depth]].tolist())) / 3 for order in orders]))
        assert report[f"recall3@{depth}"] == pytest.approx(np.mean(expected), abs=1e-12)


def test_replicated_neighbours_follow_the_ranking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "HEAD", 2)
    rng = np.random.default_rng(1)
    first, second = two_parts(rng, 7, 4, 2), two_parts(rng, 7, 3, 1)
    total = 0.0
    for row in range(7):
        others = np.delete(np.arange(7), row)
        near = []
        for codes in (first, second):
            d, c = (values[row, others] for values in distances(codes, codes))
            near.append([set(order[:3]) for order in all_orders(d, c)])
        total += float(np.mean([len(a & b) / 3 for a in near[0] for b in near[1]]))
    assert replicated_neighbours(first, second, 0.5) == pytest.approx(total / 7, rel=1e-5)


@pytest.mark.parametrize("class_bits", [0, 5])
def test_reports_hold_the_recall_of_neighbours(class_bits: int) -> None:
    rng = np.random.default_rng(0)
    codes, features = two_parts(rng, 130, 16, class_bits), rng.standard_normal((130, 6)).astype(np.float32)
    labels = np.arange(130) % 3
    sides = codes[:30], codes[30:]
    given: dict[str, Any] = {"query_features": features[:30], "database_features": features[30:]}
    full = neighbour_recall(*sides, features[:30], features[30:], (10,), (10, 40, 100))
    wanted = {f"neighbour_recall@{depth}": full[f"recall10@{depth}"] for depth in (10, 40, 100)}
    assert wanted["neighbour_recall@100"] == pytest.approx(1)
    by_labels = evaluate_codes(*sides, labels[:30], labels[30:])
    assert evaluate_codes(*sides, labels[:30], labels[30:], **given) == by_labels | wanted
    sizes = {"n_bits": 16, "n_queries": 30, "n_database": 100} | ({"class_bits": 5} if class_bits else {})
    assert evaluate_codes(*sides, None, None, **given) == sizes | wanted
    assert recall_measures(*sides, find_neighbours(features[:30], features[30:])) == wanted
    both: dict[str, Any] = {"query_features": features, "database_features": features}
    own = evaluate_codes(codes, codes, None, None, **both, same_items=True)
    with_itself = evaluate_codes(codes, codes, None, None, **both)
    assert own["neighbour_recall@10"] < with_itself["neighbour_recall@10"]
    rows = np.arange(50, 60)
    part: dict[str, Any] = {"query_features": features[rows], "database_features": features}
    left_out = evaluate_codes(codes[rows], codes, None, None, **part, same_items=rows)
    expected = [
        evaluate_codes(
            codes[int(row)], codes[np.delete(np.arange(130), row)], None, None,
            query_features=features[row : row + 1], database_features=np.delete(features, row, axis=0),
        )["neighbour_recall@10"]
        for row in rows
    ]  # fmt: skip
    assert left_out["neighbour_recall@10"] == pytest.approx(np.mean(expected))


def test_what_cannot_be_measured_is_named() -> None:
    codes, features = two_parts(np.random.default_rng(0), 5, 4, 0), np.eye(5)
    with pytest.raises(ParameterError, match="metrics need labels, or query_features and database_features"):
        evaluate_codes(codes, codes, None, None)
    with pytest.raises(ParameterError, match="features of queries and database both"):
        evaluate_codes(codes, codes, None, None, query_features=features)
    with pytest.raises(ParameterError, match="labels of queries and database both"):
        evaluate_codes(codes, codes, np.ones(5, int), None, query_features=features, database_features=features)
    with pytest.raises(DataError, match=r"one row for each code, got shape \(4, 5\)"):
        evaluate_codes(codes, codes, None, None, query_features=features[:4], database_features=features)
    with pytest.raises(DataError, match="same_items must be True, False, or 5 rows from -1 to 4"):
        evaluate_codes(
            codes, codes, None, None, query_features=features, database_features=features, same_items=np.arange(5) + 1
        )
