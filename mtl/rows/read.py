"""Texts and labelled rows from files, one at a time. What is read may be larger than memory.

Every reader gives rows: the fields of one line by name, beside the line's number. A plain line of text is the
row ``{"text": line}``. Embedding, predicting and training all read through ``read_rows``.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import logging
import os
import re
import select
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, dropwhile, islice
from pathlib import Path
from typing import Any, BinaryIO, Literal, NoReturn, cast

from mtl.display import counted
from mtl.errors import InputError, is_unicode, one_line, printable, shown
from mtl.rows.parquet import check_header, import_pyarrow, parquet_rows, schema_of

log = logging.getLogger("mtl")

Row = tuple[int, Mapping[str, Any]]  # line number, fields
TextRow = tuple[str, Mapping[str, Any]]  # the text, and all fields of its row
Records = Iterator[tuple[int, list[str]]]  # line number, values
Quoting = Literal["auto", "minimal", "none"]  # "auto": as "minimal" in .csv, as "none" in .tsv

csv.field_size_limit(2**31 - 1)  # its own limit, 131,072 characters, is less than a document may have
INPUTS = (".txt", ".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".parquet", ".conll")
CODECS = {".gz": gzip.open, ".bz2": bz2.open, ".zst": None}  # the last is pyarrow's
EXPECTED = f"expected one of {', '.join(INPUTS)}, or {', '.join(CODECS)} behind it"
WHOLE = 1 << 28  # characters of a JSON array, which is held at once
DELIMITERS = {".csv": ",", ".tsv": "\t"}
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)  # UTF-32's little-endian begins as UTF-16's


def plain_ending(path: Path) -> str:
    """A file's ending in small letters, without that of a codec: "texts.JSONL.gz" ends in .jsonl."""
    return (Path(path.stem) if path.suffix.lower() in CODECS else path).suffix.lower()


def kind_of(path: Path) -> str:
    """The kind of a file, by its ending: .json and .ndjson files are read as .jsonl."""
    kind = plain_ending(path)
    return ".jsonl" if kind in (".json", ".ndjson") else kind


@contextmanager
def decompressed(file: Any, path: Path) -> Iterator[BinaryIO]:
    """A file that is open for reading, decompressed where its name ends in one of ``CODECS``.

    Raises:
        InputError: it is damaged or cut short; or that needs pyarrow, which is not installed.
    """
    codec = path.suffix.lower()
    try:
        if codec not in CODECS:
            yield file
        elif opened := CODECS[codec]:
            with opened(file) as content:
                yield cast(BinaryIO, content)
        else:
            with import_pyarrow(path)[0].CompressedInputStream(file, "zstd") as content:
                yield io.BufferedReader(content, 1 << 20)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path} is no whole {codec} file: {error}") from None


def decoded(file: Iterable[bytes], name: str) -> Iterator[str]:
    """A file's lines with their ends, without a byte order mark. Where no line feed is, carriage returns end lines.

    Raises:
        InputError: a line is not UTF-8; it names the line.
    """
    for number, line in enumerate(file, 1):
        try:
            if number == 1 and (line.startswith(UTF_16) or line.count(0) * 3 > len(line)):
                raise InputError(f"{name} is not UTF-8, but UTF-16 or UTF-32; convert it, as iconv does")
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{name}, line {number}: not UTF-8 ({error.reason}, byte {error.start + 1})") from None
        if number == 1 and not text.endswith("\n") and "\r" in text:
            yield from (f"{piece}\r" for piece in text.removesuffix("\r").split("\r"))
        elif text:  # a mark alone is no line
            yield text


def lines(file: Iterable[bytes], name: str) -> Iterator[str]:
    """As ``decoded``, without the lines' ends."""
    return (line.removesuffix("\n").removesuffix("\r") for line in decoded(file, name))


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


