"""Training on up to a million embeddings: seconds by phase, peak memory, and whether codes are better than those of a sample.

    python benchmarks/large_training.py --rows 10000 30000 100000 --out results/large-training
    python benchmarks/large_training.py --rows 300000 1000000 --out results/large-training --features cifar.npz

Rows have 64 dimensions. ``made`` are 20,000 groups in 100 kinds, with spectra that fall as those of real features do. ``small groups`` are
groups of 10. ``images`` (with ``--features``, an .npz of ``features (n, d)`` and ``labels (n,)``) are real features, less their mean, in
their 64 principal directions; 10,000 are held out. Where more rows are asked for than there are, all come from Gaussians that were fitted
to 500 groups of the others.

Each cell is ``distillhash train FILE.npy --max-images N`` in a process of its own; rows held out are then encoded.
Finished cells are kept in OUT/rows.jsonl. CPU seconds count all threads.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]
Labels = NDArray[np.int64]
WIDTH, KINDS, GROUPS_A_KIND, CELLS = 64, 100, 200, 500
QUERIES, HELD_OUT = 1000, 20_000
METHODS = ("distillhash-nested", "distillhash-nested --preserve classes", "distillhash")
PHASES = {  # name: where the functions are called from
    "graph": (("distillhash.supervision.graph", "graph_neighbours"),),
    "neighbours in parts": (("distillhash.methods.distillhash_contrast", "nearest_neighbours"),),
    "overlap": (("distillhash.supervision.graph", "nearest_by_overlap"),),
    "scale": (("distillhash.methods.distillhash_nested", "half_agreement"),),
    "pairs": (
        ("distillhash.supervision.flip_rate", "distil_partners"),
        ("distillhash.supervision.flip_rate", "distil_pairs"),
    ),
    "steps": (("distillhash.methods.heads", "train"),),
    "itq": (("distillhash.methods.itq", "procrustes_rotation"),),
}


def made(n: int, draw: int, groups: int, used: int) -> tuple[Rows, Labels]:
    """``n`` rows and the group of each, of the first ``used`` of all ``groups``; another ``draw`` gives other rows of the same groups."""
    rng = np.random.default_rng(0)
    spectrum = np.arange(1, WIDTH + 1) ** -0.5
    kinds = rng.standard_normal((KINDS, WIDTH)) * spectrum
    bases = 0.3 * rng.standard_normal((KINDS, 8, WIDTH)) * spectrum
    offsets = 0.7 * rng.standard_normal((groups, WIDTH)) * spectrum
    sizes = rng.dirichlet(np.full(groups, 2.0))
    rng = np.random.default_rng((1, draw))
    group = rng.choice(groups, n, p=sizes) % used
    kind, rows = group % KINDS, np.empty((n, WIDTH), np.float32)
    for start in range(0, n, 10_000):
        g, k = group[start : start + 10_000], kind[start : start + 10_000]
        inside = np.einsum("mi,mid->md", rng.standard_normal((len(g), 8)), bases[k])
        rows[start : start + 10_000] = (
            kinds[k] + offsets[g] + inside + 0.3 * rng.standard_normal((len(g), WIDTH)) * spectrum
        )
    return rows, group


def images(n: int, file: Path) -> tuple[Rows, Rows, Labels]:
    """``n`` rows to learn from, and 10,000 real ones with their labels."""
    from distillhash.methods.linear_algebra import k_means, principal_components, squared_distances

    with np.load(file) as arrays:
        features, labels = arrays["features"], arrays["labels"]
    order = np.random.default_rng(0).permutation(len(features))
    mean, components = principal_components(features[order[10_000:]], WIDTH)
    rows = (features - mean) @ components
    known, held = rows[order[10_000:]], order[:10_000]
    real = rows[held].astype(np.float32)
    if n <= len(known):
        return known[:n].astype(np.float32), real, labels[held]
    rng = np.random.default_rng(1)
    centres, _ = k_means(known, CELLS, 10, rng)
    cell = np.argmin(squared_distances(known, centres), axis=1)
    common = np.cov(known - centres[cell], rowvar=False)
    counts = rng.multinomial(n, np.bincount(cell, minlength=len(centres)) / len(cell))
    drawn = np.empty((n, WIDTH), np.float32)
    places = np.split(rng.permutation(n), np.cumsum(counts)[:-1])
    for number, mine in enumerate(places):
        members = known[cell == number]
        own = np.cov(members, rowvar=False) if len(members) > 1 else common
        shape = np.linalg.cholesky((own + common) / 2)
        drawn[mine] = members.mean(axis=0) + rng.standard_normal((len(mine), WIDTH)) @ shape.T
    return drawn, real, labels[held]


def data(name: str, n: int, file: Path | None) -> tuple[Rows, Rows, Labels]:
    """Rows to learn from; rows held out and their labels."""
    if name == "images":
        assert file is not None
        return images(n, file)
    groups = KINDS * GROUPS_A_KIND if name == "made" else n // 10
    held, group = made(HELD_OUT, 1, groups, groups if name == "made" else min(groups, HELD_OUT // 10))
    return made(n, 0, groups, groups)[0], held, group % KINDS if name == "made" else group


def graph_recall(found: NDArray[np.int32], rows: Rows) -> float:
    """Share of the exact nearest of 100 rows that are in their lists ``(n, k)``."""
    drawn = np.random.default_rng(0).choice(len(rows), 100, replace=False)
    cosines = rows[drawn] @ rows.T
    cosines[np.arange(100), drawn] = -np.inf
    exact = np.argpartition(-cosines, found.shape[1], axis=1)[:, : found.shape[1]]
    return float(np.mean([len(np.intersect1d(a, b)) / len(a) for a, b in zip(found[drawn], exact, strict=True)]))


def time_phases(seconds: dict[str, float], recalls: list[float]) -> None:
    """Count the CPU seconds of some functions, and the recall of graphs."""

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            started = time.process_time()
            result = function(*arguments, **options)
            seconds[name] = seconds.get(name, 0.0) + time.process_time() - started
            if name == "graph":
                recalls.append(graph_recall(result, arguments[0]))
            return result

        return call

    for name, places in PHASES.items():
        for module, function in places:
            owner = importlib.import_module(module)
            if hasattr(owner, function):
                setattr(owner, function, timed(name, getattr(owner, function)))


def cell(name: str, n: int, method: str, most: int, file: Path | None, bits: int) -> dict[str, Any]:
    """Train and measure; one process each, because of the peak of memory."""
    from distillhash import load_model
    from distillhash.cli import main
    from distillhash.metrics import evaluate_codes, neighbour_recall

    rows, held, labels = data(name, n, file)
    seconds, recalls = dict[str, float](), list[float]()
    with TemporaryDirectory() as folder:
        source, model = Path(folder) / "rows.npy", Path(folder) / "model"
        np.save(source, rows)
        del rows
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        time_phases(seconds, recalls)
        started, cpu, out = time.perf_counter(), time.process_time(), io.StringIO()
        options = ["--method", *method.split(), "--bits", str(bits), "--max-images", str(most), "--quiet", "--json"]
        with contextlib.redirect_stdout(out):
            status = main(["train", str(source), "--out", str(model), *options])
        wall, cpu = time.perf_counter() - started, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        if status:
            raise SystemExit(f"training failed with status {status}")
        hasher = load_model(model).hasher
    codes, queries = hasher.encode(held), np.arange(QUERIES)
    sides = codes[queries], codes, held[queries], held
    found = neighbour_recall(*sides, ks=(10,), depths=(10, 100), same_items=queries)
    rest = slice(QUERIES, None)
    precision = evaluate_codes(codes[queries], codes[rest], labels[queries], labels[rest], cutoffs=(), topn=())["map"]
    summary = json.loads(out.getvalue())
    return {
        "data": name,
        "n": n,
        "method": method,
        "given": min(n, most),
        "learned": min(n, most, hasher.get_params().get("max_train", n)),
        "bits": bits,
        "recall10@10": found["recall10@10"],
        "recall10@100": found["recall10@100"],
        "map": precision,
        "wall_seconds": wall,
        "cpu_seconds": cpu,
        "peak_mb": peak,
        "peak_mb_before": before,
        "chosen": summary["chosen"],
        "phases": seconds,
        "graph_recall": float(np.mean(recalls)) if recalls else None,
    }


def table(records: list[dict[str, Any]]) -> str:
    """One line a cell."""
    names = "data rows method learned_from recall@10 recall@100 MAP CPU_s wall_s peak_MB scale recall_of_the_graph CPU_s_by_phase"
    lines = [f"| {names.replace(' ', ' | ').replace('_', ' ')} |", "|" + "---|" * len(names.split())]
    for r in sorted(records, key=lambda r: (r["data"], r["method"], r["n"], r["learned"])):
        chosen = r["chosen"]
        scale = f"{'fine' if chosen['fine'] else 'coarse'}, {chosen['neighbourhood']}" if chosen else ""
        phases = ", ".join(f"{name} {value:.0f}" for name, value in r["phases"].items() if value >= 1)
        graph = "" if r.get("graph_recall") is None else f"{r['graph_recall']:.3f}"
        quality = f"{r['recall10@10']:.3f} | {r['recall10@100']:.3f} | {r['map']:.3f}"
        cost = f"{r['cpu_seconds']:.0f} | {r['wall_seconds']:.0f} | {r['peak_mb']:.0f}"
        lines.append(
            f"| {r['data']} | {r['n']:,} | {r['method']} | {r['learned']:,} | {quality} | {cost} | {scale} | {graph} | {phases} |"
        )
    return "\n".join(lines) + "\n"


def main_program() -> None:
    """Run the cells that are not there yet, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 30_000, 100_000])
    parser.add_argument(
        "--data", nargs="+", default=["made", "small groups"], choices=["made", "small groups", "images"]
    )
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--features", type=Path, help="an .npz of features and labels, for the data `images`")
    parser.add_argument("--bits", type=int, default=64)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--cell", nargs=4, metavar=("DATA", "ROWS", "METHOD", "MOST"), help="run one cell in this process"
    )
    arguments = parser.parse_args()
    if arguments.cell:
        name, n, method, most = arguments.cell
        print(json.dumps(cell(name, int(n), method, int(most), arguments.features, arguments.bits)))
        return
    if find_spec("faiss") is None:
        raise SystemExit("this needs FAISS: pip install 'distillhash[faiss]'")
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "rows.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {(r["data"], r["n"], r["method"], r["given"], r["bits"]) for r in records}
    for n in arguments.rows:
        for name in arguments.data:
            for method in arguments.methods:
                for most in sorted({min(n, 50_000), n}):
                    if (name, n, method, most, arguments.bits) in done:
                        continue
                    command = [sys.executable, __file__, "--out", str(arguments.out), "--bits", str(arguments.bits)]
                    command += ["--features", str(arguments.features)] if arguments.features else []
                    found = subprocess.run(
                        [*command, "--cell", name, str(n), method, str(most)], capture_output=True, text=True
                    )
                    if found.returncode:
                        print(name, n, method, most, "failed:", found.stderr[-2000:], file=sys.stderr)
                        continue
                    record = json.loads(found.stdout.splitlines()[-1])
                    records.append(record)
                    with file.open("a") as stream:
                        stream.write(json.dumps(record) + "\n")
                    print(
                        {key: record[key] for key in ("data", "n", "method", "learned", "recall10@10", "cpu_seconds")},
                        flush=True,
                    )
    (arguments.out / "table.md").write_text(table(records))


if __name__ == "__main__":
    main_program()
