"""What an item is, and what becomes of it when its source changes: against a plain dictionary, with files whose codes are their digests."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from distillhash import Codes
from distillhash.errors import DataError, ParameterError
from distillhash.files import digest
from distillhash.index import Index, open_index, sync
from distillhash.models import Encoded
from distillhash.search import Searcher, origin_of
from distillhash.sources import BadItemError, EmbeddingSource, Skipped, open_source

N_BITS = 32


def code_of(content: bytes) -> Codes:
    return Codes.from_packed(np.frombuffer(digest(content)[:4], np.uint8)[None], N_BITS)


class DigestModel:
    """In the place of a model: an item's code is the start of its digest, so that items need not be pictures."""

    def encode_batches(self, source: Any, *, known: Any, **_: Any) -> Iterator[Encoded]:
        for start in range(0, len(source), 3):
            rows, digests, skipped = [], [], []
            for row in range(start, min(start + 3, len(source))):
                try:
                    vectors = isinstance(source, EmbeddingSource)
                    content = source.vectors[row].tobytes() if vectors else bytes(source.read(row))
                    rows.append(row)
                    digests.append(digest(content))
                except BadItemError as error:
                    skipped.append(Skipped(source.keys[row], str(error)))
            is_known = np.array(known([source.keys[row] for row in rows], digests), bool)
            new = [place for place in range(len(rows)) if not is_known[place]]
            packed = np.array([list(digests[place][:4]) for place in new], np.uint8).reshape(-1, 4)
            yield Encoded(
                Codes.from_packed(packed, N_BITS), np.array([rows[place] for place in new], np.intp), np.zeros((0, 0), np.float32),
                skipped, [digests[place] for place in new], np.array(rows, np.intp)[is_known],
            )  # fmt: skip


def opened(index: Index) -> Searcher:
    return Searcher(index, DigestModel())  # type: ignore[arg-type]  # all that adding asks of a model


@pytest.fixture
def index() -> Iterator[Index]:
    with open_index("memory://", n_bits=N_BITS) as made:
        yield made


def add(index: Index, source: Any, **options: Any) -> dict[str, int]:
    """What happened, without zeros."""
    counts = opened(index).add(source if isinstance(source, np.ndarray) else str(source), **options)._asdict()
    counts["skipped"] = len(counts["skipped"])
    return {name: number for name, number in counts.items() if number}


def add_codes(index: Index, path: Path, **options: Any) -> dict[str, int]:
    counts = Searcher(index).add_codes(str(path), **options)._asdict()
    return {name: number for name, number in counts.items() if number}


def items(index: Index) -> dict[str, int]:
    """Id of every key."""
    return {str(item.key): item.id for item in index.get(index.ids().tolist())}


def fill(folder: Path, **contents: str) -> None:
    """Files ``name.jpg``; two underscores stand for a slash."""
    for name, content in contents.items():
        file = folder / f"{name.replace('__', '/')}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)


# Any sequence of changes


FOLDERS = ("", "a/", "a/b/", "c/")
PATHS = st.sampled_from([f"{folder}{name}.jpg" for folder in FOLDERS for name in ("x", "X", "y")])
CONTENTS = st.sampled_from([b"one", b"two", b"three", b"four", b"five"])


