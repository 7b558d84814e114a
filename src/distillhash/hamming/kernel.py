"""The search kernels that numba compiles: the k nearest rows of many queries, and all rows within a radius.

LLVM does not vectorise a plain loop well enough, so the inner loops are written as LLVM vector code: 512 bits of the database are loaded,
XORed with up to four queries that stay in registers, counted with ``ctpop`` and folded into one running minimum per query. Distances are
below 2**16 and sit in lanes of 16, 32 or 64 bits with zeros above, so one minimum over 16-bit lanes serves all lane widths; every vector
unit since 2008 has it as one instruction. Where the processor cannot count the bits of a 32-bit word in one instruction, bytes are counted
and a product adds them up in the highest byte of each lane; then minima are over 32-bit lanes (``_Rows.shift``). After a block of rows, one
comparison tells whether any row is nearer than the query's bound. Few blocks hold one, and only those are examined row by row.

Codes of two parts are searched by two rankings at once (:mod:`distillhash.hamming.ranking`). ``parts`` says which bits are the class
part, and how the rankings weigh both; it is None for codes of one part. Where the text says distance, a row then has two keys of 16 bits
in one number, and so has the bound of a query: one minimum over 16-bit lanes serves both. A sample of the rows gives the first bounds.

A tile of rows stays in cache while all queries of a call pass over it. The database is passed as addresses, so that arrays of any origin
(read-only, memory-mapped) share compiled code; callers keep the memory alive. Importing this module imports numba. numba keeps compiled
kernels on disk and does not notice a change of the LLVM code here: delete ``__pycache__`` after one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import config, njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from distillhash.hamming.compilation import compiled as compiled

BLOCK = 256  # rows between two comparisons of the running minima with the bounds
CHUNK = 64  # rows of one bit mask
GROUP = 4  # queries that share a load of the database
TILE_WORDS = 4096  # of the database, which all queries pass over while they are in the innermost caches
HALF_ROWS = 4096  # rows that one query tests by half of the planes at a time
MOST_BY_HALF = 48  # of these rows may pass the test; if more do, it does not pay
ROW_BITS = 47  # a candidate is one integer: its distance, then its row
_CLASS_BITS = 13  # of two parts: its key, its class distance, then its row
_RANK_SHIFT = ROW_BITS - _CLASS_BITS
_STEP = 32  # one of so many tiles is in the sample that gives the first bounds for two parts
_SAMPLED_FROM = 1 << 18  # rows
_NO_ANSWER = np.zeros((0, 0), np.int64), np.zeros((0, 0), np.int32)
ROW_MASK = 2**ROW_BITS - 1
_PREFETCH_BYTES = 4096  # one query alone runs a fifth faster when memory is prefetched this far ahead


def _counts_words() -> bool:
    """Whether the target processor counts the bits of a word in one instruction, and not byte by byte as ARM does."""
    try:
        return config.CPU_NAME is None and bool(binding.get_host_cpu_features().get("avx512vpopcntdq"))
    except RuntimeError:  # LLVM does not know this processor
        return False


COUNTS_WORDS = _counts_words()

_I1, _I8, _I16, _I32, _I64 = (ir.IntType(width) for width in (1, 8, 16, 32, 64))
_KEYS = ir.VectorType(_I16, 32)
Masks = tuple[tuple[int, ...], np.uint64 | np.uint32 | None]


@intrinsic
def popcount64(typing_context: Any, value: Any) -> Any:
    """Number of set bits of a uint64 as int64, for use inside njit functions (LLVM ``ctpop``, one instruction)."""
    del typing_context, value

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del context, signature
        return builder.ctpop(arguments[0])

    return types.int64(types.uint64), codegen


@intrinsic
def lowest_bit(typing_context: Any, value: Any) -> Any:
    """Position of the lowest set bit of a uint64 that is not 0."""
    del typing_context, value

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del context, signature
        return builder.cttz(arguments[0], ir.Constant(_I1, 1))

    return types.int64(types.uint64), codegen


class _Rows:
    """Builds code that reads rows of the planes, several at once: each row is a lane of a 512-bit vector."""

    def __init__(self, context: Any, builder: Any, signature: Any, arguments: Any, half: bool = False) -> None:
        # With ``half``, distances are over the first half of the planes, which is a lower bound.
        query_type, _, addresses_type, allowed_type, parts_type, *_ = signature.args
        query, self.first, addresses, self.allowed, parts, self.start, *_ = arguments
        self.builder = builder
        self.n_planes = addresses_type.count
        self.bits = query_type.dtype.bitwidth
        self.lanes = 512 // self.bits
        # The bytes of a lane are added in one byte, which must hold the distance.
        self.sum_at = 24 if self.bits == 32 and self.n_planes < 8 and not COUNTS_WORDS else 0
        self.word = ir.IntType(self.bits)
        self.vector = ir.VectorType(self.word, self.lanes)
        self.masked = not isinstance(allowed_type, types.NoneType)
        self.addresses = cgutils.unpack_tuple(builder, addresses, self.n_planes)
        if half:
            self.addresses = self.addresses[: self.n_planes // 2]
        self.query = context.make_array(query_type)(context, builder, query).data
        self.parts = None if isinstance(parts_type, types.NoneType) else cgutils.unpack_tuple(builder, parts, 4)
        self.shift = self.sum_at if self.parts is None else 0
        self.class_half = False  # whether the class bits are the lower half of the first word
        if self.parts is not None:
            self.n_class = len(parts_type.types[0].types)  # planes of class bits alone; the next one may have some
            self.mask = None if isinstance(parts_type.types[1], types.NoneType) else self.parts[1]
            if self.mask is not None and parts_type.types[1].bitwidth == 32:
                self.class_half, self.shift = True, 32
                self.mask = builder.zext(self.mask, _I64)
            self.mask = None if self.mask is None else self.fit(self.mask)
            self.weights = self.parts[2:]

    def call(self, name: str, result: Any, arguments: list[Any]) -> Any:
        """Call an LLVM intrinsic."""
        signature = ir.FunctionType(result, [argument.type for argument in arguments])
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, signature, name), arguments)

    def fit(self, value: Any) -> Any:
        """A 64-bit number as a word."""
        return value if self.bits == 64 else self.builder.trunc(value, self.word)

    def splat(self, value: Any) -> Any:
        """A vector with ``value`` in all lanes."""
        undefined = ir.Constant(self.vector, ir.Undefined)
        one = self.builder.insert_element(undefined, value, ir.Constant(_I32, 0))
        return self.builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(_I32, self.lanes), None))

    def query_words(self, place: int) -> list[Any]:
        """The words of query ``first + place``."""
        at = self.builder.mul(self.builder.add(self.first, ir.Constant(_I64, place)), ir.Constant(_I64, self.n_planes))
        places = [self.builder.add(at, ir.Constant(_I64, plane)) for plane in range(len(self.addresses))]
        return [self.builder.load(self.builder.gep(self.query, [place])) for place in places]

    def load(self, address: Any, row: Any, kind: Any, item_bytes: int) -> Any:
        """What lies at ``row`` of an array, as ``kind``."""
        place = self.builder.add(address, self.builder.mul(row, ir.Constant(_I64, item_bytes)))
        return self.builder.load(self.builder.inttoptr(place, kind.as_pointer()), align=1)

    def words(self, row: Any, kind: Any) -> list[Any]:
        """The words of the rows from ``row``, as many as ``kind`` holds, of every plane."""
        return [self.load(address, row, kind, self.bits // 8) for address in self.addresses]

    def prefetch(self, row: Any, ahead: int) -> None:
        """Prefetch what lies ``ahead`` bytes behind the words of ``row``. There need not be anything."""
        how = [ir.Constant(_I32, number) for number in (0, 3, 1)]  # for reading, into all caches, data
        for address in self.addresses:
            place = self.builder.add(address, self.builder.mul(row, ir.Constant(_I64, self.bits // 8)))
            place = self.builder.add(place, ir.Constant(_I64, ahead))
            self.call("llvm.prefetch.p0", ir.VoidType(), [self.builder.inttoptr(place, _I8.as_pointer()), *how])

    def count(self, words: list[Any], kind: Any, suffix: str) -> Any:
        """Bits that are set in any of the words, as lanes of ``kind``."""
        total = None
        for word in words:
            counts = self.call(f"llvm.ctpop.{suffix}", kind, [self.builder.bitcast(word, kind)])
            total = counts if total is None else self.builder.add(total, counts)
        return ir.Constant(kind, None) if total is None else total

    def sums(self, words: list[Any]) -> Any:
        """Bits that are set in any of the words, of all lanes, shifted to the left by ``self.sum_at`` bits; those below mean nothing."""
        if not self.sum_at:
            return self.count(words, self.vector, f"v{self.lanes}i{self.bits}")
        total = self.builder.bitcast(self.count(words, ir.VectorType(_I8, 64), "v64i8"), self.vector)
        return self.builder.mul(total, ir.Constant(self.vector, [0x01010101] * 16))  # highest byte: sum of all four

    def differing(self, words: list[Any], query: list[Any]) -> list[Any]:
        return [self.builder.xor(word, other) for word, other in zip(words, query, strict=True)]

    def split(self, differing: list[Any], mask: Any) -> tuple[list[Any], list[Any]]:
        """What the two weights count: bits of the second part, or all bits if there is a mask, and bits of the class part."""
        of_class, others = differing[: self.n_class], differing[self.n_class :]
        if mask is None:
            return others, of_class
        return differing, of_class + [self.builder.and_(bits, mask) for bits in others[:1]]

    def splat_parts(self) -> list[Any]:
        """What :meth:`distances` needs of the parts, made once for all rows: the mask and the weights."""
        if self.parts is None:
            return []
        if self.class_half:
            neighbour, others = self.weights
            of_class = self.builder.add(neighbour, others)
            both = self.builder.or_(self.builder.shl(neighbour, ir.Constant(_I64, 32)), of_class)
            return [self.splat(both)]
        low = ir.Constant(self.vector, [2**32 - 1] * self.lanes)  # tells LLVM that products of 32 bits will do
        weights = (self.builder.and_(self.splat(self.fit(weight)), low) for weight in self.weights)
        return [None if self.mask is None else self.splat(self.mask), *weights]

    def distances(self, words: list[Any], query: list[Any], parts: list[Any]) -> Any:
        """Of all lanes, shifted to the left by ``self.shift`` bits; the bits below mean nothing. ``parts`` are :meth:`splat_parts`.

        Of two parts: both keys, in the lower 32 bits; those above mean nothing. Where the class bits are half of a word: in the upper 32.
        """
        differing = self.differing(words, query)
        if self.parts is None:
            return self.sums(differing)
        if self.class_half:
            # The upper half of a lane counts class bits, the lower one all others, and one product weighs both.
            halves = self.count(differing[:1], ir.VectorType(_I32, 16), "v16i32")
            swapped = ir.Constant(ir.VectorType(_I32, 16), [place ^ 1 for place in range(16)])
            halves = self.builder.bitcast(self.builder.shuffle_vector(halves, halves, swapped), self.vector)
            total = self.builder.add(halves, self.count(differing[1:], self.vector, "v8i64"))
            return self.builder.mul(total, parts[0])
        counts = [self.sums(words) for words in self.split(differing, parts[0])]
        if self.sum_at:
            places = ir.Constant(self.vector, [self.sum_at] * self.lanes)
            counts = [self.builder.lshr(count, places) for count in counts]
        return self.builder.add(*map(self.builder.mul, counts, parts[1:]))

    def forbidden(self, row: Any) -> Any:
        """Lanes of ones where a row is not allowed, and of zeros elsewhere."""
        flags = ir.VectorType(_I8, self.lanes)
        none = self.builder.icmp_unsigned("==", self.load(self.allowed, row, flags, 1), ir.Constant(flags, None))
        return self.builder.sext(none, self.vector)

    def below(self, distances: Any, bound: Any) -> Any:
        """One bit per lane: whether its distance is below ``bound``, an int64 below 2**32."""
        found = self.are_below(distances, bound)
        if self.parts is not None:  # any of the lane's keys
            lanes = self.builder.bitcast(self.builder.sext(found, _KEYS), self.vector)
            found = self.builder.icmp_unsigned("!=", lanes, ir.Constant(self.vector, None))
        return self.builder.zext(self.builder.bitcast(found, ir.IntType(self.lanes)), _I64)

    def any_below(self, distances: Any, bound: Any) -> Any:
        """1 if any distance is below ``bound``, else 0."""
        found = self.are_below(distances, bound)
        bits = self.builder.bitcast(found, ir.IntType(found.type.count))
        return self.builder.zext(self.builder.icmp_unsigned("!=", bits, ir.Constant(bits.type, 0)), _I64)

    def are_below(self, distances: Any, bound: Any) -> Any:
        bounds = self.splat(self.builder.shl(self.fit(bound), ir.Constant(self.word, self.shift)))
        kind = self.vector if self.parts is None else _KEYS
        return self.builder.icmp_unsigned(
            "<", self.builder.bitcast(distances, kind), self.builder.bitcast(bounds, kind)
        )


def _any_nearer(group: int, steps: int, block: int = BLOCK, half: bool = False) -> Any:
    """Makes the test of ``block`` rows from ``start``: bit g is set if a row is nearer to query ``first + g`` than its bound."""

    @intrinsic
    def any_nearer(
        typing_context: Any, query: Any, first: Any, addresses: Any, allowed: Any, parts: Any, start: Any, bounds: Any
    ) -> Any:
        del typing_context, first, start

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            rows = _Rows(context, builder, signature, arguments, half)
            kind, umin = (
                (rows.vector, "llvm.umin.v16i32") if rows.sum_at and rows.parts is None else (_KEYS, "llvm.umin.v32i16")
            )
            farthest = ir.Constant(kind, [2**kind.element.width - 1] * kind.count)
            parts = rows.splat_parts()
            queries = [[rows.splat(word) for word in rows.query_words(g)] for g in range(group)]
            n_vectors = block // rows.lanes
            unrolled = min(steps, n_vectors)
            before, loop, after = builder.block, builder.append_basic_block(), builder.append_basic_block()
            builder.branch(loop)
            builder.position_at_end(loop)
            vector = builder.phi(_I64)
            vector.add_incoming(ir.Constant(_I64, 0), before)
            n_minima = max(group, 2)  # two for one query, so that one does not wait for the other
            entering = [builder.phi(kind) for _ in range(n_minima)]
            minima = list(entering)
            for step in range(unrolled):
                at = builder.mul(builder.add(vector, ir.Constant(_I64, step)), ir.Constant(_I64, rows.lanes))
                row = builder.add(rows.start, at)
                words = rows.words(row, rows.vector)
                if group == 1:
                    rows.prefetch(row, _PREFETCH_BYTES)
                forbidden = rows.forbidden(row) if rows.masked else None
                for g in range(group):
                    distances = rows.distances(words, queries[g], parts)
                    if forbidden is not None:
                        distances = builder.or_(distances, forbidden)
                    m = g if group > 1 else step % n_minima
                    minima[m] = rows.call(umin, kind, [minima[m], builder.bitcast(distances, kind)])
            following = builder.add(vector, ir.Constant(_I64, unrolled))
            vector.add_incoming(following, loop)
            for phi, value in zip(entering, minima, strict=True):
                phi.add_incoming(farthest, before)
                phi.add_incoming(value, loop)
            builder.cbranch(builder.icmp_unsigned("<", following, ir.Constant(_I64, n_vectors)), loop, after)
            builder.position_at_end(after)
            if group == 1:
                minima = [rows.call(umin, kind, minima)]
            all_bounds = context.make_array(signature.args[6])(context, builder, arguments[6]).data
            found = ir.Constant(_I64, 0)
            for g in range(group):
                bound = builder.load(builder.gep(all_bounds, [builder.add(rows.first, ir.Constant(_I64, g))]))
                hit = rows.any_below(builder.bitcast(minima[g], rows.vector), bound)
                found = builder.or_(found, builder.shl(hit, ir.Constant(_I64, g)))
            return found

        return types.uint64(query, types.int64, addresses, allowed, parts, types.int64, bounds), codegen

    return any_nearer


any_nearer_to_one = _any_nearer(1, 8)
any_nearer_to_group = _any_nearer(GROUP, 1)
any_nearer_by_half = _any_nearer(1, 8, CHUNK, half=True)


def _nearer(half: bool) -> Any:
    """Makes the mask of ``CHUNK`` rows: bit b is set if row ``start + b`` is allowed and nearer to query ``first`` than ``bound``."""

    @intrinsic
    def nearer(
        typing_context: Any, query: Any, first: Any, addresses: Any, allowed: Any, parts: Any, start: Any, bound: Any
    ) -> Any:
        del typing_context, first, start, bound

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            rows = _Rows(context, builder, signature, arguments, half)
            words, parts = [rows.splat(word) for word in rows.query_words(0)], rows.splat_parts()
            found = ir.Constant(_I64, 0)
            for at in range(0, CHUNK, rows.lanes):
                row = builder.add(rows.start, ir.Constant(_I64, at))
                distances = rows.distances(rows.words(row, rows.vector), words, parts)
                if rows.masked:
                    distances = builder.or_(distances, rows.forbidden(row))
                lanes = rows.below(distances, arguments[6])
                found = builder.or_(found, builder.shl(lanes, ir.Constant(_I64, at)))
            return found

        return types.uint64(query, types.int64, addresses, allowed, parts, types.int64, types.int64), codegen

    return nearer


nearer = _nearer(half=False)
nearer_by_half = _nearer(half=True)


@intrinsic
def distance_of(typing_context: Any, query: Any, first: Any, addresses: Any, allowed: Any, parts: Any, row: Any) -> Any:
    """Distance of one row to query ``first``; 2**16 if it is not allowed.

    Of two parts: both keys, and 32 bits higher the class distance.
    """
    del typing_context, first, row

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        rows = _Rows(context, builder, signature, arguments)
        differing, kind = rows.differing(rows.words(rows.start, rows.word), rows.query_words(0)), f"i{rows.bits}"
        if rows.parts is None:
            distance = rows.count(differing, rows.word, kind)
            distance = distance if rows.bits == 64 else builder.zext(distance, _I64)
        else:
            neighbour, of_class = (rows.count(words, rows.word, kind) for words in rows.split(differing, rows.mask))
            if rows.bits < 64:
                neighbour, of_class = builder.zext(neighbour, _I64), builder.zext(of_class, _I64)
            keys = builder.add(*map(builder.mul, (neighbour, of_class), rows.weights))
            keys = builder.and_(keys, ir.Constant(_I64, 2**32 - 1))
            distance = builder.or_(keys, builder.shl(of_class, ir.Constant(_I64, 32)))
        if rows.masked:
            flag = rows.load(rows.allowed, rows.start, _I8, 1)
            allowed = builder.icmp_unsigned("!=", flag, ir.Constant(_I8, 0))
            distance = builder.select(allowed, distance, ir.Constant(_I64, 2**16 if rows.parts is None else 2**32 - 1))
        return distance

    return types.int64(query, types.int64, addresses, allowed, parts, types.int64), codegen


def _prefetch(n_rows: int) -> Any:
    """Makes the prefetch of ``n_rows`` rows from ``start``, which are read soon."""

    @intrinsic
    def prefetch(
        typing_context: Any, query: Any, first: Any, addresses: Any, allowed: Any, parts: Any, start: Any
    ) -> Any:
        del typing_context, first, start

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            rows = _Rows(context, builder, signature, arguments)
            for ahead in range(0, n_rows * rows.bits // 8, 64):
                rows.prefetch(rows.start, ahead)
            return context.get_dummy_value()

        return types.void(query, types.int64, addresses, allowed, parts, types.int64), codegen

    return prefetch


prefetch_chunk = _prefetch(CHUNK)
prefetch_row = _prefetch(1)


part = njit(nogil=True, forceinline=True, _nrt=False)  # of a kernel; a call would pass every field of every array


@part
def _is_nearer(parts: Any, distance: int, bound: int) -> bool:
    if parts is None:
        return distance < bound
    return distance & 0xFFFF < bound & 0xFFFF or distance >> 16 & 0xFFFF < bound >> 16


@part
def _mask(query: Any, i: int, addresses: Any, allowed: Any, parts: Any, n: int, start: int, bound: int) -> Any:
    """:func:`nearer`, also for the last rows."""
    if start + CHUNK <= n:
        return nearer(query, i, addresses, allowed, parts, start, bound)
    found = np.uint64(0)
    for row in range(start, n):
        if _is_nearer(parts, distance_of(query, i, addresses, allowed, parts, row), bound):
            found |= np.uint64(1) << np.uint64(row - start)
    return found


@part
def _find_last(counts: Any, n: int, k: int) -> Any:
    """The distance of the k-th of the ``n`` that are counted (the largest if there are fewer), and how many there are among the k."""
    last, nearer = len(counts) - 1, n - counts[-1]
    while nearer >= k and last > 0:
        last -= 1
        nearer -= counts[last]
    return last, k - nearer


@compiled(makes_arrays=False)
def _keep_nearest(kept: Any, n_kept: int, k: int, most: int, counts: Any, n_class: int) -> Any:
    """Keep the k nearest of the candidates ``kept[:n_kept]`` in their order, and those tied with the k-th, up to ``most`` in all.

    Returns how many are kept, and the distance of the k-th. Of two parts with ``n_class`` class distances, that is a rank: the key and the
    class distance.
    """
    counts[:] = 0
    for c in range(n_kept):
        counts[kept[c] >> ROW_BITS] += 1
    last, ties = _find_last(counts, n_kept, k)
    shift = ROW_BITS
    if n_class:
        n_tied = counts[last]
        of_class = counts[:n_class]
        of_class[:] = 0
        for c in range(n_kept):
            if kept[c] >> ROW_BITS == last:
                of_class[kept[c] >> _RANK_SHIFT & (2**_CLASS_BITS - 1)] += 1
        class_distance, ties = _find_last(of_class, n_tied, ties)
        last, shift = last << _CLASS_BITS | class_distance, _RANK_SHIFT
    place, ties = 0, ties + most - k
    for c in range(n_kept):
        distance = kept[c] >> shift
        kept[place] = kept[c]
        place += distance < last or (distance == last and ties > 0)
        ties -= distance == last
    return place, last


@part
def _append(parts: Any, i: int, distance: int, row: int, lasts: Any, n_kept: Any, kept: Any) -> None:
    """Append a row to the candidates of query i; of two parts, by each ranking for which it is near enough."""
    if parts is None:
        kept[i, n_kept[i]] = distance << ROW_BITS | row
        n_kept[i] += 1
    else:
        for at, key in ((2 * i, distance & 0xFFFF), (2 * i + 1, distance >> 16 & 0xFFFF)):
            rank = key << _CLASS_BITS | distance >> 32
            if rank < lasts[at]:
                kept[at, n_kept[at]] = rank << _RANK_SHIFT | row
                n_kept[at] += 1


@part
def _keep(parts: Any, at: int, plan: Any, n_class: int, lasts: Any, n_kept: Any, kept: Any, counts: Any) -> Any:
    """Keep the nearest candidates of a list; the distance of the last of them."""
    k, most, _ = plan[0 if parts is None else at % 2]
    largest = lasts[at] >> _CLASS_BITS if n_class else lasts[at]
    possible = counts[: max(min(largest + 1, len(counts)), n_class)]
    n_kept[at], last = _keep_nearest(kept[at], n_kept[at], k, most, possible, n_class)
    return last


@part
def _make_room(
    parts: Any,
    i: int,
    plan: Any,
    n_class: int,
    bounds: Any,
    lasts: Any,
    rooms: Any,
    n_kept: Any,
    kept: Any,
    counts: Any,
) -> None:
    """Where there is no room for the candidates of another block, keep the nearest and lower the bound."""
    n_lists = 1 if parts is None else 2
    for at in range(n_lists * i, n_lists * (i + 1)):
        if n_kept[at] > rooms[at]:
            last = _keep(parts, at, plan, n_class, lasts, n_kept, kept, counts)
            _, most, more = plan[at - n_lists * i]
            # Of rows as far as the last the earlier ones are in the answer. If there are enough, later rows must be nearer.
            lasts[at] = last + (n_kept[at] < most)
            rooms[at] = n_kept[at] + more
            if parts is not None:
                bounds[i] = _bound_of(lasts[2 * i]) | _bound_of(lasts[2 * i + 1]) << 16


@part
def _bound_of(last: int) -> Any:
    """A row of a lower rank than ``last`` has a lower key than this."""
    return last + 2**_CLASS_BITS - 1 >> _CLASS_BITS


@part
def _take_block(
    query: Any, i: int, addresses: Any, allowed: Any, parts: Any, n: int, start: int, plan: Any, n_class: int,
    bounds: Any, lasts: Any, rooms: Any, n_kept: Any, kept: Any, counts: Any,
) -> None:  # fmt: skip
    """Append the rows of a block that are nearer than the bound to the candidates of query i, which are by ascending row."""
    for chunk in range(start, min(start + BLOCK, n), CHUNK):
        found = _mask(query, i, addresses, allowed, parts, n, chunk, bounds[i])
        while found:
            row = chunk + lowest_bit(found)
            found &= found - np.uint64(1)
            distance = distance_of(query, i, addresses, None, parts, row)
            _append(parts, i, distance, row, lasts, n_kept, kept)
    _make_room(parts, i, plan, n_class, bounds, lasts, rooms, n_kept, kept, counts)


@part
def _write_answer(kept: Any, n_kept: int, counts: Any, rows: Any, distances: Any) -> None:
    """The candidates by (distance, row): a counting sort, for they are by ascending row."""
    counts[:] = 0
    for c in range(n_kept):
        counts[kept[c] >> ROW_BITS] += 1
    before = 0  # from here on, counts hold where each distance starts in the answer
    for distance in range(len(counts)):
        before, counts[distance] = before + counts[distance], before
    for c in range(n_kept):
        distance = kept[c] >> ROW_BITS
        rows[counts[distance]], distances[counts[distance]] = kept[c] & ROW_MASK, distance
        counts[distance] += 1


@compiled(makes_arrays=False)
def _write_ranked(kept: Any, n_kept: Any, weights: Any, rows: Any, distances: Any, class_distances: Any) -> None:
    """Of two parts: the rows of the first ranking, then those of the second that are not among them. ``kept`` are in order."""
    for i in range(len(rows)):
        place, last = 0, np.int64(-1)
        for ranking in range(2):
            at = 2 * i + ranking
            neighbour_weight, class_weight = weights[ranking]
            for c in range(n_kept[at]):
                of_class = kept[at, c] >> _RANK_SHIFT & 2**_CLASS_BITS - 1
                neighbour = ((kept[at, c] >> ROW_BITS) - class_weight * of_class) // neighbour_weight
                # The first ranking has all rows up to its last one.
                key = weights[0][0] * neighbour + weights[0][1] * of_class
                if ranking == 0 or key << ROW_BITS | kept[at, c] & ROW_MASK > last:
                    rows[i, place] = kept[at, c] & 2**_RANK_SHIFT - 1
                    distances[i, place] = neighbour + of_class
                    class_distances[i, place] = of_class
                    place += 1
            if ranking == 0 and n_kept[at] > 0:
                last = kept[at, n_kept[at] - 1]


@part
def _finish(
    parts: Any, plan: Any, n_class: int, lasts: Any, n_kept: Any, kept: Any, counts: Any, rows: Any, distances: Any
) -> None:
    """Write the answers; of two parts, leave the nearest candidates of each ranking where they are, and what ranks before the next."""
    for at in range(len(n_kept)):
        last = _keep(parts, at, plan, n_class, lasts, n_kept, kept, counts)
        if parts is None:
            _write_answer(kept[at], n_kept[at], counts, rows[at], distances[at])
        elif n_kept[at] > 0:
            lasts[at] = last + 1


@compiled(makes_arrays=False)
def _nearest_rows(
    query: Any, q: int, addresses: Any, allowed: Any, parts: Any, n: int, step: int, plan: Any, n_class: int,
    bounds: Any, lasts: Any, rooms: Any, n_kept: Any, kept: Any, counts: Any, rows: Any, distances: Any,
) -> None:  # fmt: skip
    """The arguments are those of :func:`nearest_rows` or :func:`candidate_rows`, and their arrays."""
    tile_rows = max(TILE_WORDS // query.shape[1] // BLOCK, 1) * BLOCK
    for tile in range(0, n, tile_rows * step):
        going = False
        for i in range(0, q, GROUP):
            size = min(GROUP, q - i)
            farthest = 0
            for g in range(i, i + size):
                farthest = max(farthest, bounds[g])
            if farthest == 0:
                continue  # each query has k rows at distance 0, so no later row enters
            going = True
            for start in range(tile, min(tile + tile_rows, n), BLOCK):
                if start + BLOCK > n:
                    hits = np.uint64(2**size - 1)
                elif q == 1:
                    hits = any_nearer_to_one(query, 0, addresses, allowed, parts, start, bounds)
                else:
                    hits = any_nearer_to_group(query, i, addresses, allowed, parts, start, bounds)
                while hits:
                    g = i + lowest_bit(hits)
                    _take_block(query, g, addresses, allowed, parts, n, start, plan, n_class,
                                bounds, lasts, rooms, n_kept, kept, counts)  # fmt: skip
                    hits &= hits - np.uint64(1)
        if not going:
            break
    _finish(parts, plan, n_class, lasts, n_kept, kept, counts, rows, distances)


@part
def _near_by_half(
    query: Any, addresses: Any, allowed: Any, parts: Any, start: int, stop: int, bounds: Any, found: Any
) -> Any:
    """Write rows nearer by half of their planes to ``found``: how many, and where the test stopped (before ``stop`` if too many)."""
    n_found = 0
    for chunk in range(start, stop, CHUNK):
        if any_nearer_by_half(query, 0, addresses, allowed, parts, chunk, bounds):
            mask = nearer_by_half(query, 0, addresses, allowed, parts, chunk, bounds[0])
            while mask:
                row = chunk + lowest_bit(mask)
                mask &= mask - np.uint64(1)
                prefetch_row(query, 0, addresses, None, parts, row)
                found[n_found] = row
                n_found += 1
            if n_found > len(found) - CHUNK:
                return n_found, chunk + CHUNK
    return n_found, stop


@compiled(makes_arrays=False)
def _nearest_by_halves(
    query: Any, addresses: Any, allowed: Any, parts: Any, n: int, plan: Any, n_class: int,
    bounds: Any, lasts: Any, rooms: Any, n_kept: Any, kept: Any, counts: Any, rows: Any, distances: Any, found: Any,
) -> None:  # fmt: skip
    """:func:`_nearest_rows` for one query over two or more planes: it reads half of the planes while that rejects enough rows."""
    start, next_try, wait = 0, 0, HALF_ROWS
    while start < n and bounds[0] > 0:
        if start < next_try or start + HALF_ROWS > n:
            if start + BLOCK > n or any_nearer_to_one(query, 0, addresses, allowed, parts, start, bounds):
                _take_block(query, 0, addresses, allowed, parts, n, start, plan, n_class,
                            bounds, lasts, rooms, n_kept, kept, counts)  # fmt: skip
            start += BLOCK
            continue
        n_found, reached = _near_by_half(query, addresses, allowed, parts, start, start + HALF_ROWS, bounds, found)
        if reached < start + HALF_ROWS:
            wait *= 2
            next_try = reached + wait
        else:
            wait = HALF_ROWS
        start = reached
        for c in range(n_found):
            distance = distance_of(query, 0, addresses, None, parts, found[c])
            if _is_nearer(parts, distance, bounds[0]):
                _append(parts, 0, distance, found[c], lasts, n_kept, kept)
        _make_room(parts, 0, plan, n_class, bounds, lasts, rooms, n_kept, kept, counts)
    _finish(parts, plan, n_class, lasts, n_kept, kept, counts, rows, distances)


def nearest_rows(
    query: NDArray[Any], q: int, addresses: tuple[int, ...], allowed: int | None, n: int, k: int
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """The k nearest allowed rows of the first ``q`` queries by (distance, row), and -1 after the last allowed row.

    ``query`` is ``(at least q, n_planes)`` words in C order, a multiple of GROUP of them unless ``q`` is 1; those after ``q`` only fill up
    the last group. ``addresses`` are those of ``n_planes`` planes of ``n`` words of its dtype. ``allowed`` is the address of ``n`` bytes, 0
    for a row that may not be in the answer. ``k`` is from 1 to ``n``.
    """
    counts = np.empty(8 * query.itemsize * query.shape[1] + 1, np.int64)  # one per distance
    bounds = np.zeros(len(query), np.int64)  # a row must be nearer than this: never for a query that does not count
    bounds[:q] = len(counts)
    rows, distances = np.full((q, k), -1, np.int64), np.full((q, k), -1, np.int32)
    _run(query, q, addresses, allowed, None, n, 1, k, (k,), 0, bounds, bounds, counts, rows, distances)
    return rows, distances


def candidate_rows(
    query: NDArray[Any], q: int, addresses: tuple[int, ...], allowed: int | None, n: int, k: int,
    masks: Masks, weights: Sequence[tuple[int, int]], n_class: int, least: tuple[int, int],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:  # fmt: skip
    """The nearest allowed rows of the first ``q`` queries by two rankings of codes of two parts: by the first, then others by the second.

    The first arguments are those of :func:`nearest_rows`. ``masks`` are a zero for every plane of class bits alone, and the class bits of
    the next one or None. Where the class bits are the lower half of the first word, the mask is a uint32, and one count does for both.
    There are ``n_class`` class distances. ``weights`` are those of a differing bit of the second part and of the class part, for each
    ranking; times the number of bits, they must not exceed ``LARGEST_KEY``. ``least`` is how many of each ranking are found at least, up to
    k, with all that are tied with the last of them as far as k allows; of 0 there are none. Words have 32 or 64 bits, and there are less
    than 2**34 rows.

    Returns:
        Rows, distances and class distances, ``(q, k)`` or with both rankings ``(q, 2 k) int64`` each; -1 where there is no row. No row
        comes twice.
    """
    n_bits = 8 * query.itemsize * query.shape[1]
    counts = np.empty(max(map(max, weights)) * n_bits + 1, np.int64)  # one per key
    neighbour, of_class = (one + (other << 16) for one, other in zip(*weights, strict=True))
    if masks[1] is not None:  # with a mask, the first weight is that of all bits
        of_class -= neighbour
    parts = *masks, neighbour, of_class
    anything = np.where(np.array(least) > 0, len(counts) << _CLASS_BITS, 0)

    def run(lasts: NDArray[np.int64], least: NDArray[np.int64], step: int) -> Any:
        bounds = np.zeros(len(query), np.int64)
        bounds[:q] = (lasts + 2**_CLASS_BITS - 1 >> _CLASS_BITS).reshape(q, 2) @ (1, 1 << 16)
        return _run(query, q, addresses, allowed, parts, n, step, k, least, n_class, bounds, lasts, counts, *_NO_ANSWER)

    wanted, lasts = np.array(least), np.tile(anything, q)
    if n >= _SAMPLED_FROM and (few := _of_sample(wanted)).max() * 4 * _STEP < n:
        run(lasts, few, _STEP)
    kept, n_kept = run(lasts.copy(), wanted, 1)
    if np.any((n_kept.reshape(q, 2) < wanted) & (lasts.reshape(q, 2) < anything)):
        kept, n_kept = run(np.tile(anything, q), wanted, 1)
    missing = np.arange(k) >= n_kept[:, None]
    kept = np.sort(np.where(missing, np.iinfo(np.int64).max, kept[:, :k]), axis=1)
    found = np.full((3, q, k * np.count_nonzero(least)), -1, np.int64)
    _write_ranked(kept, n_kept, tuple(map(tuple, weights)), *found)
    return found[0], found[1], found[2]


def _of_sample(n: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many rows of a sample rank before the n-th of all rows, at most, but for one case in ten thousand."""
    share = n / _STEP
    return np.where(n > 0, np.minimum(n, share + 4 * np.sqrt(share) + 4), 0).astype(np.int64)


