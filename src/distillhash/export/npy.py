"""A ``.npy`` of the packed bytes, ``(n, ceil(n_bits / 8)) uint8``, and a ``.json`` with ``n_bits`` and ``keys`` (null for none)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from distillhash.export.content import Content, replacing


def write(content: Content, out: Path) -> list[Path]:
    """Write ``out`` and the ``.json`` beside it."""
    beside = out.with_suffix(".json")
    with replacing(beside) as temporary:
        keys = None if content.keys is None else list(content.keys)
        temporary.write_text(json.dumps({"n_bits": content.codes.n_bits, "keys": keys}) + "\n")
    with replacing(out) as temporary, temporary.open("wb") as stream:
        np.save(stream, content.codes.packed)
    return [out, beside]
