"""Rows for Milvus's bulk import into a collection that ``distillhash.index`` made, as Parquet or, where ``out`` says so, JSON.

A ``BINARY_VECTOR`` is a list of bytes, first bit highest; other lengths than whole bytes are zero padded, as the collection is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distillhash.export.content import Block, Content, replacing

_HAS_KEY = 1  # as in distillhash.index.milvus_schema


def write(content: Content, out: Path) -> list[Path]:
    """Write ``out``."""
    with replacing(out) as temporary:
        if out.suffix == ".json":
            _write_json(content, temporary)
        else:
            _write_parquet(content, temporary)
    return [out]


def _rows(block: Block) -> Iterator[dict[str, Any]]:
    for place, code in enumerate(block.packed.tolist()):
        key = None if block.keys is None else block.keys[place]
        yield {
            "id": block.first + place,
            "code": code,
            "key": key or "",
            "digest": "",
            "metadata": {},
            "has": 0 if key is None else _HAS_KEY,
        }


def _write_json(content: Content, out: Path) -> None:
    with out.open("w", encoding="utf-8") as stream:
        stream.write('{"rows": [')
        for block in content.blocks():
            for row in _rows(block):
                stream.write(("," if row["id"] else "") + "\n" + json.dumps(row))
        stream.write("\n]}\n")


def _write_parquet(content: Content, out: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [
            ("id", pa.int64()),
            ("code", pa.list_(pa.uint8())),
            ("key", pa.string()),
            ("digest", pa.string()),
            ("metadata", pa.string()),
            ("has", pa.int8()),
        ]
    )
    with pq.ParquetWriter(out, schema) as writer:
        for block in content.blocks():
            rows = [{**row, "metadata": json.dumps(row["metadata"])} for row in _rows(block)]
            writer.write_table(pa.Table.from_pylist(rows, schema))
