"""How well codes keep the nearest neighbours of the features they were made from. No labels are needed."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from distillhash.codes import Codes, check_same_length
from distillhash.errors import DataError, ParameterError
from distillhash.hamming import ranking

Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]
Ints = NDArray[np.int64]

NEAREST, DEPTHS = 10, (10, 40, 100)
"""What reports call ``neighbour_recall@N``: the 10 nearest, among the first N of these depths."""
_CURVE_POINTS = 40
_PAIR_BLOCK = 1 << 22  # (query, database) pairs held at once: about 100 MB of similarities, distances and bins


class Neighbours(NamedTuple):
    """The nearest by cosine of some queries, to compare many codes with: :func:`find_neighbours`."""

    queries: NDArray[np.intp]  # (m,) rows of the queries that were drawn
    nearest: NDArray[np.intp]  # (m, k) rows of the database, nearest first
    own: NDArray[
        np.intp
    ]  # (m,) the row of the query itself in the database, which is left out of every list; -1: it is not there


def neighbour_recall(
    query_codes: Codes,
    database_codes: Codes,
    query_features: NDArray[Any],
    database_features: NDArray[Any],
    ks: Sequence[int] = (10,),
    depths: Sequence[int] = (10, 100, 1000),
    *,
    same_items: bool | NDArray[np.intp] = False,
    max_queries: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """How many of the k nearest neighbours by cosine of the features are among the first ``depth`` by code.

    The neighbours are exact. Codes of one part are ranked by Hamming distance, codes of two parts by ``both``
    (:mod:`distillhash.hamming.ranking`). Items at one level are tied. Where ``depth`` cuts a tie, each of its items is equally likely to
    be taken, and the recall is the exact expectation over that choice. All-zero features have cosine 0 with everything. Equal cosines at
    the k-th place are cut arbitrarily.

    Args:
        query_codes: ``q`` codes.
        database_codes: ``n`` codes of the same length.
        query_features: ``(q, d)`` floats, the features the query codes were made from; may be a memory map.
        database_features: ``(n, d)`` floats of the database; may be a memory map, read once, block by block.
        ks: Neighbourhood sizes; one larger than the database means all of it.
        depths: Ranking depths to report; one larger than the database means all of it.
        same_items: The queries are the database, row for row; each item is then left out of its own lists. Or ``(q,)`` rows of the
            database that are the queries themselves, -1 where a query is not in it.
        max_queries: With more queries than this, a random sample of them is used. Cost and memory grow with it.
        seed: Draws that sample.

    Returns:
        A JSON-able dictionary: ``recall{k}@{depth}`` for every pair (mean over queries), ``random@{depth}`` (of a random ranking),
        ``curve`` (``depth``, ``random``, and a list ``recall{k}`` for each k; logarithmic depths up to the largest asked for), ``ks``,
        ``depths``, ``n_bits``, ``n_queries`` (those used), ``n_database``.

    Raises:
        DataError: shapes do not match, features are not finite, or there is nothing to rank.
        ParameterError: a ``k``, a depth or ``max_queries`` below 1.
    """
    check_same_length(query_codes, database_codes)
    ks, depths = positive_integers(ks, "k"), positive_integers(depths, "depth")
    if not ks or not depths:
        raise ParameterError(f"neighbour recall needs at least one k and one depth, got {len(ks)} and {len(depths)}")
    sides = (("query", query_codes, query_features), ("database", database_codes, database_features))
    for side, codes, features in sides:
        shape = np.shape(features)
        if len(shape) != 2 or shape[0] != len(codes):
            raise DataError(f"{side} features must be ({len(codes)}, d), one row for each code, got shape {shape}")
    options: dict[str, Any] = {"same_items": same_items, "max_queries": max_queries, "seed": seed}
    neighbours = find_neighbours(query_features, database_features, max(ks), **options)
    counts, nearest = _ranked_levels(query_codes, database_codes, neighbours)

    available = len(database_codes) - int((neighbours.own >= 0).any())
    deepest = min(max(depths), available)
    curve_depths = np.unique(np.geomspace(1, deepest, _CURVE_POINTS).round().astype(np.int64))
    curve: dict[str, list[Any]] = {"depth": curve_depths.tolist(), "random": (curve_depths / available).tolist()}
    result: dict[str, Any] = {f"random@{depth}": min(depth / available, 1.0) for depth in depths}
    for k in ks:
        found = nearest[:, :k]
        result.update({f"recall{k}@{depth}": _expected_recall(counts, found, depth) for depth in depths})
        curve[f"recall{k}"] = [_expected_recall(counts, found, int(depth)) for depth in curve_depths]
    sizes = {"n_bits": query_codes.n_bits, "n_queries": len(nearest), "n_database": len(database_codes)}
    return result | {"curve": curve, "ks": list(ks), "depths": list(depths)} | sizes


def find_neighbours(
    query_features: NDArray[Any],
    database_features: NDArray[Any],
    k: int = NEAREST,
    *,
    same_items: bool | NDArray[np.intp] = False,
    max_queries: int = 1000,
    seed: int = 0,
) -> Neighbours:
    """The exact k nearest (at most all) by cosine; arguments and errors are those of :func:`neighbour_recall`.

    1,000 queries in 59,000 items of 1,280 dimensions take about 5 s on one core.
    """
    query_features, database_features = (np.asanyarray(features) for features in (query_features, database_features))
    positive_integers([max_queries], "max_queries")
    try:
        sampling = np.random.default_rng(seed)
    except (TypeError, ValueError) as error:
        raise ParameterError(f"seed must be an integer of at least 0, got {seed!r:.80}") from error
    for side, features in (("query", query_features), ("database", database_features)):
        if features.dtype.kind not in "fiub":
            raise DataError(f"{side} features must be numbers, got {features.dtype}")
        if features.ndim != 2:
            raise DataError(f"{side} features must be (n, d), got shape {features.shape}")
    if query_features.shape[1] != database_features.shape[1]:
        raise DataError(
            f"query features have {query_features.shape[1]} dimensions and database features "
            f"{database_features.shape[1]}; take both from one backbone"
        )
    own = _own_rows(same_items, len(query_features), len(database_features))
    available = len(database_features) - int((own >= 0).any())
    if available < 1 or not len(query_features):
        raise DataError(
            f"neighbour recall needs a query and an item to rank, got {len(query_features)} queries and {available} items"
        )
    rows = np.arange(len(query_features))
    if len(rows) > max_queries:
        rows = np.sort(sampling.choice(len(rows), max_queries, replace=False))
    nearest = _nearest_rows(_directions(query_features[rows]), database_features, min(k, available), own[rows])
    return Neighbours(rows, nearest, own[rows])


def recall_measures(query_codes: Codes, database_codes: Codes, neighbours: Neighbours) -> dict[str, float]:
    """``neighbour_recall@10``, ``@40``, ``@100``: the share of the neighbours among the first N by code, as :func:`neighbour_recall`."""
    counts, nearest = _ranked_levels(query_codes, database_codes, neighbours)
    return {f"neighbour_recall@{depth}": _expected_recall(counts, nearest, depth) for depth in DEPTHS}


def replicated_neighbours(first: Codes, second: Codes, share: float = 0.05) -> float:
    """How far two hash functions agree about neighbours: expected overlap of an item's nearest ``share`` under one and the other.

    A criterion for choosing settings without labels: train twice on disjoint halves of the images and compare on images that neither
    saw. Neighbours that both find are in the data, not in the sample. docs/distillhash-contrast.md shows how it follows MAP. Compare
    values of one code length and one set of items. Codes of two parts are ranked by ``both`` (:mod:`distillhash.hamming.ranking`).

    Args:
        first: ``n`` codes of the items under one function, at least 2.
        second: ``n`` codes of the same items under the other, of any length.
        share: Part of the other items that counts as near, in (0, 1].

    Returns:
        Mean over items of ``|A and B| / k``, k the rounded share and at least 1. Where a tie is cut it is the exact expectation, the tied
        items equally likely and independent in A and B. Unrelated codes score the share.
    """
    size: Any = share  # of a caller without types
    if not isinstance(size, Real) or not 0 < share <= 1:
        raise ParameterError(f"share must be above 0 and at most 1, got {share!r:.80}")
    n = len(first)
    if n != len(second) or n < 2:
        raise DataError(f"both sides must hold the codes of the same 2 or more items, got {n} and {len(second)}")
    k = max(1, round(share * (n - 1)))
    total = 0.0
    step = max(1, _PAIR_BLOCK // max(n, ranking.cell_count(first), ranking.cell_count(second)))
    for start in range(0, n, step):
        rows = np.arange(start, min(start + step, n))
        total += float((_chances_near(first, rows, k) * _chances_near(second, rows, k)).sum())
    return total / (n * k)


def _chances_near(codes: Codes, rows: NDArray[np.intp], k: int) -> Floats32:
    """The chance of every item to be among the k nearest others of each of ``rows``, ``(len(rows), n)``."""
    cells, own = ranking.cells(codes[rows], codes), np.arange(len(rows))
    counts = _cell_counts(cells, ranking.cell_count(codes))
    counts[own, cells[own, rows]] -= 1
    counts, cells = _leveled(counts, cells, codes.class_bits)
    chances = np.take_along_axis(_chances(counts, k), cells, axis=1).astype(np.float32)
    chances[own, rows] = 0
    return chances


def _cell_counts(cells: Ints, n_cells: int) -> Ints:
    """Items in each cell, ``(q, n_cells)``, from the cells of ``(q, n)`` pairs."""
    flat = (cells + n_cells * np.arange(len(cells))[:, None]).ravel()
    return np.bincount(flat, minlength=len(cells) * n_cells).reshape(-1, n_cells)


def _leveled(counts: Ints, cells: Ints, class_bits: int) -> tuple[Ints, Ints]:
    """Numbers of items by level of the ranking, ``(q, L)``, and the levels of some ``(q, m)`` cells."""
    if not class_bits:  # a cell is a distance
        return counts, cells
    levels = ranking.cell_levels(counts, class_bits)
    return ranking.by_level(levels, counts), np.take_along_axis(levels, cells, axis=1)


def _chances(counts: Ints, depth: int) -> Floats:
    """The chance of an item at each level ``(q, L)`` to be among the first ``depth``, all orders of ties equally likely."""
    before = np.cumsum(counts, axis=1) - counts
    return np.asarray(np.clip((depth - before) / np.maximum(counts, 1), 0.0, 1.0))


def _directions(features: NDArray[Any]) -> Floats32:
    """Rows scaled to length 1; a row of zeros stays zero."""
    # A power of two near the largest entry first, in float64: squaring then neither overflows nor vanishes.
    values = np.asarray(features, np.float64)
    largest = np.abs(values).max(axis=1, keepdims=True, initial=0.0)
    if not np.isfinite(largest).all():
        raise DataError("the features hold NaN or infinite values; remove those items first")
    values = np.ldexp(values, -np.frexp(largest)[1])
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    return np.asarray(values / np.where(lengths > 0, lengths, 1), np.float32)


def _own_rows(same_items: Any, n_queries: int, n_database: int) -> NDArray[np.intp]:
    """The row of every query in the database, -1 where there is none."""
    if isinstance(same_items, bool | np.bool_):
        if same_items and n_queries != n_database:
            raise DataError(f"same_items needs as many queries as database items, got {n_queries} and {n_database}")
        return np.arange(n_queries) if same_items else np.full(n_queries, -1)
    own = np.asarray(same_items)
    if own.shape != (n_queries,) or own.dtype.kind not in "iu" or (own < -1).any() or (own >= n_database).any():
        raise DataError(f"same_items must be True, False, or {n_queries} rows from -1 to {n_database - 1}")
    return own.astype(np.intp)


def _nearest_rows(queries: Floats32, features: NDArray[Any], k: int, own: NDArray[np.intp]) -> NDArray[np.intp]:
    """Rows ``(q, k)`` of the k nearest by cosine, nearest first, without ``own``."""
    q = len(queries)
    cosines, rows = np.empty((q, 0), np.float32), np.empty((q, 0), np.intp)
    step = max(_PAIR_BLOCK // q, 1)
    for start in range(0, len(features), step):
        cosine = queries @ _directions(features[start : start + step]).T
        here = np.flatnonzero((own >= start) & (own < start + cosine.shape[1]))
        cosine[here, own[here] - start] = -np.inf
        block = np.broadcast_to(np.arange(start, start + cosine.shape[1]), cosine.shape)
        cosines, rows = np.hstack([cosines, cosine]), np.hstack([rows, block])
        if cosines.shape[1] > k:
            kept = np.argpartition(cosines, -k, axis=1)[:, -k:]
            cosines = np.take_along_axis(cosines, kept, axis=1)
            rows = np.take_along_axis(rows, kept, axis=1)
    order = np.argsort(-cosines, axis=1, kind="stable")
    return np.take_along_axis(rows, order, axis=1)


def _ranked_levels(query_codes: Codes, database_codes: Codes, neighbours: Neighbours) -> tuple[Ints, Ints]:
    """Items at each level of the ranking, ``(m, L)``, and the levels ``(m, k)`` of the nearest by cosine, for the queries drawn."""
    query_codes = query_codes[neighbours.queries]
    q, n_cells, own, nearest = len(query_codes), ranking.cell_count(query_codes), neighbours.own, neighbours.nearest
    counts, found = np.zeros((q, n_cells), np.int64), np.empty(nearest.shape, np.int64)
    step = max(_PAIR_BLOCK // q, 1)
    for start in range(0, len(database_codes), step):
        cells = ranking.cells(query_codes, database_codes[start : start + step])
        counts += _cell_counts(cells, n_cells)
        stop = start + cells.shape[1]
        here = np.flatnonzero((own >= start) & (own < stop))
        counts[here, cells[here, own[here] - start]] -= 1
        i, j = np.nonzero((nearest >= start) & (nearest < stop))
        found[i, j] = cells[i, nearest[i, j] - start]
    return _leveled(counts, found, query_codes.class_bits)


def _expected_recall(counts: Ints, neighbours: Ints, depth: int) -> float:
    """Mean over queries and neighbours of the chance to be among the first ``depth``."""
    deepest = min(depth, int(counts.sum(axis=1).max()))
    return float(np.mean(np.take_along_axis(_chances(counts, deepest), neighbours, axis=1)))


def positive_integers(values: Iterable[Any], name: str) -> list[int]:
    """``values`` as integers of at least 1, or else a :class:`ParameterError`."""
    try:
        numbers = [operator.index(value) for value in values]
    except TypeError as error:
        raise ParameterError(f"{name} must be integers of at least 1, got {values!r:.80}") from error
    if numbers and min(numbers) < 1:
        raise ParameterError(f"{name} must be at least 1, got {min(numbers)}")
    return numbers
