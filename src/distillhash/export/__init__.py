"""Codes for other engines: one file per format, each with the bits in the order that its reader expects.

Row i of the codes gets the id i everywhere. ``docs/export.md`` shows how each file is loaded and searched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from distillhash.codes import Codes
from distillhash.errors import ParameterError
from distillhash.export.content import Content, check_name

__all__ = ["FORMATS", "Format", "export_codes"]


@dataclass(frozen=True)
class Format:
    """What a file of codes is for.

    Attributes:
        summary: One line for people.
        endings: What a file's name may end in; the default first.
        has_name: Whether the file names a table, collection or index.
    """

    summary: str
    endings: tuple[str, ...]
    has_name: bool = False


class _Write(Protocol):
    def __call__(self, content: Content, out: Path) -> list[Path]: ...


FORMATS = {
    "parquet": Format("one row per code: id, key, code, and 64-bit words for XOR and bit counts in SQL", (".words.parquet", ".parquet")),
    "npy": Format("the packed bytes, with code length and keys in a .json beside them", (".npy",)),
    "faiss": Format("an IndexBinaryFlat for faiss.read_index_binary", (".faiss",)),
    "milvus": Format("rows for Milvus's bulk import, as Parquet or JSON", (".milvus.parquet", ".parquet", ".json")),
    "pgvector": Format("SQL that makes a table and fills it by COPY", (".pgvector.sql", ".sql"), has_name=True),
    "opensearch": Format("bulk requests, with the mapping in a .json beside them", (".opensearch.ndjson", ".ndjson"), has_name=True),
    "elasticsearch": Format("bulk requests, with the mapping in a .json beside them", (".elasticsearch.ndjson", ".ndjson"), has_name=True),
    "vespa": Format("a feed, with the schema in a .sd beside it", (".vespa.jsonl", ".jsonl"), has_name=True),
}  # fmt: skip


def export_codes(
    codes: Codes, keys: Sequence[str] | None, to: str, out: str | Path, *, name: str | None = None
) -> list[Path]:
    """Write codes for another engine.

    Args:
        codes: ``n`` codes.
        keys: One name per code, or None.
        to: A name in :data:`FORMATS`.
        out: The file; written under a temporary name and renamed, so that a crash leaves the old one or the new one.
        name: Of the table, collection or index, ``codes`` if not given; only for formats that have one.

    Returns:
        The files written, ``out`` first.

    Raises:
        ParameterError: an unknown format, an ending or name that does not fit, or counts that differ.
        DataError: codes that the format cannot hold.
    """
    if to not in FORMATS:
        raise ParameterError(f"unknown export format {to!r}; choose one of {', '.join(FORMATS)}")
    form = FORMATS[to]
    out = Path(out)
    if not out.name.endswith(form.endings):
        raise ParameterError(f"a file for {to} ends in {' or '.join(form.endings)}, got {out.name!r}")
    if name is not None and not form.has_name:
        raise ParameterError(f"a file for {to} names no table or index; leave the name {name!r} out")
    if keys is not None and len(keys) != len(codes):
        raise ParameterError(f"{len(keys)} keys for {len(codes)} codes; give one for each code")
    write = cast(_Write, import_module(f"distillhash.export.{to}").write)
    return write(Content(codes, keys, check_name("codes" if name is None else name)), out)
