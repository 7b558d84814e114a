"""Undo as a way back: renamed and copied collections, odd names, file systems without links, errors on single entries."""

import errno
import json
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from distillhash.dedup.journal import JOURNAL, Move
from distillhash.dedup.trash import FOLDER_NAME, move, undo
from distillhash.errors import DataError
from trash_factory import TIME, content, entries, killed_at, make_files, make_trash, old_line, snapshot, write


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A collection: two keepers and five copies in three folders."""
    root = tmp_path / "usb1"
    for name in ("a.jpg", "cats/a.jpg", "cats/old/a (1).jpg", "a copy.jpg"):
        write(root / name, b"a" * 2000)
    for name in ("b.png", "cats/b.png", "b"):
        write(root / name, b"b" * 10)
    return root


def moves_of(root: Path) -> list[Move]:
    """Every file but the keepers, which are the first by length of the path in each content."""
    groups: dict[bytes, list[str]] = {}
    for name, (data, _) in sorted(snapshot(root).items(), key=lambda item: (len(item[0]), item[0])):
        groups.setdefault(data, []).append(name)
    return [
        Move(str(root / name), content(data), str(root / names[0]), 0)
        for data, names in groups.items()
        for name in names[1:]
    ]


@pytest.fixture(
    params=[
        "links",
        "rename",
        "copy",
        *(pytest.param(kind, marks=pytest.mark.long) for kind in ("numbers", "check", "copy, rename", "disk")),
    ]
)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the file systems can: hard links, exclusive renames, neither; two disks; two without links; really two disks."""
    kind: str = request.param
    if kind in ("links", "disk"):
        return kind
    if kind == "numbers":  # a file has another number under each of its names, as in some file systems in user space
        monkeypatch.setattr(os.path, "samestat", lambda a, b: False)
        return kind
    real, codes = os.link, iter([errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL] * 1000)

    def link(source: str, target: str, **options: Any) -> None:
        if kind.startswith("copy") and not source.endswith(".part"):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        if kind == "copy":
            real(source, target, **options)
        else:
            raise OSError(next(codes), "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    if kind == "check":
        monkeypatch.setattr("distillhash.dedup.moving._rename_exclusively", lambda *places: False)
    return kind


@pytest.fixture
def trash(tmp_path: Path, root: Path, kind: str) -> Iterator[Path]:
    """The default trash, or one on another disk."""
    if kind != "disk":
        yield root / FOLDER_NAME
        return
    shared = Path("/dev/shm")
    if not shared.is_dir() or shared.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system at /dev/shm")
    place = shared / f"distillhash-test-{os.getpid()}"
    yield place
    shutil.rmtree(place, ignore_errors=True)


def nothing_partial(*folders: Path) -> bool:
    return not [path for folder in folders for path in folder.rglob("*.part")]


def test_there_and_back_on_every_kind_of_disk(root: Path, trash: Path) -> None:
    Path(root / "a copy.jpg").chmod(0o640)
    before, moves = snapshot(root), moves_of(root)
    outcome = move(moves, trash, root)
    assert len(outcome.done) == 4 + 1 and not outcome.left
    assert set(snapshot(root)) == {"b", "a.jpg"}
    write(root / "cats" / "a.jpg", b"newer")
    outcome = undo(trash, root)
    assert len(outcome.done) == 4 and [path for path, _ in outcome.left] == [str(root / "cats" / "a.jpg")]
    assert snapshot(root) == before | {"cats/a.jpg": (b"newer", TIME)}
    (root / "cats" / "a.jpg").unlink()
    assert undo(trash, root).done == [str(root / "cats" / "a.jpg")]
    assert snapshot(root) == before and (root / "a copy.jpg").stat().st_mode & 0o777 == 0o640
    assert nothing_partial(root, trash) and not list(trash.rglob("*.jpg"))


@pytest.mark.parametrize("n", [1, pytest.param(5, marks=pytest.mark.long)])
def test_killed_anywhere_on_every_kind_of_disk(root: Path, trash: Path, n: int) -> None:
    before, moves, step, more = snapshot(root), moves_of(root)[:n], 0, True
    while more:
        step += 1
        more = killed_at(step, lambda: move(moves, trash, root))
        killed_at(step + 3, lambda: undo(trash, root))
        if (trash / JOURNAL).exists():
            undo(trash, root)
        assert snapshot(root) == before and nothing_partial(root, trash), step
        assert len(move(moves, trash, root).done) == n
        more |= killed_at(step, lambda: undo(trash, root))
        undo(trash, root)
        assert snapshot(root) == before and nothing_partial(root, trash), step
    assert step > 4 + n


def test_times_that_the_trash_cannot_hold(root: Path, trash: Path, kind: str) -> None:
    before = snapshot(root)
    move(moves_of(root), trash, root)
    if kind not in ("copy", "copy, rename", "disk"):
        return  # the file itself moves, and its time with it
    for path in trash.glob("0001/*"):
        os.utime(path, (TIME // 10**9 // 2 * 2, TIME // 10**9 // 2 * 2))  # FAT counts in steps of two seconds
    undo(trash, root)
    assert snapshot(root) == before


def renamed(root: Path, new: Path) -> None:
    root.rename(new)


def copied(root: Path, new: Path) -> None:
    shutil.copytree(root, new, symlinks=True)


def parent_renamed(root: Path, new: Path) -> None:
    new.parent.mkdir()
    root.rename(new)


@pytest.mark.parametrize(
    ("change", "new"),
    [(renamed, "usb2"), (copied, "usb2"), (parent_renamed, "media/x/../usb1"), (renamed, "deeper name/with spaces")],
)
@pytest.mark.parametrize("old", [False, True])
def test_a_collection_is_restored_where_it_is_now(
    tmp_path: Path, root: Path, change: Callable[[Path, Path], None], new: str, old: bool
) -> None:
    before = snapshot(root)
    move(moves_of(root), root / FOLDER_NAME, root)
    if old:  # what versions before relative paths wrote
        journal = root / FOLDER_NAME / JOURNAL
        lines = [{name: entry[name] for name in Move.__annotations__} | entry for entry in entries(root / FOLDER_NAME)]
        for line in lines:
            line["path"], line["keeper"] = str(root / line["path"]), str(root / line["keeper"])
            del line["root"], line["up"]
        journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    without = snapshot(root)
    target = Path(os.path.normpath(tmp_path / new))
    target.parent.mkdir(exist_ok=True) if change is not parent_renamed else None
    change(root, target)
    (tmp_path / "media" / "x").mkdir(parents=True, exist_ok=True)
    spelled = tmp_path / new
    outcome = undo(spelled / FOLDER_NAME, spelled)
    assert not outcome.left and sorted(outcome.done) == sorted(str(target / name) for name in before.keys() - without)
    assert outcome.collections == {str(target)} and snapshot(target) == before
    assert not root.exists() or snapshot(root) == without


def test_a_trash_elsewhere_and_a_renamed_collection(tmp_path: Path, root: Path) -> None:
    before, trash = snapshot(root), tmp_path / "bin"
    move(moves_of(root), trash, root)
    root.rename(tmp_path / "usb2")
    outcome = undo(trash)
    assert len(outcome.left) == 5 and "SOURCE --undo --trash" in outcome.left[0][1] and not outcome.done
    assert not root.exists()
    root.mkdir()  # a place for a disk that is not mounted
    assert len(undo(trash).left) == 5 and not list(root.iterdir())
    write(root / "another disk.jpg", b"x")
    assert len(undo(trash).left) == 5 and len(list(root.iterdir())) == 1
    assert len(undo(trash, tmp_path / "usb2").done) == 5
    assert snapshot(tmp_path / "usb2") == before


def test_a_trash_elsewhere_knows_its_collections_apart(tmp_path: Path) -> None:
    before = {}
    for name in ("one", "two"):
        write(tmp_path / name / f"{name}.jpg", name.encode())
        write(tmp_path / name / "copy.jpg", name.encode())
        before[name] = snapshot(tmp_path / name)
        assert move(moves_of(tmp_path / name), tmp_path / "bin", tmp_path / name).done
    outcome = undo(tmp_path / "bin", tmp_path / "one")
    assert outcome.done == [str(tmp_path / "one" / "copy.jpg")] and outcome.n_other == 1 and not outcome.left
    assert snapshot(tmp_path / "one") == before["one"] and "copy.jpg" not in snapshot(tmp_path / "two")
    for name in ("one", "two"):
        move(moves_of(tmp_path / name), tmp_path / "bin", tmp_path / name)
        (tmp_path / name).rename(tmp_path / f"{name} moved")
    for name in ("one", "two"):
        outcome = undo(tmp_path / "bin", tmp_path / f"{name} moved")
        assert len(outcome.done) == 1 and not outcome.left
        assert snapshot(tmp_path / f"{name} moved") == before[name]


def test_a_sub_folder_and_its_own_trash(tmp_path: Path, root: Path) -> None:
    before = snapshot(root)
    move(moves_of(root), root / FOLDER_NAME, root)
    with pytest.raises(DataError, match=f"dedup {root} --undo`"):
        undo(root / "cats" / FOLDER_NAME, root / "cats")
    outcome = undo(root / FOLDER_NAME, root / "cats")
    assert len(outcome.done) == 3 and outcome.n_other == 2
    assert undo(root / FOLDER_NAME, root).done and snapshot(root) == before
    move(moves_of(root), root / FOLDER_NAME, root)  # a trash that was moved by hand
    (root / FOLDER_NAME).rename(tmp_path / "elsewhere")
    assert len(undo(tmp_path / "elsewhere", root).done) == 5 and snapshot(root) == before


NAMES = [
    "写" * 80 + "123.jpg",
    "a" * 251 + ".jpg",
    "é" * 127,
    'quo"te<>:|?*\\.png',
    "line\nend\r\x01\x1b[31m.png",
    "dots...",
    "space .jpg ",
    b"\xff\xfe\xed.jpg".decode("utf-8", "surrogateescape"),
    (b"\xff" * 250 + b".jpg").decode("utf-8", "surrogateescape"),
    "\u2028\u202e\x85.gif",
    "CON.jpg",
    "-rf",
    "x.part",
    JOURNAL,
    "no stem." + "e" * 200,
    "😀" * 60,
]


def test_any_name_goes_and_comes_back(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    write(root / "keeper.jpg", b"k")
    for number, name in enumerate(NAMES):
        write(root / f"folder{number}" / name, b"%d" % number)
    deep = root / "/".join(["d" * 250] * 15)
    write(deep / "long path.jpg", b"deep")
    before = snapshot(root)
    moves = [Move(str(root / name), content(data), str(root / "keeper.jpg"), 0) for name, (data, _) in before.items()]
    moves = [one for one in moves if one.path != one.keeper]
    outcome = move(moves, root / FOLDER_NAME, root)
    assert not outcome.left and len(outcome.done) == len(NAMES) + 1
    inside = [path.name for path in (root / FOLDER_NAME / "0001").iterdir()]
    assert len({name.lower() for name in inside}) == len(NAMES) + 1
    for name in inside:  # FAT, exFAT, SMB and encrypted folders take it, with a suffix while it is partial
        assert len(name) < 100 and name.isascii() and name.isprintable()
        assert not set('<>:"|?*\\/') & set(name) and name[-1] not in ". "
    (tmp_path / ("o" * 250)).mkdir()
    root = root.rename(
        tmp_path / ("o" * 250) / ("p" * 250)
    )  # paths longer than the system takes are reached all the same
    assert len(str(root)) + len(str(deep.relative_to(tmp_path))) > 4096
    assert not undo(root / FOLDER_NAME, root).left
    root.rename(tmp_path / "photos")
    assert snapshot(tmp_path / "photos") == before


def test_names_of_older_versions_that_fill_a_name(tmp_path: Path) -> None:
    root, names = tmp_path / "photos", [f"00000{n}-{'n' * (240 + n)}.jpg" for n in range(5)]
    write(root / "keeper.jpg", b"k")
    files = {name: name.encode() for name in names}
    lines = [old_line(root / name[7:], root / "keeper.jpg", f"0001/{name}", data) for name, data in files.items()]
    make_trash(root / FOLDER_NAME, *lines, **files)
    assert len(undo(root / FOLDER_NAME, root).done) == 5
    assert {name: data for name, (data, _) in snapshot(root).items()} == {"keeper.jpg": b"k"} | {
        name[7:]: data for name, data in files.items()
    }


DAMAGED = [
    b"{}\n",
    b"nonsense\n",
    b"[1, 2]\n",
    b"null\n",
    b"[" * 60000 + b"\n",
    b"x" * 200_000 + b"\n",
    b"\x00\xff\xfe\n",
    b'{"path": 3, "digest": "x"}\n',
    b"1" * 5000 + b"\n",
]


def test_damaged_lines_are_reported_and_the_others_go_on(root: Path) -> None:
    before, trash = snapshot(root), root / FOLDER_NAME
    move(moves_of(root), trash, root)
    good = (trash / JOURNAL).read_bytes().splitlines(keepends=True)
    entry = json.loads(good[0])
    wrong: list[dict[str, Any]] = [
        {"trash": "../../etc/passwd"}, {"trash": "/etc/passwd"}, {"trash": "0001"}, {"trash": "0001/.."},
        {"trash": "0001/a/b"}, {"trash": "0001/a\0b"}, {"trash": 1.5}, {"trash": None}, {"path": ""}, {"path": "../x"},
        {"path": "a/../../x"}, {"path": "a//b"}, {"path": "a\0b"}, {"path": "/"}, {"path": []}, {"size": "5"}, {"size": 1e9},
        {"size": True}, {"mtime_ns": None}, {"mtime_ns": "now"}, {"digest": "00"}, {"digest": "Z" * 32}, {"up": 0}, {"up": -1},
        {"up": 10**30}, {"up": 1.0}, {"root": 3, "up": None}, {"root": None, "up": None}, {"path": "\ud800"}, {"seal": "é"},
    ]  # fmt: skip
    bad = [*DAMAGED, *(json.dumps(entry | change).encode() + b"\n" for change in wrong)]
    lines = [line for pair in zip(bad, good + [b"\n"] * len(bad), strict=False) for line in pair]
    (trash / JOURNAL).write_bytes(b"".join(lines) + b'{"torn')
    write(root / "c.jpg", b"a" * 2000)
    assert move(moves_of(root), trash, root).done == [str(root / "c.jpg")]
    outcome = undo(trash, root)
    assert [place for place, _ in outcome.left] == [f"line {2 * n + 1} of its journal" for n in range(len(bad))]
    assert not [reason for _, reason in outcome.left if "__init__" in reason or "column" in reason]
    assert len(outcome.done) == 6 and snapshot(root) == before | {"c.jpg": (b"a" * 2000, TIME)}


@pytest.mark.parametrize("lost", [slice(1, 3), slice(0, None)])
def test_files_whose_lines_are_lost_are_named(root: Path, lost: slice) -> None:
    trash = root / FOLDER_NAME
    move(moves_of(root), trash, root)
    lines = (trash / JOURNAL).read_bytes().splitlines(keepends=True)
    places = {str(trash / json.loads(line)["trash"]) for line in lines[lost]}
    (trash / JOURNAL).write_bytes(b"".join(line for line in lines if line not in lines[lost]))
    write(trash / "2024" / "own.jpg", b"of somebody else")
    outcome = undo(trash, root)
    assert {place for place, _ in outcome.left} == places and len(outcome.done) == len(lines) - len(places)
    assert all("no line of the journal" in reason for _, reason in outcome.left)


def test_a_flood_of_damaged_lines_is_counted(root: Path) -> None:
    make_trash(root / FOLDER_NAME, b"x\n" * 5000)
    left = undo(root / FOLDER_NAME, root).left
    assert len(left) == 101 and "4,900 more lines" in left[-1][0]


def test_a_line_that_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    make_files(root)
    write(root / "x.jpg", b"x")
    keeper = str(root) + "/." * 17000 + "/keeper.jpg"
    outcome = move([Move(str(root / "x.jpg"), content(b"x"), keeper, 0)], root / FOLDER_NAME, root)
    assert not outcome.done and (root / "x.jpg").exists()


def test_one_entry_never_stops_the_others(tmp_path: Path, root: Path) -> None:
    before, trash = snapshot(root), root / FOLDER_NAME
    move(moves_of(root), trash, root)
    places = {entry["path"]: trash / entry["trash"] for entry in entries(trash)}
    shutil.rmtree(root / "cats")
    write(root / "cats", b"a file where a folder was")
    places["a copy.jpg"].unlink()
    places["a copy.jpg"].mkdir()
    write(places["b.png"], b"B" * 10)  # not what was moved
    outcome = undo(trash, root)
    reasons = {Path(path).relative_to(root).as_posix(): reason for path, reason in outcome.left}
    assert reasons.keys() == {"cats/a.jpg", "cats/old/a (1).jpg", "cats/b.png", "a copy.jpg", "b.png"}
    for name, part in {
        "cats/a.jpg": "a file or a link",
        "a copy.jpg": "folder, not a regular",
        "b.png": "not the one",
    }.items():
        assert part in reasons[name]
    (root / "cats").unlink()
    assert {Path(path).name for path in undo(trash, root).done} == {"a.jpg", "a (1).jpg", "b.png"}
    write(places["b.png"], b"b" * 10)
    assert undo(trash, root).done == [str(root / "b.png")]
    assert snapshot(root) == {name: value for name, value in before.items() if name != "a copy.jpg"}


def test_what_was_deleted_from_the_trash_is_no_error(root: Path) -> None:
    trash = root / FOLDER_NAME
    move(moves_of(root), trash, root)
    for entry in entries(trash)[:2]:
        (trash / entry["trash"]).unlink()
    outcome = undo(trash, root)
    assert len(outcome.done) == 3 and not outcome.left and outcome.n_gone == 2
    assert undo(trash, root).n_gone == 2
    shutil.rmtree(trash / "0001")
    assert undo(trash, root).n_gone == 2
    assert len(move(moves_of(root), trash, root).done) == 3 and len(undo(trash, root).done) == 3


def test_apply_after_a_partial_undo(root: Path) -> None:
    before, trash = snapshot(root), root / FOLDER_NAME
    for _ in range(3):
        move(moves_of(root), trash, root)
        killed_at(9, lambda: undo(trash, root))
    root.rename(root.with_name("other"))
    root = root.with_name("other")
    move(moves_of(root), root / FOLDER_NAME, root)
    undo(root / FOLDER_NAME, root)
    assert snapshot(root) == before


def test_a_full_disk_leaves_nothing(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.link

    def link(source: str, target: str, **options: Any) -> None:
        if not source.endswith(".part"):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        real(source, target, **options)

    monkeypatch.setattr(os, "link", link)
    before, trash, moves = snapshot(root), tmp_path / "bin", moves_of(root)
    monkeypatch.setattr(signal, "SIGXFSZ", signal.SIGXFSZ)
    held, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1999, limits[1]))  # the copies have 2,000 bytes
        outcome = move(moves, trash, root)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, held)
    assert {Path(path).name for path, _ in outcome.left} >= {"a copy.jpg", "a (1).jpg"}
    assert nothing_partial(root, tmp_path)
    assert move(moves, trash, root).done
    assert len(undo(trash, root).done) == 5 and snapshot(root) == before


def test_an_error_while_copying_leaves_nothing(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(source: str, target: str, **options: Any) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    before, trash = snapshot(root), tmp_path / "bin"
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", link)  # the copy cannot get its name
        outcome = move(moves_of(root), trash, root)
    assert len(outcome.left) == 5 and nothing_partial(trash) and snapshot(root) == before
    monkeypatch.setattr("shutil.copystat", _refuse)
    monkeypatch.setattr(os, "fchmod", _refuse)  # exFAT without permissions
    monkeypatch.setattr(os, "fsync", _not_known)  # some FUSE
    monkeypatch.setattr("fcntl.flock", _no_locks)  # SMB, NFS without a lock daemon
    outcome = move(moves_of(root), trash, root)
    assert len(outcome.done) == 5 and "cannot be locked" in outcome.notes[0]
    assert undo(trash, root).done and snapshot(root) == before


def _refuse(*arguments: object, **options: object) -> None:
    raise PermissionError(errno.EPERM, "Operation not permitted")


def _not_known(handle: int) -> None:
    raise OSError(errno.EINVAL, "Invalid argument")


def _no_locks(*arguments: object) -> None:
    raise OSError(errno.ENOLCK, "No locks available")


def test_what_cannot_be_removed_stays_where_it_was(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, trash = snapshot(root), tmp_path / "bin"
    real = os.remove

    def remove(name: str, **options: Any) -> None:
        if not name[:1].isdigit():
            raise OSError(errno.EROFS, "Read-only file system")
        real(name, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "remove", remove)  # a collection that cannot be written
        assert len(move(moves_of(root), trash, root).left) == 5
    assert snapshot(root) == before and not list(trash.rglob("*.*g"))
    move(moves_of(root), trash, root)
    with monkeypatch.context() as patch:
        patch.setattr(os, "remove", lambda name, **_: remove("x"))  # a trash that cannot be written
        outcome = undo(trash, root)
        again = undo(trash, root)
    assert len(outcome.done) == 5 and "still in the trash" in outcome.notes[0]
    assert not again.done and not again.left and len(again.notes) == 5
    assert snapshot(root) == before
    assert not undo(trash, root).done and not list(trash.rglob("*.*g"))


@pytest.mark.parametrize(
    ("path", "keeper", "found"),
    [
        ("/old/usb/k.jpg copy", "/old/usb/k.jpg", "k.jpg copy"),
        ("/old/usb/new/deep/x.jpg", "/old/usb/cats/a.jpg", "new/deep/x.jpg"),
        ("/old/usb/cats/x.jpg", "/old/usb/deleted.jpg", "cats/x.jpg"),  # by its folder
        ("/old/usb/cats/x.jpg", "/reference/y.jpg", "cats/x.jpg"),
        ("{root}/../photos/cats/../x.jpg", "{root}/k.jpg", "x.jpg"),  # as `dedup ../photos` wrote it
        ("/old/usb/x.jpg", "/reference/y.jpg", None),  # nothing tells where it belongs
    ],
)
def test_absolute_lines_of_a_moved_collection(tmp_path: Path, path: str, keeper: str, found: str | None) -> None:
    root = tmp_path / "photos"
    write(root / "cats" / "a.jpg", b"a")
    write(root / "k.jpg", b"k")
    line = old_line(path.format(root=root), keeper.format(root=root), "0001/x", b"x")
    make_trash(root / FOLDER_NAME, line, b"\r\n", x=b"x")
    outcome = undo(root / FOLDER_NAME)
    assert outcome.done == ([] if found is None else [str(root / found)]) and len(outcome.left) == (found is None)
    again = undo(root / FOLDER_NAME, root)
    assert not again.done and again.n_gone == 0


def test_two_lines_of_one_file(root: Path) -> None:
    trash, lines = (
        root / FOLDER_NAME,
        [old_line(root / name, root / "b", "0001/x", b"x") for name in ("x1", "x2", "x2")],
    )
    make_trash(trash, *lines, x=b"x")
    outcome = undo(trash, root)
    assert outcome.done == [str(root / "x2")] and not outcome.left and not (root / "x1").exists()


def test_the_same_content_of_another_time_is_another_file(root: Path) -> None:
    trash = root / FOLDER_NAME
    move(moves_of(root), trash, root)
    write(root / "a copy.jpg", b"a" * 2000, TIME + 10**10)
    assert [path for path, _ in undo(trash, root).left] == [str(root / "a copy.jpg")]
    (root / "a copy.jpg").unlink()
    undo(trash, root)
    assert snapshot(root)["a copy.jpg"] == (b"a" * 2000, TIME)


def test_a_folder_or_a_link_to_nowhere_is_not_overwritten(root: Path) -> None:
    trash = root / FOLDER_NAME
    move(moves_of(root), trash, root)
    (root / "a copy.jpg").mkdir()
    (root / "b.png").symlink_to("nowhere")
    outcome = undo(trash, root)
    assert len(outcome.done) == 3 and all("another file" in reason for _, reason in outcome.left)
    assert (root / "a copy.jpg").is_dir() and (root / "b.png").is_symlink()


def test_the_root_of_all_files_as_a_collection(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(root)
    for collection in (Path("/"), Path()):
        monkeypatch.chdir(root)
        assert len(move(moves_of(root), tmp_path / "bin", collection).done) == 5
        monkeypatch.chdir(tmp_path)
        assert len(undo(tmp_path / "bin").done) == 5 and snapshot(root) == before


def test_more_files_than_fit_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distillhash.dedup.trash._FILES_IN_BATCH", 4)
    moves, _ = make_files(tmp_path / "photos", 10)
    before = snapshot(tmp_path / "photos")
    assert len(move(moves, tmp_path / "bin", tmp_path / "photos").done) == 10
    assert sorted(len(list(batch.iterdir())) for batch in (tmp_path / "bin").glob("0*")) == [2, 4, 4]
    assert len(undo(tmp_path / "bin").done) == 10 and snapshot(tmp_path / "photos") == before
