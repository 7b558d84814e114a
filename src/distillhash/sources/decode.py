"""From stored bytes to RGB pixels, whatever the file claims to be.

The format is found from the content, never from the file name, among an allow-list: JPEG (and MPO), PNG, WebP, GIF and APNG (first
frame), BMP, TIFF (first page), PPM/PGM/PBM, and AVIF where this Pillow has it. Pixel counts are checked from the header before a
pixel is decoded. Readers come from Pillow's registry instead of ``Image.open``, whose own pixel limit is a process-wide global.

How each kind of pixel becomes RGB:

* the EXIF orientation is applied;
* transparency (an alpha channel, or a transparent palette entry or colour) is composited over a ground on which the drawing is seen:
  white, or where more than 1% of what is visible is nearly white, the first of black, grey and magenta that little of it resembles (else
  the one that the least does). A drawing without a visible pixel is shown as if it were opaque;
* 16-bit grey is divided by 257 with rounding, so 65535 becomes 255 (Pillow's own conversion clips at 255);
* 32-bit integers count as 16-bit when they lie in 0..65535. Others, and floats, have no fixed white point: they are stretched from
  their finite minimum to their finite maximum. What is not finite becomes black, and so does a constant image;
* 1-bit, grey, palette, 16-bit colour, YCbCr and CMYK/YCCK go through Pillow's conversion (no colour profile is applied).

What does not bear on the pixels (text, comments, profiles) is left out first, so none of it can stop a picture. A file that ends early is
read as browsers do where its format allows, and :func:`damage_of` says so: a JPEG that is cut is grey where nothing is left.
"""

import contextlib
import importlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from io import BytesIO
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile

from distillhash.errors import ParameterError, first_line
from distillhash.sources.base import BadItemError, item_memory
from distillhash.sources.containers import Contents, contents

MAX_PIXELS = 178_956_970  # width x height: 512 MiB of RGB pixels, and the number at which Pillow itself refuses
_PLUGINS = {  # Pillow's name of a format, and of the plug-in that reads it
    "JPEG": "Jpeg",
    "PNG": "Png",
    "WEBP": "WebP",
    "GIF": "Gif",
    "BMP": "Bmp",
    "TIFF": "Tiff",
    "PPM": "Ppm",
    "AVIF": "Avif",
}
_ROWS = 256  # that NumPy resizes together
_LARGE, _MOST_FOLDED = 2**27, 4096  # bytes of pixels, from which on a file holds a byte for every so many at least
_TINY = 64  # pixels a side, up to which a PNG is smaller than a JPEG, and images are resized together faster than one by one
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ALPHA_MODES = {"LA", "PA", "RGBA", "RGBa"}
_GROUNDS = ((255, 255, 255), (0, 0, 0), (128, 128, 128), (255, 0, 255))  # what is composited over, the first best
_RESEMBLES = 64  # levels in every channel, below which a colour is not seen on a ground
_BAND = 2**20  # pixels looked at together
_UNSEEN = 0.01  # share of the visible that may resemble the ground
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}

for _plugin in _PLUGINS.values():
    # Importing a plug-in registers its reader; the AVIF one came with Pillow 11.3.
    with contextlib.suppress(ImportError):
        importlib.import_module(f"PIL.{_plugin}ImagePlugin")


