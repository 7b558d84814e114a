"""Parquet tables, of encoded images (Hugging Face layout) or of embeddings, in one file or in shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash.errors import DataError
from distillhash.sources.base import BadItemError, ImageSource, Source
from distillhash.sources.rows import RowKeys, check_rows, take_keys, take_labels
from distillhash.sources.table_blocks import BinaryColumn
from distillhash.sources.table_columns import image_column, read_keys, read_labels, read_vectors, vector_column
from distillhash.sources.vectors import Vectors, usable_vectors


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
    into memory; ``.npy`` is memory-mapped). See :mod:`distillhash.sources.table_columns` for how columns are found. Shards named
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
