"""Protocols: which items are queries, which train, which are the database. A protocol is data, not code.

Each is a JSON file in ``protocols/``. Its ``split`` says how the rows are drawn (:class:`SplitRule`): from a stored file whose SHA-256 is
checked, by class, at random, along the data set's own split, or as shares of whatever is there. A drawn split is a function of the labels
and the seed alone; the SHA-256 of its rows is recorded with every result.
"""

import json
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from typing import Any, Literal

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
        return sha256(np.concatenate([self.query, self.train, self.database]).astype("<i8").tobytes()).hexdigest()


@dataclass(frozen=True)
class SplitRule:
    """How a protocol draws its split.

    ``draw`` is ``stored`` (places per class from a file), ``per-class``, ``random``, ``official`` (the source's own test and train parts),
    or ``share`` (of every class where items have one class, else of all).
    """

    draw: Literal["stored", "per-class", "random", "official", "share"]
    queries: float = 0  # per class (per-class), in all (random), or as a share
    train: int | None = None  # training items per class (per-class, official) or in all; None: the whole database
    train_apart: bool = False  # training items are no part of the database
    items: int | None = None  # items that a complete source holds; None where that is not known
    labelled: int | None = None  # only so many items take part (random), drawn from those that have a label; None: all
    n_per_class: int = 0  # the same for every class (stored)
    seed: int = 0
    sha256: str | None = None  # of the file (stored)


@dataclass(frozen=True)
class Printed:
    """A row that another paper prints for these queries and this database: MAP@1000, divided by the relevant items found there."""

    method: str  # ours of that name, where there is one
    values: dict[str, float]  # by code length
    backbone: str
    source: str  # where it is printed, and whether it was read there


