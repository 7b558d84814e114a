"""Protocols: which items are queries, which train, which are the database. A protocol is data, not code.

Each is a JSON file in ``protocols/`` with a stored split: for every class, the places of its items in the order in which the
source lists them, drawn once; the database is everything but the queries and what is marked unused. The split's SHA-256 stands
in the JSON file and is checked whenever the split is read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillhash.errors import DataError, FormatError, ParameterError
from distillhash.sources import Source

Rows = NDArray[np.intp]


@dataclass(frozen=True)
class Split:
    """Rows of a source by role; ``train`` may lie inside ``database``, as the protocol says."""

    query: Rows
    train: Rows
    database: Rows

    @property
    def checksum(self) -> str:
        """SHA-256 over the three row lists (int64, little-endian)."""
        digest = sha256()
        for rows in (self.query, self.train, self.database):
            digest.update(np.ascontiguousarray(rows, "<i8").tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Protocol:
    """One evaluation protocol.

    Attributes:
        name: Its name.
        summary: One line.
        paper: Where it comes from.
        n_per_class: Items of every class that the source must hold.
        cutoffs: Depths of ``map@R``.
        topn: Depths of ``precision@N``.
        published: Printed results, method -> code length -> MAP.
        sha256: Of the split's file.
    """

    name: str
    summary: str
    paper: str
    n_per_class: int
    cutoffs: tuple[int, ...]
    topn: tuple[int, ...]
    published: dict[str, dict[str, float]]
    sha256: str

    def split(self, source: Source) -> Split:
        """The rows of ``source`` in each role.

        Raises:
            DataError: the source has no single-label classes, or not ``n_per_class`` items of each.
            FormatError: the stored split does not match its checksum.
        """
        labels = source.labels
        if labels is None or labels.ndim != 1:
            raise DataError(f"protocol {self.name} needs one class per item; {source.name} has no such labels")
        positions = self._positions()
        query, train, unused = [], [], []
        for place, label in enumerate(np.unique(labels)):
            rows = np.flatnonzero(labels == label)
            if len(rows) != self.n_per_class or place >= len(positions["query"]):
                raise DataError(
                    f"protocol {self.name} needs {len(positions['query'])} classes of {self.n_per_class} items; "
                    f"class {label} of {source.name} has {len(rows)}"
                )
            query.append(rows[positions["query"][place]])
            train.append(rows[positions["train"][place]])
            if "unused" in positions:
                unused.append(rows[positions["unused"][place]])
        outside = np.concatenate(query + unused)
        return Split(np.concatenate(query), np.concatenate(train), np.setdiff1d(np.arange(len(source)), outside))

    def _positions(self) -> dict[str, NDArray[np.int64]]:
        data = _file(f"{self.name}.split.json").read_bytes()
        if sha256(data).hexdigest() != self.sha256:
            raise FormatError(
                f"the stored split of protocol {self.name} does not match its checksum; reinstall distillhash"
            )
        return {role: np.array(lists, np.int64) for role, lists in json.loads(data).items()}


def load_protocol(name: str) -> Protocol:
    """A protocol by name.

    Raises:
        ParameterError: unknown name.
    """
    if name not in protocol_names():
        raise ParameterError(f"unknown protocol {name!r}; choose one of {', '.join(protocol_names())}")
    record: dict[str, Any] = json.loads(_file(f"{name}.json").read_text())
    record["cutoffs"], record["topn"] = tuple(record["cutoffs"]), tuple(record["topn"])
    return Protocol(**record)


def protocol_names() -> list[str]:
    """Names of all protocols, sorted."""
    names = (entry.name for entry in files("distillhash.bench").joinpath("protocols").iterdir())
    return sorted(name.removesuffix(".json") for name in names if name.endswith(".json") and ".split." not in name)


def protocol_summaries() -> dict[str, str]:
    """One line per protocol."""
    return {name: load_protocol(name).summary for name in protocol_names()}


def _file(name: str) -> Any:
    return files("distillhash.bench").joinpath("protocols", name)
