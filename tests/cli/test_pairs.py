"""The verbs on images and texts: train --pairs, search --text, evaluate, ls."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distillhash import load_model
from distillhash.bench.image_text import evaluate_model
from distillhash.cli import main
from distillhash.codes import hamming_distances
from distillhash.models.image_text import CrossModalModel
from pair_factory import write_miniature


def run_json(capsys: pytest.CaptureFixture[str], *words: object, exit_code: int = 0) -> dict[str, Any]:
    """Run a verb with --json and return the one object it prints."""
    assert main([*map(str, words), "--json", "--quiet"]) == exit_code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_miniature(tmp_path_factory.mktemp("mir") / "miniature.parquet", 60)


@pytest.fixture(scope="module")
def model(miniature: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model") / "model"
    words = ["train", "--pairs", f"{miniature}#:40", "--method", "ccaitq", "--text-encoder", "tfidf", "--bits", "16"]
    assert main([*words, "--image-size", "32", "--set", "power=2", "--out", str(out), "--quiet"]) == 0
    return out


@pytest.fixture(scope="module")
def index(miniature: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("index") / "index"
    assert main(["index", f"{miniature}#40:", "--model", str(model), "--index", str(folder), "--quiet"]) == 0
    return folder


def test_train_writes_the_usual_folder(model: Path) -> None:
    assert {path.name for path in model.iterdir()} == {"config.json", "model.safetensors", "report.html"}
    config = json.loads((model / "config.json").read_text())
    assert config["parameters"]["power"] == 2 and config["text_encoder"]["name"] == "tfidf"


def test_the_defaults_of_pairs(miniature: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = run_json(
        capsys, "train", miniature, "--pairs", "--text-encoder", "bow:30", "--bits", 8, "--out", tmp_path / "m",
        "--image-size", 32, "--set", "epochs=2", "--max-images", 30,
    )  # fmt: skip
    assert summary["method"] == "cross-contrast" and len(summary["loss"]) == 2
    assert (summary["n_used"], summary["n_texts"], summary["n_skipped"]) == (30, 30, 0)


def test_search_by_text(index: Path, miniature: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run_json(capsys, "search", "--text", "sea waves", "--text", "stars", "--index", index, "-k", 5)["results"]
    assert [row["query"] for row in found] == ["sea waves", "stars"]
    library = load_model(index / "model", device="cpu")
    assert isinstance(library, CrossModalModel)
    expected = hamming_distances(library.encode_texts(["sea waves", "stars"]), library.encode(f"{miniature}#40:"))
    expected.sort(axis=1)
    assert [[n["distance"] for n in row["neighbours"]] for row in found] == expected[:, :5].tolist()
    near = run_json(capsys, "search", "--text", "stars", "--index", index, "--radius", 4)["results"][0]["neighbours"]
    assert [n["distance"] for n in near] == expected[1][expected[1] <= 4].tolist()


def test_evaluate_gives_both_directions(model: Path, miniature: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = f"{miniature}#40:"
    summary = run_json(capsys, "evaluate", "--model", model, "--query", spec, "--database", spec)
    library = load_model(model, device="cpu")
    assert isinstance(library, CrossModalModel)
    expected = evaluate_model(library, spec, spec)
    for direction in ("image_to_text", "text_to_image"):
        assert summary[direction] == expected[direction]
        assert set(summary[direction]) == {"own", "labels", "words"}
    assert (summary["method"], summary["n_images"], summary["n_skipped"]) == ("ccaitq", 20, 0)
    assert main(["evaluate", "--model", str(model), "--query", spec, "--database", spec]) == 0
    assert "text to image  own     map " in capsys.readouterr().err


def test_evaluate_names_what_it_leaves_out(
    model: Path, miniature: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = pq.read_table(miniature).to_pylist()[:12]
    rows[2]["tags"], rows[4]["tags"] = [], ["Möwe", "Strandkorb"]
    spec = tmp_path / "p.parquet"
    pq.write_table(pa.Table.from_pylist(rows), spec)
    words = ["evaluate", "--model", model, "--query", spec, "--database", spec]
    summary = run_json(capsys, *words)
    reasons = {item["key"]: item["reason"] for item in summary["skipped"]}
    assert set(reasons) == {"im2.png", "im4.png"} and summary["n_skipped"] == 2
    assert "none of its 2 words" in reasons["im4.png"] and summary["n_texts"] == 10
    run_json(capsys, *words, "--strict", exit_code=1)


def test_ls_names_methods_encoders_and_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    methods = run_json(capsys, "ls", "methods")["methods"]
    assert methods["ugach"]["uses"] == "images and texts" and methods["itq"]["uses"] == "features"
    assert "minilm" in run_json(capsys, "ls", "text-encoders")["text-encoders"]
    assert "CAPTIONS.csv" in run_json(capsys, "ls", "pairs")["pairs"]


@pytest.mark.parametrize(
    ("words", "exit_code", "message"),
    [
        (["search", "--index", "INDEX"], 2, "give a QUERY, or --text with a sentence"),
        (
            ["search", "--text", "sea", "--index", "INDEX", "--rerank", "projection"],
            2,
            "leave it out where --text is given",
        ),
        (["search", "--text", "Hund am Ufer", "--index", "INDEX"], 1, "'Hund am Ufer' has none of its 3 words"),
        (["search", "--text", "sea", "--index", "PLAIN"], 2, "itq, which knows images alone; search by text needs"),
        (["train", "PHOTOS", "--method", "ugach", "--out", "x"], 2, "ugach learns from image-text pairs; add --pairs"),
        (
            ["train", "PHOTOS", "--text-encoder", "tfidf", "--out", "x"],
            2,
            "--text-encoder tfidf needs texts; add --pairs",
        ),
        (["train", "--pairs", "PHOTOS", "--out", "x"], 1, "holds none of captions.csv"),
        (
            ["train", "--pairs", "PAIRS", "--method", "itq", "--out", "x"],
            2,
            "itq learns from images alone; leave out --pairs",
        ),
        (
            ["train", "--pairs", "PAIRS", "--fine-tune", "--text-encoder", "bow", "--out", "x"],
            2,
            "leave out fine-tuning",
        ),
        (["train", "--pairs", "PAIRS", "--text-encoder", "nope", "--out", "x"], 2, "unknown text encoder 'nope'"),
        (
            ["evaluate", "--model", "MODEL", "--query", "PAIRS", "--database", "PAIRS", "--report", "r.html"],
            2,
            "--report",
        ),
        (["evaluate", "--model", "MODEL", "--query", "PHOTOS", "--database", "PAIRS"], 1, "holds none of captions.csv"),
    ],
)
def test_bad_input_is_one_sentence(
    words: list[str], exit_code: int, message: str, model: Path, index: Path, miniature: Path, photos: Path,
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    places = {"MODEL": model, "INDEX": index, "PAIRS": miniature, "PHOTOS": photos, "PLAIN": tmp_path / "plain"}
    if "PLAIN" in words:
        plain = ["--method", "itq", "--bits", "4", "--image-size", "32", "--out", str(tmp_path / "itq"), "--quiet"]
        assert main(["train", str(photos), *plain]) == 0
        assert (
            main(
                ["index", str(photos), "--model", str(tmp_path / "itq"), "--index", str(tmp_path / "plain"), "--quiet"]
            )
            == 0
        )
    assert main([str(places.get(word, word)) for word in words] + ["--quiet"]) == exit_code
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in lines[-1] and lines[-1].startswith("distillhash: ")


def test_remarks_reach_stderr(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "--text", "sea Möwe Strandkorb", "--index", str(index), "-k", "1"]) == 0
    assert "tfidf knows 1 of the 3 words of 'sea Möwe Strandkorb'" in capsys.readouterr().err
