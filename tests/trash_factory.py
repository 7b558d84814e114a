"""Small collections to move, child processes that are killed, and what the journal of a trash says, read with nothing but json."""

import json
import os
import signal
import sys
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

from distillhash.dedup.journal import Move

TIME = 1_500_000_000_123_456_789


def content(data: bytes) -> str:
    """Digest as the journal has it."""
    return blake2b(data, digest_size=16).hexdigest()


def write(path: Path, data: bytes, time: int = TIME) -> None:
    """A file with its modification time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, ns=(time, time))


def make_files(root: Path, n: int = 3) -> tuple[list[Move], dict[Path, bytes]]:
    """A keeper and ``n`` files to move, two of one name in different folders."""
    contents = {root / "keeper.jpg": b"keeper"}
    for number in range(n):
        contents[root / f"folder{number % 2}" / f"copy{number // 2}.jpg"] = f"copy {number}".encode() * 50
    for path, data in contents.items():
        write(path, data)
    keeper = str(root / "keeper.jpg")
    moves = [Move(str(path), content(data), keeper, 3) for path, data in contents.items() if str(path) != keeper]
    return moves, contents


def snapshot(root: Path) -> dict[str, tuple[bytes, int]]:
    """Every file below ``root`` but those of a trash, with content and modification time."""
    found = {}
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(folder, name)
            if not path.is_symlink():
                found[str(path.relative_to(root))] = (path.read_bytes(), path.stat().st_mtime_ns)
    return found


def entries(trash: Path) -> list[dict[str, Any]]:
    """The whole lines of the journal."""
    if not (trash / "journal.jsonl").exists():
        return []
    data = (trash / "journal.jsonl").read_bytes()
    return [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]


def homes(trash: Path) -> dict[Path, Path]:
    """Where the files of a trash came from, each with its place in the trash."""
    return {Path(entry.get("root", "/"), entry["path"]): trash / entry["trash"] for entry in entries(trash)}


def old_line(path: object, keeper: object, place: str, data: bytes) -> dict[str, Any]:
    """A journal line as versions before relative paths wrote it."""
    facts = {"path": str(path), "digest": content(data), "keeper": str(keeper), "distance": 0, "trash": place}
    return facts | {"size": len(data), "mtime_ns": TIME}


def make_trash(trash: Path, *lines: dict[str, Any] | bytes, **files: bytes) -> None:
    """A trash by hand: journal lines, and files ``name=content`` in batch 0001."""
    (trash / "0001").mkdir(parents=True, exist_ok=True)
    text = b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines)
    (trash / "journal.jsonl").write_bytes(text)
    for name, data in files.items():
        write(trash / "0001" / name, data)


def check_restored(contents: dict[Path, bytes], trash: Path) -> None:
    """Every file is in its place with its time, and none is in the trash."""
    for path, data in contents.items():
        assert path.read_bytes() == data and path.stat().st_mtime_ns == TIME
    assert not list(trash.rglob("*.jpg"))


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Run ``work`` in a child process that is killed, as by SIGKILL, just before its ``step``-th change to the disk; whether it was."""
    child = os.fork()
    if child == 0:
        try:
            left = step
            watched = {"os.link", "os.remove", "os.rename", "os.mkdir", "os.truncate", "fcntl.flock", "os.utime"}
            watched.add("ctypes.dlsym")  # a rename that overwrites nothing

            def hook(event: str, arguments: tuple[object, ...]) -> None:
                nonlocal left
                writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
                if event in watched or writes:
                    left -= 1
                    if left == 0:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(hook)
            work()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])
