"""The jobs on real files, through the real backbone."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
import pytest
from PIL import Image

from distillhash.backbones import FeatureCache
from distillhash.codes import hamming_distances
from distillhash.dedup import edits
from distillhash.dedup.codes import Settings, encode_collection
from distillhash.dedup.groups import Matches, match
from distillhash.dedup.job import Item, Report, Verdicts, find_duplicates, find_leaks
from distillhash.dedup.review import review_page, size_text
from distillhash.errors import DataError, FormatError
from distillhash.files import digest
from distillhash.sources import decode_image, open_source
from image_factory import make_pixels

RADIUS = 114  # of 1,024 bits: made-up pictures are nearer to each other than photographs


def picture(seed: int) -> Image.Image:
    """A busy random picture: blobs of colour over stripes."""
    rng = np.random.default_rng(seed)
    base = make_pixels(160, 120, seed).astype(float)
    y, x = np.mgrid[:120, :160]
    for _ in range(6):
        cx, cy, r = rng.uniform(0, 160), rng.uniform(0, 120), rng.uniform(8, 35)
        base[(x - cx) ** 2 + (y - cy) ** 2 < r * r] = rng.integers(0, 256, 3)
    base += 30 * np.sin(x * rng.uniform(0.05, 0.8) + y * rng.uniform(0.05, 0.8))[..., None]
    return Image.fromarray(np.clip(base, 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty pictures; of the first three copies in sub-folders, and one that cannot be read."""
    root = tmp_path_factory.mktemp("pictures")
    (root / "copies").mkdir()
    for seed in range(20):
        picture(seed).save(root / f"{seed:02}.png")
    shutil.copy(root / "00.png", root / "copies" / "exact.png")
    picture(1).save(root / "copies" / "saved.webp", lossless=True)
    (root / "copies" / "turned.jpg").write_bytes(edits.turn_by_exif(picture(2), orientation=6))
    (root / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    (root / "link.png").symlink_to(root / "05.png")  # a folder is listed without it
    return root


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(radius=RADIUS, cache=FeatureCache(tmp_path_factory.mktemp("features")))


@pytest.fixture(scope="module")
def report(folder: Path, options: Settings) -> Report:
    return find_duplicates(open_source(folder), options)


def names(report: Report) -> list[list[str]]:
    return [[Path(item.path).name for item in group] for group in report.groups]


def test_copies_are_found_and_the_best_is_kept(report: Report) -> None:
    assert sorted(names(report)) == [["00.png", "exact.png"], ["01.png", "saved.webp"], ["02.png", "turned.jpg"]]
    matches = {Path(group[1].path).name: group[1].match for group in report.groups}
    assert matches["exact.png"] == "same file" and matches["saved.webp"] == "same pixels"
    for keeper, other in report.groups:
        hashes = [
            imagehash.phash(Image.fromarray(decode_image(Path(item.path).read_bytes()))) for item in (keeper, other)
        ]
        assert other.phash_distance == hashes[0] - hashes[1]
    assert [item.key for item in report.skipped] == ["broken.jpg"]
    assert report.n_items == 23 and report.n_aliases == 0 and report.n_duplicates == 3
    assert report.calibration.recall is not None and report.calibration.chosen_by == "user"
    assert "random hyperplanes" in report.codes


def test_again_and_in_any_order_the_same(folder: Path, options: Settings, report: Report) -> None:
    again = find_duplicates(open_source(folder), options)
    assert names(again) == names(report) and again.calibration == report.calibration


def test_distances_are_those_of_the_codes(folder: Path, options: Settings, report: Report) -> None:
    source = open_source(folder)
    codes = encode_collection(source, options)[1]
    place = {source.path(int(row)): number for number, row in enumerate(codes.rows)}
    for group in report.groups:
        for item in group:
            a, b = codes.codes[place[group[0].path]], codes.codes[place[item.path]]
            assert hamming_distances(a, b)[0, 0] == item.distance <= report.calibration.radius


def test_rules_of_people(folder: Path, options: Settings, tmp_path: Path) -> None:
    verdicts = Verdicts(tmp_path / "verdicts")
    verdicts.add(folder / "02.png", folder / "copies" / "turned.jpg")
    apart = find_duplicates(open_source(folder), options, verdicts=verdicts)
    assert sorted(names(apart)) == [["00.png", "exact.png"], ["01.png", "saved.webp"]]
    shutil.copy(folder / "03.png", tmp_path / "a.png")
    shutil.copy(folder / "03.png", tmp_path / "b.png")
    assert len(find_duplicates(open_source(tmp_path), options).groups) == 1
    assert not find_duplicates(open_source(tmp_path), options, ignore_same_folder=True).groups


def test_against_a_reference(folder: Path, options: Settings) -> None:
    inbox, kept = open_source(folder / "copies"), open_source(folder)
    found = find_duplicates(inbox, options, reference=kept)
    assert not found.groups and found.n_aliases == 3  # they lie in the reference themselves
    rows = np.flatnonzero(["/" not in key and key[0].isdigit() for key in kept.keys])
    found = find_duplicates(inbox, options, reference=kept.select(rows))
    assert names(found) == [["00.png", "exact.png"], ["01.png", "saved.webp"], ["02.png", "turned.jpg"]]
    backwards = find_duplicates(inbox.select(np.array([2, 1, 0])), options, reference=kept.select(rows[::-1]))
    assert sorted(names(backwards)) == sorted(names(found))


def photographed_again(image: Image.Image) -> Image.Image:
    """A moment later: the rows of the scene went to the left and right, as far as they are near."""
    rows = [np.roll(row, round(np.sin(y / 20)), axis=0) for y, row in enumerate(np.asarray(image))]
    return Image.fromarray(np.stack(rows))


def pairs_of(groups: list[list[Item]]) -> list[list[str]]:
    return [[f"{Path(item.path).name}: {item.match}" for item in group] for group in groups]


def test_two_photographs_of_a_scene_are_listed_apart(
    options: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again, options = photographed_again(picture(7)), replace(options, radius=2 * RADIUS)
    for place in ("all", "inbox"):
        (tmp_path / place).mkdir()
    for seed in range(6, 9):
        picture(seed).save(tmp_path / "all" / f"{seed}.png")
    again.save(tmp_path / "all" / "7b.png")
    (tmp_path / "all" / "copy.jpg").write_bytes(edits.reencode(again))
    found = find_duplicates(open_source(tmp_path / "all"), options)
    assert pairs_of(found.groups) == [["7b.png: keeper", "copy.jpg: copy"]]
    assert pairs_of(found.scenes) == [["7b.png: keeper", "7.png: same scene"]]  # the larger file

    (tmp_path / "all" / "copy.jpg").rename(tmp_path / "inbox" / "copy.jpg")
    inbox, kept = open_source(tmp_path / "inbox"), open_source(tmp_path / "all")
    others = kept.select(np.flatnonzero([not key.endswith("7b.png") for key in kept.keys]))
    only = find_duplicates(inbox, options, reference=others)
    assert not only.groups and pairs_of(only.scenes) == [["7.png: keeper", "copy.jpg: same scene"]]

    def nearest_last(*arguments: Any, **more: Any) -> Matches:
        true = match(*arguments, **more)
        order = [1, 0, *range(2, true.row.shape[1])]
        return Matches(true.row[:, order], true.distance[:, order], true.certain[:, order], true.count)

    monkeypatch.setattr("distillhash.dedup.job.match", nearest_last)
    both = find_duplicates(inbox, options, reference=kept)
    assert pairs_of(both.groups) == [["7b.png: keeper", "copy.jpg: copy"]] and not both.scenes


def test_leaks(folder: Path, options: Settings) -> None:
    train = open_source(folder)
    rows = np.flatnonzero(["/" not in key and key[0].isdigit() for key in train.keys])
    found = find_leaks(train.select(rows), open_source(folder / "copies"), options)
    assert sorted((Path(leak.test.path).name, Path(leak.train.path).name) for leak in found.leaks) == [
        ("exact.png", "00.png"), ("saved.webp", "01.png"), ("turned.jpg", "02.png"),
    ]  # fmt: skip
    assert found.leaks[0].test.distance == 0 and found.leaks[0].test.match == "same file"
    with pytest.raises(DataError, match="cannot be compared"):
        find_leaks(train, open_source(np.ones((3, 4))), options)


def test_vectors_have_no_edits() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((300, 32)).astype(np.float32)
    vectors[7] = vectors[5] * 1.5
    found = find_duplicates(open_source(vectors))
    assert [[item.path for item in group] for group in found.groups] == [["5", "7"]]
    assert found.calibration.recall is None and "cannot be edited" in found.calibration.sentence()


def test_nothing_usable_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"rubbish")
    with pytest.raises(DataError, match="nothing usable"):
        find_duplicates(open_source(tmp_path))


def test_the_page_is_whole_and_escapes_names(folder: Path, options: Settings, tmp_path: Path) -> None:
    for name in ("<script>alert(1)</script>.png", "b.png"):
        shutil.copy(folder / "03.png", tmp_path / name.replace("/", "_"))
    found = find_duplicates(open_source(tmp_path), options)
    html = review_page(found, "distillhash dedup x", "x<y")
    assert "<script" not in html and "x&lt;y" in html and "default-src &#39;none&#39;" not in html
    assert html.count("data:image/jpeg;base64,") == 2 and "http" not in html.split("</style>")[1]
    assert "same file" in html and found.calibration.sentence()[1:] in html
    assert size_text(812) == "812 B" and size_text(3_400_000) == "3.4 MB"


def test_verdicts_follow_the_content(tmp_path: Path) -> None:
    a, b, file = tmp_path / "a.jpg", tmp_path / "b\t.jpg", tmp_path / "data" / "verdicts.tsv"
    a.write_bytes(b"one")
    b.write_bytes(b"two")
    verdicts = Verdicts(file)
    verdicts.add(a, b)
    verdicts.add(b, a)
    one, two = digest(b"one").hex(), digest(b"two").hex()
    read = Verdicts(file)
    assert len(read) == 1 and read.apart(one, two) and read.apart(two, one) and not read.apart(one, one)
    assert file.read_text().count("\n") == 2
    with pytest.raises(DataError, match="cannot be read"):
        verdicts.add(a, tmp_path / "gone")
    file.write_text("not digests\n")
    with pytest.raises(FormatError, match="line 1"):
        Verdicts(file)


def test_a_long_burst_is_listed_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those of its pairs that nobody looked at closer, because they are too many."""
    monkeypatch.setattr("distillhash.dedup.job.taken_twice", lambda _, __, pairs, ___, **____: [True] * len(pairs))
    for number in range(14):
        (tmp_path / f"{number:02}.jpg").write_bytes(edits.reencode(picture(0), quality=60 + number))
    report = find_duplicates(open_source(tmp_path), Settings(radius=60))
    assert report.groups == [] and len(report.scenes) == 1
