"""Parquet tables, of images (Hugging Face layout) or of embeddings, in one file or in shards."""

import errno
import json
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from distillhash.errors import DataError, ParameterError
from distillhash.files import MAX_FILE_SIZE
from distillhash.sources import base
from distillhash.sources.base import (
    BadItemError,
    Columns,
    EmbeddingSource,
    ImageSource,
    RowKeys,
    Source,
    fitting_names,
    no_column,
)
from distillhash.sources.decode import image_format
from distillhash.sources.files import path_exists, read_image
from distillhash.sources.parquet import (
    Blocks,
    Names,
    column_batches,
    column_type,
    find_column,
    open_parquet,
    read_column,
    readable_table,
)
from distillhash.sources.vectors import usable_vectors

_logger = logging.getLogger(__name__)
_IMAGE_NAMES = ("img", "image")
_PATH_NAMES = ("image", "img", "file_name", "filename", "image_path", "path", "file")
_VECTOR_NAMES = ("features", "embeddings", "embedding", "vectors", "vector")
_LABEL_NAMES = ("label", "labels")
_KEY_NAMES = ("key", "id", "path")
_SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
_SPLITS |= dict.fromkeys(("validation", "valid", "val"), "validation")
_MAX_NAMES = 100_000  # classes that the metadata may name
_PROBED = 1000  # rows among which a first image is looked for


class _Images(NamedTuple):
    """Where the images of a table are: their encoded bytes, the paths of their files, or both (of which a row has one)."""

    data: Names | None
    path: Names | None

    @property
    def columns(self) -> list[Names]:
        return [names for names in self if names is not None]


def open_tables(
    files: Sequence[Path],
    name: str,
    *,
    columns: Columns = Columns(),  # noqa: B008  # immutable
    label_names: Sequence[str] | None = None,
    root: Path | None = None,
) -> Source:
    """One or several Parquet files of one layout as one source, rows in the order of ``files``; ``label_names`` replace those of the table.

    A table is a source of images or of embeddings (lists of floats, read into memory; ``.npy`` is memory-mapped). Images are a struct
    with binary ``bytes`` and a ``path`` (absolute, or relative to the table's folder) for rows that have no bytes, or a plain binary
    column: ``img`` or ``image`` wins, then the only struct, then the only binary column. In a table that has both, images win when they
    are in a struct or under one of these names and the first of them is one. Of several columns of embeddings ``features``,
    ``embedding(s)`` or ``vector(s)`` wins. A table with neither may name image files in a column of strings, ``image``, ``img``,
    ``file_name``, ``filename``, ``image_path``, ``path`` or ``file``. ``columns`` choose others, dotted where they lie in structs.

    Keys are the first of ``key``, ``id``, ``path`` and the image's own ``path`` whose values are all there and unique, or else row numbers.
    Below a folder ``root``, folders named ``column=value`` are columns. Files named ``train...parquet``, ``test...`` or ``validation...``,
    or those in such folders, give the named splits.
    """
    with readable_table(name):
        schemas, counts = [], []
        for path in files:
            with open_parquet(path) as table:
                schemas.append(table.schema_arrow)
                counts.append(table.metadata.num_rows)
        n = sum(counts)
        if n == 0:
            raise DataError(f"{name}: nothing usable, the table has no rows")
        images, vector = _choose(files, schemas[0], columns, name)
        wanted = [vector] if images is None else images.columns
        if any(find_column(schema, ".".join(names)) is None for schema in schemas for names in wanted if names):
            raise DataError(
                f"{name}: the {len(files)} files have different columns; give files of one layout, or one file"
                f" ({_layouts(files, schemas, root)})"
            )
        partitions = _partitions(files, root)
        labels, found_names = _labels(files, schemas, counts, partitions, columns.label, name)
        fitting = None if labels is None else fitting_names(label_names or found_names, labels)
        labelling = {"labels": labels, "label_names": fitting, "splits": _splits(files, counts, root, partitions)}
        keys = _read_keys(files, schemas, n, None if images is None else images.path)
        if images is None:
            assert vector is not None
            table = usable_vectors(_read_vectors(files, vector, n, name), name)
            return EmbeddingSource(name, table, keys, **labelling)
        return TableImages(name, files, images, keys or RowKeys("", range(n)), **labelling)


