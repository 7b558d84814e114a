"""Two checkouts of this project in one run: is the second as fast, and as small in memory, as the first?

    python benchmarks/redesign.py BEFORE AFTER --cifar10 cifar10:DIR --photos SOURCE --out results/redesign

BEFORE and AFTER are checkouts (folders with ``src``). Every measurement runs in a process of its own with one checkout's ``src`` first on
its path; the checkouts alternate, and medians are reported. Only names that both have are used. Memory is the highest resident memory
of the process. A measurement that a checkout cannot run is reported with its error.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np

Numbers = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1, help="of all sizes but the images'; less than 1 for a try")
    parser.add_argument("--cifar10", metavar="SOURCE", help="such as cifar10:DIR#test#0:1000; absent: not measured")
    parser.add_argument("--photos", metavar="SOURCE", help="photographs, such as a folder; absent: no server either")
    parser.add_argument(
        "--only",
        metavar="NAME",
        help="one kind of measurement: search, evaluate, distil, dedup, extract, encode or serve",
    )
    arguments = parser.parse_args()
    trees = {"before": arguments.before.resolve(), "after": arguments.after.resolve()}
    sizes = [("search", 1e6), ("search", 1e7), ("evaluate", 5e4), ("distil", 5e3), ("dedup", 2e4), ("dedup", 2e5)]
    measurements: list[tuple[str, Any]] = [(name, int(size * arguments.scale)) for name, size in sizes]
    measurements += [("extract", spec) for spec in (arguments.cifar10, arguments.photos) if spec]
    sized = [(arguments.cifar10, 128), (arguments.photos, 224)]
    measurements += [("encode", f"{spec}@{size}") for spec, size in sized if spec]
    measurements += [("serve", f"{arguments.photos}@{size}") for size in (64, 224)] if arguments.photos else []
    measurements = [measurement for measurement in measurements if arguments.only in (None, measurement[0])]
    found: dict[str, Any] = {f"{name} {value}": {tree: [] for tree in trees} for name, value in measurements}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(arguments.repeats):
            for name, value in measurements:
                for tree in sorted(trees, reverse=repeat % 2 == 0):
                    result = run_in(trees[tree], name, value, Path(folder) / tree)
                    found[f"{name} {value}"][tree].append(result)
                    print(repeat, name, value, tree, json.dumps(result), file=sys.stderr, flush=True)
    write(arguments.out, trees, found)


def run_in(tree: Path, name: str, value: Any, folder: Path) -> dict[str, Any]:
    """One measurement in a process that imports the package from ``tree``."""
    folder.mkdir(exist_ok=True)
    environment = os.environ | {"PYTHONPATH": str(tree / "src"), "DISTILLHASH_CACHE": str(folder / "cache")}
    code = f"import redesign; redesign.measure({name!r}, {value!r}, {str(folder)!r}, {str(tree)!r})"
    command = [sys.executable, "-c", f"import sys; sys.path.append({str(Path(__file__).parent)!r}); {code}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1]}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(name: str, value: Any, folder: str, tree: str) -> None:
    """Print the numbers of one measurement as JSON."""
    import distillhash

    assert Path(distillhash.__file__).is_relative_to(tree), distillhash.__file__
    measurement: Callable[[Any, Path], Numbers] = globals()[f"measure_{name}"]
    numbers = measurement(value, Path(folder))
    numbers["memory, MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(numbers))


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def clustered_codes(n: int, n_bits: int, share: float, seed: int) -> Any:
    """Codes around ``n / 4`` random centres, each bit flipped with probability ``share``."""
    from distillhash import Codes

    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).integers(0, 256, (max(n // 4, 1), n_bits // 8), np.uint8)
    packed = centres[rng.integers(0, len(centres), n)]
    for start in range(0, n, 100_000):
        block = packed[start : start + 100_000]
        block ^= np.packbits(rng.random((len(block), n_bits), np.float32) < share, axis=1)
    return Codes.from_packed(packed, n_bits)


def measure_search(n: int, folder: Path) -> Numbers:
    from distillhash.index import open_index

    place, queries = folder / f"index-{n}", clustered_codes(1024, 64, 0.1, 2)[:256]
    if not place.exists():
        with open_index(place, n_bits=64, create=True) as index:
            index.add(clustered_codes(n, 64, 0.1, 1))
            index.search(queries[:1], k=10)  # makes the cache
    started = time.perf_counter()
    with open_index(place) as index:
        index.search(queries[:1], k=10)
        opened = time.perf_counter() - started
        single = [seconds(partial(index.search, queries[row : row + 1], k=100)) for row in range(100)]
        batch = [seconds(lambda: index.search(queries, k=100)) for _ in range(3)]
    return {
        "open and first query, s": opened,
        "one query, ms": 1000 * float(np.median(single)),
        "batch of 256, ms a query": 1000 * float(np.median(batch)) / 256,
    }


def measure_evaluate(n: int, _: Path) -> Numbers:
    from distillhash.metrics import evaluate_codes

    rng = np.random.default_rng(0)
    query, database = clustered_codes(2_000, 64, 0.2, 1), clustered_codes(n, 64, 0.2, 2)
    labels = rng.integers(0, 10, 2_000), rng.integers(0, 10, n)
    evaluate_codes(query[:10], database[:100], labels[0][:10], labels[1][:100])  # compiles
    return {"s": seconds(lambda: evaluate_codes(query, database, *labels))}


def measure_distil(n: int, _: Path) -> Numbers:
    package = "supervision" if find_spec("distillhash.supervision") else "pairs"  # its name before the redesign
    flip_rate = import_module(f"distillhash.{package}.flip_rate")
    rng = np.random.default_rng(0)
    outputs = np.tanh(rng.standard_normal((n, 48))).astype(np.float32)
    neighbours = rng.integers(0, n, (n, 4)).astype(np.int32)
    flip_rate.distil_pairs(outputs[:50] @ outputs[:50].T, neighbours[:50] % 50)  # compiles
    logits = np.float32(0.5) * (outputs @ outputs.T)
    return {"s": seconds(lambda: flip_rate.distil_pairs(logits, neighbours))}


def measure_dedup(n: int, folder: Path) -> Numbers:
    """The whole command on embeddings, a quarter as many centres as vectors."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((n // 4, 128), np.float32)[rng.integers(0, n // 4, n)]
    np.save(folder / "vectors.npy", vectors + 0.1 * rng.standard_normal(vectors.shape, np.float32))
    words = ["dedup", str(folder / "vectors.npy"), "--out", str(folder / "groups.json"), "--quiet"]
    command = [sys.executable, "-m", "distillhash", *words]
    spent = seconds(lambda: subprocess.run(command, check=True, cwd=folder))
    return {"s": spent, "memory of the command, MB": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024}


