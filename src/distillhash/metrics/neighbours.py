"""How well codes keep the nearest neighbours of the features they were made from. No labels are needed."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash.codes import Codes, check_same_length, hamming_distances
from distillhash.errors import DataError, ParameterError
from distillhash.metrics.retrieval import positive_integers

Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]
Ints = NDArray[np.int64]

_CURVE_POINTS = 40
_PAIR_BLOCK = 1 << 22  # (query, database) pairs held at once: about 100 MB of similarities, distances and bins


def neighbour_recall(
    query_codes: Codes,
    database_codes: Codes,
    query_features: NDArray[Any],
    database_features: NDArray[Any],
    ks: Sequence[int] = (10,),
    depths: Sequence[int] = (10, 100, 1000),
    *,
    same_items: bool = False,
    max_queries: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """How many of the k nearest neighbours by cosine of the features are among the first ``depth`` by Hamming distance.

    The neighbours are exact. Items at one Hamming distance are tied. Where ``depth`` cuts a tie, each of its items is equally likely to
    be taken, and the recall is the exact expectation over that choice. All-zero features have cosine 0 with everything. Equal cosines at
    the k-th place are cut arbitrarily.

    Args:
        query_codes: ``q`` codes.
        database_codes: ``n`` codes of the same length.
        query_features: ``(q, d)`` floats, the features the query codes were made from; may be a memory map.
        database_features: ``(n, d)`` floats of the database; may be a memory map, read once, block by block.
        ks: Neighbourhood sizes; one larger than the database means all of it.
        depths: Ranking depths to report; one larger than the database means all of it.
        same_items: The queries are the database, row for row; each item is then left out of its own lists.
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
    query_features, database_features = (np.asanyarray(features) for features in (query_features, database_features))
    ks, depths = positive_integers(ks, "k"), positive_integers(depths, "depth")
    positive_integers([max_queries], "max_queries")
    try:
        sampling = np.random.default_rng(seed)
    except (TypeError, ValueError) as error:
        raise ParameterError(f"seed must be an integer of at least 0, got {seed!r:.80}") from error
    if not ks or not depths:
        raise ParameterError(f"neighbour recall needs at least one k and one depth, got {len(ks)} and {len(depths)}")
    sides = (("query", query_codes, query_features), ("database", database_codes, database_features))
    for side, codes, features in sides:
        if features.dtype.kind not in "fiub":
            raise DataError(f"{side} features must be numbers, got {features.dtype}")
        if features.ndim != 2 or len(features) != len(codes):
            raise DataError(
                f"{side} features must be ({len(codes)}, d), one row for each code, got shape {features.shape}"
            )
    if query_features.shape[1] != database_features.shape[1]:
        raise DataError(
            f"query features have {query_features.shape[1]} dimensions and database features "
            f"{database_features.shape[1]}; take both from one backbone"
        )
    if same_items and len(query_codes) != len(database_codes):
        raise DataError(
            f"same_items needs as many queries as database items, got {len(query_codes)} and {len(database_codes)}"
        )
    available = len(database_codes) - int(same_items)
    if available < 1 or not len(query_codes):
        raise DataError(
            f"neighbour recall needs a query and an item to rank, got {len(query_codes)} queries and {available} items"
        )

    rows = np.arange(len(query_codes))
    if len(rows) > max_queries:
        rows = np.sort(sampling.choice(len(rows), max_queries, replace=False))
    widths = {k: min(k, available) for k in ks}
    own = rows if same_items else None
    queries, widest = _directions(query_features[rows]), max(widths.values())
    counts, nearest = _ranked_levels(query_codes[rows], database_codes, queries, database_features, widest, own)

    deepest = min(max(depths), available)
    curve_depths = np.unique(np.geomspace(1, deepest, _CURVE_POINTS).round().astype(np.int64))
    curve: dict[str, list[Any]] = {"depth": curve_depths.tolist(), "random": (curve_depths / available).tolist()}
    result: dict[str, Any] = {f"random@{depth}": min(depth / available, 1.0) for depth in depths}
    for k, width in widths.items():
        found = nearest[:, :width]
        result.update({f"recall{k}@{depth}": _expected_recall(counts, found, depth) for depth in depths})
        curve[f"recall{k}"] = [_expected_recall(counts, found, int(depth)) for depth in curve_depths]
    sizes = {"n_bits": query_codes.n_bits, "n_queries": len(rows), "n_database": len(database_codes)}
    return result | {"curve": curve, "ks": list(ks), "depths": list(depths)} | sizes


