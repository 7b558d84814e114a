"""How many bytes a vector needs: neighbour recall of codes and of FAISS's compressors on the user's own embeddings, without labels.

Of equal rows one is kept, so that no copy of a row stands on the other side of the split. The rows that are left are split by a seed into
queries (a fifth, at most 1,000), training rows (half of the others, at most 20,000) and the database (all others). Nothing is measured on a
row that was learned from. The neighbours are the 10 nearest of a query in the database by the exact cosine of the embeddings.

Every code is searched in four forms: by Hamming distance (``symmetric``); the nearest 1,000 put in order by the query's projection
(``asymmetric``) or by the features that the decoder makes of their codes (``decoder``); the nearest 100 put in order by vectors of one byte
a dimension that are kept beside the codes (``int8 kept``, d bytes more). They are the forms of ``search --rerank``.
"""

from __future__ import annotations

import shlex
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from distillhash.codes import Codes, bytes_per_code, hamming_distances
from distillhash.errors import DataError, DistillHashError, first_line
from distillhash.hamming import nearest, planes_of, ranking, warm_up
from distillhash.index.base import quantise
from distillhash.methods import make_hasher
from distillhash.methods.base import Hasher, TrainingSet
from distillhash.methods.registry import DEFAULT_METHOD
from distillhash.output import Progress
from distillhash.search import cosines, projection_scores

Floats32 = NDArray[np.float32]

K = 10
DEPTHS = (10, 100)
LENGTHS = (64, 128, 256, 512, 1024)
METHODS = tuple(dict.fromkeys(("itq", DEFAULT_METHOD)))
SYMMETRIC, ASYMMETRIC, DECODER, KEPT = "symmetric", "asymmetric", "decoder", "int8 kept"
RERANK = {ASYMMETRIC: "projection", DECODER: "decoder", KEPT: "vectors"}  # what ``search --rerank`` calls them
CANDIDATES = {ASYMMETRIC: 1000, DECODER: 1000, KEPT: 100}
FLOATS = "float32"
NO_FAISS = "FAISS is not installed, so PQ, OPQ, RaBitQ and int8 are left out: pip install 'distillhash[faiss]'"
_MOST_QUERIES, _MOST_TRAIN, _FEWEST = 1000, 20_000, 50
_QUERIES_AT_ONCE, _TIMED = 32, 20
_FEWEST_FOR_PQ = 256  # its codebooks have 256 entries
_RABITQ_EXTRA = 8  # bytes of two floats beside the bits of a one-bit code


@dataclass(frozen=True)
class Cell:
    """One way to compress, measured: a line of the table. Recall is a mean over queries, ties in expectation."""

    method: str
    form: str
    n_bits: int | None  # of the code; None for what is not one of our codes
    n_bytes: int  # a vector, kept vectors included
    recalls: tuple[float, float]  # neighbour recall@10 and @100
    fit_seconds: float
    encode_us: float  # a vector
    search_ms: float  # a query, asked alone, the 100 nearest of the database
    spread: float = 0.0  # sample standard deviation of recall@10 over seeds

    @property
    def name(self) -> str:
        """Method and form, for tables."""
        return f"{self.method}, {self.form}" if self.form else self.method

    @property
    def is_ours(self) -> bool:
        """Whether ``train``, ``index`` and ``search`` give it."""
        return self.method in METHODS

    def record(self) -> dict[str, Any]:
        """JSON-able."""
        named: dict[str, Any] = {"method": self.method, "form": self.form, "n_bits": self.n_bits, "bytes": self.n_bytes}
        named |= {f"recall@{depth}": value for depth, value in zip(DEPTHS, self.recalls, strict=True)}
        named |= {"recall@10_std": self.spread, "fit_seconds": self.fit_seconds}
        return named | {"encode_us": self.encode_us, "search_ms": self.search_ms}


