"""Texts and labelled rows from files, one at a time. What is read may be larger than memory.

Every reader gives rows: the fields of one line by name, beside the line's number. A plain line of text is the
row ``{"text": line}``. Embedding, predicting and training all read through ``read_rows``.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import select
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

from mtl.display import counted
from mtl.errors import InputError, one_line

Row = tuple[int, dict[str, Any]]  # line number, fields
TextRow = tuple[str, dict[str, Any]]  # the text, and all fields of its row

csv.field_size_limit(2**31 - 1)  # its own limit, 131,072 characters, is less than a document may have
INPUTS = (".txt", ".jsonl", ".csv", ".tsv", ".parquet", ".conll")
BATCH_ROWS = 8192  # of a .parquet file, held at once


def kind_of(path: Path) -> str:
    """A file's ending, without .gz: "texts.jsonl.gz" is a .jsonl file."""
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


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


def open_lines(file: BinaryIO, name: str) -> Iterator[bytes]:
    """The lines of an open file as they come, and what is behind the last line's end.

    They are read past the file's buffer: who is interrupted while a pipe has nothing to say would leave its lock held,
    and Python aborts on that when it ends.

    Raises:
        InputError: it cannot be read.
    """
    try:
        descriptor = file.fileno()
    except OSError:  # there is none, as for bytes in memory
        yield from file
        return
    parts: list[bytes] = []  # of a line whose end has not come yet
    try:
        while chunk := read_some(descriptor):
            *ends, rest = chunk.split(b"\n")
            for end in ends:
                yield b"".join([*parts, end, b"\n"])
                parts = []
            parts.append(rest)
    except OSError as error:
        raise InputError(f"{name} cannot be read: {one_line(error)}") from None
    if any(parts):
        yield b"".join(parts)


def read_some(descriptor: int) -> bytes:
    """What there is to be read, once there is something; nothing at the end."""
    while True:
        try:
            return os.read(descriptor, 1 << 16)
        except BlockingIOError:  # whoever gave it to us does not want to wait, but we do
            select.select([descriptor], [], [])


def text_rows(file: Iterable[bytes], name: str) -> Iterator[Row]:
    """A row for each line, empty ones included."""
    return ((number, {"text": line}) for number, line in enumerate(lines(file, name), 1))


def no_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")


def jsonl_rows(file: Iterable[bytes], name: str) -> Iterator[Row]:
    """The objects of a JSON Lines file; empty lines are passed over."""
    for number, line in enumerate(lines(file, name), 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line, parse_constant=no_number)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{name}, line {number}: not JSON ({error})") from None
        if not isinstance(fields, dict):
            raise InputError(f"{name}, line {number}: a {type(fields).__name__}; expected an object")
        yield number, fields


def csv_records(file: Iterable[bytes], name: str) -> Iterator[tuple[int, list[str]]]:
    """The records of a .csv file, each with the line where it begins; a field in quotes may span lines."""
    reader = csv.reader((f"{line}\n" for line in lines(file, name)), strict=True)
    start = 1
    try:
        for values in reader:
            yield start, values
            start = reader.line_num + 1
    except csv.Error as error:
        raise InputError(
            f"{name}, line {start}: {error} (noticed in line {reader.line_num}); a field that begins with a quote "
            "ends with one, and a quote inside it is written twice"
        ) from None


def tsv_records(file: Iterable[bytes], name: str) -> Iterator[tuple[int, list[str]]]:
    """The records of a .tsv file: one a line, in which a quote is a character like any other."""
    return ((number, line.split("\t") if line else []) for number, line in enumerate(lines(file, name), 1))


def named_rows(records: Iterator[tuple[int, list[str]]], name: str) -> Iterator[Row]:
    """The records of a table as rows; the first names the fields, and empty lines are passed over."""
    _, header = next(records, (0, []))
    if not header:
        raise InputError(f"{name} is empty; expected a first line that names the fields")
    twice = next((field for field in header if header.count(field) > 1), None)
    if twice is not None:
        raise InputError(f"{name}: the field {twice!r} is there {header.count(twice)} times; expected each name once")
    for number, values in records:
        if values and len(values) != len(header):
            found = f"{counted(len(values), 'field')}, expected {len(header)}"
            raise InputError(f"{name}, line {number}: {found} ({', '.join(header)})")
        if values:
            yield number, dict(zip(header, values, strict=True))


