"""What changes where more rows are learned from than 50,000; here more than a hundred count as that many."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from distillhash import load_model, make_hasher
from distillhash.cli import main, train
from distillhash.errors import ParameterError
from distillhash.methods import distillhash, distillhash_contrast, distillhash_nested, heads, ssdh
from distillhash.methods.base import TrainingSet
from distillhash.methods.distillhash import DistillHash
from distillhash.methods.distillhash_contrast import DistillHashContrast
from distillhash.methods.distillhash_nested import DistillHashNested
from distillhash.methods.ssdh import SSDH
from distillhash.methods.training import CachedFeatures, WithNeighbours, WithPartners
from distillhash.supervision import agreement, graph
from distillhash.supervision.graph import has_graphs

needs_faiss = pytest.mark.skipif(not has_graphs(), reason="FAISS is not installed")


@pytest.fixture(autouse=True)
def hundred_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (distillhash, distillhash_contrast, distillhash_nested, heads, ssdh):
        monkeypatch.setattr(module, "MANY", 100)


def grouped(n_groups: int, size: int, noise: float, d: int = 32) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Rows around random centres, and the group of each."""
    rng = np.random.default_rng(0)
    group = rng.permutation(np.repeat(np.arange(n_groups), size))
    rows = rng.standard_normal((n_groups, d))[group] + noise * rng.standard_normal((len(group), d))
    return rows.astype(np.float32), group


def test_batches_come_from_one_part_each() -> None:
    parts = [np.arange(0, 20), np.arange(20, 39)]
    neighbours = np.concatenate([part[[np.roll(part - part[0], -1), np.roll(part - part[0], -2)]].T for part in parts])
    inputs = WithNeighbours(CachedFeatures(np.eye(39, dtype=np.float32)), neighbours.astype(np.int32), parts=parts)
    rng, seen = np.random.default_rng(0), set[int]()
    for size in (7, 19, 20):
        for _ in range(8):
            batch = inputs.batch(np.arange(size), rng)
            (positives,) = batch.targets
            seen |= set(batch.rows.tolist())
            assert len({row < 20 for row in batch.rows.tolist()}) == 1
            for a, i in enumerate(batch.rows):
                for b, j in enumerate(batch.rows):
                    assert bool(positives[a, b]) == (i == j or j in neighbours[i] or i in neighbours[j])
    assert seen == set(range(39))


def test_batches_hold_partners_and_their_labels() -> None:
    partners = np.array([[1, 2], [0, 0], [2, 1]], np.int32)
    labels = np.array([[1, -1], [-1, 1], [0, 1]], np.int8)
    inputs = WithPartners(CachedFeatures(np.arange(3, dtype=np.float32)[:, None]), partners, labels)
    batch = inputs.batch(np.array([2, 0]), np.random.default_rng(0))
    assert batch.inputs.ravel().tolist() == batch.rows.tolist() == [2, 0, 2, 1, 1, 2]
    expected = np.zeros((2, 4), np.int8)
    expected[0, :2], expected[1, 2:] = labels[2], labels[0]
    np.testing.assert_array_equal(batch.targets[0], expected)


@needs_faiss
def test_small_neighbourhoods_are_found_among_all_rows() -> None:
    rows, group = grouped(60, 6, 0.1)
    settings: dict[str, Any] = {"epochs": 1, "part": 60, "root": False, "hidden": 8}
    found = DistillHashContrast(8, neighbourhood=5 / 360, **settings).fit(rows).neighbours_
    assert found.shape == (360, 5)
    assert (group[found] == group[:, None]).mean() > 0.97  # a part of 60 rows holds one of the five
    in_parts = DistillHashContrast(8, neighbourhood=10 / 60, **settings).fit(rows)
    assert in_parts.neighbours_.shape == (360, 10) and len(in_parts._parts) == 6


@needs_faiss
def test_the_scale_of_many_rows_counts_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distillhash_contrast.DistillHashContrast, "part", 100)
    rows, _ = grouped(200, 8, 0.2)
    hasher = DistillHashNested(32, max_train=1600, preserve="classes").fit(rows)
    chosen = hasher.history_["chosen"]
    assert chosen["fine"] and chosen["neighbourhood"] == 8
    assert len(hasher.history_["rows"]) == 1600 and hasher.class_part_ is not None
    assert hasher.class_part_.neighbours_.shape == (1600, 12)  # 1.5 times 8
    monkeypatch.setattr(graph, "has_graphs", lambda: False)
    sampled = DistillHashNested(32, max_train=1600, preserve="classes").fit(rows)
    assert len(sampled.history_["rows"]) == 100


