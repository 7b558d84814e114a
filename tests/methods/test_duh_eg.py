"""DUH-EG: noun choice, external features and the contrast against the released formulas."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import softmax

from distillhash import make_hasher
from distillhash.methods.duh_eg import external_features, guided_contrast, representative_texts
from pair_factory import paired_vectors


def unit(rows: NDArray[Any]) -> NDArray[Any]:
    return np.stack([row / np.sqrt(row @ row) for row in rows])


def test_external_features_are_the_papers() -> None:
    rng = np.random.default_rng(0)
    images, nouns = rng.standard_normal((6, 5)), rng.standard_normal((9, 5))
    expected = []
    for image in unit(images):
        shares = softmax(np.array([image @ noun for noun in unit(nouns)]) / 0.1)
        expected.append(sum(share * noun for share, noun in zip(shares, unit(nouns), strict=True)))
    found = external_features(images, nouns, 0.1)
    np.testing.assert_allclose(found, unit(np.array(expected)), rtol=1e-9)
    np.testing.assert_allclose(external_features(nouns, nouns, 1e-4), unit(nouns), atol=1e-9)


def test_one_text_of_every_group_represents_it_and_those_near_the_centre_too() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.eye(4), 10, axis=0) + 0.2 * rng.standard_normal((40, 4))
    texts = np.concatenate([groups, 2 * groups[:5]])  # the last five say the same as the first
    for seed in range(3):
        kept = representative_texts(texts, 4, 1.0, seed=seed)
        assert len(kept) <= 4
        more = representative_texts(texts, 4, 0.98, seed=seed)
        assert len(kept) < len(more) < 40
        assert {tuple(row) for row in kept} <= {tuple(row) for row in more}
        np.testing.assert_allclose((more @ unit(texts).T).max(axis=1), 1)  # each is one of the texts
    assert len(representative_texts(texts, 4, -1.0, seed=0)) == 40  # all, once


def test_guided_contrast_is_the_released_loss() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((6, 8)), rng.standard_normal((6, 8))
    positives = rng.random((6, 6)) < 0.3
    np.fill_diagonal(positives, True)
    shares = softmax(unit(a) @ unit(b).T / 0.8, axis=1)
    expected = np.mean([-np.log(sum(shares[i, positives[i]])) for i in range(6)])
    first, second, alike = (torch.from_numpy(array) for array in (a, b, positives))
    found = guided_contrast(first, second, alike, 0.8)
    assert float(found) == pytest.approx(expected)


def test_images_that_share_a_text_get_closer_codes() -> None:
    """The images say nothing about the groups beyond a weak direction; the texts do."""
    images, _, _ = paired_vectors(120, 1)
    rng = np.random.default_rng(1)
    group = np.arange(120) % 4
    images[:, :4] += 2 * np.eye(4)[group]
    texts = np.eye(18)[group] + 0.02 * rng.standard_normal((120, 18))

    same = np.equal.outer(group, group)
    ratios = []
    hashers: list[Any] = [
        make_hasher("duh-eg", 16, hidden=32, epochs=20, batch_size=30, learning_rate=0.01, clusters=4),
        make_hasher("ccaitq", 16),
    ]
    for hasher in hashers:
        signs = hasher.fit(images, texts).encode(images).signs().astype(float)
        distances = (16 - signs @ signs.T) / 2
        ratios.append(distances[same].mean() / distances[~same].mean())
    assert ratios[0] < 0.3 < ratios[1]


def test_texts_in_the_space_of_the_images_are_matched_by_hand() -> None:
    """With features of one space, external features come from images alone."""
    images, _, _ = paired_vectors(60, 1)
    nouns = representative_texts(np.random.default_rng(0).standard_normal((50, 24)), 20, 0.9, seed=0)
    hasher: Any = make_hasher("duh-eg", 12, match_temperature=0, epochs=2)
    hasher.fit(images, external_features(images, nouns, 0.004))
    assert "texts" not in hasher.history_ and len(hasher.history_["loss"]) == 2
    assert len(hasher.encode(images)) == 60
