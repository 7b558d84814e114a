"""The processes of one training under ``torchrun``: their group, what they exchange, and how one failure ends them all.

Without a group every function does what one process does alone. torch is imported only where there is one.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from distillhash.errors import DataError, ParameterError

if TYPE_CHECKING:
    from torch import Tensor

LIMIT = timedelta(hours=1)
"""How long a process waits for the others' part of a step. A process that ended is noticed at once."""
_FAILED, _TOLD = "distillhash/failed", "distillhash/told"
_POLL_SECONDS, _ANSWER = 0.2, timedelta(seconds=10)
_speaking = threading.Lock()
_store: Any = None  # of the group that start() made


def launched() -> bool:
    """Whether ``torchrun`` started this process as one of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"


def launched_rank() -> int:
    """The number that ``torchrun`` gave this process; 0 for a process on its own."""
    return int(os.environ.get("RANK", "0")) if launched() else 0


def own_device(device: str) -> str:
    """``cuda`` as the device of this process among those of its machine, such as ``cuda:1``; other devices are shared."""
    if device != "cuda" or not launched():
        return device
    import torch

    number, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if number >= there:
        raise ParameterError(f"process {number} of this machine has no CUDA device; start at most {there} a machine")
    return f"cuda:{number}"


def start(device: str, say: Callable[[str, int], None]) -> None:
    """Join the group of processes that ``torchrun`` started: gloo on the CPU, NCCL beside it where ``device`` is a CUDA device.

    Once another process fails, ``say(message, exit_code)`` tells so in process 0, which then ends.
    """
    global _store
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    plain, rank, world = next(rendezvous("env://"))
    attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]  # a store may outlive one
    store = dist.PrefixStore(attempt, plain)  # type: ignore[attr-defined]  # torch's stubs hide it
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=LIMIT)
    _store = store
    if rank == 0:
        threading.Thread(target=_listen, args=(store, say), daemon=True).start()


def finish() -> bool:
    """Leave the group, if there is one; whether this process writes the result. From then on no process waits for another."""
    global _store
    rank, _ = rank_and_size()
    if _store is not None:
        with _talking():
            sys.modules["torch.distributed"].destroy_process_group()
        _store = None
    return rank == 0


def tell(message: str, exit_code: int) -> None:
    """Let process 0 say why this process ends, and wait until it has. In process 0: from now on nobody else's message is said."""
    if _store is None:
        return
    with suppress(Exception):  # the store may be gone with the process that had it
        if launched_rank() == 0:
            _speaking.acquire()
            _store.set(_TOLD, "")
        else:
            _store.set(_FAILED, json.dumps([message, exit_code]))
            _store.wait([_TOLD], _ANSWER)


def _listen(store: Any, say: Callable[[str, int], None]) -> None:
    message, exit_code = "torchrun, which started this process, is gone; start it again", 1
    while _store is store:
        try:
            if store.check([_FAILED]):
                message, exit_code = json.loads(store.get(_FAILED))
                break
        except Exception:  # torchrun keeps the store
            break
        time.sleep(_POLL_SECONDS)
    with _speaking:
        if _store is not store:
            return
        say(message, exit_code)
        with suppress(Exception):
            store.set(_TOLD, "")
        os._exit(exit_code)  # the main thread may wait for the process that failed


def rank_and_size() -> tuple[int, int]:
    """The number of this process, and how many there are; 0 and 1 without a group."""
    dist = sys.modules.get("torch.distributed")
    if dist is None or not dist.is_available() or not dist.is_initialized():
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def processes_here() -> int:
    """How many processes of the group share this machine's cores."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if rank_and_size()[1] > 1 else 1


@contextmanager
def _talking() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise DataError(
            f"another process of this training ended, or gave no answer for {LIMIT}; its own message or the report of torchrun says why"
        ) from error


def gathered(rows: "Tensor") -> "Tensor":
    """The rows ``(b, ...)`` of every process, ``(processes * b, ...)`` in their order; all have as many. No gradient passes."""
    import torch

    parts = [torch.empty_like(rows) for _ in range(rank_and_size()[1])]
    with _talking():
        torch.distributed.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def average(tensors: Iterable["Tensor"]) -> None:
    """Replace every tensor by its mean over the processes."""
    import torch

    tensors = list(tensors)
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    with _talking():
        torch.distributed.all_reduce(flat)
    flat /= rank_and_size()[1]
    for tensor, mean in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view(tensor.shape))


def copy_first(tensors: Iterable["Tensor"]) -> None:
    """Replace every tensor by that of process 0."""
    import torch

    with _talking():
        for tensor in tensors:
            same = tensor.contiguous()  # where it is not, a copy
            torch.distributed.broadcast(same, 0)
            tensor.copy_(same)


def shared_objects(value: Any) -> list[Any]:
    """The small ``value`` of every process."""
    import torch

    values = [None] * rank_and_size()[1]
    with _talking():
        torch.distributed.all_gather_object(values, value)
    return values


def shared_rows(whole: NDArray[np.float32], part: NDArray[np.float32], counts: Sequence[int]) -> None:
    """Fill ``whole (..., n, d)`` with the ``part (..., n_r, d)`` of every process; ``counts`` are those n_r."""
    import torch

    rank, _ = rank_and_size()
    ends = np.cumsum(counts)
    for place in np.ndindex(whole.shape[:-2]):
        for number, (end, count) in enumerate(zip(ends, counts, strict=True)):
            rows = whole[place][end - count : end]
            if number == rank:
                rows[:] = part[place]
            with _talking():
                torch.distributed.broadcast(torch.from_numpy(rows), number)
