"""Groups of near-duplicates without chaining, and the nearest item of another collection.

A group is a star: items are taken in order of preference, and an item that no group holds yet becomes a keeper and takes every free item
within the radius of *itself*. So of A~B~C with A far from C, A and C never share a group, and two keepers are never within the radius of
each other unless a rule keeps them apart.

Stars are made within connected parts, which are joined by chains of pairs within the radius. Only parts are kept and never the pairs:
two codes that are known to be in one part are not compared again, so a hundred thousand copies of one image cost as many comparisons.

Which pairs are compared: up to ``EXHAUSTIVE`` codes all of them. Above, hash tables of sampled bits choose (Indyk and Motwani, STOC 1998,
4.2). A table draws 64 bits at random. Codes that agree in the first ``k`` of them share a bucket, and two codes in a bucket are compared if
the other drawn bits differ little. Two codes at distance d share a bucket with probability (1 - d / n_bits)^k, about. There are as many
tables as it takes for a pair *at* the radius to be missed by all of them with probability ``MISSED``; nearer pairs are missed far less, and
none is missed if other pairs connect the two. Tables are made one after the other, so memory is the codes twice and some 50 bytes a code
for each thread. The drawn bits depend on the length, number and radius alone, so the same input gives the same groups.

Codes of two parts, features and a perceptual hash, are judged by a :class:`Rule`: by the whole code, by the hash alone, and by the hash of
the mirror image, which is the hash with every other column of its bits exchanged. Pairs that the rule leaves open are listed, to be looked
at (:mod:`distillhash.dedup.alignment`); what was found to be one picture there is linked as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from distillhash.codes import Codes, check_same_length
from distillhash.errors import DataError, ParameterError
from distillhash.files import cores
from distillhash.hamming import planes_of, within
from distillhash.hamming.search import compiles

if TYPE_CHECKING or compiles():
    from distillhash.hamming.kernel import compiled as compiled
    from distillhash.hamming.kernel import popcount64
else:  # plain Python finds the same, for thousands of items

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        """The function as it is."""
        return function

    def popcount64(value: np.uint64) -> int:
        """Number of set bits."""
        return int(value).bit_count()


MISSED = 1e-3
EXHAUSTIVE = 20_000
THREADS = 4  # at most; each needs memory for its tables
_PASSING = 0.98  # share of the pairs at the radius in a bucket that the other drawn bits let pass
_PLACING = 4.0  # time to place a code in a table, in comparisons of a pair that shares a bucket
_MOST_KEY_BITS = 32
_DIGIT = 11  # bits sorted by at a time
_BLOCK_PAIRS = 2**23  # compared at a time where every pair is; all of them may be within the radius

TELLING = 128  # bits of a code, from which different pictures have different codes
COPIES, _PER_COPY = 8, 50  # items of one picture that count at most: one for every 50 pictures
_MOST_CHAINED = 200_000  # items; in larger collections only equal codes are copies
_MIX = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93], np.uint64)

HASH_BITS = 256
_HASH_WORDS = HASH_BITS // 64
_MIRROR = np.packbits(np.tile([0, 1], HASH_BITS // 2)).view(np.uint64)  # odd frequencies along a row change sign
MOST_OPEN = 4  # pairs of one item that are looked at, the nearest
_PER_PARTS = 2  # the same between two crowds of certain copies
CENTRAL = 0.9
MOST_WALKED = 5_000  # items of a part whose pairs are judged one by one; in larger parts the codes alone decide

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Rule:
    """Which pairs of codes are duplicates, and which are to be looked at; all radii in bits, -1 for none.

    Codes have ``n_features`` bits of features, and ``hashes`` times the ``HASH_BITS`` of one perceptual hash; or no hash at all.
    """

    radius: int  # of the whole code
    hashes: int = 0
    n_features: int = 0
    hash_radius: int = -1  # of one hash alone
    open_radius: int = -1  # of the whole code
    open_features: int = -1  # of the features alone; up to there the hash of the mirror image counts as well
    open_hash: int = -1  # of one hash alone

    @property
    def leaves_open(self) -> bool:
        """Whether there is anything to look at."""
        return self.open_features >= 0 or self.open_radius > self.radius

    def features(self, codes: Codes) -> Codes:
        """The first part."""
        return Codes.from_packed(codes.packed[:, : self.n_features // 8], self.n_features)

    def hash(self, codes: Codes) -> Codes:
        """The hash, once."""
        return Codes.from_packed(codes.packed[:, self.n_features // 8 : (self.n_features + HASH_BITS) // 8], HASH_BITS)

    def certain(self) -> Rule:
        """The same that leaves nothing open, but still knows mirror images."""
        return replace(self, open_radius=-1, open_hash=-1)

    def numbers(self) -> NDArray[np.int64]:
        """For compiled code."""
        features = self.n_features // 64 if self.hashes else 0
        return np.array(
            [
                self.radius,
                self.hash_radius,
                self.open_radius,
                self.open_features,
                features,
                self.hashes,
                self.open_hash,
            ],
            np.int64,
        )

    def judge(self, first: Codes, second: Codes) -> tuple[NDArray[np.int64], Rows]:
        """Of every pair of rows: 0, 1 (to be looked at) or 2 (a duplicate); and the distance."""
        verdicts, distances = _judged(first.words(), second.words(), self.numbers(), _MIRROR)
        return verdicts, distances


@dataclass(frozen=True)
class Stars:
    """Groups as two columns."""

    keeper: Rows  # row of every item's keeper; its own for keepers and for items without a duplicate
    distance: NDArray[np.int32]  # bits to the keeper

    def groups(self) -> list[Rows]:
        """Rows of every group of two or more, keeper first, then by (distance, row); groups by keeper's row."""
        rows = np.flatnonzero(np.bincount(self.keeper, minlength=len(self.keeper))[self.keeper] > 1)
        away = self.keeper[rows] != rows
        rows = rows[np.lexsort((rows, self.distance[rows], away, self.keeper[rows]))]
        return np.split(rows, np.flatnonzero(np.diff(self.keeper[rows])) + 1) if len(rows) else []


