"""What a folder of outputs was made with: manifest.json, and a note in each output of the input it was made from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow.parquet as pq
from pyarrow import fs

from mtl.errors import InputError, differences
from mtl.rows.uris import Place, Source, reading

NAME = "manifest.json"
NOTE = b"mtl"  # the key of our note in a Parquet file's metadata
AGAIN = "remove it to have it made again"
LOOKS = 16  # outputs that are looked at at once: an object store takes its time for each

Settings = Mapping[str, Any]


def settings_hash(settings: Settings) -> str:
    """A short hash of all settings that a vector depends on."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def note(settings: Settings, source: Source) -> dict[bytes, bytes]:
    """What an output's metadata say: the settings' hash, and the input."""
    content = {"settings": settings_hash(settings), "source": source.state}
    return {NOTE: json.dumps(content, sort_keys=True).encode()}


def read_manifest(place: Place) -> dict[str, Any] | None:
    """A folder's manifest, or None where there is none.

    Raises:
        InputError: it is damaged.
    """
    if place.info().type == fs.FileType.NotFound:
        return None
    with reading(place), place.filesystem.open_input_stream(place.path) as file:
        content = file.read()
    try:
        manifest = json.loads(content)
        settings, stated = dict(manifest["settings"]), manifest["hash"]
    except (ValueError, KeyError, TypeError, RecursionError):
        settings, stated = {}, ""
    if settings_hash(settings) != stated:
        raise InputError(f"{place} is damaged; restore it, or choose another output folder")
    return dict(manifest)


def claim(output: Place, model: str, settings: Settings) -> None:
    """Write the folder's manifest, or see that the one that is there says the same.

    On this machine's disks, where a folder is locked, that of a run that was stopped before its first output is
    replaced.

    Raises:
        InputError: the folder was made with other settings (the line says which), or holds something else.
    """
    place = output / NAME
    manifest = read_manifest(place)
    different = differences(manifest["settings"], settings) if manifest else []
    if manifest and not different:
        return
    other = next((info for info in output.files() if info.base_name != NAME), None)
    if manifest is None and other:
        raise InputError(f"{output} holds {other.base_name} but no {NAME}; expected a folder of ours, or a new one")
    if manifest and (other or not output.local):
        was = f" with the model {manifest.get('model')!r}" if manifest.get("model") != model else ""
        raise InputError(f"{output} was made otherwise{was}: {'; '.join(different)}; choose another output folder")
    with place.whole() as path:
        content = {"model": model, "settings": settings, "hash": settings_hash(settings)}
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def is_done(output: Place, source: Source, settings: Settings) -> bool:
    """Whether a file's output is there.

    Raises:
        InputError: something else is there, or the output of another input.
    """
    place = output / source.target
    if place.info().type == fs.FileType.NotFound:
        return False
    _, made_from = check_output(place, settings)
    if made_from != source.state:
        raise InputError(f"{place} was made from another {source.place} than the one of today; {AGAIN}")
    return True


def check_output(place: Place, settings: Settings) -> tuple[int, Any]:
    """The number of an output's rows, and what its input was.

    Raises:
        InputError: it is no output, or one of other settings.
    """
    try:
        with reading(place), place.open_random() as opened:
            file = pq.ParquetFile(opened)
            metadata, rows = file.schema_arrow.metadata or {}, file.metadata.num_rows
    except InputError as error:
        raise InputError(f"{error}; {AGAIN}") from None
    try:
        found = json.loads(metadata[NOTE])
        made_with, made_from = found["settings"], found["source"]
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{place} is no output of embed-corpus; choose another folder") from None
    if made_with != settings_hash(settings):
        raise InputError(f"{place} was made with other settings than {NAME} says; {AGAIN}")
    return rows, made_from


def to_do(output: Place, sources: Sequence[Source], settings: Settings) -> list[Source]:
    """The files whose outputs are missing, in their order.

    Raises:
        InputError: as ``is_done``.
    """
    with ThreadPoolExecutor(LOOKS) as pool:
        done = list(pool.map(lambda source: is_done(output, source, settings), sources))
    return [source for source, there in zip(sources, done, strict=True) if not there]
