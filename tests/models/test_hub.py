"""Models for the Hugging Face hub: folders, cards, golden vectors, and a server that speaks its protocol."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from degenerate import quick
from distillhash import CrossModalModel, HashModel, backbones, load_model, make_hasher, method_names
from distillhash.cli import main
from distillhash.errors import DataError, FormatError, MissingDependencyError, NotFittedError, ParameterError
from distillhash.models import hub as hub_module
from hub_server import Hub, running_hub
from pair_factory import paired_vectors

huggingface_hub = pytest.importorskip("huggingface_hub")
GOLDEN = "golden.safetensors"


@pytest.fixture(scope="module")
def x(vectors: Path) -> Any:
    return np.load(vectors)


@pytest.fixture(scope="module")
def model(x: Any) -> HashModel:
    return HashModel("embeddings", make_hasher("itq", 12)).fit(x)


@pytest.fixture(scope="module")
def image_model(photos: Path) -> HashModel:
    return HashModel(hasher=make_hasher("itq", 16), image_size=32, device="cpu").fit(str(photos))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on this machine, and the user's cache and token of it."""
    with running_hub() as server:
        server.use(monkeypatch, tmp_path / "hub-cache")
        yield server


def differing(golden: Path, **arrays: Any) -> None:
    """Write golden vectors with some arrays replaced."""
    save_file({**load_file(golden), **arrays}, golden)


def test_a_folder_gives_equal_codes(model: HashModel, x: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "codes")
    assert {file.name for file in (tmp_path / "codes").iterdir()} == {
        "config.json",
        "model.safetensors",
        "README.md",
        GOLDEN,
    }
    loaded = HashModel.from_pretrained(tmp_path / "codes")
    assert type(loaded) is HashModel
    assert loaded.encode(x) == model.encode(x) == load_model(tmp_path / "codes").encode(x)


def test_golden_vectors_are_ten_inputs_and_their_codes(
    model: HashModel, image_model: HashModel, tmp_path: Path
) -> None:
    for fitted, shape, dtype in ((model, (10, 16), np.float32), (image_model, (10, 64, 64, 3), np.uint8)):
        fitted.save_pretrained(tmp_path)
        golden = load_file(tmp_path / GOLDEN)
        assert golden["inputs"].shape == shape and golden["inputs"].dtype == dtype
        assert np.array_equal(golden["packed"], fitted.encode(golden["inputs"]).packed)
        assert len(np.unique(golden["packed"], axis=0)) > 5
        inputs = golden["inputs"]
        features = inputs if dtype is np.float32 else next(fitted.encode_batches(inputs)).features
        sizes = np.abs(fitted.hasher.project(features))
        assert (sizes > 0.01 * sizes.mean(axis=1, keepdims=True)).all()
        assert HashModel.from_pretrained(tmp_path).encode(golden["inputs"]) == fitted.encode(golden["inputs"])


