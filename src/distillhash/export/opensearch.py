"""OpenSearch and Elasticsearch: bulk requests (two lines a document: what to do, what to store), and the mapping beside them.

Dimensions are multiples of 8 bits: other lengths are zero padded, which changes no distance.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash.export.base import Content, replacing
from distillhash.files import write_atomic


def write_opensearch(content: Content, out: Path) -> list[Path]:
    """OpenSearch, 2.16 or newer: a ``knn_vector`` of ``data_type`` binary, codes as signed bytes, first bit highest."""
    vector = {
        "type": "knn_vector",
        "dimension": 8 * content.n_bytes,
        "data_type": "binary",
        "space_type": "hamming",
        "method": {"name": "hnsw", "engine": "faiss"},
    }
    return _write(
        content, out, vector, {"settings": {"index": {"knn": True}}}, lambda code: code.view(np.int8).tolist()
    )


def write_elasticsearch(content: Content, out: Path) -> list[Path]:
    """Elasticsearch, 8.15 or newer: a ``dense_vector`` of ``element_type`` bit, codes as hexadecimal text, first bit highest.

    The index is ``flat``: exact.
    """
    vector = {
        "type": "dense_vector",
        "element_type": "bit",
        "dims": 8 * content.n_bytes,
        "index_options": {"type": "flat"},
    }
    return _write(content, out, vector, {}, lambda code: code.tobytes().hex())


def _write(
    content: Content,
    out: Path,
    vector: dict[str, Any],
    settings: dict[str, Any],
    encode: Callable[[NDArray[np.uint8]], Any],
) -> list[Path]:
    """Write the requests to ``out`` and the mapping beside it; ``encode`` gives a packed code as the engine takes it in JSON."""
    beside = out.with_name(out.name.removesuffix(".ndjson") + ".mapping.json")
    mapping = {**settings, "mappings": {"properties": {"code": vector, "key": {"type": "keyword"}}}}
    write_atomic(beside, (json.dumps(mapping, indent=1) + "\n").encode())
    with replacing(out) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for identifier, code, key in content.rows():
            action = {"index": {"_index": content.name, "_id": str(identifier)}}
            document = {"code": encode(code)} | ({} if key is None else {"key": key})
            stream.write(json.dumps(action) + "\n" + json.dumps(document) + "\n")
    return [out, beside]
