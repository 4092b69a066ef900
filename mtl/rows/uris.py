"""Files by path or URL, on this machine's disks or in an object store, through pyarrow's file systems."""

from __future__ import annotations

import dataclasses
import io
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
from pyarrow import fs

from mtl.disk import atomic_write, sweep
from mtl.display import counted
from mtl.errors import InputError, one_line
from mtl.rows.read import CODECS, decompressed

log = logging.getLogger("mtl")

TABLES = (".jsonl", ".ndjson", ".csv", ".tsv")
ENDINGS = (".parquet", *(f"{ending}{codec}" for codec in ("", *CODECS) for ending in TABLES))
SAID = f".parquet, {', '.join(TABLES)} (all but the first also with {', '.join(CODECS)})"
SCHEMES = {"local": "", "gcs": "gs://", "abfs": "abfs://", "s3": "s3://", "hdfs": "hdfs://"}


@dataclasses.dataclass(frozen=True)
class Place:
    """A file or a folder: a path within a file system. Shown without the keys or options that its URL had."""

    filesystem: Any
    path: str

    @classmethod
    def of(cls, text: str | os.PathLike[str]) -> Place:
        """The place that a path or a URL names, whether or not there is something.

        Raises:
            InputError: a URL of no kind that we know, or of no store that can be reached.
        """
        name = os.fspath(text)
        if "://" not in name:
            return cls(fs.LocalFileSystem(), os.path.abspath(name))
        try:
            filesystem, path = fs.FileSystem.from_uri(name)
        except (OSError, pa.ArrowException) as error:
            public = re.sub("//[^/]*@", "//", name.partition("?")[0])  # neither keys nor options
            raise InputError(f"{public} cannot be used: {one_line(error).replace(name, public)}") from None
        return cls(filesystem, path.rstrip("/"))

    def __str__(self) -> str:
        return SCHEMES.get(self.filesystem.type_name, f"{self.filesystem.type_name}://") + self.path

    def __truediv__(self, name: str) -> Place:
        return Place(self.filesystem, f"{self.path}/{name}")

    @property
    def local(self) -> Path | None:
        """The path on this machine, if it is one."""
        return Path(self.path) if self.filesystem.type_name == "local" else None

    def info(self) -> Any:
        """pyarrow's FileInfo: type, size, time of change.

        Raises:
            InputError: the store cannot be reached, or refuses.
        """
        with reading(self):
            return self.filesystem.get_file_info(self.path)

    def entries(self) -> Iterator[Any]:
        """The FileInfo of all but folders in it and below, by name; hidden ones (``.name``, ``_name``) left out.

        On this machine's disks links are followed, and those that lead nowhere are among them.
        """
        with reading(self):
            if self.local:
                found = self.filesystem.get_file_info(below(self.path))
            else:
                found = self.filesystem.get_file_info(fs.FileSelector(self.path, recursive=True, allow_not_found=True))
        for info in sorted(found, key=lambda info: info.path):
            parts = PurePosixPath(info.path).relative_to(self.path).parts
            if info.type != fs.FileType.Directory and not any(part.startswith((".", "_")) for part in parts):
                yield info

    def files(self) -> Iterator[Any]:
        """Those of ``entries`` that are files."""
        return (info for info in self.entries() if info.type == fs.FileType.File)

    def open_random(self) -> Any:
        """The file, to be read anywhere: what Parquet needs."""
        return self.filesystem.open_input_file(self.path)

    def open_lines(self) -> Iterator[bytes]:
        """The file's lines, decompressed where its name says so."""
        with (
            self.filesystem.open_input_stream(self.path, compression=None) as raw,
            decompressed(io.BufferedReader(raw, 1 << 20), Path(self.path)) as lines,
        ):
            yield from lines

    @contextmanager
    def whole(self) -> Iterator[Path]:
        """A local file to write to; when the block ends, its content appears here, all of it at once.

        Raises:
            InputError: it cannot be written; what was here before is untouched.
        """
        if self.local:
            with atomic_write(self.local, InputError) as temporary:
                yield temporary
            return
        with TemporaryDirectory(prefix="mtl-") as folder:  # an object store shows an object once it is complete
            temporary = Path(folder) / "part"
            try:
                yield temporary
                fs.copy_files(str(temporary), self.path, fs.LocalFileSystem(), self.filesystem)
            except (OSError, pa.ArrowException) as error:
                raise InputError(f"{self} cannot be written: {one_line(error)}") from None

    def sweep(self) -> None:
        """Remove what killed processes left unfinished in this folder."""
        if self.local:
            sweep(self.local)


