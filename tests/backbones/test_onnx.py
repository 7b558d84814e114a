"""ONNX files as backbones: small graphs made here, and the default backbone exported by torch."""

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from distillhash import HashModel, load_model, make_hasher
from distillhash.backbones import backbone_from_config, make_backbone
from distillhash.bench.protocols import load_protocol
from distillhash.bench.runs import prepare
from distillhash.cli import main
from distillhash.cli.common import DEFAULT_BACKBONE
from distillhash.errors import DataError, DistillHashError, FormatError, MissingDependencyError, ParameterError
from distillhash.sources import open_source

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
pytest.importorskip("onnxruntime", reason="needs the extra onnx")
FLOAT, HALF, BYTE = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.UINT8
HALVES = {"mean": 0.5, "std": 0.25}
RNG = np.random.default_rng(0)
MATRIX = RNG.normal(size=(3, 5)).astype(np.float32)


def images(n: int, size: int = 16) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (n, size, size, 3)).astype(np.uint8)


def node(kind: str, *names: str, **attributes: Any) -> Any:
    """A node whose last name is its output."""
    return onnx.helper.make_node(kind, list(names[:-1]), [names[-1]], **attributes)


def write(
    path: Path,
    nodes: Sequence[Any],
    *,
    shape: Any = ("n", 3, 16, 16),
    dtype: int = FLOAT,
    outputs: Sequence[str] = ("y",),
    opset: int = 17,
    inputs: Sequence[str] = ("x",),
    **constants: Any,
) -> str:
    """A graph as a file; the name of the backbone."""
    of = onnx.helper.make_tensor_value_info
    stored = [
        value if isinstance(value, onnx.TensorProto) else onnx.numpy_helper.from_array(np.asarray(value), name)
        for name, value in constants.items()
    ]
    graph = onnx.helper.make_graph(
        list(nodes),
        "g",
        [of(name, dtype, shape) for name in inputs],
        [of(name, FLOAT, None) for name in outputs],
        stored,
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return f"onnx:{path}"


POOL = [node("ReduceMean", "x", "p", axes=[2, 3], keepdims=0), node("MatMul", "p", "m", "y")]


def features(pixels: NDArray[np.uint8]) -> NDArray[Any]:
    """What POOL computes of normalised images, in float64."""
    return np.asarray(((pixels / 255 - 0.5) / 0.25).mean(axis=(1, 2)) @ MATRIX.astype(np.float64))


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("batch", ["n", 1, 4])
@pytest.mark.parametrize("dtype", [FLOAT, HALF, BYTE])
def test_features_are_those_of_the_formula(layout: str, batch: Any, dtype: int, tmp_path: Path) -> None:
    axes = [2, 3] if layout == "nchw" else [1, 2]
    shape = (batch, 3, 16, 16) if layout == "nchw" else (batch, 16, 16, 3)
    mean = node("ReduceMean", "f", "p", axes=axes, keepdims=0)
    nodes = [node("Cast", "x", "f", to=FLOAT), mean, node("MatMul", "p", "m", "y")]
    name = write(tmp_path / "a.onnx", nodes, shape=shape, dtype=dtype, m=MATRIX)
    backbone = make_backbone(name, options=None if dtype == BYTE else HALVES)
    pixels = images(7)
    expected = features(pixels) if dtype != BYTE else pixels.mean(axis=(1, 2)) @ MATRIX
    found = backbone.embed(pixels)
    assert found.dtype == np.float32 and backbone.image_size == 16 and backbone.dim == 5
    np.testing.assert_allclose(found, expected, atol=1e-5 if dtype == FLOAT else 2e-3)
    np.testing.assert_array_equal(backbone.embed_floats(torch.from_numpy(pixels).permute(0, 3, 1, 2).float()), found)
    for n in (0, 1, 3, 5):
        np.testing.assert_array_equal(backbone.embed(pixels[:n]), found[:n])
    np.testing.assert_array_equal(backbone.embed(pixels[::-1].copy()), found[::-1])
    again = backbone_from_config(json.loads(json.dumps(backbone.config())))
    assert again.fingerprint == backbone.fingerprint
    np.testing.assert_array_equal(again.embed(pixels), found)


@pytest.mark.parametrize("channels_last", [False, True])
def test_maps_and_tokens_are_pooled_by_their_mean(channels_last: bool, tmp_path: Path) -> None:
    kernel = RNG.normal(size=(5, 3, 4, 4)).astype(np.float32)
    nodes = [node("Conv", "x", "k", "c", strides=[4, 4])]
    nodes += [
        node(
            "Transpose" if channels_last else "Identity", "c", "y", **({"perm": [0, 2, 3, 1]} if channels_last else {})
        )
    ]
    backbone = make_backbone(write(tmp_path / "map.onnx", nodes, k=kernel), options=HALVES)
    pixels = images(2)
    scaled = ((pixels / 255 - 0.5) / 0.25).reshape(2, 4, 4, 4, 4, 3)  # n, row, y, column, x, channel
    expected = np.einsum("nrycxd,odyx->no", scaled, kernel) / 16
    np.testing.assert_allclose(backbone.embed(pixels), expected, atol=1e-4)
    nodes = [node("Reshape", "x", "s", "t"), node("Transpose", "t", "y", perm=[0, 2, 1])]
    tokens = make_backbone(write(tmp_path / "t.onnx", nodes, s=np.array([-1, 3, 256])), options=HALVES)
    np.testing.assert_allclose(tokens.embed(pixels), scaled.mean(axis=(1, 2, 3, 4)), atol=1e-5)


@pytest.mark.parametrize(
    ("ops", "constants", "largest"),
    [
        (["Sub", "Div"], [[123.7, 116.3, 103.5], [58.4, 57.1, 57.4]], 255),
        (["Sub", "Div"], [[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], 1),
        (["Div", "Sub", "Mul"], [[255], [0.5], [4]], 255),
        (["Mul", "Add"], [[2], [-1]], 1),
        (["Mul", "Sub", "Div"], [[255], [127], [128]], 1),
        (["Sub"], [[100, 110, 120]], 255),
        (["Sub", "Div"], [[0.5, 0.5, 0.5], [0.25]], 1),
    ],
)  # fmt: skip
def test_normalisation_is_read_from_the_graph(ops: Any, constants: Any, largest: int, tmp_path: Path) -> None:
    values: dict[str, Any] = {
        f"c{at}": np.array(numbers, np.float32).reshape(1, -1, 1, 1) for at, numbers in enumerate(constants)
    }
    steps = [node(kind, "x" if at == 0 else f"x{at}", f"c{at}", f"x{at + 1}") for at, kind in enumerate(ops)]
    nodes = [*steps, node("ReduceMean", f"x{len(ops)}", "y", axes=[2, 3], keepdims=0)]
    name = write(tmp_path / "a.onnx", nodes, **values)
    pixels = images(3)
    expected = pixels / 255 * largest
    for kind, numbers in zip(ops, constants, strict=True):
        expected = getattr(np, {"Sub": "subtract", "Div": "divide", "Mul": "multiply", "Add": "add"}[kind])(
            expected, numbers
        )
    found = make_backbone(name).embed(pixels)
    np.testing.assert_allclose(found, expected.mean(axis=(1, 2)), rtol=1e-4, atol=1e-4)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5]}')
    with pytest.raises(
        ParameterError, match=r"normalises pixels itself, and .* asks for the same; give --backbone-set mean"
    ):
        make_backbone(name)


