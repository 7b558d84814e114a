"""``index`` and ``search`` on every engine that an address can name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distillhash import Codes, load_model
from distillhash.cli import main
from distillhash.codes import hamming_distances
from distillhash.index import open_index


def run(capsys: pytest.CaptureFixture[str], *words: object, exit_code: int = 0) -> dict[str, Any]:
    assert main([*map(str, words), "--json", "--quiet"]) == exit_code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.fixture(scope="module")
def models(vectors: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two models of 16 bits on the same vectors."""
    folder = tmp_path_factory.mktemp("models")
    for name, seed in (("a", "0"), ("b", "1")):
        words = ["train", str(vectors), "--method", "lsh", "--bits", "16", "--seed", seed, "--out", str(folder / name)]
        assert main([*words, "--quiet"]) == 0
    return folder / "a", folder / "b"


PLACES: dict[str, Callable[[pytest.FixtureRequest], str]] = {
    "folder": lambda request: f"{request.getfixturevalue('tmp_path')}/index",
    "postgres": lambda request: f"{request.getfixturevalue('postgres')}&table=cli",
    "milvus": lambda request: request.getfixturevalue("milvus").uri("cli"),
}


@pytest.mark.parametrize("engine", PLACES)
def test_index_and_search(
    request: pytest.FixtureRequest,
    engine: str,
    vectors: Path,
    models: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = PLACES[engine](request)
    monkeypatch.chdir(tmp_path)
    model, other = models
    on_server = engine != "folder"
    with_model = ["--model", model] if on_server else []
    if on_server:
        refused = run(capsys, "index", vectors, "--index", place, exit_code=2)
        assert "keeps no model; give --model DIR" in refused["error"]
    first = run(capsys, "index", vectors, "--model", model, "--index", place)
    assert (first["added"], first["updated"], first["unchanged"], first["n_items"]) == (200, 0, 0, 200)
    again = run(capsys, "index", vectors, "--index", place, *with_model)
    assert (again["added"], again["updated"], again["unchanged"]) == (0, 0, 200)
    wrong = run(capsys, "index", vectors, "--model", other, "--index", place, exit_code=1)
    assert "was built with another model" in wrong["error"]

    results = run(capsys, "search", f"{vectors}#0:3", "--index", place, "-k", 5, *with_model)["results"]
    codes = load_model(model).encode(str(vectors))
    for row, result in enumerate(results):
        distances = hamming_distances(codes[row], codes)[0]
        order = np.argsort(distances, kind="stable")[:5]
        assert [n["distance"] for n in result["neighbours"]] == distances[order].tolist()
        assert [n["id"] for n in result["neighbours"]] == order.tolist()
        assert result["neighbours"][0]["metadata"]["key"] == str(order[0])
    within = run(capsys, "search", f"{vectors}#0:1", "--index", place, "--radius", 2, *with_model)["results"][0]
    assert len(within["neighbours"]) == int((hamming_distances(codes[0], codes) <= 2).sum())

    removed = run(capsys, "index", "--index", place, "--remove", 0, 1, *with_model)
    assert (removed["removed"], removed["n_items"]) == (2, 198)
    missing = run(capsys, "index", "--index", place, "--remove", 0, *with_model, exit_code=1)
    assert "no item with id 0" in missing["error"]


@pytest.mark.parametrize("engine", PLACES)
def test_a_codes_file_that_was_half_stored_is_finished(
    request: pytest.FixtureRequest,
    engine: str,
    models: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from distillhash import search

    monkeypatch.setattr(search, "_CODES_AT_ONCE", 30)
    place = PLACES[engine](request).replace("cli", "resumed")
    codes = Codes.from_packed(np.random.default_rng(0).integers(0, 256, (100, 2), np.uint8), 16)
    keys = [f"k{row}" for row in range(100)]
    codes.save(tmp_path / "codes.parquet", keys=keys)
    model = load_model(models[0])
    with open_index(place, 16, create=True, model_fingerprint=model.fingerprint) as index:
        left = iter(range(2))
        add = index.add

        def add_twice(*arguments: Any, **options: Any) -> Any:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return add(*arguments, **options)

        monkeypatch.setattr(index, "add", add_twice)
        with pytest.raises(KeyboardInterrupt):
            search.Searcher(index).add_codes(str(tmp_path / "codes.parquet"))
    words = ["index", tmp_path / "codes.parquet", "--model", models[0], "--index", place]
    summary = run(capsys, *words)
    assert (summary["added"], summary["updated"], summary["unchanged"], summary["n_items"]) == (40, 0, 60, 100)
    changed = Codes.from_packed(codes.packed[::-1], 16)
    changed.save(tmp_path / "codes.parquet", keys=[*keys[:99], "new"])
    summary = run(capsys, *words)
    assert summary["added"] == 1 and summary["updated"] + summary["unchanged"] == 99 and summary["n_items"] == 101
    with open_index(place) as index:
        assert index.get([index.known(["k3"])["k3"][0]])[0].code == changed[3]


def test_repeated_keys_in_a_codes_file_are_refused(
    models: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Codes.from_packed(np.zeros((3, 2), np.uint8), 16).save(tmp_path / "codes.npz", keys=["a", "b", "a"])
    summary = run(capsys, "index", tmp_path / "codes.npz", "--model", models[0], "--index", tmp_path / "i", exit_code=1)
    assert "'a' comes twice" in summary["error"]


def test_a_server_that_is_away_is_one_sentence(models: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    place = "postgresql://me:geheim@127.0.0.1:1/photos"
    assert main(["search", "query.npy", "--index", place, "--model", str(models[0])]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("distillhash: postgresql://me@127.0.0.1:1/photos cannot be used now")
    assert captured.err.count("\n") == 1 and "geheim" not in captured.err and captured.out == ""


def test_an_approximate_search_is_called_so(
    postgres: str, vectors: Path, models: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    place, model = f"{postgres}&table=cli_hnsw", models[0]
    assert main(["index", str(vectors), "--model", str(model), "--index", f"{place}&index=hnsw", "--quiet"]) == 0
    for options, is_exact in (("", True), ("&index=hnsw", False)):
        words = ["search", f"{vectors}#0:2", "--model", str(model), "--index", place + options]
        assert main([*words, "--json"]) == 0
        out, err = capsys.readouterr()
        assert json.loads(out)["exact"] is is_exact and ("approximate: this index may miss" in err) is not is_exact
        assert main([*words, "--radius", "2", "--json"]) == 0
        out, err = capsys.readouterr()
        assert json.loads(out)["exact"] is True and "approximate" not in err
