"""Which image of a group is kept: facts of the files, and an order of preference over them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distillhash.errors import ParameterError
from distillhash.files import cores, digest
from distillhash.progress import Progress
from distillhash.sources import MAX_PIXELS, BadItemError, ImageSource, decode_image, image_format

CRITERIA = ("resolution", "size", "sharpness", "format")
"""The default policy: the first criterion that tells two images apart decides; what remains equal goes by path.

Sharpness counts in steps of a factor of 1.4, so that it tells a blown-up thumbnail from the real thing and leaves the rest to the size."""

_FORMATS = {"TIFF": 5, "PNG": 4, "BMP": 4, "PPM": 4, "WEBP": 2, "JPEG": 2, "AVIF": 2, "GIF": 1}
_SHARPNESS_SIDE = 256


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of one image.

    Attributes:
        width: Pixels, upright.
        height: Pixels, upright.
        bytes: Size of the stored item.
        format: ``JPEG``, ``PNG`` ... by content; ``PIXELS`` where the source holds arrays.
        sharpness: Mean absolute second difference of brightness at 256 pixels on the long side, in grey levels: falls with blur, low
            resolution and strong compression; comparable between copies of one picture only.
        digest: Content digest, 32 hex digits.
        pixels_digest: Digest of the decoded upright pixels, 32 hex digits; equal for the same picture in two lossless files.
        phash: Perceptual hash of 64 bits as 16 hex digits.
    """

    width: int
    height: int
    bytes: int
    format: str
    sharpness: float
    digest: str
    pixels_digest: str
    phash: str


def read_facts(source: ImageSource, row: int, *, max_pixels: int | None = None) -> Facts:
    """Facts of one image; decodes it once.

    Raises:
        BadItemError: it cannot be read or decoded (any more).
    """
    data = source.read(row)
    pixels = decode_image(data, max_pixels=MAX_PIXELS if max_pixels is None else max_pixels)
    stored = data.nbytes if isinstance(data, np.ndarray) else len(data)
    kind = "PIXELS" if isinstance(data, np.ndarray) else image_format(data)
    height, width = pixels.shape[:2]
    return Facts(
        width,
        height,
        stored,
        kind,
        sharpness(pixels),
        digest(data).hex(),
        digest(pixels).hex(),
        perceptual_hash(pixels),
    )


def sharpness(pixels: NDArray[np.uint8]) -> float:
    """See :attr:`Facts.sharpness`. Both copies are first brought to one size: a crisp thumbnail does not beat its original."""
    from PIL import Image

    grey = Image.fromarray(pixels).convert("L")
    scale = _SHARPNESS_SIDE / max(grey.size)
    side = (max(3, round(grey.width * scale)), max(3, round(grey.height * scale)))
    values = np.asarray(grey.resize(side, Image.Resampling.BICUBIC), np.float32)
    second = 4 * values[1:-1, 1:-1] - values[:-2, 1:-1] - values[2:, 1:-1] - values[1:-1, :-2] - values[1:-1, 2:]
    return float(np.abs(second).mean())


def perceptual_hash(pixels: NDArray[np.uint8]) -> str:
    """64-bit DCT hash by the library imagehash, as 16 hex digits."""
    import imagehash
    from PIL import Image

    return str(imagehash.phash(Image.fromarray(pixels)))


def phash_distance(a: str, b: str) -> int:
    """Bits between two perceptual hashes."""
    return (int(a, 16) ^ int(b, 16)).bit_count()


def parse_policy(text: str) -> tuple[str, ...]:
    """``resolution,size`` as criteria.

    Raises:
        ParameterError: an unknown criterion, or one given twice.
    """
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    unknown = [name for name in names if name not in CRITERIA]
    if unknown or not names or len(set(names)) != len(names):
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


def gather_facts(
    source: ImageSource, rows: NDArray[np.intp], *, max_pixels: int | None = None, progress: bool = False
) -> dict[int, Facts]:
    """Facts by row; what can no longer be read is left out. A core each, memory of one decoded image a core."""

    def one(row: int) -> Facts | None:
        try:
            return read_facts(source, row, max_pixels=max_pixels)
        except BadItemError:
            return None

    found: dict[int, Facts] = {}
    with (
        Progress("looking at near-duplicates", len(rows), quiet=not progress) as shown,
        ThreadPoolExecutor(cores()) as pool,
    ):
        for start in range(0, len(rows), 256):
            part = rows[start : start + 256].tolist()
            found |= {row: facts for row, facts in zip(part, pool.map(one, part), strict=True) if facts is not None}
            shown.advance(len(part))
    return found
