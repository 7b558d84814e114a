"""Metrics of odd inputs: the right number, or one sentence."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from distillhash import Codes
from distillhash.errors import DataError, DistillHashError, ParameterError
from distillhash.metrics import (
    CodedPairs,
    bit_statistics,
    evaluate_codes,
    evaluate_cross_modal,
    neighbour_recall,
    own_items,
    query_metrics,
    replicated_neighbours,
)

rng = np.random.default_rng(0)
Q, D = (Codes.from_signs(np.where(rng.random((n, 8)) < 0.5, 1, -1)) for n in (5, 20))
NONE = Q[:0]
QL, DL = np.arange(5) % 3, np.arange(20) % 3
QF, DF = rng.standard_normal((5, 4)), rng.standard_normal((20, 4))
TABLE = np.ones((2, 3))
PAIRS = CodedPairs(Q, Q, np.arange(5))
KEYS = own_items("abcde", "abcde")

REFUSED: dict[str, Callable[[], object]] = {
    f"labels {name}": lambda q=q, d=d: evaluate_codes(Q, D, q, d)  # type: ignore[misc]
    for name, (q, d) in {
        "floats": (QL.astype(float), DL.astype(float)),
        "NaN": (np.full(5, np.nan), np.full(20, np.nan)),
        "texts": (QL.astype(str), DL.astype(str)),
        "objects": (QL.astype(object), DL.astype(object)),
        "complex": (QL.astype(complex), DL.astype(complex)),
        "dates": (QL.astype("M8[s]"), DL.astype("M8[s]")),
        "none": (None, None),
        "ragged": ([[1], [1, 2], [3], [4], [5]], [[1]] * 20),
        "beyond 64 bits": ([2**70] * 5, [2**70] * 20),
        "three axes": (np.zeros((5, 2, 2)), np.zeros((20, 2, 2))),
        "NaN indicators": (np.full((5, 2), np.nan), np.full((20, 2), np.nan)),
        "no indicators": (np.zeros((5, 0)), np.zeros((20, 0))),
        "nothing in common": (QL, DL + 100),
        "too few": (QL[:4], DL),
    }.items()
}
REFUSED |= {
    f"cutoffs {values!r}": lambda values=values: evaluate_codes(Q, D, QL, DL, cutoffs=values)  # type: ignore[misc]
    for values in ((0,), (-1,), (1.5,), (float("nan"),), ("a",), 5, None)
}
REFUSED |= {
    f"recall {name}": lambda given=given: neighbour_recall(Q, D, QF, DF, **given)  # type: ignore[misc]
    for name, given in {
        "k 0": {"ks": (0,)},
        "k 1.5": {"ks": (1.5,)},
        "k NaN": {"ks": (float("nan"),)},
        "k 3": {"ks": 3},
        "depth 1.5": {"depths": (1.5,)},
        "depth NaN": {"depths": (float("nan"),)},
        "max_queries 0": {"max_queries": 0},
        "max_queries 2.5": {"max_queries": 2.5},
        "seed -1": {"seed": -1},
        "seed 1.5": {"seed": 1.5},
        "same_items": {"same_items": True},
    }.items()
}
REFUSED |= {
    f"features {name}": lambda q=q, d=d: neighbour_recall(Q, D, q, d)  # type: ignore[misc]
    for name, (q, d) in {
        "NaN": (QF * np.nan, DF),
        "infinite": (QF, np.full((20, 4), np.inf)),
        "texts": (QF.astype(str), DF.astype(str)),
        "complex": (QF.astype(complex), DF.astype(complex)),
        "none": (None, DF),
        "one axis": (QF[:, 0], DF[:, 0]),
    }.items()
}
REFUSED |= {
    "no queries": lambda: evaluate_codes(NONE, D, QL[:0], DL),
    "no database": lambda: evaluate_codes(Q, NONE, QL, DL[:0]),
    "recall without queries": lambda: neighbour_recall(NONE, D, QF[:0], DF),
    "recall without database": lambda: neighbour_recall(Q, NONE, QF, DF[:0]),
    "recall of itself alone": lambda: neighbour_recall(Q[:1], Q[:1], QF[:1], QF[:1], same_items=True),
    "share NaN": lambda: replicated_neighbours(D, D, float("nan")),
    "share of text": lambda: replicated_neighbours(D, D, "a"),  # type: ignore[arg-type]
    "one item": lambda: replicated_neighbours(D[:1], D[:1]),
    "no codes": lambda: bit_statistics(NONE),
    "pairs without images": lambda: evaluate_cross_modal(CodedPairs(NONE, NONE, np.arange(0)), PAIRS, {"own": KEYS}),
    "owner out of range": lambda: evaluate_cross_modal(CodedPairs(Q, Q, np.arange(1, 6)), PAIRS, {"own": KEYS}),
    "distances NaN": lambda: query_metrics(np.full((2, 3), np.nan), TABLE),
    "distances below 0": lambda: query_metrics(np.full((2, 3), -1), TABLE),
    "distances of text": lambda: query_metrics(np.full((2, 3), "a"), TABLE),
    "gains NaN": lambda: query_metrics(TABLE, np.full((2, 3), np.nan)),
    "gains above 1": lambda: query_metrics(TABLE, 2 * TABLE),
    "depth 1.5": lambda: query_metrics(TABLE, TABLE, (1.5,)),  # type: ignore[arg-type]
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", REFUSED)
def test_odd_inputs_are_refused_in_one_sentence(name: str) -> None:
    with pytest.raises((DataError, ParameterError)) as caught:
        REFUSED[name]()
    assert isinstance(caught.value, DistillHashError)
    assert 20 < len(str(caught.value)) < 300 and "\n" not in str(caught.value)


@pytest.mark.filterwarnings("error")
def test_depths_beyond_everything_mean_everything() -> None:
    everything = evaluate_codes(Q, D, QL, DL, cutoffs=(20,), topn=(20,))
    report: dict[str, Any] = evaluate_codes(Q, D, QL, DL, cutoffs=(10**30,), topn=(10**30,))
    assert report[f"map@{10**30}"] == everything["map@20"] == pytest.approx(everything["map"])
    assert report[f"recall@{10**30}"] == 1
    recall = neighbour_recall(Q, D, QF, DF, ks=(10**30,), depths=(10**30, 20))
    assert recall[f"recall{10**30}@{10**30}"] == recall[f"recall{10**30}@20"] == 1
    distances, gains = np.array([[3, 1, 2]]), np.array([[0, 1, 0.5]])
    deep = query_metrics(distances, gains, (10**12, 3))
    assert deep[f"ndcg@{10**12}"] == deep["ndcg@3"] == 1
    assert deep[f"hit@{10**12}"] == 1


@pytest.mark.filterwarnings("error")
def test_only_the_order_of_distances_counts_however_large_they_are() -> None:
    distances, gains = rng.integers(0, 5, (4, 30)), rng.random((4, 30)) < 0.3
    plain = query_metrics(distances, gains)
    for same in (
        distances.astype(np.uint64) * 2**60,
        distances * 2**40,
        distances * 1e300,
        distances.astype(np.float16),
    ):
        for name, values in query_metrics(same, gains.astype(int)).items():
            np.testing.assert_array_equal(values, plain[name])


@pytest.mark.filterwarnings("error")
def test_labels_of_any_integer_type_give_the_same_numbers() -> None:
    plain = evaluate_codes(Q, D, QL, DL)
    kinds: list[tuple[Any, Any]] = [(np.uint64(2**63) + QL.astype(np.uint64), np.uint64(2**63) + DL.astype(np.uint64))]
    kinds += [
        (-QL, -DL),
        (QL.tolist(), DL.tolist()),
        (QL.astype(np.int8), DL.astype(np.uint16)),
        (QL.astype(">i2"), DL),
    ]
    kinds += [(np.eye(3)[QL], np.eye(3)[DL]), (np.eye(3, dtype=bool)[QL], np.eye(3, dtype=int)[DL])]
    for query, database in kinds:
        assert evaluate_codes(Q, D, query, database) == plain
