"""A corpus's rows in blocks: texts to embed, beside the ids and columns that go with them to the output."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mtl.encode.windows import Block
from mtl.errors import InputError, shown
from mtl.rows.parquet import (
    Unit,
    batches,
    check_header,
    column_kinds,
    column_of,
    open_parquet,
    readable,
    unit_of_instants,
)
from mtl.rows.read import DELIMITERS, Quoting, Row, check_text, kind_of, rows_of, table_records
from mtl.rows.uris import Place, Source, named, reading

ROW = "row"  # the column of row numbers, where no column holds ids
VECTOR, SCALE = "embedding", "embedding_scale"


@dataclasses.dataclass(frozen=True)
class Columns:
    """The names of an input's columns: the text, the ids (None: rows are numbered), and others to keep.

    ``quoting`` says how .csv and .tsv quote fields, ``instants`` in which unit those of 96 bits are read from Parquet.

    Raises:
        InputError: a name that the output needs itself.
    """

    text: str = "text"
    id: str | None = "id"
    keep: tuple[str, ...] = ()
    quoting: Quoting = "auto"
    instants: Unit = "ns"

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
        self.runs: list[NDArray[np.uint64]] = []  # sorted, each longer than the next: so each id is merged few times

    def add(self, ids: Sequence[Any], where: Sequence[str]) -> None:
        """Note the ids of some rows; ``where`` says of each where it stands.

        Raises:
            InputError: one is missing, or was there before.
        """
        digests = [hashlib.blake2b(str(each).encode("utf-8", "surrogatepass"), digest_size=8).digest() for each in ids]
        hashes = np.frombuffer(b"".join(digests), np.uint64)
        run, first = np.unique(hashes, return_index=True)
        again = np.ones(len(ids), bool)
        again[first] = False
        for before in self.runs:
            again |= before[np.searchsorted(before, hashes).clip(max=len(before) - 1)] == hashes
        missing = np.array([each is None for each in ids], bool)
        if (wrong := again | missing).any():
            i = int(wrong.argmax())
            what = "has no id" if missing[i] else f"has the id {shown(ids[i])}, as a row before it"
            raise InputError(f"{where[i]} {what}; expected one for each row, each once in a file")
        while self.runs and len(self.runs[-1]) <= len(run):
            run = np.sort(np.concatenate([self.runs.pop(), run]), kind="stable")  # timsort: linear for two sorted runs
        self.runs += [run] * bool(len(run))


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


def check_schema(schema: pa.Schema, columns: Columns) -> None:
    """That a Parquet file has the columns, and strings to embed.

    Raises:
        InputError: it has not.
    """
    check_header(schema.names, "the file")
    check_names(schema.names, columns)
    kind = schema.field(columns.text).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise InputError(f"column {columns.text!r} is of type {kind}; expected strings: name another with --field")


Rows = tuple[list[str], list[Any], pa.RecordBatch]  # where each row stands, the texts, the columns that are kept


def parquet_blocks(place: Place, columns: Columns, size: int) -> Iterator[Rows]:
    """A Parquet file's rows, ``size`` at a time."""
    with place.open_random() as opened, open_parquet(opened, unit=columns.instants) as file:
        check_schema(file.schema_arrow, columns)
        if not file.metadata.num_rows:
            yield [], [], pa.RecordBatch.from_pylist([], file.schema_arrow).select(columns.kept)
        for batch in batches(file, place, columns.read, size):
            where = [f"row {batch.first + i}" for i in range(len(batch.rows))]
            yield where, batch.column(columns.text), batch.rows.select(columns.kept)


def table_parts(place: Place, columns: Columns, size: int) -> Iterator[list[Row]]:
    """The rows of a .jsonl, .csv or .tsv file, compressed or not, ``size`` at a time."""
    rows = rows_of(place.open_lines(), str(place), kind_of(Path(place.path)), columns.quoting)
    while part := list(islice(rows, size)):
        for number, fields in part:
            with named(f"line {number}"):
                check_names(fields, columns)
        yield part


def table_blocks(place: Place, columns: Columns, size: int) -> Iterator[Rows]:
    """A table's rows, ``size`` at a time. A .jsonl file is read twice: a column's type is that of all its values."""

    def kept() -> Iterator[list[dict[str, Any]]]:
        for part in table_parts(place, columns, size):
            yield [{name: fields[name] for name in columns.kept} for _, fields in part]

    kind = kind_of(Path(place.path))
    found = column_kinds(kept, place) if kind == ".jsonl" else {}
    kinds = {name: found.get(name, pa.null()) for name in columns.kept}
    kinds = {name: pa.string() if pa.types.is_null(each) else each for name, each in kinds.items()}
    parts = table_parts(place, columns, size)
    first = next(parts, [])
    if not first and kind in DELIMITERS:
        check_names(table_records(place.open_lines(), str(place), kind, columns.quoting)[0], columns)
    for part in chain([first], parts):
        arrays = [column_of([fields[name] for _, fields in part], each) for name, each in kinds.items()]
        where = [f"line {number}" for number, _ in part]
        yield where, [fields[columns.text] for _, fields in part], pa.record_batch(arrays, columns.kept)


def blocks(source: Source, columns: Columns, size: int) -> Iterator[Block[pa.RecordBatch]]:
    """A file's texts and the columns that are kept, ``size`` rows at a time; one block without rows, if there are none.

    Raises:
        InputError: the file cannot be read, or a row cannot be used; it says where.
    """
    ids, done = Ids(), 0
    read = parquet_blocks if kind_of(Path(source.place.path)) == ".parquet" else table_blocks
    with named(source.place), reading(source.place):
        for where, texts, kept in read(source.place, columns, size):
            for text, place in zip(texts, where, strict=True):
                check_text(text, columns.text, place)
            if columns.id is None:
                numbers = pa.array(range(done + 1, done + len(texts) + 1), pa.int64())
                kept = pa.record_batch([numbers, *kept.columns], [ROW, *kept.schema.names])
            else:
                ids.add(readable(kept.column(columns.id)), where)
            yield Block(texts, kept)
            done += len(texts)


def check_source(source: Source, columns: Columns) -> tuple[int | None, Unit | None]:
    """The number of rows of a Parquet file, which stands at its end, None for other files; and the unit that the
    instants of 96 bits in its columns need, for which these are read, None where there are none.

    Raises:
        InputError: it is cut short, or has not the columns.
    """
    if kind_of(Path(source.place.path)) != ".parquet":
        return None, None
    with named(source.place), reading(source.place), source.place.open_random() as opened:
        file = open_parquet(opened, unit="us")
        check_schema(file.schema_arrow, columns)
        return int(file.metadata.num_rows), unit_of_instants(file, columns.read)
