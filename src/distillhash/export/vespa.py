"""Vespa: a feed of ``put`` operations with codes as ``tensor<int8>``, first bit highest, and a schema with ``hamming`` distance.

The attribute has no HNSW index, so ``nearestNeighbor`` is exact. Whole bytes: other lengths are zero padded, which changes no distance.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from distillhash.export.base import Content, replacing
from distillhash.files import write_atomic

_SCHEMA = """schema {name} {{
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


def write(content: Content, out: Path) -> list[Path]:
    """Write the feed, and the schema beside it as ``NAME.sd``."""
    name = content.name
    beside = out.with_name(f"{name}.sd")
    write_atomic(beside, _SCHEMA.format(name=name, n_bytes=content.n_bytes).encode())
    with replacing(out) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for identifier, code, key in content.rows():
            fields = {"code": {"values": code.view(np.int8).tolist()}} | ({} if key is None else {"key": key})
            stream.write(json.dumps({"put": f"id:{name}:{name}::{identifier}", "fields": fields}) + "\n")
    return [out, beside]
