"""A mutation fuzzer over the files that this package reads: ``python fuzzing.py TARGET FIRST COUNT FOLDER``.

Round ``i`` of a target copies sound files, changes one of them as ``random.Random(f"{target} {i}")`` says, and uses the result. A round
ends in an answer or in a DistillHashError. The number of the round is written down before it begins, so whoever started the process knows
which one crashed or hangs. Files beside the folder of the round must not change.
"""

import contextlib
import io
import json
import os
import random
import resource
import shutil
import sqlite3
import struct
import sys
import tarfile
import time
import warnings
import zlib
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

LONGEST_SECONDS = 5.0
MOST_MB = 1000.0
Mutate = Callable[[Path, random.Random], None]

ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2, 255, 4097, 2**31, 2**63 - 1, 2**63, 2**70, -(2**63), 0.5, -0.0, 1e308, float("nan"), float("inf"), "",
    "x", "itq", "../outside/file", "/dev/zero", "a\0b", "\ud800", "9" * 400, "x" * 100_000, [], [[]], {}, {"a": []}, [None] * 50,
    ["x", 1], {"key": "upload:../../x"},
]  # fmt: skip
INTEGERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1]


def mutate_bytes(path: Path, rng: random.Random) -> None:
    """Flip, cut, repeat, insert or overwrite bytes."""
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        place = rng.randrange(len(data)) if data and rng.random() < 0.7 else rng.randrange(min(len(data), 128) + 1)
        size = rng.choice((1, 2, 4, 8, 64, 512))
        match rng.randrange(8):
            case 0 if place < len(data):
                data[place] ^= 1 << rng.randrange(8)
            case 1 if place < len(data):
                data[place] = rng.randrange(256)
            case 2:
                del data[place:]
            case 3:
                del data[place : place + size]
            case 4:
                data[place:place] = data[place : place + size]
            case 5:
                data[place:place] = rng.randbytes(size)
            case 6:
                width = rng.choice((1, 2, 4, 8))
                number = rng.choice(INTEGERS) % 2 ** (8 * width)
                data[place : place + width] = number.to_bytes(width, rng.choice(("little", "big")))
            case _:
                data[place : place + size] = bytes(size)
    path.write_bytes(data)


