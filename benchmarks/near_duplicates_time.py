"""Time of `distillhash dedup` beside that of extracting the same features alone, both without a cache, on photographs as files.

    python benchmarks/near_duplicates_time.py SOURCE SOURCE ... --folder FOLDER --out results/near-duplicates/time.json

FOLDER receives N different pictures (20,000) of 500 x 375 pixels, as JPEG files of quality 90. The pictures of the sources are taken in the
order of a fixed permutation: the first are kept whole, each of the others is cut into its four quarters, as many as give N. No two files
show the same part of a picture.

Both jobs run in a process of their own with an empty cache, one after the other: `extract` reads, decodes and embeds every image, and
`dedup` is :func:`find_duplicates` as the command runs it. `--cores` limits both to so many processors.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from distillhash.backbones import FeatureCache, extract_features, make_backbone
from distillhash.bench.runs import versions
from distillhash.dedup.codes import DEFAULT_BACKBONE, IMAGE_SIZE, Settings
from distillhash.dedup.job import find_duplicates
from distillhash.output import Progress
from distillhash.sources import ImageSource, decode_image, open_source

N, SIZE, QUALITY = 20_000, (500, 375), 90
JOBS = ("extract", "dedup")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="*")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--cores", type=int, default=os.cpu_count())
    parser.add_argument("--n", type=int, default=N, help="how many pictures (default: 20,000)")
    parser.add_argument("--job", choices=JOBS, help="only this one, on stdout")
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])
    if arguments.job:
        print(json.dumps(measured(arguments.job, arguments.folder)))
        return
    make_pictures([open_source(one) for one in arguments.sources], arguments.folder, arguments.n)
    rows = []
    for job in JOBS:
        command = [sys.executable, __file__, "--folder", str(arguments.folder), "--job", job]
        command += ["--cores", str(arguments.cores)]
        rows.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))
        print(json.dumps(rows[-1]), file=sys.stderr)
    extract, dedup = rows
    ratio = {key: round(dedup[key] / extract[key], 3) for key in ("cpu_seconds", "seconds")}
    words = (
        "python benchmarks/near_duplicates_time.py SOURCE ... --folder FOLDER --out results/near-duplicates/time.json"
    )
    facts = {"command": words, "versions": versions(), "cores": arguments.cores, "jobs": rows, "ratio": ratio}
    if arguments.out:
        arguments.out.write_text(json.dumps(facts, indent=1) + "\n")


def make_pictures(sources: list[Any], folder: Path, n: int) -> None:
    """Write ``n`` files, unless the last is there."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / f"{n - 1:05}.jpg").exists():
        return
    items = [(source, row) for source in sources for row in range(len(source)) if isinstance(source, ImageSource)]
    n_whole = max(0, (4 * len(items) - n) // 3)
    made = 0
    with Progress("pictures", n) as progress:
        for place, item in enumerate(np.random.default_rng(0).permutation(len(items)).tolist()):
            source, row = items[item]
            image = Image.fromarray(decode_image(source.read(row)))
            x, y = image.width // 2, image.height // 2
            quarters = [(0, 0, x, y), (x, 0, 2 * x, y), (0, y, x, 2 * y), (x, y, 2 * x, 2 * y)]
            for box in [(0, 0, *image.size)] if place < n_whole else quarters:
                if made < n:
                    stream = BytesIO()
                    image.resize(SIZE, Image.Resampling.BICUBIC, box=box).save(stream, "JPEG", quality=QUALITY)
                    (folder / f"{made:05}.jpg").write_bytes(stream.getvalue())
                    progress.advance(1)
                    made += 1


def measured(job: str, folder: Path) -> dict[str, Any]:
    """One job."""
    source = open_source(folder)
    backbone = make_backbone(DEFAULT_BACKBONE, image_size=IMAGE_SIZE, device="cpu")
    backbone.embed(np.zeros((1, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8))
    with tempfile.TemporaryDirectory() as place:
        cache, started = FeatureCache(place), (time.perf_counter(), time.process_time())
        if job == "extract":
            found: dict[str, Any] = {"images": len(extract_features(source, backbone, cache=cache, progress=True).rows)}
        else:
            report = find_duplicates(source, Settings(backbone=backbone, cache=cache, progress=True))
            found = {
                "images": report.n_items,
                "sentence": report.calibration.sentence(),
                "groups": len(report.groups),
                "duplicates": report.n_duplicates,
                "same_scene": sum(len(group) - 1 for group in report.scenes),
                "looked_at": report.n_looked_at,
            }
        seconds, cpu = time.perf_counter() - started[0], time.process_time() - started[1]
    peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return {"job": job, **found, "seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1), "peak_rss_mb": peak}


if __name__ == "__main__":
    main()
