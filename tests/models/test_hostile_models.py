"""Model folders that somebody else made: every value in them is tried odd, and none runs code, hangs, or ends in a traceback."""

import copy
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from degenerate import quick
from distillhash import Hasher, load_hasher, load_model, method_names
from distillhash.cli import main
from distillhash.errors import DataError, DistillHashError, FormatError
from distillhash.methods.image_text import CrossModalHasher
from distillhash.methods.registry import hasher_from

OPTIONAL = {("distillhash-contrast", "plain"), ("distillhash-nested", "class.plain")}  # arrays that a method may lack
N = 60
X = np.random.default_rng(0).standard_normal((6, 16))[np.arange(N) % 6]
X = np.maximum(X + 0.4 * np.random.default_rng(1).standard_normal((N, 16)), 0).astype(np.float32)
VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    3,
    2**31,
    2**70,
    10**400,
    1.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    [],
    [1],
    {},
    {"a": 1},
]


def fitted(method: str) -> Hasher:
    hasher = quick(method, 6, **({"alpha": 0.5} if method == "distillhash" else {}))
    if isinstance(hasher, CrossModalHasher):
        hasher.fit(X, X[:, :9])
        return hasher
    return hasher.fit(X, labels=np.arange(N) % 6 if hasher.needs_labels else None)


