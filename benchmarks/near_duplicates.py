"""Near-duplicates of 1,000 photographs with twelve edits each, and with fourteen others, against imagededup and imagehash.

    python benchmarks/near_duplicates.py PHOTOS --set FOLDER --out results/near-duplicates

PHOTOS is a source of 1,000 image files; FOLDER receives the edits. Pairs are scored: two images are a true pair when they show one picture.
Ours are the pairs inside the groups of `distillhash dedup` at the radius it chooses; the others are all pairs within their threshold, at
their default and at the one best in hindsight. imagededup is loaded without its CNN module, which needs torchvision; its procedure (cosine
of pooled features at least 0.9) is run over this package's backbone instead.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import types
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distillhash import Codes
from distillhash.backbones import FeatureCache, extract_features, make_backbone
from distillhash.bench.runs import versions
from distillhash.dedup.codes import Settings
from distillhash.dedup.job import find_duplicates
from distillhash.hamming import planes_of, within
from distillhash.sources import ImageSource, open_source
from near_duplicates_held_out import HELD_OUT, make_held_out
from near_duplicates_set import HEAVY, LIGHT, make_set

Ints = NDArray[np.int64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos")
    parser.add_argument("--set", type=Path, required=True, dest="folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache")
    arguments = parser.parse_args()
    photos = open_source(arguments.photos)
    assert isinstance(photos, ImageSource)
    make_set(photos, arguments.folder)
    make_held_out(photos, arguments.folder)
    cache = FeatureCache(arguments.cache)
    source = open_source(arguments.folder)
    assert isinstance(source, ImageSource)
    part = np.array([key.split("/")[0] for key in source.keys])
    collections = {
        "light": np.isin(part, ["original", "light"]),
        "light and heavy": part != "held-out",
        "held-out": np.isin(part, ["original", "held-out"]),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, chosen in collections.items():
        images = source.select(np.flatnonzero(chosen))
        rows += kept(arguments.folder / f"{name}.json", partial(compare, name, images, cache))
    words = ["python", "benchmarks/near_duplicates.py", "PHOTOS", "--set", "FOLDER", "--out", "OUT"]
    record = {"command": " ".join(words), "versions": versions(), "methods": rows}
    (arguments.out / "near-duplicates.json").write_text(json.dumps(record, indent=1) + "\n")
    (arguments.out / "table.md").write_text(table(rows))


def kept(path: Path, make: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What an earlier run left in ``path``, or what ``make`` gives, kept there."""
    if not path.exists():
        path.write_text(json.dumps(make()))
    found: list[dict[str, Any]] = json.loads(path.read_text())
    return found


