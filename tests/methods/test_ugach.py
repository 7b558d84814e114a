"""UGACH: every term against a plain loop, the policy gradient against enumeration, the schedule by its effects."""

import itertools
import math
import time
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from distillhash.errors import ParameterError
from distillhash.methods import make_hasher
from distillhash.methods.image_text import TrainingPairs
from distillhash.methods.ugach import (
    UGACH,
    Game,
    Triplets,
    correlation_graph,
    nearest_rows,
    policy_loss,
    reward,
    sample_candidates,
    squared_distances,
    triplet_hinge,
)
from pair_factory import paired_vectors

IMAGES, TEXTS, OWNERS = paired_vectors(80, 2)
MENDED: dict[str, Any] = {"log_prob": "pool", "baseline": "mean", "generator_rate": 1e-3}


def test_distances_and_hinge_are_their_formulas() -> None:
    rng = np.random.default_rng(0)
    a, b, c = (rng.random((5, 8)) for _ in range(3))
    tensors = [torch.from_numpy(values) for values in (a, b, c)]
    table = squared_distances(tensors[0], tensors[1]).numpy()
    hinge = triplet_hinge(tensors[0], tensors[1], tensors[2], 1.0).numpy()
    for i in range(5):
        near, far = (sum((a[i][k] - other[i][k]) ** 2 for k in range(8)) for other in (b, c))
        assert hinge[i] == pytest.approx(max(0.0, 1.0 + near - far))
        for j in range(5):
            assert table[i, j] == pytest.approx(sum((a[i][k] - b[j][k]) ** 2 for k in range(8)))


def test_the_hinge_is_zero_where_the_positive_is_a_margin_nearer() -> None:
    query, positive, negative = torch.zeros(1, 32), torch.zeros(1, 32), torch.zeros(1, 32)
    negative[:, :4] = 1.0  # 4 = K / 8 away
    assert triplet_hinge(query, positive, negative, 32 / 8).item() == 0
    assert triplet_hinge(query, positive, 0.5 * negative, 32 / 8).item() == pytest.approx(4 - 1)


def test_rewards() -> None:
    losses = torch.tensor([0.0, 0.7, 3.0])
    expected = [1 / (1 + math.exp(-x)) for x in losses.tolist()]
    np.testing.assert_allclose(reward(losses, "sigmoid").numpy(), expected, rtol=1e-6)
    expected = [math.log(1 + math.exp(x)) for x in losses.tolist()]
    np.testing.assert_allclose(reward(losses, "softplus").numpy(), expected, rtol=1e-6)


def test_sampling_frequencies_are_the_softmax() -> None:
    scores = np.array([[0.0, 1.0, -1.0, 2.0, 0.5]])
    drawn = sample_candidates(np.repeat(scores, 400, axis=0), np.zeros((400, 5), bool), 100, np.random.default_rng(1))
    expected = np.exp(scores[0]) / np.exp(scores[0]).sum()
    found = np.bincount(drawn.ravel(), minlength=5) / 40_000
    assert (np.abs(found - expected) < 4 * np.sqrt(expected * (1 - expected) / 40_000)).all()


def test_excluded_candidates_are_not_drawn_while_there_are_others() -> None:
    excluded = np.zeros((3, 4), bool)
    excluded[0, [0, 2]], excluded[1, 1:], excluded[2] = True, True, True
    drawn = sample_candidates(np.array([[9.0, 0, 9, 0]] * 3), excluded, 200, np.random.default_rng(1))
    assert set(drawn[0]) == {1, 3} and set(drawn[1]) == {0}
    assert set(drawn[2]) <= {0, 1, 2, 3}  # nothing is allowed: all are


