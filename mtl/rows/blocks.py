"""A corpus's rows in blocks: texts to embed, beside the ids and columns that go with them to the output."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mtl.encode.windows import Block
from mtl.errors import InputError, one_line, shown
from mtl.rows.read import Row, csv_records, jsonl_rows, named_rows, tsv_records
from mtl.rows.uris import Place, Source, ending, named, reading

ROW = "row"  # the column of row numbers, where no column holds ids
VECTOR, SCALE = "embedding", "embedding_scale"
BUFFER = 1 << 20  # bytes of a Parquet column that are held while it is read


@dataclasses.dataclass(frozen=True)
class Columns:
    """The names of an input's columns: the text, the ids (None: rows are numbered), and others to keep.

    Raises:
        InputError: a name that the output needs itself.
    """

    text: str = "text"
    id: str | None = "id"
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        taken = {VECTOR, SCALE} | ({ROW} if self.id is None else set())
        if clash := taken & set(self.kept):
            raise InputError(f"a column {min(clash)!r} cannot be kept: the output has one of its own under that name")

    @property
    def kept(self) -> list[str]:
        """What goes from the input to the output, each once."""
        return list(dict.fromkeys([*([] if self.id is None else [self.id]), *self.keep]))

    @property
    def read(self) -> list[str]:
        return list(dict.fromkeys([self.text, *self.kept]))


class Ids:
    """Notices an id that comes a second time, at 8 bytes for each that it has seen.

    It compares hashes of 64 bits: two different ids are taken for the same once in 300,000 files of 10 million.
    """

    def __init__(self) -> None:
        self.seen = np.empty(0, np.uint64)

    def add(self, ids: Sequence[Any], where: Sequence[str]) -> None:
        """Note the ids of some rows; ``where`` says of each where it stands.

        Raises:
            InputError: one is missing, or was there before.
        """
        digests = [hashlib.blake2b(str(each).encode("utf-8", "surrogatepass"), digest_size=8).digest() for each in ids]
        hashes = np.frombuffer(b"".join(digests), np.uint64)
        again = np.isin(hashes, self.seen)
        again[np.setdiff1d(np.arange(len(ids)), np.unique(hashes, return_index=True)[1])] = True
        missing = np.array([each is None for each in ids], bool)
        if (wrong := again | missing).any():
            i = int(wrong.argmax())
            what = "has no id" if missing[i] else f"has the id {shown(ids[i])}, as a row before it"
            raise InputError(f"{where[i]} {what}; expected one for each row, each once in a file")
        self.seen = np.sort(np.concatenate([self.seen, hashes]), kind="stable")  # of two sorted runs: quick


def check_names(names: Iterable[str], columns: Columns) -> None:
    """That these columns of a file are those that are wanted.

    Raises:
        InputError: one is missing; the line says how to name another.
    """
    names = list(names)
    options = [("--field", columns.text), ("--id-column", columns.id), *(("--keep", name) for name in columns.keep)]
    for option, name in options:
        if name is not None and name not in names:
            instead = ", or number the rows with --number-rows" if option == "--id-column" else ""
            raise InputError(f"no column {name!r}; it has {', '.join(names)}: name one with {option}{instead}")


def check_texts(texts: Sequence[Any], column: str, where: Sequence[str]) -> None:
    """That each is a string that UTF-8 can hold.

    Raises:
        InputError: one is not; it says where.
    """
    for text, place in zip(texts, where, strict=True):
        if not isinstance(text, str):
            what = "is missing" if text is None else f"is of type {type(text).__name__}"
            raise InputError(f"{place}: {column!r} {what}; expected a string, which may be empty")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InputError(f"{place}: {column!r} holds half of a surrogate pair; expected Unicode") from None


def check_schema(schema: pa.Schema, columns: Columns) -> None:
    """That a Parquet file has the columns, and strings to embed.

    Raises:
        InputError: it has not.
    """
    check_names(schema.names, columns)
    kind = schema.field(columns.text).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise InputError(f"column {columns.text!r} is of type {kind}; expected strings: name another with --field")


Rows = tuple[list[str], list[Any], pa.RecordBatch]  # where each row stands, the texts, the columns that are kept


def parquet_rows(place: Place, columns: Columns, size: int) -> Iterator[Rows]:
    """A Parquet file's rows, ``size`` at a time."""
    with place.open_random() as opened, pq.ParquetFile(opened, buffer_size=BUFFER) as file:
        check_schema(file.schema_arrow, columns)
        if not file.metadata.num_rows:
            yield [], [], pa.RecordBatch.from_pylist([], file.schema_arrow).select(columns.kept)
        first = 1
        for batch in file.iter_batches(size, columns=columns.read):
            where = [f"row {row}" for row in range(first, first + len(batch))]
            yield where, batch.column(columns.text).to_pylist(), batch.select(columns.kept)
            first += len(batch)


