"""SQL for ``psql -f``: one transaction that makes the tables of an index and fills them by ``COPY``.

The result is an index that ``open_index("postgresql://...?table=NAME")`` opens. ``bit(n)`` is written as text, bit 0 first.
"""

from __future__ import annotations

from pathlib import Path

from distillhash.codes import Codes
from distillhash.export.base import Content, replacing
from distillhash.index.manifest import Manifest
from distillhash.index.postgres import to_bit_text


def write(content: Content, out: Path) -> list[Path]:
    """Write ``out``."""
    name, n_bits = content.name, content.codes.n_bits
    manifest = Manifest.new(n_bits, None).text().replace("'", "''")
    with replacing(out) as temporary, temporary.open("w", encoding="utf-8") as stream:
        stream.write(f"""\\set ON_ERROR_STOP on
SET client_encoding = 'UTF8';
SET client_min_messages = warning;
SET standard_conforming_strings = on;
BEGIN;
CREATE EXTENSION IF NOT EXISTS vector;
CREATE TABLE {name} (id bigint PRIMARY KEY, code bit({n_bits}) NOT NULL, key text, digest bytea, metadata json);
CREATE TABLE {name}_manifest (manifest text NOT NULL, last_id bigint NOT NULL);
INSERT INTO {name}_manifest VALUES ('{manifest}', {len(content.codes) - 1});
COPY {name} (id, code, key) FROM stdin;
""")
        for first, packed, keys in content.blocks():
            for place, bits in enumerate(to_bit_text(Codes(packed, n_bits))):
                key = "\\N" if keys is None else keys[place].replace("\\", "\\\\")
                stream.write(f"{first + place}\t{bits}\t{key}\n")
        stream.write(f"\\.\nCREATE UNIQUE INDEX {name}_key ON {name} (md5(key));\nCOMMIT;\nANALYZE {name};\n")
    return [out]