def test_the_policy_gradient_is_that_of_the_expected_reward() -> None:
    # E[reward] = sum_j p_j r_j. Its gradient, negated, must be the mean of the loss's gradient over all draws by their probabilities.
    scores = torch.tensor([0.3, -0.2, 1.1], dtype=torch.float64, requires_grad=True)
    rewards = torch.tensor([0.9, 0.5, 0.7], dtype=torch.float64)
    (expected,) = torch.autograd.grad(-(scores.softmax(0) * rewards).sum(), scores)
    found = torch.zeros(3, dtype=torch.float64)
    for draw in itertools.product(range(3), repeat=2):
        logs = scores.log_softmax(0)[list(draw)][None]
        loss = policy_loss(logs, rewards[list(draw)][None], "none")
        weight = math.prod(float(scores.detach().softmax(0)[j]) for j in draw)
        found += weight * torch.autograd.grad(loss, scores)[0]
    torch.testing.assert_close(found, expected)


def test_policy_loss_equals_a_plain_loop() -> None:
    rng = np.random.default_rng(2)
    logs, rewards = -rng.random((4, 3)), rng.random((4, 3))
    mean = rewards.mean()
    for baseline, b in (("none", 0.0), ("mean", mean)):
        expected = -sum(logs[i, k] * (rewards[i, k] - b) for i in range(4) for k in range(3)) / 12
        found = policy_loss(torch.from_numpy(logs), torch.from_numpy(rewards), baseline)  # type: ignore[arg-type]
        assert found.item() == pytest.approx(expected)


def test_one_candidate_teaches_nothing() -> None:
    scores = torch.tensor([[1.7]], requires_grad=True)
    loss = policy_loss(scores.log_softmax(1).gather(1, torch.tensor([[0, 0]])), torch.tensor([[0.6, 0.8]]), "none")
    (gradient,) = torch.autograd.grad(loss, scores)
    assert gradient.item() == 0


def test_the_graph_is_the_union_of_two_lists_and_directed() -> None:
    images = np.array([[0.0], [1.0], [1.5], [10.0], [11.0]])
    texts = np.array([[0.0, 0], [5, 0], [0, 1], [5, 1], [20, 20]])
    graph = correlation_graph(images, texts, 2).toarray()
    for row in range(5):
        expected = {row}
        for side in (images, texts):
            distances = [np.linalg.norm(side[row] - other) for other in side]
            expected |= set(sorted(range(5), key=distances.__getitem__)[:2])
        assert set(np.flatnonzero(graph[row])) == expected
    assert graph.diagonal().all() and (graph != graph.T).any()
    np.testing.assert_array_equal(correlation_graph(images, texts, 1).toarray(), np.eye(5))


def test_neighbours_over_several_blocks_equal_brute_force() -> None:
    rows = np.random.default_rng(0).random((1100, 3))
    distances = ((rows[:, None] - rows) ** 2).sum(axis=2)
    expected = np.argsort(distances, axis=1, kind="stable")[:, :4]
    np.testing.assert_array_equal(nearest_rows(rows, 4), expected)
    assert nearest_rows(rows[:3], 10).shape == (3, 3)


def game(**options: Any) -> Game:
    hasher = UGACH(16, hidden=16, **options)
    return Game(hasher, TrainingPairs(IMAGES, TEXTS, OWNERS))


def items_of(triplets: Triplets) -> list[NDArray[np.intp]]:
    """The items of queries, positives and negatives."""
    asked, found = triplets.direction
    return [rows if side == 0 else OWNERS[rows] for rows, side in zip(triplets[1:], (asked, found, found), strict=True)]


def test_positives_are_drawn_uniformly() -> None:
    run = game()
    wanted = np.flatnonzero(run.graph.toarray()[7])
    drawn, counts = np.unique(run._draw_positives(np.full(2000, 7)), return_counts=True)
    np.testing.assert_array_equal(drawn, wanted)
    assert np.abs(counts / 2000 - 1 / len(wanted)).max() < 0.05


