"""Runs: methods x code lengths x seeds under one protocol, on the same features, with the same metrics."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from distillhash.bench.protocol import Protocol, Split
from distillhash.errors import DataError
from distillhash.methods import make_hasher
from distillhash.metrics import evaluate_codes

if TYPE_CHECKING:
    from distillhash.backbones import Backbone, FeatureCache
    from distillhash.sources import Source


@dataclass(frozen=True)
class Prepared:
    """Features and labels of a source, split by a protocol."""

    protocol: Protocol
    split: Split
    features: NDArray[np.float32]
    labels: NDArray[Any]
    backbone: dict[str, Any]


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
    settings: dict[str, Any] = field(default_factory=dict)


def prepare(
    source: Source, protocol: Protocol, backbone: Backbone, *, cache: FeatureCache | None, progress: bool = False
) -> Prepared:
    """Features of every item of the source, once for all runs.

    Raises:
        DataError: the source does not fit the protocol, or an item of it cannot be read.
    """
    from distillhash.backbones import extract_features

    split = protocol.split(source)
    table = extract_features(source, backbone, cache=cache, progress=progress)
    if table.skipped:
        first = table.skipped[0]
        raise DataError(
            f"a protocol needs every item, {len(table.skipped)} cannot be read (first {first.key}: {first.reason})"
        )
    assert source.labels is not None  # protocol.split has checked
    return Prepared(
        protocol, split, table.features, source.labels, {**backbone.config(), "fingerprint": backbone.fingerprint}
    )


def run_matrix(
    prepared: Prepared,
    methods: Sequence[str],
    bits: Sequence[int],
    seeds: Sequence[int],
    *,
    settings: dict[str, Any] | None = None,
    on_record: Callable[[dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """One record per method, code length and seed; the last epoch is what is measured.

    Args:
        prepared: From :func:`prepare`.
        methods: Names.
        bits: Code lengths.
        seeds: Seeds of the methods; the split is fixed.
        settings: Hyper-parameters given to every method that has them.
        on_record: Called with each record when it is there.

    Returns:
        Records with the keys of :func:`distillhash.metrics.evaluate_codes` and ``protocol``, ``method``, ``n_bits``, ``seed``,
        ``backbone``, ``fit_seconds``, ``encode_seconds``, ``peak_rss_mb``.
    """
    records = []
    for record in _records(prepared, methods, bits, seeds, settings or {}):
        records.append(record)
        if on_record is not None:
            on_record(record)
    return records


def _records(
    prepared: Prepared, methods: Sequence[str], bits: Sequence[int], seeds: Sequence[int], settings: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    split, features, labels = prepared.split, prepared.features, prepared.labels
    train, query, database = (features[rows] for rows in (split.train, split.query, split.database))
    for n_bits in bits:
        for method in methods:
            for seed in seeds:
                started = time.perf_counter()
                hasher = make_hasher(method, n_bits, seed=seed, **settings).fit(train)
                fitted = time.perf_counter()
                query_codes, database_codes = hasher.encode(query), hasher.encode(database)
                encoded = time.perf_counter()
                metrics = evaluate_codes(
                    query_codes,
                    database_codes,
                    labels[split.query],
                    labels[split.database],
                    cutoffs=prepared.protocol.cutoffs,
                    topn=prepared.protocol.topn,
                )
                yield {
                    "protocol": prepared.protocol.name,
                    "method": method,
                    "n_bits": n_bits,
                    "seed": seed,
                    "backbone": prepared.backbone["name"],
                    **metrics,
                    "fit_seconds": fitted - started,
                    "encode_seconds": encoded - fitted,
                    "peak_rss_mb": peak_rss_mb(),
                }


def peak_rss_mb() -> float:
    """Largest resident memory of this process so far, in MB."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def write_tables(folder: Path, records: Sequence[dict[str, Any]], protocol: Protocol, provenance: Provenance) -> None:
    """``table.json`` (the records), ``table.md`` (mean and spread beside the published numbers), ``provenance.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.json").write_text(json.dumps(_rounded(list(records)), indent=1) + "\n")
    (folder / "provenance.json").write_text(json.dumps(asdict(provenance), indent=1) + "\n")
    (folder / "table.md").write_text(markdown_table(records, protocol, provenance))


def markdown_table(records: Sequence[dict[str, Any]], protocol: Protocol, provenance: Provenance) -> str:
    """MAP, mean and sample standard deviation over seeds in parentheses, with the printed numbers of the paper below each row."""
    lengths = sorted({record["n_bits"] for record in records})
    lines = [f"# {protocol.name}: MAP over the whole database", ""]
    lines += ["| method | " + " | ".join(f"{n} bits" for n in lengths) + " | fit, s |"]
    lines += ["|" + "---|" * (len(lengths) + 2)]
    for method in dict.fromkeys(record["method"] for record in records):
        mine = [record for record in records if record["method"] == method]
        cells = [_mean_and_spread([r["map"] for r in mine if r["n_bits"] == n]) for n in lengths]
        seconds = np.median([record["fit_seconds"] for record in mine])
        lines.append(f"| {method} | " + " | ".join(cells) + f" | {seconds:.1f} |")
        if method in protocol.published:
            printed = [protocol.published[method].get(str(n)) for n in lengths]
            cells = [f"{value:.4f}" if value is not None else "" for value in printed]
            lines.append("| *printed in the paper* | " + " | ".join(cells) + " | |")
    random = np.mean([record["map_random"] for record in records])
    backbone = provenance.backbone
    lines += [
        "",
        f"Random ranking: {random:.4f}. Exact expectation over ties. {len(provenance.seeds)} seeds ({_listed(provenance.seeds)}), last "
        f"epoch; in parentheses the sample standard deviation. Features: {backbone['name']} at {backbone.get('image_size', '-')} pixels, "
        "frozen."
        + (
            f" Printed numbers: {protocol.paper}, VGG16, fine-tuned for the deep methods." if protocol.published else ""
        ),
        "",
        f"Command: `{provenance.command}`",
        f"Split: `{provenance.split_sha256}`. Versions: {', '.join(f'{k} {v}' for k, v in provenance.versions.items())}.",
        "",
    ]
    return "\n".join(lines)


def _mean_and_spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    spread = f" ({np.std(values, ddof=1):.4f})" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{spread}"


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))


def _rounded(value: Any) -> Any:
    """Six significant digits are more than a table needs, and keep its file small."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return value
