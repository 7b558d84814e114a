"""The parts of the server by themselves: batching, groups, the library's memory, thumbnails."""

import asyncio
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distillhash import Codes
from distillhash.codes import hamming_distances
from distillhash.errors import FormatError, ParameterError
from distillhash.index import Index, open_index
from distillhash.index.base import Item
from distillhash.serve.batching import Batcher, OverloadedError
from distillhash.serve.groups import Groups, star_groups
from distillhash.serve.library import Library, NoItemError, Query
from distillhash.serve.pictures import name_of
from distillhash.sources import BadItemError, decode_image, decode_thumbnail, image_format, image_size
from image_factory import encode, make_bomb, make_gif, make_jpeg, make_pixels, make_png, make_rotated


def test_jobs_that_wait_together_are_worked_on_together() -> None:
    sizes: list[int] = []
    gate = threading.Event()

    def work(jobs: list[int]) -> list[int | Exception]:
        gate.wait(10)
        return [job * job if job != 3 else ValueError("three") for job in jobs]

    async def main() -> None:
        batcher: Batcher[int, int] = Batcher(work, name="t", max_batch=8, max_waiting=21, observe=sizes.append)
        batcher.start(asyncio.get_running_loop())
        first = batcher.submit(0)
        await asyncio.sleep(0.05)  # the thread has it, and stands at the gate
        others = [batcher.submit(job) for job in range(1, 21)]
        with pytest.raises(OverloadedError, match="21 requests"):
            batcher.submit(99)
        gate.set()
        answers = await asyncio.gather(first, *others, return_exceptions=True)
        assert [a for a in answers if not isinstance(a, Exception)] == [j * j for j in range(21) if j != 3]
        assert isinstance(answers[3], ValueError)
        assert batcher.n_waiting == 0
        batcher.stop()

    asyncio.run(main())
    assert sizes == [1, 8, 8, 4]


def test_a_batch_waits_for_others_but_not_long() -> None:
    sizes: list[int] = []

    async def main() -> None:
        batcher: Batcher[int, int] = Batcher(
            lambda jobs: jobs, name="t", max_batch=100, wait_seconds=0.3, observe=sizes.append
        )
        batcher.start(asyncio.get_running_loop())
        started = time.monotonic()
        futures = []
        for job in range(5):
            futures.append(batcher.submit(job))
            await asyncio.sleep(0.01)
        assert await asyncio.gather(*futures) == [0, 1, 2, 3, 4]
        assert time.monotonic() - started < 2
        batcher.stop()

    asyncio.run(main())
    assert sizes == [5]


def test_work_that_raises_answers_everyone_and_the_thread_goes_on() -> None:
    def work(jobs: list[int]) -> list[int]:
        return [100 // job for job in jobs]

    async def main() -> None:
        batcher: Batcher[int, int] = Batcher(work, name="t", max_batch=1)
        batcher.start(asyncio.get_running_loop())
        with pytest.raises(ZeroDivisionError):
            await batcher.submit(0)
        assert await batcher.submit(5) == 20
        gone = batcher.submit(0)
        gone.cancel()
        assert await batcher.submit(4) == 25
        batcher.stop()

    asyncio.run(main())


def clustered(n: int, n_bits: int, seed: int) -> Codes:
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 2, (n // 5, n_bits))
    bits = centres[rng.integers(0, len(centres), n)] ^ (rng.random((n, n_bits)) < 0.03)
    return Codes.from_signs(2 * bits - 1)


@pytest.mark.parametrize(("n_bits", "radius"), [(12, 0), (33, 2), (64, 6), (64, 64)])
def test_star_groups_are_stars(n_bits: int, radius: int) -> None:
    """By brute force: every member within the radius of its keeper, nobody twice, and no pair of ungrouped items within it."""
    codes = clustered(300, n_bits, seed=radius)
    with open_index("memory://", n_bits=n_bits, create=True) as index:
        index.add(codes)
        groups = star_groups(index, radius)
    distances = hamming_distances(codes, codes)
    members = [member for group in groups for member, _ in group]
    assert len(set(members)) == len(members)
    for group in groups:
        keeper = group[0][0]
        assert len(group) > 1 and group[0][1] == 0
        assert all(distances[keeper, member] == distance <= radius for member, distance in group)
    free = np.array(sorted(set(range(300)) - set(members)))
    between = distances[np.ix_(free, free)] if len(free) else np.zeros((0, 0))
    assert (between[np.triu_indices(len(free), 1)] > radius).all()
    assert [len(group) for group in groups] == sorted(map(len, groups), reverse=True)


def test_identical_codes_do_not_fill_the_memory() -> None:
    with open_index("memory://", n_bits=64, create=True) as index:
        index.add(Codes.from_packed(np.zeros((3000, 8), np.uint8), 64))
        groups = star_groups(index, 3)
    assert [len(group) for group in groups] == [3000]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"radius": 1, "groups": [{"keeper": "a"}]}', '{"radius": "x", "groups": []}']
)
def test_other_files_than_dedups_are_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "dups.json"
    file.write_text(text)
    with pytest.raises(FormatError, match="dedup --out"):
        Groups(file)


