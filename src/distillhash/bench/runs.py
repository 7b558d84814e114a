"""Runs: methods x code lengths x seeds under one protocol, on the same features, with the same metrics.

Every finished run is kept in a file of its own, written whole or not at all: what was stopped goes on where it stopped, and several
processes may fill one folder. A run that fails is recorded with its reason and tried again next time.

A fine-tuned run starts from the pretrained backbone, trains a copy of it with the method, and passes queries and database through the
copy. Its neighbour recall is about the neighbours by the pretrained features, as that of every other run.
"""

from __future__ import annotations

import copy
import io
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import distillhash
from distillhash.bench.protocols import Protocol, Split
from distillhash.codes import Codes
from distillhash.errors import DataError, ParameterError
from distillhash.files import write_atomic
from distillhash.methods import make_hasher, method_class, table_name
from distillhash.methods.base import sample_rows
from distillhash.metrics import evaluate_queries, find_neighbours, recall_measures
from distillhash.metrics.neighbours import DEPTHS, NEAREST, Neighbours
from distillhash.supervision.agreement import ASKED, RECOGNISED, recognised_views

if TYPE_CHECKING:
    from distillhash.backbones import Backbone, FeatureCache, TorchBackbone
    from distillhash.methods.base import Hasher
    from distillhash.sources import ImageSource, Source

FINE_TUNED = "fine-tuned"
LOSS_METHODS = ("distillhash", "distillhash-initial")
"""Methods whose records hold ``iteration_loss``, the mean loss of every :data:`LOSS_ITERATIONS` iterations (Figure 4 of the paper)."""
LOSS_ITERATIONS = 10


@dataclass(frozen=True)
class Prepared:
    """Features and labels of all rows of a source, split by a protocol; the identity of their backbone.

    ``views`` are ``(n_views, n_train, d)`` of the training rows, or None; ``teacher`` is ``(n_train, d)`` of the training rows at a
    larger size, or None. Where ``views_teach`` is False, methods that choose go without both. ``trainable`` is the source and its
    pretrained backbone where runs fine-tune it.
    """

    protocol: Protocol
    split: Split
    features: NDArray[np.float32]
    labels: NDArray[Any]
    backbone: dict[str, Any]
    views: NDArray[np.float32] | None = None
    teacher: NDArray[np.float32] | None = None
    views_teach: bool = True
    trainable: tuple[ImageSource, TorchBackbone] | None = None

    @cached_property
    def neighbours(self) -> Neighbours:
        """The nearest of at most 1,000 queries, drawn by a fixed seed, in the database; found once for all runs."""
        return find_neighbours(self.features[self.split.query], self.features[self.split.database])

    def uses_views(self, method: str) -> bool:
        """Whether a method is given the views."""
        chosen = method_class(method)
        return chosen.uses_views and (self.views_teach or not chosen.chooses_views)

    def given(self, method: str) -> dict[str, NDArray[np.float32] | None]:
        """What ``fit`` gets besides features and labels: ``views`` and ``teacher``, None where the method does not use them."""
        return {
            "views": self.views if self.uses_views(method) else None,
            "teacher": self.teacher if self.uses_views(method) and method_class(method).uses_teacher else None,
        }


@dataclass(frozen=True)
class Provenance:
    """What is needed to make a table again."""

    command: str
    protocol: str
    split_sha256: str
    source: str
    backbone: dict[str, Any]
    seeds: list[int]
    versions: dict[str, str]
    n_train: int = 0  # training items of the split
    n_views: int = 0
    teacher: bool = False
    views_teach: bool = True
    fine_tuned: bool = False  # the backbone in some rows, which say so
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """One cell of the matrix: its record, and the average precision of every query where it did not fail."""

    record: dict[str, Any]
    average_precision: NDArray[np.float32] | None

    @property
    def name(self) -> str:
        """What its row is called: the method, and whether the backbone was trained with it."""
        return run_name(table_name(self.record["method"]), fine_tuned=self.fine_tuned)

    @property
    def fine_tuned(self) -> bool:
        """Whether the backbone was trained too."""
        return bool(self.record.get("fine_tuned"))

    @property
    def failed(self) -> bool:
        """Whether the method raised an error; the record says which."""
        return "error" in self.record


