"""The bench: resuming, failing, merging, tables with their bootstrap, the report, and the multi-label data sets end to end."""

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import image_factory as factory
from distillhash.bench import runs as runs_module
from distillhash.bench.protocols import load_protocol
from distillhash.bench.report import bench_figures
from distillhash.bench.runs import Prepared, Provenance, Run, add_kept_runs, run_matrix
from distillhash.bench.tables import (
    MEASURES,
    best_measures,
    bootstrap_difference,
    elsewhere_table,
    learned_from_fewer,
    make_rows,
    write_tables,
)
from distillhash.cli import main
from distillhash.errors import DataError
from distillhash.methods import make_hasher
from distillhash.methods.base import sample_rows
from distillhash.metrics import neighbour_recall
from distillhash.metrics.retrieval import evaluate_codes, evaluate_queries
from distillhash.models import HashModel
from distillhash.sources import open_source
from distillhash.sources.flickr25k import LABEL_NAMES
from distillhash.sources.nuswide import CONCEPTS


def prepared(n: int = 200, seed: int = 0) -> Prepared:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 4
    features = (rng.standard_normal((4, 12))[labels] + 0.4 * rng.standard_normal((n, 12))).astype(np.float32)
    source = open_source(features)
    source.labels = labels
    protocol = load_protocol("folder")
    return Prepared(protocol, protocol.split(source), features, labels, {"name": "embeddings", "fingerprint": "x"})


def run_all(
    data: Prepared, methods: list[str], bits: list[int], seeds: list[int], folder: Path, **settings: Any
) -> list[Run]:
    return [run for run, _ in run_matrix(data, methods, bits, seeds, settings, folder)]


def count_fits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    fitted: list[str] = []
    original: Callable[..., Any] = make_hasher

    def make(method: str, *arguments: Any, **options: Any) -> Any:
        hasher = original(method, *arguments, **options)
        fit = hasher.fit

        def counted(*args: Any, **kwargs: Any) -> Any:
            fitted.append(method)
            return fit(*args, **kwargs)

        hasher.fit = counted
        return hasher

    monkeypatch.setattr(runs_module, "make_hasher", make)
    return fitted


def test_a_stopped_run_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, fitted = prepared(), count_fits(monkeypatch)
    stopped = list(islice(run_matrix(data, ["lsh", "itq"], [8], [0, 1], {}, tmp_path / "stopped"), 3))
    again = list(run_matrix(data, ["lsh", "itq"], [8], [0, 1], {}, tmp_path / "stopped"))
    assert [found for _, found in stopped + again] == [False] * 3 + [True] * 3 + [False] and len(fitted) == 4
    runs, fresh = [run for run, _ in again], run_all(data, ["lsh", "itq"], [8], [0, 1], tmp_path / "fresh")
    assert [run.record["map"] for run in runs] == [run.record["map"] for run in fresh]
    for run, other in zip(runs, fresh, strict=True):
        np.testing.assert_array_equal(run.average_precision, other.average_precision)


def test_kept_runs_of_another_experiment_are_not_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = count_fits(monkeypatch)
    run_all(prepared(), ["itq"], [8], [0], tmp_path)
    run_all(prepared(240), ["itq"], [8], [0], tmp_path)  # another split
    run_all(prepared(240), ["itq"], [8], [0], tmp_path, iterations=3)
    run_all(prepared(240), ["itq"], [8], [0], tmp_path, iterations=3)
    assert len(fitted) == 3
    (tmp_path / "itq-8-0.json").write_text("{damaged")
    run_all(prepared(240), ["itq"], [8], [0], tmp_path, iterations=3)
    assert len(fitted) == 4


