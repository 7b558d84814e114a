"""Exact search within a radius that skips most of a large database: multi-index hashing (Norouzi, Punjani and Fleet, CVPR 2012).

The bits are dealt out to m groups, and a table holds the rows by their bits of one group. With r = m a + b, a row within r bits of a query
differs from it in at most a bits of one of the first b + 1 groups, or in at most a - 1 bits of one of the others: else the differences
would add up to more. So each table is looked up at all keys as near as that, and the rows found there are compared in full. What an
earlier table finds as well is left out. The answers are those of a scan.

A group has as many bits as leave about one row a key. Bits that tell little are in no group: the argument above holds without them. A
look-up reads memory at random places, and a scan reads it in sequence. The cost of both is estimated, the number of rows found from pairs
of rows, and the scan is used where it is less. The tables are made when the look-ups so far would have paid for them, and serve
all radii. A query that finds too many rows, as in a crowd of copies, is given to the scan.
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from itertools import combinations, pairwise
from math import comb
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from distillhash.files import cores
from distillhash.hamming.compilation import compiled
from distillhash.hamming.kernel import ROW_BITS, ROW_MASK, part, popcount64
from distillhash.hamming.search import Distances, Ints, Mask, Planes, check_arrays, run_groups, within

FEWEST_ROWS = 200_000  # a scan of fewer takes microseconds
_MOST_TABLES = 8
_MOST_KEYS = 1 << 16  # looked up for a query
_SAMPLED_ROWS, _SAMPLED_PAIRS = 4096, 200_000
_EFFORT = 1 / 100  # of the rows: what a query may compare before it is given to the scan
_OTHER_BITS = 32
_QUERIES = 1024  # of one call of the kernel, at most
_HITS = 1 << 20  # that one call has room for, and a query's effort more
_SCAN, _KEY, _COMPARE, _PLACE = 0.004, 25.0, 30.0, 50.0
"""Nanoseconds of one core: to scan a byte, to look up a key, to look at a row, to put a row into a table.