def test_other_codes_than_the_golden_are_counted_and_refused(model: HashModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    packed = load_file(tmp_path / GOLDEN)["packed"]
    packed[3, 0] ^= 0b10010000
    packed[7, 1] ^= 0b00010000
    differing(tmp_path / GOLDEN, packed=packed)
    with pytest.raises(
        FormatError, match=r"3 bits in 2 of 10 golden codes are others here .* or use load_model\(folder\)"
    ):
        HashModel.from_pretrained(tmp_path)
    assert load_model(tmp_path).n_bits == 12


def test_a_backbone_that_computes_otherwise_is_noticed(
    image_model: HashModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_model.save_pretrained(tmp_path)
    extract = backbones.iter_features

    def changed(factors: Any) -> Any:
        return lambda *given: (replace(batch, features=batch.features * factors) for batch in extract(*given))

    noise = np.random.default_rng(0).standard_normal(1280).astype(np.float32)
    monkeypatch.setattr(backbones, "iter_features", changed(1 + 1e-5 * noise))  # another order of summation
    HashModel.from_pretrained(tmp_path)
    monkeypatch.setattr(backbones, "iter_features", changed(1 + noise))
    with pytest.raises(FormatError, match="of 10 golden codes are others here"):
        HashModel.from_pretrained(tmp_path)


def test_engines_agree_on_golden_codes(photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    options: dict[str, Any] = {"image_size": 32, "device": "cpu", "engine": "torch"}
    HashModel(hasher=make_hasher("itq", 16), **options).fit(photos).save_pretrained(tmp_path)
    assert HashModel.from_pretrained(tmp_path, engine="onnx").n_bits == 16


def test_bits_near_zero_are_not_compared(tmp_path: Path) -> None:
    """Rounding on another processor may flip them; here the second bit is 0 for every input."""
    hasher = make_hasher("lsh", 2, centre=False).fit(np.eye(3))
    hasher.restore(hasher.config(), {**hasher.state(), "weight": np.array([[1.0, 0], [2, 0], [3, 0]])})
    HashModel("embeddings", hasher).save_pretrained(tmp_path)
    packed = load_file(tmp_path / GOLDEN)["packed"]
    differing(tmp_path / GOLDEN, packed=packed ^ np.uint8(0b01000000))
    HashModel.from_pretrained(tmp_path)
    differing(tmp_path / GOLDEN, packed=packed ^ np.uint8(0b10000000))
    with pytest.raises(FormatError, match="10 bits in 10 of 10"):
        HashModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "arrays",
    [
        {"inputs": np.zeros((10, 15), np.float32)},
        {"inputs": np.zeros((10, 8, 8, 3), np.uint8)},
        {"inputs": np.full((10, 16), np.nan, np.float32)},
        {"inputs": np.zeros((9, 16), np.float32)},
        {"inputs": np.zeros((0, 16), np.float32), "packed": np.zeros((0, 2), np.uint8)},
        {"inputs": np.zeros((10**5, 16), np.float32), "packed": np.zeros((10**5, 2), np.uint8)},
        {"inputs": np.zeros((), np.float32)},
        {"packed": np.zeros((10, 3), np.uint8)},
        {"packed": np.full((10, 2), 255, np.uint8)},
    ],
)
def test_a_strangers_golden_vectors_are_data(model: HashModel, arrays: dict[str, Any], tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    differing(tmp_path / GOLDEN, **arrays)
    with pytest.raises(FormatError, match=r"golden\.safetensors cannot be compared"):
        HashModel.from_pretrained(tmp_path)
    (tmp_path / GOLDEN).write_bytes(b"rubbish")
    with pytest.raises(FormatError, match=r"golden\.safetensors cannot be compared"):
        HashModel.from_pretrained(tmp_path)


def test_the_card_is_one_that_the_hub_reads(model: HashModel, x: Any, tmp_path: Path, monkeypatch: Any) -> None:
    model.save_pretrained(tmp_path / "codes", license="apache-2.0", measures={"map": 0.51234, "neighbour_recall@10": 1})
    card = huggingface_hub.ModelCard.load(tmp_path / "codes" / "README.md")
    assert card.data.to_dict() == {
        "library_name": "distillhash",
        "license": "apache-2.0",
        "pipeline_tag": "feature-extraction",
        "tags": ["binary-codes", "hashing", "embeddings", "itq"],
    }
    for fact in (
        "12 bits",
        "Iterative Quantization",
        "CVPR 2011",
        "200 of 200 items",
        f"`{load_model(tmp_path / 'codes').fingerprint}`",
    ):
        assert fact in card.text
    for row in ("| map | 0.5123 |", "| neighbour_recall@10 | 1 |"):
        assert row in card.text
    block = card.text.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"vectors": x}
    exec(block, names)
    assert names["codes"] == model.encode(x)


def test_the_card_of_images(image_model: HashModel, photos: Path, tmp_path: Path) -> None:
    image_model.save_pretrained(tmp_path)
    card = huggingface_hub.ModelCard.load(tmp_path / "README.md")
    assert card.data.pipeline_tag == "image-feature-extraction" and card.data.license is None
    assert "`efficientnet-lite0`, images of 32 x 32 pixels" in card.text and "stated no licence" in card.text
    assert f"24 of 24 items of `{photos.name}`" in card.text
    assert str(photos) not in card.text + (tmp_path / "config.json").read_text()
    assert image_model.training["source"] == str(photos)


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("/home/me/photos", "photos"),
        ("/home/me/photos/#train", "photos/#train"),
        ("cifar10:/home/me/data#train#:100", "cifar10:data#train#:100"),
        (r"C:\Users\me\x.npy", "C:x.npy"),
        ("digits:", "digits:"),
        ("array", "array"),
    ],
)
def test_nobody_learns_where_the_source_was(source: str, shown: str) -> None:
    assert hub_module._without_folders(source) == shown


