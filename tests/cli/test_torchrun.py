"""``torchrun -m distillhash train`` on two processes, and fine-tuning that is killed and begun again."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distillhash import load_model
from image_factory import make_png

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
TUNED = ["--method", "ssdh", "--bits", "16", "--fine-tune", "--set", "epochs=2"]
FAULTY = """
import os, sys
from distillhash.cli import main
from distillhash.errors import DataError
from distillhash.methods.training import Share
take, calls = Share.take, []
def unlucky(self, n):
    calls.append(n)
    if len(calls) == 3 and os.environ["RANK"] == os.environ["UNLUCKY"]:
        if "KILLED" in os.environ and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), 9)
        if "KILLED" in os.environ:
            return take(self, n)
        raise DataError("this process is unlucky")
    return take(self, n)
Share.take = unlucky
sys.exit(main())
"""
needs_proc = pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="this system has no /proc")
needs_distributed = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """131 images (two batches of 64 and one of 3) and a file that is none."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(131):
        (folder / f"{number:03}.png").write_bytes(make_png(40, 40, number))
    (folder / "bad.png").write_bytes(b"nothing")
    return folder


def words(images: Path, out: Path, *more: str) -> list[str]:
    small = ["--image-size", "32", "--backbone", "efficientnet-lite0", "--device", "cpu", "--no-cache", "--quiet"]
    return ["train", str(images), "--out", str(out), *small, *more]


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    own = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(command, env=own, capture_output=True, text=True, timeout=300)


def trained(command: list[str]) -> Any:
    done = run([*command, "--json"])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # one object: only the first process prints


@needs_distributed
@pytest.mark.parametrize("method", ["fine-tuned", "views", "itq"])
def test_two_processes_learn_what_one_does(images: Path, tmp_path: Path, method: str) -> None:
    more = {
        "fine-tuned": [*TUNED, "--set", "fine_tune_epochs=2"],
        "views": ["--method", "cibhash", "--bits", "16", "--set", "epochs=1", "--views", "2"],
        "itq": ["--method", "itq", "--bits", "16"],
    }[method]
    one = trained([sys.executable, "-m", "distillhash", *words(images, tmp_path / "one", *more)])
    two = trained([*TWO, "-m", "distillhash", *words(images, tmp_path / "two", *more)])
    for key in ("n_items", "n_used", "n_skipped", "n_views", "image_size", "fine_tuned"):
        assert one[key] == two[key]
    assert one["n_used"] == 131 and json.loads((tmp_path / "two" / "skipped.json").read_text())[0]["key"] == "bad.png"
    first, second = (load_model(tmp_path / name).encode(sorted(images.glob("[0-9]*"))) for name in ("one", "two"))
    np.testing.assert_array_equal(first.packed, second.packed)
    if method == "fine-tuned":
        np.testing.assert_allclose(one["loss"], two["loss"], rtol=1e-4)
        assert not (tmp_path / "two" / "checkpoint").exists()
    else:
        weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")]
        assert weights[0] == weights[1]


@needs_distributed
@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_failure_of_one_process_ends_both_with_one_message(images: Path, tmp_path: Path, rank: str) -> None:
    (tmp_path / "faulty.py").write_text(FAULTY)
    command = [*TWO, str(tmp_path / "faulty.py"), *words(images, tmp_path / "out", *TUNED), "--json"]
    failed = run(command, UNLUCKY=rank)
    assert failed.returncode == 1 and failed.stderr.count("distillhash: this process is unlucky\n") == 1
    assert json.loads(failed.stdout) == {"error": "this process is unlucky", "exit_code": 1}
    assert run(command, UNLUCKY=rank, KILLED="1").returncode == 1
    assert not (tmp_path / "out" / "model.safetensors").exists()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    alone = [
        *TWO[:3],
        "--master-port",
        port,
        "--max-restarts",
        "1",
        "--nproc-per-node",
        "2",
    ]  # one store for both attempts
    again = run([*alone, *command[len(TWO) :]], UNLUCKY=rank, KILLED="1")
    assert again.returncode == 0 and (tmp_path / "out" / "model.safetensors").exists()


@needs_distributed
def test_what_all_processes_refuse_is_said_once(images: Path, tmp_path: Path) -> None:
    for wrong, text in (
        (words(images, tmp_path / "out", "--method", "nothing"), "unknown method 'nothing'"),
        (["ls", "methods"], "ls runs in one process; torchrun is for train"),
        (["train", "--nothing"], "the following arguments are required"),
    ):
        failed = run([*TWO, "-m", "distillhash", *wrong])
        assert failed.returncode == 1 and failed.stderr.count(text) == 1, failed.stderr


def kept(out: Path) -> Path:
    return out / "checkpoint" / "training-1.safetensors"


def begin(command: list[str], out: Path) -> subprocess.Popen[bytes]:
    """Start, and wait for the first checkpoint and a little longer."""
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
    give_up = time.monotonic() + 120
    while not kept(out).exists() and time.monotonic() < give_up:
        assert process.poll() is None
        time.sleep(0.02)
    time.sleep(0.5)
    return process


def pids(out: Path) -> list[int]:
    """The processes that write to ``out``; torchrun starts each in a session of its own."""
    own = [path for path in Path("/proc").glob("[0-9]*") if int(path.name) != os.getpid()]
    found = []
    for path in own:
        with contextlib.suppress(OSError):
            if str(out).encode() in (path / "cmdline").read_bytes().split(b"\0"):
                found.append(int(path.name))
    return found


@needs_distributed
@needs_proc
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_ends_all_processes(images: Path, tmp_path: Path, number: signal.Signals) -> None:
    command = [*TWO, "-m", "distillhash", *words(images, tmp_path / "out", *TUNED, "--set", "fine_tune_epochs=9999")]
    process = begin(command, tmp_path / "out")
    assert len(pids(tmp_path / "out")) == 3
    process.send_signal(number)  # to torchrun, which cannot pass on the last one
    assert process.wait(60) in (1, -signal.SIGKILL)
    give_up = time.monotonic() + 30
    while pids(tmp_path / "out") and time.monotonic() < give_up:
        time.sleep(0.1)
    assert not pids(tmp_path / "out")


@needs_proc
@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=needs_distributed)])
def test_killed_fine_tuning_goes_on_to_the_same_model(images: Path, tmp_path: Path, processes: int) -> None:
    start = [sys.executable] if processes == 1 else TWO
    more = [*TUNED, "--set", "fine_tune_epochs=4"]

    def command(name: str) -> list[str]:
        return [*start, "-m", "distillhash", *words(images, tmp_path / name, *more)]

    trained(command("whole"))
    for _ in range(2):
        process = begin(command("killed"), tmp_path / "killed")
        for pid in pids(tmp_path / "killed"):
            os.kill(pid, signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    other = run([*command("killed"), "--seed", "1", "--json"])
    assert other.returncode == 1 and "unfinished training with another method, options or seed" in other.stderr
    trained(command("killed"))
    assert not (tmp_path / "killed" / "checkpoint").exists()
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
