"""BinaryHasher as scikit-learn uses it."""

import pickle
import sys
import warnings
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

import distillhash
from distillhash import BinaryHasher, Codes, make_hasher, method_names
from distillhash.errors import DataError, MissingDependencyError, ParameterError
from distillhash.methods.registry import DEFAULT_METHOD

X = np.random.default_rng(3).standard_normal((60, 16)) @ np.random.default_rng(4).standard_normal((16, 16))
# Their estimates of pair labels find no pairs to learn from in the checks' 10 to 30 random rows.
NO_PAIRS = {"cimon", "distillhash", "dsg"}


def failures(estimator: BinaryHasher) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results: list[dict[str, Any]] = check_estimator(estimator, on_fail=None)
    assert len(results) > 40
    return [f"{r['check_name']}: {r['exception']}" for r in results if r["status"] not in ("passed", "skipped")]


@pytest.mark.parametrize("method", ["itq", "lsh", DEFAULT_METHOD])
def test_scikit_learns_own_checks(method: str) -> None:
    assert failures(BinaryHasher(method, 2)) == []


def test_scikit_learns_own_checks_of_bytes() -> None:
    assert failures(BinaryHasher("itq", 2, packed=True)) == []


@pytest.mark.long
@pytest.mark.parametrize("method", sorted({*method_names()} - NO_PAIRS))
def test_scikit_learns_own_checks_of_all_methods(method: str) -> None:
    assert failures(BinaryHasher(method, 2)) == []


@pytest.mark.parametrize("n_bits", [1, 7, 12, 16])
def test_bits_and_bytes_are_those_of_the_method(n_bits: int) -> None:
    codes = make_hasher("itq", n_bits, seed=5).fit(X).encode(X)
    bits = BinaryHasher("itq", n_bits, seed=5).fit_transform(X)
    assert bits.dtype == np.uint8 and np.array_equal(2 * bits.astype(int) - 1, codes.signs())
    packed = BinaryHasher("itq", n_bits, seed=5, packed=True).fit_transform(X)
    assert packed.dtype == np.uint8 and np.array_equal(packed, np.packbits(bits, axis=1))
    packed[:] = 0  # its own array, not a view of anything


def test_parameters_reach_the_method() -> None:
    fitted = BinaryHasher("lsh", 8, parameters={"centre": False}).fit(X)
    assert fitted.hasher_.get_params() == {"n_bits": 8, "seed": 0, "centre": False}
    assert np.array_equal(fitted.hasher_.state()["mean"], np.zeros(16))


def test_the_way_back_is_the_decoders() -> None:
    for packed in (False, True):
        hasher = BinaryHasher("itq", 12, packed=packed).fit(X)
        rebuilt = hasher.inverse_transform(hasher.transform(X))
        assert np.array_equal(rebuilt, hasher.hasher_.reconstruct(hasher.hasher_.encode(X)))
        cosines = (rebuilt * X).sum(axis=1) / np.linalg.norm(rebuilt, axis=1) / np.linalg.norm(X, axis=1)
        assert cosines.mean() > 0.8
    with pytest.raises(DataError, match="must be 0 or 1"):
        BinaryHasher("itq", 12).fit(X).inverse_transform(np.full((2, 12), 2))


def test_names_of_columns() -> None:
    pandas = pytest.importorskip("pandas")
    hasher = BinaryHasher("itq", 9).set_output(transform="pandas").fit(pandas.DataFrame(X))
    table = hasher.transform(pandas.DataFrame(X))
    assert isinstance(table, pandas.DataFrame)
    assert [*table.columns] == [*hasher.get_feature_names_out()] == [f"binaryhasher{i}" for i in range(9)]
    assert np.array_equal(table.to_numpy(), BinaryHasher("itq", 9).fit_transform(X))
    assert [*BinaryHasher("itq", 9, packed=True).fit(X).get_feature_names_out()] == ["binaryhasher0", "binaryhasher1"]


def test_the_score_counts_neighbours() -> None:
    """By a loop; 16 bits leave ties, so each pair at the cut counts by its chance."""
    hasher = BinaryHasher("itq", 16).fit(X)
    bits = hasher.transform(X).astype(int)
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    found = 0.0
    for row in range(len(X)):
        others = np.delete(np.arange(len(X)), row)
        near = others[np.argsort(-(unit[others] @ unit[row]))[:10]]
        distances = {other: int((bits[other] != bits[row]).sum()) for other in others}
        cut = sorted(distances.values())[9]
        sure = [other for other in others if distances[other] < cut]
        tied = [other for other in others if distances[other] == cut]
        found += len({*near} & {*sure}) + len({*near} & {*tied}) * (10 - len(sure)) / len(tied)
    assert hasher.score(X) == pytest.approx(found / 10 / len(X))


def test_search_over_bits_and_methods_takes_what_keeps_most_neighbours() -> None:
    grid = {"n_bits": [2, 16], "method": ["lsh", "itq"]}
    search = GridSearchCV(BinaryHasher(), grid, cv=3).fit(X)
    assert search.best_params_ == {"method": "itq", "n_bits": 16}
    assert search.transform(X).shape == (60, 16)


def test_in_a_pipeline_codes_classify_digits() -> None:
    x, y = load_digits(return_X_y=True)
    neighbours = KNeighborsClassifier(5, metric="hamming", algorithm="brute")
    pipeline = make_pipeline(StandardScaler(), BinaryHasher("itq", 32), neighbours)
    assert pipeline.fit(x[:600], y[:600]).score(x[600:900], y[600:900]) > 0.85
    pipeline.set_params(binaryhasher__n_bits=1)
    assert pipeline.fit(x[:600], y[:600]).score(x[600:900], y[600:900]) < 0.5


def test_clone_and_pickle() -> None:
    hasher = BinaryHasher("distillhash-nested", 8, seed=3, parameters={"preserve": "both"}).fit(X)
    copy = clone(hasher)
    assert copy.get_params() == hasher.get_params() and not hasattr(copy, "hasher_")
    assert np.array_equal(pickle.loads(pickle.dumps(hasher)).transform(X), hasher.transform(X))
    assert np.array_equal(copy.fit(X).transform(X), hasher.transform(X))
    assert Codes.from_signs(
        2 * hasher.transform(X).astype(int) - 1, hasher.hasher_.class_bits
    ) == hasher.hasher_.encode(X)


def test_labels_go_to_supervised_methods_alone() -> None:
    y = np.arange(60) % 3
    with_labels = BinaryHasher("dmuh", 8, parameters={"epochs": 1}).fit(X, y)
    assert with_labels.hasher_.encode(X) == make_hasher("dmuh", 8, epochs=1).fit(X, labels=y).encode(X)
    with pytest.raises(ParameterError, match="dmuh is supervised"):
        BinaryHasher("dmuh", 8).fit(X)
    assert np.array_equal(BinaryHasher("itq", 8).fit(X, y).transform(X), BinaryHasher("itq", 8).fit(X).transform(X))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "no-such"}, "unknown method 'no-such'"),
        ({"method": "ccaitq"}, "learns from image-text pairs, not from features; choose one of agh"),
        ({"n_bits": 0}, "n_bits must be at least 1"),
        ({"parameters": {"colour": 1}}, "itq has no hyper-parameter 'colour'"),
        ({"n_bits": 17}, "17 bits need at least 17 features"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        BinaryHasher(**{"n_bits": 8, **changes}).fit(X)


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "distillhash.methods.estimator")
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'distillhash\[sklearn\]'"):
        distillhash.BinaryHasher  # noqa: B018
