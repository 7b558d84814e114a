"""Parquet tables, of encoded images (Hugging Face layout) or of embeddings, in one file or in shards."""

from __future__ import annotations

import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash.errors import DataError
from distillhash.sources.base import (
    BadItemError,
    ImageSource,
    RowKeys,
    Source,
    check_rows,
    class_labels,
    label_sets,
    take_keys,
    take_labels,
)
from distillhash.sources.vectors import Vectors, usable_vectors

# Which column of a Parquet table is what, and the small columns read whole: labels, keys, vectors.

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

    Integers, strings, or lists of integers (see :func:`distillhash.sources.base.label_sets`). A column with nulls, or of another
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


# One binary column of Parquet files, read by row number without ever holding the whole of it.

_BLOCK_BYTES = 16 << 20  # aimed at per block: about a hundred photos
_CACHE_BYTES = 256 << 20
_BUFFER_BYTES = 1 << 20  # of a column chunk read ahead, instead of all of it


@dataclass(frozen=True)
class _Group:
    """One row group: where it lies, its first row overall, its rows, and how many of them make a block."""

    path: Path
    number: int
    start: int
    n_rows: int
    block_rows: int


class BinaryColumn:
    """Values of a binary column, by row over all files. Safe to use from several threads.

    A row group is read in blocks of about 16 MiB and the most recent 256 MiB of them are kept, so a table of any size, row groups of any
    size included, costs that much memory and a data page or two (1,024 rows as pyarrow writes them). Reading rows roughly in order
    decodes everything once. Going back to a block no longer kept starts its row group again: for random access write row groups of a
    few hundred rows.
    """

    def __init__(self, files: Sequence[Path], column: str) -> None:
        """Read the footers of ``files``; ``column`` is the dotted Parquet path of the column, e.g. ``image.bytes``."""
        import pyarrow.parquet as pq

        self._column = column
        self._groups: list[_Group] = []
        start = 0
        for path in files:
            metadata = pq.read_metadata(path)
            place = next(i for i in range(metadata.num_columns) if metadata.schema.column(i).path == column)
            for number in range(metadata.num_row_groups):
                group = metadata.row_group(number)
                if group.num_rows == 0:
                    continue
                size = max(1, group.column(place).total_uncompressed_size)
                block_rows = max(1, min(group.num_rows, _BLOCK_BYTES * group.num_rows // size))
                self._groups.append(_Group(path, number, start, group.num_rows, block_rows))
                start += group.num_rows
        self._starts = np.array([group.start for group in self._groups], np.int64)
        self._n_rows = start
        self._lock = threading.Lock()
        self._cache: OrderedDict[tuple[int, int], Any] = OrderedDict()
        self._cached_bytes = 0
        self._open: tuple[int, int, Iterator[Any]] | None = None  # group, its next block, the rest of its batches

    def __len__(self) -> int:
        return self._n_rows

    def read(self, row: int) -> bytes | None:
        """The value of ``row``, None where it is null.

        Raises:
            BadItemError: that part of the file is damaged or gone.
        """
        place = int(np.searchsorted(self._starts, row, side="right")) - 1
        group = self._groups[place]
        block, offset = divmod(row - group.start, group.block_rows)
        with self._lock:
            values = self._block(place, block)
        value: bytes | None = values[offset].as_py()
        return value

    def _block(self, place: int, block: int) -> Any:
        if (place, block) in self._cache:
            self._cache.move_to_end((place, block))
            return self._cache[place, block]
        if self._open is None or self._open[0] != place or self._open[1] > block:
            self._open = (place, 0, self._batches(self._groups[place]))
        _, following, batches = self._open
        try:
            for number in range(following, block + 1):
                values = next(batches)
                self._keep((place, number), values)
            self._open = (place, block + 1, batches)
        except (
            Exception
        ) as error:  # pyarrow raises ArrowInvalid, OSError, and StopIteration is a file shorter than its footer says
            self._open = None
            group = self._groups[place]
            raise BadItemError(f"row group {group.number} of {group.path.name} cannot be read: {error}") from error
        return values

    def _batches(self, group: _Group) -> Iterator[Any]:
        import pyarrow.parquet as pq

        with pq.ParquetFile(group.path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
            left = group.n_rows
            for batch in file.iter_batches(
                group.block_rows, row_groups=[group.number], columns=[self._column], use_threads=False
            ):
                if len(batch) != min(group.block_rows, left):
                    raise OSError(f"{len(batch)} rows came where {min(group.block_rows, left)} were expected")
                left -= len(batch)
                values = batch.column(0)
                yield values.flatten()[0] if "." in self._column else values

    def _keep(self, key: tuple[int, int], values: Any) -> None:
        self._cache[key] = values
        self._cached_bytes += values.nbytes
        while self._cached_bytes > _CACHE_BYTES and len(self._cache) > 1:
            _, dropped = self._cache.popitem(last=False)
            self._cached_bytes -= dropped.nbytes


class TableImages(ImageSource):
    """Encoded images in Parquet files, read block by block when asked for."""

    def __init__(
        self,
        name: str,
        column: BinaryColumn,
        *,
        keys: Sequence[str],
        labels: NDArray[Any] | None = None,
        label_names: Sequence[str] | None = None,
        splits: Mapping[str, NDArray[np.intp]] | None = None,
        rows: NDArray[np.intp] | None = None,
    ) -> None:
        """Wrap ``column``; item i is its row ``rows[i]``, or row i without ``rows``."""
        self.name = name
        self.keys = keys
        self.labels = labels
        self.label_names = label_names
        self.splits = splits or {}
        self._column = column
        self._rows = np.arange(len(column)) if rows is None else rows

    def select(self, rows: NDArray[np.intp]) -> TableImages:
        """The images of ``rows``; they share this source's cache."""
        rows = check_rows(rows, len(self))
        return TableImages(
            self.name,
            self._column,
            keys=take_keys(self.keys, rows),
            labels=take_labels(self.labels, rows),
            label_names=self.label_names,
            rows=self._rows[rows],
        )

    def read(self, row: int) -> bytes:
        """The encoded image of item ``row``."""
        data = self._column.read(int(self._rows[row]))
        if not data:
            raise BadItemError("the table holds no image bytes in this row")
        return data


def open_tables(files: Sequence[Path], name: str, *, label_names: Sequence[str] | None = None) -> Source:
    """One or several Parquet files of one layout as one source, rows in the order of ``files``.

    A table with a column of encoded images is a source of images, any other with a column of float lists a source of embeddings (read
    into memory; ``.npy`` is memory-mapped). See :mod:`distillhash.sources.table` for how columns are found. Shards named
    ``train...parquet``, ``test...`` or ``validation...`` give the named splits.

    Args:
        files: Paths, at least one.
        name: The specification, for messages.
        label_names: Class names instead of those found in the table.

    Raises:
        DataError: damaged, no rows, no usable column, or shards that differ in it.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schemas = [pq.read_schema(path) for path in files]
        counts = [pq.read_metadata(path).num_rows for path in files]
        n = sum(counts)
        if n == 0:
            raise DataError(f"{name}: nothing usable, the table has no rows")
        images = {image_column(schema, name) for schema in schemas}
        vectors = {vector_column(schema, name) for schema in schemas} if images == {None} else {None}
        if len(images) > 1 or len(vectors) > 1:
            raise DataError(
                f"{name}: the {len(files)} files have different columns; give files of one layout, or one file"
            )
        image, vector = images.pop(), vectors.pop()
        if image is None and vector is None:
            held = ", ".join(f"{field.name}: {field.type}" for field in schemas[0])
            raise DataError(
                f"{name}: no column of images (a struct with 'bytes', or binary) nor of embeddings (lists of floats) among {held}; "
                "codes tables are not a source"
            )
        labels, found_names = read_labels(files, n, name)
        label_names = label_names or found_names
        keys = read_keys(files, image) or RowKeys("", range(n))
        splits = _splits(files, counts)
        if image is not None:
            column = BinaryColumn(files, image)
            return TableImages(name, column, keys=keys, labels=labels, label_names=label_names, splits=splits)
        table = usable_vectors(read_vectors(files, str(vector), n, name), name)
        return Vectors(name, table, keys=keys, labels=labels, label_names=label_names, splits=splits)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{name}: not a readable Parquet table ({str(error).splitlines()[0]}); check that the file is complete"
        ) from error


def _splits(files: Sequence[Path], counts: Sequence[int]) -> dict[str, NDArray[np.intp]]:
    stops = np.cumsum(counts)
    splits: dict[str, NDArray[np.intp]] = {}
    for split in ("train", "test", "validation"):
        runs = [
            np.arange(stop - count, stop)
            for path, count, stop in zip(files, counts, stops, strict=True)
            if path.stem.startswith(split)
        ]
        if runs and len(files) > 1:
            splits[split] = np.concatenate(runs)
    return splits
