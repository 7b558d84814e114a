import contextlib
import os
import platform
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import ImageFile
from threadpoolctl import threadpool_info, threadpool_limits

from distillhash.backbones import (
    FeatureCache,
    ImageInputs,
    ViewSettings,
    extract_features,
    iter_features,
    make_backbone,
    views,
)
from distillhash.backbones.base import BATCH
from distillhash.backbones.extract import CHUNK, WINDOW
from distillhash.backbones.views import augment
from distillhash.errors import DataError, ParameterError
from distillhash.files import digest, read_file
from distillhash.sources import BadItemError, ImageSource, open_source, resize_image, resize_images
from image_factory import make_png


class Pictures(ImageSource):
    """``n`` images made from their numbers; some rows may be broken, some may repeat."""

    def __init__(self, numbers: list[int], broken: frozenset[int] = frozenset()) -> None:
        self.name, self.numbers, self.broken = "pictures", numbers, broken
        self.keys = [f"{row}" for row in range(len(numbers))]
        self.labels = self.label_names = None

    def read(self, row: int) -> bytes | NDArray[np.uint8]:
        number = self.numbers[row]
        if number in self.broken:
            raise BadItemError("it is broken")
        if number < 0:
            return b"not an image"
        return np.random.default_rng(number).integers(0, 256, (9, 9, 3)).astype(np.uint8)

    def select(self, rows: NDArray[np.intp]) -> "Pictures":
        return Pictures([self.numbers[row] for row in rows], self.broken)


@pytest.fixture(scope="module")
def backbone() -> Any:
    return make_backbone(image_size=32, device="cpu", engine="torch")


