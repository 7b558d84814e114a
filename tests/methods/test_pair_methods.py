"""SSDH, DistillHash* and DistillHash: what they train on, and that training does what the formulas say."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from distillhash.errors import DataError, ParameterError
from distillhash.methods import make_hasher
from distillhash.methods.base import TrainingSet
from distillhash.methods.distillhash import DistillHash
from distillhash.methods.heads import Data
from distillhash.methods.training import CachedFeatures, TrainableImages, TrainingSettings, train
from distillhash.supervision.flip_rate import distil_pairs
from distillhash.supervision.neighbours import nearest_neighbours
from distillhash.supervision.similarity import (
    LabelRule,
    cosine_distances,
    fit_half_gaussians,
    label_pairs,
    pair_thresholds,
)


def pair_hasher(method: str, n_bits: int, **options: Any) -> Any:
    """A hasher whose learned attributes the tests look at."""
    return make_hasher(method, n_bits, **options)


def clustered(n: int = 90, d: int = 20, seed: int = 0) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((6, d))
    return np.maximum(centres[np.arange(n) % 6] + 0.6 * rng.standard_normal((n, d)), 0).astype(np.float32)


def initial_pairs(x: NDArray[Any], alpha: float, beta: float, rule: LabelRule = "three-way") -> NDArray[Any]:
    distances = cosine_distances(x)
    thresholds = pair_thresholds(distances, fit_half_gaussians(distances), alpha=alpha, beta=beta)
    return label_pairs(distances, thresholds, rule=rule)


@pytest.mark.parametrize("method", ["ssdh", "distillhash-initial"])
def test_initial_labels_are_trained_on_as_they_are(method: str) -> None:
    x = clustered()
    hasher = pair_hasher(method, 8, alpha=1.0, beta=0.5, epochs=2).fit(x)
    np.testing.assert_array_equal(hasher.pairs_, initial_pairs(x, 1.0, 0.5))
    assert len(hasher.history_["loss"]) == 2
    assert hasher.history_["diagnosis"][0]["step"] == "initial pairs"


def test_local_estimate_is_the_log_odds_of_neighbouring_labels() -> None:
    x = clustered()
    hasher = pair_hasher("distillhash", 8, alpha=1.0, beta=0.0, local_neighbours=5, epochs=1).fit(x)
    noisy = initial_pairs(x, 1.0, 0.0)
    around = nearest_neighbours(cosine_distances(x), 5, include_self=True)
    logits = np.zeros((len(x), len(x)), np.float32)
    for i in range(len(x)):
        for j in range(len(x)):
            block = noisy[np.ix_(around[i], around[j])]
            positive, negative = (block > 0).sum(), (block < 0).sum()
            with np.errstate(divide="ignore"):
                logits[i, j] = np.log(positive) - np.log(negative) if positive or negative else 0
    found = hasher._local_estimate(cosine_distances(x))
    np.testing.assert_allclose(found, logits, atol=1e-4)
    # Ties at the rule's boundary depend on the last bit of the logits, so the labels are compared on the method's own.
    expected = distil_pairs(found, nearest_neighbours(cosine_distances(x), 4), keep_certain=True)
    np.testing.assert_array_equal(hasher.pairs_, expected)


def test_one_labelled_pair_among_all_neighbour_pairs_makes_an_estimate_certain() -> None:
    x = clustered()
    hasher = pair_hasher("distillhash", 8, local_neighbours=30)
    hasher.initial_pairs_ = np.zeros((90, 90), np.int8)
    hasher.initial_pairs_[0, 6] = hasher.initial_pairs_[6, 0] = 1
    around = nearest_neighbours(cosine_distances(x), 30, include_self=True)
    near_0, near_6 = (around == 0).any(axis=1), (around == 6).any(axis=1)
    one_of_900 = np.outer(near_0, near_6) | np.outer(near_6, near_0)
    found = hasher._local_estimate(cosine_distances(x))
    np.testing.assert_array_equal(found, np.where(one_of_900, np.inf, 0))
    pairs = distil_pairs(found, around[:, 1:5], keep_certain=True)
    np.testing.assert_array_equal(pairs, one_of_900 & ~np.eye(90, dtype=bool))


@pytest.mark.parametrize("preset", ["paper", "code", "recommended"])
def test_presets_train_and_are_recorded(preset: str) -> None:
    x = clustered()
    overrides: dict[str, Any] = {"epochs": 2, "estimate_epochs": 30, "alpha": 1.0, "beta": 0.0}
    if preset == "paper":
        overrides["learning_rate"] = 0.01
    hasher = pair_hasher("distillhash", 8, preset=preset, **overrides).fit(x)
    assert hasher.get_params() == {
        **pair_hasher("distillhash", 8).get_params(),
        **DistillHash.PRESETS[preset],
        **overrides,
    }
    steps = [row["step"] for row in hasher.history_["diagnosis"]]
    assert steps == ["initial pairs", "distilled pairs"]
    assert sum(hasher.history_["probability_histogram"]) == 90 * 89
    assert sum(sum(row.values()) for row in hasher.history_["confusion"].values()) == 90 * 89


@pytest.mark.parametrize(
    "options",
    [
        {"estimate": "network"},
        {"estimate": "held-out"},
        {"bounds": "unshared"},
        {"bounds": "diagonal", "estimate": "network"},
        {"candidates": "labelled"},
        {"include_self": True},
        {"skip_for_positive": 2},
        {"labels": "two-way"},
        {"loss": "squared"},
        {"relaxation": "none"},
        {"self_pairs": True},
        {"mode": "centre"},
        {"self_distances": True},
        {"optimizer": "sgd"},
        {"weight_decay": 0.1},
        {"scale": 2.0},
        {"estimate_scale": 2.0, "estimate": "network"},
        {"n_outputs": 7, "estimate": "network"},
        {"n_neighbours": 9},
        {"local_neighbours": 3},
        {"adam_eps": 1.0},
    ],
    ids=str,
)
def test_every_option_changes_the_result(options: dict[str, Any]) -> None:
    x = clustered()
    base: dict[str, Any] = {"alpha": 1.0, "beta": 0.0, "epochs": 2, "estimate_epochs": 20}
    estimate = {"estimate": options["estimate"]} if "estimate" in options and len(options) > 1 else {}
    plain = pair_hasher("distillhash", 8, **base, **estimate)
    changed = pair_hasher("distillhash", 8, **base, **options)
    try:
        changed.fit(x)
    except DataError as error:  # the released slip may distil nothing of one sign, and says so
        assert "pairs were distilled" in str(error)
        return
    plain.fit(x)
    assert not np.array_equal(plain.project(x), changed.project(x))


def test_candidates_labelled_keeps_to_the_initial_pairs() -> None:
    hasher = pair_hasher("distillhash", 8, alpha=1.0, beta=0.5, candidates="labelled", epochs=1).fit(clustered())
    assert not hasher.pairs_[hasher.initial_pairs_ == 0].any()


def test_held_out_reads_no_pair_from_a_network_that_saw_it() -> None:
    x = clustered()
    hasher = pair_hasher("distillhash", 8, alpha=1.0, beta=0.0, estimate="held-out", estimate_epochs=60, epochs=1).fit(
        x
    )
    seen = pair_hasher("distillhash", 8, alpha=1.0, beta=0.0, estimate="network", estimate_epochs=60, epochs=1).fit(x)
    # A network reads its own training pairs more surely than unseen ones: its histogram has more mass at the ends.
    ends = [sum(np.array(h.history_["probability_histogram"])[[0, 1, -2, -1]]) for h in (hasher, seen)]
    assert ends[0] < ends[1]
    assert len(hasher.history_["estimate_loss"]) == 2


def test_nothing_to_distil_is_said() -> None:
    x = np.random.default_rng(0).random((12, 5)).astype(np.float32)
    with pytest.raises(DataError, match=r"no (dis)?similar pairs were distilled from 12 items"):
        pair_hasher("distillhash", 4, estimate="network", estimate_scale=1e-6, estimate_epochs=1).fit(x)


def test_large_training_sets_are_sampled() -> None:
    hasher = pair_hasher("ssdh", 4, max_train=40, epochs=1, seed=5).fit(clustered(90))
    rows = hasher.history_["rows"]
    assert len(rows) == len(set(rows.tolist())) == 40
    assert hasher.pairs_.shape == (40, 40)


def test_views_are_drawn_in_training() -> None:
    x = clustered()
    views = np.stack([x + 0.5, x * 2])
    with_views = pair_hasher("ssdh", 8, epochs=2).fit(x, views=views)
    without = pair_hasher("ssdh", 8, epochs=2).fit(x)
    assert not np.array_equal(with_views.layers_[0][0], without.layers_[0][0])
    with pytest.raises(DataError, match=r"views must be \(n_views, 90, 20\)"):
        pair_hasher("ssdh", 8).fit(x, views=views[:, :, :5])


def test_training_lowers_the_loss_and_repeats() -> None:
    x = clustered()
    first, again = (pair_hasher("distillhash-initial", 16, epochs=20).fit(x).history_["loss"] for _ in range(2))
    assert first == again
    assert first[-1] < 0.9 * first[0]


def test_a_diverging_loss_is_reported() -> None:
    with pytest.raises(DataError, match="lower learning_rate"):
        pair_hasher("ssdh", 8, optimizer="sgd", learning_rate=1e30, relaxation="none").fit(clustered())


def test_fine_tuning_trains_the_trunk_and_the_estimator_only_a_copy() -> None:
    x = clustered()
    sizes: list[int] = []

    class Doubled:
        """Inputs of twice the width, through a trunk that halves them."""

        def __len__(self) -> int:
            return len(x)

        def batch(self, rows: NDArray[np.intp], seeds: NDArray[np.int64]) -> torch.Tensor:
            sizes.append(len(rows))
            return torch.from_numpy(np.concatenate([x[rows], x[rows]], axis=1))

    trunk = torch.nn.Linear(40, 20, bias=False)
    with torch.no_grad():
        trunk.weight.copy_(torch.cat([torch.eye(20), torch.eye(20)], dim=1) / 2)
    before = trunk.weight.detach().clone()
    images = TrainableImages(Doubled(), trunk)
    hasher = pair_hasher("distillhash", 8, estimate="network", estimate_epochs=3)
    hasher.initial_pairs_ = initial_pairs(x, 1.0, 0.0)
    rows = np.arange(len(x))
    outputs = hasher._estimating_outputs(rows, Data(TrainingSet(x, images=images), rows), seed=0)
    assert outputs.shape == (90, 48)
    assert hasher.history_["estimate_loss"][0][-1] < hasher.history_["estimate_loss"][0][0]
    assert torch.equal(trunk.weight.detach(), before)
    # The head learns from the features first; at a step size of nearly 0 nothing comes after that.
    plain = pair_hasher("ssdh", 8, epochs=2).fit(x)
    tuned = pair_hasher("ssdh", 8, epochs=2, fine_tune_epochs=1, fine_tune_rate=1e-12).fit(x, images=images)
    assert tuned.history_["loss"][:2] == plain.history_["loss"] and len(tuned.history_["loss"]) == 3
    np.testing.assert_allclose(tuned.project(x), plain.project(x), atol=1e-5)
    pair_hasher("ssdh", 8, epochs=2).fit(x, images=images)
    assert not torch.equal(trunk.weight.detach(), before)
    # Normalisation keeps the statistics that the weights were learned with.
    normalised = torch.nn.Sequential(trunk, torch.nn.BatchNorm1d(20), torch.nn.Dropout(0.5))
    assert isinstance(statistics := normalised[1], torch.nn.BatchNorm1d)
    pair_hasher("ssdh", 8, epochs=1).fit(x, images=TrainableImages(Doubled(), normalised))
    assert statistics.running_mean is not None and not statistics.running_mean.any()
    assert not torch.equal(statistics.weight.detach(), torch.ones(20))
    with pytest.raises(ParameterError, match="fine_tune_rate must be above 0"):
        pair_hasher("ssdh", 8, fine_tune_rate=0.0)
    sizes.clear()
    pair_hasher("ssdh", 8, epochs=2, fine_tune_batch=9).fit(x, images=images)
    assert max(sizes) == 9
    with pytest.raises(ParameterError, match="fine_tune_batch must be at least 2"):
        pair_hasher("ssdh", 8, fine_tune_batch=1)
    with pytest.raises(ParameterError, match="itq learns from fixed features"):
        pair_hasher("itq", 8).fit(x, images=images)


def test_adam_matches_a_loop_written_out() -> None:
    # The loop itself, once more by hand: same rows, same steps, same weights.
    x = np.random.default_rng(0).standard_normal((10, 3)).astype(np.float32)
    network, twin = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    twin.load_state_dict(network.state_dict())
    train(network, CachedFeatures(x), lambda out, _: (out**2).mean(), TrainingSettings(3, 4, 0.1, "adam"), seed=4)
    optimizer = torch.optim.Adam(twin.parameters(), 0.1)
    rng = np.random.default_rng(4)
    for _ in range(3):
        order = rng.permutation(10)
        for start in (0, 4, 8):
            optimizer.zero_grad()
            (twin(torch.from_numpy(x[order[start : start + 4]])) ** 2).mean().backward()
            optimizer.step()
    torch.testing.assert_close(network.weight, twin.weight)


def test_cleanly_separated_data_is_learned_too() -> None:
    # Every neighbourhood agrees, so Theorem 1 keeps no similar pair; certain estimates carry the labels.
    rng = np.random.default_rng(0)
    cluster = np.arange(600) // 30
    x = (rng.standard_normal((20, 32))[cluster] + 0.2 * rng.standard_normal((600, 32))).astype(np.float32)
    with pytest.raises(DataError, match="no similar pairs were distilled"):
        pair_hasher("distillhash", 32, keep_certain=False).fit(x)
    signs = pair_hasher("distillhash", 32, epochs=10).fit(x).encode(x).signs().astype(int)
    distances = (32 - signs @ signs.T) / 2
    same = np.equal.outer(cluster, cluster)
    assert distances[same].mean() < distances[~same].mean() / 4
