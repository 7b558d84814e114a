"""The machinery of extraction: full passes, bounded work ahead, threads, a cache shared by processes."""

import platform
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_info, threadpool_limits

from distillhash.backbones import FeatureCache, extract_features, iter_features, make_backbone
from distillhash.backbones.base import BATCH
from distillhash.backbones.extract import CHUNK, WINDOW
from distillhash.errors import DistillHashError
from distillhash.sources import ImageSource


class Noise(ImageSource):
    """Images made from numbers."""

    def __init__(self, numbers: list[int]) -> None:
        self.name, self.numbers = "noise", numbers
        self.keys = [f"{row}" for row in range(len(numbers))]
        self.labels = self.label_names = None

    def read(self, row: int) -> bytes | NDArray[np.uint8]:
        if self.numbers[row] == -1:
            raise OSError("the disk is gone")
        return np.random.default_rng(self.numbers[row]).integers(0, 256, (5, 5, 3)).astype(np.uint8)

    def select(self, rows: NDArray[np.intp]) -> "Noise":
        return Noise([self.numbers[row] for row in rows])


@pytest.fixture(scope="module")
def backbone() -> Any:
    return make_backbone(image_size=32, device="cpu")


@pytest.fixture
def passes(backbone: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the forward passes, before padding."""
    sizes: list[int] = []
    embed = backbone.embed_floats

    def counting(pixels: torch.Tensor) -> NDArray[np.float32]:
        sizes.append(len(pixels))
        features: NDArray[np.float32] = embed(pixels)
        return features

    monkeypatch.setattr(backbone, "embed_floats", counting)
    return sizes


def test_scattered_new_images_share_passes(backbone: Any, passes: list[int], tmp_path: Path) -> None:
    n = 800
    plain = extract_features(Noise(list(range(n))), backbone)
    old = [number for number in range(n) if number % 20]
    cache = FeatureCache(tmp_path)
    extract_features(Noise(old), backbone, cache=cache)
    passes.clear()
    table = extract_features(Noise(list(range(n))), backbone, cache=cache)
    assert sum(passes) == n - len(old) == 40
    assert len(passes) == -(-40 // BATCH)  # full but the last, though no chunk lacks more than one image
    np.testing.assert_array_equal(table.features, plain.features)


def test_a_rare_new_image_does_not_hold_back_the_rest(backbone: Any, tmp_path: Path) -> None:
    numbers = list(range(3)) * 1000
    cache = FeatureCache(tmp_path)
    extract_features(Noise([0, 1, 2]), backbone, cache=cache)
    reads: list[int] = []

    class Counted(Noise):
        def read(self, row: int) -> bytes | NDArray[np.uint8]:
            reads.append(row)
            return super().read(row)

    batches = iter_features(Counted([99, *numbers]), backbone, cache=cache)
    first = next(batches)
    assert len(first.rows) == CHUNK and len(reads) < 2 * WINDOW * CHUNK
    rest = list(batches)
    np.testing.assert_array_equal(np.concatenate([batch.rows for batch in [first, *rest]]), np.arange(1 + len(numbers)))


def test_threads_are_as_before(backbone: Any) -> None:
    def seen_by_a_new_thread() -> int:
        found: list[int] = []
        thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        return found[0]

    before, new_before, running = torch.get_num_threads(), seen_by_a_new_thread(), threading.active_count()
    extract_features(Noise(list(range(20))), backbone)
    started = iter_features(Noise(list(range(2000))), backbone)
    next(started)
    started.close()  # type: ignore[attr-defined]  # it is a generator
    assert (torch.get_num_threads(), seen_by_a_new_thread(), threading.active_count()) == (before, new_before, running)


def test_products_keep_to_one_thread_meanwhile(backbone: Any) -> None:
    """The threads of a BLAS wait in a loop between small products, on cores that the passes need."""

    def threads() -> set[int]:
        return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}

    with threadpool_limits(2, user_api="blas"):
        started = iter_features(Noise(list(range(200))), backbone)
        next(started)
        assert threads() == {1}
        started.close()  # type: ignore[attr-defined]  # it is a generator
        assert threads() == {2}


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the memory of other C libraries is left alone")
def test_memory_is_returned_when_the_pass_is_over() -> None:
    """Kept meanwhile, for the next batch; arrays of training would leave gaps that nothing fills."""
    script = """
        import numpy as np
        from test_pipeline import Noise
        from distillhash.backbones import iter_features, make_backbone

        def resident():
            return int(open("/proc/self/statm").read().split()[1]) * 4096 / 1e6

        def take_and_free():
            large = [np.ones(8_000_000) for _ in range(4)]  # 64 MB each

        batches = iter_features(Noise(list(range(40))), make_backbone(image_size=32, device="cpu"))
        next(batches)
        before = resident()
        take_and_free()
        meanwhile = resident() - before
        rest = list(batches)
        over = resident() - before
        take_and_free()
        print(meanwhile, over, resident() - before)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    meanwhile, over, later = map(float, done.stdout.split())
    assert meanwhile > 200
    assert over < 60
    assert later < 60


def test_an_error_of_the_source_ends_the_job(backbone: Any) -> None:
    running = threading.active_count()
    with pytest.raises(OSError, match="the disk is gone"):
        extract_features(Noise([0] * 50 + [-1] + [0] * 500), backbone)
    assert threading.active_count() == running


def test_a_full_disk_is_explained(tmp_path: Path) -> None:
    store = FeatureCache(tmp_path).store("x", 1280)
    store._connection.execute("PRAGMA max_page_count = 4")  # SQLite's own way to be full
    rows = np.zeros((40, 1280), np.float32)
    with pytest.raises(DistillHashError, match=r"is full.*free space there, or choose --cache DIR"):
        store.put([number.to_bytes(16, "big") for number in range(40)], rows)
    assert not store.get([number.to_bytes(16, "big") for number in range(40)])  # all or nothing
    store.close()


def test_processes_share_a_cache(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import sys, numpy as np
        from distillhash.backbones.cache import FeatureCache
        number = int(sys.argv[2])
        sys.stdin.readline()
        for round in range(20):
            store = FeatureCache(sys.argv[1]).store("shared", 8)
            ids = [round * 100 + i + (50 if number else 0) for i in range(100)]  # half of them the other's too
            store.put([i.to_bytes(16, "big") for i in ids], np.repeat(np.float32(ids)[:, None], 8, axis=1))
            store.close()
        """
    )
    started = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path), str(number)], stdin=subprocess.PIPE, text=True)
        for number in (0, 1)
    ]
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.close()
    assert [process.wait() for process in started] == [0, 0]
    store = FeatureCache(tmp_path).store("shared", 8)
    found = store.get([i.to_bytes(16, "big") for i in range(2050)])
    assert len(found) == 2050
    assert all((row == int.from_bytes(key, "big")).all() for key, row in found.items())
    store.close()
