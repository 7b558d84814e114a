"""One pool of threads for all searches of a process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from threading import Lock
from typing import TypeVar

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
    pool = _at_least(threads)
    running: set[Future[T]] = set()
    try:
        for task in waiting:
            running.add(pool.submit(task))
            if len(running) == threads:
                done = next(as_completed(running))
                running.remove(done)
                yield done.result()
        for done in as_completed(set(running)):
            running.remove(done)
            yield done.result()
    finally:
        for future in running:
            future.cancel()


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