def test_preprocessing_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    name = write(tmp_path / "onnx" / "a.onnx", POOL, shape=("n", "c", "h", "w"), m=MATRIX)
    config = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": {"height": 32, "width": 32}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    backbone = make_backbone(name)
    assert backbone.image_size == 32
    np.testing.assert_allclose(backbone.embed(images(2, 32)), features(images(2, 32)), atol=1e-5)
    (tmp_path / "preprocessor_config.json").unlink()  # the model keeps what it said
    assert backbone_from_config(backbone.config()).fingerprint == backbone.fingerprint
    other = make_backbone(name, image_size=32, options={**HALVES, "layout": "nchw", "channels": "bgr"})
    assert other.fingerprint != backbone.fingerprint
    np.testing.assert_allclose(other.embed(images(2, 32)), features(images(2, 32)[..., ::-1]), atol=1e-5)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(DataError, match=r"preprocessor_config.json cannot be read"):
        make_backbone(name)


def test_outputs_are_chosen_by_name_or_by_rule(tmp_path: Path) -> None:
    two = [*POOL[:1], node("MatMul", "p", "m", "logits"), node("Relu", "logits", "pooler_output")]
    name = write(tmp_path / "a.onnx", two, outputs=["logits", "pooler_output"], m=MATRIX)
    np.testing.assert_allclose(
        make_backbone(name, options=HALVES).embed(images(2)), features(images(2)).clip(0), atol=1e-5
    )
    chosen = make_backbone(name, options={**HALVES, "output": "logits"})
    np.testing.assert_allclose(chosen.embed(images(2)), features(images(2)), atol=1e-5)
    with pytest.raises(
        ParameterError, match="has no output 'z'; choose one with --backbone-set output=NAME: 'logits', 'pooler_output'"
    ):
        make_backbone(name, options={**HALVES, "output": "z"})
    flat = write(tmp_path / "b.onnx", [*POOL, node("Relu", "x", "z")], outputs=["z", "y"], m=MATRIX)
    assert make_backbone(flat, options=HALVES).dim == 5  # the only one with two axes
    several = write(tmp_path / "c.onnx", [*POOL, node("Relu", "y", "z")], outputs=["z", "y"], m=MATRIX)
    with pytest.raises(ParameterError, match="has several outputs; choose one"):
        make_backbone(several, options=HALVES)


