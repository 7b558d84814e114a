"""The collections of an index in Milvus: the items, and one that remembers the largest id ever used.

What the index holds (code length, model) is JSON in the description of the item collection, written together with it. Milvus has no
byte strings and, in the versions that run everywhere, no null: digests are hexadecimal, and the field ``has`` says what is there.
"""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np

from distillhash.codes import Codes, bytes_per_code
from distillhash.errors import DataError, DistillHashError, FormatError, ParameterError
from distillhash.index.base import Item
from distillhash.index.incoming import Row
from distillhash.index.manifest import Manifest
from distillhash.index.milvus_session import Session
from distillhash.index.text import from_plain, map_text, to_plain

MOST_TEXT_BYTES = 65535
HAS_KEY, HAS_DIGEST, HAS_METADATA = 1, 2, 4
FIELDS = ["id", "code", "key", "digest", "metadata", "has"]
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")


def check_name(name: str) -> str:
    """A collection's name.

    Raises:
        ParameterError: not what Milvus takes.
    """
    if not _NAME.fullmatch(name):
        raise ParameterError(
            f"a milvus:// address ends in a collection of up to 200 letters, digits and underscores, got {name!r}"
        )
    return name


def read_manifest(session: Session, name: str) -> Manifest | None:
    """What the index holds, None if there is none.

    Raises:
        FormatError: damaged, or a collection of that name that is no index.
    """
    if not session.call("has_collection", name):
        return None
    place = f"collection {name} of {session.shown}"
    description = session.call("describe_collection", name)["description"]
    if not description.startswith("{"):
        raise FormatError(f"the {place} is not an index; choose another name")
    return Manifest.parse(description, f"the description of {place}", place)


def make(session: Session, name: str, manifest: Manifest) -> None:
    """Make the collection of items, unless another process was faster."""
    from pymilvus import DataType, MilvusClient

    schema = MilvusClient.create_schema(
        auto_id=False, enable_dynamic_field=False, description=json.dumps(json.loads(manifest.text()))
    )
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("code", DataType.BINARY_VECTOR, dim=8 * bytes_per_code(manifest.n_bits))
    schema.add_field("key", DataType.VARCHAR, max_length=MOST_TEXT_BYTES)
    schema.add_field("digest", DataType.VARCHAR, max_length=MOST_TEXT_BYTES)
    schema.add_field("metadata", DataType.JSON)
    schema.add_field("has", DataType.INT8)
    try:
        session.call("create_collection", name, schema=schema, consistency_level="Strong")
    except DistillHashError:
        if not session.call("has_collection", name):
            raise


def prepare(session: Session, name: str, index: dict[str, Any]) -> None:
    """Make what is still missing of an index (each step may be the last one of a process that died), and load it."""
    from pymilvus import DataType, MilvusClient

    counter = f"{name}_ids"
    if not session.call("has_collection", counter):
        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("unused", DataType.BINARY_VECTOR, dim=8)  # Milvus has no collection without a vector
        schema.add_field("last_id", DataType.INT64)
        try:
            session.call("create_collection", counter, schema=schema, consistency_level="Strong")
        except DistillHashError:
            if not session.call("has_collection", counter):
                raise
    vectors = [(name, "code", index), (counter, "unused", {"index_type": "BIN_FLAT"})]
    for collection, field, settings in vectors:
        if not session.call("list_indexes", collection):
            parameters = MilvusClient.prepare_index_params()
            parameters.add_index(field, metric_type="HAMMING", **settings)
            if field == "code":
                parameters.add_index("key", index_type="INVERTED")
            session.call("create_index", collection, parameters, sync=False)
        session.call("load_collection", collection)


def to_entity(row: Row) -> dict[str, Any]:
    """A row as Milvus takes it.

    Raises:
        DataError: a key of more bytes, or a number of more bits, than Milvus holds.
    """
    identifier, code, key, digest, metadata = row
    plain = "" if key is None else to_plain(key)
    if len(plain.encode()) > MOST_TEXT_BYTES:
        raise DataError(
            f"the key {key!r:.80} has more than the {MOST_TEXT_BYTES} bytes that Milvus holds; use a shorter one"
        )
    entry = {} if metadata is None else map_text(json.loads(metadata), to_plain)
    if metadata is not None and not _fits(entry):
        raise DataError(f"the metadata of id {identifier} hold an integer of more than 64 bits; give it as text")
    has = HAS_KEY * (key is not None) | HAS_DIGEST * (digest is not None) | HAS_METADATA * (metadata is not None)
    return {
        "id": identifier,
        "code": code,
        "key": plain,
        "digest": "" if digest is None else digest.hex(),
        "metadata": entry,
        "has": has,
    }


def from_entity(entity: dict[str, Any], n_bits: int) -> Item:
    """The item in an entity of all fields.

    Raises:
        FormatError: its code or digest is not what ``add`` stores.
    """
    try:
        code = np.frombuffer(entity["code"][0], np.uint8)[None]
        return Item(
            int(entity["id"]),
            Codes.from_packed(code, n_bits),
            from_plain(entity["key"]) if entity["has"] & HAS_KEY else None,
            bytes.fromhex(entity["digest"]) if entity["has"] & HAS_DIGEST else None,
            map_text(entity["metadata"], from_plain) if entity["has"] & HAS_METADATA else None,
        )
    except (TypeError, ValueError, KeyError) as error:
        raise FormatError(f"the entity of id {entity.get('id')}: {error}") from error


def _fits(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_fits, value.values()))
    if isinstance(value, list):
        return all(map(_fits, value))
    return not isinstance(value, int) or -(2**63) <= value < 2**63