def sound_or_refused(config: Any, tensors: dict[str, NDArray[Any]]) -> bool:
    """Whether it loads; if so it encodes, or says why not."""
    try:
        hasher = hasher_from(config, tensors)
    except FormatError as error:
        assert "\n" not in str(error) and len(str(error)) < 2000
        return False
    try:
        codes = hasher.encode(X)
    except DistillHashError:  # overflow, for these rows
        return True
    assert codes.packed.shape == (N, -(-hasher.n_bits // 8))
    assert len(hasher.encode(X[:7])) == 7 and hasher.encode(X) == codes
    return True


def odd_arrays(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    yield array.astype(np.float16)
    yield array.astype(np.int32)
    yield array.astype(np.uint8)
    yield array > 0
    yield array.T.copy() if array.ndim > 1 else array[:, None]
    yield array[None]
    yield array.reshape(-1)
    yield array[:0]
    yield array[:1]
    yield np.concatenate([array, array])
    yield np.zeros((), array.dtype)
    yield np.zeros((2, 2), array.dtype)
    yield np.zeros_like(array)
    for value in (np.nan, np.inf, 1e300, -1e300, 1e-300):
        yield np.full(array.shape, value)
        changed = array.astype(np.float64)
        changed.flat[0] = value
        yield changed


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("method", [*method_names(), *method_names(image_text=True)])
def test_every_value_of_a_saved_hasher_may_be_odd(method: str) -> None:
    hasher = fitted(method)
    config, tensors = hasher.config(), {name: np.asarray(array) for name, array in hasher.state().items()}
    assert sound_or_refused(config, tensors)
    for name in ("method", "parameters", "n_features"):
        for value in VALUES:
            refused = not sound_or_refused({**config, name: value}, tensors)
            assert refused or value == config[name]
        assert not sound_or_refused({key: value for key, value in config.items() if key != name}, tensors)
    for name, before in config["parameters"].items():
        for value in VALUES:
            changed = {**config, "parameters": {**config["parameters"], name: value}}
            loaded = sound_or_refused(changed, tensors)
            if type(value) is not type(before) and not isinstance(value, int) and value is not None:
                assert not loaded or isinstance(before, float | type(None)), (name, value)
    for name, array in tensors.items():
        for odd in odd_arrays(array):
            loaded = sound_or_refused(config, {**tensors, name: odd})
            assert not loaded or odd.size == array.size, (name, odd.shape)
            assert not loaded or np.isfinite(odd).all()
        without = {key: value for key, value in tensors.items() if key != name}
        assert not sound_or_refused(config, without) or (method, name) in OPTIONAL
        assert not sound_or_refused(config, {**tensors, name + "x": array})
    for n_features in (1, 15, 17, 10**9):
        assert not sound_or_refused({**config, "n_features": n_features}, tensors)


@pytest.mark.filterwarnings("error")
def test_every_value_of_a_decoder_may_be_odd() -> None:
    hasher = fitted("pcah")
    config, tensors = hasher.config(), hasher.tensors()
    names = sorted(tensors.keys() - hasher.state().keys())
    assert names == ["ridge_decoder.mean", "ridge_decoder.weight"] and sound_or_refused(config, tensors)
    huge = [np.full(tensors[names[1]].shape, value, np.float32) for value in (3e38, -3e38)]
    for name in names:
        for odd in [*odd_arrays(tensors[name]), *huge]:
            loaded = sound_or_refused(config, {**tensors, name: odd})
            assert loaded == (odd.dtype == np.float32 and odd.shape == tensors[name].shape and np.isfinite(odd).all())
            if loaded:
                other, codes = hasher_from(config, {**tensors, name: odd}), hasher.encode(X)
                assert np.isfinite(other.decoder.cosines(X, codes)).all()
                try:
                    assert np.isfinite(other.reconstruct(codes)).all()
                except DataError as error:
                    assert "no finite features" in str(error)
        assert not sound_or_refused(config, {key: value for key, value in tensors.items() if key != name})
        assert not sound_or_refused(config, {**tensors, name + "x": tensors[name]})
    small = {name: array for name, array in tensors.items() if name not in names}
    assert sound_or_refused(config, small)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of vectors, as train writes it."""
    np.save(tmp_path / "x.npy", X)
    words = ["--method", "pcah", "--bits", "6", "--out", str(tmp_path / "m"), "--quiet"]
    assert main(["train", str(tmp_path / "x.npy"), *words]) == 0
    return tmp_path / "m"


def change(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def encode(folder: Path, capfd: pytest.CaptureFixture[str], *options: str) -> str:
    """What the command says on stderr: one line, and the exit status is 1."""
    source = str(folder.parent / "x.npy")
    capfd.readouterr()
    status = main(["encode", source, "--model", str(folder), "--out", str(folder / "c.npz"), "--quiet", *options])
    said = capfd.readouterr().err
    assert (status, said.count("\n")) == (1, 1), said
    return said


@pytest.mark.parametrize(
    "name", ["format_version", "method", "parameters", "n_features", "fingerprint", "backbone", "training"]
)
def test_every_field_of_the_configuration_may_be_odd(
    folder: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    config = json.loads((folder / "config.json").read_text())
    for value in VALUES:
        if name == "training" and isinstance(value, dict):
            continue
        change(folder, **{name: value})
        said = encode(folder, capfd)
        assert "distillhash: " in said and "unexpected" not in said and "Traceback" not in said, value
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("name", ["name", "image_size", "weights", "fingerprint"])
def test_every_field_of_the_backbone_may_be_odd(folder: Path, capfd: pytest.CaptureFixture[str], name: str) -> None:
    backbone = json.loads((folder / "config.json").read_text())["backbone"]
    for value in VALUES:
        if name in ("image_size", "weights") and value is None:
            continue
        if name == "image_size" and value == 3:
            continue
        change(folder, backbone={**backbone, name: value})
        said = encode(folder, capfd)
        assert "unexpected" not in said, (value, said)


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"",
        b"null",
        b"[]",
        b'"x"',
        b"\xff\xfe{",
        b'{"format_version": NaN}',
        b'{"format_version": 1e999}',
        b'{"format_version": 1' + b"0" * 5000 + b"}",
        b" " * (17 * 2**20),
    ],
)
def test_configurations_that_are_none(folder: Path, capfd: pytest.CaptureFixture[str], text: bytes) -> None:
    (folder / "config.json").write_bytes(text)
    said = encode(folder, capfd)
    assert "not a model folder" in said or "not that of a model" in said


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("kind", ["pipe", "/dev/zero", "/dev/stdin", "folder", "dangling", "loop"])
def test_files_that_are_no_regular_files(folder: Path, capfd: pytest.CaptureFixture[str], file: str, kind: str) -> None:
    place = folder / file
    place.unlink()
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    else:
        place.symlink_to({"dangling": "gone", "loop": place.name}.get(kind, kind))
    assert "not a model folder" in encode(folder, capfd)


def test_weights_are_bounded_and_of_known_types(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    weights = folder / "model.safetensors"
    with weights.open("r+b") as file:
        file.truncate(5 * 2**30)  # sparse
    assert "over the limit of 4,294,967,296" in encode(folder, capfd)
    headers = [
        {"mean": {"dtype": "F8_E5M2", "shape": [4], "data_offsets": [0, 4]}},
        {"mean": {"dtype": "F4", "shape": [8], "data_offsets": [0, 4]}},
        {"mean": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 4]}},
        {"mean": {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**60]}},
        {"__metadata__": {"a": 1}},
    ]
    for header in headers:
        text = json.dumps(header).encode()
        data = len(text).to_bytes(8, "little") + text + b"\0" * 4
        weights.write_bytes(data)
        change(folder, fingerprint=blake2b(data, digest_size=16).hexdigest())
        said = encode(folder, capfd)
        assert "damaged" in said or "does not hold" in said
    for size in (2**63, 2**64 - 1, 10**8):
        data = size.to_bytes(8, "little") + b"{" * 100
        weights.write_bytes(data)
        change(folder, fingerprint=blake2b(data, digest_size=16).hexdigest())
        assert "damaged" in encode(folder, capfd)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every attempt to reach another machine, noted and refused."""
    asked: list[object] = []

    def refuse(*arguments: object, **_: object) -> None:
        asked.append(arguments[:2])
        raise OSError("no network")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return asked


@pytest.mark.parametrize("name", ["hf:somebody/backbone", "hf:bert-base-uncased", "vgg16"])
def test_nothing_is_fetched_unasked(
    folder: Path,
    capfd: pytest.CaptureFixture[str],
    no_network: list[object],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    change(folder, backbone={"name": name, "fingerprint": "0" * 32})
    photos = folder.parent / "x.npy"
    np.save(photos, np.zeros((3, 32, 32, 3), np.uint8))
    assert "--allow-download" in encode(folder, capfd)
    assert not no_network
    if name == "vgg16":
        encode(folder, capfd, "--allow-download")
        assert no_network


@pytest.mark.parametrize("kind", ["backbone", "weights", "text_encoder"])
@pytest.mark.parametrize(
    "place", [r"\\server\share\model", "//server/share/model", r"\\?\UNC\server\x", "https://host/x", "file://host/x"]
)
def test_no_other_computer_is_asked_for_a_file(folder: Path, no_network: list[object], kind: str, place: str) -> None:
    from distillhash.backbones import backbone_from_config
    from distillhash.texts import text_encoder_from_config

    with pytest.raises(FormatError, match="on another computer"):
        if kind == "text_encoder":
            text_encoder_from_config({"name": f"hf:{place}", "fingerprint": ""}, allow_download=True)
        elif kind == "weights":
            backbone_from_config({"name": "vgg16", "weights": place}, allow_download=True)
        else:
            backbone_from_config({"name": f"hf:{place}"}, allow_download=True)
    assert not no_network


@pytest.fixture
def transformer(tmp_path: Path) -> Path:
    """A small vision model of transformers."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=16, patch_size=8
    )
    transformers.ViTModel(config).save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


def damage(config: Path, **values: Any) -> None:
    config.write_text(json.dumps(json.loads(config.read_text()) | values))


CODE = """
import pathlib; pathlib.Path({!r}).touch()
from transformers import *
class Own(PreTrainedModel): pass
class OwnConfig(PretrainedConfig): model_type = 'own'
"""


@pytest.mark.long
def test_code_beside_a_model_is_neither_run_nor_asked_about(transformer: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (transformer / "own.py").write_text(CODE.format(str(marker)))
    (transformer / "modules.json").write_text('[{"idx": 0, "name": "0", "path": "", "type": "own.Own"}]')
    (transformer / "custom_generate").mkdir()
    (transformer / "custom_generate" / "generate.py").write_text(CODE.format(str(marker)))
    maps = {
        "AutoConfig": "own.OwnConfig",
        "AutoModel": "own.Own",
        "AutoTokenizer": ["own.Own", None],
        "AutoImageProcessor": "own.Own",
    }
    code = (
        "import sys; from distillhash.backbones import make_backbone; from distillhash.errors import DistillHashError\n"
        "from distillhash.texts import make_text_encoder\n"
        "for make in (make_backbone, make_text_encoder):\n"
        "    try: make('hf:' + sys.argv[1]); print('made')\n"
        "    except DistillHashError as error: print(error)"
    )
    for model_type in ("own", "vit"):
        damage(transformer / "config.json", auto_map=maps, model_type=model_type)
        (transformer / "tokenizer_config.json").write_text(json.dumps({"auto_map": maps, "tokenizer_class": "Own"}))
        # A terminal that answers yes to everything, as somebody in a hurry would.
        master, terminal = os.openpty()
        os.write(master, b"y\n" * 20)
        done = subprocess.run(
            [sys.executable, "-c", code, str(transformer)],
            stdin=terminal,
            capture_output=True,
            text=True,
            timeout=100,
            check=True,
        )
        os.close(master)
        os.close(terminal)
        assert "run the custom code" not in done.stdout + done.stderr
        assert len(done.stdout.splitlines()) == 2
    assert not marker.exists()


def test_weights_that_are_pickles_are_refused(transformer: Path, tmp_path: Path) -> None:
    import torch

    from distillhash.backbones import make_backbone

    marker = tmp_path / "ran"

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return open, (str(marker), "w")

    (transformer / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "model.pt", "tf_model.h5", "training_args.bin"):
        torch.save({"x": Payload()}, transformer / name)
    with pytest.raises(DistillHashError, match="weights in safetensors"):
        make_backbone(f"hf:{transformer}")
    assert not marker.exists()
    with pytest.raises(DistillHashError, match="does not hold weights"):
        make_backbone("vgg16", weights=transformer / "pytorch_model.bin")
    assert not marker.exists()


def test_folders_of_transformers_are_data(
    transformer: Path, no_network: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    from distillhash.backbones import make_backbone

    name = f"hf:{transformer}"
    config = (transformer / "config.json").read_text()
    assert make_backbone(name).dim == 8
    kinds: list[Any] = ["nothing", 3, None, [], "timm_wrapper", "bert"]
    sizes: list[Any] = [0, -1, "x", None, [], 3]
    odd: list[dict[str, Any]] = [{"model_type": kind} for kind in kinds]
    odd += [{"hidden_size": size} for size in sizes]
    odd += [
        {"num_hidden_layers": 10**9},
        {"patch_size": 0},
        {"hidden_act": "nothing"},
        {"num_attention_heads": 0},
    ]
    odd += [{"num_channels": 2}]
    for values in odd:
        (transformer / "config.json").write_text(config)
        damage(transformer / "config.json", **values)
        with pytest.raises(DistillHashError) as caught:
            make_backbone(name)
        assert "\n" not in str(caught.value)
    (transformer / "config.json").write_text(config)
    damage(transformer / "config.json", attn_implementation="somebody/kernels", _attn_implementation="somebody/kernels")
    assert make_backbone(name).dim == 8  # what it names is not looked for
    (transformer / "config.json").write_text(config)
    processor = transformer / "preprocessor_config.json"
    for text in (
        "[" * 100_000,
        "[]",
        '{"image_mean": [1, 2]}',
        '{"image_std": [NaN, 1, 1]}',
        '{"image_mean": "abc"}',
        '{"size": 10000000000}',
    ):
        processor.write_text(text)
        with pytest.raises(DistillHashError) as caught:
            make_backbone(name)
        assert "\n" not in str(caught.value)
    for link in ("/dev/zero", "pipe"):
        processor.unlink()
        os.mkfifo(processor) if link == "pipe" else processor.symlink_to(link)
        with pytest.raises(DistillHashError, match=r"preprocessor_config\.json cannot be read"):
            make_backbone(name)
    assert not no_network


@pytest.mark.parametrize("weights", ["sub/pipe", "/dev/zero", "../other.safetensors", "..", "", 3, None])
@pytest.mark.parametrize("place", ["index", "config"])
def test_weights_are_files_of_the_folder_itself(transformer: Path, weights: Any, place: str) -> None:
    from distillhash.backbones import make_backbone

    (transformer / "sub").mkdir()
    os.mkfifo(transformer / "sub" / "pipe")
    if place == "index":
        (transformer / "model.safetensors").unlink()
        (transformer / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": {"x": weights}})
        )
    elif weights is not None:
        damage(transformer / "config.json", transformers_weights=weights)
    else:
        damage(transformer / "config.json", transformers_weights=["x"])
    with pytest.raises(
        DataError, match=r"files of weights that are not in its folder|as its weights|seems to be incorrect"
    ):
        make_backbone(f"hf:{transformer}", allow_download=False)


def test_a_folder_named_by_a_model_must_hold_the_weights_of_the_training(transformer: Path, folder: Path) -> None:
    from distillhash.backbones import make_backbone

    backbone = make_backbone(f"hf:{transformer}")
    change(folder, backbone={**backbone.config(), "fingerprint": backbone.fingerprint})
    assert load_model(folder).backbone.dim == 8
    change(folder, backbone={**backbone.config(), "fingerprint": "0" * 32})
    with pytest.raises(FormatError, match="are not those the model was trained with"):
        assert load_model(folder).backbone


def test_a_vocabulary_may_be_odd() -> None:
    from distillhash.texts import make_text_encoder, text_encoder_from_config

    for kind in ("tfidf", "bow"):
        config = make_text_encoder(kind).fit(["red cat", "blue dog", "red dog"]).config()
        assert text_encoder_from_config(copy.deepcopy(config)).encode(["red"]).shape == (1, 4)
        for name in config:
            for value in [*VALUES, ["red", "red"], ["red", 3], [[1]], [float("nan")] * 4, [1.0] * 3, {"red": 1}]:
                if name == "words" and value == config["words"]:
                    continue
                with pytest.raises(FormatError):
                    text_encoder_from_config({**config, name: value})
        with pytest.raises(FormatError):
            text_encoder_from_config({**config, "name": f"{kind}:{'9' * 5000}"})


def test_load_hasher_reads_as_carefully(folder: Path) -> None:
    (folder / "config.json").write_bytes(b"[" * 100_000)
    with pytest.raises(FormatError, match="not a model folder"):
        load_hasher(folder)
