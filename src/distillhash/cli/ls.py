"""List methods, backbones, text encoders, protocols, sources or sources of image-text pairs.

distillhash ls methods
distillhash ls sources --json
"""

import argparse
from typing import Any


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    parser.add_argument("what", choices=("methods", "backbones", "text-encoders", "protocols", "sources", "pairs"))


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Print names with a line each."""
    if arguments.what == "methods":
        from distillhash.methods import method_class, method_names

        names = sorted([*method_names(), *method_names(image_text=True)])
        entries: dict[str, Any] = {name: method_class(name).about() for name in names}
        rows: list[tuple[str, ...]] = [
            (name, f"{about['venue']} {about['year']}", about["kind"], about["uses"], _titled(about))
            for name, about in entries.items()
        ]
    else:
        from distillhash import backbones, sources, texts
        from distillhash.bench.protocols import protocol_summaries
        from distillhash.sources.pairs import pair_source_names

        listed = {
            "backbones": backbones.backbone_names,
            "text-encoders": texts.text_encoder_names,
            "protocols": protocol_summaries,
            "sources": sources.source_names,
            "pairs": pair_source_names,
        }
        entries = dict(listed[arguments.what]())
        rows = list(entries.items())
    if not arguments.json:
        widths = [*(max(map(len, column)) for column in zip(*rows, strict=True))]
        lines = ("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows)
        print("\n".join(lines))  # noqa: T201  # the verb's output
    return {arguments.what: entries}


def _titled(about: dict[str, Any]) -> str:
    title, reconstructed = about["title"], about["reconstructed"]
    return f"{title} (reconstructed: {reconstructed})" if reconstructed else str(title)
