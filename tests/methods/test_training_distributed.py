"""Two processes under torch.distributed end with the same weights, having shared every epoch's rows between them."""

import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.multiprocessing.spawn import spawn

from distillhash.methods.training import CachedFeatures, TrainingSettings, train


def work(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.manual_seed(rank)  # different first weights: DDP starts both from those of rank 0
    network = torch.nn.Linear(4, 3)
    x = np.random.default_rng(0).standard_normal((20, 4)).astype(np.float32)
    seen: list[Any] = []

    def loss(outputs: torch.Tensor, rows: Any) -> torch.Tensor:
        seen.extend(rows.tolist())
        return (outputs**2).mean()

    train(network, CachedFeatures(x), loss, TrainingSettings(1, 5), seed=0)
    np.savez(f"{folder}/{rank}.npz", weight=network.weight.detach().numpy(), seen=np.array(seen))
    torch.distributed.destroy_process_group()


@pytest.mark.long
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_two_processes_agree(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn(work, args=(port, str(tmp_path)), nprocs=2)  # type: ignore[no-untyped-call]
    first, second = (np.load(tmp_path / f"{rank}.npz") for rank in (0, 1))
    np.testing.assert_array_equal(first["weight"], second["weight"])
    assert sorted([*first["seen"], *second["seen"]]) == list(range(20))
