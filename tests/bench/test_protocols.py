import importlib.util
import json
import re
import shlex
import sys
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distillhash.bench import protocols as protocols_module
from distillhash.bench.protocols import load_protocol, protocol_names, protocol_summaries
from distillhash.cli import build_parser
from distillhash.cli.common import parse_settings
from distillhash.errors import DataError, FormatError, ParameterError
from distillhash.methods import make_hasher, table_name
from distillhash.sources import Source, open_source

ROOT = Path(__file__).parents[2]


def labelled(labels: np.ndarray[Any, Any]) -> Source:
    source = open_source(np.ones((len(labels), 2), np.float32))
    source.labels = labels
    return source


@pytest.fixture(scope="module")
def shuffled() -> Source:
    return labelled(np.random.default_rng(0).permutation(np.repeat(np.arange(10), 6000)))


def test_cifar10_split_is_the_one_of_the_paper(shuffled: Source) -> None:
    split = load_protocol("cifar10-distillhash").split(shuffled)
    labels = shuffled.labels
    assert labels is not None
    assert (len(split.query), len(split.train), len(split.database)) == (10_000, 5_000, 50_000)
    np.testing.assert_array_equal(np.bincount(labels[split.query]), np.full(10, 1000))
    np.testing.assert_array_equal(np.bincount(labels[split.train]), np.full(10, 500))
    assert set(split.train) <= set(split.database)
    assert not set(split.query) & set(split.database)
    # Drawn by the rule that docs/protocols.md states.
    rng = np.random.default_rng(0)
    for label in range(10):
        places = rng.permutation(6000)
        rows = np.flatnonzero(labels == label)
        np.testing.assert_array_equal(split.query[1000 * label : 1000 * (label + 1)], rows[places[:1000]])
        np.testing.assert_array_equal(split.train[500 * label : 500 * (label + 1)], rows[places[1000:1500]])


def test_validation_never_touches_the_queries_it_protects(shuffled: Source) -> None:
    test, validation = (load_protocol(name).split(shuffled) for name in ("cifar10-distillhash", "cifar10-validation"))
    np.testing.assert_array_equal(validation.train, test.train)
    roles = [set(rows.tolist()) for rows in (validation.query, validation.database)]
    assert not set(test.query.tolist()) & (roles[0] | roles[1])
    assert not roles[0] & set(test.train.tolist())
    assert len(validation.query) == 2000 and len(validation.database) == 48_000


@pytest.mark.parametrize("name", protocol_names())
def test_stored_checksums_hold(name: str) -> None:
    protocol = load_protocol(name)
    assert protocol_summaries()[name] == protocol.summary
    if protocol.rule.draw == "stored":
        stored = files("distillhash.bench").joinpath("protocols", f"{name}.split.json").read_bytes()
        assert sha256(stored).hexdigest() == protocol.rule.sha256


@pytest.fixture(scope="module")
def official() -> Source:
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(10), 6000))
    source = labelled(labels)
    source.splits = {"train": np.arange(50_000), "test": np.arange(50_000, 60_000)}
    return source


@pytest.mark.parametrize(
    ("name", "n_query", "n_train", "n_database", "train_in_database"),
    [
        ("cifar10-distillhash", 10_000, 5_000, 50_000, True),
        ("cifar10-bihalf", 10_000, 50_000, 50_000, True),
        ("cifar10-official", 10_000, 50_000, 50_000, True),
        ("cifar10-cibhash", 10_000, 5_000, 50_000, True),
        ("cifar10-sdc", 1_000, 5_000, 59_000, True),
        ("cifar10-wch", 1_000, 5_000, 54_000, False),
    ],
)
def test_cifar10_protocols_have_the_sizes_of_their_papers(
    official: Source, name: str, n_query: int, n_train: int, n_database: int, train_in_database: bool
) -> None:
    split = load_protocol(name).split(official)
    assert (len(split.query), len(split.train), len(split.database)) == (n_query, n_train, n_database)
    query, train, database = (set(rows.tolist()) for rows in (split.query, split.train, split.database))
    assert not query & database and not query & train
    assert train <= database if train_in_database else not train & database
    assert official.labels is not None
    if name not in ("cifar10-official", "cifar10-cibhash"):
        assert np.ptp(np.bincount(official.labels[split.query])) == 0
    if n_train == 5_000:
        assert np.ptp(np.bincount(official.labels[split.train])) == 0
    assert load_protocol(name).split(official).checksum == split.checksum


