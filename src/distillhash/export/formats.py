"""One function a format: it writes the file, and returns it and the files beside it. An error leaves the old file.

Bit 0 of a code is the highest bit of the first byte. Formats of whole bytes pad other lengths with zeros, which changes no distance.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from distillhash.codes import Codes, bytes_per_code, words_per_code
from distillhash.errors import MissingDependencyError
from distillhash.files import replacing, write_atomic
from distillhash.index.address import to_plain
from distillhash.index.manifest import Manifest
from distillhash.index.milvus import HAS_KEY
from distillhash.index.postgres import to_bit_text

_ROWS_AT_ONCE = 65536
_FAISS_METRIC_L2 = 1
_GRAPH_LINKS, _GRAPH_BUILD, _GRAPH_SEARCH = 32, 200, 128
_VESPA_SCHEMA = """schema {name} {{
    document {name} {{
        field key type string {{
            indexing: summary | attribute
        }}
        field code type tensor<int8>(x[{n_bytes}]) {{
            indexing: attribute
            attribute {{
                distance-metric: hamming
            }}
        }}
    }}
    rank-profile hamming {{
        inputs {{
            query(code) tensor<int8>(x[{n_bytes}])
        }}
        first-phase {{
            expression: -distance(field, code)
        }}
    }}
}}
"""


@dataclass(frozen=True)
class Content:
    """Codes, their keys, and the name of the table, collection or index they go to."""

    codes: Codes
    keys: Sequence[str] | None
    name: str

    @property
    def n_bytes(self) -> int:
        """Bytes of one code."""
        return bytes_per_code(self.codes.n_bits)

    def blocks(self) -> Iterator[tuple[int, NDArray[np.uint8], list[str] | None]]:
        """The first id, the packed codes and the keys, by ``to_plain``, of blocks of rows that fit in memory."""
        for first in range(0, len(self.codes), _ROWS_AT_ONCE):
            rows = slice(first, first + _ROWS_AT_ONCE)
            keys = None if self.keys is None else [to_plain(key) for key in self.keys[rows]]
            yield first, self.codes.packed[rows], keys

    def rows(self) -> Iterator[tuple[int, NDArray[np.uint8], str | None]]:
        """Id, packed code and key of every row."""
        for first, packed, keys in self.blocks():
            for place, code in enumerate(packed):
                yield first + place, code, None if keys is None else keys[place]


@contextmanager
def _writing(out: Path) -> Iterator[IO[str]]:
    """A UTF-8 text file that replaces ``out`` when the block succeeds."""
    with replacing(out) as temporary, temporary.open("w", encoding="utf-8") as stream:
        yield stream


def write_npy(content: Content, out: Path) -> list[Path]:
    """The packed bytes, ``(n, ceil(n_bits / 8)) uint8``, and a ``.json`` beside them with ``n_bits`` and ``keys`` (null for none)."""
    beside = out.with_suffix(".json")
    keys = None if content.keys is None else list(content.keys)
    write_atomic(beside, (json.dumps({"n_bits": content.codes.n_bits, "keys": keys}) + "\n").encode())
    with replacing(out) as temporary, temporary.open("wb") as stream:
        np.save(stream, content.codes.packed)
    return [out, beside]


def write_parquet(content: Content, out: Path) -> list[Path]:
    """Columns ``id``, ``key``, ``code`` and ``word_0``, ``word_1`` ...; ``Codes.load`` reads the file as well.

    ``code`` holds the packed bytes. The words are unsigned 64-bit integers with bit 0 of the code as the highest bit of ``word_0``, zero
    padded at the end, so that a Hamming distance is ``bit_count(xor(word_0, ?)) + ...``.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    n_bits, n_words = content.codes.n_bits, words_per_code(content.codes.n_bits)
    code_type = pa.binary(content.n_bytes)
    fields = [("id", pa.int64()), ("key", pa.string()), ("code", code_type)]
    fields += [(f"word_{word}", pa.uint64()) for word in range(n_words)]
    metadata = {b"distillhash.n_bits": str(n_bits).encode()}
    if content.codes.class_bits:
        metadata[b"distillhash.class_bits"] = str(content.codes.class_bits).encode()
    schema = pa.schema(fields, metadata=metadata)
    with replacing(out) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for first, packed, keys in content.blocks():
            ids = np.arange(first, first + len(packed))
            words = Codes(packed, n_bits).words().view(">u8").astype(np.uint64)
            names = pa.array(list(map(str, ids)) if keys is None else keys, pa.string())
            columns = [pa.array(ids), names, pa.array([code.tobytes() for code in packed], code_type)]
            columns += [pa.array(words[:, word]) for word in range(n_words)]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
    return [out]