def test_rows_that_decide_bring_their_neighbours() -> None:
    rows, group = grouped(2000, 5, 0.05, d=16)
    chosen = distillhash_nested.with_neighbours(rows, 4, np.random.default_rng(0))
    assert len(chosen) == len(set(chosen.tolist())) <= distillhash_nested.TESTED
    assert np.bincount(group[chosen], minlength=2000)[np.unique(group[chosen])].mean() > 4.9


def test_agreement_is_the_same_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, _ = grouped(20, 10, 0.5)
    whole = agreement.half_agreement(rows, [8, 16], 0)
    monkeypatch.setattr(agreement, "_PAIRS", 1500)
    assert agreement.half_agreement(rows, [8, 16], 0) == pytest.approx(whole)


@needs_faiss
def test_distillhash_distils_partners() -> None:
    rows, group = grouped(8, 60, 0.7)
    hasher = DistillHash(16, max_train=480, epochs=5, local_neighbours=10).fit(rows)
    assert hasher.partners_ is not None and hasher.partners_.shape == hasher.pairs_.shape == (480, 8)
    same = group[hasher.partners_] == group[:, None]
    assert same[hasher.pairs_ > 0].mean() > 0.99 and same[hasher.pairs_ < 0].mean() < 0.01
    assert [step["step"] for step in hasher.history_["diagnosis"]] == ["initial pairs", "distilled pairs"]
    assert len(hasher.history_["loss"]) == 1  # 5 passes over 100 rows see 500
    again = DistillHash(16, max_train=480, epochs=5, local_neighbours=10).fit(rows)
    np.testing.assert_array_equal(hasher.encode(rows).packed, again.encode(rows).packed)
    settings: list[dict[str, Any]] = [{"estimate": "network"}, {"bounds": "unshared"}, {"self_pairs": True}]
    for setting in settings:
        with pytest.raises(ParameterError, match="lower max_train"):
            DistillHash(16, max_train=480, **setting).fit(rows)
    assert DistillHash(16, max_train=90, epochs=1, local_neighbours=10).fit(rows).partners_ is None


def test_ssdh_labels_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, _ = grouped(8, 60, 0.7)
    monkeypatch.setattr(ssdh, "_SAMPLED", 480)
    hasher = SSDH(16, max_train=480)
    labels = hasher.targets(heads.Data(TrainingSet(rows), np.arange(480)))
    assert labels is not None
    drawn = np.random.default_rng(0).permutation(480)[:50]
    (found,) = labels(drawn)
    np.testing.assert_array_equal(found, hasher.initial_pairs_[np.ix_(drawn, drawn)])


def test_train_learns_from_as_many_as_it_is_told(tmp_path: Path) -> None:
    source, model = tmp_path / "x.npy", tmp_path / "model"
    np.save(source, grouped(4, 40, 0.7)[0])
    options = ["--bits", "16", "--max-images", "150", "--method", "ssdh", "--set", "epochs=1", "--quiet"]
    assert main(["train", str(source), "--out", str(model), *options]) == 0
    assert load_model(model).hasher.get_params()["max_train"] == 150


@needs_faiss
def test_what_max_images_allows(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    told = argparse.Namespace(quiet=False, json=False)

    def allowed(method: str, n: int, **settings: int) -> Any:
        hasher = make_hasher(method, 16, **settings)
        train._allow_many(hasher, n, settings, told)
        return hasher.get_params().get("max_train")

    assert allowed("distillhash-nested", 150) == allowed("distillhash", 150) == allowed("greedyhash", 150) == 150
    assert allowed("distillhash-nested", 90) == 50_000 and allowed("distillhash", 90) == 10_000
    assert allowed("distillhash", 150, max_train=120) == 120
    assert allowed("dsg", 150) == 10_000  # compares all pairs
    assert allowed("itq", 150) is None
    assert not capsys.readouterr().err
    monkeypatch.setattr(graph, "has_graphs", lambda: False)
    assert allowed("distillhash-nested", 150) == 50_000
    assert "distillhash[faiss]" in capsys.readouterr().err
