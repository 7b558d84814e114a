"""Results: made from pairs, and merged from parts."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from distillhash.index.base import RangeResult, SearchResult


def naive(stored: dict[int, int], k: int) -> SearchResult:
    return SearchResult.from_pairs([sorted((distance, identifier) for identifier, distance in stored.items())], k)


@given(st.dictionaries(st.integers(0, 50), st.integers(0, 4)), st.integers(1, 4), st.integers(1, 9))
def test_merging_parts_is_searching_the_whole(stored: dict[int, int], n_parts: int, k: int) -> None:
    parts = [{i: d for i, d in stored.items() if i % n_parts == part} for part in range(n_parts)]
    merged, whole = SearchResult.merged([naive(part, k) for part in parts], k), naive(stored, k)
    assert np.array_equal(merged.ids, whole.ids) and np.array_equal(merged.distances, whole.distances)
    assert merged.ids.shape == (1, k) and merged.distances.dtype == np.int32

    def within(items: dict[int, int]) -> RangeResult:
        near = sorted((distance, identifier) for identifier, distance in items.items() if distance <= 2)
        return RangeResult.from_pairs([near, [], near[:1]])

    # The third query's answer is one item of each part, so only its order is compared.
    merged_range, whole_range = RangeResult.merged([within(part) for part in parts]), within(stored)
    assert merged_range[0] == whole_range[0] and merged_range[1] == []
    assert merged_range[2] == sorted(merged_range[2], key=lambda pair: (pair[1], pair[0]))
    assert merged_range.limits.dtype == np.int64 and merged_range.distances.dtype == np.int32
