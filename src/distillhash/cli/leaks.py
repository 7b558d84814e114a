"""Report test images that have a near-duplicate in the training set.

distillhash leaks data/train data/test --out leaks.json
distillhash leaks cifar10:data#train cifar10:data#test --check
"""

import argparse
import json
from pathlib import Path
from typing import Any

from distillhash.cli.common import SOURCE_HELP, add_reading_options, open_argument, say
from distillhash.cli.dedup import add_radius_options, say_calibration, settings


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    add = parser.add_argument
    add("train", metavar="TRAIN", help=SOURCE_HELP)
    add("test", metavar="TEST", help="the same")
    add("--out", metavar="FILE", help="leaks as JSON")
    add("--check", action="store_true", help="exit 1 if there are any")
    add_radius_options(parser)
    add_reading_options(parser)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Find and report."""
    from distillhash.dedup.job import find_leaks
    from distillhash.dedup.review import check_place, leaks_json, write_text

    if arguments.out:
        check_place(Path(arguments.out))
    train, test = open_argument(arguments, arguments.train), open_argument(arguments, arguments.test)
    report = find_leaks(train, test, settings(arguments))
    summary = leaks_json(report) | say_calibration(arguments, report)
    found = f"{len(report.leaks):,} of {report.n_test:,} test images"
    say(arguments, f"{found} have a near-duplicate among {report.n_train:,}")
    for leak in report.leaks[:5]:
        say(arguments, f"  {leak.test.path} is {leak.test.distance} bits from {leak.train.path} ({leak.test.match})")
    if arguments.out:
        write_text(Path(arguments.out), json.dumps(summary, indent=1) + "\n")
        say(arguments, f"out: {arguments.out}")
    return summary | {"exit_code": 1 if arguments.check and report.leaks else 0}
