"""``dedup`` and ``leaks`` from the outside."""

import csv
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distillhash import HashModel, make_hasher
from distillhash.cli import main
from distillhash.dedup import calibration
from distillhash.sources import open_source
from image_factory import make_png

TIME = 1_400_000_000_000_000_000


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight pictures and an exact copy of two of them."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    for seed in range(8):
        (folder / f"{seed}.png").write_bytes(make_png(96, 64, seed))
    for seed in range(2):
        shutil.copy(folder / f"{seed}.png", folder / "more" / f"=copy{seed}.png")
    for path in folder.rglob("*.png"):
        os.utime(path, ns=(TIME, TIME))
    return folder


def run(capsys: pytest.CaptureFixture[str], *words: object, exit_code: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*map(str, words), "--json", "--quiet"]) == exit_code
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    found: dict[str, Any] = json.loads(out)
    return found


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = (path for path in folder.rglob("*.png") if ".distillhash" not in str(path))
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_a_dry_run_lists_what_apply_moves(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(pictures)
    listed = run(capsys, "dedup", pictures, "--radius", 5, "--dry-run")["would_move"]
    assert contents(pictures) == before
    assert main(["dedup", str(pictures), "--radius", "5", "--dry-run"]) == 0
    said = capsys.readouterr().err
    assert all(f"would move: {path} (kept: " in said for path in listed)
    run(capsys, "dedup", pictures, "--radius", 5, "--apply")
    assert sorted(listed) == sorted(before.keys() - contents(pictures).keys()) and len(listed) == 2


def test_a_system_without_folder_descriptors_is_told(
    pictures: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(pictures)
    monkeypatch.setattr(os, "supports_dir_fd", set())
    assert "folder descriptors" in run(capsys, "dedup", pictures, "--radius", 5, "--apply", exit_code=1)["error"]
    assert contents(pictures) == before


def test_report_apply_undo(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(pictures)
    radius = ("--radius", 5)
    summary = run(
        capsys, "dedup", pictures, "--out", "dups.json", "--csv", "dups.csv", "--html", "review.html", *radius
    )
    written = json.loads(Path("dups.json").read_text())
    assert {"radius", "expected_false_pairs", "groups"} <= written.keys() and written["groups"] == summary["groups"]
    assert [group["keeper"] for group in written["groups"]] == [str(pictures / f"{seed}.png") for seed in range(2)]
    for group in written["groups"]:
        assert group["members"][0]["path"] == group["keeper"] and len(group["members"]) == 2
        assert [member["distance"] for member in group["members"]] == [0, 0]
    rows = list(csv.DictReader(Path("dups.csv").read_text().splitlines()))
    assert [row["keep"] for row in rows] == ["yes", "no"] * 2 and rows[1]["match"] == "same file"
    assert Path("review.html").read_text().startswith("<!doctype html>")
    assert contents(pictures) == before

    moved = run(capsys, "dedup", pictures, "--apply", *radius)
    assert moved["n_moved"] == 2 and moved["left"] == []
    assert contents(pictures).keys() == before.keys() - {
        str(pictures / "more" / f"=copy{seed}.png") for seed in range(2)
    }
    assert run(capsys, "dedup", pictures, *radius)["groups"] == []  # the trash is not searched
    assert run(capsys, "dedup", pictures, "--undo")["n_restored"] == 2
    assert contents(pictures) == before


def test_not_a_duplicate_is_remembered(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = (pictures / "0.png", pictures / "more" / "=copy0.png")
    assert run(capsys, "dedup", "--not-duplicate", *pair)["n_verdicts"] == 1
    (pictures / "0.png").rename(pictures / "renamed.png")
    found = run(capsys, "dedup", pictures, "--radius", 5)
    assert [group["keeper"] for group in found["groups"]] == [str(pictures / "1.png")]


def test_a_list_needs_a_trash_of_its_own(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("list.txt").write_text("\n".join(str(path) for path in sorted(pictures.rglob("*.png"))))
    assert "give --trash DIR" in run(capsys, "dedup", "list.txt", "--apply", exit_code=2)["error"]
    assert run(capsys, "dedup", "list.txt", "--apply", "--trash", "bin", "--radius", 5)["n_moved"] == 2
    assert run(capsys, "dedup", "--undo", "--trash", "bin")["n_restored"] == 2


def test_options_reach_the_job(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(pictures / "3.png", pictures / "4copy.png")
    assert len(run(capsys, "dedup", pictures, "--radius", 5)["groups"]) == 3
    assert len(run(capsys, "dedup", pictures, "--radius", 5, "--ignore-same-folder")["groups"]) == 2
    found = run(capsys, "dedup", pictures / "more", "--reference", pictures, "--radius", 5)
    assert found["groups"] == [] and found["n_aliases"] == 2
    assert "each once" in run(capsys, "dedup", pictures, "--keep", "beauty", exit_code=2)["error"]
    with_mirror = run(capsys, "dedup", pictures, "--mirror")
    assert "mirrored" in with_mirror["calibration"]["recall_by_edit"]
    few = run(capsys, "dedup", pictures, "--false-pairs", 0.001)["calibration"]
    assert few["expected_false_pairs"] <= 0.001
    assert main(["train", str(pictures), "--method", "lsh", "--bits", "48", "--out", "model", "--quiet"]) == 0
    own = run(capsys, "dedup", pictures, "--model", "model", "--radius", 0, "--no-cache")
    assert own["calibration"]["n_bits"] == 48 and len(own["groups"]) == 3
    lite = ("--backbone", "efficientnet-lite1", "--radius", 5)
    assert "efficientnet-lite1 at 64 pixels" in run(capsys, "dedup", pictures, *lite, "--image-size", 64)["codes"]
    leaks = run(capsys, "leaks", pictures, pictures / "more", *lite)  # at the size of its training
    assert "efficientnet-lite1 at 240 pixels" in leaks["codes"] and leaks["n_leaks"] == 2


def test_leaks_and_its_exit_status(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("train.txt").write_text("\n".join(str(pictures / f"{seed}.png") for seed in range(8)))
    words = ("leaks", "train.txt", pictures / "more", "--radius", 5, "--out", "leaks.json")
    found = run(capsys, *words)
    assert json.loads(Path("leaks.json").read_text())["leaks"] == found["leaks"] and found["n_leaks"] == 2
    assert found["leaks"][0]["train"] == str(pictures / "0.png") and found["leaks"][0]["match"] == "same file"
    assert run(capsys, *words, "--check", exit_code=1)["n_leaks"] == 2
    clean = ("leaks", "train.txt#:4", "train.txt#4:", "--radius", 5, "--check")
    assert run(capsys, *clean)["n_leaks"] == 0


def test_bad_input_is_one_sentence(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save("vectors.npy", np.random.default_rng(0).standard_normal((20, 8)))
    for words, status, sentence in (
        (["dedup"], 2, "dedup needs a SOURCE"),
        (["dedup", pictures, "--radius", "2000"], 2, "0..1535"),
        (
            ["dedup", pictures, "--model", "m", "--image-size", "64"],
            2,
            "codes are those of m, which has its own backbone",
        ),
        (["dedup", pictures, "--backbone-set", "mean=1"], 2, "backbone efficientnet-lite0 has no option"),
        (["dedup", "vectors.npy", "--apply", "--trash", "t"], 1, "no files of their own"),
        (["dedup", "--undo", "--trash", "nowhere"], 1, "no journal"),
        (["dedup", "gone"], 1, "there is no readable"),
        (["dedup", "--not-duplicate", "gone", "0.png"], 1, "cannot be read"),
        (["leaks", pictures, "vectors.npy"], 1, "cannot be compared"),
    ):
        assert sentence in run(capsys, *words, exit_code=status)["error"]


def test_what_can_be_known_is_refused_before_the_work(
    pictures: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    HashModel("efficientnet-lite0", make_hasher("lsh", 48), image_size=32).fit(open_source(pictures)).save("model")
    np.save("vectors.npy", np.ones((2, 3), np.float32))
    Path("file").touch()

    def never(*_: object, **__: object) -> None:
        raise AssertionError("features are computed")

    monkeypatch.setattr(HashModel, "encode_batches", never)
    number = "the number of false pairs to accept must be finite and at least 0, got"
    for words, status, sentence in (
        (["--radius", "-1"], 2, "the radius must lie in 0..1535 bits, got -1"),
        (["--radius", "1536"], 2, "the radius must lie in 0..1535 bits, got 1536"),
        (["--radius", "48", "--model", "model"], 2, "the radius must lie in 0..47 bits, got 48"),
        (["--false-pairs", "nan"], 2, f"{number} nan"),
        (["--false-pairs", "inf"], 2, f"{number} inf"),
        (["--false-pairs", "-1"], 2, f"{number} -1"),
        (["--out", pictures], 1, f"{pictures} cannot be written (Is a directory); give another place"),
        (["--out", "file/dups.json"], 1, "cannot be written (Not a directory)"),
        (["--out", "/dev/null"], 1, "it is a device or a pipe"),
    ):
        for verb in (["dedup", pictures], ["leaks", pictures, pictures]):
            assert sentence in run(capsys, *verb, *words, exit_code=status)["error"]
    assert "0..1023" in run(capsys, "dedup", "vectors.npy", "--radius", 1024, exit_code=2)["error"]
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.setattr(calibration, "find_spec", lambda _: None)
    for more, sentence in (
        (["--html", "file/a.html", "--radius", 5], "file/a.html cannot be written"),
        (["--csv", pictures, "--radius", 5], "cannot be written"),
        (["--apply", "--trash", "file", "--radius", 5], "file/journal cannot be written"),
        (["--html", "a.html", "--radius", 5], "needs jinja2 here; pip install 'distillhash[dedup]'"),
        ([], "needs SciPy; pip install 'distillhash[dedup]', or give --radius BITS"),
    ):
        assert sentence in run(capsys, "dedup", pictures, *more, exit_code=1)["error"]
    for words in (["--keep", "size"], ["--ignore-same-folder"]):
        refusal = run(capsys, "dedup", pictures, "--reference", pictures, *words, exit_code=2)["error"]
        assert refusal.startswith(f"{words[0]} is for one collection") and refusal.endswith("leave it out")


def test_without_torch_a_model_as_an_onnx_file_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(_: object) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    for verb, words, has_remedy in (("dedup", ["a"], True), ("export", ["--model", "m", "--to", "onnx"], False)):
        monkeypatch.setattr(f"distillhash.cli.{verb}.run", absent)
        refusal = run(capsys, verb, *words, exit_code=1)["error"]
        assert "pip install 'distillhash[train]'" in refusal
        assert ("`distillhash export --model DIR --to onnx --out m.onnx`" in refusal) == has_remedy
        assert refusal.endswith("give --model m.onnx here") == has_remedy
