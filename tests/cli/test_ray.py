"""encode --engine ray: the same bytes from all engines, whichever worker, node or driver dies. Skipped where Ray is not installed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distillhash import HashModel, make_hasher
from distillhash.cli import main
from image_factory import make_png

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'distillhash[ray]'")
pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
COMMAND = [
    sys.executable,
    "-m",
    "distillhash",
    "encode",
    "photos",
    "--model",
    "model",
    "--no-cache",
    "--quiet",
    "--json",
]
N_PHOTOS, N_SHARDS = 300, 12


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, some of no use, a model, and their codes by encode alone."""
    place = tmp_path_factory.mktemp("ray")
    (place / "photos").mkdir()
    for row in range(N_PHOTOS):
        (place / f"photos/{row:03}.png").write_bytes(b"no picture" if row % 50 == 7 else make_png(160, 120, row))
    hasher = make_hasher("lsh", 64)
    HashModel(hasher=hasher, image_size=128).fit(str(place / "photos")).save(place / "model")
    subprocess.run([*COMMAND, "--out", "plain.parquet"], check=True, cwd=place, stdout=subprocess.DEVNULL)
    return place


@pytest.fixture(autouse=True)
def there(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(place)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    shutil.rmtree("sh", ignore_errors=True)
    yield
    ray.shutdown()


def command(folder: str = "sh") -> list[str]:
    return [*COMMAND, "--shard", f"all/{N_SHARDS}", "--out", folder, "--engine", "ray"]


def n_written() -> int:
    return len(list(Path("sh").glob("codes-*.parquet")))


def check_result() -> None:
    """All shards, joined, are what encode writes."""
    assert main(["merge", "sh", "--out", "joined.parquet", "--quiet"]) == 0
    assert Path("joined.parquet").read_bytes() == Path("plain.parquet").read_bytes()
    assert Path("joined.skipped.json").read_bytes() == Path("plain.skipped.json").read_bytes()


def workers_of(process: int) -> list[int]:
    """The processes below a process that run a task now."""
    parents: dict[int, tuple[int, str]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                about = (entry / "stat").read_text().rpartition(")")[2].split()
                parents[int(entry.name)] = int(about[1]), (entry / "cmdline").read_text()
            except OSError:
                continue

    def is_below(one: int) -> bool:
        while one in parents and one != process:
            one = parents[one][0]
        return one == process

    return [one for one, (_, line) in parents.items() if line.startswith("ray::_ray_task") and is_below(one)]


def test_the_same_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    """On two processors, and with another number of them for the workers than encode had."""
    done = subprocess.run(command(), check=True, stdout=subprocess.PIPE, timeout=500)
    found = json.loads(done.stdout)
    assert (found["n_written"], found["n_nodes"], found["n_skipped"]) == (N_SHARDS, 1, N_PHOTOS // 50)
    by_ray = {path.name: path.read_bytes() for path in Path("sh").iterdir()}
    check_result()
    again = json.loads(subprocess.run(command(), check=True, stdout=subprocess.PIPE, timeout=500).stdout)
    assert (again["n_written"], again["n_there"]) == (0, N_SHARDS)
    subprocess.run([*COMMAND, "--shard", f"all/{N_SHARDS}", "--out", "here"], check=True, stdout=subprocess.DEVNULL)
    assert by_ray == {path.name: path.read_bytes() for path in Path("here").iterdir()}


def test_workers_are_killed() -> None:
    process = subprocess.Popen(command(), stdout=subprocess.PIPE)
    killed: set[int] = set()
    while process.poll() is None:
        if len(killed) < 3 and n_written() > len(killed):
            running = [one for one in workers_of(process.pid) if one not in killed]
            if running:
                os.kill(running[0], signal.SIGKILL)
                killed.add(running[0])
        time.sleep(0.05)
    assert process.returncode == 0 and len(killed) == 3
    check_result()


def test_the_driver_is_killed_and_run_again() -> None:
    process = subprocess.Popen(command(), stdout=subprocess.DEVNULL, start_new_session=True)
    while n_written() < 3 and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    held = n_written()
    assert held >= 3
    found = json.loads(subprocess.run(command(), check=True, stdout=subprocess.PIPE, timeout=500).stdout)
    assert found["n_there"] >= held and found["n_there"] + found["n_written"] == N_SHARDS
    check_result()


def test_two_nodes_and_one_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two nodes of one processor each, as two sets of processes on this machine."""
    from ray.cluster_utils import Cluster

    cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        second = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        found = json.loads(subprocess.run(command(), check=True, stdout=subprocess.PIPE, timeout=500).stdout)
        assert found["n_nodes"] == 2
        check_result()
        shutil.rmtree("sh")
        process = subprocess.Popen(command(), stdout=subprocess.PIPE)
        while n_written() < 3 and process.poll() is None:
            time.sleep(0.05)
        cluster.remove_node(second, allow_graceful=False)
        assert process.wait(500) == 0
        check_result()
    finally:
        cluster.shutdown()


def test_a_shard_that_fails_loses_no_other(capfd: pytest.CaptureFixture[str]) -> None:
    done = subprocess.run([*command(), "--strict"], capture_output=True, text=True, timeout=500)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    n_failed = len({row * N_SHARDS // N_PHOTOS for row in range(N_PHOTOS) if row % 50 == 7})
    assert (
        f"{n_failed} of {N_SHARDS} shards failed (shard " in done.stderr and "could not be used, first" in done.stderr
    )
    assert n_written() == N_SHARDS - n_failed


def test_a_cluster_without_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.cluster_utils import Cluster

    cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        done = subprocess.run(command(), capture_output=True, text=True, timeout=200)
        assert done.returncode == 1 and "has no processor for a task" in done.stderr
    finally:
        cluster.shutdown()


def test_a_cluster_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    done = subprocess.run(command(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "Ray cannot be started or reached" in done.stderr, done.stderr[-2000:]
