"""The actual bits of every format: expected bytes by hand, from the formats' own documentation, and from their own readers."""

import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distillhash import Codes
from distillhash.codes import hamming_distances
from distillhash.errors import DistillHashError, ParameterError
from distillhash.export import FORMATS, export_codes

# 12 bits, the example of docs/formats.md: +------+ +--- and ------++ -+-+; pad bits are zero.
TWO = Codes.from_signs(
    np.array([[1, -1, -1, -1, -1, -1, -1, 1, 1, -1, -1, -1], [-1, -1, -1, -1, -1, -1, 1, 1, -1, 1, -1, 1]])
)
KEYS = ["cats/ä.jpg", "back\\slash\tand\nmore\udce9"]


def from_bits(text: str) -> Codes:
    return Codes.from_signs(np.array([[1 if bit == "1" else -1 for bit in text]]))


def write(tmp_path: Path, to: str, codes: Codes = TWO, keys: list[str] | None = KEYS, name: str | None = None) -> Path:
    out = tmp_path / f"codes{FORMATS[to].endings[0]}"
    files = export_codes(codes, keys, to, out, name=name)
    assert files[0] == out and sorted(tmp_path.iterdir()) == sorted(files)
    return out


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_example() -> None:
    assert TWO.packed.tolist() == [[0x81, 0x80], [0x03, 0x50]]