def conll_rows(file: Iterable[bytes], name: str) -> Iterator[Row]:
    """The sentences of a .conll file, as ``{"tokens": [...], "tags": [...]}``: the first and the last column of lines.

    A blank line ends a sentence, and one that begins with -DOCSTART- stands for none. Columns are parted by tabs, or
    where a line has none, by blanks. A sentence has the number of its first line.
    """
    sentence: list[list[str]] = []
    start = columns = 0
    for number, line in enumerate(chain(lines(file, name), [""]), 1):
        values = [value.strip(" ") for value in line.split("\t")] if "\t" in line else line.split(" ")
        values = [value for value in values if value] if "\t" not in line else values
        if not line.strip() or values[0] == "-DOCSTART-":
            if sentence:
                yield start, {"tokens": [row[0] for row in sentence], "tags": [row[-1] for row in sentence]}
            sentence = []
            continue
        start, columns = (start, columns) if sentence else (number, columns or len(values))
        if len(values) < 2 or len(values) != columns or not (values[0] and values[-1]):
            expected = f"{columns}, as before" if columns > 1 else "two or more: a word, and at last its tag"
            raise InputError(f"{name}, line {number}: {counted(len(values), 'column')}; expected {expected}")
        sentence.append(values)


def import_pyarrow(path: Path) -> tuple[Any, Any]:
    """pyarrow and pyarrow.parquet, which are an extra.

    Raises:
        InputError: they are not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InputError(f"{path} needs pyarrow; pip install 'mtl[parquet]'") from None
    return pyarrow, pyarrow.parquet


def parquet_rows(path: Path) -> Iterator[Row]:
    """The rows of a .parquet file, counted from 1. NaN, which JSON does not know, is None as a missing value is.

    Raises:
        InputError: pyarrow is not installed, or the file is not Parquet.
    """
    pyarrow, parquet = import_pyarrow(path)
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH_ROWS):
                for fields in batch.to_pylist():
                    number += 1
                    yield number, {key: None if value != value else value for key, value in fields.items()}
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"{path} cannot be read as Parquet: {one_line(error)}") from None


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file, each with its line number; all but .parquet may be compressed, as in rows.jsonl.gz.

    Raises:
        InputError: the file cannot be read, has another ending, or a line is wrong; it names the line.
    """
    name, kind = str(path), kind_of(path)
    if kind not in INPUTS:
        raise InputError(f"{path} ends in {path.suffix!r}; expected one of {', '.join(INPUTS)}, or .gz behind it")
    try:
        if kind == ".parquet":
            yield from parquet_rows(path)
            return
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as opened:
            file = cast(BinaryIO, opened)
            if kind == ".txt":
                yield from text_rows(file, name)
            elif kind == ".jsonl":
                yield from jsonl_rows(file, name)
            elif kind == ".conll":
                yield from conll_rows(file, name)
            else:
                yield from named_rows(csv_records(file, name) if kind == ".csv" else tsv_records(file, name), name)
    except (EOFError, zlib.error) as error:
        raise InputError(f"{path} is no whole gzip file: {error}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {one_line(error)}") from None


def texts_of(rows: Iterable[Row], name: str, field: str = "text") -> Iterator[TextRow]:
    """Each row's text, which is in ``field``, beside the row.

    Raises:
        InputError: the field is missing in a row, or holds no string.
    """
    for number, fields in rows:
        if field not in fields:
            has = f"it has {', '.join(fields)}; say with --field which holds the text"
            raise InputError(f"{name}, line {number}: no field {field!r}; {has}")
        if not isinstance(fields[field], str):
            kind = type(fields[field]).__name__
            raise InputError(f"{name}, line {number}: field {field!r} is of type {kind}; expected a string")
        yield fields[field], fields
