"""The cache file: it saves reading, and nothing that happens to it changes an answer."""

import os
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from distillhash import Codes
from distillhash.errors import DistillHashError
from distillhash.hamming.clustered import ClusteredCodes
from distillhash.index import embedded, open_index

N_BITS = 40
RNG = np.random.default_rng(0)
VALUES = RNG.integers(0, 256, (50, 5), np.uint8)
QUERY = Codes.from_packed(RNG.integers(0, 256, (1, 5), np.uint8), N_BITS)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache file is worth it from 20 items on."""
    monkeypatch.setattr(embedded, "_CACHED_FROM", 20)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An index of 50 codes with its cache file."""
    with open_index(tmp_path / "index", n_bits=N_BITS, create=True) as index:
        index.add(Codes.from_packed(VALUES, N_BITS))
        index.prepare()
    return tmp_path / "index"


def ranked(values: dict[int, Any]) -> list[tuple[int, int]]:
    """All (id, distance) by (distance, id), by a loop over Python integers."""
    query = int.from_bytes(QUERY.packed[0].tobytes())
    pairs = [(bin(query ^ int.from_bytes(code.tobytes())).count("1"), item) for item, code in values.items()]
    return [(item, distance) for distance, item in sorted(pairs)]


@contextmanager
def counting_rows(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many codes are read from the rows."""
    counts = [0]
    original = embedded.ItemTable.codes_since

    def counted(self: embedded.ItemTable, *arguments: Any) -> Iterator[list[tuple[int, bytes]]]:
        for rows in original(self, *arguments):
            counts[0] += len(rows)
            yield rows

    with monkeypatch.context() as patch:
        patch.setattr(embedded.ItemTable, "codes_since", counted)
        yield counts


def test_only_what_changed_is_read_from_the_rows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = dict(enumerate(VALUES))
    with open_index(folder) as index:
        index.add(Codes.from_packed(VALUES[:3], N_BITS))
        index.add(Codes.from_packed(VALUES[3:5], N_BITS), ids=[7, 60], upsert=True)
        index.remove([0, 51])
        stored |= {50: VALUES[0], 52: VALUES[2], 7: VALUES[3], 60: VALUES[4]}
        del stored[0]
    with counting_rows(monkeypatch) as counts, open_index(folder) as index:
        assert index.search(QUERY, 99)[0] == ranked(stored)
        assert counts == [4]
        index.add(Codes.from_packed(VALUES[9:10], N_BITS), ids=[55])
        stored[55] = VALUES[9]
        assert index.range_search(QUERY, N_BITS)[0] == ranked(stored)
        assert counts == [5]
        assert index.search(QUERY, 5)[0] == ranked(stored)[:5]
        assert counts == [5]


def test_a_new_file_is_written_when_much_changed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder / "codes.cache"
    stored = dict(enumerate(VALUES))
    with open_index(folder) as index:
        before = file.read_bytes()
        index.remove(list(range(20)))
        assert index.search(QUERY, 3)[0] == ranked({item: stored[item] for item in range(20, 50)})[:3]
        assert file.read_bytes() == before
        index.remove([20])
        assert index.search(QUERY, 3)[0] == ranked({item: stored[item] for item in range(21, 50)})[:3]
        assert file.read_bytes() == before  # a search writes nothing
        index.prepare()
        assert index.search(QUERY, 3)[0] == ranked({item: stored[item] for item in range(21, 50)})[:3]
        assert file.stat().st_size == 4096 + 29 * (8 + 8)
    with counting_rows(monkeypatch) as counts, open_index(folder) as index:
        assert index.search(QUERY, 40)[0] == ranked({item: stored[item] for item in range(21, 50)})
        assert counts == [0]


def test_small_indexes_have_no_file(tmp_path: Path) -> None:
    with open_index(tmp_path / "index", n_bits=N_BITS, create=True) as index:
        index.add(Codes.from_packed(VALUES[:20], N_BITS))
        index.search(QUERY)
    assert not (tmp_path / "index" / "codes.cache").exists()


def search_again(folder: Path) -> None:
    with open_index(folder) as index:
        assert index.search(QUERY, 60)[0] == ranked(dict(enumerate(VALUES)))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit(folder: Path, place: float, bit: int) -> None:
    file = folder / "codes.cache"
    content = bytearray(file.read_bytes())
    # As often in the few bytes of the head that say something as in all the rest.
    offset = int(2 * place * 250) if place < 0.5 else 4096 + int((2 * place - 1) * (len(content) - 4096))
    content[offset] ^= 1 << bit
    file.write_bytes(content)
    search_again(folder)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
@given(share=st.floats(0, 1, exclude_max=True), longer=st.booleans())
def test_another_length(folder: Path, share: float, longer: bool) -> None:
    file = folder / "codes.cache"
    content = file.read_bytes()
    file.write_bytes(content + b"\0" * 8 if longer else content[: int(share * len(content))])
    search_again(folder)


def other_database(folder: Path) -> None:
    """The cache file of an index that went through as many changes."""
    other = folder.parent / "other"
    with open_index(other, n_bits=N_BITS, create=True) as index:
        index.add(Codes.from_packed(VALUES[::-1], N_BITS))
        index.prepare()
    shutil.copy(other / "codes.cache", folder)


def restored_database(folder: Path) -> None:
    """A cache file from after a copy of the database was taken, which was then put back and went another way."""
    kept = folder.parent / "kept.sqlite"
    shutil.copy(folder / "items.sqlite", kept)
    with open_index(folder) as index:
        index.add(Codes.from_packed(VALUES[:30], N_BITS), ids=list(range(20, 50)), upsert=True)
        index.prepare()
    shutil.copy(kept, folder / "items.sqlite")
    with open_index(folder) as index:
        index.add(Codes.from_packed(VALUES[:1], N_BITS), ids=[0], upsert=True)


def a_folder(folder: Path) -> None:
    (folder / "codes.cache").unlink()
    (folder / "codes.cache").mkdir()


REPLACEMENTS: dict[str, Callable[[Path], Any]] = {
    "lost": lambda folder: (folder / "codes.cache").unlink(),
    "empty": lambda folder: (folder / "codes.cache").write_bytes(b""),
    "a folder": a_folder,
    "of another index": other_database,
    "of another life of the database": restored_database,
}


@pytest.mark.parametrize("replacement", REPLACEMENTS)
def test_another_file(folder: Path, replacement: str) -> None:
    REPLACEMENTS[replacement](folder)
    search_again(folder)
    search_again(folder)


def test_an_open_index_is_not_disturbed_by_a_new_file(folder: Path) -> None:
    with open_index(folder) as reader, open_index(folder) as writer:
        assert reader.search(QUERY, 1)[0] == ranked(dict(enumerate(VALUES)))[:1]
        stored = dict(enumerate(VALUES)) | {item: VALUES[item - 21] for item in range(21, 50)}
        writer.add(Codes.from_packed(VALUES[:29], N_BITS), ids=list(range(21, 50)), upsert=True)
        writer.prepare()
        assert reader.search(QUERY, 60)[0] == writer.search(QUERY, 60)[0] == ranked(stored)


def test_compaction_gives_space_back_and_changes_no_answer(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    values = RNG.integers(0, 256, (5000, 5), np.uint8)
    with open_index(folder, n_bits=N_BITS, create=True) as index, open_index(folder) as reader:
        index.add(Codes.from_packed(values, N_BITS), keys=[f"{i:05d}" * 20 for i in range(5000)])
        assert reader.search(QUERY, 1)[0] == ranked(dict(enumerate(values)))[:1]
        index.remove(list(range(0, 4900)))
        index.compact()
        left = ranked(dict(enumerate(values[4900:], 4900)))
        assert index.search(QUERY, 200)[0] == reader.search(QUERY, 200)[0] == left
        assert index.add(QUERY).tolist() == [5000]  # ids stay unused
        size = (folder / "items.sqlite").stat().st_size + (folder / "items.sqlite-wal").stat().st_size
    assert size < 100_000 < 5000 * 100


@pytest.fixture
def clustered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, NDArray[np.uint8]]:
    """A compacted index of 3,000 codes around ten centres, which is searched by its groups."""
    monkeypatch.setattr(embedded, "CLUSTERED_FROM", 3000)
    monkeypatch.setattr("distillhash.hamming.clustered._MARGIN", np.inf)  # it always pays
    flips = np.packbits(RNG.random((3000, 40)) < 0.08, axis=1)
    values = VALUES[RNG.integers(0, 10, 3000)] ^ flips
    with open_index(tmp_path / "index", n_bits=N_BITS, create=True) as index:
        index.add(Codes.from_packed(values[:2999], N_BITS))
        index.compact()
        assert not (tmp_path / "index" / "codes.clusters").exists()
        index.add(Codes.from_packed(values[2999:], N_BITS))
        index.compact()
        assert index.search(QUERY, 9)[0] == ranked(dict(enumerate(values)))[:9]
    return tmp_path / "index", values


def test_groups_are_found_once(clustered: tuple[Path, NDArray[np.uint8]], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, values = clustered
    monkeypatch.setattr(ClusteredCodes, "__init__", None)  # so that it cannot be made anew
    stored = dict(enumerate(values))
    calls = []
    original = ClusteredCodes.nearest

    def counted(self: ClusteredCodes, *arguments: Any, **options: Any) -> Any:
        calls.append(1)
        return original(self, *arguments, **options)

    monkeypatch.setattr(ClusteredCodes, "nearest", counted)
    with open_index(folder) as index:
        assert index.search(QUERY, 9)[0] == ranked(stored)[:9]
        radius = ranked(stored)[8][1]
        near = [pair for pair in ranked(stored) if pair[1] <= radius]
        assert index.range_search(QUERY, radius)[0] == near
        index.remove([near[0][0], near[1][0]])
        index.add(Codes.from_packed(VALUES[:3], N_BITS), ids=[near[2][0], 4000, 4001], upsert=True)
        del stored[near[0][0]], stored[near[1][0]]
        stored |= {near[2][0]: VALUES[0], 4000: VALUES[1], 4001: VALUES[2]}
        assert index.search(QUERY, 9)[0] == ranked(stored)[:9]
        odd = ranked({item: code for item, code in stored.items() if item % 2})
        assert index.search(QUERY, 9, where="id % 2")[0] == odd[:9]
    assert len(calls) == 3


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
def test_damaged_groups(clustered: tuple[Path, NDArray[np.uint8]], place: float, bit: int, cut: bool) -> None:
    folder, values = clustered
    file = folder / "codes.clusters"
    whole = file.read_bytes()
    content = bytearray(whole)
    offset = int(place * len(content))
    if cut:
        del content[offset:]
    else:
        content[offset] ^= 1 << bit
    file.write_bytes(content)
    with open_index(folder) as index:
        assert index.search(QUERY, 9)[0] == ranked(dict(enumerate(values)))[:9]
    file.write_bytes(whole)


@contextmanager
def no_file_above(n_bytes: int) -> Iterator[None]:
    """Writes beyond this size fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_no_room_for_the_file(tmp_path: Path) -> None:
    values = RNG.integers(0, 256, (6000, 5), np.uint8)
    folder = tmp_path / "index"
    with open_index(folder, n_bits=N_BITS, create=True) as index:
        index.add(Codes.from_packed(values, N_BITS))
        with no_file_above(16 * 6000):
            index.prepare()
            assert index.search(QUERY, 7)[0] == ranked(dict(enumerate(values)))[:7]
    assert sorted(file.name for file in folder.iterdir()) == ["items.sqlite", "manifest.json"]


def test_no_room_for_the_rows(folder: Path) -> None:
    size = (folder / "items.sqlite").stat().st_size
    with open_index(folder) as index:
        with no_file_above(size + 50_000), pytest.raises(DistillHashError, match="check the disk"):
            index.add(Codes.from_packed(np.zeros((20_000, 5), np.uint8), N_BITS))
        assert len(index) == 50
        assert index.add(QUERY).tolist() == [50]
    with open_index(folder) as index:
        assert index.search(QUERY, 1)[0] == [(50, 0)]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may not write here")
@pytest.mark.parametrize("has_cache", [True, False])
def test_a_reader_without_the_right_to_write(folder: Path, has_cache: bool) -> None:
    if not has_cache:
        (folder / "codes.cache").unlink()
    with tempfile.TemporaryDirectory() as name:  # tmp_path lies in folders that only its owner may enter
        Path(name).chmod(0o755)
        place = Path(shutil.copytree(folder, Path(name) / "index"))
        before = {file.name: file.read_bytes() for file in place.iterdir()}
        os.seteuid(65534)
        try:
            with open_index(place) as index:
                assert index.search(QUERY, 60)[0] == ranked(dict(enumerate(VALUES)))
                with pytest.raises(DistillHashError, match="cannot be used now"):
                    index.remove([0])
        finally:
            os.seteuid(0)
        assert {file.name: file.read_bytes() for file in place.iterdir()} == before