@pytest.fixture
def passes(backbone: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each forward pass embeds."""
    sizes: list[int] = []
    embed = backbone.embed_floats

    def counting(pixels: torch.Tensor) -> Any:
        sizes.append(len(pixels))
        return embed(pixels)

    monkeypatch.setattr(backbone, "embed_floats", counting)
    return sizes


def expected(backbone: Any, numbers: list[int]) -> NDArray[np.float32]:
    source = Pictures(numbers)
    pixels = [resize_image(np.asarray(source.read(row)), 32) for row in range(len(numbers))]
    features: NDArray[np.float32] = backbone.embed(np.stack(pixels))
    return features


@pytest.mark.parametrize("n", [1, 7, 16, 33])
def test_features_in_row_order(backbone: Any, n: int) -> None:
    table = extract_features(Pictures(list(range(n))), backbone)
    np.testing.assert_array_equal(table.rows, np.arange(n))
    np.testing.assert_array_equal(table.features, expected(backbone, list(range(n))))
    assert table.views is None and table.skipped == []


def test_images_of_any_shapes_are_resized_each_for_itself(backbone: Any) -> None:
    shapes = [(9, 9), (32, 32), (40, 9), (9, 9), (9, 40), (33, 31), (31, 9), (9, 31), (9, 9), (1, 1)]
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*shape, 3)).astype(np.uint8) for shape in shapes]

    class Shapes(Pictures):
        def read(self, row: int) -> NDArray[np.uint8]:
            return images[row]

    pixels = [resize_image(image, 32) for image in images]
    table = extract_features(Shapes(list(range(len(shapes)))), backbone)
    np.testing.assert_array_equal(table.features, backbone.embed(np.stack(pixels)))


def test_small_images_of_a_shape_are_resized_in_one_call(backbone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counting(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
        calls.append(len(images))
        return resize_images(images, size)

    monkeypatch.setattr("distillhash.backbones.extract.resize_images", counting)
    extract_features(Pictures(list(range(20))), backbone)
    assert sorted(calls) == [4, 16]


def test_bad_items_are_skipped_with_a_reason(backbone: Any, tmp_path: Path) -> None:
    table = extract_features(Pictures([0, 1, -5, 2, 3], broken=frozenset({1})), backbone)
    np.testing.assert_array_equal(table.rows, [0, 3, 4])
    np.testing.assert_array_equal(table.features, expected(backbone, [0, 2, 3]))
    assert [item.key for item in table.skipped] == ["1", "2"]
    assert table.skipped[0].reason == "it is broken"
    with pytest.raises(DataError, match="nothing usable in pictures: all 2 items were skipped; first 0"):
        extract_features(Pictures([-1, -2]), backbone)
    with pytest.raises(DataError, match="nothing usable"):
        extract_features(Pictures([3]), backbone, max_pixels=80)
    cache = FeatureCache(tmp_path)
    extract_features(Pictures([3]), backbone, cache=cache)
    with pytest.raises(DataError, match="over the limit of 80 pixels"):  # also where the cache has the features
        extract_features(Pictures([3]), backbone, cache=cache, max_pixels=80)
    with pytest.raises(ParameterError, match="pixel limit must be at least 1, got 0"):
        extract_features(Pictures([3]), backbone, max_pixels=0)


def test_cache_returns_the_same_bits_and_computes_only_what_is_new(
    backbone: Any, passes: list[int], tmp_path: Path
) -> None:
    cache = FeatureCache(tmp_path)
    plain = extract_features(Pictures(list(range(40))), backbone)
    first = extract_features(Pictures(list(range(20))), backbone, cache=cache)
    passes.clear()
    shuffled = list(np.random.default_rng(0).permutation(40))
    mixed = extract_features(Pictures([int(number) for number in shuffled]), backbone, cache=cache)
    assert sum(passes) == 20
    np.testing.assert_array_equal(mixed.features, plain.features[shuffled])
    np.testing.assert_array_equal(first.features, plain.features[:20])
    again = extract_features(Pictures([7, 7, 7]), backbone, cache=cache)
    assert sum(passes) == 20
    np.testing.assert_array_equal(again.features, plain.features[[7, 7, 7]])


def test_caches_of_other_backbones_and_views_do_not_mix(backbone: Any, tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    table = extract_features(Pictures([1, 2]), backbone, cache=cache, n_views=2, seed=3)
    other = extract_features(Pictures([1, 2]), make_backbone(image_size=48, device="cpu"), cache=cache)
    assert not np.array_equal(table.features, other.features)
    assert len(list(tmp_path.glob("*.sqlite"))) == 3


def test_views_depend_on_seed_number_and_content_alone(backbone: Any, tmp_path: Path) -> None:
    table = extract_features(Pictures(list(range(20))), backbone, n_views=2, seed=3)
    assert table.views is not None and table.views.shape == (2, 20, 1280)
    assert not np.array_equal(table.views[0], table.views[1])
    backwards = extract_features(
        Pictures(list(range(19, -1, -1))), backbone, n_views=2, seed=3, cache=FeatureCache(tmp_path)
    )
    assert backwards.views is not None
    np.testing.assert_array_equal(backwards.views, table.views[:, ::-1])
    cached = extract_features(Pictures(list(range(20))), backbone, n_views=2, seed=3, cache=FeatureCache(tmp_path))
    assert cached.views is not None
    np.testing.assert_array_equal(cached.views, table.views)
    other = extract_features(Pictures([0]), backbone, n_views=1, seed=4)
    assert other.views is not None and not np.array_equal(other.views[0], table.views[0, :1])


def test_augmentation_that_may_do_nothing_does_nothing() -> None:
    still = ViewSettings(smallest_crop=1, ratio=1, degrees=0, flip=0, colour=0, grey=0)
    pixels = torch.randint(0, 256, (5, 3, 16, 16), generator=torch.Generator().manual_seed(0)).float()
    torch.testing.assert_close(augment(pixels, [(i,) for i in range(5)], still), pixels, atol=1e-3, rtol=0)


def test_each_part_of_the_augmentation() -> None:
    off = {"smallest_crop": 1.0, "ratio": 1.0, "degrees": 0.0, "flip": 0.0, "colour": 0.0, "grey": 0.0}
    pixels = torch.randint(50, 150, (4, 3, 16, 16), generator=torch.Generator().manual_seed(0)).float()
    seeds = [(i,) for i in range(4)]
    flipped = augment(pixels, seeds, ViewSettings(**{**off, "flip": 1.0}))
    torch.testing.assert_close(flipped, pixels.flip(3), atol=1e-3, rtol=0)
    grey = augment(pixels, seeds, ViewSettings(**{**off, "grey": 1.0}))
    luma = 0.299 * pixels[:, 0] + 0.587 * pixels[:, 1] + 0.114 * pixels[:, 2]
    for channel in range(3):
        torch.testing.assert_close(grey[:, channel], luma, atol=1e-2, rtol=0)
    for change in ({"smallest_crop": 0.3}, {"degrees": 30.0}, {"colour": 0.5}):
        changed = augment(pixels, seeds, ViewSettings(**{**off, **change}))
        assert changed.shape == pixels.shape and (changed - pixels).abs().mean() > 1
        assert changed.min() >= 0 and changed.max() <= 255
    with pytest.raises(ParameterError, match="smallest_crop"):
        ViewSettings(smallest_crop=0)


def test_views_are_sampled_at_torchs_grid_and_coloured_step_by_step() -> None:
    settings = ViewSettings()
    pixels = torch.randint(0, 256, (6, 3, 17, 17), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    found = augment(pixels, [(5, i) for i in range(6)], settings)
    for i in range(6):
        drawn = torch.tensor(views._draw(np.random.default_rng((5, i)), settings), dtype=torch.float64)
        brightness, contrast, saturation = drawn[6:].tolist()
        grid = torch.nn.functional.affine_grid(drawn[:6].view(1, 2, 3), [1, 3, 17, 17], align_corners=False)
        image = torch.nn.functional.grid_sample(
            pixels[i : i + 1].double(), grid, padding_mode="reflection", align_corners=False
        )[0]
        red, green, blue = image * brightness
        luma = 0.299 * red + 0.587 * green + 0.114 * blue
        image = luma.mean() + (image * brightness - luma.mean()) * contrast
        luma = 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]
        expected = (luma + (image - luma) * saturation).clip(0, 255)
        torch.testing.assert_close(found[i].double(), expected, atol=0.01, rtol=0)


def test_image_inputs_feed_the_trainable_network(backbone: Any) -> None:
    inputs = ImageInputs(Pictures(list(range(5))), backbone)
    seeds = np.array([[1], [2]])
    first = inputs.batch(np.array([0, 3]), seeds)
    assert len(inputs) == 5 and first.shape == (2, 3, 32, 32) and first.dtype == torch.float32
    torch.testing.assert_close(first[1:], inputs.batch(np.array([3]), seeds[1:]))
    assert not torch.equal(first[1:], inputs.batch(np.array([3]), seeds[:1]))


def test_image_inputs_keep_the_order_of_rows_that_take_different_times(backbone: Any) -> None:
    class Slow(Pictures):
        def read(self, row: int) -> Any:
            time.sleep(0.05 * (row == 0))
            return super().read(row)

    rows, seeds = np.arange(5), np.arange(5)[:, None]
    together = ImageInputs(Slow(list(range(5))), backbone).batch(rows, seeds)
    alone = [ImageInputs(Pictures([row]), backbone).batch(rows[:1], seeds[row : row + 1]) for row in range(5)]
    torch.testing.assert_close(together, torch.cat(alone))


def test_vectors_pass_through() -> None:
    vectors = np.random.default_rng(0).random((5000, 3))
    table = extract_features(open_source(vectors), make_backbone("embeddings"))
    np.testing.assert_array_equal(table.features, vectors.astype(np.float32))


def test_the_teacher_is_the_same_network_at_its_own_size(backbone: Any, tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    table = extract_features(Pictures([1, 2]), backbone, teacher=True, cache=cache)
    assert backbone.image_size < 224
    alone = extract_features(Pictures([1, 2]), make_backbone(image_size=224, engine="torch"))
    assert table.teacher is not None
    np.testing.assert_array_equal(table.teacher, alone.features)
    again = extract_features(Pictures([1, 2]), backbone, teacher=True, cache=cache)
    assert again.teacher is not None
    np.testing.assert_array_equal(again.teacher, alone.features)
    assert extract_features(Pictures([1]), backbone).teacher is None
    assert extract_features(Pictures([1]), make_backbone(image_size=224), teacher=True).teacher is None


def test_vectors_have_no_views() -> None:
    vectors = open_source(np.ones((3, 2)))
    with pytest.raises(ParameterError, match="holds vectors; ask for 0 views, not 2"):
        extract_features(vectors, make_backbone("embeddings"), n_views=2)


def test_every_file_is_opened_and_decoded_once(backbone: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain features, six views and the teacher come from one visit to each file."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number:02}.png").write_bytes(make_png(40, 30, number))
    (folder / "bad.png").write_bytes(b"not an image")
    opened: list[str] = []
    decoded: list[tuple[int, int]] = []
    read, load = read_file, ImageFile.ImageFile.load

    def counted_read(path: str, **options: Any) -> bytes:
        opened.append(Path(path).name)
        return read(path, **options)

    def counted_load(image: ImageFile.ImageFile) -> object:
        decoded.extend([image.size] if image.tile else [])
        return load(image)

    monkeypatch.setattr("distillhash.sources.files.read_file", counted_read)
    monkeypatch.setattr(ImageFile.ImageFile, "load", counted_load)
    source = open_source(folder)
    table = extract_features(source, backbone, n_views=6, teacher=True, cache=FeatureCache(tmp_path / "cache"))
    assert sorted(opened) == sorted(source.keys) and len(decoded) == 40
    again = extract_features(source, backbone, n_views=6, teacher=True, cache=FeatureCache(tmp_path / "cache"))
    assert len(opened) == 2 * len(source) and len(decoded) == 40  # read to know the content; nothing is decoded
    assert table.views is not None and again.views is not None and table.views.shape == (6, 40, 1280)
    np.testing.assert_array_equal(again.views, table.views)
    for number in (0, 5):
        alone = extract_features(source, backbone, n_views=number + 1).views
        assert alone is not None
        np.testing.assert_array_equal(alone[number], table.views[number])


def test_features_views_and_teacher_keep_their_rows_where_items_are_skipped(backbone: Any) -> None:
    clean = extract_features(Pictures([1, 2, 3, 4]), backbone, n_views=3, teacher=True)
    table = extract_features(Pictures([1, -1, 2, 3, -2, 4]), backbone, n_views=3, teacher=True)
    np.testing.assert_array_equal(table.rows, [0, 2, 3, 5])
    for found, expected_ in (
        (table.features, clean.features),
        (table.views, clean.views),
        (table.teacher, clean.teacher),
    ):
        assert found is not None and expected_ is not None and found.flags.c_contiguous
        np.testing.assert_array_equal(found, expected_)


def test_digests_are_those_of_the_contents(backbone: Any, tmp_path: Path) -> None:
    source = Pictures([4, -1, 5])
    table = extract_features(source, backbone, cache=FeatureCache(tmp_path))
    assert table.digests == [digest(source.read(0)), digest(source.read(2))]
    assert [batch.digests for batch in iter_features(source, backbone, cache=FeatureCache(tmp_path))] == [table.digests]
    assert extract_features(open_source(np.ones((3, 2))), make_backbone("embeddings")).digests == []


def test_known_items_are_neither_decoded_nor_embedded(backbone: Any, passes: list[int]) -> None:
    numbers = [*range(50), -1]
    source = Pictures(numbers)
    old = {digest(source.read(row)) for row in range(0, 50, 3)} | {digest(source.read(50))}

    def known(keys: Sequence[str], digests: Sequence[bytes]) -> list[bool]:
        assert [digest(source.read(int(key))) for key in keys] == list(digests)
        return [content in old for content in digests]

    batches = list(iter_features(source, backbone, known=known))
    np.testing.assert_array_equal(np.concatenate([batch.known for batch in batches]), [*range(0, 50, 3), 50])
    new = [row for row in range(50) if row % 3]
    np.testing.assert_array_equal(np.concatenate([batch.rows for batch in batches]), new)
    np.testing.assert_array_equal(np.concatenate([batch.features for batch in batches]), expected(backbone, new))
    assert sum(passes) == 2 * len(new) and not any(batch.skipped for batch in batches)


def test_known_vectors() -> None:
    vectors = np.random.default_rng(0).random((5000, 3))
    digests: list[bytes] = []

    def known(keys: Sequence[str], found: Sequence[bytes]) -> list[bool]:
        digests.extend(found)
        return [int(key) % 5 == 0 for key in keys]

    batches = list(iter_features(open_source(vectors), make_backbone("embeddings"), known=known))
    assert digests == [digest(vector.view(np.uint8)) for vector in vectors]
    rows = np.concatenate([batch.rows for batch in batches])
    np.testing.assert_array_equal(rows, [row for row in range(5000) if row % 5])
    np.testing.assert_array_equal(np.concatenate([batch.known for batch in batches]), np.arange(0, 5000, 5))
    np.testing.assert_array_equal(
        np.concatenate([batch.features for batch in batches]), vectors[rows].astype(np.float32)
    )
    assert [content for batch in batches for content in batch.digests] == [digests[row] for row in rows]


@pytest.mark.parametrize("size", [16, 33])
def test_a_view_does_not_depend_on_its_batch(size: int) -> None:
    pixels = torch.randint(0, 256, (17, 3, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    seeds = [(1, i) for i in range(17)]
    together = augment(pixels, seeds, ViewSettings())
    for rows in ([0], [3, 5], [16, 2, 9], list(range(10, 17))):
        alone = augment(pixels[rows], [seeds[row] for row in rows], ViewSettings())
        torch.testing.assert_close(alone, together[rows], atol=0, rtol=0)


def test_batches_stream(backbone: Any) -> None:
    reads: list[int] = []

    class Counted(Pictures):
        def read(self, row: int) -> bytes | NDArray[np.uint8]:
            reads.append(row)
            return super().read(row)

    batches = iter_features(Counted(list(range(4000))), backbone)
    next(batches)
    assert len(reads) < 400  # a bounded number of batches ahead, not the whole source
    batches.close()  # type: ignore[attr-defined]  # it is a generator


@pytest.mark.long
def test_killed_extraction_goes_on_where_it_stopped(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(600):
        (folder / f"{number:04}.png").write_bytes(make_png(8, 8, number))
    script = textwrap.dedent(
        """
        import sys, numpy as np
        from distillhash.backbones import FeatureCache, extract_features, make_backbone
        from distillhash.sources import open_source
        backbone = make_backbone(image_size=64, device="cpu", engine="torch")
        embed, computed = backbone.embed_floats, []
        backbone.embed_floats = lambda pixels: (computed.append(len(pixels)), embed(pixels))[1]
        print("go", flush=True)
        table = extract_features(open_source(sys.argv[1]), backbone, cache=FeatureCache(sys.argv[2]))
        np.save(sys.argv[3], table.features)
        print(sum(computed), flush=True)
        """
    )

    def start(cache: str, out: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", script, str(folder), str(tmp_path / cache), str(tmp_path / out)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    undisturbed = start("a", "a.npy")
    assert undisturbed.communicate()[0].split() == ["go", "600"]

    def count_kept() -> int:
        for store in (tmp_path / "b").glob("*.sqlite"):
            with contextlib.suppress(sqlite3.OperationalError):  # no table yet
                return int(sqlite3.connect(store).execute("SELECT COUNT(*) FROM features").fetchone()[0])
        return 0

    for wanted in (1, 100):
        victim = start("b", "b.npy")
        while count_kept() < wanted and victim.poll() is None:
            time.sleep(0.01)
        os.kill(victim.pid, signal.SIGKILL)
        victim.communicate()
    kept = count_kept()
    resumed = start("b", "b.npy")
    assert resumed.communicate()[0].split() == ["go", str(600 - kept)]
    np.testing.assert_array_equal(np.load(tmp_path / "b.npy"), np.load(tmp_path / "a.npy"))


# The machinery: full passes, bounded work ahead, threads, memory.


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
        from test_extract import Noise
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
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*map(str, (here, here.parent)), *sys.path])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    meanwhile, over, later = map(float, done.stdout.split())
    assert meanwhile > 200
    assert over < 60
    assert later < 60


def test_an_error_of_the_source_ends_the_job(backbone: Any) -> None:
    running = threading.active_count()
    with pytest.raises(OSError, match="the disk is gone"):
        extract_features(Noise([0] * 50 + [-1] + [0] * 500), backbone)
    assert threading.active_count() == running