def test_random_protocols_draw_what_the_paper_says() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, (25_000, 24))
    truth[:419] = 0  # so many of the 25,000 have no label
    flickr = labelled(truth)
    split = load_protocol("flickr25k-all").split(flickr)
    assert (len(split.query), len(split.train), len(split.database)) == (2_000, 5_000, 23_000)
    split = load_protocol("flickr25k-distillhash").split(flickr)
    assert (len(split.query), len(split.train), len(split.database)) == (2_000, 10_000, 18_015)
    assert set(split.train.tolist()) <= set(split.database.tolist()) and not set(split.query) & set(split.database)
    assert min(split.query.min(), split.database.min()) >= 419
    truth[:5_000] = 0
    with pytest.raises(DataError, match="needs 20,015 items with a label, this source has 20,000; --shrink"):
        load_protocol("flickr25k-distillhash").split(flickr)
    nuswide = labelled(rng.integers(0, 2, (30_000, 10)))
    split = load_protocol("nuswide10-distillhash").split(nuswide)
    assert (len(split.query), len(split.train), len(split.database)) == (5_000, 10_500, 25_000)
    assert set(split.train.tolist()) <= set(split.database.tolist())


def test_folder_protocol_takes_a_tenth_of_every_class() -> None:
    source = labelled(np.repeat([3, 5, 9], [40, 7, 20_000]))
    split = load_protocol("folder").split(source)
    assert source.labels is not None
    assert np.bincount(source.labels[split.query], minlength=10)[[3, 5, 9]].tolist() == [4, 1, 2000]
    assert len(split.train) == 5000 and set(split.train.tolist()) <= set(split.database.tolist())
    several = labelled(np.random.default_rng(0).integers(0, 2, (50, 4)))
    assert len(load_protocol("folder").split(several).query) == 5


def test_split_checksum_names_the_rows(shuffled: Source) -> None:
    split = load_protocol("cifar10-distillhash").split(shuffled)
    digest = sha256(b"".join(rows.astype("<i8").tobytes() for rows in (split.query, split.train, split.database)))
    assert split.checksum == digest.hexdigest()


def test_refusals(shuffled: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ParameterError, match="unknown protocol 'mine'"):
        load_protocol("mine")
    protocol = load_protocol("cifar10-distillhash")
    with pytest.raises(DataError, match="needs labels; array has none"):
        protocol.split(open_source(np.ones((5, 2))))
    with pytest.raises(DataError, match="needs one class per item; array has several"):
        protocol.split(labelled(np.ones((5, 3), int)))
    with pytest.raises(DataError, match="has no train part"):
        load_protocol("cifar10-official").split(shuffled)
    with pytest.raises(DataError, match="too small for protocol folder"):
        load_protocol("folder").split(labelled(np.zeros(1, int)))
    with pytest.raises(DataError, match="10 classes of 6000 items; class 0 of array has 3"):
        protocol.split(labelled(np.zeros(3, int)))

    class Tampered:
        def __init__(self, name: str) -> None:
            pass

        def read_bytes(self) -> bytes:
            return json.dumps({"query": [], "train": []}).encode()

    monkeypatch.setattr(protocols_module, "_file", Tampered)
    with pytest.raises(FormatError, match="does not match its checksum"):
        protocol.split(shuffled)


def test_published_numbers_are_those_of_table_1_and_2() -> None:
    published = load_protocol("cifar10-distillhash").published
    assert published["distillhash"] == {"16": 0.2844, "32": 0.2853, "64": 0.2867, "128": 0.2895}
    gains = [published["distillhash"][n] - published["ssdh"][n] for n in published["ssdh"]]
    assert np.mean(gains) == pytest.approx(0.0286, abs=5e-5)  # section 4.5 prints 2.86 points
    gains = [published["distillhash"][n] - published["itq"][n] for n in published["itq"]]
    assert np.mean(gains) == pytest.approx(0.0773, abs=5e-5)  # and 7.73


def test_rows_of_other_papers_belong_to_the_protocol_and_name_backbone_and_source() -> None:
    found = {name: load_protocol(name).elsewhere for name in protocol_names()}
    values = {
        (name, row.method): tuple(row.values[n] for n in ("16", "32", "64")) for name in found for row in found[name]
    }
    assert values["cifar10-cibhash", "cibhash"] == (0.590, 0.622, 0.641)
    assert values["cifar10-bihalf", "MeCoQ, asymmetric"] == (0.690, 0.703, 0.702)  # V100, scripts 7, 9 and 11, rounded
    assert values["cifar10-distillhash", "MeCoQ, a quantiser, symmetric"] == (0.601, 0.615, 0.633)
    assert values["cifar10-sdc", "itq"] == (0.468, 0.513, 0.544) and values["cifar10-official", "nsh"][2] == 0.756
    for row in (row for rows in found.values() for row in rows):
        assert row.backbone and row.source and all(0 < value < 1 for value in row.values.values())
    assert [load_protocol(f"cifar10-{name}").summary[:13] for name in ("bihalf", "distillhash")] == [
        "CIFAR-10 (I):",
        "CIFAR-10 (II)",
    ]


