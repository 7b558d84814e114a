"""One binary column of Parquet files, read by row number without ever holding the whole of it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distillhash.sources.base import BadItemError

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
