"""Held-out edits: fourteen of each photograph, of kinds and strengths that neither the calibration nor its tuning has seen.

    python benchmarks/near_duplicates_held_out.py SOURCE FOLDER

They are drawn from what people do to pictures they pass on, without the edits of :mod:`distillhash.dedup.calibration`. They were written
before the calibration of heavy edits was, and are measured once. Files are named NUMBER-EDIT.SUFFIX, as in near_duplicates_set.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont, ImageOps

from distillhash.output import Progress
from distillhash.sources import ImageSource, decode_image, open_source

Draw = np.random.Generator


def saved(image: Image.Image, quality: int = 85, kind: str = "JPEG") -> bytes:
    """The image as a file."""
    stream = BytesIO()
    image.save(stream, kind, quality=quality)
    return stream.getvalue()


def tilted(image: Image.Image, rng: Draw) -> bytes:
    """Turned by 8 to 14 degrees; white corners."""
    angle = rng.choice([-1, 1]) * rng.uniform(8, 14)
    return saved(image.rotate(angle, Image.Resampling.BICUBIC, expand=True, fillcolor="white"))


def straightened(image: Image.Image, rng: Draw) -> bytes:
    """Turned by 5 to 9 degrees, and the largest upright part without corners (about 75% of each side) kept."""
    turned = image.rotate(rng.choice([-1, 1]) * rng.uniform(5, 9), Image.Resampling.BICUBIC)
    width, height = round(0.75 * image.width), round(0.75 * image.height)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return saved(turned.crop((left, top, left + width, top + height)))


def phone_screen(image: Image.Image, rng: Draw) -> bytes:
    """A screenshot of a phone that shows the picture: dark bars above and below, with words and buttons."""
    width = 360
    shown = image.resize((width, round(width * image.height / image.width)), Image.Resampling.BILINEAR)
    screen = Image.new("RGB", (width, round(shown.height * rng.uniform(1.5, 1.8))), (18, 18, 20))
    top = round((screen.height - shown.height) * rng.uniform(0.4, 0.6))
    screen.paste(shown, (0, top))
    draw = ImageDraw.Draw(screen)
    draw.text((12, 8), "09:41", fill="white", font=ImageFont.load_default(14))
    draw.text((12, top - 30), "Anna, yesterday", fill="white", font=ImageFont.load_default(16))
    for place in range(4):
        x = 40 + 90 * place
        draw.ellipse((x, screen.height - 34, x + 20, screen.height - 14), outline="white", width=2)
    return saved(screen)


def stickers(image: Image.Image, rng: Draw) -> bytes:
    """Three filled faces and stars, each as wide as a quarter of the shorter side."""
    edited, side = image.copy(), min(image.size) / 4
    draw = ImageDraw.Draw(edited)
    for number in range(3):
        x, y = rng.uniform(0, image.width - side), rng.uniform(0, image.height - side)
        fill = ("gold", "deeppink", "limegreen")[number]
        if number == 1:
            draw.regular_polygon((x + side / 2, y + side / 2, side / 2), 5, fill=fill, outline="black")
        else:
            draw.ellipse((x, y, x + side, y + side), fill=fill, outline="black")
            draw.arc((x + side / 4, y + side / 4, x + 3 * side / 4, y + 3 * side / 4), 20, 160, fill="black", width=3)
    return saved(edited)


def small_crop(image: Image.Image, rng: Draw) -> bytes:
    """A part with 60% of each side."""
    width, height = round(0.6 * image.width), round(0.6 * image.height)
    left, top = rng.integers(0, image.width - width + 1), rng.integers(0, image.height - height + 1)
    return saved(image.crop((int(left), int(top), int(left) + width, int(top) + height)))


def square(image: Image.Image, rng: Draw) -> bytes:  # noqa: ARG001  # nothing to draw
    """The square in the middle, as an avatar."""
    return saved(ImageOps.fit(image, (150, 150), Image.Resampling.LANCZOS))


def tiny(image: Image.Image, rng: Draw) -> bytes:  # noqa: ARG001  # nothing to draw
    """A preview of 48 pixels."""
    edited = image.copy()
    edited.thumbnail((48, 48))
    return saved(edited, 60)


def webp(image: Image.Image, rng: Draw) -> bytes:  # noqa: ARG001  # nothing to draw
    """WebP, quality 8."""
    return saved(image, 8, "WEBP")


def grey(image: Image.Image, rng: Draw) -> bytes:
    """Black and white, with more contrast."""
    return saved(ImageEnhance.Contrast(image.convert("L")).enhance(rng.uniform(1.2, 1.6)).convert("RGB"))


def filtered(image: Image.Image, rng: Draw) -> bytes:
    """The look of an old print: warm, less saturated, dark at the edges, a little soft."""
    soft = ImageEnhance.Color(image).enhance(0.6).filter(ImageFilter.GaussianBlur(0.6))
    y, x = np.mgrid[-1 : 1 : soft.height * 1j, -1 : 1 : soft.width * 1j]
    shade = 1 - 0.3 * (x * x + y * y)
    warm = np.array([1.12, 1.0, rng.uniform(0.7, 0.8)])
    return saved(Image.fromarray(np.clip(np.asarray(soft) * shade[..., None] * warm + 12, 0, 255).astype(np.uint8)))


def mirrored_crop(image: Image.Image, rng: Draw) -> bytes:
    """Left and right exchanged, and 85% of each side kept."""
    width, height = round(0.85 * image.width), round(0.85 * image.height)
    left, top = int(rng.integers(0, image.width - width + 1)), int(rng.integers(0, image.height - height + 1))
    return saved(ImageOps.mirror(image).crop((left, top, left + width, top + height)))


def stretched(image: Image.Image, rng: Draw) -> bytes:
    """A quarter wider than high it should be."""
    return saved(image.resize((round(image.width * rng.uniform(1.2, 1.3)), image.height), Image.Resampling.BICUBIC))


def meme(image: Image.Image, rng: Draw) -> bytes:
    """A white band with two lines of text above, a third as high as the picture."""
    band = round(image.height * rng.uniform(0.28, 0.36))
    page = Image.new("RGB", (image.width, image.height + band), "white")
    page.paste(image, (0, band))
    font = ImageFont.load_default(max(8, band // 4))
    ImageDraw.Draw(page).multiline_text((8, band // 6), "when it is only\nMonday morning", fill="black", font=font)
    return saved(page)


def turned(image: Image.Image, rng: Draw) -> bytes:  # noqa: ARG001  # nothing to draw
    """By 90 degrees, in the pixels and not by EXIF."""
    return saved(image.transpose(Image.Transpose.ROTATE_90))


HELD_OUT: dict[str, Callable[[Image.Image, Draw], bytes]] = {
    "tilted": tilted,
    "straightened": straightened,
    "phone": phone_screen,
    "stickers": stickers,
    "crop60": small_crop,
    "square": square,
    "tiny": tiny,
    "webp8": webp,
    "grey": grey,
    "filtered": filtered,
    "mirrorcrop": mirrored_crop,
    "stretched": stretched,
    "meme": meme,
    "turned90": turned,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    source = open_source(arguments.source)
    assert isinstance(source, ImageSource)
    make_held_out(source, arguments.folder)


def make_held_out(source: ImageSource, folder: Path) -> None:
    """Write what is not there yet: ``held-out/`` edits beside the originals in ``original/``."""
    for part in ("original", "held-out"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    with Progress("images", len(source)) as progress:
        for row in range(len(source)):
            data = source.read(row)
            assert isinstance(data, bytes)
            progress.advance(1)
            if (folder / "held-out" / f"{row:05}-turned90.jpg").exists():
                continue
            (folder / "original" / f"{row:05}-original.jpg").write_bytes(data)
            image = Image.fromarray(decode_image(data))
            for number, (name, edit) in enumerate(HELD_OUT.items()):
                file = folder / "held-out" / f"{row:05}-{name}.{'webp' if name == 'webp8' else 'jpg'}"
                file.write_bytes(edit(image, np.random.default_rng([row, number])))


if __name__ == "__main__":
    main()
