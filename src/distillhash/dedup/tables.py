"""Which codes are worth comparing: tables of sampled bits (Indyk and Motwani, STOC 1998, 4.2), one at a time.

A table draws 64 of the bits at random. Codes that agree in the first ``k`` of them share a bucket; of two codes in a bucket the rest of the
64 says whether they are worth comparing in full, so that few are fetched in vain. Two codes at distance d pass with probability
p = (1 - d / n_bits)^k, about. There are as many tables as it takes for a pair *at* the radius to be missed by all of them with probability
``MISSED``; nearer pairs are missed far less, and what passes is compared exactly. Up to ``EXHAUSTIVE`` codes there is one bucket with
everything, and nothing is missed.

Tables are made, read and forgotten one after the other, so their number costs time and no memory: the codes twice (as words, and as planes
of bits, from which a table is drawn) and some 50 bytes a code for each thread. Deterministic: the sampled bits depend on the plan alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash.codes import Codes
from distillhash.errors import ParameterError

MISSED = 1e-3
EXHAUSTIVE = 20_000
THREADS = 4
"""At most; each needs memory of its own."""

_PASSING = 0.98  # share of the pairs at the radius, agreeing in the key, that the other sampled bits let pass
_PLACING = 4.0  # time to place a code in a table, in glances at a pair that shares a bucket
_MOST_KEY_BITS = 32
_DIGIT = 11  # bits sorted by at a time

Words = NDArray[np.uint64]

HAVE_NUMBA = find_spec("numba") is not None

if HAVE_NUMBA:
    from numba import njit

    from distillhash.hamming import popcount64
else:  # pragma: no cover  # the same loops without a compiler, for platforms without numba: slow and right
    popcount64 = np.bitwise_count


def compiled(function: Callable[..., Any]) -> Any:
    """``function`` compiled by numba where there is numba."""
    if not HAVE_NUMBA:
        return function
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no folder to keep compiled code in
        return njit(nogil=True)(function)


@compiled
def ones(word: Any) -> int:
    """Number of set bits of a word."""
    return int(popcount64(word))


@compiled
def bits_between(words: Any, row: int, others: Any, other: int) -> int:
    """Hamming distance of two rows of codes; all words, for a loop that may stop early is no vector code."""
    distance = 0
    for word in range(words.shape[1]):
        distance += ones(words[row, word] ^ others[other, word])
    return distance


@dataclass(frozen=True)
class Plan:
    """What the tables sample.

    Attributes:
        bits: ``(n_tables, m) int64`` positions in a code's words, m at most 64.
        k: The first ``k`` of each make the key.
        tolerance: Of the others, at most this many may differ.
    """

    bits: NDArray[np.int64]
    k: int
    tolerance: int

    @property
    def is_exhaustive(self) -> bool:
        """Whether every pair is compared."""
        return self.k == 0

    @property
    def key_mask(self) -> np.uint64:
        """The key's part of a sampled value."""
        return np.uint64(2**self.k - 1)

    def masks(self, n_words: int) -> tuple[Words, Words]:
        """Key bits and other bits of every table, ``(n_tables, n_words)`` each, in the layout of a code's words."""
        masks = np.zeros((2, len(self.bits), n_words), np.uint64)
        table = np.arange(len(self.bits))
        for place, bits in enumerate(self.bits.T):
            masks[int(place >= self.k), table, bits // 64] |= np.uint64(1) << (bits % 64).astype(np.uint64)
        return masks[0], masks[1]


def make_plan(codes: Codes, others: Codes | None, radius: int, *, exhaustive: int = EXHAUSTIVE) -> Plan:
    """The tables that find pairs within a radius in the least time.

    Longer keys make smaller buckets, and need more tables. How full buckets are depends on how far apart random pairs of these codes lie;
    pairs within the radius do not count, for what is joined once is not compared again.

    Args:
        codes: ``n`` codes.
        others: Codes of another collection, if pairs across the two are looked for.
        radius: In bits, at least 0.
        exhaustive: Up to this many codes (of ``others``, if given) every pair is compared.

    Raises:
        ParameterError: a negative radius, or too many codes for the tables' 31-bit rows.
    """
    if radius < 0:
        raise ParameterError(f"the radius must be at least 0 bits, got {radius}")
    database = codes if others is None else others
    if len(database) >= 2**31:
        raise ParameterError(f"at most {2**31 - 1} codes can be grouped at once, got {len(database)}")
    positions = _positions(codes.n_bits)
    k, n_tables, tolerance = 0, 1, min(radius, 64)
    if len(database) > exhaustive and radius < codes.n_bits and len(codes):
        n_pairs = len(codes) * len(database) / (2 if others is None else 1)
        n_items = len(database) + (0 if others is None else len(codes))
        apart = _random_shares(codes, database)
        cost = n_pairs
        for tried in range(1, min(_MOST_KEY_BITS, codes.n_bits - radius) + 1):
            passing, allowed = passing_share(codes.n_bits, radius, tried)
            needed = math.ceil(math.log(MISSED) / math.log1p(-passing)) if passing < 1 else 1
            meeting = float(np.mean(np.where(apart > radius / codes.n_bits, 1 - apart, 0) ** tried))
            if needed * (n_items * _PLACING + n_pairs * meeting) < cost:
                cost = needed * (n_items * _PLACING + n_pairs * meeting)
                k, n_tables, tolerance = tried, needed, allowed
    rng = np.random.default_rng(0)
    drawn = [rng.permutation(positions)[:64] for _ in range(n_tables)]
    return Plan(np.array(drawn, np.int64).reshape(n_tables, -1), k, tolerance)


def passing_share(n_bits: int, radius: int, k: int) -> tuple[float, int]:
    """Chance that a pair at the radius passes a table, and the table's tolerance.

    The k key bits agree, and of the other sampled bits no more differ than in all but 2% of such pairs (hypergeometric, both).
    """
    agree = math.prod((n_bits - radius - i) / (n_bits - i) for i in range(k))
    left, sampled = n_bits - k, min(64, n_bits) - k
    total, passed = math.comb(left, sampled), 0
    for differing in range(sampled + 1):
        passed += math.comb(radius, differing) * math.comb(left - radius, sampled - differing)
        if passed / total >= _PASSING:
            return agree * passed / total, differing
    return agree, sampled


def _positions(n_bits: int) -> NDArray[np.int64]:
    """Where a code's words hold its bits, and not padding."""
    ones = Codes.from_packed(np.packbits(np.ones((1, n_bits), np.uint8), axis=1), n_bits).words()[0]
    return np.array([64 * i + j for i, word in enumerate(ones.tolist()) for j in range(64) if word >> j & 1], np.int64)


def _random_shares(codes: Codes, database: Codes, n_pairs: int = 100_000) -> NDArray[np.float64]:
    """Share of bits in which random pairs differ."""
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, len(codes), n_pairs), rng.integers(0, len(database), n_pairs)
    bits = np.bitwise_count(codes.packed[a] ^ database.packed[b]).sum(axis=1, dtype=np.float64)
    return np.asarray(bits / codes.n_bits)