def test_records_hold_the_recall_of_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = prepared()
    (run,) = run_all(data, ["itq"], [8], [0], tmp_path)
    query, database = data.features[data.split.query], data.features[data.split.database]
    hasher = make_hasher("itq", 8, seed=0).fit(data.features[data.split.train])
    expected = neighbour_recall(hasher.encode(query), hasher.encode(database), query, database, depths=(10, 40, 100))
    for depth in (10, 40, 100):
        assert run.record[f"neighbour_recall@{depth}"] == expected[f"recall10@{depth}"]
    (row,) = make_rows([run])
    measures = [f"{run.record[key]:.3f}" for key in MEASURES]
    assert [row.measure(8, key) for key in MEASURES] == measures
    assert best_measures([row]) == {8: dict(zip(MEASURES, measures, strict=True))}
    older = Run({key: value for key, value in run.record.items() if "neighbour" not in key}, run.average_precision)
    (row,) = make_rows([older])
    assert [row.measure(8, key) for key in MEASURES] == [*measures[:-1], "\N{EN DASH}"]
    assert best_measures([row, *make_rows([run])]) == {8: dict(zip(MEASURES, measures, strict=True))}
    fitted = count_fits(monkeypatch)
    monkeypatch.setattr(runs_module, "DEPTHS", (10,))  # a record of other measures counts as none
    run_all(data, ["itq"], [8], [0], tmp_path)
    assert fitted == ["itq"]


def test_a_failing_method_is_recorded_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = prepared()
    runs = run_all(data, ["itq", "lsh"], [16], [0], tmp_path)  # 16 bits from 12 features
    assert runs[0].failed and runs[0].average_precision is None and not runs[1].failed
    assert "DataError: 16 bits need at least 16 features" in runs[0].record["error"]
    rows = {row.method: row for row in make_rows(runs)}
    assert rows["itq"].cell(16) == "failed" and rows["itq"].errors and not rows["lsh"].errors
    fitted = count_fits(monkeypatch)
    run_all(data, ["itq", "lsh"], [16], [0], tmp_path)
    assert fitted == ["itq"]


def test_one_folder_collects_what_several_commands_found(tmp_path: Path) -> None:
    data = prepared()
    run_all(data, ["lsh"], [8, 4], [0], tmp_path)
    run_all(prepared(240), ["pcah"], [8], [0], tmp_path)  # not of this experiment
    merged = add_kept_runs(run_all(data, ["itq"], [8], [0, 1], tmp_path), tmp_path, data, {})
    assert [(run.record["method"], run.record["n_bits"], run.record["seed"]) for run in merged] == [
        ("itq", 8, 0),
        ("itq", 8, 1),
        ("lsh", 8, 0),
    ]


def test_average_precision_of_every_query() -> None:
    data = prepared()
    codes = make_hasher("itq", 8).fit(data.features).encode(data.features)
    report, average_precision = evaluate_queries(codes[:50], codes, data.labels[:50], data.labels)
    assert report["map"] == pytest.approx(average_precision.mean(), abs=1e-12)
    one = evaluate_codes(codes[7:8], codes, data.labels[7:8], data.labels)["map"]
    assert average_precision[7] == pytest.approx(one, abs=1e-12)
    other = np.where(np.arange(50) == 3, 9, data.labels[:50])  # a class that the database lacks
    assert np.flatnonzero(np.isnan(evaluate_queries(codes[:50], codes, other, data.labels)[1])).tolist() == [3]


def test_bootstrap_interval_is_that_of_resampled_queries() -> None:
    rng = np.random.default_rng(0)
    mine, best = rng.random(400), rng.random(400) + 0.05
    mine[5] = best[5] = np.nan
    found = bootstrap_difference(mine, best)
    gaps = np.delete(mine - best, 5)
    means = [gaps[rng.integers(0, 399, 399)].mean() for _ in range(4000)]
    assert found.mean == pytest.approx(gaps.mean())
    assert (found.low, found.high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.004)
    same = bootstrap_difference(best, best)
    assert (same.mean, same.low, same.high) == (0, 0, 0)


