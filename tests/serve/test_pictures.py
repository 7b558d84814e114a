"""Names, sizes and small copies of pictures."""

import numpy as np
import pytest
from PIL import Image

from distillhash import Codes
from distillhash.errors import ParameterError
from distillhash.index import Item
from distillhash.serve.pictures import name_of
from distillhash.sources import BadItemError, decode_image, decode_thumbnail, image_format, image_size
from image_factory import encode, make_bomb, make_gif, make_jpeg, make_pixels, make_png, make_rotated


def test_names_say_nothing_of_the_server() -> None:
    code = Codes.from_packed(np.zeros((1, 1), np.uint8), 8)
    for key, metadata, expected in (
        ("/home/me/photos/a/1.jpg", {"source": "/home/me/photos", "key": "a/1.jpg"}, "a/1.jpg"),
        ("/home/me/photos/a/1.jpg", None, "1.jpg"),
        ("/home/me/1.jpg", {"key": "/home/me/1.jpg"}, "1.jpg"),
        ("digits:digits/5", {"source": "digits:#train", "key": "digits/5"}, "digits/5"),
        ("upload:00ff", {"name": "cat.jpg"}, "cat.jpg"),
        (None, None, "item 7"),
    ):
        assert name_of(Item(7, code, key, None, metadata)) == expected


@pytest.mark.parametrize("orientation", range(1, 9))
def test_size_of_a_turned_image_is_the_size_shown(orientation: int) -> None:
    content = make_rotated(orientation)
    assert image_size(content) == decode_image(content).shape[1::-1]


def test_thumbnails_keep_the_aspect_and_never_grow() -> None:
    pixels = make_pixels(400, 100)
    assert decode_thumbnail(encode(pixels, "JPEG"), 200).shape == (50, 200, 3)
    assert np.array_equal(decode_thumbnail(make_png(30, 20, 1), 200), make_pixels(30, 20, 1))
    assert decode_thumbnail(pixels, 100).shape == (25, 100, 3)
    large = make_jpeg(1600, 1200, seed=3, quality=95)
    expected = Image.fromarray(decode_image(large)).resize((200, 150), Image.Resampling.BICUBIC)
    error = np.abs(decode_thumbnail(large, 200).astype(int) - np.asarray(expected).astype(int))
    assert error.mean() < 3  # draft decoding, another filter; the same picture
    assert decode_thumbnail(make_rotated(6), 20).shape == (20, 12, 3)
    with pytest.raises(BadItemError, match="over the limit"):
        decode_thumbnail(make_bomb(), 200)
    with pytest.raises(ParameterError, match="at least 1"):
        decode_thumbnail(pixels, 0)


def test_the_format_comes_from_the_content() -> None:
    for content, name in ((make_jpeg(), "JPEG"), (make_png(), "PNG"), (make_gif(), "GIF")):
        assert image_format(content) == name
    with pytest.raises(BadItemError):
        image_format(b"<svg/>")
    assert image_size(make_pixels(7, 5)) == (7, 5)
