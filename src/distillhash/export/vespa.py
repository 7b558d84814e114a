"""Vespa: a feed of ``put`` operations with codes as ``tensor<int8>``, first bit highest, and a schema with ``hamming`` distance.

The attribute has no HNSW index, so ``nearestNeighbor`` is exact. Whole bytes: other lengths are zero padded, which changes no distance.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from distillhash.export.content import Content, replacing

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
    with replacing(beside) as temporary:
        temporary.write_text(_SCHEMA.format(name=name, n_bytes=content.n_bytes))
    with replacing(out) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for block in content.blocks():
            for place, code in enumerate(block.packed.view(np.int8).tolist()):
                fields: dict[str, object] = {"code": {"values": code}}
                if block.keys is not None:
                    fields["key"] = block.keys[place]
                stream.write(json.dumps({"put": f"id:{name}:{name}::{block.first + place}", "fields": fields}) + "\n")
    return [out, beside]
