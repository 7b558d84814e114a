"""A MIRFLICKR-style miniature, made on the spot: pictures of one or two concepts, their users' tags, several labels each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from image_factory import encode

CONCEPTS = {
    "sea": ((20, 60, 200), ("sea", "ocean", "waves")),
    "forest": ((20, 130, 30), ("forest", "trees", "woods")),
    "sunset": ((240, 120, 20), ("sunset", "dusk", "evening")),
    "snow": ((240, 245, 250), ("snow", "winter", "frost")),
    "night": ((10, 10, 25), ("night", "stars", "dark")),
    "flower": ((230, 60, 160), ("flower", "petals", "bloom")),
}
NOISE = ("canon", "2008", "explore", "nikon", "holiday", "geotagged", "friends", "hdr")


def draw_labels(n: int, seed: int = 0) -> NDArray[np.bool_]:
    """``(n, 6)``: one or two concepts an item."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((n, len(CONCEPTS)), bool)
    for row in labels:
        row[rng.choice(len(CONCEPTS), rng.integers(1, 3), replace=False)] = True
    return labels


def draw_image(labels: NDArray[np.bool_], rng: np.random.Generator) -> bytes:
    """A 32 x 32 PNG, a band a concept in its colour, with grain."""
    colours = np.array([colour for colour, _ in CONCEPTS.values()])[labels]
    bands = colours[np.arange(32) * len(colours) // 32]
    pixels = bands[:, None, :] + rng.normal(0, 18, (32, 32, 3))
    return encode(Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)), "PNG")


def draw_tags(labels: NDArray[np.bool_], rng: np.random.Generator) -> list[str]:
    """Two words of each concept, and two that say nothing, in no order."""
    words = [
        word
        for (_, own), there in zip(CONCEPTS.values(), labels, strict=True)
        if there
        for word in rng.choice(own, 2, replace=False)
    ]
    return [str(word) for word in rng.permutation([*words, *rng.choice(NOISE, 2, replace=False)])]


def write_miniature(path: Path, n: int = 90, seed: int = 0) -> Path:
    """A Parquet table of ``image``, ``tags`` and ``labels``."""
    rng = np.random.default_rng(seed)
    labels = draw_labels(n, seed)
    table = {
        "image": [{"bytes": draw_image(row, rng), "path": f"im{i}.png"} for i, row in enumerate(labels)],
        "tags": [draw_tags(row, rng) for row in labels],
        "labels": [np.flatnonzero(row).tolist() for row in labels],
    }
    pq.write_table(pa.table(table), path)
    return path


def paired_vectors(
    n: int = 120, texts_each: int = 2, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.intp]]:
    """Images ``(n, 24)``, texts ``(n texts_each, 18)`` and their owners: two noisy linear views of one hidden vector of 6."""
    rng = np.random.default_rng(seed)
    maps = np.random.default_rng(99)  # the same world for every seed
    to_image, to_text = maps.standard_normal((6, 24)), maps.standard_normal((6, 18))
    hidden = rng.standard_normal((n, 6))
    owners = np.repeat(np.arange(n), texts_each)
    images = hidden @ to_image + 0.5 * rng.standard_normal((n, 24))
    texts = hidden[owners] @ to_text + 0.5 * rng.standard_normal((len(owners), 18))
    return images.astype(np.float32), texts.astype(np.float32), owners
