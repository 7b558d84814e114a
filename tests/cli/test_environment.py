"""Homes, temporary folders, encodings, terminals and closed pipes that a user may have."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from distillhash.cli import main
from image_factory import make_png

NOBODY = 4_000_123
ESCAPES = "red\x1b[31m\x07 line\nforged: 0  x.png \u202egpj.png"
SETPRIV = shutil.which("setpriv")
STRANGER = [str(SETPRIV), f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]


def can_be_a_stranger() -> bool:
    """Whether this process may become another user, who can run this interpreter."""
    try:
        return subprocess.run([*STRANGER, sys.executable, "-c", ""], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


needs_root = pytest.mark.skipif(not can_be_a_stranger(), reason="only root can become another user")


def start(
    words: list[str], folder: Path, environment: Mapping[str, str], *, stranger: bool = False
) -> subprocess.CompletedProcess[bytes]:
    """The command in a process of its own, in an otherwise empty environment; ``stranger``: as a user that the system does not know."""
    before = STRANGER if stranger else []
    base = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
    done: subprocess.CompletedProcess[bytes] = subprocess.run(
        [*before, sys.executable, "-m", "distillhash", *words],
        cwd=folder,
        env={**base, **environment},
        timeout=120,
        check=False,
        capture_output=True,
    )
    return done


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that everyone can reach and write; those of pytest are for this user alone."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


@needs_root
@pytest.mark.parametrize(
    "home", [None, *(pytest.param(home, marks=pytest.mark.long) for home in ("/nonexistent", "/root", "relative", ""))]
)
def test_a_user_without_a_home(home: str | None, shared: Path) -> None:
    photos = shared / "photos"
    photos.mkdir()
    for number in range(3):
        (photos / f"{number}.png").write_bytes(make_png(seed=number % 2))
    environment = {} if home is None else {"HOME": home}
    done = start(["dedup", "photos", "--json"], shared, environment, stranger=True)
    assert done.returncode == 0, done.stderr
    (group,) = json.loads(done.stdout)["groups"]
    assert {Path(member["path"]).name for member in group["members"]} >= {"0.png", "2.png"}
    assert b"Traceback" not in done.stderr
    assert done.stderr.count(b"features are not kept") == 1 or home == "relative"


@needs_root
def test_a_folder_that_cannot_be_written_is_one_sentence(shared: Path) -> None:
    np.save(shared / "x.npy", np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32))
    shared.chmod(0o755)
    done = start(["train", "x.npy", "--method", "lsh", "--bits", "8", "--out", "m"], shared, {}, stranger=True)
    assert done.returncode == 1
    assert done.stderr.strip().endswith(b"(Permission denied); give another folder")
    assert b"Traceback" not in done.stderr


def test_no_temporary_folder_is_needed(tmp_path: Path, vectors: Path) -> None:
    environment = {"TMPDIR": str(tmp_path / "gone"), "HOME": "/nonexistent", "DISTILLHASH_CACHE": "/dev/null/cache"}
    words = ["train", str(vectors), "--method", "lsh", "--bits", "8", "--out", "m", "--quiet"]
    done = start(words, tmp_path, environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == [
        "config.json",
        "model.safetensors",
        "report.html",
    ]


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of pictures with names in several scripts, one not UTF-8, one hostile."""
    folder = tmp_path_factory.mktemp("named")
    photos = folder / "photos"
    photos.mkdir()
    names = [b"plain.png", "emoji 😀.png".encode(), "写真.png".encode(), b"latin\xe9.png", ESCAPES.encode()]
    for number, name in enumerate(names):
        with open(os.fsencode(photos) + b"/" + name, "wb") as file:  # noqa: PTH123  # a Path takes no bytes
            file.write(make_png(seed=number))
    words = ["--image-size", "32", "--method", "lsh", "--bits", "16", "--out", str(folder / "m"), "--quiet"]
    assert main(["train", str(photos), *words]) == 0
    words = ["--model", str(folder / "m"), "--index", str(folder / "i"), "--quiet"]
    assert main(["index", str(photos), *words]) == 0
    return folder


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        pytest.param({"PYTHONIOENCODING": "utf-16", "PYTHONUTF8": "0"}, marks=pytest.mark.long),
        pytest.param({"PYTHONIOENCODING": "cp1252"}, marks=pytest.mark.long),
    ],
    ids=lambda environment: "-".join(environment.values()),
)
def test_names_in_any_encoding(environment: dict[str, str], named: Path) -> None:
    home = {"HOME": str(named), "DISTILLHASH_CACHE": os.environ["DISTILLHASH_CACHE"]}
    done = start(["search", "photos", "--index", "i", "-k", "5"], named, environment | home)
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode(environment.get("PYTHONIOENCODING", "ascii"))
    assert len(text.splitlines()) == 5 * (1 + 5) and "\x1b" not in text
    assert text.count("plain.png") == 6


