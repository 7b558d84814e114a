"""Binary codes: the sign rule, packing, and Hamming distance.

A code of ``n_bits`` bits is stored as ``ceil(n_bits / 8)`` bytes in the order of :func:`numpy.packbits` (bit 0 is the
highest bit of byte 0; 1 stands for the sign +1). Pad bits at the end of the last byte are zero, so they cancel in XOR.

Codes may have two parts: the first ``class_bits`` bits tell kinds apart, the others tell near neighbours apart. Such codes are ranked by
both parts (:mod:`distillhash.hamming.ranking`); to whoever knows only Hamming distance they are codes like any others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from distillhash.errors import DataError, FormatError, ParameterError
from distillhash.files import replacing

if TYPE_CHECKING:
    from distillhash.sources.vectors import Archive

_MAX_BITS = 1 << 20  # of a code in a file
_GROUP_ROWS = 1 << 16  # of a row group in a table of codes


class Codes:
    """An immutable array of ``n`` binary codes of ``n_bits`` bits.

    Attributes:
        packed: ``(n, ceil(n_bits / 8)) uint8``, big-endian bits in each byte, pad bits zero; read-only.
        n_bits: Code length K.
        class_bits: Bits of the first part, from 0 to n_bits - 1; 0 where there is one part.
    """

    __slots__ = ("class_bits", "n_bits", "packed")

    def __init__(self, packed: NDArray[np.uint8], n_bits: int, class_bits: int = 0) -> None:
        """Wrap packed codes; use :meth:`from_packed`, which copies and checks, for data from outside."""
        self.packed, self.n_bits, self.class_bits = packed.view(), n_bits, class_bits
        self.packed.flags.writeable = False

    @classmethod
    def from_packed(cls, packed: NDArray[Any], n_bits: int, class_bits: int = 0) -> Codes:
        """Codes of ``n_bits`` bits, at least 1, from packed bytes ``(n, ceil(n_bits / 8)) uint8``.

        Raises:
            ParameterError: ``n_bits`` is not a positive integer, or ``class_bits`` does not lie in 0..n_bits - 1.
            DataError: the array has another dtype or shape, or a pad bit is set.
        """
        if isinstance(n_bits, bool) or not isinstance(n_bits, int | np.integer) or n_bits < 1:
            raise ParameterError(f"n_bits must be a positive integer, got {n_bits!r}")
        n_bits, array = int(n_bits), np.asarray(packed)
        if array.dtype != np.uint8 or array.ndim != 2:
            raise DataError(f"packed codes must be a 2-d uint8 array, got {array.ndim}-d {array.dtype}")
        n_bytes = bytes_per_code(n_bits)
        if array.shape[1] != n_bytes:
            raise DataError(f"{n_bits}-bit codes take {n_bytes} bytes each, got {array.shape[1]}")
        pad = 8 * n_bytes - n_bits
        if pad and len(array) and np.any(array[:, -1] & ((1 << pad) - 1)):
            raise DataError(f"the last {pad} pad bits of {n_bits}-bit codes must be zero; is the length right?")
        return cls(np.array(array, order="C"), n_bits, _check_class_bits(class_bits, n_bits))

    @classmethod
    def from_signs(cls, signs: NDArray[Any], class_bits: int = 0) -> Codes:
        """Codes from ``(n, n_bits)`` signs, only -1 and +1, of any numeric dtype.

        Raises:
            DataError: another shape, or a value other than -1 and +1 (0 among them: the rule is x >= 0 -> +1, apply it first).
        """
        array = np.asarray(signs)
        if array.ndim != 2 or array.shape[1] == 0:
            raise DataError(f"signs must be a 2-d array with at least one column, got shape {array.shape}")
        positive = array == 1
        if not np.all(positive | (array == -1)):
            raise DataError("signs must be -1 or +1; use Codes.from_projection for real values")
        return cls(np.packbits(positive, axis=1), array.shape[1], _check_class_bits(class_bits, array.shape[1]))

    @classmethod
    def from_projection(cls, projection: NDArray[Any], class_bits: int = 0) -> Codes:
        """Codes from real outputs ``(n, n_bits)`` by the sign rule x >= 0 -> +1 (DistillHash, Eq. 12); -0.0 counts as 0.

        Raises:
            DataError: another shape, or NaN.
        """
        array = np.asarray(projection)
        if array.ndim != 2 or array.shape[1] == 0:
            raise DataError(f"a projection must be a 2-d array with at least one column, got shape {array.shape}")
        if np.isnan(array).any():
            raise DataError("the projection holds NaN, which has no sign")
        return cls(np.packbits(array >= 0, axis=1), array.shape[1], _check_class_bits(class_bits, array.shape[1]))

    @classmethod
    def concatenate(cls, parts: Sequence[Codes], n_bits: int) -> Codes:
        """All codes of ``parts``, one after another; each has length ``n_bits``, and all have the same ``class_bits``."""
        if any(part.n_bits != n_bits for part in parts):
            raise DataError(f"codes of {n_bits} bits cannot be joined with codes of other lengths")
        for part in parts[1:]:
            check_same_length(parts[0], part)
        packed = [part.packed for part in parts] or [np.zeros((0, bytes_per_code(n_bits)), np.uint8)]
        return cls(np.concatenate(packed), n_bits, parts[0].class_bits if parts else 0)

    def signs(self) -> NDArray[np.int8]:
        """The codes as ``(n, n_bits) int8`` in {-1, +1}."""
        bits = np.unpackbits(self.packed, axis=1, count=self.n_bits)
        return (2 * bits.view(np.int8) - 1).astype(np.int8, copy=False)

    def words(self) -> NDArray[np.uint64]:
        """The codes as ``(n, ceil(n_bits / 64)) uint64`` words, zero padded, in the machine's byte order: for XOR and popcount only."""
        padded = np.zeros((len(self), 8 * words_per_code(self.n_bits)), np.uint8)
        padded[:, : self.packed.shape[1]] = self.packed
        return padded.view(np.uint64)

    def __len__(self) -> int:
        return len(self.packed)

    def __getitem__(self, rows: int | slice | Sequence[int] | NDArray[Any]) -> Codes:
        """The codes of ``rows`` (a slice, integers or a boolean mask; one integer gives codes of length 1)."""
        if isinstance(rows, int | np.integer):
            if not -len(self) <= rows < len(self):
                raise IndexError(f"row {rows} is out of range for {len(self)} codes")
            row = int(rows) % len(self)
            rows = slice(row, row + 1)
        selected = self.packed[rows]
        if selected.ndim != 2:
            raise IndexError("codes take one index: rows")
        return Codes(selected, self.n_bits, self.class_bits)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Codes):
            return NotImplemented
        alike = (self.n_bits, self.class_bits) == (other.n_bits, other.class_bits)
        return alike and np.array_equal(self.packed, other.packed)

    __hash__ = None  # type: ignore[assignment]  # arrays are not hashable

    def __repr__(self) -> str:
        parts = f", class_bits={self.class_bits}" if self.class_bits else ""
        return f"Codes(n={len(self)}, n_bits={self.n_bits}{parts})"

    def save(self, path: str | Path, *, keys: Sequence[str] | None = None, origin: str | None = None) -> None:
        """Write an ``.npz`` (arrays ``packed``, ``n_bits``, and ``class_bits`` and ``keys`` where there are) or a ``.parquet``.

        The table has columns ``key`` and ``code``, and the lengths as metadata.

        The suffix of ``path`` decides; ``keys`` are one string per code. Another suffix or number of keys is a :class:`ParameterError`.
        ``origin`` says where the codes come from; :func:`distillhash.search.origin_of` makes and reads it.
        """
        path = Path(path)
        if keys is not None and len(keys) != len(self):
            raise ParameterError(f"{len(keys)} keys for {len(self)} codes")
        if path.suffix == ".npz":
            arrays: dict[str, Any] = {"packed": self.packed, "n_bits": np.int64(self.n_bits)}
            if self.class_bits:
                arrays["class_bits"] = np.int64(self.class_bits)
            if keys is not None:
                arrays["keys"] = np.asarray(keys, dtype=np.str_)
            if origin is not None:
                arrays["origin"] = np.str_(origin)
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.savez(file, **arrays)
        elif path.suffix == ".parquet":
            names = keys if keys is not None else [str(row) for row in range(len(self))]
            with codes_table(path, self.n_bits, self.class_bits, origin=origin) as table:
                table.add(self, names)
        else:
            raise ParameterError(f"codes are written to .npz or .parquet, not {path.suffix!r} ({path})")

    @classmethod
    def load(cls, path: str | Path) -> tuple[Codes, list[str] | None]:
        """Read what :meth:`save` wrote: the codes, and the keys or None.

        Raises:
            FormatError: the file is absent, damaged, or not a codes file.
        """
        path = Path(path)
        try:
            return cls._load_parquet(path) if path.suffix == ".parquet" else cls._load_npz(path)
        except Exception as error:
            raise FormatError(
                f"{path} is not a readable codes file ({error}); write one with `distillhash encode`"
            ) from error

    @classmethod
    def _load_npz(cls, path: Path) -> tuple[Codes, list[str] | None]:
        from distillhash.sources.vectors import Archive

        arrays = Archive(path, "codes")
        class_bits = _stored_integer(arrays, "class_bits") if "class_bits" in arrays else 0
        codes = cls.from_packed(arrays["packed"], _stored_length(_stored_integer(arrays, "n_bits")), class_bits)
        if "keys" not in arrays:
            return codes, None
        keys = arrays["keys"]
        if keys.shape != (len(codes),) or keys.dtype.kind not in "US":
            raise DataError(f"{len(codes)} codes need as many strings as keys, got {keys.dtype} of shape {keys.shape}")
        return codes, keys.astype(np.str_, copy=False).tolist()

    @classmethod
    def _load_parquet(cls, path: Path) -> tuple[Codes, list[str]]:
        from distillhash.sources.parquet import open_parquet, read_column

        with open_parquet(path) as table:
            metadata = table.schema_arrow.metadata or {}
            n_bits = _stored_length(int(metadata[b"distillhash.n_bits"]))
            class_bits = int(metadata.get(b"distillhash.class_bits", 0))
        n_bytes = bytes_per_code(n_bits)
        codes, keys = (read_column([path], (name,)).to_pylist() for name in ("code", "key"))
        if any(type(code) is not bytes or len(code) != n_bytes for code in codes):
            raise DataError(f"codes of {n_bits} bits have {n_bytes} bytes each")
        if len(keys) != len(codes) or any(isinstance(key, bytes | list | dict) for key in keys):
            raise DataError(f"{len(codes)} codes need as many strings as keys")
        packed = np.frombuffer(b"".join(codes), np.uint8).reshape(-1, n_bytes)
        return cls.from_packed(packed, n_bits, class_bits), [str(key) for key in keys]