def write_faiss(content: Content, out: Path) -> list[Path]:
    """A FAISS ``IndexBinaryFlat``, made without FAISS; ``faiss.read_index_binary`` reads it.

    Little-endian: ``IBxF``, the number of bits and of bytes of a code (int32 each), the number of codes (int64), 1 for "trained" (one
    byte), the metric 1 (int32; FAISS writes its default here and always computes Hamming distance), the number of bytes that follow
    (uint64), the packed codes.
    """
    n, n_bytes = len(content.codes), content.n_bytes
    with replacing(out) as temporary, temporary.open("wb") as stream:
        stream.write(struct.pack("<4siiqBiQ", b"IBxF", 8 * n_bytes, n_bytes, n, 1, _FAISS_METRIC_L2, n * n_bytes))
        for _, packed, _ in content.blocks():
            stream.write(packed.tobytes())
    return [out]


def write_faiss_hnsw(content: Content, out: Path) -> list[Path]:
    """A FAISS ``IndexBinaryHNSW``, a graph of codes, made by FAISS (extra ``faiss``); ``faiss.read_index_binary`` reads it.

    32 links a code, ``efConstruction`` 200, ``efSearch`` 128, which ``index.hnsw.efSearch`` changes. Search is approximate.
    :class:`MissingDependencyError` without FAISS. With several threads, two graphs of the same codes can differ in their links.
    """
    try:
        import faiss
    except ImportError as error:
        raise MissingDependencyError("faiss-hnsw needs FAISS; pip install 'distillhash[faiss]'") from error
    index = faiss.IndexBinaryHNSW(8 * content.n_bytes, _GRAPH_LINKS)
    index.hnsw.efConstruction, index.hnsw.efSearch = _GRAPH_BUILD, _GRAPH_SEARCH
    index.add(content.codes.packed)
    with replacing(out) as temporary, temporary.open("wb") as stream:
        stream.write(faiss.serialize_index_binary(index).tobytes())
    return [out]


def write_milvus(content: Content, out: Path) -> list[Path]:
    """Rows for Milvus's bulk import into a collection that ``distillhash.index`` made, as Parquet or, if ``out`` ends in .json, JSON."""
    constant: dict[str, Any] = {"digest": "", "metadata": {}}
    rows = (
        {"id": row, "code": code.tolist(), "key": key or "", **constant, "has": 0 if key is None else HAS_KEY}
        for row, code, key in content.rows()
    )
    if out.suffix == ".json":
        with _writing(out) as stream:
            stream.write('{"rows": [')
            for row in rows:
                stream.write(("," if row["id"] else "") + "\n" + json.dumps(row))
            stream.write("\n]}\n")
        return [out]
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"id": pa.int64(), "code": pa.list_(pa.uint8()), "key": pa.string(), "digest": pa.string()}
    schema = pa.schema({**types, "metadata": pa.string(), "has": pa.int8()})
    with replacing(out) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        while block := [{**row, "metadata": "{}"} for row in islice(rows, _ROWS_AT_ONCE)]:
            writer.write_table(pa.Table.from_pylist(block, schema))
    return [out]


