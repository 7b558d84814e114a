"""encode --shard and merge: whatever the shards were, and whoever was killed, the joined file is the one that encode writes."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import distillhash.codes
from distillhash import Codes, HashModel, make_hasher
from distillhash.cli import main
from image_factory import make_cut, make_png


def run(*words: object) -> int:
    return main([*map(str, words), "--quiet"])


def facts(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, object]:
    assert main([*map(str, words), "--json", "--quiet"]) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures, some of no use, and one of embeddings, each with a model."""
    place = tmp_path_factory.mktemp("shards")
    photos = place / "photos"
    photos.mkdir()
    for row in range(23):
        (photos / f"{row:02}.png").write_bytes(make_png(20, 16, row))
    for row in (4, 5, 11):
        (photos / f"{row:02}.png").write_bytes(b"no picture")
    (photos / "17.jpg").write_bytes(make_cut())
    np.save(place / "x.npy", np.random.default_rng(0).standard_normal((203, 8)).astype(np.float32))
    for source, backbone, bits in ((photos, "efficientnet-lite0", 12), (place / "x.npy", "embeddings", 7)):
        model = HashModel(backbone=backbone, hasher=make_hasher("lsh", bits), image_size=32 if bits == 12 else None)
        model.fit(str(source)).save(place / f"m-{source.stem}")
    return place


