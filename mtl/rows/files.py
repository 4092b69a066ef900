"""Which files the rows of a split are in: one file, a list, a glob, a folder, or a dataset on the hub.

Files of folders and datasets that are named after splits, as ``data/train-00000-of-00002.parquet``, belong to these;
where none is, a folder's files are one split together.
"""

from __future__ import annotations

import fnmatch
import glob
import logging
import os
import re
from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path, PurePosixPath

from mtl.checkpoints.datasets import HubDataset
from mtl.checkpoints.fetch import HUB_ID, REVISION
from mtl.disk import expanded
from mtl.display import counted
from mtl.errors import InputError, one_line, printable, shown
from mtl.rows.read import INPUTS, kind_of, plain_ending

log = logging.getLogger("mtl")

HUB = "hf://"
# The words by which the hub's own reader knows a split of files
WORDS = {
    "train": ("train", "training"),
    "dev": ("dev", "development", "val", "valid", "validation"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SHARD = re.compile(r"(.*)-(\d{5,})-of-(\d{5,})(\D.*)?")


def files_of(sources: str | Sequence[str], split: str, folder: Path = Path()) -> list[Path]:
    """The files of a split, fetched if they are on the hub, in the order given, and those of one source by name.

    ``split`` is "train", "dev" or "test"; relative paths start in ``folder``.

    Raises:
        InputError, WeightsError: a source has no files, or files of several formats, or lacks one of its shards; a file
            is there twice.
    """
    found: list[Path] = []
    seen: dict[object, Path] = {}
    for source in [sources] if isinstance(sources, str) else sources:
        for path in files_of_one(source, split, folder):
            other = seen.setdefault(identity(path), path)
            if other is not path:
                same = f"is there twice{f', also as {other}' if other != path else ''}"
                raise InputError(f"{split}: {path} {same}; expected each file once")
            found.append(path)
    return found


def identity(path: Path) -> object:
    """What is the same for one file under several names; a file of the hub's cache is one by its name alone."""
    try:
        status = path.stat()
    except (OSError, ValueError):  # there is none, or it is no name at all
        return path
    return path if path.is_symlink() and "snapshots" in path.parts else (status.st_dev, status.st_ino)


def files_of_one(source: str, split: str, folder: Path) -> list[Path]:
    """The files of one source."""
    source = on_hub(source, folder)
    if source.startswith(HUB) and kind_of(Path(source)) in INPUTS and not glob.has_magic(source):
        data = HubDataset(source)
        return data.fetch([data.path])
    if source.startswith(HUB):
        return files_on_hub(HubDataset(source), split)
    path = folder / expanded(source)
    if path.is_dir():
        names = [str(PurePosixPath(name).relative_to(path)) for name in below(path)]
        return [path / name for name in chosen(names, split, str(path))]
    if glob.has_magic(source) and not path.exists():
        names = sorted(glob.glob(str(expanded(source)), root_dir=folder, recursive=True))
        matched = [folder / name for name in names if not (folder / name).is_dir()]
        if not matched:
            raise InputError(f"{split} = {shown(source)}: no file in {folder.absolute()} is called so")
        check_formats(matched, source)
        return matched
    return [path]


def on_hub(source: str, folder: Path) -> str:
    """The address of a source that is a dataset's name on the hub, ``owner/name`` or ``owner/name@revision``, and no
    path of this machine; any other as it is."""
    named = re.fullmatch(rf"{HUB_ID}(@({REVISION}))?", source) and kind_of(Path(source)) not in INPUTS
    here = not named or (path := folder / expanded(source)).exists() or path.parent.exists()
    return source if here else f"{HUB}datasets/{source}"


def below(folder: Path) -> list[str]:
    """The paths of all files in a folder and below, by name, hidden ones left out.

    Raises:
        InputError: it cannot be read.
    """
    found = []

    def refuse(error: OSError) -> None:
        raise InputError(f"{folder} cannot be read: {one_line(error)}")

    for path, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith((".", "_"))]
        found += [os.path.join(path, name) for name in names if not name.startswith((".", "_"))]
    return sorted(found)


def files_on_hub(data: HubDataset, split: str) -> list[Path]:
    """The files of a dataset that a glob matches, or that a folder of it has for a split."""
    where = "/".join(filter(None, [data.hub_id, data.path]))
    if glob.has_magic(data.path):
        names = fnmatch.filter(data.names, data.path)
        if not names:
            raise InputError(f"{where}: no file of the dataset is called so; it has {some(data.names)}")
        check_formats(map(Path, names), where)
        return data.fetch(names)
    start = f"{data.path}/" if data.path else ""
    inside = [name.removeprefix(start) for name in data.names if name.startswith(start)]
    return data.fetch([start + name for name in chosen(inside, split, where)])


def chosen(names: Sequence[str], split: str, where: str) -> list[str]:
    """Those of a folder's files that belong to a split: those named after it, or all where none is named after any.

    Raises:
        InputError: there are none, or they have several formats, or are of several datasets, or a shard is missing.
    """
    known = [name for name in names if kind_of(Path(name)) in INPUTS]
    others = [name for name in known if not name.lower().endswith(".json")]
    settings = {name for name in known if others and name not in others and not split_of(PurePosixPath(name).name)}
    data = [name for name in known if name not in settings]
    if not data:
        raise InputError(f"{where} has no file that ends in one of {', '.join(INPUTS)}; it has {some(names)}")
    named = {name: split_of(name) for name in data}
    found = [name for name, own in named.items() if own is None or own[0] == split]
    if any(named.values()):
        found = [name for name in found if named[name]]
        if not found:
            raise InputError(f"{where} has no file that is named after {split}; it has {some(data)}")
        folders = sorted({own[1] for name in found if (own := named[name])})
        if len(folders) > 1:
            each = " or ".join(f"{where}/{folder}".rstrip("/") for folder in folders[:5])
            raise InputError(f"{where} has {split} data of {len(folders)} datasets; expected one, as {each}")
    nameless = [name for name, own in named.items() if own is None and name not in found]
    for left, why in (
        ([name for name in names if name not in known], f"they end in none of {', '.join(INPUTS)}"),
        ([name for name in known if name not in data], "they are .json beside data, and named after no split"),
        (nameless, "they are named after no split, and others are"),
    ):
        if left:
            log.warning("%s in %s left out, %s among them: %s", counted(len(left), "file"), where, left[0], why)
    check_formats(map(Path, found), where)
    check_shards(found, where)
    return found


def split_of(name: str) -> tuple[str, str] | None:
    """Which split a file is named after, and the folder of its dataset: the file's own name says it, or a folder's."""
    parts = PurePosixPath(name).parts
    for place in reversed(range(len(parts))):
        words = re.split(r"[^a-z]+", parts[place].lower())
        splits = [split for split, known in WORDS.items() if {*known} & {*words}]
        if len(splits) == 1:
            return splits[0], "/".join(parts[:place])
    return None


def check_formats(paths: Iterable[Path], where: str) -> None:
    """Raise an InputError if files are of several formats."""
    kinds = sorted({plain_ending(path) for path in paths})
    if len(kinds) > 1:
        raise InputError(f"{where} has files of several formats ({', '.join(kinds)}); expected one, as by *{kinds[0]}")


def check_shards(names: Iterable[str], where: str) -> None:
    """Raise an InputError if one of several shards, as train-00000-of-00002, is missing, or they are of two sets."""
    sets: dict[tuple[str, str], dict[int, set[int]]] = {}
    for name in names:
        if parts := SHARD.fullmatch(name):
            of = sets.setdefault((parts[1], parts[4] or ""), {})
            of.setdefault(int(parts[3]), set()).add(int(parts[2]))
    for (start, end), of in sets.items():
        if len(of) > 1:
            counts = " and ".join(map(str, sorted(of)))
            raise InputError(f"{where} has {start} in {counts} shards; expected one set of them")
        ((total, there),) = of.items()
        if missing := total - sum(number < total for number in there):  # names may speak of any number
            first = next(number for number in count() if number not in there)
            name = f"{start}-{first:05}-of-{total:05}{end}"
            raise InputError(f"{where} lacks {counted(missing, 'shard')} of {total}, {name} first")


def some(names: Sequence[str]) -> str:
    """A few of the names, for an error's line."""
    return ", ".join(map(printable, names[:5])) + (f" and {len(names) - 5} more" if names[5:] else "") or "none"
