"""The processes that encode uploads: their answers, their deaths, and the server's."""

import json
import os
import pickle
import shutil
import signal
import time
from pathlib import Path

import httpx
import pytest

from distillhash import load_model
from distillhash.cli import main
from distillhash.errors import DistillHashError, FormatError
from distillhash.serve.child import Child, Children
from distillhash.serve.hashing import UploadHasher
from distillhash.sources import BadItemError
from image_factory import make_jpeg, make_png
from serving import Running, children_of, is_running, pairs, problem, starting


@pytest.fixture(scope="module")
def hasher(photo_index: Path) -> UploadHasher:
    return UploadHasher(load_model(photo_index / "model", device="cpu"), max_pixels=10_000)


def test_children_answer_what_the_model_encodes(hasher: UploadHasher, tmp_path: Path) -> None:
    contents = [make_jpeg(90, 70, seed=i) for i in range(5)]
    for i, content in enumerate(contents):
        (tmp_path / f"{i}.jpg").write_bytes(content)
    expected = [row.tobytes() for row in hasher.model.encode(str(tmp_path)).packed]
    children = Children(hasher, 2)
    children.warm_up()
    try:
        for _ in range(3):
            *codes, damaged, large = children([*contents, b"no picture", make_png(200, 100)])
            assert codes == expected
            assert isinstance(damaged, BadItemError) and isinstance(large, BadItemError)
            assert "over the limit of 10000 pixels" in str(large)
    finally:
        children.stop()


def test_what_a_batch_raises_is_raised_here_and_the_child_goes_on(hasher: UploadHasher) -> None:
    child = Child(pickle.dumps(hasher))
    child.start()
    child.wait_until_ready()
    try:
        with pytest.raises(TypeError):
            child([object()])  # type: ignore[list-item]
        assert child([make_jpeg(90, 70)]) == child([make_jpeg(90, 70)])
        child._process.kill()  # type: ignore[union-attr]  # it runs
        with pytest.raises(DistillHashError, match="ended"):
            child([make_jpeg(90, 70)])
    finally:
        child.stop()


def test_weights_that_are_not_the_models_end_the_warm_up(photo_index: Path, tmp_path: Path) -> None:
    shutil.copytree(photo_index, tmp_path / "index")
    file = tmp_path / "index" / "model" / "config.json"
    config = json.loads(file.read_text())
    config["backbone"]["fingerprint"] = "0" * 32
    file.write_text(json.dumps(config))
    children = Children(UploadHasher(load_model(tmp_path / "index" / "model", device="cpu"), max_pixels=10_000), 2)
    with pytest.raises(FormatError, match="are not those the model was trained with"):
        children.warm_up()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the children in Linux's /proc")
def test_children_that_die_are_replaced(server: Running) -> None:
    content = make_jpeg(120, 90, seed=5)
    with httpx.Client(base_url=server.url, timeout=60) as client:
        expected = pairs(client.post("/search", files={"file": content}))
        before = children_of(server.process.pid)
        assert len(before) == min(len(os.sched_getaffinity(0)), 4)
        for child in before:
            os.kill(child, signal.SIGKILL)
        answers = [client.post("/search", files={"file": content}) for _ in range(len(before) + 1)]
        for answer in answers:  # an upload that met a death is told so, any other is answered
            if answer.status_code == 503:
                assert "ended" in problem(answer, 503) and answer.headers["retry-after"]
            else:
                assert pairs(answer) == expected
        assert answers[-1].status_code == 200
        assert not set(children_of(server.process.pid)) & set(before)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the children in Linux's /proc")
def test_children_end_with_a_server_that_is_killed(photo_index: Path) -> None:
    with starting(photo_index, "--encoders", "2", stopped=False) as server:
        deadline = time.monotonic() + 30
        while len(killed := children_of(server.process.pid)) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        server.process.kill()
    while any(map(is_running, killed)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(killed) == 2
    assert not any(map(is_running, killed))


def test_encoders_of_the_command_line(photo_index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--index", str(photo_index), "--encoders", "-1"]) == 2
    assert "encoders must be in 0..256, got -1" in capsys.readouterr().err
