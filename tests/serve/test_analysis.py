"""Groups of near-duplicates by brute force."""

from pathlib import Path

import numpy as np
import pytest

from distillhash import Codes
from distillhash.codes import hamming_distances
from distillhash.errors import FormatError
from distillhash.index import Index, open_index
from distillhash.serve.analysis import Groups


def groups_of(index: Index, radius: int) -> list[list[tuple[int, int]]]:
    page = Groups(None).page(index, radius=radius, offset=0, limit=10_000)
    return [[(item.id, distance) for item, distance in group] for group in page["groups"]]


def clustered(n: int, n_bits: int, seed: int) -> Codes:
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 2, (n // 5, n_bits))
    bits = centres[rng.integers(0, len(centres), n)] ^ (rng.random((n, n_bits)) < 0.03)
    return Codes.from_signs(2 * bits - 1)


@pytest.mark.parametrize(("n_bits", "radius"), [(12, 0), (33, 2), (64, 6), (64, 64)])
def test_star_groups_are_stars(n_bits: int, radius: int) -> None:
    """By brute force: every member within the radius of its keeper, nobody twice, and no pair of ungrouped items within it."""
    codes = clustered(300, n_bits, seed=radius)
    with open_index("memory://", n_bits=n_bits, create=True) as index:
        index.add(codes)
        groups = groups_of(index, radius)
    distances = hamming_distances(codes, codes)
    members = [member for group in groups for member, _ in group]
    assert len(set(members)) == len(members)
    for group in groups:
        keeper = group[0][0]
        assert len(group) > 1 and group[0][1] == 0
        assert all(distances[keeper, member] == distance <= radius for member, distance in group)
    free = np.array(sorted(set(range(300)) - set(members)))
    between = distances[np.ix_(free, free)] if len(free) else np.zeros((0, 0))
    assert (between[np.triu_indices(len(free), 1)] > radius).all()
    assert [len(group) for group in groups] == sorted(map(len, groups), reverse=True)


def test_identical_codes_do_not_fill_the_memory() -> None:
    with open_index("memory://", n_bits=64, create=True) as index:
        index.add(Codes.from_packed(np.zeros((3000, 8), np.uint8), 64))
        groups = groups_of(index, 3)
    assert [len(group) for group in groups] == [3000]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"radius": 1, "groups": [{"keeper": "a"}]}', '{"radius": "x", "groups": []}']
)
def test_other_files_than_dedups_are_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "dups.json"
    file.write_text(text)
    with pytest.raises(FormatError, match="dedup --out"):
        Groups(file)
