"""Networks saved by ``torch.jit.save``: features are those of a formula, and nothing of a stranger's runs unasked."""

import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from distillhash import HashModel, load_model, make_hasher
from distillhash.backbones import backbone_from_config, backbone_names, make_backbone
from distillhash.backbones import torchscript as module
from distillhash.cli import main
from distillhash.errors import DataError, DistillHashError, FormatError, MissingDependencyError, ParameterError

HALVES = {"mean": 0.5, "std": [0.25, 0.5, 1.0]}
MATRIX = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)


def images(n: int, size: int = 16) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (n, size, size, 3)).astype(np.uint8)


def features(pixels: NDArray[np.uint8]) -> NDArray[Any]:
    """What ``Pool`` computes, in float64."""
    normalised = (pixels.astype(np.float64) / 255 - 0.5) / [0.25, 0.5, 1.0]
    return np.asarray(normalised.mean(axis=(1, 2)) @ MATRIX.astype(np.float64))


class Pool(torch.nn.Module):
    """The mean of each channel, times a matrix; then what a case is about."""

    def __init__(self, case: str = "") -> None:
        super().__init__()
        self.case = case
        self.matrix = torch.nn.Parameter(torch.from_numpy(MATRIX))
        self.norm = torch.nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.mean((2, 3)) @ self.matrix
        if self.case == "map":
            return x
        if self.case == "nan":
            return y / 0 - y / 0
        if self.case == "beside":
            return y - y.mean(0)
        if self.case == "one":
            return y.reshape(1, -1)
        if self.case == "fails":
            raise ValueError("never")
        if self.case == "size":
            return x.reshape(len(x), 3, 32 * 32).mean(2)
        if self.case == "write":
            y = y + torch.from_file("written", True, 4).fill_(1.0)[0]
        return y


