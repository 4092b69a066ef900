"""Parquet files as rows. What is read stays Arrow; only the fields that are asked for become Python objects."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any, BinaryIO, Literal

from mtl.errors import InputError, extra, one_line

log = logging.getLogger("mtl")

Unit = Literal["ns", "us"]

BATCH_ROWS = 8192  # that are held at once
BUFFER = 1 << 20  # bytes of a column that are held while it is read


def import_pyarrow(path: Path) -> tuple[Any, Any]:
    """pyarrow and pyarrow.parquet, which are an extra.

    Raises:
        InputError: they are not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InputError(f"{path} needs pyarrow; {extra('parquet')}") from None
    return pyarrow, pyarrow.parquet


def open_parquet(file: Any, columns: Sequence[str] | None = None, unit: Unit | None = None) -> Any:
    """A pyarrow ParquetFile, of which these columns are to be read, by default all.

    ``unit`` is that of instants of 96 bits, as Spark and Impala write them; by default, nanoseconds where these can
    hold all in the columns, or else microseconds.
    """
    from pyarrow import parquet

    opened = parquet.ParquetFile(file, buffer_size=BUFFER, coerce_int96_timestamp_unit=unit or "us")
    if unit or unit_of_instants(opened, columns) != "ns":
        return opened
    return parquet.ParquetFile(file, buffer_size=BUFFER, coerce_int96_timestamp_unit="ns")


def unit_of_instants(opened: Any, columns: Sequence[str] | None = None) -> Unit | None:
    """Of the instants of 96 bits in these columns, by default all, of a ParquetFile that has them in microseconds: this
    unit, if one is before 1678 or after 2262, of which pyarrow would make another in nanoseconds; None: there are none.
    """
    import pyarrow as pa

    paths = [opened.schema.column(i) for i in range(len(opened.schema))]
    wide = [column.path for column in paths if column.physical_type == "INT96"
            and (columns is None or any(f"{column.path}.".startswith(f"{name}.") for name in columns))]  # fmt: skip
    if not wide:
        return None
    try:
        for batch in opened.iter_batches(BATCH_ROWS, columns=wide):
            for part in chain.from_iterable(map(leaves, batch.columns)):
                part.cast(pa.timestamp("ns"))
    except pa.ArrowInvalid:
        return "us"
    return "ns"


def leaves(array: Any) -> Iterator[Any]:
    """The arrays in an Arrow array that are not nested: it alone, or those of a list's values or a struct's fields."""
    import pyarrow.types as of

    if not of.is_nested(array.type):
        yield array
        return
    for part in array.flatten() if of.is_struct(array.type) else [array.flatten()]:
        yield from leaves(part)


class Batch:
    """Consecutive rows: an Arrow RecordBatch, and as Python objects the columns of it that were asked for."""

    def __init__(self, rows: Any, first: int, file: object) -> None:
        self.rows, self.first, self.file, self.names = rows, first, file, rows.schema.names
        self.columns: dict[str, list[Any]] = {}

    def column(self, name: str) -> list[Any]:
        """The values of a column.

        Raises:
            InputError: it holds bytes that are not UTF-8 where it says that they are.
        """
        if name not in self.columns:
            try:
                self.columns[name] = readable(self.rows.column(name))
            except UnicodeDecodeError as error:
                where = f"{self.file}, row {self.first} to {self.first + len(self.rows) - 1}"
                raise InputError(f"{where}: field {name!r} is not UTF-8 ({error.reason})") from None
        return self.columns[name]


class ArrowRow(Mapping[str, Any]):
    """A row of a batch; a field is looked up in its column, which is made readable when that is asked for first."""

    __slots__ = ("batch", "index")

    def __init__(self, batch: Batch, index: int) -> None:
        self.batch, self.index = batch, index

    def __getitem__(self, name: str) -> Any:
        if name not in self.batch.names:
            raise KeyError(name)
        return self.batch.column(name)[self.index]

    def __contains__(self, name: object) -> bool:
        return name in self.batch.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.batch.names)

    def __len__(self) -> int:
        return len(self.batch.names)


@contextmanager
def reading_parquet(name: object) -> Iterator[None]:
    """What goes wrong with a Parquet file in the block becomes one line.

    Raises:
        InputError: it cannot be read, is damaged or no Parquet.
    """
    import pyarrow

    try:
        yield
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"{name} cannot be read as Parquet: {one_line(error)}") from None


def check_header(names: list[str], where: object) -> None:
    """Raise an InputError if a table has two columns of one name."""
    for name, count in Counter(names).items():
        if count > 1:
            raise InputError(f"{where}: the field {name!r} is there {count} times; expected each name once")


