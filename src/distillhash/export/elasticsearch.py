"""Elasticsearch, 8.15 or newer: a ``dense_vector`` of ``element_type`` bit, codes as hexadecimal text, first bit highest.

``dims`` counts bits and is a multiple of 8: other lengths are zero padded, which changes no distance. The index is ``flat``: exact.
"""

from __future__ import annotations

from pathlib import Path

from distillhash.export.bulk import write_bulk
from distillhash.export.content import Content


def write(content: Content, out: Path) -> list[Path]:
    """Write the bulk requests, and the mapping beside them."""
    vector = {
        "type": "dense_vector",
        "element_type": "bit",
        "dims": 8 * content.n_bytes,
        "index_options": {"type": "flat"},
    }
    mapping = {"mappings": {"properties": {"code": vector, "key": {"type": "keyword"}}}}
    return write_bulk(content, out, mapping, lambda code: code.tobytes().hex())
