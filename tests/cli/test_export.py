"""``distillhash export`` from the outside."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distillhash import Codes
from distillhash.cli import main
from distillhash.cli.export import FORMAT_NAMES
from distillhash.export import FORMATS

CODES = Codes.from_packed(np.array([[0x81, 0x80], [0x03, 0x50]], np.uint8), 12)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    CODES.save(tmp_path / "codes.parquet", keys=["a.jpg", "b.jpg"])
    return tmp_path / "codes.parquet"


def run(capsys: pytest.CaptureFixture[str], *words: object, exit_code: int = 0) -> dict[str, Any]:
    assert main(["export", *map(str, words), "--json", "--quiet"]) == exit_code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_the_choices_are_the_formats() -> None:
    assert tuple(FORMATS) == FORMAT_NAMES


@pytest.mark.parametrize("to", FORMATS)
def test_every_format_has_a_default_name_beside_the_codes(
    source: Path, capsys: pytest.CaptureFixture[str], to: str
) -> None:
    if to == "faiss-hnsw":
        pytest.importorskip("faiss", reason="faiss is not installed")
    summary = run(capsys, "--codes", source, "--to", to)
    assert (summary["to"], summary["n_codes"], summary["n_bits"]) == (to, 2, 12)
    assert summary["files"][0] == str(source.with_suffix(FORMATS[to].endings[0]))
    assert all(Path(file).stat().st_size for file in summary["files"])
    assert Codes.load(source)[0] == CODES


def test_out_and_name(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "photos.sql"
    summary = run(capsys, "--codes", source, "--to", "pgvector", "--out", out, "--name", "photos")
    assert summary["files"] == [str(out)] and "COPY photos (" in out.read_text()
    out = tmp_path / "rows.json"
    run(capsys, "--codes", source, "--to", "milvus", "--out", out)
    assert [row["code"] for row in json.loads(out.read_text())["rows"]] == [[0x81, 0x80], [0x03, 0x50]]


def test_people_are_told_what_was_written(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--codes", str(source), "--to", "npy"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("2 codes of 12 bits: ") and "codes.npy" in captured.err


@pytest.mark.parametrize(
    ("words", "exit_code", "sentence"),
    [
        (["--to", "faiss", "--out", "x.bin"], 2, "ends in .faiss"),
        (["--to", "npy", "--name", "photos"], 2, "names no table"),
        (["--to", "vespa", "--name", "Photos"], 2, "lower-case"),
        (["--to", "parquet", "--out", "SOURCE"], 2, "is the file the codes come from"),
        (["--to", "npy", "--codes", "gone.npz"], 1, "not a readable codes file"),
    ],
)
def test_what_is_refused(
    source: Path, capsys: pytest.CaptureFixture[str], words: list[str], exit_code: int, sentence: str
) -> None:
    words = [str(source) if word == "SOURCE" else word for word in words]
    summary = run(capsys, "--codes", source, *words, exit_code=exit_code)
    assert sentence in summary["error"]
