"""Changed files of every format end in an answer or a sentence: no crash, no hang, no traceback, nothing changed elsewhere."""

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from fuzzing import TARGETS

LONG = {  # 100,000 rounds
    "model": 12_000,
    "index": 16_000,
    "codes": 12_000,
    "shards": 3_000,
    "tar": 5_000,
    "cache": 4_000,
    "network": 4_000,
    "trash": 14_000,
    "pairs": 12_000,
    "sources": 14_000,
    "verdicts": 4_000,
}
HANG_SECONDS = 60


def fuzz(name: str, first: int, count: int, folder: Path) -> str:
    """Run the rounds in a process; its last line. Fails with the round that crashed it or hangs."""
    command = [sys.executable, str(Path(__file__).with_name("fuzzing.py")), name, str(first), str(count), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )
    latest, output = -1, ""
    while True:
        try:
            output, _ = process.communicate(timeout=HANG_SECONDS)
            break
        except subprocess.TimeoutExpired:
            number = round_of(folder)
            if number == latest:
                process.kill()
                pytest.fail(f"round {number} of {name} hangs")
            latest = number
    assert process.returncode == 0, f"round {round_of(folder)} of {name}: status {process.returncode}\n{output[-4000:]}"
    return output.strip().splitlines()[-1]


def round_of(folder: Path) -> int:
    """The round that a process began last."""
    try:
        return int(struct.unpack("<q", (folder / "progress").read_bytes())[0])
    except (OSError, struct.error):
        return -1


def test_a_few_rounds_of_all(tmp_path: Path) -> None:
    for name in ("codes", "index", "tar", "trash", "pairs", "sources"):
        assert fuzz(name, 0, 60, tmp_path / name).startswith(f"60 rounds of {name}")


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", sorted(TARGETS))
def test_many_rounds(name: str, tmp_path: Path) -> None:
    assert sum(LONG.values()) == 100_000 and set(LONG) == set(TARGETS)
    assert fuzz(name, 1_000_000, LONG[name], tmp_path / name).startswith(f"{LONG[name]} rounds of {name}")
