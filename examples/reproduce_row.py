"""One row of the table on CIFAR-10, measured again and printed beside what is committed.

python examples/reproduce_row.py cifar10:data itq 32     (pip install 'distillhash[train]')

The archive (170 MB) is downloaded into data/ where there is none. Features of 60,000 images take some five minutes on two cores; they
are kept, so the next row takes seconds to minutes. The method is written as for --methods: distillhash:paper for the row "distillhash".
"""

import json
import sys
from pathlib import Path
from statistics import mean

from distillhash.cli import main as distillhash

COMMITTED = Path(__file__).parents[1] / "results/cifar10/table.json"
MEASURES = ("map", "precision@10", "neighbour_recall@10")


def main(source: str, method: str, n_bits: str, *options: str) -> dict[str, tuple[float, float]]:
    """Print and return each measure, here and in the committed table; means over seeds."""
    out = Path("row")
    words = ["bench", "--data", source, "--protocol", "cifar10-distillhash", "--methods", method, "--bits", n_bits]
    if status := distillhash([*words, "--seeds", "0,1,2", "--out", str(out), *options]):
        sys.exit(status)
    rows = {}
    for name in MEASURES:
        here, committed = (
            mean(
                row[name]
                for row in json.loads(table.read_text())
                if (row["method"], row["n_bits"]) == (method, int(n_bits))
            )
            for table in (out / "table.json", COMMITTED)
        )
        print(f"{name:<20} here {here:.3f}  committed {committed:.3f}")
        rows[name] = here, committed
    return rows


if __name__ == "__main__":
    main(*sys.argv[1:])