def test_hostile_names_are_escaped(named: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = str(named / "photos" / ESCAPES)
    commands = [
        ["search", hostile, "--index", str(named / "i"), "-k", "5"],
        ["dedup", str(named / "photos")],
        ["train", hostile + "\n\x1b[2J", "--out", "m"],
        ["train", str(named / "photos"), "--method", "\x1b[31m", "--out", "m"],
        ["ls", "methods", "\x1b[31m"],
    ]
    for words in commands:
        with contextlib.suppress(SystemExit):
            main(words)
        printed = "".join(capsys.readouterr())
        assert "\x1b" not in printed and "\x07" not in printed and "\u202e" not in printed
        assert not any(line.startswith("forged") for line in printed.splitlines())
    assert r"red\x1b[31m" in printed or "x1b" in printed


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_output_that_cannot_be_written(stream: str, tmp_path: Path) -> None:
    for target in ("/dev/full", "closed"):
        words = ["ls", "methods"] if stream == "stdout" else ["ls", "planets"]
        command = [sys.executable, "-m", "distillhash", *words]
        where = f"{1 if stream == 'stdout' else 2}>{'&-' if target == 'closed' else target}"
        done = subprocess.run(
            ["sh", "-c", f'exec "$@" {where}', "sh", *command], capture_output=True, timeout=60, check=False
        )
        expected = {("stdout", "/dev/full"): (1,), ("stdout", "closed"): (0,)}.get((stream, target), (2,))
        assert done.returncode in expected
        assert b"Traceback" not in done.stderr and b"Exception ignored" not in done.stderr


def test_a_source_without_a_usable_item_fails_in_every_verb(named: Path, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"")
    os.mkfifo(tmp_path / "bad" / "b.png")
    for words in (
        ["train", "bad", "--method", "lsh", "--bits", "8", "--out", "m"],
        ["encode", "bad", "--model", f"{named}/m", "--out", "c.npz"],
        ["index", "bad", "--index", f"{named}/i"],
        ["search", "bad", "--index", f"{named}/i"],
        ["search", "bad/a.png", "--index", f"{named}/i"],
        ["dedup", "bad"],
    ):
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()) as said:
            patch.chdir(tmp_path)
            assert main([*words, "--quiet"]) == 1
        assert "a.png: the file is empty" in said.getvalue(), words


def test_a_working_directory_that_is_gone(tmp_path: Path) -> None:
    script = f'mkdir "$0" && cd "$0" && rmdir "$0" && exec "{sys.executable}" -m distillhash train photos --out m'
    done = subprocess.run(["sh", "-c", script, str(tmp_path / "gone")], capture_output=True, timeout=60, check=False)
    assert done.returncode == 1 and b"Traceback" not in done.stderr


MISSING = [  # (a path that is not there is 1, whatever the verb)
    ("train gone --out m", 1),
    ("train {x} --backbone vgg16 --weights gone --out m", 1),
    ("encode gone --model {m} --out c.npz", 1),
    ("encode {x} --model gone --out c.npz", 1),
    ("index gone --model {m} --index new", 1),
    ("index {x} --model gone --index new", 1),
    ("index {x} --index gone", 2),  # a new index needs --model
    ("index --index gone --remove 1", 1),
    ("search {x} --index gone", 1),
    ("search {x} --index gone --model {m}", 1),
    ("search gone --index {i}", 1),
    ("search {x} --index {i} --model gone", 1),
    ("dedup gone", 1),
    ("dedup gone --undo", 1),
    ("dedup --undo --trash gone", 1),
    ("dedup {x} --model gone", 1),
    ("dedup {x} --reference gone", 1),
    ("dedup --not-duplicate gone gone2", 1),
    ("leaks gone {x}", 1),
    ("leaks {x} gone", 1),
    ("export --codes gone.npz --to npy --out o.npy", 1),
    ("evaluate --model gone --query {x} --database {x}", 1),
    ("evaluate --model {m} --query gone --database {x}", 1),
    ("bench --data gone --protocol folder --methods lsh --bits 8 --out b", 1),
    ("serve --index gone", 1),
    ("train {x} --method gone --out m", 2),
    ("bench --data {x} --protocol gone --methods lsh --bits 8 --out b", 2),
    ("search {x} --index {i} -k none", 2),
    ("search --index {i}", 2),
    ("train {x} --max-file-size 0 --out m", 2),
    ("train {x} --max-file-size lots --out m", 2),
    ("unknown", 2),
]


@pytest.mark.parametrize(("words", "status"), MISSING)
def test_the_same_mistake_has_the_same_exit_status(
    words: str, status: int, vectors: Path, model_and_index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        found = main(words.format(x=vectors, m=model_and_index / "m", i=model_and_index / "i").split())
    except SystemExit as left:
        found = left.code  # type: ignore[assignment]
    assert found == status


@pytest.fixture(scope="module")
def model_and_index(vectors: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and an index of vectors."""
    folder = tmp_path_factory.mktemp("made")
    assert main(["train", str(vectors), "--method", "lsh", "--bits", "8", "--out", str(folder / "m"), "--quiet"]) == 0
    assert main(["index", str(vectors), "--model", str(folder / "m"), "--index", str(folder / "i"), "--quiet"]) == 0
    return folder