class TableImages(ImageSource):
    """Images in a column of Parquet files, read block by block when asked for, or from the files that it names.

    A row group is read in blocks of about 16 MiB and the most recent 256 MiB of them are kept, so a table of any size, row groups of any
    size included, costs that much memory and a data page or two (1,024 rows as pyarrow writes them). Reading rows roughly in order
    decodes everything once. Going back to a block no longer kept starts its row group again: for random access write row groups of a
    few hundred rows. An image of more than ``max_file_size`` bytes is not read, nor is a row group of which a page unpacks to more
    than four times that, or from next to nothing to more than that.
    """

    def __init__(
        self, name: str, files: Sequence[Path], images: _Images, keys: Sequence[str], **labelling: Any
    ) -> None:
        super().__init__(name, keys, **labelling)
        self._images, self._blocks = images, Blocks(files, images.columns)
        self._rows: range | NDArray[np.intp] = range(len(keys))

    def _take(self, rows: NDArray[np.intp]) -> None:
        self._rows = rows if isinstance(self._rows, range) else self._rows[rows]  # the blocks in memory are shared

    def read(self, row: int) -> bytes:
        """The encoded image of item ``row``."""
        place = int(self._rows[row])
        values = self._blocks.values(place, self.max_file_size)
        data = values[0] if self._images.data is not None else None
        path = values[-1] if self._images.path is not None else None
        if data:
            return bytes(data)
        if path:
            return read_image(os.path.join(self._blocks.folder(place), path), self.max_file_size)  # noqa: PTH118
        raise BadItemError("the table holds no image bytes in this row, and no path")


def _choose(files: Sequence[Path], schema: Any, columns: Columns, name: str) -> tuple[_Images | None, Names | None]:
    """The images or else the embeddings of a table, see :func:`open_tables`."""
    held = _held(schema)
    if columns.image is not None and columns.embedding is not None:
        raise ParameterError(f"{name}: --image-column and --embedding-column exclude each other; give one of them")
    if columns.image is not None:
        images = _as_images(schema, _found(schema, columns.image, "--image-column", name))
        if images is None:
            raise ParameterError(
                f"{name}: the column {columns.image!r} holds no images (a struct with 'bytes' or 'path', binary, or paths); it holds {held}"
            )
        return images, None
    if columns.embedding is not None:
        names = _found(schema, columns.embedding, "--embedding-column", name)
        if not _is_vectors(column_type(schema, names), whole=True):
            raise ParameterError(
                f"{name}: the column {columns.embedding!r} holds no embeddings (lists of floats); it holds {held}"
            )
        return None, names
    vectors = [f.name for f in schema if _is_vectors(column_type(schema, (f.name,)), whole=f.name in _VECTOR_NAMES)]
    vectors = [column for column in _VECTOR_NAMES if column in vectors][:1] or vectors
    found = {f.name: images for f in schema if (images := _as_images(schema, (f.name,))) is not None}
    structs = [column for column, images in found.items() if images.data not in (None, (column,))]
    plain = [column for column, images in found.items() if images.data == (column,)]
    named = [column for column in _IMAGE_NAMES if column in structs + plain][:1]
    candidates = named or structs or plain
    if vectors and candidates:
        is_sure = len(candidates) == 1 and (named or structs) and _holds_images(files, found[candidates[0]])
        candidates, vectors = (candidates, []) if is_sure else ([], vectors)
    for several, what, option in ((candidates, "images", "image"), (vectors, "embeddings", "embedding")):
        if len(several) > 1:
            raise DataError(
                f"{name}: several columns could hold the {what} ({', '.join(several)}); name one {option!r}, "
                f"or choose it with --{option}-column"
            )
    if vectors:
        return None, (vectors[0],)
    paths = [column for column in _PATH_NAMES if column in found]
    if candidates or paths:
        return found[(candidates or paths)[0]], None
    raise DataError(
        f"{name}: no column of images (a struct with 'bytes', or binary) nor of embeddings (lists of floats) among {held}; "
        "choose one with --image-column or --embedding-column (codes tables are not a source)"
    )


def _held(schema: Any) -> str:
    text = ", ".join(f"{field.name}: {field.type}" for field in schema)
    return text if len(text) <= 1000 else f"{text[:1000]} ..."


def _found(schema: Any, wanted: str, option: str, name: str) -> Names:
    names = find_column(schema, wanted)
    if names is None:
        raise no_column(option, wanted, name, _held(schema))
    return names


def _is_any(kind: Any, *names: str) -> bool:
    import pyarrow.types as types

    return any(getattr(types, f"is_{name}")(kind) for name in names)


def _is_binary(kind: Any) -> bool:
    return _is_any(kind, "binary", "large_binary", "binary_view")


def is_text(kind: Any) -> bool:
    """Whether a column of this type holds strings."""
    return _is_any(kind, "string", "large_string", "string_view")


def is_list(kind: Any) -> bool:
    """Whether a column of this type holds lists."""
    return _is_any(kind, "list", "large_list", "fixed_size_list", "list_view", "large_list_view")


def _as_images(schema: Any, names: Names) -> _Images | None:
    """A column as images, None where its type is of no use."""
    kind = column_type(schema, names)
    if _is_any(kind, "struct"):
        inner = {field.name: column_type(schema, (*names, field.name)) for field in kind}
        data = (*names, "bytes") if "bytes" in inner and _is_binary(inner["bytes"]) else None
        path = (*names, "path") if "path" in inner and is_text(inner["path"]) else None
        return _Images(data, path) if data or path else None
    return _Images(names, None) if _is_binary(kind) else _Images(None, names) if is_text(kind) else None


