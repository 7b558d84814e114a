"""A model as an ONNX file: the same codes from the graph, from the loaded model and from the folder; hostile files are data."""

import json
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from distillhash import Codes, HashModel, load_model, make_hasher, method_names
from distillhash.backbones import extract_features
from distillhash.cli import main
from distillhash.errors import DataError, FormatError, ParameterError
from distillhash.methods import ITQ, Hasher, method_class
from distillhash.methods.base import read_model_files
from distillhash.models.image_text import CrossModalModel
from distillhash.models.onnx import write_onnx
from distillhash.sources import open_source

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
FAST = {"epochs": 2, "max_train": 200}


def rows(n: int, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(9).standard_normal((8, 64))
    return np.maximum(centres[np.arange(n) % 8] + rng.standard_normal((n, 64)), 0).astype(np.float32)


def trained(name: str, folder: Path, n_bits: int = 12, **settings: Any) -> HashModel:
    kind = method_class(name)
    known = {field: value for field, value in FAST.items() if field in kind.__dataclass_fields__}
    hasher = make_hasher(name, n_bits, **(known | settings))
    model: Any
    if kind.needs_texts:
        model = CrossModalModel("embeddings", hasher, text_encoder="embeddings")
        model.hasher.fit(rows(200), rows(200, 1)[:, :40])
    else:
        model = HashModel("embeddings", hasher)
        hasher.fit(rows(200), labels=np.arange(200) % 8 if kind.needs_labels else None)
    model.save(folder)
    assert isinstance(model, HashModel)
    return model


def graph_outputs(file: Path, **inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, inputs), strict=True))


# One of each formula; the others differ in training alone.
FORMULAS = {"itq", "sh", "sph", "agh", "dgh", "distillhash-nested", "urph", "ccaitq", "greedyhash"}


@pytest.mark.parametrize(
    "name",
    [
        name if name in FORMULAS else pytest.param(name, marks=pytest.mark.long)
        for name in [*method_names(), *method_names(image_text=True)]
    ],
)
def test_every_method(name: str, tmp_path: Path) -> None:
    model, new = trained(name, tmp_path / "model"), rows(60, 5)
    n_bits, n_different = write_onnx(model, read_model_files(tmp_path / "model"), tmp_path / "m.onnx")
    assert (n_bits, n_different) == (256 * 12, 0)
    found, expected = graph_outputs(tmp_path / "m.onnx", embedding=new), model.encode(new)
    assert found["codes"].dtype == np.uint8
    np.testing.assert_array_equal(found["codes"], expected.packed)
    np.testing.assert_allclose(found["projection"], model.hasher.project(new), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["reconstruction"], model.hasher.reconstruct(expected), rtol=1e-5, atol=1e-6)
    onnx.checker.check_model(str(tmp_path / "m.onnx"), full_check=True)
    again = load_model(tmp_path / "m.onnx")
    assert again.fingerprint == model.fingerprint and type(again) is type(model)
    np.testing.assert_array_equal(again.encode(new).packed, expected.packed)


@pytest.mark.parametrize(
    ("name", "n_bits", "settings"),
    [
        ("agh", 7, {"layers": 1}),
        ("ssdh", 33, {"hidden": 20}),
        ("sdc", 16, {"hidden": 20}),
        ("distillhash-contrast", 40, {"root": False, "start": 0.0}),
        ("distillhash-nested", 48, {"preserve": "both"}),
        ("distillhash-nested", 33, {"preserve": "neighbours"}),
        ("urph", 16, {"start": "random"}),
    ],
)
def test_other_forms(name: str, n_bits: int, settings: dict[str, Any], tmp_path: Path) -> None:
    model = trained(name, tmp_path / "model", n_bits, **settings)
    _, n_different = write_onnx(model, read_model_files(tmp_path / "model"), tmp_path / "m.onnx", rows(100, 6))
    assert n_different == 0
    codes = load_model(tmp_path / "m.onnx").encode(rows(50, 7))
    assert codes.class_bits == model.hasher.class_bits
    np.testing.assert_array_equal(codes.packed, graph_outputs(tmp_path / "m.onnx", embedding=rows(50, 7))["codes"])


