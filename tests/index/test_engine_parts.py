"""The parts that engines share: addresses, patience, plain text, merging, and ordered answers from a server that orders little."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillhash.errors import ParameterError
from distillhash.index import milvus_search, open_index
from distillhash.index.address import folder_of, refuse_options, shown, split_options
from distillhash.index.base import RangeResult, SearchResult
from distillhash.index.merge import merge_nearest, merge_within, nearest_from_pairs, range_from_pairs
from distillhash.index.retry import with_patience
from distillhash.index.text import from_plain, map_text, to_plain


@pytest.mark.parametrize(
    ("place", "folder", "text"),
    [
        ("photos.index", Path("photos.index"), "photos.index"),
        (Path("a") / "b", Path("a/b"), "a/b"),
        ("memory://", None, "memory://"),
        ("milvus://me:secret@host:1/c?largest=5", None, "milvus://me@host:1/c?largest=5"),
        ("postgresql://me:se%40cret@host/db?table=t&password=x", None, "postgresql://me@host/db?table=t"),
        ("postgresql://@/db?host=/tmp/socket", None, "postgresql://@/db?host=/tmp/socket"),
    ],
)
def test_addresses(place: str | Path, folder: Path | None, text: str) -> None:
    assert folder_of(place) == folder
    assert shown(place) == text and "cret" not in shown(place)


def test_options_are_taken_out_of_an_address() -> None:
    uri = "postgresql://me@host/db?table=t&sslmode=require&options=-csearch_path%3Da%20b&patience="
    rest, taken = split_options(uri, ("table", "patience"))
    assert taken == {"table": "t", "patience": ""}
    assert rest == "postgresql://me@host/db?sslmode=require&options=-csearch_path%3Da%20b"
    assert split_options("milvus://h/c", ("table",)) == ("milvus://h/c", {})
    refuse_options("milvus://h/c", ("index",))
    with pytest.raises(ParameterError, match="unknown option 'tabel'; choose from table"):
        refuse_options("x://h?tabel=t", ("table",))


def test_engines_that_are_not_there_are_refused_by_name() -> None:
    for scheme in ("redis", "sharded"):
        with pytest.raises(
            ParameterError, match=f"{scheme}:// is not an engine of this version; choose from a folder, memory://, post"
        ):
            open_index(f"{scheme}://localhost/0?shards=2", n_bits=8, create=True)
    for place in ("memory://name", "memory://?a=b"):
        with pytest.raises(ParameterError, match="takes no name and no options"):
            open_index(place, n_bits=8, create=True)
    with pytest.raises(ParameterError, match="no durability levels"):
        open_index("memory://", n_bits=8, create=True, durability="full")


def test_patience() -> None:
    calls: list[float] = []

    def fail_twice() -> str:
        calls.append(time.monotonic())
        if len(calls) < 3:
            raise ConnectionError(f"number {len(calls)}")
        return "done"

    assert with_patience(fail_twice, lambda error: isinstance(error, ConnectionError), 30) == "done"
    assert len(calls) == 3 and calls[1] - calls[0] >= 0.025 and calls[2] - calls[1] >= 0.05
    calls.clear()
    with pytest.raises(ConnectionError, match="number 1"):
        with_patience(fail_twice, lambda error: True, 0)  # no patience: one call
    with pytest.raises(ConnectionError, match="number 2"):
        with_patience(fail_twice, lambda error: False, 30)  # an error that does not pass
    assert len(calls) == 2


@given(
    st.text(alphabet=st.characters(categories=None), max_size=12)
    | st.text(alphabet="\\u0041dce9\x00\ud800", max_size=14)
)
def test_any_text_comes_back_from_plain_text(text: str) -> None:
    plain = to_plain(text)
    assert from_plain(plain) == text
    plain.encode()  # no lone surrogate
    assert all(character >= " " and character != "\x7f" for character in plain)


def test_plain_text_leaves_ordinary_names_alone() -> None:
    for name in ("cat.jpg", "C:\\photos\\cat.jpg", "C:\\users\\me", "ä/日本\U0001f408", "\\U0041"):
        assert to_plain(name) == name
    assert to_plain("a\x00\udce9\\u0041") == "a\\u0000\\udce9\\u005cu0041"
    value = {"a\n": ["b\n", {"c": "\x00"}, 1, None]}
    assert map_text(map_text(value, to_plain), from_plain) == value


def naive(stored: dict[int, int], k: int) -> SearchResult:
    return nearest_from_pairs([sorted((distance, identifier) for identifier, distance in stored.items())], k)


@given(st.dictionaries(st.integers(0, 50), st.integers(0, 4)), st.integers(1, 4), st.integers(1, 9))
def test_merging_parts_is_searching_the_whole(stored: dict[int, int], n_parts: int, k: int) -> None:
    parts = [{i: d for i, d in stored.items() if i % n_parts == part} for part in range(n_parts)]
    merged, whole = merge_nearest([naive(part, k) for part in parts], k), naive(stored, k)
    assert np.array_equal(merged.ids, whole.ids) and np.array_equal(merged.distances, whole.distances)
    assert merged.ids.shape == (1, k) and merged.distances.dtype == np.int32

    def within(items: dict[int, int]) -> RangeResult:
        near = sorted((distance, identifier) for identifier, distance in items.items() if distance <= 2)
        return range_from_pairs([near, [], near[:1]])

    # The third query's answer is one item of each part, so only its order is compared.
    merged_range, whole_range = merge_within([within(part) for part in parts]), within(stored)
    assert merged_range[0] == whole_range[0] and merged_range[1] == []
    assert merged_range[2] == sorted(merged_range[2], key=lambda pair: (pair[1], pair[0]))
    assert merged_range.limits.dtype == np.int64 and merged_range.distances.dtype == np.int32


@given(
    st.dictionaries(st.integers(0, 60) | st.integers(2**63 - 40, 2**63 - 1), st.integers(0, 5), max_size=60),
    st.integers(2, 12),
    st.integers(1, 12),
    st.integers(0, 6),
    st.randoms(),
)
def test_exact_answers_from_a_server_that_cuts_ties_anywhere(
    stored: dict[int, int], largest: int, k: int, radius: int, shuffled: random.Random
) -> None:
    """Whatever ``largest`` is, and whichever of equal distances the server leaves out."""

    def fetch(
        codes: Sequence[bytes], limit: int, *, least: int = 0, most: int | None = None, ids: Any = milvus_search.ALL_IDS
    ) -> list[list[milvus_search.Pair]]:
        assert limit <= largest
        pairs = [
            (d, i) for i, d in stored.items() if least <= d <= (9 if most is None else most) and ids[0] <= i <= ids[1]
        ]
        shuffled.shuffle(pairs)
        return [sorted(pairs, key=lambda pair: pair[0])[:limit] for _ in codes]

    expected = sorted((distance, identifier) for identifier, distance in stored.items())
    k = min(k, largest)
    assert milvus_search.nearest(fetch, [b"a", b"b"], k, largest) == [expected[:k]] * 2
    near = [pair for pair in expected if pair[0] <= radius]
    assert milvus_search.within(fetch, [b"a"], radius, largest) == [near]