def compare(name: str, source: ImageSource, cache: FeatureCache) -> list[dict[str, Any]]:
    """Scores of every method on one collection."""
    picture = np.array([int(Path(key).name[:5]) for key in source.keys])
    edit = np.array([Path(key).stem[6:] for key in source.keys])
    truth = int(sum(n * (n - 1) // 2 for n in np.bincount(picture)))
    rows = []

    started = time.perf_counter()
    report = find_duplicates(source, Settings(cache=cache, progress=True))
    seconds = time.perf_counter() - started
    groups = [np.array([item.row for item in group]) for group in report.groups]
    pairs = np.concatenate([group[np.stack(np.triu_indices(len(group), 1), 1)] for group in groups])
    chosen = score(name, "distillhash dedup", "calibrated", report.calibration.radius, picture, edit, truth, pairs)
    rows.append(chosen | {"sentence": report.calibration.sentence(), "seconds_features_cached": round(seconds, 1)})

    for method, default, hashes in perceptual_hashes(source):
        rows += at_thresholds(name, method, default, hamming_levels(hashes, 24), picture, edit, truth)
    features = extract_features(source, make_backbone(image_size=224), cache=cache).features
    rows += at_thresholds(
        name, "imagededup's CNN procedure, our backbone", 100, cosine_levels(features), picture, edit, truth
    )
    return rows


def perceptual_hashes(source: ImageSource) -> Iterator[tuple[str, int, Codes]]:
    """64-bit hashes of every file: imagededup's by its own reader, imagehash's by Pillow's as its README does."""
    import imagededup
    import imagehash

    for name in ("methods", "utils"):  # their __init__ would import torchvision
        package = types.ModuleType(f"imagededup.{name}")
        package.__path__ = [str(Path(imagededup.__path__[0]) / name)]
        sys.modules[f"imagededup.{name}"] = package
    from imagededup.methods import hashing

    paths = [source.path(row) or "" for row in range(len(source))]
    makers: list[tuple[str, int, Callable[[str], str]]] = [
        ("imagededup pHash", 10, lambda path: hashing.PHash().encode_image(path)),
        ("imagededup dHash", 10, lambda path: hashing.DHash().encode_image(path)),
        ("imagehash phash", 10, lambda path: str(imagehash.phash(Image.open(path)))),
        ("imagehash dhash", 10, lambda path: str(imagehash.dhash(Image.open(path)))),
    ]
    for name, default, make in makers:
        packed = np.array([list(bytes.fromhex(make(path))) for path in paths], np.uint8)
        yield name, default, Codes.from_packed(packed, 64)


def hamming_levels(codes: Codes, most: int) -> Iterator[tuple[Ints, Ints]]:
    """Pairs and their distance."""
    planes = planes_of(codes)
    for start in range(0, len(codes), 256):
        limits, found, distances = within(planes[:, start : start + 256], planes, most)
        owner = start + np.repeat(np.arange(len(limits) - 1), np.diff(limits))
        once = found > owner
        yield np.stack([owner[once], found[once]], 1), distances[once].astype(np.int64)


def cosine_levels(features: NDArray[np.float32]) -> Iterator[tuple[Ints, Ints]]:
    """Pairs with a cosine of at least 0.6, and (1 - cosine) in thousandths, rounded up: level 100 is the threshold 0.9."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    for start in range(0, len(unit), 256):
        cosine = unit[start : start + 256] @ unit.T
        owner, found = np.nonzero(cosine >= 0.6)
        once = found > start + owner
        owner, found = owner[once], found[once]
        levels = np.ceil(1000 * (1 - cosine[owner, found].astype(np.float64)) - 1e-3).astype(np.int64)
        yield np.stack([start + owner, found], 1), np.maximum(levels, 0)


def at_thresholds(
    name: str, method: str, default: int, levels: Iterator[tuple[Ints, Ints]], picture: Ints, edit: Any, truth: int
) -> list[dict[str, Any]]:
    """Scores at the default threshold and at the best."""
    true, false = np.zeros(1001, np.int64), np.zeros(1001, np.int64)
    kept: list[tuple[Ints, Ints]] = []
    for pairs, level in levels:
        same = picture[pairs[:, 0]] == picture[pairs[:, 1]]
        true += np.bincount(level[same], minlength=1001)
        false += np.bincount(level[~same], minlength=1001)
        kept.append((pairs[same], level[same]))
    true_within, within_all = np.cumsum(true), np.cumsum(true + false)
    f1 = 2 * true_within / (within_all + truth)
    pairs, level = np.concatenate([p for p, _ in kept]), np.concatenate([lv for _, lv in kept])
    return [
        score(name, method, setting, at, picture, edit, truth, pairs[level <= at], int(within_all[at]))
        for setting, at in (("default", default), ("best in hindsight", int(np.argmax(f1))))
    ]


def score(
    name: str,
    method: str,
    setting: str,
    threshold: int,
    picture: Ints,
    edit: Any,
    truth: int,
    pairs: Ints,
    n_found: int | None = None,
) -> dict[str, Any]:
    """Precision, recall and F1 over pairs, and for each edit the share of copies found with their original."""
    same = picture[pairs[:, 0]] == picture[pairs[:, 1]]
    n_found, n_true = len(pairs) if n_found is None else n_found, int(same.sum())
    a, b = edit[pairs[same, 0]], edit[pairs[same, 1]]
    other = np.where(a == "original", b, np.where(b == "original", a, ""))
    names, counts = np.unique(other[other != ""], return_counts=True)
    recalls = dict(zip(names.tolist(), (counts / len(np.unique(picture))).tolist(), strict=True))
    return {
        "collection": name,
        "method": method,
        "setting": setting,
        "threshold": threshold,
        "precision": n_true / max(n_found, 1),
        "recall": n_true / truth,
        "f1": 2 * n_true / (n_found + truth),
        "recall_by_edit": {
            one: recalls.get(one, 0.0) for one in (*LIGHT, *HEAVY, *HELD_OUT) if one in set(edit.tolist())
        },
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The scores as Markdown."""
    lines = [
        "# Near-duplicates of 1,000 photographs",
        "",
        "    " + "python benchmarks/near_duplicates.py PHOTOS --set FOLDER --out results/near-duplicates",
        "",
    ]
    for name in dict.fromkeys(row["collection"] for row in rows):
        lines += [
            f"## Originals with {name} edits",
            "",
            "| method | setting | threshold | precision | recall | F1 |",
            "|---|---|---|---|---|---|",
        ]
        for row in rows:
            if row["collection"] == name:
                numbers = " | ".join(f"{row[key]:.4f}" for key in ("precision", "recall", "f1"))
                lines.append(f"| {row['method']} | {row['setting']} | {row['threshold']} | {numbers} |")
        lines += (
            [""] + [row["sentence"] + "." for row in rows if row["collection"] == name and "sentence" in row] + [""]
        )
    for name in ("light and heavy", "held-out"):
        found = [row for row in rows if row["collection"] == name]
        edits = list(found[0]["recall_by_edit"])
        lines += [
            f"## Share of {name} edits found with their original",
            "",
            "| method | setting | " + " | ".join(edits) + " |",
            "|---" * (len(edits) + 2) + "|",
        ]
        for row in found:
            shares = " | ".join(f"{row['recall_by_edit'][e]:.3f}" for e in edits)
            lines.append(f"| {row['method']} | {row['setting']} | {shares} |")
        lines.append("")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
