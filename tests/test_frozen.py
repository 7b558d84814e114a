"""Behaviour that must survive any change of the code's inner order.

Everything here goes through public names, the command line and a real server process, so modules may move freely. What is pinned: names
and signatures, verbs and options, exit statuses, keys of JSON answers, HTTP routes, file formats, the codes of every method, and
folders that an earlier version wrote (``tests/frozen``). More may be added to any of them; nothing may go.

The fixtures are written anew by ``python tests/test_frozen.py`` (with ``--codes`` the codes of the methods alone). That is only for the
day when results are meant to change: then look at the difference, and say in the commit why it is right. Inputs are never written anew.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import distillhash
from distillhash import Codes, HashModel, load_hasher, load_model, make_hasher, method_names, methods
from distillhash.cli import main
from distillhash.index import open_index
from distillhash.metrics import evaluate_codes

HERE = Path(__file__).parent / "frozen"
N_BITS = 32
TOLERANCE = 1 / 1000  # of the bits of a method may differ: processors round differently

_METHODS = (
    "agh bihalf cibhash cimon crovca deepbit dgh distillhash distillhash-contrast distillhash-initial dmuh dsg dsh greedyhash itq lsh "
    "mls3rduh nsh pcah pudh sdc sgh sh sph ssdh tbh urph"
)
METHODS = _METHODS.split()
PAIR_METHODS = ["ccaitq", "cross-contrast", "ugach"]
SUPERVISED = {"dmuh"}
SETTINGS: dict[str, dict[str, Any]] = {
    # By default the graph of so few rows falls into parts; their order is then a matter of rounding.
    "agh": {"n_anchors": 60, "n_neighbours": 12},
    "dgh": {"n_anchors": 60, "n_neighbours": 12},
    # By default the strongest correlations are cut to one value, which is a tie.
    "pudh": {"ridge": 1.0},
    "ugach": {"pretrain_epochs": 20, "rounds": 2},  # quick
}


# The codes of every method


def inputs() -> dict[str, NDArray[Any]]:
    """``features (256, 64)``, ``views (2, 256, 64)``, ``texts (256, 40)``, ``labels (256,)``: ten groups that overlap, no near ties.

    The number of rows is a power of two, so that shares of rows are exact and ties between them are ties on every processor.
    """
    with np.load(HERE / "features.npz") as arrays:
        return dict(arrays)


def make(method: str) -> Any:
    """A hasher by name; the methods for images and texts have had a maker of their own."""
    settings = SETTINGS.get(method, {})
    try:
        return make_hasher(method, n_bits=N_BITS, seed=0, **settings)
    except Exception:
        if not hasattr(distillhash, "make_cross_hasher"):
            raise
        return distillhash.make_cross_hasher(method, n_bits=N_BITS, seed=0, **settings)


def method_codes(method: str) -> dict[str, Codes]:
    """The codes that a method learns from the fixed input, by their names in ``codes.npz``."""
    given = inputs()
    if method in PAIR_METHODS:
        hasher = make(method).fit(given["features"], given["texts"], views=given["views"])
        return {
            f"{method}/images": hasher.encode_images(given["features"]),
            f"{method}/texts": hasher.encode_texts(given["texts"]),
        }
    hasher = make(method)
    labels = given["labels"] if method in SUPERVISED else None
    hasher.fit(given["features"], views=given["views"], labels=labels)
    return {method: hasher.encode(given["features"])}


def golden(name: str) -> Codes:
    """Codes that were stored."""
    with np.load(HERE / "codes.npz") as arrays:
        return Codes.from_packed(arrays[name], N_BITS)


def n_different(a: Codes, b: Codes) -> int:
    assert (a.n_bits, len(a)) == (b.n_bits, len(b))
    return int(np.bitwise_count(a.packed ^ b.packed).sum())


def test_every_method_is_there() -> None:
    assert set(METHODS) <= set(method_names())


@pytest.mark.parametrize("method", [*METHODS, *PAIR_METHODS])
def test_codes_of_the_method(method: str) -> None:
    for name, codes in method_codes(method).items():
        assert n_different(codes, golden(name)) <= TOLERANCE * codes.n_bits * len(codes), name


@pytest.mark.parametrize("method", [*METHODS, *PAIR_METHODS])
def test_the_golden_codes_say_something(method: str) -> None:
    for name in [method] if method in METHODS else [f"{method}/images", f"{method}/texts"]:
        codes = golden(name)
        assert codes.packed.shape == (256, 4) and len(np.unique(codes.packed, axis=0)) > 5


def write_codes() -> None:
    arrays: dict[str, Any] = {
        name: codes.packed for method in [*METHODS, *PAIR_METHODS] for name, codes in method_codes(method).items()
    }
    np.savez_compressed(HERE / "codes.npz", **arrays)


def write_inputs() -> None:
    """The fixed input. It was drawn once; another BLAS would draw it a little differently."""
    rng = np.random.default_rng(20260)
    scale = 0.93 ** np.arange(64)
    centres = rng.standard_normal((10, 64)) * 1.3
    labels = np.arange(256) % 10
    x = (centres[labels] + 0.7 * rng.standard_normal((256, 64))) * scale * 3
    x = x @ np.linalg.qr(rng.standard_normal((64, 64)))[0] + 0.3
    views = x + 0.25 * scale.mean() * rng.standard_normal((2, 256, 64))
    texts = (x - x.mean(0)) @ rng.standard_normal((64, 40)) / 8
    texts += 0.3 * rng.standard_normal(texts.shape)
    floats = {"features": x, "views": views, "texts": texts}
    np.savez_compressed(
        HERE / "features.npz",
        labels=labels,
        **{name: values.astype(np.float32) for name, values in floats.items()},
    )


# Names and signatures

SIGNATURES = {
    "make_hasher": "method n_bits * seed=0 **hyperparameters",
    "load_hasher": "path",
    "load_model": "path * device='auto' cache=None",
    "HashModel": "backbone='efficientnet-lite0' hasher=None * image_size=None weights=None device='auto' cache=None",
    "HashModel.fit": "source * n_views=None fine_tune=False max_images=50000 max_pixels=None progress=False",
    "HashModel.encode": "source * progress=False",
    "HashModel.save": "path",
    "Hasher.fit": "features * views=None labels=None",
    "Hasher.encode": "features",
    "Hasher.project": "features",
    "Hasher.save": "path",
    "Codes.from_packed": "packed n_bits",
    "Codes.from_projection": "projection",
    "Codes.from_signs": "signs",
    "Codes.load": "path",
    "Codes.save": "path * keys=None",
    "Codes.signs": "",
    "open_index": "uri_or_dir n_bits=None create=False * model_fingerprint=None durability='normal'",
    "Index.add": "codes ids=None metadata=None * keys=None digests=None upsert=False",
    "Index.remove": "ids=() * keys=()",
    "Index.search": "codes k=10 * where=None",
    "Index.range_search": "codes radius=3 * where=None",
    "Index.close": "",
    "evaluate_codes": "query_codes database_codes query_labels database_labels cutoffs=(1000,5000) topn=(1,10,100,1000)",
}
"""Parameters of today, with their defaults; those after ``*`` are given by name."""


def test_names_of_the_package() -> None:
    wanted = {"Codes", "HashModel", "Hasher", "load_hasher", "load_model", "make_hasher", "method_names"}
    assert wanted <= set(distillhash.__all__)
    for name in ("Hasher", "load_hasher", "make_hasher", "method_names"):
        assert hasattr(methods, name)


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(name: str, tmp_path: Path) -> None:
    owner, _, attribute = name.partition(".")
    with open_index(tmp_path / "index", n_bits=8, create=True) as index:
        owners: dict[str, Any] = {
            "HashModel": HashModel,
            "Hasher": make_hasher("itq", 8),
            "Codes": Codes,
            "Index": index,
        }
        functions: list[Callable[..., Any]] = [make_hasher, load_hasher, load_model, open_index, evaluate_codes]
        owners |= {function.__name__: function for function in functions}
        found = getattr(owners[owner], attribute) if attribute else owners[owner]
    given = {name: one for name, one in inspect.signature(found).parameters.items() if name != "self"}
    by_position, _, by_name = f" {SIGNATURES[name]} ".partition(" * ")
    positional = [one for one in given.values() if one.kind is one.POSITIONAL_OR_KEYWORD]
    assert [described(one) for one in positional][: len(by_position.split())] == by_position.split()
    assert set(by_name.split()) <= {described(one) for one in given.values()}
    added = [one for one in given.values() if described(one) not in SIGNATURES[name].split()]
    assert all(one.default is not one.empty or one.kind in (one.VAR_KEYWORD, one.VAR_POSITIONAL) for one in added)


def described(parameter: inspect.Parameter) -> str:
    stars = "**" if parameter.kind is parameter.VAR_KEYWORD else ""
    default = "" if parameter.default is parameter.empty else f"={parameter.default!r}".replace(" ", "")
    return f"{stars}{parameter.name}{default}"


# Verbs, options, exit statuses

OPTIONS = {
    "demo": "--bits --cache --device --json --no-cache --out --quiet --seed",
    "train": (
        "--backbone --bits --cache --device --fine-tune --image-size --json --max-images --max-pixels --method "
        "--no-cache --out --pairs --quiet --seed --set --strict --text-encoder --views --weights"
    ),
    "encode": "--cache --device --json --max-pixels --model --no-cache --out --quiet --strict",
    "index": "--cache --compact --device --index --json --max-pixels --model --no-cache --quiet --remove --strict",
    "search": (
        "--cache --candidates --device --index --json --max-pixels --model --no-cache --quiet --radius --rerank "
        "--strict --text --where -k"
    ),
    "serve": (
        "--device --duplicates --encoders --host --index --json --max-pixels --max-upload --model --port --quiet "
        "--token-file"
    ),
    "dedup": (
        "--apply --cache --csv --device --dry-run --false-pairs --html --ignore-same-folder --json --keep "
        "--max-pixels --mirror --model --no-cache --not-duplicate --out --quiet --radius --reference --strict "
        "--trash --undo --verdicts"
    ),
    "leaks": (
        "--cache --check --device --false-pairs --json --max-pixels --mirror --model --no-cache --out --quiet "
        "--radius --strict"
    ),
    "export": "--codes --json --name --out --quiet --to",
    "evaluate": (
        "--cache --database --device --json --max-pixels --model --no-cache --query --quiet --report --strict"
    ),
    "bench": (
        "--backbone --bits --cache --data --device --image-size --json --methods --out --protocol --quiet --seeds "
        "--set --shrink --views --weights"
    ),
    "ls": "--json --quiet",
}
"""Every verb with the options it takes."""

CHOICES = {
    ("export", "--to"): "elasticsearch faiss milvus npy opensearch parquet pgvector vespa",
    ("search", "--rerank"): "decoder features projection",
    ("train", "--device"): "auto cpu cuda mps",
    ("ls", ""): "backbones methods pairs protocols sources text-encoders",
}


def run(*words: object) -> tuple[int, str]:
    """Exit status and stdout of a command line."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            status = main([str(word) for word in words])
        except SystemExit as stop:
            status = int(stop.code or 0)
    return status, out.getvalue()


