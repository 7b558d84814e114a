"""All that a file shows, and not only the RGB pixels that it is decoded to: frames, pages, transparency and depth.

Two files hold the same pixels when their digests agree. Every frame counts, at the depth of its samples and with its alpha channel. The
colour of pixels that cannot be seen does not, nor do durations, metadata and profiles. What cannot be decoded in full (colour deeper than 8
bits, extra channels, layers, frames that are damaged or too many) makes the file's own digest count, so that only the same file agrees.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distillhash.files import digest
from distillhash.sources.base import BadItemError
from distillhash.sources.decode import MAX_PIXELS, Encoded, has_alpha, open_encoded, to_rgb

MOST_FRAMES = 1_000
MOST_FRAME_PIXELS = 2**26  # of all frames after the first together: a second or so
LOOKS = 32  # frames that are compared by what they look like, evenly over all
_LOOK_SIDE = 16
LOOK_BYTES = 3 * _LOOK_SIDE**2
_TIFF_LAYERS, _TIFF_SUB_PICTURES, _TIFF_SAMPLES, _TIFF_BITS = 37724, 330, 277, 258
_DEEP_AVIF = 0x40  # in the third byte of the box av1C


@dataclass(frozen=True)
class Whole:
    """What :func:`whole_picture` tells of one file."""

    pixels: NDArray[np.uint8]  # as :func:`decode_image` gives them
    format: str
    digest: bytes  # of all frames
    n_frames: int  # frames or pages, at least 1; 0 where there are more than were decoded
    looks: bytes  # small copies of the first frame and of some of the others
    damage: str | None


def whole_picture(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Whole:
    """Decode a file with all it shows. A :class:`BadItemError` where its first frame cannot be decoded."""
    try:
        return _whole(data, max_pixels, frames=True)
    except BadItemError:  # the still picture may be sound where the animation is not
        return _whole(data, max_pixels, frames=False)


def alike_rows(rows: NDArray[np.int16], one: NDArray[np.int16], *, mean: float, most: int) -> NDArray[np.bool_]:
    """Which of ``rows``, ``(n, m) int16`` levels of looks, agree with ``one``: within ``mean`` on average and ``most`` anywhere."""
    away = np.abs(rows - one).reshape(len(rows), -1, LOOK_BYTES)
    return np.asarray((away.max(axis=(1, 2)) <= most) & (away.mean(axis=2).max(axis=1) <= mean))


def _whole(data: bytes, max_pixels: int, *, frames: bool) -> Whole:
    opened = open_encoded(data, max_pixels, frames=frames)
    with opened.explained():
        opaque = not frames or _is_deep(opened, data)
        opened.load()
        pixels = np.array(opened.upright(to_rgb(opened.image)))
        digests, looks = [_frame_digest(opened)], [look(pixels)]
    complete = True
    if opened.name == "JPEG" and not _shows_several(opened.image):
        opaque = opaque or (bool(opened.contents.rest) and "mp" in opened.image.info)
    elif frames:
        complete = _follow(opened, max_pixels, digests, looks)
    if opaque or not complete:
        digests.append(digest(data))
    chosen = [looks[i] for i in np.linspace(0, len(looks) - 1, min(len(looks), LOOKS)).astype(int)]
    whole = digests[0] if len(digests) == 1 else digest(b"".join(digests))
    return Whole(pixels, opened.name, whole, len(looks) if complete else 0, b"".join(chosen), opened.contents.damage)


def _follow(opened: Encoded, max_pixels: int, digests: list[bytes], looks: list[bytes]) -> bool:
    """Digests and looks of the frames after the first; False where not all of them were decoded."""
    image, left = opened.image, MOST_FRAME_PIXELS
    while True:
        try:
            image.seek(len(looks))
        except EOFError:
            return True
        except Exception:
            return False
        left -= image.width * image.height
        if len(looks) >= MOST_FRAMES or left < 0 or image.width * image.height > max_pixels:
            return False
        try:
            opened.load()
            digests.append(_frame_digest(opened))
            looks.append(look(np.asarray(to_rgb(image))))
        except Exception:
            return False


def _frame_digest(opened: Encoded) -> bytes:
    """Digest of a loaded frame: of its RGB pixels where it has no more than these."""
    image = opened.upright(opened.image)
    if has_alpha(opened.image):
        rgba = np.array(image.convert("RGBA"))
        if rgba[..., 3].min() == 255:
            return digest(np.ascontiguousarray(rgba[..., :3]))
        if rgba[..., 3].any():
            rgba[rgba[..., 3] == 0] = 0
        return digest(rgba)
    if image.mode in ("1", "L", "P", "RGB"):
        return digest(np.array(image.convert("RGB")))
    values = np.asarray(image)
    if values.dtype.kind in "iu" and values.min() >= 0 and values.max() <= 65535 and values.ndim == 2:
        values = values.astype(np.uint16)
    return digest(image.mode.encode() * (values.ndim == 3) + digest(values))


def look(pixels: NDArray[np.uint8]) -> bytes:
    """A small copy of ``(h, w, 3) uint8`` pixels, ``LOOK_BYTES`` long, to compare pictures by."""
    return Image.fromarray(pixels).resize((_LOOK_SIDE, _LOOK_SIDE), Image.Resampling.BOX).tobytes()


def _shows_several(image: Any) -> bool:
    """Whether the other pictures of a JPEG are more than previews of the first (an MPO file of views)."""
    kinds = [entry["Attribute"]["MPType"] for entry in getattr(image, "mpinfo", {}).get(0xB002, [])]
    return any(not kind.startswith(("Large Thumbnail", "Baseline MP Primary")) for kind in kinds)


def _is_deep(opened: Encoded, data: bytes) -> bool:
    """Whether the file holds more of its first frame than Pillow decodes: deeper colour, extra channels, layers, sub-pictures."""
    image: Any = opened.image
    coded = " ".join(str(tile[3]) for tile in image.tile)
    bands = len(image.getbands())
    if opened.name == "TIFF":
        tags = image.tag_v2
        depth = max(tags.get(_TIFF_BITS, (1,)))
        deep = depth > 8 and (bands > 1 or depth > 32 or image.mode in ("L", "P"))
        return deep or tags.get(_TIFF_SAMPLES, 1) > bands or _TIFF_LAYERS in tags or _TIFF_SUB_PICTURES in tags
    if opened.name == "PNG":
        return ";16" in coded and bands > 1
    if opened.name == "PPM":
        maximum = image.tile[0][3][1] if image.tile and isinstance(image.tile[0][3], tuple) else 0
        return isinstance(maximum, int) and maximum > 255 and bands > 1
    if opened.name == "AVIF":
        place = data.find(b"av1C")
        return place < 0 or bool(data[place + 6] & _DEEP_AVIF)
    return False
