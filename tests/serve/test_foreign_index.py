"""An index from somebody else is served: its keys and metadata name whatever they like, and cause nothing."""

import contextlib
import json
import os
import secrets
import socket
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distillhash import Codes
from distillhash.cli import main
from distillhash.files import digest
from distillhash.index import open_index
from image_factory import make_jpeg, make_pixels, make_png
from serving import N_PHOTOS, in_thread, problem, running

ANY_DIGEST = bytes(range(16))


def add(index: Path, items: list[dict[str, Any]]) -> list[int]:
    """Ids of items with these keys, digests and metadata, written as a stranger writes them."""
    ids: list[int] = []
    with open_index(index) as opened:
        for item in items:
            code = Codes.from_packed(np.frombuffer(secrets.token_bytes(8), np.uint8)[None], 64)
            digests = [item["digest"]] if "digest" in item else None
            ids += opened.add(code, keys=[item["key"]], metadata=[item.get("metadata")], digests=digests).tolist()
    return ids


@pytest.fixture
def odd_paths(tmp_path: Path) -> Iterator[list[str]]:
    """Things that are no pictures: reading one takes for ever, or all memory, or fails."""
    pipe, sparse, link, folder = (tmp_path / name for name in ("pipe.jpg", "sparse.jpg", "zero.jpg", "folder.jpg"))
    os.mkfifo(pipe)
    with sparse.open("wb") as file:
        file.truncate(200 << 30)
    link.symlink_to("/dev/zero")
    folder.mkdir()
    with socket.socket(socket.AF_UNIX) as listener, contextlib.chdir(tmp_path):
        listener.bind("socket.jpg")
        listener.listen()
        yield [
            "/dev/zero", "/dev/random", "/dev/tty", "/dev/stdin", "/proc/kmsg", "/proc/self/pagemap", "/proc/self/mem",
            *map(str, (pipe, sparse, link, folder, tmp_path / "socket.jpg", tmp_path / ("n" * 300))),
            "/" + "a/" * 5000, "/nul\0byte", "/tmp/..", "/", "//", "/line\r\nset-cookie: a=b",
        ]  # fmt: skip


def test_what_is_no_regular_file_is_not_read(own_index: Path, photo_folder: Path, odd_paths: list[str]) -> None:
    ids = add(own_index, [{"key": key, "digest": ANY_DIGEST} for key in odd_paths])
    with (
        running(own_index, photo_folder, "--encoders", "1") as server,
        httpx.Client(base_url=server.url, timeout=10) as client,
    ):
        before = server.rss_mb()
        for identifier, key in zip(ids, odd_paths, strict=True):
            for what in ("image", "thumbnail"):
                answer = client.get(f"/items/{identifier}/{what}")
                problem(answer, 404)
                assert "set-cookie" not in answer.headers, key
            assert client.get(f"/items/{identifier}").status_code == 200
        assert client.post(f"/search?id={ids[0]}&k=100").status_code == 200
        assert client.get("/items/1/image").content == (photo_folder / "a/03.jpg").read_bytes()
        assert server.rss_mb() - before < 400  # a file of the largest size that is read, 256 MiB, was
        started = time.monotonic()
    assert time.monotonic() - started < 12


def test_a_picture_is_shown_only_with_its_digest(own_index: Path, tmp_path: Path) -> None:
    """A private picture, named by an index without digests, by one with another, and by a file of codes."""
    private = tmp_path / "private.jpg"
    private.write_bytes(make_jpeg(33, 22, seed=60))
    link = tmp_path / "link.jpg"
    link.symlink_to(private)
    codes = tmp_path / "codes.npz"
    Codes.from_packed(np.zeros((1, 8), np.uint8), 64).save(codes, keys=[str(private) + "/../private.jpg"])
    ids = add(
        own_index,
        [
            {"key": str(private)},
            {"key": str(link), "digest": ANY_DIGEST},
            {"key": f"//{private}", "digest": digest(b"")},
            {"key": f"/{private}", "digest": digest(private.read_bytes())},  # whoever knows this knows the picture
        ],
    )
    assert main(["index", str(codes), "--index", str(own_index), "--quiet"]) == 0
    with in_thread(own_index) as url, httpx.Client(base_url=url) as client:
        for identifier in (ids[0], ids[1], ids[2], max(ids) + 1):
            problem(client.get(f"/items/{identifier}/image"), 404)
            problem(client.get(f"/items/{identifier}/thumbnail"), 404)
        assert client.get(f"/items/{ids[0]}").json()["picture"] is False
        assert client.get(f"/items/{ids[0]}").json()["width"] is None
        assert client.get(f"/items/{ids[3]}/image").content == private.read_bytes()