class FolderMachine(RuleBasedStateMachine):
    """A tree of files that somebody edits, renames and deletes, and now and then brings into an index, whole or in part."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp()).resolve()
        for folder in FOLDERS:
            (self.root / folder).mkdir(exist_ok=True)
        self.files: dict[str, bytes] = {}
        self.stored: dict[int, tuple[str, bytes]] = {}
        self.index = open_index("memory://", n_bits=N_BITS)

    def teardown(self) -> None:
        self.index.close()
        shutil.rmtree(self.root)

    @rule(path=PATHS, content=CONTENTS)
    def write(self, path: str, content: bytes) -> None:
        (self.root / path).write_bytes(content)
        self.files[path] = content

    @precondition(lambda self: self.files)
    @rule(data=st.data(), to=PATHS)
    def rename(self, data: st.DataObject, to: str) -> None:
        path = data.draw(st.sampled_from(sorted(self.files)))
        (self.root / path).rename(self.root / to)
        self.files[to] = self.files.pop(path)

    @precondition(lambda self: len(self.files) > 1)
    @rule(data=st.data())
    def exchange(self, data: st.DataObject) -> None:
        one, other = data.draw(st.permutations(sorted(self.files)))[:2]
        for source, to in ((one, "t"), (other, one), ("t", other)):
            (self.root / source).rename(self.root / to)
        self.files[one], self.files[other] = self.files[other], self.files[one]

    @precondition(lambda self: self.files)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(sorted(self.files)))
        (self.root / path).unlink()
        del self.files[path]

    @rule(folder=st.sampled_from(FOLDERS), prune=st.booleans(), spelling=st.sampled_from(["", "c/../", "./"]))
    def bring_in(self, folder: str, prune: bool, spelling: str) -> None:
        source = f"{self.root}/{spelling}{folder}"
        here = {path: content for path, content in self.files.items() if path.startswith(folder)}
        if not here:
            with pytest.raises(DataError, match="nothing usable"):
                opened(self.index).add(source, prune=prune)
            return
        before = {identifier: item for identifier, item in self.stored.items() if item[0].startswith(folder)}
        others = {identifier: item for identifier, item in self.stored.items() if identifier not in before}
        counts = opened(self.index).add(source, prune=prune)
        found = {
            item.id: (os.path.relpath(str(item.key), self.root), item.digest)
            for item in self.index.get(self.index.ids().tolist())
        }
        assert {identifier: found.pop(identifier)[0] for identifier in others} == {
            i: path for i, (path, _) in others.items()
        }

        same = {i for i, (path, content) in before.items() if here.get(path) == content}
        assert all(found[i][0] == before[i][0] for i in same)
        new = {path: content for path, content in here.items() if path not in {before[i][0] for i in same}}
        lost = {i: item for i, item in before.items() if i not in same}
        id_of = {path: i for i, (path, _) in found.items()}
        followed = {path for path, content in new.items() if lost.get(id_of[path], ("", b""))[1] == content}
        have, want = Counter(content for _, content in lost.values()), Counter(new.values())
        assert Counter(new[path] for path in followed) == have & want  # every id that can follow its content does
        taken = {id_of[path] for path in followed}
        kept = {path for path in new if lost.get(id_of[path], ("",))[0] == path and id_of[path] not in taken}
        free = {path: i for i, (path, _) in lost.items() if i not in taken}
        assert kept == {path for path in new.keys() - followed if path in free}  # else it stays with the name
        fresh = new.keys() - followed - kept
        assert all(id_of[path] not in self.stored for path in fresh)
        gone = {i for path, i in free.items() if path not in here}

        self.stored = others | {id_of[path]: (path, content) for path, content in here.items()}
        if not prune:
            self.stored |= {i: before[i] for i in gone}
        assert {i: item[0] for i, item in found.items()} == {
            i: p for i, (p, _) in self.stored.items() if i not in others
        }
        assert (counts.added, counts.updated, counts.unchanged) == (len(fresh), len(kept), len(same))
        assert (counts.renamed, counts.skipped) == (len(followed), [])
        overwritten = free.keys() & followed  # another file has the name now
        assert (counts.gone, counts.pruned - len(overwritten)) == ((0, len(gone)) if prune else (len(gone), 0))

    @invariant()
    def searches(self) -> None:
        assert len(self.index) == len(self.stored)
        for content in (b"one", b"two"):
            near = self.index.range_search(code_of(content), 0)[0]
            assert near == [(i, 0) for i, (_, own) in sorted(self.stored.items()) if own == content]


TestFolder = FolderMachine.TestCase
TestFolder.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


# Renames, one by one


@pytest.mark.parametrize("prune", [False, True])
@pytest.mark.parametrize(
    ("after", "ids", "counts"),
    [
        ({"b": "A"}, {"b": 0}, {"renamed": 1}),
        ({"sub__a": "A"}, {"sub/a": 0}, {"renamed": 1}),
        ({"A": "A"}, {"A": 0}, {"renamed": 1}),  # only its case
        ({"a": "A", "b": "A"}, {"a": 0, "b": 3}, {"unchanged": 3, "added": 1}),  # a copy
        ({"a": "new", "b": "A"}, {"a": 3, "b": 0}, {"renamed": 1, "added": 1}),  # its old name was taken
        ({"a": "N"}, {"a": 0}, {"updated": 1}),
    ],
)
def test_one_file_is_renamed(
    index: Index, tmp_path: Path, after: dict[str, str], ids: dict[str, int], counts: dict[str, int], prune: bool
) -> None:
    fill(tmp_path, a="A", n="n", m="m")
    assert add(index, tmp_path) == {"added": 3}
    (tmp_path / "a.jpg").unlink()
    fill(tmp_path, **after)
    assert add(index, tmp_path, prune=prune) == {"unchanged": 2, **counts}
    assert items(index) == {f"{tmp_path}/{name}.jpg": i for name, i in {"m": 1, "n": 2, **ids}.items()}
    for name, i in ids.items():
        item = index.get([i])[0]
        assert item.metadata == {"source": str(tmp_path), "key": f"{name}.jpg"}
        assert item.code == code_of((tmp_path / f"{name}.jpg").read_bytes())
    assert add(index, tmp_path, prune=True) == {"unchanged": 2 + len(ids)}


def test_names_are_exchanged_in_a_ring(index: Index, tmp_path: Path) -> None:
    fill(tmp_path, a="A", b="B", c="C")
    add(index, tmp_path)
    fill(tmp_path, a="C", b="A", c="B")
    assert add(index, tmp_path) == {"renamed": 3}
    assert items(index) == {f"{tmp_path}/{name}.jpg": i for name, i in {"a": 2, "b": 0, "c": 1}.items()}


def test_a_file_is_moved_over_another_one(index: Index, tmp_path: Path) -> None:
    fill(tmp_path, a="A", b="B")
    add(index, tmp_path)
    (tmp_path / "b.jpg").rename(tmp_path / "a.jpg")
    assert add(index, tmp_path) == {"renamed": 1, "pruned": 1}
    assert items(index) == {f"{tmp_path}/a.jpg": 1}


def test_what_was_stored_with_an_item_stays_when_it_is_renamed(index: Index, tmp_path: Path) -> None:
    fill(tmp_path, a="A")
    add(index, tmp_path)
    (item,) = index.get([0])
    facts = {**(item.metadata or {}), "title": "a walk"}
    index.add(item.code, [0], [facts], keys=[str(item.key)], digests=[item.digest or b""], upsert=True)
    (tmp_path / "a.jpg").rename(tmp_path / "b.jpg")
    assert add(index, tmp_path) == {"renamed": 1}
    assert index.get([0])[0].metadata == {"source": str(tmp_path), "key": "b.jpg", "title": "a walk"}


def test_many_changes_at_once_are_made_in_parts(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync, "_MOST_DEFERRED", 4)
    fill(tmp_path, **{f"f{number:02}": f"{number}" for number in range(30)})
    add(index, tmp_path)
    fill(tmp_path, **{f"f{number:02}": f"new {number}" for number in range(30)})
    assert add(index, tmp_path) == {"updated": 30}
    assert sorted(items(index).values()) == list(range(30))


# What is gone


@pytest.mark.parametrize("kind", ["list", "npy", "npz", "parquet"])
def test_what_left_a_source(index: Index, tmp_path: Path, kind: str) -> None:
    names = ["a", "b", "c", "d"]
    file = tmp_path / f"source.{'txt' if kind == 'list' else kind}"

    def write(chosen: list[str]) -> None:
        vectors = np.array([[ord(name), 1] for name in chosen], np.float32)
        if kind == "list":
            fill(tmp_path, **{name: name for name in names})
            file.write_text("".join(f"{name}.jpg\n" for name in chosen))
        elif kind == "npy":
            np.save(file, vectors)
        elif kind == "npz":
            np.savez(file, features=vectors, keys=np.array(chosen))
        else:
            import pyarrow as pa
            import pyarrow.parquet as pq

            pq.write_table(pa.table({"key": chosen, "embedding": list(vectors)}), file)

    write(names)
    assert add(index, file) == {"added": 4}
    write(["a", "c", "d"])
    if kind == "npy":  # a row has the number that another one had
        assert add(index, file) == {"renamed": 2, "unchanged": 1, "pruned": 1}
    else:
        assert add(index, file) == {"unchanged": 3, "gone": 1}
        assert len(index) == 4
        assert add(index, file, prune=True) == {"unchanged": 3, "pruned": 1}
    assert sorted(items(index).values()) == [0, 2, 3]
    with pytest.raises(ParameterError, match="a part of a source"):
        add(index, f"{file}#0:2", prune=True)
    assert add(index, f"{file}#0:2") == {"unchanged": 2}  # says nothing about the rest


def test_a_folder_in_a_folder(index: Index, tmp_path: Path) -> None:
    fill(tmp_path / "photos", a="A", sub__b="B", sub__c="C", subway__d="D")
    photos, sub = tmp_path / "photos", tmp_path / "photos" / "sub"
    assert add(index, photos) == {"added": 4}
    assert add(index, sub, prune=True) == {"unchanged": 2}
    for name in ("a", "sub/b", "subway/d"):
        (photos / f"{name}.jpg").unlink()
    assert add(index, sub, prune=True) == {"unchanged": 1, "pruned": 1}
    assert len(index) == 3
    fill(tmp_path / "photos", sub__b="B")
    assert add(index, sub) == {"unchanged": 1, "added": 1}
    assert add(index, photos) == {"unchanged": 2, "gone": 2}
    assert add(index, photos, prune=True) == {"unchanged": 2, "pruned": 2}


@pytest.mark.parametrize("first", ["photos", "list"])
def test_what_two_sources_hold_stays_until_both_have_lost_it(index: Index, tmp_path: Path, first: str) -> None:
    photos, names = tmp_path / "photos", tmp_path / "list.txt"
    fill(photos, a="A", b="B", c="C")
    names.write_text("photos/a.jpg\nphotos/b.jpg\n")
    for source in (photos, names) if first == "photos" else (names, photos):
        add(index, source)
    names.write_text("photos/a.jpg\n")
    assert add(index, names, prune=True) == {"unchanged": 1}
    assert len(index) == 3
    fill(photos, b="B2")
    assert add(index, names, prune=True) == {"unchanged": 1}
    assert add(index, photos, prune=True) == {"unchanged": 2, "updated": 1}
    (photos / "a.jpg").unlink()
    assert add(index, photos, prune=True) == {"unchanged": 2, "pruned": 1}  # there is no such file any more


def test_other_items_are_never_pruned(index: Index, tmp_path: Path) -> None:
    fill(tmp_path / "photos", a="A", b="B")
    fill(tmp_path / "photos2", a="A2")
    np.save(tmp_path / "photos" / "x.npy", np.eye(3, dtype=np.float32))
    for source in ("photos", "photos2", "photos/x.npy"):
        add(index, tmp_path / source)
    own = index.add(code_of(b"mine"), keys=[f"{tmp_path}/other/mine.jpg"], metadata=[{"title": "mine"}]).tolist()
    for name in ("photos/a.jpg", "photos2/a.jpg", "photos/x.npy"):
        (tmp_path / name).unlink()
    assert add(index, tmp_path / "photos", prune=True) == {"unchanged": 1, "pruned": 1}
    assert set(items(index).values()) == {1, 2, 3, 4, 5, *own}


def test_a_disk_that_is_away_loses_nothing(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos, disk = tmp_path / "photos", tmp_path / "disk"
    fill(photos, a="A", sub__b="B")
    fill(disk, c="C", deep__d="D")
    (photos / "link").symlink_to(disk)
    assert add(index, photos) == {"added": 4}
    disk.rename(tmp_path / "away")
    assert add(index, photos, prune=True) == {"unchanged": 2}
    (tmp_path / "away").rename(disk)
    assert add(index, photos, prune=True) == {"unchanged": 4}

    scan = os.scandir

    def refuse(path: Any) -> Any:
        if Path(path).name == "sub":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    with monkeypatch.context() as patch, pytest.warns(UserWarning, match="cannot be listed"):
        patch.setattr(os, "scandir", refuse)
        assert add(index, photos, prune=True) == {"unchanged": 3}
    (photos / "a.jpg").unlink()
    (photos / "a.jpg").symlink_to(tmp_path / "nowhere.jpg")  # cannot be read
    assert add(index, photos, prune=True) == {"unchanged": 3, "skipped": 1, "pruned": 1}
    for place in (photos, disk):
        shutil.rmtree(place)
    photos.mkdir()
    for _ in range(2):
        with pytest.raises(DataError):
            add(index, photos, prune=True)
        photos.rmdir() if photos.exists() else None
    assert len(index) == 3


def test_a_file_that_cannot_be_read_is_not_gone(index: Index, tmp_path: Path) -> None:
    fill(tmp_path, a="A", b="B")
    add(index, tmp_path)
    (tmp_path / "a.jpg").write_bytes(b"")
    assert add(index, tmp_path, prune=True) == {"unchanged": 1, "skipped": 1}
    assert len(index) == 2


def test_what_a_link_does_not_reach_any_more(index: Index, tmp_path: Path) -> None:
    photos, others = tmp_path / "photos", tmp_path / "others"
    fill(photos, a="A")
    fill(others, b="B", c="C")
    (photos / "link").symlink_to(others)
    add(index, photos)
    (others / "c.jpg").unlink()
    assert add(index, photos, prune=True) == {"unchanged": 2, "pruned": 1}
    (photos / "link").unlink()
    assert add(index, photos, prune=True) == {"unchanged": 1, "pruned": 1}


# One file is one item


def test_a_file_is_one_item_under_every_spelling(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "photos", a="A", sub__b="B")
    fill(tmp_path / "other", c="C")
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    (tmp_path / "photos" / "again.jpg").symlink_to("a.jpg")
    (tmp_path / "photos" / "up").symlink_to(tmp_path / "photos" / "sub")
    (tmp_path / "names.txt").write_text(
        f"photos/a.jpg\n./photos//a.jpg\n{tmp_path}/link/sub/../a.jpg\nphotos/sub/b.jpg\n"
    )
    monkeypatch.chdir(tmp_path)
    assert add(index, "photos") == {"added": 2}
    for source in ("./photos/", tmp_path / "photos", "link", "photos/sub/..", "names.txt", "photos/../link"):
        counts = add(index, source)
        assert counts.keys() == {"unchanged"} and counts["unchanged"] <= 2
    monkeypatch.chdir(tmp_path / "photos")
    assert add(index, ".") == {"unchanged": 2}
    assert add(index, "a.jpg") == {"unchanged": 1}
    assert opened(index).add(["a.jpg", Path("sub/b.jpg")])[:3] == (0, 0, 2)
    assert items(index) == {f"{tmp_path.resolve()}/photos/{name}.jpg": i for name, i in {"a": 0, "sub/b": 1}.items()}


def test_rows_of_different_files_are_different_items(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        np.save(tmp_path / place / "x.npy", vectors if place == "a" else -vectors)
        monkeypatch.chdir(tmp_path / place)
        assert add(index, "x.npy") == {"added": 4}
    (tmp_path / "c.npy").symlink_to("a/x.npy")
    for source in ("../a/x.npy", tmp_path / "c.npy", "../b/../a/x.npy#:2", "x.npy#1:"):
        assert add(index, source).keys() == {"unchanged"}
    assert items(index).keys() == {f"{tmp_path}/{place}/x.npy:{row}" for place in "ab" for row in range(4)}


def test_arrays_in_memory_never_replace_each_other(index: Index) -> None:
    one, other = np.random.default_rng(0).normal(size=(2, 4, 5)).astype(np.float32)
    assert add(index, one) == {"added": 4}
    assert add(index, other) == {"added": 4}
    assert add(index, one.copy()) == {"unchanged": 4}
    for pixels in np.random.default_rng(0).integers(0, 256, (2, 3, 4, 4, 3), np.uint8):
        assert opened(index).add(open_source(pixels))[:3] == (3, 0, 0)
        assert opened(index).add(pixels.copy())[:3] == (0, 0, 3)
    assert opened(index).add(open_source(other))[:3] == (0, 0, 4)
    assert len(index) == 14


def test_names_in_any_bytes_and_signs(index: Index, tmp_path: Path) -> None:
    folder = tmp_path / "a#1:2 %_'\""
    folder.mkdir()
    for name in (b"caf\xe9.jpg", b"new\nline.jpg", "ö\u202e.jpg".encode()):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(name)
    assert add(index, folder) == {"added": 3}
    assert add(index, folder, prune=True) == {"unchanged": 3}
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.jpg")).rename(os.fsdecode(os.fsencode(folder) + b"/caf\xe8.jpg"))
    assert add(index, folder, prune=True) == {"unchanged": 2, "renamed": 1}


# Codes


def codes_like(name: str, n: int) -> Codes:
    return Codes.concatenate([code_of(f"{name} {row}".encode()) for row in range(n)], N_BITS)


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_codes_of_rows(index: Index, tmp_path: Path, suffix: str) -> None:
    for name in ("one", "two"):
        np.save(tmp_path / f"{name}.npy", np.random.default_rng(len(name)).normal(size=(5, 3)).astype(np.float32))
        origin = origin_of(open_source(str(tmp_path / f"{name}.npy")))
        codes_like(name, 5).save(tmp_path / f"{name}{suffix}", keys=list("01234"), origin=origin)
        assert add_codes(index, tmp_path / f"{name}{suffix}") == {"added": 5}
    assert add_codes(index, tmp_path / f"one{suffix}") == {"unchanged": 5}
    origin = origin_of(open_source(f"{tmp_path}/two.npy#2:4"))
    part = codes_like("two", 5)[2:4]
    part.save(tmp_path / f"part{suffix}", keys=["2", "3"], origin=origin)  # of the same rows
    assert add_codes(index, tmp_path / f"part{suffix}") == {"unchanged": 2}
    with pytest.raises(ParameterError, match="a part of a source"):
        add_codes(index, tmp_path / f"part{suffix}", prune=True)
    codes_like("new", 4).save(
        tmp_path / f"again{suffix}", keys=list("0123"), origin=origin_of(open_source(f"{tmp_path}/two.npy"))
    )
    assert add_codes(index, tmp_path / f"again{suffix}") == {"updated": 4, "gone": 1}
    assert add_codes(index, tmp_path / f"again{suffix}", prune=True) == {"unchanged": 4, "pruned": 1}
    assert len(index) == 9


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
@pytest.mark.parametrize("keys", [None, list("012")])
def test_codes_of_rows_of_nothing_known(index: Index, tmp_path: Path, suffix: str, keys: list[str] | None) -> None:
    """Files of version 0.1 do not tell what was encoded."""
    for name in ("one", "two"):
        codes_like(name, 3).save(tmp_path / f"{name}{suffix}", keys=keys)
        assert add_codes(index, tmp_path / f"{name}{suffix}") == {"added": 3}
        assert add_codes(index, tmp_path / f"{name}{suffix}") == {"unchanged": 3}
    codes_like("three", 3).save(tmp_path / f"two{suffix}", keys=keys)
    assert add_codes(index, tmp_path / f"two{suffix}") == {"updated": 3}
    assert len(index) == 6


def test_codes_with_names(index: Index, tmp_path: Path) -> None:
    codes_like("one", 4).save(tmp_path / "one.npz", keys=list("abcd"))
    codes_like("one", 4)[2:].save(tmp_path / "same.npz", keys=list("cd"))
    codes_like("two", 3).save(tmp_path / "two.npz", keys=list("xyd"))
    assert add_codes(index, tmp_path / "one.npz") == {"added": 4}
    assert add_codes(index, tmp_path / "same.npz") == {"unchanged": 2}
    for _ in range(2):
        with pytest.raises(
            DataError, match=r"key 'd' of codes of .*two.npz is .* from codes of .*one.npz; .*--replace"
        ):
            add_codes(index, tmp_path / "two.npz")
        assert len(index) == 4
    assert add_codes(index, tmp_path / "two.npz", replace=True) == {"added": 2, "updated": 1}
    assert items(index) == {"a": 0, "b": 1, "c": 2, "d": 3, "x": 4, "y": 5}
    codes_like("one", 2).save(tmp_path / "one.npz", keys=list("ab"))
    assert add_codes(index, tmp_path / "one.npz", prune=True) == {
        "unchanged": 2
    }  # c is in same.npz as well, d was taken
    assert len(index) == 6
    codes_like("one", 4)[3:].save(tmp_path / "same.npz", keys=["z"])
    assert add_codes(index, tmp_path / "same.npz", prune=True) == {"added": 1, "pruned": 1}
    assert items(index).keys() == set("abdxyz")


def test_equal_codes_are_not_a_rename(index: Index, tmp_path: Path) -> None:
    codes_like("one", 1).save(tmp_path / "c.npz", keys=["a"])
    add_codes(index, tmp_path / "c.npz")
    codes_like("one", 1).save(tmp_path / "c.npz", keys=["b"])
    assert add_codes(index, tmp_path / "c.npz", prune=True) == {"added": 1, "pruned": 1}


@pytest.mark.parametrize("key", ["upload:../../x", "upload:", "upload:" + 32 * "0"])
def test_no_key_in_codes_looks_like_an_upload(index: Index, tmp_path: Path, key: str) -> None:
    codes_like("one", 2).save(tmp_path / "c.npz", keys=["a", key])
    with pytest.raises(DataError, match="looks like an upload"):
        add_codes(index, tmp_path / "c.npz")
    assert len(index) == 0


@pytest.mark.parametrize(
    "origin",
    ["", "{", "[]", "null", '"x"', '{"source": 3}', '{"evil": 1}', "[" * 100_000, '{"source": "x", "has_names": 1}'],
)
def test_an_origin_that_says_nothing(index: Index, tmp_path: Path, origin: str) -> None:
    codes_like("one", 2).save(tmp_path / "c.npz", keys=["a", "0"], origin=origin)
    assert add_codes(index, tmp_path / "c.npz") == {"added": 2}
    assert items(index) == {"a": 0, "0": 1}


def test_codes_never_pass_for_the_source_itself(index: Index, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.eye(3, dtype=np.float32))
    add(index, tmp_path / "x.npy")
    origin = json.dumps({"source": str(tmp_path / "x.npy"), "has_names": False, "is_part": False})
    codes_like("evil", 1).save(tmp_path / "c.npz", keys=["0"], origin=origin)
    assert add_codes(index, tmp_path / "c.npz", prune=True) == {"added": 1}
    assert add(index, tmp_path / "x.npy", prune=True) == {"unchanged": 3}


# Indexes of version 0.1


def test_an_index_of_an_earlier_version(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "photos", a="A", b="B", c="C")
    (tmp_path / "link").symlink_to("photos")
    np.save(tmp_path / "x.npy", np.eye(3, dtype=np.float32))
    monkeypatch.chdir(tmp_path)
    old = {f"{tmp_path}/link/{name}.jpg": ("link", f"{name}.jpg", name.upper().encode()) for name in "ab"}
    old[f"{tmp_path}/photos/c.jpg"] = "photos", "c.jpg", b"C"
    old |= {f"x.npy:{row}": ("x.npy#:2", str(row), np.eye(3, dtype=np.float32)[row].tobytes()) for row in range(2)}
    index.add(
        Codes.concatenate([code_of(content) for *_, content in old.values()], N_BITS),
        keys=list(old),
        metadata=[{"source": source, "key": key} for source, key, _ in old.values()],
        digests=[digest(content) for *_, content in old.values()],
    )
    codes_like("one", 2).save(tmp_path / "c.npz", keys=["0", "1"])
    index.add(codes_like("one", 2), keys=["0", "1"], digests=[digest(code) for code in codes_like("one", 2).packed])
    assert add(index, "link", prune=True) == {"unchanged": 3}
    assert add(index, "x.npy") == {"unchanged": 2, "added": 1}
    assert add_codes(index, tmp_path / "c.npz") == {"unchanged": 2}
    paths = [f"{tmp_path}/photos/{name}.jpg" for name in "abc"]
    rows = [f"{tmp_path}/x.npy:0", f"{tmp_path}/x.npy:1", f"codes:{tmp_path}/c.npz:0", f"codes:{tmp_path}/c.npz:1"]
    assert items(index) == {key: i for i, key in enumerate([*paths, *rows, f"{tmp_path}/x.npy:2"])}
    assert add(index, "photos", prune=True) == {"unchanged": 3}
    (tmp_path / "other").mkdir()
    np.save(tmp_path / "other" / "x.npy", -np.eye(3, dtype=np.float32))
    monkeypatch.chdir(tmp_path / "other")
    assert add(index, "x.npy") == {"added": 3}