def test_rows_are_ordered_and_compared_with_the_best(tmp_path: Path) -> None:
    runs = run_all(prepared(), ["lsh", "itq", "pcah"], [4, 8], [0, 1], tmp_path)
    rows = make_rows(runs)
    means = [np.mean([np.mean(values) for values in row.maps.values()]) for row in rows]
    assert means == sorted(means, reverse=True)
    for n_bits in (4, 8):
        best = max(rows, key=lambda row: float(np.mean(row.maps[n_bits])))
        assert n_bits not in best.differences
        for row in rows:
            if row is not best:
                gap = np.mean(row.maps[n_bits]) - np.mean(best.maps[n_bits])
                assert row.differences[n_bits].mean == pytest.approx(gap, abs=1e-6)
    assert rows[0].cell(8) == f"{np.mean(rows[0].maps[8]):.4f} ({np.std(rows[0].maps[8], ddof=1):.4f})"


def test_a_paper_has_its_name_only_in_its_own_reading(tmp_path: Path) -> None:
    """A row of defaults that depart from the paper is called otherwise; printed numbers and Table 2 go by the name."""
    words = ["distillhash-initial", "distillhash-initial:paper", "dsh", "dsg", "urph:nearest"]
    runs = run_all(prepared(), words, [8], [0], tmp_path)
    assert all((tmp_path / f"{word.replace(':', '=')}-8-0.json").exists() for word in words)
    assert {run.record["method"] for run in add_kept_runs([runs[2]], tmp_path, prepared(), {})} == set(words)
    protocol, provenance = (
        load_protocol("cifar10-distillhash"),
        Provenance("bench", "p", "0", "s", {"name": "n"}, [0], {}),
    )
    rows = {row.name: row for row in make_rows(runs)}
    write_tables(tmp_path, runs, list(rows.values()), protocol, provenance)
    lines = (tmp_path / "table.md").read_text().splitlines()
    following = {line.split(" | ")[0]: lines[number + 1] for number, line in enumerate(lines[:14])}
    assert "printed in the paper" in following["| distillhash-initial"]
    assert "printed in the paper" not in following["| distillhash-initial, beta = 0"]
    assert "| dsg \N{DAGGER}" in following and "| urph, preset nearest \N{DAGGER}" in following and "| dsh" in following
    (note,) = (line for line in lines if line.startswith("\N{DAGGER}"))
    assert "dsg: threshold, weights and filter" in note and "dsh" not in note


def test_figures_of_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = run_all(prepared(), ["lsh", "ssdh:paper", "distillhash-initial:paper"], [4, 8], [0], tmp_path)
    names = [figure.name for figure in bench_figures(runs, make_rows(runs), load_protocol("folder"))]
    assert names == ["map", "neighbour-recall", "topn-4", "pr-4", "topn-8", "pr-8", "loss-distillhash-initial"]
    monkeypatch.setattr("distillhash.bench.report.DRAWN_TOGETHER", 2)
    parts = [figure.name for figure in bench_figures(runs, make_rows(runs), load_protocol("folder"))]
    assert {"map", "map-2", "pr-4", "pr-4-2"} <= set(parts) and len(parts) == len(set(parts)) == 13
    some = runs[:1] + runs[-3:]
    split = [figure.name for figure in bench_figures(some, make_rows(some), load_protocol("cifar10-distillhash"))]
    assert "map" in split and "map-others" not in split


