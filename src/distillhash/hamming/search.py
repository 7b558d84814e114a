"""The two exact searches over planes of codes: the k nearest rows, and all rows within a radius.

Answers are ordered by distance, equal distances by ascending row. They depend neither on the number of threads nor on the engine:
``numba`` (compiled kernels), ``faiss`` or ``numpy``, the first that is installed unless one is named.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from distillhash.codes import Codes
from distillhash.errors import DataError, MissingDependencyError, ParameterError
from distillhash.hamming import pool

# Names for the arrays of the searches, and how codes become planes.

Planes = NDArray[Any]  # (n_planes, n) uint16, uint32 or uint64
Ints = NDArray[np.int64]
Distances = NDArray[np.int32]


def plane_dtype(n_bits: int) -> np.dtype[Any]:
    """The word of codes of ``n_bits``: uint16 up to 16 bits, uint32 up to 64 (two of them beyond 32), uint64 beyond.

    A lone query is as fast as memory, and where there are two words and more, half of them mostly say enough.
    """
    return np.dtype(np.uint16 if n_bits <= 16 else np.uint32 if n_bits <= 64 else np.uint64)


def planes_of(codes: Codes) -> Planes:
    """Codes laid out for the searches: one word of all codes after the other.

    Returns:
        ``(n_planes, n)`` in C order, of :func:`plane_dtype`: as many planes as it takes words. Pad bits are zero; the order of bits and
        bytes is the machine's and means nothing to a distance.
    """
    dtype = plane_dtype(codes.n_bits)
    n_words = -(-codes.n_bits // (8 * dtype.itemsize))
    padded = np.zeros((len(codes), n_words * dtype.itemsize), np.uint8)
    padded[:, : codes.packed.shape[1]] = codes.packed
    return np.ascontiguousarray(padded.view(dtype).T)


Engine = Literal["numba", "faiss", "numpy"]
Progress = Callable[[int], object]
Mask = NDArray[np.uint8]

_QUERIES_AT_ONCE = 128  # of one kernel call, at least: they pass over a tile of the database together
_PAIRS_AT_ONCE = (
    1 << 25
)  # of a query and a row; of a small database, a kernel call takes more queries, to be worth a call
_MOST_KEPT = 1 << 22  # candidates of one kernel call, which bounds its memory for a large k
_BYTES_FOR_A_THREAD = 1 << 24  # a few queries over less are not worth the hand-over to another thread


def nearest(
    query: Planes,
    database: Planes,
    k: int,
    *,
    allowed: NDArray[Any] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    engine: Engine | None = None,
) -> tuple[Ints, Distances]:
    """The ``k`` nearest rows of the database to every query.

    Args:
        query: ``(n_planes, q)`` words, as :func:`~distillhash.hamming.planes_of` gives them.
        database: ``(n_planes, n)`` words of the same dtype. In C order (a read-only memory map will do) it is used as it is, else
            it is copied once a call. It must not change during the call.
        k: How many, at least 0.
        allowed: ``(n,)`` bool or uint8: rows where it is 0 are not there for this search. None allows all.
        threads: At most so many, at least 1; None takes all cores of the process. FAISS has threads of its own.
        progress: Called in the caller's thread with the number of queries done so far, after every part of a batch.
        engine: ``numba``, ``faiss`` or ``numpy``; None takes the first that is installed.

    Returns:
        Rows ``(q, k) int64`` and distances ``(q, k) int32`` in bits, by (distance, row); -1 in places after the last allowed row.

    Raises:
        DataError: arrays of shapes or dtypes that do not fit.
        ParameterError: ``k`` is negative, ``threads`` below 1, or the engine unknown.
        MissingDependencyError: the engine named is not installed.
    """
    query, database, allowed = check_arrays(query, database, allowed)
    if k < 0:
        raise ParameterError(f"k must be at least 0, got {k}")
    engine, threads = _engine(engine), check_threads(threads)
    q, n = query.shape[1], database.shape[1]
    rows = np.full((q, k), -1, np.int64)
    distances = np.full((q, k), -1, np.int32)
    k_held = min(k, n)
    if not q or not k_held:
        return rows, distances
    parts = max(1, min(threads, database.nbytes // _BYTES_FOR_A_THREAD))
    if engine != "numba":
        kept, flat = _flat(engine, database, allowed)
        k_held = min(k_held, len(kept))

        def search(queries: slice) -> slice:
            if k_held:
                found, far = flat.nearest(query[:, queries], k_held)
                rows[queries, :k_held], distances[queries, :k_held] = kept[found], far
            return queries

        in_groups(search, q, _at_once(n), 1, progress)
    elif q <= 2 * threads and parts > 1:
        _nearest_in_parts(query, database, allowed, parts, rows, distances)
        if progress is not None:
            progress(q)
    else:

        def search(queries: slice) -> slice:
            found = _nearest_compiled(query[:, queries], database, allowed, 0, n, k_held)
            rows[queries, :k_held], distances[queries, :k_held] = found
            return queries

        in_groups(search, q, max(1, min(_at_once(n), _MOST_KEPT // k_held)), threads, progress)
    return rows, distances


def within(
    query: Planes,
    database: Planes,
    radius: int,
    *,
    allowed: NDArray[Any] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    engine: Engine | None = None,
) -> tuple[Ints, Ints, Distances]:
    """All rows of the database within ``radius`` bits of every query.

    Args:
        query: As for :func:`nearest`, and so are all others.
        database: See there.
        radius: In bits, at least 0.
        allowed: See there.
        threads: See there.
        progress: See there.
        engine: See there.

    Returns:
        Limits ``(q + 1,) int64``, and rows (int64) and distances (int32, bits) of all hits: query i owns places
        ``limits[i]:limits[i + 1]``, by (distance, row).

    Raises:
        DataError: arrays of shapes or dtypes that do not fit.
        ParameterError: ``radius`` is negative, ``threads`` below 1, or the engine unknown.
        MissingDependencyError: the engine named is not installed.
    """
    query, database, allowed = check_arrays(query, database, allowed)
    if radius < 0:
        raise ParameterError(f"the radius must be at least 0, got {radius}")
    engine, threads = _engine(engine), check_threads(threads)
    radius = min(radius, 8 * database.itemsize * len(database))
    found: dict[int, tuple[Ints, Ints, Distances]] = {}
    if engine == "numba":

        def search(queries: slice) -> slice:
            found[queries.start] = _within_compiled(query[:, queries], database, allowed, radius)
            return queries

    else:
        kept, flat = _flat(engine, database, allowed)

        def search(queries: slice) -> slice:
            limits, rows, distances = flat.within(query[:, queries], radius)
            found[queries.start] = limits, kept[rows], distances
            return queries

    at_once = _at_once(database.shape[1])
    in_groups(search, query.shape[1], at_once, threads if engine == "numba" else 1, progress)
    parts = [found[start] for start in sorted(found)]
    sizes = np.concatenate([np.zeros(1, np.int64), *(np.diff(part[0]) for part in parts)])
    rows = np.concatenate([np.zeros(0, np.int64), *(part[1] for part in parts)])
    distances = np.concatenate([np.zeros(0, np.int32), *(part[2] for part in parts)])
    return np.cumsum(sizes), rows, distances


def warm_up(n_bits: int) -> None:
    """Compile, or load from disk, all that searches over codes of ``n_bits`` need, so that the first of them is as fast as the next.

    It takes seconds the first time on a machine, tenths of a second later, and next to nothing without numba.
    """
    if n_bits < 1:
        raise ParameterError(f"n_bits must be at least 1, got {n_bits}")
    dtype = plane_dtype(n_bits)
    planes = np.zeros((-(-n_bits // (8 * dtype.itemsize)), 2), dtype)
    for allowed in (None, np.ones(2, np.uint8)):
        for query in (planes[:, :1], planes):  # a lone query has a kernel of its own
            nearest(query, planes, 1, allowed=allowed, threads=1)
        within(planes, planes, 0, allowed=allowed, threads=1)


def _nearest_compiled(
    query: Planes, database: Planes, allowed: Mask | None, first: int, stop: int, k: int
) -> tuple[Ints, Distances]:
    """The kernel over the rows from ``first`` to ``stop``."""
    from distillhash.hamming.kernel import nearest_rows

    words, q, addresses, allowed_at = _kernel_arguments(query, database, allowed, first)
    return nearest_rows(words, q, addresses, allowed_at, stop - first, k)


def _nearest_in_parts(
    query: Planes, database: Planes, allowed: Mask | None, parts: int, rows: Ints, distances: Distances
) -> None:
    """A few queries over a large database: every thread takes a part of the rows."""
    k, n = rows.shape[1], database.shape[1]
    edges = [n * part // parts for part in range(parts + 1)]

    def search(first: int, stop: int) -> tuple[int, Ints, Distances]:
        found, far = _nearest_compiled(query, database, allowed, first, stop, min(k, stop - first))
        return first, np.where(found < 0, found, found + first), far

    tasks = [partial(search, first, stop) for first, stop in pairwise(edges)]
    found = sorted(pool.run(tasks, parts), key=lambda part: part[0])
    all_rows = np.concatenate([part[1] for part in found], axis=1)
    all_distances = np.concatenate([part[2] for part in found], axis=1)
    # Parts are by ascending row, so a stable sort leaves ties in order; -1, for no row, goes last.
    order = np.argsort(all_distances.astype(np.uint32), axis=1, kind="stable")[:, :k]
    rows[:, : order.shape[1]] = np.take_along_axis(all_rows, order, axis=1)
    distances[:, : order.shape[1]] = np.take_along_axis(all_distances, order, axis=1)


def _within_compiled(
    query: Planes, database: Planes, allowed: Mask | None, radius: int
) -> tuple[Ints, Ints, Distances]:
    from distillhash.hamming.kernel import BLOCK, count_within, fill_within

    arguments = _kernel_arguments(query, database, allowed, 0)
    n = database.shape[1]
    counts = np.zeros((query.shape[1], radius + 1), np.int64)
    holds = np.zeros((query.shape[1], -(-n // BLOCK)), np.uint8)
    bounds = np.zeros(len(arguments[0]), np.int64)
    bounds[: query.shape[1]] = radius + 1
    count_within(*arguments, n, bounds, counts, holds)
    limits = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts.sum(axis=1))])
    places = (np.cumsum(counts) - counts.ravel()).reshape(counts.shape)
    rows, distances = np.empty(limits[-1], np.int64), np.empty(limits[-1], np.int32)
    fill_within(*arguments, n, holds, places, rows, distances)
    return limits, rows, distances


def _kernel_arguments(query: Planes, database: Planes, allowed: Mask | None, first: int) -> tuple[Any, ...]:
    """What the kernels take before ``n``; the caller holds on to ``database`` and ``allowed`` while they run."""
    from distillhash.hamming.kernel import GROUP

    n_planes, q = query.shape
    filled = q if q == 1 else -(-q // GROUP) * GROUP
    words = np.zeros((filled, n_planes), query.dtype)
    words[:q] = query.T
    start, step = database.ctypes.data + first * database.itemsize, database.shape[1] * database.itemsize
    addresses = tuple(start + plane * step for plane in range(n_planes))
    return words, q, addresses, None if allowed is None else allowed.ctypes.data + first


def _flat(engine: Engine, database: Planes, allowed: Mask | None) -> tuple[Ints, Any]:
    """The allowed rows, and a fallback's database of them."""
    if engine == "faiss":
        from distillhash.hamming.with_faiss import Flat
    else:
        from distillhash.hamming.plain import Flat  # type: ignore[assignment]  # two classes with the same methods
    if allowed is None:
        return np.arange(database.shape[1]), Flat(database)
    kept = np.flatnonzero(allowed)
    return kept, Flat(database[:, kept])