def run_name(name: str, *, fine_tuned: bool) -> str:
    """A name with the mark of a fine-tuned backbone."""
    return f"{name}, {FINE_TUNED}" if fine_tuned else name


def prepare(
    source: Source,
    protocol: Protocol,
    backbone: Backbone,
    *,
    cache: FeatureCache | None,
    n_views: int = 0,
    choose_views: bool = False,
    teacher: bool = False,
    shrink: bool = False,
    fine_tune: bool = False,
    progress: bool = False,
) -> Prepared:
    """Features of every item of the source, once for all runs, and ``n_views`` augmented views of the training images.

    With ``choose_views`` methods that choose are given them only where they teach something, as in ``train``. Where there are views,
    ``teacher`` asks for the training images at the size that the backbone was trained with as well. With
    ``fine_tune`` every run trains the backbone too.
    """
    from distillhash.backbones import TorchBackbone, extract_features
    from distillhash.sources import ImageSource

    trainable = None
    if fine_tune and not isinstance(source, ImageSource):
        raise ParameterError(f"fine-tuning needs images, but {source.name} holds embeddings; leave out --fine-tune")
    if fine_tune:
        backbone.check_trainable()
        assert isinstance(source, ImageSource) and isinstance(backbone, TorchBackbone)  # as was checked
        trainable = source, backbone
    split = protocol.split(source, shrink=shrink)
    table = extract_features(source, backbone, cache=cache, progress=progress)
    if table.skipped:
        first = table.skipped[0]
        raise DataError(
            f"a protocol needs every item, {len(table.skipped)} cannot be read (first {first.key}: {first.reason})"
        )
    views = guiding = None
    views_teach = True
    if n_views:
        train = source.select(split.train)
        found = extract_features(train, backbone, cache=cache, n_views=n_views, teacher=teacher, progress=progress)
        views, guiding = found.views, found.teacher
        if choose_views and views is not None:
            rows = sample_rows(len(train), ASKED, np.random.default_rng(0))
            views_teach = recognised_views(found.features[rows], views[:1, rows]) < RECOGNISED
    assert source.labels is not None  # protocol.split has checked
    identity = {**backbone.config(), "fingerprint": backbone.fingerprint}
    return Prepared(protocol, split, table.features, source.labels, identity, views, guiding, views_teach, trainable)


def run_matrix(
    prepared: Prepared,
    methods: Sequence[str],
    bits: Sequence[int],
    seeds: Sequence[int],
    settings: dict[str, Any],
    folder: Path,
) -> Iterator[tuple[Run, bool]]:
    """One run per method, code length and seed, and whether it was found in ``folder``, where finished runs are kept.

    A method is ``NAME`` or ``NAME:PRESET``, and a record's ``method`` is that word.
    ``settings`` are hyper-parameters given to every method. The last epoch is what is measured. A record holds the keys of
    :func:`distillhash.metrics.evaluate_codes` with features, those of the results (contract), ``fine_tuned``, ``n_train`` (the training
    items that the method learned from), ``loss`` per epoch and ``identity``; where a method failed, ``error`` and what identifies the run.
    ``encode_seconds`` of a fine-tuned run is from images.
    """
    fine_tuned = prepared.trainable is not None
    for n_bits, method, seed in product(bits, methods, seeds):
        identity = _identity(prepared, method, n_bits, seed, settings, fine_tuned=fine_tuned)
        path = _kept_in(folder, fine_tuned=fine_tuned) / f"{method.replace(':', '=')}-{n_bits}-{seed}.json"
        kept = _read(path, identity)
        run = kept or _run(prepared, method, n_bits, seed, settings, identity)
        if kept is None:
            if run.average_precision is not None:  # before the record, which makes the run count
                buffer = io.BytesIO()
                np.save(buffer, run.average_precision)
                write_atomic(path.with_suffix(".npy"), buffer.getvalue())
            write_atomic(path, json.dumps(run.record).encode())
        yield run, kept is not None


