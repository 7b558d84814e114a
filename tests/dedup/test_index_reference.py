"""New images and vectors that are looked up in an index."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import chi2

from distillhash import Codes, HashModel, make_hasher
from distillhash.backbones import FeatureCache
from distillhash.cli import main
from distillhash.codes import hamming_distances
from distillhash.dedup import edits, job
from distillhash.dedup.calibration import Copies, calibrate_lookups
from distillhash.dedup.codes import Settings
from distillhash.dedup.groups import Rule
from distillhash.dedup.job import Indexed, Report, find_duplicates, sample_ids
from distillhash.errors import DataError
from distillhash.files import digest
from distillhash.index import Index, Item, open_index
from distillhash.search import Searcher, open_searcher
from distillhash.serve.pictures import Pictures
from distillhash.sources import MAX_PIXELS, open_source

BITS = 128


def vectors(n: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((n, 16)).astype(np.float32)


def no_picture(item: Item) -> bytes:
    raise DataError(f"no picture of {item.id}")


def memory_index(codes: Codes, **more: Any) -> Index:
    index = open_index("memory://", n_bits=codes.n_bits)
    index.add(codes, **more)
    return index


@pytest.fixture(scope="module")
def model() -> HashModel:
    return HashModel("embeddings", make_hasher("lsh", BITS)).fit(vectors(50, 0))


@pytest.fixture(scope="module")
def indexed(model: HashModel) -> Indexed:
    return Indexed("memory", Searcher(memory_index(model.encode(vectors(3000, 1))), model), no_picture)


def test_vectors_that_the_index_holds_are_found(model: HashModel, indexed: Indexed) -> None:
    new = np.vstack([vectors(3000, 1)[[7, 5]] * 1.01, vectors(30, 2)])
    new[1] += 0.01
    found = find_duplicates(open_source(new), reference=indexed)
    radius = found.calibration.radius
    away = hamming_distances(model.encode(new), model.encode(vectors(3000, 1)))
    expected = {
        (str(row), f"item {away[row].argmin()}", int(away[row].min()))
        for row in np.flatnonzero(away.min(axis=1) <= radius)
    }
    assert {(group[1].path, group[0].path, group[1].distance) for group in found.groups} == expected
    assert {("0", "item 7", 0), ("1", "item 5", int(away[1, 5]))} <= expected
    assert found.groups[0][1].match == "near" and found.n_items == 3032
    assert found.calibration.n_held == 3000 and found.calibration.recall is None
    assert "false matches expected" in found.calibration.sentence() and "per 1,000" in found.calibration.sentence()


def test_as_many_false_matches_as_stated() -> None:
    """Look-ups that are no copies, against an index of which only a sample was seen."""
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((12, 64))
    held, new, queries = (Codes.from_projection(rng.standard_normal((n, 12)) @ mixing) for n in (20_000, 2_000, 5_000))
    for others in (None, new):
        found = calibrate_lookups(
            held[:5_000], others, n_held=len(held), n_lookups=len(queries), copies=None, most_false=250
        )
        assert found.expected_false_pairs is not None and found.expected_false_pairs <= 250
        counted = memory_index(held).range_search(queries, found.radius).limits[-1]
        assert found.expected_false_pairs / 2 < counted < 2 * found.expected_false_pairs
        assert found.per_thousand(found.expected_false_pairs) == pytest.approx(found.expected_false_pairs / 5)


def test_the_radius_finds_the_edits_and_no_more() -> None:
    codes = Codes.from_packed(np.random.default_rng(0).integers(0, 256, (2000, 16), np.uint8), 128)
    copies = Copies(["a"], np.arange(200).reshape(-1, 1) % 10, np.zeros((200, 0), np.int64))
    options: dict[str, Any] = {"n_held": 10**6, "n_lookups": 1000, "copies": copies}
    found = calibrate_lookups(codes, None, **options)
    assert found.radius == 9 and found.recall == 1 and found.rule == Rule(9)
    looking = calibrate_lookups(codes, None, **options, looks=True)
    assert looking.radius == 9 and looking.rule.open_radius > 9
    assert looking.expected_false_pairs is not None and found.expected_false_pairs is not None
    assert found.expected_false_pairs < looking.expected_false_pairs <= found.expected_false_pairs + 0.1
    assert calibrate_lookups(codes, None, **options, radius=4, looks=True).rule == Rule(4)


def test_near_items_are_those_of_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    codes = Codes.from_packed(rng.integers(0, 4, (60, 2), np.uint8), 16)
    index = memory_index(codes, ids=rng.permutation(500)[:60])
    monkeypatch.setattr(job, "AT_ONCE", 7)
    queries = codes[::4]
    items, found = job.near_items(index, queries, Rule(1, open_radius=2))
    away = hamming_distances(queries, codes)
    ids = index.ids()
    stored = {item.id: item for item in index.get(ids.tolist())}
    for row, query in enumerate(queries.packed):
        near = sorted((int(np.bitwise_count(stored[i].code.packed[0] ^ query).sum()), i) for i in ids.tolist())
        sure, left = [pair for pair in near if pair[0] <= 1], [pair for pair in near if pair[0] <= 2]
        wanted = (sure or left)[:4]
        places = found.row[row][found.row[row] >= 0]
        assert [(int(d), items[p].id) for d, p in zip(found.distance[row], places, strict=False)] == wanted
        assert found.count[row] == len(sure) == (away[row] <= 1).sum()


def test_a_sample_stays_nearly_the_same_when_the_index_grows() -> None:
    before, after = sample_ids(np.arange(1000), 100), sample_ids(np.arange(1100), 100)
    assert len(before) == len(after) == 100 and len(np.intersect1d(before, after)) > 80
    assert (np.diff(before) > 0).all() and len(sample_ids(np.arange(7), 100)) == 7


def picture(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize((160, 120), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an index of 20 pictures, their model, and an inbox."""
    root = tmp_path_factory.mktemp("photos")
    (root / "photos").mkdir()
    (root / "inbox").mkdir()
    for seed in range(20):
        picture(seed).save(root / "photos" / f"{seed:02}.png")
    shutil.copy(root / "photos" / "00.png", root / "inbox" / "same.png")
    (root / "inbox" / "cropped.jpg").write_bytes(edits.crop(picture(1), keep=0.85))
    (root / "inbox" / "small.jpg").write_bytes(edits.thumbnail(picture(2), side=100))
    picture(99).save(root / "inbox" / "new.png")
    Image.new("RGB", (60, 60), "white").save(root / "inbox" / "white.png")
    model = HashModel("efficientnet-lite0", make_hasher("lsh", 256), image_size=64)
    model.fit(open_source(root / "photos")).save(root / "model")
    with open_searcher(root / "index", str(root / "model"), create=True) as searcher:
        searcher.add(str(root / "photos"))
    return root


