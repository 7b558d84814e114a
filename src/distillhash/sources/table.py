"""Parquet tables, of encoded images (Hugging Face layout) or of embeddings, in one file or in shards."""

import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from distillhash.errors import DataError
from distillhash.sources import base
from distillhash.sources.base import BadItemError, EmbeddingSource, ImageSource, RowKeys, Source
from distillhash.sources.vectors import usable_vectors

_logger = logging.getLogger(__name__)
_IMAGE_NAMES = ("img", "image")
_VECTOR_NAMES = ("features", "embeddings", "embedding", "vectors", "vector")
_KEY_NAMES = ("key", "id", "path")
_BLOCK_BYTES = 16 << 20  # aimed at per block: about a hundred photos
_CACHE_BYTES = 256 << 20
_BUFFER_BYTES = 1 << 20  # of a column chunk read ahead, instead of all of it


def open_tables(files: Sequence[Path], name: str, *, label_names: Sequence[str] | None = None) -> Source:
    """One or several Parquet files of one layout as one source, rows in the order of ``files``; ``label_names`` replace those of the table.

    A table with a column of encoded images is a source of images, any other with a column of float lists a source of embeddings (read
    into memory; ``.npy`` is memory-mapped). Images are a struct with a binary ``bytes``, or a plain binary column: ``img`` or ``image``
    wins, then the only struct, then the only binary column. Of several columns of float lists, ``features``, ``embedding(s)`` or
    ``vector(s)`` wins. Keys are the first of ``key``, ``id``, ``path`` and the image's own ``path`` whose values are all there and
    unique, or else row numbers. Shards named ``train...parquet``, ``test...`` or ``validation...`` give the named splits.
    """
    import pyarrow.parquet as pq

    with readable_table(name):
        schemas = [pq.read_schema(path) for path in files]
        counts = [pq.read_metadata(path).num_rows for path in files]
        n = sum(counts)
        if n == 0:
            raise DataError(f"{name}: nothing usable, the table has no rows")
        images = {_image_column(schema, name) for schema in schemas}
        vectors = {_vector_column(schema, name) for schema in schemas} if images == {None} else {None}
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
        labels, found_names = _read_labels(files, n, name)
        labelling = {"labels": labels, "label_names": label_names or found_names, "splits": _splits(files, counts)}
        keys = _read_keys(files, image) or RowKeys("", range(n))
        if image is not None:
            return TableImages(name, files, image, keys, **labelling)
        table = usable_vectors(_read_vectors(files, str(vector), n, name), name)
        return EmbeddingSource(name, table, keys, **labelling)


@contextmanager
def readable_table(name: str) -> Iterator[None]:
    """Turn pyarrow's errors about a damaged file into a :class:`DataError`."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{name}: not a readable Parquet table ({str(error).splitlines()[0]}); check that the file is complete"
        ) from error


def read_column(files: Sequence[Path], column: str) -> Any:
    """The column at a dotted path over all files, read whole, as one pyarrow array; None where a file lacks it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    top, _, inner = column.partition(".")
    for path in files:
        schema = pq.read_schema(path)
        if top not in schema.names or (inner and schema.field(top).type.get_field_index(inner) < 0):
            return None
    tables = [pq.ParquetFile(path).read(columns=[column]) for path in files]
    values = pa.concat_tables(tables, promote_options="permissive").column(0).combine_chunks()
    return values.flatten()[0] if inner else values


class TableImages(ImageSource):
    """Encoded images in a column (a dotted path, e.g. ``image.bytes``) of Parquet files, read block by block when asked for.

    A row group is read in blocks of about 16 MiB and the most recent 256 MiB of them are kept, so a table of any size, row groups of any
    size included, costs that much memory and a data page or two (1,024 rows as pyarrow writes them). Reading rows roughly in order
    decodes everything once. Going back to a block no longer kept starts its row group again: for random access write row groups of a
    few hundred rows.
    """

    def __init__(self, name: str, files: Sequence[Path], column: str, keys: Sequence[str], **labelling: Any) -> None:
        super().__init__(name, keys, **labelling)
        self._blocks = _Blocks(files, column)
        self._rows = np.arange(len(keys))

    def _take(self, rows: NDArray[np.intp]) -> None:
        self._rows = self._rows[rows]  # the blocks in memory are shared

    def read(self, row: int) -> bytes:
        """The encoded image of item ``row``."""
        data = self._blocks.value(int(self._rows[row]))
        if not data:
            raise BadItemError("the table holds no image bytes in this row")
        return data


