"""Functions compiled by numba, and the folder that keeps their machine code between runs.

numba keeps it beside the package, in ``NUMBA_CACHE_DIR``, or in the user's cache. Its files are pickles, which run code when they are read:
a folder counts only where no other user can write. Without a folder everything is compiled again in each process.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

from numba import njit
from numba.core import caching

_logger = logging.getLogger(__name__)


def compiled(function: Callable[..., Any] | None = None, *, parallel: bool = False, makes_arrays: bool = True) -> Any:
    """``njit`` without the interpreter lock, kept on disk where there is a safe place for it. Decorates with and without arguments.

    Code that makes no arrays runs up to a tenth faster when numba does not count the references to those that it is given.
    """
    if function is None:
        return partial(compiled, parallel=parallel, makes_arrays=makes_arrays)
    dispatcher = njit(nogil=True, parallel=parallel, _nrt=makes_arrays)(function)
    try:
        dispatcher._cache = _Kept(function)
    except Exception as error:  # no folder; or another version of numba, whose inner parts have changed
        _tell(str(error))
    return dispatcher


def private(folder: str) -> bool:
    """Whether no other user but root can put files into ``folder`` or replace it; relative paths depend on where one is, and never are."""
    if not Path(folder).is_absolute():
        return False
    if not hasattr(os, "getuid"):  # Windows: the user's folders are the user's by default
        return True
    own, place = os.getuid(), Path(folder).resolve()
    while not place.exists():
        place = place.parent
    if place.stat().st_uid != own or _is_shared(place.stat()):
        return False
    for parent in place.parents:
        status = parent.stat()
        if status.st_uid not in (0, own) or (_is_shared(status) and not status.st_mode & stat.S_ISVTX):
            return False
    return True


def _is_shared(status: os.stat_result) -> bool:
    """Whether a folder can be written by all, or by a group other than root's and the user's own, which has the user's name."""
    import grp
    import pwd

    if status.st_mode & stat.S_IWOTH:
        return True
    if not status.st_mode & stat.S_IWGRP or status.st_gid == 0:
        return False
    try:
        group, user = grp.getgrgid(status.st_gid), pwd.getpwuid(os.getuid())
    except KeyError:
        return True
    return group.gr_name != user.pw_name or not set(group.gr_mem) <= {user.pw_name}


class _Private:
    """A place for machine code that counts only where it is :func:`private`."""

    def ensure_cache_path(self) -> None:
        """Make and try the folder; :class:`OSError`, after which numba tries the next place, where it is not safe."""
        path = self.get_cache_path()  # type: ignore[attr-defined]
        if not private(path):
            raise PermissionError(f"{path} can be written by other users")
        Path(path).mkdir(mode=0o700, parents=True, exist_ok=True)
        super().ensure_cache_path()  # type: ignore[misc]


class _Provided(_Private, caching.UserProvidedCacheLocator):  # type: ignore[misc]  # numba has no types
    pass


class _UserWide(_Private, caching.UserWideCacheLocator):  # type: ignore[misc]
    pass


class _Places(caching.CompileResultCacheImpl):  # type: ignore[misc]
    # Beside the package lies its own compiled code, which Python runs too.
    _locator_classes: ClassVar[list[Any]] = [_Provided, caching.InTreeCacheLocator, _UserWide]


class _Kept(caching.FunctionCache):  # type: ignore[misc]
    """A function's machine code on disk. Files that are damaged are made anew; a disk that is full is done without."""

    _impl_class = _Places

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The code of a signature, or None."""
        try:
            return super().load_overload(sig, target_context)
        except Exception as error:  # a damaged pickle can raise anything
            _tell(str(error))
            with contextlib.suppress(Exception):
                self.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep the code of a signature."""
        try:
            super().save_overload(sig, data)
        except Exception as error:
            _tell(str(error))


@cache
def _tell(reason: str) -> None:
    """Say once why compiled code is not kept; nothing else depends on it."""
    _logger.info("compiled code is not kept (%s); commands start some seconds later", reason)
