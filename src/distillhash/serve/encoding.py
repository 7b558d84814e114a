"""From uploads to codes: jobs that wait together are computed together, in processes or threads beside the event loop."""

import asyncio
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from distillhash.errors import DataError, DistillHashError
from distillhash.files import cores
from distillhash.models.hash_model import HashModel
from distillhash.serve.limits import Problem
from distillhash.serve.settings import Settings
from distillhash.sources import BadItemError, decode_resized

Job = TypeVar("Job")
Answer = TypeVar("Answer")
Upload = bytes | NDArray[np.float32]
Encoded = tuple[bytes, NDArray[np.float32]]  # packed code, and the (d,) feature that it was made from

_ENDED = "a process that encodes images ended (killed, or out of memory); the next upload starts another"
_WAIT_SECONDS = 0.008
_MOST_WAITING = 1024
_MOST_PROCESSES = 4
_VECTORS_AT_ONCE = 256


class Batcher(Generic[Job, Answer]):
    """A queue whose jobs are answered in batches.

    A batch takes the first job that waits, then whatever else is there, up to ``max_batch``. With ``wait_seconds`` it also waits that
    long for each further job, and three times as long while another batch is being worked on, because its clients will be back. So batches
    fill under load, and a single job does not wait long. Only one batch at a time is being collected.
    """

    def __init__(
        self,
        work: Callable[[list[Job]], Awaitable[Sequence[Answer | Exception]]],
        *,
        max_batch: int,
        wait_seconds: float = 0.0,
        batches_at_once: int = 1,
        observe: Callable[[int], None] = lambda _: None,
    ) -> None:
        """``work`` answers a batch, with one answer or exception for each job; ``observe`` is called with the size of every batch."""
        self._work, self._observe = work, observe
        self._max_batch, self._wait_seconds, self._batches_at_once = max_batch, wait_seconds, batches_at_once
        self._queue: asyncio.Queue[tuple[Job, asyncio.Future[Answer]]] = asyncio.Queue()
        self._collecting = asyncio.Lock()
        self._n_working = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._is_stopped = False
        self.n_waiting = 0

    def start(self) -> None:
        """Begin to answer, in the running loop."""
        self._tasks = [asyncio.create_task(self._run()) for _ in range(self._batches_at_once)]

    def submit(self, job: Job) -> asyncio.Future[Answer]:
        """Queue a job."""
        if self._is_stopped:
            raise Problem(503, "the server is stopping", {"retry-after": "1"})
        if self.n_waiting >= _MOST_WAITING:
            detail = f"{self.n_waiting} requests are waiting already; try again in a moment"
            raise Problem(503, detail, {"retry-after": "1"})
        self.n_waiting += 1
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((job, future))
        return future

    async def stop(self) -> None:
        """Finish what is queued."""
        self._is_stopped = True
        if self._tasks:
            await self._queue.join()
        for task in self._tasks:
            task.cancel()

    async def _run(self) -> None:
        while True:
            async with self._collecting:
                batch = await self._take()
            self._n_working += 1
            try:
                answers = await self._work([job for job, _ in batch])
            except Exception as error:
                answers = [error] * len(batch)
            self._n_working -= 1
            self._observe(len(batch))
            self.n_waiting -= len(batch)
            for (_, future), answer in zip(batch, answers, strict=True):
                self._queue.task_done()
                if future.done():  # whoever asked went away
                    continue
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)

    async def _take(self) -> list[tuple[Job, asyncio.Future[Answer]]]:
        """The next batch."""
        batch = [await self._queue.get()]
        clock = asyncio.get_running_loop().time
        give_up = clock() + 10 * self._wait_seconds
        while len(batch) < self._max_batch:
            if not self._queue.empty():
                batch.append(self._queue.get_nowait())
                continue
            left = min(self._wait_seconds * (3 if self._n_working else 1), give_up - clock())
            if left <= 0:
                break
            try:
                async with asyncio.timeout(left):
                    batch.append(await self._queue.get())
            except TimeoutError:
                break
        return batch


class UploadHasher:
    """From a batch of uploads to codes, exactly as ``distillhash index`` computes them. It can be pickled until it is warmed up."""

    def __init__(self, model: HashModel, *, max_pixels: int) -> None:
        self.model = model
        self.takes_images = model.backbone_name != "embeddings"
        self._max_pixels = max_pixels

    def warm_up(self) -> None:
        """Read the weights and run one pass, so that the first request does not wait for it."""
        if self.takes_images:
            from threadpoolctl import threadpool_limits

            from distillhash.backbones.extract import keep_freed_memory
            from distillhash.pytorch import HAS_TORCH, torch

            keep_freed_memory()
            if HAS_TORCH:
                torch.set_num_threads(1)  # passes run beside each other, one core each, as when an index is filled
            threadpool_limits(1, user_api="blas")
            size = self.model.backbone.image_size
            self.model.hasher.encode(self.model.backbone.embed(np.zeros((1, size, size, 3), np.uint8)))

    def __call__(self, uploads: list[Upload]) -> list[Encoded | Exception]:
        """Code and feature of each upload, or why it has none (:class:`BadItemError`)."""
        answers: list[Any] = list(uploads)
        for place, upload in enumerate(uploads if self.takes_images else []):
            try:
                answers[place] = decode_resized(upload, self.model.backbone.image_size, self._max_pixels)
            except BadItemError as error:
                answers[place] = error
        good = [place for place, answer in enumerate(answers) if not isinstance(answer, BadItemError)]
        if good:
            batch = np.stack([answers[place] for place in good])
            features = self.model.backbone.embed(batch) if self.takes_images else batch
            for place, code, feature in zip(good, self.model.hasher.encode(features).packed, features, strict=True):
                answers[place] = code.tobytes(), feature
        return answers


