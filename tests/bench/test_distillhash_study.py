"""The cells of benchmarks/distillhash_study.py are what the methods of the package do, and its controls what they say."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distillhash.methods import make_hasher
from distillhash.methods.distillhash import DistillHash

FILE = Path(__file__).parents[2] / "benchmarks" / "distillhash_study.py"


@pytest.fixture(scope="module")
def study() -> Any:
    spec = importlib.util.spec_from_file_location("distillhash_study", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def bench(study: Any) -> Any:
    rng = np.random.default_rng(0)
    labels = np.arange(160) % 5
    x = (rng.standard_normal((5, 24))[labels] + rng.standard_normal((160, 24))).astype(np.float32)
    views = (x[None, :80] + 0.3 * rng.standard_normal((6, 80, 24))).astype(np.float32)
    return study.Workbench(x[:80], views, x[80:100], x[100:], [labels[:80], labels[80:100], labels[100:]])


FEW = {"local_neighbours": 5}
PAPER: dict[str, Any] = {"alpha": 2.0, "beta": 2.0, "scale": 1.0, "optimizer": "sgd"}


@pytest.mark.parametrize(
    ("pairs", "estimate", "central", "options", "method", "settings"),
    [
        ("initial", "", "PAPER", {}, "distillhash-initial", PAPER),
        ("squared", "", "OURS", {"views": 6}, "ssdh", {"alpha": 1.5}),
        ("strict", "network", "PAPER", {}, "distillhash", DistillHash.PRESETS["paper"]),
        ("strict", "held-out", "OURS", {"hidden": 7, "views": 6}, "distillhash", {"estimate": "held-out", "hidden": 7}),
        ("certain", "local", "OURS", {"options": FEW}, "distillhash", FEW),
    ],
)
def test_a_cell_is_the_method_it_names(
    study: Any, bench: Any, pairs: str, estimate: str, central: str, options: Any, method: str, settings: Any
) -> None:
    cell = study.Cell("any", pairs, estimate, **getattr(study, central), n_bits=7, **options)
    record = bench.measure(cell, 1)
    hasher: Any = make_hasher(method, 7, seed=1, **settings)
    hasher.fit(bench.train, views=bench.views if cell.views else None)
    np.testing.assert_array_equal(bench.pairs(cell, 1), hasher.pairs_)
    assert record | bench.judged(hasher) == record  # the same numbers, to the last digit kept


def test_every_cell_has_its_own_baselines(study: Any) -> None:
    def setting(cell: Any) -> tuple[Any, ...]:
        return (cell.alpha, cell.beta, cell.recipe, cell.hidden, cell.views, cell.n_bits)

    cells = [cell for group in study.GROUPS.values() for cell in group("any")]
    baselines = {pairs: {setting(cell) for cell in cells if cell.pairs == pairs} for pairs in ("initial", "squared")}
    rest = {setting(cell) for cell in cells if cell.pairs not in study.OTHERS}
    assert rest == baselines["initial"] == baselines["squared"]
    assert len(study.crossing("any")) == 2 * 2 * 2 * 9


def test_controls_replace_pairs_as_they_say(study: Any, bench: Any) -> None:
    def pairs(kind: str) -> Any:
        return bench.pairs(study.Cell("any", kind, "local", **study.OURS, options=FEW), 0)

    initial, rule, logits = pairs("initial"), pairs("certain"), pairs("sign")
    same = np.equal.outer(bench.labels[0], bench.labels[0])
    for sign in (1, -1):
        assert (pairs("extreme") == sign).sum() == (rule == sign).sum()
        assert (pairs("extreme, few") == sign).sum() == (initial == sign).sum()
        assert (pairs("thinned") == sign).sum() == min((initial == sign).sum(), (rule == sign).sum())
    assert not pairs("thinned")[rule == 0].any()
    np.testing.assert_array_equal(pairs("agreeing") != 0, (rule == initial) & (rule != 0))
    np.testing.assert_array_equal(pairs("relabelled"), logits * (initial != 0))
    off = ~np.eye(80, dtype=bool)
    np.testing.assert_array_equal(pairs("true labels")[off], np.where(rule != 0, np.where(same, 1, -1), 0)[off])
    for kind in (*study.CONTROLS, "sign", "strict"):
        np.testing.assert_array_equal(pairs(kind), pairs(kind).T)
        assert not pairs(kind).diagonal().any()
    estimate = bench.logits(study.Cell("any", "sign", "local", **study.OURS, options=FEW), 0)
    assert estimate[pairs("extreme") == 1].min() >= estimate[(pairs("extreme") != 1) & off].max()


def test_calibration_error_is_the_gap_of_each_bin(study: Any) -> None:
    rng = np.random.default_rng(1)
    logits = rng.standard_normal((12, 12)).astype(np.float32)
    logits = logits + logits.T
    fresh = np.sign(rng.integers(-1, 2, (12, 12)) * np.triu(np.ones((12, 12)), 1)).astype(np.int8)
    fresh = fresh + fresh.T
    total, gap = 0, 0.0
    bins: dict[int, list[tuple[float, bool]]] = {}
    for i in range(12):
        for j in range(i + 1, 12):
            if fresh[i, j]:
                probability = 1 / (1 + np.exp(-float(logits[i, j])))
                bins.setdefault(int(20 * probability), []).append((probability, fresh[i, j] > 0))
                total += 1
    for members in bins.values():
        gap += abs(sum(probability - positive for probability, positive in members))
    assert study.calibration_error(logits, fresh) == pytest.approx(gap / total)


def test_tables_pair_the_seeds(study: Any) -> None:
    def row(seed: int, pairs: str, score: float) -> dict[str, Any]:
        estimate = "local" if pairs == "strict" else ""
        cell = study.Cell("any", pairs, estimate)
        return {**vars(cell), "seed": seed, **dict.fromkeys(study.MEASURES, score), "calibration_error": 0.1}

    rows = [row(seed, "initial", 0.3 + 0.1 * seed) for seed in (0, 1)]
    rows += [row(seed, "strict", 0.31 + 0.1 * seed) for seed in (1, 0)]
    text = study.tables(rows)
    assert "| local, strict | .360 (.071) |" in text
    assert "| local, strict less DistillHash* | +.010 (.000) |" in text and "| +.010 (.000) | 1 of 1 |" in text