def mutate_value(value: Any, rng: random.Random) -> Any:
    """A JSON value with one part replaced, left out or added."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        kept = {name: part for name, part in value.items() if name != key or rng.random() < 0.9}
        if key in kept:
            kept[key] = mutate_value(kept[key], rng)
        return kept
    if isinstance(value, list) and value and rng.random() < 0.85:
        place = rng.randrange(len(value))
        if rng.random() < 0.2:
            return value[:place] + value[place + 1 :]
        return [*value[:place], mutate_value(value[place], rng), *value[place + 1 :]]
    return rng.choice(ODD)


def mutate_json(path: Path, rng: random.Random) -> None:
    """Change a value of a JSON file, or of one line of a file of them."""
    if rng.random() < 0.02:
        path.write_text("[" * 100_000)
        return
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    place = rng.randrange(len(lines))
    value = mutate_value(json.loads(lines[place]), rng)
    lines[place] = json.dumps(value).replace("NaN", rng.choice(("NaN", "null", "1e999")))
    path.write_text("\n".join(lines) + "\n")


def odd_array(array: Any, rng: random.Random) -> Any:
    """An array of another shape, dtype or content."""
    array = np.asarray(array)
    if array.dtype.kind in "US" or not array.size:
        return rng.choice([array[:-1] if array.ndim else array, np.arange(3), np.zeros((2, 2)), np.array(["a", "a"])])
    match rng.randrange(9):
        case 0:
            return array.reshape(-1)
        case 1:
            return array[..., :-1] if array.ndim and array.shape[-1] > 1 else array[None]
        case 2:
            return array[:0] if array.ndim else array
        case 3:
            return array.astype(rng.choice(["f2", "f4", "f8", "i1", "u1", "i4", "i8", "u8", "?"]))
        case 4 if array.dtype.kind == "f":
            return np.where(np.arange(array.size).reshape(array.shape) == rng.randrange(array.size), np.nan, array)
        case 5 if array.dtype.kind == "f":
            return np.full_like(array, rng.choice([0, 1e30, -1e30, np.inf]))
        case 6 if array.dtype.kind in "iu":
            info = np.iinfo(array.dtype)
            return np.full_like(array, rng.choice([info.min, info.max, 0, 1]))
        case 7:
            flat = array.reshape(-1).copy()
            order = np.array(rng.sample(range(len(flat)), len(flat)))
            return flat[order].reshape(array.shape)
        case _:
            flat = array.reshape(-1).copy()
            low, high = (0, 1) if array.dtype.kind == "b" else (0, 127) if array.dtype.kind == "u" else (-3, 127)
            flat[rng.randrange(len(flat))] = rng.randint(low, high)
            return flat.reshape(array.shape)


def mutate_npz(path: Path, rng: random.Random) -> None:
    """Change one array of an .npz file."""
    with np.load(path) as stored:
        arrays = dict(stored)
    name = rng.choice(sorted(arrays))
    if rng.random() < 0.15:
        del arrays[name]
    else:
        arrays[name] = odd_array(arrays[name], rng)
    np.savez(path, **arrays)


def mutate_tensors(path: Path, rng: random.Random) -> None:
    """Change one tensor of a safetensors file; its metadata stay."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    with safe_open(path, "numpy") as stored:
        about = stored.metadata()
        arrays = {key: stored.get_tensor(key) for key in sorted(stored.keys())}  # no dictionary
    name = rng.choice(sorted(arrays))
    if rng.random() < 0.1:
        del arrays[name]
    else:
        arrays[name] = np.ascontiguousarray(odd_array(arrays[name], rng))
    save_file(arrays, path, about)


