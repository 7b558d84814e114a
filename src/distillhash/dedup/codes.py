"""The codes that a collection is compared by.

A model that the user gives is used as it is. Otherwise images are embedded by the backbone that the user gives, or by
``DEFAULT_BACKBONE`` at the size of its training (128 pixels lose small edits). The codes have ``LEARNED_BITS`` bits by ITQ, fitted on the
collection itself. Where ITQ cannot be fitted well (few items, or features with fewer dimensions than bits) they are ``RANDOM_BITS`` random
hyperplanes through the origin. Their distances estimate angles of the features and depend on no other item.

A perceptual hash of the image follows, half as many bits as those of the features. Features tell what is in a picture, and two scenes of
one place share that. A perceptual hash tells where it is light and dark, and a caption or a stronger compression hardly changes it.
Each finds copies that the other misses (results/near-duplicates). The hash of a mirror image is known from that of the image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distillhash.backbones.extract import PIXELS_VERSION, WatchedImages
from distillhash.codes import Codes
from distillhash.dedup.groups import HASH_BITS, TELLING, Rule, different_pictures
from distillhash.errors import ParameterError
from distillhash.methods import make_hasher
from distillhash.methods.base import sample_rows
from distillhash.models import HashModel, load_model
from distillhash.sources import EmbeddingSource, ImageSource, Skipped, Source, digest
from distillhash.sources.base import nothing_usable
from distillhash.sources.decode import resize_images

if TYPE_CHECKING:
    from distillhash.backbones import Backbone, Engine, FeatureCache

DEFAULT_BACKBONE, IMAGE_SIZE = "efficientnet-lite0", 224
LEARNED_BITS, RANDOM_BITS = 512, 1024
FEWEST_TO_LEARN = 1_000
LEARN_FROM, ITERATIONS = 4_000, 10
_HASH_SIDE, HASH_PIXELS = 16, 64  # the hash has 16 x 16 bits
_HASH_IDENTITY = f"phash/{_HASH_SIDE}/{HASH_PIXELS}/from {IMAGE_SIZE}/structure/{PIXELS_VERSION}"
_FLAT = 4.0  # grey levels


@dataclass(frozen=True)
class Settings:
    """What ``dedup`` and ``leaks`` take."""

    model: str | None = None  # a model folder; None makes codes for the collection
    backbone: Backbone | None = None  # makes the features of images where there is no model; None takes the default
    radius: int | None = None  # bits; None calibrates
    most_false_pairs: float | None = None  # to accept; None takes the rule of the calibration
    device: str = "auto"  # where the backbone runs
    engine: Engine = "auto"  # what runs it on a CPU
    cache: FeatureCache | None = None  # of features and hashes between runs
    allow_download: bool = False  # of weights that the model folder names
    max_pixels: int | None = None  # images above this are skipped
    progress: bool = False  # on stderr


@dataclass(frozen=True)
class Coded:
    """Codes of the usable items of a source, their rows there (ascending), and the other items in the source's order."""

    codes: Codes
    rows: NDArray[np.intp]
    skipped: list[Skipped]
    digests: NDArray[np.bytes_]  # (n,) of the content of each image; none of vectors
    flat: NDArray[np.bool_]  # (n,) images without structure, of which codes say little; no vectors


@dataclass(frozen=True)
class Encoder:
    """What makes the codes: a fitted model for the bits of the features, and the perceptual hash ``hashes`` times after them."""

    model: HashModel
    description: str
    hashes: int
    settings: Settings

    @property
    def n_bits(self) -> int:
        """Length of the codes."""
        return self.model.n_bits + self.hashes * HASH_BITS

    def rule(self, radius: int) -> Rule:
        """What these codes are judged by, with a radius of the whole code alone."""
        return Rule(radius, self.hashes, self.model.n_bits)

    def encode(self, source: Source) -> Coded:
        """Codes of every usable item; a :class:`DataError` where nothing is usable."""
        with _hashed(source, self.settings) as images:
            return self._encode(images)

    def _encode(self, images: Source, first: Coded | None = None, done: NDArray[np.intp] | None = None) -> Coded:
        """Codes of all items but ``done``, joined with ``first``, whose codes lack the hashes."""
        left = np.arange(len(images)) if done is None else np.setdiff1d(np.arange(len(images)), done)
        rest = images if done is None else images.select(left)
        progress, max_pixels = self.settings.progress, self.settings.max_pixels
        batches = self.model.encode_batches(rest, progress=progress, max_pixels=max_pixels)
        parts = [] if first is None else [first]
        parts += [_coded(batch.codes, left[batch.rows], batch.skipped, batch.digests) for batch in batches]
        skipped = [item for part in parts for item in part.skipped]
        if first is not None and skipped:
            place = {key: row for row, key in enumerate(images.keys)}
            skipped.sort(key=lambda item: place[item.key])
        rows = np.concatenate([np.zeros(0, np.intp), *(part.rows for part in parts)])
        if not len(rows):
            raise nothing_usable(images.name, skipped)
        order = np.argsort(rows)
        packed = np.concatenate([part.codes.packed for part in parts])[order]
        digests = np.concatenate([part.digests for part in parts])
        digests, rows = digests[order] if len(digests) else digests, rows[order]
        if isinstance(images, EmbeddingSource) and self.n_bits < TELLING:
            digests = np.array([digest(vector) for vector in images.vectors[rows]], "S16")
        flat = np.zeros(len(rows), bool)
        if isinstance(images, HashedImages):
            packed, flat = np.hstack([packed, *[images.hashes[rows]] * self.hashes]), images.flat[rows]
        return Coded(Codes.from_packed(packed, self.n_bits), rows, skipped, digests, flat)


