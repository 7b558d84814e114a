"""Which image of a group is kept: facts of the files, and an order of preference over them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distillhash.dedup.codes import Settings
from distillhash.errors import ParameterError
from distillhash.files import cores, digest
from distillhash.progress import Progress
from distillhash.sources import MAX_PIXELS, BadItemError, ImageSource, Source, decode_image, image_format

CRITERIA = ("resolution", "size", "sharpness", "format")
"""The default policy: the first criterion that tells two images apart decides; what remains equal goes by path.

Sharpness counts in steps of a factor of 1.4, so that it tells a blown-up thumbnail from the real thing and leaves the rest to the size."""

_FORMATS = {"TIFF": 5, "PNG": 4, "BMP": 4, "PPM": 4, "WEBP": 2, "JPEG": 2, "AVIF": 2, "GIF": 1}
_SHARPNESS_SIDE = 256


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of one image."""

    width: int  # pixels, upright
    height: int
    bytes: int  # of the stored item
    format: str  # ``JPEG``, ``PNG`` ... by content; ``PIXELS`` where the source holds arrays
    sharpness: float  # see :func:`sharpness`
    digest: str  # of the content, 32 hex digits
    pixels_digest: str  # of the decoded upright pixels; equal for the same picture in two lossless files
    phash: str  # perceptual hash of 64 bits, 16 hex digits


def read_facts(source: ImageSource, row: int, *, max_pixels: int | None = None) -> Facts:
    """Facts of one image, which is decoded once; a :class:`BadItemError` where it cannot be read or decoded (any more)."""
    import imagehash

    data = source.read(row)
    pixels = decode_image(data, max_pixels=MAX_PIXELS if max_pixels is None else max_pixels)
    height, width = pixels.shape[:2]
    size, kind = (data.nbytes, "PIXELS") if isinstance(data, np.ndarray) else (len(data), image_format(data))
    digests = digest(data).hex(), digest(pixels).hex()
    return Facts(width, height, size, kind, sharpness(pixels), *digests, str(imagehash.phash(Image.fromarray(pixels))))


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


def preference(facts: Sequence[Facts], keys: Sequence[str], policy: Sequence[str] = CRITERIA) -> NDArray[np.int64]:
    """Rows from the best to the worst by the policy; what is equal in all of it by path: shorter first, then alphabetical."""

    def rank(row: int) -> tuple[object, ...]:
        fact = facts[row]
        scores = {
            "resolution": -fact.width * fact.height,
            "sharpness": -round(2 * math.log2(fact.sharpness + 1e-3)),  # noise and compression sharpen a little too
            "size": -fact.bytes,
            "format": -_FORMATS.get(fact.format, 3),
        }
        return (*(scores[name] for name in policy), len(Path(keys[row]).name), keys[row])

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
