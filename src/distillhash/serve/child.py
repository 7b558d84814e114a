"""Processes that encode uploads, so that no pass of the model waits for the interpreter that speaks HTTP.

``python -m distillhash.serve.child`` is such a process; the server starts it and talks to it in pickles over its standard input and
output. It ends when its input does, so it never outlives the server, however that ends.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from queue import SimpleQueue
from typing import Any, NoReturn

from distillhash.errors import DistillHashError
from distillhash.serve.hashing import Upload, UploadHasher

_STOP_SECONDS = 10


class Child:
    """One process with a model of its own."""

    def __init__(self, hasher: bytes) -> None:
        """Keep the pickled :class:`UploadHasher` that the process will be sent; :meth:`start` starts it."""
        self._hasher = hasher
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; it begins to load the model."""
        path = os.pathsep.join(
            folder or "." for folder in sys.path
        )  # it finds what this process finds, and nothing else
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "distillhash.serve.child"],
            env=os.environ | {"PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the server, which finishes what was begun
        )
        self._send(self._hasher)

    def wait_until_ready(self) -> None:
        """Return when the first pass is done.

        Raises:
            FormatError: the weights are not those the model was trained with.
            DistillHashError: it ended.
        """
        failure = self._receive()
        if failure is not None:
            raise failure

    def __call__(self, uploads: list[Upload]) -> list[bytes | Exception]:
        """What :class:`UploadHasher` answers to the same.

        Raises:
            DistillHashError: the process ended, now or before. The next call finds another one in its place.
        """
        if self._process is None or self._process.poll() is not None:
            self.start()
            self.wait_until_ready()
        self._send(pickle.dumps(uploads))
        answers: list[bytes | Exception] | Exception = self._receive()
        if isinstance(answers, Exception):
            raise answers
        return answers

    def stop(self) -> None:
        """End it; nothing is under way."""
        if self._process is not None:
            try:
                self._process.communicate(timeout=_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.communicate()

    def _send(self, message: bytes) -> None:
        assert self._process is not None and self._process.stdin is not None, "start comes first"
        try:
            self._process.stdin.write(message)
            self._process.stdin.flush()
        except OSError:
            self._ended()

    def _receive(self) -> Any:
        assert self._process is not None and self._process.stdout is not None, "start comes first"
        try:
            return pickle.load(self._process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError):
            self._ended()

    def _ended(self) -> NoReturn:
        """Say that it is gone, after making sure of it."""
        assert self._process is not None
        self._process.kill()
        self._process.communicate()
        status = self._process.returncode
        raise DistillHashError(
            f"a process that encodes images ended (status {status}: killed, or out of memory); the next upload starts another"
        )


class Children:
    """Several of them behind one call, each given a batch at a time."""

    def __init__(self, hasher: UploadHasher, n: int) -> None:
        """Keep the settings; :meth:`warm_up` starts the processes."""
        pickled = pickle.dumps(hasher)  # kept: one that dies is replaced by what the others are
        self._children = [Child(pickled) for _ in range(n)]
        self._idle: SimpleQueue[Child] = SimpleQueue()

    def warm_up(self) -> None:
        """Start all, side by side, and wait for them.

        Raises:
            FormatError: the weights are not those the model was trained with.
            DistillHashError: one ended.
        """
        try:
            for child in self._children:
                child.start()
            for child in self._children:
                child.wait_until_ready()
                self._idle.put(child)
        except DistillHashError:
            self.stop()
            raise

    def __call__(self, uploads: list[Upload]) -> list[bytes | Exception]:
        """The answer of one that has nothing to do; waits for one.

        Raises:
            DistillHashError: it ended.
        """
        child = self._idle.get()
        try:
            return child(uploads)
        finally:
            self._idle.put(child)

    def stop(self) -> None:
        """End all; nothing is under way."""
        for child in self._children:
            child.stop()


def main() -> None:
    """Answer batches until the input ends."""
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # whoever stops a whole group of processes lets the server end this one
        signal.signal(number, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer

    def answer(message: Any) -> None:
        pickle.dump(message, answers)
        answers.flush()

    try:
        hasher: UploadHasher = pickle.load(sys.stdin.buffer)
        try:
            hasher.warm_up()
        except DistillHashError as error:
            answer(error)
            return
        answer(None)
        while True:
            uploads = pickle.load(sys.stdin.buffer)
            try:
                answer(hasher(uploads))
            except Exception as error:  # for those who wait for this batch; the next one may go well
                answer(error)
    except (EOFError, BrokenPipeError):
        return


if __name__ == "__main__":
    main()
