"""Codes as files for other engines, each with the bits in the order that its reader expects.

Row i of the codes gets the id i everywhere. ``docs/export.md`` shows how each file is loaded and searched. A new format is a function
in ``formats.py`` and a line in :data:`FORMATS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from distillhash.codes import Codes
from distillhash.errors import DistillHashError, ParameterError
from distillhash.export import formats

__all__ = ["FORMATS", "Format", "export_codes"]


@dataclass(frozen=True)
class Format:
    """A format of files of codes."""

    endings: tuple[str, ...]  # of a file's name; the default first
    write: Callable[[formats.Content, Path], list[Path]]
    has_name: bool = False  # whether the file names a table, collection or index


FORMATS = {
    "parquet": Format((".words.parquet", ".parquet"), formats.write_parquet),
    "npy": Format((".npy",), formats.write_npy),
    "faiss": Format((".faiss",), formats.write_faiss),
    "faiss-hnsw": Format((".hnsw.faiss", ".faiss"), formats.write_faiss_hnsw),
    "milvus": Format((".milvus.parquet", ".parquet", ".json"), formats.write_milvus),
    "pgvector": Format((".pgvector.sql", ".sql"), formats.write_pgvector, has_name=True),
    "opensearch": Format((".opensearch.ndjson", ".ndjson"), formats.write_opensearch, has_name=True),
    "elasticsearch": Format((".elasticsearch.ndjson", ".ndjson"), formats.write_elasticsearch, has_name=True),
    "vespa": Format((".vespa.jsonl", ".jsonl"), formats.write_vespa, has_name=True),
}
_NAME = re.compile(r"[a-z][a-z0-9_]{0,49}")  # what all engines take


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
        DistillHashError: the folder cannot be written, or the disk is full.
    """
    if to not in FORMATS:
        raise ParameterError(f"unknown export format {to!r}; choose one of {', '.join(FORMATS)}")
    form = FORMATS[to]
    out = Path(out)
    if not out.name.endswith(form.endings):
        raise ParameterError(f"a file for {to} ends in {' or '.join(form.endings)}, got {out.name!r}")
    if name is not None and not form.has_name:
        raise ParameterError(f"a file for {to} names no table or index; leave the name {name!r} out")
    if name is not None and not _NAME.fullmatch(name):
        raise ParameterError(
            f"a name is up to 50 lower-case letters, digits and underscores, a letter first, got {name!r}"
        )
    if keys is not None and len(keys) != len(codes):
        raise ParameterError(f"{len(keys)} keys for {len(codes)} codes; give one for each code")
    try:
        return form.write(formats.Content(codes, keys, name or "codes"), out)
    except OSError as error:
        raise DistillHashError(
            f"{out} cannot be written ({error.strerror or error}); choose another place with --out"
        ) from error
