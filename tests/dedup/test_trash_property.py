"""Apply, kill, rename, undo on trees of random names: contents and times are those of a plain dictionary, whatever happens between."""

import errno
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distillhash.dedup import moving
from distillhash.dedup.journal import JOURNAL, Move
from distillhash.dedup.trash import FOLDER_NAME, move, undo
from trash_factory import content, killed_at, snapshot, write

_odd = st.sampled_from(
    [*'ab. _-#%"<>:|?*\\\n\t\r\x01\x7f\x1b', "é", "写", "😀", "\u202e", "\u2028", "\udcff", "\udc80", "ß", "İ"]
)
_short = st.text(_odd, min_size=1, max_size=12)
_long = st.builds(lambda part, end: part * 255 + end, _short, st.sampled_from(["", ".jpg", ".PNG", ".", " "]))


def _fitted(name: str) -> str:
    """A name the disk takes: at most 255 bytes, and not hidden, so that it is no trash."""
    data = os.fsencode(name.replace("/", "").replace("\0", ""))[:255].lstrip(b".")
    return os.fsdecode(data) or "x"


_names = st.one_of(_short, _long, _short.map(lambda stem: f"{stem}.jpg")).map(_fitted)
_trees = st.dictionaries(
    st.lists(_names, min_size=1, max_size=3).map(tuple),
    st.tuples(st.sampled_from([b"", b"one", b"two" * 300, b"three"]), st.integers(0, 2**60)),
    min_size=2,
    max_size=8,
)
_kinds = st.sampled_from(["links", "rename", "check", "copy"])


def _run(tree: dict[tuple[str, ...], tuple[bytes, int]], kind: str, elsewhere: bool, steps: list[int]) -> None:
    """Move, be killed, go on under another name; at the end undo, and compare."""
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", f"{place}/data")
        real = os.link

        def link(source: str, target: str, **options: Any) -> None:
            if kind == "copy" and not source.endswith(".part"):
                raise OSError(errno.EXDEV, "Invalid cross-device link")
            if kind in ("rename", "check"):
                raise OSError(errno.EPERM, "Operation not permitted")
            real(source, target, **options)

        patch.setattr(os, "link", link)
        if kind == "check":
            patch.setattr(moving, "_rename_exclusively", lambda *places: False)
        root = Path(place, "c0")
        for parts, (data, time) in tree.items():
            if any(parts[: len(other)] == other for other in tree if other != parts):
                continue  # a file is no folder
            write(root.joinpath(*parts), data, time)
        before = snapshot(root)  # the dictionary that all is compared with
        for number, step in enumerate(steps):
            trash = Path(place, "bin") if elsewhere else root / FOLDER_NAME
            keepers: dict[bytes, str] = {}
            moves = []
            for name, (data, _) in snapshot(root).items():
                keeper = keepers.setdefault(data, name)
                if name != keeper:
                    moves.append(Move(str(root / name), content(data), str(root / keeper), 0))
            killed_at(step, lambda: move(moves, trash, root))  # noqa: B023
            root = root.rename(Path(place, f"c{number + 1}"))
            trash = Path(place, "bin") if elsewhere else root / FOLDER_NAME
            if step % 3 == 0 and (trash / JOURNAL).exists():
                killed_at(step // 3, lambda: undo(trash, root))  # noqa: B023
        trash = Path(place, "bin") if elsewhere else root / FOLDER_NAME
        if (trash / JOURNAL).exists():
            outcome = undo(trash, root)
            assert not outcome.left and not outcome.n_other and not outcome.n_gone
            assert not undo(trash, root).done
        assert snapshot(root) == before
        assert not [path for path in Path(place).rglob("*") if path.name.endswith(".part") and path.name[0] == "."]
        inside = list(trash.glob("*/*"))
        assert not inside
        shutil.rmtree(root)


_any = given(_trees, _kinds, st.booleans(), st.lists(st.integers(1, 60), min_size=1, max_size=3))
_quiet = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow], "database": None}


@settings(max_examples=25, derandomize=True, **_quiet)  # type: ignore[arg-type]
@_any
def test_a_tree_is_what_it_was(
    tree: dict[tuple[str, ...], tuple[bytes, int]], kind: str, elsewhere: bool, steps: list[int]
) -> None:
    _run(tree, kind, elsewhere, steps)


@pytest.mark.long
@settings(max_examples=400, **_quiet)  # type: ignore[arg-type]
@_any
def test_many_trees_are_what_they_were(
    tree: dict[tuple[str, ...], tuple[bytes, int]], kind: str, elsewhere: bool, steps: list[int]
) -> None:
    _run(tree, kind, elsewhere, steps)