def mutate_parquet(path: Path, rng: random.Random) -> None:
    """Give one column of a Parquet file other values."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    number, n = rng.randrange(table.num_columns), table.num_rows
    values: list[Any] = rng.choice(
        [[odd] * n for odd in (None, 3, "x", b"x", [1.0], [], [float("nan")], [float("inf")] * 3, {"bytes": b"x"}, True)]
    )  # fmt: skip
    if rng.random() < 0.3:
        kept = table.column(number).to_pylist()
        kept[rng.randrange(n)] = None
        column = pa.array(kept, table.column(number).type)
    else:
        column = pa.array(values)
    changed = table.set_column(number, table.column_names[number], column)
    if rng.random() < 0.2:
        about = {key: rng.choice([b"-1", b"", b"99999999999", b"1.5", b"{}"]) for key in table.schema.metadata or {}}
        changed = changed.replace_schema_metadata(about)
    pq.write_table(changed, path)


STATEMENTS = [
    "UPDATE items SET code = zeroblob(10000000) WHERE id = 3",
    "UPDATE items SET code = x'' WHERE id = 3",
    "UPDATE items SET code = 7",
    "UPDATE items SET key = x'ff00' WHERE id = 3",
    "UPDATE items SET key = 'upload:../../x' WHERE id = 3",
    "UPDATE items SET key = 5.5 WHERE id = 3",
    "UPDATE items SET digest = 'text'",
    "UPDATE items SET metadata = '[' WHERE id = 3",
    "UPDATE items SET metadata = '[1]'",
    "UPDATE items SET metadata = replace(hex(zeroblob(50000)), '0', '[')",
    "UPDATE items SET id = -5 WHERE id = 3",
    "UPDATE items SET id = 9223372036854775807 WHERE id = 3",
    "DELETE FROM items",
    "DELETE FROM items WHERE id % 2",
    "DROP TABLE items",
    "ALTER TABLE items RENAME TO things",
    "ALTER TABLE items ADD COLUMN extra DEFAULT (randomblob(1000))",
    "CREATE TRIGGER t AFTER INSERT ON items BEGIN DELETE FROM items; END",
    "CREATE VIEW v AS SELECT * FROM items",
    "PRAGMA user_version = 99",
    "PRAGMA application_id = 1",
    "CREATE TABLE items2 AS SELECT * FROM items; DROP TABLE items; ALTER TABLE items2 RENAME TO items",
    "CREATE TABLE old AS SELECT * FROM items; DROP TABLE items; CREATE VIEW items AS SELECT * FROM old",
]


def mutate_sql(path: Path, rng: random.Random) -> None:
    """Change rows or the schema of an SQLite file."""
    with contextlib.closing(sqlite3.connect(path)) as connection:  # one left open would keep its lock
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        statements = [*STATEMENTS]
        for table in tables:
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            statements += [f"DELETE FROM {table}", f"DROP TABLE {table}"]
            for column in columns:
                statements += [
                    f"UPDATE {table} SET {column} = {odd}"
                    for odd in ("NULL", "-1", "'x'", "x'00'", "1e300", "9223372036854775807")
                ]
        try:
            connection.executescript(rng.choice(statements))
            connection.commit()
        except sqlite3.Error:
            connection.rollback()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def mutate_csv(path: Path, rng: random.Random) -> None:
    """Change separators, quotes and line ends of a table of text."""
    text = path.read_text()
    old = rng.choice([",", "\n", '"', "image", "a", ".png"])
    new = rng.choice([",,", ";", "\t", "|", "\r", "\0", '"', "\n\n", "é", "x" * 200_000, ""])
    path.write_text(text.replace(old, new, rng.choice((1, 1, -1))))


def mutate_kind(path: Path, rng: random.Random) -> None:
    """Put something else in the place of a file: nothing, a folder, a link, a pipe, a device."""
    path.unlink()
    match rng.randrange(5):
        case 0:
            path.mkdir()
        case 1:
            path.symlink_to("/dev/zero")
        case 2:
            os.mkfifo(path)
        case 3:
            path.symlink_to(path.name)
        case _:
            pass


BY_SUFFIX: dict[str, list[Mutate]] = {
    ".json": [mutate_json],
    ".jsonl": [mutate_json],
    ".npz": [mutate_npz],
    ".safetensors": [mutate_tensors],
    ".clusters": [mutate_tensors],
    ".parquet": [mutate_parquet],
    ".sqlite": [mutate_sql],
    ".csv": [mutate_csv],
}


def mutate(folder: Path, rng: random.Random) -> None:
    """Change one file of a folder."""
    path = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    if rng.random() < 0.02:
        mutate_kind(path, rng)
        return
    ways = BY_SUFFIX.get(path.suffix, [])
    for _ in range(rng.choice((1, 1, 2))):
        way = rng.choice(ways) if ways and rng.random() < 0.6 else mutate_bytes
        try:
            way(path, rng)
        except Exception:  # what was changed already cannot be parsed again
            mutate_bytes(path, rng)


class Target:
    """Sound files, how to repair the checksums that an attacker would repair, and how the files are used."""

    def build(self, folder: Path) -> None:
        """Make the sound files."""
        raise NotImplementedError

    def repair(self, folder: Path) -> None:
        """Make checksums right again where that is possible."""

    def use(self, folder: Path) -> None:
        """Read what is there; any DistillHashError is an answer."""
        raise NotImplementedError


class ModelFolder(Target):
    """A model: config.json and model.safetensors, and the card and golden vectors of the hub."""

    methods = ("itq", "sh", "distillhash", "agh", "urph", "ssdh")

    def build(self, folder: Path) -> None:
        from distillhash import HashModel, make_hasher

        rng = np.random.default_rng(0)
        x = (rng.normal(size=(10, 16))[np.arange(200) % 10] + 0.6 * rng.normal(size=(200, 16))).astype(np.float32)
        for method in self.methods:
            network = method in ("distillhash", "urph", "ssdh")
            settings = {"epochs": 1} if network else {}
            model = HashModel(backbone="embeddings", hasher=make_hasher(method, 8, **settings))
            model.fit(x)
            model.save_pretrained(folder / method)

    def repair(self, folder: Path) -> None:
        for config in folder.glob("*/config.json"):
            fields = json.loads(config.read_text())
            data = (config.parent / "model.safetensors").read_bytes()
            fields["fingerprint"] = blake2b(data, digest_size=16).hexdigest()
            config.write_text(json.dumps(fields))

    def use(self, folder: Path) -> None:
        from distillhash import HashModel, load_hasher, load_model
        from distillhash.errors import DistillHashError

        x = np.random.default_rng(1).normal(size=(5, 16)).astype(np.float32)
        for place in sorted(folder.iterdir()):
            for load in (load_model, load_hasher, HashModel.from_pretrained):
                try:
                    codes = load(place).encode(x)
                except DistillHashError:
                    continue
                assert codes.packed.dtype == np.uint8 and len(codes) == 5


class IndexFolder(Target):
    """An index with a cache of its codes and clusters."""

    def build(self, folder: Path) -> None:
        from distillhash import Codes
        from distillhash.index import open_index

        signs = np.where(np.random.default_rng(0).random((400, 16)) < 0.5, -1, 1).astype(np.int8)
        with open_index(str(folder), n_bits=16, create=True) as index:
            keys = [f"/photos/{row}.png" for row in range(400)]
            digests = [blake2b(key.encode(), digest_size=16).digest() for key in keys]
            metadata = [{"source": "/photos", "key": f"{row}.png"} for row in range(400)]
            index.add(Codes.from_signs(signs), keys=keys, digests=digests, metadata=metadata)
            index.prepare()
            index.compact()

    def repair(self, folder: Path) -> None:
        manifest = folder / "manifest.json"
        fields = json.loads(manifest.read_text())
        held = json.dumps([fields["n_bits"], fields["model_fingerprint"]])
        fields["checksum"] = f"{zlib.crc32(held.encode()):08x}"
        manifest.write_text(json.dumps(fields))
        self._repair_cache(folder / "codes.cache")
        self._repair_clusters(folder / "codes.clusters")

    def _repair_cache(self, file: Path) -> None:
        from distillhash.index import embedded

        data = file.read_bytes()
        first, _, rest = data.partition(b"\n")
        sizes, _, _ = rest.partition(b"\n")
        text = rest[len(sizes) + 1 :][: int(sizes.split()[0], 16)]
        fields = json.loads(text)
        fields["checksum"] = zlib.crc32(data[embedded._HEADER_BYTES :])
        text = json.dumps(fields).encode()
        header = first + b"\n%08x %08x\n" % (len(text), zlib.crc32(text)) + text
        file.write_bytes(header.ljust(embedded._HEADER_BYTES, b"\0") + data[embedded._HEADER_BYTES :])

    def _repair_clusters(self, file: Path) -> None:
        from safetensors import safe_open
        from safetensors.numpy import save_file

        from distillhash.index import embedded

        with safe_open(file, "numpy") as stored:
            about = dict(stored.metadata() or {})
            arrays = {key: stored.get_tensor(key) for key in sorted(stored.keys())}
        about["checksum"] = str(embedded._crc_of_arrays(arrays))
        save_file(arrays, file, about)

    def use(self, folder: Path) -> None:
        from distillhash import Codes
        from distillhash.index import open_index

        queries = Codes.from_signs(np.where(np.random.default_rng(1).random((3, 16)) < 0.5, -1, 1).astype(np.int8))
        with open_index(str(folder)) as index:
            found = index.search(queries, 5)
            assert found.ids.shape[0] == 3
            index.range_search(queries, 3)
            identifiers = [identifier for identifier, _ in found[0]]
            if identifiers:
                index.get(identifiers)
            index.known(["/photos/3.png"])
            index.search(queries, 2, where="id < 100")
            len(index)


class CodesFiles(Target):
    """Codes that encode wrote."""

    def build(self, folder: Path) -> None:
        from distillhash import Codes

        signs = np.where(np.random.default_rng(0).random((40, 12)) < 0.5, -1, 1).astype(np.int8)
        for name in ("codes.npz", "codes.parquet"):
            Codes.from_signs(signs).save(folder / name, keys=[f"k{row}" for row in range(40)])

    def use(self, folder: Path) -> None:
        from distillhash import Codes
        from distillhash.errors import DistillHashError
        from distillhash.search import is_codes_file

        for name in ("codes.npz", "codes.parquet"):
            is_codes_file(str(folder / name))
            try:
                codes, keys = Codes.load(folder / name)
            except DistillHashError:
                continue
            assert keys is None or len(keys) == len(codes)
            pad = 8 * codes.packed.shape[1] - codes.n_bits
            assert not len(codes) or not (codes.packed[:, -1] & ((1 << pad) - 1)).any()


class Shards(Target):
    """Shards that encode wrote, to be joined."""

    def build(self, folder: Path) -> None:
        from distillhash.cli import main

        np.save(folder / "x.npy", np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32))
        model, x = str(folder / "m"), str(folder / "x.npy")
        assert main(["train", x, "--method", "lsh", "--bits", "12", "--out", model, "--quiet"]) == 0
        assert (
            main(["encode", x, "--model", model, "--shard", "all/3", "--out", str(folder / "shards"), "--quiet"]) == 0
        )
        shutil.rmtree(model)
        (folder / "x.npy").unlink()

    def use(self, folder: Path) -> None:
        from distillhash import Codes
        from distillhash.cli import main

        out = folder / "codes.npz"
        os.environ["DISTILLHASH_DEBUG"] = "1"  # no unforeseen error is an answer
        with contextlib.redirect_stderr(io.StringIO()):
            status = main(["merge", str(folder / "shards"), "--out", str(out), "--quiet"])
        if status == 0:
            codes, keys = Codes.load(out)
            assert len(codes) == len(keys or []) == 40


class Tar(Target):
    """Tar files of each format, with headers before headers."""

    def build(self, folder: Path) -> None:
        for name, form in (("pax", tarfile.PAX_FORMAT), ("gnu", tarfile.GNU_FORMAT)):
            with tarfile.open(folder / f"{name}.tar", "w", format=form) as tar:
                for member in ("a.png", "a.cls", "x" * 120 + "/ü.png", "c.png"):
                    info = tarfile.TarInfo(member)
                    info.size = 700
                    tar.addfile(info, io.BytesIO(b"1" * 700))

    def use(self, folder: Path) -> None:
        from distillhash.errors import DistillHashError
        from distillhash.sources import open_source

        for name in ("pax.tar", "gnu.tar", "*.tar"):
            try:
                source = open_source(str(folder / name))
            except DistillHashError:
                continue
            assert len(source) == len(set(source.keys)) > 0
            for row in range(len(source)):
                with contextlib.suppress(DistillHashError):
                    assert source.read(row)  # type: ignore[attr-defined]


class CacheFile(Target):
    """The cache of features."""

    def build(self, folder: Path) -> None:
        from distillhash.backbones import FeatureCache

        store = FeatureCache(folder).store("x", 8)
        store.put([bytes([row]) * 16 for row in range(50)], np.ones((50, 8), np.float32))
        store.close()
        connection = sqlite3.connect(next(folder.glob("*.sqlite")))
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()

    def use(self, folder: Path) -> None:
        from distillhash.backbones import FeatureCache

        store = FeatureCache(folder).store("x", 8)
        found = store.get([bytes([row]) * 16 for row in range(50)])
        assert all(row.shape == (8,) and row.dtype == np.float32 for row in found.values())
        store.put([b"y" * 16], np.zeros((1, 8), np.float32))
        store.close()


class Trash(Target):
    """The journal of moved files; the files must stay as they are or come back."""

    def build(self, folder: Path) -> None:
        from distillhash.dedup.trash import Move, move
        from distillhash.files import digest

        photos = folder / "photos"
        photos.mkdir(parents=True)
        moves = []
        for number in range(4):
            (photos / f"{number}.jpg").write_bytes(b"photo")
            if number:
                place = str(photos / f"{number}.jpg")
                moves.append(Move(place, digest(b"photo").hex(), str(photos / "0.jpg"), 0))
        move(moves, photos / ".distillhash-trash", photos)

    def use(self, folder: Path) -> None:
        from distillhash.dedup.trash import undo

        undo(folder / "photos" / ".distillhash-trash")


class Pairs(Target):
    """Images and their texts, in three formats."""

    def build(self, folder: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq
        from PIL import Image

        stream = io.BytesIO()
        Image.new("RGB", (4, 4), "red").save(stream, "PNG")
        for name in "abc":
            (folder / f"{name}.png").write_bytes(stream.getvalue())
        (folder / "captions.csv").write_text('image,caption\na.png,a dog\nb.png,"a cat, small"\nc.png,"two\nlines"\n')
        images = [{"bytes": stream.getvalue(), "path": f"{name}.png"} for name in "abc"]
        table = pa.table({"image": images, "caption": ["a", "b", "c"], "label": [0, 1, 1]})
        pq.write_table(table, folder / "pairs.parquet")
        x = np.ones((3, 4), np.float32)
        np.savez(
            folder / "pairs.npz", image_features=x, text_features=x, owners=np.arange(3), keys=np.array(list("abc"))
        )

    def use(self, folder: Path) -> None:
        from distillhash.errors import DistillHashError
        from distillhash.sources import ImageSource
        from distillhash.sources.pairs import open_pairs

        for name in ("captions.csv", "pairs.parquet", "pairs.npz"):
            try:
                pairs = open_pairs(str(folder / name))
                assert len(pairs.images) == len(pairs.images.keys)
                if isinstance(pairs.images, ImageSource):
                    for row in range(len(pairs.images)):
                        pairs.images.read(row)
            except DistillHashError:
                continue


class Sources(Target):
    """Arrays, tables and lists."""

    def build(self, folder: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        x = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
        np.save(folder / "x.npy", x)
        np.save(folder / "images.npy", np.zeros((3, 4, 4, 3), np.uint8))
        np.savez(folder / "x.npz", features=x, labels=np.arange(20) % 3, keys=np.arange(20).astype(str))
        pq.write_table(pa.table({"embedding": list(x), "label": np.arange(20) % 3}), folder / "x.parquet")
        (folder / "list.txt").write_text("x.npy\t1\nx.npz\t2\n")

    def use(self, folder: Path) -> None:
        from distillhash.errors import DistillHashError
        from distillhash.sources import EmbeddingSource, open_source

        for name in ("x.npy", "images.npy", "x.npz", "x.parquet", "list.txt"):
            try:
                source = open_source(str(folder / name))
                assert len(source) == len(source.keys) > 0
                if isinstance(source, EmbeddingSource):
                    assert np.isfinite(source.vectors).all()
                else:
                    source.read(0)  # type: ignore[attr-defined]
            except DistillHashError:
                continue


class Verdict(Target):
    """Pairs that people said are no duplicates."""

    def build(self, folder: Path) -> None:
        from distillhash.dedup.job import Verdicts

        (folder / "a").write_bytes(b"a")
        (folder / "b").write_bytes(b"b")
        Verdicts(folder / "verdicts.tsv").add(folder / "a", folder / "b")

    def use(self, folder: Path) -> None:
        from distillhash.dedup.job import Verdicts

        list(Verdicts(folder / "verdicts.tsv"))


class Network(Target):
    """A network in an ONNX file, some of its weights in a file beside it."""

    def build(self, folder: Path) -> None:
        from onnx import TensorProto, helper, numpy_helper

        rng = np.random.default_rng(0)
        kernel, matrix = (rng.normal(size=size).astype(np.float32) for size in ((4, 3, 3, 3), (4, 5)))
        beside = TensorProto(name="matrix", data_type=TensorProto.FLOAT, dims=[4, 5])
        beside.data_location = TensorProto.EXTERNAL
        beside.external_data.add(key="location", value="weights.bin")
        (folder / "weights.bin").write_bytes(matrix.tobytes())
        stored = [
            numpy_helper.from_array(kernel, "kernel"),
            numpy_helper.from_array(np.full(1, 128, np.float32), "half"),
            beside,
        ]
        nodes = [
            helper.make_node("Sub", ["image", "half"], ["centred"]),
            helper.make_node("Conv", ["centred", "kernel"], ["map"]),
            helper.make_node("ReduceMean", ["map"], ["pooled"], axes=[2, 3], keepdims=0),
            helper.make_node("MatMul", ["pooled", "matrix"], ["features"]),
        ]
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [2, 3, 16, 16])
        features = helper.make_tensor_value_info("features", TensorProto.FLOAT, [2, 5])
        graph = helper.make_graph(nodes, "network", [image], [features], stored)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        (folder / "network.onnx").write_bytes(model.SerializeToString())

    def use(self, folder: Path) -> None:
        from distillhash.backbones import make_backbone

        backbone = make_backbone(f"onnx:{folder / 'network.onnx'}")
        size = backbone.image_size
        assert backbone.embed(np.zeros((3, size, size, 3), np.uint8)).shape == (3, backbone.dim)


TARGETS: dict[str, type[Target]] = {
    "model": ModelFolder,
    "index": IndexFolder,
    "codes": CodesFiles,
    "shards": Shards,
    "tar": Tar,
    "cache": CacheFile,
    "trash": Trash,
    "pairs": Pairs,
    "sources": Sources,
    "verdicts": Verdict,
    "network": Network,
}


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file below a folder with its bytes and modification time."""
    return {
        str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in sorted(folder.rglob("*")) if path.is_file()
    }


