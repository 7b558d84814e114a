"""From uploads to codes: batches, and the processes that encode; their answers, their deaths, and the server's."""

import asyncio
import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from distillhash import HashModel, load_model
from distillhash.cli import main
from distillhash.errors import FormatError
from distillhash.serve.encoding import Batcher, Encoder
from distillhash.serve.limits import Problem
from distillhash.serve.settings import Settings
from distillhash.sources import BadItemError
from image_factory import make_jpeg, make_png
from serving import Running, encoders_of, is_running, pairs, problem, starting


def test_jobs_that_wait_together_are_worked_on_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distillhash.serve.encoding._MOST_WAITING", 21)
    sizes: list[int] = []
    gate = asyncio.Event()

    async def work(jobs: list[int]) -> list[int | Exception]:
        await gate.wait()
        return [job * job if job != 3 else ValueError("three") for job in jobs]

    async def main() -> None:
        batcher: Batcher[int, int] = Batcher(work, max_batch=8, observe=sizes.append)
        batcher.start()
        first = batcher.submit(0)
        await asyncio.sleep(0.05)  # it is being worked on, and waits at the gate
        others = [batcher.submit(job) for job in range(1, 21)]
        with pytest.raises(Problem, match="21 requests"):
            batcher.submit(99)
        gate.set()
        answers = await asyncio.gather(first, *others, return_exceptions=True)
        assert [a for a in answers if not isinstance(a, Exception)] == [j * j for j in range(21) if j != 3]
        assert isinstance(answers[3], ValueError)
        assert batcher.n_waiting == 0
        await batcher.stop()

    asyncio.run(main())
    assert sizes == [1, 8, 8, 4]


def test_a_batch_waits_for_others_but_not_long() -> None:
    sizes: list[int] = []

    async def echo(jobs: list[int]) -> list[int]:
        return jobs

    async def main() -> None:
        batcher: Batcher[int, int] = Batcher(echo, max_batch=100, wait_seconds=0.3, observe=sizes.append)
        batcher.start()
        started = time.monotonic()
        futures = []
        for job in range(5):
            futures.append(batcher.submit(job))
            await asyncio.sleep(0.01)
        assert await asyncio.gather(*futures) == [0, 1, 2, 3, 4]
        assert time.monotonic() - started < 2
        await batcher.stop()

    asyncio.run(main())
    assert sizes == [5]


def test_work_that_raises_answers_everyone_and_the_queue_goes_on() -> None:
    async def work(jobs: list[int]) -> list[int]:
        return [100 // job for job in jobs]

    async def main() -> None:
        batcher: Batcher[int, int] = Batcher(work, max_batch=1)
        batcher.start()
        with pytest.raises(ZeroDivisionError):
            await batcher.submit(0)
        assert await batcher.submit(5) == 20
        gone = batcher.submit(0)
        gone.cancel()
        assert await batcher.submit(4) == 25
        await batcher.stop()

    asyncio.run(main())


@pytest.fixture(scope="module")
def model(photo_index: Path) -> HashModel:
    return load_model(photo_index / "model", device="cpu")


def encode(model: HashModel, uploads: list[Any], processes: int) -> list[Any]:
    """What an encoder answers to uploads that come together, or raises to each."""

    async def main() -> list[Any]:
        encoder = Encoder(model, Settings(max_pixels=10_000, encoders=processes), lambda _: None)
        try:
            await encoder.start()
            return await asyncio.gather(*map(encoder.encode, uploads), return_exceptions=True)
        finally:
            await encoder.stop()

    return asyncio.run(main())


@pytest.mark.parametrize("processes", [0, 2])
def test_uploads_get_the_codes_of_the_model(model: HashModel, tmp_path: Path, processes: int) -> None:
    contents = [make_jpeg(90, 70, seed=i) for i in range(5)]
    for i, content in enumerate(contents):
        (tmp_path / f"{i}.jpg").write_bytes(content)
    (expected,) = model.encode_batches(str(tmp_path))
    n_threads = torch.get_num_threads()
    *found, damaged, large = encode(model, [*contents, b"no picture", make_png(200, 100)], processes=processes)
    torch.set_num_threads(n_threads)
    assert [code for code, _ in found] == [row.tobytes() for row in expected.codes.packed]
    assert np.array_equal([feature for _, feature in found], expected.features)
    assert isinstance(damaged, BadItemError) and isinstance(large, BadItemError)
    assert "over the limit of 10000 pixels" in str(large)


def test_weights_that_are_not_the_models_end_the_warm_up(photo_index: Path, tmp_path: Path) -> None:
    shutil.copytree(photo_index, tmp_path / "index")
    file = tmp_path / "index" / "model" / "config.json"
    config = json.loads(file.read_text())
    config["backbone"]["fingerprint"] = "0" * 32
    file.write_text(json.dumps(config))
    with pytest.raises(FormatError, match="are not those the model was trained with"):
        encode(load_model(tmp_path / "index" / "model", device="cpu"), [], processes=2)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the children in Linux's /proc")
def test_children_that_die_are_replaced(server: Running) -> None:
    content = make_jpeg(120, 90, seed=5)
    with httpx.Client(base_url=server.url, timeout=60) as client:
        expected = pairs(client.post("/search", files={"file": content}))
        before = encoders_of(server.process.pid)
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
        assert not set(encoders_of(server.process.pid)) & set(before)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the children in Linux's /proc")
def test_children_end_with_a_server_that_is_killed(photo_index: Path) -> None:
    with starting(photo_index, "--encoders", "2", stopped=False) as server:
        deadline = time.monotonic() + 30
        while len(killed := encoders_of(server.process.pid)) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        server.process.kill()
    while any(map(is_running, killed)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(killed) == 2
    assert not any(map(is_running, killed))


def test_encoders_of_the_command_line(photo_index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--index", str(photo_index), "--encoders", "-1"]) == 2
    assert "encoders must be in 0..256, got -1" in capsys.readouterr().err
