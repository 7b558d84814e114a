"""Two processes that train a backbone together end as one process with the same batches."""

import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.multiprocessing.spawn import spawn

from distillhash.methods.training import Share, TrainableImages
from tunable import FINE_TUNING, VectorImages, backbone, clusters, hasher, labels

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed"),
]
LIMIT = timedelta(seconds=60)  # a process that waits for the other one longer fails
CASES = [("ssdh", n) for n in (3, 128, 129, 259, 387)] + [(method, 131) for method in FINE_TUNING]


def fitted(method: str, n: int) -> dict[str, Any]:
    x, trunk, drawn = clusters(n), backbone(), list[int]()

    class Counted(VectorImages):
        def batch(self, rows: Any, seeds: Any) -> torch.Tensor:
            drawn.append(len(rows))
            return super().batch(rows, seeds)

    made = hasher(method).fit(x, images=TrainableImages(Counted(x), trunk), **labels(method, n))
    codes = made.encode(x).packed
    return {
        "loss": made.history_["loss"],
        "trunk": trunk.state_dict()["weight"].numpy(),
        "codes": codes,
        "drawn": drawn,
    }


def work(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", address, rank=rank, world_size=2, timeout=LIMIT)
    share = Share()
    order = []
    for n in (3, 4, 1):
        mine = share.take(n)
        order.append(share.gather(torch.arange(n, dtype=torch.float32)[mine, None])[:, 0].numpy())
        views = torch.cat([torch.arange(n)[mine, None] + 0.25, torch.arange(n)[mine, None] + 0.75])
        order.append(share.gather(views)[:, 0].numpy())
    results = {f"{method}/{n}/{key}": value for method, n in CASES for key, value in fitted(method, n).items()}
    plain = hasher("ssdh").fit(clusters(131)).project(clusters(131))
    np.savez(f"{folder}/{rank}.npz", order=np.concatenate(order), plain=plain, **results)
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder: Path = tmp_path_factory.mktemp("distributed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn(work, args=(port, str(folder)), nprocs=2)  # type: ignore[no-untyped-call]
    return [dict(np.load(folder / f"{rank}.npz")) for rank in (0, 1)]


@pytest.mark.parametrize(("method", "n"), CASES)
def test_both_end_as_one_process_does(results: list[Any], method: str, n: int) -> None:
    alone = fitted(method, n)
    for found in results:
        np.testing.assert_allclose(found[f"{method}/{n}/loss"], alone["loss"], rtol=1e-4)
        np.testing.assert_allclose(found[f"{method}/{n}/trunk"], alone["trunk"], atol=1e-5)
        np.testing.assert_array_equal(found[f"{method}/{n}/codes"], alone["codes"])
    first, second = (found[f"{method}/{n}/trunk"] for found in results)
    np.testing.assert_array_equal(first, second)
    # Each draws half of the images of every batch, or one more of an odd batch.
    for found in results:
        assert found[f"{method}/{n}/drawn"].tolist() == [-(-rows // 2) for rows in alone["drawn"]]


def test_features_are_gathered_in_the_order_of_the_batch(results: list[Any]) -> None:
    expected: list[float] = []
    for n in (3, 4, 1):
        expected += range(n)
        expected += [row + 0.25 for row in range(n)] + [row + 0.75 for row in range(n)]
    for found in results:
        assert found["order"].tolist() == expected


def test_on_features_alone_each_process_does_what_one_does(results: list[Any]) -> None:
    for found in results:
        np.testing.assert_array_equal(found["plain"], hasher("ssdh").fit(clusters(131)).project(clusters(131)))
