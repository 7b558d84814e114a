"""Any sequence of changes, through two connections and across reopening, against a dictionary."""

import shutil
import tempfile
from itertools import repeat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from distillhash import Codes
from distillhash.errors import DataError
from distillhash.index import embedded, open_index

N_BITS = 10
CODES = st.integers(0, 2**N_BITS - 1)
KEYS = st.sampled_from("abcdef")
IDS = st.integers(0, 12)


def to_codes(values: list[int]) -> Codes:
    bits = (np.array(values, np.int64)[:, None] >> np.arange(N_BITS)) & 1
    return Codes.from_signs(2 * bits - 1)


class IndexMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.writer = open_index(self.folder / "index", n_bits=N_BITS, create=True)
        self.reader = open_index(self.folder / "index")
        self.stored: dict[int, tuple[int, str | None]] = {}
        self.following = 0

    def teardown(self) -> None:
        self.writer.close()
        self.reader.close()
        shutil.rmtree(self.folder)

    def keep(self, ids: list[int], values: list[int], keys: list[str] | None) -> None:
        self.stored |= {i: (v, k) for i, v, k in zip(ids, values, keys or repeat(None), strict=False)}
        self.following = max([self.following, *(identifier + 1 for identifier in ids)])

    @rule(values=st.lists(CODES, max_size=4))
    def add_with_new_ids(self, values: list[int]) -> None:
        expected = list(range(self.following, self.following + len(values)))
        assert self.writer.add(to_codes(values)).tolist() == expected
        self.keep(expected, values, None)

    @rule(pairs=st.dictionaries(IDS, CODES, max_size=4), upsert=st.booleans())
    def add_with_ids(self, pairs: dict[int, int], upsert: bool) -> None:
        ids, values = list(pairs), list(pairs.values())
        if not upsert and self.stored.keys() & pairs.keys():
            with pytest.raises(DataError):
                self.writer.add(to_codes(values), ids=ids)
        else:
            self.writer.add(to_codes(values), ids=ids, upsert=upsert)
            self.keep(ids, values, None)

    @rule(pairs=st.dictionaries(KEYS, CODES, max_size=4))
    def add_with_keys(self, pairs: dict[str, int]) -> None:
        known = {key: identifier for identifier, (_, key) in self.stored.items() if key is not None}
        expected, following = [], self.following
        for key in pairs:
            expected.append(known.get(key, following))
            following += key not in known
        ids = self.writer.add(to_codes(list(pairs.values())), keys=list(pairs), upsert=True).tolist()
        assert ids == expected
        self.keep(ids, list(pairs.values()), list(pairs))

    @precondition(lambda self: self.stored)
    @rule(data=st.data())
    def remove_some(self, data: st.DataObject) -> None:
        ids = data.draw(st.lists(st.sampled_from(sorted(self.stored)), unique=True))
        assert self.writer.remove(ids) == len(ids)
        for identifier in ids:
            del self.stored[identifier]

    @rule()
    def swap_roles(self) -> None:
        self.writer, self.reader = self.reader, self.writer

    @rule()
    def compact(self) -> None:
        self.writer.compact()

    @rule()
    def reopen(self) -> None:
        self.writer.close()
        self.writer = open_index(self.folder / "index")

    @rule(value=CODES, k=st.integers(1, 20))
    def search(self, value: int, k: int) -> None:
        expected = sorted((bin(value ^ other).count("1"), identifier) for identifier, (other, _) in self.stored.items())
        for index in (self.writer, self.reader):
            found = [(distance, identifier) for identifier, distance in index.search(to_codes([value]), k)[0]]
            assert found == expected[:k]
            near = [(distance, identifier) for identifier, distance in index.range_search(to_codes([value]), 4)[0]]
            assert near == [pair for pair in expected if pair[0] <= 4]

    @invariant()
    def sizes_and_items_agree(self) -> None:
        assert len(self.writer) == len(self.reader) == len(self.stored)
        items = self.reader.get(list(self.stored))
        expected = [(to_codes([value]), key) for value, key in self.stored.values()]
        assert [(item.code, item.key) for item in items] == expected


class SmallCacheMachine(IndexMachine):
    """The same with a cache file from three changed items on."""

    def __init__(self) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(embedded, "_CACHED_FROM", 3)
        super().__init__()

    def teardown(self) -> None:
        super().teardown()
        self.patch.undo()


SmallCacheMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
TestSmallCacheMachine = SmallCacheMachine.TestCase

IndexMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
TestIndexMachine = IndexMachine.TestCase