def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of two values under one name, nobody could say which is meant."""
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError(f"the key {repeated(pairs)!r} is there twice")
    return found


def repeated(pairs: Sequence[tuple[str, Any]]) -> str:
    """Of the pairs of a JSON object, the name that is there most often."""
    ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
    return name


def jsonl_rows(file: Iterable[bytes], name: str) -> Iterator[Row]:
    """The objects of a JSON Lines file; empty lines are passed over. Or those of one array, counted from 1."""
    rest = ((number, line) for number, line in enumerate(lines(file, name), 1) if line.strip())
    first = [*islice(rest, 1)]
    given = chain(first, rest)
    if first and first[0][1].lstrip().startswith("["):
        yield from objects(enumerate(array_of(given, name), 1), f"{name}, object")
    else:
        yield from objects(((number, from_json(line, name, number)) for number, line in given), f"{name}, line")


def objects(values: Iterable[tuple[int, Any]], where: str) -> Iterator[Row]:
    """The values, each of which has to be an object."""
    for number, fields in values:
        if not isinstance(fields, dict):
            raise InputError(f"{where} {number}: a {type(fields).__name__}; expected an object")
        yield number, fields


def array_of(given: Iterable[tuple[int, str]], name: str) -> Any:
    """The JSON array in numbered lines."""
    parts, size = [], 0
    for _, line in given:
        parts.append(line)
        if (size := size + len(line)) > WHOLE:
            raise InputError(f"{name} is a JSON array of more than {WHOLE >> 20} million characters, which would be "
                             "held whole; expected JSON Lines, as jq -c '.[]' makes of it")  # fmt: skip
    return from_json("\n".join(parts), name)


def from_json(text: str, name: str, line: int | None = None) -> Any:
    try:
        return json.loads(text, parse_constant=no_number, object_pairs_hook=each_once)
    except (ValueError, RecursionError) as error:
        where = f"{name}, line {line}" if line else name
        expected = "an object on each line, or one array of objects"
        raise InputError(f"{where}: not JSON ({error}); expected {expected}") from None


def quoted_records(file: Iterable[bytes], name: str, delimiter: str) -> Records:
    """The records of a table, each with the line where it begins; a field in quotes may span lines."""
    reader = csv.reader(decoded(file, name), delimiter=delimiter, strict=True)
    start = 1
    try:
        for values in reader:
            yield start, values
            start = reader.line_num + 1
    except csv.Error as error:
        reason = "a carriage return outside of quotes" if "new-line" in str(error) else error
        raise InputError(
            f"{name}, line {start}: {reason} (noticed in line {reader.line_num}); a field that begins with a quote "
            "ends with one, and a quote inside it is written twice"
        ) from None


def plain_records(file: Iterable[bytes], name: str, delimiter: str, warn: bool) -> Records:
    """The records of a table: one a line, in which a quote is a character like any other."""
    for number, line in enumerate(lines(file, name), 1):
        values = line.split(delimiter) if line else []
        if warn and '"' in line and any(len(v) > 1 and v[0] == v[-1] == '"' for v in values):
            log.warning("%s, line %d: fields look quoted, and keep their quotes; --quoting minimal takes them away",
                        name, number)  # fmt: skip
            warn = False
        yield number, values


def table_records(file: Iterable[bytes], name: str, kind: str, quoting: Quoting) -> tuple[list[str], Records]:
    """The names of a table's fields, which its first record has, and the records behind that."""
    if quoting == "minimal" or (quoting == "auto" and kind == ".csv"):
        records = quoted_records(file, name, DELIMITERS[kind])
    else:
        records = plain_records(file, name, DELIMITERS[kind], quoting == "auto")
    _, header = next(records, (0, []))
    if not header:
        raise InputError(f"{name} is empty; expected a first line that names the fields")
    check_header(header, name)
    return header, records


def table_rows(file: Iterable[bytes], name: str, kind: str, quoting: Quoting) -> Iterator[Row]:
    """The records of a table as rows.

    An empty line is passed over, but where there is one field: there it is an empty text.
    """
    header, records = table_records(file, name, kind, quoting)
    for number, values in records:
        if not values and len(header) == 1:
            values = [""]
        if values and len(values) != len(header):
            found = f"{counted(len(values), 'field')}, expected {len(header)}"
            hint = "; if fields are quoted, --quoting minimal reads them" if '"' in "".join(values) else ""
            raise InputError(f"{name}, line {number}: {found} ({', '.join(header)}){hint}")
        if values:
            yield number, dict(zip(header, values, strict=True))


