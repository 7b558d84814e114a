"""The bulk format that OpenSearch and Elasticsearch share: two lines a document, what to do and what to store."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash.export.content import Content, replacing


def write_bulk(
    content: Content, out: Path, mapping: dict[str, Any], encode: Callable[[NDArray[np.uint8]], Any]
) -> list[Path]:
    """Write the requests to ``out`` and the mapping beside it.

    Args:
        content: Codes, keys, and the name of the index.
        out: Where to.
        mapping: Body of the request that makes the index.
        encode: A packed code as the engine takes it in JSON.
    """
    beside = out.with_name(out.name.removesuffix(".ndjson") + ".mapping.json")
    with replacing(beside) as temporary:
        temporary.write_text(json.dumps(mapping, indent=1) + "\n")
    with replacing(out) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for block in content.blocks():
            for place, code in enumerate(block.packed):
                action = {"index": {"_index": content.name, "_id": str(block.first + place)}}
                document = {"code": encode(code)}
                if block.keys is not None:
                    document["key"] = block.keys[place]
                stream.write(json.dumps(action) + "\n" + json.dumps(document) + "\n")
    return [out, beside]
