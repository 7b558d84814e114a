"""What users of other programs reported as missed or wrong duplicates, with pictures made from scratch; one run over all of them."""

import os
import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter
from scipy.ndimage import gaussian_filter

from distillhash.backbones import FeatureCache
from distillhash.dedup import edits
from distillhash.dedup.codes import Settings
from distillhash.dedup.job import Item, Report, find_duplicates
from distillhash.sources import open_source

pytestmark = pytest.mark.long


def picture(seed: int, width: int = 320, height: int = 240) -> Image.Image:
    """Shapes over a sky and a ground, in the colours of the seed."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    sky, ground = rng.integers(90, 256, 3), rng.integers(20, 140, 3)
    horizon = height * rng.uniform(0.3, 0.7)
    values = np.where((y > horizon + 15 * np.sin(x / rng.uniform(15, 60)))[..., None], ground, sky).astype(float)
    for _ in range(int(rng.integers(6, 14))):
        cx, cy, a, b = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(8, 60), rng.uniform(8, 60)
        inside = (
            ((x - cx) / a) ** 2 + ((y - cy) / b) ** 2 < 1
            if rng.random() < 0.6
            else (abs(x - cx) < a) & (abs(y - cy) < b)
        )
        values[inside] = rng.integers(0, 256, 3)
    texture = gaussian_filter(rng.standard_normal((height, width)), 1.5)[..., None]
    return Image.fromarray(np.clip(values + 60 * texture, 0, 255).astype(np.uint8))


def jpeg(image: Image.Image, quality: int = 92) -> bytes:
    stream = BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return stream.getvalue()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    root = tmp_path_factory.mktemp("reports")
    for seed in range(24):
        picture(seed).save(root / f"{seed:02}.png")
    made = {
        "00-crop.jpg": edits.crop(picture(0), keep=0.7, x=0.2, y=0.9),
        "01-mirror.jpg": edits.mirror(picture(1)),
        "04-turned.jpg": edits.turn_by_exif(picture(4), orientation=8),
        "05-little-crop.jpg": edits.crop(picture(5), keep=0.93),
        "06-preview.jpg": edits.thumbnail(picture(6), side=64),
        "07-strong.jpg": edits.reencode(picture(7), quality=10),
        "30-dot.gif": b"",
    }
    for name, data in made.items():
        (root / name).write_bytes(data)
    Image.new("RGB", (1, 1), "white").save(root / "30-dot.gif")
    shutil.copy(root / "02.png", root / "02-again.png")
    tagged, exif = Image.open(root / "03.png"), Image.Exif()
    exif[0x010F] = "another maker"
    tagged.save(root / "03-tagged.png", exif=exif)
    os.link(root / "08.png", root / "08-link.png")
    whole = jpeg(picture(9))
    (root / "09.jpg").write_bytes(whole)
    (root / "09-torn.jpg").write_bytes(whole[: 3 * len(whole) // 4])
    stream = BytesIO()
    picture(10).save(stream, "PNG", compress_level=1)
    (root / "10-misnamed.jpg").write_bytes(stream.getvalue())
    for seed in (40, 41, 42):  # taken in the dark
        dark = np.asarray(picture(seed).filter(ImageFilter.GaussianBlur(3)), float) * 0.06
        Image.fromarray(dark.astype(np.uint8)).save(root / f"{seed}-dark.png")
    frame = picture(50)
    for place in (40, 130):  # a burst: the subject walks on
        shot = frame.copy()
        shot.paste(picture(51, 110, 150), (place, 60))
        shot.save(root / f"50-burst{place}.png")
    return find_duplicates(open_source(root), Settings(cache=FeatureCache(tmp_path_factory.mktemp("features"))))


def group(report: Report, name: str) -> dict[str, Item]:
    """The group of a file, by name."""
    for items in report.groups:
        found = {Path(item.path).name: item for item in items}
        if name in found:
            return found
    return {}


def test_crops_are_found(report: Report) -> None:
    """qarmin/czkawka#1575, OurGuru/Offline-Reverse-Image-Search#4."""
    assert "cropped" in group(report, "00.png")["00-crop.jpg"].edits
    assert "05-little-crop.jpg" in group(report, "05.png")


def test_mirror_images_are_found(report: Report) -> None:
    """qarmin/czkawka#1467, qarmin/czkawka#1629."""
    found = group(report, "01.png")["01-mirror.jpg"]
    assert found.match == "edited copy" and "mirrored" in found.edits


def test_identical_files_are_called_so(report: Report) -> None:
    """qarmin/czkawka#244: they were said to be very similar."""
    assert {item.match for item in group(report, "02.png").values()} == {"keeper", "same file"}


def test_other_metadata_and_the_same_pixels(report: Report) -> None:
    """arsenetar/dupeguru#689."""
    assert {item.match for item in group(report, "03.png").values()} == {"keeper", "same pixels"}


def test_pictures_turned_by_exif(report: Report) -> None:
    """qarmin/czkawka#714, qarmin/czkawka#1540."""
    assert "04-turned.jpg" in group(report, "04.png")


def test_small_previews_and_strong_compression(report: Report) -> None:
    """qarmin/czkawka#1398: small files were left out; and thumbnails of messengers."""
    assert "smaller" in group(report, "06.png")["06-preview.jpg"].edits
    assert "07-strong.jpg" in group(report, "07.png")


def test_a_file_is_no_duplicate_of_itself(report: Report) -> None:
    """qarmin/czkawka#1405, jesjimher/imgdupes#11."""
    assert report.n_items == 41 and not group(report, "08.png")


def test_torn_files_are_found_and_do_not_stay(report: Report) -> None:
    """arsenetar/dupeguru#262: the sound copy is to replace them."""
    found = group(report, "09-torn.jpg")
    assert not found or found["09-torn.jpg"].match != "keeper"
    assert "09.jpg" in group(report, "09.png")


def test_a_wrong_suffix_does_not_matter(report: Report) -> None:
    """visual-layer/fastdup#322, jesjimher/imgdupes#4."""
    assert {item.match for item in group(report, "10.png").values()} == {"keeper", "same pixels"}


def test_dots_and_dark_pictures_are_no_copies_of_others(report: Report) -> None:
    """arsenetar/dupeguru#1024 (1 x 1 pixels), teran/deduplicator#2 (pictures taken in the dark)."""
    for name in ("30-dot.gif", "40-dark.png", "41-dark.png", "42-dark.png"):
        assert not group(report, name)


def test_bursts_are_no_copies(report: Report) -> None:
    """qarmin/czkawka#2065, immich-app/immich#31487."""
    assert not {item.match for item in group(report, "50-burst40.png").values()} & {"copy", "same pixels", "same file"}


def test_different_pictures_stay_apart(report: Report) -> None:
    """0x90d/videoduplicatefinder#62, arsenetar/dupeguru#556: whole folders in one group."""
    for items in report.groups:
        assert len({Path(item.path).name[:2] for item in items}) == 1
