"""The cross-modal contrastive loss against a plain loop, and its gradient through the signs."""

import math

import numpy as np
import pytest
import torch

from distillhash.errors import ParameterError
from distillhash.methods import CCAITQ
from distillhash.methods.cross_contrast import CrossContrast, TwoTowers
from distillhash.methods.image_text import PairInputs, Standardised, Tower, TrainingPairs, standardise
from distillhash.methods.linear_algebra import canonical_directions
from distillhash.supervision.losses import neighbour_contrast
from pair_factory import paired_vectors

IMAGES, TEXTS, OWNERS = paired_vectors(40, 3)


def test_the_loss_without_neighbours_equals_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    images, texts = (rng.choice([-1.0, 1.0], (6, 16)) for _ in range(2))
    everything = np.concatenate([images, texts])
    total = 0.0
    for i in range(12):
        partner = (i + 6) % 12
        similarities = {j: everything[i] @ everything[j] / 16 / 0.3 for j in range(12) if j != i}
        total -= similarities[partner] - math.log(sum(math.exp(value) for value in similarities.values()))
    own = torch.eye(6, dtype=torch.bool).repeat(2, 2)
    found = neighbour_contrast(torch.from_numpy(everything), own, temperature=0.3)
    assert found.item() == pytest.approx(total / 12)


def test_the_network_gives_signs_of_images_then_of_texts() -> None:
    generator = torch.Generator().manual_seed(0)
    towers = [Tower(Standardised(rows), 0, 5, "relu", generator) for rows in (IMAGES[:, :3], TEXTS[:, :2])]
    rows = torch.randn(4, 5, generator=generator)
    found = TwoTowers(towers[0], towers[1])(rows)
    expected = torch.cat([towers[0](rows[:, :3]), towers[1](rows[:, 3:])])
    np.testing.assert_allclose(found.detach().numpy(), np.where(expected.detach().numpy() >= 0, 1, -1), atol=1e-6)


def test_neighbours_are_those_whose_lists_overlap_on_both_sides() -> None:
    images, texts, _ = paired_vectors(40, 1)
    hasher = CrossContrast(8, neighbourhood=0.2)
    found = hasher._neighbourhoods(images, texts)
    assert found.shape == (40, 8)
    sides = []
    for side in (images, texts):
        centred = side.astype(np.float64) - side.mean(axis=0)
        sides.append(centred / np.linalg.norm(centred, axis=1, keepdims=True))
    cosines = sides[0] @ sides[0].T + sides[1] @ sides[1].T
    lists = []
    for i in range(40):
        others = sorted((j for j in range(40) if j != i), key=lambda j: -cosines[i, j])
        lists.append({i, *others[:8]})
    for i in range(40):
        overlaps = {j: len(lists[i] & lists[j]) / len(lists[i] | lists[j]) for j in range(40) if j != i}
        least = sorted(overlaps.values(), reverse=True)[7]
        assert all(overlaps[int(j)] >= least - 1e-6 for j in found[i])


def test_neighbours_as_positives_change_the_codes() -> None:
    plain, near = (
        CrossContrast(16, neighbourhood=share, epochs=10).fit(IMAGES, TEXTS, owners=OWNERS) for share in (0.0, 0.2)
    )
    assert plain.encode_texts(TEXTS) != near.encode_texts(TEXTS)
    with pytest.raises(ParameterError, match=r"neighbourhood must be at least 0 and at most 1, got 1\.5"):
        CrossContrast(8, neighbourhood=1.5)


def test_directions_in_which_views_differ_shrink() -> None:
    # Two features carry the same signal; augmentation shakes the second. Its share of the first canonical variable must fall.
    rng = np.random.default_rng(0)
    signal = rng.standard_normal(200)
    images = np.stack([signal, signal], axis=1) + 0.3 * rng.standard_normal((200, 2))
    texts = np.stack([signal, rng.standard_normal(200)], axis=1)
    views = np.stack([images + np.stack([np.zeros(200), rng.standard_normal(200)], axis=1) for _ in range(4)])
    shares = []
    for given in (None, views):
        seen, _ = standardise(TrainingPairs(images, texts, np.arange(200), given), "correlated", 0.1)
        assert seen.directions is not None
        shares.append(abs(seen.directions[1, 0]) / np.abs(seen.directions[:, 0]).sum())
    assert shares[1] < 0.7 * shares[0]
    # and W is the mean outer product of rows about their own mean, by plain loops
    everything = np.stack([images, *views])
    within = np.zeros((2, 2))
    for i in range(200):
        for row in everything[:, i]:
            off = row - everything[:, i].mean(axis=0)
            within += np.outer(off, off) / (5 * 200)
    centres = everything.mean(axis=0)
    A, _, rho = canonical_directions(centres - centres.mean(axis=0), texts - texts.mean(axis=0), 2, 0.1, within)
    assert seen.directions is not None
    np.testing.assert_allclose(seen.directions, A * rho, atol=1e-5)


