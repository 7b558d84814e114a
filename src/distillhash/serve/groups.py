"""Groups of near-duplicates for the page: read from the file that ``dedup`` wrote, or found in a small index."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from distillhash.dedup import groups
from distillhash.errors import FormatError
from distillhash.index import Index
from distillhash.index.base import Item
from distillhash.serve.library import all_ids, concatenated
from distillhash.serve.problems import Problem

MOST_ITEMS = 20_000  # grouped on the fly, under a second on one core
Group = list[tuple[int, int]]  # (id, distance to the keeper); the keeper first


class Groups:
    """Where the groups come from."""

    def __init__(self, file: Path | None) -> None:
        """Read the file, if there is one.

        Raises:
            FormatError: it is not what ``distillhash dedup --out`` writes.
        """
        self._document = None if file is None else _read(file)
        self._kept: tuple[tuple[Hashable | None, int], list[Group]] | None = None

    def page(self, index: Index, *, radius: int | None, offset: int, limit: int) -> dict[str, Any]:
        """Some of the groups, largest first; call it in the index's thread.

        Returns:
            ``radius``, ``expected_false_pairs`` (None where nobody measured it), ``n_groups``, ``n_missing`` (members of the file that the
            index does not hold), ``from_file``, and ``groups``: lists of (item, distance), the keeper first.

        Raises:
            Problem: 422 for an index too large to be grouped on the fly.
        """
        n_missing = 0
        if self._document is not None:
            radius, expected = self._document["radius"], self._document.get("expected_false_pairs")
            found, n_missing = _in_index(self._document, index)
        else:
            expected = None
            radius = max(1, index.n_bits // 16) if radius is None else radius
            if len(index) > MOST_ITEMS:
                raise Problem(
                    422,
                    f"the index holds {len(index)} items, and groups are found while you wait for up to {MOST_ITEMS}; run "
                    "`distillhash dedup SOURCE --out dups.json` and serve with `--duplicates dups.json`",
                )
            key = index.state(), radius
            if self._kept is None or self._kept[0] != key or key[0] is None:
                self._kept = key, star_groups(index, radius)
            found = self._kept[1]
        shown = found[offset : offset + limit]
        held = index.present([identifier for group in shown for identifier, _ in group])
        items: Mapping[int, Item] = {item.id: item for item in index.get(sorted(held))}
        return {
            "radius": radius,
            "expected_false_pairs": expected,
            "n_groups": len(found),
            "n_missing": n_missing,
            "from_file": self._document is not None,
            "groups": [[(items[member], distance) for member, distance in group if member in held] for group in shown],
        }


def star_groups(index: Index, radius: int) -> list[Group]:
    """Groups without chaining, largest first: every member lies within ``radius`` bits of its group's keeper, the lowest id it could be."""
    ids = all_ids(index)
    stars = groups.star_groups(concatenated(index.get(ids.tolist()), index.n_bits), radius)
    found = [list(zip(ids[rows].tolist(), stars.distance[rows].tolist(), strict=True)) for rows in stars.groups()]
    return sorted(found, key=len, reverse=True)


def _read(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_text())
        for group in document["groups"]:
            [(str(member["path"]), int(member["distance"])) for member in group["members"]]
            str(group["keeper"])
        int(document["radius"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{file} is not a file of `distillhash dedup --out` ({error!r}); write it again") from error
    found: dict[str, Any] = document
    return found


def _in_index(document: dict[str, Any], index: Index) -> tuple[list[Group], int]:
    """The file's groups as ids, and how many members the index does not hold; a group needs two that it does."""
    paths = {member["path"] for group in document["groups"] for member in group["members"]}
    absolute = {path: str(Path(path).resolve()) if "\0" not in path else path for path in paths}
    known = index.known(list(paths | set(absolute.values())))
    ids = {path: (known.get(path) or known.get(absolute[path]) or (None, None))[0] for path in paths}
    groups, n_missing = [], 0
    for group in document["groups"]:
        keeper = group["keeper"]
        members = [member for member in group["members"] if member["path"] == keeper]
        members += sorted(
            (m for m in group["members"] if m["path"] != keeper), key=lambda member: int(member["distance"])
        )
        found = [
            (identifier, int(member["distance"]))
            for member in members
            if (identifier := ids[member["path"]]) is not None
        ]
        n_missing += len(members) - len(found)
        if len(found) > 1:
            groups.append(found)
    return sorted(groups, key=len, reverse=True), n_missing
