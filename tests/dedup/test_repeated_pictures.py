"""Collections that hold one picture many times, pictures without structure, and pictures that agree in their first frame alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from distillhash.backbones import FeatureCache
from distillhash.cli import main
from distillhash.codes import Codes
from distillhash.dedup.codes import HASH_PIXELS, Settings, are_flat
from distillhash.dedup.groups import COPIES, different_pictures
from distillhash.dedup.job import FIRST_FRAME, Report, find_duplicates, find_leaks
from distillhash.dedup.keep import Facts, kinds, preference
from distillhash.dedup.review import report_csv, review_page
from distillhash.sources import open_source
from distillhash.sources.whole import look
from image_factory import encode, make_cut, make_pixels


def picture(seed: int) -> Image.Image:
    """Patches of colour over smooth colour."""
    rng = np.random.default_rng(seed)
    smooth, patches = (
        Image.fromarray(rng.integers(0, 256, (*shape, 3), np.uint8)).resize((160, 120), how)
        for shape, how in (((5, 6), Image.Resampling.BICUBIC), ((15, 20), Image.Resampling.NEAREST))
    )
    return Image.blend(smooth, patches, 0.3)


def logo() -> Image.Image:
    image = Image.new("RGB", (160, 120), "white")
    ImageDraw.Draw(image).ellipse((50, 30, 110, 90), fill=(200, 30, 30))
    return image


def packed(bits: Any) -> Codes:
    return Codes.from_packed(np.packbits(bits, axis=1), bits.shape[1])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(0, 2**31))
def test_pictures_and_pairs_against_counting(times: list[int], seed: int) -> None:
    """Each picture so many times, a bit or two of 256 apart; every pair of items of different pictures is counted one by one."""
    rng = np.random.default_rng(seed)
    picture = rng.permutation(np.repeat(np.arange(len(times)), times))
    bits = rng.integers(0, 2, (len(times), 256), np.uint8)[picture]
    bits[np.arange(len(bits)), rng.integers(0, 256, len(bits))] ^= 1
    found = different_pictures(packed(bits))
    assert sorted(picture[found.one]) == list(range(len(times)))
    assert sorted(picture[found.kept]) == list(range(len(times)))  # of a few pictures, one item each
    n_pairs = sum(a != b for i, a in enumerate(picture) for b in picture[:i])
    kept_pairs = len(times) * (len(times) - 1) / 2
    assert not kept_pairs or found.pairs == pytest.approx(n_pairs / kept_pairs)


def test_a_picture_counts_a_few_times_at_most() -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (600, 256), np.uint8)
    near = bits[np.zeros(500, int)] ^ (rng.random((500, 256)) < 0.01).astype(np.uint8)
    kept = different_pictures(packed(np.concatenate([bits, near]))).kept
    assert np.isin(kept, [0, *range(600, 1100)]).sum() == COPIES and len(kept) == 599 + COPIES
    equal = different_pictures(packed(bits[np.zeros(500, int)]))
    assert len(equal.kept) == len(equal.one) == 1


def test_short_codes_do_not_tell_pictures() -> None:
    """In 16 bits many pictures have one code; the digests say which are the same."""
    codes = packed(np.zeros((6, 16), np.uint8))
    digests = np.array([b"a", b"b", b"a", b"c", b"a", b"b"], "S16")
    assert len(different_pictures(codes, digests).one) == 3 and len(different_pictures(codes).one) == 6


def test_the_choice_of_pictures_does_not_depend_on_the_others() -> None:
    rng = np.random.default_rng(1)
    bits = rng.integers(0, 2, (300, 256), np.uint8)
    codes, more = packed(bits), packed(np.concatenate([bits[rng.permutation(300)], bits[:1].repeat(700, axis=0)]))
    first, second = different_pictures(codes), different_pictures(more)
    np.testing.assert_array_equal(codes.packed[first.one], more.packed[second.one])


@pytest.mark.parametrize(
    ("pixels", "flat"),
    [
        (np.full((64, 64, 3), 255), True),
        (np.random.default_rng(0).integers(126, 130, (64, 64, 3)), True),  # JPEG noise
        (np.arange(64)[:, None, None] * np.array([4, 2, 1]) + np.zeros((1, 64, 1)), True),  # a gradient
        (make_pixels(64, 64), False),
        (np.asarray(logo().resize((64, 64))), False),
        (np.asarray(picture(0).resize((64, 64))), False),
    ],
)  # fmt: skip
def test_structure(pixels: Any, flat: bool) -> None:
    assert pixels.shape[:2] == (HASH_PIXELS, HASH_PIXELS) and are_flat(pixels[None].astype(np.uint8)) == flat


FACTS = Facts(100, 100, 5000, "JPEG", 8.0, bytes(40), looks=look(make_pixels(64, 64)))


def showing(what: str) -> bytes:
    """Marks of other pixels."""
    return bytes(16) + what.encode().ljust(24)


def test_kinds() -> None:
    white, grey, near = (look(np.full((16, 16, 3), level, np.uint8)) for level in (255, 180, 253))
    one, other = look(make_pixels(64, 64, 1)), look(make_pixels(64, 64, 2))
    facts = [
        FACTS,
        replace(FACTS, marks=showing("other"), looks=one),
        replace(FACTS, marks=showing("w"), flat=True, looks=white),
        replace(FACTS, marks=showing("g"), flat=True, looks=grey),
        replace(FACTS, marks=showing("n"), flat=True, looks=near),
        replace(FACTS, marks=showing("1"), n_frames=2, looks=FACTS.looks + one),
        replace(FACTS, marks=showing("2"), n_frames=2, looks=FACTS.looks + one),
        replace(FACTS, marks=showing("3"), n_frames=2, looks=FACTS.looks + other),
        replace(FACTS, marks=showing("4"), n_frames=0, looks=FACTS.looks + one),
        replace(FACTS, marks=showing("5"), damage="cut"),
        replace(FACTS, marks=showing("6"), damage="cut", looks=other),
    ]
    a, b, w, g, n, f1, f2, f3, f4, whole, half = kinds(facts, np.zeros(len(facts), np.int64)).tolist()
    assert a == b == whole == 0 and w == n and f1 == f2
    assert len({a, w, g, f1, f3, f4, half}) == 7
    by_first = kinds(facts, np.zeros(len(facts), np.int64), first_frame=True).tolist()
    assert by_first[5:9] == [0] * 4 and by_first[2] != by_first[3]
    assert (
        kinds(facts, np.arange(len(facts)))[2] != kinds(facts, np.arange(len(facts)))[4]
    )  # not in one part: not compared


def test_damaged_files_and_stills_are_not_preferred() -> None:
    damaged, animated = replace(FACTS, width=999, damage="cut"), replace(FACTS, width=10, n_frames=3)
    assert preference([damaged, FACTS, animated], ["a", "b", "c"]).tolist() == [2, 1, 0]


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(cache=FeatureCache(tmp_path_factory.mktemp("features")))


@pytest.fixture(scope="module")
def twelve(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("twelve")
    for seed in range(12):
        picture(seed).save(root / f"p{seed:02}.jpg", quality=90)
    return root


@pytest.fixture(scope="module")
def alone(twelve: Path, options: Settings) -> Report:
    return find_duplicates(open_source(twelve), options)


def quality(number: int) -> int:
    return 55 + 37 * number % 40


MANY: dict[str, Callable[[int], tuple[str, bytes]]] = {
    "a blank picture": lambda i: (f"x{i}.png", encode(Image.new("RGB", (160, 120), "white"), "PNG")),
    "blank pictures of many colours": lambda i: (f"x{i}.png", encode(Image.new("RGB", (90, 120), (20 * i, 99, 10 * i)), "PNG")),
    "a placeholder as JPEG": lambda i: (f"x{i}.jpg", encode(logo(), "JPEG", quality=quality(i))),
    "a placeholder of many sizes": lambda i: (f"x{i}.png", encode(logo().resize((150 + i, 110 + i)), "PNG")),
    "two placeholders": lambda i: (f"x{i}.jpg", encode([logo(), Image.new("RGB", (9, 9), "grey")][i % 2], "JPEG", quality=quality(i))),
    "a picture of the collection": lambda i: (f"x{i}.jpg", encode(picture(3), "JPEG", quality=quality(i))),
    "a gradient": lambda i: (f"x{i}.png", encode(Image.linear_gradient("L").resize((160, 120 + i)), "PNG")),
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(MANY))
def test_copies_of_one_picture_hardly_move_the_radius(
    twelve: Path, alone: Report, options: Settings, tmp_path: Path, kind: str
) -> None:
    for path in twelve.iterdir():
        shutil.copy(path, tmp_path / path.name)
    for number in range(10):
        name, data = MANY[kind](number)
        (tmp_path / name).write_bytes(data)
    found = find_duplicates(open_source(tmp_path), options)
    assert abs(found.calibration.radius - alone.calibration.radius) <= 0.02 * found.calibration.n_bits
    assert found.calibration.n_bits == alone.calibration.n_bits and found.calibration.n_items == 22
    original = {"p03.jpg"} if kind == "a picture of the collection" else set()
    for group in found.groups:
        names = {Path(item.path).name for item in group}
        assert all(name.startswith("x") for name in names - original), names
    if "colours" in kind:
        assert not found.groups


@pytest.mark.parametrize("n", [1, 2, 3])
def test_what_cannot_be_estimated_is_said_and_moves_nothing(
    twelve: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "few"
    folder.mkdir()
    for number in range(n):
        shutil.copy(twelve / f"p{number:02}.jpg", folder / f"{number}.jpg")
    shutil.copy(folder / "0.jpg", folder / "copy of 0.jpg")
    before = sorted(path.name for path in folder.iterdir())

    def run(*words: object) -> tuple[int, dict[str, Any]]:
        capsys.readouterr()
        status = main(["dedup", str(folder), *map(str, words), "--json", "--quiet"])
        return status, json.loads(capsys.readouterr().out)

    status, found = run()
    assert status == 0 and found["expected_false_pairs"] is None and found["n_duplicates"] == 1
    assert found["calibration"]["false_pairs_interval"] is None and "cannot be told" in found["calibration"]["sentence"]
    status, found = run("--apply")
    assert status == 1 and "give --radius BITS" in found["error"]
    assert sorted(path.name for path in folder.iterdir()) == before
    status, found = run("--apply", "--radius", 20, "--html", "page.html")
    assert status == 0 and found["n_moved"] == 1 and "not known" in Path("page.html").read_text()


FRAMES = [picture(seed) for seed in range(100, 120)]


def animation(suffix: str, first: Image.Image, *others: Image.Image) -> bytes:
    frames = [frame.copy() for frame in (first, *others)]
    return encode(frames[0], suffix, save_all=True, append_images=frames[1:])


def test_what_agrees_in_the_first_frame_alone_stays(
    twelve: Path, options: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in twelve.iterdir():
        shutil.copy(path, tmp_path / path.name)
    for kind, suffix in (("GIF", "gif"), ("WEBP", "webp"), ("PNG", "png"), ("TIFF", "tif"), ("MPO", "jpg")):
        for number in range(2):
            (tmp_path / f"clip{number}.{suffix}").write_bytes(
                animation(kind, FRAMES[0], *FRAMES[1 + 3 * number : 4 + 3 * number])
            )
    shutil.copy(tmp_path / "clip0.gif", tmp_path / "copy.gif")
    encoded = animation("WEBP", FRAMES[0], *FRAMES[1:4])
    (tmp_path / "again.webp").write_bytes(encoded)
    (tmp_path / "still.png").write_bytes(encode(FRAMES[0], "PNG"))
    found = find_duplicates(open_source(tmp_path), replace(options, radius=120))
    together = [{Path(item.path).name for item in group} for group in found.groups]
    stands = {
        name: next((group for group in together if name in group), {name})
        for path in tmp_path.iterdir()
        if (name := path.name)
    }
    assert "copy.gif" in stands["clip0.gif"] and "clip0.webp" in stands["again.webp"]
    assert stands["still.png"] == {"still.png"} or all("clip" not in name for name in stands["still.png"])
    for suffix in ("gif", "webp", "png", "tif", "jpg"):
        assert f"clip1.{suffix}" not in stands[f"clip0.{suffix}"]
    listed = [item for group in found.first_frames for item in group]
    assert {item.match for item in listed} == {"keeper", FIRST_FRAME} and "still.png" in {
        Path(item.path).name for item in listed
    }
    matches = {Path(item.path).name: item.match for group in found.groups for item in group}
    assert matches["copy.gif"] in ("same file", "keeper") and "same pixels" not in {
        item.match
        for group in found.groups
        for item in group
        if {"clip0.webp", "clip1.webp"} <= {Path(i.path).name for i in group}
    }
    assert FIRST_FRAME in report_csv(found) and "The first frame only" in review_page(found, "dedup", "x")

    monkeypatch.chdir(tmp_path.parent)
    words = ["dedup", str(tmp_path), "--radius", "120", "--json", "--quiet", "--cache", str(options.cache.folder)]  # type: ignore[union-attr]
    assert main(words) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["same_first_frame"] and summary["n_duplicates"] == found.n_duplicates
    assert main([*words, "--first-frame"]) == 0
    every = json.loads(capsys.readouterr().out)
    assert not every["same_first_frame"] and every["n_duplicates"] > found.n_duplicates
    group = next(
        one for one in every["groups"] if any(member["path"].endswith("still.png") for member in one["members"])
    )
    assert {"clip0.gif", "clip1.gif", "clip0.tif"} <= {Path(member["path"]).name for member in group["members"]}


def test_across_collections_the_first_frame_is_not_enough(options: Settings, tmp_path: Path) -> None:
    kept, inbox = tmp_path / "kept", tmp_path / "inbox"
    kept.mkdir()
    inbox.mkdir()
    for number in range(4):
        (kept / f"clip{number}.gif").write_bytes(animation("GIF", FRAMES[0], *FRAMES[1 + number : 3 + number]))
        (kept / f"blank{number}.png").write_bytes(encode(Image.new("RGB", (50, 50), (60 * number, 9, 9)), "PNG"))
    shutil.copy(kept / "clip3.gif", inbox / "same.gif")
    shutil.copy(kept / "blank2.png", inbox / "same.png")
    (inbox / "new.gif").write_bytes(animation("GIF", FRAMES[0], *FRAMES[15:17]))
    (inbox / "new.png").write_bytes(encode(Image.new("RGB", (50, 50), (150, 9, 200)), "PNG"))
    given = replace(options, radius=60)
    found = find_duplicates(open_source(inbox), given, reference=open_source(kept))
    pairs = [[Path(item.path).name for item in group] for group in found.groups]
    assert sorted(pairs) == [["blank2.png", "same.png"], ["clip3.gif", "same.gif"]]
    assert [[Path(item.path).name for item in group][1:] for group in found.first_frames] == [["new.gif"]]
    leaking = find_leaks(open_source(kept), open_source(inbox), given).leaks
    leaks = {Path(leak.test.path).name: (Path(leak.train.path).name, leak.test.match) for leak in leaking}
    assert leaks["same.gif"] == ("clip3.gif", "same file") and leaks["same.png"] == ("blank2.png", "same file")
    assert leaks["new.gif"][1] == FIRST_FRAME and "new.png" not in leaks


def test_damaged_pictures_are_used_listed_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(9):
        (folder / f"p{seed}.jpg").write_bytes(encode(picture(seed), "JPEG", quality=90))
    whole = encode(picture(2), "JPEG", quality=90)
    (folder / "a.jpg").write_bytes(whole[:-2])
    (folder / "cut.jpg").write_bytes(make_cut(0.6))
    assert main(["dedup", str(folder), "--radius", "10", "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["n_items"] == 11 and found["n_skipped"] == 0 and found["n_damaged"] == 2
    assert [item["key"] for item in json.loads(Path(found["damaged"]).read_text())] == ["a.jpg", "cut.jpg"]
    assert [[Path(member["path"]).name for member in group["members"]] for group in found["groups"]] == [
        ["p2.jpg", "a.jpg"]
    ]
    assert found["groups"][0]["members"][1]["match"] == "same pixels" and found["groups"][0]["members"][1]["damage"]
    assert main(["train", str(folder), "--method", "lsh", "--bits", "16", "--out", "m", "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["n_damaged"] == 2 and Path("m/damaged.json").exists()


def test_names_in_tables_are_escaped(tmp_path: Path, options: Settings) -> None:
    for name in ("=1+1.png", "a\x1b[31m.png", "b\u202egnp.png"):
        (tmp_path / name).write_bytes(encode(picture(0), "PNG"))
    found = find_duplicates(open_source(tmp_path), replace(options, radius=5))
    text, page = report_csv(found), review_page(found, "dedup", "x")
    assert "\x1b" not in text + page and "\u202e" not in text + page and "\\x1b" in text and "\\u202e" in page
