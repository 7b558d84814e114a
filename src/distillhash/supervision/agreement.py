"""Neighbours whose neighbourhoods agree, in a metric that ignores what augmentation changes.

No step sees a label. Rows become their square roots, of unit length. Directions are weighted by how much of their variance survives
augmentation. Two items count as near when their lists of nearest neighbours overlap.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash.pytorch import torch
from distillhash.supervision.neighbours import nearest_neighbours
from distillhash.supervision.similarity import Floats, cosine_distances, row_blocks, unit_rows

Scatter = NDArray[np.float64]
_PAIRS = 50_000_000  # cosines held at once
RECOGNISED = 0.9
"""From this share on, codes were no better with views (results/view-choice); see :func:`recognised_views`."""
ASKED = 500  # images of which that share is taken


def root_rows(features: NDArray[Any]) -> NDArray[Any]:
    """The Hellinger map sign(x) sqrt(|x| / sum |x|): rows of length 1, in the dtype of ``features``; a row of zeros stays zero.

    It keeps a few large activations from deciding every distance (Perronnin et al., ECCV 2010; Arandjelovic, Zisserman, CVPR 2012).
    """
    roots = np.abs(features)
    sums = roots.sum(axis=1, keepdims=True)
    roots /= np.where(sums > 0, sums, 1)  # in place, because the array may take gigabytes
    return np.asarray(np.copysign(np.sqrt(roots, out=roots), features, out=roots))


class RootRows(torch.nn.Module):
    """:func:`root_rows` with a gradient, for a head on top of a trainable backbone."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """``(b, d)`` to ``(b, d)``."""
        magnitudes = features.abs()
        shares = magnitudes / magnitudes.sum(dim=1, keepdim=True).clamp(min=1e-12)
        return features.sign() * (shares + 1e-12).sqrt()  # the root's slope at 0 is infinite


def scatter_of_items(features: Floats) -> Scatter:
    """Covariance ``(d, d)`` of rows ``(n, d)``, divided by n - 1."""
    mean = features.mean(axis=0, dtype=np.float64)
    scatter = np.zeros((features.shape[1],) * 2)
    for block in row_blocks(len(features)):
        off = features[block] - mean
        scatter += off.T @ off
    return scatter / (len(features) - 1)


def scatter_of_views(mean: Floats, copies: Iterable[Floats]) -> Scatter:
    """Within-image scatter ``(d, d)``: mean outer product of the images' copies, ``(n, d)`` each, about their means ``(n, d)``."""
    scatter, count = np.zeros((mean.shape[1],) * 2), 0
    for rows in copies:
        off = (rows - mean).astype(np.float64)
        scatter += off.T @ off
        count += len(rows)
    return scatter / count


def scatter_of_neighbours(features: Floats, neighbours: NDArray[np.int32]) -> Scatter:
    """Half the mean outer product ``(d, d)`` of the differences between items and their neighbours ``(n, m)``."""
    scatter = np.zeros((features.shape[1],) * 2)
    for column in neighbours.T:
        off = (features - features[column]).astype(np.float64)
        scatter += off.T @ off
    return scatter / (2 * neighbours.size)


def invariant_metric(
    total: Scatter, within: Scatter, *, directions: int, emphasis: float = 0.25, ridge: float = 0.5
) -> Scatter:
    """Directions in which items differ more than the views of one item do, weighted by how much more.

    Solves ``total w = lambda within w`` with ``w' within w = 1`` and scales each direction by ``(lambda - 1)^emphasis``: a linear
    discriminant whose classes are the images themselves. Of ``(d, d)`` scatters, ``(d, m)`` for the at most ``directions`` largest lambda;
    distances are measured between ``features @ metric``. A ``ridge`` relative to the mean variance keeps directions without
    variance from exploding.
    """
    from scipy.linalg import eigh

    d = len(total)
    total, within = (s + (ridge * np.trace(s) / d or 1.0) * np.eye(d) for s in (total, within))
    kept = min(directions, d)
    ratios, vectors = eigh(total, within, subset_by_index=[d - kept, d - 1])
    return np.asarray(vectors[:, ::-1] * np.maximum(ratios[::-1] - 1, 1e-6) ** emphasis)