def below(folder: str) -> list[str]:
    """The paths of all but folders in a folder and below; one that a link leads to a second time is passed over."""
    found, seen = [], set()

    def refuse(error: OSError) -> None:
        raise error

    for path, folders, names in os.walk(folder, onerror=refuse, followlinks=True) if os.path.isdir(folder) else ():
        seen.add(os.path.realpath(path))
        folders[:] = [name for name in sorted(folders) if os.path.realpath(f"{path}/{name}") not in seen]
        found += [f"{path}/{name}" for name in names]
    return found


@contextmanager
def reading(place: Place) -> Iterator[None]:
    """What goes wrong with reading a place in the block becomes one line.

    Raises:
        InputError: it is missing, refused, damaged or cut short.
    """
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{place} cannot be read: {one_line(error)}") from None


@contextmanager
def named(what: object) -> Iterator[None]:
    """What is wrong with the input in the block is said of ``what``, unless its line says so itself."""
    try:
        yield
    except InputError as error:
        line = str(error)
        raise (error if str(what) in line else InputError(f"{what}: {line}")) from None


@dataclasses.dataclass(frozen=True)
class Source:
    """One input file. ``target`` is its output's name within the output folder."""

    place: Place
    target: str
    size: int
    modified: int  # in nanoseconds since 1970, 0 where the store does not say

    @property
    def state(self) -> dict[str, Any]:
        """What tells whether the file is the one that an output was made from."""
        return {"name": self.place.path.rsplit("/", 1)[-1], "bytes": self.size, "modified": self.modified}


def ending(path: str) -> str:
    """Which of ``ENDINGS`` a path has, in whatever letters, or nothing."""
    return max((end for end in ENDINGS if path.lower().endswith(end)), key=len, default="")


def source(place: Place, info: Any, name: str) -> Source:
    return Source(place, name[: len(name) - len(ending(name))] + ".parquet", info.size, info.mtime_ns or 0)


def sources_of(place: Place) -> list[Source]:
    """The input files that a path or URL stands for: itself, or what is in it and below.

    Raises:
        InputError: there is nothing, or nothing that can be read.
    """
    info = place.info()
    if info.type == fs.FileType.File:
        if not ending(place.path):
            raise InputError(f"{place} ends in none of {SAID}")
        return [source(place, info, info.base_name)]
    if info.type == fs.FileType.NotFound:
        raise InputError(f"{place} is not there; expected a file or a folder")
    if info.type != fs.FileType.Directory:
        raise InputError(f"{place} is neither a file nor a folder")
    entries = list(place.entries())
    files = [info for info in entries if info.type == fs.FileType.File]
    known = [info for info in files if ending(info.path)]
    for left, why in (
        ([info for info in files if not ending(info.path)], f"they end in none of {SAID}"),
        ([info for info in entries if info.type != fs.FileType.File], "they are links that lead nowhere, or no files"),
    ):
        if left:
            log.warning(
                "%s in %s left out, %s among them: %s", counted(len(left), "file"), place, left[0].base_name, why
            )
    if not known:
        raise InputError(f"{place} holds no file that ends in one of {SAID}")
    start = len(place.path) + 1
    return [source(Place(place.filesystem, info.path), info, info.path[start:]) for info in known]


def find_sources(inputs: Sequence[str | os.PathLike[str]], output: Place) -> list[Source]:
    """All input files, the largest first, so that no long one is left for the end.

    Raises:
        InputError: an input is missing or lies where the output goes, or two would have the same output.
    """
    found: dict[str, Source] = {}
    for place in map(Place.of, inputs):
        if f"{output}/".startswith(f"{place}/"):
            raise InputError(f"the output folder {output} lies in the input {place}; expected one outside of it")
        for each in sources_of(place):
            other = found.setdefault(each.target, each)
            if other is not each:
                both = f"{other.place} and {each.place} would both become {each.target}"
                raise InputError(f"{both}; give each file once, and rename one or embed them into different folders")
    if not found:
        raise InputError("no inputs; expected at least one file or folder")
    return sorted(found.values(), key=lambda each: (-each.size, each.target))