def _holds_images(files: Sequence[Path], images: _Images) -> bool:
    """Whether the first row that is not null is an image: known bytes, or the path of a file."""
    blocks = Blocks(files[:1], images.columns)
    for row in range(min(len(blocks), _PROBED)):
        try:
            values = blocks.values(row, MAX_FILE_SIZE)
            if images.data and values[0]:
                return bool(image_format(values[0]))
            if images.path and values[-1]:
                return path_exists(blocks.folder(row) / values[-1])
        except BadItemError:
            return False
    return False


def _is_vectors(kind: Any, *, whole: bool) -> bool:
    """Whether a type is a list (fixed-size or not) of floats, or of integers where ``whole`` numbers count."""
    return is_list(kind) and _is_any(kind.value_type, "floating", *(["integer"] if whole else []))


def _read_vectors(files: Sequence[Path], column: Names, n: int, name: str) -> NDArray[Any]:
    """All rows of ``column`` as ``(n, d)`` floats, read some thousand rows at a time into their final place."""
    import pyarrow.compute as pc

    vectors: NDArray[Any] = np.empty((0, 0))
    row = 0
    for path in files:
        for chunk in column_batches(path, column):
            lengths = np.asarray(pc.list_value_length(chunk).fill_null(-1)).astype(np.int64)
            if not len(lengths):
                continue
            if row == 0:
                kind = chunk.type.value_type.to_pandas_dtype()
                if _is_any(chunk.type.value_type, "integer"):
                    kind = np.float32
                    _logger.warning("%s: embeddings of type %s are cast to float32", name, chunk.type.value_type)
                vectors = np.empty((n, max(0, int(lengths[0]))), kind)
            bad = np.flatnonzero(lengths != vectors.shape[1])
            if bad.size:
                length = lengths[bad[0]]
                what = "is null" if length < 0 else f"holds {length} numbers, not {vectors.shape[1]}"
                raise DataError(
                    f"{name}: row {row + bad[0]} of the column {'.'.join(column)!r} {what}; every item needs a vector of one length"
                )
            values = chunk.flatten().to_numpy(zero_copy_only=False)
            if row + len(chunk) > n:
                raise OSError(errno.EIO, f"more than the {n} rows that its footer states")
            vectors[row : row + len(chunk)] = values.reshape(len(chunk), -1)
            row += len(chunk)
    if row < n:
        raise OSError(errno.EIO, f"{row} of the {n} rows that its footer states")
    return vectors


