"""Tar files as sources, sound and hostile. What is expected is known to whoever packed the file, or is what ``tarfile`` reads."""

from __future__ import annotations

import io
import logging
import subprocess
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import image_factory as factory
from distillhash.errors import DataError, ParameterError
from distillhash.sources import BadItemError, ImageSource, open_source

PNG = factory.make_png(8, 6)


def images(spec: object) -> ImageSource:
    source = open_source(spec)  # type: ignore[arg-type]  # paths
    assert isinstance(source, ImageSource)
    return source


def pack(path: Path, files: Sequence[tuple[str | tarfile.TarInfo, bytes]], form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for about, data in files:
            info = tarfile.TarInfo(about) if isinstance(about, str) else about
            info.size = info.size or len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def webdataset(path: Path, first: int, n: int, classes: bool = True) -> Path:
    files = []
    for number in range(first, first + n):
        files += [(f"{number:06}.json", b"{}"), (f"{number:06}.png", factory.make_png(8, 6, number))]
        files += [(f"{number:06}.cls", str(number % 3).encode()), (f"{number:06}.txt", b"words")] if classes else []
    return pack(path, files)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_images_are_read_as_tarfile_reads_them(tmp_path: Path, form: int) -> None:
    names = ["a.png", "b.jpg", "deep/er/c.PNG", f"{'x' * 90}/{'y' * 60}.png", ".hidden/d.png", "._a.png", "notes.txt"]
    names += [] if form == tarfile.USTAR_FORMAT else [f"{'long/' * 80}e.png", "ü 写真.png"]
    path = pack(tmp_path / "x.tar", [(name, factory.make_png(8, 6, row)) for row, name in enumerate(names)], form)
    source = images(path)
    with tarfile.open(path) as tar:
        wanted = [
            name
            for name in tar.getnames()
            if name.lower().endswith(("png", "jpg")) and "." not in (name[0], name.split("/")[0][0])
        ]
        assert list(source.keys) == wanted and len(wanted) == len(names) - 3
        for row, name in enumerate(wanted):
            file = tar.extractfile(name)
            assert file is not None and source.read(row) == file.read()
    assert source.path(0) is None and source.labels is None
    part = source.select(np.array([2, 0])).select(np.array([1]))
    assert part.read(0) == source.read(0) and list(part.keys) == ["a.png"]


def test_gnu_tar_writes_what_is_read(tmp_path: Path, photos: Path) -> None:
    subprocess.run(["tar", "-cf", tmp_path / "x.tar", "--sort=name", "-C", photos, "."], check=True)
    source, folder = images(tmp_path / "x.tar"), images(photos)
    assert list(source.keys) == list(folder.keys)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(source.read, range(24))) == [folder.read(row) for row in range(24)]


def test_many_files_are_one_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(12):
        webdataset(tmp_path / f"{number:02}.tar", 3 * number, 3)
    whole = images(tmp_path / "*.tar")
    assert [key.split("/") for key in whole.keys[:4:3]] == [["00.tar", "000000.png"], ["01.tar", "000003.png"]]
    assert whole.labels is not None and whole.labels.tolist() == [number % 3 for number in range(36)]
    assert [whole.read(row) for row in range(36)] == [factory.make_png(8, 6, row) for row in range(36)]
    monkeypatch.chdir(tmp_path)
    for spec, numbers in {
        "{00..11}.tar": range(12), "{11..09}.tar": [11, 10, 9], "{8..10}.tar": [10], "{0..1}[12].tar": [1, 2, 11], "0?.tar#6:9": [2],
    }.items():  # fmt: skip
        if spec.startswith("{8"):
            with pytest.raises(DataError, match=r"there is no .*/8.tar"):
                open_source(spec)
            continue
        source = images(spec)
        assert source.name == f"{tmp_path}/{spec}"
        assert list(source.keys) == [
            f"{row // 3:02}.tar/{row:06}.png" for n in numbers for row in range(3 * n, 3 * n + 3)
        ]
    with pytest.raises(ParameterError, match="more than 100,000 files"):
        open_source("{0..999}{0..999}.tar")
    with pytest.raises(DataError, match=r"there is no .*; check the pattern"):
        open_source("x*.tar")


def test_classes_are_labels_where_all_images_have_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = [("a.png", PNG), ("a.cls", b"cat\n"), ("b.cls", b"dog"), ("b.left.png", PNG), ("b.right.png", PNG)]
    source = images(pack(tmp_path / "x.tar", files))
    assert list(source.keys) == ["a.png", "b.left.png", "b.right.png"]
    assert source.labels is not None and source.labels.tolist() == [0, 1, 1]
    assert source.label_names == ["cat", "dog"]
    with caplog.at_level(logging.WARNING):
        assert images(pack(tmp_path / "y.tar", [*files, ("c.png", PNG)])).labels is None
    assert "3 of 4 images have a .cls; the labels are ignored" in caplog.text


def read_all(source: ImageSource) -> list[bytes | str]:
    found: list[bytes | str] = []
    for row in range(len(source)):
        try:
            found.append(bytes(source.read(row)))
        except BadItemError as error:
            found.append(str(error))
    return found


