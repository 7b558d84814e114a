"""The embedded index against a dictionary, across processes, and against damage."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from distillhash.codes import Codes, hamming_distances
from distillhash.errors import DataError, DistillHashError, FormatError, ParameterError
from distillhash.index import open_index


def codes(n: int, n_bits: int = 33, seed: int = 0) -> Codes:
    return Codes.from_signs(np.random.default_rng(seed).choice([-1, 1], size=(n, n_bits)))


@pytest.mark.parametrize("n_bits", [1, 12, 33, 64, 127, 256])
@pytest.mark.parametrize("n", [0, 1, 7, 33])
def test_search_equals_brute_force(tmp_path: Path, n: int, n_bits: int) -> None:
    stored, query = codes(n, n_bits, 1), codes(5, n_bits, 2)
    ids = np.random.default_rng(3).permutation(1000)[:n]
    with open_index(tmp_path, n_bits=n_bits, create=True) as index:
        np.testing.assert_array_equal(index.add(stored, ids=ids), ids)
        assert len(index) == n
        found, ranged = index.search(query, k=10), index.range_search(query, radius=n_bits // 2)
    assert found.ids.shape == found.distances.shape == (5, 10)
    assert len(found) == len(ranged) == 5
    for i, line in enumerate(hamming_distances(query, stored)):
        expected = [(int(identifier), int(d)) for d, identifier in sorted(zip(line, ids, strict=True))]
        assert found[i] == expected[:10]
        assert ranged[i] == [pair for pair in expected if pair[1] <= n_bits // 2]
    with pytest.raises(IndexError, match="query 5 is out of range"):
        ranged[5]


def test_assigned_ids_are_never_used_again(tmp_path: Path) -> None:
    with open_index(tmp_path, n_bits=33, create=True) as index:
        assert index.add(codes(3)).tolist() == [0, 1, 2]
        assert index.remove([2, 1]) == 2
        assert index.add(codes(2)).tolist() == [3, 4]
        index.add(codes(1), ids=[100])
        assert index.add(codes(1)).tolist() == [101]
        assert len(index) == 5


def test_items_carry_what_was_stored_with_them(tmp_path: Path) -> None:
    stored = codes(2)
    with open_index(tmp_path, n_bits=33, create=True) as index:
        index.add(stored, keys=["a", "b"], digests=[b"x" * 16, b"y" * 16], metadata=[{"n": 1}, None])
        index.add(codes(1, seed=5))
    with open_index(tmp_path) as index:
        b, a, bare = index.get([1, 0, 2])
        assert (a.key, a.digest, a.metadata, a.code) == ("a", b"x" * 16, {"n": 1}, stored[0])
        assert (b.key, b.metadata) == ("b", None)
        assert (bare.key, bare.digest, bare.metadata) == (None, None, None)
        assert index.known(["b", "nope"]) == {"b": (1, b"y" * 16)}
        assert "n=3, n_bits=33" in repr(index)


def test_upsert_keeps_the_id_of_a_key(tmp_path: Path) -> None:
    with open_index(tmp_path, n_bits=33, create=True) as index:
        index.add(codes(2), keys=["a", "b"])
        assert index.add(codes(2, seed=9), keys=["b", "c"], upsert=True).tolist() == [1, 2]
        assert index.get([1])[0].code == codes(2, seed=9)[0]
        index.add(codes(1, seed=4), ids=[0], upsert=True)
        assert index.get([0])[0].code == codes(1, seed=4)
        assert len(index) == 3


def test_refusals_change_nothing(tmp_path: Path) -> None:
    with open_index(tmp_path, n_bits=33, create=True) as index:
        index.add(codes(2), keys=["a", "b"])
        add: Any = index.add
        cases: list[tuple[dict[str, Any], str]] = [
            ({"codes": codes(1, 32)}, "holds codes of 33 bits, got 32"),
            ({"codes": codes(2), "ids": [5]}, "1 ids for 2 codes"),
            ({"codes": codes(2), "keys": ["x"]}, "1 keys for 2 codes"),
            ({"codes": codes(2), "metadata": [{}]}, "1 metadata for 2 codes"),
            ({"codes": codes(2), "digests": [b""]}, "1 digests for 2 codes"),
            ({"codes": codes(2), "ids": [5, 5]}, "distinct in one call, 5 comes twice"),
            ({"codes": codes(2), "ids": [5, -1]}, "integers of at least 0"),
            ({"codes": codes(2), "ids": [0.5, 1.5]}, "integers of at least 0"),
            ({"codes": codes(2), "keys": ["x", "x"]}, "'x' comes twice"),
            ({"codes": codes(2), "ids": [7, 1]}, "the id 1 is in the index already"),
            ({"codes": codes(2), "keys": ["x", "a"]}, "the key 'a' is in the index already"),
            ({"codes": codes(1), "ids": [9], "keys": ["a"], "upsert": True}, "the key 'a' belongs to id 0, not 9"),
        ]
        for arguments, message in cases:
            with pytest.raises(DataError, match=message):
                add(**arguments)
        with pytest.raises(DataError, match=r"no item with id 5 .* nothing was removed"):
            index.remove([0, 5])
        with pytest.raises(DataError, match="no item with id 5"):
            index.get([0, 5])
        for k in (0, -1, True, 1.5):
            with pytest.raises(ParameterError, match="k must be a positive integer"):
                index.search(codes(1), k=k)  # type: ignore[arg-type]
        with pytest.raises(ParameterError, match="at least 0 bits, got -1"):
            index.range_search(codes(1), radius=-1)
        with pytest.raises(DataError, match="33 bits, got 8"):
            index.search(codes(1, 8))
        assert len(index) == 2


def test_opening_refuses_what_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no index at"):
        open_index(tmp_path / "gone", n_bits=8)
    with pytest.raises(ParameterError, match="a new index needs n_bits"):
        open_index(tmp_path / "new", create=True)
    with pytest.raises(ParameterError, match=r"1\.\.4096, got 0"):
        open_index(tmp_path / "new", n_bits=0, create=True)
    with pytest.raises(ParameterError, match="milvus:// is not an engine of this version"):
        open_index("milvus://localhost:19530/x", n_bits=8)
    with pytest.raises(ParameterError, match="durability must be one of normal, full, got 'none'"):
        open_index(tmp_path / "new", n_bits=8, create=True, durability="none")  # type: ignore[arg-type]
    (tmp_path / "file").write_text("")
    with pytest.raises(DistillHashError, match="choose another folder"):
        open_index(tmp_path / "file" / "sub", n_bits=8, create=True)

    folder = tmp_path / "index"
    open_index(folder, n_bits=8, create=True, model_fingerprint="aa", durability="full").close()
    with pytest.raises(ParameterError, match="holds codes of 8 bits, not 16"):
        open_index(folder, n_bits=16)
    with pytest.raises(FormatError, match=r"another model \(fingerprint aa, not bb\)"):
        open_index(folder, model_fingerprint="bb")
    manifest = folder / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"format_version": 1', '"format_version": 7'))
    with pytest.raises(FormatError, match="format 7, this version reads up to 1"):
        open_index(folder)
    for damaged in ("", "{", "[]", '{"n_bits": 8}'):
        manifest.write_text(damaged)
        with pytest.raises(FormatError, match="is damaged"):
            open_index(folder)
    manifest.write_text(json.dumps(json.loads(text)))
    (folder / "items.sqlite").write_bytes(b"rubbish" * 1000)
    with pytest.raises(FormatError, match=r"items\.sqlite is damaged"):
        open_index(folder)


def test_truncated_stores_never_answer_wrongly(tmp_path: Path) -> None:
    with open_index(tmp_path, n_bits=64, create=True) as index:
        index.add(codes(2000, 64))
    file = tmp_path / "items.sqlite"
    whole = file.read_bytes()
    for size in (1, 100, 5000, len(whole) // 2, len(whole) - 4096):
        file.write_bytes(whole[:size])
        with pytest.raises((FormatError, DistillHashError)), open_index(tmp_path) as index:
            index.search(codes(1, 64), k=3)


def test_a_closed_index_says_so(tmp_path: Path) -> None:
    index = open_index(tmp_path, n_bits=33, create=True)
    index.close()
    with pytest.raises(DataError, match="is closed; open it again"):
        len(index)


def test_readers_see_what_another_connection_committed(tmp_path: Path) -> None:
    with open_index(tmp_path, n_bits=33, create=True) as writer, open_index(tmp_path) as reader:
        assert reader.search(codes(1), k=1)[0] == []
        writer.add(codes(4))
        assert reader.search(codes(4), k=1).ids[:, 0].tolist() == [0, 1, 2, 3]
        writer.remove([0])
        assert len(reader) == 3 and reader.search(codes(1), k=1).ids[0, 0] != 0


def test_killed_writers_lose_nothing_acknowledged(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import sys
        import numpy as np
        from distillhash.codes import Codes
        from distillhash.index import open_index
        index = open_index(sys.argv[1], n_bits=64, create=True)
        rng = np.random.default_rng()
        while True:
            ids = index.add(Codes.from_signs(rng.choice([-1, 1], size=(200, 64))))
            print(ids[0], ids[-1], flush=True)
        """
    )
    for attempt in range(3):
        child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        first = child.stdout.readline()
        time.sleep(0.05 + 0.07 * attempt)
        os.kill(child.pid, signal.SIGKILL)
        acknowledged = [first, *child.stdout.readlines()]
        child.wait()
        with open_index(tmp_path) as index:
            last = int(acknowledged[-1].split()[1])
            assert len(index.get(range(last + 1))) == last + 1
            assert len(index) % 200 == 0  # no batch is half there