def run_json(*words: object) -> dict[str, Any]:
    """The one object that a verb prints with ``--json``."""
    status, out = run(*words, "--json", "--quiet")
    assert status == 0 and out.count("\n") == 1, out
    found: dict[str, Any] = json.loads(out)
    return found


@pytest.mark.parametrize("verb", OPTIONS)
def test_options_of_the_verb(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    status, text = run(verb, "--help")
    assert status == 0
    assert set(OPTIONS[verb].split()) <= options_in(text)
    for (of, option), choices in CHOICES.items():
        if of == verb:
            listed = re.search(rf"{option}\s*\{{(.*?)\}}", text)
            assert listed is not None and set(choices.split()) <= set(listed[1].split(","))


def options_in(text: str) -> set[str]:
    """Option strings that a page of help explains; what its examples use does not count."""
    lines = text.partition("examples:")[0].splitlines()
    entries = [re.split(r"\s{2,}", line.strip())[0] for line in lines if line.startswith("  -")]
    return {word for entry in entries for word in re.findall(r"(?:(?<=^)|(?<=[ ,]))--?[a-zA-Z][\w-]*", entry)}


def test_the_whole_program_is_started_as_a_module() -> None:
    for words, status in ((["--version"], 0), (["--help"], 0), (["fly"], 2)):
        done = subprocess.run([sys.executable, "-m", "distillhash", *words], capture_output=True, text=True)
        assert done.returncode == status and "Traceback" not in done.stderr
        if words == ["--help"]:
            assert all(f"\n    {verb} " in done.stdout for verb in OPTIONS)


MISTAKES = [
    ("", 2),
    ("fly", 2),
    ("train", 2),
    ("train features.npy", 2),
    ("train features.npy --out o --bits many", 2),
    ("train features.npy --out o --bits 0 --method itq", 2),
    ("train features.npy --out o --method magic", 2),
    ("train features.npy --out o --method itq --set depth=3", 2),
    ("train features.npy --out o --method itq --set iterations", 2),
    ("train features.npy --out o --method itq --set iterations=0", 2),
    ("train features.npy --out o --method itq --fine-tune", 2),
    ("train features.npy#val --out o --method itq", 2),
    ("train features.npy --out o --method itq --text-encoder bow", 2),
    ("train features.npy --out o --method itq --bits 128", 1),
    ("train gone --out o --method itq", 1),
    ("train one-column.npy --out o --method itq", 1),
    ("train not-a-number.npy --out o --method itq", 1),
    ("train empty --out o --method itq", 1),
    ("encode features.npy --model gone --out c.npz", 1),
    ("encode features.npy --model empty --out c.npz", 1),
    ("encode narrow.npy --model model --out c.npz", 1),
    ("encode empty --model model --out c.npz", 1),
    ("encode features.npy --model model", 2),
    ("index --index index", 2),
    ("index --index index --remove 999", 1),
    ("index features.npy --model other --index index", 1),
    ("search --index index", 2),
    ("search bad.png --index index", 1),
    ("dedup", 2),
    ("dedup empty --undo", 1),
    ("export --codes gone.npz --to npy", 1),
    ("export --codes gone.npz --to paper", 2),
    ("bench --data features.npy --protocol mine --methods lsh --bits 8 --out b", 2),
    ("bench --data features.npy --protocol folder --methods lsh --bits a --out b", 2),
    ("serve --index gone --port many", 2),
    ("ls planets", 2),
]


@pytest.fixture(scope="module")
def mistaken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with things to go wrong on."""
    folder = tmp_path_factory.mktemp("mistakes")
    features = inputs()["features"]
    np.save(folder / "features.npy", features)
    np.save(folder / "narrow.npy", features[:, :5])
    np.save(folder / "one-column.npy", features[:, 0])
    np.save(folder / "not-a-number.npy", np.where(np.arange(64) == 3, np.nan, features))
    (folder / "empty").mkdir()
    (folder / "bad.png").write_bytes(b"no image")
    shutil.copytree(HERE / "itq", folder / "model")
    shutil.copytree(HERE / "distillhash", folder / "other")
    shutil.copytree(HERE / "index", folder / "index")
    return folder


@pytest.mark.parametrize(("words", "status"), MISTAKES)
def test_exit_status_of_a_mistake(words: str, status: int, mistaken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(mistaken)
    found, out = run(*words.split(), *(["--json"] if words.partition(" ")[0] in OPTIONS else []))
    assert found == status
    if out:  # what argparse refuses has no --json yet
        answer = json.loads(out)
        assert answer["exit_code"] == status and answer["error"]


# Keys of JSON answers


def paths(value: Any, at: str = "") -> set[str]:
    """Where a JSON value has keys: ``a``, ``a.b``, ``a[].b``."""
    if isinstance(value, dict):
        return {at + name for name in value} | set().union(*(paths(v, f"{at}{name}.") for name, v in value.items()))
    if isinstance(value, list):
        at = at.removesuffix(".") + "[]."
        return set().union(*(paths(one, at) for one in value))
    return set()


KEYS = {
    "train": (
        "backbone diagnosis fine_tuned fingerprint loss method model n_bits n_items n_skipped n_used n_views "
        "report seconds seed source"
    ),
    "model/config.json": (
        "backbone backbone.fingerprint backbone.image_size backbone.mean backbone.name backbone.scale fingerprint "
        "format_version method n_features parameters parameters.iterations parameters.n_bits parameters.seed "
        "training training.fine_tuned training.n_items training.n_used training.n_views training.source"
    ),
    "encode": "codes n_bits n_codes n_skipped",
    "encode parquet": "codes n_bits n_codes n_skipped",
    "index": "added index n_items n_skipped removed unchanged updated",
    "index/manifest.json": "checksum created_by format_version model_fingerprint n_bits",
    "search": (
        "results results[].neighbours results[].neighbours[].distance results[].neighbours[].id "
        "results[].neighbours[].key results[].neighbours[].metadata results[].neighbours[].metadata.key "
        "results[].neighbours[].metadata.source results[].query skipped"
    ),
    "search --rerank": (
        "results results[].neighbours results[].neighbours[].distance results[].neighbours[].id "
        "results[].neighbours[].key results[].neighbours[].metadata results[].neighbours[].metadata.key "
        "results[].neighbours[].metadata.source results[].neighbours[].score results[].query skipped"
    ),
    "search --radius": (
        "results results[].neighbours results[].neighbours[].distance results[].neighbours[].id "
        "results[].neighbours[].key results[].neighbours[].metadata results[].neighbours[].metadata.key "
        "results[].neighbours[].metadata.source results[].query skipped"
    ),
    "dedup": (
        "calibration calibration.chosen_by calibration.curve calibration.curve[].expected_false_pairs "
        "calibration.curve[].radius calibration.curve[].recall calibration.expected_false_pairs "
        "calibration.false_pairs_interval calibration.n_bits calibration.n_items calibration.radius "
        "calibration.recall calibration.recall_by_edit calibration.recall_interval calibration.sentence codes "
        "expected_false_pairs groups groups[].keeper groups[].members groups[].members[].bytes "
        "groups[].members[].digest groups[].members[].distance groups[].members[].format groups[].members[].height "
        "groups[].members[].match groups[].members[].path groups[].members[].phash_distance "
        "groups[].members[].sharpness groups[].members[].width n_aliases n_duplicates n_groups n_items n_skipped "
        "radius"
    ),
    "dups.json": (
        "calibration calibration.chosen_by calibration.curve calibration.curve[].expected_false_pairs "
        "calibration.curve[].radius calibration.curve[].recall calibration.expected_false_pairs "
        "calibration.false_pairs_interval calibration.n_bits calibration.n_items calibration.radius "
        "calibration.recall calibration.recall_by_edit calibration.recall_interval calibration.sentence codes "
        "expected_false_pairs groups groups[].keeper groups[].members groups[].members[].bytes "
        "groups[].members[].digest groups[].members[].distance groups[].members[].format groups[].members[].height "
        "groups[].members[].match groups[].members[].path groups[].members[].phash_distance "
        "groups[].members[].sharpness groups[].members[].width n_aliases n_duplicates n_groups n_items n_skipped "
        "radius"
    ),
    "dedup --apply": (
        "calibration calibration.chosen_by calibration.curve calibration.curve[].expected_false_pairs "
        "calibration.curve[].radius calibration.curve[].recall calibration.expected_false_pairs "
        "calibration.false_pairs_interval calibration.n_bits calibration.n_items calibration.radius "
        "calibration.recall calibration.recall_by_edit calibration.recall_interval calibration.sentence codes "
        "expected_false_pairs groups groups[].keeper groups[].members groups[].members[].bytes "
        "groups[].members[].digest groups[].members[].distance groups[].members[].format groups[].members[].height "
        "groups[].members[].match groups[].members[].path groups[].members[].phash_distance "
        "groups[].members[].sharpness groups[].members[].width left n_aliases n_duplicates n_groups n_items "
        "n_moved n_skipped radius trash"
    ),
    "journal.jsonl": "[].digest [].distance [].keeper [].mtime_ns [].path [].size [].trash",
    "dedup --undo": "exit_code left n_restored trash",
    "dedup --not-duplicate": "n_verdicts verdicts",
    "leaks": (
        "calibration calibration.chosen_by calibration.curve calibration.curve[].expected_false_pairs "
        "calibration.curve[].radius calibration.curve[].recall calibration.expected_false_pairs "
        "calibration.false_pairs_interval calibration.n_bits calibration.n_items calibration.radius "
        "calibration.recall calibration.recall_by_edit calibration.recall_interval calibration.sentence codes "
        "exit_code expected_false_pairs leaks leaks[].distance leaks[].match leaks[].n_matches "
        "leaks[].phash_distance leaks[].test leaks[].train n_leaks n_skipped n_test n_train radius"
    ),
    "leaks.json": (
        "calibration calibration.chosen_by calibration.curve calibration.curve[].expected_false_pairs "
        "calibration.curve[].radius calibration.curve[].recall calibration.expected_false_pairs "
        "calibration.false_pairs_interval calibration.n_bits calibration.n_items calibration.radius "
        "calibration.recall calibration.recall_by_edit calibration.recall_interval calibration.sentence codes "
        "expected_false_pairs leaks leaks[].distance leaks[].match leaks[].n_matches leaks[].phash_distance "
        "leaks[].test leaks[].train n_leaks n_skipped n_test n_train radius"
    ),
    "index --remove": "index n_items removed",
    "evaluate": (
        "backbone empty_radius2 map map@1000 map@1000_hits map@5000 map@5000_hits map_best map_random map_worst "
        "method n_bits n_database n_queries n_skipped pr_radius pr_radius.precision pr_radius.recall precision@1 "
        "precision@10 precision@100 precision@1000 precision_radius2 queries_without_relevant recall@1 recall@10 "
        "recall@100 recall@1000 topn topn.n topn.precision topn.recall"
    ),
    "bench": (
        "n_failed n_records out records records[].backbone records[].empty_radius2 records[].encode_seconds "
        "records[].fit_seconds records[].identity records[].loss records[].map records[].map@1000 "
        "records[].map@1000_hits records[].map@5000 records[].map@5000_hits records[].map_best "
        "records[].map_random records[].map_worst records[].method records[].n_bits records[].n_database "
        "records[].n_queries records[].peak_rss_mb records[].pr_radius records[].pr_radius.precision "
        "records[].pr_radius.recall records[].precision@1 records[].precision@10 records[].precision@100 "
        "records[].precision@1000 records[].precision_radius2 records[].protocol "
        "records[].queries_without_relevant records[].recall@1 records[].recall@10 records[].recall@100 "
        "records[].recall@1000 records[].seed records[].topn records[].topn.n records[].topn.precision "
        "records[].topn.recall"
    ),
    "table.json": (
        "[].backbone [].empty_radius2 [].encode_seconds [].fit_seconds [].loss [].map [].map@1000 [].map@1000_hits "
        "[].map@5000 [].map@5000_hits [].map_best [].map_random [].map_worst [].method [].n_bits [].n_database "
        "[].n_queries [].peak_rss_mb [].pr_radius [].pr_radius.precision [].pr_radius.recall [].precision@1 "
        "[].precision@10 [].precision@100 [].precision@1000 [].precision_radius2 [].protocol "
        "[].queries_without_relevant [].recall@1 [].recall@10 [].recall@100 [].recall@1000 [].seed [].topn "
        "[].topn.n [].topn.precision [].topn.recall"
    ),
    "export": "files n_bits n_codes to",
    "ls backbones": "backbones",
    "ls methods": (
        "methods methods.itq methods.itq.kind methods.itq.teacher methods.itq.title methods.itq.uses "
        "methods.itq.venue methods.itq.year"
    ),
    "ls pairs": "pairs",
    "ls protocols": "protocols",
    "ls sources": "sources",
    "ls text-encoders": "text-encoders",
    "train --pairs": (
        "backbone diagnosis fine_tuned fingerprint loss method model n_bits n_items n_skipped n_texts n_used "
        "n_views report seconds seed source"
    ),
    "pairs-model/config.json": (
        "backbone backbone.fingerprint backbone.name fingerprint format_version method n_features parameters "
        "parameters.iterations parameters.n_bits parameters.power parameters.regularisation parameters.seed "
        "text_encoder text_encoder.name text_encoder.words training training.fine_tuned training.n_items "
        "training.n_texts training.n_used training.n_views training.source"
    ),
    "evaluate pairs": (
        "backbone image_to_text image_to_text.words image_to_text.words.hit@1 image_to_text.words.hit@10 "
        "image_to_text.words.hit@5 image_to_text.words.map image_to_text.words.n_queries "
        "image_to_text.words.ndcg@1 image_to_text.words.ndcg@10 image_to_text.words.ndcg@5 "
        "image_to_text.words.queries_without_relevant image_to_text.words.recall@1 image_to_text.words.recall@10 "
        "image_to_text.words.recall@5 method n_bits n_images n_skipped n_texts skipped text_to_image "
        "text_to_image.words text_to_image.words.hit@1 text_to_image.words.hit@10 text_to_image.words.hit@5 "
        "text_to_image.words.map text_to_image.words.n_queries text_to_image.words.ndcg@1 "
        "text_to_image.words.ndcg@10 text_to_image.words.ndcg@5 text_to_image.words.queries_without_relevant "
        "text_to_image.words.recall@1 text_to_image.words.recall@10 text_to_image.words.recall@5"
    ),
}
"""For every answer or file, the keys it has at least."""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What the verbs answer and write, by the names in ``KEYS``; and ``folder``, where they did it."""
    folder = tmp_path_factory.mktemp("verbs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield {"folder": folder, **every_answer()}


def every_answer() -> dict[str, Any]:
    """Run the verbs one after another in the working folder."""
    digits = "digits:#0:300"
    found: dict[str, Any] = {}
    photos = make_photos(Path("photos"))
    small = ["--image-size", 32]
    found["train"] = run_json("train", digits, "--method", "itq", "--bits", 16, *small, "--out", "model")
    found["model/config.json"] = json.loads(Path("model/config.json").read_text())
    found["encode"] = run_json("encode", digits, "--model", "model", "--out", "codes.npz")
    found["encode parquet"] = run_json("encode", digits, "--model", "model", "--out", "codes.parquet")
    found["index"] = run_json("index", photos, "--model", "model", "--index", "index")
    found["index/manifest.json"] = json.loads(Path("index/manifest.json").read_text())
    found["search"] = run_json("search", photos, "--index", "index", "-k", 3)
    found["search --rerank"] = run_json("search", photos, "--index", "index", "-k", 3, "--rerank", "projection")
    found["search --radius"] = run_json("search", photos, "--index", "index", "--radius", 16)
    found["dedup"] = run_json("dedup", photos, "--out", "dups.json")
    found["dups.json"] = json.loads(Path("dups.json").read_text())
    found["dedup --apply"] = run_json("dedup", photos, "--apply")
    lines = (photos / ".distillhash-trash" / "journal.jsonl").read_text().splitlines()
    found["journal.jsonl"] = [json.loads(line) for line in lines]
    found["dedup --undo"] = run_json("dedup", photos, "--undo")
    pair = sorted(photos.rglob("*.png"))[:2]
    found["dedup --not-duplicate"] = run_json("dedup", "--not-duplicate", *pair, "--verdicts", "verdicts.tsv")
    found["leaks"] = run_json("leaks", photos, photos, "--out", "leaks.json")
    found["leaks.json"] = json.loads(Path("leaks.json").read_text())
    found["index --remove"] = run_json("index", "--index", "index", "--remove", 3, "--compact")
    found["evaluate"] = run_json("evaluate", "--model", "model", "--query", "digits:#0:50", "--database", digits)
    words = ["bench", "--data", digits, "--protocol", "folder", "--methods", "lsh,itq", "--bits", 16, "--seeds", 0]
    found["bench"] = run_json(*words, *small, "--out", "bench")
    found["table.json"] = json.loads(Path("bench/table.json").read_text())
    found["export"] = run_json("export", "--codes", "codes.npz", "--to", "parquet", "--out", "exported.parquet")
    for what in CHOICES["ls", ""].split():
        found[f"ls {what}"] = run_json("ls", what)
    make_pairs(Path("pairs.parquet"))
    words = ["--method", "ccaitq", "--text-encoder", "bow:40", "--bits", 16, "--out", "pairs-model"]
    found["train --pairs"] = run_json("train", "--pairs", "pairs.parquet", *words)
    found["pairs-model/config.json"] = json.loads(Path("pairs-model/config.json").read_text())
    both = ["--query", "pairs.parquet#:40", "--database", "pairs.parquet#40:"]
    found["evaluate pairs"] = run_json("evaluate", "--model", "pairs-model", *both)
    return found


def make_photos(folder: Path) -> Path:
    """Ten small smooth images in two folders, and two copies of some of them."""
    from PIL import Image

    for number in range(12):
        place = folder / ("cats" if number % 2 else "dogs")
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number % 10).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize((20, 16), Image.Resampling.BICUBIC)
        image.save(place / f"{number:02}.png")
    return folder


_WORDS = (
    "red green blue white black round square long flat thin stone river house tree road bird fish horse boat cloud morning noon evening "
    "night dawn spring summer autumn winter rain"
)
WORDS = _WORDS.split()


def captions() -> list[str]:
    """A sentence for each row of the fixed input: three words by its group, two by its place."""
    labels = inputs()["labels"].tolist()
    return [
        f"{WORDS[label]} {WORDS[10 + label]} {WORDS[20 + label]} {WORDS[7 * i % 30]} {WORDS[(11 * i + 3) % 30]}"
        for i, label in enumerate(labels)
    ]


def make_pairs(file: Path) -> None:
    """The fixed features, each with a sentence."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"embedding": pa.array(list(inputs()["features"])), "caption": captions()}), file)


@pytest.mark.parametrize("name", KEYS)
def test_keys(name: str, answers: dict[str, Any]) -> None:
    missing = set(KEYS[name].split()) - paths(answers[name])
    assert not missing


def test_values_that_keys_do_not_show(answers: dict[str, Any]) -> None:
    folder = answers["folder"]
    for name in ("model", "pairs-model"):
        assert {"config.json", "model.safetensors"} <= {path.name for path in (folder / name).iterdir()}
        assert answers[f"{name}/config.json"]["format_version"] >= 1
    assert (folder / "index" / "model" / "config.json").exists()
    assert answers["index/manifest.json"]["format_version"] >= 2
    assert isinstance(answers["table.json"], list) and len(answers["table.json"]) == 2
    assert {group["keeper"] for group in answers["dups.json"]["groups"]} <= {
        member["path"] for group in answers["dups.json"]["groups"] for member in group["members"]
    }
    assert set(METHODS) | set(PAIR_METHODS) <= set(answers["ls methods"]["methods"])


# Files of codes


def test_files_of_codes(answers: dict[str, Any]) -> None:
    import pyarrow.parquet as pq

    with np.load(answers["folder"] / "codes.npz", allow_pickle=False) as arrays:
        assert {"packed", "n_bits", "keys"} <= set(arrays)
        assert arrays["packed"].shape == (300, 2) and arrays["packed"].dtype == np.uint8
        assert int(arrays["n_bits"]) == 16 and arrays["keys"].shape == (300,)
        packed, keys = arrays["packed"], arrays["keys"].tolist()
    for file in ("codes.parquet", "exported.parquet"):
        table = pq.read_table(answers["folder"] / file)
        assert table.column("key").to_pylist() == keys
        assert b"".join(table.column("code").to_pylist()) == packed.tobytes()
        assert table.schema.metadata[b"distillhash.n_bits"] == b"16"


# Folders that an earlier version wrote


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the fixtures, as the working folder, with the fixed features beside them."""
    folder = Path(shutil.copytree(HERE, tmp_path / "kept"))
    np.save(folder / "features.npy", inputs()["features"])
    monkeypatch.chdir(folder)
    return folder


def stored() -> dict[str, Any]:
    """Answers that were stored as JSON."""
    found: dict[str, Any] = json.loads((HERE / "answers.json").read_text())
    return found


@pytest.mark.parametrize("name", ["itq", "distillhash", "pairs"])
def test_an_old_model_gives_the_same_codes(name: str, kept: Path) -> None:
    features = inputs()["features"]
    codes = golden_of_folder(name)
    assert load_hasher(kept / name).encode(features) == codes
    model = load_model(kept / name)
    assert model.encode("features.npy") == codes
    assert model.fingerprint == json.loads((kept / name / "config.json").read_text())["fingerprint"]
    model.save(kept / "again")
    assert load_model(kept / "again").encode("features.npy") == codes
    summary = run_json("encode", "features.npy", "--model", name, "--out", "new.npz")
    assert summary["n_codes"] == 256 and Codes.load("new.npz")[0] == codes


def test_an_old_model_of_images_and_texts_encodes_both(kept: Path) -> None:
    model: Any = load_model(kept / "pairs")
    assert model.encode_texts(captions()) == golden_of_folder("pairs-texts")
    run_json("index", "features.npy#0:60", "--model", "pairs", "--index", "pairs-index")
    found = run_json("search", "--text", captions()[5], "--index", "pairs-index", "-k", 5)["results"]
    assert [(n["id"], n["distance"]) for n in found[0]["neighbours"]] == [tuple(pair) for pair in stored()["text"]]


def test_an_old_model_of_images_gives_the_same_codes(kept: Path) -> None:
    run_json("encode", "photos", "--model", "images", "--out", "new.npz")
    codes, keys = Codes.load(kept / "new.npz")
    assert (codes, keys) == Codes.load(kept / "photos.npz")
    assert load_model(kept / "images").encode("photos") == codes


def test_old_files_of_codes(kept: Path) -> None:
    codes, keys = Codes.load(kept / "itq.npz")
    assert codes == golden_of_folder("itq") and keys == [str(row) for row in range(256)]
    assert Codes.load(kept / "itq.parquet") == (codes, keys)
    run_json("index", "itq.npz", "--model", "itq", "--index", "by-codes")
    with open_index(kept / "by-codes") as index:
        assert len(index) == 256


def golden_of_folder(name: str) -> Codes:
    with np.load(HERE / "folders.npz") as arrays:
        return Codes.from_packed(arrays[name], int(arrays[f"{name}-bits"]))


def test_an_old_index_answers_the_same(kept: Path) -> None:
    queries, wanted = golden_of_folder("itq")[100:106], stored()["index"]
    fingerprint = json.loads((kept / "itq" / "config.json").read_text())["fingerprint"]
    with open_index("index", model_fingerprint=fingerprint) as index:
        assert len(index) == 48 and index.n_bits == N_BITS
        assert answers_of(index, queries) == wanted
        item = index.get([44])[0]
        assert (item.id, item.key, item.metadata) == (44, "extra/4", {"label": 4, "name": "fünf"})
        assert item.code == golden_of_folder("itq")[204]
        assert index.add(queries[:1], keys=["new"]).tolist() == [48]
        assert index.search(queries[:1], k=1)[0] == [(48, 0)]
        assert index.remove([48]) == 1
        assert answers_of(index, queries) == wanted
    with open_index(kept / "index", n_bits=N_BITS) as index:
        assert answers_of(index, queries) == wanted
    found = run_json("search", "features.npy#100:106", "--index", "index", "-k", 7)["results"]
    assert [[n["id"] for n in one["neighbours"]] for one in found] == wanted["ids"]
    again = run_json("index", "features.npy#0:40", "--index", "index")
    assert (again["added"], again["unchanged"], again["n_items"]) == (0, 40, 48)


def answers_of(index: Any, queries: Codes) -> dict[str, Any]:
    found, near = index.search(queries, k=7), index.range_search(queries, radius=9)
    some = index.search(queries, k=3, where="metadata->>'label' >= 5")
    return {
        "ids": found.ids.tolist(),
        "distances": found.distances.tolist(),
        "limits": near.limits.tolist(),
        "near ids": near.ids.tolist(),
        "near distances": near.distances.tolist(),
        "ids where": some.ids.tolist(),
        "distances where": some.distances.tolist(),
    }


def test_an_old_trash_is_brought_back(kept: Path) -> None:
    # A journal names files by their whole path. In the fixture ``{root}`` stands for the folder, and it is filled in here. Git keeps no
    # modification times, so those of the moved files are set to what the journal says, as they were when it was written.
    trash, digests = kept / "photos" / ".distillhash-trash", stored()["photos"]
    journal = trash / "journal.jsonl"
    journal.write_text(journal.read_text().replace("{root}", json.dumps(str(kept))[1:-1]))
    entries = [json.loads(line) for line in journal.read_text().splitlines()]
    assert len(entries) == 2
    for entry in entries:
        assert not Path(entry["path"]).exists()
        os.utime(trash / entry["trash"], ns=(entry["mtime_ns"], entry["mtime_ns"]))
    outcome = run_json("dedup", "photos", "--undo")
    assert (outcome["n_restored"], outcome["left"]) == (2, [])
    assert bytes_in(kept / "photos") == digests
    assert [Path(entry["path"]).stat().st_mtime_ns for entry in entries] == [entry["mtime_ns"] for entry in entries]
    assert run_json("dedup", "photos", "--undo")["n_restored"] == 0


def bytes_in(folder: Path) -> dict[str, str]:
    """BLAKE2 digests of the images in a folder, by name."""
    from hashlib import blake2b

    files = sorted(folder.glob("*/*.png"))
    return {str(file.relative_to(folder)): blake2b(file.read_bytes(), digest_size=16).hexdigest() for file in files}


def test_metrics_of_stored_codes() -> None:
    found = metrics()
    wanted = stored()["metrics"]
    assert paths(wanted) <= paths(found)
    for name, value in wanted.items():
        if isinstance(value, int | float):
            assert found[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name
    for name in ("precision", "recall"):
        assert found["pr_radius"][name] == pytest.approx(wanted["pr_radius"][name], rel=1e-9, abs=1e-12)


def metrics() -> dict[str, Any]:
    codes, labels = golden("itq"), inputs()["labels"]
    found: dict[str, Any] = json.loads(json.dumps(evaluate_codes(codes[:56], codes[56:], labels[:56], labels[56:])))
    return found


# The server

ROUTES = {
    "POST /search": "code id k radius text",
    "POST /encode": "",
    "GET /items": "sample seed",
    "POST /items": "",
    "GET /items/{id}": "id",
    "DELETE /items/{id}": "id",
    "GET /items/{id}/image": "id",
    "GET /items/{id}/thumbnail": "id",
    "GET /duplicates": "limit offset radius",
    "GET /quality": "",
    "GET /stats": "",
    "GET /healthz": "",
    "GET /readyz": "",
    "GET /metrics": "",
    "GET /session": "",
    "POST /session": "",
}
"""Every route with its parameters."""

HTTP_KEYS = {
    "encode": (200, "code n_bits"),
    "encode nothing": (415, "detail request_id status title type"),
    "encode no image": (422, "detail request_id status title type"),
    "search image": (
        200,
        (
            "k n_bits query query.code query.id radius results results[].code results[].distance results[].height "
            "results[].id results[].name results[].picture results[].width truncated"
        ),
    ),
    "search id": (
        200,
        (
            "k n_bits query query.code query.id radius results results[].code results[].distance results[].height "
            "results[].id results[].name results[].picture results[].width truncated"
        ),
    ),
    "search code": (
        200,
        (
            "k n_bits query query.code query.id radius results results[].code results[].distance results[].height "
            "results[].id results[].name results[].picture results[].width truncated"
        ),
    ),
    "search nothing": (422, "detail request_id status title type"),
    "search k=0": (422, "detail errors errors[].what errors[].where request_id status title type"),
    "search unknown id": (404, "detail request_id status title type"),
    "search by GET": (405, "detail request_id status title type"),
    "add": (201, "code height id metadata metadata.name n_bits name picture width"),
    "add again": (200, "code height id metadata metadata.name n_bits name picture width"),
    "remove": (204, ""),
    "remove again": (404, "detail request_id status title type"),
    "items": (200, "items items[].code items[].height items[].id items[].name items[].picture items[].width"),
    "item": (200, "code height id metadata n_bits name picture width"),
    "unknown item": (404, "detail request_id status title type"),
    "no item": (422, "detail errors errors[].what errors[].where request_id status title type"),
    "image": (200, "image/png"),
    "thumbnail": (200, "image/png"),
    "duplicates": (
        200,
        (
            "expected_false_pairs from_file groups groups[][].code groups[][].distance groups[][].height groups[][].id "
            "groups[][].name groups[][].picture groups[][].width n_groups n_missing radius"
        ),
    ),
    "quality": (
        200,
        (
            "balance constant_bits correlation effective_bits largest_bucket_fraction mean_abs_balance "
            "mean_abs_correlation n n_bits n_items n_sampled nearest_distances pair_distances unique_fraction"
        ),
    ),
    "stats": (
        200,
        (
            "accepts accepts_text backbone has_duplicates_file max_pixels max_upload method model_fingerprint n_bits "
            "n_items n_trained_on ready uptime_seconds"
        ),
    ),
    "healthz": (200, "status"),
    "readyz": (200, "status"),
    "metrics": (200, "text/plain"),
    "session": (200, "allowed"),
    "page": (200, "text/html"),
    "nowhere": (404, "detail request_id status title type"),
}
"""For every answer, its status and the keys it has at least."""


@pytest.fixture(scope="module")
def server(answers: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server process on an index of images."""
    folder = answers["folder"]
    index = tmp_path_factory.mktemp("served") / "index"
    run_json("index", folder / "photos", "--model", folder / "model", "--index", index)
    with serving(index) as url:
        yield url


@contextlib.contextmanager
def serving(index: Path) -> Iterator[str]:
    import httpx

    words = [sys.executable, "-m", "distillhash", "serve", "--index", str(index), "--port", "0", "--encoders", "1"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if line.startswith("serving at "):
                break
        assert said and said[-1].startswith("serving at "), said
        url = said[-1].split()[2].rstrip("/")
        for _ in range(300):
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/readyz").status_code == 200:
                    break
            time.sleep(0.1)
        yield url
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


def test_routes(server: str) -> None:
    import httpx

    found = routes(httpx.get(f"{server}/openapi.json").json())
    for route, parameters in ROUTES.items():
        assert set(parameters.split()) <= set(found[route]), route


def routes(document: dict[str, Any]) -> dict[str, list[str]]:
    return {
        f"{method.upper()} {path}": sorted(one["name"] for one in operation.get("parameters", []))
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }


def test_http_answers(server: str) -> None:
    found = http_answers(server)
    for name, (status, keys) in HTTP_KEYS.items():
        assert found[name][0] == status, name
        assert set(keys.split()) <= paths(found[name][1]), name


def http_answers(url: str) -> dict[str, tuple[int, Any]]:
    """Status and JSON (or content type, where it is none) of the main requests."""
    import httpx

    new = io.BytesIO()
    from PIL import Image

    Image.fromarray(np.random.default_rng(99).integers(0, 256, (16, 20, 3), dtype=np.uint8)).save(new, "PNG")
    image = {"file": ("new.png", new.getvalue(), "image/png")}
    found: dict[str, tuple[int, Any]] = {}
    with httpx.Client(base_url=url, timeout=60) as client:

        def ask(name: str, method: str, path: str, **more: Any) -> Any:
            answer = client.request(method, path, **more)
            kind = answer.headers.get("content-type", "").partition(";")[0]
            content = answer.json() if kind.endswith("json") else {kind: None}
            found[name] = (answer.status_code, content)
            return content

        code = ask("encode", "POST", "/encode", files=image)["code"]
        ask("encode nothing", "POST", "/encode")
        ask("encode no image", "POST", "/encode", files={"file": ("a.png", b"no image", "image/png")})
        ask("search image", "POST", "/search", params={"k": 3}, files=image)
        ask("search id", "POST", "/search", params={"id": 0, "k": 3})
        ask("search code", "POST", "/search", params={"code": code, "radius": 16})
        ask("search nothing", "POST", "/search")
        ask("search k=0", "POST", "/search", params={"id": 0, "k": 0})
        ask("search unknown id", "POST", "/search", params={"id": 12345})
        ask("search by GET", "GET", "/search")
        added = ask("add", "POST", "/items", files=image)
        ask("add again", "POST", "/items", files=image)
        ask("remove", "DELETE", f"/items/{added['id']}")
        ask("remove again", "DELETE", f"/items/{added['id']}")
        ask("items", "GET", "/items", params={"sample": 3})
        ask("item", "GET", "/items/0")
        ask("unknown item", "GET", "/items/12345")
        ask("no item", "GET", "/items/first")
        ask("image", "GET", "/items/0/image")
        ask("thumbnail", "GET", "/items/0/thumbnail")
        ask("duplicates", "GET", "/duplicates", params={"radius": 1})
        ask("quality", "GET", "/quality")
        ask("stats", "GET", "/stats")
        ask("healthz", "GET", "/healthz")
        ask("readyz", "GET", "/readyz")
        ask("metrics", "GET", "/metrics")
        ask("session", "GET", "/session")
        ask("page", "GET", "/")
        ask("nowhere", "GET", "/nowhere")
    return found


# Writing the fixtures anew


def write_folders() -> None:
    """Models, codes, an index and a trash, as the code of today writes them."""
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        os.environ["DISTILLHASH_CACHE"] = str(Path(place) / "cache")
        np.save("features.npy", inputs()["features"])
        make_pairs(Path("pairs.parquet"))
        photos = make_photos(Path("photos"))
        run_json("train", "features.npy", "--method", "itq", "--bits", N_BITS, "--out", "itq")
        run_json("train", "features.npy", "--method", "distillhash", "--bits", N_BITS, "--out", "distillhash")
        words = ["--method", "ccaitq", "--text-encoder", "bow:40", "--bits", 16]
        run_json("train", "--pairs", "pairs.parquet", *words, "--out", "pairs")
        run_json("train", photos, "--method", "itq", "--bits", 8, "--image-size", 32, "--out", "images")
        for suffix in (".npz", ".parquet"):
            run_json("encode", "features.npy", "--model", "itq", "--out", f"itq{suffix}")
        model: Any = load_model("pairs")
        codes = {name: load_model(name).encode("features.npy") for name in ("itq", "distillhash", "pairs")}
        codes["pairs-texts"] = model.encode_texts(captions())
        arrays: dict[str, Any] = {name: one.packed for name, one in codes.items()}
        arrays |= {f"{name}-bits": one.n_bits for name, one in codes.items()}
        np.savez_compressed("folders.npz", **arrays)
        found: dict[str, Any] = {"metrics": metrics(), "photos": bytes_in(photos)}

        run_json("index", "features.npy#0:40", "--model", "itq", "--index", "index")
        with open_index("index") as index:
            numbers = ["eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht"]
            facts = [{"label": label, "name": name} for label, name in enumerate(numbers)]
            index.add(codes["itq"][200:208], metadata=facts, keys=[f"extra/{label}" for label in range(8)])
            found["index"] = answers_of(index, codes["itq"][100:106])
        connection = sqlite3.connect("index/items.sqlite")  # into one file
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()
        assert not list(Path("index").glob("items.sqlite-*"))
        run_json("index", "features.npy#0:60", "--model", "pairs", "--index", "pairs-index")
        near = run_json("search", "--text", captions()[5], "--index", "pairs-index", "-k", 5)["results"][0][
            "neighbours"
        ]
        found["text"] = [(n["id"], n["distance"]) for n in near]

        assert run_json("dedup", photos, "--apply")["n_moved"] == 2
        run_json("encode", photos, "--model", "images", "--out", "photos.npz")
        journal = photos / ".distillhash-trash" / "journal.jsonl"
        journal.write_text(journal.read_text().replace(json.dumps(str(Path.cwd()))[1:-1], "{root}"))
        Path("answers.json").write_text(json.dumps(found, ensure_ascii=False) + "\n")
        for name in ("itq", "distillhash", "pairs", "images", "index", "photos"):
            shutil.rmtree(HERE / name, ignore_errors=True)
            shutil.copytree(name, HERE / name, ignore=shutil.ignore_patterns("report.html"))
        for name in ("itq.npz", "itq.parquet", "photos.npz", "folders.npz", "answers.json"):
            shutil.copy(name, HERE / name)


if __name__ == "__main__":
    if not (HERE / "features.npz").exists():
        write_inputs()
    write_codes()
    if "--codes" not in sys.argv:
        write_folders()
