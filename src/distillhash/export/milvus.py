"""Rows for Milvus's bulk import into a collection that ``distillhash.index`` made, as Parquet or, if ``out`` ends in .json, JSON.

A ``BINARY_VECTOR`` is a list of bytes, first bit highest; other lengths than whole bytes are zero padded, as in the collection.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from distillhash.export.base import Content, replacing
from distillhash.index.milvus import HAS_KEY

_ROWS_AT_ONCE = 65536


def write(content: Content, out: Path) -> list[Path]:
    """Write ``out``."""
    write_rows = _write_json if out.suffix == ".json" else _write_parquet
    with replacing(out) as temporary:
        write_rows(content, temporary)
    return [out]


def _rows(content: Content) -> Iterator[dict[str, Any]]:
    for identifier, code, key in content.rows():
        has = 0 if key is None else HAS_KEY
        yield {"id": identifier, "code": code.tolist(), "key": key or "", "digest": "", "metadata": {}, "has": has}


def _write_json(content: Content, out: Path) -> None:
    with out.open("w", encoding="utf-8") as stream:
        stream.write('{"rows": [')
        for row in _rows(content):
            stream.write(("," if row["id"] else "") + "\n" + json.dumps(row))
        stream.write("\n]}\n")


def _write_parquet(content: Content, out: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"id": pa.int64(), "code": pa.list_(pa.uint8()), "key": pa.string(), "digest": pa.string()}
    schema = pa.schema({**types, "metadata": pa.string(), "has": pa.int8()})
    rows = ({**row, "metadata": "{}"} for row in _rows(content))
    with pq.ParquetWriter(out, schema) as writer:
        while block := list(islice(rows, _ROWS_AT_ONCE)):
            writer.write_table(pa.Table.from_pylist(block, schema))
