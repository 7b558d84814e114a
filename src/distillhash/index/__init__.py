"""Stores of codes behind one interface."""

from __future__ import annotations

from pathlib import Path

from distillhash.errors import FormatError, ParameterError
from distillhash.index.address import check_address, folder_of, scheme_of, shown
from distillhash.index.base import Index, Item, RangeResult, SearchResult, VectorType
from distillhash.index.embedded import Durability, EmbeddedIndex

__all__ = ["Index", "Item", "RangeResult", "SearchResult", "open_index"]

ENGINES = ("a folder", "memory://", "postgresql://", "milvus://")


def is_address(place: str | Path, *, damaged: bool = False) -> bool:
    """Whether there is an index at ``place``, or it is an address of an engine's; with ``damaged``, also where a part of one is left."""
    folder = folder_of(place)
    if folder is None:
        return scheme_of(place) in ("postgresql", "postgres", "milvus")
    has_items, has_manifest = ((folder / name).exists() for name in ("items.sqlite", "manifest.json"))
    if not damaged:
        return has_items and has_manifest
    return has_items or (has_manifest and (folder / "model").is_dir())


def open_index(
    uri_or_dir: str | Path,
    n_bits: int | None = None,
    create: bool = False,
    *,
    model_fingerprint: str | None = None,
    durability: Durability = "normal",
    keep_vectors: VectorType | None = None,
) -> Index:
    """Open an index.

    Args:
        uri_or_dir: A folder (the embedded engine), ``memory://``, ``postgresql://user@host:port/database?table=NAME`` or
            ``milvus://host:port/collection``.
        n_bits: Code length; needed for a new index, checked for an old one.
        create: Make the index when there is none.
        model_fingerprint: The model the codes come from; an index built with another is refused.
        durability: ``normal`` survives the death of the process (on Postgres: the server's setting), ``full`` a power failure as well,
            at the cost of a disk flush per ``add``. Milvus and memory take only ``normal``.
        keep_vectors: Keep the vector of every item beside its code, as ``int8`` or ``float16``, to re-rank by. It is said when the index
            is made, and holds from then on. A folder and ``memory://`` alone can.

    Raises:
        DataError: no index there, and ``create`` is not set.
        ParameterError: another code length, or an unknown engine or option.
        FormatError: damaged, of a newer or a dropped format, or built with another model. An index built without ``model_fingerprint``
            takes the codes of any model.
        MissingDependencyError: the engine's client is not installed; the message names the extra.
        DistillHashError: a server that does not answer or refuses.
    """
    check_address(uri_or_dir)
    scheme = scheme_of(uri_or_dir)
    uri = str(uri_or_dir)
    if scheme in ("memory", "milvus") and durability != "normal":
        raise ParameterError(f"{scheme}:// has no durability levels, got {durability!r}; leave durability out")
    if keep_vectors is not None and scheme not in ("", "memory"):
        raise ParameterError(f"{scheme}:// keeps codes alone, no {keep_vectors} vectors; use an index folder")
    if scheme in ("postgresql", "postgres"):
        from distillhash.index.postgres import PostgresIndex

        uri = f"{scheme}://{uri.partition('://')[2]}"  # libpq knows it in lower case alone, and quotes what it does not know
        return PostgresIndex(uri, n_bits, create, model_fingerprint, durability == "full")
    if scheme == "milvus":
        from distillhash.index.milvus import MilvusIndex

        return MilvusIndex(uri, n_bits, create, model_fingerprint)
    if scheme == "memory":
        if uri != "memory://":
            raise ParameterError(f"memory:// takes no name and no options, got {shown(uri)!r}")
        return EmbeddedIndex(None, n_bits, True, model_fingerprint, keep_vectors=keep_vectors)
    folder = folder_of(uri_or_dir)
    if folder is None:
        raise ParameterError(f"{scheme}:// is not an engine of this version; choose from {', '.join(ENGINES)}")
    if (folder / "shards.json").exists():
        raise FormatError(
            f"{folder} is a sharded index, which this version does not open; export its codes with distillhash 0.1 and "
            "index them again into a folder, Postgres or Milvus"
        )
    return EmbeddedIndex(folder, n_bits, create, model_fingerprint, durability, keep_vectors)
