"""Which image of a group is kept: facts of the files, and an order of preference over them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distillhash.dedup.codes import HASH_PIXELS, Settings, are_flat, perceptual_hashes
from distillhash.dedup.trash import ATTACHED, Beside
from distillhash.errors import ParameterError
from distillhash.files import cores, digest
from distillhash.output import Progress
from distillhash.sources import MAX_PIXELS, BadItemError, ImageSource, Source, decode_image
from distillhash.sources.base import item_memory
from distillhash.sources.whole import LOOK_BYTES, Whole, alike_rows, look, whole_picture

CRITERIA = ("resolution", "size", "sharpness", "format")
"""The default policy: the first criterion that tells two images apart decides; what remains equal goes by path.

Sharpness counts in steps of a factor of 1.4, so that it tells a blown-up thumbnail from the real thing and leaves the rest to the size."""

FLAT_BOUNDS: dict[str, Any] = {"mean": 4, "most": 8}
FRAME_BOUNDS: dict[str, Any] = {"mean": 8, "most": 48}
"""Levels that small copies of two frames may differ by, on average and anywhere, where they show the same."""

_FORMATS = {"TIFF": 5, "PNG": 4, "BMP": 4, "PPM": 4, "WEBP": 2, "JPEG": 2, "AVIF": 2, "GIF": 1}
_SHARPNESS_SIDE = 256
Bytes = bytes  # for a class that has a field of that name


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of one image."""

    width: int  # pixels, upright
    height: int
    bytes: int  # of the stored item
    format: str  # ``JPEG``, ``PNG`` ... by content; ``PIXELS`` where the source holds arrays
    sharpness: float  # see :func:`sharpness`
    marks: Bytes  # the next three properties in one, for millions of images: 40 bytes
    n_frames: int = 1  # frames or pages; 0 where there are more than are looked at
    flat: bool = False  # without structure
    damage: str | None = None  # what is wrong with a file that is used all the same
    looks: Bytes = b""  # small copies of the frames

    @property
    def digest(self) -> str:
        """Of the content, 32 hex digits."""
        return self.marks[:16].hex()

    @property
    def pixels_digest(self) -> str:
        """Of all that is shown, 32 hex digits; see :mod:`distillhash.sources.whole`."""
        return self.marks[16:32].hex()

    @property
    def phash(self) -> str:
        """Perceptual hash of 64 bits of the first frame, 16 hex digits."""
        return self.marks[32:].hex()


def read_facts(source: ImageSource, row: int, *, max_pixels: int | None = None) -> Facts:
    """Facts of one image, which is decoded once; a :class:`BadItemError` where it cannot be read or decoded (any more)."""
    data = source.read(row)
    limit = MAX_PIXELS if max_pixels is None else max_pixels
    with item_memory():
        if isinstance(data, np.ndarray):
            pixels = decode_image(data, max_pixels=limit)
            whole = Whole(pixels, "PIXELS", digest(pixels), 1, look(pixels), None)
        else:
            whole = whole_picture(data, max_pixels=limit)
        pixels, (height, width, _) = whole.pixels, whole.pixels.shape
        image = Image.fromarray(pixels)
        return Facts(
            width,
            height,
            len(data) if isinstance(data, bytes) else data.nbytes,
            whole.format,
            sharpness(pixels),
            digest(data) + whole.digest + perceptual_hashes(pixels[None], 8).tobytes(),
            whole.n_frames,
            bool(are_flat(np.asarray(image.resize((HASH_PIXELS, HASH_PIXELS), Image.Resampling.BOX))[None])[0]),
            whole.damage,
            whole.looks,
        )


def sharpness(pixels: NDArray[np.uint8]) -> float:
    """Mean absolute second difference of brightness at 256 pixels on the long side, in grey levels.

    It falls with blur, low resolution and strong compression. It is comparable between copies of one picture only, and these are first
    brought to one size, so that a crisp thumbnail does not beat its original.
    """
    grey = Image.fromarray(pixels).convert("L")
    scale = _SHARPNESS_SIDE / max(grey.size)
    side = (max(3, round(grey.width * scale)), max(3, round(grey.height * scale)))
    values = np.asarray(grey.resize(side, Image.Resampling.BICUBIC), np.float32)
    second = 4 * values[1:-1, 1:-1] - values[:-2, 1:-1] - values[2:, 1:-1] - values[1:-1, :-2] - values[1:-1, 2:]
    return float(np.abs(second).mean())


