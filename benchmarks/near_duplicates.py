"""Near-duplicates of 1,000 photographs with twelve edits each, and with fourteen others, against imagededup and imagehash.

    python benchmarks/near_duplicates.py PHOTOS --set FOLDER --out results/near-duplicates

PHOTOS is a source of 1,000 image files; FOLDER receives the edits. Pairs are scored: two images are a true pair when they show one picture.
Ours are the pairs inside the groups of `distillhash dedup` at the radii it chooses; the others are all pairs within their threshold, at
their default and at the one best in hindsight. imagededup is loaded without its CNN module, which needs torchvision; its procedure (cosine
of pooled features at least 0.9) is run over the features of each backbone instead, and at 0.75, which SSCD's authors recommend for theirs.

`--backbone NAME` or `NAME@SIZE`, once for each, adds a network to the default one, such as `onnx:sscd.onnx@224` or `efficientnet-lite2`.
A network in a file is named by the digest of the file. What was measured is kept in FOLDER, and not measured again.

Of one kind of edit, precision, recall and F1 are those of the pairs of an original and an image with this edit.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import types
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distillhash import Codes
from distillhash.backbones import Backbone, FeatureCache, extract_features, make_backbone
from distillhash.bench.runs import versions
from distillhash.dedup.codes import DEFAULT_BACKBONE, Settings
from distillhash.dedup.job import find_duplicates
from distillhash.hamming import planes_of, within
from distillhash.sources import ImageSource, open_source
from near_duplicates_held_out import HELD_OUT, make_held_out
from near_duplicates_set import HEAVY, LIGHT, make_set

Ints = NDArray[np.int64]
LEVELS = 1001
COSINES = {"imagededup's threshold": 100, "SSCD's threshold": 250}  # 0.9 and 0.75, see cosine_levels
SHOWN = 5  # pairs of pictures that false pairs are of, in the record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos")
    parser.add_argument("--set", type=Path, required=True, dest="folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--backbone", action="append", default=[], metavar="NAME[@SIZE]")
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
    networks = [made(name) for name in (f"{DEFAULT_BACKBONE}@224", *arguments.backbone)]
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for name, chosen in collections.items():
        of = Collection(name, source.select(np.flatnonzero(chosen)))
        for network in networks:
            label = labelled(network)
            measure = partial(by_dedup, of, network, label, cache)
            rows += kept(arguments.folder / f"{name}, {label}.json", measure)
        rows += kept(arguments.folder / f"{name}, hashes.json", partial(by_hashes, of))
        words = [
            "python",
            "benchmarks/near_duplicates.py",
            "PHOTOS",
            "--set",
            "FOLDER",
            "--out",
            "results/near-duplicates",
        ]
        words += [f"--backbone '{labelled(network)}'" for network in networks[1:]]
        command = " ".join(words)
        record = {"command": command, "versions": versions(), "methods": rows}
        (arguments.out / "near-duplicates.json").write_text(json.dumps(record, indent=1) + "\n")
        (arguments.out / "table.md").write_text(table(command, rows))


def made(name: str) -> Backbone:
    """A backbone by its name, and its size where one is given; without, at the size of its training."""
    place, at, size = name.rpartition("@")
    if at and size.isdigit():
        return make_backbone(place, image_size=int(size))
    network = make_backbone(name)
    return network.enlarged() or network


def labelled(network: Backbone) -> str:
    """Name and size; of a file its digest in the place of its path."""
    config = network.config()
    kind = network.name.partition(":")[0]
    return (
        f"{kind}:{config['digest']}@{network.image_size}"
        if "digest" in config
        else f"{network.name}@{network.image_size}"
    )


def kept(path: Path, make: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What an earlier run left in ``path``, or what ``make`` gives, kept there."""
    if not path.exists():
        path.write_text(json.dumps(make()))
    found: list[dict[str, Any]] = json.loads(path.read_text())
    return found


