"""The two exact searches over planes of codes: the k nearest rows, and all rows within a radius.

Answers are ordered by distance, those of codes of two parts by their ranking (:mod:`distillhash.hamming.ranking`); ties by ascending row.
They do not depend on the number of threads. The compiled kernels are in :mod:`distillhash.hamming.kernel`, which imports numba and is
therefore imported when something is searched. Without numba, the same
answers are found in NumPy, more slowly.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from distillhash.codes import Codes
from distillhash.errors import DataError, ParameterError
from distillhash.files import cores
from distillhash.hamming.ranking import HEAD, HEAD_WEIGHTS, LARGEST_KEY, TAIL_WEIGHTS, By, check_by, first_of, order

Planes = NDArray[Any]  # (n_planes, n) uint16, uint32 or uint64
Mask = NDArray[np.uint8]
Ints = NDArray[np.int64]
Distances = NDArray[np.int32]
Progress = Callable[[int], object]
T = TypeVar("T")

MOST_PADDED = 1024
"""An answer is as wide as the k that was asked for up to this width, and no wider than the database beyond it."""

_NO_ROW = np.iinfo(np.uint16).max  # above every distance and key
_WORDS = (np.dtype(np.uint16), np.dtype(np.uint32), np.dtype(np.uint64))
_MIN_GROUP = 128  # queries of one kernel call: they share every tile of the database that is in cache
_MAX_GROUP = 16 * _MIN_GROUP  # for a small database, where more queries make a kernel call worth its cost
_GROUP_PAIRS = 1 << 25  # pairs of a query and a row in one kernel call, between these two limits
_GROUP_CANDIDATES = 1 << 22  # candidates of one kernel call, which bounds its memory for a large k
_BYTES_PER_THREAD = 1 << 24  # database bytes that make another thread worth its cost for a few queries


@cache
def compiles() -> bool:
    """Whether numba is installed."""
    return find_spec("numba") is not None


def cut_k(k: int, n: int) -> int:
    """``k`` of ``n`` rows, any integer, cut to what there is; up to :data:`MOST_PADDED` it stays what it is."""
    return min(k, max(n, MOST_PADDED))


def plane_dtype(n_bits: int) -> np.dtype[Any]:
    """The word of codes of ``n_bits``: uint16 up to 16 bits, uint32 up to 64 (two words beyond 32), uint64 beyond.

    One query runs at the speed of memory. With two words or more, half of them are usually enough to reject a row.
    """
    return np.dtype(np.uint16 if n_bits <= 16 else np.uint32 if n_bits <= 64 else np.uint64)


def planes_of(codes: Codes) -> Planes:
    """Codes in the layout of the searches: the first word of all codes, then the second word of all codes, and so on.

    Returns:
        ``(n_planes, n)`` in C order, of :func:`plane_dtype`. Pad bits are zero. The order of bits and bytes is the machine's; distances do
        not depend on it.
    """
    dtype = plane_dtype(codes.n_bits)
    n_words = -(-codes.n_bits // (8 * dtype.itemsize))
    padded = np.zeros((len(codes), n_words * dtype.itemsize), np.uint8)
    padded[:, : codes.packed.shape[1]] = codes.packed
    return np.ascontiguousarray(padded.view(dtype).T)


def nearest(
    query: Planes,
    database: Planes,
    k: int,
    *,
    class_bits: int = 0,
    by: By = "both",
    allowed: NDArray[Any] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> tuple[Ints, Distances]:
    """The ``k`` nearest rows of the database for every query.

    Args:
        query: ``(n_planes, q)`` words, as :func:`planes_of` gives them.
        database: ``(n_planes, n)`` words of the same dtype. In C order (a read-only memory map too) it is searched in place, otherwise it
            is copied once a call. Codes of two parts with up to 16 bits are copied too. It must not change during the call.
        k: Number of rows, at least 0; see :func:`cut_k`.
        class_bits: Leading bits that are the class part of codes of two parts; 0 for codes of one part.
        by: The ranking of codes of two parts, see :mod:`distillhash.hamming.ranking`.
        allowed: ``(n,)`` bool or uint8. Rows where it is 0 are left out. None allows all.
        threads: Maximum number of threads, at least 1. None takes all processors of this process.
        progress: Called in the caller's thread with the number of queries done so far, after every part of a batch.

    Returns:
        Rows ``(q, k) int64`` and distances ``(q, k) int32`` in bits, by (distance, row); of two parts, in the order of the ranking. Places
        after the last allowed row hold -1.

    Raises:
        DataError: arrays of shapes or dtypes that do not fit.
        ParameterError: ``k`` is negative, ``threads`` is below 1, or ``class_bits`` or ``by`` does not fit such codes.
    """
    check_by(by, class_bits)
    query, database, allowed = check_arrays(query, database, allowed)
    if k < 0:
        raise ParameterError(f"k must be at least 0, got {k}")
    threads = _check_threads(threads)
    q, n = query.shape[1], database.shape[1]
    k = cut_k(k, n)
    rows = np.full((q, k), -1, np.int64)
    distances = np.full((q, k), -1, np.int32)
    if class_bits:
        query, database, search = _search_of_two_parts(query, database, k, class_bits, by, allowed)
    else:

        def search(query: Planes, first: int, stop: int) -> tuple[NDArray[Any], ...]:
            if compiles():
                from distillhash.hamming.kernel import nearest_rows

                arguments = _kernel_arguments(query, database, allowed, first)
                found, far = nearest_rows(*arguments, stop - first, min(k, stop - first))
            else:
                part = _rows_between(database, allowed, first, stop)
                found, far = _plain_nearest_rows(query, *part, min(k, stop - first))
            return np.where(found < 0, found, found + first) if first else found, far

    for group, parts in _searched(search, query, database, k, threads, progress):
        found, far, *of_class = parts[0] if len(parts) == 1 else _side_by_side(parts)
        if len(parts) > 1 and class_bits:
            found, far = first_of(found, far, of_class[0], k, by)
        elif len(parts) > 1:
            # Parts are by ascending row, so a stable sort leaves ties in order. As uint32, the -1 of no row is the largest.
            order = np.argsort(far.astype(np.uint32), axis=1, kind="stable")
            found, far = np.take_along_axis(found, order, axis=1), np.take_along_axis(far, order, axis=1)
        width = min(k, found.shape[1])
        rows[group, :width], distances[group, :width] = found[:, :width], far[:, :width]
    return rows, distances


def candidates(
    query: Planes, database: Planes, k: int, class_bits: int, by: By, allowed: NDArray[Any] | None = None
) -> list[NDArray[Any]]:
    """Rows, distances and class distances ``(q, m) int64`` of codes of two parts, for an answer over several databases.

    :func:`~distillhash.hamming.ranking.first_of` makes it from the candidates of all, side by side. The arguments are those of
    :func:`nearest`. No row comes twice; places without a row hold -1.
    """
    query, database, allowed = check_arrays(query, database, allowed)
    query, database, search = _search_of_two_parts(query, database, k, class_bits, by, allowed)
    none = np.zeros((query.shape[1] if not min(k, database.shape[1]) else 0, 0), np.int64)
    found = [_side_by_side(parts) for _, parts in _searched(search, query, database, k, cores(), None)]
    return [np.concatenate(arrays) for arrays in zip(*found, strict=True)] or [none] * 3


def _search_of_two_parts(
    query: Planes, database: Planes, k: int, class_bits: int, by: By, allowed: Mask | None
) -> tuple[Planes, Planes, Callable[[Planes, int, int], tuple[NDArray[Any], ...]]]:
    """Planes of a word that the kernels take, and their search over some of the rows."""
    n_bits = 8 * database.itemsize * len(database)
    if not 0 < class_bits < n_bits:
        raise ParameterError(f"class_bits must be in 0..{n_bits - 1} for {n_bits} bits, got {class_bits}")
    weights = HEAD_WEIGHTS, TAIL_WEIGHTS
    if max(map(max, weights)) * n_bits > LARGEST_KEY:
        most = LARGEST_KEY // max(map(max, weights))
        raise ParameterError(f"codes of two parts have at most {most} bits, got {n_bits}; search them as codes of one")
    words = np.packbits(np.arange(n_bits) < class_bits).view(database.dtype)
    if database.itemsize == 2:  # two keys take 32 bits
        query, database = query.astype(np.uint32), database.astype(np.uint32)
        words = words.astype(np.uint32)

    def search(query: Planes, first: int, stop: int) -> tuple[NDArray[Any], ...]:
        most = min(k, stop - first)
        least = (0 if by == "kind" else most, 0 if by == "nearest" else most)
        if by == "both":  # of no more than HEAD rows, all are in the head
            least = min(most, HEAD), most if most > HEAD else 0
        if compiles():
            from distillhash.hamming.kernel import candidate_rows

            arguments = _kernel_arguments(query, database, allowed, first)
            masks = _class_masks(words)
            rows, *others = candidate_rows(*arguments, stop - first, most, masks, weights, class_bits + 1, least)
        else:
            part = _rows_between(database, allowed, first, stop)
            rows, *others = _plain_candidate_rows(query, *part, most, words, weights, least, by)
        return np.where(rows < 0, rows, rows + first) if first else rows, *others

    return query, database, search


def _class_masks(words: NDArray[Any]) -> tuple[tuple[int, ...], np.uint64 | np.uint32 | None]:
    """The class bits of the planes ``(n_planes,)`` as :func:`~distillhash.hamming.kernel.candidate_rows` takes them."""
    from distillhash.hamming.kernel import COUNTS_WORDS

    n_full = int((words == np.iinfo(words.dtype).max).sum())
    mask = words[n_full]
    if COUNTS_WORDS and n_full == 0 and mask == np.uint64(2**32 - 1):
        return (), np.uint32(mask)
    return (0,) * n_full, np.uint64(mask) if mask else None


def within(
    query: Planes,
    database: Planes,
    radius: int,
    *,
    allowed: NDArray[Any] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> tuple[Ints, Ints, Distances]:
    """All rows of the database within ``radius`` bits of every query.

    ``radius`` is in bits, at least 0. All other arguments are those of :func:`nearest`.

    Returns:
        Limits ``(q + 1,) int64``, and rows (int64) and distances (int32, bits) of all hits. The hits of query i are at
        ``limits[i]:limits[i + 1]``, by (distance, row).

    Raises:
        DataError: arrays of shapes or dtypes that do not fit.
        ParameterError: ``radius`` is negative, or ``threads`` is below 1.
    """
    query, database, allowed = check_arrays(query, database, allowed)
    if radius < 0:
        raise ParameterError(f"the radius must be at least 0, got {radius}")
    radius = min(radius, 8 * database.itemsize * len(database))
    q, n = query.shape[1], database.shape[1]

    def search(group: slice) -> tuple[Ints, Ints, Distances]:
        if not compiles():
            return _plain_rows_within(query[:, group], database, allowed, radius)
        from distillhash.hamming.kernel import BLOCK, count_within, fill_within

        arguments = _kernel_arguments(query[:, group], database, allowed, 0)
        n_queries = group.stop - group.start
        counts = np.zeros((n_queries, radius + 1), np.int64)
        holds = np.zeros((n_queries, -(-n // BLOCK)), np.uint8)
        bounds = np.zeros(len(arguments[0]), np.int64)
        bounds[:n_queries] = radius + 1
        count_within(*arguments, n, bounds, counts, holds)
        places = (np.cumsum(counts) - counts.ravel()).reshape(counts.shape)
        rows, distances = np.empty(counts.sum(), np.int64), np.empty(counts.sum(), np.int32)
        fill_within(*arguments, n, holds, places, rows, distances)
        return counts.sum(axis=1), rows, distances

    found = list(run_groups(search, q, _group_size(n), _check_threads(threads), progress))
    counts = np.concatenate([np.zeros(1, np.int64), *(part[0] for part in found)])
    rows = np.concatenate([np.zeros(0, np.int64), *(part[1] for part in found)])
    distances = np.concatenate([np.zeros(0, np.int32), *(part[2] for part in found)])
    return np.cumsum(counts), rows, distances


def warm_up(n_bits: int, class_bits: int = 0) -> None:
    """Compile, or load from disk, all that searches over codes of ``n_bits`` need, so that the first search is as fast as the next.

    With ``class_bits`` that includes searches over codes of two parts.

    It takes seconds the first time on a machine, and tenths of a second later.
    """
    if n_bits < 1:
        raise ParameterError(f"n_bits must be at least 1, got {n_bits}")
    dtype = plane_dtype(n_bits)
    planes = np.zeros((-(-n_bits // (8 * dtype.itemsize)), 2), dtype)
    for allowed in (None, np.ones(2, np.uint8)):
        for query in (planes[:, :1], planes):  # one query has its own kernel
            for bits in {0, class_bits}:
                nearest(query, planes, 1, class_bits=bits, allowed=allowed, threads=1)
        within(planes, planes, 0, allowed=allowed, threads=1)


def _searched(
    search: Callable[[Planes, int, int], T],
    query: Planes,
    database: Planes,
    k: int,
    threads: int,
    progress: Progress | None,
) -> Iterator[tuple[slice, list[T]]]:
    """Groups of queries with what ``search(queries, first row, last row + 1)`` gave: one answer, or one of each part of the rows."""
    q, n = query.shape[1], database.shape[1]
    if not q or not min(k, n):
        return
    parts = max(1, min(threads, database.nbytes // _BYTES_PER_THREAD))
    if q <= 2 * threads and parts > 1:  # a few queries over a large database: every thread takes a part of the rows
        edges = pairwise(n * part // parts for part in range(parts + 1))
        yield slice(0, q), list(_run(lambda edge: search(query, *edge), list(edges), parts))
        if progress is not None:
            progress(q)
        return
    group_size = max(1, min(_group_size(n), _GROUP_CANDIDATES // min(k, n)))
    yield from run_groups(lambda some: (some, [search(query[:, some], 0, n)]), q, group_size, threads, progress)


def _side_by_side(parts: Sequence[tuple[NDArray[Any], ...]]) -> list[NDArray[Any]]:
    return [np.concatenate(arrays, axis=1) for arrays in zip(*parts, strict=True)]


def _rows_between(database: Planes, allowed: Mask | None, first: int, stop: int) -> tuple[Planes, Mask | None]:
    return database[:, first:stop], None if allowed is None else allowed[first:stop]


def _kernel_arguments(
    query: Planes, database: Planes, allowed: Mask | None, first: int
) -> tuple[NDArray[Any], int, tuple[int, ...], int | None]:
    """What the kernels take before ``n``. The caller keeps ``database`` and ``allowed`` alive while they run."""
    from distillhash.hamming.kernel import GROUP

    n_planes, q = query.shape
    filled = q if q == 1 else -(-q // GROUP) * GROUP
    words = np.zeros((filled, n_planes), query.dtype)
    words[:q] = query.T
    start, step = database.ctypes.data + first * database.itemsize, database.shape[1] * database.itemsize
    addresses = tuple(start + plane * step for plane in range(n_planes))
    return words, q, addresses, None if allowed is None else allowed.ctypes.data + first


def _group_size(n: int) -> int:
    """Queries of one kernel call over ``n`` rows, at most."""
    return max(_MIN_GROUP, min(_MAX_GROUP, _GROUP_PAIRS // max(n, 1)))


def run_groups(search: Callable[[slice], T], q: int, most: int, threads: int, progress: Progress | None) -> Iterator[T]:
    """Results of groups of at most ``most`` queries, in order. Groups have nearly the same size, so that threads end together."""
    if not q:
        return
    threads = min(threads, q)
    n_groups = -(-q // (most * threads)) * threads
    groups = [slice(*edges) for edges in pairwise(q * group // n_groups for group in range(n_groups + 1))]
    for group, found in zip(groups, _run(search, groups, threads), strict=True):
        if progress is not None:
            progress(group.stop)
        yield found


def _run(function: Callable[[Any], T], tasks: Sequence[Any], threads: int) -> Iterator[T]:
    """Results of all tasks in order. Tasks that have not begun are cancelled when one fails or the caller stops."""
    return map(function, tasks) if threads == 1 else _executor(threads).map(function, tasks)


@cache
def _executor(threads: int) -> ThreadPoolExecutor:
    """Shared by all searches with this number of threads: starting threads takes as long as a search."""
    return ThreadPoolExecutor(threads, thread_name_prefix="distillhash-hamming")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_executor.cache_clear)  # a child process does not have the threads of its parent


def check_arrays(
    query: Planes, database: Planes, allowed: NDArray[Any] | None
) -> tuple[Planes, Planes, NDArray[np.uint8] | None]:
    """The arrays of a search as kernels take them: the database and the mask in C order, the mask in bytes."""
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


def _check_threads(threads: int | None) -> int:
    """The number of threads to use: at least 1, or all processors for None."""
    if threads is None:
        return cores()
    if threads < 1:
        raise ParameterError(f"threads must be at least 1, got {threads}; None takes all processors")
    return threads


def _plain_nearest_rows(
    query: NDArray[Any], rows: NDArray[Any], allowed: NDArray[np.uint8] | None, k: int
) -> tuple[Ints, NDArray[np.int32]]:
    """The k nearest allowed rows by (distance, row), ``(q, k)`` each, and -1 after the last allowed row; 1 <= k <= n."""
    found, distances = np.full((2, query.shape[1], k), -1, np.int64)
    for i, words in enumerate(query.T):
        near = _plain_distances(words, rows, allowed)
        first = _plain_first(near, k)
        first = first[near[first] != _NO_ROW]
        found[i, : len(first)], distances[i, : len(first)] = first, near[first]
    return found, distances.astype(np.int32)


def _plain_candidate_rows(
    query: NDArray[Any], rows: NDArray[Any], allowed: NDArray[np.uint8] | None, k: int,
    class_words: NDArray[Any], weights: Sequence[tuple[int, int]], least: Sequence[int], by: By,
) -> tuple[Ints, Ints, Ints]:  # fmt: skip
    """The nearest allowed rows by two rankings of codes of two parts; see :func:`distillhash.hamming.kernel.candidate_rows`.

    ``class_words (n_planes,)`` has ones at the class bits. Rows are in the order of the ranking ``by``.
    """
    answers = []
    for words in query.T:
        near, kind = (
            _plain_distances(words, rows, None),
            _plain_distances(words & class_words, rows & class_words[:, None], None),
        )
        chosen = [np.zeros(0, np.intp)]
        for (of_others, of_class), few in zip(weights, least, strict=True):
            if few:
                key = (near - kind) * np.uint16(of_others) + kind * np.uint16(of_class)  # at most LARGEST_KEY
                if allowed is not None:
                    key[allowed == 0] = _NO_ROW
                at = np.flatnonzero(key <= np.partition(key, few - 1)[few - 1])
                at = at[key[at] != _NO_ROW]
                keys = key[at].astype(np.int64) << 16 | kind[at]
                in_order = np.argsort(keys, kind="stable")
                tied = int((keys <= keys[in_order[:few]].max(initial=0)).sum())
                chosen.append(at[in_order[: min(k, tied)]])
        at = np.unique(np.concatenate(chosen))
        at = at[order(near[at], kind[at], by)]
        answers.append(np.stack([at, near[at], kind[at]]).astype(np.int64))
    found = np.full((3, len(answers), max(answer.shape[1] for answer in answers)), -1, np.int64)
    for i, answer in enumerate(answers):
        found[:, i, : answer.shape[1]] = answer
    return found[0], found[1], found[2]


def _plain_rows_within(
    query: NDArray[Any], rows: NDArray[Any], allowed: NDArray[np.uint8] | None, radius: int
) -> tuple[Ints, Ints, NDArray[np.int32]]:
    """How many allowed rows are within the radius of each query, ``(q,)``; then all rows and distances by (query, distance, row)."""
    found, distances = [], []
    for words in query.T:
        near = _plain_distances(words, rows, allowed)
        hits = np.flatnonzero(near <= radius)
        found.append(hits[np.argsort(near[hits], kind="stable")])
        distances.append(near[found[-1]].astype(np.int32))
    counts = np.array([len(hits) for hits in found], np.int64)
    return counts, np.concatenate(found, dtype=np.int64), np.concatenate(distances)


def _plain_distances(words: NDArray[Any], rows: NDArray[Any], allowed: NDArray[np.uint8] | None) -> NDArray[np.uint16]:
    total = np.zeros(rows.shape[1], np.uint16)
    for word, plane in zip(words, rows, strict=True):
        total += np.bitwise_count(plane ^ word)
    if allowed is not None:
        total[allowed == 0] = _NO_ROW
    return total


def _plain_first(keys: NDArray[Any], k: int) -> NDArray[np.intp]:
    """Places of the k smallest keys, by (key, place)."""
    at = np.flatnonzero(keys <= np.partition(keys, k - 1)[k - 1])
    return at[np.argsort(keys[at], kind="stable")[:k]]