class Encoder:
    """A model behind a queue. Images are encoded on the processor in processes, and on an accelerator or for vectors in threads."""

    def __init__(self, model: HashModel, settings: Settings, observe: Callable[[int], None]) -> None:
        from distillhash.backbones.base import images_a_pass

        self._hasher = UploadHasher(model, max_pixels=settings.max_pixels)
        self.takes_images = self._hasher.takes_images
        on_cpu = not self.takes_images or model.device == "cpu"
        processes = min(cores(), _MOST_PROCESSES) if settings.encoders is None else settings.encoders
        self._in_processes = bool(processes) and self.takes_images and on_cpu
        self._n_workers = processes if self._in_processes else cores() if on_cpu else 1
        self._idle: list[Executor] = []  # of one worker each, so that one that dies takes no other with it
        self.jobs: Batcher[Upload, Encoded] = Batcher(
            self._work,
            batches_at_once=self._n_workers,
            max_batch=images_a_pass(model.device) if self.takes_images else _VECTORS_AT_ONCE,
            wait_seconds=_WAIT_SECONDS,
            observe=observe,
        )

    async def start(self) -> None:
        """Read the weights, run one pass in every worker, and begin to answer."""
        self._idle = [self._new_worker() for _ in range(self._n_workers)]
        loop = asyncio.get_running_loop()
        try:
            if self._in_processes:
                await asyncio.gather(*(loop.run_in_executor(worker, _warm_up_process) for worker in self._idle))
            else:
                for worker in self._idle:  # one by one, because the first builds the network
                    await loop.run_in_executor(worker, self._hasher.warm_up)
        except BrokenExecutor as error:
            raise DistillHashError(_ENDED) from error
        self.jobs.start()

    async def stop(self) -> None:
        """Finish what waits, and end the workers."""
        await self.jobs.stop()
        for worker in self._idle:
            for process in (getattr(worker, "_processes", None) or {}).values():
                process.kill()  # it has nothing to do, or is still starting
            await asyncio.to_thread(worker.shutdown)

    async def encode(self, upload: Upload) -> Encoded:
        """The packed code and the feature of an encoded image file, or of a vector."""
        if isinstance(upload, bytes) != self.takes_images:
            wanted = "an image file" if self.takes_images else "an embedding"
            raise DataError(f"this index's model takes {wanted}; send that instead")
        if isinstance(upload, np.ndarray):
            if upload.size != (length := self._hasher.model.hasher.n_features_):
                raise DataError(f"the embedding must have {length} numbers, got {upload.size}")
            if not np.isfinite(upload).all():
                raise DataError("the embedding holds NaN or infinite numbers (32-bit floats); send finite ones")
        return await self.jobs.submit(upload)

    async def _work(self, uploads: list[Upload]) -> list[Encoded | Exception]:
        """Encode a batch in an idle worker; there are as many workers as batches at once."""
        loop, worker = asyncio.get_running_loop(), self._idle.pop()
        call = _encode_in_process if self._in_processes else self._hasher.__call__
        try:
            try:
                answers = loop.run_in_executor(worker, call, uploads)
            except BrokenExecutor:  # its process ended while it had nothing to do
                worker = self._new_worker()
                answers = loop.run_in_executor(worker, call, uploads)
            return await answers
        except BrokenExecutor as error:
            worker = self._new_worker()
            raise DistillHashError(_ENDED) from error
        finally:
            self._idle.append(worker)

    def _new_worker(self) -> Executor:
        if not self._in_processes:
            return ThreadPoolExecutor(1, thread_name_prefix="model")
        spawn = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(1, mp_context=spawn, initializer=_start_process, initargs=(self._hasher,))


# What runs in a process of the encoder.

_hasher: UploadHasher


def _start_process(hasher: UploadHasher) -> None:
    """Keep the model; live no longer than the server, and let it decide when to end."""
    global _hasher
    _hasher = hasher
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C in a terminal is for the server, which finishes what was begun
    for number in (signal.SIGINT, signal.SIGTERM):  # signals to a whole group of processes are for the server
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_server, daemon=True).start()


def _end_with_the_server() -> None:
    server = multiprocessing.parent_process()
    assert server is not None
    server.join()
    os._exit(1)


@functools.cache
def _warm_up_process() -> None:
    _hasher.warm_up()


def _encode_in_process(uploads: list[Upload]) -> list[Encoded | Exception]:
    _warm_up_process()  # a process that replaces another one is not warm yet
    return _hasher(uploads)