def matched(report: Report) -> dict[str, tuple[str, str]]:
    return {Path(group[1].path).name: (Path(group[0].path).name, group[1].match) for group in report.groups}


def test_pictures_of_the_index_are_looked_at(photos: Path, tmp_path: Path) -> None:
    settings = Settings(cache=FeatureCache(tmp_path / "cache"), most_false_pairs=0.5)
    pictures = Pictures(photos / "index", max_pixels=MAX_PIXELS)
    with open_searcher(photos / "index") as searcher:
        reference = Indexed("index", searcher, pictures.read)
        found = find_duplicates(open_source(photos / "inbox"), settings, reference=reference)
        assert matched(found)["same.png"] == ("00.png", "same file")
        assert matched(found)["cropped.jpg"] == ("01.png", "edited copy")
        assert matched(found)["small.jpg"] == ("02.png", "copy")
        assert not {"new.png", "white.png"} & matched(found).keys()
        assert set(found.calibration.recall_by_edit) == set(edits.LIGHT)
        itself = find_duplicates(open_source(photos / "photos"), settings, reference=reference)
        assert itself.groups == [] and itself.n_aliases == 20
        blind = find_duplicates(
            open_source(photos / "inbox"), settings, reference=Indexed("index", searcher, no_picture)
        )
        assert matched(blind)["same.png"] == ("00.png", "near")  # which --apply leaves
        assert "cannot be read" in blind.codes and "white.png" not in matched(blind)
        with pytest.raises(DataError, match="holds embeddings, and the model of the index index takes images"):
            find_duplicates(open_source(vectors(3, 0)), settings, reference=reference)


def test_look_alikes_that_codes_take_for_copies_are_counted(photos: Path) -> None:
    """All codes are equal: every look-up matches all others, though the calibration took these for copies."""
    files = sorted((photos / "photos").iterdir())
    same = Codes.from_packed(np.zeros((20, 8), np.uint8), 64)
    index = memory_index(same, keys=list(map(str, files)), digests=[digest(file.read_bytes()) for file in files])
    stated = calibrate_lookups(same, None, n_held=20, n_lookups=10, copies=None)
    stated = replace(stated, radius=0, expected_false_pairs=0.1, false_pairs_interval=(0, 1))
    items = index.get(index.ids().tolist())

    def read(item: Item) -> bytes:
        return Path(item.key or "").read_bytes()

    near = job.near_items(index, same, Rule(0))
    counted = job.with_counted(stated, items, *near, read, max_pixels=None)
    false = counted.expected_false_pairs or 0
    assert false == pytest.approx(10 * 19, rel=0.2)
    once = 2 * false * 70 / 76  # the four nearest are listed: 76 pairs, of which 6 come from both ends
    ends = false / once * chi2.ppf([0.05, 0.95], [2 * once, 2 * once + 2]) / 2
    assert counted.false_pairs_interval == pytest.approx(tuple(ends))
    assert stated.accepted == 0.01 and replace(counted, accepted=200).caution() is None
    assert "; more false matches than the 1 per 1,000 accepted are expected" in counted.sentence()
    assert "accepted" not in replace(stated, expected_false_pairs=0.01).sentence()
    assert calibrate_lookups(same, None, n_held=20, n_lookups=10, copies=None, radius=0).caution() is None
    more = replace(stated, expected_false_pairs=200)
    assert job.with_counted(more, items, *near, read, max_pixels=None) is more


