"""Facts of files, and the order of preference."""

from dataclasses import replace
from pathlib import Path

import imagehash
import numpy as np
import pytest
from PIL import Image, ImageFilter

from distillhash.dedup.keep import (
    Facts,
    parse_policy,
    preference,
    read_facts,
    sharpness,
)
from distillhash.errors import ParameterError
from distillhash.sources import digest, open_source
from image_factory import encode, make_pixels

FACTS = Facts(100, 100, 5000, "JPEG", 8.0, bytes(40))


def test_facts_of_a_file(tmp_path: Path) -> None:
    pixels = make_pixels(64, 48)
    (tmp_path / "a.jpg").write_bytes(data := encode(pixels, "PNG"))  # named wrongly on purpose
    facts = read_facts(open_source(tmp_path), 0)  # type: ignore[arg-type]
    assert (facts.width, facts.height, facts.bytes, facts.format) == (64, 48, len(data), "PNG")
    assert facts.phash == str(imagehash.phash(Image.fromarray(pixels)))
    assert facts.digest == digest(data).hex() and facts.pixels_digest == digest(pixels).hex()


def test_blur_and_thumbnails_are_less_sharp() -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (128, 128, 3), np.uint8)).resize((512, 512), Image.Resampling.BICUBIC)
    blurred = image.filter(ImageFilter.GaussianBlur(6))
    enlarged = image.resize((64, 64)).resize((512, 512))
    sharp = sharpness(np.asarray(image))
    assert sharp > 1.5 * sharpness(np.asarray(blurred)) and sharp > 1.5 * sharpness(np.asarray(enlarged))


def test_each_criterion_decides_in_its_turn() -> None:
    better = {
        "resolution": replace(FACTS, width=101),
        "sharpness": replace(FACTS, sharpness=16.0),
        "size": replace(FACTS, bytes=5001),
        "format": replace(FACTS, format="PNG"),
    }
    for criterion, facts in better.items():
        assert preference([FACTS, facts], ["a", "b"]).tolist() == [1, 0]
        assert preference([FACTS, facts], ["a", "b"], tuple(better.keys() - {criterion})).tolist() == [0, 1]
    both = [better["size"], better["resolution"]]
    assert preference(both, ["a", "b"], ("size", "resolution")).tolist() == [0, 1]
    assert preference(both, ["a", "b"], ("resolution", "size")).tolist() == [1, 0]
    assert preference([replace(FACTS, sharpness=8.2), FACTS], ["b.jpg", "a.jpg"]).tolist() == [
        1,
        0,
    ]  # too little to count
    assert preference([FACTS, FACTS], ["/x/photo (1).jpg", "/y/photo.jpg"]).tolist() == [1, 0]


def test_policies() -> None:
    assert parse_policy("size, format") == ("size", "format")
    for wrong in ("", "age", "size,size"):
        with pytest.raises(ParameterError, match="resolution,size,sharpness,format"):
            parse_policy(wrong)