def parse_policy(text: str) -> tuple[str, ...]:
    """``resolution,size`` as criteria; a :class:`ParameterError` for an unknown one, or one given twice."""
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    if not names or not set(names) <= set(CRITERIA) or len(set(names)) != len(names):
        raise ParameterError(f"keep takes some of {','.join(CRITERIA)} in order of weight, each once, got {text!r}")
    return names


def preference(
    facts: Sequence[Facts],
    keys: Sequence[str],
    policy: Sequence[str] = CRITERIA,
    central: NDArray[np.bool_] | None = None,
) -> NDArray[np.int64]:
    """Rows from the best to the worst by the policy; what is equal in all of it by path: shorter first, then alphabetical.

    Of images of one resolution, those that most of their copies look like (``central``) are better than one with letters all over it.
    """
    beside = Beside()

    def rank(row: int) -> tuple[object, ...]:
        fact = facts[row]
        scores = {
            "resolution": (-fact.width * fact.height, central is not None and not central[row]),
            "sharpness": -round(2 * math.log2(fact.sharpness + 1e-3)),  # noise and compression sharpen a little too
            "size": -fact.bytes,
            "format": -_FORMATS.get(fact.format, 3),
        }
        # Whole files first, and those that show more: nothing goes for a damaged copy, an animation for a still, or what has a RAW file.
        shows = (
            fact.damage is not None,
            -(fact.n_frames or math.inf),
            -len(beside.companions(keys[row], ATTACHED)),
        )
        return (*shows, *(scores[name] for name in policy), len(Path(keys[row]).name), keys[row])

    return np.array(sorted(range(len(facts)), key=rank), np.int64)


def gather_facts(source: Source, rows: NDArray[np.intp], settings: Settings) -> dict[int, Facts]:
    """Facts by row of the source, of images that can still be read; one decoded image in memory for each processor."""
    if not isinstance(source, ImageSource):
        return {}

    def one(row: int) -> Facts | None:
        try:
            return read_facts(source, row, max_pixels=settings.max_pixels)
        except BadItemError:
            return None

    found: dict[int, Facts] = {}
    shown = Progress("looking at near-duplicates", len(rows), quiet=not settings.progress)
    with shown, ThreadPoolExecutor(cores()) as pool:
        for start in range(0, len(rows), 256):
            part = rows[start : start + 256].tolist()
            found |= {row: facts for row, facts in zip(part, pool.map(one, part), strict=True) if facts is not None}
            shown.advance(len(part))
    return found


def kinds(facts: Sequence[Facts], parts: NDArray[np.integer[Any]], *, first_frame: bool = False) -> NDArray[np.int64]:
    """A number for each item; only items of one number show the same, whatever their codes say.

    Codes and hashes say little of pictures without structure, nothing of frames after the first, and may be misled by a damaged file.
    Such items (all others have number 0) agree where small copies of all their frames do. ``parts`` are numbers of items that may be
    linked; others are not compared. With ``first_frame``, nothing but the first frame counts.
    """
    numbers, last = np.zeros(len(facts), np.int64), 0
    waiting: dict[tuple[int, int, bool], list[int]] = {}
    ordinary: dict[int, list[int]] = {}
    for row, (fact, part) in enumerate(zip(facts, parts.tolist(), strict=True)):
        n_frames = 1 if first_frame else fact.n_frames
        if n_frames != 1 or fact.flat or fact.damage is not None:
            waiting.setdefault((part, n_frames, fact.flat), []).append(row)
        else:
            ordinary.setdefault(part, []).append(row)
    for (part, n_frames, flat), rows in waiting.items():
        bound = FLAT_BOUNDS if flat and n_frames == 1 else FRAME_BOUNDS
        others = ordinary.get(part, []) if n_frames == 1 and not flat else []
        length = LOOK_BYTES if n_frames == 1 else None
        levels = np.array([np.frombuffer(facts[row].looks[:length], np.uint8) for row in [*rows, *others]], np.int16)
        contents = np.array([facts[row].pixels_digest for row in rows])
        left = np.arange(len(rows))
        while len(left):
            one = left[0]
            same = contents[left] == contents[one]
            if n_frames:
                same |= alike_rows(levels[left], levels[one], **bound)
            is_ordinary = bool(len(others)) and alike_rows(levels[len(rows) :], levels[one], **bound).any()
            last += not is_ordinary
            numbers[[rows[place] for place in left[same]]] = 0 if is_ordinary else last
            left = left[~same]
    return numbers


def agree(a: Facts, b: Facts, *, first_frame: bool = False) -> bool:
    """Whether two items may be linked at all, see :func:`kinds`."""
    found = kinds([a, b], np.zeros(2, np.int64), first_frame=first_frame)
    return a.digest == b.digest or bool(found[0] == found[1])
