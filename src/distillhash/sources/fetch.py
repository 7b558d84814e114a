"""Download of a published file with its published checksum."""

from __future__ import annotations

import hashlib
import logging
import tempfile
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path

from distillhash.errors import DataError, FormatError

_logger = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 20
_TIMEOUT_SECONDS = 30.0


def fetch(url: str, md5: str, target: Path) -> None:
    """Download ``url`` to ``target``, which appears whole and checked or not at all.

    The data goes to a temporary name in the same folder (made if needed), is compared with ``md5`` (hexadecimal; the publisher's
    checksum, a guard against damage and not against malice) and then renamed.

    Raises:
        DataError: no network, no such page, or no room on the disk.
        FormatError: the content has another checksum.
    """
    temporary: Path | None = None
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response:
            target.parent.mkdir(parents=True, exist_ok=True)
            _logger.warning("downloading %s to %s", url, target)
            hasher = hashlib.md5(usedforsecurity=False)
            with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as file:
                temporary = Path(file.name)
                while chunk := response.read(_CHUNK_BYTES):
                    hasher.update(chunk)
                    file.write(chunk)
        if hasher.hexdigest() != md5:
            raise FormatError(
                f"{url} has MD5 {hasher.hexdigest()}, expected {md5}; the download was cut short or the file changed, try again"
            )
        temporary.replace(target)
    except (OSError, HTTPException) as error:
        # "HTTP Error 404: ..." says more than its reason alone; "<urlopen error ...>" less.
        wrapped = isinstance(error, urllib.error.URLError) and not isinstance(error, urllib.error.HTTPError)
        reason = getattr(error, "reason", error) if wrapped else error
        raise DataError(f"{url} cannot be downloaded ({reason}); fetch it elsewhere and put it at {target}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def check_md5(path: Path, md5: str) -> None:
    """Compare a file with its published checksum.

    Raises:
        FormatError: another checksum.
    """
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != md5:
        raise FormatError(
            f"{path} has MD5 {found}, expected {md5}: it is cut short or another file; delete it, and it is downloaded again"
        )
