"""Parquet and npy: codes for data frames, SQL engines and numpy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from distillhash.codes import words_per_code
from distillhash.export.base import Content, replacing
from distillhash.files import write_atomic


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
    schema = pa.schema(fields, metadata={b"distillhash.n_bits": str(n_bits).encode()})
    with replacing(out) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for first, packed, keys in content.blocks():
            ids = np.arange(first, first + len(packed))
            padded = np.zeros((len(ids), 8 * n_words), np.uint8)
            padded[:, : content.n_bytes] = packed
            words = padded.view(">u8").astype(np.uint64)
            names = pa.array(list(map(str, ids)) if keys is None else keys, pa.string())
            columns = [pa.array(ids), names, pa.array([code.tobytes() for code in packed], code_type)]
            columns += [pa.array(words[:, word]) for word in range(n_words)]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
    return [out]
