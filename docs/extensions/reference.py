"""The reference pages: the command line from its parsers, HTTP from the OpenAPI document, and a check that no public name is left out."""

import argparse
import importlib
import pkgutil
import re
from textwrap import dedent
from typing import Any
from unittest.mock import MagicMock

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

import distillhash
from distillhash.cli import build_parser
from distillhash.methods.registry import BUILT_IN
from distillhash.serve.app import create_app

log = logging.getLogger(__name__)


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the hooks."""
    app.connect("source-read", complete)
    app.connect("autodoc-process-signature", shorten_signature)
    app.connect("env-check-consistency", check_names)
    return {"parallel_read_safe": True}


def complete(_: Sphinx, docname: str, source: list[str]) -> None:
    """Append what is generated to its page."""
    made = {
        "docs/reference/command-line": commands,
        "docs/reference/http": routes,
        "docs/reference/methods": method_classes,
    }
    if docname in made:
        source[0] += "\n" + made[docname]()


def commands() -> str:
    """Every verb with its options and examples."""
    (verbs,) = (action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    return "\n".join(command(name, parser) for name, parser in verbs.choices.items())


def command(name: str, parser: argparse.ArgumentParser) -> str:
    """One verb."""
    examples = (parser.epilog or "").removeprefix("examples:\n")
    parts = [f"## {name}\n", f"{escaped(parser.description or '')}\n", f"```text\n{dedent(examples)}\n```\n"]
    for group in parser._action_groups:
        actions = [
            action
            for action in group._group_actions
            if action.help not in (argparse.SUPPRESS, "show this help message and exit")
        ]
        if actions:
            rows = [f"| {spelling(action)} | {explained(action, parser.prog)} |\n" for action in actions]
            parts.append(f"| {group.title} | |\n|---|---|\n{''.join(rows)}")
    return "\n".join(parts)


def spelling(action: argparse.Action) -> str:
    """How an argument is written."""
    value = action.metavar or (
        "{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest.upper()
    )
    value = value if isinstance(value, str) else " ".join(value)
    if not action.option_strings:
        return f"`{value}`"
    words = ", ".join(f"`{word}`" for word in action.option_strings)
    return words if action.nargs == 0 else f"{words} `{value}`"


def explained(action: argparse.Action, program: str) -> str:
    """The help text with its default filled in."""
    return escaped((action.help or "") % {**vars(action), "prog": program})


def escaped(words: str) -> str:
    """Plain text, with code between backticks, in a cell of a Markdown table."""
    text, *rest = re.split(r"(`[^`]*`)", " ".join(words.split()))
    parts = [text, *rest]
    return "".join(
        part.replace("|", r"\|") if part[:1] == "`" else re.sub(r"([\\|*_<>\[\]$`#])", r"\\\1", part) for part in parts
    )


def routes() -> str:
    """Every operation of the OpenAPI document."""
    service = MagicMock(n_bits=64)
    document = create_app(service, on_failure=lambda: None).openapi()
    parts = []
    for path, operations in document["paths"].items():
        for verb, operation in operations.items():
            parts.append(f"## {verb.upper()} {path}\n\n{escaped(operation.get('description', operation['summary']))}\n")
            if "parameters" in operation:
                rows = [
                    f"| `{given['name']}` | {given['in']} | {escaped(given.get('description', ''))} |\n"
                    for given in operation["parameters"]
                ]
                parts.append(f"| parameter | in | meaning |\n|---|---|---|\n{''.join(rows)}")
            if "requestBody" in operation:
                kinds = ", ".join(f"`{kind}`" for kind in operation["requestBody"]["content"])
                parts.append(f"Body: {kinds}.\n")
            answers = ", ".join(answer(status, content) for status, content in operation["responses"].items())
            parts.append(f"Answers: {answers}.\n")
    parts.append("## Objects\n")
    for name, schema in document["components"]["schemas"].items():
        rows = [
            f"| `{field}` | {kind_of(given)} | {escaped(given.get('description', ''))} |\n"
            for field, given in schema.get("properties", {}).items()
        ]
        if rows:
            parts.append(f"### {name}\n\n| field | type | meaning |\n|---|---|---|\n{''.join(rows)}")
    return "\n".join(parts)


def answer(status: str, content: dict[str, Any]) -> str:
    """A status and the object that comes with it."""
    schemas = [kind.get("schema", {}) for kind in content.get("content", {}).values()]
    names = [kind_of(schema) for schema in schemas if "$ref" in schema]
    return f"{status} {names[0]}" if names and not status.startswith(("4", "5")) else status


def kind_of(schema: dict[str, Any]) -> str:
    """A JSON schema's type in words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(kind_of(member) for member in schema["anyOf"])
    if schema.get("type") == "array":
        return f"array of {kind_of(schema.get('items', {}))}"
    return str(schema.get("type", "any"))


def method_classes() -> str:
    """An entry for the class of every method."""
    entries = "".join(
        f".. autoclass:: distillhash.methods.{place.partition(':')[2]}\n\n" for place in BUILT_IN.values()
    )
    return f"## Every method\n\n```{{eval-rst}}\n{entries}```\n"


def shorten_signature(_: Sphinx, what: str, name: str, *_others: Any) -> tuple[str, str] | None:
    """Leave the hyper-parameters out of the signature of a method's class: its page has a table of them."""
    is_method = what == "class" and name.rpartition(".")[2] in {place.partition(":")[2] for place in BUILT_IN.values()}
    return ("(n_bits, *, seed=0, **options)", "") if is_method else None


def public_names() -> list[list[str]]:
    """The public things, each by all names that an ``__all__`` gives it."""
    found: dict[int, list[str]] = {}
    for module in [distillhash, *map(importlib.import_module, subpackages())]:
        for name in getattr(module, "__all__", ()):
            thing = getattr(module, name)
            home = f"{getattr(thing, '__module__', module.__name__)}.{getattr(thing, '__qualname__', name)}"
            found.setdefault(id(thing), []).extend([f"{module.__name__}.{name}", home])
    return list(found.values())


def subpackages() -> list[str]:
    """Packages and modules directly below the main one, but for what makes PyTorch optional."""
    return [
        f"distillhash.{found.name}" for found in pkgutil.iter_modules(distillhash.__path__) if found.name != "pytorch"
    ]


def check_names(_: Sphinx, env: BuildEnvironment) -> None:
    """Warn, and so fail, for a public name without an entry."""
    documented = set(env.domains["py"].data["objects"])
    for names in public_names():
        if not documented.intersection(names):
            log.warning("%s is public and has no entry in docs/reference", names[0])
