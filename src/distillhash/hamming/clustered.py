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
from distillhash.hamming.planes import Distances, Ints, Planes
from distillhash.hamming.search import Progress, check_arrays, check_threads, in_groups, nearest, warm_up, within

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
        from distillhash.hamming.clustered_kernels import nearest_clustered
        from distillhash.hamming.compiled import ROW_BITS, ROW_MASK

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
        from distillhash.hamming.clustered_kernels import within_clustered
        from distillhash.hamming.compiled import ROW_BITS, ROW_MASK

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
    from distillhash.hamming.clustered_kernels import count_ones

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
