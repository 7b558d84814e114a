"""``index`` and ``search`` on sources that change, names that collide, disks that are full, and numbers beyond all bounds."""

from __future__ import annotations

import json
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distillhash.cli import main
from distillhash.codes import Codes
from distillhash.index import open_index
from image_factory import make_jpeg


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    np.save(folder / "x.npy", np.random.default_rng(0).normal(size=(100, 512)).astype(np.float32))
    assert main(["train", f"{folder}/x.npy", "--method", "lsh", "--bits", "32", "--out", f"{folder}/m", "--quiet"]) == 0
    return folder / "m"


@pytest.fixture
def place(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with the model in ``m``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").symlink_to(model)
    return tmp_path


Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*words: object, exit_code: int = 0) -> dict[str, Any]:
        assert main([*map(str, words), "--json", "--quiet"]) == exit_code
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return {name: value for name, value in found.items() if value != 0}

    return run


def vectors(name: str, rows: int, *, names: str = "", seed: int = 0) -> None:
    x = np.random.default_rng(seed).normal(size=(rows, 512)).astype(np.float32)
    if names:
        np.savez(name, features=x, keys=np.array(list(names)))
    else:
        np.save(name, x)


def test_what_is_gone_is_said_and_pruned(place: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    vectors("x.npz", 4, names="abcd")
    assert run("index", "x.npz", "--model", "m", "--index", "i") == {"index": "i", "added": 4, "n_items": 4}
    with np.load("x.npz") as arrays:
        kept = {name: values[:2] for name, values in arrays.items()}
    np.savez("x.npz", **{**kept, "keys": np.array(["a", "B"])})
    assert main(["index", "x.npz", "--index", "i"]) == 0
    said = capsys.readouterr().err
    assert "0 added, 0 updated, 1 renamed, 1 unchanged, 0 removed; 4 items in i\n" in said
    assert "2 items are gone from x.npz; remove them with --prune\n" in said
    assert run("index", "x.npz", "--index", "i")["gone"] == 2
    found = run("index", "x.npz", "--index", "i", "--prune")
    assert (found["pruned"], found["unchanged"], found["n_items"]) == (2, 2, 2) and "gone" not in found
    with open_index("i") as index:
        assert [item.key for item in index.get([0, 1])] == [f"{place}/x.npz:a", f"{place}/x.npz:B"]
    for words, sentence in (
        (["index", "--index", "i", "--prune"], "give a SOURCE"),
        (["index", "--index", "i", "--compact", "--replace"], "give it"),
        (["index", "x.npz#0:1", "--index", "i", "--prune"], "a part of a source"),
    ):
        assert sentence in run(*words, exit_code=2)["error"]


def test_names_of_two_sources(place: Path, run: Run) -> None:
    for folder, seed in (("one", 1), ("two", 2)):
        Path(folder).mkdir()
        vectors(f"{folder}/x.npz", 3, names="abc", seed=seed)
        run("encode", f"{folder}/x.npz", "--model", "m", "--out", f"{folder}.parquet")
    assert run("index", "one.parquet", "--model", "m", "--index", "i")["added"] == 3
    error = run("index", "two.parquet", "--index", "i", exit_code=1)["error"]
    assert all(part in error for part in ("'a'", f"{place}/one/x.npz", f"{place}/two/x.npz", "--replace"))
    assert run("index", "one.parquet", "--index", "i")["unchanged"] == 3
    assert run("index", "two.parquet", "--index", "i", "--replace")["updated"] == 3
    assert "--replace" in run("index", "one.parquet", "--index", "i", exit_code=1)["error"]


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_rows_of_codes_that_lie_anywhere(place: Path, run: Run, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, seed in (("one", 1), ("two", 2)):
        Path(folder).mkdir()
        vectors(f"{folder}/x.npy", 5, seed=seed)
        with monkeypatch.context() as patch:
            patch.chdir(place / folder)
            run("encode", "x.npy", "--model", "../m", "--out", f"c.{suffix}")
            assert run("index", f"c.{suffix}", "--model", "../m", "--index", "../i")["added"] == 5
    Path(f"one/c.{suffix}").rename(f"moved.{suffix}")
    assert run("index", f"moved.{suffix}", "--index", "i")["unchanged"] == 5
    run("encode", "one/../one/x.npy#3:", "--model", "m", "--out", f"part.{suffix}")
    assert run("index", f"part.{suffix}", "--index", "i")["unchanged"] == 2
    for seed, folder in ((1, "one"), (2, "two")):
        found = run("search", f"{folder}/x.npy", "--index", "i", "-k", 1)["results"]
        assert [result["neighbours"][0]["distance"] for result in found] == [0] * 5, seed


@pytest.mark.parametrize("k", ["11", "1025", "100000000000", "9223372036854775808", "99999999999999999999"])
def test_numbers_beyond_what_there_is(place: Path, run: Run, k: str) -> None:
    vectors("x.npy", 10)
    run("index", "x.npy", "--model", "m", "--index", "i")
    everything = run("search", "x.npy", "--index", "i", "-k", 10)["results"]
    assert run("search", "x.npy", "--index", "i", "-k", k)["results"] == everything
    assert run("search", "x.npy", "--index", "i", "--radius", k)["results"] == (
        everything if int(k) >= 32 else run("search", "x.npy", "--index", "i", "--radius", 11)["results"]
    )
    ranked = run("search", "x.npy", "--index", "i", "-k", 10, "--rerank", "projection")["results"]
    for words in (["-k", k], ["-k", 3, "--candidates", k], ["-k", k, "--candidates", k]):
        found = run("search", "x.npy", "--index", "i", "--rerank", "projection", *words)["results"]
        assert [one["neighbours"] for one in found] == [one["neighbours"][: 3 if 3 in words else 10] for one in ranked]
    for wrong in ("0", "-1", f"-{k}"):
        assert "positive integer" in run("search", "x.npy", "--index", "i", "-k", wrong, exit_code=2)["error"]


def test_vectors_are_kept_and_re_ranked_by(place: Path, run: Run) -> None:
    vectors("x.npy", 60)
    x = np.load("x.npy")
    words = ["--model", "m", "--index", "i", "--keep-vectors", "int8"]
    run("index", "x.npy#:50", *words)
    assert run("index", "x.npy", "--index", "i")["added"] == 10  # it keeps vectors from then on
    found = run("search", "x.npy", "--index", "i", "-k", 3, "--rerank", "vectors", "--candidates", "all")["results"]
    assert (
        found == run("search", "x.npy", "--index", "i", "-k", 3, "--rerank", "vectors", "--candidates", 60)["results"]
    )
    kept = np.rint(127 * x / np.abs(x).max(axis=1, keepdims=True)).astype(float)
    cosines = x @ kept.T / np.linalg.norm(x, axis=1)[:, None] / np.linalg.norm(kept, axis=1)
    for row, result in enumerate(found):
        assert [n["id"] for n in result["neighbours"]] == np.argsort(-cosines[row])[:3].tolist()
        assert [n["score"] for n in result["neighbours"]] == pytest.approx(np.sort(cosines[row])[:-4:-1])
    run("encode", "x.npy", "--model", "m", "--out", "c.npz")
    assert "holds codes alone" in run("index", "c.npz", "--index", "i", exit_code=2)["error"]
    run("index", "x.npy", "--model", "m", "--index", "plain")
    Codes.from_signs(np.ones((5, 32)), 4).save("parts.npz")
    assert "0 class bits, those of parts.npz 4" in run("index", "parts.npz", "--index", "plain", exit_code=1)["error"]
    for line, sentence in (
        ("index c.npz --model m --index new --keep-vectors int8", "no vectors to keep"),
        ("index x.npy --index plain --keep-vectors int8", "made to keep no vectors"),
        ("index x.npy --index i --keep-vectors float16", "made to keep int8 vectors"),
        ("index x.npy --model m --index postgresql://localhost/x --keep-vectors int8", "keeps codes alone"),
        ("search x.npy --index plain --rerank vectors", "keeps no vectors"),
    ):
        assert sentence in run(*line.split(), exit_code=2)["error"]
    with pytest.raises(SystemExit):
        run("search", "x.npy", "--index", "i", "--rerank", "vectors", "--candidates", "many")
    assert not Path("new").exists()


MISSING = {
    "index gone --model m --index i": 1,
    "index gone.npy --model m --index i": 1,
    "index x.npy --model gone --index i": 1,
    "index x.npy --index x.npy --model m": 1,
    "index x.npy#a:b --index i": 2,
    "search gone.jpg --index i": 1,
    "search x.npy --index gone": 1,
    "search x.npy --index gone --model m": 1,
    "search x.npy --index i --model gone": 1,
    "search x.npy --index x.npy --model m": 1,
    "search x.npy --index x.npy": 2,  # it is there, and keeps no model
    "export --codes gone.parquet --to npy": 1,
    "export --codes gone/c.npz --to faiss": 1,
}


@pytest.mark.parametrize("words", MISSING)
def test_what_is_not_there_is_exit_code_1(place: Path, run: Run, words: str) -> None:
    vectors("x.npy", 3)
    run("index", "x.npy", "--model", "m", "--index", "i")
    assert "\n" not in run(*words.split(), exit_code=MISSING[words])["error"]


def test_names_are_printed_on_their_own_lines(place: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(
        "x.npz",
        features=np.eye(2, 512, dtype=np.float32),
        keys=np.array(["a\n   0   0  forged\x1b[31m", "b\u202egpj\r"]),
    )
    run("index", "x.npz", "--model", "m", "--index", "i")
    assert main(["search", "x.npz", "--index", "i", "-k", "2", "--quiet"]) == 0
    out = capsys.readouterr().out
    assert out.isascii() and out.count("\n") == 6 and not set(out) & {"\r", "\x1b"}
    assert out.count(r"a\x0a   0   0  forged\x1b[31m") == 3 and out.count(r"b\u202egpj\x0d") == 3


def test_files_above_the_limit_are_skipped(photo_index: Path, tmp_path: Path, run: Run) -> None:
    index = shutil.copytree(photo_index, tmp_path / "index")
    (tmp_path / "new").mkdir()
    for name, size in (("small", 20), ("large", 200)):
        (tmp_path / "new" / f"{name}.jpg").write_bytes(make_jpeg(size, size, size))
    limit = f"{(tmp_path / 'new' / 'large.jpg').stat().st_size // 1024}K"
    found = run("index", tmp_path / "new", "--index", index, "--max-file-size", limit)
    assert (found["added"], found["n_skipped"]) == (1, 1)
    found = run("search", tmp_path / "new", "--index", index, "--max-file-size", limit)
    assert len(found["results"]) == 1 and "--max-file-size" in found["skipped"][0]["reason"]
    assert run("search", tmp_path / "new" / "large.jpg", "--index", index, "--max-file-size", limit, exit_code=1)


@pytest.mark.parametrize("n_bytes", [500, 5_000, 30_000, 45_000, 60_000, 230_000])
def test_a_full_disk_is_named_and_left_clean(place: Path, run: Run, n_bytes: int) -> None:
    vectors("x.npy", 3000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        error = run("index", "x.npy", "--model", "m", "--index", "i", exit_code=1)["error"]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    named = "i/model/model.safetensors" if 30_000 < n_bytes < 230_000 else "i/items.sqlite"
    assert error.startswith((named, f"{place}/{named}")) and "check the disk" in error
    assert not [file.name for file in Path("i").rglob("*") if file.name.endswith(".partial")]
    assert run("index", "x.npy", "--model", "m", "--index", "i")["n_items"] == 3000


def test_search_leaves_an_index_of_codes_without_a_model(place: Path, run: Run) -> None:
    vectors("x.npy", 5)
    run("encode", "x.npy", "--model", "m", "--out", "c.npz")
    run("index", "c.npz", "--model", "m", "--index", "i")
    shutil.rmtree("i/model")
    run("search", "x.npy", "--index", "i", "--model", "m")
    assert sorted(file.name for file in Path("i").iterdir()) == ["items.sqlite", "manifest.json"]
