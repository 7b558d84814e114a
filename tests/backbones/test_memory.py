"""An item that needs more memory than there is, under a real limit: it is skipped, and the others are done."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from image_factory import make_png

SCRIPT = """
import resource, sys
from distillhash.backbones import extract_features, make_backbone
from distillhash.dedup.codes import Settings
from distillhash.dedup.keep import gather_facts
from distillhash.sources import open_source
import numpy as np

source = open_source(sys.argv[1])
backbone = make_backbone(image_size=32)
extract_features(source.select(np.array([0, 2])), backbone)  # everything is loaded
gather_facts(source, np.array([0, 2]), Settings())
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 250 * 2**20,) * 2)
table = extract_features(source, backbone)
print(table.rows.tolist(), [(item.key, item.reason) for item in table.skipped], sorted(gather_facts(source, np.arange(3), Settings())))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit and /proc are Linux's")
def test_memory_that_there_is_not_is_the_items_error(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(make_png())
    Image.new("RGB", (11_000, 9_000)).save(tmp_path / "b.png", compress_level=1)  # 396 MB when decoded
    (tmp_path / "c.png").write_bytes(make_png(seed=1))
    words = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("[0, 2] [('b.png', ") and done.stdout.rstrip().endswith(" [0, 2]")


FAULTS = """
import resource
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
import numpy as np
from distillhash.backbones import extract_features, make_backbone
from distillhash.sources import open_source

def faults(n):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    extract_features(source.select(np.arange(n)), backbone)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

together = Barrier(4)
others = ThreadPoolExecutor(4)  # of another library, as Parquet's readers
list(others.map(lambda _: (together.wait(), bytearray(2**20)), range(4)))
source, backbone = open_source(np.zeros((256, 8, 8, 3), np.uint8)), make_backbone(image_size=192, device="cpu")
faults(32)
print((faults(256) - faults(64)) / 192)
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="the allocator is glibc's")
def test_activations_keep_their_pages_beside_threads_of_others() -> None:
    """The largest layer alone has 864 pages an image (96 channels of 96 x 96): most are those of the pass before."""
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, timeout=120, check=True)
    assert float(done.stdout) < 500
