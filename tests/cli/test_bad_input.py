"""Bad input: one clear sentence on stderr, the right exit status, no traceback."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from distillhash import Codes
from distillhash.cli import main
from image_factory import make_bomb, make_png, make_truncated

Build = Callable[[Path, Path, Path], list[str]]  # (tmp_path, photos, vectors) -> command line


def train(source: object, *words: object) -> list[str]:
    return [
        "train",
        str(source),
        "--method",
        "itq",
        "--bits",
        "4",
        "--out",
        "out",
        "--image-size",
        "32",
        *map(str, words),
    ]


def folder_of(tmp: Path, **files: bytes) -> Path:
    folder = tmp / "images"
    folder.mkdir()
    for name, content in files.items():
        (folder / name.replace("_", ".")).write_bytes(content)
    return folder


def saved(tmp: Path, array: object) -> Path:
    np.save(tmp / "x.npy", np.asarray(array))
    return tmp / "x.npy"


def nan_vectors(tmp: Path, photos: Path, vectors: Path) -> list[str]:
    x = np.load(vectors).copy()
    x[7, 3] = np.nan
    return train(saved(tmp, x))


def damaged_model(tmp: Path, photos: Path, vectors: Path) -> list[str]:
    main([*train(vectors)[:6], "--out", str(tmp / "m"), "--quiet"])
    weights = tmp / "m" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-3])
    return ["encode", str(vectors), "--model", str(tmp / "m"), "--out", str(tmp / "c.npz")]


def other_width(tmp: Path, photos: Path, vectors: Path) -> list[str]:
    main([*train(vectors)[:6], "--out", str(tmp / "m"), "--quiet"])
    return ["encode", str(saved(tmp, np.ones((5, 9)))), "--model", str(tmp / "m"), "--out", str(tmp / "c.npz")]


def images_for_vectors(tmp: Path, photos: Path, vectors: Path) -> list[str]:
    main([*train(vectors)[:6], "--out", str(tmp / "m"), "--quiet"])
    return ["encode", str(photos), "--model", str(tmp / "m"), "--out", str(tmp / "c.npz")]


def other_model(tmp: Path, photos: Path, vectors: Path) -> list[str]:
    for name, seed in (("a", "0"), ("b", "1")):
        main([*train(vectors)[:6], "--out", str(tmp / name), "--seed", seed, "--quiet"])
    main(["index", str(vectors), "--model", str(tmp / "a"), "--index", str(tmp / "i"), "--quiet"])
    return ["index", str(vectors), "--model", str(tmp / "b"), "--index", str(tmp / "i")]


def unknown_id(tmp: Path, photos: Path, vectors: Path) -> list[str]:
    main([*train(vectors)[:6], "--out", str(tmp / "a"), "--quiet"])
    main(["index", str(vectors), "--model", str(tmp / "a"), "--index", str(tmp / "i"), "--quiet"])
    return ["index", "--index", str(tmp / "i"), "--remove", "999"]


def bad_query(tmp: Path, photos: Path, vectors: Path) -> list[str]:
    main([*train(photos)[:6], "--out", str(tmp / "a"), "--image-size", "32", "--quiet"])
    main(["index", str(photos), "--model", str(tmp / "a"), "--index", str(tmp / "i"), "--quiet"])
    (tmp / "q.jpg").write_bytes(b"not an image")
    return ["search", str(tmp / "q.jpg"), "--index", str(tmp / "i")]


def nothing_to_rank(tmp: Path, photos: Path, vectors: Path) -> list[str]:
    main([*train(vectors)[:6], "--out", str(tmp / "a"), "--quiet"])
    return ["evaluate", "--model", str(tmp / "a"), "--query", f"{vectors}#0:1", "--database", f"{vectors}#0:1"]


def codes_of_other_length(tmp: Path, photos: Path, vectors: Path) -> list[str]:
    main([*train(vectors)[:6], "--out", str(tmp / "a"), "--quiet"])
    Codes.from_signs(np.ones((3, 32))).save(tmp / "c.npz")
    return ["index", str(tmp / "c.npz"), "--model", str(tmp / "a"), "--index", str(tmp / "i")]


CASES: dict[str, tuple[Build, int, str]] = {
    "corrupt image only": (lambda t, p, v: train(folder_of(t, a_png=b"rubbish")), 1, "nothing usable"),
    "truncated image only": (lambda t, p, v: train(folder_of(t, a_jpg=make_truncated())), 1, "nothing usable"),
    "empty file only": (lambda t, p, v: train(folder_of(t, a_png=b"")), 1, "nothing usable"),
    "bomb only": (lambda t, p, v: train(folder_of(t, a_png=make_bomb())), 1, "pixels"),
    "text named jpg": (lambda t, p, v: train(folder_of(t, a_jpg=b"hello world")), 1, "nothing usable"),
    "strict with one bad file": (
        lambda t, p, v: train(folder_of(t, a_png=make_png(), b_png=make_png(seed=1), c_png=b"x"), "--strict", "--bits", 1),
        1,
        "--strict",
    ),
    "pixel limit": (lambda t, p, v: train(p, "--max-pixels", 10), 1, "over the limit"),
    "NaN embeddings": (nan_vectors, 1, "row 7"),
    "one-dimensional embeddings": (lambda t, p, v: train(saved(t, np.ones(5))), 1, "2"),
    "text embeddings": (lambda t, p, v: train(saved(t, np.array([["a", "b"]]))), 1, "x.npy"),
    "pickled npy": (lambda t, p, v: train(saved(t, np.array([{}, {}], object))), 1, "x.npy"),
    "no rows": (lambda t, p, v: train(saved(t, np.ones((0, 4)))), 1, "nothing usable"),
    "one image": (lambda t, p, v: train(folder_of(t, a_png=make_png())), 1, "at least 2 rows"),
    "empty folder": (lambda t, p, v: train(folder_of(t)), 1, "nothing usable"),
    "missing folder": (lambda t, p, v: train(t / "gone"), 1, "there is no readable"),
    "unknown scheme": (lambda t, p, v: train("imagenet:data"), 1, "unknown scheme 'imagenet'"),
    "unknown selection": (lambda t, p, v: train(f"{v}#val"), 2, "unknown selection '#val'"),
    "empty selection": (lambda t, p, v: train(f"{v}#900:950"), 1, "selects none"),
    "cifar10 absent, no network": (
        lambda t, p, v: train(f"cifar10:{saved(t, np.ones((1, 1)))}"), 1, "x.npy",
    ),
    "flickr25k absent": (lambda t, p, v: train(f"flickr25k:{t}"), 1, "mirflickr"),
    "nuswide absent": (lambda t, p, v: train(f"nuswide:{t}"), 1, "missing"),
    "unknown method": (lambda t, p, v: [*train(v), "--method", "magic"], 2, "unknown method 'magic'; choose one of"),
    "unknown backbone": (lambda t, p, v: train(p, "--backbone", "resnet18"), 2, "unknown backbone 'resnet18'"),
    "unknown hyper-parameter": (lambda t, p, v: train(v, "--set", "depth=3"), 2, "no hyper-parameter 'depth'"),
    "malformed --set": (lambda t, p, v: train(v, "--set", "iterations"), 2, "name=value"),
    "hyper-parameter out of range": (lambda t, p, v: train(v, "--set", "iterations=0"), 2, "at least 1, got 0"),
    "zero bits": (lambda t, p, v: [*train(v), "--bits", "0"], 2, "at most 4096, got 0"),
    "more bits than features": (lambda t, p, v: [*train(v), "--bits", "64"], 1, "ask for fewer bits"),
    "views of embeddings": (lambda t, p, v: train(v, "--views", 2), 2, "need images"),
    "fine-tuning itq": (lambda t, p, v: train(p, "--fine-tune"), 2, "itq cannot fine-tune"),
    "image backbone for embeddings": (lambda t, p, v: train(v, "--backbone", "efficientnet-lite0"), 1, "holds embeddings"),
    "weights for the wrong backbone": (lambda t, p, v: train(p, "--weights", "w.pth"), 2, "carries its own weights"),
    "absent weights": (lambda t, p, v: train(p, "--backbone", "vgg16", "--weights", "w.pth"), 1, "no weights file at w.pth"),
    "model that is not one": (
        lambda t, p, v: ["encode", str(v), "--model", str(t), "--out", "c.npz"], 1, "is not a model folder",
    ),
    "damaged model": (damaged_model, 1, "damaged"),
    "embeddings of another width": (other_width, 1, "(n, 16) as in fit"),
    "images for a vector model": (images_for_vectors, 1, "this model takes embeddings"),
    "codes to .txt": (lambda t, p, v: ["encode", str(v), "--model", str(t), "--out", "c.txt"], 2, ".npz or .parquet"),
    "index of another model": (other_model, 1, "built with another model"),
    "codes of another length": (codes_of_other_length, 1, "codes of 4 bits, got 32"),
    "unknown id": (unknown_id, 1, "no item with id 999"),
    "nothing to index": (lambda t, p, v: ["index", "--index", str(t / "i")], 2, "nothing to do"),
    "search without an index": (lambda t, p, v: ["search", str(v), "--index", str(t / "i")], 1, "there is no index"),
    "unreadable query": (bad_query, 1, "could not be read"),
    "evaluation of one item, without labels": (nothing_to_rank, 1, "got 1 queries and 0 items"),
    "unknown protocol": (
        lambda t, p, v: [
            "bench", "--data", str(v), "--protocol", "mine", "--methods", "lsh", "--bits", "8", "--out", str(t),
        ], 2, "unknown protocol 'mine'",
    ),
    "fine-tuning what cannot be": (
        lambda t, p, v: [
            "bench", "--data", str(p), "--protocol", "folder", "--methods", "itq,ssdh,lsh", "--bits", "8", "--out", str(t),
            "--fine-tune",
        ], 2, "itq, lsh cannot fine-tune a backbone; leave out --fine-tune, or them",
    ),
    "fine-tuning embeddings": (
        lambda t, p, v: [
            "bench", "--data", str(v), "--protocol", "folder", "--methods", "all", "--bits", "8", "--out", str(t), "--fine-tune",
        ], 2, "fine-tuning needs images, but ",
    ),
    "bits that are not numbers": (
        lambda t, p, v: [
            "bench", "--data", str(v), "--protocol", "cifar10-distillhash", "--methods", "lsh", "--bits", "a", "--out", str(t),
        ], 2, "integers separated by commas",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_one_sentence_and_the_right_status(
    name: str,
    tmp_path: Path,
    photos: Path,
    vectors: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    build, status, sentence = CASES[name]
    monkeypatch.chdir(tmp_path)
    words = build(tmp_path, photos, vectors)
    capsys.readouterr()
    assert main([*words, "--json", "--quiet"]) == status
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("distillhash: ")]
    assert len(lines) == 1, captured.err
    assert sentence in lines[0]
    assert "Traceback" not in captured.err
    answer = json.loads(captured.out)
    assert answer["exit_code"] == status and answer["error"] in lines[0]


def test_usage_errors_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["fly"], ["train"], ["train", "x"], ["train", "x", "--out", "o", "--bits", "many"]):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_bad_files_among_good_ones_are_listed(tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_of(
        tmp_path, a_png=make_png(), b_png=make_png(seed=1), c_png=b"", d_jpg=make_truncated(), e_gif=b"rubbish"
    )
    out = tmp_path / "model"
    words = ["train", str(folder), "--method", "lsh", "--bits", "8", "--image-size", "32", "--out", str(out), "--json"]
    assert main(words) == 0
    captured = capsys.readouterr()
    summary = json.loads(captured.out)
    assert summary["n_skipped"] == 3 and summary["n_used"] == 2
    listed = json.loads((out / "skipped.json").read_text())
    assert [entry["key"] for entry in listed] == ["c.png", "d.jpg", "e.gif"] and all(
        entry["reason"] for entry in listed
    )
    assert "3 items could not be used (first: c.png" in captured.err
    report = (out / "report.html").read_text()
    assert "d.jpg" in report and "e.gif" in report
    for name in ("c.png", "d.jpg", "e.gif"):
        (folder / name).unlink()
    assert main(words) == 0
    assert not (out / "skipped.json").exists()


def test_duplicate_names_stay_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place, seed in (("a", 0), ("b", 1)):
        (tmp_path / "images" / place).mkdir(parents=True)
        (tmp_path / "images" / place / "same.png").write_bytes(make_png(seed=seed))
    model, index = str(tmp_path / "m"), str(tmp_path / "i")
    base = ["--image-size", "32", "--quiet"]
    assert main(["train", str(tmp_path / "images"), "--method", "lsh", "--bits", "8", "--out", model, *base]) == 0
    for place in ("a", "b"):
        assert (
            main(["index", str(tmp_path / "images" / place), "--model", model, "--index", index, "--quiet", "--json"])
            == 0
        )
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["n_items"] == 2
