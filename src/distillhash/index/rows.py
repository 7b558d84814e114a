"""The rows of an index: what goes in, checked before a transaction begins, and what comes out.

Every check raises :class:`DataError` that names the value it refuses.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash.codes import Codes, bytes_per_code
from distillhash.errors import DataError, FormatError
from distillhash.index.base import Item

LARGEST_ID = 2**63 - 1


def check_ids(ids: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    """Distinct ids as ``(m,) int64``."""
    array = np.asarray(ids)
    if array.ndim != 1:
        raise DataError(f"ids must be a flat sequence, got shape {array.shape}")
    if array.size and (array.dtype.kind not in "iu" or int(array.min()) < 0 or int(array.max()) > LARGEST_ID):
        wrong = next((value for value in ids if not is_id(value)), ids[0])
        raise DataError(f"ids must be integers in 0..{LARGEST_ID}, got {wrong!s}")
    if len(np.unique(array)) != len(array):
        raise DataError(f"ids must be distinct in one call, {_first_repeated(array.tolist())} comes twice")
    return array.astype(np.int64)


def check_keys(keys: Sequence[str]) -> list[str]:
    """Distinct keys as a list."""
    for key in keys:
        if not isinstance(key, str):
            raise DataError(f"keys must be text, got {key!r}")
    if len(set(keys)) != len(keys):
        raise DataError(f"keys must be distinct in one call, {_first_repeated(keys)!r} comes twice")
    return list(keys)


def check_digests(digests: Sequence[bytes]) -> Sequence[bytes]:
    """Digests, all of them bytes."""
    for digest in digests:
        if not isinstance(digest, bytes):
            raise DataError(f"digests must be bytes, got {digest!r}")
    return digests


def encode_metadata(metadata: Sequence[dict[str, Any] | None]) -> list[str | None]:
    """Metadata as JSON text."""
    encoded: list[str | None] = []
    for row, entry in enumerate(metadata):
        if entry is not None and not isinstance(entry, dict):
            raise DataError(f"metadata must be dictionaries or None, entry {row} is {entry!r}")
        try:
            encoded.append(None if entry is None else json.dumps(entry, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise DataError(
                f"metadata entry {row} is not JSON ({error}); use text, finite numbers and lists"
            ) from error
    return encoded


def is_id(value: object) -> bool:
    """Whether a value can be the id of an item."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and 0 <= int(value) <= LARGEST_ID


def _first_repeated(values: Sequence[Any]) -> Any:
    return next(value for value, times in Counter(values).items() if times > 1)


def item_from_row(row: tuple[Any, ...], n_bits: int) -> Item:
    """The item in a row of all columns.

    Raises:
        FormatError: its code or metadata is not what ``add`` stores.
    """
    identifier, code, key, digest, metadata = row
    try:
        packed, width = np.frombuffer(code, np.uint8)[None], bytes_per_code(n_bits)
        is_sound = len(code) == width and not code[-1] & ((1 << (8 * width - n_bits)) - 1)
        # The common case without from_packed's general checks: they would be most of the time of a search that is served.
        codes = Codes(packed, n_bits) if is_sound else Codes.from_packed(packed, n_bits)
        return Item(identifier, codes, key_from_sql(key), digest, None if metadata is None else json.loads(metadata))
    except (TypeError, ValueError) as error:
        raise FormatError(f"the row of id {identifier}: {error}") from error


def key_to_sql(key: str) -> str | bytes:
    """A key as SQLite takes it: bytes where a file name is not valid text (Python then holds surrogates)."""
    try:
        key.encode()
    except UnicodeEncodeError:
        return key.encode(errors="surrogatepass")
    return key


def key_from_sql(key: Any) -> Any:
    """The key that :func:`key_to_sql` took (None stays None)."""
    return key.decode(errors="surrogatepass") if isinstance(key, bytes) else key
