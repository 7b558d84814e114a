"""One pool of threads for all searches of a process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from threading import Event, Lock
from typing import TypeVar, cast

T = TypeVar("T")

_lock = Lock()
_pool: ThreadPoolExecutor | None = None
_size = 0


def cores() -> int:
    """Cores this process may use (Linux knows; elsewhere all there are)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(tasks: Iterable[Callable[[], T]], threads: int) -> Iterator[T]:
    """Results of all tasks as they end; with one thread, in their order and on the caller's own.

    At most ``threads`` tasks run at a time. When the caller stops early, or a task fails, those not begun never begin.
    """
    waiting = iter(tasks)
    if threads == 1:
        for task in waiting:
            yield task()
        return
    ended: SimpleQueue[tuple[Callable[[], T] | None, T | None, BaseException | None]] = SimpleQueue()
    taking, stopped = Lock(), Event()

    def work() -> None:
        """Take one task after the other, so that none waits for the caller to wake up."""
        while True:
            with taking:
                mine = None if stopped.is_set() else next(waiting, None)
            if mine is None:
                ended.put((None, None, None))
                return
            try:
                ended.put((mine, mine(), None))
            except BaseException as error:
                ended.put((mine, None, error))

    pool, working = _at_least(threads), threads
    try:
        for _ in range(threads):
            pool.submit(work)
        while working:
            done, result, error = ended.get()
            if error is not None:
                raise error
            if done is None:
                working -= 1
            else:
                yield cast(T, result)
    finally:
        stopped.set()


def _at_least(threads: int) -> ThreadPoolExecutor:
    """The pool, made at first use and made anew if it has fewer threads."""
    global _pool, _size
    with _lock:
        if _pool is None or _size < threads:
            _pool, _size = ThreadPoolExecutor(threads, thread_name_prefix="distillhash-hamming"), threads
        return _pool


def _forget() -> None:
    """A child process has no threads of its parent, and maybe a lock that one of them held."""
    global _pool, _size, _lock
    _pool, _size, _lock = None, 0, Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
