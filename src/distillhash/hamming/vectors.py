"""What the search kernels do to many rows at once, as LLVM vector code for numba; importing this module imports numba.

Compilers do not find it by themselves. 512 bits of the database are loaded, XORed with four queries that stay in registers, counted
(``ctpop``: one instruction where the processor has it, table look-ups where it does not), and folded into one running minimum a
query. Distances are below 2**16 and sit in lanes of 16, 32 or 64 bits whose upper parts are zero, so a minimum over 16-bit lanes
serves them all; every vector unit since 2008 has it in one instruction. Where words of 32 bits cannot be counted in one instruction,
bytes are, and a product brings their sum into the topmost byte of a lane: then minima are over 32 bits (``_Rows.shift``). After a block
of rows one compare says whether any row is near enough to be looked at by itself; hardly any block holds one.

The database goes in as addresses, so that arrays of any origin (read-only, memory-mapped) share compiled code. numba keeps compiled
kernels beside their file and does not see a change of this one: after one, delete ``__pycache__``.
"""

from __future__ import annotations

from typing import Any

from llvmlite import binding, ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic

BLOCK = 256  # rows between two looks at the running minima
CHUNK = 64  # rows of a mask, and of a look at half of the planes
GROUP = 4  # queries that share a load of the database

_AHEAD = 4096  # bytes; a lone query reads memory as fast as one core can, a fifth faster than without asking ahead


def _counts_words() -> bool:
    """Whether the processor that code is made for counts the bits of a word in one instruction, not byte by byte as ARM does."""
    try:
        return config.CPU_NAME is None and bool(binding.get_host_cpu_features().get("avx512vpopcntdq"))
    except RuntimeError:  # LLVM does not know this processor
        return False


_COUNTS_WORDS = _counts_words()

_I1, _I8, _I16, _I64 = (ir.IntType(width) for width in (1, 8, 16, 64))


@intrinsic
def popcount64(typing_context: Any, value: Any) -> Any:
    """Number of set bits of a uint64, for use inside njit functions (LLVM ctpop, one instruction); returns int64."""
    del typing_context, value

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del context, signature
        return builder.ctpop(arguments[0])

    return types.int64(types.uint64), codegen


@intrinsic
def lowest_bit(typing_context: Any, value: Any) -> Any:
    """Place of the lowest set bit of a uint64 that is not 0."""
    del typing_context, value

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        del context, signature
        return builder.cttz(arguments[0], ir.Constant(_I1, 1))

    return types.int64(types.uint64), codegen


