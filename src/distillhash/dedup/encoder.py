"""Which codes a collection is compared by.

A model that the user gives is used as it is. Otherwise images are embedded by the default backbone at 224 pixels (small edits are lost at
128) and coded in ``LEARNED_BITS`` bits by ITQ, fitted on the collection itself. Where that cannot be fitted well (few items, or vectors
with fewer dimensions than bits) the codes are ``RANDOM_BITS`` random hyperplanes through the origin, whose distances estimate angles of
the features and depend on no other item.

The code of an image goes on with its perceptual hash (:mod:`distillhash.dedup.hashed`), half as many bits as those of the features, unless
mirror images are looked for, whose hashes have nothing in common. `docs/dedup.md` has the measurements behind these numbers.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from distillhash.codes import Codes
from distillhash.dedup.hashed import HASH_BITS, HashedImages
from distillhash.errors import DataError
from distillhash.methods import make_hasher
from distillhash.models import HashModel, load_model
from distillhash.sources import EmbeddingSource, ImageSource, Skipped, Source

if TYPE_CHECKING:
    from distillhash.backbones import FeatureCache

IMAGE_SIZE = 224
LEARNED_BITS, RANDOM_BITS = 512, 1024
FEWEST_TO_LEARN = 1_000
LEARN_FROM, ITERATIONS = 4_000, 20


@dataclass(frozen=True)
class Encoder:
    """What makes the codes.

    Attributes:
        model: Fitted, for the features' bits.
        description: A sentence that says what the codes are.
        hashes: How many times the perceptual hash follows; 0 for codes of the features alone.
    """

    model: HashModel
    description: str
    hashes: int = 0

    @property
    def n_bits(self) -> int:
        """Length of the codes."""
        return self.model.n_bits + self.hashes * HASH_BITS

    def encode(self, source: Source, *, progress: bool = False, max_pixels: int | None = None) -> Coded:
        """Codes of every usable item; features pass through, codes stay."""
        if not self.hashes:
            return self._encode(source, progress, max_pixels)
        assert isinstance(source, ImageSource)
        with closing(HashedImages(source, cache=self.model.cache, max_pixels=max_pixels)) as hashed:
            coded = self._encode(hashed, progress, max_pixels)
        packed = np.hstack([coded.codes.packed, *[hashed.hashes[coded.rows]] * self.hashes])
        return replace(coded, codes=Codes.from_packed(packed, self.n_bits))

    def _encode(self, source: Source, progress: bool, max_pixels: int | None) -> Coded:
        """By the features alone."""
        codes, rows, skipped = [], [np.zeros(0, np.intp)], list[Skipped]()
        for batch in self.model.encode_batches(source, progress=progress, max_pixels=max_pixels):
            codes.append(batch.codes)
            rows.append(batch.rows)
            skipped += batch.skipped
        return Coded(Codes.concatenate(codes, self.model.n_bits), np.concatenate(rows), skipped)


@dataclass(frozen=True)
class Coded:
    """Codes of the usable items of a source.

    Attributes:
        codes: ``m`` codes.
        rows: ``(m,)`` rows of the source.
        skipped: The items that could not be used.
    """

    codes: Codes
    rows: NDArray[np.intp]
    skipped: list[Skipped]


def make_encoder(
    source: Source,
    *,
    model: str | None = None,
    mirror: bool = False,
    device: str = "auto",
    cache: FeatureCache | None = None,
    max_pixels: int | None = None,
    progress: bool = False,
) -> Encoder:
    """The encoder for a collection; see the module's text.

    Args:
        source: What is to be compared.
        model: A model folder, or None.
        mirror: Mirror images are looked for.
        device: Where the backbone runs.
        cache: Where features are kept; without one they are computed twice.
        max_pixels: Images above this are skipped.
        progress: Show progress on stderr.

    Raises:
        DataError: nothing usable in the source.
        FormatError: ``model`` is not a model folder.
    """
    if model is not None:
        loaded = load_model(model, device=device, cache=cache)
        return Encoder(loaded, f"codes of {loaded.n_bits} bits by the model {model}")
    vectors = isinstance(source, EmbeddingSource)
    backbone = "embeddings" if vectors else "efficientnet-lite0"
    width = source.vectors.shape[1] if isinstance(source, EmbeddingSource) else LEARNED_BITS
    size = None if vectors else IMAGE_SIZE
    given = "the vectors" if vectors else f"{backbone} at {IMAGE_SIZE} pixels"
    hashed = not vectors and not mirror
    if len(source) >= FEWEST_TO_LEARN and width >= LEARNED_BITS:
        learned = HashModel(
            backbone,
            make_hasher("itq", LEARNED_BITS, iterations=ITERATIONS),
            image_size=size,
            device=device,
            cache=cache,
        )
        learned.fit(source, max_images=LEARN_FROM, max_pixels=max_pixels, progress=progress)
        if learned.training["n_used"] >= FEWEST_TO_LEARN:
            used = min(LEARN_FROM, learned.training["n_used"])
            text = f"ITQ codes of {LEARNED_BITS} bits over {given}, fitted on {used:,} of the items"
            return _with_hashes(Encoder(learned, text), LEARNED_BITS // 2 if hashed else 0)
    hasher = make_hasher("lsh", RANDOM_BITS, centre=False)
    planes = HashModel(backbone, hasher, image_size=size, device=device, cache=cache)
    hasher.fit(np.eye(2, width if vectors else planes.backbone.dim))  # planes through the origin: drawn, not learned
    text = f"{RANDOM_BITS} random hyperplanes over {given} (too few items or dimensions to fit ITQ codes)"
    return _with_hashes(Encoder(planes, text), RANDOM_BITS // 2 if hashed else 0)


def _with_hashes(encoder: Encoder, n_bits: int) -> Encoder:
    if not n_bits:
        return encoder
    return Encoder(encoder.model, f"{encoder.description}, and {n_bits} bits of perceptual hash", n_bits // HASH_BITS)


def encode_or_fail(encoder: Encoder, source: Source, *, progress: bool = False, max_pixels: int | None = None) -> Coded:
    """Codes of a source.

    Raises:
        DataError: nothing usable in it.
    """
    coded = encoder.encode(source, progress=progress, max_pixels=max_pixels)
    if not len(coded.codes):
        first = f"; first {coded.skipped[0].key}: {coded.skipped[0].reason}" if coded.skipped else ""
        raise DataError(f"nothing usable in {source.name}: all {len(source)} items were skipped{first}")
    return coded
