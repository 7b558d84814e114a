"""Exact search for one query that skips most of a large database whose codes lie in clusters.

Learned codes are not uniform: codes of similar images share most bits. The codes are grouped around centres (k-majority on a sample:
k-means for bits) and stored centre by centre, the rows of each centre by their distance r from it. By the triangle inequality a row is at
least |d - r| away from a query at distance d of its centre. So a query that has k rows within D reads only rows with
d - D <= r <= d + D: consecutive rows, and none for nearly all centres. Centres are visited from the nearest, and D shrinks. The answers
are those of a scan, by (distance, row).

How much is skipped depends on the codes: nearly everything for clusters, nothing for uniform bits. So both ways are timed when the
structure is made, and the structure is used where it takes less than half of the time of a scan. A query that turns out to be expensive
is given to the scan, and so are batches, where queries share each load of the database.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash.errors import DataError
from distillhash.hamming.compilation import compiled
from distillhash.hamming.kernel import (
    CHUNK,
    ROW_BITS,
    ROW_MASK,
    distance_of,
    lowest_bit,
    nearer,
    part,
    popcount64,
    prefetch_chunk,
)
from distillhash.hamming.search import Distances, Ints, Planes, check_arrays, nearest, within

_MAX_CENTRES = 1 << 14
_ROWS_PER_CENTRE = 512
_SAMPLE_PER_CENTRE = 20
_ROUNDS = 3  # of k-majority
_TRIALS = 32  # queries that are timed
_TRIED_K = (10, 100, 1000)
_MARGIN = 0.5  # of the time of a scan: the structure must take less, because timings vary
_EFFORT = 0.1  # of the rows: what a query may read before it is given to the scan
_CENTRES_AT_ONCE = 16  # whose rows are prefetched before any is read
_VISIT = 32  # rows that take as long to read as it takes to find the rows of a centre


ARRAYS = ("centres", "row_of", "rings", "plan")
"""Names of the arrays that make up the structure beside the planes."""


class ClusteredCodes:
    """Codes grouped around centres: 12 bytes per 64-bit code beside the planes, for the codes in another order and their rows.

    Attributes:
        planes: The codes.
        largest_k: The structure is used for up to this many nearest rows; 0 where it never pays.
    """

    def __init__(self, planes: Planes) -> None:
        """Find centres, group the codes, and time both ways. ``planes`` are kept and must not be changed; a :class:`DataError` if empty."""
        n = planes.shape[1]
        if not n:
            raise DataError("there are no codes to group; add some first")
        rng = np.random.default_rng(0)
        n_centres = min(_MAX_CENTRES, -(-n // _ROWS_PER_CENTRE))
        sample = planes[:, np.sort(rng.choice(n, min(n, _SAMPLE_PER_CENTRE * n_centres), replace=False))]
        centres = _centres(sample, n_centres, rng)
        rows, distances = nearest(planes, centres, 1)
        row_of, rings = _grouped(rows[:, 0], distances[:, 0], centres.shape[1], _n_distances(planes))
        self._arrange(planes, centres, row_of, rings)
        self._set_plan(self._timed(rng))

    def _arrange(self, planes: Planes, centres: Planes, row_of: NDArray[Any], rings: NDArray[Any]) -> None:
        self.planes, self._centres, self._row_of, self._rings = planes, centres, row_of, rings
        self._n_bits = rings.shape[1] - 2
        self._moved = np.zeros((len(planes), planes.shape[1] + CHUNK), planes.dtype)  # kernels read beyond the end
        for plane, moved in zip(planes, self._moved, strict=True):
            np.take(plane, row_of, out=moved[: len(row_of)])
        held = rings[:, 1:] > rings[:, :-1]
        last = held.shape[1] - 1
        # For a centre without rows, the nearest row is farther than the farthest, so that nothing is read.
        nearest_held = np.where(held.any(axis=1), held.argmax(axis=1), 1)
        farthest_held = np.where(held.any(axis=1), last - held[:, ::-1].argmax(axis=1), 0)
        self._reach = np.stack([nearest_held, farthest_held], axis=1).astype(np.uint16)

    def _set_plan(self, plan: NDArray[np.float64]) -> None:
        """Seconds of a query: by the scan first, by the structure for the 10, 100 and 1000 nearest last."""
        self._plan = plan
        pays = [k for k, seconds in zip(_TRIED_K, plan[-3:], strict=True) if seconds < _MARGIN * plan[0]]
        self.largest_k = max(pays, default=0)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All that :meth:`from_arrays` needs beside the planes, to be kept with them."""
        return {"centres": self._centres, "row_of": self._row_of, "rings": self._rings, "plan": self._plan}

    @classmethod
    def from_arrays(cls, planes: Planes, arrays: dict[str, NDArray[Any]]) -> ClusteredCodes:
        """The structure that gave ``arrays``, over the same planes; a :class:`DataError` for arrays that cannot be of them.

        The kernels read where these arrays point to, so all that they rely on is checked: types, shapes, that ``row_of`` is a permutation,
        and that ``rings`` only rise from 0 to the number of rows.
        """
        n, centres, row_of, rings, plan = planes.shape[1], *(arrays[name] for name in ARRAYS)
        kind, n_centres = _kind_of_rows(n), centres.shape[-1] if centres.ndim else 0
        kinds = [(array.dtype, array.shape) for array in (centres, row_of, rings)]
        shapes = (len(planes), n_centres), (n,), (n_centres, _n_distances(planes) + 1)
        fits = kinds == list(zip((planes.dtype, kind, kind), shapes, strict=True)) and 0 < n_centres <= _MAX_CENTRES
        fits &= plan.dtype == np.float64 and plan.ndim == 1 and len(plan) > len(_TRIED_K) and bool(np.all(plan >= 0))
        if not (fits and _is_permutation(row_of) and _rise_to(n, rings)):
            raise DataError(
                f"these arrays are not of {n} codes in {len(planes)} planes, or are damaged; make the structure anew"
            )
        arrays = {name: np.ascontiguousarray(arrays[name]) for name in ARRAYS}
        self = cls.__new__(cls)
        self._arrange(planes, arrays["centres"], arrays["row_of"], arrays["rings"])
        self._set_plan(arrays["plan"])
        return self

    def nearest(self, query: Planes, k: int, *, allowed: NDArray[Any] | None = None) -> tuple[Ints, Distances]:
        """The ``k`` nearest rows; see :func:`distillhash.hamming.nearest`."""
        usable = query.shape[1] == 1 and 0 < k <= min(self.largest_k, len(self._row_of))
        found = self._nearest(query, k, allowed) if usable else None
        return nearest(query, self.planes, k, allowed=allowed) if found is None else found

    def within(
        self, query: Planes, radius: int, *, allowed: NDArray[Any] | None = None
    ) -> tuple[Ints, Ints, Distances]:
        """All rows within ``radius`` bits; see :func:`distillhash.hamming.within`."""
        usable = query.shape[1] == 1 and self.largest_k and radius >= 0
        found = self._within(query, min(radius, self._n_bits), allowed) if usable else None
        return within(query, self.planes, radius, allowed=allowed) if found is None else found

    def _nearest(self, query: Planes, k: int, allowed: NDArray[Any] | None) -> tuple[Ints, Distances] | None:
        """The answer for one query, or None if it is too expensive."""
        no_key = self._n_bits << ROW_BITS | ROW_MASK
        heap = np.full(k, no_key, np.int64)
        order, counts = np.empty(len(self._reach), np.int32), np.empty(self._n_bits + 1, np.int64)
        runs = np.empty((_CENTRES_AT_ONCE, 2), np.int64)
        if not _nearest_clustered(*self._arguments(query, allowed), k, order, counts, runs, heap):
            return None
        heap.sort()
        missing = heap == no_key
        rows, distances = np.where(missing, -1, heap & ROW_MASK), np.where(missing, -1, heap >> ROW_BITS)
        return rows[None], distances[None].astype(np.int32)

    def _within(self, query: Planes, radius: int, allowed: NDArray[Any] | None) -> tuple[Ints, Ints, Distances] | None:
        """The answer for one query, or None if it is too expensive."""
        keys = np.empty(1024, np.int64)
        arguments = self._arguments(query, allowed)
        n_found = _within_clustered(*arguments, radius, keys)
        if n_found < 0:
            return None
        if n_found > len(keys):
            keys = np.empty(n_found, np.int64)
            _within_clustered(*arguments, radius, keys)
        keys = np.sort(keys[:n_found])
        return np.array([0, n_found]), keys & ROW_MASK, (keys >> ROW_BITS).astype(np.int32)

    def _arguments(self, query: Planes, allowed: NDArray[Any] | None) -> tuple[Any, ...]:
        """What both kernels take first."""
        query, _, mask = check_arrays(query, self.planes, allowed)
        first, step = self._moved.ctypes.data, self._moved.strides[0]
        addresses = tuple(first + plane * step for plane in range(len(self._moved)))
        effort, far = int(_EFFORT * len(self._row_of)), np.empty(len(self._reach), np.uint16)
        words = np.ascontiguousarray(query.T)
        return words, self._centres, self._rings, self._reach, addresses, self._row_of, mask, effort, far

    def _timed(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """CPU seconds of a query by the scan, and by the structure for every k of ``_TRIED_K``."""
        n = self.planes.shape[1]
        query = self.planes[:, rng.choice(n, _TRIALS)]
        query[0] ^= query.dtype.type(1)  # so that a row does not find itself at once
        ones = [query[:, i : i + 1] for i in range(_TRIALS)]

        def scan(one: Planes, k: int) -> object:
            return nearest(one, self.planes, k, threads=1)

        def clustered(one: Planes, k: int) -> object:
            return self._nearest(one, k, None) or scan(one, k)

        means = []
        for way, k in ((scan, _TRIED_K[0]), *((clustered, k) for k in _TRIED_K)):
            way(ones[0], min(k, n))  # may compile
            begin = time.thread_time()  # other processes do not count
            for one in ones:
                way(one, min(k, n))
            means.append((time.thread_time() - begin) / _TRIALS)
        return np.array(means)


def _n_distances(planes: Planes) -> int:
    """How many distances there are between two rows."""
    return 8 * planes.itemsize * len(planes) + 1


def _kind_of_rows(n: int) -> np.dtype[Any]:
    return np.dtype(np.uint32 if n < 2**32 else np.int64)


def _is_permutation(rows: NDArray[Any]) -> bool:
    """Whether these are all rows, each once."""
    if int(rows.max(initial=0)) >= max(len(rows), 1) or int(rows.min(initial=0)) < 0:
        return False
    seen = np.zeros(len(rows), np.bool_)
    seen[rows] = True
    return bool(seen.all())


def _rise_to(n: int, rings: NDArray[Any]) -> bool:
    """Whether the rows of each centre begin where those of the one before end, from 0 to ``n``, and its rings likewise."""
    steady = np.all(rings[1:, 0] == rings[:-1, -1]) and np.all(rings[:, 1:] >= rings[:, :-1])
    return bool(steady) and int(rings[0, 0]) == 0 and int(rings[-1, -1]) == n


def _centres(sample: Planes, n_centres: int, rng: np.random.Generator) -> Planes:
    """Centres of a sample by k-majority: rows of the sample first, then a few times the majority of each bit among a centre's rows."""
    distinct = np.unique(sample, axis=1)
    centres = np.ascontiguousarray(distinct[:, rng.permutation(distinct.shape[1])[:n_centres]])
    bits = 8 * sample.itemsize
    places = np.arange(bits, dtype=sample.dtype)
    for _ in range(_ROUNDS):
        rows, _ = nearest(sample, centres, 1)
        ones = np.zeros((centres.shape[1], bits * len(sample)), np.int32)
        sizes = np.bincount(rows[:, 0], minlength=centres.shape[1])
        _count_ones(sample, rows[:, 0], ones)
        majority = (2 * ones > sizes[:, None]).reshape(-1, len(sample), bits)
        words = (majority.astype(sample.dtype) << places).sum(axis=2, dtype=sample.dtype).T
        centres = np.ascontiguousarray(np.where(sizes > 0, words, centres))
    return centres


def _grouped(centre: Ints, distance: Distances, n_centres: int, n_distances: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Rows by (centre, distance from it, row), and where each distance of each centre begins among them."""
    kind = _kind_of_rows(len(centre))
    order = np.argsort(distance.astype(np.uint16), kind="stable")  # a radix sort for 16 bits
    order = order[np.argsort(centre[order].astype(np.uint16), kind="stable")]
    sizes = np.bincount(centre * n_distances + distance, minlength=n_centres * n_distances)
    ends = np.cumsum(sizes).reshape(n_centres, n_distances)
    starts = np.concatenate([np.zeros(1, np.int64), ends[:-1, -1]])
    return order.astype(kind), np.concatenate([starts[:, None], ends], axis=1).astype(kind)


# The kernels. Their first arguments:
#   query      (1, n_planes)
#   centres    (n_planes, n_centres)
#   rings      (n_centres, n_bits + 2): where the rows of a centre begin whose distance from it is the column's number
#   reach      (n_centres, 2): distance of the nearest and the farthest row of a centre
#   addresses  of the planes, in the order of row_of, with CHUNK rows more than there are
#   row_of     (n,): original rows
#   allowed    (n,) by original row, or None
#   effort     rows to read at most; a centre counts as some
#   far        (n_centres,) scratch buffer


@compiled(makes_arrays=False)
def _count_ones(planes: Any, centre_of: Any, ones: Any) -> None:
    """Count, for every centre and bit, the rows that have the bit: ``ones`` is ``(n_centres, bits of all planes)``."""
    bits = ones.shape[1] // len(planes)
    for w in range(len(planes)):
        for i in range(len(centre_of)):
            word = np.uint64(planes[w, i])
            while word:
                ones[centre_of[i], bits * w + lowest_bit(word)] += 1
                word &= word - np.uint64(1)


@part
def _distances_to(query: Any, centres: Any, far: Any) -> None:
    for c in range(len(far)):
        far[c] = 0
    for w in range(len(centres)):
        word = query[0, w]
        for c in range(len(far)):
            far[c] += popcount64(np.uint64(word ^ centres[w, c]))


@part
def _order_by_distance(far: Any, order: Any, counts: Any) -> None:
    """A counting sort of the centres."""
    counts[:] = 0
    for c in range(len(far)):
        counts[far[c]] += 1
    before = 0
    for distance in range(len(counts)):
        before, counts[distance] = before + counts[distance], before
    for c in range(len(far)):
        order[counts[far[c]]] = c
        counts[far[c]] += 1


@part
def _mask_until(query: Any, addresses: Any, start: int, stop: int, bound: int) -> Any:
    """Bit b is set if row ``start + b`` is before ``stop`` and nearer than ``bound``; it reads ``CHUNK`` rows."""
    found = nearer(query, 0, addresses, None, None, start, bound)
    if stop - start < CHUNK:
        found &= (np.uint64(1) << np.uint64(stop - start)) - np.uint64(1)
    return found


@part
def _replace_top(heap: Any, k: int, key: int) -> None:
    """Put ``key`` in place of the largest of a heap."""
    place = 0
    while True:
        child = 2 * place + 1
        if child >= k:
            break
        if child + 1 < k and heap[child + 1] > heap[child]:
            child += 1
        if heap[child] <= key:
            break
        heap[place] = heap[child]
        place = child
    heap[place] = key


@compiled(makes_arrays=False)
def _nearest_clustered(
    query: Any, centres: Any, rings: Any, reach: Any, addresses: Any, row_of: Any, allowed: Any, effort: int, far: Any,
    k: int, order: Any, counts: Any, runs: Any, heap: Any,
) -> bool:  # fmt: skip
    """The k nearest allowed rows into ``heap`` as distance and row in one integer, not sorted; False if it is too expensive."""
    farthest_reach = 0
    for c in range(len(reach)):
        farthest_reach = max(farthest_reach, reach[c, 1])
    _distances_to(query, centres, far)
    _order_by_distance(far, order, counts)
    spent, place, at_once = np.int64(0), 0, 1
    while place < len(order):
        bound = heap[0] >> ROW_BITS  # a row as far as the k-th enters if it comes before it
        if far[order[place]] - farthest_reach > bound:
            break
        # Memory is the bottleneck. So the rows of several centres are located first, then prefetched, then read. The first few are
        # done in smaller numbers because they lower the bound most.
        n_runs = 0
        while place < len(order) and n_runs < at_once:
            c = order[place]
            place += 1
            low, high = max(reach[c, 0], far[c] - bound), min(reach[c, 1], far[c] + bound)
            if low <= high:
                runs[n_runs, 0], runs[n_runs, 1] = rings[c, low], rings[c, high + 1]
                n_runs += 1
            elif far[c] - farthest_reach > bound:
                break
        for run in range(n_runs):
            spent += runs[run, 1] - runs[run, 0] + _VISIT
            prefetch_chunk(query, 0, addresses, None, None, runs[run, 0])
        if spent > effort:
            return False
        at_once = min(2 * at_once, len(runs))
        for run in range(n_runs):
            stop = runs[run, 1]
            for start in range(runs[run, 0], stop, CHUNK):
                found = _mask_until(query, addresses, start, stop, (heap[0] >> ROW_BITS) + 1)
                while found:
                    at = start + lowest_bit(found)
                    found &= found - np.uint64(1)
                    row = np.int64(row_of[at])
                    if allowed is not None and allowed[row] == 0:
                        continue
                    key = distance_of(query, 0, addresses, None, None, at) << ROW_BITS | row
                    if key < heap[0]:
                        _replace_top(heap, k, key)
    return True


@compiled(makes_arrays=False)
def _within_clustered(
    query: Any, centres: Any, rings: Any, reach: Any, addresses: Any, row_of: Any, allowed: Any, effort: int, far: Any,
    radius: int, keys: Any,
) -> int:  # fmt: skip
    """Number of allowed rows within ``radius``, or -1 if it is too expensive; as many keys as fit are written, not sorted."""
    _distances_to(query, centres, far)
    spent, n_found = np.int64(0), 0
    for c in range(len(far)):
        low, high = max(reach[c, 0], far[c] - radius), min(reach[c, 1], far[c] + radius)
        if low > high:
            continue
        first, stop = np.int64(rings[c, low]), np.int64(rings[c, high + 1])
        spent += stop - first + _VISIT
        if spent > effort:
            return -1
        for start in range(first, stop, CHUNK):
            found = _mask_until(query, addresses, start, stop, radius + 1)
            while found:
                at = start + lowest_bit(found)
                found &= found - np.uint64(1)
                row = np.int64(row_of[at])
                if allowed is not None and allowed[row] == 0:
                    continue
                if n_found < len(keys):
                    keys[n_found] = distance_of(query, 0, addresses, None, None, at) << ROW_BITS | row
                n_found += 1
    return n_found