def add_kept_runs(runs: Sequence[Run], folder: Path, prepared: Prepared, settings: dict[str, Any]) -> list[Run]:
    """``runs``, and those of the same experiment and code lengths that other commands have kept in ``folder``, fine-tuned or not."""
    merged = {(run.record["method"], run.record["n_bits"], run.record["seed"], run.fine_tuned): run for run in runs}
    lengths = {run.record["n_bits"] for run in runs}
    for fine_tuned in (False, True):
        for path in _kept_in(folder, fine_tuned=fine_tuned).glob("*.json"):
            with suppress(ValueError, ParameterError):
                method, n_bits, seed = path.stem.rsplit("-", 2)
                cell = (method.replace("=", ":"), int(n_bits), int(seed))
                if (*cell, fine_tuned) in merged or cell[1] not in lengths:
                    continue
                if run := _read(path, _identity(prepared, *cell, settings, fine_tuned=fine_tuned)):
                    merged[*cell, fine_tuned] = run
    return [merged[key] for key in sorted(merged)]


def _kept_in(folder: Path, *, fine_tuned: bool) -> Path:
    return folder / FINE_TUNED if fine_tuned else folder


def _run(prepared: Prepared, method: str, n_bits: int, seed: int, settings: dict[str, Any], identity: str) -> Run:
    split, features, labels = prepared.split, prepared.features, prepared.labels
    record: dict[str, Any] = {
        "protocol": prepared.protocol.name,
        "method": method,
        "n_bits": n_bits,
        "seed": seed,
        "backbone": prepared.backbone["name"],
        "fine_tuned": prepared.trainable is not None,
        "identity": identity,
    }
    try:
        given: dict[str, Any] = prepared.given(method)
        backbone = None
        if prepared.trainable is not None:
            from distillhash.backbones import ImageInputs
            from distillhash.methods.training import TrainableImages

            source, backbone = prepared.trainable[0], copy.deepcopy(prepared.trainable[1])
            given["images"] = TrainableImages(ImageInputs(source.select(split.train), backbone), backbone.network)
            settings = {"device": backbone.device, **settings}
        hasher = _hasher(prepared, method, n_bits, seed, settings)
        train = features[split.train]
        with suppress(OSError):  # reset the peak of resident memory, where the system can (Linux)
            Path("/proc/self/clear_refs").write_text("5")
        started = time.perf_counter()
        hasher.fit(train, labels=labels[split.train] if hasher.needs_labels else None, **given)
        fitted = time.perf_counter()
        peak = _peak_rss_mb()
        if backbone is None:
            codes = hasher.encode(features[split.query]), hasher.encode(features[split.database])
        else:
            backbone.refresh()
            query, database = source.select(split.query), source.select(split.database)
            codes = _encode(hasher, query, backbone), _encode(hasher, database, backbone)
        encoded = time.perf_counter()
        depths: dict[str, Any] = {"cutoffs": prepared.protocol.cutoffs, "topn": prepared.protocol.topn}
        metrics, average_precision = evaluate_queries(*codes, labels[split.query], labels[split.database], **depths)
        metrics |= recall_measures(*codes, prepared.neighbours)
    except Exception as error:  # one failing method must not lose the others; its reason is shown in the table
        return Run({**record, "error": f"{type(error).__name__}: {error}"}, None)
    record |= metrics | {"fit_seconds": fitted - started, "encode_seconds": encoded - fitted, "peak_rss_mb": peak}
    record["n_train"] = len(hasher.history_.get("rows", split.train))
    if "loss" in hasher.history_:
        record["loss"] = [float(value) for value in hasher.history_["loss"]]
    if hasher.method in LOSS_METHODS:
        losses = hasher.history_["iteration_loss"]
        parts = np.split(losses, range(LOSS_ITERATIONS, len(losses), LOSS_ITERATIONS))
        record["iteration_loss"] = [float(np.mean(part)) for part in parts]
    return Run(record, average_precision.astype(np.float32))