@dataclass(frozen=True)
class Pictures:
    """Items that show different pictures, as far as codes tell, whatever number of copies there are."""

    one: Rows  # a row of each picture, in an order that depends on the codes alone
    kept: Rows  # rows with the copies left out that are too many, ascending
    pairs: float  # pairs of items of different pictures, for each such pair of ``kept``
    pairs_of_one: float  # the same for each pair of ``one``


@dataclass(frozen=True)
class Matches:
    """The nearest items of another collection, for every query."""

    row: Rows  # (q, most) duplicates first, then what is to be looked at, each by distance, then row; -1 where there are no more
    distance: NDArray[np.int32]  # (q, most) bits
    certain: NDArray[np.bool_]  # (q, most) whether it is a duplicate
    count: Rows  # (q,) how many are


def star_groups(
    codes: Codes,
    rule: Rule | int,
    *,
    order: Rows | None = None,
    places: Rows | None = None,
    apart: Rows | None = None,
    kinds: Rows | None = None,
    parts: NDArray[np.int32] | None = None,
    linked: Rows | None = None,
) -> Stars:
    """Stars around keepers; memory linear in the number of codes, deterministic. A number is the radius of the whole code.

    ``order`` holds all rows by falling preference as keepers. Two items of the same of ``places`` (``(n,)``, -1 for none) are never linked,
    nor are two of different ``kinds`` (``(n,)``), nor the ``(m, 2)`` pairs of rows in ``apart``. Pairs in ``linked`` count as within
    the radius. ``parts`` joins at least all that may be linked, as :func:`rule_parts` does.
    """
    rule = Rule(rule) if isinstance(rule, int) else rule
    n = len(codes)
    order = np.arange(n, dtype=np.int64) if order is None else np.asarray(order, np.int64)
    if len(order) != n or not np.array_equal(np.sort(order), np.arange(n)):
        raise DataError(f"the order must hold each of the {n} rows once")
    parts = rule_parts(codes, rule) if parts is None else parts
    places = np.full(n, -1, np.int64) if places is None else np.asarray(places, np.int64)
    kinds = np.zeros(n, np.int64) if kinds is None else np.asarray(kinds, np.int64)
    rank = np.empty(n, np.int64)
    rank[order] = np.arange(n)
    pairs = (_pair_numbers(apart, n), _pair_numbers(linked, n))
    return Stars(*_claim(codes.words(), *_by_part(parts, rank), rule.numbers(), _MIRROR, places, *pairs, kinds))