def conll_rows(file: Iterable[bytes], name: str) -> Iterator[Row]:
    """The sentences of a .conll file, as ``{"tokens": [...], "tags": [...]}``: the first and the last column of lines.

    A blank line ends a sentence, and one that begins with -DOCSTART- stands for none. Lines before a sentence's words
    that begin with # are comments, if they have not the words' number of columns. Columns are parted by tabs, or where
    a line has none, by blanks. A sentence has the number of its first line.

    Raises:
        InputError: a line has another number of columns; or the first of many columns counts the words in all
            sentences up to one of several words, or to the end.
    """
    first, counting = 0, True
    for number, words in sentences(file, name):
        first, tokens = first or number, [row[0] for row in words]
        counting = counting and len(words[0]) >= 8 and counts_words(tokens)
        if counting and len(tokens) > 1:
            break
        yield number, {"tokens": tokens, "tags": [row[-1] for row in words]}
    if first and counting:  # CoNLL-U, CoNLL-X
        expected = "the word in the first column, and its tag in the last"
        raise InputError(f"{name}, line {first}: the first of 8 columns or more counts the words; expected {expected}")


def counts_words(values: Sequence[str]) -> bool:
    """Whether a sentence's values number its words; 3-4 is a word in two parts, 3.1 one left out."""
    whole = [value for value in values if not re.fullmatch(r"\d+[-.]\d+", value)]
    return whole == [*map(str, range(1, len(whole) + 1))]


def sentences(file: Iterable[bytes], name: str) -> Iterator[tuple[int, list[list[str]]]]:
    """The sentences of a .conll file: the number of the first word's line, and each word's columns."""
    blocks: list[list[tuple[int, list[str]]]] = [[]]  # lines between blank ones, till the words' columns are known
    columns = 0
    for number, line in enumerate(chain(lines(file, name), [""]), 1):
        values = columns_of(line)
        if values and values[0] != "-DOCSTART-":
            blocks[-1].append((number, values))
            columns = columns or (0 if values[0].startswith("#") else len(values))
        elif columns:
            yield from (row for block in blocks for row in sentence_of(block, columns, name))
            blocks = [[]]
        else:
            blocks.append([])
    if rest := [block for block in blocks if block]:
        yield from (row for block in rest for row in sentence_of(block, len(rest[0][0][1]), name))


def columns_of(line: str) -> list[str]:
    """The columns of a line of a .conll file, without empty ones at its end; none of a blank line."""
    values = [value.strip(" ") for value in line.rstrip().split("\t")] if "\t" in line else line.split(" ")
    return [value for value in values if value or "\t" in line] if line.strip() else []


def sentence_of(
    block: Iterable[tuple[int, list[str]]], columns: int, name: str
) -> Iterator[tuple[int, list[list[str]]]]:
    """The sentence of numbered lines, if any of them is a word's."""
    words = [*dropwhile(lambda line: line[1][0].startswith("#") and len(line[1]) != columns, block)]
    for number, values in words:
        if len(values) < 2 or len(values) != columns or not (values[0] and values[-1]):
            expected = f"{columns}, as before" if columns > 1 else "two or more: a word, and at last its tag"
            raise InputError(f"{name}, line {number}: {counted(len(values), 'column')}; expected {expected}")
    if words:
        yield words[0][0], [row for _, row in words]


def rows_of(file: Iterable[bytes], name: str, kind: str, quoting: Quoting = "auto") -> Iterator[Row]:
    """The rows of an open file of text, of one of the kinds of ``INPUTS``."""
    if kind in DELIMITERS:
        return table_rows(file, name, kind, quoting)
    return {".txt": text_rows, ".jsonl": jsonl_rows, ".conll": conll_rows}[kind](file, name)


