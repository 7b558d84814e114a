"""What is said of a whole index: groups of near-duplicates, how far copies of its pictures lie, and numbers about the codes."""

import json
from collections.abc import Hashable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distillhash.codes import Codes, bytes_per_code, hamming_distances
from distillhash.errors import DataError, FormatError
from distillhash.files import read_file
from distillhash.index import Index, Item
from distillhash.metrics.code_statistics import bit_statistics
from distillhash.serve.pictures import Pictures

if TYPE_CHECKING:
    from distillhash.dedup.calibration import Calibration

MOST_ITEMS = 20_000  # grouped on the fly, under a second on one core
_MOST_SAMPLED = 5000  # items of which the statistics are taken
_MOST_PAIRED = 1000  # items of which all pairs are compared
_MOST_BYTES = 1 << 30  # of a file of groups
_MOST_QUERIES = 500  # items whose nearest neighbour is looked up
Group = list[tuple[int, int]]  # (id, distance to the keeper), the keeper first


class Groups:
    """Groups of near-duplicates: from the file that ``dedup`` wrote, or found in a small index."""

    def __init__(self, file: Path | None) -> None:
        self._document = None if file is None else _read(file)
        self._kept: tuple[tuple[Hashable | None, int], list[Group]] | None = None

    def page(self, index: Index, *, radius: int | None, offset: int, limit: int) -> dict[str, Any]:
        """Some of the groups, largest first; call it in the index's thread.

        ``expected_false_pairs`` is None where it was not measured; ``n_missing`` counts the members of the file that the index does not
        hold; ``groups`` are lists of (item, distance), the keeper first.
        """
        n_missing, expected = 0, None
        if self._document is not None:
            radius, expected = self._document["radius"], self._document.get("expected_false_pairs")
            found, n_missing = _in_index(self._document, index)
        elif len(index) > MOST_ITEMS:
            raise DataError(
                f"the index holds {len(index)} items, and groups are found while you wait for up to {MOST_ITEMS}; run "
                "`distillhash dedup SOURCE --out dups.json` and serve with `--duplicates dups.json`"
            )
        else:
            radius = max(1, index.n_bits // 16) if radius is None else radius
            key = index.state(), radius
            if self._kept is None or self._kept[0] != key or key[0] is None:
                self._kept = key, _stars(index, radius)
            found = self._kept[1]
        shown = found[offset : offset + limit]
        held = index.present([identifier for group in shown for identifier, _ in group])
        items = {item.id: item for item in index.get(sorted(held))}
        return {
            "radius": radius,
            "expected_false_pairs": expected,
            "n_groups": len(found),
            "n_missing": n_missing,
            "from_file": self._document is not None,
            "groups": [[(items[member], distance) for member, distance in group if member in held] for group in shown],
        }


def _stars(index: Index, radius: int) -> list[Group]:
    """Groups without chaining: every member lies within ``radius`` bits of its keeper, the lowest id it could be."""
    from distillhash.dedup.groups import star_groups

    ids = index.ids()
    stars = star_groups(Codes.concatenate([item.code for item in index.get(ids.tolist())], index.n_bits), radius)
    found = [list(zip(ids[rows].tolist(), stars.distance[rows].tolist(), strict=True)) for rows in stars.groups()]
    return sorted(found, key=len, reverse=True)


def _read(file: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(read_file(file, limit=_MOST_BYTES))
        for group in document["groups"]:
            [(str(member["path"]), int(member["distance"])) for member in group["members"]]
            str(group["keeper"])
        int(document["radius"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise FormatError(f"{file} is not a file of `distillhash dedup --out` ({error!r}); write it again") from error
    return document


def _in_index(document: dict[str, Any], index: Index) -> tuple[list[Group], int]:
    """The file's groups as ids, and how many members the index does not hold; a group needs two that it does."""
    paths = {member["path"] for group in document["groups"] for member in group["members"]}
    absolute = {path: str(Path(path).resolve()) if "\0" not in path else path for path in paths}
    known = index.known(list(paths | set(absolute.values())))
    ids = {path: (known.get(path) or known.get(absolute[path]) or (None, None))[0] for path in paths}
    found, n_missing = [], 0
    for group in document["groups"]:
        members = sorted(group["members"], key=lambda m: (m["path"] != group["keeper"], int(m["distance"])))
        held = [(item, int(m["distance"])) for m in members if (item := ids[m["path"]]) is not None]
        n_missing += len(members) - len(held)
        if len(held) > 1:
            found.append(held)
    return sorted(found, key=len, reverse=True), n_missing


def light_edits(item: Item, pictures: Pictures) -> list[bytes]:
    """Known light edits of the picture of an item, as files; a :class:`DataError` where it cannot be read."""
    from distillhash.dedup.edits import LIGHT, EditedImages
    from distillhash.dedup.job import IndexedImages

    edited = EditedImages(IndexedImages("index", [item], pictures.read), LIGHT, max_pixels=pictures.max_pixels)
    return [edited.read(number) for number in range(len(edited))]


def lookup_calibration(items: list[Item], n_bits: int, n_held: int, edited: dict[int, list[bytes]]) -> "Calibration":
    """The radius within which an index of ``n_held`` items, of which ``items`` are a sample, holds a picture already; 1,000 look-ups.

    ``edited`` has the packed codes of the :func:`light_edits` of some of the items, by their place.
    """
    from distillhash.dedup.calibration import calibrate_lookups, copies_of
    from distillhash.dedup.edits import LIGHT
    from distillhash.dedup.groups import different_pictures
    from distillhash.dedup.job import stored_codes

    held = stored_codes(items, n_bits)
    packed = np.frombuffer(b"".join(code for codes in edited.values() for code in codes), np.uint8)
    edits = Codes(packed.reshape(-1, bytes_per_code(n_bits)), n_bits)
    copies = copies_of(list(LIGHT), held.codes[list(edited)], edits) if edited else None
    kept = different_pictures(held.codes, held.digests).kept
    return calibrate_lookups(held.codes[kept], None, n_held=n_held, n_lookups=1000, copies=copies)


def quality(index: Index) -> dict[str, Any]:
    """Bit balance, bit correlation and distances of a random sample (seed 0), from the codes alone; call it in the index's thread.

    What :func:`~distillhash.metrics.code_statistics.bit_statistics` gives for the sample, and counts by distance 0..n_bits:
    ``pair_distances`` of pairs of different items, and ``nearest_distances`` from an item to its nearest other one.
    """
    n_items = len(index)
    if n_items < 2:
        raise DataError(f"plots need at least 2 items, the index holds {n_items}; add some first")
    chosen = np.random.default_rng(0).permutation(index.ids())[:_MOST_SAMPLED]
    codes = Codes.concatenate([item.code for item in index.get(chosen.tolist())], index.n_bits)
    paired = codes[:_MOST_PAIRED]
    distances = hamming_distances(paired, paired)[np.triu_indices(len(paired), 1)]
    nearest = index.search(codes[:_MOST_QUERIES], 2)
    others = np.where(nearest.ids[:, 0] == chosen[:_MOST_QUERIES], nearest.distances[:, 1], nearest.distances[:, 0])
    return {
        "n_items": n_items,
        "n_sampled": len(codes),
        **bit_statistics(codes),
        "pair_distances": np.bincount(distances, minlength=index.n_bits + 1).tolist(),
        "nearest_distances": np.bincount(others[others >= 0], minlength=index.n_bits + 1).tolist(),
    }
