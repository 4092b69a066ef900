"""Data sets on the Hugging Face hub: which files one has, and those that are asked for, each verified by its hash.

Where the hub cannot be reached, what its client keeps on this machine is taken, and a line in the log says so.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtl.checkpoints.fetch import check, data_address, quiet_hub, unreachable
from mtl.errors import WeightsError, one_line, printable, shown

log = logging.getLogger("mtl")


class HubDataset:
    """The files of ``hf://datasets/owner/name[@revision]`` .

    ``names`` are their paths. ``path`` is what stood behind the name in the address, "" where there was nothing.

    Raises:
        WeightsError: another form of address, no such dataset or revision, or no hub and nothing kept.
    """

    def __init__(self, source: str) -> None:
        self.hub_id, self.revision, self.path = data_address(source)
        self.files: Mapping[str, Any] = {}
        self.kept: Path | None = None
        hub = quiet_hub()
        try:
            info = hub.HfApi().dataset_info(self.hub_id, revision=self.revision, files_metadata=True)
        except Exception as error:
            self.kept = kept_on_this_machine(self.hub_id, self.revision)
            if self.kept is None:
                raise unreachable(self.hub_id, error) from None
            log.warning("%s: the hub cannot be reached (%s); taken from %s", self.hub_id, one_line(error), self.kept)
            found = (path for path in self.kept.rglob("*") if path.is_file())
            self.names = sorted(str(path.relative_to(self.kept)) for path in found)
            return
        self.files = {file.rfilename: file for file in info.siblings or ()}
        self.names = sorted(self.files)

    def fetch(self, names: Sequence[str]) -> list[Path]:
        """These files on this machine, downloaded if need be; a WeightsError if there is none of this name, or the hub
        gives none, or another than it lists."""
        if absent := [name for name in names if name not in self.names]:
            has = ", ".join(map(printable, self.names[:5])) or "none"
            raise WeightsError(f"{self.hub_id} has no file {shown(absent[0])}; it has {has}, ...")
        if self.kept:
            return [self.kept / name for name in names]
        hub, found = quiet_hub(), []
        for name in names:
            try:
                found.append(Path(hub.hf_hub_download(self.hub_id, name, revision=self.revision, repo_type="dataset")))
            except Exception as error:
                raise unreachable(f"{self.hub_id}, {name}", error) from None
            self.verify(found[-1], self.files[name])
        return found

    def verify(self, path: Path, listed: Any) -> None:
        """Raise a WeightsError if a file is not the one that the hub lists: by its sha256 where it is a large one, else
        by Git's own hash."""
        if listed.lfs:
            check(path, listed.lfs.size, listed.lfs.sha256)
        elif listed.blob_id and git_hash(path) != listed.blob_id:
            raise WeightsError(f"{path} has another hash than the hub lists; delete it and fetch it again")


def kept_on_this_machine(hub_id: str, revision: str | None) -> Path | None:
    """The folder in which the hub's client keeps what was fetched of a dataset, if it does."""
    try:
        options = {"revision": revision, "repo_type": "dataset", "local_files_only": True}
        return Path(quiet_hub().snapshot_download(hub_id, **options))
    except Exception:  # of many kinds; all mean that there is nothing
        return None


def git_hash(path: Path) -> str:
    """The hash under which Git keeps a file's content."""
    content = path.read_bytes()
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()
