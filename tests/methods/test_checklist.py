"""What CONTRIBUTING asks of a method besides its code: pages, numbers, a docstring with the paper, and tests of its formulas."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distillhash.methods import method_class, table_name
from distillhash.methods.registry import BUILT_IN

ROOT = Path(__file__).parents[2]
README, CONTENTS, RESULTS = (
    (ROOT / name).read_text() for name in ("README.md", "docs/methods/README.md", "docs/results.md")
)
CIFAR10: list[dict[str, Any]] = json.loads((ROOT / "results/cifar10/table.json").read_text())
BOTH: list[dict[str, Any]] = json.loads((ROOT / "results/neighbours-and-classes/cifar10.json").read_text())["records"]
IMAGE_TEXT = [json.loads(line) for line in (ROOT / "results/cross-modal/rows.jsonl").read_text().splitlines()]
TESTS = {path.name: path.read_text() for path in Path(__file__).parent.glob("test_*.py")}
KEYS = ("map", "precision@10", "neighbour_recall@10")
SHARED_TESTS = {"test_contract.py", "test_image_text_contract.py", "test_checklist.py", "test_heads.py"}


@pytest.mark.parametrize("method", BUILT_IN)
def test_a_page_is_listed(method: str) -> None:
    name = method.removesuffix("-initial")  # described with the method whose ablation it is
    pages = [page for page in (f"methods/{name}.md", f"{name}.md") if (ROOT / "docs" / page).is_file()]
    assert pages, f"write docs/methods/{name}.md"
    link = pages[0].removeprefix("methods/") if "/" in pages[0] else f"../{pages[0]}"
    assert f"({link})" in CONTENTS, f"list {pages[0]} in docs/methods/README.md"


@pytest.mark.parametrize("method", BUILT_IN)
def test_the_list_marks_it_where_it_is_reconstructed(method: str) -> None:
    assert (f"({method}.md) \N{DAGGER}" in CONTENTS) == bool(method_class(method).reconstructed)


def test_the_pages_count_the_methods() -> None:
    assert f"{len(BUILT_IN)} methods behind one interface" in README
    measured = {row["method"].partition(":")[0] for row in CIFAR10}
    assert measured == {name for name in BUILT_IN if not method_class(name).needs_texts}
    assert f"All {len(measured)} methods of features" in RESULTS
    assert f"{len(measured)} methods, four lengths" in README


def table(page: str, head: str) -> dict[str, list[str]]:
    """The cells of a table's rows, by the method in the first, without marks and notes."""
    lines = page[page.index(head) :].split("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    return {name.partition(" (ours")[0].replace("**", "").removesuffix(" \N{DAGGER}"): cells for name, *cells in rows}


def test_the_tables_of_cifar10_print_what_the_files_hold() -> None:
    """MAP by length and two measures at 32 bits, and the same at 32 bits with one recipe; the README has some rows of 32 bits."""
    recipe = json.loads((ROOT / "results/one-recipe/table.json").read_text())
    rows = table(RESULTS, "| method | MAP: 16 bits")
    few = table(README, "| method | MAP | P@10")
    assert len(few) == 10
    for name, cells in few.items():
        assert cells == [rows[name][1].partition(" (")[0], *rows[name][4:]], name
    shown = [name for name in rows if not name.startswith("*")]
    assert len(shown) > 20
    for name in shown:
        for number, (records, n_bits, key) in enumerate(
            [(CIFAR10, n_bits, "map") for n_bits in (16, 32, 64, 128)]
            + [(records, 32, key) for records, keys in ((CIFAR10, KEYS[1:]), (recipe, KEYS)) for key in keys]
        ):
            values = [r[key] for r in records if table_name(r["method"]) == name and r["n_bits"] == n_bits]
            mean, _, spread = rows[name][number].partition(" (")
            assert bool(values) == bool(mean)
            if values:
                assert abs(float(mean) - np.mean(values)) < 0.00051, (name, n_bits, key)
            if spread:
                assert abs(float(spread[:-1]) - np.std(values, ddof=1)) < 0.00051, (name, n_bits)


@pytest.mark.parametrize("method", BUILT_IN)
def test_results_have_its_numbers(method: str) -> None:
    cls = method_class(method)
    if cls.needs_labels:
        return  # the tables compare methods that learn without labels
    rows = IMAGE_TEXT if cls.needs_texts else [*CIFAR10, *BOTH]
    assert any(row["method"] == method for row in rows), f"measure {method}, and add its rows to results/"


@pytest.mark.parametrize("method", BUILT_IN)
def test_the_module_names_paper_and_departures(method: str) -> None:
    cls = method_class(method)
    text = importlib.import_module(cls.__module__).__doc__ or ""
    wanted = ["Not in a paper."] if cls.venue == "this project" else ["Paper:", "Departs from the paper in:"]
    if cls.needs_texts and cls.venue == "this project":
        wanted = ["Paper: none"]
    assert all(words in text for words in wanted), f"the docstring of {cls.__module__} lacks one of {wanted}"


@pytest.mark.parametrize("module", sorted({place.split(":")[0] for place in BUILT_IN.values()}))
def test_what_is_reconstructed_is_marked(module: str) -> None:
    """The docstring explains it and a class attribute marks it, both or neither."""
    text = importlib.import_module(f"distillhash.methods.{module}").__doc__ or ""
    marks = [method_class(name).reconstructed for name, place in BUILT_IN.items() if place.split(":")[0] == module]
    assert any(marks) == ("RECONSTRUCTED" in text)


@pytest.mark.parametrize("method", BUILT_IN)
def test_a_test_of_its_own_imports_or_makes_it(method: str) -> None:
    """A formula test imports from the method's module or makes the method, in a file that is not shared by all methods."""
    cls = method_class(method)
    names = [f"from {cls.__module__} import", f'"{method}"', f"{cls.__name__}("]
    found = [name for name, text in TESTS.items() if name not in SHARED_TESTS and any(word in text for word in names)]
    assert found, f"test the formulas of {method} in tests/methods"
