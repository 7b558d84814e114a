"""``shards.json`` of a sharded index: what it holds, and where its shards and their replicas are."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from distillhash.errors import DistillHashError, FormatError
from distillhash.index.manifest import Manifest

FILE = "shards.json"
MOST_SHARDS = 1024


@dataclass(frozen=True)
class ShardPlan:
    """The manifest, and for every shard the folders that each hold all of its items."""

    manifest: Manifest
    shards: tuple[tuple[str, ...], ...]

    @classmethod
    def new(cls, manifest: Manifest, shards: int, replicas: int) -> ShardPlan:
        """Folders below the index: ``shard-0/replica-0`` and so on."""
        names = [tuple(f"shard-{shard}/replica-{replica}" for replica in range(replicas)) for shard in range(shards)]
        return cls(manifest, tuple(names))

    @classmethod
    def read(cls, folder: Path) -> ShardPlan:
        """The plan in ``folder``.

        Raises:
            FormatError: damaged, or of a newer format.
        """
        file = folder / FILE
        try:
            text = file.read_text(encoding="utf-8")
            shards = json.loads(text)["shards"]
            plan = tuple(tuple(map(os.fspath, replicas)) for replicas in shards)
            if (
                not plan
                or not all(plan)
                or len({name for replicas in plan for name in replicas}) != sum(map(len, plan))
            ):
                raise ValueError("a shard without a folder, or a folder that comes twice")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FormatError(f"{file} is damaged ({error!r}); restore it or build the index again") from error
        return cls(Manifest.parse(text, str(file), str(folder)), plan)

    def write(self, folder: Path) -> None:
        """Write the plan so that after a crash it is whole or absent.

        Raises:
            DistillHashError: the folder cannot be written.
        """
        fields = {**json.loads(self.manifest.text()), "shards": [list(replicas) for replicas in self.shards]}
        temporary = folder / f".{FILE}.{os.getpid()}"
        try:
            with temporary.open("w", encoding="utf-8") as stream:
                stream.write(json.dumps(fields, indent=1) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(folder / FILE)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise DistillHashError(f"{folder} cannot be written ({error.strerror}); choose another folder") from error
