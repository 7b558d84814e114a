"""Published files: downloaded whole, and checked against their published checksum."""

import contextlib
import hashlib
import logging
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distillhash.errors import DataError, FormatError
from distillhash.files import open_regular
from distillhash.output import Progress

_logger = logging.getLogger(__name__)
_CHUNK_BYTES = 1 << 20
_TIMEOUT_SECONDS = 30.0
_WAITS = (1.0, 5.0, 20.0)  # seconds before a download that broke off is taken up again


def download(url: str, target: Path, *, algorithm: str, checksum: str) -> None:
    """Download ``url`` to ``target``, which appears whole and checked or not at all; shows progress on a terminal.

    A connection that breaks is opened again up to three times and goes on where it stopped, if the server can.
    ``checksum`` is what the publisher states, in hexadecimal digits or the first of them; ``algorithm`` is ``md5`` or ``sha256``. It guards
    against damage; MD5 does not guard against malice.
    """
    from http.client import HTTPException
    from urllib.error import HTTPError, URLError

    temporary = target.with_name(f".{secrets.token_hex(8)}.partial")
    try:
        for wait in (*_WAITS, None):
            try:
                _fetch(url, target, temporary)
                break
            except (OSError, HTTPException):
                if wait is None or not temporary.exists():  # what never began is not tried again
                    raise
                _logger.warning("the connection broke; going on in %g s", wait)
                time.sleep(wait)
        check_file(temporary, url, algorithm, checksum, "try again")
        temporary.replace(target)
    except (OSError, HTTPException) as error:
        # "HTTP Error 404: ..." says more than its reason alone; "<urlopen error ...>" less.
        reason = error.reason if isinstance(error, URLError) and not isinstance(error, HTTPError) else error
        raise DataError(f"{url} cannot be downloaded ({reason}); fetch it elsewhere and put it at {target}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _fetch(url: str, target: Path, temporary: Path) -> None:
    """Write what ``temporary`` still lacks of ``url``; an :class:`OSError` where the connection ends too early."""
    from urllib.request import Request, urlopen

    done = temporary.stat().st_size if temporary.exists() else 0
    headers = {"Range": f"bytes={done}-"} if done else {}
    with urlopen(Request(url, headers=headers), timeout=_TIMEOUT_SECONDS) as response:
        done = done if response.status == 206 else 0  # 200: the server sends all of it again
        missing, place = response.length or 0, target.parent
        with _writing(url, target):
            place.mkdir(parents=True, exist_ok=True)
            if missing > (free := shutil.disk_usage(place).free):
                raise OSError(f"{missing:,} bytes are needed, {free:,} are free")
            file: Any = temporary.open("r+b" if done else "wb")
        _logger.warning("downloading %s to %s", url, target)
        with file, Progress(target.name, missing, unit="bytes", quiet=not sys.stderr.isatty()) as shown:
            file.seek(done)
            while chunk := response.read(_CHUNK_BYTES):
                with _writing(url, target):
                    file.write(chunk)
                    file.flush()
                done, missing = done + len(chunk), missing - len(chunk)
                shown.advance(len(chunk))
    if missing > 0:
        raise ConnectionError(f"the connection ended {missing:,} bytes too early")


@contextlib.contextmanager
def _writing(url: str, target: Path) -> Iterator[None]:
    """Turn an error of the disk into one that says so; it would come again, so it is no :class:`OSError`."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{target} cannot be written ({error.strerror or error}); give it room and permission there, or fetch {url} elsewhere"
        ) from error


def check_file(path: Path, name: object, algorithm: str, checksum: str, remedy: str) -> None:
    """Raise :class:`FormatError` unless the file's checksum starts with ``checksum``; ``name`` is what the message calls it."""
    try:
        with open_regular(path) as file:
            found = hashlib.file_digest(file, algorithm).hexdigest()  # type: ignore[arg-type]  # it is a BufferedReader
    except OSError as error:
        raise FormatError(f"{name} cannot be read ({error.strerror}); {remedy}") from error
    if not found.startswith(checksum):
        stated = {"md5": "MD5", "sha256": "SHA-256"}[algorithm]
        raise FormatError(
            f"{name} has {stated} {found}, expected {checksum}: it is cut short or another file; {remedy}"
        )
