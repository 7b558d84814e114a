"""The near-duplicate set: photographs and twelve edits of each, six light and six heavy, as files in one folder.

    python benchmarks/near_duplicates_set.py SOURCE FOLDER

The strengths are fixed and are not those that calibration draws. Files are named NUMBER-EDIT.SUFFIX; the number says which belong together.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from distillhash.dedup import edits
from distillhash.output import Progress
from distillhash.sources import ImageSource, decode_image, open_source

LIGHT: dict[str, Callable[[Image.Image], bytes]] = {
    "jpeg60": lambda image: edits.reencode(image, quality=60),
    "resize70": lambda image: edits.resize(image, scale=0.7),
    "crop95": lambda image: edits.crop(image, keep=0.95, x=0.3, y=0.7),
    "brighter": lambda image: edits.brighten(image, factor=1.2),
    "text": lambda image: edits.write_text(image, height=0.07, text="© Anna, summer 2019"),
    "exif": lambda image: edits.turn_by_exif(image, orientation=6),
}
HEAVY: dict[str, Callable[[Image.Image], bytes]] = {
    "jpeg10": lambda image: edits.reencode(image, quality=10),
    "resize25": lambda image: edits.resize(image, scale=0.25),
    "crop70": lambda image: edits.crop(image, keep=0.7, x=0.3, y=0.7),
    "darker": lambda image: edits.brighten(image, factor=0.4),
    "bigtext": lambda image: edits.write_text(image, height=0.25, y=0.5, text="SAMPLE"),
    "mirror": edits.mirror,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    source = open_source(arguments.source)
    assert isinstance(source, ImageSource)
    make_set(source, arguments.folder)


def make_set(source: ImageSource, folder: Path) -> None:
    """Write what is not there yet: ``light/`` and ``heavy/`` edits beside the originals in ``original/``."""
    for part in ("original", "light", "heavy"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    with Progress("images", len(source)) as progress:
        for row in range(len(source)):
            data = source.read(row)
            assert isinstance(data, bytes)
            progress.advance(1)
            if (folder / "heavy" / f"{row:05}-mirror.jpg").exists():
                continue
            (folder / "original" / f"{row:05}-original.jpg").write_bytes(data)
            image = Image.fromarray(decode_image(data))
            for part, made in (("light", LIGHT), ("heavy", HEAVY)):
                for name, edit in made.items():
                    (folder / part / f"{row:05}-{name}.jpg").write_bytes(edit(image))


if __name__ == "__main__":
    main()