class _Rows:
    """Builds code that reads rows of the planes, several at once: one of them a lane of a 512-bit vector."""

    def __init__(self, context: Any, builder: Any, signature: Any, arguments: Any, half: bool = False) -> None:
        query_type, _, addresses_type, allowed_type, *_ = signature.args
        query, first, addresses, self.allowed, self.start, *_ = arguments
        self.builder = builder
        self.n_planes = addresses_type.count
        self.bits = query_type.dtype.bitwidth
        self.lanes = 512 // self.bits
        # A byte must hold a distance.
        self.shift = 24 if self.bits == 32 and self.n_planes < 8 and not _COUNTS_WORDS else 0
        self.word = ir.IntType(self.bits)
        self.vector = ir.VectorType(self.word, self.lanes)
        self.first = first
        self.masked = not isinstance(allowed_type, types.NoneType)
        self.addresses = cgutils.unpack_tuple(builder, addresses, self.n_planes)
        if half:
            self.addresses = self.addresses[: self.n_planes // 2]
        self.query = context.make_array(query_type)(context, builder, query).data

    def splat(self, value: Any) -> Any:
        undefined, i32 = ir.Constant(self.vector, ir.Undefined), ir.IntType(32)
        one = self.builder.insert_element(undefined, value, ir.Constant(i32, 0))
        return self.builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(i32, self.lanes), None))

    def query_words(self, place: int) -> list[Any]:
        """The words of query ``first + place``."""
        at = self.builder.mul(self.builder.add(self.first, ir.Constant(_I64, place)), ir.Constant(_I64, self.n_planes))
        places = [self.builder.add(at, ir.Constant(_I64, plane)) for plane in range(len(self.addresses))]
        return [self.builder.load(self.builder.gep(self.query, [place])) for place in places]

    def load(self, address: Any, row: Any, kind: Any, item_bytes: int) -> Any:
        place = self.builder.add(address, self.builder.mul(row, ir.Constant(_I64, item_bytes)))
        return self.builder.load(self.builder.inttoptr(place, kind.as_pointer()), align=1)

    def words(self, row: Any, kind: Any) -> list[Any]:
        """The words of the rows from ``row``: as many as ``kind`` holds, of every plane."""
        return [self.load(address, row, kind, self.bits // 8) for address in self.addresses]

    def prefetch(self, row: Any, ahead: int) -> None:
        """Ask for what lies ``ahead`` bytes behind the words of ``row``; there need not be anything."""
        pointer, i32 = _I8.as_pointer(), ir.IntType(32)
        signature = ir.FunctionType(ir.VoidType(), [pointer, i32, i32, i32])
        prefetch = cgutils.get_or_insert_function(self.builder.module, signature, "llvm.prefetch.p0")
        how = [ir.Constant(i32, number) for number in (0, 3, 1)]  # a read, to be kept in all caches, of data
        for address in self.addresses:
            place = self.builder.add(address, self.builder.mul(row, ir.Constant(_I64, self.bits // 8)))
            place = self.builder.add(place, ir.Constant(_I64, ahead))
            self.builder.call(prefetch, [self.builder.inttoptr(place, pointer), *how])

    def count(self, words: list[Any], query: list[Any], kind: Any, suffix: str) -> Any:
        name, signature = f"llvm.ctpop.{suffix}", ir.FunctionType(kind, [kind])
        ctpop = cgutils.get_or_insert_function(self.builder.module, signature, name)
        counts = [
            self.builder.call(ctpop, [self.builder.xor(word, other)]) for word, other in zip(words, query, strict=True)
        ]
        total = counts[0]
        for part in counts[1:]:
            total = self.builder.add(total, part)
        return total

    def distances(self, words: list[Any], query: list[Any]) -> Any:
        """Of all lanes, ``self.shift`` bits to the left; what is below those bits means nothing."""
        if not self.shift:
            return self.count(words, query, self.vector, f"v{self.lanes}i{self.bits}")
        of_bytes = ir.VectorType(_I8, 64)
        xors = [self.builder.xor(word, other) for word, other in zip(words, query, strict=True)]
        name, signature = "llvm.ctpop.v64i8", ir.FunctionType(of_bytes, [of_bytes])
        ctpop = cgutils.get_or_insert_function(self.builder.module, signature, name)
        counts = [self.builder.call(ctpop, [self.builder.bitcast(word, of_bytes)]) for word in xors]
        total = counts[0]
        for part in counts[1:]:
            total = self.builder.add(total, part)
        # The topmost byte of the product is the sum of all four.
        return self.builder.mul(self.builder.bitcast(total, self.vector), ir.Constant(self.vector, [0x01010101] * 16))

    def forbidden(self, row: Any) -> Any:
        """Lanes of all ones where a row is not allowed, else of zeros."""
        flags = ir.VectorType(_I8, self.lanes)
        none = self.builder.icmp_unsigned("==", self.load(self.allowed, row, flags, 1), ir.Constant(flags, None))
        return self.builder.sext(none, self.vector)

    def below(self, distances: Any, bound: Any) -> Any:
        """One bit a lane: whether its distance is below ``bound``, an int64 that is small."""
        narrow = bound if self.bits == 64 else self.builder.trunc(bound, self.word)
        narrow = self.builder.shl(narrow, ir.Constant(self.word, self.shift))
        found = self.builder.icmp_unsigned("<", distances, self.splat(narrow))
        return self.builder.zext(self.builder.bitcast(found, ir.IntType(self.lanes)), _I64)


def _look(group: int, steps: int, block: int = BLOCK, half: bool = False) -> Any:
    """A look at ``block`` rows from ``start``: bit g is set if a row is nearer to query ``first + g`` than its bound.

    With ``half``, by the first half of the planes alone, where a row is at least as near.
    """

    @intrinsic
    def look(typing_context: Any, query: Any, first: Any, addresses: Any, allowed: Any, start: Any, bounds: Any) -> Any:
        del typing_context, first, start

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            rows = _Rows(context, builder, signature, arguments, half)
            kind, suffix = (rows.vector, "v16i32") if rows.shift else (ir.VectorType(_I16, 32), "v32i16")
            farthest = ir.Constant(kind, [2**kind.element.width - 1] * kind.count)
            signature_of_umin = ir.FunctionType(kind, [kind, kind])
            umin = cgutils.get_or_insert_function(builder.module, signature_of_umin, f"llvm.umin.{suffix}")
            queries = [[rows.splat(word) for word in rows.query_words(g)] for g in range(group)]
            n_vectors = block // rows.lanes
            unrolled = min(steps, n_vectors)
            before, loop, after = builder.block, builder.append_basic_block(), builder.append_basic_block()
            builder.branch(loop)
            builder.position_at_end(loop)
            vector = builder.phi(_I64)
            vector.add_incoming(ir.Constant(_I64, 0), before)
            # Two minima for a lone query, so that one does not wait for the other.
            n_minima = max(group, 2)
            entering = [builder.phi(kind) for _ in range(n_minima)]
            minima = list(entering)
            for step in range(unrolled):
                at = builder.mul(builder.add(vector, ir.Constant(_I64, step)), ir.Constant(_I64, rows.lanes))
                row = builder.add(rows.start, at)
                words = rows.words(row, rows.vector)
                if group == 1:
                    rows.prefetch(row, _AHEAD)
                forbidden = rows.forbidden(row) if rows.masked else None
                for g in range(group):
                    distances = rows.distances(words, queries[g])
                    if forbidden is not None:
                        distances = builder.or_(distances, forbidden)
                    m = g if group > 1 else step % n_minima
                    minima[m] = builder.call(umin, [minima[m], builder.bitcast(distances, kind)])
            following = builder.add(vector, ir.Constant(_I64, unrolled))
            vector.add_incoming(following, loop)
            for phi, value in zip(entering, minima, strict=True):
                phi.add_incoming(farthest, before)
                phi.add_incoming(value, loop)
            builder.cbranch(builder.icmp_unsigned("<", following, ir.Constant(_I64, n_vectors)), loop, after)
            builder.position_at_end(after)
            if group == 1:
                minima = [builder.call(umin, minima)]
            all_bounds = context.make_array(signature.args[5])(context, builder, arguments[5]).data
            found = ir.Constant(_I64, 0)
            for g in range(group):
                bound = builder.load(builder.gep(all_bounds, [builder.add(rows.first, ir.Constant(_I64, g))]))
                lanes = rows.below(builder.bitcast(minima[g], rows.vector), bound)
                hit = builder.zext(builder.icmp_unsigned("!=", lanes, ir.Constant(_I64, 0)), _I64)
                found = builder.or_(found, builder.shl(hit, ir.Constant(_I64, g)))
            return found

        return types.uint64(query, types.int64, addresses, allowed, types.int64, bounds), codegen

    return look


look_for_one = _look(1, 8)
look_for_group = _look(GROUP, 1)
look_at_half = _look(1, 8, CHUNK, half=True)


def _nearer(half: bool) -> Any:
    """Bit b says whether row ``start + b`` is allowed and nearer to query ``first`` than ``bound``; ``CHUNK`` rows."""

    @intrinsic
    def nearer(
        typing_context: Any, query: Any, first: Any, addresses: Any, allowed: Any, start: Any, bound: Any
    ) -> Any:
        del typing_context, first, start, bound

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            rows = _Rows(context, builder, signature, arguments, half)
            words = [rows.splat(word) for word in rows.query_words(0)]
            found = ir.Constant(_I64, 0)
            for at in range(0, CHUNK, rows.lanes):
                row = builder.add(rows.start, ir.Constant(_I64, at))
                distances = rows.distances(rows.words(row, rows.vector), words)
                if rows.masked:
                    distances = builder.or_(distances, rows.forbidden(row))
                lanes = rows.below(distances, arguments[5])
                found = builder.or_(found, builder.shl(lanes, ir.Constant(_I64, at)))
            return found

        return types.uint64(query, types.int64, addresses, allowed, types.int64, types.int64), codegen

    return nearer


nearer = _nearer(half=False)
nearer_by_half = _nearer(half=True)


@intrinsic
def distance_of(typing_context: Any, query: Any, first: Any, addresses: Any, allowed: Any, row: Any) -> Any:
    """Distance of one row to query ``first``; 2**16 if it is not allowed."""
    del typing_context, first, row

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        rows = _Rows(context, builder, signature, arguments)
        distance = rows.count(rows.words(rows.start, rows.word), rows.query_words(0), rows.word, f"i{rows.bits}")
        distance = distance if rows.bits == 64 else builder.zext(distance, _I64)
        if rows.masked:
            flag = rows.load(rows.allowed, rows.start, _I8, 1)
            allowed = builder.icmp_unsigned("!=", flag, ir.Constant(_I8, 0))
            distance = builder.select(allowed, distance, ir.Constant(_I64, 2**16))
        return distance

    return types.int64(query, types.int64, addresses, allowed, types.int64), codegen


def _prefetch(n_rows: int) -> Any:
    """Ask for ``n_rows`` rows from ``start``, which are needed soon."""

    @intrinsic
    def prefetch(typing_context: Any, query: Any, first: Any, addresses: Any, allowed: Any, start: Any) -> Any:
        del typing_context, first, start

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            rows = _Rows(context, builder, signature, arguments)
            for ahead in range(0, n_rows * rows.bits // 8, 64):
                rows.prefetch(rows.start, ahead)
            return context.get_dummy_value()

        return types.void(query, types.int64, addresses, allowed, types.int64), codegen

    return prefetch


prefetch = _prefetch(CHUNK)
prefetch_row = _prefetch(1)