def random_parts(n: int, most: int, share: float, seed: int) -> tuple[list[NDArray[np.intp]], int]:
    """Random parts of at most ``most`` of ``n`` rows, each ascending, and ``share`` of the smallest: a neighbourhood, at least 5 rows."""
    parts = np.array_split(np.random.default_rng(seed).permutation(n), -(-n // most))
    smallest = min(len(part) for part in parts)
    return [np.sort(part) for part in parts], min(max(5, round(share * smallest)), smallest - 1)


def agreeing_neighbours(features: NDArray[Any], n_listed: int, n_kept: int) -> NDArray[np.int32]:
    """The ``n_kept`` items of largest overlap with each item's list of ``n_listed`` cosine neighbours, ``(n, n_kept)``, nearest first.

    With ``n_kept <= n_listed < n`` nothing is kept that shares no neighbour. The cosines take 4 bytes times the square of the rows.
    """
    from distillhash.supervision.graph import nearest_by_overlap  # here: it imports numba, which only training needs

    return nearest_by_overlap(nearest_neighbours(cosine_distances(features), n_listed), n_kept)


def centred_unit(features: NDArray[Any]) -> Floats:
    """Rows of length 1 after the mean is removed."""
    values = np.asarray(features, np.float64)
    return unit_rows(values - values.mean(axis=0))


def recognised_views(features: NDArray[Any], views: NDArray[Any]) -> float:
    """Share of the augmented views ``(n_views, n, d)`` whose nearest of ``features (n, d)``, by cosine less the mean, is their own image's.

    Near 1 the features know already what the views would teach. The more images there are, the fewer views are recognised, so shares of
    equally many are compared.
    """
    mean = features.mean(axis=0, dtype=np.float64)
    rows = unit_rows(features - mean)
    own = np.arange(len(rows))
    return float(np.mean([np.argmax(unit_rows(view - mean) @ rows.T, axis=1) == own for view in views]))


def half_agreement(features: NDArray[Any], sizes: Sequence[int], seed: int, *, most_queries: int = 1000) -> list[float]:
    """How far two random halves of the dimensions agree about the ``k`` nearest rows, for every k of ``sizes``.

    For at most ``most_queries`` random rows of ``features (n, d)``, d >= 2: the overlap of the lists of the k largest cosines (of centred
    halves) under one half and the other, as a share of k, less what chance gives: 0 for unrelated lists, 1 for equal ones. Neighbours that
    both halves name belong to the data rather than to single dimensions. ``seed`` draws halves and rows.
    """
    n, d = features.shape
    rng = np.random.default_rng(seed)
    dimensions, queries = rng.permutation(d), np.sort(rng.permutation(n)[:most_queries])
    near = []
    most, step = max(sizes), max(1, _PAIRS // n)
    for half in (dimensions[: d // 2], dimensions[d // 2 :]):
        rows = centred_unit(features[:, half])
        lists = []
        for start in range(0, len(queries), step):
            own = queries[start : start + step]
            cosines = rows[own] @ rows.T
            cosines[np.arange(len(own)), own] = -np.inf
            lists += [_largest(row, most) for row in cosines]
        near.append(lists)
    found = []
    for k in sizes:
        both = zip(*near, strict=True)
        shared = sum(len(np.intersect1d(a[:k], b[:k], assume_unique=True)) for a, b in both)
        overlap, chance = shared / (k * len(queries)), k / (n - 1)
        found.append((overlap - chance) / (1 - chance))
    return found


def _largest(values: Floats, k: int) -> NDArray[np.intp]:
    """Places of the ``k`` largest, largest first, equal ones in order."""
    candidates = np.flatnonzero(values >= np.partition(values, -k)[-k])
    return candidates[np.argsort(-values[candidates], kind="stable")][:k]