def test_only_uploads_of_the_server_are_deleted(own_index: Path, tmp_path: Path) -> None:
    content = make_png(20, 20, seed=70)
    with in_thread(own_index) as url:
        kept = httpx.post(url + "items", files={"file": content}).json()["id"]
    uploads = own_index / "uploads"
    [upload] = uploads.iterdir()
    other = digest(b"other").hex()
    (uploads / other).write_bytes(b"something else under this name")
    folder, link = digest(b"folder").hex(), digest(content + b"2").hex()
    (uploads / folder).mkdir()
    (tmp_path / "linked").write_bytes(content + b"2")
    (uploads / link).symlink_to(tmp_path / "linked")
    victims = [own_index / "victim", own_index.parent / "victim", own_index / "items.sqlite", uploads / other]
    for victim in victims[:2]:
        victim.write_bytes(b"mine")
    ids = add(
        own_index,
        [
            {"key": key, "digest": bytes.fromhex(key[7:]) if key[7:] in (other, folder, link) else ANY_DIGEST}
            for key in (
                "upload:../victim", "upload:../../victim", f"upload:{tmp_path}/victim", "upload:../items.sqlite", "upload:",
                "upload:.", f"upload:{upload.name}/", f"upload:{upload.name.upper()}", f"UPLOAD:{upload.name}",
                f"upload:{other}", f"upload:{folder}", f"upload:{link}", f"upload:{'٣' * 32}",
            )
        ],
    )  # fmt: skip
    ids += add(own_index, [{"key": "upload:" + "0" * 32}])
    with open_index(
        own_index
    ) as index:  # a file of codes that names somebody's upload replaces the item, and its digest
        index.add(
            Codes.from_packed(np.zeros((1, 8), np.uint8), 64),
            keys=[f"upload:{upload.name}"],
            digests=[digest(np.zeros(8, np.uint8))],
            upsert=True,
        )
    with in_thread(own_index) as url, httpx.Client(base_url=url) as client:
        for identifier in [*ids, kept]:
            problem(client.get(f"/items/{identifier}/image"), 404)
            assert client.delete(f"/items/{identifier}").status_code == 204
        assert all(victim.exists() for victim in victims) and upload.read_bytes() == content
        assert (uploads / folder).is_dir() and (uploads / link).is_symlink() and (tmp_path / "linked").exists()
        (uploads / digest(content + b"3").hex()).mkdir()  # where an upload would go
        problem(client.post("/items", files={"file": content + b"3"}), 503)
        again = client.post("/items", files={"file": content}).json()["id"]
        assert client.delete(f"/items/{again}").status_code == 204
        assert not upload.exists()


