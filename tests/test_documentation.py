"""What the pages say holds: links and sections exist, commands parse, Python runs, and every page is listed and short."""

import contextlib
import importlib
import inspect
import io
import json
import pkgutil
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import distillhash
from distillhash.cli import build_parser
from distillhash.codes import Codes
from distillhash.index import open_index
from distillhash.methods import ITQ
from distillhash.methods.registry import BUILT_IN

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), ROOT / "examples/README.md", *(ROOT / "docs").rglob("*.md")])
RESULTS = sorted((ROOT / "results").rglob("*.md"))
LISTS = [ROOT / "docs" / name for name in ("README.md", "methods/README.md", "reference/python.md")]
MAX_WORDS = 2500
PARSER = build_parser()
LANGUAGES = {"python", "text", "bash", "json", "toml", "yaml", "sql", "nginx", "{eval-rst}"}


class Block(NamedTuple):
    """A code block: an indented one, which holds commands, or a fenced one of a language."""

    page: str
    line: int
    language: str
    text: str


def blocks_of(path: Path) -> Iterator[Block]:
    lines = path.read_text().splitlines()
    name, at, before = str(path.relative_to(ROOT)), 0, ""
    while at < len(lines):
        first, line = at, lines[at]
        at += 1
        if line.startswith("```"):
            at = lines.index("```", at) + 1
            yield Block(name, first + 1, line[3:], "\n".join(lines[first + 1 : at - 1]))
        elif line.startswith("    ") and not before.strip():
            while at < len(lines) and (lines[at].startswith("    ") or not lines[at].strip()):
                at += 1
            text = "\n".join(words[4:] for words in lines[first:at]).strip()
            if not list_item_above(lines, first):
                yield Block(name, first + 1, "commands", text)
        before = lines[at - 1]


def list_item_above(lines: list[str], first: int) -> bool:
    """Whether an indented text goes on with an item of a list."""
    above = next((line for line in reversed(lines[:first]) if line.strip() and not line.startswith("    ")), "")
    return bool(re.match(r" *(\d+\.|-) ", above))


BLOCKS = [block for path in PAGES for block in blocks_of(path)]


def name_of(value: Any) -> str:
    return f"{value.page}:{value.line}" if isinstance(value, Block) else str(value)


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "commands"], ids=name_of)
def test_commands_parse(block: Block) -> None:
    variables: dict[str, str] = {}
    for line in block.text.replace("\\\n", " ").splitlines():
        for name, value in variables.items():
            line = line.replace(f"${name}", value)
        words = shlex.split(re.sub(r"(^|\s)#.*", "", line))
        if len(words) == 1 and re.match(r"[A-Z]+=", words[0]):
            name, _, setting = words[0].partition("=")
            variables[name] = setting
        elif words:
            check_command(line, words)


def check_command(line: str, words: list[str]) -> None:
    ends = [number for number, word in enumerate(words) if word in ("|", ">", "&&", "&")]
    if "distillhash" in words:  # settings of the environment may stand before it
        start = words.index("distillhash") + 1
        arguments = words[start : min((end for end in ends if end > start), default=None)]
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
                PARSER.parse_args(arguments)
        except SystemExit as end:
            assert end.code == 0, f"{line}\n{said.getvalue()}"
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file(), line
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
    elif words[:2] == ["pip", "install"]:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        named = [name for listed in re.findall(r"\[([\w,-]+)\]", line) for name in listed.split(",")]
        assert set(named) <= set(extras), line
    else:
        assert words[0] in ("curl",), f"{line}\nput what is no command between fences, with its language or text"


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language != "commands"], ids=name_of)
def test_blocks_name_their_language_and_parse(block: Block) -> None:
    assert block.language in LANGUAGES, "name the language; output is text"
    parsers: dict[str, Callable[[str], object]] = {
        "json": json.loads,
        "toml": tomllib.loads,
        "python": lambda text: compile(text, f"{block.page}:{block.line}", "exec"),
    }
    parsers.get(block.language, str)(block.text)


# Python that is run: names that a page takes for granted are made by the function.


def an_index() -> dict[str, Any]:
    """Codes of two parts, so that ``by`` says something."""
    features = np.random.default_rng(0).standard_normal((300, 96)).astype(np.float32)
    hasher = ITQ(n_bits=64).fit(features)
    hasher.fit_decoder(features)
    codes = Codes.from_packed(hasher.encode(features).packed, 64, class_bits=16)
    with open_index("photos.index", n_bits=64, create=True) as index:
        index.add(codes, metadata=[{"label": "cat"}] * len(codes))
    return {"features": features[:3], "codes": codes, "hasher": hasher}


def planes() -> dict[str, Any]:
    codes = Codes.from_projection(np.random.default_rng(0).standard_normal((300, 256)))
    return {"codes": codes, "query": codes[:2], "mask": np.ones(300, bool)}