def opened_rows(place: Place) -> Iterator[Row]:
    """The rows of a .jsonl, .csv or .tsv file, compressed or not."""
    kind = ending(place.path).removesuffix(".gz")
    lines = place.open_lines()
    if kind == ".jsonl":
        return jsonl_rows(lines, str(place))
    return named_rows((csv_records if kind == ".csv" else tsv_records)(lines, str(place)), str(place))


def table_rows(place: Place, columns: Columns, size: int) -> Iterator[Rows]:
    """A table's rows, ``size`` at a time. A column's type is that of its first ``size`` values."""
    kinds: dict[str, pa.DataType] = {}
    rows = opened_rows(place)
    while part := list(islice(rows, size)):
        for number, fields in part:
            with named(f"line {number}"):
                check_names(fields, columns)
        arrays = []
        for name in columns.kept:
            arrays.append(typed(name, [fields[name] for _, fields in part], kinds.get(name), part[0][0]))
            kinds[name] = arrays[-1].type
        where = [f"line {number}" for number, _ in part]
        yield where, [fields[columns.text] for _, fields in part], pa.record_batch(arrays, columns.kept)
    if not kinds:
        yield [], [], pa.record_batch([pa.array([], pa.string()) for _ in columns.kept], columns.kept)


def typed(name: str, values: list[Any], kind: pa.DataType | None, line: int) -> pa.Array:
    """The values of one column; strings, where all are missing and nothing else is known.

    Raises:
        InputError: they are of several types.
    """
    try:
        array = pa.array(values, kind)
        return array.cast(pa.string()) if array.type == pa.null() else array
    except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
        expected = "one type" if kind is None else f"{kind}, as before"
        raise InputError(f"column {name!r} from line {line} on: {one_line(error)}; expected {expected}") from None


def blocks(source: Source, columns: Columns, size: int) -> Iterator[Block[pa.RecordBatch]]:
    """A file's texts and the columns that are kept, ``size`` rows at a time; one block without rows, if there are none.

    Raises:
        InputError: the file cannot be read, or a row cannot be used; it says where.
    """
    ids, done = Ids(), 0
    read = parquet_rows if ending(source.place.path) == ".parquet" else table_rows
    with named(source.place), reading(source.place):
        for where, texts, kept in read(source.place, columns, size):
            check_texts(texts, columns.text, where)
            if columns.id is None:
                numbers = pa.array(range(done + 1, done + len(texts) + 1), pa.int64())
                kept = pa.record_batch([numbers, *kept.columns], [ROW, *kept.schema.names])
            else:
                ids.add(kept.column(columns.id).to_pylist(), where)
            yield Block(texts, kept)
            done += len(texts)


def check_source(source: Source, columns: Columns) -> int | None:
    """The number of rows of a Parquet file, of which only the end is read; None for other files.

    Raises:
        InputError: it is cut short, or has not the columns.
    """
    if ending(source.place.path) != ".parquet":
        return None
    with named(source.place), reading(source.place), source.place.open_random() as opened:
        file = pq.ParquetFile(opened)
        check_schema(file.schema_arrow, columns)
        return int(file.metadata.num_rows)
