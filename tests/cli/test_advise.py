"""Advice on bytes a vector, against brute force: who is among the first, what is chosen, and what it refuses."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from distillhash import make_hasher
from distillhash.bench import advice
from distillhash.bench.advice import Cell, Sign
from distillhash.cli import main
from distillhash.codes import Codes
from distillhash.hamming import ranking


@pytest.fixture(scope="module")
def features() -> NDArray[np.float32]:
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(420, 5))
    x = latent @ rng.normal(size=(5, 12)) + 0.3 * rng.normal(size=(420, 12)) + 1
    return np.concatenate([x, x[:80]]).astype(np.float32)  # 80 rows twice


@pytest.fixture(scope="module")
def parts(features: NDArray[np.float32]) -> advice.Parts:
    return advice.split(features, seed=3)


def brute_recall(
    parts: advice.Parts, queries: NDArray[Any], items: NDArray[Any], coarse: NDArray[Any] | None = None, most: int = 0
) -> list[float]:
    """Recall@10 and @100 by the dot products of ``queries`` and ``items``; ``most`` candidates by ``coarse`` distances come first."""
    hits = np.zeros(2)
    for i, query in enumerate(parts.query.astype(np.float64)):
        cosines = [
            row @ query / np.linalg.norm(row) / np.linalg.norm(query) for row in parts.database.astype(np.float64)
        ]
        near = sorted(range(len(cosines)), key=lambda j: -cosines[j])[:10]
        scores = [float(row @ queries[i]) for row in items]
        if coarse is not None:
            for j in sorted(range(len(scores)), key=lambda j: (coarse[i][j], j))[most:]:
                scores[j] = -np.inf
        for place, depth in enumerate((10, 100)):
            for j in near:
                before, tied = sum(s > scores[j] for s in scores), sum(s == scores[j] for s in scores)
                hits[place] += min(max((depth - before) / tied, 0), 1)
    return [float(value) for value in hits / (10 * len(parts.query))]


def test_the_split_is_disjoint_and_each_row_stands_once(features: NDArray[np.float32], parts: advice.Parts) -> None:
    rows = [row.tobytes() for part in parts for row in part]
    assert len(rows) == len(set(rows)) == 420 and set(rows) == {row.tobytes() for row in features}
    assert [len(part) for part in parts] == [168, 168, 84]
    assert parts.sizes() == {"n_train": 168, "n_database": 168, "n_queries": 84, "dimensions": 12}
    again, other = advice.split(features, seed=3), advice.split(features, seed=4)
    assert np.array_equal(again.query, parts.query) and not np.array_equal(other.query, parts.query)
    large = np.arange(100_000, dtype=np.float32)[:, None]
    assert [len(part) for part in advice.split(large, 0)] == [20_000, 79_000, 1000]


@pytest.fixture(scope="module")
def table(parts: advice.Parts) -> tuple[list[Cell], list[str]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(advice, "METHODS", ("itq",))
        return advice.measure(parts, seed=1)


def found(cells: list[Cell], method: str, form: str) -> Cell:
    (cell,) = [cell for cell in cells if (cell.method, cell.form) == (method, form)]
    return cell


def test_recalls_are_those_of_a_loop(parts: advice.Parts, table: tuple[list[Cell], list[str]]) -> None:
    cells, mean = table[0], parts.train.mean(axis=0, dtype=np.float64)
    hasher = make_hasher("itq", 12, seed=1).fit(parts.train)
    query, database = (hasher.encode(part).signs().astype(float) for part in (parts.query, parts.database))
    distances = (12 - query @ database.T) / 2
    rebuilt = hasher.reconstruct(hasher.encode(parts.database)).astype(np.float64)
    rebuilt /= np.linalg.norm(rebuilt, axis=1, keepdims=True)
    kept = np.rint(127 * parts.database / np.abs(parts.database).max(axis=1, keepdims=True))
    kept /= np.linalg.norm(kept, axis=1, keepdims=True)
    expected = {
        ("itq", "symmetric"): brute_recall(parts, query, database),
        ("itq", "asymmetric"): brute_recall(parts, hasher.project(parts.query), database),
        ("itq", "decoder"): brute_recall(parts, parts.query, rebuilt),
        ("itq", "int8 kept"): brute_recall(parts, parts.query, kept, distances, 100),
        ("float32", ""): [1, 1],
    }
    for name, origin in (("sign", mean), ("sign, raw", 0)):
        query, database = (np.where(part >= origin, 1, -1) for part in (parts.query, parts.database))
        expected[name, "symmetric"] = brute_recall(parts, query, database)
    for (method, form), recalls in expected.items():
        assert found(cells, method, form).recalls == pytest.approx(recalls, abs=2e-3), (method, form)
    sizes = [found(cells, "itq", form).n_bytes for form in ("symmetric", "asymmetric", "decoder", "int8 kept")]
    assert sizes == [2, 2, 2, 14] and found(cells, "float32", "").n_bytes == 48
    assert all(cell.search_ms > 0 for cell in cells)


def test_faiss_stands_beside(table: tuple[list[Cell], list[str]]) -> None:
    pytest.importorskip("faiss")
    others = {cell.name: cell for cell in table[0] if cell.method in ("PQ", "OPQ", "RaBitQ", "int8")}
    assert list(others) == ["RaBitQ, 1 bit", "RaBitQ, 2 bits", "RaBitQ, 3 bits", "RaBitQ, 4 bits", "int8"]  # 168 rows
    assert others["int8"].n_bytes == 12 and others["int8"].recalls[0] > 0.95
    recalls = [cell.recalls[0] for cell in list(others.values())[:4]]
    assert recalls == sorted(recalls) and others["RaBitQ, 1 bit"].n_bytes == 2 + 8


@pytest.mark.long
def test_product_quantisers_of_widths_that_they_do_not_divide() -> None:
    pytest.importorskip("faiss")
    x = np.random.default_rng(1).normal(size=(900, 70)).astype(np.float32)
    parts = advice.split(x, 0)
    truth, faiss = advice._Truth(parts), pytest.importorskip("faiss")
    kinds = [kind for kind in advice._faiss_kinds(70, len(parts.train)) if kind.size == 16]
    assert [kind.method for kind in kinds] == ["PQ", "OPQ", "RaBitQ"]
    for kind in kinds:
        cell = advice._measure_faiss(faiss, kind, parts, truth)
        assert cell.n_bytes == 16 and 0.1 < cell.recalls[0] < cell.recalls[1] <= 1


def test_codes_of_two_parts_are_ranked_by_their_rule() -> None:
    signs = np.random.default_rng(0).choice([-1, 1], size=(31, 20))
    codes = Codes.from_signs(signs, class_bits=7)
    distances, kinds = ([(signs[0, :w] != row[:w]).sum() for row in signs] for w in (20, 7))
    keys = advice._keys(codes[:1], codes)[0]
    wanted = ranking.order(np.array(distances), np.array(kinds), "nearest")
    assert np.argsort(keys, kind="stable").tolist() == wanted.tolist()


def cell(method: str, form: str, n_bytes: int, recall: float) -> Cell:
    return Cell(method, form, 8, n_bytes, (recall, 1.0), 1.0, 2.0, 3.0)


CELLS = [
    cell("float32", "", 64, 1.0),
    cell("itq", "symmetric", 4, 0.5),
    cell("itq", "decoder", 4, 0.6),
    cell("itq", "symmetric", 8, 0.7),
    cell("itq", "int8 kept", 24, 0.95),
    cell("RaBitQ", "1 bit", 8, 0.65),
    cell("RaBitQ", "4 bits", 16, 0.9),
]


@pytest.mark.parametrize(
    ("target", "n_bytes", "form", "words", "others"),
    [
        ({"recall": 0.6}, 4, "decoder", "For a recall of 0.6, itq with 8 bits", "Nothing else in the table reaches it in fewer"),
        ({"recall": 0.9}, 24, "int8 kept", "(2.67 times less", "FAISS's RaBitQ, 4 bits reaches it in fewer bytes: 16 bytes"),
        ({"recall": 0.99}, 24, "int8 kept", "Nothing of ours reaches a recall of 0.99", "Nothing else in the table reaches it"),
        ({"n_bytes": 8}, 8, "symmetric", "In 8 bytes, itq", "Nothing else in the table finds more"),
        ({"n_bytes": 16}, 8, "symmetric", "In 16 bytes, itq", "FAISS's RaBitQ, 4 bits finds more in as many bytes"),
        ({"n_bytes": 2}, 4, "decoder", "Nothing of ours takes 2 bytes; the smallest is itq", "Nothing else"),
    ],
)  # fmt: skip
def test_advice(target: dict[str, Any], n_bytes: int, form: str, words: str, others: str) -> None:
    chosen = advice.advise(CELLS, **target, n_items=1234)
    assert (chosen.cell.n_bytes, chosen.cell.form) == (n_bytes, form)
    assert words in chosen.sentence and "1,234 items" in chosen.sentence and chosen.others.startswith(others)


def test_commands_and_comparison() -> None:
    kept, plain = CELLS[4], CELLS[1]
    assert advice.commands(kept, ["my x.npz", "--embedding-column", "e"], ["--views", "0"]) == [
        "distillhash train 'my x.npz' --embedding-column e --method itq --bits 8 --views 0 --out model",
        "distillhash index 'my x.npz' --embedding-column e --model model --index my.index --keep-vectors int8",
        "distillhash search QUERIES --index my.index -k 10 --rerank vectors --candidates 100",
    ]
    assert "--rerank" not in advice.commands(plain, ["x"])[2]
    assert advice.versus(CELLS) == [(CELLS[5], CELLS[3]), (CELLS[6], CELLS[3])]
    first, second = cell("itq", "decoder", 4, 0.5), cell("itq", "decoder", 4, 0.7)
    (mean,) = advice.mean_of([[first, cell("sign", "", 2, 0.1)], [second]])
    assert mean.recalls[0] == pytest.approx(0.6) and mean.spread == pytest.approx(0.02**0.5)


def test_the_verb_without_faiss(
    features: NDArray[np.float32],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.setattr(advice, "METHODS", ("itq",))
    np.save(tmp_path / "x.npy", features)
    words = ["advise", str(tmp_path / "x.npy"), "--bytes", "2", "--out", str(tmp_path / "a"), "--seeds", "0,1"]
    assert main([*words, "--json"]) == 0
    printed = capsys.readouterr()
    summary = json.loads(printed.out)
    assert summary["notes"] == [advice.NO_FAISS] and advice.NO_FAISS in printed.err and "measuring" in printed.err
    assert {record["method"] for record in summary["cells"]} == {"float32", "sign", "sign, raw", "itq"}
    assert summary["choice"]["bytes"] == 2 and summary["seeds"] == [0, 1] and summary["n_queries"] == 84
    best = max(r["recall@10"] for r in summary["cells"] if r["method"] == "itq" and r["bytes"] == 2)
    assert summary["choice"]["recall@10"] == best and f"neighbour recall@10 {best:.3f}" in summary["advice"]
    assert {file.name for file in (tmp_path / "a").iterdir()} == {"report.html", "table.md", "table.json"}
    table, page = ((tmp_path / "a" / name).read_text() for name in ("table.md", "report.html"))
    assert f"| itq, 12 bits, {summary['choice']['form']} | 2 | {best:.3f} (" in table
    assert page.count("<svg") == 2 and summary["advice"] in page and "--bits 12" in page
    assert json.loads((tmp_path / "a" / "table.json").read_text())["cells"] == summary["cells"]


@pytest.mark.parametrize(
    ("change", "words", "status", "said"),
    [
        (lambda x: x[:49], [], 1, "at least 50 different rows, got 49"),
        (lambda x: np.repeat(x[:1], 90, axis=0), [], 1, "at least 50 different rows, got 1 of 90"),
        (lambda x: np.where(np.arange(500)[:, None] == 7, np.nan, x), [], 1, "NaN"),
        (lambda x: x, ["--recall", "1.5"], 2, "--recall must be above 0 and at most 1, got 1.5"),
        (lambda x: x, ["--bytes", "0"], 2, "--bytes must be at least 1, got 0"),
        (lambda x: x, ["--seeds", "0,x"], 2, "--seeds takes integers"),
        (lambda x: x, ["--seeds", "-1"], 2, "--seeds must be at least 0"),
        (lambda x: x, ["--max-images", "0"], 2, "--max-images must be at least 1"),
        (lambda x: x, ["--backbone", "vgg16"], 1, "holds embeddings"),
        (lambda x: x, ["--out", "/dev/null/x"], 1, "Not a directory"),
        (lambda x: x, ["--embedding-column", "gone"], 2, "gone"),
    ],
)
def test_what_it_refuses(
    features: NDArray[np.float32],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Any,
    words: list[str],
    status: int,
    said: str,
) -> None:
    np.save(tmp_path / "x.npy", change(features))
    assert main(["advise", str(tmp_path / "x.npy"), *words, "--quiet"]) == status
    printed = capsys.readouterr().err
    assert said in printed and printed.count("\n") == 1 and "unexpected" not in printed


@pytest.mark.parametrize("shape", [(50, 2), (60, 1), (50, 40)])
def test_small_sources(shape: tuple[int, int]) -> None:
    cells, notes = advice.measure(advice.split(np.random.default_rng(0).normal(size=shape), 0))
    assert all(0 <= recall <= 1 for one in cells for recall in one.recalls)
    assert found(cells, "itq", "symmetric").n_bits == shape[1] and len(notes) <= 2
    assert {one.method for one in cells} >= set(advice.METHODS)


def test_signs_are_those_of_the_embedding(features: NDArray[np.float32]) -> None:
    assert np.array_equal(Sign(12, raw=True).fit(features).encode(features).packed, np.packbits(features >= 0, axis=1))
    assert np.array_equal(Sign(12).fit(features).encode(features).signs() > 0, features >= features.mean(0, np.float64))