def _coded(codes: Codes, rows: NDArray[np.intp], skipped: list[Skipped], digests: Sequence[bytes]) -> Coded:
    return Coded(codes, rows, skipped, np.array(digests, "S16"), np.zeros(0, bool))


def encode_collection(source: Source, settings: Settings) -> tuple[Encoder, Coded]:
    """The encoder for a collection, fitted on it, and the codes of its items. Each image is read once.

    Raises:
        DataError: nothing usable in the source.
        FormatError: ``settings.model`` is not a model folder.
        ParameterError: a backbone beside a model, or for vectors.
    """
    vectors = source.vectors if isinstance(source, EmbeddingSource) else None
    if settings.backbone is not None and (settings.model is not None or vectors is not None):
        why = f"{source.name} holds vectors" if settings.model is None else f"the model {settings.model} has its own"
        raise ParameterError(f"the backbone {settings.backbone.name} is not needed, for {why}; leave out its options")
    if settings.model is not None:
        loaded = load_model(
            settings.model,
            device=settings.device,
            engine=settings.engine,
            cache=settings.cache,
            allow_download=settings.allow_download,
        )
        encoder = Encoder(loaded, f"codes of {loaded.n_bits} bits by the model {settings.model}", 0, settings)
        return encoder, encoder.encode(source)
    from distillhash.backbones import extract_features

    model = HashModel(
        DEFAULT_BACKBONE if vectors is None else "embeddings",
        make_hasher("itq", LEARNED_BITS, iterations=ITERATIONS),
        image_size=IMAGE_SIZE if vectors is None else None,
        device=settings.device,
        engine=settings.engine,
        cache=settings.cache,
    )
    if settings.backbone is not None:
        model.backbone_name, model.backbone = settings.backbone.name, settings.backbone
    given = f"{model.backbone_name} at {model.backbone.image_size} pixels" if vectors is None else "the vectors"
    width = max(1, model.backbone.dim) if vectors is None else vectors.shape[1]
    hashed = vectors is None
    learned = different = np.zeros(0, np.intp)
    # Planes through the origin: drawn, not learned.
    planes = make_hasher("lsh", RANDOM_BITS, centre=False).fit(np.eye(2, width))
    with _hashed(source, settings) as images:
        if len(source) >= FEWEST_TO_LEARN and width >= LEARNED_BITS:
            learned = sample_rows(len(source), LEARN_FROM, np.random.default_rng(model.hasher.seed))
            options: dict[str, Any] = {"max_pixels": settings.max_pixels, "progress": settings.progress}
            sample = extract_features(images.select(learned), model.backbone, cache=settings.cache, **options)
            usable = np.ones(len(sample.rows), bool)
            if isinstance(images, HashedImages):
                usable = ~images.flat[learned[sample.rows]]
            # A few of a crowd of nearly equal ones, so that no picture is all there is.
            different = different_pictures(planes.encode(sample.features), usable=np.flatnonzero(usable)).kept
        if len(different) >= FEWEST_TO_LEARN:
            model.hasher.fit(sample.features[different])
            text = f"ITQ codes of {LEARNED_BITS} bits over {given}, fitted on {len(different):,} of the items"
        else:
            model.hasher = planes
            text = f"{RANDOM_BITS} random hyperplanes over {given} (too few items or dimensions to fit ITQ codes)"
        n_hash_bits = model.n_bits // 2 if hashed else 0
        text += f", and {n_hash_bits} bits of perceptual hash" if hashed else ""
        encoder = Encoder(model, text, n_hash_bits // HASH_BITS, settings)
        if vectors is not None or not len(learned):
            return encoder, encoder._encode(images)
        first = _coded(model.hasher.encode(sample.features), learned[sample.rows], sample.skipped, sample.digests)
        return encoder, encoder._encode(images, first, learned)


@contextmanager
def _hashed(source: Source, settings: Settings) -> Iterator[Source]:
    """The source, keeping the perceptual hash of what features are extracted from; vectors as they are."""
    if not isinstance(source, ImageSource):
        yield source
        return
    with closing(HashedImages(source, cache=settings.cache)) as images:
        yield images


class HashedImages(WatchedImages):
    """A source that keeps the perceptual hash of every image whose features were extracted from it or from a selection of it.

    ``hashes`` is ``(n, 32) uint8``, packed like codes, by the row of the whole source; zeros where nothing was read. ``flat``,
    ``(n,) bool``, tells pictures without structure.
    """

    shown_size = IMAGE_SIZE  # that of the default features, so that a file is decoded and shrunk once for both

    def __init__(self, source: ImageSource, *, cache: FeatureCache | None) -> None:
        """Keep references; nothing is read yet. ``cache`` keeps hashes by content."""
        super().__init__(source.name, source.keys)
        self.hashes = np.zeros((len(source), HASH_BITS // 8), np.uint8)
        self.flat = np.zeros(len(source), bool)
        self.damaged = source.damaged
        self._source, self._rows = source, np.arange(len(source))
        self._store = None if cache is None else cache.store(_HASH_IDENTITY, HASH_BITS // 32 + 1)

    def _take(self, rows: NDArray[np.intp]) -> None:
        self._rows = self._rows[rows]

    def path(self, row: int) -> str | None:
        """As in the source."""
        return self._source.path(int(self._rows[row]))

    def read(self, row: int) -> bytes | NDArray[np.uint8]:
        """As in the source."""
        return self._source.read(int(self._rows[row]))

    def wanted(self, digests: Mapping[int, bytes]) -> list[int]:
        """Rows whose hashes are not in the cache."""
        kept = {} if self._store is None else self._store.get(list(digests.values()))
        self._keep({row: kept[content] for row, content in digests.items() if content in kept})
        return [row for row, content in digests.items() if content not in kept]

    def show(self, digests: Mapping[int, bytes], copies: Mapping[int, NDArray[np.uint8]]) -> None:
        """Hash them."""
        if not copies:
            return
        small = resize_images(np.stack(list(copies.values())), HASH_PIXELS)
        # For the store, which holds floats, the bits of eight floats are the hash; the ninth is 1 for a flat picture.
        looked = np.hstack([perceptual_bits(small).view(np.float32), are_flat(small)[:, None].astype(np.float32)])
        if self._store is not None:
            self._store.put([digests[row] for row in copies], looked)
        self._keep(dict(zip(copies, looked, strict=True)))

    def close(self) -> None:
        """Close the cache."""
        if self._store is not None:
            self._store.close()

    def _keep(self, looked: Mapping[int, NDArray[np.float32]]) -> None:
        for row, values in looked.items():
            at = self._rows[row]
            self.hashes[at], self.flat[at] = values[:-1].view(np.uint8), values[-1] > 0


def are_flat(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whether pictures, ``(n, HASH_PIXELS, HASH_PIXELS, 3) uint8``, are one colour, or one that changes evenly, but for a little noise.

    ``(n,) bool``.
    """
    values = pixels.reshape(len(pixels), -1, 3).transpose(0, 2, 1).astype(np.float32, order="C")
    values -= values.mean(axis=2, keepdims=True)
    left = np.vecdot(values, values) - ((values @ _slopes().T) ** 2).sum(axis=2)
    flat: NDArray[np.bool_] = (left < _FLAT**2 * values.shape[2]).all(axis=1)
    return flat


@cache
def _slopes() -> NDArray[np.float32]:
    """What changes evenly from left to right and from top to bottom: ``(2, HASH_PIXELS ** 2)``, of length 1, at right angles."""
    level = np.linspace(-1, 1, HASH_PIXELS, dtype=np.float32)
    return np.array([part.ravel() / np.linalg.norm(part) for part in np.meshgrid(level, level)])


def perceptual_bits(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """:func:`perceptual_hashes` of 256 bits."""
    return perceptual_hashes(pixels, _HASH_SIDE)


def perceptual_hashes(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """``side * side`` bits, packed, of each of the pictures ``(n, h, w, 3) uint8``: which of its lowest frequencies are above their median.

    Zauner's DCT hash (2010), as the library imagehash has it: the discrete cosine transform of the grey picture at ``4 * side`` pixels a
    side. Values are rounded, so that those of a symmetric picture, which are 0 but for rounding, do not depend on the processor.
    """
    n = 4 * side
    greys = [Image.fromarray(one).convert("L").resize((n, n), Image.Resampling.LANCZOS) for one in pixels]
    basis = np.cos(np.pi / n * np.outer(np.arange(side), np.arange(n) + 0.5))
    low = np.round(basis @ np.array(greys, np.float64) @ basis.T, 3).reshape(len(pixels), -1)
    return np.packbits(low > np.median(low, axis=1, keepdims=True), axis=1)
