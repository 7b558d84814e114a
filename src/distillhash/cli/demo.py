"""Train, index, search and report on real handwritten digits.

distillhash demo
distillhash demo --out /tmp/demo --bits 32 --json
"""

import argparse
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from distillhash.cli.common import DEFAULT_BACKBONE, add_compute_options, command_line, open_cache, say, where

QUERY = "digits:#test"
DATABASE = "digits:#train"
METHODS = ("distillhash", "ssdh", "itq", "lsh")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    add = parser.add_argument
    add("--out", default="demo", metavar="DIR", help="folder for model/, index/ and report.html (default: demo)")
    add("--bits", type=int, default=64, help="code length (default: 64)")
    add("--seed", type=int, default=0, help="default: 0")
    add_compute_options(parser)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """The whole path of the data, once; labels are used for the report only."""
    from distillhash.bench.report import encode_source, write_evaluation_report
    from distillhash.methods import make_hasher
    from distillhash.metrics import evaluate_codes
    from distillhash.models import HashModel
    from distillhash.search import open_searcher

    out = Path(arguments.out)
    progress = not arguments.quiet
    started = time.perf_counter()
    hasher = make_hasher(METHODS[0], arguments.bits, seed=arguments.seed)
    model = HashModel(DEFAULT_BACKBONE, hasher, cache=open_cache(arguments), **where(arguments))
    say(arguments, f"1. training {hasher.method} on {DATABASE} without labels")
    model.fit(DATABASE, progress=progress)
    model.save(out / "model")
    if (out / "index" / "manifest.json").exists():  # of an earlier demo, perhaps with another code length
        shutil.rmtree(out / "index")
    say(arguments, "2. indexing the same images")
    searcher = open_searcher(out / "index", str(out / "model"), create=True, cache=model.cache, **where(arguments))
    with searcher:
        index, added = searcher.index, searcher.add(DATABASE)
        say(arguments, f"   {len(index)} codes of {index.n_bits // 8} bytes in {out / 'index'} ({added.added} new)")
        say(arguments, "3. searching for an image that was not in training")
        results = searcher.find(f"{QUERY}#0:1", k=5).results
    for neighbour in results[0]["neighbours"]:
        say(arguments, f"   {neighbour['distance']:>3} bits  {neighbour['key']}")
    say(arguments, "4. measuring against the labels, and against other methods")
    query, database = encode_source(model, QUERY, progress=progress), encode_source(model, DATABASE)
    assert query.labels is not None and database.labels is not None  # digits carry labels
    sides = query.labels, database.labels
    features: dict[str, Any] = {"query_features": query.features, "database_features": database.features}
    metrics = evaluate_codes(query.codes, database.codes, *sides, **features)
    measured = "{}: MAP {map:.3f}, recall of the 10 nearest {neighbour_recall@10:.3f}"
    say(
        arguments,
        f"   {measured.format(hasher.method, **metrics)}; a random ranking has MAP {metrics['map_random']:.3f}",
    )
    others = {}
    for method in METHODS[1:]:
        other = make_hasher(method, arguments.bits, seed=arguments.seed).fit(database.features)
        codes = other.encode(query.features), other.encode(database.features)
        row = others[f"{method}, {arguments.bits} bits"] = evaluate_codes(*codes, *sides, **features)
        say(arguments, f"   {measured.format(method, **row)}")
    report, command = out / "report.html", command_line(arguments)
    compared: dict[str, Any] = {"others": others, "train_labels": database.labels}
    write_evaluation_report(report, model, query, database, metrics, command=command, **compared)
    seconds = time.perf_counter() - started
    serve = f"{_program()} serve --index {shlex.quote(str(out / 'index'))}"
    say(arguments, f"done in {seconds:.0f} s; open {report}")
    say(
        arguments,
        "to search these images in the browser, run",
        "",
        f"    {serve}",
        "",
        "and open http://127.0.0.1:8000/",
    )
    return {
        "model": str(out / "model"),
        "index": str(out / "index"),
        "report": str(report),
        "serve": serve,
        "seconds": seconds,
        "map": metrics["map"],
        "map_random": metrics["map_random"],
        "others": {label: row["map"] for label, row in others.items()},
    }


def _program() -> str:
    """How the reader calls this program: by its name, or by the path of an environment that is not activated."""
    started = Path(sys.argv[0])
    if started.name != "distillhash" or shutil.which("distillhash") == str(started.absolute()):
        return "distillhash"
    return shlex.quote(sys.argv[0])