def write_pgvector(content: Content, out: Path) -> list[Path]:
    """SQL for ``psql -f``: one transaction that makes the tables of an index and fills them by ``COPY``.

    The result is an index that ``open_index("postgresql://...?table=NAME")`` opens. ``bit(n)`` is written as text, bit 0 first.
    """
    name, n_bits = content.name, content.codes.n_bits
    manifest = Manifest.new(n_bits, None).text().replace("'", "''")
    with _writing(out) as stream:
        stream.write(f"""\\set ON_ERROR_STOP on
SET client_encoding = 'UTF8';
SET client_min_messages = warning;
SET standard_conforming_strings = on;
BEGIN;
CREATE EXTENSION IF NOT EXISTS vector;
CREATE TABLE {name} (id bigint PRIMARY KEY, code bit({n_bits}) NOT NULL, key text, digest bytea, metadata json);
CREATE TABLE {name}_manifest (manifest text NOT NULL, last_id bigint NOT NULL);
INSERT INTO {name}_manifest VALUES ('{manifest}', {len(content.codes) - 1});
COPY {name} (id, code, key) FROM stdin;
""")
        for first, packed, keys in content.blocks():
            for place, bits in enumerate(to_bit_text(Codes(packed, n_bits))):
                key = "\\N" if keys is None else keys[place].replace("\\", "\\\\")
                stream.write(f"{first + place}\t{bits}\t{key}\n")
        stream.write(f"\\.\nCREATE UNIQUE INDEX {name}_key ON {name} (md5(key));\nCOMMIT;\nANALYZE {name};\n")
    return [out]


def write_opensearch(content: Content, out: Path) -> list[Path]:
    """Bulk requests for OpenSearch, 2.16 or newer: a ``knn_vector`` of ``data_type`` binary, codes as signed bytes."""
    vector = {
        "type": "knn_vector",
        "dimension": 8 * content.n_bytes,
        "data_type": "binary",
        "space_type": "hamming",
        "method": {"name": "hnsw", "engine": "faiss"},
    }
    settings = {"settings": {"index": {"knn": True}}}
    return _write_bulk(content, out, vector, settings, lambda code: code.view(np.int8).tolist())


def write_elasticsearch(content: Content, out: Path) -> list[Path]:
    """Bulk requests for Elasticsearch, 8.15 or newer: a ``dense_vector`` of ``element_type`` bit, codes as hexadecimal text.

    The index is ``flat``: exact.
    """
    dims, options = 8 * content.n_bytes, {"type": "flat"}
    vector = {"type": "dense_vector", "element_type": "bit", "dims": dims, "index_options": options}
    return _write_bulk(content, out, vector, {}, lambda code: code.tobytes().hex())


def _write_bulk(
    content: Content, out: Path, vector: Any, settings: dict[str, Any], encode: Callable[[NDArray[np.uint8]], Any]
) -> list[Path]:
    """Two lines a document, what to do and what to store, and the mapping beside them; ``encode`` gives a packed code for JSON."""
    beside = out.with_name(out.name.removesuffix(".ndjson") + ".mapping.json")
    mapping = {**settings, "mappings": {"properties": {"code": vector, "key": {"type": "keyword"}}}}
    write_atomic(beside, (json.dumps(mapping, indent=1) + "\n").encode())
    with _writing(out) as stream:
        for identifier, code, key in content.rows():
            action = {"index": {"_index": content.name, "_id": str(identifier)}}
            document = {"code": encode(code)} | ({} if key is None else {"key": key})
            stream.write(json.dumps(action) + "\n" + json.dumps(document) + "\n")
    return [out, beside]


def write_vespa(content: Content, out: Path) -> list[Path]:
    """A feed of ``put`` operations with codes as ``tensor<int8>``, and beside it ``NAME.sd``, a schema with ``hamming`` distance.

    The attribute has no HNSW index, so ``nearestNeighbor`` is exact.
    """
    name = content.name
    beside = out.with_name(f"{name}.sd")
    write_atomic(beside, _VESPA_SCHEMA.format(name=name, n_bytes=content.n_bytes).encode())
    with _writing(out) as stream:
        for identifier, code, key in content.rows():
            fields = {"code": {"values": code.view(np.int8).tolist()}} | ({} if key is None else {"key": key})
            stream.write(json.dumps({"put": f"id:{name}:{name}::{identifier}", "fields": fields}) + "\n")
    return [out, beside]