def _hasher(prepared: Prepared, method: str, n_bits: int, seed: int, settings: dict[str, Any]) -> Hasher:
    """The method of a run. A limit on its training rows is raised to the protocol's, unless ``settings`` have their own."""
    hasher = make_hasher(method, n_bits, seed=seed, **settings)
    needed = prepared.protocol.max_train or 0
    if "max_train" not in settings and hasher.get_params().get("max_train", needed) < needed:
        hasher.set_params(max_train=needed)
    return hasher


def _encode(hasher: Hasher, source: Source, backbone: Backbone) -> Codes:
    """Codes of images by a backbone that no other run has, so its features are not kept."""
    from distillhash.backbones import iter_features

    return Codes.concatenate([hasher.encode(part.features) for part in iter_features(source, backbone)], hasher.n_bits)


def _identity(
    prepared: Prepared, method: str, n_bits: int, seed: int, settings: dict[str, Any], *, fine_tuned: bool
) -> str:
    """What a run depends on: a kept run is taken up only when all of it is the same."""
    given = prepared.given(method)
    facts = {
        "version": distillhash.__version__,
        "split": prepared.split.checksum,
        "backbone": prepared.backbone,
        "n_views": 0 if given["views"] is None else len(given["views"]),
        **{name: sha256(np.ascontiguousarray(a).data).hexdigest() for name, a in given.items() if a is not None},
        "method": method,
        "parameters": _hasher(prepared, method, n_bits, seed, settings).get_params(),
        "cutoffs": prepared.protocol.cutoffs,
        "topn": prepared.protocol.topn,
        "neighbour_recall": (NEAREST, DEPTHS),
        **({"fine_tuned": True} if fine_tuned else {}),
    }
    return sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _read(path: Path, identity: str) -> Run | None:
    """A kept run, unless it failed, is damaged, or belongs to another experiment."""
    try:
        record = json.loads(path.read_text())
        if record.get("identity") != identity or "error" in record:
            return None
        return Run(record, np.load(path.with_suffix(".npy")))
    except (OSError, ValueError, EOFError):
        return None


def by_cell(runs: Sequence[Run]) -> dict[tuple[str, int], list[Run]]:
    """The runs that did not fail, by their name and code length, in order of their seeds."""
    cells: dict[tuple[str, int], list[Run]] = {}
    for run in sorted(runs, key=lambda run: int(run.record["seed"])):
        if not run.failed:
            cells.setdefault((run.name, run.record["n_bits"]), []).append(run)
    return cells


def _peak_rss_mb() -> float:
    """Highest resident memory of this process in MB: since the last reset on Linux, since its start elsewhere."""
    with suppress(OSError, IndexError, ValueError):
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def versions() -> dict[str, str]:
    """Versions of this package, Python and what the numbers depend on, and the commit when run from a checkout."""
    found = {"distillhash": distillhash.__version__, "python": platform.python_version()}
    for package in ("torch", "numpy", "numba", "pillow"):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    root = Path(distillhash.__file__).resolve().parents[2]
    if (root / ".git").exists():
        git = partial(subprocess.check_output, cwd=root, text=True, stderr=subprocess.DEVNULL)
        with suppress(OSError, subprocess.CalledProcessError):
            changed = git(["git", "status", "--porcelain", "--untracked-files=no", "--", "src"])
            found["commit"] = git(["git", "rev-parse", "--short", "HEAD"]).strip() + ("+" if changed else "")
    return found
