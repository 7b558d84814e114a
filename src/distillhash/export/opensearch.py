"""OpenSearch, 2.16 or newer: a ``knn_vector`` of ``data_type`` binary, codes as signed bytes, first bit highest.

The dimension is a multiple of 8: other lengths are zero padded, which changes no distance.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from distillhash.export.bulk import write_bulk
from distillhash.export.content import Content


def write(content: Content, out: Path) -> list[Path]:
    """Write the bulk requests, and the mapping beside them."""
    vector = {
        "type": "knn_vector",
        "dimension": 8 * content.n_bytes,
        "data_type": "binary",
        "space_type": "hamming",
        "method": {"name": "hnsw", "engine": "faiss"},
    }
    mapping = {
        "settings": {"index": {"knn": True}},
        "mappings": {"properties": {"code": vector, "key": {"type": "keyword"}}},
    }
    return write_bulk(content, out, mapping, lambda code: code.view(np.int8).tolist())
