"""What the wheel and the sdist hold, and what works when they are installed in an environment of their own."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
import zipfile
from pathlib import Path

import httpx
import numpy as np
import pytest

import distillhash
from distillhash import Codes, HashModel, make_hasher
from image_factory import make_jpeg

ROOT = Path(__file__).parents[1]
MOST_MB, MOST_WHEEL_MB = 250, 1
pytestmark = pytest.mark.long


class Installed:
    """An environment with a wheel or an sdist and what it needs; with ``deps=False`` what it needs is that of this environment."""

    def __init__(self, folder: Path, package: str, *, deps: bool = True) -> None:
        self.folder, self.bin = folder, folder / "env/bin"
        subprocess.run([sys.executable, "-m", "venv", folder / "env"], check=True, env=self.environment())
        words: list[str | Path] = ["install", "--quiet", "--constraint", ROOT / "constraints.txt", package]
        words += [] if deps else ["--no-deps"]
        subprocess.run([self.bin / "pip", *words], check=True, timeout=900, env=self.environment())
        if not deps:
            (place,) = (folder / "env/lib").glob("python*/site-packages")
            (place / "others.pth").write_text(sysconfig.get_path("purelib"))  # searched after the environment's own
        subprocess.run(
            [self.bin / "pip", "uninstall", "--quiet", "--yes", "setuptools", "pip"], check=True, env=self.environment()
        )

    def __call__(self, *words: str, status: int = 0) -> dict[str, object]:
        """Run a verb; the object that it prints."""
        command: list[str | Path] = [self.bin / "distillhash", *words, "--json", "--quiet"]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment(), capture_output=True, text=True, timeout=300
        )
        assert done.returncode == status, done.stderr
        return dict(json.loads(done.stdout))

    def environment(self) -> dict[str, str]:
        """Without the variables that would reach this source tree."""
        return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def megabytes(self) -> float:
        """What its packages take."""
        return sum(file.stat().st_size for file in (self.folder / "env/lib").rglob("*") if file.is_file()) / 1e6

    def has(self, package: str) -> bool:
        """Whether a package can be imported there."""
        return not subprocess.run(
            [self.bin / "python", "-c", f"import {package}"], capture_output=True, env=self.environment()
        ).returncode


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What packages are made of, without what earlier builds left there."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("frozen", "__pycache__"))
    for name in ("LICENSE", "MANIFEST.in", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    made = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, project],
        capture_output=True,
        text=True,
    )
    if made.returncode:
        pytest.skip(f"no wheel can be built here, as without a package index: {made.stderr.strip()[-200:]}")
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def sdist(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("build", reason="an sdist is made by build: pip install build")
    folder = tmp_path_factory.mktemp("sdist")
    subprocess.run(
        [sys.executable, "-m", "build", "--sdist", "--outdir", folder, project], check=True, capture_output=True
    )
    return next(folder.glob("*.tar.gz"))


FILES = {
    path.relative_to(ROOT / "src").as_posix()
    for path in (ROOT / "src/distillhash").rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
}


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name for name in names if ".dist-info/" not in name} == FILES
    assert wheel.stat().st_size < MOST_WHEEL_MB * 1e6


def test_the_sdist_holds_what_the_wheel_is_made_of(sdist: Path) -> None:
    with tarfile.open(sdist) as file:
        names = {member.name.partition("/")[2] for member in file if member.isfile()}
    project = {"LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg"}
    assert {name for name in names if ".egg-info/" not in name} == project | {f"src/{name}" for name in FILES}
    twine = subprocess.run([sys.executable, "-m", "twine", "check", "--strict", sdist], capture_output=True, text=True)
    assert twine.returncode == 0 or "No module named twine" in twine.stderr, twine.stdout


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_the_demo(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    run = Installed(tmp_path, str(request.getfixturevalue(kind)), deps=False)
    assert run("demo")["report"] == "demo/report.html"
    assert (tmp_path / "demo/report.html").stat().st_size > 50_000
    words: list[str | Path] = [run.bin / "python", "-c", "import distillhash as d; print(d.__version__, d.__file__)"]
    shown = subprocess.run(words, capture_output=True, text=True, check=True, env=run.environment()).stdout
    assert shown.startswith(f"{distillhash.__version__} {tmp_path}")


def test_without_extras(wheel: Path, place: Path, tmp_path: Path) -> None:
    """A model of embeddings is applied and searched; what needs more names the extra."""
    run = Installed(tmp_path, str(wheel))
    run("encode", str(place / "x.npy"), "--model", str(place / "vectors"), "--out", "codes.npz")
    assert Codes.load(tmp_path / "codes.npz")[0] == Codes.load(place / "vectors.npz")[0]
    run("index", str(place / "x.npy"), "--model", str(place / "vectors"), "--index", "vectors.index")
    assert run("search", str(place / "x.npy"), "--index", "vectors.index", "-k", "1")["results"]
    for words, extra in (
        (["train", str(place / "x.npy"), "--bits", "8", "--out", "m"], "train"),
        (["demo"], "train"),
        (["dedup", str(place / "photos"), "--out", "d.json"], "train"),
        (["serve", "--index", "vectors.index"], "serve"),
    ):
        assert f"pip install 'distillhash[{extra}]'" in str(run(*words, status=1)["error"])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs, vectors, and models of both, made where PyTorch is."""
    from distillhash.cli import main

    folder = tmp_path_factory.mktemp("made")
    (folder / "photos").mkdir()
    for number in range(24):
        (folder / "photos" / f"{number:02d}.jpg").write_bytes(make_jpeg(160, 120, seed=number))
    np.save(folder / "x.npy", np.random.default_rng(0).standard_normal((200, 32)).astype(np.float32))
    for name, backbone, source in [("images", "efficientnet-lite0", "photos"), ("vectors", "embeddings", "x.npy")]:
        model = HashModel(backbone=backbone, hasher=make_hasher("itq", 16), engine="torch")
        model.fit(str(folder / source)).save(folder / name)
        model.encode(str(folder / source)).save(folder / f"{name}.npz")
    assert (
        main(["export", "--model", str(folder / "images"), "--to", "onnx", "--out", str(folder / "images.onnx")]) == 0
    )
    return folder


