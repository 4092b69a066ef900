"""Texts from files, one at a time, and vectors to files, as they come.

What is read may be larger than memory, and so may what is written. An output appears under its name only
when it is whole: it is written as NAME.partial, then renamed.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mtl.errors import InputError

Row = tuple[int, dict[str, Any]]  # line number, fields
Vectors = NDArray[np.float32]

INPUTS = (".txt", ".jsonl", ".csv", ".tsv")


def lines(file: Iterable[bytes], name: str) -> Iterator[str]:
    """A file's lines, decoded, without their ends and without a byte order mark.

    Raises:
        InputError: a line is not UTF-8; it names the line.
    """
    for number, line in enumerate(file, 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{name}, line {number}: not UTF-8 ({error.reason}, byte {error.start + 1})") from None
        yield text.removesuffix("\n").removesuffix("\r")


def jsonl_rows(file: Iterable[bytes], name: str) -> Iterator[Row]:
    """The objects of a JSON Lines file; empty lines are passed over."""
    for number, line in enumerate(lines(file, name), 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except ValueError as error:
            raise InputError(f"{name}, line {number}: not JSON ({error})") from None
        if not isinstance(fields, dict):
            raise InputError(f"{name}, line {number}: a {type(fields).__name__}; expected an object")
        yield number, fields


def delimited_rows(file: Iterable[bytes], name: str, delimiter: str) -> Iterator[Row]:
    """The rows of a .csv or .tsv file, whose first line names the fields."""
    reader = csv.reader((f"{line}\n" for line in lines(file, name)), delimiter=delimiter)
    try:
        header = next(reader, None)
        if header is None:
            raise InputError(f"{name} is empty; expected a first line that names the fields")
        for values in reader:
            if values and len(values) != len(header):
                found = f"{len(values)} fields, expected {len(header)}"
                raise InputError(f"{name}, line {reader.line_num}: {found} ({', '.join(header)})")
            if values:
                yield reader.line_num, dict(zip(header, values, strict=True))
    except csv.Error as error:
        raise InputError(f"{name}, line {reader.line_num}: {error}") from None


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a .jsonl, .csv or .tsv file, each with its line number.

    Raises:
        InputError: the file cannot be read, has another ending, or a line is wrong; it names the line.
    """
    try:
        with path.open("rb") as file:
            if path.suffix == ".jsonl":
                yield from jsonl_rows(file, str(path))
            elif path.suffix in (".csv", ".tsv"):
                yield from delimited_rows(file, str(path), "," if path.suffix == ".csv" else "\t")
            else:
                raise InputError(f"{path} ends in {path.suffix!r}; expected .jsonl, .csv or .tsv")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None


def read_texts(path: Path, field: str | None = None) -> Iterator[str]:
    """A file's texts: each line of a .txt, empty ones included, or one field of each row of the others.

    Raises:
        InputError: as read_rows; or the field is not given, is missing in a row, or holds no string.
    """
    if path.suffix == ".txt":
        try:
            with path.open("rb") as file:
                yield from lines(file, str(path))
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from None
        return
    for number, fields in read_rows(path):
        if field is None:
            raise InputError(f"{path} has the fields {', '.join(fields)}; say with --field which holds the text")
        if field not in fields:
            raise InputError(f"{path}, line {number}: no field {field!r}; it has {', '.join(fields)}")
        if not isinstance(fields[field], str):
            kind = type(fields[field]).__name__
            raise InputError(f"{path}, line {number}: field {field!r} is a {kind}; expected a string")
        yield fields[field]


def write_npy(file: BinaryIO, parts: Iterable[tuple[Sequence[str], Vectors]], dim: int) -> int:
    """A numpy array (texts, dim). numpy leaves room in the header for the number of rows to grow."""
    rows = 0

    def header() -> None:
        file.seek(0)
        fields = {"descr": "<f4", "fortran_order": False, "shape": (rows, dim)}
        np.lib.format.write_array_header_1_0(file, fields)

    header()
    for _, vectors in parts:
        file.write(vectors.astype("<f4", copy=False).tobytes())
        rows += len(vectors)
    header()
    return rows


def write_safetensors(file: BinaryIO, parts: Iterable[tuple[Sequence[str], Vectors]], dim: int) -> int:
    """One float32 tensor ``embeddings`` (texts, dim). The format lets its JSON header end in spaces."""
    rows, room = 0, 248

    def header() -> None:
        offsets = [0, rows * dim * 4]
        fields = {"embeddings": {"dtype": "F32", "shape": [rows, dim], "data_offsets": offsets}}
        file.seek(0)
        file.write(room.to_bytes(8, "little") + json.dumps(fields).encode().ljust(room))

    header()
    for _, vectors in parts:
        file.write(vectors.astype("<f4", copy=False).tobytes())
        rows += len(vectors)
    header()
    return rows


def write_jsonl(file: BinaryIO, parts: Iterable[tuple[Sequence[str], Vectors]], dim: int) -> int:
    """One object a line: ``text`` and ``embedding``, whose digits give back the float32 exactly."""
    rows = 0
    for texts, vectors in parts:
        for text, vector in zip(texts, vectors, strict=True):
            digits = ", ".join(map(str, vector))
            file.write(f'{{"text": {json.dumps(text, ensure_ascii=False)}, "embedding": [{digits}]}}\n'.encode())
        rows += len(vectors)
    return rows


Writer = Callable[[BinaryIO, Iterable[tuple[Sequence[str], Vectors]], int], int]
WRITERS: dict[str, Writer] = {".npy": write_npy, ".jsonl": write_jsonl, ".safetensors": write_safetensors}


def write_vectors(path: Path, parts: Iterable[tuple[Sequence[str], Vectors]], dim: int) -> int:
    """Write texts' vectors as they come, in the format of the path's ending; gives the number of rows.

    Raises:
        InputError: another ending than .npy, .jsonl and .safetensors, or the file cannot be written.
    """
    if path.suffix not in WRITERS:
        raise InputError(f"{path} ends in {path.suffix!r}; expected one of {', '.join(WRITERS)}")
    if path.is_dir():
        raise InputError(f"{path} is a folder; expected the name of a file")
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            rows = WRITERS[path.suffix](file, parts, dim)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        remove(partial)
    return rows


def remove(path: Path) -> None:
    """Delete a file, if it is there and can be."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return
