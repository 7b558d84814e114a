"""Numbers about the codes of an index, for the page's plots: no labels, no features needed."""

from __future__ import annotations

from typing import Any

import numpy as np

from distillhash.codes import hamming_distances
from distillhash.errors import DataError
from distillhash.index import Index
from distillhash.metrics.code_statistics import bit_statistics
from distillhash.serve.library import all_ids, concatenated

_MOST_ITEMS = 5000  # of which the statistics are taken
_MOST_PAIRED = 1000  # of which all pairs are compared
_MOST_QUERIES = 500  # whose nearest neighbour is looked up


class Quality:
    """Statistics of an index, kept until its size changes."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._kept: tuple[int, dict[str, Any]] | None = None

    def of(self, index: Index) -> dict[str, Any]:
        """Bit balance, bit correlation and distances of a random sample (seed 0); call it in the index's thread.

        Returns:
            ``n_items``, ``n_sampled``, what :func:`distillhash.metrics.code_statistics.bit_statistics` gives for the
            sample, and counts by distance
            0..n_bits: ``pair_distances`` of pairs of different items, ``nearest_distances`` from an item to its nearest other.

        Raises:
            DataError: fewer than 2 items.
        """
        n_items = len(index)
        if self._kept is not None and self._kept[0] == n_items:
            return self._kept[1]
        if n_items < 2:
            raise DataError(f"plots need at least 2 items, the index holds {n_items}; add some first")
        chosen = np.random.default_rng(0).permutation(all_ids(index))[:_MOST_ITEMS]
        codes = concatenated(index.get(chosen.tolist()), index.n_bits)
        paired = codes[:_MOST_PAIRED]
        distances = hamming_distances(paired, paired)[np.triu_indices(len(paired), 1)]
        nearest = index.search(codes[:_MOST_QUERIES], 2)
        others = np.where(nearest.ids[:, 0] == chosen[:_MOST_QUERIES], nearest.distances[:, 1], nearest.distances[:, 0])
        levels = index.n_bits + 1
        result = {
            "n_items": n_items,
            "n_sampled": len(codes),
            **bit_statistics(codes),
            "pair_distances": np.bincount(distances, minlength=levels).tolist(),
            "nearest_distances": np.bincount(others[others >= 0], minlength=levels).tolist(),
        }
        self._kept = n_items, result
        return result
