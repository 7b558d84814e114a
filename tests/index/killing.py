"""A writer that is killed at random moments, again and again, and what must hold when the index is opened after it.

    python tests/index/killing.py FOLDER ROUNDS SEED

What the writer does next depends only on a number and on what is stored. The state after a kill is therefore known from the number of
acknowledgements: the one after the last acknowledged change, or after the change that was under way. A reader in another process has the
index open all the time and fails when it sees a state that never existed. Prints a line of counts.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

from distillhash import Codes
from distillhash.hamming import warm_up
from distillhash.index import Index, embedded, open_index

embedded._CACHED_FROM = 60  # so that cache files are written all the time
MEMBERS = 13  # every group of items is stored, replaced and removed as a whole
Stored = dict[int, int]  # version of every group


def codes_of(group: int, version: int) -> Codes:
    """The codes of a group say which it is, which version, and which member."""
    values = np.array([group << 16 | version << 8 | member for member in range(MEMBERS)], ">u4")
    return Codes.from_packed(values.view(np.uint8).reshape(-1, 4), 32)


def change(stored: Stored, step: int) -> tuple[str, int]:
    """What the writer does in this step."""
    rng = random.Random(step)
    kinds = ["add"] * 4 + ["replace"] * 2 + ["remove"] * (3 if len(stored) > 40 else 1)
    kind = rng.choice(kinds) if stored else "add"
    return kind, step if kind == "add" else rng.choice(sorted(stored))


def after(stored: Stored, step: int) -> Stored:
    """The state after it."""
    kind, group = change(stored, step)
    if kind == "remove":
        return {other: version for other, version in stored.items() if other != group}
    return stored | {group: (stored.get(group, -1) + 1) % 256}


def keys_of(group: int) -> list[str]:
    return [f"{group}/{member}" for member in range(MEMBERS)]


def write(folder: Path, stored: Stored, step: int, acknowledge: int) -> None:
    """Change the index for ever."""
    index = open_index(folder, n_bits=32, create=True, keep_vectors="int8")
    while True:
        kind, group = change(stored, step)
        stored = after(stored, step)
        if kind == "remove":
            index.remove(keys=keys_of(group))
        else:
            codes = codes_of(group, stored[group])
            index.add(codes, keys=keys_of(group), vectors=codes.signs(), upsert=True)
        os.write(acknowledge, b".")
        step += 1
        if step % 5 == 0:
            index.prepare()
        if step % 17 == 0:
            index.compact()


def groups_of(values: np.ndarray) -> Stored:
    """The groups that these codes are of, all of whose members must be there, in one version."""
    members: dict[tuple[int, int], set[int]] = {}
    for value in values.tolist():
        members.setdefault((value >> 16, value >> 8 & 255), set()).add(value & 255)
    versions = Counter(group for group, _ in members)
    torn = [group for group, found in members.items() if len(found) != MEMBERS or versions[group[0]] > 1]
    if torn or len(values) != MEMBERS * len(members):
        raise SystemExit(f"torn: {torn}")
    return dict(members.keys())


def stored_in(index: Index) -> Stored:
    """The groups that a search finds, and that the rows hold."""
    zero = Codes.from_packed(np.zeros((1, 4), np.uint8), 32)
    found = index.range_search(zero, 32)
    values = np.array([item.code.packed[0] for item in index.get(found.ids.tolist())], np.uint8).reshape(-1, 4)
    distances = np.bitwise_count(values).sum(axis=1, dtype=np.int32)
    if not np.array_equal(distances, found.distances) or len(index) != len(values):
        raise SystemExit("the codes that are searched are not those of the rows")
    signs = Codes.from_packed(values, 32).signs()
    if not np.array_equal(index.vectors(found.ids.tolist(), 32), 127 * signs.astype(np.float32)):
        raise SystemExit("the vectors are not those of the codes")
    return groups_of(values.view(">u4").ravel())


def read(folder: Path) -> None:
    """Search for ever; half of the time through a new connection."""
    zero = Codes.from_packed(np.zeros((1, 4), np.uint8), 32)
    index = open_index(folder)
    sizes: set[int] = set()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0 if len(sizes) > 1 else f"saw only {sizes}"))
    while True:
        found = index.range_search(zero, 32)
        sizes.add(len(found.ids))
        if len(found.ids) % MEMBERS or len(set(found.ids.tolist())) != len(found.ids):
            sys.exit(f"torn: {len(found.ids)} items")
        if random.random() < 0.05:
            index.close()
            index = open_index(folder)


def start(work: object, *arguments: object) -> int:
    """A child that does this; its process id."""
    child = os.fork()
    if child:
        return child
    try:
        work(*arguments)  # type: ignore[operator]
    finally:
        os._exit(1)


def kill_again_and_again(folder: Path, rounds: int, rng: random.Random) -> str:
    """Start and kill writers, and check the index after each; what happened."""
    stored: Stored = {}
    step, under_way = 0, 0
    for turn in range(rounds):
        reading, writing = os.pipe()
        child = start(write, folder, stored, step, writing)
        os.close(writing)
        time.sleep(rng.random() * rng.choice([0.02, 0.1]))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with os.fdopen(reading, "rb") as pipe:
            acknowledged = len(pipe.read())
        for _ in range(acknowledged):
            stored, step = after(stored, step), step + 1
        if turn % 7 == 0:
            (folder / "codes.cache").unlink(missing_ok=True)
        with open_index(folder) as index:
            found = stored_in(index)
        if found == after(stored, step):
            stored, step, under_way = found, step + 1, under_way + 1
        elif found != stored:
            raise SystemExit(f"round {turn}: {found} is stored, {stored} was acknowledged")
    return f"{step} changes, {under_way} of them under way, {len(stored)} groups left"


def main() -> None:
    folder, rounds, rng = Path(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))
    warm_up(32)  # once, not in every child
    open_index(folder, n_bits=32, create=True, keep_vectors="int8").close()
    reader = os.fork()
    if not reader:
        read(folder)
    try:
        counts = kill_again_and_again(folder, rounds, rng)
    except BaseException:
        os.kill(reader, signal.SIGKILL)  # it holds the pipes that whoever started this program reads to their end
        raise
    os.kill(reader, signal.SIGTERM)
    if (status := os.waitpid(reader, 0)[1]) != 0:
        raise SystemExit(f"the reader ended with {os.waitstatus_to_exitcode(status)}")
    print(f"{rounds} kills, {counts}")  # noqa: T201  # read by people and by the test


if __name__ == "__main__":
    main()