def test_triplets_point_where_they_should() -> None:
    run = game(negatives=3, pool=0.2)
    for direction in ((0, 1), (1, 0)):
        queries, positives, negatives = items_of(run._drawn_triplets(direction))
        assert len(queries) == len(positives) == len(negatives) == 3 * 80
        graph = run.graph.toarray()
        assert graph[queries, positives].all() and not graph[queries, negatives].any()
        queries, positives, negatives = items_of(run._random_triplets(direction))
        np.testing.assert_array_equal(queries, positives)
        assert (queries != negatives).all()


def test_the_mean_hinge_and_reward_are_the_networks_own() -> None:
    run = game()
    triplets = run._random_triplets((0, 1))
    image_side, text_side = (tower.fold() for tower in run.D)
    a = 1 / (1 + np.exp(-image_side(IMAGES[triplets.query].astype(np.float64))))
    p, n = (
        1 / (1 + np.exp(-text_side(TEXTS[rows].astype(np.float64)))) for rows in (triplets.positive, triplets.negative)
    )
    expected = np.maximum(0, 16 / 8 + ((a - p) ** 2).sum(axis=1) - ((a - n) ** 2).sum(axis=1))
    np.testing.assert_allclose(run._hinge(triplets).detach().numpy(), expected, atol=1e-4)


def test_the_schedule_shows_in_the_history() -> None:
    def history(**options: Any) -> dict[str, list[float]]:
        hasher = UGACH(16, hidden=16, **options)
        return dict(hasher.fit(IMAGES, TEXTS, owners=OWNERS).history_)

    both = history(pretrain_epochs=4, rounds=3)
    assert [len(both[name]) for name in ("loss", "reward", "hardness")] == [7, 3, 3]
    assert both["loss"][3] < both["loss"][0]
    assert all(0.5 <= value < 1 for value in both["reward"])
    alone = history(pretrain_epochs=4, rounds=3, adversarial=False)
    assert alone["reward"] == [] and len(alone["loss"]) == 7 and alone["loss"][:4] == both["loss"][:4]
    assert [len(part) for part in history(pretrain_epochs=2, rounds=0).values()] == [2, 0, 0]
    assert history(pretrain_epochs=1, rounds=2, generator_epochs=0)["reward"] == []
    assert max(history(pretrain_epochs=1, rounds=2, reward="softplus")["reward"]) > 0


def test_a_taught_generator_finds_harder_negatives_than_chance() -> None:
    hasher = UGACH(16, hidden=32, pretrain_epochs=20, rounds=8, generator_epochs=4, **MENDED)
    hardness = hasher.fit(IMAGES, TEXTS, owners=OWNERS).history_["hardness"]
    assert hardness[-1] > hardness[0] + 0.1


def test_the_release_reading() -> None:
    hasher = make_hasher("ugach", 16, preset="code", hidden=8, pretrain_epochs=1, rounds=1)
    assert isinstance(hasher, UGACH)
    assert (hasher.get_params()["optimizer"], hasher.get_params()["batch_size"]) == ("sgd", 1)
    run = Game(hasher, TrainingPairs(IMAGES, TEXTS, OWNERS))
    weights = torch.cat([p.detach().ravel() for tower in run.D for p in tower.parameters() if p.ndim == 2])
    assert weights.abs().max() <= 0.2 and weights.std().item() == pytest.approx(
        0.088, abs=0.01
    )  # normal of .1 cut at 2 deviations
    hasher.fit(IMAGES[:20], TEXTS[:40], owners=OWNERS[:40])
    assert len(hasher.history_["loss"]) == 2
    with pytest.raises(ParameterError, match="log_prob=sampled compares the samples"):
        make_hasher("ugach", 16, preset="code", samples=1)


@pytest.mark.long
def test_a_fit_takes_less_than_five_minutes() -> None:
    images, texts, owners = paired_vectors(800, 5)
    started = time.perf_counter()
    UGACH(128).fit(images, texts, owners=owners)
    assert time.perf_counter() - started < 300