def test_rows_of_other_papers_stand_below_ours(tmp_path: Path) -> None:
    protocol = load_protocol("cifar10-sdc")
    data = replace(prepared(), protocol=protocol)
    runs = run_all(data, ["itq"], [8], [0, 1], tmp_path) + run_all(data, ["lsh"], [8, 16], [0], tmp_path)
    provenance = Provenance("", protocol.name, "", "", {"name": "lite0", "image_size": 128}, [0, 1], {}, n_train=200)
    table = elsewhere_table(runs, make_rows(runs), protocol, provenance)
    assert table[0] == ["method", "backbone", "8 bits", "16 bits", "from"]
    names = [row[0] for row in table[1:]]
    assert names[names.index("itq") + 1] == "*itq*" and names[-1] == "*sdc*" and "lsh" in names
    mine = [run.record["map@1000_hits"] for run in runs if run.record["method"] == "itq" and run.record["n_bits"] == 8]
    assert table[names.index("itq") + 1][1:3] == ["lite0 at 128 pixels, frozen", f"{np.mean(mine):.3f}"]
    assert table[names.index("*itq*") + 1][1:4] == ["VGG16, frozen", "\N{EN DASH}", "0.468"]
    assert elsewhere_table(runs, make_rows(runs), load_protocol("folder"), provenance) == []


def test_a_protocols_training_set_is_not_cut_silently(tmp_path: Path) -> None:
    protocol = load_protocol("nuswide10-distillhash")
    source = open_source(np.zeros((16_000, 2), np.float32))
    source.labels = np.ones((16_000, 10), np.uint8)
    data = replace(prepared(), protocol=protocol, split=protocol.split(source))
    assert len(data.split.train) == protocol.max_train == 10_500
    for method in ("ssdh", "distillhash", "distillhash-initial", "dsg", "cimon", "mls3rduh", "cibhash", "itq"):
        hasher = runs_module._hasher(data, method, 2, 0, {})
        limit = hasher.get_params().get("max_train", 10_500)
        assert limit >= 10_500 and len(sample_rows(10_500, limit, np.random.default_rng(0))) == 10_500
    assert runs_module._hasher(data, "ssdh", 2, 0, {"max_train": 300}).get_params()["max_train"] == 300
    small = replace(prepared(), protocol=replace(load_protocol("folder"), max_train=120))
    (cut,) = run_all(small, ["ssdh"], [4], [0], tmp_path / "cut", max_train=50)
    assert cut.record["n_train"] == 50
    assert (
        learned_from_fewer([cut], 180)
        == "Of 180 training items some methods learned from fewer (their max_train): ssdh, beta = 0 from 50."
    )
    (whole,) = run_all(small, ["ssdh"], [4], [0], tmp_path / "whole")
    assert whole.record["n_train"] == 180 and learned_from_fewer([whole], 180) == ""


@pytest.mark.long
def test_all_10_500_training_images_of_nus_wide_are_learned_from(tmp_path: Path) -> None:
    protocol, rng = load_protocol("nuswide10-distillhash"), np.random.default_rng(0)
    labels = (rng.random((16_000, 10)) < 0.2).astype(np.uint8)
    features = (labels @ rng.standard_normal((10, 8)) + rng.standard_normal((16_000, 8))).astype(np.float32)
    source = open_source(features)
    source.labels = labels
    data = Prepared(protocol, protocol.split(source), features, labels, {"name": "embeddings", "fingerprint": "x"})
    for run in run_all(data, ["ssdh", "distillhash"], [4], [0], tmp_path, epochs=1):
        assert not run.failed and run.record["n_train"] == 10_500 and run.record["peak_rss_mb"] < 4_000


def test_losses_by_iteration_are_means_of_ten_steps(tmp_path: Path) -> None:
    data = prepared()
    (run,) = run_all(data, ["distillhash-initial"], [4], [0], tmp_path, epochs=4, batch_size=40)
    hasher = make_hasher("distillhash-initial", 4, seed=0, epochs=4, batch_size=40).fit(data.features[data.split.train])
    steps = np.array(hasher.history_["iteration_loss"])
    assert len(steps) == 4 * 5 and steps.reshape(4, 5).mean(axis=1) == pytest.approx(hasher.history_["loss"])
    assert run.record["iteration_loss"] == pytest.approx([steps[:10].mean(), steps[10:].mean()])