def saved(path: Path, case: str = "", *, frozen: bool = False) -> str:
    """The name of the backbone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script = torch.jit.script(Pool(case).eval())
        (torch.jit.freeze(script) if frozen else script).save(str(path))
    return f"torchscript:{path}"


@pytest.mark.parametrize("frozen", [False, True])
def test_features_are_those_of_the_formula(frozen: bool, tmp_path: Path) -> None:
    assert "torchscript:FILE" in backbone_names()
    name = saved(tmp_path / "a.pt", frozen=frozen)
    backbone = make_backbone(name, image_size=16, options=HALVES, device="cpu")
    pixels = images(21)
    found = backbone.embed(pixels)
    assert found.dtype == np.float32 and (backbone.dim, backbone.image_size) == (5, 16)
    np.testing.assert_allclose(found, features(pixels), atol=1e-5)
    np.testing.assert_array_equal(backbone.embed(pixels[::-1].copy()), found[::-1])
    blue_first = make_backbone(name, image_size=16, options={**HALVES, "channels": "bgr"}, device="cpu")
    np.testing.assert_allclose(blue_first.embed(pixels), features(pixels[..., ::-1]), atol=1e-5)
    config = json.loads(json.dumps(backbone.config()))
    again = backbone_from_config(config, device="cpu", allow_download=True)
    assert again.fingerprint == backbone.fingerprint != blue_first.fingerprint
    np.testing.assert_array_equal(again.embed(pixels), found)
    (tmp_path / "b.pt").write_bytes((tmp_path / "a.pt").read_bytes())  # the file may move
    moved = make_backbone(f"torchscript:{tmp_path}/b.pt", image_size=16, options=HALVES, device="cpu")
    assert moved.fingerprint == backbone.fingerprint


def test_bad_files_get_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Path(saved(tmp_path / "whole.pt").partition(":")[2]).read_bytes()
    for file, content in {
        "empty": b"",
        "text": b"no network",
        "cut": whole[:-99],
        "half": whole[: len(whole) // 2],
    }.items():
        (tmp_path / f"{file}.pt").write_bytes(content)
    torch.save(Pool().state_dict(), tmp_path / "weights.pt")
    os.mkfifo(tmp_path / "pipe.pt")
    damaged = "is not a TorchScript file, or is damaged; save it again"
    cases = dict.fromkeys(("empty", "text", "cut", "half", "weights"), damaged) | {
        "absent": r"cannot be read \(No such file",
        "pipe": "is a pipe, not a regular file",
    }
    cases |= {
        "map": r"makes \(\d+, 3, 16, 16\) of \d+ images, not \(n, d\)",
        "one": r"makes \(1, \d+\) of \d+ images, not \(n, d\)",
        "nan": "makes NaN or infinity of an image",
        "beside": "gives an image other features beside other images; save it in eval mode",
        "fails": r"fails on 2 images, \(2, 3, 16, 16\) floats",
        "size": "give --image-size a size that it takes",
    }
    for case, message in cases.items():
        name = f"torchscript:{tmp_path}/{case}.pt"
        if case in ("map", "one", "nan", "beside", "fails", "size"):
            saved(tmp_path / f"{case}.pt", case)
        with pytest.raises(DistillHashError, match=message) as caught:
            make_backbone(name, image_size=16, options=HALVES, device="cpu")
        assert "\n" not in str(caught.value), case
    name = f"torchscript:{tmp_path}/whole.pt"
    with pytest.raises(ParameterError, match="does not say how large its images are; give --image-size"):
        make_backbone(name, options=HALVES)
    with pytest.raises(ParameterError, match="does not say how pixels are normalised; give --backbone-set mean"):
        make_backbone(name, image_size=16)
    with pytest.raises(ParameterError, match="mean and std belong together"):
        make_backbone(name, image_size=16, options={"mean": 0.5})
    with pytest.raises(ParameterError, match="has no option 'layout'"):
        make_backbone(name, image_size=16, options={**HALVES, "layout": "nchw"})
    monkeypatch.setattr(module, "HAS_TORCH", False)
    with pytest.raises(MissingDependencyError, match=r"needs PyTorch; pip install 'distillhash\[train\]'"):
        make_backbone(name, image_size=16, options=HALVES, device="cpu")


def test_a_model_folder_runs_no_program_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = saved(tmp_path / "write.pt", "write")
    backbone = make_backbone(name, image_size=16, options=HALVES, device="cpu")  # named by the user
    config = backbone.config()
    assert Path("written").stat().st_size == 16  # TorchScript writes files
    Path("written").unlink()
    with pytest.raises(
        FormatError, match=f"which is a program and .* it was not run.* add --allow-download .*{config['digest']}"
    ):
        backbone_from_config(config)
    for change, message in (
        ({"digest": "0" * 32}, "is not the file the model was trained with"),
        ({"digest": None}, "by its whole path and digest"),
        ({"name": "torchscript:write.pt"}, "by its whole path and digest"),
        ({"name": "torchscript://server/share/a.pt"}, "files on another computer"),
    ):
        with pytest.raises(FormatError, match=message):
            backbone_from_config({**config, **change}, allow_download=True)
    assert not Path("written").exists()


def test_a_model_trained_through_a_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, pixels in enumerate(images(12)):
        Image.fromarray(pixels).save(photos / f"{number}.png")
    name = saved(tmp_path / "a.pt")
    where = ["--no-cache", "--device", "cpu", "--quiet"]
    settings = ["--backbone", name, "--image-size", "16", "--backbone-set", "mean=.5", "--backbone-set", "std=.25,.5,1"]
    words = ["train", str(photos), "--method", "itq", "--bits", "3", "--out", str(tmp_path / "model")]
    assert main([*words, *settings, *where]) == 0
    encode = ["encode", str(photos), "--model", str(tmp_path / "model"), "--out", str(tmp_path / "codes.npz"), *where]
    assert main(encode) == 1
    assert "add --allow-download" in capsys.readouterr().err
    assert main([*encode, "--allow-download"]) == 0
    export = ["export", "--model", str(tmp_path / "model"), "--quiet", "--to"]
    assert main([*export, "onnx"]) == 2 and "train with --backbone onnx:FILE" in capsys.readouterr().err
    assert main([*export, "hub", "--license", "mit", "--allow-download"]) == 2
    assert "which is on this machine alone" in capsys.readouterr().err
    model = load_model(tmp_path / "model", device="cpu", allow_download=True)
    by_hand = features(np.stack([images(12)[int(path.stem)] for path in sorted(photos.iterdir())]))
    np.testing.assert_array_equal(np.load(tmp_path / "codes.npz")["packed"], model.hasher.encode(by_hand).packed)
    frozen = saved(tmp_path / "frozen.pt", frozen=True)
    options: dict[str, Any] = {"image_size": 16, "backbone_options": HALVES, "device": "cpu"}
    tuned = HashModel(frozen, make_hasher("distillhash-contrast", 3), **options)
    with pytest.raises(ParameterError, match="saved without trainable weights; leave out fine-tuning"):
        tuned.fit(photos, fine_tune=True)
    (tmp_path / "a.pt").unlink()
    with pytest.raises(DataError, match=r"No such file or directory.*; put it back there, or train again"):
        load_model(tmp_path / "model", allow_download=True).encode(photos)


@pytest.mark.long
def test_a_network_is_fine_tuned_and_kept(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, pixels in enumerate(images(24)):
        Image.fromarray(pixels).save(photos / f"{number}.png")
    options: dict[str, Any] = {"image_size": 16, "backbone_options": HALVES, "device": "cpu"}
    model = HashModel(saved(tmp_path / "a.pt"), make_hasher("distillhash-contrast", 3, epochs=1), **options)
    before = model.backbone.fingerprint
    model.fit(photos, fine_tune=True).save(tmp_path / "model")
    assert model.backbone.fingerprint != before
    again = load_model(tmp_path / "model", device="cpu", allow_download=True)
    np.testing.assert_array_equal(again.encode(photos).packed, model.encode(photos).packed)