class AgainstADictionary(RuleBasedStateMachine):
    """Random adds, upserts, removals and reopenings give what a dictionary gives."""

    @initialize(n_bits=st.sampled_from([1, 12, 33, 64]))
    def start(self, n_bits: int) -> None:
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.n_bits = n_bits
        self.index = open_index(self.folder.name, n_bits=n_bits, create=True)
        self.model: dict[int, bytes] = {}
        self.keys: dict[str, int] = {}

    @rule(n=st.integers(0, 5), seed=st.integers(0, 99))
    def add(self, n: int, seed: int) -> None:
        new = codes(n, self.n_bits, seed)
        for identifier, code in zip(self.index.add(new).tolist(), new.packed, strict=True):
            assert identifier not in self.model
            self.model[identifier] = code.tobytes()

    @rule(key=st.sampled_from("abc"), seed=st.integers(0, 99))
    def upsert(self, key: str, seed: int) -> None:
        new = codes(1, self.n_bits, seed)
        (identifier,) = self.index.add(new, keys=[key], upsert=True).tolist()
        assert self.keys.get(key, identifier) == identifier
        self.keys[key] = identifier
        self.model[identifier] = new.packed[0].tobytes()

    @precondition(lambda self: bool(self.model))
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        identifier = data.draw(st.sampled_from(sorted(self.model)))
        assert self.index.remove([identifier]) == 1
        del self.model[identifier]
        self.keys = {key: value for key, value in self.keys.items() if value != identifier}

    @rule()
    def reopen(self) -> None:
        self.index.close()
        self.index = open_index(self.folder.name)

    @invariant()
    def same(self) -> None:
        if not hasattr(self, "index"):
            return
        query = codes(1, self.n_bits, 7)
        stored = Codes.from_packed(
            np.frombuffer(b"".join(self.model.values()), np.uint8).reshape(len(self.model), -(-self.n_bits // 8)),
            self.n_bits,
        )
        distances = hamming_distances(query, stored)[0].tolist()
        expected = sorted(zip(distances, self.model, strict=True))
        assert [(d, i) for i, d in self.index.search(query, k=50)[0]] == expected[:50]
        assert len(self.index) == len(self.model)

    def teardown(self) -> None:
        if hasattr(self, "index"):
            self.index.close()
            self.folder.cleanup()


TestAgainstADictionary = AgainstADictionary.TestCase
TestAgainstADictionary.settings = settings(max_examples=15, stateful_step_count=12, deadline=None)