def _pair_numbers(pairs: Rows | None, n: int) -> Rows:
    """A number for each pair of rows, ascending."""
    low, high = (np.zeros((0, 2), np.int64) if pairs is None else np.sort(pairs, axis=1)).T
    return np.unique(low * n + high)


def different_pictures(
    codes: Codes, same: NDArray[np.bytes_] | None = None, usable: Rows | None = None, *, nearly: float = 1 / 16
) -> Pictures:
    """Tell crowds of copies from different pictures, among the rows ``usable``.

    Items of equal content (``same``, a digest each) are copies, and in codes of ``TELLING`` bits or more, items that are joined by steps of
    a share ``nearly`` of the bits. A picture counts as at most ``COPIES`` items, in small collections as one, and equal codes as one.
    """
    usable = np.arange(len(codes)) if usable is None else usable
    packed = np.ascontiguousarray(codes.packed[usable])
    # The end of the code is the perceptual hash, where there is one: it does not depend on what else is in the collection.
    key = np.zeros((len(usable), 32), np.uint8)
    key[:, 32 - min(32, packed.shape[1]) :] = packed[:, -32:]
    mixed = key.view(np.uint64) @ _MIX
    mixed = (mixed ^ (mixed >> np.uint64(29))) * _MIX[0]
    telling = codes.n_bits >= TELLING
    content = np.arange(len(usable)) if same is None or telling else same[usable]
    if telling:
        content = packed.view(f"V{packed.shape[1]}").ravel()
    _, once, times = np.unique(content, return_index=True, return_counts=True)  # a row and the number of each content
    order = np.lexsort((once, mixed[once]))
    once, times = once[order], times[order]
    lowest = np.arange(len(once))
    if telling and 0 < len(once) <= _MOST_CHAINED:
        lowest = connected_parts(codes[usable[once]], int(codes.n_bits * nearly)).astype(np.int64)
    _, picture = np.unique(lowest, return_inverse=True)
    n_pictures = int(picture.max(initial=-1)) + 1
    limit = min(COPIES, max(1, n_pictures // _PER_COPY))
    by_picture = np.argsort(picture, kind="stable")
    starts = np.searchsorted(picture[by_picture], np.arange(n_pictures))
    kept = by_picture[np.arange(len(once)) - starts[picture[by_picture]] < limit]
    sizes = np.bincount(picture, times, n_pictures), np.bincount(picture[kept], np.ones(len(kept)), n_pictures)
    among = [float(count.sum() ** 2 - (count**2).sum()) for count in sizes]
    pairs = among[0] / among[1] if among[1] else 1.0
    of_one = among[0] / (n_pictures * (n_pictures - 1)) if n_pictures > 1 else 1.0
    return Pictures(usable[once[np.unique(lowest)]], np.sort(usable[once[kept]]), pairs, of_one)


def linked_rows(parts: NDArray[np.int32], places: Rows | None = None) -> Rows:
    """Rows whose part has another item that may be linked, ascending: not those of a part where all items have the same place."""
    own = -1 - np.arange(len(parts))
    if places is not None:
        own = np.where(places < 0, own, places)
    lowest, highest = own.copy(), own.copy()  # by the number of the part
    np.minimum.at(lowest, parts, own)
    np.maximum.at(highest, parts, own)
    return np.flatnonzero(lowest[parts] != highest[parts])


def match(query: Codes, database: Codes, rule: Rule | int, *, most: int = 1) -> Matches:
    """For every query code the nearest of ``database`` that are duplicates by the rule, or to be looked at; memory linear in the codes."""
    check_same_length(query, database)
    rule = Rule(rule) if isinstance(rule, int) else rule
    both = Codes.from_packed(np.concatenate([query.packed, database.packed]), query.n_bits)
    row, distance = np.full((len(query), most), -1, np.int64), np.full((len(query), most), -1, np.int32)
    certain, count = np.zeros((len(query), most), bool), np.zeros(len(query), np.int64)
    starts, members = _by_part(rule_parts(both, rule), np.arange(len(both)))
    _match(both.words(), starts, members, rule.numbers(), _MIRROR, row, distance, certain, count)
    return Matches(row, distance, certain, count)


def rule_parts(codes: Codes, rule: Rule) -> NDArray[np.int32]:
    """For every code the lowest row of what chains of pairs join that the rule takes or leaves open."""
    parts = connected_parts(codes, max(rule.radius, rule.open_radius))
    if rule.hashes and rule.hash_radius >= 0:
        _merge(parts, connected_parts(rule.hash(codes), max(rule.hash_radius, rule.open_hash)))
    if rule.hashes and rule.open_features >= 0:
        _merge(parts, connected_parts(rule.features(codes), rule.open_features))
    return parts


def open_pairs(codes: Codes, rule: Rule, parts: NDArray[np.int32]) -> tuple[Rows, Rows]:
    """``(m, 2)`` pairs to be looked at, nearest first, and for every code the lowest row of what chains of certain pairs join.

    Pairs that such a chain joins are left out. At most ``MOST_OPEN`` of an item are listed, and ``_PER_PARTS`` between two chains. Of a
    part of more than ``MOST_WALKED`` items, all of it counts as one chain.
    """
    n = len(codes)
    starts, members = _by_part(parts, np.arange(n))
    near, away = np.full((n, MOST_OPEN), -1, np.int64), np.full((n, MOST_OPEN), 2**30, np.int64)
    chain = np.arange(n)
    _walk(codes.words(), starts, members, rule.numbers(), _MIRROR, MOST_WALKED, chain, near, away)
    row, column = np.nonzero(near >= 0)
    pairs, distance = np.sort(np.stack([row, near[row, column]], 1), axis=1), away[row, column]
    _, once = np.unique(pairs[:, 0] * n + pairs[:, 1], return_index=True)
    pairs, distance = pairs[once], distance[once]
    ends = np.sort(chain[pairs], axis=1)
    order = np.lexsort((pairs[:, 1], pairs[:, 0], distance, ends[:, 1], ends[:, 0]))
    _, first, times = np.unique(ends[order, 0] * n + ends[order, 1], return_index=True, return_counts=True)
    nth = np.arange(len(order)) - np.repeat(first, times)
    kept = order[nth < _PER_PARTS]
    return pairs[kept[np.argsort(distance[kept], kind="stable")]], chain


def central_rows(codes: Codes, rule: Rule, parts: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Which codes are near to ``CENTRAL`` as many others as any of their part: a copy with letters all over it is not, its original is.

    All are in parts of more than ``MOST_WALKED`` items.
    """
    near = np.zeros(len(codes), np.int64)
    starts, members = _by_part(parts, np.arange(len(codes)))
    _count_near(codes.words(), starts, members, rule.numbers(), _MIRROR, MOST_WALKED, near)
    _, number = np.unique(parts, return_inverse=True)
    most = np.zeros(len(codes), np.int64)
    np.maximum.at(most, number, near)
    central: NDArray[np.bool_] = near >= CENTRAL * most[number]
    return central


def join_rows(parts: NDArray[np.integer[Any]], pairs: Rows) -> NDArray[np.int32]:
    """Parts, each named by its lowest row, with the two rows of every pair joined."""
    joined = parts.astype(np.int32)
    other = np.arange(len(parts), dtype=np.int32)
    for low, high in np.sort(pairs, axis=1).tolist():
        a, b = _root(other, low), _root(other, high)
        other[max(a, b)] = min(a, b)
    _merge(joined, other)
    return joined


def _pairs_within(query: Codes, database: Codes, radius: int) -> Iterator[tuple[int, Rows, Rows, NDArray[np.int32]]]:
    """Blocks of queries, so that memory is bounded: the first query, and what :func:`distillhash.hamming.within` finds."""
    planes, words = planes_of(database), planes_of(query)
    block = max(1, _BLOCK_PAIRS // max(1, len(database)))
    for start in range(0, len(query), block):
        yield start, *within(words[:, start : start + block], planes, radius)


def connected_parts(codes: Codes, radius: int) -> NDArray[np.int32]:
    """For every code the lowest row of its part, its own where nothing is near; the same for any number of threads."""
    plan = _make_plan(codes, radius)
    if plan.k == 0:
        parent = np.arange(len(codes), dtype=np.int32)
        for start, limits, rows, _ in _pairs_within(codes, codes, radius):
            _join_pairs(parent, start, limits, rows)
        _merge(parent, parent)
        return parent
    words = codes.words()
    planes = _bit_planes(words)
    threads = min(THREADS, cores(), len(plan.bits))

    def joined(first: int) -> NDArray[np.int32]:
        """Parents by some of the tables."""
        parent = np.arange(len(words), dtype=np.int32)
        values, rows = np.empty((2, len(words)), np.uint64), np.empty((2, len(words)), np.int32)
        lists = np.empty((3, len(words)), np.int32)
        key_mask = np.uint64(2**plan.k - 1)
        for bits in plan.bits[first::threads]:
            half = _make_table(planes, bits, plan.k, values, rows)
            _join_buckets(words, values[half], rows[half], key_mask, plan.tolerance, radius, parent, lists)
        return parent

    with ThreadPoolExecutor(threads) as pool:
        parent, *others = pool.map(joined, range(threads))
    for other in [parent, *others]:
        _merge(parent, other)
    return parent


@dataclass(frozen=True)
class _Plan:
    """What the tables draw."""

    bits: NDArray[np.int64]  # (n_tables, m) positions in a code's words, m at most 64
    k: int  # the first ``k`` of each make the key; 0 means that every pair is compared
    tolerance: int  # how many of the others may differ


def _make_plan(codes: Codes, radius: int) -> _Plan:
    """The tables that find pairs within a radius in the least time.

    Longer keys make smaller buckets and need more tables. How full buckets are depends on how far apart random pairs of these codes lie;
    pairs within the radius do not count, because joined pairs are not compared again.
    """
    if radius < 0:
        raise ParameterError(f"the radius must be at least 0 bits, got {radius}")
    n, n_bits = len(codes), codes.n_bits
    if n >= 2**31:
        raise ParameterError(f"at most {2**31 - 1} codes can be grouped at once, got {n}")
    k, n_tables, tolerance = 0, 1, min(radius, 64)
    rng = np.random.default_rng(0)
    if n > EXHAUSTIVE and radius < n_bits:
        n_pairs = n * n / 2
        a, b = rng.integers(0, n, (2, 100_000))
        apart = np.bitwise_count(codes.packed[a] ^ codes.packed[b]).sum(axis=1, dtype=np.float64) / n_bits
        cost = n_pairs
        for tried in range(1, min(_MOST_KEY_BITS, n_bits - radius) + 1):
            passing, allowed = _passing_share(n_bits, radius, tried)
            needed = math.ceil(math.log(MISSED) / math.log1p(-passing)) if passing < 1 else 1
            sharing = float(np.mean(np.where(apart > radius / n_bits, 1 - apart, 0) ** tried))
            time = needed * (n * _PLACING + n_pairs * sharing)
            if time < cost:
                cost, k, n_tables, tolerance = time, tried, needed, allowed
    ones = Codes.from_packed(np.packbits(np.ones((1, n_bits), np.uint8), axis=1), n_bits).words()[0]
    positions = [64 * i + j for i, word in enumerate(ones.tolist()) for j in range(64) if word >> j & 1]  # no padding
    drawn = [rng.permutation(positions)[:64] for _ in range(n_tables)]
    return _Plan(np.array(drawn, np.int64).reshape(n_tables, -1), k, tolerance)


def _passing_share(n_bits: int, radius: int, k: int) -> tuple[float, int]:
    """Probability that a pair at the radius passes a table, and the table's tolerance (hypergeometric, both)."""
    agree = math.prod((n_bits - radius - i) / (n_bits - i) for i in range(k))
    left, drawn = n_bits - k, min(64, n_bits) - k
    total, passed = math.comb(left, drawn), 0
    for differing in range(drawn + 1):
        passed += math.comb(radius, differing) * math.comb(left - radius, drawn - differing)
        if passed / total >= _PASSING:
            return agree * passed / total, differing
    return agree, drawn


@compiled
def _make_table(planes: Any, bits: Any, k: int, values: Any, rows: Any) -> int:
    """A table in ``values`` and ``rows``, ``(2, n)`` each; returns which half holds it.

    Bit j of a value is bit ``bits[j]`` of the code. A radix sort, which is stable, orders values by the key in their low ``k`` bits, and
    the rows with them.
    """
    n = values.shape[1]
    block = np.zeros(64, np.uint64)
    for column in range(planes.shape[1]):
        for j in range(len(bits)):
            block[j] = planes[bits[j], column]
        block[len(bits) :] = 0
        _transpose(block)
        for i in range(min(64, n - 64 * column)):
            values[0, 64 * column + i] = block[i]
            rows[0, 64 * column + i] = 64 * column + i
    n_digits = (k + _DIGIT - 1) // _DIGIT
    for digit in range(n_digits):  # the lowest first
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
            key = (old_values[i] >> shift) & mask
            place = places[key]
            new_values[place], new_rows[place] = old_values[i], old_rows[i]
            places[key] = place + 1
    return n_digits % 2


@compiled
def _bit_planes(words: Any) -> Any:
    """Codes turned: ``(64 n_words, ceil(n / 64))``; bit i of word j of a plane is that plane's bit of code 64 j + i."""
    n, n_words = words.shape
    planes = np.empty((64 * n_words, (n + 63) // 64), np.uint64)
    block = np.zeros(64, np.uint64)
    for column in range(planes.shape[1]):
        n_rows = min(64, n - 64 * column)
        for word in range(n_words):
            block[n_rows:] = 0
            for i in range(n_rows):
                block[i] = words[64 * column + i, word]
            _transpose(block)
            for i in range(64):
                planes[64 * word + i, column] = block[i]
    return planes


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
def _distance(words: Any, a: int, b: int) -> int:
    """Hamming distance of two rows; all words, because a loop that may stop early is not vector code."""
    distance = 0
    for word in range(words.shape[1]):
        distance += popcount64(words[a, word] ^ words[b, word])
    return distance


@compiled
def _root(parent: Any, row: int) -> int:
    while parent[row] != row:
        parent[row] = parent[parent[row]]
        row = parent[row]
    return row


@compiled
def _join_pairs(parent: Any, start: int, limits: Any, rows: Any) -> None:
    """Join all pairs of a block of :func:`_pairs_within`."""
    for item in range(len(limits) - 1):
        for place in range(limits[item], limits[item + 1]):
            a, b = _root(parent, start + item), _root(parent, rows[place])
            parent[max(a, b)] = min(a, b)


@compiled
def _join(words: Any, parent: Any, a: int, b: int, radius: int) -> bool:
    """Whether two codes are in one part; they are from now on if they are near. The lowest row is the root of a part."""
    a_root, b_root = _root(parent, a), _root(parent, b)
    if a_root == b_root:
        return True
    if _distance(words, a, b) > radius:
        return False
    parent[max(a_root, b_root)] = min(a_root, b_root)
    return True


@compiled
def _join_buckets(
    words: Any, values: Any, rows: Any, key_mask: Any, tolerance: int, radius: int, parent: Any, lists: Any
) -> None:
    """Join what is near within each bucket of a table.

    The codes of a bucket are kept in linked lists, one for each part. A code is compared with a list until it proves to belong there, so
    that it does not meet every copy of one image.
    """
    head, tail, after = lists[0], lists[1], lists[2]
    start = 0
    while start < len(values):
        key = values[start] & key_mask
        stop = start + 1
        while stop < len(values) and values[stop] & key_mask == key:
            stop += 1
        n_lists = 0
        for new in range(start, stop if stop - start > 1 else start):
            mine, number = -1, 0
            while number < n_lists:
                place = head[number]
                while place >= 0:
                    if popcount64(values[place] ^ values[new]) <= tolerance and _join(
                        words, parent, rows[place], rows[new], radius
                    ):
                        break
                    place = after[place]
                if place < 0:
                    number += 1
                elif mine < 0:
                    mine = number
                    number += 1
                else:  # the new code joins two lists; the last list takes the number of the second
                    after[tail[mine]] = head[number]
                    tail[mine] = tail[number]
                    n_lists -= 1
                    head[number], tail[number] = head[n_lists], tail[n_lists]
            after[new] = -1
            if mine < 0:
                head[n_lists] = tail[n_lists] = new
                n_lists += 1
            else:
                after[tail[mine]] = new
                tail[mine] = new
        start = stop


@compiled
def _merge(parent: Any, other: Any) -> None:
    """Join in ``parent`` what ``other`` joins; every row then names its part's lowest row."""
    for row in range(len(parent)):
        a, b = _root(parent, row), _root(parent, other[row])
        parent[max(a, b)] = min(a, b)
    for row in range(len(parent)):
        parent[row] = _root(parent, row)


def _by_part(parts: NDArray[np.int32], rank: Rows) -> tuple[Rows, Rows]:
    """Where each part of two or more starts (and the last ends), and their rows, part by part and by ``rank`` within."""
    _, number, size = np.unique(parts, return_inverse=True, return_counts=True)
    rows = np.flatnonzero(size[number] > 1)
    rows = rows[np.lexsort((rank[rows], number[rows]))]
    return np.concatenate([[0], np.cumsum(size[size > 1])]).astype(np.int64), rows


@compiled
def _blocked(a: int, b: int, places: Any, apart: Any, kinds: Any) -> bool:
    """Whether a rule keeps two rows apart."""
    if kinds[a] != kinds[b] or (places[a] >= 0 and places[a] == places[b]):
        return True
    return len(apart) > 0 and _holds(apart, a, b, len(places))


@compiled
def _judge(words: Any, a: int, b: int, rule: Any, mirror: Any) -> Any:
    """What a rule (:meth:`Rule.numbers`) says of two rows, and their distance."""
    first, hashes = rule[4], rule[5]
    if hashes == 0:
        distance = _distance(words, a, b)
        return (2 if distance <= rule[0] else 1 if distance <= rule[2] else 0), distance
    features, straight, turned = 0, 0, 0
    for word in range(first):
        features += popcount64(words[a, word] ^ words[b, word])
    for word in range(len(mirror)):
        differing = words[a, first + word] ^ words[b, first + word]
        straight += popcount64(differing)
        turned += popcount64(differing ^ mirror[word])
    away = min(straight, turned) if features <= rule[3] or turned <= rule[1] else straight
    distance = features + hashes * away
    if away <= rule[1] or distance <= rule[0]:
        return 2, distance
    return (1 if features <= rule[3] or distance <= rule[2] or away <= rule[6] else 0), distance


@compiled
def _judged(first: Any, second: Any, rule: Any, mirror: Any) -> Any:
    """:func:`_judge` of every pair of rows."""
    verdicts, distances = np.zeros(len(first), np.int64), np.zeros(len(first), np.int64)
    both = np.empty((2, first.shape[1]), np.uint64)
    for row in range(len(first)):
        both[0], both[1] = first[row], second[row]
        verdicts[row], distances[row] = _judge(both, 0, 1, rule, mirror)
    return verdicts, distances


@compiled
def _holds(pairs: Any, a: int, b: int, n: int) -> bool:
    """Whether the pair is among numbers of pairs, ascending."""
    pair = min(a, b) * n + max(a, b)
    place = np.searchsorted(pairs, pair)
    return bool(place < len(pairs) and pairs[place] == pair)


@compiled
def _claim(
    words: Any, starts: Any, members: Any, rule: Any, mirror: Any, places: Any, apart: Any, linked: Any, kinds: Any
) -> Any:
    """Stars within parts; ``members`` holds the rows of each part by falling preference and is overwritten."""
    keeper = np.arange(len(words))
    distance = np.zeros(len(words), np.int32)
    for part in range(len(starts) - 1):
        first, stop = starts[part], starts[part + 1]
        while first < stop:
            item = members[first]
            first += 1
            free = first  # taken rows leave, so copies of one image are walked through once
            for place in range(first, stop):
                row = members[place]
                verdict, found = _judge(words, item, row, rule, mirror)
                near = verdict == 2 or (len(linked) > 0 and _holds(linked, item, row, len(words)))
                if near and not _blocked(item, row, places, apart, kinds):
                    keeper[row], distance[row] = item, found
                else:
                    members[free] = row
                    free += 1
            stop = free
    return keeper, distance


@compiled
def _count_near(words: Any, starts: Any, members: Any, rule: Any, mirror: Any, most: int, near: Any) -> None:
    """How many of its part each item is linked to."""
    for part in range(len(starts) - 1):
        first, stop = starts[part], starts[part + 1]
        for left in range(first, stop if stop - first <= most else first):
            for right in range(left + 1, stop):
                a, b = members[left], members[right]
                is_near = _judge(words, a, b, rule, mirror)[0] == 2
                near[a] += is_near
                near[b] += is_near


@compiled
def _walk(
    words: Any, starts: Any, members: Any, rule: Any, mirror: Any, most: int, chain: Any, near: Any, away: Any
) -> None:
    """What :func:`open_pairs` lists: chains of certain pairs, and for each item the nearest that is open, in another chain."""
    top = near.shape[1]
    for part in range(len(starts) - 1):
        first, stop = starts[part], starts[part + 1]
        if stop - first > most:
            for place in range(first, stop):
                chain[members[place]] = members[first]
            continue
        for left in range(first, stop):
            for right in range(left + 1, stop):
                a, b = _root(chain, members[left]), _root(chain, members[right])
                if a != b and _judge(words, members[left], members[right], rule, mirror)[0] == 2:
                    chain[max(a, b)] = min(a, b)
        for place in range(first, stop):
            chain[members[place]] = _root(chain, members[place])
        for left in range(first, stop):
            one = members[left]
            for right in range(first, stop):
                other = members[right]
                if chain[one] == chain[other]:
                    continue
                verdict, distance = _judge(words, one, other, rule, mirror)
                if verdict == 1 and distance < away[one, top - 1]:
                    slot = top - 1
                    while slot > 0 and distance < away[one, slot - 1]:
                        away[one, slot], near[one, slot] = away[one, slot - 1], near[one, slot - 1]
                        slot -= 1
                    away[one, slot], near[one, slot] = distance, other


@compiled
def _match(
    words: Any, starts: Any, members: Any, rule: Any, mirror: Any, rows: Any, distances: Any, certain: Any, count: Any
) -> None:
    """Compare the queries of each part, which are its lowest rows, with its other rows."""
    q, top = rows.shape
    for part in range(len(starts) - 1):
        first, stop = starts[part], starts[part + 1]
        middle = first + np.searchsorted(members[first:stop], q)
        for i in range(first, middle):
            item = members[i]
            for j in range(middle, stop):
                verdict, found = _judge(words, item, members[j], rule, mirror)
                if verdict == 0:
                    continue
                sure = verdict == 2
                count[item] += sure
                slot = top
                while slot > 0 and (
                    rows[item, slot - 1] < 0
                    or (sure and not certain[item, slot - 1])
                    or (sure == certain[item, slot - 1] and found < distances[item, slot - 1])
                ):
                    slot -= 1
                if slot < top:
                    for k in range(top - 1, slot, -1):
                        rows[item, k], distances[item, k] = rows[item, k - 1], distances[item, k - 1]
                        certain[item, k] = certain[item, k - 1]
                    rows[item, slot], distances[item, slot], certain[item, slot] = members[j] - q, found, sure