class _Group(NamedTuple):
    path: Path
    number: int
    n_rows: int
    block_rows: int  # rows of a block


class _Blocks:
    """Values of a binary column by row over all files, of which a bounded part is in memory; safe to use from several threads."""

    def __init__(self, files: Sequence[Path], column: str) -> None:
        import pyarrow.parquet as pq

        self._column = column
        self._groups: list[_Group] = []
        for path in files:
            metadata = pq.read_metadata(path)
            place = next(i for i in range(metadata.num_columns) if metadata.schema.column(i).path == column)
            for number in range(metadata.num_row_groups):
                group = metadata.row_group(number)
                if group.num_rows:
                    size = max(1, group.column(place).total_uncompressed_size)
                    block_rows = max(1, min(group.num_rows, _BLOCK_BYTES * group.num_rows // size))
                    self._groups.append(_Group(path, number, group.num_rows, block_rows))
        self._starts = np.cumsum([0, *(group.n_rows for group in self._groups)])[:-1]
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[int, int], Any] = OrderedDict()
        self._kept_bytes = 0
        self._running: tuple[int, int, Iterator[Any]] | None = None  # a group, its next block, the rest of its blocks

    def value(self, row: int) -> bytes | None:
        """The value of ``row``, None where it is null; a :class:`BadItemError` where that part of the file is damaged or gone."""
        place = int(np.searchsorted(self._starts, row, side="right")) - 1
        block, offset = divmod(row - int(self._starts[place]), self._groups[place].block_rows)
        with self._lock:
            if (place, block) not in self._kept:
                self._load(place, block)
            self._kept.move_to_end((place, block))
            values = self._kept[place, block]
        value: bytes | None = values[offset].as_py()
        return value

    def _load(self, place: int, block: int) -> None:
        """Read on in the row group as far as ``block``, or from its start where that is behind."""
        if self._running is None or self._running[0] != place or self._running[1] > block:
            self._running = (place, 0, self._read_group(self._groups[place]))
        _, following, blocks = self._running
        try:
            for number in range(following, block + 1):
                values = next(blocks)
                self._kept_bytes += values.nbytes - getattr(self._kept.get((place, number)), "nbytes", 0)
                self._kept[place, number] = values
                while self._kept_bytes > _CACHE_BYTES and len(self._kept) > 1:
                    self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes
            self._running = (place, block + 1, blocks)
        except Exception as error:  # ArrowInvalid, OSError; StopIteration where the file ends too early
            self._running = None
            group = self._groups[place]
            raise BadItemError(f"row group {group.number} of {group.path.name} cannot be read: {error}") from error

    def _read_group(self, group: _Group) -> Iterator[Any]:
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


def _image_column(schema: Any, name: str) -> str | None:
    """Dotted path of the column of encoded images; None without one."""
    import pyarrow.types as types

    def binary(field: Any) -> bool:
        return bool(types.is_binary(field.type) or types.is_large_binary(field.type))

    structs = [
        f.name for f in schema if types.is_struct(f.type) and any(c.name == "bytes" and binary(c) for c in f.type)
    ]
    plain = [f.name for f in schema if binary(f)]
    candidates = [column for column in _IMAGE_NAMES if column in structs + plain][:1] or structs or plain
    if len(candidates) > 1:
        raise DataError(
            f"{name}: several columns could hold the images ({', '.join(structs + plain)}); name one 'image'"
        )
    return next((f"{column}.bytes" if column in structs else column for column in candidates), None)


def _vector_column(schema: Any, name: str) -> str | None:
    """Name of the column of embeddings, lists (fixed-size or not) of floats; None without one."""
    import pyarrow.types as types

    found = [field.name for field in schema if _is_list(field.type) and types.is_floating(field.type.value_type)]
    candidates = [column for column in _VECTOR_NAMES if column in found][:1] or found
    if len(candidates) > 1:
        raise DataError(f"{name}: several columns could hold the embeddings ({', '.join(found)}); name one 'embedding'")
    return candidates[0] if candidates else None


def _is_list(kind: Any) -> bool:
    import pyarrow.types as types

    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _read_vectors(files: Sequence[Path], column: str, n: int, name: str) -> NDArray[Any]:
    """All rows of ``column`` as ``(n, d)`` floats, read one row group at a time into their final place."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    vectors: NDArray[Any] = np.empty((0, 0))
    row = 0
    for path in files:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                for chunk in file.read_row_group(group, columns=[column]).column(0).chunks:
                    lengths = np.asarray(pc.list_value_length(chunk).fill_null(-1)).astype(np.int64)
                    if not len(lengths):
                        continue
                    if row == 0:
                        vectors = np.empty((n, max(0, int(lengths[0]))), chunk.type.value_type.to_pandas_dtype())
                    bad = np.flatnonzero(lengths != vectors.shape[1])
                    if bad.size:
                        length = lengths[bad[0]]
                        what = "is null" if length < 0 else f"holds {length} numbers, not {vectors.shape[1]}"
                        raise DataError(
                            f"{name}: row {row + bad[0]} of the column {column!r} {what}; every item needs a vector of one length"
                        )
                    values = chunk.flatten().to_numpy(zero_copy_only=False)
                    vectors[row : row + len(chunk)] = values.reshape(len(chunk), -1)
                    row += len(chunk)
    return vectors


def _read_labels(files: Sequence[Path], n: int, name: str) -> tuple[NDArray[Any] | None, list[str] | None]:
    """The column ``label`` or ``labels`` as labels and class names (from Hugging Face metadata, or the strings themselves).

    A column with nulls, or of another type, is ignored with a logged warning: labels must not stop a training run.
    """
    import pyarrow.parquet as pq
    import pyarrow.types as types

    for column in ("label", "labels"):
        values = read_column(files, column)
        if values is not None:
            break
    else:
        return None, None
    if types.is_dictionary(values.type):
        values = values.dictionary_decode()
    kind = values.type
    where = f"{name}: the column {column!r}"
    names = _hugging_face_names(pq.read_schema(files[0]).metadata, column)
    if values.null_count:
        _logger.warning("%s has %d nulls; the labels are ignored", where, values.null_count)
    elif _is_list(kind) and types.is_integer(kind.value_type) and not values.flatten().null_count:
        indicators = base.label_sets(values.to_pylist(), where)
        absent = max(0, len(names or ()) - indicators.shape[1])
        return np.pad(indicators, ((0, 0), (0, absent))), names
    elif types.is_string(kind) or types.is_large_string(kind):
        return base.class_labels(np.array(values.to_pylist(), dtype=np.str_), n, where)
    elif types.is_integer(kind) or types.is_boolean(kind) or types.is_floating(kind):
        return base.class_labels(values.to_numpy(zero_copy_only=False), n, where)[0], names
    else:
        held = f"lists of {kind.value_type}" if _is_list(kind) else f"of type {kind}"
        _logger.warning("%s holds %s; labels are integers, strings or lists of integers, they are ignored", where, held)
    return None, None


def _hugging_face_names(metadata: dict[bytes, bytes] | None, column: str) -> list[str] | None:
    try:
        feature = json.loads((metadata or {})[b"huggingface"])["info"]["features"][column]
        names = feature.get("names") or feature["feature"]["names"]
        return [str(name) for name in names]
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _read_keys(files: Sequence[Path], image: str | None) -> list[str] | None:
    """The keys that the table has, see :func:`open_tables`."""
    own_path = [f"{image.rpartition('.')[0]}.path"] if image and "." in image else []
    for column in (*_KEY_NAMES, *own_path):
        values = read_column(files, column)
        keys = [] if values is None else values.to_pylist()
        if keys and all(isinstance(key, str | int) and key != "" for key in keys):
            texts = [str(key) for key in keys]
            if len(set(texts)) == len(texts):
                return texts
    return None


def _splits(files: Sequence[Path], counts: Sequence[int]) -> dict[str, NDArray[np.intp]]:
    splits = ("train", "test", "validation") if len(files) > 1 else ()
    members = {split: [number for number, path in enumerate(files) if path.stem.startswith(split)] for split in splits}
    owners = np.repeat(np.arange(len(files)), counts)
    return {split: np.flatnonzero(np.isin(owners, numbers)) for split, numbers in members.items() if numbers}