def batches(file: Any, where: object, columns: list[str] | None, size: int) -> Iterator[Batch]:
    """The rows of an open ParquetFile, ``size`` at a time; all columns, or some of them in the order given."""
    first = 1
    for rows in file.iter_batches(size, columns=columns):
        yield Batch(rows if columns is None else rows.select(columns), first, where)
        first += len(rows)


def schema_of(path: Path, columns: Sequence[str] | None = None) -> Any:
    """A Parquet file's columns and their types, as a pyarrow.Schema; the unit of instants is as of ``open_parquet``.

    Raises:
        InputError: as ``parquet_rows``.
    """
    import_pyarrow(path)
    with reading_parquet(path), open_parquet(path, columns) as file:
        schema = file.schema_arrow
    check_header(schema.names, path)
    return schema


def class_names(path: Path, column: str) -> list[str]:
    """What the numbers of a column of classes stand for, where the hub's writers left it in a Parquet file; else none.

    Raises:
        InputError: as ``parquet_rows``.
    """
    if path.suffix.lower() != ".parquet":
        return []
    try:
        about = json.loads((schema_of(path, []).metadata or {})[b"huggingface"])
        feature = about["info"]["features"][column]
        names = feature["names"] if feature.get("_type") == "ClassLabel" else []
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError):  # nothing that we know of
        return []
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else []


def parquet_rows(path: Path, columns: list[str] | None = None) -> Iterator[tuple[int, ArrowRow]]:
    """The rows of a .parquet file, counted from 1; of all columns, or of those among ``columns`` that there are.

    Raises:
        InputError: pyarrow is not installed, or the file is not Parquet.
    """
    import_pyarrow(path)
    with reading_parquet(path), open_parquet(path, columns) as file:
        names = file.schema_arrow.names
        check_header(names, path)
        if columns is not None:  # where none of them is there, the caller is to see what is
            columns = [name for name in columns if name in names] or None
        for batch in batches(file, path, columns, BATCH_ROWS):
            yield from ((batch.first + i, ArrowRow(batch, i)) for i in range(len(batch.rows)))


