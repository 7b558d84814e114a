"""Parquet files, read in bounded memory: what a file says of itself is checked before anything is unpacked.

A few bytes of Parquet may stand for gigabytes: pages are compressed, a dictionary holds a value once for any number of rows, and the
sizes in the footer need not be true. The headers of the pages are, since the reader itself follows them; they are read first.
"""

import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from distillhash.errors import DataError
from distillhash.files import MAX_FILE_SIZE, open_regular
from distillhash.sources.base import BadItemError
from distillhash.sources.vectors import check_unpacked

_BLOCK_BYTES = 16 << 20  # aimed at per block: about a hundred photos
_CACHE_BYTES = 256 << 20
_BUFFER_BYTES = 1 << 20  # of a column chunk read ahead, instead of all of it
_BLOCK_ROWS = 1 << 16
_HEADER_BYTES = 1 << 14  # of a page header read at once; those with long statistics take more
_MAX_HEADER_BYTES = 1 << 24
_PLAIN, _DICTIONARY_ENCODINGS, _DELTA_BYTE_ARRAY = 0, {2, 8}, 7  # numbers of parquet.thrift
_DATA_PAGE, _DICTIONARY_PAGE, _DATA_PAGE_V2 = 0, 2, 3

_LFS = b"version https://git-lfs.github.com/spec/"

Names = tuple[str, ...]  # of a column, and of the fields in it


@contextmanager
def readable_table(name: str) -> Iterator[None]:
    """Turn the errors about a damaged file into a :class:`DataError`."""
    import pyarrow as pa

    try:
        yield
    except MemoryError as error:
        raise DataError(f"{name}: the table does not fit into memory; split it, or give it as a .npy") from error
    except (pa.ArrowException, OSError, KeyError, UnicodeDecodeError) as error:  # KeyError: two columns of one name
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise DataError(f"{name}: not a readable Parquet table ({reason}); check that the file is complete") from error