def test_views_change_the_codes() -> None:
    views = IMAGES + np.random.default_rng(5).normal(0, 1, (3, *IMAGES.shape)).astype(np.float32)
    hashers = [CrossContrast(12).fit(IMAGES, TEXTS, owners=OWNERS, views=given) for given in (None, views)]
    assert hashers[0].encode_images(IMAGES) != hashers[1].encode_images(IMAGES)


def test_an_image_comes_with_one_of_its_texts() -> None:
    order = np.random.default_rng(1).permutation(len(OWNERS))
    pairs = TrainingPairs(IMAGES, TEXTS[order], OWNERS[order])
    rng = np.random.default_rng(2)
    seen = np.stack([pairs.draw_texts(np.arange(40), rng) for _ in range(200)])
    assert (pairs.owners[seen] == np.arange(40)).all()
    assert all(len(set(column)) == 3 for column in seen.T)
    inputs = PairInputs(Standardised(IMAGES)(IMAGES), Standardised(TEXTS)(pairs.texts), pairs)
    batch = inputs.batch(np.array([5, 0]), rng)
    assert len(inputs) == 40 and batch.inputs.shape == (2, 24 + 18) and batch.rows.tolist() == [5, 0]
    np.testing.assert_allclose(batch.inputs[:, :24], Standardised(IMAGES)(IMAGES[[5, 0]]), atol=1e-6)
    assert batch.targets[0].tolist() == [[True, False], [False, True]]


def test_texts_are_grouped_by_image() -> None:
    order = np.random.default_rng(3).permutation(len(OWNERS))
    pairs = TrainingPairs(IMAGES, TEXTS[order], OWNERS[order])
    means = pairs.mean_texts()
    for image in range(40):
        np.testing.assert_allclose(means[image], TEXTS[image == OWNERS].mean(axis=0), atol=1e-6)


def test_scale_centres_and_keeps_angles() -> None:
    scaled = Standardised(IMAGES)(IMAGES)
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-5)
    assert np.mean(scaled**2) == pytest.approx(1, rel=1e-5)
    centred = IMAGES - IMAGES.mean(axis=0)
    np.testing.assert_allclose(scaled / centred, np.full(scaled.shape, (scaled / centred)[0, 0]), rtol=1e-2)


def test_correlated_inputs_are_the_scaled_canonical_variables() -> None:
    pairs = TrainingPairs(IMAGES, TEXTS, OWNERS)
    seen = standardise(pairs, "correlated", 2.0)
    images, texts = IMAGES[OWNERS].astype(np.float64), TEXTS.astype(np.float64)
    A, B, rho = canonical_directions(images - images.mean(axis=0), texts - texts.mean(axis=0), 18, 2.0)
    for side, rows, weight in zip(seen, (IMAGES, TEXTS), (A * rho, B * rho), strict=True):
        expected = (rows - rows.mean(axis=0)) @ weight
        expected /= np.sqrt(np.mean(expected**2))
        np.testing.assert_allclose(side(rows), expected, atol=1e-4)
        layer = np.random.default_rng(0).standard_normal((18, 3))
        np.testing.assert_allclose((rows - side.mean) @ side.fold(layer), expected @ layer, atol=1e-4)


def test_it_starts_from_cca_itq() -> None:
    # A step too small to flip a bit: what is left is the start.
    hasher = CrossContrast(12, seed=4, epochs=1, learning_rate=1e-12, ridge=2.0).fit(IMAGES, TEXTS, owners=OWNERS)
    start = CCAITQ(12, seed=4, regularisation=2.0).fit(IMAGES, TEXTS, owners=OWNERS)
    assert hasher.encode_images(IMAGES) == start.encode_images(IMAGES)
    assert hasher.encode_texts(TEXTS) == start.encode_texts(TEXTS)


def test_more_bits_than_canonical_variables_start_at_random() -> None:
    codes = CrossContrast(30, epochs=2).fit(IMAGES, TEXTS, owners=OWNERS).encode_texts(TEXTS)
    assert codes.n_bits == 30


def test_training_lowers_the_loss_and_the_networks_are_what_is_kept() -> None:
    hasher = CrossContrast(16, hidden=32, epochs=30, batch_size=8)
    losses = hasher.fit(IMAGES, TEXTS, owners=OWNERS).history_["loss"]
    assert len(losses) == 30 and losses[-1] < 0.8 * losses[0]
    layers = {f"{side}.{part}_{i}" for side in ("image", "text") for part in ("weight", "bias") for i in (0, 1)}
    assert set(hasher.state()) == layers | {"image.mean", "text.mean"}