def decode_image(data: bytes | NDArray[Any], *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Decode an encoded file to ``(h, w, 3) uint8`` RGB pixels, upright, at full size; pixels are returned as they are. Deterministic.

    ``max_pixels`` is the largest width x height accepted, read from the header before anything is decoded.

    Raises:
        BadItemError: not an image of the allow-list, over the limit, truncated or damaged; nothing else, whatever the bytes.
    """
    if isinstance(data, np.ndarray):
        return _checked_pixels(data, max_pixels)
    return open_encoded(data, max_pixels).pixels()


def resize_image(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize ``(h, w, 3) uint8`` to ``(size, size, 3) uint8``, aspect not kept: the bicubic filter, widened when shrinking (antialiased).

    Torch's kernel for bytes. It differs from Pillow's by a few grey levels at most, in under 1% of the pixels (their fixed-point weights
    are rounded differently), and takes a third of the time. Without torch NumPy does the same, bit for bit, and takes longer.
    """
    # Not pixels[None], whose stride hides from torch that the channels come last: it takes up to 16 times as long then.
    resized: NDArray[np.uint8] = resize_images(pixels.reshape(1, *pixels.shape), size)[0]
    return resized


def resize_images(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """:func:`resize_image` of ``(n, h, w, 3)`` images of one shape, with equal results; small ones take a third of the time together."""
    _check_size(size)
    if find_spec("torch") is None:
        return np.stack([_resize_plainly(pixels, size) for pixels in images])
    import torch  # here, because decoding alone does without it

    tensor = torch.from_numpy(images if images.flags.writeable else images.copy()).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(tensor, (size, size), mode="bicubic", antialias=True)
    rows: NDArray[np.uint8] = resized.permute(0, 2, 3, 1).contiguous().numpy()
    return rows


def _resize_plainly(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """What torch's kernel does: first along the rows and then along the columns, in integers, rounded to bytes after each."""
    height, width, _ = pixels.shape
    if width != size:
        rows = range(0, height, _ROWS)
        blocks = [_resize_first_axis(pixels[row : row + _ROWS].transpose(1, 0, 2), size) for row in rows]
        pixels = np.concatenate([block.transpose(1, 0, 2) for block in blocks])
    return np.ascontiguousarray(pixels if height == size else _resize_first_axis(pixels, size))


def _resize_first_axis(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """``(n, m, 3)`` to ``(size, m, 3)``."""
    weights, bits = _bicubic_weights(len(pixels), size)
    sums = weights @ pixels.reshape(len(pixels), -1).astype(np.float64)  # of integers, which float64 adds exactly
    rounded = np.floor((sums + 2.0 ** (bits - 1)) / 2.0**bits)
    return np.clip(rounded, 0, 255).astype(np.uint8).reshape(size, *pixels.shape[1:])


@lru_cache(maxsize=64)
def _bicubic_weights(n: int, size: int) -> tuple[NDArray[np.float64], int]:
    """Integer weights ``(size, n)`` of Keys's cubic with a = -1/2, times 2 to the power of the second result: the most that int16 holds."""
    scale = n / size
    inverse, support = (1 / scale, 2 * scale) if scale >= 1 else (1.0, 2.0)
    centres = scale * (np.arange(size)[:, None] + 0.5)
    first = np.maximum((centres - support + 0.5).astype(np.int64), 0)
    last = np.minimum((centres + support + 0.5).astype(np.int64), n)
    places = np.arange(n)
    x = np.abs((places - centres + 0.5) * inverse)
    near, far = (1.5 * x - 2.5) * x * x + 1, (((x - 5) * x + 8) * x - 4) * -0.5
    weights = np.where(x < 1, near, np.where(x < 2, far, 0.0)) * ((places >= first) & (places < last))
    weights /= weights.sum(axis=1, keepdims=True)
    largest, bits = float(weights.max()), 0
    while bits < 22 and int(0.5 + largest * 2 ** (bits + 1)) < 2**15:
        bits += 1
    return np.trunc(weights * 2**bits + np.copysign(0.5, weights)), bits


def decode_resized(data: bytes | NDArray[Any], size: int, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Decode and resize in one go: :func:`decode_sizes` for a single size."""
    return decode_sizes(data, {size}, max_pixels)[size]


def decode_sizes(
    data: "bytes | NDArray[Any] | Encoded",
    sizes: Collection[int],
    max_pixels: int = MAX_PIXELS,
    *,
    enlarge: bool = True,
) -> dict[int, NDArray[np.uint8]]:
    """Decode and resize to several sizes: what feature extraction calls for every image.

    Equal to ``resize_image(decode_image(data), size)`` with one shortcut: a JPEG whose sides are both ``4 * size`` or more is decoded at
    1/2, 1/4 or 1/8 (in the DCT domain, the smallest that leaves ``2 * size``). Sizes that need the same scale share one decoding; all
    other images are decoded once. Without sizes, the header and its pixel count are checked and no more.

    ``data`` may be what :func:`open_encoded` made of bytes; it can be decoded once. Returns ``(size, size, 3) uint8`` RGB, upright,
    aspect not kept, for each size. Without ``enlarge`` an image of at most 64 pixels a side is left as it is where no side is above the
    size, for :func:`resize_images`; larger ones gain nothing by it. Errors are those of :func:`decode_image`.
    """
    for size in sizes:
        _check_size(size)

    def resized_to(pixels: NDArray[np.uint8], wanted: Collection[int]) -> dict[int, NDArray[np.uint8]]:
        side, small = max(pixels.shape[:2]), 0 if enlarge else _TINY
        with item_memory():
            return {size: pixels if side <= min(size, small) else resize_image(pixels, size) for size in wanted}

    if isinstance(data, np.ndarray):
        return resized_to(_checked_pixels(data, max_pixels), sizes)
    opened = open_encoded(data, max_pixels) if isinstance(data, bytes) else data
    by_scale: dict[int, list[int]] = {}
    for size in sizes:
        possible = [scale for scale in (8, 4, 2) if opened.name == "JPEG" and min(opened.size) >= 2 * scale * size]
        by_scale.setdefault(possible[0] if possible else 1, []).append(size)
    resized: dict[int, NDArray[np.uint8]] = {}
    for scale, group in by_scale.items():
        resized |= resized_to(opened.pixels(2 * group[0] if scale > 1 else None), group)
        if len(resized) < len(sizes):
            opened = open_encoded(opened.contents.data)  # it can be decoded once
    return resized


def decode_thumbnail(data: bytes | NDArray[Any], side: int, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Decode one image for people: its longest side is at most ``side`` pixels, aspect kept. See :func:`decode_image`."""
    _check_size(side)
    if isinstance(data, np.ndarray):
        image = Image.fromarray(_checked_pixels(data, max_pixels))
    else:
        opened = open_encoded(data, max_pixels)
        image = Image.fromarray(opened.pixels(side if min(opened.size) >= 2 * side else None))
    with item_memory():
        image.thumbnail((side, side))
        return np.array(image)


def encode_thumbnail(data: bytes | NDArray[Any], side: int, *, max_pixels: int = MAX_PIXELS) -> tuple[bytes, str]:
    """A small copy of an image as a file for a page, and its media type: PNG up to 64 pixels a side (smaller there), else JPEG."""
    image = Image.fromarray(decode_thumbnail(data, side, max_pixels=max_pixels))
    stream = BytesIO()
    if max(image.size) <= _TINY:
        image.save(stream, "PNG")
        return stream.getvalue(), "image/png"
    image.save(stream, "JPEG", quality=84, progressive=True)
    return stream.getvalue(), "image/jpeg"


def image_size(data: bytes | NDArray[Any]) -> tuple[int, int]:
    """Width and height as the image is shown (EXIF orientation applied), from the header alone."""
    if isinstance(data, np.ndarray):
        return data.shape[1], data.shape[0]
    opened = open_encoded(data)
    width, height = opened.size
    # Pillow gives the size of a TIFF as it is shown already.
    return (height, width) if opened.name != "TIFF" and opened.orientation() in (5, 6, 7, 8) else (width, height)


def image_format(data: bytes) -> str:
    """The format's name found from the content: ``JPEG``, ``PNG``, ``WEBP``, ``GIF``, ``BMP``, ``TIFF``, ``PPM`` or ``AVIF``."""
    return open_encoded(data).name


def damage_of(data: "bytes | NDArray[Any] | Encoded") -> str | None:
    """What is wrong with a file that is read all the same, as browsers do: it ends early, or a checksum of its pixels is wrong."""
    if isinstance(data, np.ndarray):
        return None
    return (contents(data) if isinstance(data, bytes) else data.contents).damage


@dataclass
class Encoded:
    """An encoded image: its header is read, and its pixels are not."""

    name: str  # the format's
    image: ImageFile.ImageFile
    contents: Contents

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as stored."""
        return self.image.size

    def orientation(self) -> int:
        """The EXIF (or XMP) orientation 1..8; 1 when the block is absent or damaged, which is no reason to lose the picture."""
        try:
            # Not the method of a PNG, which decodes all pixels to look behind them.
            value = Image.Image.getexif(self.image).get(ExifTags.Base.Orientation, 1)
        except Exception:
            return 1
        return value if isinstance(value, int) else 1

    def pixels(self, draft_size: int | None = None) -> NDArray[np.uint8]:
        """``(h, w, 3) uint8``, upright; with ``draft_size``, a JPEG may come smaller, no side below it."""
        with self.explained():
            self.load(draft_size)
            return np.array(self.upright(to_rgb(self.image)))

    def load(self, draft_size: int | None = None) -> None:
        """Decode the pixels of the frame that the image is at."""
        if self.contents.lacking:
            raise OSError("image file is truncated: too little of it is left")
        if draft_size is not None:
            self.image.draft(None, (draft_size, draft_size))
        # One block: Pillow otherwise feeds the decoder 64 KiB at a time, copying what is left over each time.
        self.image.decodermaxblock = max(self.image.decodermaxblock, len(self.contents.data))
        self.image.load()

    def upright(self, image: Image.Image) -> Image.Image:
        """The loaded image, or one made from it, turned as the orientation says."""
        transpose = _TRANSPOSE.get(self.orientation())
        return image if transpose is None else image.transpose(transpose)

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Damaged files raise anything: OSError, SyntaxError, ValueError, struct.error, zlib.error, MemoryError..."""
        try:
            yield
        except Exception as error:
            raise BadItemError(f"the {self.name} data cannot be decoded: {first_line(error)}") from error


def open_encoded(data: bytes, max_pixels: int | None = None, *, frames: bool = False) -> Encoded:
    """Read the header. A :class:`BadItemError` where the format is unknown, the header damaged, or ``max_pixels`` exceeded."""
    prefix = data[:16]
    for name in _PLUGINS:
        factory, accept = Image.OPEN.get(name, (None, None))
        if factory is None or accept is None or not (accepted := accept(prefix)):
            continue
        if isinstance(accepted, str):
            raise BadItemError(f"{name} images need a Pillow built with {name} support: {accepted}")
        try:
            parts = contents(data, frames=frames)
            image = factory(BytesIO(parts.data), "")
        except Exception as error:  # a damaged header raises anything
            raise BadItemError(f"the {name} header cannot be read: {first_line(error)}") from error
        if max_pixels is not None:
            _check_pixel_count(*image.size, max_pixels)
            _check_claim(image, len(data))
        return Encoded(name, image, parts)
    if not data:
        raise BadItemError("the file is empty")
    if prefix[4:8] == b"ftyp" and prefix[8:12] in _HEIF_BRANDS:
        raise BadItemError("HEIC/HEIF images are not supported; convert them to JPEG first")
    raise BadItemError(f"the content is not an image of a known format ({', '.join(_PLUGINS)})")


def to_rgb(image: Image.Image) -> Image.Image:
    """A loaded image of any mode as RGB, as the module says."""
    mode = image.mode
    if mode.startswith("I;16"):
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if mode in {"I", "F"}:
        return Image.fromarray(_stretch(np.asarray(image))).convert("RGB")
    if has_alpha(image):
        return _composited(image.convert("RGBA"))
    return image if mode == "RGB" else image.convert("RGB")


def has_alpha(image: Image.Image) -> bool:
    """Whether pixels can be transparent."""
    return image.mode in _ALPHA_MODES or "transparency" in image.info


def _composited(layer: Image.Image) -> Image.Image:
    """An RGBA image over the ground on which what is visible of it is seen."""
    alpha = layer.getchannel("A")
    low, high = cast("tuple[int, int]", alpha.getextrema())
    if low == 255 or (high == 0 and layer.getcolors(1) is None):  # more than one colour
        return layer.convert("RGB")
    canvas = Image.new("RGB", layer.size, _ground(layer))
    canvas.paste(layer, mask=alpha)
    return canvas


def _ground(layer: Image.Image) -> tuple[int, int, int]:
    """The first of the grounds that little of what is visible of an RGBA image resembles, else the one that the least does."""
    visible, unseen = 0, np.zeros(len(_GROUNDS), np.int64)
    rows = max(1, _BAND // layer.width)
    for top in range(0, layer.height, rows):
        rgba = np.asarray(layer.crop((0, top, layer.width, top + rows)), np.int16)  # transparent beyond the last row
        colours, alpha = rgba[..., :3], rgba[..., 3]
        visible += int(alpha.sum(dtype=np.int64))
        near = [(np.abs(colours - np.array(ground, np.int16)) < _RESEMBLES).all(axis=2) for ground in _GROUNDS]
        unseen += [alpha[one].sum(dtype=np.int64) for one in near]
    enough = np.flatnonzero(unseen <= _UNSEEN * visible)
    return _GROUNDS[int(enough[0]) if len(enough) else int(unseen.argmin())]


def _eight_bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _stretch(values: NDArray[Any]) -> NDArray[np.uint8]:
    finite = np.isfinite(values)
    if not finite.any():
        return np.zeros(values.shape, np.uint8)
    low, high = float(values[finite].min()), float(values[finite].max())
    if values.dtype.kind == "i" and low >= 0 and high <= 65535:
        return _eight_bits(values)
    scale = 255 / (high - low) if high > low else 0.0
    return np.rint(np.where(finite, values - low, 0) * scale).astype(np.uint8)


def _checked_pixels(pixels: NDArray[Any], max_pixels: int) -> NDArray[np.uint8]:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
        raise BadItemError(f"pixels must be (h, w, 3) uint8 with h, w >= 1, got {pixels.dtype} of shape {pixels.shape}")
    _check_pixel_count(pixels.shape[1], pixels.shape[0], max_pixels)
    return pixels


def _check_pixel_count(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise BadItemError(
            f"the image is {width} x {height} pixels, over the limit of {max_pixels} pixels; raise it with --max-pixels"
        )


def _check_claim(image: Image.Image, n_bytes: int) -> None:
    """Refuse a header that announces what takes much memory and hardly can be in a file of its size."""
    needed = image.width * image.height * (2 if image.mode == "1" else 4)  # blank pages of a fax are large and small
    if needed > max(_LARGE, _MOST_FOLDED * n_bytes):
        raise BadItemError(f"{n_bytes} bytes hardly hold the {image.width} x {image.height} pixels of the header")


def _check_size(size: int) -> None:
    if size < 1:
        raise ParameterError(f"the target size must be at least 1 pixel, got {size}")