def replicated_neighbours(first: Codes, second: Codes, share: float = 0.05) -> float:
    """How far two hash functions agree about neighbours: expected overlap of an item's nearest ``share`` under one and the other.

    A criterion for choosing settings without labels: train twice on disjoint halves of the images and compare on images that neither
    saw. Neighbours that both find are in the data, not in the sample. docs/distillhash-contrast.md shows how it follows MAP. Compare
    values of one code length and one set of items.

    Args:
        first: ``n`` codes of the items under one function, at least 2.
        second: ``n`` codes of the same items under the other, of any length.
        share: Part of the other items that counts as near, in (0, 1].

    Returns:
        Mean over items of |A and B| / k, k the rounded share and at least 1. Where a tie is cut it is the exact expectation, the tied
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
    step = max(1, _PAIR_BLOCK // n)
    for start in range(0, n, step):
        rows = np.arange(start, min(start + step, n))
        total += float((_chances_near(first, rows, k) * _chances_near(second, rows, k)).sum())
    return total / (n * k)


def _chances_near(codes: Codes, rows: NDArray[np.intp], k: int) -> Floats32:
    """The chance of every item to be among the k nearest others of each of ``rows``, ``(len(rows), n)``."""
    distances = hamming_distances(codes[rows], codes).astype(np.int64)
    own = np.arange(len(rows))
    distances[own, rows] = codes.n_bits + 1  # after everything else
    levels = codes.n_bits + 2
    counts = np.bincount((own[:, None] * levels + distances).ravel(), minlength=len(rows) * levels).reshape(-1, levels)
    return np.take_along_axis(_chances(counts, k), distances, axis=1).astype(np.float32)


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


def _ranked_levels(
    query_codes: Codes, database_codes: Codes, queries: Floats32, features: NDArray[Any], k: int, own: Ints | None
) -> tuple[Ints, Ints]:
    """Items at each distance ``(q, K + 1)``, and the distances ``(q, k)`` of the k nearest by cosine, nearest first.

    ``own`` names the database row of each query that is left out, or is None.
    """
    q, levels = len(query_codes), query_codes.n_bits + 1
    counts = np.zeros((q, levels), np.int64)
    cosines, distances = np.empty((q, 0), np.float32), np.empty((q, 0), np.int64)
    step = max(_PAIR_BLOCK // q, 1)
    for start in range(0, len(database_codes), step):
        block = slice(start, start + step)
        near = hamming_distances(query_codes, database_codes[block]).astype(np.int64)
        cosine = queries @ _directions(features[block]).T
        counts += np.bincount((near + levels * np.arange(q)[:, None]).ravel(), minlength=q * levels).reshape(q, levels)
        if own is not None:
            here = np.flatnonzero((own >= start) & (own < start + step))
            cosine[here, own[here] - start] = -np.inf
            counts[here, near[here, own[here] - start]] -= 1
        cosines, distances = np.hstack([cosines, cosine]), np.hstack([distances, near])
        if cosines.shape[1] > k:
            kept = np.argpartition(cosines, -k, axis=1)[:, -k:]
            cosines = np.take_along_axis(cosines, kept, axis=1)
            distances = np.take_along_axis(distances, kept, axis=1)
    order = np.argsort(-cosines, axis=1, kind="stable")
    return counts, np.take_along_axis(distances, order, axis=1)


def _expected_recall(counts: Ints, neighbours: Ints, depth: int) -> float:
    """Mean over queries and neighbours of the chance to be among the first ``depth``."""
    deepest = min(depth, int(counts[0].sum()))
    return float(np.mean(np.take_along_axis(_chances(counts, deepest), neighbours, axis=1)))
