"""Texts from files, one at a time. What is read may be larger than memory."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mtl.errors import InputError

Row = tuple[int, dict[str, Any]]  # line number, fields

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
