"""Which codes are worth comparing: tables of sampled bits (Indyk and Motwani, STOC 1998, 4.2).

A table sorts codes by ``k`` randomly chosen bits; two codes at distance d share a bucket of it with probability about (1 - d / n_bits)^k.
There are as many tables as it takes for a pair *at* the radius to be missed with probability ``MISSED``; nearer pairs are missed far
less, and what is compared is compared exactly. Up to ``EXHAUSTIVE`` codes there is one bucket with everything, and nothing is missed.

Memory: 4 bytes a code and table. Deterministic: the sampled bits depend on the plan alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash.errors import ParameterError

MISSED = 1e-3
EXHAUSTIVE = 20_000
MOST_TABLES = 160
_MOST_BITS = 24

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
def bits_between(a: Any, b: Any, radius: int) -> int:
    """Hamming distance of two codes of words, or any number above ``radius`` as soon as it is known to be above."""
    distance = 0
    for word in range(len(a)):
        distance += popcount64(a[word] ^ b[word])
        if distance > radius:
            break
    return distance


@compiled
def key_of(code: Any, bits: Any) -> int:
    """The bucket of a code: its bits at the sampled positions."""
    key = 0
    for bit in bits:
        key = 2 * key + ((code[bit // 64] >> np.uint64(bit % 64)) & np.uint64(1) != 0)
    return key


@compiled
def _fill(words: Any, bits: Any, starts: Any, members: Any) -> None:
    """One table by counting sort: rows of bucket b, ascending, at ``members[starts[b]:starts[b + 1]]``."""
    for row in range(len(words)):
        starts[key_of(words[row], bits) + 1] += 1
    for bucket in range(1, len(starts)):
        starts[bucket] += starts[bucket - 1]
    places = starts[:-1].copy()
    for row in range(len(words)):
        bucket = key_of(words[row], bits)
        members[places[bucket]] = row
        places[bucket] += 1


@dataclass(frozen=True)
class Buckets:
    """Codes in tables.

    Attributes:
        words: ``(n, n_words) uint64``, the codes.
        bits: ``(n_tables, k) int64`` positions sampled by each table.
        starts: ``(n_tables, 2^k + 1) int64`` where each bucket begins.
        members: ``(n_tables, n) int32`` rows, bucket by bucket.
    """

    words: Words
    bits: NDArray[np.int64]
    starts: NDArray[np.int64]
    members: NDArray[np.int32]

    @property
    def is_exhaustive(self) -> bool:
        """Whether every pair is compared."""
        return int(self.bits.shape[1]) == 0

    @classmethod
    def of(cls, words: Words, n_bits: int, radius: int, *, exhaustive: int = EXHAUSTIVE) -> Buckets:
        """Tables for finding what lies within ``radius`` bits.

        Args:
            words: ``(n, n_words)``, as :meth:`distillhash.Codes.words` gives them.
            n_bits: Bits in use.
            radius: In bits, at least 0.
            exhaustive: Up to this many codes every pair is compared.
        """
        if radius < 0:
            raise ParameterError(f"the radius must be at least 0 bits, got {radius}")
        if len(words) >= 2**31:
            raise ParameterError(f"at most {2**31 - 1} codes can be grouped at once, got {len(words)}")
        k, n_tables = plan(len(words), n_bits, radius, exhaustive)
        rng = np.random.default_rng(0)
        order = np.stack([rng.permutation(n_bits)[:k] for _ in range(n_tables)]).astype(np.int64)
        starts = np.zeros((n_tables, 2**k + 1), np.int64)
        members = np.empty((n_tables, len(words)), np.int32)
        words = np.ascontiguousarray(words)
        for table in range(n_tables):
            _fill(words, order[table], starts[table], members[table])
        return cls(words, order, starts, members)


def plan(n: int, n_bits: int, radius: int, exhaustive: int = EXHAUSTIVE) -> tuple[int, int]:
    """Bits a table samples and number of tables; ``(0, 1)`` compares everything."""
    if n <= exhaustive:
        return 0, 1
    for k in range(min(_MOST_BITS, max(1, round(math.log2(n)) - 1)), 0, -1):
        shared = math.prod((n_bits - radius - i) / (n_bits - i) for i in range(k)) if n_bits - radius > k else 0.0
        if 0 < shared < 1:
            n_tables = math.ceil(math.log(MISSED) / math.log1p(-shared))
            if n_tables <= MOST_TABLES:
                return k, n_tables
        elif shared == 1:
            return k, 1
    return 0, 1