@contextmanager
def open_parquet(path: Path, **options: Any) -> Iterator[Any]:
    """A regular file as a ``pyarrow.parquet.ParquetFile``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open_regular(path) as file:
        if file.read(len(_LFS)) == _LFS:
            raise OSError(errno.EINVAL, f"{path} is a pointer of Git LFS; fetch the file itself with `git lfs pull`")
        file.seek(max(0, file.seek(0, 2) - 8))
        length = int.from_bytes(file.read(4), "little")
        if file.read() == b"PAR1" and length > MAX_FILE_SIZE:
            raise OSError(errno.EFBIG, f"its footer has {length:,} bytes, over the limit of {MAX_FILE_SIZE:,}")
        file.seek(0)
        try:
            opened = pq.ParquetFile(file, **options)
        except pa.ArrowException as error:  # which of the files of a folder it is
            raise pa.ArrowInvalid(f"{path}: {error}") from error
        with opened as table:
            yield table


def find_column(schema: Any, path: str) -> Names | None:
    """The column at a dotted path, whatever dots its names have themselves; None where there is none."""
    import pyarrow.types as types

    for field in schema:
        if field.name == path:
            return (field.name,)
        if path.startswith(f"{field.name}.") and types.is_struct(field.type):
            inner = find_column(list(field.type), path[len(field.name) + 1 :])
            if inner is not None:
                return (field.name, *inner)
    return None


def column_type(schema: Any, names: Names) -> Any:
    """The type of a column, without dictionary and extension."""
    kind = schema.field(names[0]).type
    for name in names[1:]:
        kind = kind.field(name).type
    return plain_type(kind)


def plain_type(kind: Any) -> Any:
    """A type without dictionary and extension."""
    import pyarrow as pa
    import pyarrow.types as types

    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    return kind.value_type if types.is_dictionary(kind) else kind


def column_values(array: Any, names: Names) -> Any:
    """The values of a column, given that of the topmost name; null where a struct above them is."""
    import pyarrow as pa

    for name in names[1:]:
        array = array.flatten()[array.type.get_field_index(name)]
    return array.storage if isinstance(array, pa.ExtensionArray) else array


class Chunk(NamedTuple):
    """The part of a column that lies in one row group."""

    column: str  # dotted path
    n_values: int
    start: int  # of its first page


class RowGroup(NamedTuple):
    """What the footer says of a row group."""

    n_rows: int
    chunks: list[Chunk]

    def of(self, column: str) -> list[Chunk]:
        """The chunks that a column (a dotted path) consists of."""
        return [chunk for chunk in self.chunks if chunk.column == column or chunk.column.startswith(f"{column}.")]


def row_groups(file: BinaryIO) -> list[RowGroup]:
    """The row groups of an open file, from its footer; pyarrow ends the process when it is asked for a damaged one."""
    end = file.seek(0, 2) - 8
    file.seek(max(0, end))
    length = int.from_bytes(file.read(4), "little")
    if not 0 < length <= min(end, MAX_FILE_SIZE):
        raise OSError(errno.EIO, "its footer is damaged")
    file.seek(end - length)
    return _parse_footer(file.read(length))


def _parse_footer(footer: bytes) -> list[RowGroup]:
    try:
        groups = []
        for group in _Compact(footer).header()[1].get(4, []):
            chunks = []
            for column in group[1]:
                about = column[3]
                start = min(offset for offset in (about[9], about.get(11, 0)) if offset > 0)
                chunks.append(Chunk(b".".join(about[3]).decode(), int(about[5]), int(start)))
            groups.append(RowGroup(int(group[3]), chunks))
        return groups
    except (IndexError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise OSError(errno.EIO, "its footer is damaged") from error


class _Pages(NamedTuple):
    """What the page headers of a column chunk say."""

    n_values: int
    unpacked: int  # bytes of all pages
    largest: tuple[int, int]  # unpacked and packed bytes of the page that unpacks to most
    encodings: set[int]  # of the data pages
    shared: int  # bytes that many rows may share: the dictionary page, or a page of increments


def read_pages(file: BinaryIO, chunk: Chunk) -> _Pages:
    """The page headers of a column chunk; an :class:`OSError` where they are damaged."""
    position = chunk.start
    n_values = unpacked = shared = 0
    largest, encodings = (0, 0), set[int]()
    while n_values < chunk.n_values:
        length, header = _page_header(file, position)
        try:
            kind, size, packed = (header[number] for number in (1, 2, 3))
            about = header.get({_DATA_PAGE: 5, _DATA_PAGE_V2: 8}.get(kind, 0), {})
            n_here, encoding = (about[1], about[4 if kind == _DATA_PAGE_V2 else 2]) if about else (0, _PLAIN)
            if min(size, packed, n_here, encoding) < 0:
                raise ValueError("a negative size")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise OSError(errno.EIO, "a page header is damaged") from error
        if about:
            encodings.add(encoding)
        if kind == _DICTIONARY_PAGE or encoding == _DELTA_BYTE_ARRAY:
            shared = max(shared, size)
        n_values, unpacked, largest = n_values + n_here, unpacked + size, max(largest, (size, packed))
        position += length + packed
    return _Pages(n_values, unpacked, largest, encodings, shared)


def _page_header(file: BinaryIO, position: int) -> tuple[int, dict[int, Any]]:
    """Length and fields of the page header at ``position``, in Thrift's compact protocol."""
    for size in (_HEADER_BYTES, _MAX_HEADER_BYTES):
        file.seek(position)
        with suppress(IndexError, RecursionError, ValueError):
            return _Compact(file.read(size)).header()
    raise OSError(errno.EIO, "a page header is damaged, or the file is cut short")


class _Compact:
    """A reader of Thrift structs in the compact protocol, as ``{field number: value}``."""

    def __init__(self, data: bytes) -> None:
        self._data, self._place = data, 0

    def header(self) -> tuple[int, dict[int, Any]]:
        """The struct that the data begin with, and its length."""
        fields = self._struct()
        return self._place, fields

    def _byte(self) -> int:
        self._place += 1
        return self._data[self._place - 1]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
            if shift > 63:
                raise ValueError("a number of more than 64 bits")

    def _struct(self) -> dict[int, Any]:
        fields: dict[int, Any] = {}
        number = 0
        while byte := self._byte():
            number = number + (byte >> 4) if byte >> 4 else self._zigzag()
            fields[number] = self._value(byte & 15)
        return fields

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def _value(self, kind: int) -> Any:
        if kind in (1, 2):
            return kind == 1
        if kind in (4, 5, 6):
            return self._zigzag()
        if kind in (3, 7, 8):  # a byte, a double, text
            length = self._varint() if kind == 8 else 1 if kind == 3 else 8
            self._place += length
            if self._place > len(self._data):
                raise IndexError
            return self._data[self._place - length : self._place]
        if kind in (9, 10):  # a list, a set
            byte = self._byte()
            count = byte >> 4 if byte >> 4 < 15 else self._varint()
            of = 3 if byte & 15 in (1, 2) else byte & 15
            return [self._value(of) for _ in range(count)]
        if kind == 12:
            return self._struct()
        raise ValueError(f"the type {kind}")