def readable(array: Any) -> list[Any]:
    """An Arrow array's values as JSON and CSV have them.

    Dates, times and decimals are strings, as ISO 8601 and the digits; so are durations ("PT1.5S"). An instant whose
    time zone this machine does not know is given in UTC. Bytes stay bytes, and the pairs of a map are lists of two.
    NaN, which JSON does not know, is None as a missing value is; an infinity stays.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    kind, of = array.type, pa.types
    if isinstance(kind, pa.BaseExtensionType):
        uuid = str(kind) == "extension<arrow.uuid>"
        return [v and str(v) for v in array.to_pylist()] if uuid else readable(array.storage)
    if of.is_dictionary(kind):
        return readable(array.dictionary_decode())
    if of.is_map(kind):
        pairs = array.cast(pa.list_(pa.struct([("key", kind.key_type), ("value", kind.item_type)])))
        return [row and [list(pair.values()) for pair in row] for row in readable(pairs)]
    if of.is_struct(kind):
        fields = [readable(part) for part in array.flatten()]
        names = [kind.field(i).name for i in range(kind.num_fields)]
        check_header(names, kind)
        there = array.is_valid().to_pylist()
        return [{n: f[i] for n, f in zip(names, fields, strict=True)} if v else None for i, v in enumerate(there)]
    if of.is_nested(kind):  # a list of whatever make
        values, lengths = iter(readable(array.flatten())), pc.list_value_length(array).to_pylist()
        return [None if n is None else list(islice(values, n)) for n in lengths]
    if of.is_floating(kind):
        numbers = array.to_numpy(zero_copy_only=False)
        whole = numbers.tolist() if of.is_float64(kind) else [float(str(v)) for v in numbers]  # with the fewest digits
        return [None if v != v else v for v in whole]
    if of.is_timestamp(kind):
        if kind.tz:
            try:
                return list(pc.strftime(array, format="%Y-%m-%dT%H:%M:%S%Ez").to_pylist())
            except pa.ArrowInvalid:  # an unknown time zone
                array = array.cast(pa.timestamp(kind.unit, "UTC"))
        return list(pc.strftime(array, format=f"%Y-%m-%dT%H:%M:%S{'Z' if kind.tz else ''}").to_pylist())
    if of.is_duration(kind):
        digits = {"s": 0, "ms": 3, "us": 6, "ns": 9}[kind.unit]
        seconds = array.cast(pa.int64()).cast(pa.decimal128(19, 0)).to_pylist()
        return [None if v is None else f"PT{v.scaleb(-digits):f}S" for v in seconds]
    if of.is_decimal(kind) or (of.is_temporal(kind) and not of.is_interval(kind)):
        return list(array.cast(pa.string()).to_pylist())
    values = array.to_pylist()
    return [v if v is None or isinstance(v, (str, int, bytes)) else str(v) for v in values]


def column_kinds(parts: Callable[[], Iterable[Sequence[Mapping[str, Any]]]], where: object) -> dict[str, Any]:
    """The Arrow type of each field of rows as JSON has them, in the order in which fields first come.

    Values of several types, and those that Parquet has no type for, become text; a line in the log says so. ``parts``
    gives the rows, some at a time, and is called twice where a type turned out to be wider than it began.
    """
    import pyarrow as pa

    kinds: dict[str, Any] = {}
    mixed: dict[str, None] = {}
    for final in (False, True):
        changed = False
        for rows in parts():
            for name in dict.fromkeys(name for fields in rows for name in fields):
                values = [fields[name] for fields in rows if fields.get(name) is not None]
                before = kinds.setdefault(name, pa.null())
                strings = all(isinstance(v, str) for v in values)
                if not values or (strings and before == pa.string()):
                    continue
                kinds[name] = pa.string() if strings else kind_of_values(values, before, final)
                changed |= kinds[name] != before != pa.null()
                if kinds[name] == pa.string() and not (strings and before == pa.null()):
                    mixed[name] = None
        if not changed:
            break
    for name in mixed:
        log.warning("%s: values of %r are of several types, or none that Parquet has; they become text", where, name)
    return kinds


def kind_of_values(values: list[Any], before: Any, final: bool) -> Any:
    """A type for these values that also holds those before them; text, where there is no other."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        big = any(isinstance(v, int) and v >= 2**63 for v in values)
        kind = pa.array(values, before if final else pa.uint64() if big else None).type
        schemas = [pa.schema([("", each)]) for each in (before, kind)]
        both = pa.unify_schemas(schemas, promote_options="permissive").field(0).type
        both = pa.uint64() if {kind, before} == {pa.int64(), pa.uint64()} else both
        array = pa.array(values, both)
        if "double" in str(both) and any(map(holds_truth, values)) and not same_truth(values, array.to_pylist()):
            return pa.string()  # among fractions, pyarrow takes true for 1.0
        parquet.write_table(pa.table([array], [""]), sink := pa.BufferOutputStream())
        parquet.read_schema(pa.BufferReader(sink.getvalue()))  # more than 100 levels can be written, and not read
        return both
    except (OSError, pa.ArrowException, OverflowError, RecursionError, UnicodeEncodeError):
        return pa.string()


def holds_truth(value: Any) -> bool:
    """Whether a value of JSON is true or false, or holds it."""
    parts = value.values() if isinstance(value, dict) else value
    return any(map(holds_truth, parts)) if isinstance(value, (dict, list)) else isinstance(value, bool)


def same_truth(one: Any, other: Any) -> bool:
    """Whether what is true or false in a value of JSON is so in what Arrow made of it, which may have more fields."""
    if isinstance(one, dict):
        return all(same_truth(value, other[name]) for name, value in one.items())
    if isinstance(one, list):
        return all(map(same_truth, one, other))
    return isinstance(one, bool) == isinstance(other, bool)


def column_of(values: list[Any], kind: Any) -> Any:
    """Values as an Arrow array of a type that ``column_kinds`` gave them."""
    import pyarrow as pa

    if kind == pa.string():
        values = [v if v is None or isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in values]
        values = [v and v.encode(errors="backslashreplace").decode() for v in values]
    return pa.array(values, kind)


def stored(rows: Sequence[ArrowRow]) -> bytes:
    """Rows of consecutive batches as an Arrow stream, in which nothing about them is lost."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows[0].batch.rows.schema) as stream:
        for _, group in groupby(rows, key=lambda row: id(row.batch)):
            part = list(group)
            stream.write_batch(part[0].batch.rows.slice(part[0].index, len(part)))
    return bytes(sink.getvalue())


def table_of(batches: Sequence[Any], schema: Any) -> Any:
    """Batches as a pyarrow.Table; of none, without rows."""
    import pyarrow as pa

    return pa.Table.from_batches(batches, schema)


def restored(file: BinaryIO, end: int) -> Iterator[Any]:
    """What was ``stored`` in a file up to a place, a pyarrow.Table for each time."""
    import pyarrow as pa

    while file.tell() < end:
        with pa.ipc.open_stream(file) as stream:
            yield stream.read_all()