def test_what_the_exporter_does_not_know_is_refused(tmp_path: Path) -> None:
    model = trained("itq", tmp_path / "model")

    class Other(ITQ):
        method = "other"

        def _project(self, features: Any) -> Any:
            return -super()._project(features)

    model.hasher.__class__ = Other
    with pytest.raises(DataError, match=r"differs in \d+ of 3072 bits from other, so it is not written"):
        write_onnx(model, read_model_files(tmp_path / "model"), tmp_path / "m.onnx")

    class Unknown(Hasher):
        method = "unknown"

        def _fit(self, given: Any) -> None: ...

        def _project(self, features: Any) -> Any:
            return features[:, : self.n_bits]

    model.hasher = Unknown(12).fit(rows(50))
    with pytest.raises(ParameterError, match="unknown is no method whose formula can be exported"):
        write_onnx(model, (b"{}", b""), tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


@pytest.fixture(scope="module")
def photo_model(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> tuple[HashModel, Path, Path]:
    """A model of images, its folder and its ONNX file, written by the command line."""
    folder = tmp_path_factory.mktemp("photo") / "model"
    model = HashModel(hasher=make_hasher("itq", 10), image_size=64)
    model.fit(photos).save(folder)
    out = folder.with_name("m.onnx")
    assert main(["export", "--model", str(folder), "--to", "onnx", "--out", str(out), "--data", str(photos)]) == 0
    return model, folder, out


def test_a_model_of_images(
    photo_model: tuple[HashModel, Path, Path], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, folder, file = photo_model
    loaded = load_model(file)
    assert loaded.fingerprint == model.fingerprint and loaded.training == model.training and loaded.device == "cpu"
    assert loaded.backbone.fingerprint == model.backbone.fingerprint
    np.testing.assert_array_equal(loaded.encode(photos).packed, model.encode(photos).packed)
    pixels = np.random.default_rng(0).integers(0, 256, (7, 64, 64, 3)).astype(np.uint8)
    found = graph_outputs(file, image=pixels)
    np.testing.assert_allclose(found["features"], model.backbone.embed(pixels), atol=1e-5)
    np.testing.assert_array_equal(found["features"], loaded.backbone.embed(pixels))
    np.testing.assert_array_equal(loaded.backbone.embed(pixels + np.float32(0.3)), found["features"])  # rounded
    again = pickle.loads(pickle.dumps(loaded.backbone))
    np.testing.assert_array_equal(again.embed(pixels), found["features"])
    loaded.save(tmp_path / "again")
    assert [(tmp_path / "again" / name).read_bytes() for name in ("config.json", "model.safetensors")] == [
        (folder / name).read_bytes() for name in ("config.json", "model.safetensors")
    ]


@pytest.mark.long
def test_the_verbs_take_the_file(
    photo_model: tuple[HashModel, Path, Path], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder, file = photo_model
    for model in (folder, file):
        out = tmp_path / f"{model.name}.parquet"
        assert main(["encode", str(photos), "--model", str(model), "--out", str(out), "--quiet"]) == 0
    assert (tmp_path / "model.parquet").read_bytes() == (tmp_path / "m.onnx.parquet").read_bytes()
    index, picture = tmp_path / "index", str(next(photos.rglob("*.png")))
    assert main(["index", str(photos), "--model", str(file), "--index", str(index), "--quiet"]) == 0
    assert [path.name for path in (index / "model").iterdir()] == ["model.onnx"]
    capsys.readouterr()
    for options in ([], ["--model", str(folder)], ["--model", str(file), "--rerank", "decoder"]):
        assert main(["search", picture, "--index", str(index), "--json", *options]) == 0
        found = json.loads(capsys.readouterr().out)["results"][0]["neighbours"][0]
        assert found["distance"] == 0
    assert main(["index", str(photos), "--index", str(index), "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["n_items"] == 24
    assert main(["dedup", str(photos), "--model", str(file), "--out", str(tmp_path / "d.json"), "--quiet"]) == 0
    assert main(["encode", str(photos), "--model", str(file), "--out", "x.npz", "--engine", "torch"]) == 2
    assert "is run by ONNX Runtime on the CPU; leave out --engine torch" in capsys.readouterr().err


@pytest.mark.long
def test_int8_is_another_model(
    photo_model: tuple[HashModel, Path, Path], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, folder, file = photo_model
    out, pictures = tmp_path / "small.onnx", open_source(photos)
    words = ["export", "--model", str(folder), "--to", "onnx", "--int8", "--out", str(out)]
    assert main(words) == 2
    assert "--int8 needs --data SOURCE" in capsys.readouterr().err
    assert main([*words, "--data", f"{photos}#0:7"]) == 2
    assert "int8 needs at least 20 images, got 7" in capsys.readouterr().err
    assert main([*words, "--data", str(photos), "--json"]) == 0
    said, loaded = json.loads(capsys.readouterr().out), load_model(out)
    assert said["n_compared"] == 120 and said["fingerprint"] == loaded.fingerprint != model.fingerprint
    assert out.stat().st_size < 0.5 * file.stat().st_size
    assert loaded.backbone.fingerprint != model.backbone.fingerprint
    plain, small = (extract_features(pictures, one.backbone).features for one in (model, loaded))
    lengths = np.linalg.norm(plain, axis=1) * np.linalg.norm(small, axis=1)
    assert ((plain * small).sum(axis=1) > 0.8 * lengths).all() and not np.allclose(plain, small, rtol=1e-3)
    with pytest.raises(ParameterError, match="computes in int8, which a model folder cannot"):
        loaded.save(tmp_path / "again")
    index = str(tmp_path / "index")
    assert main(["index", str(photos), "--model", str(folder), "--index", index, "--quiet"]) == 0
    assert main(["search", str(next(photos.rglob("*.png"))), "--index", index, "--model", str(out)]) == 1
    assert "of another model" in (said_there := capsys.readouterr().err) or "another model" in said_there
    with pytest.raises(ParameterError, match="int8 is for the network of a model of images"):
        write_onnx(trained("itq", tmp_path / "vectors"), (b"", b""), out, int8=True)


def test_words_of_the_command_line(
    photo_model: tuple[HashModel, Path, Path], tmp_path: Path, vectors: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder, file = photo_model
    for words, message in [  # the first two are errors of usage
        (["--codes", "c.npz", "--to", "onnx"], "--to onnx takes no --codes; leave it out"),
        (["--model", str(folder), "--to", "faiss"], "--to faiss takes no --model; leave it out"),
        (["--model", str(file), "--to", "onnx"], "is not a model folder"),
        (["--model", str(folder), "--to", "onnx", "--data", str(vectors)], "is not of the kind that the model takes"),
    ]:
        assert main(["export", *words]) == (2 if "takes no --" in message else 1)
        assert message in capsys.readouterr().err
    assert main(["export", "--model", str(folder), "--to", "onnx", "--json"]) == 0
    assert (folder.parent / "model.onnx").exists()
    said = json.loads(capsys.readouterr().out)
    assert said["n_different"] == 0 and said["n_compared"] == 320


def test_it_needs_no_torch(photo_model: tuple[HashModel, Path, Path], photos: Path, tmp_path: Path) -> None:
    model, _, file = photo_model
    pixels = np.random.default_rng(1).integers(0, 256, (5, 64, 64, 3)).astype(np.uint8)
    np.save(tmp_path / "pixels.npy", pixels)
    trained("distillhash-nested", tmp_path / "nested", 48)
    assert main(["export", "--model", str(tmp_path / "nested"), "--to", "onnx", "--quiet"]) == 0
    code = """
        import sys
        for name in ("torch", "sklearn", "scipy", "numba", "efficientnet_lite_pytorch"):
            sys.modules[name] = None
        import numpy as np
        from distillhash import load_model
        model = load_model(sys.argv[1])
        features = model.backbone.embed(np.load(sys.argv[2]))
        np.save(sys.argv[3], model.hasher.encode(features).packed)
        print(load_model(sys.argv[4]).encode(np.ones((3, 64))).packed.shape)
        from distillhash.cli import main
        print(main(["encode", sys.argv[5], "--model", sys.argv[1], "--out", sys.argv[6], "--no-cache", "--quiet"]))
    """
    words = [
        file,
        tmp_path / "pixels.npy",
        tmp_path / "codes.npy",
        tmp_path / "nested.onnx",
        photos,
        tmp_path / "c.npz",
    ]
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "(3, 6)\n0\n"), done.stderr
    np.testing.assert_array_equal(Codes.load(tmp_path / "c.npz")[0].packed, model.encode(photos).packed)
    expected = model.hasher.encode(model.backbone.embed(pixels))
    np.testing.assert_array_equal(np.load(tmp_path / "codes.npy"), expected.packed)


def damaged(proto: Any, how: str) -> None:
    """Change a model's file."""
    graph, told = proto.graph, next(entry for entry in proto.metadata_props if entry.key == "distillhash")
    stored = next(tensor for tensor in graph.initializer if tensor.name == "distillhash")
    config = json.loads(told.value)
    if how == "arrays":
        stored.raw_data = stored.raw_data[:-1] + b"x"
    elif how == "no arrays":
        graph.initializer.remove(stored)
    elif how == "no words":
        del proto.metadata_props[:]
    elif how == "size":
        config["backbone"]["image_size"] = 128
    elif how == "no size":
        config["backbone"]["image_size"] = "large"
    elif how == "huge":
        config["backbone"]["image_size"] = 2**40
    elif how == "newer":
        config["format_version"] = 99
    elif how == "no features":
        del graph.output[0]
    elif how == "beside":
        stored.data_location = 1
        stored.external_data.add(key="location", value="/etc/passwd")
    elif how == "operator":
        graph.node[0].op_type = "Mystery"
    told.value = json.dumps(config)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("arrays", "is damaged or does not belong to its config.json"),
        ("no arrays", "is no model, but another ONNX file"),
        ("no words", "is no model, but another ONNX file"),
        ("size", "takes no images of 128 pixels"),
        ("no size", "describes images of 'large' pixels"),
        ("huge", "the image size must be from 16 to 2048"),
        ("newer", "has format 99"),
        ("no features", "gives no features"),
        ("beside", "keeps numbers in other files"),
        ("operator", "cannot be run by ONNX Runtime"),
    ],
)
def test_files_of_others_are_data(
    how: str, message: str, photo_model: tuple[HashModel, Path, Path], tmp_path: Path
) -> None:
    proto = onnx.load(str(photo_model[2]))
    damaged(proto, how)
    file = tmp_path / "m.onnx"
    file.write_bytes(proto.SerializeToString())
    with pytest.raises((FormatError, DataError), match=message) as caught:
        load_model(file)
    assert "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    for number, data in enumerate((b"", b"junk" * 100, bytes(range(256)))):
        file = tmp_path / f"{number}.onnx"
        file.write_bytes(data)
        with pytest.raises(FormatError, match=r"is not an ONNX file|is empty"):
            load_model(file)
    with pytest.raises(FormatError, match="is not a model folder"):
        load_model(tmp_path / "absent.onnx")
