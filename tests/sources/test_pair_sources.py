"""Image-text pairs: every way to store them, and what happens to what is missing."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distillhash.errors import DataError, ParameterError
from distillhash.sources import ImageSource, open_source
from distillhash.sources.flickr25k import LABEL_NAMES
from distillhash.sources.pairs import open_pairs, pair_source_names, pair_texts
from image_factory import make_png
from pair_factory import write_miniature


def table(path: Path, **columns: Any) -> str:
    n = len(next(iter(columns.values())))
    images = [{"bytes": make_png(8, 8, i), "path": f"{i}.png"} for i in range(n)]
    pq.write_table(pa.table({"image": images, **columns}), path)
    return str(path)


def test_entries_that_are_no_texts(tmp_path: Path) -> None:
    source = open_source(table(tmp_path / "p.parquet", label=[0] * 6))
    pairs = pair_texts("x", source, [5, 0.5, b"bytes", {"a": "b"}, ("a cat", 7), None])
    assert pairs.texts == ["a cat"]
    reasons = [f"the text is no string but {name}" for name in ("int", "float", "bytes", "dict", "int")]
    assert sorted(item.reason for item in pairs.unusable() if "no string" in item.reason) == sorted(reasons)


def test_a_table_with_lists_of_captions(tmp_path: Path) -> None:
    spec = table(tmp_path / "p.parquet", captions=[["a  cat", "one cat "], [], ["", "a dog", None]], label=[3, 4, 5])
    pairs = open_pairs(spec)
    assert list(pairs.keys) == ["0.png", "1.png", "2.png"] and isinstance(pairs.images, ImageSource)
    assert pairs.texts == ["a cat", "one cat", "a dog"]
    assert pairs.owners.tolist() == [0, 0, 2]
    assert pairs.labels is not None and pairs.labels.tolist() == [3, 4, 5]
    assert pairs.without_text().tolist() == [1]
    assert [(item.key, item.reason) for item in pairs.unusable()] == [
        ("2.png text 1", "the text is empty"),
        ("2.png text 3", "the text is missing"),
        ("1.png", "the image has no text"),
    ]


@pytest.mark.parametrize(("odd", "kind"), [(3, "int"), (b"x", "bytes"), (1.5, "float"), (True, "bool")])
def test_what_is_no_text_is_named(odd: Any, kind: str, tmp_path: Path) -> None:
    images = open_source(table(tmp_path / "p.parquet", other=[1, 2]))
    pairs = pair_texts("pairs", images, ["a cat", odd])
    assert pairs.texts == ["a cat"]
    assert [(item.key, item.reason) for item in pairs.unusable()][:1] == [
        ("1.png", f"the text is no string but {kind}")
    ]
    with pytest.raises(DataError, match=f"the text is no string but {kind}"):
        open_pairs(table(tmp_path / "q.parquet", caption=[odd, odd]))


def test_selections_keep_texts_with_their_images(tmp_path: Path) -> None:
    captions = [[f"image {i} text {j}" for j in range(i % 3)] for i in range(9)]
    spec = table(tmp_path / "p.parquet", captions=captions)
    part = open_pairs(f"{spec}#2:8#1:")
    assert list(part.keys) == [f"{i}.png" for i in range(3, 8)]
    assert part.texts == [text for i in range(3, 8) for text in captions[i]]
    assert part.owners.tolist() == [i - 3 for i in range(3, 8) for _ in captions[i]]
    turned = open_pairs(spec).select(np.array([8, 0, 4]))
    assert turned.texts == [*captions[8], *captions[4]] and turned.owners.tolist() == [0, 0, 2]
    assert [item.key for item in turned.unusable()] == ["0.png"]
    with pytest.raises(ParameterError, match="unknown selection '#odd'"):
        open_pairs(f"{spec}#odd")
    with pytest.raises(DataError, match=r"none of the 1 items has a usable text; first 0\.png"):
        open_pairs(table(tmp_path / "q.parquet", caption=[" "]))


def test_strings_and_tags(tmp_path: Path) -> None:
    assert open_pairs(table(tmp_path / "a.parquet", caption=["x y", None])).texts == ["x y"]
    tags = open_pairs(table(tmp_path / "b.parquet", tags=[["sea", "sky"], ["dog"]]))
    assert tags.texts == ["sea sky", "dog"] and tags.owners.tolist() == [0, 1]
    miniature = open_pairs(write_miniature(tmp_path / "m.parquet", 12))
    assert len(miniature) == 12 and miniature.labels is not None and miniature.labels.shape == (12, 6)


def test_shards_in_a_folder(tmp_path: Path) -> None:
    for name, start in (("train-0", 0), ("test-0", 3)):
        images = [{"bytes": make_png(8, 8, start + i), "path": f"{start + i}.png"} for i in range(3)]
        pq.write_table(
            pa.table({"image": images, "caption": [f"c{start + i}" for i in range(3)]}), tmp_path / f"{name}.parquet"
        )
    assert open_pairs(f"{tmp_path}#train").texts == ["c0", "c1", "c2"]
    assert open_pairs(tmp_path).texts == ["c3", "c4", "c5", "c0", "c1", "c2"]  # files by name, as in open_source


def test_a_csv_beside_its_images(tmp_path: Path) -> None:
    for name in ("a", "b", "lonely"):
        (tmp_path / f"{name}.png").write_bytes(make_png(8, 8, ord(name[0])))
    lines = ["image,caption", 'a.png,"one, two"', "b.png,three", "a.png,four", "gone.png,five", ",six", "b.png,"]
    (tmp_path / "captions.csv").write_text("\n".join(lines), encoding="utf-8-sig")
    for spec in (tmp_path, tmp_path / "captions.csv"):
        pairs = open_pairs(spec)
        assert list(pairs.keys) == ["a.png", "b.png", "gone.png", "lonely.png"]
        assert pairs.texts == ["one, two", "four", "three", "five"] and pairs.owners.tolist() == [0, 0, 1, 2]
        reasons = {item.key: item.reason for item in pairs.unusable()}
        assert reasons == {
            "b.png text 2": "the text is empty",
            "captions.csv line 6": "the line names no image",
            "lonely.png": "the image has no text",
        }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"image,caption\nx.png,a dog", "none of the 1 images that .* exists"),
        (b"picture,words\na.png,x", "names the columns picture, words"),
        (b"", "names the columns none"),
        (b"image,caption\n", "names no images"),
        (b"image,caption\na.png,caf\xe9", "save it as UTF-8"),
        (b"image,caption\na.png,", "none of the 1 items has a usable text; first a.png text 1: the text is empty"),
    ],
)
def test_csv_files_that_cannot_be_used(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.png").write_bytes(make_png(8, 8))
    (tmp_path / "captions.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_pairs(tmp_path / "captions.csv")


def test_ready_embeddings(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images, texts = rng.random((4, 3)), rng.random((6, 2))
    owners = np.array([2, 0, 0, 1, 3, 2])
    np.savez(
        tmp_path / "p.npz",
        image_features=images,
        text_features=texts,
        owners=owners,
        labels=[0, 1, 1, 0],
        keys=list("abcd"),
    )
    pairs = open_pairs(tmp_path / "p.npz")
    assert pairs.owners.tolist() == [0, 0, 1, 2, 2, 3] and list(pairs.keys) == list("abcd")
    np.testing.assert_array_equal(pairs.texts, texts[[1, 2, 3, 0, 5, 4]])
    part = pairs.select(np.array([2, 0]))
    np.testing.assert_array_equal(part.texts, texts[[0, 5, 1, 2]])
    assert part.labels is not None and part.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"owners": None}, r"4 image_features but 6 text_features; add owners \(6,\)"),
        ({"owners": np.array([0, 1, 2, 3, 4, 0])}, r"owners must be \(6,\) integers from 0 to 3"),
        ({"owners": np.zeros(5, int)}, r"owners must be \(6,\) integers"),
        ({"text_features": None}, "lacks the array 'text_features'"),
        ({"image_features": np.full((4, 3), np.nan)}, "4 of 4 rows hold NaN"),
        ({"keys": np.array(["a"])}, "4 images need 4 keys"),
    ],
)
def test_ready_embeddings_that_do_not_match(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    arrays = {"image_features": np.ones((4, 3)), "text_features": np.ones((6, 2)), "owners": np.zeros(6, int), **change}
    np.savez(tmp_path / "p.npz", **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(DataError, match=message):
        open_pairs(tmp_path / "p.npz")


def test_pairs_from_python(photos: Path) -> None:
    pairs = open_pairs((photos, [[f"photo {i}"] for i in range(24)]))
    assert len(pairs) == 24 and open_pairs(pairs) is pairs
    vectors = open_pairs((np.ones((3, 2)), np.ones((3, 5))))
    assert np.asarray(vectors.texts).shape == (3, 5) and vectors.owners.tolist() == [0, 1, 2]
    with pytest.raises(DataError, match="24 images but 3 texts; give every image its entry"):
        open_pairs((photos, ["a", "b", "c"]))
    with pytest.raises(DataError, match="1 of 3 rows hold NaN"):
        open_pairs((np.ones((3, 2)), np.array([[1.0], [np.nan], [2.0]])))
    with pytest.raises(ParameterError, match="texts are a list with an entry an image"):
        pair_texts("x", open_source(photos), "a dog")
    with pytest.raises(ParameterError, match="got int"):
        open_pairs(3)  # type: ignore[arg-type]


def test_places_that_hold_no_pairs(tmp_path: Path, photos: Path, vectors: Path) -> None:
    for spec, message in [
        (tmp_path / "nothing", "there is no readable"),
        (photos, "holds none of captions.csv"),
        (vectors, r"suffix '.npy' hold no pairs"),
    ]:
        with pytest.raises(DataError, match=message):
            open_pairs(spec)
    with pytest.raises(DataError, match=r"no column of texts .* among image, label"):
        open_pairs(table(tmp_path / "t.parquet", label=[1]))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(DataError, match="not a readable Parquet table"):
        open_pairs(tmp_path / "broken.parquet")
    damaged = Path(table(tmp_path / "damaged.parquet", caption=["a text"]))
    column = pq.read_metadata(damaged).row_group(0).column(2)
    content = bytearray(damaged.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + 20] = b"\xff" * 20
    damaged.write_bytes(bytes(content))
    with pytest.raises(DataError, match="not a readable Parquet table"):
        open_pairs(damaged)
    assert {"TABLE.parquet", "CAPTIONS.csv", "VECTORS.npz", "flickr25k:DIR"} == set(pair_source_names())


def test_mirflickr_tags(tmp_path: Path) -> None:
    tags = tmp_path / "mirflickr" / "meta" / "tags"
    (tmp_path / "mirflickr").mkdir()
    (tmp_path / "mirflickr" / "im1.jpg").write_bytes(make_png(8, 8))
    for label in LABEL_NAMES:
        (tmp_path / f"{label}.txt").write_text("2\n")
    with pytest.raises(DataError, match="the tags are missing"):
        open_pairs(f"flickr25k:{tmp_path}")
    tags.mkdir(parents=True)
    (tags / "tags2.txt").write_text("sunset\nbeach\n")
    (tags / "tags3.txt").write_text("")
    pairs = open_pairs(f"flickr25k:{tmp_path}#:5")
    assert pairs.texts == ["sunset beach"] and pairs.owners.tolist() == [1]
    assert pairs.labels is not None and pairs.labels[1].all() and not pairs.labels[0].any()
    assert {item.key for item in pairs.unusable()} == {"im1.jpg", "im3.jpg", "im4.jpg", "im5.jpg"}
