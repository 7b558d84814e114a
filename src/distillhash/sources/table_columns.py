"""Which column of a Parquet table is what, and the small columns read whole: labels, keys, vectors."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash.errors import DataError
from distillhash.sources.labels import class_labels, label_sets

_logger = logging.getLogger(__name__)

_IMAGE_NAMES = ("img", "image")
_VECTOR_NAMES = ("features", "embeddings", "embedding", "vectors", "vector")
_KEY_NAMES = ("key", "id", "path")
_LABEL_NAMES = ("label", "labels")


def image_column(schema: Any, name: str) -> str | None:
    """Dotted path of the column of encoded images: a struct with a binary ``bytes``, or a plain binary column; None without one.

    ``img`` or ``image`` wins, then the only struct, then the only binary column.

    Raises:
        DataError: several candidates.
    """
    import pyarrow.types as types

    def binary(kind: Any) -> bool:
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    structs = [
        f.name for f in schema if types.is_struct(f.type) and any(c.name == "bytes" and binary(c.type) for c in f.type)
    ]
    plain = [f.name for f in schema if binary(f.type)]
    chosen = _choose(structs + plain, _IMAGE_NAMES) or _choose(structs, ()) or _choose(plain if not structs else [], ())
    if chosen is None and structs + plain:
        raise DataError(
            f"{name}: several columns could hold the images ({', '.join(structs + plain)}); name one 'image'"
        )
    return f"{chosen}.bytes" if chosen in structs else chosen


def vector_column(schema: Any, name: str) -> str | None:
    """Name of the column of embeddings: lists (fixed-size or not) of floats; None without one.

    ``features``, ``embedding(s)`` or ``vector(s)`` wins, then the only such column.

    Raises:
        DataError: several candidates.
    """
    import pyarrow.types as types

    def floats(kind: Any) -> bool:
        lists = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
        return bool(lists and types.is_floating(kind.value_type))

    found = [field.name for field in schema if floats(field.type)]
    chosen = _choose(found, _VECTOR_NAMES) or _choose(found, ())
    if chosen is None and found:
        raise DataError(f"{name}: several columns could hold the embeddings ({', '.join(found)}); name one 'embedding'")
    return chosen


def read_vectors(files: Sequence[Path], column: str, n: int, name: str) -> NDArray[Any]:
    """All rows of ``column`` as ``(n, d)`` floats, read one row group at a time into their final place.

    Raises:
        DataError: an absent row, or rows of different lengths.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    vectors: NDArray[Any] | None = None
    row = 0
    for path in files:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                for chunk in file.read_row_group(group, columns=[column]).column(0).chunks:
                    lengths = np.asarray(pc.list_value_length(chunk).fill_null(-1)).astype(np.int64)
                    if not len(lengths):
                        continue
                    if vectors is None:
                        dtype = chunk.type.value_type.to_pandas_dtype()
                        vectors = np.empty((n, max(0, int(lengths[0]))), dtype)
                    odd = np.flatnonzero(lengths != vectors.shape[1])
                    if chunk.null_count or odd.size:
                        bad = int(np.flatnonzero(lengths < 0)[0]) if chunk.null_count else int(odd[0])
                        what = (
                            "is null" if lengths[bad] < 0 else f"holds {lengths[bad]} numbers, not {vectors.shape[1]}"
                        )
                        raise DataError(
                            f"{name}: row {row + bad} of the column {column!r} {what}; every item needs a vector of one length"
                        )
                    vectors[row : row + len(chunk)] = (
                        chunk.flatten().to_numpy(zero_copy_only=False).reshape(len(chunk), -1)
                    )
                    row += len(chunk)
    if vectors is None:
        raise DataError(f"{name}: nothing usable, the column {column!r} has no rows")
    return vectors


def read_labels(files: Sequence[Path], n: int, name: str) -> tuple[NDArray[Any] | None, list[str] | None]:
    """The column ``label`` or ``labels`` as labels and class names (from Hugging Face metadata, or the strings themselves).

    Integers, strings, or lists of integers (see :func:`distillhash.sources.labels.label_sets`). A column with nulls, or of another
    type, is ignored with a logged warning: labels are for evaluation only, and must not stop a training run.
    """
    import pyarrow.types as types

    column, table = _read_first(files, _LABEL_NAMES)
    if column is None:
        return None, None
    values = table.column(0).combine_chunks()
    if types.is_dictionary(values.type):
        values = values.dictionary_decode()
    kind = values.type
    where = f"{name}: the column {column!r}"
    names = _hugging_face_names(table.schema.metadata, column)
    if values.null_count:
        _logger.warning("%s has %d nulls; the labels are ignored", where, values.null_count)
        return None, None
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        if not types.is_integer(kind.value_type) or values.flatten().null_count:
            _logger.warning(
                "%s holds lists of %s; labels are lists of integers, these are ignored", where, kind.value_type
            )
            return None, None
        indicators = label_sets(values.to_pylist(), where)
        if names is not None and len(names) > indicators.shape[1]:
            indicators = np.pad(indicators, ((0, 0), (0, len(names) - indicators.shape[1])))
        return indicators, names
    if types.is_string(kind) or types.is_large_string(kind):
        return class_labels(np.array(values.to_pylist(), dtype=np.str_), n, where)
    if types.is_integer(kind) or types.is_boolean(kind) or types.is_floating(kind):
        return class_labels(values.to_numpy(zero_copy_only=False), n, where)[0], names
    _logger.warning(
        "%s is of type %s; labels are integers, strings or lists of integers, these are ignored", where, kind
    )
    return None, None


def read_keys(files: Sequence[Path], image: str | None) -> list[str] | None:
    """Keys from the first of ``key``, ``id``, ``path`` and the image's own ``path`` whose values are all there and unique, else None."""
    candidates = [*_KEY_NAMES, *([f"{image.rpartition('.')[0]}.path"] if image and "." in image else [])]
    for candidate in candidates:
        column, table = _read_first(files, (candidate,))
        if column is None:
            continue
        values = table.column(0)
        if "." in candidate:
            values = values.combine_chunks().flatten()[0]
        keys = values.to_pylist()
        if all(isinstance(key, str | int) and key != "" for key in keys):
            texts = [str(key) for key in keys]
            if len(set(texts)) == len(texts):
                return texts
    return None


def _read_first(files: Sequence[Path], names: Sequence[str]) -> tuple[str | None, Any]:
    """The first of the columns ``names`` that every file has, and a table of just it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    paths = [
        {schema.column(i).path for i in range(len(schema))}
        for schema in (pq.read_metadata(path).schema for path in files)
    ]
    tops = [{path.partition(".")[0] for path in per_file} for per_file in paths]
    for name in names:
        if all(name in (per_file if "." in name else top) for per_file, top in zip(paths, tops, strict=True)):
            tables = [pq.ParquetFile(path).read(columns=[name]) for path in files]
            return name, pa.concat_tables(tables, promote_options="permissive")
    return None, None


def _hugging_face_names(metadata: dict[bytes, bytes] | None, column: str) -> list[str] | None:
    try:
        feature = json.loads((metadata or {})[b"huggingface"])["info"]["features"][column]
        names = feature.get("names") or feature["feature"]["names"]
        return [str(name) for name in names]
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _choose(found: Sequence[str], preferred: Sequence[str]) -> str | None:
    for name in preferred:
        if name in found:
            return name
    return found[0] if not preferred and len(found) == 1 else None