def peak_mb() -> float:
    """The most memory of this process; its ``ru_maxrss`` would count that of the process which started it, too."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS


def main(name: str, first: int, count: int, place: Path) -> None:
    """Run the rounds; the process ends with a traceback at the first fault."""
    import logging

    from distillhash.errors import DistillHashError
    from distillhash.index import embedded

    logging.disable()
    warnings.simplefilter("ignore")
    embedded._CACHED_FROM, embedded.CLUSTERED_FROM = 16, 300  # so that small files have caches and clusters
    target, sound, work, outside = TARGETS[name](), place / "sound", place / "work", place / "outside"
    sound.mkdir(parents=True)
    target.build(sound)
    outside.mkdir()
    for number in range(4):
        (outside / ("file" if not number else f"{number}.jpg")).write_bytes(b"photo")
    before = contents(outside)
    progress = os.open(place / "progress", os.O_WRONLY | os.O_CREAT)
    os.chdir(place)
    for number in range(first, first + count):
        os.pwrite(progress, struct.pack("<q", number), 0)
        rng = random.Random(f"{name} {number}")
        shutil.copytree(sound, work, symlinks=True)
        mutate(work, rng)
        if rng.random() < 0.6 and all(path.is_file() or path.is_dir() for path in work.rglob("*")):  # not a pipe
            with contextlib.suppress(Exception):  # too damaged to be repaired
                target.repair(work)
        started = time.perf_counter()
        try:
            target.use(work)
        except DistillHashError as error:
            assert str(error)
        took = time.perf_counter() - started
        assert took < LONGEST_SECONDS, f"round {number} of {name} took {took:.1f} s"
        shutil.rmtree(work)
        if number % 100 == 0:
            assert contents(outside) == before, f"round {number} of {name} changed files outside"
    assert contents(outside) == before
    assert sorted(path.name for path in place.iterdir()) == ["outside", "progress", "sound"]
    peak = peak_mb()
    assert peak < MOST_MB, f"{peak:.0f} MB at the most"
    print(f"{count} rounds of {name}, {peak:.0f} MB")  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