@pytest.fixture
def there(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where relative names lead to the sources and models, and new files are this test's."""
    for path in place.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_joined_shards_are_the_file_that_encode_writes(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for source, model, counts in (
        ("photos", "m-photos", (30,)),
        ("x.npy", "m-x", (1, 3, 203, 300)),
        ("x.npy#3:90", "m-x", (7,)),
    ):
        for suffix in (".parquet", ".npz") if source != "photos" else (".parquet",):
            plain = facts(capsys, "encode", source, "--model", model, "--out", f"plain{suffix}")
            for count in counts:
                alone = source != "photos" and count < 10
                for number in random.Random(0).sample(range(count), count) if alone else ["all"]:
                    assert run("encode", source, "--model", model, "--shard", f"{number}/{count}", "--out", "sh") == 0
                joined = facts(capsys, "merge", "sh", "--out", f"joined{suffix}")
                assert Path(f"plain{suffix}").read_bytes() == Path(f"joined{suffix}").read_bytes()
                names = ("n_codes", "n_bits", "n_skipped", "n_damaged")
                assert [plain[name] for name in names] == [joined[name] for name in names]
                assert joined["n_shards"] == count
                for kind in ("skipped", "damaged"):
                    beside = [there / f"{name}.{kind}.json" for name in ("plain", "joined")]
                    assert [path.exists() for path in beside] == [source == "photos"] * 2
                    if source == "photos":
                        assert beside[0].read_bytes() == beside[1].read_bytes()
                shutil.rmtree("sh")


def test_a_table_of_several_row_groups_does_not_show_how_it_was_batched(
    there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distillhash.codes, "_GROUP_ROWS", 50)
    assert run("encode", "x.npy", "--model", "m-x", "--out", "plain.parquet") == 0
    assert run("encode", "x.npy", "--model", "m-x", "--shard", "all/9", "--out", "sh") == 0
    assert run("merge", "sh", "--out", "joined.parquet") == 0
    codes, keys = Codes.load("plain.parquet")
    codes.save("saved.parquet", keys=keys)
    groups = pq.ParquetFile("saved.parquet").metadata
    assert [groups.row_group(place).num_rows for place in range(groups.num_row_groups)] == [50, 50, 50, 50, 3]
    assert Path("plain.parquet").read_bytes() == Path("joined.parquet").read_bytes()
    assert pq.read_table("plain.parquet").equals(pq.read_table("saved.parquet"))


def test_a_shard_is_a_file_of_codes(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows are consecutive; each shard can be indexed by itself, and does not tell what is gone."""
    assert run("encode", "x.npy", "--model", "m-x", "--shard", "all/4", "--out", "sh") == 0
    parts = [Codes.load(f"sh/codes-{number:05}.parquet") for number in range(4)]
    assert [len(codes) for codes, _ in parts] == [50, 51, 51, 51]
    assert [key for _, keys in parts for key in keys or []] == [str(row) for row in range(203)]
    for number in range(4):
        assert run("index", f"sh/codes-{number:05}.parquet", "--model", "m-x", "--index", "ix") == 0
    assert run("merge", "sh", "--out", "sh/../sh/codes-00002.parquet") == 2
    assert "is one of the shards" in capsys.readouterr().err
    assert run("merge", "sh", "--out", "c.parquet") == 0
    found = facts(capsys, "index", "c.parquet", "--index", "ix", "--prune")
    assert (found["unchanged"], found["added"], found["n_items"]) == (203, 0, 203)
    assert main(["index", "sh/codes-00000.parquet", "--index", "ix", "--prune"]) == 2
    assert "is a part of a source" in capsys.readouterr().err


def test_what_is_there_is_not_made_again(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["encode", "x.npy", "--model", "m-x", "--out", "sh", "--shard"]
    assert facts(capsys, *words, "2/5")["n_written"] == 1
    before = Path("sh/codes-00002.parquet").stat()
    assert facts(capsys, *words, "2/5") | {"n_written": 0, "n_there": 1, "n_codes": 40} == facts(capsys, *words, "2/5")
    found = facts(capsys, *words, "all/5")
    assert (found["n_written"], found["n_there"], found["n_codes"]) == (4, 1, 203)
    after = Path("sh/codes-00002.parquet").stat()
    assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino)


def remove(folder: Path, *numbers: int) -> None:
    for number in numbers:
        (folder / f"codes-{number:05}.parquet").unlink()


def renamed(folder: Path) -> None:
    (folder / "codes-00003.parquet").rename(folder / "codes-00004.parquet")


def of_another_run(folder: Path) -> None:
    assert run("encode", "x.npy", "--model", "m-x", "--max-pixels", "999", "--shard", "3/6", "--out", "other") == 0
    shutil.copy("other/codes-00003.parquet", folder)


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "two missing": (
        lambda d: remove(d, 1, 3),
        "2 of 4 shards are missing in sh (1, 3); make the first by "
        "`distillhash encode x.npy --model m-x --max-pixels 999 --shard 1/4 --out sh`, all by --shard all/4",
    ),
    "none there": (lambda d: remove(d, 0, 1, 2, 3), "sh holds no shards"),
    "cut short": (lambda d: (d / "codes-00001.parquet").write_bytes((d / "codes-00001.parquet").read_bytes()[:-300]), "not a whole shard"),
    "empty": (lambda d: (d / "codes-00001.parquet").write_bytes(b""), "codes-00001.parquet is not a whole shard"),
    "another number": (renamed, "codes-00004.parquet is not a whole shard (it states shard 3/4)"),
    "a copy": (lambda d: shutil.copy(d / "codes-00000.parquet", d / "codes-00002.parquet"), "it states shard 0/4"),
    "no shard": (lambda d: Codes(np.zeros((3, 1), np.uint8), 7).save(d / "codes-00001.parquet"), "(it says nothing of shards)"),
    "another count": (of_another_run, "codes-00003.parquet is of another number of shards: 6, not 4"),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILT)
def test_shards_that_are_not_whole_or_do_not_belong_together(
    there: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    spoil, message = SPOILT[name]
    words = ["encode", "x.npy", "--model", "m-x", "--max-pixels", "999"]
    assert run(*words, "--shard", "all/4", "--out", "sh") == 0
    spoil(there / "sh")
    capsys.readouterr()
    assert run("merge", "sh", "--out", "joined.parquet") == 1
    assert message in capsys.readouterr().err
    assert not Path("joined.parquet").exists()


def test_a_flipped_bit_is_found_wherever_it_matters(there: Path) -> None:
    """Some bits of a Parquet file say nothing of its content, such as the largest value of a column."""
    assert run("encode", "x.npy", "--model", "m-x", "--out", "plain.parquet") == 0
    assert run("encode", "x.npy", "--model", "m-x", "--shard", "all/2", "--out", "sh") == 0
    path, rng, n_found = Path("sh/codes-00001.parquet"), random.Random(0), 0
    data = path.read_bytes()
    for _ in range(40):
        place = rng.randrange(len(data))
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :])
        if run("merge", "sh", "--out", "joined.parquet") == 0:
            assert pq.read_table("joined.parquet").equals(pq.read_table("plain.parquet"))
        else:
            n_found += 1
    assert n_found > 20


def test_another_model_source_or_option_is_refused(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = np.load("x.npy")
    np.save("y.npy", x)
    HashModel(backbone="embeddings", hasher=make_hasher("lsh", 7, seed=1)).fit(x).save("other")
    assert run("encode", "y.npy", "--model", "m-x", "--shard", "0/2", "--out", "sh") == 0
    for words, message in (
        (["y.npy", "--model", "other"], "is of another model (fingerprint)"),
        (["x.npy", "--model", "m-x"], "is of another source, or its options"),
        (["y.npy#:100", "--model", "m-x"], "is of another source, or its options"),
        (["y.npy", "--model", "m-x", "--max-pixels", "99"], "is of another source, or its options"),
    ):
        assert run("encode", *words, "--shard", "0/2", "--out", "sh") == 1
        text = capsys.readouterr().err
        assert message in text and "made by `distillhash encode y.npy --model m-x`" in text
        assert run("encode", *words, "--shard", "1/2", "--out", "sh") == 0
        assert run("merge", "sh", "--out", "c.npz") == 1
        assert message in capsys.readouterr().err
        Path("sh/codes-00001.parquet").unlink()
    np.save("y.npy", x[::-1])
    assert run("encode", "y.npy", "--model", "m-x", "--shard", "all/2", "--out", "sh") == 1


def test_items_of_no_use(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["encode", "photos", "--model", "m-photos", "--out", "sh", "--shard"]
    assert run(*words, "0/4", "--strict") == 1  # rows 4 and 5 lie in the first shard
    assert "2 items could not be used, first 04.png" in capsys.readouterr().err
    assert not list(Path("sh").iterdir())
    assert run(*words, "all/4") == 0
    assert run("merge", "sh", "--out", "c.npz", "--strict") == 1
    assert "3 items could not be used (first: 04.png" in capsys.readouterr().err
    assert not Path("c.npz").exists()
    Path("bad").mkdir()
    for row in range(3):
        Path(f"bad/{row}.png").write_bytes(b"x")
    assert run("encode", "bad", "--model", "m-photos", "--out", "bad-sh", "--shard", "all/2") == 0
    assert run("merge", "bad-sh", "--out", "c.npz") == 1
    assert "nothing usable in bad-sh: all 3 items were skipped" in capsys.readouterr().err


@pytest.mark.parametrize("shard", ["3", "1/0", "2/2", "-1/2", "1/2/3", "a/b", "0/100001", "all", "1 / 2", "²/3"])
def test_shards_that_cannot_be(there: Path, shard: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        run("encode", "x.npy", "--model", "m-x", "--out", "sh", f"--shard={shard}")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "sh"], "--out must end in .npz or .parquet"),
        (["--out", "c.npz", "--shard", "0/2"], "--out is a folder"),
        (["--out", "sh", "--engine", "ray"], "give --shard all/n"),
    ],
)
def test_options_that_do_not_fit(
    there: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert run("encode", "x.npy", "--model", "m-x", *words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.long
def test_a_full_disk_leaves_no_file(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A limit on the size of files is what stands in for the disk."""
    np.save("y.npy", np.random.default_rng(0).standard_normal((20_000, 8)).astype(np.float32))
    line = "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    line += "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); from distillhash.cli import main; sys.exit(main())"
    for words in (["--shard", "0/1", "--out", "sh"], ["--out", "c.parquet"]):
        command = [sys.executable, "-c", line, "encode", "y.npy", "--model", "m-x", "--quiet", *words]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 1 and "File too large" in done.stderr and "Traceback" not in done.stderr
    assert [path.name for path in there.rglob("*") if "codes" in path.name or "partial" in path.name] == []
    assert not Path("c.parquet").exists()


def kill_at_random(command: list[str], rng: random.Random, longest: float) -> bool:
    """Whether the command ended by itself."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    try:
        _, text = process.communicate(timeout=rng.uniform(0, longest))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return False
    assert process.returncode == 0, text
    return True


@pytest.mark.long
def test_killed_at_any_moment_no_more_than_a_shard_is_lost(there: Path) -> None:
    """Writers of all shards are killed again and again, at random moments; then the rest is made, and the file is that of encode."""
    Path("many").mkdir()
    for row in range(400):
        Path(f"many/{row:03}.png").write_bytes(make_png(160, 120, row))
    encode = [sys.executable, "-m", "distillhash", "encode", "many", "--model", "m-photos", "--no-cache", "--quiet"]
    assert run("encode", "many", "--model", "m-photos", "--no-cache", "--out", "plain.parquet") == 0
    started = time.monotonic()
    subprocess.run([*encode, "--shard", "all/40", "--out", "once"], check=True)
    longest = time.monotonic() - started
    rng, kills = random.Random(27), 0
    for _ in range(3):
        shutil.rmtree("sh", ignore_errors=True)
        held = 0
        while not kill_at_random([*encode, "--shard", "all/40", "--out", "sh"], rng, longest):
            kills += 1
            names = sorted(path.name for path in Path("sh").glob("codes-*.parquet"))
            assert len(names) >= held  # what was written stays
            held = len(names)
            for name in names:
                assert Path(f"sh/{name}").read_bytes() == Path(f"once/{name}").read_bytes()
        assert run("merge", "sh", "--out", "joined.parquet") == 0
        assert Path("joined.parquet").read_bytes() == Path("plain.parquet").read_bytes()
        assert sorted(path.name for path in Path("sh").iterdir()) == [f"codes-{row:05}.parquet" for row in range(40)]
    assert kills >= 3