def test_what_is_no_plain_file_is_skipped_with_a_reason(tmp_path: Path) -> None:
    members: list[tuple[str | tarfile.TarInfo, bytes]] = [("a.png", PNG)]
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE):
        info = tarfile.TarInfo(f"{kind.decode()}.png")
        info.type, info.linkname = kind, "/etc/passwd"
        members.append((info, b""))
    pack(tmp_path / "x.tar", [*members, ("../../e.png", PNG), ("/f.png", PNG), ("g.png", b"")])
    source = images(tmp_path / "x.tar")
    reasons = [
        f"it is a {kind} in the tar file, which is not followed"
        for kind in ("symbolic link", "hard link", "pipe", "device")
    ]
    assert read_all(source) == [PNG, *reasons, PNG, PNG, "the file is empty"]
    assert list(source.keys) == ["a.png", "2.png", "1.png", "6.png", "3.png", "../../e.png", "f.png", "g.png"]


def test_sparse_files_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    with (tmp_path / "s.png").open("wb") as file:
        for place in range(30):  # more holes than fit in one header
            file.seek(place << 20)
            file.write(b"x")
    (tmp_path / "z.png").write_bytes(PNG)
    for form in ("gnu", "posix"):
        path = tmp_path / f"{form}.tar"
        names = ["a.png", "s.png", "z.png"]
        subprocess.run(["tar", "-cSf", path, f"--format={form}", "-C", tmp_path, *names], check=True)
        source = images(path)
        assert list(source.keys) == names
        assert read_all(source) == [
            PNG,
            "it is stored as a sparse file, which is not read; pack it without --sparse",
            PNG,
        ]


def test_a_file_that_is_cut_gives_what_is_whole(tmp_path: Path) -> None:
    whole = webdataset(tmp_path / "x.tar", 0, 4, classes=False).read_bytes()
    cut = tmp_path / "cut.tar"
    for end in range(0, len(whole), 199):
        cut.write_bytes(whole[:end])
        try:
            found = read_all(images(cut))
        except DataError as error:
            assert end < 1024 + 512 + 512, error  # the header of the first image
            continue
        # Each file takes a header and a block; the image is the second of its two.
        n_whole = sum(2048 * row + 1536 + len(factory.make_png(8, 6, row)) <= end for row in range(4))
        assert found[:n_whole] == [factory.make_png(8, 6, row) for row in range(n_whole)]
        assert all(
            "cut.tar ends within it" in str(r) or "what follows was not read" in str(r) or "ends early" in str(r)
            for r in found[n_whole:]
        )
        assert len(found) - n_whole <= 2


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("middle", "n_after"),
    [
        (header("b.png", 1 << 60), 0),  # longer than the file
        (header("b.png", -512), 0),  # back to itself
        (header("x", 1 << 40, tarfile.XHDTYPE), 0),  # a header without end
        (header("x", 1 << 40, tarfile.GNUTYPE_LONGNAME), 0),
        (b"".join(header("x", 0, tarfile.XHDTYPE) for _ in range(5000)), 1),  # headers of headers
        (header("x", 30, tarfile.XHDTYPE) + b"30 size=99999999999999999999\n".ljust(512, b"\0"), 1),
        (header("x", 12, tarfile.XHDTYPE) + b"12 size=-99\n".ljust(512, b"\0"), 1),
        (header("x", 9, tarfile.XHDTYPE) + b"0 path=x\n".ljust(512, b"\0"), 1),
        (header("b.png", 0, tarfile.GNUTYPE_SPARSE)[:482] + b"\1" + bytes(29), 0),
        (b"\xff" * 512, 0),
    ],
)  # fmt: skip
def test_hostile_headers(tmp_path: Path, middle: bytes, n_after: int) -> None:
    first = header("a.png", len(PNG)) + PNG.ljust(-(-len(PNG) // 512) * 512, b"\0")
    (tmp_path / "x.tar").write_bytes(first + middle + header("c.png", len(PNG)) + PNG.ljust(1024, b"\0") + bytes(1024))
    source = images(tmp_path / "x.tar")
    found = read_all(source)
    assert found[0] == PNG and found.count(PNG) == 1 + n_after
    source.max_file_size = 10
    assert str(read_all(source)[0]).startswith("the image has")


def test_files_that_are_none_or_packed(tmp_path: Path) -> None:
    webdataset(tmp_path / "x.tar", 0, 2)
    subprocess.run(["gzip", "-k", tmp_path / "x.tar"], check=True)
    (tmp_path / "y.tar").write_bytes((tmp_path / "x.tar.gz").read_bytes())
    for name in ("x.tar.gz", "y.tar"):
        with pytest.raises(DataError, match=r"compressed.* cannot be read by seeking"):
            open_source(tmp_path / name)
    (tmp_path / "z.tar").write_bytes(b"no archive" * 200)
    with pytest.raises(DataError, match="is no tar file"):
        open_source(tmp_path / "z.tar")
    with pytest.raises(DataError, match="holds no images"):
        open_source(pack(tmp_path / "t.tar", [("a.txt", b"x")]))
    with pytest.raises(DataError, match="cannot be read"):
        (tmp_path / "d.tar").mkdir()
        open_source(tmp_path / "[d].tar")
    with pytest.raises(ParameterError, match="--image-column 'x' is for tables"):
        open_source(tmp_path / "x.tar", image_column="x")
    source = images(tmp_path / "x.tar")
    (tmp_path / "x.tar").unlink()
    with pytest.raises(BadItemError, match=r"x.tar cannot be read: No such file"):
        source.read(0)
