"""DistillHash-contrast: its loss against a loop, its neighbourhoods, and what each option changes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from torch import nn

from distillhash.codes import Codes
from distillhash.errors import DataError, FormatError, ParameterError
from distillhash.methods import load_hasher, make_hasher
from distillhash.methods.distillhash_contrast import (
    DistillHashContrast,
    FeatureDropout,
    LinearStart,
    PlusLinear,
    add_start,
    linear_start,
    zero_last_layer,
)
from distillhash.methods.heads import Head, tanh_through_sign
from distillhash.methods.training import Batch, CachedFeatures, WithNeighbours
from distillhash.metrics.retrieval import evaluate_codes
from distillhash.supervision.agreement import root_rows, scatter_of_items
from distillhash.supervision.losses import neighbour_contrast, nt_xent


def clustered(n: int = 120, d: int = 24, seed: int = 0, noise: float = 0.5) -> NDArray[Any]:
    """Six clusters, row i in cluster i mod 6; the centres are the same for every seed."""
    centres = np.random.default_rng(99).standard_normal((6, d))
    rng = np.random.default_rng(seed)
    return np.maximum(centres[np.arange(n) % 6] + noise * rng.standard_normal((n, d)), 0).astype(np.float32)


def fitted(
    x: NDArray[Any],
    views: NDArray[Any] | None = None,
    teacher: NDArray[Any] | None = None,
    n_bits: int = 12,
    **options: Any,
) -> Any:
    hasher = make_hasher("distillhash-contrast", n_bits, **{"epochs": 3, "hidden": 32, "start": 3.0, **options})
    return hasher.fit(x, views=views, teacher=teacher)


def test_tanh_through_sign() -> None:
    outputs = torch.tensor([[-0.3, 0.0, 2.0]], requires_grad=True)
    signs = tanh_through_sign(outputs)
    assert signs.tolist() == [[-1, 1, 1]]
    torch.autograd.backward(signs, torch.ones(1, 3))
    assert outputs.grad is not None
    np.testing.assert_allclose(outputs.grad, 1 - np.tanh([[-0.3, 0, 2]]) ** 2, rtol=1e-6)


def test_loss_equals_a_loop() -> None:
    rng = np.random.default_rng(0)
    codes = rng.standard_normal((9, 5))
    positives = rng.random((9, 9)) < 0.3
    positives[3] = False  # a row without positives counts nothing
    total, count = 0.0, 0
    for i in range(9):
        cosines = [codes[i] @ c / np.sqrt(codes[i] @ codes[i] * (c @ c)) / 0.4 for c in codes]
        others = [j for j in range(9) if j != i]
        log_sum = np.log(sum(np.exp(cosines[j]) for j in others))
        mine = [j for j in others if positives[i, j]]
        if mine:
            total += np.mean([log_sum - cosines[j] for j in mine])
            count += 1
    found = neighbour_contrast(torch.from_numpy(codes), torch.from_numpy(positives), temperature=0.4)
    assert float(found) == pytest.approx(total / count)
    assert float(neighbour_contrast(torch.from_numpy(codes), torch.zeros(9, 9, dtype=torch.bool), temperature=1)) == 0


def test_one_positive_a_row_is_nt_xent() -> None:
    codes = torch.from_numpy(np.random.default_rng(0).standard_normal((8, 5)))
    partners = torch.eye(8, dtype=torch.bool).roll(4, dims=0)
    one = neighbour_contrast(codes, partners, temperature=0.5)
    assert float(one) == pytest.approx(float(nt_xent(*codes.chunk(2), temperature=0.5)))


def test_batches_hold_neighbours_and_say_who_is_positive() -> None:
    x = np.arange(10, dtype=np.float32)[:, None]
    lists = np.array([[(i + 1) % 10, (i + 2) % 10] for i in range(10)], np.int32)
    rows = np.array([0, 4, 7])
    inputs, drawn, (positives,) = WithNeighbours(CachedFeatures(x), lists).batch(rows, np.random.default_rng(0))
    batch = inputs.numpy().ravel().astype(int)
    np.testing.assert_array_equal(batch, drawn)
    np.testing.assert_array_equal(batch[:3], rows)
    assert all(batch[3 + i] in lists[row] for i, row in enumerate(rows))
    found = positives.numpy()
    for a, i in enumerate(batch):
        for b, j in enumerate(batch):
            assert found[a, b] == (i == j or j in lists[i] or i in lists[j])
    only_drawn = WithNeighbours(CachedFeatures(x), lists, all_positives=False)
    (one,) = only_drawn.batch(rows, np.random.default_rng(0)).targets
    np.testing.assert_array_equal(one, np.roll(np.eye(6, dtype=bool), 3, axis=0))


def test_neighbourhoods_hold_their_share_and_follow_the_clusters() -> None:
    hasher = fitted(clustered(), neighbourhood=0.1)
    assert hasher.neighbours_.shape == (120, 12)
    own = np.arange(120)[:, None]
    assert not (hasher.neighbours_ == own).any()
    assert (hasher.neighbours_ % 6 == own % 6).mean() > 0.95
    assert fitted(clustered(), neighbourhood=0.001).neighbours_.shape == (120, 5)
    assert fitted(clustered(4)).neighbours_.shape == (4, 3)


def test_parts_bound_the_memory_and_keep_neighbours_inside() -> None:
    x = clustered(130)
    hasher = fitted(x, part=50, neighbourhood=0.2)
    parts = np.array_split(np.random.default_rng(0).permutation(130), 3)
    part_of = np.empty(130, int)
    for number, part in enumerate(parts):
        part_of[part] = number
    assert hasher.neighbours_.shape == (130, 9)  # a fifth of the smallest part, 43
    assert (part_of[hasher.neighbours_] == part_of[:, None]).all()
    assert (hasher.neighbours_ % 6 == np.arange(130)[:, None] % 6).mean() > 0.6


def test_views_decide_what_the_metric_ignores() -> None:
    # The kind of an item is small in the features; a large part is noise, which its views draw anew.
    kind = np.arange(200) % 4

    def seen(seed: int) -> NDArray[np.float32]:
        drawn = np.random.default_rng(seed)
        return np.hstack(
            [np.eye(4)[kind] + 0.2 * drawn.standard_normal((200, 4)), 2 * drawn.standard_normal((200, 20))]
        ).astype(np.float32)

    x, views = seen(0), np.stack([seen(1), seen(2)])
    purity = {
        metric: float((kind[hasher.neighbours_] == kind[:, None]).mean())
        for metric in ("invariant", "cosine")
        for hasher in [fitted(x, views, metric=metric, root=False, plain_share=0.0)]
    }
    assert purity["invariant"] > purity["cosine"] + 0.2


def test_the_teacher_decides_who_is_near_and_where_the_head_starts() -> None:
    # The kind of an item is plain in the teacher's features alone.
    kind, x = np.arange(200) % 4, np.random.default_rng(1).standard_normal((200, 24)).astype(np.float32)
    x[:, :4] += np.eye(4, dtype=np.float32)[kind]
    better = x.copy()
    better[:, :4] += 9 * np.eye(4, dtype=np.float32)[kind]
    options: dict[str, Any] = {"root": False, "metric": "cosine", "plain_share": 0.0}
    alone, guided = fitted(x, **options), fitted(x, teacher=better, **options)
    purity = [float((kind[hasher.neighbours_] == kind[:, None]).mean()) for hasher in (alone, guided)]
    assert purity[1] > purity[0] + 0.2
    started = fitted(x, teacher=better, learning_rate=1e-12, **options).encode(x)
    expected = linear_start(x, x, better, 12, spread=1.0, plain_share=0.0, seed=0)
    assert started == Codes.from_projection((x - x.mean(axis=0)) @ expected.features)
    with pytest.raises(DataError, match=r"the teacher's features must be \(200, 24\), got \(200, 5\)"):
        fitted(x, teacher=better[:, :5])


@pytest.mark.parametrize(
    "option",
    [
        {"root": False}, {"metric": "cosine"}, {"directions": 2}, {"emphasis": 1.0}, {"neighbourhood": 0.2}, {"agreement": "cosine"},
        {"positives": "one"}, {"gradient": "identity"}, {"gradient": "relaxed"}, {"temperature": 0.1},
        {"dropout": 0.0}, {"part": 60}, {"start": 0.0}, {"start": 1.0}, {"plain_share": 0.5},
    ],
)  # fmt: skip
def test_every_option_matters(option: dict[str, Any]) -> None:
    x = clustered(noise=1.0)
    views = np.stack([clustered(noise=1.0, seed=s) for s in (1, 2)])
    plain, changed = (fitted(x, views, **{"plain_share": 0.0} | settings).project(x) for settings in ({}, option))
    assert not np.allclose(plain, changed)


@pytest.mark.parametrize(
    ("gradient", "codes", "slopes"),
    [
        ("tanh", np.sign, lambda u: 1 - np.tanh(u) ** 2),
        ("identity", np.sign, np.ones_like),
        ("relaxed", np.tanh, lambda u: 1 - np.tanh(u) ** 2),
    ],
)
def test_what_stands_for_the_codes_in_training(gradient: Any, codes: Any, slopes: Any) -> None:
    rng = np.random.default_rng(0)
    u = rng.standard_normal((6, 4))
    positives = rng.random((6, 6)) < 0.5
    positives |= positives.T

    def loss(b: NDArray[Any]) -> float:
        """A formula re-typed: Khosla et al. 2020, Eq. 2."""
        unit, total, counted = b / np.sqrt((b**2).sum(axis=1, keepdims=True)), 0.0, 0
        for i in range(6):
            others = [j for j in range(6) if j != i]
            partition = np.log(sum(np.exp(unit[i] @ unit[j] / 0.5) for j in others))
            near = [j for j in others if positives[i, j]]
            if near:
                total += np.mean([partition - unit[i] @ unit[j] / 0.5 for j in near])
                counted += 1
        return total / counted

    hasher = DistillHashContrast(4, gradient=gradient)
    hasher.temperature_ = 0.5
    outputs = torch.tensor(u, requires_grad=True)
    value = hasher.batch_loss(outputs, Batch(outputs, np.arange(6), (torch.from_numpy(positives),)))
    assert value.item() == pytest.approx(loss(codes(u)))
    value.backward()  # type: ignore[no-untyped-call]  # torch's own
    step = 1e-6 * np.eye(24).reshape(24, 6, 4)
    slope = np.array([(loss(codes(u) + part) - loss(codes(u) - part)) / 2e-6 for part in step]).reshape(6, 4)
    assert outputs.grad is not None
    np.testing.assert_allclose(outputs.grad.numpy(), slope * slopes(u), atol=1e-6)


def test_without_views_rows_are_seen_so_often_and_no_more() -> None:
    x = clustered(100)
    passes = {seen: len(fitted(x, max_seen=seen).history_["loss"]) for seen in (1, 100, 249, 251, 10_000)}
    assert passes == {1: 1, 100: 1, 249: 2, 251: 3, 10_000: 3}  # of the 3 that were asked for
    assert len(fitted(x, x[None], max_seen=100).history_["loss"]) == 3


def test_dropout_is_of_training_alone_and_leaves_the_mean_as_it_is() -> None:
    x = torch.from_numpy(np.random.default_rng(0).uniform(1, 2, (400, 50)).astype(np.float32))
    module = FeatureDropout(0.3, torch.Generator().manual_seed(0))
    dropped = module(x)
    kept = dropped != 0
    assert float(kept.float().mean()) == pytest.approx(0.7, abs=0.01)
    torch.testing.assert_close(dropped[kept], x[kept] / 0.7)
    assert torch.equal(module.eval()(x), x)


def test_dropout_draws_from_the_seed_and_not_from_torch() -> None:
    x = clustered()
    torch.manual_seed(1)
    first = fitted(x).project(x)
    torch.manual_seed(2)
    np.testing.assert_array_equal(fitted(x).project(x), first)


def test_the_temperature_depends_on_views_unless_it_is_given() -> None:
    x = clustered()
    views = np.stack([clustered(seed=s) for s in (1, 2)])
    np.testing.assert_array_equal(fitted(x).project(x), fitted(x, temperature=0.5).project(x))
    np.testing.assert_array_equal(fitted(x, views).project(x), fitted(x, views, temperature=0.3).project(x))


@pytest.mark.parametrize(("n_bits", "few"), [(8, 3.0), (16, 6.0), (64, 96.0), (128, 384.0), (1024, 3072.0)])
def test_fewer_images_start_further_out_the_longer_the_code(n_bits: int, few: float) -> None:
    x = clustered(2100)
    options: dict[str, Any] = {"n_bits": n_bits, "epochs": 1}
    many = fitted(x, start=3.0, plain_share=0.0, **options).project(x)
    np.testing.assert_array_equal(fitted(x, start=None, **options).project(x), many)
    x = x[:500]
    expected = fitted(x, start=few, plain_share=0.9375, **options)
    found = fitted(x, start=None, **options)
    np.testing.assert_array_equal(found.neighbours_, expected.neighbours_)
    np.testing.assert_array_equal(found.project(x), expected.project(x))


def test_the_further_out_the_start_the_less_of_it_changes() -> None:
    x = clustered(500)
    roots = root_rows(x)
    start = linear_start(roots, x, None, 12, spread=1.0, plain_share=0.9375, seed=0)
    assert start.plain is not None
    begun = Codes.from_projection(
        (roots - roots.mean(axis=0)) @ start.features + (x - x.mean(axis=0)) @ start.plain
    ).signs()
    changed = [int((fitted(x, start=spread, epochs=20).encode(x).signs() != begun).sum()) for spread in (1.0, 12.0)]
    assert changed[1] < changed[0] / 2


@pytest.mark.parametrize(("share", "agreeing"), [(0.3, 6), (0.6, 3), (1.0, 0)])
@pytest.mark.parametrize("part", [60, 1000])
def test_a_share_of_the_neighbours_are_those_of_plain_features(share: float, agreeing: int, part: int) -> None:
    x = clustered(90, noise=1.0)
    options: dict[str, Any] = {"neighbourhood": 8 / min(len(x), 45 if part == 60 else 90), "part": part}
    without = fitted(x, plain_share=0.0, **options).neighbours_
    found = fitted(x, plain_share=share, **options).neighbours_
    assert found.shape == without.shape == (90, 8)
    np.testing.assert_array_equal(found[:, :agreeing], without[:, :agreeing])
    order = np.random.default_rng(0).permutation(90)
    for rows in [order[:45], order[45:]] if part == 60 else [order]:
        centred = x[np.sort(rows)] - x[rows].mean(axis=0)
        cosines = centred @ centred.T / np.outer(*[np.linalg.norm(centred, axis=1)] * 2)
        for place, row in enumerate(np.sort(rows)):
            first = without[row, :agreeing].tolist()
            others = [int(np.sort(rows)[j]) for j in np.argsort(-cosines[place]) if j != place]
            assert found[row].tolist() == (first + [item for item in others if item not in first])[:8]


@pytest.mark.parametrize("metric", ["invariant", "cosine"])
def test_blocks_of_rows_change_nothing(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = clustered(100, noise=1.0)
    views = np.stack([clustered(100, noise=1.0, seed=s) for s in (1, 2)])
    teacher = clustered(100, noise=0.5, seed=3)
    whole = fitted(x, views, teacher, metric=metric)
    for module in ("methods.distillhash_contrast", "methods.heads", "supervision.agreement"):
        monkeypatch.setattr(f"distillhash.{module}.row_blocks", lambda n: [slice(0, 33), slice(33, n)])
    np.testing.assert_allclose(scatter_of_items(x), np.cov(x, rowvar=False), rtol=1e-5, atol=1e-7)
    parted = fitted(x, views, teacher, metric=metric)
    np.testing.assert_array_equal(parted.neighbours_, whole.neighbours_)
    np.testing.assert_allclose(parted.project(x), whole.project(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("hidden", [0, 32])
def test_a_model_keeps_what_it_does_with_plain_features(hidden: int, tmp_path: Path) -> None:
    x = clustered(300)
    hasher = fitted(x, hidden=hidden)
    hasher.save(tmp_path / "model")
    loaded = load_hasher(tmp_path / "model")
    np.testing.assert_array_equal(loaded.project(x), hasher.project(x))
    without = dict(hasher.state())
    assert without.pop("plain").shape == (24, 12)
    earlier = make_hasher("distillhash-contrast", 12, hidden=hidden).restore(hasher.config(), without)
    np.testing.assert_allclose(
        hasher.project(x) - earlier.project(x), x @ hasher.state()["plain"], rtol=1e-2, atol=1e-2
    )
    with pytest.raises(FormatError, match="plain weights of shape"):
        make_hasher("distillhash-contrast", 12, hidden=hidden).restore(
            hasher.config(), without | {"plain": np.zeros((24, 11))}
        )


def test_training_lowers_the_loss_and_orders_the_clusters() -> None:
    x = clustered(600)
    hasher = fitted(x, epochs=60, neighbourhood=0.15, start=3.0)
    assert hasher.history_["loss"][-1] < hasher.history_["loss"][0]
    new, classes = clustered(300, seed=5), np.arange(300) % 6
    codes = hasher.encode(new)
    assert evaluate_codes(codes, codes, classes, classes)["map"] > 0.9


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"metric": "l2"}, "metric must be one of invariant, cosine"),
        ({"agreement": "x"}, "agreement must be one of"),
        ({"positives": "two"}, "positives must be one of"),
        ({"gradient": "none"}, "gradient must be one of"),
        ({"temperature": 0}, "temperature must be above 0"),
        ({"directions": 0}, "directions must be at least 1"),
        ({"emphasis": -1}, "emphasis must be at least 0"),
        ({"start": -1}, "start must be at least 0"),
        ({"neighbourhood": 0}, "neighbourhood must be above 0"),
        ({"neighbourhood": 1.5}, "neighbourhood must be above 0 and at most 1"),
        ({"plain_share": 1.5}, "plain_share must be at least 0 and at most 1, got 1.5"),
        ({"dropout": -0.1}, "dropout must be at least 0"),
        ({"dropout": 1}, "dropout must be at least 0 and below 1"),
        ({"max_seen": 0}, "max_seen must be at least 1"),
        ({"part": 3}, "part must be at least 20"),
    ],
)
def test_settings_out_of_range(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        make_hasher("distillhash-contrast", 8, **option)


def items(n: int = 60, d: int = 10, seed: int = 0) -> NDArray[Any]:
    return np.asarray(
        np.random.default_rng(seed).standard_normal((n, d)) @ np.random.default_rng(9).standard_normal((d, d))
    )


def unit(rows: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def started(x: NDArray[Any], n_bits: int, *, teacher: NDArray[Any] | None = None, **options: Any) -> LinearStart:
    return linear_start(x, x, teacher, n_bits, **{"spread": 3.0, "plain_share": 0.0, "seed": 0, **options})


def predictions(x: NDArray[Any], aim: NDArray[Any]) -> NDArray[Any]:
    off = x - x.mean(axis=0)
    ridge = Ridge(alpha=float(np.square(off).sum() / len(x))).fit(x, aim)
    return np.asarray(ridge.predict(x) - aim.mean(axis=0))


@pytest.mark.parametrize("guided", [False, True])
def test_it_is_itq_of_what_a_ridge_regression_predicts(guided: bool) -> None:
    x = items()
    better = np.tanh(x @ np.random.default_rng(3).standard_normal((10, 10)) / 5)
    off, aim = x - x.mean(axis=0), better if guided else x
    predicted = predictions(x, aim)
    itq = make_hasher("itq", 6, seed=4).fit(unit(predicted).astype(np.float32))
    start, plain = started(x, 6, teacher=better if guided else None, seed=4)
    assert plain is None
    assert np.std(off @ start) == pytest.approx(3.0)
    expected = predicted @ itq.state()["weight"]
    np.testing.assert_allclose(off @ start, expected * (3.0 / expected.std()), atol=1e-5)


def test_plain_features_stand_beside_the_prediction() -> None:
    x, better = items(), items(seed=1)
    plain = np.exp(x / 4)
    predicted, off = predictions(x, better), plain - plain.mean(axis=0)
    # Scores along principal directions, each times the fourth root of its deviation, and back.
    principal = PCA().fit(plain)
    deviations = principal.singular_values_ / principal.singular_values_[0]
    weighted = (off @ principal.components_.T) * deviations**0.25
    emphasised = weighted @ principal.components_
    both = np.hstack(
        [
            np.sqrt(0.3) * predicted / np.linalg.norm(predicted, axis=1).mean(),
            np.sqrt(0.7) * emphasised / np.linalg.norm(emphasised, axis=1).mean(),
        ]
    )
    start = linear_start(x, plain, better, 6, spread=2.0, plain_share=0.7, seed=4)
    assert start.plain is not None
    outputs = (x - x.mean(axis=0)) @ start.features + off @ start.plain
    assert np.std(outputs) == pytest.approx(2.0)
    itq = make_hasher("itq", 6, seed=4).fit(unit(both).astype(np.float32))
    expected = both @ itq.state()["weight"]
    np.testing.assert_allclose(outputs, expected * (2.0 / expected.std()), atol=1e-4)


@pytest.mark.parametrize("plain_share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("n", "n_bits"), [(60, 10), (60, 33), (7, 8), (2, 1), (2, 127)])
def test_any_number_of_bits_has_a_start(n: int, n_bits: int, plain_share: float) -> None:
    start = started(items(n), n_bits, spread=2.0, plain_share=plain_share)
    weight = start.features if start.plain is None else start.features + start.plain
    assert weight.shape == (10, n_bits) and np.isfinite(weight).all()
    x = items(n)
    assert np.std((x - x.mean(axis=0)) @ weight) == pytest.approx(2.0)
    if n > 2:
        assert len(np.unique(weight, axis=1).T) == n_bits  # no two bits start alike


@pytest.mark.parametrize("plain_share", [0.0, 0.5])
def test_equal_items_start_from_finite_numbers(plain_share: float) -> None:
    start = started(np.ones((5, 3)), 2, teacher=np.ones((5, 3)), plain_share=plain_share)
    assert all(np.isfinite(weight).all() for weight in start if weight is not None)


def test_of_many_rows_itq_looks_at_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distillhash.methods.distillhash_contrast.ROTATED", 40)
    x = items()
    predicted = predictions(x, x)
    rows = np.sort(np.random.default_rng(4).choice(60, 40, replace=False))
    itq = make_hasher("itq", 6, seed=4).fit(unit(predicted[rows]).astype(np.float32))
    expected = predicted @ itq.state()["weight"]
    start = started(x, 6, seed=4).features
    np.testing.assert_allclose((x - x.mean(axis=0)) @ start, expected * (3.0 / expected.std()), atol=1e-5)


def test_blocks_of_rows_change_no_start(monkeypatch: pytest.MonkeyPatch) -> None:
    x = items(100)
    whole = started(x, 6, plain_share=0.5)
    monkeypatch.setattr(
        "distillhash.methods.distillhash_contrast.row_blocks", lambda n: [slice(0, 33), slice(33, 66), slice(66, n)]
    )
    np.testing.assert_allclose(started(x, 6, plain_share=0.5).features, whole.features, rtol=1e-6)


@pytest.mark.parametrize("hidden", [0, 16])
def test_folded_layers_give_what_the_network_gives(hidden: int) -> None:
    x = items().astype(np.float32)
    head = Head(x, 6, 0, hidden)
    start = started(x, 6).features
    zero_last_layer(head)
    network = PlusLinear(head, head.mean, start)
    off = x - head.mean
    with torch.no_grad():
        np.testing.assert_allclose(network(torch.from_numpy(x)).numpy(), off @ start, atol=1e-4)  # nothing learned yet
        for layer in network.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight)
                nn.init.normal_(layer.bias)
        expected = network(torch.from_numpy(x)).numpy()
    outputs = off
    for number, (weight, bias) in enumerate(add_start(head.fold(), start)):
        outputs = (np.maximum(outputs, 0) if number else outputs) @ weight + bias
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-3)