def test_parquet(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    table = pq.read_table(write(tmp_path, "parquet", keys=["a", "b"]))
    assert table.column_names == ["id", "key", "code", "word_0"]
    assert table.column("id").to_pylist() == [0, 1] and table.column("key").to_pylist() == ["a", "b"]
    assert table.column("code").to_pylist() == [b"\x81\x80", b"\x03\x50"]
    assert table.column("word_0").to_pylist() == [0x8180_0000_0000_0000, 0x0350_0000_0000_0000]


def test_parquet_words_give_distances_and_the_file_is_a_codes_file(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    codes = Codes.from_signs(rng.choice([-1, 1], (70_000, 100)), 16)  # more than one block
    out = write(tmp_path, "parquet", codes, None)
    words = [pq.read_table(out).column(f"word_{word}").to_numpy() for word in range(2)]
    distances = sum(np.bitwise_count(column ^ column[3]).astype(int) for column in words)
    assert np.array_equal(distances, hamming_distances(codes[3], codes)[0])
    loaded, keys = Codes.load(out)
    assert loaded == codes and keys == [str(row) for row in range(70_000)]


def test_npy(tmp_path: Path) -> None:
    out = write(tmp_path, "npy")
    assert np.load(out).tolist() == [[0x81, 0x80], [0x03, 0x50]]
    assert json.loads((tmp_path / "codes.json").read_text()) == {"n_bits": 12, "keys": KEYS}
    write(tmp_path, "npy", keys=None)
    assert json.loads((tmp_path / "codes.json").read_text())["keys"] is None


def test_faiss_bytes(tmp_path: Path) -> None:
    expected = b"IBxF" + struct.pack("<ii", 16, 2) + struct.pack("<q", 2) + b"\1" + struct.pack("<i", 1)
    assert write(tmp_path, "faiss").read_bytes() == expected + struct.pack("<Q", 4) + b"\x81\x80\x03\x50"


@pytest.mark.parametrize("n_bits", [1, 12, 64, 256])
def test_faiss_reads_the_file_and_finds_the_same(tmp_path: Path, n_bits: int) -> None:
    faiss = pytest.importorskip("faiss", reason="faiss is not installed; the bytes are tested without it")
    rng = np.random.default_rng(n_bits)
    codes = Codes.from_signs(rng.choice([-1, 1], (300, n_bits)))
    out = write(tmp_path, "faiss", codes, None)
    index = faiss.read_index_binary(str(out))
    assert (index.ntotal, index.d) == (300, 8 * codes.packed.shape[1])
    distances, ids = index.search(codes.packed[:5], 300)
    expected = hamming_distances(codes[:5], codes)
    assert np.array_equal(distances, np.take_along_axis(expected, ids, 1))
    own = faiss.IndexBinaryFlat(index.d)
    own.add(codes.packed)
    assert faiss.serialize_index_binary(own).tobytes() == out.read_bytes()


def test_faiss_searches_the_graph(tmp_path: Path) -> None:
    faiss = pytest.importorskip("faiss", reason="faiss is not installed")
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((20, 60))
    codes = Codes.from_projection(centres[rng.integers(20, size=1000)] + rng.standard_normal((1000, 60)))
    index = faiss.read_index_binary(str(write(tmp_path, "faiss-hnsw", codes, None)))
    assert isinstance(index, faiss.IndexBinaryHNSW)
    assert (index.ntotal, index.d, index.hnsw.efSearch) == (1000, 64, 128)
    distances, ids = index.search(codes.packed[:50], 10)
    expected = hamming_distances(codes[:50], codes)
    assert np.array_equal(distances, np.take_along_axis(expected, ids, 1))
    assert np.mean(distances == np.sort(expected, axis=1)[:, :10]) > 0.98


def test_the_graph_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(DistillHashError, match=r"pip install 'distillhash\[faiss\]'"):
        write(tmp_path, "faiss-hnsw")
    assert not list(tmp_path.iterdir())


def test_milvus_json_and_parquet(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    out = tmp_path / "codes.json"
    export_codes(TWO, KEYS, "milvus", out)
    first = {"id": 0, "code": [0x81, 0x80], "key": "cats/ä.jpg", "digest": "", "metadata": {}, "has": 1}
    second = {**first, "id": 1, "code": [0x03, 0x50], "key": "back\\slash\\u0009and\\u000amore\\udce9"}
    assert json.loads(out.read_text()) == {"rows": [first, second]}
    table = pq.read_table(write(tmp_path / "parquet", "milvus"))
    assert table.to_pylist() == [{**first, "metadata": "{}"}, {**second, "metadata": "{}"}]
    assert [str(kind) for kind in table.schema.types[:2]] == ["int64", "list<element: uint8>"]
    plain = pq.read_table(write(tmp_path / "plain", "milvus", keys=None)).to_pylist()
    assert [(row["key"], row["has"]) for row in plain] == [("", 0)] * 2


def test_pgvector_text(tmp_path: Path) -> None:
    text = write(tmp_path, "pgvector", name="photos").read_text()
    assert "CREATE TABLE photos (id bigint PRIMARY KEY, code bit(12) NOT NULL," in text
    start = text.index("COPY photos (id, code, key) FROM stdin;\n")
    rows = text[start:].splitlines()[1:4]
    assert rows[:2] == [
        "0\t100000011000\tcats/ä.jpg",
        "1\t000000110101\tback\\\\slash\\\\u0009and\\\\u000amore\\\\udce9",
    ]
    assert rows[2] == "\\."
    assert "0\t100000011000\t\\N\n" in write(tmp_path, "pgvector", keys=None).read_text()


def test_opensearch_bytes_are_those_of_its_documentation(tmp_path: Path) -> None:
    """https://opensearch.org/blog, "Optimize your OpenSearch costs using binary vectors": these bits are [108, -116]."""
    out = write(tmp_path, "opensearch", from_bits("0110110010001100"), None)
    assert lines(out) == [{"index": {"_index": "codes", "_id": "0"}}, {"code": [108, -116]}]
    mapping = json.loads((tmp_path / "codes.opensearch.mapping.json").read_text())
    vector = mapping["mappings"]["properties"]["code"]
    assert (vector["dimension"], vector["data_type"], vector["space_type"]) == (16, "binary", "hamming")
    assert mapping["settings"]["index"]["knn"] is True


def test_opensearch(tmp_path: Path) -> None:
    first, code, second, other = lines(write(tmp_path, "opensearch", name="photos"))
    assert first == {"index": {"_index": "photos", "_id": "0"}} and second["index"] == {"_index": "photos", "_id": "1"}
    assert code == {"code": [-127, -128], "key": "cats/ä.jpg"} and other["code"] == [3, 80]


def test_elasticsearch_text_is_that_of_its_documentation(tmp_path: Path) -> None:
    """The reference of ``dense_vector``, element type bit: these 40 bits are 8100012a7f."""
    out = write(tmp_path, "elasticsearch", from_bits("1000000100000000000000010010101001111111"), None)
    assert lines(out) == [{"index": {"_index": "codes", "_id": "0"}}, {"code": "8100012a7f"}]
    mapping = json.loads((tmp_path / "codes.elasticsearch.mapping.json").read_text())
    vector = mapping["mappings"]["properties"]["code"]
    assert (vector["dims"], vector["element_type"], vector["index_options"]) == (40, "bit", {"type": "flat"})


def test_elasticsearch(tmp_path: Path) -> None:
    first, code, second, other = lines(write(tmp_path, "elasticsearch", name="photos"))
    assert first == {"index": {"_index": "photos", "_id": "0"}} and second["index"] == {"_index": "photos", "_id": "1"}
    assert code == {"code": "8180", "key": "cats/ä.jpg"} and other["code"] == "0350"


def test_vespa_bytes_are_those_of_its_pack_bits(tmp_path: Path) -> None:
    """Vespa's own test of ``pack_bits``: these bits are [129, 14], as int8 [-127, 14]."""
    out = write(tmp_path, "vespa", from_bits("1000000100001110"), None)
    assert lines(out) == [{"put": "id:codes:codes::0", "fields": {"code": {"values": [-127, 14]}}}]


def test_vespa(tmp_path: Path) -> None:
    first, second = lines(write(tmp_path, "vespa", name="photos"))
    assert first == {"put": "id:photos:photos::0", "fields": {"code": {"values": [-127, -128]}, "key": "cats/ä.jpg"}}
    assert second["put"] == "id:photos:photos::1"
    schema = (tmp_path / "photos.sd").read_text()
    assert schema.startswith("schema photos {\n    document photos {\n")
    assert schema.count("tensor<int8>(x[2])") == 2 and "distance-metric: hamming" in schema


@pytest.mark.parametrize("to", FORMATS)
def test_no_codes_are_a_whole_file_too(tmp_path: Path, to: str) -> None:
    assert write(tmp_path, to, TWO[:0], None).exists()


def test_what_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "codes.faiss"
    calls: list[tuple[Callable[[], Any], str]] = [
        (lambda: export_codes(TWO, None, "lucene", out), "unknown export format 'lucene'; choose one of parquet,"),
        (lambda: export_codes(TWO, None, "faiss", tmp_path / "codes.bin"), "for faiss ends in .faiss, got 'codes.bin'"),
        (lambda: export_codes(TWO, None, "faiss", out, name="photos"), "names no table"),
        (lambda: export_codes(TWO, ["a"], "faiss", out), "1 keys for 2 codes"),
        (lambda: export_codes(TWO, None, "vespa", tmp_path / "c.jsonl", name="x; DROP"), "lower-case letters"),
    ]
    for call, sentence in calls:
        with pytest.raises(ParameterError, match=sentence):
            call()
    (tmp_path / "file").write_text("")
    with pytest.raises(DistillHashError, match="cannot be written"):
        export_codes(TWO, None, "faiss", tmp_path / "file" / "codes.faiss")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_failed_export_leaves_the_old_file(tmp_path: Path) -> None:
    out = write(tmp_path, "pgvector")
    before = out.read_bytes()
    with pytest.raises(TypeError):
        export_codes(TWO, [1, 2], "pgvector", out)  # type: ignore[list-item]  # fails in the middle of the file
    assert out.read_bytes() == before and sorted(tmp_path.iterdir()) == [out]