def test_images_and_texts(x: Any, model: HashModel, tmp_path: Path) -> None:
    pairs = paired_vectors(texts_each=1)[:2]
    both = CrossModalModel("embeddings", make_hasher("ccaitq", 8), text_encoder="embeddings").fit(pairs)
    both.save_pretrained(tmp_path / "both")
    loaded = HashModel.from_pretrained(tmp_path / "both")
    assert isinstance(loaded, CrossModalModel)
    assert loaded.encode(pairs[0]) == both.encode(pairs[0])
    assert loaded.encode_texts(pairs[1]) == both.encode_texts(pairs[1])
    assert "and texts" in (tmp_path / "both" / "README.md").read_text()
    model.save_pretrained(tmp_path / "images")
    with pytest.raises(FormatError, match="holds no text_encoder, so it is no CrossModalModel"):
        CrossModalModel.from_pretrained(tmp_path / "images")


def test_up_to_the_hub_and_down_again(hub: Hub, model: HashModel, x: Any) -> None:
    address = model.push_to_hub("me/codes", private=True, license="mit")
    assert address == f"{hub.url}/me/codes/commit/{hub.sha('me/codes')}"
    assert hub.private == {"me/codes": True}
    assert {*hub.repos["me/codes"]} == {"config.json", "model.safetensors", "README.md", GOLDEN}
    assert b'from_pretrained("me/codes")' in hub.repos["me/codes"]["README.md"]
    hub.repos["me/codes"]["run_me.py"] = b"raise SystemExit"
    hub.asked.clear()
    assert HashModel.from_pretrained("me/codes").encode(x) == model.encode(x)
    assert not [asked for asked in hub.asked if "run_me" in asked]

    first = hub.sha("me/codes")
    other = HashModel("embeddings", make_hasher("lsh", 7)).fit(x)
    other.push_to_hub("me/codes")
    assert hub.sha("me/codes") != first
    assert HashModel.from_pretrained("me/codes").encode(x) == other.encode(x)
    assert HashModel.from_pretrained("me/codes", revision=first).encode(x) == model.encode(x)  # from the user's cache


def test_what_the_hub_refuses_is_one_sentence(hub: Hub, model: HashModel, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"me/nothing is no folder on this machine, and the hub does not give it \(404"):
        HashModel.from_pretrained("me/nothing")
    model.push_to_hub("me/codes")
    with pytest.raises(DataError, match="the hub does not give it"):
        HashModel.from_pretrained("me/codes", revision="no-such")
    with pytest.raises(DataError, match="the hub does not give it"):
        HashModel.from_pretrained("./no/such/folder")
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(
        DataError, match=r"me/codes cannot be written on the hub \(.*401 Unauthorized.*\); try `hf auth login`"
    ):
        model.push_to_hub("me/codes")