def _at_once(n: int) -> int:
    return max(_QUERIES_AT_ONCE, min(16 * _QUERIES_AT_ONCE, _PAIRS_AT_ONCE // max(n, 1)))


def in_groups(search: Callable[[slice], slice], q: int, most: int, threads: int, progress: Progress | None) -> None:
    """Search groups of at most ``most`` queries, of one size as nearly as may be, so that threads end together."""
    if not q:
        return
    threads = min(threads, q)
    n_groups = -(-q // (most * threads)) * threads
    edges = [q * group // n_groups for group in range(n_groups + 1)]
    done = 0
    for queries in pool.run([partial(search, slice(*pair)) for pair in pairwise(edges)], threads):
        done += queries.stop - queries.start
        if progress is not None:
            progress(done)


def check_arrays(
    query: Planes, database: Planes, allowed: NDArray[Any] | None
) -> tuple[Planes, Planes, NDArray[np.uint8] | None]:
    """The arrays of a search as kernels take them: the database and the mask in C order, the mask in bytes.

    Raises:
        DataError: shapes or dtypes that do not fit.
    """
    for name, planes in (("query", query), ("database", database)):
        if planes.ndim != 2 or planes.dtype not in _WORDS:
            raise DataError(
                f"the {name} must be (n_planes, n) uint16, uint32 or uint64 words as planes_of gives them,"
                f" got {planes.ndim}-d {planes.dtype}"
            )
    if query.dtype != database.dtype or len(query) != len(database):
        raise DataError(
            f"the query has {len(query)} planes of {query.dtype}, the database {len(database)} of {database.dtype}; "
            "both must be codes of one length, as planes_of gives them"
        )
    if allowed is None:
        return query, np.ascontiguousarray(database), None
    if allowed.shape != (database.shape[1],) or allowed.dtype not in (np.bool_, np.uint8):
        raise DataError(
            f"allowed must be a bool or uint8 for each of the {database.shape[1]} rows,"
            f" got {allowed.dtype} of shape {allowed.shape}"
        )
    return query, np.ascontiguousarray(database), np.ascontiguousarray(allowed).view(np.uint8)


_WORDS = (np.dtype(np.uint16), np.dtype(np.uint32), np.dtype(np.uint64))


def check_threads(threads: int | None) -> int:
    """How many threads to use: at least 1, or all cores for None."""
    if threads is None:
        return pool.cores()
    if threads < 1:
        raise ParameterError(f"threads must be at least 1, got {threads}; None takes all cores")
    return threads


def _engine(engine: Engine | None) -> Engine:
    if engine is None:
        return next(name for name in get_args(Engine) if _is_installed(name))
    if engine not in get_args(Engine):
        raise ParameterError(f"engine must be one of {', '.join(get_args(Engine))}, got {engine!r}")
    if not _is_installed(engine):
        package = "distillhash[faiss]" if engine == "faiss" else engine
        raise MissingDependencyError(f"the engine {engine} is not installed; `pip install {package}` brings it")
    return engine


@cache
def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ValueError:  # a module that was struck out by putting None in its place
        return False