@contextmanager
def codes_table(path: Path, n_bits: int, class_bits: int = 0, *, origin: str | None = None) -> Iterator[CodesTable]:
    """A ``.parquet`` of codes as :meth:`Codes.save` describes it, written as they come; it appears at the end, whole, or not at all.

    Equal codes and keys give equal files, however they were batched. Memory: one row group of 65,536 codes and keys.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    metadata = {b"distillhash.n_bits": str(n_bits).encode()}
    if class_bits:
        metadata[b"distillhash.class_bits"] = str(class_bits).encode()
    if origin is not None:
        metadata[b"distillhash.origin"] = origin.encode()
    columns = {"key": pa.string(), "code": pa.binary(bytes_per_code(n_bits))}
    schema = pa.schema(columns, metadata=metadata)
    # Keys and codes hardly repeat, so a dictionary of them would only take space.
    with replacing(path) as temporary, pq.ParquetWriter(temporary, schema, use_dictionary=False) as writer:
        table = CodesTable(writer, schema)
        yield table
        table.flush()


class CodesTable:
    """What :func:`codes_table` gives."""

    def __init__(self, writer: Any, schema: Any) -> None:
        self._writer, self._schema = writer, schema
        self._packed: list[NDArray[np.uint8]] = []  # these and their keys wait for a row group to be full
        self._keys: list[str] = []

    def add(self, codes: Codes, keys: Sequence[str]) -> None:
        """Append codes and their keys, as many."""
        start = 0
        while start < len(codes):
            stop = min(len(codes), start + _GROUP_ROWS - len(self._keys))
            self._packed.append(codes.packed[start:stop])
            self._keys += keys[start:stop]
            if len(self._keys) == _GROUP_ROWS:
                self.flush()
            start = stop

    def describe(self, metadata: Mapping[str, str]) -> None:
        """Add to the metadata of the file."""
        self._writer.add_key_value_metadata(metadata)

    def flush(self) -> None:
        """Write what waits as a row group."""
        import pyarrow as pa

        if not self._keys:
            return
        code = pa.py_buffer(np.ascontiguousarray(np.concatenate(self._packed)))
        kind = self._schema.field("code").type
        columns = [pa.array(self._keys), pa.FixedSizeBinaryArray.from_buffers(kind, len(self._keys), [None, code])]
        self._writer.write_table(pa.table(columns, schema=self._schema))
        self._packed, self._keys = [], []


def write_codes(
    path: Path, parts: Iterable[tuple[Codes, Sequence[str]]], n_bits: int, class_bits: int, *, origin: str
) -> int:
    """Write codes and their keys, part by part, as :meth:`Codes.save` would all together; returns how many there were.

    A ``.parquet`` is written in bounded memory, an ``.npz`` at the end. What ``parts`` raises leaves no file.
    """
    n = 0
    if path.suffix == ".parquet":
        with codes_table(path, n_bits, class_bits, origin=origin) as table:
            for codes, keys in parts:
                table.add(codes, keys)
                n += len(codes)
        return n
    held, names = list[Codes](), list[str]()
    for codes, keys in parts:
        held.append(codes)
        names += keys
    Codes.concatenate(held, n_bits).save(path, keys=names, origin=origin)
    return len(names)


def _check_class_bits(class_bits: Any, n_bits: int) -> int:
    if isinstance(class_bits, bool) or not isinstance(class_bits, int | np.integer) or not 0 <= class_bits < n_bits:
        raise ParameterError(f"class_bits must be an integer in 0..{n_bits - 1} for {n_bits} bits, got {class_bits!r}")
    return int(class_bits)


def _stored_integer(arrays: Archive, name: str) -> int:
    value = arrays[name]
    if value.size != 1 or value.dtype.kind not in "iu":
        raise DataError(f"{name} must be one integer, got {value.dtype} of shape {value.shape}")
    return int(value.reshape(())[()])


def _stored_length(n_bits: int) -> int:
    """A code length that a file states."""
    if not 1 <= n_bits <= _MAX_BITS:
        raise DataError(f"it states {n_bits} bits a code; there are 1 to {_MAX_BITS:,}")
    return n_bits


def bytes_per_code(n_bits: int) -> int:
    """Bytes of one packed code: ceil(n_bits / 8)."""
    return -(-n_bits // 8)


def words_per_code(n_bits: int) -> int:
    """64-bit words of one code: ceil(n_bits / 64)."""
    return -(-n_bits // 64)


def hamming_distances(a: Codes, b: Codes) -> NDArray[np.uint16]:
    """All Hamming distances between ``n`` and ``m`` codes of one length, ``(n, m) uint16``; search and metrics never build this table."""
    check_same_length(a, b)
    distances = np.zeros((len(a), len(b)), np.uint16)
    words_a, words_b = a.words(), b.words()
    for word in range(words_a.shape[1]):
        distances += np.bitwise_count(words_a[:, word, None] ^ words_b[None, :, word])
    return distances


def check_same_length(a: Codes, b: Codes) -> None:
    """Raise :class:`DataError` unless both sets of codes have the same ``n_bits`` and ``class_bits``."""
    if a.n_bits != b.n_bits:
        raise DataError(f"codes of {a.n_bits} and {b.n_bits} bits cannot be compared; encode both with one model")
    if a.class_bits != b.class_bits:
        raise DataError(
            f"codes with {a.class_bits} and {b.class_bits} class bits cannot be compared; encode both with one model"
        )
