"""The report as a reader's program meets it: parsed HTML, parsed SVG, and the numbers that must be in it."""

import base64
import io
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distillhash.bench import figures
from distillhash.bench.report import (
    SKIPPED_SHOWN,
    EncodedSource,
    ReportData,
    SampleNeighbour,
    SampleQuery,
    _sample_queries,
    metric_groups,
    percent,
    write_report,
)
from distillhash.codes import Codes
from distillhash.errors import DataError, DistillHashError
from distillhash.hamming import ranking
from distillhash.metrics import bit_statistics, evaluate_codes, neighbour_recall
from distillhash.sources import Skipped, open_source

EVIL = '<script>alert("1")</script>&\'.png'
VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """Every element, all visible text, and whether the tags nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.stack: list[str] = []
        self.feed(html)
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.stack:
            self.text += data + " "

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attrs for name, attrs in self.elements if name == tag]


def thumbnail(kind: str = "png") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (5, 7), (200, 30, 90)).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def data() -> ReportData:
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(77, 9)), rng.integers(0, 3, 77)
    codes = Codes.from_projection(features @ rng.normal(size=(9, 33)))
    metrics = evaluate_codes(codes[:20], codes[20:], labels[:20], labels[20:], cutoffs=(7,), topn=(1, 10))
    neighbours = [SampleNeighbour(thumbnail("jpeg"), EVIL, 3, True), SampleNeighbour(thumbnail(), "b.png", 1, False)]
    return ReportData(
        title="Quality <of> codes",
        subtitle="itq & more",
        command="distillhash evaluate --model 'a b' --json",
        versions={"distillhash": "0.1.0", "numpy": "2.4"},
        facts={"Data": "folder of 77 <files>", "Seed": 17, "Made": "2026-01-02T03:04:05Z"},
        runs={"itq, 33 bits": metrics},
        losses={"likelihood": [2.0, 1.0, 0.5], "$x_i$ <b>": [3.0, 2.0]},
        bits=bit_statistics(codes),
        recall=neighbour_recall(codes, codes, features, features, ks=(5,), depths=(5, 50), same_items=True),
        pairs=[{"step": "initial", "coverage_positive": 0.125, "coverage_negative": 0.5, "without_positive": 0.0625}],
        samples=[SampleQuery(thumbnail(), "q.png", neighbours)],
        skipped=[Skipped("bad\udcff.png", "truncated")],
    )


def render(tmp_path: Path, data: ReportData) -> str:
    write_report(tmp_path / "report.html", data)
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_page_holds_the_numbers(tmp_path: Path, data: ReportData) -> None:
    page = Page(render(tmp_path, data))
    metrics, recall = data.runs["itq, 33 bits"], data.recall
    assert recall is not None
    for key in ("map", "map@7", "map@7_hits", "precision@1", "recall@10", "precision_radius2", "map_random"):
        assert f"{metrics[key]:.3f}" in page.text, key
    assert re.search(rf"{metrics['map_worst']:.3f} . {metrics['map_best']:.3f}", page.text)
    for expected in (
        "For each of 20 query images, the 57 images of the database",
        f"{recall['recall5@50']:.0%}",
        "12%",  # coverage of +, .125, to even
        "6.2%",
        "distillhash evaluate --model 'a b' --json",
        "numpy 2.4",
        "2026-01-02T03:04:05Z",
        "1 file was left out",
        "bad\\xff.png",
        "folder of 77 <files>",
        "33 bits (5 bytes)",
    ):
        assert expected in page.text, expected
    assert page.text.count("17") >= 1
    # Every number that a figure draws is in its table.
    for epoch_loss in ("2.0000", "1.0000", "0.5000", "3.0000"):
        assert epoch_loss in page.text


def test_the_file_is_complete_and_accessible(tmp_path: Path, data: ReportData) -> None:
    page = Page(render(tmp_path, data))
    tags = {tag for tag, _ in page.elements}
    assert tags.isdisjoint({"script", "iframe", "object", "embed", "form"})
    for tag, attrs in page.elements:
        assert not any(name.startswith("on") for name in attrs)
        for name in ("src", "href", "xlink:href"):
            if name in attrs:
                assert attrs[name].startswith(("data:", "#")), (tag, attrs[name])
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {attrs["href"][1:] for attrs in page.all("a")} <= set(ids)
    images = page.all("img")
    assert len(images) == 3
    assert all(image["alt"] for image in images)
    assert base64.b64decode(images[1]["src"].removeprefix("data:image/jpeg;base64,")) == thumbnail("jpeg")
    drawings = page.all("svg")
    assert len(drawings) == 6
    assert all(drawing["role"] == "img" and drawing["aria-label"] for drawing in drawings)
    assert len(page.all("details")) == len(drawings)
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_names_are_text_never_markup(tmp_path: Path, data: ReportData) -> None:
    html = render(tmp_path, data)
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert "<files>" not in html
    page = Page(html)
    assert EVIL in [image["alt"].removeprefix("Result 1: ") for image in page.all("img")]
    assert "$x_i$ <b>" in page.text  # in the legend, where mathematics would be drawn instead


def test_names_are_escaped_as_on_a_terminal(tmp_path: Path, data: ReportData) -> None:
    name = "a\x1b[31m\nb\u202egnp.png"
    html = render(tmp_path, replace(data, title=name, skipped=[Skipped(name, name)]))
    assert not {"\x1b", "\u202e"} & set(html) and html.count(r"a\x1b[31m\x0ab\u202egnp.png") >= 3


def test_empty_sections_are_absent(tmp_path: Path, data: ReportData) -> None:
    bare = ReportData("T", "S", "c", {}, {})
    page = Page(render(tmp_path, bare))
    assert not page.all("figure")
    assert "Skipped" not in page.text
    assert "Retrieval" not in page.text
    assert "Nothing was skipped" in render(tmp_path, replace(bare, skipped=[]))
    only_bits = Page(render(tmp_path, replace(bare, bits=data.bits)))
    assert len(only_bits.all("svg")) == 2
    assert "Each of 77 images is described by a code of 33 bits (5 bytes)." in only_bits.text


def test_long_lists_of_skipped_files_are_cut(tmp_path: Path, data: ReportData) -> None:
    skipped = [Skipped(f"key-{i}-", "empty") for i in range(SKIPPED_SHOWN + 1033)]
    html = render(tmp_path, replace(data, skipped=skipped))
    assert "1,233 files were left out" in html
    assert f"The first {SKIPPED_SHOWN} are listed" in html
    assert html.count("key-") == SKIPPED_SHOWN


def test_several_runs_show_the_best_and_name_the_focus(tmp_path: Path, data: ReportData) -> None:
    first = data.runs["itq, 33 bits"]
    worse = {key: value / 2 if isinstance(value, float) else value for key, value in first.items()} | {"map@99": 0.4321}
    runs = {"worse": worse, "better": first}
    groups = metric_groups(runs)
    by_name = {metric.name: metric for _, metrics in groups for metric in metrics}
    assert by_name["MAP"].best == [False, True]
    assert by_name["MAP@99"].values == ["0.432", "\N{EN DASH}"]
    assert by_name["MAP, random order"].best == [False, False]
    if first["empty_radius2"]:
        assert by_name["Empty, radius 2"].best == [True, False]
    page = Page(render(tmp_path, replace(data, runs=runs)))
    assert "describes better" in re.sub(r"\s+", " ", page.text)
    page = Page(render(tmp_path, replace(data, runs=runs, focus="worse")))
    assert "describes worse" in re.sub(r"\s+", " ", page.text)
    many = {f"run {i}": first for i in range(9)}
    assert "What the metrics say" in Page(render(tmp_path, replace(data, runs=many))).text


def test_codes_of_two_parts_are_shown_in_their_ranking(tmp_path: Path, data: ReportData) -> None:
    rng = np.random.default_rng(0)
    codes, source = Codes.from_projection(rng.standard_normal((60, 16)), 6), open_source("digits:#0:60")
    side = EncodedSource(source, np.arange(60), codes, rng.standard_normal((60, 3)).astype(np.float32), None, [])
    for sample in _sample_queries(side, side, 0):
        row = source.keys.index(sample.caption)
        differ = codes.signs() != codes.signs()[row]
        order = ranking.order(differ.sum(axis=1), differ[:, :6].sum(axis=1))
        wanted = [source.keys[place] for place in order if place != row][:10]
        assert [neighbour.caption for neighbour in sample.neighbours] == wanted
    runs = {"itq": {**data.runs["itq, 33 bits"], "class_bits": 6, "neighbour_recall@40": 0.7654}}
    text = re.sub(r"\s+", " ", Page(render(tmp_path, replace(data, runs=runs, trained_on=True))).text)
    assert "are ranked by both parts of their codes" in text and "each is left out of its own results" in text
    assert "Neighbour recall@40" in text and "0.765" in text


def test_writing_is_atomic_deterministic_and_explained(tmp_path: Path, data: ReportData) -> None:
    target = tmp_path / "deep" / "er" / "report.html"
    write_report(target, data)
    first = target.read_bytes()
    with pytest.raises(DataError, match="PNG, JPEG or GIF"):
        write_report(target, replace(data, samples=[SampleQuery(b"not an image", "x", [])]))
    assert target.read_bytes() == first
    write_report(target, data)
    assert target.read_bytes() == first
    assert [path.name for path in target.parent.iterdir()] == ["report.html"]
    with pytest.raises(DistillHashError, match="cannot write the report"):
        write_report(target / "inside a file", data)


CURVE = {"precision": [0.0, 1.0, 0.7, 0.4], "recall": [0.0, 0.2, 0.6, 1.0]}
FIGURES: dict[str, Any] = {
    "pr_by_radius": lambda: figures.pr_by_radius({"a": CURVE}),
    "pr_by_radius_9": lambda: figures.pr_by_radius({f"method {i} & co": CURVE for i in range(9)}),
    "topn": lambda: figures.topn_precision({"a": {"n": [1], "precision": [0.5]}}, random=0.1),
    "loss": lambda: figures.training_loss({"a": [100.0, 1.0], "b": [3.0]}),
    "loss_negative": lambda: figures.training_loss({"a": [-1.0]}),
    "loss_by_iteration": lambda: figures.training_loss({"a": [0.6, 0.4]}, iterations=10),
    "sensitivity": lambda: figures.sensitivity({"16 bits": [(2, 0.3, 0.29, 0.31), (20, 0.31, 0.31, 0.31)]}, "o"),
    "balance": lambda: figures.bit_balance([0.5]),
    "correlation_1": lambda: figures.bit_correlation([[1.0]]),
    "correlation_127": lambda: figures.bit_correlation((np.tri(127) - np.tri(127).T).tolist()),
    "comparison": lambda: figures.method_comparison(
        {"itq": [(16, 0.28, 0.27, 0.29), (64, 0.3, 0.3, 0.3)], "lsh": [(32, 0.1, 0.1, 0.1)]},
        "MAP",
        baseline=("float features", 0.31),
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_small_wellformed_repeatable_svg(name: str) -> None:
    svg = FIGURES[name]().svg()
    assert svg == FIGURES[name]().svg()
    png = FIGURES[name]().png()
    assert png.startswith(b"\x89PNG") and png == FIGURES[name]().png()
    root = ET.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.attrib["aria-label"]
    assert len(svg) < 120_000
    assert "#ffffff" not in svg  # nothing is painted behind the drawing
    assert "var(--figure-ink, #3a4048)" in svg
    assert set(re.findall(r"#[0-9a-f]{6}\b", svg)) <= set(figures.COLOURS.values())
    ids = set(re.findall(r' id="([^"]+)"', svg))
    assert set(re.findall(r"url\(#([^)]+)\)", svg)) <= ids


def test_a_figure_draws_its_values_where_they_belong() -> None:
    # The balance bars, read back from the drawing: heights relative to the axis span of [-1, 1].
    svg = figures.bit_balance([0.5, -1.0, 0.25]).svg()
    boxes = [
        [[float(number) for number in point.split()] for point in re.findall(r"[ML] ([-\d.]+ [-\d.]+)", path)]
        for path in re.findall(r'<path d="([^"]+)"[^>]*style="fill: var\(--figure-1', svg)
    ]
    heights = [max(y for _, y in box) - min(y for _, y in box) for box in boxes]
    assert np.array(heights) / heights[0] == pytest.approx([1.0, 0.25, 0.5], abs=1e-3)


def test_percentages_never_round_to_nothing_or_all() -> None:
    values = [0, 0.0001, 0.01, 0.0994, 0.5, 0.9949, 0.9951, 1]
    assert [percent(v) for v in values] == ["0%", "<0.1%", "1.0%", "9.9%", "50%", "99%", ">99%", "100%"]
