"""What the page of a method takes from its code.

Where it comes from and how it departs from that, by the docstring of its module; its options, by its class; its rows of the table on
CIFAR-10.
"""

import importlib
import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Interval, Le, Lt
from sphinx.application import Sphinx

from distillhash.methods import Hasher, method_class, table_name
from distillhash.methods.registry import BUILT_IN

PAGES = {"distillhash": ["distillhash", "distillhash-initial"]}
"""Pages that describe more than the method they are named after."""
COLUMNS = ("MAP: 16 bits", "32 bits", "64 bits", "128 bits", "32 bits: P@10", "recall@10")


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the hook."""
    app.connect("source-read", complete)
    return {"parallel_read_safe": True}


def complete(app: Sphinx, docname: str, source: list[str]) -> None:
    """Add to the page of a method what its class says."""
    name = docname.rpartition("/")[2]
    if docname not in (f"docs/{name}", f"docs/methods/{name}") or name not in BUILT_IN:
        return
    methods = PAGES.get(name, [name])
    first, *sections = re.split(r"^(?=## )", source[0], flags=re.MULTILINE)
    parts = [first, *(facts(method, titled=len(methods) > 1) for method in methods)]
    options = "".join(option_table(method, titled=len(methods) > 1) for method in methods)
    for heading, made in (("Options", options), ("Departures from the paper", departures(methods[0]))):
        introduction = re.compile(
            rf"(## {heading}\n\n.+?\n)(?=\n|$)", re.DOTALL
        )  # what is made follows its first paragraph
        sections = [introduction.sub(lambda found, made=made: found[0] + made, section) for section in sections]
    source[0] = "\n".join([*parts, *sections, results(methods, Path(app.srcdir))])


def facts(method: str, *, titled: bool) -> str:
    """A table of what the registry knows."""
    cls = method_class(method)
    about = cls.about()
    origin = "this project" if cls.venue == "this project" else paper(cls)
    rows = {
        "method" if titled else "": f"`{method}`" if titled else "",
        "from": origin,
        "kind": cls.kind,
        "learns from": about["uses"] + (", and larger images where there are some" if cls.uses_teacher else ""),
        "trains a backbone too": "yes, with `--fine-tune`" if cls.fine_tunes else "no",
        "reconstructed": cls.reconstructed or "no",
        "presets": ", ".join(f"`{name}`" for name in cls.PRESETS) or "none",
        "class": f"{{py:class}}`distillhash.methods.{cls.__name__}`",
    }
    return "\n| | |\n|---|---|\n" + "".join(f"| {key} | {value} |\n" for key, value in rows.items() if value)


def paper(cls: type[Hasher]) -> str:
    """Authors, title, venue and link."""
    cited = re.search(r"^Paper: (.+?)\n\n", docstring(cls), re.MULTILINE | re.DOTALL)
    assert cited is not None, cls
    return re.sub(r"https://[^\s;)]+[^\s;).]", r"<\g<0>>", as_markdown(" ".join(cited[1].split())))


def departures(method: str) -> str:
    """What was reconstructed, and the list of departures."""
    text = docstring(method_class(method))
    parts = re.findall(r"^RECONSTRUCTED: .+?(?=\n\n)", text, re.MULTILINE | re.DOTALL)
    listed = text.partition("Departs from the paper in:")[2].strip()
    parts += re.split(r"\n\n|\n(?=\d+\. )", listed[:1].upper() + listed[1:])
    return "".join(f"\n{prose(part)}\n" for part in parts if part)


def docstring(cls: type[Hasher]) -> str:
    """Of the module of a class."""
    return inspect.getdoc(importlib.import_module(cls.__module__)) or ""


def prose(words: str) -> str:
    """A docstring's text as a paragraph, with code between backticks."""
    text = with_roles(" ".join(words.split()))
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part[:1] == "`" else re.sub(r"([\\*_<>\[\]$#])", r"\\\1", part) for part in parts)


