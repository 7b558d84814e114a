"""Every error the package raises on purpose.

Each message is one sentence that names the value received, the bound, and the remedy. The command line prints it
after ``distillhash:`` and exits with :attr:`DistillHashError.exit_code`; no traceback reaches a user for bad input.
"""

from __future__ import annotations


class DistillHashError(Exception):
    """Base of every deliberate error. ``exit_code`` is what the command line returns (1 failed, 2 usage)."""

    exit_code = 1


class ParameterError(DistillHashError, ValueError):
    """A parameter or name given by the caller is unknown or out of range."""

    exit_code = 2


class DataError(DistillHashError, ValueError):
    """The data given cannot be used: wrong shape, NaN, missing labels, a source with nothing usable."""


class FormatError(DistillHashError, ValueError):
    """A model, index, codes or cache file is damaged, of another version, or does not belong here."""


class NotFittedError(DistillHashError, RuntimeError):
    """``encode`` or ``project`` was called before ``fit``."""


class MissingDependencyError(DistillHashError, ImportError):
    """An optional dependency is needed and not installed; the message names the extra that brings it."""


class SkippedItemsWarning(UserWarning):
    """Some items of a source could not be read and are absent from the result."""


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its class where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