@pytest.fixture(scope="module")
def paper() -> Any:
    """The benchmark that makes every table and figure of the paper."""
    spec = importlib.util.spec_from_file_location("distillhash_paper", ROOT / "benchmarks" / "distillhash_paper.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_table_and_row_of_the_paper_has_a_command(paper: Any) -> None:
    page = (ROOT / "docs" / "protocols.md").read_text()
    (command,) = re.findall(r"    python benchmarks/distillhash_paper.py (DATA .+)", page)
    rows = re.findall(r"`distillhash (bench \$COMMON [^`]+)`", page)
    (common,) = re.findall(r'COMMON="(--data DATA .+)"', page)
    places = re.findall(r"`(\S+:DIR --protocol \S+-distillhash)`", page)
    assert len(rows) == 4 and len(places) == 3
    for place in places:
        arguments = paper.make_parser().parse_args(shlex.split(command.replace("DATA", place)))
        published = load_protocol(arguments.protocol).published
        n_train = {"cifar10": 5000, "flickr25k": 10_000, "nuswide": 10_500}[place.partition(":")[0]]
        stated = {5000: 13, 10_000: 6, 10_500: 6}[n_train]
        found, settings = set(), {}
        for part in paper.parts(n_train):
            for method in part.methods:
                hasher = make_hasher(method, 16, **part.settings)
                assert hasher.fine_tunes or not part.fine_tune
                settings[method] = hasher.get_params()
                found.add(table_name(method))
        assert settings["distillhash:paper"]["fine_tune_epochs"] == stated
        assert found == set(published) and set(published["ssdh"]) == set(arguments.bits.split(","))
        assert arguments.backbone == "vgg16" and not arguments.frozen
        found = set()
        for row in rows:
            typed = build_parser().parse_args(shlex.split(row.replace("$COMMON", common.replace("DATA", place))))
            for method in typed.methods.split(","):
                hasher = make_hasher(method, 16, **parse_settings(typed.set))
                assert hasher.fine_tunes == typed.fine_tune and typed.backbone == "vgg16"
                assert n_train != 5000 or hasher.get_params() == settings[method]  # both ways are one experiment
                found.add(table_name(method))
        assert found == set(published)
    assert load_protocol("flickr25k-all").published == load_protocol("flickr25k-distillhash").published


def test_every_figure_of_the_paper_is_made(paper: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(240) % 4
    features = (rng.standard_normal((4, 20))[labels] + 0.5 * rng.standard_normal((240, 20))).astype(np.float32)
    np.savez(tmp_path / "data.npz", features=features, labels=labels)
    monkeypatch.setattr(paper.figures.Drawing, "png", lambda _: b"")
    monkeypatch.setattr(paper, "SWEEPS", {"n_neighbours": ("o", (2, 4)), "n_outputs": ("p", (16,))})
    words = [str(tmp_path / "data.npz"), "--protocol", "folder", "--backbone", "embeddings", "--frozen", "--no-cache"]
    words += ["--bits", "16", "--out", str(tmp_path / "out")]
    paper.main(words)
    page = (ROOT / "docs" / "protocols.md").read_text()
    table = page[page.index("| of the paper | in `out/paper`") : page.index("`--only tables`")]
    for name in re.findall(r"`(?:figures/)?((?:topn|pr)-16|figure5-[op])`", table):
        assert (tmp_path / "out" / "figures" / f"{name}.svg").exists() and name in (
            "topn-16",
            "pr-16",
            "figure5-o",
            "figure5-p",
        )
    assert (tmp_path / "out" / "figures" / "loss-distillhash.svg").read_text().count("Training loss by iteration")
    markdown = (tmp_path / "out" / "table.md").read_text()
    names = [table_name(method) for part in paper.parts(100) for method in part.methods]
    assert all(f"\n| {name}" in markdown for name in names)
    cells = json.loads((tmp_path / "out" / "figure5.json").read_text())["cells"]
    assert [(cell["option"], cell["value"]) for cell in cells] == [("o", 2), ("o", 4), ("p", 16)]
    records = json.loads((tmp_path / "out" / "table.json").read_text())
    (maps,) = (record["map"] for record in records if record["method"] == "distillhash:paper")
    assert cells[1]["map"] == pytest.approx([maps], rel=1e-5)  # o = 4 is the paper's