Taken by hand on one processor (Zen 5). They decide how long a search takes, never its answer."""


class _Groups(NamedTuple):
    """Which bits make the keys of each table."""

    plane: NDArray[np.int64]  # (m, width + others) where each bit is; after those of the key come others
    shift: NDArray[np.int64]  # the same shape, its place in the word
    mask: Planes  # (m, n_planes) the bits of the key, set
    width: int  # bits of a key


class _Tables(NamedTuple):
    """Rows by key."""

    starts: NDArray[np.uint32]  # (m, 2**width + 1) where the rows of each key begin
    rows: NDArray[
        np.uint64
    ]  # (m, n) ascending for each key; the upper 32 bits are others of the code, which reject most rows


class SubstringTables:
    """Tables over planes of codes, of 8 bytes a row and 4 bytes a key each: 1, 3 and 6 for 10 million codes of 32, 64 and 128 bits."""

    def __init__(self, planes: Planes) -> None:
        """Keep a reference to ``planes``, which must not be changed. Nothing is made yet."""
        self._planes = np.ascontiguousarray(planes).view()
        self._planes.flags.writeable = False  # one kind of array for the kernels, mapped or not
        self._owed = 0.0  # nanoseconds that tables would have saved so far
        self._tables: _Tables | None = None

    def within(
        self, query: Planes, radius: int, *, allowed: NDArray[Any] | None = None
    ) -> tuple[Ints, Ints, Distances]:
        """All rows within ``radius`` bits; see :func:`distillhash.hamming.within`."""
        query, _, mask = check_arrays(query, self._planes, allowed)
        saved = self._saved(radius)
        if self._tables is None and saved > 0:
            self._owed += saved * query.shape[1]
            m, n = len(self._groups.mask), self._planes.shape[1]
            if self._owed >= _PLACE * m * n:
                self._tables = self._made()
        if self._tables is None or saved <= 0:
            return within(query, self._planes, radius, allowed=allowed)
        return self._within(self._tables, query, radius, mask)

    def _saved(self, radius: int) -> float:
        """Estimated nanoseconds that the tables save for one query; 0 where they are never used."""
        n = int(self._planes.shape[1])
        if not FEWEST_ROWS <= n < 2**32 or self._planes.itemsize < 4 or radius < 0:
            return 0.0
        m, width = len(self._groups.mask), self._groups.width
        near = _radii(m, radius)
        n_keys = sum(comb(width, d) for a in near.tolist() for d in range(min(a, width) + 1))
        if n_keys > _MOST_KEYS or n_keys == 0:
            return 0.0
        n_looked_at = n * float((self._apart <= near[:, None]).mean(axis=1).sum())
        return _SCAN * float(self._planes.nbytes) - _KEY * n_keys - _COMPARE * n_looked_at

    @cached_property
    def _groups(self) -> _Groups:
        """Those bits that are most often one as often as zero, dealt out in turn."""
        n_planes, n = self._planes.shape
        word_bits = 8 * self._planes.itemsize
        sample = self._planes[:, np.random.default_rng(0).integers(0, n, _SAMPLED_ROWS)]
        places = np.arange(word_bits, dtype=self._planes.dtype)
        ones = (sample[:, None] >> places[:, None] & self._planes.dtype.type(1)).mean(axis=2).ravel()
        even = np.abs(ones - 0.5)
        usable = np.argsort(even, kind="stable")[: max(1, int((even < 0.5).sum()))]
        most = max(1, n.bit_length() - 1)  # bits of a key
        m = min(_MOST_TABLES, max(1, round(len(usable) / most)))
        width = min(most, len(usable) // m)
        chosen = np.random.default_rng(1).permutation(usable[: m * width]).reshape(width, m).T
        others = [usable[~np.isin(usable, group)][:_OTHER_BITS] for group in chosen]
        plane, shift = np.divmod(np.hstack([chosen, others]).astype(np.int64), word_bits)
        mask = np.zeros((m, n_planes), self._planes.dtype)
        for group, where, place in zip(mask, plane[:, :width], shift[:, :width], strict=True):
            np.bitwise_or.at(group, where, places.dtype.type(1) << place.astype(places.dtype))
        return _Groups(plane, shift, mask, width)

    @cached_property
    def _apart(self) -> NDArray[np.uint16]:
        """``(m, pairs)``: by how many bits of each group random pairs of rows differ."""
        n = self._planes.shape[1]
        a, b = np.random.default_rng(2).integers(0, n, (2, _SAMPLED_PAIRS))
        differing = self._planes[:, a] ^ self._planes[:, b]
        counts = [
            np.bitwise_count(differing & mask[:, None]).sum(axis=0, dtype=np.uint16) for mask in self._groups.mask
        ]
        return np.array(counts)[:, a != b]

    def _made(self) -> _Tables:
        m, n, width = len(self._groups.mask), self._planes.shape[1], self._groups.width
        tables = _Tables(np.zeros((m, 2**width + 1), np.uint32), np.empty((m, n), np.uint64))

        def make(some: slice) -> None:
            bits = np.empty(n, np.uint64)
            for t in range(some.start, some.stop):
                places = self._groups.plane[t], self._groups.shift[t]
                _place(self._planes, *places, width, bits, tables.starts[t], tables.rows[t])

        list(run_groups(make, m, 1, cores(), None))
        return tables

    def _within(
        self, tables: _Tables, query: Planes, radius: int, allowed: Mask | None
    ) -> tuple[Ints, Ints, Distances]:
        near = _radii(len(tables.rows), radius)
        flips = [_flips(self._groups.width, a) for a in near.tolist()]
        limits = np.cumsum([0, *map(len, flips)])
        effort = int(_EFFORT * self._planes.shape[1])
        mask = np.zeros(0, np.uint8) if allowed is None else allowed
        how = (np.concatenate(flips), limits, near, radius, effort)

        def search(some: slice) -> tuple[Ints, Ints]:
            words = np.ascontiguousarray(query[:, some])
            keys, scratch = np.empty(_HITS + effort, np.int64), np.empty(effort, np.uint32)
            runs = np.empty((2, int(np.diff(limits).max())), np.uint32)
            counts, found, done = np.zeros(words.shape[1], np.int64), [], 0
            while done < words.shape[1]:
                last = _look_up(
                    words, done, self._planes, mask, *self._groups, *tables, *how, counts, keys, scratch, *runs
                )
                found.append(keys[: counts[done:last].clip(0).sum()].copy())
                done = last
            return counts, np.concatenate(found)

        parts = list(run_groups(search, query.shape[1], _QUERIES, cores(), None))
        counts = np.concatenate([np.zeros(0, np.int64), *(part[0] for part in parts)])
        keys = np.concatenate([np.zeros(0, np.int64), *(part[1] for part in parts)])
        dear = np.flatnonzero(counts < 0)  # given to the scan
        if len(dear):
            ends, rows, distances = within(query[:, dear], self._planes, radius, allowed=allowed)
            scanned = distances.astype(np.int64) << ROW_BITS | rows
            others = np.split(keys, np.cumsum(counts.clip(0))[dear])  # a query that is given away has no keys
            pieces = [others[0]]
            for place, (start, stop) in enumerate(pairwise(ends.tolist())):
                pieces += [scanned[start:stop], others[place + 1]]
            keys, counts[dear] = np.concatenate(pieces), np.diff(ends)
        limits = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        for start, stop in pairwise(limits.tolist()):
            keys[start:stop].sort()
        return limits, keys & ROW_MASK, (keys >> ROW_BITS).astype(np.int32)


def _radii(m: int, radius: int) -> NDArray[np.int64]:
    """How many bits of each of ``m`` groups may differ; -1 for a table that need not be looked up."""
    a, b = divmod(radius, m)
    return np.where(np.arange(m) <= b, a, a - 1)


@lru_cache(maxsize=64)
def _flips(width: int, most: int) -> NDArray[np.uint32]:
    """All words of ``width`` bits with at most ``most`` ones, those with few first; none for -1."""
    counts = range(min(most, width) + 1)
    return np.array(
        [sum(1 << bit for bit in bits) for d in counts for bits in combinations(range(width), d)], np.uint32
    )


@part
def _gathered(words: Any, at: int, plane: Any, shift: Any) -> Any:
    """Some bits of a code in one word; ``words`` is ``(n_planes, n)``."""
    bits = np.uint64(0)
    for bit in range(len(plane)):
        bits |= (np.uint64(words[plane[bit], at]) >> np.uint64(shift[bit]) & np.uint64(1)) << np.uint64(bit)
    return bits


@compiled(makes_arrays=False)
def _place(planes: Any, plane: Any, shift: Any, width: int, bits: Any, starts: Any, rows: Any) -> None:
    """Make one table; ``bits`` is a scratch buffer. A counting sort, so that the rows of a key are ascending."""
    one, key_mask = np.uint64(1), np.uint64(2**width - 1)
    bits[:] = 0
    for bit in range(len(plane)):
        words, right = planes[plane[bit]], np.uint64(shift[bit])
        for row in range(len(bits)):
            bits[row] |= (np.uint64(words[row]) >> right & one) << np.uint64(bit)
    for row in range(len(bits)):
        starts[bits[row] & key_mask] += np.uint32(1)
    before = np.uint32(0)  # from here on, starts hold where the next row of each key goes
    for key in range(len(starts)):
        count = starts[key]
        starts[key] = before
        before += count
    for row in range(len(bits)):
        key = bits[row] & key_mask
        rows[starts[key]] = bits[row] >> np.uint64(width) << np.uint64(32) | np.uint64(row)
        starts[key] += np.uint32(1)
    for key in range(len(starts) - 1, 0, -1):
        starts[key] = starts[key - 1]
    starts[0] = 0


@compiled(makes_arrays=False)
def _look_up(
    query: Any, first: int, planes: Any, allowed: Any, plane: Any, shift: Any, mask: Any, width: int, starts: Any, rows: Any,
    flips: Any, limits: Any, near: Any, radius: int, effort: int, counts: Any, keys: Any,
    scratch: Any, begins: Any, ends: Any,
) -> Any:  # fmt: skip
    """Write the hits of the queries from ``first`` on to ``keys``, as many queries as there is room for; the query after the last.

    ``query`` is ``(n_planes, q)``. A hit is its distance and its row in one integer. ``counts`` gets the number of each query's hits, or -1
    where more than ``effort`` rows would have to be looked at.
    """
    end = 0
    for i in range(first, query.shape[1]):
        if end + effort > len(keys):
            return i
        begin, left = end, np.int64(effort)
        for t in range(len(rows)):
            bits = _gathered(query, i, plane[t], shift[t])
            key, others = np.uint32(bits & np.uint64(2**width - 1)), bits >> np.uint64(width)
            n_flips = limits[t + 1] - limits[t]
            # In steps, so that the processor waits for many places of memory at once.
            for flip in range(n_flips):
                flipped = key ^ flips[limits[t] + flip]
                begins[flip], ends[flip] = starts[t, flipped], starts[t, flipped + np.uint32(1)]
            n_entries = np.int64(0)
            for flip in range(n_flips):
                n_entries += np.int64(ends[flip]) - np.int64(begins[flip])
            left -= n_entries
            if left < 0:
                break
            n_found = 0
            for flip in range(n_flips):
                for place in range(begins[flip], ends[flip]):
                    entry = rows[t, place]
                    scratch[n_found] = np.uint32(entry & np.uint64(2**32 - 1))
                    n_found += int(popcount64(entry >> np.uint64(32) ^ others) <= radius)
            for c in range(n_found):
                row, distance = scratch[c], 0
                for w in range(len(planes)):
                    distance += popcount64(np.uint64(query[w, i] ^ planes[w, row]))
                if distance > radius or (len(allowed) > 0 and allowed[row] == 0):
                    continue
                is_new = True
                for earlier in range(t):
                    apart = 0
                    for w in range(len(planes)):
                        apart += popcount64(np.uint64((query[w, i] ^ planes[w, row]) & mask[earlier, w]))
                    is_new = is_new and apart > near[earlier]
                if is_new:
                    keys[end] = np.int64(distance) << ROW_BITS | np.int64(row)
                    end += 1
        if left < 0:
            end = begin
        counts[i] = -1 if left < 0 else end - begin
    return query.shape[1]
