"""What people said: pairs that are not duplicates, remembered between runs by content, wherever the files move."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from distillhash.errors import DataError, FormatError
from distillhash.sources import digest

_HEAD = "# pairs that are not duplicates: two content digests, then the two files when it was said\n"


class Verdicts:
    """A text file with a pair of content digests a line; read whole, appended to."""

    def __init__(self, path: Path | None = None) -> None:
        """Read what there is.

        Args:
            path: The file; None keeps nothing.

        Raises:
            FormatError: a line is not a pair of digests.
        """
        self.path = path
        self._pairs: set[tuple[str, str]] = set()
        if path is None or not path.exists():
            return
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if line.startswith("#") or not line.strip():
                continue
            words = line.split("\t")
            if len(words) < 2 or any(len(word) != 32 for word in words[:2]):
                raise FormatError(f"line {number} of {path} is not two content digests; repair or remove it")
            self._pairs.add(_pair(words[0], words[1]))

    def __len__(self) -> int:
        return len(self._pairs)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """The pairs, sorted."""
        return iter(sorted(self._pairs))

    def apart(self, a: str, b: str) -> bool:
        """Whether people said that these contents are no duplicates."""
        return _pair(a, b) in self._pairs

    def add(self, a: Path, b: Path) -> None:
        """Remember that two files are no duplicates; forced to the disk.

        Raises:
            DataError: a file cannot be read, or the verdicts cannot be written.
        """
        try:
            pair = _pair(*(digest(path.read_bytes()).hex() for path in (a, b)))
        except OSError as error:
            raise DataError(f"{error.filename} cannot be read ({error.strerror}); give two image files") from error
        if pair in self._pairs:
            return
        self._pairs.add(pair)
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                names = (str(path.absolute()).replace("\t", " ").replace("\n", " ") for path in (a, b))
                file.write((_HEAD if file.tell() == 0 else "") + "\t".join([*pair, *names]) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise DataError(f"{self.path} cannot be written ({error.strerror}); give --verdicts FILE") from error


def _pair(a: str, b: str) -> tuple[str, str]:
    return (a, b) if a <= b else (b, a)
