"""The cross-modal contrastive loss against a plain loop, and its gradient through the signs."""

import math

import numpy as np
import pytest
import torch

from distillhash.methods.crossmodal import TrainingPairs, make_cross_hasher
from distillhash.methods.crossmodal.canonical import canonical_directions
from distillhash.methods.crossmodal.cross_contrast import tanh_sign
from distillhash.methods.crossmodal.towers import PairInputs, Standardised, TextDrawer, standardise
from distillhash.pairs.losses import nt_xent
from pair_factory import paired_vectors

IMAGES, TEXTS, OWNERS = paired_vectors(40, 3)


def test_codes_are_signs_with_the_gradient_of_tanh() -> None:
    outputs = torch.tensor([-2.0, -0.1, 0.0, 0.4, 3.0], requires_grad=True)
    codes = tanh_sign(outputs)
    assert codes.tolist() == pytest.approx([-1, -1, 1, 1, 1])
    (gradient,) = torch.autograd.grad(codes.sum(), outputs)
    expected = [1 - math.tanh(u) ** 2 for u in outputs.tolist()]
    assert gradient.tolist() == pytest.approx(expected, rel=1e-5)


def test_the_loss_of_a_batch_equals_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    images, texts = (rng.choice([-1.0, 1.0], (6, 16)) for _ in range(2))
    everything = np.concatenate([images, texts])
    total = 0.0
    for i in range(12):
        partner = (i + 6) % 12
        similarities = {j: everything[i] @ everything[j] / 16 / 0.3 for j in range(12) if j != i}
        total -= similarities[partner] - math.log(sum(math.exp(value) for value in similarities.values()))
    found = nt_xent(torch.from_numpy(images), torch.from_numpy(texts), temperature=0.3)
    assert found.item() == pytest.approx(total / 12)


def test_an_image_comes_with_one_of_its_texts() -> None:
    order = np.random.default_rng(1).permutation(len(OWNERS))
    pairs = TrainingPairs(IMAGES, TEXTS[order], OWNERS[order])
    rng = np.random.default_rng(2)
    draw = TextDrawer(pairs)
    seen = np.stack([draw(np.arange(40), rng) for _ in range(200)])
    assert (pairs.owners[seen] == np.arange(40)).all()
    assert all(len(set(column)) == 3 for column in seen.T)
    inputs = PairInputs(Standardised(IMAGES)(IMAGES), Standardised(TEXTS)(pairs.texts), pairs)
    batch = inputs.batch(np.array([5, 0]), rng).numpy()
    assert len(inputs) == 40 and batch.shape == (2, 24 + 18)
    np.testing.assert_allclose(batch[:, :24], Standardised(IMAGES)(IMAGES[[5, 0]]), atol=1e-6)


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
    still = {"epochs": 1, "learning_rate": 1e-12, "ridge": 2.0}
    hasher = make_cross_hasher("cross-contrast", 12, seed=4, **still).fit(IMAGES, TEXTS, owners=OWNERS)
    start = make_cross_hasher("ccaitq", 12, seed=4, regularisation=2.0).fit(IMAGES, TEXTS, owners=OWNERS)
    assert hasher.encode_images(IMAGES) == start.encode_images(IMAGES)
    assert hasher.encode_texts(TEXTS) == start.encode_texts(TEXTS)


def test_more_bits_than_canonical_variables_start_at_random() -> None:
    codes = make_cross_hasher("cross-contrast", 30, epochs=2).fit(IMAGES, TEXTS, owners=OWNERS).encode_texts(TEXTS)
    assert codes.n_bits == 30


def test_training_lowers_the_loss_and_the_networks_are_what_is_kept() -> None:
    hasher = make_cross_hasher("cross-contrast", 16, hidden=32, epochs=30, batch_size=8)
    losses = hasher.fit(IMAGES, TEXTS, owners=OWNERS).history_["loss"]
    assert len(losses) == 30 and losses[-1] < 0.8 * losses[0]
    layers = {f"{side}.{part}_{i}" for side in ("image", "text") for part in ("weight", "bias") for i in (0, 1)}
    assert set(hasher.state()) == layers | {"image.mean", "text.mean"}