def measure_extract(spec: str, folder: Path) -> Numbers:
    """Plain features, six views and the teacher, into an empty cache."""
    from distillhash.backbones import FeatureCache, extract_features, make_backbone
    from distillhash.sources import open_source

    source, backbone = open_source(spec), make_backbone(device="cpu")
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        plain = seconds(lambda: extract_features(source, backbone, cache=FeatureCache(f"{cache}/plain")))
        given: dict[str, Any] = {"n_views": 6, "teacher": True, "cache": FeatureCache(f"{cache}/views")}
        everything = seconds(lambda: extract_features(source, backbone, **given))
    return {"plain, images a s": len(source) / plain, "views and teacher, images a s": len(source) / everything}


def measure_encode(spec: str, folder: Path) -> Numbers:
    """Plain features of ``efficientnet-lite0``, SOURCE@SIZE, by the engine that each checkout takes by itself; the weights are loaded."""
    from distillhash.backbones import FeatureCache, extract_features, make_backbone
    from distillhash.sources import open_source

    name, _, size = spec.rpartition("@")
    source, backbone = open_source(name), make_backbone(image_size=int(size), device="cpu")
    extract_features(source.select(np.arange(64)), backbone)
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        spent = seconds(lambda: extract_features(source, backbone, cache=FeatureCache(cache)))
    return {"images a s": len(source) / spent}