class Collection:
    """Images, the picture that each shows, and its edit."""

    def __init__(self, name: str, source: ImageSource) -> None:
        self.name, self.source = name, source
        self.picture = np.array([int(Path(key).name[:5]) for key in source.keys])
        self.edits, self.edit = np.unique([Path(key).stem[6:] for key in source.keys], return_inverse=True)
        self.original = int(np.flatnonzero(self.edits == "original")[0])

    def kinds(self, pairs: Ints) -> tuple[NDArray[np.bool_], Ints]:
        """Which pairs are true, and the edit of what is paired with an original; of other pairs that of originals."""
        same = self.picture[pairs[:, 0]] == self.picture[pairs[:, 1]]
        a, b = self.edit[pairs].T
        return same, np.where(a == self.original, b, np.where(b == self.original, a, self.original))

    def score(self, method: str, setting: str, threshold: int, found: Ints) -> dict[str, Any]:
        """Precision, recall and F1 of ``found``: numbers of pairs by edit (that of originals: all other pairs), false and true."""
        n = len(np.unique(self.picture))
        truth = int(sum(k * (k - 1) // 2 for k in np.bincount(self.picture)))
        by_edit = {str(name): _scores(found[at], n) for at, name in enumerate(self.edits) if at != self.original}
        order = [name for name in (*LIGHT, *HEAVY, *HELD_OUT) if name in by_edit]
        return {
            "collection": self.name,
            "method": method,
            "setting": setting,
            "threshold": threshold,
            **_scores(found.sum(axis=0), truth),
            "n_false": int(found[:, 0].sum()),
            "by_edit": {name: by_edit[name] for name in order},
        }


def _scores(found: Ints, truth: int) -> dict[str, float]:
    n_true, n_found = int(found[1]), int(found.sum())
    return {"precision": n_true / max(n_found, 1), "recall": n_true / truth, "f1": 2 * n_true / (n_found + truth)}


def by_dedup(of: Collection, network: Backbone, label: str, cache: FeatureCache) -> list[dict[str, Any]]:
    """The command over the features of one network, and the cosine of these features."""
    features = extract_features(of.source, network, cache=cache, progress=True).features
    times = time.perf_counter(), time.process_time()
    report = find_duplicates(of.source, Settings(backbone=network, cache=cache, progress=True))
    seconds = time.perf_counter() - times[0], time.process_time() - times[1]
    groups = [np.array([item.row for item in group]) for group in report.groups]
    pairs = np.concatenate(
        [np.zeros((0, 2), np.int64), *(group[np.stack(np.triu_indices(len(group), 1), 1)] for group in groups)]
    )
    same, edit = of.kinds(pairs)
    found = np.zeros((len(of.edits), 2), np.int64)
    np.add.at(found, (edit, same.astype(np.int64)), 1)
    calibration = report.calibration
    shown = Counter(map(tuple, np.sort(of.picture[pairs[~same]], axis=1).tolist()))
    members = [item for group in report.groups for item in group[1:]]
    row = of.score("distillhash dedup", "calibrated", calibration.radius, found) | {
        "sentence": calibration.sentence(),
        "stated_false_pairs": calibration.expected_false_pairs,
        "false_pairs_interval": calibration.false_pairs_interval,
        "false_pairs_are_of": [[*pictures, n] for pictures, n in shown.most_common(SHOWN)],
        "n_pictures_in_false_pairs": len(shown),
        "match": Counter(item.match for item in members),
        "found_by": Counter(item.found_by for item in members),
        "looked_at": report.n_looked_at,
        "seconds_features_cached": round(seconds[0], 1),
        "cpu_seconds_features_cached": round(seconds[1], 1),
    }
    cosines = at_thresholds(of, "cosine of the features", COSINES, cosine_levels(features))
    return [one | {"backbone": label} for one in (row, *cosines)]


def by_hashes(of: Collection) -> list[dict[str, Any]]:
    """All perceptual hashes of other libraries."""
    rows: list[dict[str, Any]] = []
    for method, default, hashes in perceptual_hashes(of.source):
        rows += [
            one | {"backbone": ""}
            for one in at_thresholds(of, method, {"default": default}, hamming_levels(hashes, 24))
        ]
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
    """Pairs with a cosine of at least 0.3, and (1 - cosine) in thousandths, rounded up: level 100 is the threshold 0.9."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    for start in range(0, len(unit), 256):
        cosine = unit[start : start + 256] @ unit.T
        owner, found = np.nonzero(cosine >= 0.3)
        once = found > start + owner
        owner, found = owner[once], found[once]
        levels = np.ceil(1000 * (1 - cosine[owner, found].astype(np.float64)) - 1e-3).astype(np.int64)
        yield np.stack([start + owner, found], 1), np.maximum(levels, 0)


def at_thresholds(
    of: Collection, method: str, settings: dict[str, int], levels: Iterator[tuple[Ints, Ints]]
) -> list[dict[str, Any]]:
    """Scores at some thresholds by name, and at the best."""
    counts = np.zeros((len(of.edits), 2, LEVELS), np.int64)
    for pairs, level in levels:
        same, edit = of.kinds(pairs)
        at = (edit * 2 + same) * LEVELS + level
        counts += np.bincount(at, minlength=counts.size).reshape(counts.shape)
    within_level = counts.cumsum(axis=2)
    false, true = within_level.sum(axis=0)
    truth = sum(k * (k - 1) // 2 for k in np.bincount(of.picture))
    best = int(np.argmax(2 * true / (true + false + truth)))
    return [
        of.score(method, setting, at, within_level[:, :, at])
        for setting, at in (settings | {"best in hindsight": best}).items()
    ]


def table(command: str, rows: list[dict[str, Any]]) -> str:
    """The scores as Markdown."""
    lines = ["# Near-duplicates of 1,000 photographs", "", f"    {command}", ""]
    names = list(dict.fromkeys(row["collection"] for row in rows))
    for name in names:
        lines += [
            f"## Originals with {name} edits",
            "",
            "| method | backbone | setting | threshold | precision | recall | F1 | false pairs | stated |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for row in (row for row in rows if row["collection"] == name):
            numbers = " | ".join(f"{row[key]:.4f}" for key in ("precision", "recall", "f1"))
            stated = ""
            if "sentence" in row:
                low, high = row["false_pairs_interval"]
                stated = f"{row['stated_false_pairs']:.1f} ({low:.1f} to {high:.1f})"
            words = [
                row["method"],
                row["backbone"],
                row["setting"],
                row["threshold"],
                numbers,
                f"{row['n_false']:,}",
                stated,
            ]
            lines.append("| " + " | ".join(map(str, words)) + " |")
        lines.append("")
        for row in rows:
            if row["collection"] == name and row.get("n_false") and "sentence" in row:
                most = ", ".join(f"{n} of {a} and {b}" for a, b, n in row["false_pairs_are_of"])
                text = f"False pairs of `dedup` with {row['backbone']} are of {row['n_pictures_in_false_pairs']} pairs of pictures: {most}."
                lines += [text, ""]
    for name in names:
        found = [row for row in rows if row["collection"] == name]
        edits = list(found[0]["by_edit"])
        lines += [
            f"## Originals and their {name} edits, by edit",
            "",
            "Recall, and precision where it is below .9995.",
            "",
            "| method | backbone | setting | " + " | ".join(edits) + " |",
            "|---" * (len(edits) + 3) + "|",
        ]
        for row in found:
            shares = " | ".join(_share(row["by_edit"][edit]) for edit in edits)
            lines.append(f"| {row['method']} | {row['backbone']} | {row['setting']} | {shares} |")
        lines.append("")
    return "\n".join(lines)


def _share(scores: dict[str, float]) -> str:
    is_precise = scores["precision"] >= 0.9995 or scores["recall"] == 0
    return f"{scores['recall']:.3f}" + ("" if is_precise else f" ({scores['precision']:.3f})")


if __name__ == "__main__":
    main()