def _run(
    query: NDArray[Any], q: int, addresses: tuple[int, ...], allowed: int | None, parts: Any, n: int, step: int, k: int,
    least: Sequence[int] | NDArray[np.int64], n_class: int, bounds: NDArray[np.int64], lasts: NDArray[np.int64],
    counts: NDArray[np.int64], rows: NDArray[Any], distances: NDArray[Any],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:  # fmt: skip
    """Run a kernel; the candidates of every query (of two parts: by one ranking, then by the other), and how many."""
    # Arrays are made here because numba takes seconds to compile code that makes them.
    # With more room for candidates, bounds would be lowered too late.
    plan = np.array([(few, k if few else 0, min(few, max(16, few // 4))) for few in least], np.int64)
    rooms = np.full((q, len(plan)), plan[:, 0] + plan[:, 2]).reshape(-1)
    n_kept = np.zeros(len(rooms), np.int64)
    kept = np.empty((len(rooms), min(k + min(k, max(16, k // 4)), n) + BLOCK), np.int64)
    arrays = bounds, lasts, rooms, n_kept, kept, counts, rows, distances
    if q == 1 and len(addresses) > 1 and step == 1:
        found = np.empty(MOST_BY_HALF + CHUNK, np.int64)
        _nearest_by_halves(query, addresses, allowed, parts, n, plan, n_class, *arrays, found)
    else:
        _nearest_rows(query, q, addresses, allowed, parts, n, step, plan, n_class, *arrays)
    return kept, n_kept


@compiled(makes_arrays=False)
def count_within(
    query: Any, q: int, addresses: Any, allowed: Any, n: int, bounds: Any, counts: Any, holds: Any
) -> None:
    """Add the number of allowed rows at every distance up to a radius to ``counts``, and mark the blocks that hold one.

    The first arguments are those of :func:`nearest_rows`. ``bounds`` holds the radius + 1 of each query, or 0 for those that do not count;
    ``counts`` is ``(q, radius + 1)`` and ``holds`` ``(q, n_blocks) uint8``.
    """
    radius = counts.shape[1] - 1
    tile_rows = max(TILE_WORDS // query.shape[1] // BLOCK, 1) * BLOCK
    for tile in range(0, n, tile_rows):
        for i in range(0, q, GROUP):
            for start in range(tile, min(tile + tile_rows, n), BLOCK):
                if start + BLOCK > n:
                    hits = np.uint64(2 ** min(GROUP, q - i) - 1)
                elif q == 1:
                    hits = any_nearer_to_one(query, 0, addresses, allowed, None, start, bounds)
                else:
                    hits = any_nearer_to_group(query, i, addresses, allowed, None, start, bounds)
                while hits:
                    g = i + lowest_bit(hits)
                    hits &= hits - np.uint64(1)
                    holds[g, start // BLOCK] = 1
                    for chunk in range(start, min(start + BLOCK, n), CHUNK):
                        found = _mask(query, g, addresses, allowed, None, n, chunk, radius + 1)
                        while found:
                            distance = distance_of(query, g, addresses, None, None, chunk + lowest_bit(found))
                            counts[g, distance] += 1
                            found &= found - np.uint64(1)


@compiled(makes_arrays=False)
def fill_within(
    query: Any, q: int, addresses: Any, allowed: Any, n: int, holds: Any, places: Any, rows: Any, distances: Any
) -> None:
    """Write every hit at ``places[query, distance]``, which moves on: by distance, then row, without a sort."""
    radius = places.shape[1] - 1
    for i in range(q):
        for block in range(holds.shape[1]):
            if holds[i, block] == 0:
                continue
            for chunk in range(block * BLOCK, min((block + 1) * BLOCK, n), CHUNK):
                found = _mask(query, i, addresses, allowed, None, n, chunk, radius + 1)
                while found:
                    row = chunk + lowest_bit(found)
                    found &= found - np.uint64(1)
                    distance = distance_of(query, i, addresses, None, None, row)
                    rows[places[i, distance]], distances[places[i, distance]] = row, distance
                    places[i, distance] += 1