def bad_files(folder: Path) -> dict[str, tuple[str, dict[str, Any], str]]:
    """Name of the backbone, arguments, and what the error says."""
    relu = [node("Relu", "x", "y")]

    def graph(file: str, nodes: Sequence[Any] = relu, **options: Any) -> str:
        return write(folder / f"{file}.onnx", nodes, **options)

    whole = Path(graph("whole", POOL, m=MATRIX)[5:]).read_bytes()
    for file, content in {
        "empty": b"",
        "text": b"not a network",
        "cut": whole[:-9],
        "noise": bytes(range(256)) * 9,
    }.items():
        (folder / f"{file}.onnx").write_bytes(content)
    os.mkfifo(folder / "pipe.onnx")
    dependent = [node("ReduceMax", "x", "b", axes=[0], keepdims=1), node("Sub", "x", "b", "d"), *POOL[1:]]
    dependent.insert(2, node("ReduceMean", "d", "p", axes=[2, 3], keepdims=0))
    options: dict[str, Any] = {"options": HALVES}
    log = [node("Log", "x", "l"), node("ReduceMean", "l", "y", axes=[2, 3], keepdims=0)]
    cast, shape = [node("Cast", "x", "y", to=FLOAT)], [node("Reshape", "x", "s", "y")]
    free, integers = ("n", 3, "h", "w"), onnx.TensorProto.INT64
    damaged: dict[str, tuple[str, dict[str, Any], str]] = {
        file: (f"onnx:{folder / file}.onnx", {}, "is not an ONNX file, or is damaged")
        for file in ("empty", "text", "cut", "noise")
    }
    return damaged | {
        "absent": (f"onnx:{folder}/absent.onnx", {}, r"cannot be read \(No such file"),
        "folder": (f"onnx:{folder}", {}, "is a folder, not a regular file"),
        "pipe": (f"onnx:{folder}/pipe.onnx", {}, "is a pipe, not a regular file"),
        "none": (graph("none", [node("RandomNormal", "y", shape=[1, 4])], inputs=[]), {}, "takes 0 inputs; export it with one"),
        "two": (graph("two", [node("Add", "x", "z", "y")], inputs=["x", "z"]), {}, r"takes 2 inputs \('x', 'z'\)"),
        "rank": (graph("rank", shape=None), {}, "rank of its input 'x' is not fixed"),
        "tokens": (graph("tokens", cast, shape=("n", 77), dtype=integers), {}, "is no image but a tensor"),
        "grey": (graph("grey", shape=("n", 1, 16, 16)), {}, "which has no 3 channels"),
        "oblong": (graph("oblong", shape=("n", 3, 16, 24)), options, "16 x 24 pixels; export it for square ones"),
        "layout": (graph("layout", shape=("n", None, None, None)), options, "does not say which axis .* layout=nchw or"),
        "size": (graph("size", shape=free), options, "does not say how large its images are; give --image-size"),
        "other size": (graph("other"), {**options, "image_size": 32}, "takes images of 16 pixels alone, not 32"),
        "pixels": (graph("pixels"), {}, "does not say how pixels are normalised; give --backbone-set mean="),
        "bytes": (graph("bytes", cast, dtype=BYTE), options, "takes pixels as uint8 and normalises them; leave out mean"),
        "opset": (graph("opset", opset=99), options, r"cannot be run by ONNX Runtime .* \(Opset 99 is above opset \d+\)"),
        "operator": (graph("operator", [node("Nothing", "x", "y")]), options, "cannot be run by ONNX Runtime"),
        "reshape": (graph("reshape", shape, s=np.array([1, 48])), options, "fails on images of 16 x 16 pixels"),
        "scalar": (graph("scalar", [node("ReduceMean", "x", "y", keepdims=0)]), options, r"has the shape \(\), not \(n, d\)"),
        "nan": (graph("nan", log), options, "makes NaN or infinity of an image"),
        "beside": (graph("beside", dependent, shape=(2, 3, 16, 16), m=MATRIX), options, "other features beside other images"),
        "batch": (graph("batch", shape=(99999, 3, 16, 16)), options, "99999 images at a time; export it for 65536 or fewer"),
        "option": (graph("option"), {"options": {"pool": "max"}}, "has no option 'pool'"),
    }  # fmt: skip