def read_column(files: Sequence[Path], names: Names) -> Any:
    """A column over all files, read whole, as one pyarrow array; an :class:`OSError` where it unpacks to far more than the file."""
    import pyarrow as pa

    chunks = [chunk for path in files for chunk in column_batches(path, names)]
    tables = [pa.table({"values": chunk}) for chunk in chunks]
    if not tables:
        with open_parquet(files[0]) as table:
            return pa.array([], column_type(table.schema_arrow, names))
    return pa.concat_tables(tables, promote_options="permissive").column(0).combine_chunks()


def column_batches(path: Path, names: Names) -> Iterator[Any]:
    """The values of a column of one file, in the order of rows; see :func:`read_column`."""
    dotted = ".".join(names)
    with open_parquet(path) as table, open_regular(path) as file:
        size, rows = file.seek(0, 2), _BLOCK_ROWS
        for group in row_groups(file):
            for chunk in group.of(dotted):
                pages = read_pages(file, chunk)
                check_unpacked(max(pages.unpacked, 4 * pages.n_values), size, _CACHE_BYTES)
                rows = max(1, min(rows, _CACHE_BYTES // max(1, pages.shared)))
        n_bytes = 0
        for batch in table.iter_batches(rows, columns=[dotted]):
            values = column_values(batch.column(names[0]), names)
            n_bytes += _decoded_bytes(values)
            check_unpacked(n_bytes, size, _CACHE_BYTES)
            yield values


def _decoded_bytes(array: Any) -> int:
    """Bytes of an array whose dictionaries are replaced by the values that they stand for."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.types as types

    if types.is_dictionary(array.type) and not types.is_primitive(array.type.value_type):
        lengths = pc.binary_length(array.dictionary.cast(pa.large_binary()))
        return int(pc.sum(lengths.take(array.indices)).as_py() or 0)
    if types.is_list(array.type) or types.is_large_list(array.type) or types.is_fixed_size_list(array.type):
        return int(array.nbytes) + _decoded_bytes(array.flatten())
    if types.is_struct(array.type):
        return sum(_decoded_bytes(field) for field in array.flatten())
    return int(array.nbytes)


class _Group(NamedTuple):
    path: Path
    number: int
    n_rows: int
    columns: list[list[Chunk]]  # the chunks of each column


class _Plan(NamedTuple):
    """How a row group is read."""

    block_rows: int  # rows of a block
    dictionary: list[str]  # columns that are left as a dictionary, of which a row costs a number
    largest: tuple[int, int]  # as in _Pages


class Blocks:
    """Values of one or several columns by row over all files, of which a bounded part is in memory; safe to use from several threads."""

    def __init__(self, files: Sequence[Path], columns: Sequence[Names]) -> None:
        self._columns = columns
        self._groups: list[_Group] = []
        for path in files:
            with open_regular(path) as file:
                for number, group in enumerate(row_groups(file)):
                    if group.n_rows > 0:
                        chunks = [group.of(".".join(names)) for names in columns]
                        self._groups.append(_Group(path, number, group.n_rows, chunks))
        self._starts = np.cumsum([0, *(group.n_rows for group in self._groups)])[:-1]
        self._lock = threading.Lock()
        self._plans: dict[int, _Plan] = {}
        self._kept: OrderedDict[tuple[int, int], tuple[Any, ...]] = OrderedDict()
        self._kept_bytes = 0
        self._running: tuple[int, int, Iterator[Any]] | None = None  # a group, its next block, the rest of its blocks

    def __len__(self) -> int:
        """Number of rows."""
        return sum(group.n_rows for group in self._groups)

    def folder(self, row: int) -> Path:
        """The folder of the file that holds ``row``."""
        return self._groups[self._place(row)].path.parent

    def values(self, row: int, limit: int) -> tuple[Any, ...]:
        """The value of each column at ``row``, None where it is null.

        A :class:`BadItemError` where that part of the file is damaged or gone, or the value has more than ``limit`` bytes.
        """
        place = self._place(row)
        group = self._groups[place]
        with self._lock:
            try:
                if place not in self._plans:
                    self._plans[place] = self._plan(group)
                plan = self._plans[place]
                unpacked, packed = plan.largest
                if unpacked > 4 * limit or (unpacked > limit and unpacked > 8 * packed):  # a few items, or a bomb
                    what = f"a page of it unpacks to {unpacked:,} bytes, over the limit of {limit:,}"
                    raise OSError(errno.EFBIG, f"{what}; raise it with --max-file-size")
                block, offset = divmod(row - int(self._starts[place]), plan.block_rows)
                if (place, block) not in self._kept:
                    self._load(place, block)
                self._kept.move_to_end((place, block))
                return tuple(_bounded(array[offset], limit) for array in self._kept[place, block])
            except BadItemError:
                raise
            except Exception as error:  # ArrowInvalid, OSError, MemoryError, StopIteration at an early end
                self._running = None
                reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
                raise BadItemError(f"row group {group.number} of {group.path.name} cannot be read: {reason}") from error

    def _place(self, row: int) -> int:
        return int(np.searchsorted(self._starts, row, side="right")) - 1

    def _plan(self, group: _Group) -> _Plan:
        """How to read a row group, from its page headers."""
        block_rows, dictionary, largest = min(group.n_rows, _BLOCK_ROWS), list[str](), (0, 0)
        with open_regular(group.path) as file:
            for chunk in chain.from_iterable(group.columns):
                pages = read_pages(file, chunk)
                largest = max(largest, pages.largest)
                if pages.encodings and pages.encodings <= _DICTIONARY_ENCODINGS:
                    dictionary.append(chunk.column)
                    continue
                fitting = _BLOCK_BYTES * group.n_rows // max(1, pages.unpacked)
                block_rows = max(1, min(block_rows, fitting, _CACHE_BYTES // max(1, pages.shared)))
        return _Plan(block_rows, dictionary, largest)

    def _load(self, place: int, block: int) -> None:
        """Read on in the row group as far as ``block``, or from its start where that is behind."""
        if self._running is None or self._running[0] != place or self._running[1] > block:
            self._running = (place, 0, self._read_group(self._groups[place], self._plans[place]))
        _, following, blocks = self._running
        for number in range(following, block + 1):
            arrays = next(blocks)
            self._kept_bytes += _size(arrays) - _size(self._kept.get((place, number), ()))
            self._kept[place, number] = arrays
            while self._kept_bytes > _CACHE_BYTES and len(self._kept) > 1:
                self._kept_bytes -= _size(self._kept.popitem(last=False)[1])
        self._running = (place, block + 1, blocks)

    def _read_group(self, group: _Group, plan: _Plan) -> Iterator[tuple[Any, ...]]:
        options = {"buffer_size": _BUFFER_BYTES, "pre_buffer": False, "read_dictionary": plan.dictionary}
        with open_parquet(group.path, **options) as file:
            left = group.n_rows
            for batch in file.iter_batches(
                plan.block_rows,
                row_groups=[group.number],
                columns=[".".join(names) for names in self._columns],
                use_threads=False,
            ):
                if len(batch) != min(plan.block_rows, left):
                    raise OSError(f"{len(batch)} rows came where {min(plan.block_rows, left)} were expected")
                left -= len(batch)
                yield tuple(column_values(batch.column(names[0]), names) for names in self._columns)


def _size(arrays: tuple[Any, ...]) -> int:
    return sum(array.nbytes for array in arrays)


def _bounded(scalar: Any, limit: int) -> Any:
    """A value of a column, if it is not too large."""
    import pyarrow as pa

    if isinstance(scalar, pa.DictionaryScalar):
        scalar = scalar.value if scalar.is_valid else pa.scalar(None)
    buffer = scalar.as_buffer() if hasattr(scalar, "as_buffer") else None
    if buffer is not None and buffer.size > limit:
        raise BadItemError(
            f"the image has {buffer.size:,} bytes, over the limit of {limit:,}; raise it with --max-file-size"
        )
    if buffer is not None and isinstance(scalar, pa.StringScalar):
        return os.fsdecode(buffer.to_pybytes())  # a path, in whatever encoding
    return scalar.as_py()
