"""Exact search that skips most of a database whose codes lie in clusters; a scan where that does not pay.

Learned codes are not uniform: codes of similar images share most bits. The codes are grouped around centres (k-majority on a sample:
k-means for bits), and stored centre by centre, each centre's rows by their distance r from it. A row is at least |d - r| away from
a query at distance d of its centre (triangle inequality), so a query that has k rows within D looks only at rows with
d - D <= r <= d + D: a run of consecutive rows, and for nearly all centres none. Centres are visited from the nearest, and D shrinks.
No bound is a guess, so the answers are those of a scan, by (distance, row).

How much is skipped depends on the codes: nearly all for clusters, nothing for uniform bits. So both ways are timed on a sample when the
structure is made, the cheaper one is planned for one query and for batches, and a query that turns out to be dear is given to the scan.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash.errors import DataError, ParameterError
from distillhash.hamming.kernel import ROW_BITS, compiled, distance_of, lowest_bit, nearer, part, popcount64, prefetch
from distillhash.hamming.search import (
    Distances,
    Ints,
    Planes,
    Progress,
    check_arrays,
    check_threads,
    in_groups,
    nearest,
    warm_up,
    within,
)

# The compiled searches over clustered codes (see :mod:`distillhash.hamming.clustered`), one query at a time.

_VISIT = 32  # rows whose look costs as much as to find out where the rows of a centre are


@part
def _distances_to(query: Any, i: int, centres: Any, far: Any) -> None:
    for c in range(len(far)):
        far[c] = 0
    for w in range(len(centres)):
        word = query[i, w]
        for c in range(len(far)):
            far[c] += popcount64(np.uint64(word ^ centres[w, c]))


@part
def _order_by_distance(query: Any, i: int, centres: Any, far: Any, order: Any, counts: Any) -> None:
    """Distances of all centres to query i, and their order by distance (a counting sort)."""
    _distances_to(query, i, centres, far)
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
def _mask_until(query: Any, i: int, addresses: Any, start: int, stop: int, bound: int) -> Any:
    """Bit b says whether row ``start + b`` is before ``stop`` and nearer to query i than ``bound``; it reads 64 rows."""
    found = nearer(query, i, addresses, None, start, bound)
    if stop - start < 64:
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


@compiled
def nearest_clustered(
    query: Any, centres: Any, rings: Any, reach: Any, addresses: Any, row_of: Any, allowed: Any, k: int, effort: int,
    exact: bool, far: Any, order: Any, counts: Any, runs: Any, heaps: Any,
) -> None:  # fmt: skip
    """The k nearest allowed rows of every query into ``heaps`` as distance and row in one integer; not sorted.

    A query that would look at more than ``effort`` rows is given up: its heap begins with -1. Or, if the answer need not be ``exact``, it
    ends with what was found so far.

    Args:
        query: ``(q, n_planes)``.
        centres: ``(n_planes, n_centres)``.
        rings: ``(n_centres, n_bits + 2)``: where the rows of a centre begin that are as far from it as the column says.
        reach: ``(n_centres, 2)``: distance of the nearest and the farthest row of a centre.
        addresses: Of the planes, rows in the order of ``row_of``, 64 rows more than there are.
        row_of: ``(n,)``: original rows.
        allowed: ``(n,)`` by original row, or None.
        k: How many.
        effort: Rows to look at, at most; a centre counts as some.
        exact: Whether to give up then.
        far: ``(n_centres,)`` to work in, and so are the others.
        order: ``(n_centres,)``.
        counts: ``(n_bits + 1,)``.
        runs: ``(centres at once, 2)``.
        heaps: ``(q, k)``, filled with a key that is larger than any.
    """
    farthest_reach = 0
    for c in range(len(reach)):
        farthest_reach = max(farthest_reach, reach[c, 1])
    for i in range(len(query)):
        heap = heaps[i]
        _order_by_distance(query, i, centres, far, order, counts)
        spent, place, at_once = np.int64(0), 0, 1
        while place < len(order):
            bound = heap[0] >> ROW_BITS  # a row may be as far as the k-th, if it is before it
            # Triangle inequality: a row at distance r from its centre is at least |far - r| from the query.
            if far[order[place]] - farthest_reach > bound:
                break
            # Memory is what takes time, and a branch on what is not there yet stops everything: so the runs of rows of several
            # centres are found first, then asked for, then looked at. The first few at once are few, for they lower the bound most.
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
                prefetch(query, i, addresses, None, runs[run, 0])
            if spent > effort and (exact or heap[0] >> ROW_BITS < rings.shape[1] - 2):
                if exact:
                    heap[0] = -1
                break
            at_once = min(2 * at_once, len(runs))
            for run in range(n_runs):
                stop = runs[run, 1]
                for start in range(runs[run, 0], stop, 64):
                    found = _mask_until(query, i, addresses, start, stop, (heap[0] >> ROW_BITS) + 1)
                    while found:
                        at = start + lowest_bit(found)
                        found &= found - np.uint64(1)
                        row = np.int64(row_of[at])
                        if allowed is not None and allowed[row] == 0:
                            continue
                        key = distance_of(query, i, addresses, None, at) << ROW_BITS | row
                        if key < heap[0]:
                            _replace_top(heap, k, key)


@compiled
def within_clustered(
    query: Any, i: int, centres: Any, rings: Any, reach: Any, addresses: Any, row_of: Any, allowed: Any, radius: int,
    effort: int, far: Any, keys: Any,
) -> int:  # fmt: skip
    """Number of allowed rows within ``radius`` of query i, or -1 if it is given up.

    Their keys, as in :func:`nearest_clustered`, are written as far as ``keys`` has room, not sorted.
    """
    _distances_to(query, i, centres, far)
    spent, n_found = np.int64(0), 0
    for c in range(len(far)):
        low, high = max(reach[c, 0], far[c] - radius), min(reach[c, 1], far[c] + radius)
        if low > high:
            continue
        first, stop = np.int64(rings[c, low]), np.int64(rings[c, high + 1])
        spent += stop - first + _VISIT
        if spent > effort:
            return -1
        for start in range(first, stop, 64):
            found = _mask_until(query, i, addresses, start, stop, radius + 1)
            while found:
                at = start + lowest_bit(found)
                found &= found - np.uint64(1)
                row = np.int64(row_of[at])
                if allowed is not None and allowed[row] == 0:
                    continue
                if n_found < len(keys):
                    keys[n_found] = distance_of(query, i, addresses, None, at) << ROW_BITS | row
                n_found += 1
    return n_found


@compiled
def count_ones(planes: Any, centre_of: Any, ones: Any, sizes: Any) -> None:
    """Add up, for every centre and bit, the rows that have the bit: ``ones`` is ``(n_centres, bits of all planes)``."""
    bits = ones.shape[1] // len(planes)
    for i in range(len(centre_of)):
        sizes[centre_of[i]] += 1
    for w in range(len(planes)):
        for i in range(len(centre_of)):
            word = np.uint64(planes[w, i])
            while word:
                ones[centre_of[i], bits * w + lowest_bit(word)] += 1
                word &= word - np.uint64(1)


_MOST_CENTRES = 1 << 14
_ROWS_PER_CENTRE = 512
_SAMPLE_PER_CENTRE = 20
_ROUNDS = 3  # of k-majority
_TRIALS = 32  # queries that are timed one by one; batches have four times as many
_BATCHES = 3
_MARGIN = 0.5  # of the time of a scan; what the structure must stay under to be planned, for no timing is exact
_TRIED_K = (10, 100, 1000)
_PAD = 64  # rows after the last, which the kernels read and do not use
_QUERIES_AT_ONCE = 64  # of one kernel call
_CENTRES_AT_ONCE = 16  # whose rows are asked for before any is looked at
EFFORT = 0.1  # of the rows; what a query may look at before it is given to the scan
_SHARES = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05)  # of the rows, for which recall is measured
_HELD_OUT = 256  # queries that it is measured on
RECALL_AT = 10
"""Neighbours that recall is measured for."""


@dataclass(frozen=True)
class Plan:
    """What was measured when the structure was made: CPU seconds a query, on one thread.

    Attributes:
        scan_one: By the scan, one query at a time.
        scan_batch: By the scan, in a batch.
        clustered: By the structure, for the 10, 100 and 1000 nearest.
    """

    scan_one: float
    scan_batch: float
    clustered: tuple[float, float, float]

    def pays(self, q: int, k: int) -> bool:
        """Whether the structure is planned for ``q`` queries in one call, for their ``k`` nearest."""
        scan = max(self.scan_one / q, self.scan_batch)
        return any(
            k <= tried and seconds < _MARGIN * scan for tried, seconds in zip(_TRIED_K, self.clustered, strict=True)
        )


class ClusteredCodes:
    """Codes grouped around centres. It needs numba, and 12 bytes a 64-bit code beside the planes: the codes in another order, and rows.

    Searches give what :func:`~distillhash.hamming.nearest` and :func:`~distillhash.hamming.within` give, and may run in several threads.
    Only where a ``recall`` below 1 is asked for may neighbours be missing: then a query ends after a share of the rows, nearest centres
    first, for which that recall was measured.

    Attributes:
        planes: The codes.
        plan: What was measured of exact searches.
        recalls: ``(m, 2)``, ascending: a share of the rows, and the share of the 10 nearest that is found after looking at so many.
            Measured with rows of the database as queries, each without itself.
    """

    def __init__(
        self, planes: Planes, *, threads: int | None = None, seed: int = 0, progress: Progress | None = None
    ) -> None:
        """Find centres, group the codes, time both ways.

        Args:
            planes: ``(n_planes, n)``, ``n`` at least 1; kept, and not to be changed.
            threads: As for :func:`~distillhash.hamming.nearest`.
            seed: Of the sample that centres are found on. Answers do not depend on it.
            progress: Called with the number of rows that are assigned to centres.
        """
        planes, _, _ = check_arrays(planes, planes, None)
        n = planes.shape[1]
        if not n:
            raise DataError("there are no codes to group; add some first")
        rng = np.random.default_rng(seed)
        n_centres = min(_MOST_CENTRES, -(-n // _ROWS_PER_CENTRE))
        sample = planes[:, np.sort(rng.choice(n, min(n, _SAMPLE_PER_CENTRE * n_centres), replace=False))]
        centres = _centres(sample, n_centres, rng, threads)
        rows, distances = nearest(planes, centres, 1, threads=threads, progress=progress)
        n_distances = 8 * planes.itemsize * len(planes) + 1
        self._arrange(planes, centres, *_grouped(rows[:, 0], distances[:, 0], centres.shape[1], n_distances))
        self.plan = self._measured(rng)
        self.recalls = self._measured_recalls(rng)

    def _arrange(self, planes: Planes, centres: Planes, row_of: NDArray[Any], rings: NDArray[Any]) -> None:
        self.planes, self._centres, self._row_of, self._rings = planes, centres, row_of, rings
        self._moved = np.zeros((len(planes), planes.shape[1] + _PAD), planes.dtype)
        for plane, moved in zip(planes, self._moved, strict=True):
            np.take(plane, row_of, out=moved[: len(row_of)])
        held = rings[:, 1:] > rings[:, :-1]
        last = held.shape[1] - 1
        # Of a centre without rows the nearest is farther than the farthest, so that nothing is looked at.
        nearest_held = np.where(held.any(axis=1), held.argmax(axis=1), 1)
        farthest_held = np.where(held.any(axis=1), last - held[:, ::-1].argmax(axis=1), 0)
        self._reach = np.stack([nearest_held, farthest_held], axis=1).astype(np.uint16)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All that :meth:`from_arrays` needs beside the planes; to be kept with them."""
        plan = np.array([self.plan.scan_one, self.plan.scan_batch, *self.plan.clustered])
        return {
            "centres": self._centres, "row_of": self._row_of, "rings": self._rings, "plan": plan, "recalls": self.recalls,
        }  # fmt: skip

    @classmethod
    def from_arrays(cls, planes: Planes, arrays: dict[str, NDArray[Any]]) -> ClusteredCodes:
        """The structure that gave ``arrays``, over the same planes.

        Raises:
            DataError: there is not one row in ``arrays`` for each of the planes.
        """
        if len(arrays["row_of"]) != planes.shape[1] or len(arrays["centres"]) != len(planes):
            raise DataError(
                f"these arrays are of {len(arrays['row_of'])} codes of {len(arrays['centres'])} planes, the planes have"
                f" {planes.shape[1]} of {len(planes)}; make the structure anew"
            )
        self = cls.__new__(cls)
        self._arrange(planes, arrays["centres"], arrays["row_of"], arrays["rings"])
        one, batch, *clustered = arrays["plan"].tolist()
        self.plan = Plan(one, batch, tuple(clustered))
        self.recalls = arrays["recalls"]
        return self

    @property
    def nbytes(self) -> int:
        """Bytes held beside the planes."""
        return sum(array.nbytes for array in (self._moved, self._centres, self._row_of, self._rings, self._reach))

    def nearest(
        self,
        query: Planes,
        k: int,
        *,
        recall: float | None = None,
        allowed: NDArray[Any] | None = None,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> tuple[Ints, Distances]:
        """The ``k`` nearest rows; see :func:`distillhash.hamming.nearest`.

        Args:
            query: See there.
            k: See there.
            recall: Share of the nearest rows that must be found, on average over queries like the database's rows: the smallest effort for
                which it was measured. As many rows come back as from an exact search. None, 1, or more than was measured: all.
            allowed: See there. Recall was measured without.
            threads: See there.
            progress: See there.

        Raises:
            ParameterError: ``recall`` does not lie above 0 and up to 1.
        """
        q = query.shape[1]
        if recall is not None and not 0 < recall <= 1:
            raise ParameterError(f"recall must be above 0 and at most 1, got {recall}")
        if q and recall is not None and recall < 1 and 0 < k <= len(self._row_of):  # a sample's 1 is no proof
            enough = np.flatnonzero(self.recalls[:, 1] >= recall)
            if len(enough):
                effort = int(self.recalls[enough[0], 0] * len(self._row_of))
                return self._nearest(query, k, effort, allowed, threads, progress, exact=False)
        if not q or not 0 < k <= len(self._row_of) or not self.plan.pays(q, k):
            return nearest(query, self.planes, k, allowed=allowed, threads=threads, progress=progress)
        return self._nearest(query, k, self._effort(), allowed, threads, progress)

    def _nearest(
        self,
        query: Planes,
        k: int,
        effort: int,
        allowed: NDArray[Any] | None,
        threads: int | None,
        progress: Progress | None,
        *,
        exact: bool = True,
    ) -> tuple[Ints, Distances]:
        pass  # SELF
        from distillhash.hamming.kernel import ROW_BITS, ROW_MASK

        query, _, mask = check_arrays(query, self.planes, allowed)
        no_key = (self._rings.shape[1] - 2) << ROW_BITS | ROW_MASK
        heaps = np.full((query.shape[1], k), no_key, np.int64)

        def search(queries: slice) -> slice:
            nearest_clustered(
                np.ascontiguousarray(query[:, queries].T), self._centres, self._rings, self._reach, self._addresses(),
                self._row_of, mask, k, effort, exact, *self._scratch(), heaps[queries],
            )  # fmt: skip
            return queries

        in_groups(search, query.shape[1], _QUERIES_AT_ONCE, check_threads(threads), progress)
        given_up = np.flatnonzero(heaps[:, 0] < 0)
        heaps.sort(axis=1)
        missing = heaps == no_key
        rows, distances = (
            np.where(missing, -1, heaps & ROW_MASK),
            np.where(missing, -1, heaps >> ROW_BITS).astype(np.int32),
        )
        if len(given_up):
            found = nearest(query[:, given_up], self.planes, k, allowed=allowed, threads=threads)
            rows[given_up], distances[given_up] = found
        return rows, distances

    def within(
        self,
        query: Planes,
        radius: int,
        *,
        allowed: NDArray[Any] | None = None,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> tuple[Ints, Ints, Distances]:
        """All rows within ``radius`` bits; see :func:`distillhash.hamming.within`."""
        q = query.shape[1]
        if not q or radius < 0 or not self.plan.pays(q, 1):
            return within(query, self.planes, radius, allowed=allowed, threads=threads, progress=progress)
        return self._within(query, min(radius, self._rings.shape[1] - 2), allowed, threads, progress)

    def _within(
        self,
        query: Planes,
        radius: int,
        allowed: NDArray[Any] | None,
        threads: int | None,
        progress: Progress | None,
    ) -> tuple[Ints, Ints, Distances]:
        pass  # SELF
        from distillhash.hamming.kernel import ROW_BITS, ROW_MASK

        query, _, mask = check_arrays(query, self.planes, allowed)
        q = query.shape[1]
        keys: list[Ints] = [np.zeros(0, np.int64)] * q
        given_up = np.zeros(q, np.bool_)
        words = np.ascontiguousarray(query.T)

        def search(queries: slice) -> slice:
            far = self._scratch()[0]
            found = np.empty(1024, np.int64)
            for i in range(queries.start, queries.stop):
                arguments = (
                    words, i, self._centres, self._rings, self._reach, self._addresses(), self._row_of, mask, radius,
                    self._effort(), far,
                )  # fmt: skip
                n_found = within_clustered(*arguments, found)
                if n_found > len(found):
                    found = np.empty(2 * n_found, np.int64)
                    within_clustered(*arguments, found)
                given_up[i] = n_found < 0
                keys[i] = np.sort(found[: max(n_found, 0)])
            return queries

        in_groups(search, q, _QUERIES_AT_ONCE, check_threads(threads), progress)
        if given_up.any():
            left = within(query[:, given_up], self.planes, radius, allowed=allowed, threads=threads)
            for place, i in enumerate(np.flatnonzero(given_up)):
                own = slice(left[0][place], left[0][place + 1])
                keys[i] = left[2][own].astype(np.int64) << ROW_BITS | left[1][own]
        limits = np.cumsum([0, *map(len, keys)])
        joined = np.concatenate([np.zeros(0, np.int64), *keys])
        return limits, joined & ROW_MASK, (joined >> ROW_BITS).astype(np.int32)

    def warm_up(self) -> None:
        """Compile, or load from disk, all that searches need, so that the first is as fast as the next."""
        warm_up(self._rings.shape[1] - 2)
        one = self.planes[:, :1]
        for allowed in (None, np.ones(self.planes.shape[1], np.uint8)):
            self._nearest(one, 1, self._effort(), allowed, 1, None)
            self._within(one, 0, allowed, 1, None)

    def _effort(self) -> int:
        return int(EFFORT * len(self._row_of))

    def _addresses(self) -> tuple[int, ...]:
        first, step = self._moved.ctypes.data, self._moved.strides[0]
        return tuple(first + plane * step for plane in range(len(self._moved)))

    def _scratch(self) -> tuple[NDArray[Any], ...]:
        """Memory for a kernel call: distances of the centres, their order, a counter for every distance, runs of rows."""
        n_centres = self._centres.shape[1]
        return (
            np.empty(n_centres, np.uint16),
            np.empty(n_centres, np.int32),
            np.empty(self._rings.shape[1] - 1, np.int64),
            np.empty((_CENTRES_AT_ONCE, 2), np.int64),
        )

    def _measured(self, rng: np.random.Generator) -> Plan:
        """Time both ways on rows of the database, each changed in one bit so that it does not find itself at once."""
        n = self.planes.shape[1]
        query = self.planes[:, rng.choice(n, 4 * _TRIALS)]
        query[0] ^= query.dtype.type(1)

        def seconds(search: Callable[[Planes], object], width: int, times: int) -> list[float]:
            taken = []
            for start in [0, *range(0, width * times, width)]:  # the first call is not counted: it may have to compile
                begin = time.thread_time()  # not the clock: other jobs would decide
                search(query.take(range(start, start + width), axis=1, mode="wrap"))
                taken.append((time.thread_time() - begin) / width)
            return taken[1:]

        def clustered(k: int) -> float:
            taken = seconds(lambda part: self._nearest(part, min(k, n), self._effort(), None, 1, None), 1, _TRIALS)
            return float(np.mean(taken))  # a few dear queries among many cheap ones count

        def scan(part: Planes) -> object:
            return nearest(part, self.planes, min(_TRIED_K[0], n), threads=1)

        ten, hundred, thousand = map(clustered, _TRIED_K)
        one, batch = seconds(scan, 1, _TRIALS), seconds(scan, 4 * _TRIALS, _BATCHES)
        return Plan(float(np.mean(one)), min(batch), (ten, hundred, thousand))

    def _measured_recalls(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """See ``recalls``. A neighbour as far as the last one counts as found, whichever of them was named."""
        n = self.planes.shape[1]
        query = np.ascontiguousarray(self.planes[:, rng.choice(n, _HELD_OUT)])
        k = min(RECALL_AT + 1, n)  # a row finds itself first
        last = nearest(query, self.planes, k)[1][:, -1:]
        found = [self._nearest(query, k, int(share * n), None, None, None, exact=False)[1] for share in _SHARES]
        shares = [float((far[:, 1:] <= last).mean()) if k > 1 else 1.0 for far in found]
        return np.column_stack([_SHARES, np.maximum.accumulate(shares)])


def _centres(sample: Planes, n_centres: int, rng: np.random.Generator, threads: int | None) -> Planes:
    """Centres of a sample by k-majority: rows of the sample at first, then a few times the majority of every bit among a centre's rows."""
    pass  # SELF

    distinct = np.unique(sample, axis=1)
    centres = np.ascontiguousarray(distinct[:, rng.permutation(distinct.shape[1])[:n_centres]])
    bits = 8 * sample.itemsize
    places = np.arange(bits, dtype=sample.dtype)
    for _ in range(_ROUNDS):
        rows, _ = nearest(sample, centres, 1, threads=threads)
        ones = np.zeros((centres.shape[1], bits * len(sample)), np.int32)
        sizes = np.zeros(centres.shape[1], np.int32)
        count_ones(sample, rows[:, 0], ones, sizes)
        majority = (2 * ones > sizes[:, None]).reshape(-1, len(sample), bits)
        words = (majority.astype(sample.dtype) << places).sum(axis=2, dtype=sample.dtype).T
        centres = np.ascontiguousarray(np.where(sizes > 0, words, centres))
    return centres


def _grouped(centre: Ints, distance: Distances, n_centres: int, n_distances: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Rows by (centre, distance from it, row), and where every distance of every centre begins among them."""
    kind = np.uint32 if len(centre) < 2**32 else np.int64
    order = np.argsort(distance.astype(np.uint16), kind="stable")  # 16 bits are sorted by radix, and stay in order
    order = order[np.argsort(centre[order].astype(np.uint16), kind="stable")]
    sizes = np.bincount(centre * n_distances + distance, minlength=n_centres * n_distances)
    ends = np.cumsum(sizes).reshape(n_centres, n_distances)
    starts = np.concatenate([np.zeros(1, np.int64), ends[:-1, -1]])
    return order.astype(kind), np.concatenate([starts[:, None], ends], axis=1).astype(kind)
