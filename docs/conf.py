"""The documentation site: ``make docs``. Its source is the repository, so that relative links hold on GitHub and in the site."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

project = "distillhash"
author = "The distillhash developers"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "pages", "methods", "reference"]

root_doc = "README"
include_patterns = ["*.md", "docs/**", "examples/README.md", "results/**.md"]
exclude_patterns = [".*", "build", "dist", "data", "demo", "src", "tests", "benchmarks", "results/*/runs"]

myst_heading_anchors = 4  # as GitHub makes them, so that links to sections are checked
smartquotes = False  # they turn -- of options into a dash
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings say types and shapes
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
napoleon_use_rtype = False
strip_signature_backslash = True  # keeps the underscore of fitted attributes
add_module_names = False

html_theme = "furo"
html_title = "distillhash"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