def option_table(method: str, *, titled: bool) -> str:
    """The hyper-parameters, those of the method itself first: default, what each preset sets, bounds and meaning."""
    cls = method_class(method)
    types, meaning = get_type_hints(cls, include_extras=True), meanings(cls)
    named = [field for field in fields(cls) if field.name not in ("n_bits", "seed")]
    if not named:
        return ""
    presets = {name: values for name, values in cls.PRESETS.items() if values}
    lines = [["option", "default", *(f"`{name}`" for name in presets), "values", "meaning"]]
    lines.append(["---"] * len(lines[0]))
    for field in sorted(named, key=lambda field: depth(cls, field.name)):
        others = [shown(values[field.name]) if field.name in values else "" for values in presets.values()]
        lines.append([f"`{field.name}`", shown(field.default), *others, bounds(types[field.name]), meaning[field.name]])
    title = f"\nOf `{method}`:\n" if titled else ""
    return title + "\n" + "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def depth(cls: type[Hasher], name: str) -> int:
    """How far up the bases the field is declared: what the method has of its own comes first."""
    return next(number for number, base in enumerate(cls.__mro__) if name in inspect.get_annotations(base))


def meanings(cls: type[Hasher]) -> dict[str, str]:
    """The sections *Attributes* of a class and its bases."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        _, _, text = inspect.cleandoc(base.__dict__.get("__doc__") or "").partition("\nAttributes:\n")
        for names, words in re.findall(r"^    ([\w, ]+): (.+(?:\n     .+)*)", text, flags=re.MULTILINE):
            found |= dict.fromkeys(names.split(", "), as_markdown(" ".join(words.split())))
    return found


def as_markdown(words: str) -> str:
    """A docstring's text in a cell of a Markdown table."""
    return with_roles(words).replace("|", r"\|").replace("*", r"\*")


def with_roles(words: str) -> str:
    """References and code as MyST spells them."""
    return re.sub(r":(class|meth|func|mod):`([^`]+)`", r"{py:\1}`\2`", words).replace("``", "`")


def bounds(declared: Any) -> str:
    """The values that a declared type allows."""
    if get_origin(declared) is Annotated:
        return ", ".join(limit_words(get_args(declared)[1:]))
    if get_origin(declared) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(declared))
    if declared is type(None):
        return "none"
    if members := get_args(declared):
        return " or ".join(bounds(member) for member in members)
    return {"bool": "true, false", "str": "text"}.get(declared.__name__, "any")


def limit_words(limits: tuple[Any, ...]) -> Iterator[str]:
    """Each bound as a sign and a number."""
    for limit in limits:
        for kind, words in ((Ge, ">="), (Gt, ">"), (Le, "<="), (Lt, "<")):
            value = getattr(limit, kind.__name__.lower(), None)
            if isinstance(limit, kind | Interval) and value is not None:
                yield f"{words} {shown(value)}"


def shown(value: Any) -> str:
    """A value as one gives it to ``--set``."""
    return (
        str(value).lower()
        if value is None or isinstance(value, bool)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


@cache
def rows_of(root: Path) -> list[dict[str, Any]]:
    """The runs on CIFAR-10."""
    found: list[dict[str, Any]] = json.loads((root / "results/cifar10/table.json").read_text())
    return found


def results(methods: list[str], root: Path) -> str:
    """The rows of the table on CIFAR-10, means over seeds; nothing for methods of images and texts."""
    rows = rows_of(root)
    names = dict.fromkeys(row["method"] for row in rows if row["method"].partition(":")[0] in methods)
    if not names:
        return ""
    lines = []
    for name in names:
        cells = [
            f"{mean(row[key] for row in rows if row['method'] == name and row['n_bits'] == n_bits):.3f}".removeprefix(
                "0"
            )
            for n_bits, key in [(n_bits, "map") for n_bits in (16, 32, 64, 128)]
            + [(32, "precision@10"), (32, "neighbour_recall@10")]
        ]
        lines.append(f"| {table_name(name)} | {' | '.join(cells)} |\n")
    header = f"| | {' | '.join(COLUMNS)} |\n|{'---|' * (1 + len(COLUMNS))}\n"
    conditions = (
        "CIFAR-10, 50,000 images in the database, `efficientnet-lite2` at 128 pixels, mean of 3 seeds; "
        "[all methods and conditions](/results/cifar10/table.md):\n\n"
    )
    return f"\n## Measured here\n\n{conditions}{header}{''.join(lines)}"