def _labels(
    files: Sequence[Path],
    schemas: Sequence[Any],
    counts: Sequence[int],
    partitions: dict[str, list[str | None]],
    chosen: str | None,
    name: str,
) -> tuple[NDArray[Any] | None, Sequence[str] | None]:
    """Labels and class names from ``chosen``, ``label`` or ``labels``; those of no use stop nothing, unless they were asked for."""
    import pyarrow as pa

    def places(column: str) -> list[Names | None]:
        return [find_column(schema, column) for schema in schemas]

    candidates = _LABEL_NAMES if chosen is None else (chosen,)
    column = next((name for name in candidates if name in partitions or None not in places(name)), None)
    if column is None:
        if chosen is not None:
            raise no_column("--label-column", chosen, name, _held(schemas[0]))
        return None, None
    where, found = f"{name}: the column {column!r}", places(column)
    try:
        if found[0] is None or None in found:
            return _partition_labels(partitions[column], counts, where)
        return _column_labels(read_column(files, found[0]), sum(counts), where, schemas[0].metadata, column)
    except (pa.ArrowException, OSError, ValueError, TypeError, OverflowError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        message = reason if isinstance(error, DataError) else f"{where} cannot be used as labels ({reason})"
        if chosen is not None:
            raise DataError(message) from error
        _logger.warning("%s; the labels are ignored", message)
        return None, None


def _column_labels(
    values: Any, n: int, where: str, metadata: dict[bytes, bytes] | None, column: str
) -> tuple[NDArray[Any], Sequence[str] | None]:
    """A column as labels and class names (from Hugging Face metadata, or the strings themselves)."""
    if _is_any(values.type, "dictionary"):
        values = values.dictionary_decode()
    kind, names = values.type, _hugging_face_names(metadata, column)
    if values.null_count:
        raise DataError(f"{where} has {values.null_count} nulls")
    if is_list(kind) and _is_any(kind.value_type, "integer") and not values.flatten().null_count:
        if len(values) != n:
            raise DataError(f"{where} has {len(values)} values for {n} rows")
        indicators = base.label_sets(values.to_pylist(), where)
        absent = max(0, min(len(names or ()), _MAX_NAMES) - indicators.shape[1])
        return np.pad(indicators, ((0, 0), (0, absent))), names
    if is_text(kind):
        return base.class_labels(np.array(values.to_pylist(), dtype=np.str_), n, where)
    if _is_any(kind, "integer", "boolean", "floating"):
        return base.class_labels(values.to_numpy(zero_copy_only=False), n, where)[0], names
    held = f"holds lists of {kind.value_type}" if is_list(kind) else f"is of type {kind}"
    raise DataError(f"{where} {held}; labels are integers, strings or lists of integers")


def _partition_labels(
    values: Sequence[str | None], counts: Sequence[int], where: str
) -> tuple[NDArray[Any], Sequence[str] | None]:
    """Labels from the names of folders, one for each file."""
    if None in values:
        raise DataError(f"{where} is not in the path of every file")
    texts = np.array(values, np.str_)
    whole = all(re.fullmatch(r"-?\d{1,18}", str(value)) for value in values)
    return base.class_labels(np.repeat(texts.astype(np.int64) if whole else texts, counts), sum(counts), where)


def _hugging_face_names(metadata: dict[bytes, bytes] | None, column: str) -> list[str] | None:
    try:
        feature = json.loads((metadata or {})[b"huggingface"])["info"]["features"][column]
        names = feature.get("names") or feature["feature"]["names"]
        return [str(name) for name in names] if isinstance(names, list) else None
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return None


def _read_keys(files: Sequence[Path], schemas: Sequence[Any], n: int, own_path: Names | None) -> list[str] | None:
    """The keys that the table has, see :func:`open_tables`."""
    for names in (*((name,) for name in _KEY_NAMES), *([own_path] if own_path else [])):
        if any(find_column(schema, ".".join(names)) != names for schema in schemas):
            continue
        try:
            keys = read_column(files, names).to_pylist()
        except (OSError, UnicodeDecodeError) as error:
            _logger.warning("the column %r gives no keys: %s", ".".join(names), getattr(error, "strerror", error))
            continue
        if len(keys) == n and all(isinstance(key, str | int) and key != "" for key in keys):
            texts = [str(key) for key in keys]
            if len(set(texts)) == len(texts):
                return texts
    return None


def _partitions(files: Sequence[Path], root: Path | None) -> dict[str, list[str | None]]:
    """The columns that folders named ``column=value`` below ``root`` stand for: a value for each file, None where it has none."""
    found: dict[str, list[str | None]] = {}
    for number, path in enumerate(files):
        for part in _below(path, root):
            column, equals, value = part.partition("=")
            if equals and column and value != "__HIVE_DEFAULT_PARTITION__":
                found.setdefault(unquote(column), [None] * len(files))[number] = unquote(value)
    return found


def _below(path: Path, root: Path | None) -> tuple[str, ...]:
    """The folders between ``root`` and a file."""
    return () if root is None else path.parent.relative_to(root).parts


def _layouts(files: Sequence[Path], schemas: Sequence[Any], root: Path | None) -> str:
    """Which files have which columns, for a message."""
    groups: dict[str, list[str]] = {}
    for path, schema in zip(files, schemas, strict=True):
        groups.setdefault(", ".join(schema.names), []).append("/".join((*_below(path, root), path.name)))
    shown = [f"{', '.join(paths[:2])}{' ...' * (len(paths) > 2)}: {names:.200}" for names, paths in groups.items()]
    return "; ".join(shown[:4])


def _splits(
    files: Sequence[Path], counts: Sequence[int], root: Path | None, partitions: dict[str, list[str | None]]
) -> dict[str, NDArray[np.intp]]:
    """Rows of the splits that the names of files or folders say."""
    if len(files) == 1 and root is None:
        return {}
    owners = np.repeat(np.arange(len(files)), counts)
    found = np.array([_split_of(path, root, number, partitions) for number, path in enumerate(files)])
    names = sorted(set(found.tolist()) - {""}, key=[*_SPLITS.values(), *np.unique(found).tolist()].index)
    return {split: np.flatnonzero(found[owners] == split) for split in names}


def _split_of(path: Path, root: Path | None, number: int, partitions: dict[str, list[str | None]]) -> str:
    """The split a file belongs to, "" for none: by a folder ``split=...``, by its own name, or by its nearest folder."""
    named = partitions.get("split", [])
    if named and named[number]:
        return _SPLITS.get(str(named[number]).lower(), str(named[number]))
    for split in ("train", "test", "validation"):
        if path.stem.startswith(split):
            return split
    for name in (path.stem, *reversed(_below(path, root))):
        word = re.match("[a-z]*", name.lower())
        if word is not None and word[0] in _SPLITS:
            return _SPLITS[word[0]]
    return ""