def read_rows(path: Path, fields: list[str] | None = None, quoting: Quoting = "auto") -> Iterator[Row]:
    """The rows of a file, each with its line number; all but .parquet may be compressed, as in rows.jsonl.gz.

    .jsonl, .json and .ndjson are JSON Lines, or one array of objects.

    ``fields`` are those that are needed: of a .parquet file, no other column is read.

    Raises:
        InputError: the file cannot be read, has another ending, or a line is wrong; it names the line.
    """
    kind = kind_of(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder; expected a file")
    if kind not in INPUTS:
        raise InputError(f"{path} ends in {path.suffix!r}; {EXPECTED}")
    if kind == ".parquet":
        yield from parquet_rows(path, fields)
        return
    with opened(path) as file:
        yield from rows_of(file, str(path), kind, quoting)


def column_names(path: Path, quoting: Quoting = "auto") -> list[str]:
    """The columns of a table or a .parquet file, whether or not it has rows; of other files, none.

    Raises:
        InputError: as ``read_rows``.
    """
    kind = kind_of(path)
    if kind == ".parquet":
        return list(schema_of(path, []).names)
    if kind not in DELIMITERS:
        return []
    if kind == ".tsv" and quoting == "auto":
        quoting = "none"  # as it is read, but for the line that says of fields that they look quoted
    with opened(path) as file:
        return table_records(file, str(path), kind, quoting)[0]


def rows_with(path: Path, fields: Sequence[str], quoting: Quoting = "auto", whole: bool = True) -> Iterator[Row]:
    """As ``read_rows``, of these fields, or of all where ``whole``.

    Raises:
        InputError: as ``read_rows``; or there are columns without one of these, and no rows, which would say so.
    """
    empty = True
    for row in read_rows(path, None if whole else [*fields], quoting):
        empty = False
        yield row
    names = column_names(path, quoting) if empty else []
    for field in fields if names else ():
        if field not in names:
            raise without(field, names, str(path))


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A file to be read, decompressed where its name says so.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with path.open("rb") as raw, decompressed(raw, path) as file:
            yield file
    except OSError as error:
        raise InputError(f"{path} cannot be read: {one_line(error)}") from None
    except ValueError as error:  # a null byte in its name
        raise InputError(f"{shown(str(path))} cannot be read: {one_line(error)}") from None


def check_text(text: Any, field: str, where: str) -> str:
    """The text itself, if it is a string that UTF-8 can hold.

    Raises:
        InputError: it is not; the line says where.
    """
    if not isinstance(text, str):
        what = "missing" if text is None else f"of type {type(text).__name__}"
        raise InputError(f"{where}: field {field!r} is {what}; expected a string, which may be empty")
    if not is_unicode(text):
        raise InputError(f"{where}: field {field!r} holds half of a surrogate pair; expected Unicode")
    return text


def words_of(value: Any) -> list[str]:
    """The words of a list of strings; none of anything else."""
    listed = isinstance(value, list) and all(isinstance(word, str) for word in value)
    return [word.strip() for word in value] if listed else []


def without(field: str, fields: Iterable[str], where: str) -> InputError:
    """The error of a row, or of a header, that has other fields than the one with the text."""
    names = [*fields]
    has = f"it has {', '.join(map(printable, names))}; say with --field which holds the text"
    mark = next((mark for mark in ";|\t" if len(names) == 1 and mark in names[0]), "")
    has += f"; or part fields as .csv or .tsv does, and not by {mark!r}" if mark else ""
    return InputError(f"{where}: no field {field!r}; {has}")


def texts_of(rows: Iterable[Row], name: str, field: str = "text") -> Iterator[TextRow]:
    """Each row's text, which is in ``field``, beside the row. The text of a row without one is its words, ``tokens``,
    with a blank between them, as a tagger is trained on.

    Raises:
        InputError: the field is missing in a row, or holds no string.
    """
    for number, fields in rows:
        if field == "text" and "text" not in fields and (words := words_of(fields.get("tokens"))):
            fields = {"text": " ".join(words), **fields}
        if field not in fields:
            raise without(field, fields, f"{name}, line {number}")
        yield check_text(fields[field], field, f"{name}, line {number}"), fields


def folded(text: str) -> str:
    """A text's form that is the same for all that differ in case, blanks and forms of Unicode alone."""
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(plain.split())


def pairs_of(rows: Iterable[Row], name: str, fields: tuple[str, str]) -> Iterator[tuple[tuple[str, str], Any]]:
    """As ``texts_of``, for the two texts of each row."""
    for number, row in rows:
        first, second = (next(texts_of([(number, row)], name, field))[0] for field in fields)
        yield (first, second), row
