"""Published files: downloaded whole, and checked against their published checksum."""

import hashlib
import logging
import secrets
import sys
from pathlib import Path

from distillhash.errors import DataError, FormatError
from distillhash.files import open_regular
from distillhash.progress import Progress

_logger = logging.getLogger(__name__)
_CHUNK_BYTES = 1 << 20
_TIMEOUT_SECONDS = 30.0


def download(url: str, target: Path, *, algorithm: str, checksum: str) -> None:
    """Download ``url`` to ``target``, which appears whole and checked or not at all; shows progress on a terminal.

    ``checksum`` is what the publisher states, in hexadecimal digits or the first of them; ``algorithm`` is ``md5`` or ``sha256``. It guards
    against damage; MD5 does not guard against malice.
    """
    from http.client import HTTPException
    from urllib.error import HTTPError, URLError
    from urllib.request import urlopen

    temporary = target.with_name(f".{secrets.token_hex(8)}.partial")
    try:
        with urlopen(url, timeout=_TIMEOUT_SECONDS) as response:
            target.parent.mkdir(parents=True, exist_ok=True)
            _logger.warning("downloading %s to %s", url, target)
            with (
                temporary.open("xb") as file,
                Progress(target.name, response.length or 0, unit="bytes", quiet=not sys.stderr.isatty()) as shown,
            ):
                while chunk := response.read(_CHUNK_BYTES):
                    file.write(chunk)
                    shown.advance(len(chunk))
        check_file(temporary, url, algorithm, checksum, "try again")
        temporary.replace(target)
    except (OSError, HTTPException) as error:
        # "HTTP Error 404: ..." says more than its reason alone; "<urlopen error ...>" less.
        reason = error.reason if isinstance(error, URLError) and not isinstance(error, HTTPError) else error
        raise DataError(f"{url} cannot be downloaded ({reason}); fetch it elsewhere and put it at {target}") from error
    finally:
        temporary.unlink(missing_ok=True)


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
