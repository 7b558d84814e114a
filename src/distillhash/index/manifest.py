"""The manifest of an index: a file in its folder, or text on its server."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path

from distillhash import __version__
from distillhash.errors import DistillHashError, FormatError, ParameterError
from distillhash.files import read_file, write_atomic

FORMAT_VERSION = 2
MOST_BITS = 4096
_MOST_BYTES = 1 << 20
_REMEDY = (
    "give the model that it was built with (--model DIR, or none where the index keeps its own), or make a new index"
)


@dataclass(frozen=True)
class Manifest:
    """Code length, and the fingerprint of the model the codes come from (None: any model's)."""

    n_bits: int
    model_fingerprint: str | None

    @classmethod
    def new(cls, n_bits: int | None, model_fingerprint: str | None) -> Manifest:
        """The manifest of a new index; :class:`ParameterError` without a code length, or for one outside 1..4096."""
        if n_bits is None:
            raise ParameterError("a new index needs a code length; give n_bits")
        if isinstance(n_bits, bool) or not hasattr(n_bits, "__index__") or not 1 <= n_bits <= MOST_BITS:
            raise ParameterError(f"n_bits must be an integer in 1..{MOST_BITS}, got {n_bits!r}")
        return cls(int(n_bits), model_fingerprint)

    @classmethod
    def read(cls, file: Path) -> Manifest:
        """The manifest in ``file``; :class:`FormatError` as in :meth:`parse`."""
        try:
            text = read_file(file, limit=_MOST_BYTES).decode()
        except (OSError, ValueError) as error:
            raise damaged(file, repr(error)) from error
        return cls.parse(text, str(file), str(file.parent))

    @classmethod
    def parse(cls, text: str, source: str, index: str) -> Manifest:
        """The manifest that :meth:`text` wrote; messages name ``source``, where the text was found, and ``index``."""
        try:
            fields = json.loads(text)
            version, n_bits, fingerprint = fields["format_version"], fields["n_bits"], fields["model_fingerprint"]
            checksum = fields.get("checksum")
            if type(version) is not int or not isinstance(fingerprint, str | None):
                raise TypeError(f"format_version {version!r:.40}, model_fingerprint {fingerprint!r:.40}")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise damaged(source, repr(error)) from error
        if version > FORMAT_VERSION:
            raise FormatError(
                f"{index} has format {version}, this version reads up to {FORMAT_VERSION}; upgrade distillhash"
            )
        if version < FORMAT_VERSION:
            raise FormatError(f"{index} has format {version}, from before the first release; build the index again")
        try:
            held = cls.new(n_bits, fingerprint)
        except (ParameterError, TypeError) as error:
            raise damaged(source, error) from error
        if checksum != held._checksum():
            raise damaged(source, "its checksum differs")
        return held

    def text(self) -> str:
        """The manifest as JSON."""
        fields = {
            "format_version": FORMAT_VERSION,
            "n_bits": self.n_bits,
            "model_fingerprint": self.model_fingerprint,
            "checksum": self._checksum(),
            "created_by": f"distillhash {__version__}",
        }
        return json.dumps(fields, indent=1) + "\n"

    def write(self, file: Path) -> None:
        """Write ``file``; after a crash it is whole or absent."""
        try:
            write_atomic(file, self.text().encode(), durable=True)
        except OSError as error:
            raise DistillHashError(
                f"{file.parent} cannot be written ({error.strerror}); choose another folder"
            ) from error

    def check_fits(self, index: Path | str, n_bits: int | None, model_fingerprint: str | None) -> None:
        """Raise unless ``index``, which messages name, takes codes of this length and model (None: any)."""
        if n_bits is not None and n_bits != self.n_bits:
            raise ParameterError(f"{index} holds codes of {self.n_bits} bits, not {n_bits}; {_REMEDY}")
        if None not in (model_fingerprint, self.model_fingerprint) and model_fingerprint != self.model_fingerprint:
            raise FormatError(
                f"{index} was built with another model (fingerprint {self.model_fingerprint}, not {model_fingerprint}); {_REMEDY}"
            )

    def _checksum(self) -> str:
        return f"{zlib.crc32(json.dumps([self.n_bits, self.model_fingerprint]).encode()):08x}"


def damaged(source: Path | str, what: object) -> FormatError:
    """The error for a file or a text that is not as it was written."""
    return FormatError(f"{source} is damaged ({what}); restore it or build the index again")
