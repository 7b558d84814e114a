"""Parquet for SQL engines and data frames: columns ``id``, ``key``, ``code`` and ``word_0``, ``word_1`` ...

``code`` holds the packed bytes. The words are unsigned 64-bit integers with bit 0 of the code as the highest bit of ``word_0``, zero
padded at the end, so that a Hamming distance is ``bit_count(xor(word_0, ?)) + ...``. ``Codes.load`` reads the file as well.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from distillhash.codes import words_per_code
from distillhash.export.content import Content, replacing


def write(content: Content, out: Path) -> list[Path]:
    """Write ``out``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    n_bits, n_words = content.codes.n_bits, words_per_code(content.codes.n_bits)
    fields = [("id", pa.int64()), ("key", pa.string()), ("code", pa.binary(content.n_bytes))]
    fields += [(f"word_{word}", pa.uint64()) for word in range(n_words)]
    schema = pa.schema(fields, metadata={b"distillhash.n_bits": str(n_bits).encode()})
    with replacing(out) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for block in content.blocks():
            ids = np.arange(block.first, block.first + len(block.packed))
            padded = np.zeros((len(ids), 8 * n_words), np.uint8)
            padded[:, : content.n_bytes] = block.packed
            words = padded.view(">u8").astype(np.uint64)
            keys = block.keys if block.keys is not None else [str(identifier) for identifier in ids]
            columns = [
                pa.array(ids),
                pa.array(keys, pa.string()),
                pa.array([row.tobytes() for row in block.packed], fields[2][1]),
            ]
            columns += [pa.array(words[:, word]) for word in range(n_words)]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
    return [out]
