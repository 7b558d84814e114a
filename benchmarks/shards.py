"""One source encoded by ``encode``, in shards, from tar files and by Ray: whether the tables are the same bytes, and what each takes.

    python benchmarks/shards.py cifar10:data --out results/shards
    python benchmarks/shards.py cifar10:data --images 2000 --rounds 3 --out results/shards/small

Every run starts processes as a user would, without the feature cache. ``shards`` is an array job on this machine: a process for every
shard, as many at a time as there are cores, each on one. ``tar`` encodes the same images, packed in tar files before, in one process: its
keys and so its table are others, the codes must be the same. CPU time is that of all processes that the run started and waited for;
Ray's workers are not among them. Writes ``table.json`` and ``table.md``. Without Ray its row is left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import os
import platform
import re
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import Any

from PIL import Image

from distillhash import Codes
from distillhash.files import cores
from distillhash.sources import ImageSource, open_source

ENCODE = [sys.executable, "-m", "distillhash", "encode"]
QUIET = ["--no-cache", "--quiet"]


def measured(work: Callable[[], object]) -> dict[str, float]:
    """Seconds of wall time, and of CPU time of child processes."""

    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    wall, cpu = time.perf_counter(), spent()
    work()
    return {"wall": time.perf_counter() - wall, "cpu": spent() - cpu}


def run(*words: object, **environment: str) -> None:
    subprocess.run([str(word) for word in words], check=True, env=os.environ | environment)


def merge(folder: Path, out: Path) -> None:
    run(sys.executable, "-m", "distillhash", "merge", folder, "--out", out, "--quiet")


def plain(source: str, model: Path, out: Path) -> None:
    run(*ENCODE, source, "--model", model, "--out", out, *QUIET)


def sharded(source: str, model: Path, count: int, out: Path) -> None:
    def one(number: int) -> None:
        words = [
            *ENCODE,
            source,
            "--model",
            model,
            "--shard",
            f"{number}/{count}",
            "--out",
            out.with_suffix(""),
            *QUIET,
        ]
        run(*words, DISTILLHASH_CORES="1")

    with ThreadPoolExecutor(cores()) as pool:
        list(pool.map(one, range(count)))
    merge(out.with_suffix(""), out)


def by_ray(source: str, model: Path, count: int, out: Path) -> None:
    words = ["--shard", f"all/{count}", "--out", out.with_suffix(""), "--engine", "ray"]
    run(*ENCODE, source, "--model", model, *words, *QUIET)
    merge(out.with_suffix(""), out)


def pack(source: ImageSource, folder: Path, n_files: int) -> str:
    """The images in tar files, in the WebDataset layout; the SOURCE that names them."""
    for number in range(n_files):
        with tarfile.open(folder / f"{number:05}.tar", "w") as tar:
            for row in range(len(source) * number // n_files, len(source) * (number + 1) // n_files):
                content = source.read(row)
                if not isinstance(content, bytes):
                    stream = io.BytesIO()
                    Image.fromarray(content).save(stream, "PNG")
                    content = stream.getvalue()
                info = tarfile.TarInfo(f"{row:09}.png")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return f"{folder}/{{00000..{n_files - 1:05}}}.tar"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--images", type=int, help="the first so many (default: all)")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--backbone", default="efficientnet-lite0")
    parser.add_argument("--model", type=Path, help="a model folder (default: itq of 64 bits, from 2,000 of the images)")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    spec = arguments.source if arguments.images is None else f"{arguments.source}#:{arguments.images}"
    source = open_source(spec)
    if not isinstance(source, ImageSource):
        raise SystemExit(f"{spec} holds no images")
    with tempfile.TemporaryDirectory() as place:
        there = Path(place)
        model = arguments.model
        if model is None:
            model = there / "model"
            words = ["--method", "itq", "--bits", 64, "--backbone", arguments.backbone, "--max-images", 2000, "--quiet"]
            run(sys.executable, "-m", "distillhash", "train", spec, *words, "--out", model)
        (there / "tars").mkdir()
        tars = pack(source, there / "tars", arguments.shards)
        count = arguments.shards
        ways: dict[str, Callable[[Path], None]] = {
            "encode": lambda out: plain(spec, model, out),
            f"{count} shards, a process each": lambda out: sharded(spec, model, count, out),
            f"{count} shards by Ray": lambda out: by_ray(spec, model, count, out),
            f"encode, {count} tar files": lambda out: plain(tars, model, out),
        }
        if importlib.util.find_spec("ray") is None:
            del ways[f"{count} shards by Ray"]
        runs: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
        tables: dict[str, Path] = {}
        for number in range(arguments.rounds):
            for place_of, (way, work) in enumerate(ways.items()):
                tables[way] = there / f"{number}-{place_of}.parquet"
                runs[way].append(measured(lambda work=work, out=tables[way]: work(out)))  # type: ignore[misc]
                print(f"{way}: {runs[way][-1]['wall']:.1f} s", file=sys.stderr, flush=True)
        digests = {way: blake2b(path.read_bytes(), digest_size=8).hexdigest() for way, path in tables.items()}
        first = Codes.load(tables["encode"])[0]
        same_codes = {way: Codes.load(path)[0] == first for way, path in tables.items()}
    lines = ["| run | wall, s | CPU, s | images a second | table | codes as by encode |", "|---|---|---|---|---|---|"]
    best: dict[str, Any] = {}
    for way, spent in runs.items():
        wall, cpu = (min(one[clock] for one in spent) for clock in ("wall", "cpu"))
        best[way] = {"rounds": spent, "table": digests[way], "same_codes": same_codes[way]}
        shown = "" if way.endswith("Ray") else f"{cpu:.1f}"
        same = "yes" if same_codes[way] else "NO"
        lines.append(f"| {way} | {wall:.1f} | {shown} | {len(source) / wall:.0f} | `{digests[way]}` | {same} |")
    record = {
        "command": " ".join(["python", *(re.sub("(^|:)/.*/", r"\1", word) for word in sys.argv)]),
        "images": len(source),
        "cores": cores(),
        "load": os.getloadavg(),
        "python": platform.python_version(),
        "runs": best,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "table.json").write_text(json.dumps(record, indent=1) + "\n")
    (arguments.out / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    whole = {digest for way, digest in digests.items() if not way.endswith("tar files")}
    if len(whole) > 1 or not all(same_codes.values()):
        raise SystemExit("the tables differ")


if __name__ == "__main__":
    main()
