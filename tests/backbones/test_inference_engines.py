"""The engines of inference: ONNX Runtime gives torch's features to the last bits, and the same codes."""

import copy
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from distillhash import HashModel, load_model, make_hasher
from distillhash.backbones import TorchBackbone, backbone_from_config, extract_features, make_backbone
from distillhash.errors import DataError, MissingDependencyError, ParameterError
from distillhash.sources import open_source

ENGINES = ("torch", "onnx")


def images(n: int, size: int) -> NDArray[np.uint8]:
    coarse = np.random.default_rng(0).integers(0, 256, (n, size // 8, size // 8, 3))
    return np.repeat(np.repeat(coarse, 8, axis=1), 8, axis=2).astype(np.uint8)


def made(engine: Any, size: int = 64, **options: Any) -> TorchBackbone:
    backbone = make_backbone("efficientnet-lite0", image_size=size, device="cpu", engine=engine, **options)
    assert isinstance(backbone, TorchBackbone)
    return backbone


@pytest.fixture
def engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of exported networks."""
    monkeypatch.setenv("DISTILLHASH_CACHE", str(tmp_path))
    monkeypatch.setattr("distillhash.backbones.onnx._warned", set())
    return tmp_path / "engines"


def test_the_engines_agree_and_share_a_fingerprint() -> None:
    pixels = images(9, 64)
    backbones = [made(engine) for engine in ENGINES]
    plain, run = (backbone.embed(pixels) for backbone in backbones)
    assert np.abs(plain - run).max() < 1e-5 * plain.max() and not np.array_equal(plain, run)
    assert backbones[0].fingerprint == backbones[1].fingerprint
    assert backbones[0].runs is None and backbones[1].runs is not None and made("auto").runs is not None


@pytest.mark.long
def test_views_and_teacher_are_run_as_well() -> None:
    source = open_source("digits:#0:6")
    tables = [extract_features(source, made(engine), n_views=2, teacher=True) for engine in ENGINES]
    for name in ("features", "views", "teacher"):
        plain, run = (getattr(table, name) for table in tables)
        assert np.abs(plain - run).max() < 1e-5 * plain.max() and not np.array_equal(plain, run)


@pytest.mark.parametrize(
    ("n", "backbone", "size"),
    [
        (40, "efficientnet-lite0", 64),
        *(pytest.param(1000, f"efficientnet-lite{number}", 128, marks=pytest.mark.long) for number in (0, 2)),
    ],
)
def test_the_same_codes(n: int, backbone: str, size: int, tmp_path: Path) -> None:
    fitted = HashModel(backbone, make_hasher("itq", 32), image_size=size, device="cpu", engine="torch")
    fitted.fit(f"digits:#{1000}:{1000 + max(n // 2, 40)}").save(tmp_path)
    plain, run = (load_model(tmp_path, device="cpu", engine=engine) for engine in ("torch", "onnx"))
    features = extract_features(open_source(f"digits:#0:{n}"), plain.backbone).features
    projection = fitted.hasher.project(features)
    differs = np.not_equal(projection >= 0, run.encode(f"digits:#0:{n}").signs() > 0)
    assert differs.sum() <= 1 + projection.size // 10_000  # only where rounding decides
    assert (np.abs(projection[differs]) < 1e-4 * np.abs(projection).mean()).all()


@pytest.mark.parametrize("damage", ["cut", *(pytest.param(how, marks=pytest.mark.long) for how in ("empty", "other"))])
def test_an_exported_network_is_kept_and_checked(damage: str, engines: Path) -> None:
    pixels = images(3, 64)
    expected = made("onnx").embed(pixels)
    (kept,) = engines.iterdir()
    whole, written = kept.read_bytes(), kept.stat().st_ino
    np.testing.assert_array_equal(made("auto").embed(pixels), expected)
    assert kept.stat().st_ino == written
    wrong = {"cut": whole[:-4000], "empty": b""}.get(damage)
    if wrong is None:
        other = made("onnx")
        other.load_tensors({name: array * np.float32(1.01) for name, array in other.tensors().items()})
        other.embed(pixels)
        (of_other,) = set(engines.iterdir()) - {kept}
        wrong = of_other.read_bytes()
    kept.write_bytes(wrong)
    np.testing.assert_array_equal(made("auto").embed(pixels), expected)
    assert kept.read_bytes() == whole


def test_networks_used_long_ago_are_not_kept(engines: Path) -> None:
    engines.mkdir()
    for age in range(10):
        (engines / f"{age}.onnx").write_bytes(b"")
        os.utime(engines / f"{age}.onnx", (1e9 - age, 1e9 - age))
    made("onnx").prepare()
    assert len(list(engines.iterdir())) == 8
    assert {file.stem for file in engines.iterdir()} > {str(age) for age in range(7)}


def test_it_works_where_nothing_can_be_kept(engines: Path) -> None:
    engines.write_bytes(b"")
    assert made("onnx").embed(images(1, 64)).shape == (1, 1280)


@pytest.mark.long
def test_torch_takes_over_where_the_export_fails(
    engines: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    export = "distillhash.backbones.onnx.export_network"
    wrong = make_backbone("efficientnet-lite1", image_size=64, device="cpu")
    assert isinstance(wrong, TorchBackbone)
    from distillhash.backbones.onnx import export_network

    data = export_network(wrong)
    for failing in (lambda _: data, lambda _: b"nothing", lambda _: 1 / 0):
        monkeypatch.setattr(export, failing)
        np.testing.assert_array_equal(made("auto").embed(images(2, 64)), made("torch").embed(images(2, 64)))
        with pytest.raises(DataError, match=r"efficientnet-lite0 cannot be run by ONNX Runtime .*; leave out --engine"):
            made("onnx").embed(images(2, 64))
    assert [record.message for record in caplog.records if "torch runs it" in record.message][1:] == []
    assert "its features differ by" in caplog.text


def test_what_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="the engine must be one of auto, onnx, torch, got 'fast'"):
        made("fast")
    on_device = made("onnx")
    on_device.device = "cuda"
    with pytest.raises(ParameterError, match="runs on the CPU, not on cuda"):
        _ = on_device.runs
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert made("auto").runs is None
    with pytest.raises(MissingDependencyError, match=r"pip install 'distillhash\[onnx\]'"):
        _ = made("onnx").runs


@pytest.mark.long
def test_copies_make_their_own(engines: Path) -> None:
    backbone = made("onnx")
    backbone.prepare()
    copied = copy.deepcopy(backbone)
    np.testing.assert_array_equal(copied.embed(images(2, 64)), backbone.embed(images(2, 64)))
    from_config = backbone_from_config(backbone.config(), device="cpu", engine="onnx")
    assert from_config.fingerprint == backbone.fingerprint
    assert len(list(engines.iterdir())) == 1


def test_bf16_is_another_backbone(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), dtype=np.uint8)
    plain, small = (
        make_backbone("efficientnet-lite0", image_size=64, device="cpu", engine="torch", options=options)
        for options in (None, {"precision": "bf16"})
    )
    features, rounded = plain.embed(pixels), small.embed(pixels)
    error = np.linalg.norm(rounded - features) / np.linalg.norm(features)
    assert 1e-4 < error < 0.05  # 8 bits of a number are kept
    assert small.fingerprint != plain.fingerprint and small.config()["precision"] == "bf16"
    again = backbone_from_config(small.config(), device="cpu")
    assert again.fingerprint == small.fingerprint
    np.testing.assert_array_equal(again.embed(pixels[:3]), rounded[:3])
    for options, engine in (({"precision": "int4"}, "auto"), ({"precision": "bf16"}, "onnx")):
        with pytest.raises(ParameterError, match=r"precision|no bf16"):
            make_backbone("efficientnet-lite0", options=options, engine=engine)  # type: ignore[arg-type]