@dataclass(frozen=True)
class Protocol:
    """One evaluation protocol."""

    name: str
    summary: str
    paper: str  # where it comes from; empty for our own
    rule: SplitRule
    cutoffs: tuple[int, ...]  # depths of map@R
    topn: tuple[int, ...]  # depths of precision@N
    published: dict[str, dict[str, float]]  # printed results: method -> code length -> MAP
    elsewhere: tuple[Printed, ...] = ()
    max_train: int | None = None  # methods whose own limit is lower learn from so many all the same

    def split(self, source: Source, *, shrink: bool = False) -> Split:
        """The rows of ``source`` in each role; ``shrink`` draws the same proportions from a source smaller than the data set."""
        labels, rule = source.labels, self.rule
        if labels is None:
            raise DataError(
                f"protocol {self.name} needs labels; {source.name} has none (class sub-folders, a label column or a labelled data set "
                "give them)"
            )
        one_class = labels.ndim == 1
        if rule.draw in ("stored", "per-class", "official") and not one_class:
            raise DataError(f"protocol {self.name} needs one class per item; {source.name} has several labels per item")
        complete = rule.draw == "stored" or rule.items is None or len(source) == rule.items
        if not complete and not shrink:
            raise DataError(
                f"protocol {self.name} needs {rule.items:,} items, {source.name} has {len(source):,}; "
                "--shrink draws the same proportions from what is there"
            )
        rng = np.random.default_rng(rule.seed)
        by_class = one_class and rule.draw != "random"
        groups = [np.flatnonzero(labels == label) for label in np.unique(labels)] if by_class else []
        groups = groups or [self._taking_part(labels, shrink, rng)]
        if rule.draw == "stored":
            split = self._stored(source, groups)
        elif rule.draw == "official":
            split = self._official(source, groups, rng)
        elif rule.draw == "share":
            groups = [rng.permutation(group) for group in groups]
            query = np.concatenate([group[: max(1, round(rule.queries * len(group)))] for group in groups])
            rest = np.setdiff1d(np.arange(len(source)), query)
            fits = rule.train is None or len(rest) <= rule.train
            split = Split(query, rest if fits else np.sort(rng.choice(rest, rule.train, replace=False)), rest)
        else:
            split = self._drawn(source, groups, shrink, rng)
        if min(len(split.query), len(split.train), len(split.database)) < 1:
            raise DataError(f"{source.name} is too small for protocol {self.name}: {len(source)} items")
        return split

    def _taking_part(self, labels: NDArray[Any], shrink: bool, rng: np.random.Generator) -> Rows:
        """All rows, or as many of those with a label as the rule says."""
        rule = self.rule
        if rule.labelled is None:
            return np.arange(len(labels))
        rows = np.flatnonzero(labels.any(axis=1)) if labels.ndim == 2 else np.arange(len(labels))
        wanted = round(rule.labelled * (len(labels) / rule.items if rule.items else 1.0))
        if len(rows) < wanted and not shrink:
            raise DataError(
                f"protocol {self.name} needs {wanted:,} items with a label, this source has {len(rows):,}; "
                "--shrink draws the same proportions from what is there"
            )
        return rng.permutation(rows)[:wanted]

    def _drawn(self, source: Source, groups: list[Rows], shrink: bool, rng: np.random.Generator) -> Split:
        """Queries and training items of every group, in a random order."""
        rule = self.rule
        factor = len(source) / rule.items if rule.items else 1.0
        query, train = [], []
        for group in groups:
            n_query, n_train = rule.queries * factor, None if rule.train is None else rule.train * factor
            if shrink and rule.items is None and rule.draw == "random":
                # The complete size is not known: as stated, or at most a tenth and a half.
                n_query = min(rule.queries, len(group) / 10)
                n_train = None if rule.train is None else min(rule.train, len(group) / 2)
            first = max(1, round(n_query))
            last = len(group) if n_train is None else first + max(1, round(n_train))
            if last > len(group) or first >= len(group):
                raise DataError(
                    f"protocol {self.name} needs {last:,} items to draw from, {source.name} has a group of {len(group):,}; "
                    "--shrink draws the same proportions from what is there"
                )
            places = rng.permutation(len(group))
            query.append(group[places[:first]])
            train.append(group[places[first:last]])
        outside = np.concatenate(query + train if rule.train_apart else query)
        rest = np.setdiff1d(np.concatenate(groups), outside)
        return Split(np.concatenate(query), np.concatenate(train), rest)

    def _official(self, source: Source, groups: list[Rows], rng: np.random.Generator) -> Split:
        for part in ("train", "test"):
            if part not in source.splits:
                raise DataError(
                    f"protocol {self.name} follows the data set's own split, but {source.name} has no {part} part"
                )
        query, database = (np.asarray(source.splits[part], np.intp) for part in ("test", "train"))
        if self.rule.train is None:
            return Split(query, database, database)
        train = []
        for group in groups:
            inside = np.intersect1d(group, database)
            if len(inside) < self.rule.train:
                raise DataError(
                    f"protocol {self.name} needs {self.rule.train} training items of every class, {source.name} has {len(inside)}"
                )
            train.append(inside[rng.permutation(len(inside))[: self.rule.train]])
        return Split(query, np.concatenate(train), database)

    def _stored(self, source: Source, groups: list[Rows]) -> Split:
        data = _file(f"{self.name}.split.json").read_bytes()
        if sha256(data).hexdigest() != self.rule.sha256:
            raise FormatError(
                f"the stored split of protocol {self.name} does not match its checksum; reinstall distillhash"
            )
        places = {role: np.array(lists, np.int64) for role, lists in json.loads(data).items()}
        for number, rows in enumerate(groups):
            if len(rows) != self.rule.n_per_class or number >= len(places["query"]):
                assert source.labels is not None
                raise DataError(
                    f"protocol {self.name} needs {len(places['query'])} classes of {self.rule.n_per_class} items; "
                    f"class {np.unique(source.labels)[number]} of {source.name} has {len(rows)}"
                )
        roles = {role: np.concatenate([*map(np.take, groups, lists)]) for role, lists in places.items()}
        outside = np.concatenate([roles["query"], roles.get("unused", roles["query"])])
        return Split(roles["query"], roles["train"], np.setdiff1d(np.arange(len(source)), outside))


def load_protocol(name: str) -> Protocol:
    """A protocol by name."""
    if name not in protocol_names():
        raise ParameterError(f"unknown protocol {name!r}; choose one of {', '.join(protocol_names())}")
    record: dict[str, Any] = json.loads(_file(f"{name}.json").read_text())
    record["cutoffs"], record["topn"] = tuple(record["cutoffs"]), tuple(record["topn"])
    record["elsewhere"] = tuple(Printed(**row) for row in record.get("elsewhere", ()))
    return Protocol(rule=SplitRule(**record.pop("split")), **record)


def protocol_names() -> list[str]:
    """Names of all protocols, sorted."""
    names = (entry.name for entry in files("distillhash.bench").joinpath("protocols").iterdir())
    return sorted(name.removesuffix(".json") for name in names if name.endswith(".json") and ".split." not in name)


def protocol_summaries() -> dict[str, str]:
    """One line per protocol."""
    return {name: load_protocol(name).summary for name in protocol_names()}


def _file(name: str) -> Any:
    return files("distillhash.bench").joinpath("protocols", name)
