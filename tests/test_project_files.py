"""Facts that stand in several project files agree."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import distillhash

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = {
    canonicalize_name(name): version
    for name, _, version in (line.partition("==") for line in (ROOT / "constraints.txt").read_text().splitlines())
    if version
}
REQUIREMENTS = [
    *PROJECT["dependencies"],
    *(line for extra in PROJECT["optional-dependencies"].values() for line in extra),
]
WORKFLOWS = {path.name: yaml.safe_load(path.read_text()) for path in (ROOT / ".github/workflows").glob("*.yml")}
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_one_version() -> None:
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited and cited[1] == PROJECT["version"] == distillhash.__version__


def test_pythons() -> None:
    tested = WORKFLOWS["test.yml"]["jobs"]["systems"]["strategy"]["matrix"]["python"]
    named = [line.rpartition(" :: ")[2] for line in PROJECT["classifiers"] if "Python :: 3." in line]
    assert tested == named and PROJECT["requires-python"] == f">={tested[0]}"


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflows_call_targets_that_exist(name: str) -> None:
    jobs = WORKFLOWS[name]["jobs"].values()
    runs = [step["run"] for job in jobs for step in job["steps"] if "run" in step]
    called = {target for run in runs for target in re.findall(r"\bmake ([\w-]+)", run)}
    called |= {target for job in jobs for target in job.get("strategy", {}).get("matrix", {}).get("target", [])}
    assert called <= TARGETS


def test_one_ruff() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert {hook["rev"] for hook in hooks if "ruff" in hook["repo"]} == {f"v{PINS[canonicalize_name('ruff')]}"}


@pytest.mark.parametrize("line", sorted(set(REQUIREMENTS)))
def test_pins_are_allowed(line: str) -> None:
    wanted = Requirement(line)
    pin = PINS.get(canonicalize_name(wanted.name))
    assert pin is None or wanted.specifier.contains(Version(pin))
