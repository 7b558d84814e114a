"""Two processes under torch.distributed end with the same weights, having shared every epoch's rows between them."""

import socket
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.multiprocessing.spawn import spawn

from distillhash.methods import make_hasher
from distillhash.methods.training import Batch, CachedFeatures, TrainingSettings, train

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed"),
]
LIMIT = timedelta(seconds=60)  # a process that waits for the other one longer fails
CASES = [(20, 5), (131, 64), (129, 64)]


def features(n: int) -> Any:
    return np.random.default_rng(0).standard_normal((n, 4)).astype(np.float32)


def trained(n: int, batch_size: int) -> dict[str, Any]:
    """Weights that start at random, and the rows of every batch of two epochs."""
    network, batches = torch.nn.Linear(4, 3), []

    def loss(outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        batches.append(batch.rows)
        return (outputs**2).mean()

    train(network, CachedFeatures(features(n)), loss, TrainingSettings(2, batch_size), seed=0)
    weight = network.weight.detach().numpy()
    return {"weight": weight, "sizes": [len(rows) for rows in batches], "seen": np.concatenate(batches)}


def one_step(batch_size: int) -> Any:
    """Weights that start at 1, after one step."""
    network = torch.nn.Linear(4, 3)
    torch.nn.init.ones_(network.weight)
    torch.nn.init.ones_(network.bias)
    train(
        network, CachedFeatures(features(20)), lambda out, _: (out**2).mean(), TrainingSettings(1, batch_size), seed=0
    )
    return network.weight.detach().numpy()


def work(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(rank)  # different first weights: both processes start from those of rank 0
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", address, rank=rank, world_size=2, timeout=LIMIT)
    results = {f"{n}/{name}": value for n, size in CASES for name, value in trained(n, size).items()}
    hasher = make_hasher("sgh", 3, epochs=2).fit(features(131))
    np.savez(f"{folder}/{rank}.npz", step=one_step(10), projection=hasher.project(features(131)), **results)
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Any]]:
    folder: Path = tmp_path_factory.mktemp("distributed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn(work, args=(port, str(folder)), nprocs=2)  # type: ignore[no-untyped-call]
    yield [np.load(folder / f"{rank}.npz") for rank in (0, 1)]


@pytest.mark.parametrize("n", [n for n, _ in CASES])
def test_both_take_equal_steps_and_end_with_the_same_weights(results: list[Any], n: int) -> None:
    first, second = results
    np.testing.assert_array_equal(first[f"{n}/weight"], second[f"{n}/weight"])
    sizes = {20: [5, 5] * 2, 131: [64, 2] * 2, 129: [64] * 2}[n]  # 129 rows: both leave out a last batch of one row
    assert first[f"{n}/sizes"].tolist() == second[f"{n}/sizes"].tolist() == sizes
    seen = np.concatenate([first[f"{n}/seen"], second[f"{n}/seen"]])
    if n == 20:
        assert sorted(seen) == sorted([*range(20)] * 2)
    if n == 131:  # padded to 132, so that one row comes twice an epoch
        assert set(seen) == set(range(131)) and len(seen) == 264


def test_a_step_takes_the_mean_gradient(results: list[Any]) -> None:
    # Two processes with 10 rows each take the step that one process takes with all 20.
    np.testing.assert_allclose(results[0]["step"], one_step(20), rtol=1e-6)
    np.testing.assert_array_equal(results[0]["step"], results[1]["step"])


def test_a_method_learns_the_same_function_in_both_processes(results: list[Any]) -> None:
    np.testing.assert_array_equal(results[0]["projection"], results[1]["projection"])