def run(capsys: pytest.CaptureFixture[str], *words: object, exit_code: int = 0) -> Any:
    assert main([*map(str, words), "--json", "--quiet"]) == exit_code
    return json.loads(capsys.readouterr().out)


def test_the_command_line(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    inbox = shutil.copytree(photos / "inbox", tmp_path / "inbox")
    before = sorted((photos / "photos").iterdir())
    moved = run(capsys, "dedup", inbox, "--reference", photos / "index", "--apply", "--html", "r.html")
    assert moved["n_moved"] == 2 and sorted((photos / "photos").iterdir()) == before
    assert sorted(path.name for path in inbox.iterdir() if path.is_file()) == ["cropped.jpg", "new.png", "white.png"]
    assert run(capsys, "dedup", inbox, "--undo")["n_restored"] == 2
    open_index(tmp_path / "codes", n_bits=8, create=True).close()
    with open_searcher(tmp_path / "empty", str(photos / "model"), create=True):
        pass
    other = HashModel("efficientnet-lite0", make_hasher("lsh", 256, seed=1), image_size=64)
    other.fit(open_source(photos / "photos")).save(tmp_path / "other")
    HashModel("efficientnet-lite0", make_hasher("lsh", 64), image_size=64).fit(open_source(photos / "photos")).save(
        tmp_path / "short"
    )
    for name in ("items.sqlite", "manifest.json"):
        shutil.copytree(photos / "index", tmp_path / f"no-{name}")
        (tmp_path / f"no-{name}" / name).unlink()
    for words, sentence, code in (
        (("codes",), "keeps no model; give --model DIR", 2),
        (("empty",), "is empty; fill it with `distillhash index`", 1),
        ((photos / "index", "--model", "other"), "was built with another model", 1),
        (
            (photos / "index", "--model", "short"),
            "256 bits, not 64; give the model that it was built with (--model DIR",
            2,
        ),
        ((photos / "index", "--radius", "256"), "the radius must lie in 0..255 bits, got 256", 2),
        (
            ("no-items.sqlite",),
            "looks like an index that cannot be read, for no-items.sqlite/items.sqlite is missing",
            1,
        ),
        (
            ("no-manifest.json",),
            "but a part of one, for manifest.json is missing; make one with `distillhash index`",
            1,
        ),
        ((photos / "index", "--backbone", "vgg16"), "has its own backbone; leave out --backbone", 2),
    ):
        assert sentence in run(capsys, "dedup", inbox, "--reference", *words, exit_code=code)["error"]
    for place in ("no-items.sqlite", "no-manifest.json", photos / "index"):
        refusal = run(capsys, "leaks", place, inbox, exit_code=1)["error"]
        assert refusal.startswith(f"{place} looks like an index") and "give leaks what was indexed" in refusal


def test_what_matches_no_file_stays(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    inbox = shutil.copytree(photos / "inbox", tmp_path / "inbox")
    rows = [{"image": {"bytes": path.read_bytes()}} for path in sorted((photos / "photos").iterdir())]
    pq.write_table(pa.Table.from_pylist(rows), "table.parquet")
    with open_searcher("index", str(photos / "model"), create=True) as searcher:
        searcher.add("table.parquet")
    before = sorted(inbox.iterdir())
    words = ("dedup", inbox, "--radius", 5, "--reference")
    assert run(capsys, *words, "index", "--dry-run")["would_move"] == []
    assert main([*map(str, words), "index", "--apply"]) == 1
    told = f"{inbox}/same.png: it matches {tmp_path}/table.parquet:0 of index, which is no file of its own\n"
    said = capsys.readouterr().err
    assert "1 of them stay, because what they match is no file of its own\n" in said
    assert f"0 files moved\nleft in its place: {told}" in said
    table = run(capsys, *words, "table.parquet", "--model", photos / "model", "--apply", "--link", exit_code=1)
    stays = "it matches 0 of table.parquet, which is no file of its own"
    assert table["n_linked"] == 0 and table["left"] == [[f"{inbox}/same.png", stays]]
    assert sorted(inbox.iterdir()) == before


def test_files_of_the_index_stay(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where many are equal, and where one was overwritten by a copy of another since."""
    many = tmp_path / "many"
    many.mkdir()
    pictures = sorted((photos / "photos").iterdir())
    for number in range(30):
        shutil.copy(pictures[0], many / f"{number:02d}.jpg")
    shutil.copy(pictures[1], many / "last.jpg")
    run(capsys, "index", many, "--model", photos / "model", "--index", tmp_path / "many.index")
    shutil.copy(pictures[0], many / "last.jpg")
    names = sorted(path.name for path in many.iterdir())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "MOST_CANDIDATES", 4)
        moved = run(capsys, "dedup", many, "--reference", tmp_path / "many.index", "--radius", 3, "--apply")
    assert moved["n_moved"] == 0 and sorted(path.name for path in many.iterdir() if path.is_file()) == names
