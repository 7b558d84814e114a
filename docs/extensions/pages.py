"""Where pages stand: the navigation is made from the lists in docs/README.md, and a page that no list names fails the build."""

import posixpath
import re
import shutil
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

CONTENTS = "docs/README"
LISTS = ("docs/methods/README", "docs/reference/python", "docs/results", "results/README")
"""Pages besides the contents that list pages of their own."""


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the hooks."""
    app.connect("source-read", add_navigation)
    app.connect("source-read", complete_results)
    app.connect("build-finished", copy_start)
    return {"parallel_read_safe": True}


def linked(text: str, docname: str) -> list[str]:
    """Pages that a text links to, in order, each once."""
    targets = re.findall(r"\]\(([^)#:]+)\.md\)", text)
    return list(dict.fromkeys(posixpath.normpath(posixpath.join(posixpath.dirname(docname), name)) for name in targets))


def tree(pages: list[str], caption: str = "") -> str:
    """A table of contents that shows in the navigation only."""
    options = f":caption: {caption}\n" if caption else ""
    return "\n```{toctree}\n:hidden:\n" + options + "\n" + "\n".join(f"/{page}" for page in pages) + "\n```\n"


def add_navigation(app: Sphinx, docname: str, source: list[str]) -> None:
    """Give the start page the sections of the contents, and a page that lists others their tree."""
    contents = (Path(app.srcdir) / f"{CONTENTS}.md").read_text()
    if docname in LISTS:
        elsewhere = [app.config.root_doc, CONTENTS, docname, *linked(contents, CONTENTS)]
        source[0] += tree([page for page in linked(source[0], docname) if page not in elsewhere])
    if docname == app.config.root_doc:
        first = [CONTENTS]
        for section in re.split(r"^## ", contents, flags=re.MULTILINE)[1:]:
            pages = [page for page in linked(section, CONTENTS) if page != docname]
            source[0] += tree(first + pages, section.partition("\n")[0])
            first = []


def complete_results(_: Sphinx, docname: str, source: list[str]) -> None:
    """Give generated tables, which begin without a title, one; they are linked and not in the navigation."""
    folder, _, name = docname.removeprefix("results/").partition("/")
    if not docname.startswith("results/") or name in ("", "README"):
        return
    text = source[0]
    if not text.startswith("# "):
        text = f"# {folder}: {name}\n\n" + re.sub(r"^###(?= )", "##", text, flags=re.MULTILINE)
    source[0] = "---\norphan: true\n---\n" + text


def copy_start(app: Sphinx, error: Exception | None) -> None:
    """The start page under the name that web servers look for."""
    start = Path(app.outdir) / f"{app.config.root_doc}.html"
    if error is None and start.is_file():
        shutil.copyfile(start, start.with_name("index.html"))
