"""DistillHash-nested: the scale that features have, the two parts, and what is chosen from the rows alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from distillhash.errors import FormatError
from distillhash.methods import load_hasher, make_hasher
from distillhash.methods.distillhash_contrast import DistillHashContrast
from distillhash.methods.distillhash_nested import DistillHashNested, neighbourhood_of
from distillhash.supervision.agreement import half_agreement


def grouped(n_groups: int, size: int, noise: float, d: int = 32) -> NDArray[np.float32]:
    """Rows around random centres, ``size`` around each."""
    rng = np.random.default_rng(0)
    centres = np.repeat(rng.standard_normal((n_groups, d)), size, axis=0)
    rows = centres + noise * rng.standard_normal(centres.shape)
    return rng.permutation(rows).astype(np.float32)


def unit(x: NDArray[Any]) -> NDArray[np.float64]:
    wide = x.astype(np.float64)
    return np.asarray(wide / np.sqrt((wide**2).sum(axis=1, keepdims=True)))


def test_half_agreement_equals_a_loop() -> None:
    x = grouped(10, 6, 1.0, d=7)
    rng = np.random.default_rng(3)
    order, queries = rng.permutation(7), sorted(rng.permutation(60)[:20].tolist())
    lists: list[dict[int, list[int]]] = []
    for half in (order[:3], order[3:]):
        part = x[:, half].astype(float)
        part = part - part.mean(axis=0)
        part /= np.sqrt((part**2).sum(axis=1, keepdims=True))
        near = {}
        for i in queries:
            others = [j for j in range(60) if j != i]
            near[i] = sorted(others, key=lambda j: -float(part[i] @ part[j]))
        lists.append(near)
    for k, found in zip((2, 5), half_agreement(x, (2, 5), 3, most_queries=20), strict=True):
        overlap = np.mean([len(set(lists[0][i][:k]) & set(lists[1][i][:k])) / k for i in queries])
        assert found == pytest.approx((overlap - k / 59) / (1 - k / 59))


def test_the_scale_is_that_of_the_groups() -> None:
    assert neighbourhood_of(grouped(120, 5, 0.3), 0, 600) == 8
    assert neighbourhood_of(grouped(5, 120, 1.0), 0, 600) == 12  # 2% of 600
    assert neighbourhood_of(grouped(5, 20, 1.0), 0, 100) == 2  # of so few rows there is no smaller one


def test_views_are_wanted_at_the_coarse_scale_alone() -> None:
    small, large = grouped(120, 5, 0.3), grouped(5, 120, 1.0)
    assert make_hasher("distillhash-nested", 32).wants_views(large)
    assert not make_hasher("distillhash-nested", 32).wants_views(small)
    assert not make_hasher("distillhash-nested", 32, preserve="neighbours").wants_views(large)
    assert make_hasher("distillhash-contrast", 32).wants_views(small) and not make_hasher("itq", 32).wants_views(large)


def test_large_kinds_give_two_parts() -> None:
    x = grouped(5, 90, 1.0, d=24)
    hasher: Any = make_hasher("distillhash-nested", 40, seed=1).fit(x)
    codes = hasher.encode(x)
    assert codes.class_bits == hasher.class_bits == 16
    assert hasher.history_["chosen"] == {"neighbourhood": 9, "fine": False, "class_bits": 16}
    rows = unit(x)
    alone = DistillHashContrast(16, seed=1).fit(rows).encode(rows)
    near = make_hasher("itq", 24, seed=1).fit(rows).encode(rows)
    assert np.array_equal(codes.signs(), np.hstack([alone.signs(), near.signs()]))
    projection = np.abs(hasher.project(x))
    assert projection[:, :16].mean() == pytest.approx(0.5, rel=1e-3)  # a class bit counts half in a projection
    assert projection[:, 16:].mean() == pytest.approx(1, rel=1e-3)


def test_small_groups_give_one_part_where_it_keeps_the_neighbours() -> None:
    x = grouped(90, 5, 0.5, d=64)
    hasher: Any = make_hasher("distillhash-nested", 64).fit(x)
    recalls = hasher.history_["chosen"]["recalls"]
    assert recalls["temperature 0.2"] >= 0.98 * recalls["itq"] and len(recalls) == 2
    assert hasher.class_bits == hasher.encode(x).class_bits == 0
    options: Any = {"neighbourhood": 8 / 450, "temperature": 0.2, "plain_share": 0.25, "root": False}
    assert hasher.encode(x) == DistillHashContrast(64, **options).fit(unit(x)).encode(unit(x))


def test_small_groups_have_codes_of_itq_where_it_does_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("distillhash.methods.distillhash_nested.TOLERANCE", -9.0)  # ten times the recall is wanted
    x = grouped(90, 5, 0.5, d=64)
    hasher: Any = make_hasher("distillhash-nested", 64).fit(x)
    assert len(hasher.history_["chosen"]["recalls"]) == 3
    assert hasher.class_bits == 0
    assert hasher.encode(x) == make_hasher("itq", 64).fit(unit(x)).encode(unit(x))
    hasher.save(tmp_path)
    assert load_hasher(tmp_path).encode(x) == hasher.encode(x)


def test_short_codes_have_one_part() -> None:
    x = grouped(4, 20, 1.0, d=8)
    for n_bits, class_bits in ((16, 0), (64, 0)):  # 64: more bits than features
        hasher = make_hasher("distillhash-nested", n_bits).fit(x)
        assert (hasher.class_bits, hasher.encode(x).n_bits) == (class_bits, n_bits)


def test_codes_do_not_depend_on_lengths() -> None:
    x = grouped(4, 20, 1.0)
    hasher = make_hasher("distillhash-nested", 32).fit(x)
    assert hasher.encode(x) == hasher.encode(4 * x)


def test_classes_alone_have_wider_neighbourhoods() -> None:
    x = grouped(90, 5, 0.5, d=64)
    hasher = make_hasher("distillhash-nested", 64, preserve="classes").fit(x)
    options: Any = {"neighbourhood": 12 / 450, "temperature": 0.3, "root": False, "gradient": "relaxed"}
    assert hasher.encode(x) == DistillHashContrast(64, **options).fit(unit(x)).encode(unit(x))


@pytest.mark.parametrize("preserve", ["classes", "neighbours"])
def test_one_aim_gives_one_part(preserve: str) -> None:
    x = grouped(4, 20, 1.0)
    hasher: Any = make_hasher("distillhash-nested", 32, preserve=preserve).fit(x)
    part = hasher.class_part_ if preserve == "classes" else hasher.neighbour_part_
    assert hasher.class_bits == 0 and hasher.encode(x) == part.encode(unit(x))


def test_a_folder_keeps_both_parts(tmp_path: Path) -> None:
    x = grouped(4, 20, 1.0)
    hasher = make_hasher("distillhash-nested", 32).fit(x)
    hasher.save(tmp_path)
    loaded = load_hasher(tmp_path)
    assert isinstance(loaded, DistillHashNested) and loaded.class_bits == 16
    assert loaded.encode(x) == hasher.encode(x)
    assert np.array_equal(loaded.project(x), hasher.project(x))


@pytest.mark.parametrize(
    "parts",
    [
        None,
        [],
        {},
        {"class": None},
        {"other": {"n_bits": 32}},
        {"class": {"n_bits": 32}, "neighbour": {"n_bits": 16}},
        {"class": {"n_bits": 16}, "neighbour": {"n_bits": 16}, "third": {"n_bits": 1}},
        {"class": {"n_bits": 16, "hidden": "much"}, "neighbour": {"n_bits": 16}},
    ],
)
def test_parts_that_somebody_made_up_are_refused(parts: Any) -> None:
    hasher = make_hasher("distillhash-nested", 32).fit(grouped(4, 20, 1.0))
    with pytest.raises(FormatError, match="does not hold a distillhash-nested of 32 bits"):
        make_hasher("distillhash-nested", 32).restore({**hasher.config(), "parts": parts}, hasher.state())