def test_uploads_do_not_go_through_a_link(own_index: Path, tmp_path: Path) -> None:
    """Neither into a folder elsewhere, nor out of it, nor are they deleted there."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    content = make_png(20, 20, seed=71)
    mine = elsewhere / digest(content).hex()
    mine.write_bytes(content)
    (own_index / "uploads").symlink_to(elsewhere)
    [identifier] = add(own_index, [{"key": f"upload:{mine.name}", "digest": digest(content)}])
    with in_thread(own_index) as url, httpx.Client(base_url=url) as client:
        assert "is a link" in problem(client.post("/items", files={"file": make_png(20, 20, seed=72)}), 503)
        problem(client.get(f"/items/{identifier}/image"), 404)
        assert client.delete(f"/items/{identifier}").status_code == 204
    assert list(elsewhere.iterdir()) == [mine]


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """Where every download would go: a listener that notes who asks."""
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def note() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    asked.append(connection.recv(1000))
                    connection.close()

        threading.Thread(target=note, daemon=True).start()
        for name in ("http_proxy", "https_proxy", "HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{listener.getsockname()[1]}")
        monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
        yield asked


def test_no_source_is_opened_that_fetches_or_never_ends(
    own_index: Path, tmp_path: Path, no_network: list[bytes]
) -> None:
    empty, batches, many = tmp_path / "empty", tmp_path / "batches", tmp_path / "many"
    for folder in (empty, batches / "cifar-10-batches-py", many / "deep"):
        folder.mkdir(parents=True)
    (many / "loop").symlink_to(many)
    for number in range(10_001):
        (many / "deep" / f"{number}.jpg").touch()
    pq.write_table(pa.table({"image": [b"x"]}), many / "z.parquet")
    pipes = tmp_path / "pipes"
    pipes.mkdir()
    os.mkfifo(pipes / "train.parquet")
    os.mkfifo(pipes / "test.parquet")
    os.mkfifo(tmp_path / "pipe.parquet")
    half = tmp_path / "half"
    half.mkdir()
    os.mkfifo(half / "data_batch_1")
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 nothing of that kind PAR1")
    (tmp_path / "object.npy").write_bytes(
        b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,)}" + b" " * 60
    )
    with (tmp_path / "huge.npy").open("wb") as file:  # numbers that a source of vectors would convert, 100 GB of them
        np.lib.format.write_array_header_1_0(file, {"descr": "<i8", "fortran_order": False, "shape": (100 << 20, 128)})
        file.truncate(file.tell() + (100 << 30))
    (tmp_path / "list.txt").write_text(str(tmp_path / "pipe.parquet"))
    sources = [
        f"cifar10:{empty}", f"cifar10:{tmp_path / 'new'}", f"cifar10:{batches}", f"cifar10:{pipes}", f"cifar10:{half}", "cifar10:",
        "cifar10:~nobody-of-this-name", "flickr25k:/", "nuswide:/", "hf:facebook/dinov2-base", "https://example.org/a.parquet",
        "http://127.0.0.1/a.npy", "s3://bucket/a.parquet", "ftp://example.org/a.npz", "file:///etc/passwd", "digits:/etc", "/",
        str(many), str(pipes), str(tmp_path / "pipe.parquet"), "/dev/zero", str(tmp_path / "damaged.parquet"),
        str(tmp_path / "object.npy"), str(tmp_path / "huge.npy"), str(tmp_path / "list.txt"), str(tmp_path / "gone.npz"),
        "", ".", "a" * 100_000, "#" * 500, "/*/*/*/*/*/*.tar", "/gone.tar", "/{0..99999}.tar", "/dev/zero/x.tar",
    ]  # fmt: skip
    ids = add(
        own_index,
        [
            {
                "key": f"{source.removesuffix(':')}:{row}/0",
                "digest": ANY_DIGEST,
                "metadata": {"source": source, "key": f"{row}/0"},
            }
            for row, source in enumerate(sources)
        ]
        + [
            {"key": f"odd {number}", "digest": ANY_DIGEST, "metadata": metadata}
            for number, metadata in enumerate(
                ({"source": 1, "key": 2}, {"source": ["digits:"], "key": "x"}, {"source": "digits:"})
            )
        ],
    )
    with in_thread(own_index) as url, httpx.Client(base_url=url, timeout=20) as client:
        started = time.monotonic()
        for identifier in ids:
            problem(client.get(f"/items/{identifier}/image"), 404)
        assert time.monotonic() - started < 30
        assert len(client.get("/items?sample=500").json()["items"]) == N_PHOTOS + len(ids)
    assert no_network == []
    assert list(empty.iterdir()) == [] and not (tmp_path / "new").exists()


def test_rows_of_local_tables_and_arrays_are_shown(own_index: Path, tmp_path: Path) -> None:
    """What may be opened still is: Parquet files and folders, tar files, arrays, the digits."""
    images = [make_png(24, 18, seed=90 + row) for row in range(3)]
    pixels = np.stack([make_pixels(20, 20, row) for row in range(4)])
    table, folder, array = tmp_path / "t.parquet", tmp_path / "folder", tmp_path / "pixels.npy"
    folder.mkdir()
    pq.write_table(pa.table({"image": images, "key": ["a", "b", "7"]}), table)
    for part in range(3):
        pq.write_table(pa.table({"image": [images[part]]}), folder / f"part{part}.parquet")
    np.save(array, pixels)
    (tmp_path / "b.png").write_bytes(images[1])
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        tar.add(tmp_path / "b.png", "b.png")
    ids = add(
        own_index,
        [
            {"key": f"{source}:{key}", "digest": content, "metadata": {"source": str(source), "key": key}}
            for source, key, content in (
                (table, "7", digest(images[2])),
                (folder, "1", digest(images[1])),
                (array, "3", digest(pixels[3])),
                (tmp_path / "0.tar", "b.png", digest(images[1])),
                (tmp_path / "*.tar", "0.tar/b.png", digest(images[1])),
            )
        ],
    )
    with in_thread(own_index) as url, httpx.Client(base_url=url) as client:
        for identifier, content in zip(ids[:2], (images[2], images[1]), strict=True):
            assert client.get(f"/items/{identifier}/image").content == content
        assert client.get(f"/items/{ids[2]}/image").headers["content-type"] == "image/png"
        assert [client.get(f"/items/{identifier}/image").content for identifier in ids[3:]] == [images[1]] * 2


def test_metadata_that_json_holds_is_shown(own_index: Path) -> None:
    """Numbers of any size, half characters, control characters, nesting: an answer, and valid JSON."""
    deep: Any = "x"
    for _ in range(300):
        deep = [deep]
    odd = [
        {"n": 2**70},
        {"s": "\ud800"},
        {"s": "a\x1b[31m\r\nb\u202e"},
        {"deep": deep},
        {"name": "x" * 100_000},
        {"name": "\ud800.jpg"},
    ]
    ids = add(own_index, [{"key": f"odd {number}", "metadata": metadata} for number, metadata in enumerate(odd)])
    with in_thread(own_index) as url, httpx.Client(base_url=url) as client:
        for identifier, metadata in zip(ids, odd, strict=True):
            answer = client.get(f"/items/{identifier}")
            assert answer.status_code == 200
            assert json.loads(answer.text)["metadata"] == metadata
        answer = client.post(f"/search?id={ids[0]}&k=100")
        assert answer.status_code == 200 and len(json.loads(answer.text)["results"]) == N_PHOTOS + len(odd)
