"""Stores of codes behind one interface."""

from __future__ import annotations

from pathlib import Path

from distillhash.errors import ParameterError
from distillhash.index.base import Index, Item, RangeResult, SearchResult
from distillhash.index.embedded import Durability, EmbeddedIndex

__all__ = ["Index", "Item", "RangeResult", "SearchResult", "open_index"]


def open_index(
    uri_or_dir: str | Path,
    n_bits: int | None = None,
    create: bool = False,
    *,
    model_fingerprint: str | None = None,
    durability: Durability = "normal",
) -> Index:
    """Open an index.

    Args:
        uri_or_dir: A folder. (``milvus://`` and ``postgresql://`` are not in this version.)
        n_bits: Code length; needed for a new index, checked for an old one.
        create: Make the folder when there is none.
        model_fingerprint: The model the codes come from; an index built with another is refused.
        durability: ``normal`` survives the death of the process, ``full`` loss of power as well, at the cost of a disk flush per ``add``.

    Raises:
        DataError: no index there, and ``create`` is not set.
        ParameterError: another code length, or an engine that is not there.
        FormatError: damaged, of a newer format, or built with another model. An index built without ``model_fingerprint``
            takes the codes of any model.
    """
    scheme, separator, _ = str(uri_or_dir).partition("://")
    if separator:
        raise ParameterError(
            f"{scheme}:// is not an engine of this version, which has the embedded one only; give a folder instead"
        )
    return EmbeddedIndex(
        Path(uri_or_dir), n_bits=n_bits, create=create, model_fingerprint=model_fingerprint, durability=durability
    )