def test_bench_on_any_folder_of_classes(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "bench",
        "--data",
        str(photos),
        "--protocol",
        "folder",
        "--methods",
        "lsh,distillhash-contrast",
        "--bits",
        "8",
        "--seeds",
        "0,1",
    ]
    command += ["--image-size", "32", "--views", "2"]
    assert main([*command, "--out", str(tmp_path / "out"), "--json", "--quiet"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["n_records"] == 4 and summary["n_failed"] == 0
    html = (tmp_path / "out" / "report.html").read_text()
    assert "<script" not in html and "http" not in html.replace("http://www.w3.org", "").split("<body")[1]
    for suffix in ("svg", "png"):
        assert (tmp_path / "out" / "figures" / f"map.{suffix}").exists()
    assert ET.parse(tmp_path / "out" / "figures" / "pr-8.svg").getroot().tag.endswith("svg")
    markdown = (tmp_path / "out" / "table.md").read_text()
    assert "| lsh |" in markdown and "2 augmented views" in markdown and "Differences from the best" in markdown
    record = summary["records"][0]
    measured = [[one[key] for one in summary["records"] if one["method"] == "lsh"] for key in MEASURES]
    both = " | ".join(f"{np.mean(values):.3f} ({np.std(values, ddof=1):.3f})" for values in measured)
    assert f"| lsh | {both} |" in markdown and "neighbour_recall@100" in record and "Classes and neighbours" in html
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert provenance["n_views"] == 2 and provenance["teacher"] is True
    assert "at the size that the backbone was trained with, for distillhash-contrast" in markdown


def test_fine_tuned_runs_stand_beside_frozen_ones(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"epochs": 2, "fine_tune_epochs": 1, "fine_tune_rate": 0.01}
    command = ["bench", "--data", photos, "--protocol", "folder", "--bits", "8", "--seeds", "0", "--image-size", "32"]
    command += ["--device", "cpu", "--out", tmp_path / "out", "--json", "--quiet"]
    command += [word for name, value in options.items() for word in ("--set", f"{name}={value}")]

    def bench(methods: str, *more: str) -> dict[tuple[str, bool], dict[str, Any]]:
        assert main([*map(str, command), "--methods", methods, *more]) == 0
        records = json.loads(capsys.readouterr().out)["records"]
        return {(record["method"], record["fine_tuned"]): record for record in records}

    tuned, fitted = bench("distillhash-initial,ssdh", "--fine-tune"), count_fits(monkeypatch)
    both = bench("ssdh")
    assert set(tuned) == {("distillhash-initial", True), ("ssdh", True)} and fitted == ["ssdh"]
    assert both.items() > tuned.items() and set(both) - set(tuned) == {("ssdh", False)}

    source = open_source(photos)
    split, labels = load_protocol("folder").split(source), source.labels
    model = HashModel(hasher=make_hasher("ssdh", 8, seed=0, **options), image_size=32, device="cpu")
    model.fit(
        source.select(split.train), fine_tune=True
    )  # from the pretrained weights, whatever the bench trained before
    codes = model.encode(source.select(split.query)), model.encode(source.select(split.database))
    assert labels is not None
    wanted = evaluate_codes(*codes, labels[split.query], labels[split.database])
    assert both["ssdh", True].items() >= {key: value for key, value in wanted.items() if key != "topn"}.items()

    page, markdown = ((tmp_path / "out" / name).read_text() for name in ("report.html", "table.md"))
    for text in (page, markdown):
        assert (
            "ssdh, beta = 0, fine-tuned" in text and "efficientnet-lite0 at 32 pixels, frozen unless a row says" in text
        )
    rows = markdown.split("\n\n")[1].splitlines()[2:]
    names = ["| distillhash-initial, beta = 0, fine-tuned", "| ssdh, beta = 0", "| ssdh, beta = 0, fine-tuned"]
    assert sorted(row.split(" |")[0] for row in rows) == names


def mini_flickr(root: Path, n: int) -> NDArray[np.bool_]:
    rng = np.random.default_rng(0)
    truth = rng.random((n, 24)) < 0.2
    truth[::7] = False  # images without a label
    (root / "mirflickr").mkdir()
    for row in range(n):
        (root / "mirflickr" / f"im{row + 1}.jpg").write_bytes(factory.make_jpeg(20, 20, seed=row))
    for column, name in enumerate(LABEL_NAMES):
        (root / "mirflickr" / f"{name}.txt").write_text(
            "".join(f"{row + 1}\n" for row in np.flatnonzero(truth[:, column]))
        )
    return truth


def mini_nuswide(root: Path, n: int) -> None:
    rng = np.random.default_rng(1)
    names = [f"actor\\{row:04}.jpg" for row in range(n)]
    (root / "ImageList").mkdir()
    (root / "ImageList" / "Imagelist.txt").write_text("\n".join(names) + "\n")
    (root / "Groundtruth" / "AllLabels").mkdir(parents=True)
    for concept in CONCEPTS:
        values = (rng.random(n) < 0.1).astype(int)
        (root / "Groundtruth" / "AllLabels" / f"Labels_{concept}.txt").write_text("".join(f"{v}\n" for v in values))
    (root / "Flickr" / "actor").mkdir(parents=True)
    for row in range(n):
        (root / "Flickr" / "actor" / f"{row:04}.jpg").write_bytes(factory.make_jpeg(20, 20, seed=row))


@pytest.mark.parametrize("protocol", ["flickr25k-distillhash", "nuswide10-distillhash"])
def test_multi_label_data_sets_end_to_end(protocol: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    data.mkdir()
    if protocol.startswith("flickr25k"):
        mini_flickr(data, 60)
        spec = f"flickr25k:{data}#0:60"
    else:
        mini_nuswide(data, 60)
        spec = f"nuswide:{data}"
    command = ["bench", "--data", spec, "--protocol", protocol, "--methods", "itq,ssdh", "--bits", "8", "--seeds", "0"]
    command += ["--image-size", "32", "--json", "--quiet", "--out", str(tmp_path / "out")]
    assert main(command) == 1
    assert "--shrink" in capsys.readouterr().err
    assert main([*command, "--shrink"]) == 0
    records = json.loads(capsys.readouterr().out)["records"]
    assert all("error" not in record for record in records)
    source = open_source(spec)
    split = load_protocol(protocol).split(source, shrink=True)
    assert source.labels is not None
    labels = source.labels.astype(int)
    assert labels[np.concatenate([split.query, split.database])].any(axis=1).all()
    if protocol.startswith("flickr25k"):
        assert len(split.query) + len(split.database) == 48  # 20,015 of 25,000, for 60
        everything = load_protocol("flickr25k-all").split(source, shrink=True)
        used = labels[np.concatenate([everything.query, everything.database])]
        assert len(used) == 60 and (~used.any(axis=1)).sum() == 9  # rows 0, 7, ... 56
    shared = labels[split.query] @ labels[split.database].T > 0
    answerable = shared.any(axis=1)
    # What a random ranking scores: with T of N relevant, T/N plus the share that finite length adds.
    n = len(split.database)
    expected = []
    for relevant in shared[answerable].sum(axis=1):
        h = np.sum(1 / np.arange(1, n + 1))
        expected.append((relevant - 1) / (n - 1) + (n - relevant) / (n - 1) * h / n)
    assert records[0]["map_random"] == pytest.approx(np.mean(expected), rel=1e-6)
    assert records[0]["queries_without_relevant"] == int((~answerable).sum())


def test_protocol_needs_the_complete_data_set_unless_shrunk() -> None:
    source = open_source(np.ones((100, 3), np.float32))
    source.labels = np.arange(100) % 10
    with pytest.raises(DataError, match="needs 60,000 items, array has 100; --shrink"):
        load_protocol("cifar10-sdc").split(source)
    split = load_protocol("cifar10-sdc").split(source, shrink=True)
    assert (len(split.query), len(split.train), len(split.database)) == (10, 10, 90)
