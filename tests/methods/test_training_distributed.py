"""Processes under torch.distributed end with the same weights, having shared every epoch's rows between them."""

import socket
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
LIMIT = timedelta(seconds=60)  # a process that waits for another one for ever fails


def features(n: int) -> Any:
    return np.random.default_rng(0).standard_normal((n, 4)).astype(np.float32)


def start(rank: int, port: int) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", address, rank=rank, world_size=2, timeout=LIMIT)


def train_network(rank: int, port: int, folder: str, n: int, batch_size: int) -> None:
    start(rank, port)
    torch.manual_seed(rank)  # different first weights: both processes start from those of rank 0
    network = torch.nn.Linear(4, 3)
    seen: list[Any] = []

    def loss(outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        seen.append(batch.rows)
        return (outputs**2).mean()

    train(network, CachedFeatures(features(n)), loss, TrainingSettings(2, batch_size), seed=0)
    learned = network.weight.detach().numpy()
    np.savez(f"{folder}/{rank}.npz", weight=learned, sizes=[*map(len, seen)], seen=np.concatenate(seen))
    torch.distributed.destroy_process_group()


def step(batch_size: int) -> Any:
    """Weights after the one step of an epoch."""
    network = torch.nn.Linear(4, 3)
    torch.nn.init.ones_(network.weight)
    torch.nn.init.ones_(network.bias)
    train(
        network, CachedFeatures(features(20)), lambda out, _: (out**2).mean(), TrainingSettings(1, batch_size), seed=0
    )
    return network.weight.detach().numpy()


def one_step(rank: int, port: int, folder: str) -> None:
    start(rank, port)
    np.savez(f"{folder}/{rank}.npz", weight=step(10))
    torch.distributed.destroy_process_group()


def fit_method(rank: int, port: int, folder: str) -> None:
    start(rank, port)
    hasher = make_hasher("sgh", 3, epochs=2, batch_size=64).fit(features(131))
    np.savez(
        f"{folder}/{rank}.npz", codes=hasher.encode(features(131)).packed, projection=hasher.project(features(131))
    )
    torch.distributed.destroy_process_group()


def two_processes(work: Any, folder: Path, *arguments: Any) -> list[Any]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn(work, args=(port, str(folder), *arguments), nprocs=2)  # type: ignore[no-untyped-call]
    return [np.load(folder / f"{rank}.npz") for rank in (0, 1)]


@pytest.mark.parametrize(("n", "batch_size"), [(20, 5), (131, 64), (129, 64)])
def test_two_processes_take_equal_steps_and_agree(tmp_path: Path, n: int, batch_size: int) -> None:
    first, second = two_processes(train_network, tmp_path, n, batch_size)
    np.testing.assert_array_equal(first["weight"], second["weight"])
    np.testing.assert_array_equal(first["sizes"], second["sizes"])  # shares are padded to equal length
    if n == 20:
        assert sorted([*first["seen"], *second["seen"]]) == sorted([*range(20)] * 2)
    if n == 131:
        assert first["sizes"].tolist() == [64, 2] * 2
        assert set(first["seen"]) | set(second["seen"]) == set(range(131))
    if n == 129:  # a share of 65 rows: the last one alone is left out in both processes
        assert first["sizes"].tolist() == [64] * 2


def test_a_step_takes_the_mean_gradient(tmp_path: Path) -> None:
    # Two processes with 10 rows each take the step that one process takes with all 20.
    first, second = two_processes(one_step, tmp_path)
    np.testing.assert_array_equal(first["weight"], second["weight"])
    np.testing.assert_allclose(step(20), first["weight"], rtol=1e-6)


def test_a_method_learns_the_same_function_in_both_processes(tmp_path: Path) -> None:
    first, second = two_processes(fit_method, tmp_path)
    np.testing.assert_array_equal(first["projection"], second["projection"])
    np.testing.assert_array_equal(first["codes"], second["codes"])