def vectors() -> dict[str, Any]:
    np.save("vectors.npy", np.random.default_rng(0).standard_normal((300, 160)).astype(np.float32))
    return {}


RUN = {"README.md": vectors, "docs/index.md": an_index, "docs/search.md": planes}
ELSEWHERE = {
    "docs/backbones.md": "tests/backbones/test_onnx.py exports a network so",
    "docs/cross-modal.md": "tests/cli/test_pairs.py trains on image-text pairs",
    "docs/embeddings.md": "tests/texts/test_texts.py encodes sentences",
    "docs/export.md": "tests/export/test_real_engines.py reads the graph",
    "docs/hub.md": "tests/test_pages.py runs it",
    "docs/install.md": "needs a folder of photographs",
    "docs/methods/dmuh.md": "tests/cli/test_verbs.py trains on a labelled folder",
    "docs/methods/duh-eg.md": "tests/methods/test_duh_eg.py does so",
    "docs/milvus.md": "needs a server; tests/index/test_milvus.py has one",
    "docs/onnx.md": "tests/models/test_onnx_models.py loads such a file",
    "docs/postgres.md": "needs a server; tests/index/test_postgres.py has one",
    "docs/scale.md": "needs a model and its codes",
    "docs/scikit-learn.md": "tests/test_pages.py runs it",
}


@pytest.mark.long  # compiles the search where no earlier run did
@pytest.mark.parametrize("page", RUN)
def test_python_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = RUN[page]()
    for block in BLOCKS:
        if block.page == page and block.language == "python":
            exec(compile(block.text, f"{page}:{block.line}", "exec"), names)


def test_every_page_with_python_is_run_or_says_what_runs_it() -> None:
    assert {block.page for block in BLOCKS if block.language == "python"} == {*RUN, *ELSEWHERE}


@cache
def anchors(path: Path) -> set[str]:
    """Anchors that GitHub makes of the headings of a page."""
    found: list[str] = []
    for heading in re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return set(found)


@pytest.mark.parametrize("path", [*PAGES, *RESULTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", path.read_text())):
        if not re.match(r"\w+:", target):
            place, _, anchor = target.partition("#")
            file = (path.parent / place).resolve() if place else path
            assert file.exists(), target
            assert not anchor or anchor in anchors(file), target


def test_every_page_is_listed() -> None:
    """The navigation of the site is made from these lists."""
    listed = {
        (path.parent / name).resolve()
        for path in LISTS
        for name in re.findall(r"\]\(([^)#:]+\.md)\)", path.read_text())
    }
    unlisted = set((ROOT / "docs").rglob("*.md")) - listed - {LISTS[0]}
    assert not unlisted, "name the page in docs/README.md"


def test_every_public_name_is_in_the_reference() -> None:
    """By a directive for one of its modules, or by itself; ``make docs`` also looks for the entry that comes of it."""
    pages = "\n".join(path.read_text() for path in sorted((ROOT / "docs/reference").glob("*.md")))
    members = {
        module: re.findall(r"\w+", found[1])  # none: all of them
        for module, options in re.findall(r"^\.\. automodule:: (\S+)\n((?:   .*\n)*)", pages, re.MULTILINE)
        if (found := re.search(r":members:(.*)", options))
    }
    methods = {place.partition(":")[2] for place in BUILT_IN.values()}  # their page is made by the registry
    names: dict[int, set[tuple[str, str]]] = {}  # of a thing, by all modules that have it
    data = set()
    for package in pkgutil.iter_modules(distillhash.__path__):
        module = importlib.import_module(f"distillhash.{package.name}")
        for name in getattr(module, "__all__", ()) if package.name != "pytorch" else ():
            thing = getattr(module, name)
            home = getattr(thing, "__module__", module.__name__)
            names.setdefault(id(thing), set()).update({(module.__name__, name), (home, name)})
            if not (inspect.isclass(thing) or inspect.isroutine(thing)):
                data.add(id(thing))
    for name in distillhash.__all__:
        thing = getattr(distillhash, name)
        names.setdefault(id(thing), set()).add((thing.__module__, name))
    missing = [
        found
        for thing, found in names.items()
        if not any(name in methods or f"py:data:: {name}\n" in pages for _, name in found)
        and (
            thing in data
            or not any(name in (members.get(module) or [name]) for module, name in found if module in members)
        )
    ]
    assert len(names) > 100 and not missing


@pytest.mark.parametrize("path", sorted((ROOT / "docs").rglob("*.md")), ids=lambda path: str(path.relative_to(ROOT)))
def test_pages_are_short(path: Path) -> None:
    assert len(path.read_text().split()) <= MAX_WORDS
