"""Versions for provenance."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import distillhash


def versions() -> dict[str, str]:
    """Versions of this package, Python and what the numbers depend on, and the commit when run from a checkout."""
    found = {"distillhash": distillhash.__version__, "python": platform.python_version()}
    for package in ("torch", "numpy", "numba", "pillow"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    commit = _commit()
    return {**found, "commit": commit} if commit else found


def _commit() -> str | None:
    """The checkout's commit, with a + when files differ from it; None outside a checkout."""
    root = Path(distillhash.__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        commit = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no", "--", "src"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if changed.strip() else "")