def measure_serve(spec: str, folder: Path) -> Numbers:
    """Search by id and by upload, over four connections that stay open, SOURCE@SIZE."""
    from distillhash.sources import open_source

    command = [sys.executable, "-c", "import sys; from distillhash.cli import main; sys.exit(main())"]
    spec, _, size = spec.rpartition("@")
    model, index, source = folder / f"model{size}", folder / f"served{size}", open_source(spec)
    if not index.exists():
        train = ["train", spec, "--method", "itq", "--bits", "64", "--image-size", size, "--out", str(model)]
        train += ["--backbone", "efficientnet-lite0"]
        subprocess.run([*command, *train], check=True, capture_output=True)
        fill = ["index", spec, "--model", str(model), "--index", str(index)]
        subprocess.run([*command, *fill], check=True, capture_output=True)

    def by_number(number: int) -> tuple[str, bytes]:
        return f"/search?id={number % len(source)}&k=10", b""

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve = [*command, "serve", "--index", str(index), "--port", str(port), "--quiet"]
    with subprocess.Popen(serve, stderr=subprocess.DEVNULL) as server:
        try:
            while server.poll() is None and not is_ready(port):
                time.sleep(0.1)
            files: list[Any] = [source.read(row) for row in range(min(len(source), 64))]  # type: ignore[attr-defined]
            request_rate(port, by_number, 100)
            by_id = request_rate(port, by_number, 4_000)
            by_upload = request_rate(port, lambda number: ("/search?k=10", files[number % len(files)]), 200)
        finally:
            server.terminate()
    return {"searches by id a s": by_id, "searches by upload a s": by_upload}


def is_ready(port: int) -> bool:
    with contextlib.suppress(OSError), urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
        return bool(answer.status == 200)
    return False


def request_rate(port: int, request: Callable[[int], tuple[str, bytes]], n: int) -> float:
    """Requests a second."""

    def client(first: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        for number in range(first, n, 4):
            path, file = request(number)
            head = b'--b\r\ncontent-disposition: form-data; name="file"; filename="a.jpg"\r\ncontent-type: image/jpeg\r\n\r\n'
            body = head + file + b"\r\n--b--\r\n" if file else b""
            kind = {"content-type": "multipart/form-data; boundary=b"} if file else {}
            connection.request("POST", path, body, kind)
            answer = connection.getresponse()
            text = answer.read()
            assert answer.status == 200, text
        connection.close()

    with ThreadPoolExecutor(4) as pool:
        return n / seconds(lambda: list(pool.map(client, range(4))))


def write(out: Path, trees: dict[str, Path], found: dict[str, Any]) -> None:
    """``table.json`` with every number, ``table.md`` with medians."""
    head = ["git", "rev-parse", "--short", "HEAD"]
    commits = {tree: subprocess.check_output(head, cwd=place, text=True).strip() for tree, place in trees.items()}
    lines = ["| measurement | | before | after | after / before |", "|---|---|---|---|---|"]
    lines += [f"| commit | | {commits['before']} | {commits['after']} | |"]
    for title, results in found.items():
        errors = [result["error"] for runs in results.values() for result in runs if "error" in result]
        if errors:
            lines.append(f"| {title} | {errors[0].replace('|', ' ')} | | | |")
            continue
        for key in results["before"][0]:
            before, after = (float(np.median([run[key] for run in results[tree]])) for tree in trees)
            lines.append(f"| {title} | {key} | {before:.4g} | {after:.4g} | {after / before:.3f} |")
    out.mkdir(parents=True, exist_ok=True)
    record = {"command": " ".join(["python", *sys.argv]), "commits": commits, "cores": os.cpu_count(), "results": found}
    (out / "table.json").write_text(json.dumps(record, indent=1) + "\n")
    (out / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