@compiled
def _transpose(block: Any) -> None:
    """64 words as a square of bits: bit j of word i changes places with bit i of word j."""
    width, mask = 32, np.uint64(0xFFFFFFFF)
    while width > 0:
        shift = np.uint64(width)
        for start in range(0, 64, 2 * width):
            for i in range(start, start + width):
                moved = ((block[i] >> shift) ^ block[i + width]) & mask
                block[i + width] ^= moved
                block[i] ^= moved << shift
        width //= 2
        mask ^= mask << np.uint64(width)


@compiled
def bit_planes(words: Any) -> Any:
    """Codes turned: ``(64 n_words, ceil(n / 64))``, bit i of word j of a plane is that plane's bit of code 64 j + i."""
    n, n_words = words.shape
    planes = np.empty((64 * n_words, (n + 63) // 64), np.uint64)
    block = np.zeros(64, np.uint64)
    for column in range(planes.shape[1]):
        rows = min(64, n - 64 * column)
        for word in range(n_words):
            block[rows:] = 0
            for i in range(rows):
                block[i] = words[64 * column + i, word]
            _transpose(block)
            for i in range(64):
                planes[64 * word + i, column] = block[i]
    return planes


@dataclass(frozen=True)
class Room:
    """Where a thread makes its tables, one after the other: ``(2, n)`` values and rows, before and after a pass of sorting."""

    values: Words
    rows: NDArray[np.int32]

    @classmethod
    def of(cls, n: int) -> Room:
        """Room for ``n`` codes."""
        return cls(np.empty((2, n), np.uint64), np.empty((2, n), np.int32))

    def table(self, planes: Words, bits: NDArray[np.int64], k: int) -> tuple[Words, NDArray[np.int32]]:
        """One table.

        Args:
            planes: From :func:`bit_planes`.
            bits: ``(m,)`` positions in a code's words, m at most 64.
            k: The first ``k`` make the key.

        Returns:
            ``(n,) uint64`` sampled values, the key in the low ``k`` bits, sorted by it, and ``(n,) int32`` their rows; stable. Both are
            overwritten by the next table.
        """
        half = _make_table(planes, bits, k, self.values, self.rows)
        return self.values[half], self.rows[half]


@compiled
def _make_table(planes: Any, bits: Any, k: int, values: Any, rows: Any) -> int:
    """Fill and sort; which half holds the result."""
    n = values.shape[1]
    block = np.zeros(64, np.uint64)
    for column in range(planes.shape[1]):
        for i in range(len(bits)):
            block[i] = planes[bits[i], column]
        block[len(bits) :] = 0
        _transpose(block)
        for i in range(min(64, n - 64 * column)):
            values[0, 64 * column + i] = block[i]
            rows[0, 64 * column + i] = 64 * column + i
    n_digits = (k + _DIGIT - 1) // _DIGIT
    for digit in range(n_digits):  # by the lowest digit first
        width = (k + n_digits - 1) // n_digits
        shift = np.uint64(digit * width)
        mask = np.uint64((1 << min(width, k - digit * width)) - 1)
        old_values, old_rows = values[digit % 2], rows[digit % 2]
        new_values, new_rows = values[1 - digit % 2], rows[1 - digit % 2]
        places = np.zeros((1 << width) + 1, np.int64)
        for value in old_values:
            places[((value >> shift) & mask) + np.uint64(1)] += 1
        for i in range(1, len(places)):
            places[i] += places[i - 1]
        for i in range(n):
            digit_value = (old_values[i] >> shift) & mask
            place = places[digit_value]
            new_values[place], new_rows[place] = old_values[i], old_rows[i]
            places[digit_value] = place + 1
    return n_digits % 2