def test_encoding_searching_and_serving(wheel: Path, place: Path, tmp_path: Path) -> None:
    run = Installed(tmp_path, f"{wheel}[onnx,serve]")
    assert not any(map(run.has, ("torch", "numba", "scipy", "sklearn", "pyarrow")))
    assert run.megabytes() < MOST_MB
    for name, source in [("images.onnx", "photos"), ("vectors", "x.npy")]:
        stem = name.removesuffix(".onnx")
        run("encode", str(place / source), "--model", str(place / name), "--out", f"{stem}.npz")
        assert Codes.load(tmp_path / f"{stem}.npz")[0] == Codes.load(place / f"{stem}.npz")[0]
        run("index", str(place / source), "--model", str(place / name), "--index", f"{stem}.index")
    found = run("search", str(place / "photos/03.jpg"), "--index", "images.index", "-k", "1")
    assert "03.jpg" in json.dumps(found)
    shutil.copy(place / "photos/03.jpg", tmp_path / "again.jpg")
    copies = run(
        "dedup",
        str(tmp_path),
        "--reference",
        str(place / "photos"),
        "--model",
        str(place / "images.onnx"),
        "--radius",
        "1",
    )
    assert "again.jpg" in json.dumps(copies["groups"]) and "03.jpg" in json.dumps(copies["groups"])
    assert "pip install 'distillhash[train]'" in str(
        run("train", str(place / "x.npy"), "--bits", "8", "--out", "m", status=1)["error"]
    )
    command: list[str | Path] = [run.bin / "distillhash", "serve", "--index", "images.index", "--port", "0"]
    with subprocess.Popen(command, cwd=tmp_path, env=run.environment(), stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            url = next(word for line in server.stderr for word in line.split() if word.startswith("http://"))
            deadline = time.monotonic() + 120
            while httpx.get(f"{url.rstrip('/')}/readyz", timeout=60).status_code != 200:
                assert time.monotonic() < deadline
                time.sleep(0.2)
            with (place / "photos/03.jpg").open("rb") as file:
                answer = httpx.post(f"{url.rstrip('/')}/search?k=1", files={"file": file}, timeout=60)
            assert answer.status_code == 200
            assert answer.json()["results"][0]["distance"] == 0
        finally:
            server.terminate()