def test_the_library_notices_every_change(tmp_path: Path) -> None:
    """Items are held in memory; a change by this process or another one is seen by the next search."""

    def one(code: int) -> Codes:
        return Codes.from_packed(np.array([[code]], np.uint8), 8)

    async def main() -> None:
        folder = tmp_path / "index"
        library = Library(open_index(folder, n_bits=8, create=True))
        library.start(asyncio.get_running_loop())
        await library.run(lambda index: index.add(one(1), keys=["a"], metadata=[{"name": "first"}]))

        async def names() -> list[tuple[str, int]]:
            found = await library.search(Query(b"\x01", 10))
            return [(name_of(item), distance) for item, distance in zip(found.items, found.distances, strict=True)]

        assert await names() == [("first", 0)]
        await library.run(lambda index: index.add(one(1), keys=["a"], metadata=[{"name": "second"}], upsert=True))
        assert await names() == [("second", 0)]
        with open_index(folder) as other:
            other.add(one(0), keys=["a"], metadata=[{"name": "third"}], upsert=True)
        assert await names() == [("third", 1)]
        with open_index(folder) as other:
            other.remove(keys=["a"])
        assert await names() == []
        with pytest.raises(NoItemError):
            await library.search(Query(0, 1))
        library.stop()

    asyncio.run(main())


def test_the_state_of_an_index_moves_with_every_change(tmp_path: Path) -> None:
    def added(index: Index) -> int:
        return int(index.add(Codes.from_packed(np.zeros((1, 1), np.uint8), 8))[0])

    with open_index(tmp_path / "i", n_bits=8, create=True) as index, open_index(tmp_path / "i") as other:
        states = [index.state()]
        assert index.state() == states[0]
        added(index)
        states.append(index.state())
        identifier = added(other)
        states.append(index.state())
        index.remove([identifier])
        states.append(index.state())
        assert len(set(states)) == len(states)


def test_names_say_nothing_of_the_server() -> None:
    code = Codes.from_packed(np.zeros((1, 1), np.uint8), 8)
    for key, metadata, expected in (
        ("/home/me/photos/a/1.jpg", {"source": "/home/me/photos", "key": "a/1.jpg"}, "a/1.jpg"),
        ("/home/me/photos/a/1.jpg", None, "1.jpg"),
        ("/home/me/1.jpg", {"key": "/home/me/1.jpg"}, "1.jpg"),
        ("digits:digits/5", {"source": "digits:#train", "key": "digits/5"}, "digits/5"),
        ("upload:00ff", {"name": "cat.jpg"}, "cat.jpg"),
        (None, None, "item 7"),
    ):
        assert name_of(Item(7, code, key, None, metadata)) == expected


@pytest.mark.parametrize("orientation", range(1, 9))
def test_size_of_a_turned_image_is_the_size_shown(orientation: int) -> None:
    content = make_rotated(orientation)
    assert image_size(content) == decode_image(content).shape[1::-1]


def test_thumbnails_keep_the_aspect_and_never_grow() -> None:
    pixels = make_pixels(400, 100)
    assert decode_thumbnail(encode(pixels, "JPEG"), 200).shape == (50, 200, 3)
    assert np.array_equal(decode_thumbnail(make_png(30, 20, 1), 200), make_pixels(30, 20, 1))
    assert decode_thumbnail(pixels, 100).shape == (25, 100, 3)
    large = make_jpeg(1600, 1200, seed=3, quality=95)
    expected = Image.fromarray(decode_image(large)).resize((200, 150), Image.Resampling.BICUBIC)
    error = np.abs(decode_thumbnail(large, 200).astype(int) - np.asarray(expected).astype(int))
    assert error.mean() < 3  # draft decoding, another filter; the same picture
    assert decode_thumbnail(make_rotated(6), 20).shape == (20, 12, 3)
    with pytest.raises(BadItemError, match="over the limit"):
        decode_thumbnail(make_bomb(), 200)
    with pytest.raises(ParameterError, match="at least 1"):
        decode_thumbnail(pixels, 0)


def test_the_format_comes_from_the_content() -> None:
    for content, name in ((make_jpeg(), "JPEG"), (make_png(), "PNG"), (make_gif(), "GIF")):
        assert image_format(content) == name
    with pytest.raises(BadItemError):
        image_format(b"<svg/>")
    assert image_size(make_pixels(7, 5)) == (7, 5)
