"""``distillhash ls``: what there is to choose from."""

from __future__ import annotations

import argparse
from typing import Any

from distillhash.cli.common import add_verb


def add_parser(subparsers: Any) -> None:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "ls",
        "list methods, backbones, text encoders, protocols, sources or sources of pairs",
        ["distillhash ls methods", "distillhash ls sources --json"],
        run,
    )
    parser.add_argument("what", choices=("methods", "backbones", "text-encoders", "protocols", "sources", "pairs"))


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Print names with a line each."""
    if arguments.what == "methods":
        from distillhash.methods import method_class, method_names

        names = sorted([*method_names(), *method_names(image_text=True)])
        methods = [(name, method_class(name)) for name in names]
        if not arguments.json:
            rows = [
                (name, f"{info.venue} {info.year}", info.kind, info.about()["uses"], info.title)
                for name, info in methods
            ]
            widths = [*[max(map(len, column)) for column in zip(*rows, strict=True)][:-1], 0]
            for row in rows:
                print("  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)))  # noqa: T201  # as below
        return {"methods": {name: info.about() for name, info in methods}}
    entries = _entries(arguments.what)
    if not arguments.json:
        width = max(map(len, entries))
        print("\n".join(f"{name:<{width}}  {line}" for name, line in entries.items()))  # noqa: T201  # the verb's output
    return {arguments.what: entries}


def _entries(what: str) -> dict[str, str]:
    if what == "backbones":
        from distillhash.backbones import backbone_names

        return backbone_names()
    if what == "text-encoders":
        from distillhash.texts import text_encoder_names

        return text_encoder_names()
    if what == "pairs":
        from distillhash.sources.pairs import pair_source_names

        return pair_source_names()
    if what == "protocols":
        from distillhash.bench.protocol import protocol_summaries

        return protocol_summaries()
    from distillhash.sources import source_names

    return source_names()