class Parts(NamedTuple):
    """Disjoint rows of one array: what is learned from, what is searched, and what is asked."""

    train: Floats32
    database: Floats32
    query: Floats32

    def sizes(self) -> dict[str, int]:
        """Rows of each part, and the width."""
        names = ("n_train", "n_database", "n_queries")
        return {**dict(zip(names, map(len, self), strict=True)), "dimensions": self.train.shape[1]}


def split(features: NDArray[Any], seed: int) -> Parts:
    """Split ``(n, d)`` finite features as the module says; :class:`DataError` for fewer than 50 different rows."""
    rows = np.ascontiguousarray(features, np.float32) + np.float32(0)  # -0 becomes 0
    whole_rows = rows.view(np.dtype((np.void, rows.shape[1] * rows.itemsize))).ravel()
    first = np.sort(np.unique(whole_rows, return_index=True)[1])
    if len(first) < _FEWEST:
        raise DataError(
            f"advice needs at least {_FEWEST} different rows, got {len(first)} of {len(rows)}; give more items"
        )
    order = np.random.default_rng(seed).permutation(first)
    n_queries = min(_MOST_QUERIES, len(order) // 5)
    n_train = min(_MOST_TRAIN, (len(order) - n_queries) // 2)
    query, train, database = np.split(order, [n_queries, n_queries + n_train])
    return Parts(rows[np.sort(train)], rows[np.sort(database)], rows[query])


def measure(parts: Parts, *, seed: int = 0, progress: bool = False) -> tuple[list[Cell], list[str]]:
    """The table, and a sentence for everything that had to be left out. ``seed`` is that of the methods."""
    d = parts.train.shape[1]
    lengths = sorted({n for n in LENGTHS if n <= d} | ({d} if d < LENGTHS[-1] else set()))
    hashers: list[Hasher] = [Sign(d, raw=raw) for raw in (False, True) if d <= 4096]
    hashers += [make_hasher(method, n, seed=seed) for method in METHODS for n in lengths]
    refused, notes = list[str](), list[str]()
    faiss: Any = None
    try:
        faiss = import_module("faiss")
    except ImportError:
        notes.append(NO_FAISS)
    kinds = [] if faiss is None else list(_faiss_kinds(d, len(parts.train)))
    truth = _Truth(parts)
    cells = [truth.floats()]
    with Progress("measuring", len(hashers) + len(kinds), unit="compressors", quiet=not progress) as shown:
        for hasher in hashers:
            try:
                cells += _measure_codes(hasher, parts, truth)
            except DistillHashError as error:
                refused.append(f"{hasher.method} with {hasher.n_bits} bits is left out: {error}")
            shown.advance(1)
        for kind in kinds:
            try:
                cells.append(_measure_faiss(faiss, kind, parts, truth))
            except Exception as error:  # a version without it, or what its C++ refuses
                notes.append(f"FAISS's {kind.name} is left out: {first_line(error)}")
            shown.advance(1)
    if not any(cell.is_ours for cell in cells):
        raise DataError(f"no method can learn from these items; {refused[-1]}")
    return cells, refused + notes


def mean_of(tables: Sequence[Sequence[Cell]]) -> list[Cell]:
    """One table from those of several seeds: means, and the spread of recall@10. What not every seed has is left out."""
    groups: dict[tuple[str, str, int], list[Cell]] = defaultdict(list)
    for cell in (cell for table in tables for cell in table):
        groups[cell.method, cell.form, cell.n_bytes].append(cell)
    averaged = []
    for cells in groups.values():
        if len(cells) == len(tables):
            recalls = np.array([cell.recalls for cell in cells])
            names = ("fit_seconds", "encode_us", "search_ms")
            means: dict[str, Any] = {name: float(np.mean([getattr(c, name) for c in cells])) for name in names}
            spread = float(recalls[:, 0].std(ddof=1)) if len(cells) > 1 else 0.0
            found = recalls.mean(axis=0).tolist()
            averaged.append(replace(cells[0], recalls=tuple(found), spread=spread, **means))
    return averaged


class Sign(Hasher):
    """One bit a dimension: the sign of the centred embedding, or of the ``raw`` one, as sentence-transformers quantises to binary."""

    method = "sign"
    ARRAYS: ClassVar[dict[str, str]] = {"mean": "d"}
    raw: bool = False

    def _fit(self, given: TrainingSet) -> None:
        self.mean_ = given.features.mean(axis=0, dtype=np.float64) * (not self.raw)

    def _project(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(features - self.mean_)


class _Truth:
    """The nearest rows of the database by cosine, and how many of them a ranking finds."""

    def __init__(self, parts: Parts) -> None:
        self.query, self.database = unit_rows(parts.query), unit_rows(parts.database)
        self.n, self.k = len(self.database), min(K, len(self.database))
        found = [np.argpartition(-self.cosines(block), self.k - 1, axis=1)[:, : self.k] for block in self.blocks()]
        self.nearest = np.concatenate(found)
        self.kept = quantise(parts.database, "int8")  # as an index keeps them
        self.kept_unit = unit_rows(self.kept.astype(np.float32))

    def blocks(self) -> Iterator[slice]:
        for start in range(0, len(self.query), _QUERIES_AT_ONCE):
            yield slice(start, min(start + _QUERIES_AT_ONCE, len(self.query)))

    def cosines(self, block: slice) -> Floats32:
        return np.asarray(self.query[block] @ self.database.T)

    def found(self, scores: NDArray[Any], block: slice) -> NDArray[np.float64]:
        """Neighbours among the first 10 and 100 by ``scores (b, n)``, larger first, tied rows in expectation: a sum, ``(2,)``."""
        total = np.zeros(len(DEPTHS))
        for row, near in zip(scores, self.nearest[block], strict=True):
            before, tied = ((row > row[near, None]).sum(axis=1), (row == row[near, None]).sum(axis=1))
            total += [np.clip((depth - before) / tied, 0, 1).sum() for depth in DEPTHS]
        return total

    def floats(self) -> Cell:
        """The embeddings themselves."""

        def search(i: int) -> Any:
            return _first(self.database @ self.query[i])

        total = sum(self.found(self.cosines(block), block) for block in self.blocks()) / self.nearest.size
        return Cell(FLOATS, "", None, 4 * self.database.shape[1], _pair(total), 0.0, 0.0, _search_ms(search, self))


def unit_rows(rows: NDArray[Any]) -> Floats32:
    """Rows of length 1; a row of zeros stays one."""
    lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))[:, None]
    unit = np.zeros(rows.shape, np.float32)
    np.divide(rows, lengths, out=unit, where=lengths > 0, casting="same_kind")
    return unit


def _pair(values: Any) -> tuple[float, float]:
    return float(values[0]), float(values[1])


def _first(scores: NDArray[Any]) -> NDArray[np.intp]:
    """The 100 largest of one query, in order."""
    best = np.argpartition(-scores, min(DEPTHS[1], len(scores)) - 1)[: DEPTHS[1]]
    return np.asarray(best[np.argsort(-scores[best])])


def _search_ms(search: Callable[[int], Any], truth: _Truth) -> float:
    """Median milliseconds of one query."""
    times = []
    for i in range(min(_TIMED, len(truth.query))):
        started = time.perf_counter()
        search(i)
        times.append(time.perf_counter() - started)
    return 1000 * float(np.median(times))


def _keys(query: Codes, database: Codes) -> NDArray[np.int64]:
    """What orders the database by Hamming distance, smaller first; codes of two parts by their ranking of the nearest."""
    distances = hamming_distances(query, database).astype(np.int64)
    if not query.class_bits:
        return distances
    kind = hamming_distances(ranking.class_part(query), ranking.class_part(database)).astype(np.int64)
    return ranking.weighted(distances, kind, ranking.HEAD_WEIGHTS) * (query.n_bits + 1) + kind


def _measure_codes(hasher: Hasher, parts: Parts, truth: _Truth) -> list[Cell]:
    """All forms of one hash function."""
    started = time.perf_counter()
    hasher.fit(parts.train)
    fitted = time.perf_counter()
    database = hasher.encode(parts.database)
    encoded = time.perf_counter()
    query, projections = hasher.encode(parts.query), hasher.project(parts.query)
    signs, rebuilt = database.signs().astype(np.float32), unit_rows(hasher.reconstruct(database))
    scores: dict[str, Callable[[slice], Floats32]] = {
        ASYMMETRIC: lambda block: projections[block] @ signs.T,
        DECODER: lambda block: truth.query[block] @ rebuilt.T,
        KEPT: lambda block: truth.query[block] @ truth.kept_unit.T,
    }
    totals = {form: np.zeros(len(DEPTHS)) for form in (SYMMETRIC, *scores)}
    for block in truth.blocks():
        keys = _keys(query[block], database)
        totals[SYMMETRIC] += truth.found(-keys, block)
        order = keys * truth.n + np.arange(truth.n)  # equal distances by ascending row, as a search gives them
        for form, score in scores.items():
            values = score(block)
            if CANDIDATES[form] < truth.n:
                others = np.argpartition(order, CANDIDATES[form], axis=1)[:, CANDIDATES[form] :]
                np.put_along_axis(values, others, np.float32(-np.inf), axis=1)
            totals[form] += truth.found(values, block)
    planes = planes_of(database)
    class_bits: int = database.class_bits
    warm_up(database.n_bits, class_bits=class_bits)

    def candidates(i: int, form: str) -> NDArray[Any]:
        wanted = min(CANDIDATES.get(form, DEPTHS[1]), truth.n)
        by: ranking.By = "nearest" if class_bits else "both"
        return np.asarray(nearest(planes_of(query[i]), planes, wanted, class_bits=class_bits, by=by)[0][0])

    searches: dict[str, Callable[[int, NDArray[Any]], Any]] = {
        SYMMETRIC: lambda _, rows: rows,
        ASYMMETRIC: lambda i, rows: _first(projection_scores(projections[i], database[rows])),
        DECODER: lambda i, rows: _first(hasher.decoder.cosines(parts.query[i : i + 1], database[rows])[0]),
        KEPT: lambda i, rows: _first(cosines(parts.query[i], truth.kept[rows].astype(np.float32))),
    }
    name = "sign, raw" if getattr(hasher, "raw", False) else hasher.method
    size, width = bytes_per_code(hasher.n_bits), parts.train.shape[1]
    encode_us = 1e6 * (encoded - fitted) / truth.n
    return [
        Cell(
            name,
            form,
            hasher.n_bits,
            size + width * (form == KEPT),
            _pair(total / truth.nearest.size),
            fitted - started,
            encode_us,
            _search_ms(lambda i, form=form: searches[form](i, candidates(i, form)), truth),  # type: ignore[misc]
        )
        for form, total in totals.items()
    ]


class _FaissKind(NamedTuple):
    """One compressor of FAISS: PQ and OPQ by bytes, RaBitQ by bits and by the dimensions it is given, int8."""

    method: str
    form: str
    size: int

    @property
    def name(self) -> str:
        return f"{self.method} {self.form}".strip() if self.form else f"{self.method} of {self.size} bytes"


def _faiss_kinds(d: int, n_train: int) -> Iterator[_FaissKind]:
    sizes = [n // 8 for n in LENGTHS]
    if n_train >= _FEWEST_FOR_PQ:
        for method in ("PQ", "OPQ"):
            yield from (_FaissKind(method, "", size) for size in sizes if size <= d)
    for size in sizes:
        if 0 < 8 * (size - _RABITQ_EXTRA) < min(d, n_train):
            yield _FaissKind("RaBitQ", f"1 bit of {8 * (size - _RABITQ_EXTRA)} PCA dimensions", size)
    for bits in (1, 2, 3, 4):
        yield _FaissKind("RaBitQ", f"{bits} bit{'s' * (bits > 1)}", bits)
    yield _FaissKind("int8", "", d)


def _make_faiss(faiss: Any, kind: _FaissKind, d: int) -> tuple[Any, int, Any]:
    """An untrained index, its bytes a vector, and what must live as long. Rows have length 1, so that distances order as cosines do."""
    if kind.method in ("PQ", "OPQ"):
        inner = min(4 * kind.size, d) if kind.method == "OPQ" else d  # 4 dimensions a byte, as its authors advise
        index = faiss.IndexPQ(inner, kind.size, 8, faiss.METRIC_L2)
        index.pq.cp.min_points_per_centroid = 1  # no warning on the terminal
        if kind.method == "PQ":
            return index, kind.size, None
        rotation = faiss.OPQMatrix(d, kind.size, inner)
        rotation.niter, rotation.niter_pq = 10, 1  # more changed recall by less than .01, at up to 15 times the time
        quantiser = faiss.ProductQuantizer(inner, kind.size, 8)
        quantiser.cp.min_points_per_centroid = 1
        rotation.pq = quantiser
        return faiss.IndexPreTransform(rotation, index), kind.size, quantiser  # to which the rotation only points
    if kind.method == "int8":
        return faiss.IndexScalarQuantizer(d, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_L2), d, None
    reduced = "PCA" in kind.form
    width, bits = (8 * (kind.size - _RABITQ_EXTRA), 1) if reduced else (d, kind.size)
    index = faiss.IndexRaBitQ(width, faiss.METRIC_L2, bits) if bits > 1 else faiss.IndexRaBitQ(width)
    rotation = faiss.PCAMatrix(d, width, 0, True) if reduced else faiss.RandomRotationMatrix(d, width)
    return faiss.IndexPreTransform(rotation, index), index.code_size, None


def _measure_faiss(faiss: Any, kind: _FaissKind, parts: Parts, truth: _Truth) -> Cell:
    width = truth.database.shape[1]
    pad = -width % kind.size if kind.method in ("PQ", "OPQ") else 0  # a byte for each of equal parts
    train, database, query = (
        np.pad(rows, ((0, 0), (0, pad))) for rows in (unit_rows(parts.train), truth.database, truth.query)
    )
    index, size, _held = _make_faiss(faiss, kind, width + pad)
    started = time.perf_counter()
    index.train(train)
    fitted = time.perf_counter()
    index.add(database)
    added = time.perf_counter()
    wanted = min(DEPTHS[1], truth.n)
    rows = index.search(query, wanted)[1]
    hits = (rows[:, :, None] == truth.nearest[:, None, :]).any(axis=2)
    recalls = [hits[:, :depth].sum() / truth.nearest.size for depth in DEPTHS]
    search_ms = _search_ms(lambda i: index.search(query[i : i + 1], wanted), truth)
    encode_us = 1e6 * (added - fitted) / truth.n
    return Cell(kind.method, kind.form, None, size, _pair(recalls), fitted - started, encode_us, search_ms)


class Advice(NamedTuple):
    """What to take, why, and whether something of the table is better at it."""

    cell: Cell
    sentence: str
    others: str


def advise(cells: Sequence[Cell], *, recall: float | None = None, n_bytes: int | None = None, n_items: int) -> Advice:
    """The fewest bytes of ours that reach ``recall``, or the best recall in ``n_bytes``; ``n_items`` is the size of the database."""
    ours = [cell for cell in cells if cell.is_ours]
    others = [cell for cell in cells if not cell.is_ours and cell.method != FLOATS]
    if recall is not None:
        fits = [cell for cell in ours if cell.recalls[0] >= recall]
        cell = min(fits, key=_by_bytes) if fits else min(ours, key=_by_recall)
        target = (
            f"For a recall of {recall:g}" if fits else f"Nothing of ours reaches a recall of {recall:g}; the nearest is"
        )
        better = [o for o in others if o.recalls[0] >= recall and (not fits or o.n_bytes < cell.n_bytes)]
        best = min(better, key=_by_bytes, default=None)
        claim = "reaches it in fewer bytes" if fits else "reaches it"
    else:
        assert n_bytes is not None
        fits = [cell for cell in ours if cell.n_bytes <= n_bytes]
        cell = min(fits or ours, key=_by_recall if fits else _by_bytes)
        target = f"In {n_bytes} bytes" if fits else f"Nothing of ours takes {n_bytes} bytes; the smallest is"
        better = [o for o in others if o.n_bytes <= n_bytes and (not fits or o.recalls[0] > cell.recalls[0])]
        best = min(better, key=_by_recall, default=None)
        claim = "finds more in as many bytes" if fits else "is that small"
    share = next(c.n_bytes for c in cells if c.method == FLOATS) / cell.n_bytes
    sentence = (
        f"{target}{',' if fits else ''} {cell.method} with {cell.n_bits} bits, {_searched(cell)}: {cell.n_bytes} bytes a vector "
        f"({share:.3g} times less than float32), neighbour recall@10 {cell.recalls[0]:.3f}; {cell.encode_us:.3g} us to encode a vector, "
        f"{cell.search_ms:.2g} ms to search {n_items:,} items."
    )
    if best is None:
        return Advice(cell, sentence, f"Nothing else in the table {claim}." if others else "")
    whose = "" if best.method.startswith("sign") else "FAISS's "
    found = f"{best.n_bytes} bytes, recall@10 {best.recalls[0]:.3f}"
    return Advice(cell, sentence, f"{whose}{best.name} {claim}: {found}.")


def _by_bytes(cell: Cell) -> tuple[float, float]:
    return cell.n_bytes, -cell.recalls[0]


def _by_recall(cell: Cell) -> tuple[float, float]:
    return -cell.recalls[0], cell.n_bytes


def _searched(cell: Cell) -> str:
    """How a form is searched, in words."""
    words = {
        SYMMETRIC: "by Hamming distance",
        ASYMMETRIC: "re-ranked by projection",
        DECODER: "re-ranked by the decoder",
    }
    return words.get(cell.form, "re-ranked by int8 vectors kept beside the codes")


def commands(cell: Cell, source: Sequence[str], options: Sequence[str] = ()) -> list[str]:
    """The command lines that give a cell of ours, whether or not training on all items gives two parts: the first 10 are the same.

    ``source`` is a SOURCE and the options that read it, ``options`` go to ``train``.
    """
    place, more = shlex.join(source), f" {shlex.join(options)}" if options else ""
    method = "" if cell.method == DEFAULT_METHOD else f" --method {cell.method}"
    keep = " --keep-vectors int8" if cell.form == KEPT else ""
    by = RERANK.get(cell.form)
    rerank = f" --rerank {by} --candidates {CANDIDATES[cell.form]}" if by else ""
    return [
        f"distillhash train {place}{method} --bits {cell.n_bits}{more} --out model",
        f"distillhash index {place} --model model --index my.index{keep}",
        f"distillhash search QUERIES --index my.index -k 10{rerank}",
    ]


def versus(cells: Sequence[Cell]) -> list[tuple[Cell, Cell | None]]:
    """Every compressor that is not ours, with the best of ours in at most as many bytes."""
    ours = [cell for cell in cells if cell.is_ours]
    others = sorted((cell for cell in cells if not cell.is_ours and cell.method != FLOATS), key=_by_bytes)
    return [
        (cell, min((own for own in ours if own.n_bytes <= cell.n_bytes), key=_by_recall, default=None))
        for cell in others
    ]
