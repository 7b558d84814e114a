"""What is installed without PyTorch: from a wheel, in an environment of its own, with packages from an index."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from distillhash import Codes, HashModel, make_hasher
from image_factory import make_jpeg

ROOT = Path(__file__).parents[1]
MOST_MB = 250
pytestmark = pytest.mark.long


class Installed:
    """An environment with the wheel and some extras."""

    def __init__(self, folder: Path, wheel: Path, extras: str) -> None:
        self.folder, self.bin = folder, folder / "env/bin"
        subprocess.run([sys.executable, "-m", "venv", folder / "env"], check=True, env=self.environment())
        words: list[str | Path] = ["install", "--quiet", "--constraint", ROOT / "constraints.txt", f"{wheel}[{extras}]"]
        subprocess.run([self.bin / "pip", *words], check=True, timeout=900, env=self.environment())
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
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    made = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, ROOT],
        capture_output=True,
        text=True,
    )
    if made.returncode:
        pytest.skip(f"no wheel can be built here, as without a package index: {made.stderr.strip()[-200:]}")
    return next(folder.glob("*.whl"))


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
    run = Installed(tmp_path, wheel, "onnx,serve")
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
