"""A queue between the event loop and threads that work in batches: what waits together is computed together."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from distillhash.errors import DistillHashError

Job = TypeVar("Job")
Answer = TypeVar("Answer")


def nobody(size: int) -> None:
    """Observe nothing."""
    del size


class OverloadedError(DistillHashError):
    """More jobs are waiting than the queue takes; try again later."""


class Batcher(Generic[Job, Answer]):
    """Threads that answer jobs in batches.

    A thread takes the first job that waits, then whatever else is there, up to ``max_batch``. With ``wait_seconds`` it goes on for as long
    as jobs keep arriving that close to each other, three times as far while another batch is being worked on, whose clients will be back:
    under load batches fill, and nobody waits for company that is not coming. One thread at a time collects, as two would share what
    arrives between two half batches.
    """

    def __init__(
        self,
        work: Callable[[list[Job]], Sequence[Answer | Exception]],
        *,
        name: str,
        max_batch: int,
        wait_seconds: float = 0.0,
        threads: int = 1,
        max_waiting: int = 1024,
        observe: Callable[[int], None] = nobody,
    ) -> None:
        """Keep the settings; :meth:`start` starts the threads.

        Args:
            work: Answers a batch, one answer or exception for each job; what it raises, every job of the batch gets.
            name: Of the threads.
            max_batch: Jobs of one batch at most.
            wait_seconds: Longest time between two jobs of a batch; its first waits ten times that at most.
            threads: How many batches are worked on at a time.
            max_waiting: Jobs not yet answered at most.
            observe: Told the size of every batch.
        """
        self._work, self._observe = work, observe
        self._max_batch, self._wait_seconds, self._max_waiting = max_batch, wait_seconds, max_waiting
        self._queue: SimpleQueue[tuple[Job, asyncio.Future[Answer]] | None] = SimpleQueue()
        self._threads = [threading.Thread(target=self._run, name=f"{name}-{i}", daemon=True) for i in range(threads)]
        self._collecting = threading.Lock()
        self._working: set[int] = set()  # threads
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_stopped = False
        self.n_waiting = 0

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the threads; answers are handed over in ``loop``."""
        self._loop = loop
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job) -> asyncio.Future[Answer]:
        """Queue a job; call it in the loop's own thread.

        Raises:
            OverloadedError: the queue is full, or stopped.
        """
        assert self._loop is not None, "start comes first"
        if self._is_stopped:
            raise OverloadedError("the server is stopping")
        if self.n_waiting >= self._max_waiting:
            raise OverloadedError(f"{self.n_waiting} requests are waiting already; try again in a moment")
        self.n_waiting += 1
        future: asyncio.Future[Answer] = self._loop.create_future()
        self._queue.put((job, future))
        return future

    def stop(self) -> None:
        """Let the threads finish what is queued, and wait for them."""
        self._is_stopped = True
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def _run(self) -> None:
        assert self._loop is not None
        running = True
        while running:
            with self._collecting:
                batch, running = self._take()
            if not batch:
                continue
            self._working.add(threading.get_ident())
            try:
                answers = self._work([job for job, _ in batch])
            except Exception as error:
                answers = [error] * len(batch)
            self._working.discard(threading.get_ident())
            self._observe(len(batch))
            futures = [future for _, future in batch]
            try:
                self._loop.call_soon_threadsafe(self._resolve, futures, answers)
            except RuntimeError:  # the loop is gone, and with it everyone who waited
                return

    def _take(self) -> tuple[list[tuple[Job, asyncio.Future[Answer]]], bool]:
        """The next batch, and whether there will be another."""
        entry = self._queue.get()
        if entry is None:
            return [], False
        batch = [entry]
        give_up = time.monotonic() + 10 * self._wait_seconds
        while len(batch) < self._max_batch:
            gap = self._wait_seconds * (3 if self._working else 1)
            left = min(gap, give_up - time.monotonic())
            try:
                entry = self._queue.get(timeout=left) if left > 0 else self._queue.get_nowait()
            except Empty:
                break
            if entry is None:
                return batch, False
            batch.append(entry)
        return batch, True

    def _resolve(self, futures: list[asyncio.Future[Answer]], answers: Sequence[Answer | Exception]) -> None:
        self.n_waiting -= len(futures)
        for future, answer in zip(futures, answers, strict=True):
            if future.done():  # whoever asked went away
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