def test_load_model_asks_no_network(hub: Hub, model: HashModel) -> None:
    model.push_to_hub("me/codes")
    hub.asked.clear()
    with pytest.raises(FormatError, match="me/codes is not a model folder"):
        load_model("me/codes")
    assert hub.asked == []


def test_the_extra_is_named(model: HashModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'distillhash\[hub\]'"):
        HashModel.from_pretrained("me/codes")
    with pytest.raises(MissingDependencyError, match=r"pip install 'distillhash\[hub\]'"):
        model.push_to_hub("me/codes")
    model.save_pretrained(tmp_path)
    HashModel.from_pretrained(tmp_path)  # a folder needs no client


def test_what_cannot_be_published(x: Any, model: HashModel, tmp_path: Path) -> None:
    with pytest.raises(NotFittedError):
        HashModel("embeddings", make_hasher("itq", 8)).save_pretrained(tmp_path)
    local = HashModel("embeddings", make_hasher("lsh", 8)).fit(x)
    local.backbone_name = f"onnx:{Path(__file__)}"
    with pytest.raises(ParameterError, match="is on this machine alone; train with one of"):
        local.save_pretrained(tmp_path / "a")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        model.save_pretrained(tmp_path / "file" / "a")


@pytest.mark.long
@pytest.mark.parametrize("method", method_names())
def test_every_method_has_golden_vectors(method: str, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((6, 16))[np.arange(60) % 6]
    rows = rows + 0.4 * np.random.default_rng(1).standard_normal((60, 16))
    hasher = quick(method, 6, **({"alpha": 0.5} if method == "distillhash" else {}))
    labels = np.arange(60) % 6 if hasher.needs_labels else None
    fitted = HashModel("embeddings", hasher.fit(np.maximum(rows, 0).astype(np.float32), labels=labels))
    fitted.save_pretrained(tmp_path)
    HashModel.from_pretrained(tmp_path)
    packed = load_file(tmp_path / GOLDEN)["packed"]
    differing(tmp_path / GOLDEN, packed=packed ^ np.uint8(0b11111100))
    with pytest.raises(FormatError, match="of 10 golden codes are others here"):
        HashModel.from_pretrained(tmp_path)


def test_the_verb(model: HashModel, x: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model.save(tmp_path / "model")
    (tmp_path / "measures.json").write_text(json.dumps({"map": 0.25, "curve": {"depth": [1]}, "n_bits": 12}))
    out = tmp_path / "model.hub"
    words = [
        "export",
        "--model",
        str(tmp_path / "model"),
        "--to",
        "hub",
        "--out",
        str(out),
        "--license",
        "mit",
        "--json",
    ]
    assert main([*words, "--quiet", "--measures", str(tmp_path / "measures.json")]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {"to": "hub", "folder": str(out), "fingerprint": model.fingerprint, "n_bits": 12}
    assert HashModel.from_pretrained(out).encode(x) == model.encode(x)
    assert "| map | 0.25 |" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("words", "exit_code", "message"),
    [
        (["--to", "hub", "--out", "folder"], 2, "--to hub needs --model"),
        (["--to", "hub", "--model", "model", "--data", "x.npy"], 2, "--to hub takes no --data; leave it out"),
        (["--to", "hub", "--codes", "codes.npz", "--out", "folder"], 2, "--to hub takes no --codes; leave it out"),
        (["--to", "npy", "--codes", "codes.npz", "--license", "mit"], 2, "--to npy takes no --license; leave it out"),
        (["--to", "npy"], 2, "--to npy needs --codes"),
        (["--to", "hub", "--model", "no-such", "--out", "folder"], 1, "no-such is not a model folder"),
        (["--to", "hub", "--model", "model", "--out", "folder", "--measures", "none"], 1, "none is not what"),
    ],
)
def test_what_the_verb_refuses(
    words: list[str], exit_code: int, message: str, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", *words]) == exit_code
    assert message in capsys.readouterr().err
