"""The page on scale holds the table that the measured rates give."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_has_the_table_of_the_results() -> None:
    words = [sys.executable, str(ROOT / "benchmarks" / "scale_table.py")]
    table = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert table in (ROOT / "docs" / "scale.md").read_text(), "run benchmarks/scale_table.py --write docs/scale.md"
    result = json.loads((ROOT / "results" / "extraction" / "lite2" / "table.json").read_text())["results"][0]
    hours = 10**9 * result["medians"]["cpu"]["encoding"] / 1000 / 60 / 60
    row = next(line for line in table.splitlines() if f"lite2 at {result['image_size']}: core-hours" in line)
    assert row.endswith(f"| {hours:,.0f} |")