def test_bad_files_get_one_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for case, (name, options, message) in bad_files(tmp_path).items():
        with pytest.raises(DistillHashError, match=message) as caught:
            make_backbone(name, **options)
        assert "\n" not in str(caught.value), case
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_the_extra_is_named(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=r"needs ONNX Runtime; pip install 'distillhash\[onnx\]'"):
        make_backbone(f"onnx:{tmp_path}/a.onnx")


def external(location: str) -> Any:
    tensor = onnx.TensorProto(name="m", data_type=FLOAT, dims=[3, 5], data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "60")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def test_weights_beside_the_file_count(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(MATRIX.tobytes())
    backbone = make_backbone(write(tmp_path / "a.onnx", POOL, m=external("w.bin")), options=HALVES)
    np.testing.assert_allclose(backbone.embed(images(2)), features(images(2)), atol=1e-5)
    (tmp_path / "w.bin").write_bytes((2 * MATRIX).tobytes())
    with pytest.raises(FormatError, match="is not the file the model was trained with"):
        backbone_from_config(backbone.config())
    (tmp_path / "w.bin").write_bytes(b"short")
    with pytest.raises(FormatError, match="cannot be run by ONNX Runtime"):
        make_backbone(f"onnx:{tmp_path}/a.onnx", options=HALVES)


OUTSIDE = [
    "../secret.bin",
    "{}/secret.bin",
    "sub/../../secret.bin",
    "link.bin",
    "..\\secret.bin",
    "C:\\secret.bin",
    "/dev/zero",
    "*/_ORT_MEM_ADDR_/*",
    "",
]


@pytest.mark.parametrize("location", OUTSIDE)
def test_weights_stay_in_the_folder(location: str, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(MATRIX.tobytes())
    (folder / "link.bin").symlink_to("../secret.bin")
    name = write(folder / "a.onnx", POOL, m=external(location.format(tmp_path)))
    with pytest.raises(DataError, match="names weights outside of its folder"):
        make_backbone(name, options=HALVES)
    import onnxruntime  # which refuses by itself as well

    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 4
    if "\\" not in location:  # elsewhere a name like any other
        with pytest.raises(Exception, match=r"ONNXRuntimeError|SystemError"):
            onnxruntime.InferenceSession(name[5:], quiet)


def test_a_model_names_a_whole_path_and_the_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.onnx", POOL, m=MATRIX)
    config = make_backbone("onnx:a.onnx", options=HALVES).config()
    assert config["name"] == f"onnx:{tmp_path}/a.onnx" and backbone_from_config(config).dim == 5
    for change, message in (
        ({"name": "onnx:a.onnx"}, "by its whole path and digest"),
        ({"digest": None}, "by its whole path and digest"),
        ({"name": "onnx://server/share/a.onnx"}, "files on another computer"),
        ({"digest": "0" * 32}, "not the file the model was trained with"),
        ({"output": ["y"]}, "cannot be built"),
        ({"layout": {}}, "cannot be built"),
    ):
        with pytest.raises(FormatError, match=message):
            backbone_from_config({**config, **change})


def test_a_model_trained_through_a_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, pixels in enumerate(images(12)):
        Image.fromarray(pixels).save(photos / f"{number}.png")
    name = write(tmp_path / "a.onnx", POOL, m=MATRIX)
    words = ["train", str(photos), "--method", "itq", "--bits", "3", "--out", str(tmp_path / "model"), "--no-cache"]
    settings = ["--backbone", name, "--backbone-set", "mean=.5", "--backbone-set", "std=.25,.25,.25"]
    assert main([*words, *settings, "--quiet"]) == 0
    model = load_model(tmp_path / "model")
    by_hand = features(np.stack([images(12)[int(path.stem)] for path in sorted(photos.iterdir())]))
    np.testing.assert_array_equal(model.encode(photos).packed, model.hasher.encode(by_hand).packed)
    (tmp_path / "a.onnx").write_bytes((tmp_path / "a.onnx").read_bytes() + b"\x08\x09")
    with pytest.raises(FormatError, match="not the file the model was trained with"):
        load_model(tmp_path / "model").encode(photos)
    assert main([*words, "--backbone", f"onnx:{photos}/0.png", "--quiet"]) == 1
    assert "is not an ONNX file, or is damaged" in capsys.readouterr().err
    tuned = HashModel(name, make_hasher("distillhash-contrast", 3), backbone_options=HALVES)
    with pytest.raises(ParameterError, match="cannot be fine-tuned, because ONNX Runtime computes no gradients"):
        tuned.fit(photos, fine_tune=True)
    with pytest.raises(ParameterError, match="cannot be fine-tuned, because ONNX Runtime computes no gradients"):
        prepare(open_source(photos), load_protocol("folder"), tuned.backbone, cache=None, fine_tune=True)
    (tmp_path / "a.onnx").unlink()
    with pytest.raises(DataError, match=r"No such file or directory.*; put it back there, or train again"):
        load_model(tmp_path / "model").encode(photos)


@pytest.mark.parametrize("row", [(1, -1), (1, -1, 4)])
def test_an_output_whose_shape_depends_on_the_image_is_refused(row: tuple[int, ...], tmp_path: Path) -> None:
    nodes = [node("NonZero", "x", "z"), node("Cast", "z", "f", to=FLOAT), node("Reshape", "f", "s", "y")]
    backbone = make_backbone(write(tmp_path / "a.onnx", nodes, s=np.array(row)), options={"mean": 0, "std": 1})
    black = np.zeros_like(images(1))
    with pytest.raises(DataError, match="the shape of output 'y' depends on the image"):
        backbone.embed(black)


def agree(name: str, n: int, size: int) -> None:
    """Features of the default backbone, within 1e-4 of their length."""
    lite = make_backbone(DEFAULT_BACKBONE, image_size=size, device="cpu", engine="torch")
    exported = make_backbone(name, options={"mean": 127, "std": 128, "rescale_factor": 1})
    pixels = images(n, size)
    expected, found = lite.embed(pixels), exported.embed(pixels)
    assert found.shape == (n, 1280)
    assert (np.linalg.norm(found - expected, axis=1) < 1e-4 * np.linalg.norm(expected, axis=1)).all()
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_the_default_backbone_exported(tmp_path: Path) -> None:
    lite: Any = make_backbone(DEFAULT_BACKBONE, image_size=64, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the older exporter, which is ten times as fast
        options: dict[str, Any] = {"input_names": ["x"], "dynamic_axes": {"x": {0: "n"}}, "dynamo": False}
        torch.onnx.export(lite.network, (torch.zeros(1, 3, 64, 64),), str(tmp_path / "lite.onnx"), **options)
    agree(f"onnx:{tmp_path}/lite.onnx", 32, 64)


@pytest.mark.long
def test_the_default_backbone_exported_with_its_weights_beside(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    lite: Any = make_backbone(DEFAULT_BACKBONE, image_size=128, device="cpu")
    options: dict[str, Any] = {"dynamic_shapes": ({0: torch.export.Dim("n")},), "dynamo": True}
    torch.onnx.export(lite.network, (torch.zeros(2, 3, 128, 128),), str(tmp_path / "lite.onnx"), **options)
    assert (tmp_path / "lite.onnx.data").exists()
    agree(f"onnx:{tmp_path}/lite.onnx", 500, 128)


def test_the_runtime_tells_nobody_of_its_use(tmp_path: Path) -> None:
    """It keeps a number of the machine, and what it is about to send, in a folder "Microsoft" of the user's cache."""
    file = write(tmp_path / "a.onnx", [node("Relu", "x", "y")])[5:]
    code = f"from distillhash.backbones.onnx import open_session; open_session('a', {file!r})"
    home = {name: str(tmp_path / "home") for name in ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "LOCALAPPDATA")}
    (tmp_path / "home").mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"} | home
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert [path for path in (tmp_path / "home").rglob("*") if path.name == "Microsoft"] == []
