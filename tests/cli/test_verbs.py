"""Every verb from the outside: what it prints, what it writes, how it exits."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distillhash import Codes, HashModel, load_model, make_hasher
from distillhash.cli import VERBS, main
from distillhash.codes import hamming_distances
from distillhash.index import open_index
from image_factory import make_png

SMALL = ["--image-size", "32"]


def run_json(capsys: pytest.CaptureFixture[str], *words: object, exit_code: int = 0) -> dict[str, Any]:
    """Run a verb with --json and return the one object it prints."""
    assert main([*map(str, words), "--json", "--quiet"]) == exit_code
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    found: dict[str, Any] = json.loads(out)
    return found


@pytest.fixture(scope="module")
def model(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model") / "model"
    assert main(["train", str(photos), "--method", "itq", "--bits", "12", "--out", str(out), *SMALL, "--quiet"]) == 0
    return out


@pytest.fixture(scope="module")
def vector_model(vectors: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("vector-model") / "model"
    words = ["train", str(vectors), "--method", "distillhash", "--bits", "16", "--out", str(out), "--set", "epochs=3"]
    assert main([*words, "--quiet"]) == 0
    return out


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_two_examples_and_needs_no_torch(verb: str) -> None:
    code = (
        "import sys, time; start = time.perf_counter(); from distillhash.cli import main\n"
        f"try: main(['{verb}', '--help'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "assert not {'torch', 'numba', 'scipy', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("examples:")[1].count(f"distillhash {verb}") >= 2


def test_help_returns_in_half_a_second() -> None:
    def once() -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "distillhash", "train", "--help"], capture_output=True, check=True)
        return time.perf_counter() - started

    assert min(once() for _ in range(5)) < 0.5


def test_train_writes_a_model_and_a_report(model: Path) -> None:
    assert {"config.json", "model.safetensors", "report.html"} == {path.name for path in model.iterdir()}
    config = json.loads((model / "config.json").read_text())
    assert config["method"] == "itq" and config["backbone"]["image_size"] == 32
    assert config["training"]["n_used"] == 24
    assert "itq on efficientnet-lite0" in (model / "report.html").read_text()


def test_train_on_embeddings_says_what_it_did(
    vectors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = run_json(
        capsys, "train", vectors, "--method", "distillhash", "--bits", 8, "--out", tmp_path / "m",
        "--set", "epochs=2", "--set", "preset=recommended", "--seed", 5,
    )  # fmt: skip
    assert summary["n_bits"] == 8 and summary["seed"] == 5 and summary["n_skipped"] == 0
    assert len(summary["loss"]) == 2
    assert [row["step"] for row in summary["diagnosis"]] == ["initial pairs", "distilled pairs"]
    assert summary["fingerprint"] == load_model(tmp_path / "m").fingerprint


def test_encode_gives_the_codes_of_the_library(
    photos: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for suffix in (".npz", ".parquet"):
        file = tmp_path / f"codes{suffix}"
        summary = run_json(capsys, "encode", photos, "--model", model, "--out", file)
        codes, keys = Codes.load(file)
        assert summary["n_codes"] == len(codes) == 24
        assert keys == sorted(keys or []) and (keys or [])[0] == "cats/01.png"
        assert codes == load_model(model).encode(photos)


def test_index_search_and_remove(photos: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index, folder = tmp_path / "index", tmp_path / "photos"
    shutil.copytree(photos, folder)
    first = run_json(capsys, "index", folder, "--model", model, "--index", index)
    assert (first["added"], first["unchanged"], first["n_items"]) == (24, 0, 24)
    again = run_json(capsys, "index", folder, "--index", index)
    assert (again["added"], again["updated"], again["unchanged"]) == (0, 0, 24)
    (folder / "dogs" / "00.png").write_bytes(make_png(20, 16, 100))
    (folder / "dogs" / "new.png").write_bytes(make_png(20, 16, 101))
    changed = run_json(capsys, "index", folder, "--index", index)
    assert (changed["added"], changed["updated"], changed["unchanged"], changed["n_items"]) == (1, 1, 23, 25)

    query = folder / "cats" / "03.png"
    results = run_json(capsys, "search", query, "--index", index, "-k", 4)["results"]
    assert len(results) == 1 and results[0]["query"] == str(query)
    neighbours = results[0]["neighbours"]
    assert neighbours[0]["key"] == str(query) and neighbours[0]["distance"] == 0
    library = load_model(model)
    distances = np.sort(hamming_distances(library.encode(str(query)), library.encode(str(folder)))[0])
    assert [n["distance"] for n in neighbours] == distances[:4].tolist()
    within = run_json(capsys, "search", query, "--index", index, "--radius", 3)["results"][0]["neighbours"]
    assert [n["distance"] for n in within] == distances[distances <= 3].tolist()
    everything = run_json(capsys, "search", folder, "--index", index, "-k", 1)["results"]
    assert len(everything) == 25

    cats = run_json(capsys, "search", query, "--index", index, "-k", 30, "--where", "key LIKE '%cats%'")["results"][0]
    assert len(cats["neighbours"]) == 12 and all("cats" in n["key"] for n in cats["neighbours"])
    by_features = [*("search", query, "--index", index, "-k", 3, "--rerank", "features", "--candidates", 25)]
    ranked = run_json(capsys, *by_features)["results"][0]["neighbours"]
    batches = list(library.encode_batches(str(folder)))
    features = np.concatenate([batch.features for batch in batches]).astype(float)
    keys = sorted(str(path) for path in folder.rglob("*.png"))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosines = unit @ unit[keys.index(str(query))]
    assert [n["key"] for n in ranked] == [keys[place] for place in np.argsort(-cosines)[:3]]
    np.testing.assert_allclose([n["score"] for n in ranked], np.sort(cosines)[::-1][:3], atol=1e-5)
    (folder / "dogs" / "04.png").unlink()
    assert main([str(word) for word in by_features]) == 1
    assert "04.png' cannot be read as an image file" in capsys.readouterr().err

    removed = run_json(capsys, "index", "--index", index, "--remove", neighbours[0]["id"], "--compact")
    assert (removed["removed"], removed["n_items"]) == (1, 24)
    results = run_json(capsys, "search", query, "--index", index, "-k", 30)["results"]
    assert str(query) not in {n["key"] for n in results[0]["neighbours"]} and len(results[0]["neighbours"]) == 24


def test_index_takes_codes_and_embeddings(
    vectors: Path, vector_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_json(capsys, "encode", vectors, "--model", vector_model, "--out", tmp_path / "codes.npz")
    summary = run_json(capsys, "index", tmp_path / "codes.npz", "--model", vector_model, "--index", tmp_path / "a")
    assert summary["added"] == 200
    again = run_json(capsys, "index", tmp_path / "codes.npz", "--index", tmp_path / "a")
    assert (again["added"], again["updated"], again["unchanged"], again["n_items"]) == (0, 0, 200, 200)
    summary = run_json(capsys, "index", vectors, "--model", vector_model, "--index", tmp_path / "b")
    assert summary["added"] == 200
    results = run_json(capsys, "search", vectors, "--index", tmp_path / "b", "-k", 1)["results"]
    assert len(results) == 200 and all(row["neighbours"][0]["distance"] == 0 for row in results)


def test_evaluate_reports_the_metrics(
    photos: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = run_json(
        capsys, "evaluate", "--model", model, "--query", photos, "--database", photos, "--report", tmp_path / "r.html"
    )
    from distillhash.metrics.retrieval import evaluate_codes

    codes = load_model(model).encode(str(photos))
    labels = np.repeat([0, 1], 12)
    expected = evaluate_codes(codes, codes, labels, labels)
    assert {name: summary[name] for name in expected} == expected
    assert "neighbour_recall@40" in summary and "Sample queries" in (tmp_path / "r.html").read_text()


def test_evaluate_needs_no_labels(
    vectors: Path, vector_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from distillhash.metrics import neighbour_recall

    features, model = np.load(vectors), load_model(vector_model)
    codes = model.encode(str(vectors))
    for query, rows in (("", np.arange(200)), ("#20:60", np.arange(20, 60))):
        summary = run_json(
            capsys, "evaluate", "--model", vector_model, "--query", f"{vectors}{query}", "--database", vectors,
            "--report", tmp_path / "r.html",
        )  # fmt: skip
        sides = codes[rows], codes, features[rows], features
        expected = neighbour_recall(*sides, depths=(10, 40, 100), same_items=rows)  # without the query itself
        for depth in (10, 40, 100):
            assert summary[f"neighbour_recall@{depth}"] == pytest.approx(expected[f"recall10@{depth}"])
        assert "map" not in summary and summary["n_queries"] == len(rows)
    page = (tmp_path / "r.html").read_text()
    assert "Neighbours kept, without labels" in page and "precision" not in page
    again = tmp_path / "again.npy"
    np.save(again, features)  # another file: its items are not those of the first
    summary = run_json(capsys, "evaluate", "--model", vector_model, "--query", again, "--database", vectors)
    assert summary["neighbour_recall@100"] == pytest.approx(
        neighbour_recall(codes, codes, features, features, depths=(100,))["recall10@100"]
    )
    main(["evaluate", "--model", str(vector_model), "--query", str(again), "--database", str(vectors)])
    shown = capsys.readouterr().err
    assert "carries no labels: only the recall of neighbours is measured" in shown and "neighbour_recall@10 " in shown


def test_bench_writes_the_tables(vectors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "cifar.npz"
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(10), 6000))
    centres = rng.standard_normal((10, 8))
    np.savez(data, features=(centres[labels] + rng.standard_normal((60000, 8))).astype(np.float32), labels=labels)
    summary = run_json(
        capsys, "bench", "--data", data, "--protocol", "cifar10-distillhash", "--methods", "lsh,itq", "--bits", "8",
        "--seeds", "0,1", "--backbone", "embeddings", "--out", tmp_path / "out",
    )  # fmt: skip
    table = json.loads((tmp_path / "out" / "table.json").read_text())
    assert len(table) == 4 and summary["n_records"] == 4
    wanted = {
        "protocol",
        "method",
        "n_bits",
        "seed",
        "backbone",
        "map",
        "map@1000",
        "fit_seconds",
        "encode_seconds",
        "peak_rss_mb",
    }
    assert wanted <= set(table[0])
    assert (table[0]["n_queries"], table[0]["n_database"]) == (10_000, 50_000)
    markdown = (tmp_path / "out" / "table.md").read_text()
    itq = [row["map"] for row in table if row["method"] == "itq"]
    assert f"| itq | {np.mean(itq):.4f} ({np.std(itq, ddof=1):.4f})" in markdown
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert provenance["seeds"] == [0, 1] and "bench --data" in provenance["command"]


def test_bench_names_a_row_by_its_preset(vectors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "data.npz", features=np.load(vectors), labels=np.arange(200) % 10)
    words = ["bench", "--data", tmp_path / "data.npz", "--protocol", "folder", "--bits", "8", "--seeds", "0"]
    words += ["--backbone", "embeddings", "--out", tmp_path / "out", "--set", "epochs=1"]
    one = run_json(capsys, *words, "--methods", "ssdh", "--set", "preset=paper")
    both = run_json(capsys, *words, "--methods", "ssdh:paper,ssdh")
    assert one["records"][0] in both["records"] and one["records"][0]["method"] == "ssdh:paper"
    markdown = (tmp_path / "out" / "table.md").read_text()
    assert "| ssdh | " in markdown and "| ssdh, beta = 0 | " in markdown


def test_demo_does_the_whole_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = run_json(capsys, "demo", "--out", tmp_path / "demo", "--bits", 32)
    assert summary["map"] > 3 * summary["map_random"]
    assert summary["map"] > summary["others"]["lsh, 32 bits"]
    assert len(open_index(tmp_path / "demo" / "index")) == 1438
    assert summary["serve"] == f"distillhash serve --index {tmp_path / 'demo' / 'index'}"
    report = (tmp_path / "demo" / "report.html").read_text()
    assert "distillhash demo --out" in report and report.count("data:image/") > 80
    run_json(capsys, "demo", "--out", tmp_path / "demo", "--bits", 16)  # again, with another length


@pytest.mark.parametrize("what", ["methods", "backbones", "protocols", "sources"])
def test_ls(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    listed = run_json(capsys, "ls", what)[what]
    assert main(["ls", what]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0].strip() for line in lines] == list(listed)


def test_human_output_goes_to_stderr(vectors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(vectors), "--method", "lsh", "--bits", "8", "--out", str(tmp_path / "m")]) == 0
    captured = capsys.readouterr()
    assert captured.out == "" and "trained lsh, 8 bits, on 200 items" in captured.err
    assert main(["index", str(vectors), "--model", str(tmp_path / "m"), "--index", str(tmp_path / "i")]) == 0
    capsys.readouterr()
    assert main(["search", f"{vectors}#0:1", "--index", str(tmp_path / "i"), "-k", "2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_views_and_fine_tuning(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = ["--method", "ssdh", "--bits", 8, "--set", "epochs=1", *SMALL]
    with_views = run_json(capsys, "train", photos, *quick, "--views", 1, "--out", tmp_path / "views")
    assert with_views["n_views"] == 1
    default = run_json(capsys, "train", photos, "--bits", 32, *SMALL, "--out", tmp_path / "default")
    assert (default["method"], default["n_views"]) == ("distillhash-nested", 6)
    assert default["chosen"]["class_bits"] == load_model(tmp_path / "default").hasher.class_bits == 16
    near = run_json(capsys, "train", photos, "--preserve", "neighbours", *SMALL, "--out", tmp_path / "near")
    assert near["chosen"] is None and load_model(tmp_path / "near").hasher.get_params()["preserve"] == "neighbours"
    wanted = ["--fine-tune", "--preserve", "both", "--out", tmp_path / "no"]
    assert "learns classes alone" in run_json(capsys, "train", photos, *wanted, exit_code=2)["error"]
    tuned = run_json(
        capsys, "train", photos, *quick, "--fine-tune", "--set", "learning_rate=0.001", "--out", tmp_path / "tuned"
    )
    assert tuned["fine_tuned"] and not (tmp_path / "tuned" / "checkpoint").exists()
    model, plain = load_model(tmp_path / "tuned"), load_model(tmp_path / "views")
    assert model.backbone.fingerprint != plain.backbone.fingerprint
    assert len(model.encode(photos)) == 24  # the tuned weights came back from the folder
    features = np.concatenate([batch.features for batch in model.encode_batches(photos)])
    codes, rebuilt = model.encode(photos), model.hasher.reconstruct(model.encode(photos))
    again = model.hasher.fit_decoder(features)  # the decoder is that of the tuned backbone's features
    np.testing.assert_allclose(again.reconstruct(codes), rebuilt, atol=1e-5)


@pytest.mark.long
def test_killed_training_and_indexing_go_on_to_the_same_result(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(400):
        (folder / f"{number:03}.png").write_bytes(make_png(12, 12, number))

    def command(verb: str, run: str, *words: str) -> list[str]:
        cache = ["--cache", str(tmp_path / f"cache-{run}")]
        return [sys.executable, "-m", "distillhash", verb, str(folder), *words, *cache, "--quiet"]

    def train(run: str) -> list[str]:
        out = str(tmp_path / f"model-{run}")
        return command("train", run, "--method", "itq", "--bits", "16", "--image-size", "64", "--out", out)

    def index(run: str) -> list[str]:
        return command("index", run, "--model", str(tmp_path / "model-a"), "--index", str(tmp_path / f"index-{run}"))

    def kill_once_started(words: list[str], watched: Path) -> None:
        victim = subprocess.Popen(words)
        deadline = time.monotonic() + 60
        while not any(watched.glob("*.sqlite-wal")) and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(0.15)
        os.kill(victim.pid, signal.SIGKILL)
        victim.wait()

    subprocess.run(train("a"), check=True)
    kill_once_started(train("b"), tmp_path / "cache-b")
    assert not (tmp_path / "model-b" / "config.json").exists()
    subprocess.run(train("b"), check=True)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "model-a" / name).read_bytes() == (tmp_path / "model-b" / name).read_bytes()

    shutil.rmtree(tmp_path / "cache-b")
    subprocess.run(index("a"), check=True)
    kill_once_started(index("b"), tmp_path / "index-b")
    with open_index(tmp_path / "index-b") as half:
        stored = len(half)
    subprocess.run(index("b"), check=True)
    with open_index(tmp_path / "index-a") as a, open_index(tmp_path / "index-b") as b:
        assert stored < 400 and len(a) == len(b) == 400
        items = [[(item.key, item.code.packed.tobytes(), item.digest) for item in i.get(range(400))] for i in (a, b)]
    assert items[0] == items[1]


def test_python_api_of_the_readme(photos: Path, tmp_path: Path) -> None:
    model = HashModel(backbone="efficientnet-lite0", hasher=make_hasher("itq", n_bits=8), image_size=32)
    model.fit(str(photos)).save(tmp_path / "m")
    codes = load_model(tmp_path / "m").encode(str(photos))
    with open_index(tmp_path / "i", n_bits=8, create=True) as index:
        index.add(codes)
        result = index.search(codes[:3], k=2)
    assert result.ids.shape == (3, 2) and (result.distances[:, 0] == 0).all()
