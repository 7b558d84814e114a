"""The image size that a backbone gets for a source."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distillhash import HashModel, backbones, load_model, make_hasher
from distillhash.backbones import N_RUNS, RUN, TorchBackbone, make_backbone, sized_for
from distillhash.cli import main
from distillhash.files import read_file
from distillhash.models import CrossModalModel
from distillhash.sources import BadItemError, ImageSource, open_source
from image_factory import encode, make_jpeg, make_png


class Sized(ImageSource):
    """Images of given widths and heights; a width of 0 cannot be read."""

    def __init__(self, sizes: list[tuple[int, int]]) -> None:
        super().__init__("sized", [str(row) for row in range(len(sizes))])
        self.sizes, self.asked = sizes, list[int]()

    def read(self, row: int) -> Any:
        self.asked.append(row)
        width, height = self.sizes[row]
        if width == 0:
            raise BadItemError("it is broken")
        return np.zeros((height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def lite() -> Any:
    return make_backbone("efficientnet-lite0", device="cpu")


@pytest.mark.parametrize(
    ("sizes", "wanted", "words"),
    [
        ([(32, 32)], 128, "at most 32 pixels"),
        ([(128, 500)], 128, "at most 128 pixels"),
        ([(500, 129)], 224, "at least 129 pixels"),
        ([(4000, 3000), (4000, 3000), (8, 8)], 224, "at least 3000 pixels"),
        ([(4000, 3000), (8, 8), (9, 8)], 128, "at most 8 pixels"),
        ([(4000, 3000), (8, 8)], 224, "at least 3000 pixels"),
        ([(0, 0), (0, 0), (0, 0), (200, 300)], 224, "at least 200 pixels"),
    ],
)
def test_the_rule(
    lite: TorchBackbone, sizes: list[tuple[int, int]], wanted: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = sized_for(lite, Sized(sizes), quiet=False)
    assert isinstance(chosen, TorchBackbone)
    assert chosen.image_size == wanted and chosen.network is lite.network
    assert capsys.readouterr().err == f"image size {wanted}: half of the images have a shorter side of {words}\n"
    assert (chosen.enlarged() is None) == (wanted == 224)  # the teacher's size
    assert lite.image_size == 128


def test_where_there_is_nothing_to_look_at(lite: TorchBackbone, capsys: pytest.CaptureFixture[str]) -> None:
    assert sized_for(lite, Sized([(0, 0)]), quiet=False) is lite
    assert sized_for(lite, open_source(np.ones((3, 2))), quiet=False) is lite
    assert capsys.readouterr().err == ""


def test_a_backbone_of_one_size_keeps_it(lite: TorchBackbone, capsys: pytest.CaptureFixture[str]) -> None:
    other = TorchBackbone("hf:mine", lite.network, 1280, 96, "cpu")
    assert sized_for(other, Sized([(4000, 3000)]), quiet=False).image_size == 96
    assert capsys.readouterr().err == "image size 96: the own size of hf:mine\n"


def test_a_large_source_is_sampled() -> None:
    source = Sized([(row + 1, 10**6) for row in range(5003)])
    sides = backbones.sampled_sides(source)
    assert len(source.asked) == len(set(source.asked)) == N_RUNS * RUN and source.asked == sorted(source.asked)
    assert sides == [row + 1 for row in source.asked] == backbones.sampled_sides(source)
    assert np.abs(np.median(sides) - 2500) < 1000  # four standard deviations of a median of 64
    few = Sized([(row + 1, 10**6) for row in range(N_RUNS * RUN)])
    assert backbones.sampled_sides(few) == list(range(1, len(few) + 1))


def test_only_headers_of_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    (tmp_path / "large.bmp").write_bytes(encode(noise, "BMP"))
    (tmp_path / "late.tif").write_bytes(encode(noise, "TIFF"))  # its header is behind the pixels
    (tmp_path / "turned.jpg").write_bytes(make_jpeg(20, 30))
    (tmp_path / "rubbish.png").write_bytes(b"rubbish")
    whole: list[str] = []

    def read_whole(path: str, **options: Any) -> bytes:
        whole.append(Path(path).name)
        return read_file(path, **options)

    monkeypatch.setattr("distillhash.sources.files.read_file", read_whole)
    assert backbones.sampled_sides(open_source(tmp_path)) == [20, 300, 300]  # type: ignore[arg-type]
    assert "large.bmp" not in whole and "turned.jpg" not in whole


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images of 40 pixels, and four of 130; captions of the large ones beside them, of the small ones above."""
    root = tmp_path_factory.mktemp("sizes")
    for part, side in (("small", 40), ("large", 130)):
        (root / part).mkdir()
        for number in range(4):
            (root / part / f"{number}.png").write_bytes(make_png(side, side + 9, number))
    lines = [
        "image,caption",
        *(f"{number}.png,{word} here" for number, word in enumerate(("sun", "sea", "ice", "hill"))),
    ]
    (root / "large" / "pairs.csv").write_text("\n".join(lines))
    (root / "pairs.csv").write_text("\n".join([lines[0], *(f"small/{line}" for line in lines[1:])]))
    return root


def test_a_model_takes_the_size_from_what_it_learns(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = HashModel(hasher=make_hasher("lsh", 8), device="cpu")
    assert model.backbone.image_size == 128
    assert model.fit(folder / "large").backbone.image_size == 224
    assert model.fit(folder / "small").backbone.image_size == 128
    pairs = CrossModalModel(hasher=make_hasher("ccaitq", 2), text_encoder="bow", device="cpu")
    assert pairs.fit(folder / "large" / "pairs.csv").backbone.image_size == 224
    assert pairs.fit(folder / "pairs.csv").backbone.image_size == 128  # the large images have no captions there
    assert capsys.readouterr().err == ""


def test_train_says_what_it_chose_and_saves_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", str(folder / "large"), "--method", "lsh", "--bits", "8", "--out", str(tmp_path)]
    assert main([*words, "--image-size", "auto"]) == 0
    assert "image size 260: half of the images have a shorter side of at least 130 pixels\n" in capsys.readouterr().err
    loaded = load_model(tmp_path, device="cpu")
    assert loaded.backbone_name == "efficientnet-lite2"
    assert loaded.fit(folder / "small").backbone.image_size == 260  # a saved model keeps its own
    with pytest.raises(SystemExit, match="2"):
        main([*words, "--image-size", "big"])
    assert "must be auto or a number of pixels such as 224, got 'big'" in capsys.readouterr().err
    assert main([*words, "--image-size", "48", "--json"]) == 0
    found = capsys.readouterr()
    assert "image size" not in found.err and json.loads(found.out)["image_size"] == 48
    small = load_model(tmp_path)
    assert (small.backbone_name, small.backbone.image_size) == ("efficientnet-lite0", 48)  # too small for lite2
