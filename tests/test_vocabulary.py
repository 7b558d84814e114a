"""Private words that were replaced by standard terms do not come back, in code, messages, pages or the web page."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STANDARD = {
    r"--reading\b|\breading=[\"'N]": "preset",
    r"\brooms?\s*[:=\[]|\b_?\w+_room\b": "scratch buffer, or capacity",
    r"\bstaged\b": "in two phases",
    r"\bleads_here\b": "is an ancestor",
    r"\bsilent\s*[:=(]|\bsilent_\w+": "initialised to zero",
    r"\bglances?\b": "look",
    r"\bin turn between them\b": "alternating",
    r"\banother one after every change\b": "change token",
    r"\bcrossmodal\.py|\b(distillhash|methods)[./]crossmodal\b": "cross_modal (metrics) or image_text (models)",
    r"\bdistillhash\.pairs\b|(?<![\w/])pairs/\w+\.py": "supervision",
    r"\bmake test-fast\b": "make test",
}
"""Pattern of the private word, and the term to use."""
SUFFIXES = {".py", ".md", ".js", ".css", ".html", ".j2", ".json", ".toml", ".yml", ".yaml"}
FILES = sorted(
    path
    for place in ("src", "docs", "benchmarks", "examples", ".github", "README.md", "CONTRIBUTING.md", "SECURITY.md")
    for path in [ROOT / place, *(ROOT / place).rglob("*")]
    if path.is_file() and path.suffix in SUFFIXES
) + sorted((ROOT / "results").rglob("README.md"))
LINES = [
    (f"{path.relative_to(ROOT)}:{number}", line)
    for path in FILES
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
]


@pytest.mark.parametrize("pattern", STANDARD)
def test_a_private_word_stays_away(pattern: str) -> None:
    word = re.compile(pattern, re.IGNORECASE)
    found = [f"{place}: {line.strip()}" for place, line in LINES if word.search(line)]
    assert not found, f"say {STANDARD[pattern]}"


@pytest.mark.parametrize(
    "line",
    [
        "room = np.empty(9)",
        "--reading paper",
        "reading=None",
        "rooms[3] = 2",
        "it glances at",
        "pairs/losses.py",
    ],
)
def test_the_patterns_match(line: str) -> None:
    assert any(re.search(pattern, line, re.IGNORECASE) for pattern in STANDARD)
