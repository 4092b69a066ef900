"""Vectors in several number formats, and the files that they end up in.

A writer goes through the parts of an output, as often as it needs to, each some rows' fields (none, where the format
keeps none) and their vectors, so that what is written may be larger than memory. ``names`` are columns that a table has
even where it has no rows.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
from base64 import b64encode
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from mtl.disk import finished
from mtl.errors import InputError, one_line, shown
from mtl.rows.parquet import column_kinds, column_of, import_pyarrow

log = logging.getLogger("mtl")

OutputPrecision = Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"]
Vectors = NDArray[Any]
Fields = dict[str, Any]
Part = tuple[Any, Vectors]  # rows' fields, a list of dicts or a pyarrow.Table, and vectors (rows, dim)

WITH_ROWS = (".jsonl", ".csv", ".parquet")  # these keep the rows' fields beside the vectors
SAFETENSORS_TYPES = {"float32": "F32", "float16": "F16", "int8": "I8", "uint8": "U8"}
COLUMN = "embedding"


def value_ranges(vectors: Vectors) -> Vectors:
    """The least and the largest value of each dimension, (2, dim) float32."""
    return np.stack([vectors.min(axis=0), vectors.max(axis=0)])


def convert(vectors: Vectors, precision: OutputPrecision, ranges: Vectors | None = None) -> Vectors:
    """Float32 vectors (texts, dim) in another number format, as sentence-transformers' quantize_embeddings does.

    float16; int8 and uint8: 256 steps over each dimension's range, ``ranges`` (2, dim), by default that of these
    vectors; binary and ubinary: one bit per dimension, set where it is positive, eight to a byte (texts, dim / 8),
    as int8 (minus 128) or uint8.
    """
    if precision in ("binary", "ubinary"):
        packed = np.packbits(vectors > 0, axis=1)
        return packed if precision == "ubinary" else (packed.astype(np.int16) - 128).astype(np.int8)
    if precision in ("int8", "uint8"):
        least, largest = value_ranges(vectors) if ranges is None else ranges
        steps = (largest - least) / 255
        levels = np.clip(np.floor((vectors - least) / np.where(steps == 0, 1, steps)), 0, 255)
        return levels.astype(np.uint8) if precision == "uint8" else (levels - 128).astype(np.int8)
    return vectors.astype(precision, copy=False)


def scaled(vectors: Vectors) -> tuple[Vectors, Vectors]:
    """Vectors as int8 (rows, dim), and what to multiply each with to have it back, float32 (rows,).

    Each vector has the scale of its own largest value, so that no other text has a part in it, and cosines need no
    scale at all.
    """
    scales = np.abs(vectors).max(axis=1, initial=0) / np.float32(127)
    steps = vectors / np.where(scales == 0, 1, scales)[:, None]
    return np.rint(steps).astype(np.int8), scales.astype(np.float32)


def converted_shape(dim: int, precision: OutputPrecision) -> tuple[int, str]:
    """How wide a converted vector is, and its numpy dtype."""
    if precision in ("binary", "ubinary"):
        return -(-dim // 8), "int8" if precision == "binary" else "uint8"
    return dim, precision


def npy_header(file: BinaryIO, shape: tuple[int, int], dtype: str) -> None:
    """The header of a .npy file at the file's place; numpy leaves room in it for the number of rows to grow."""
    fields = {"descr": np.dtype(dtype).newbyteorder("<").str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, fields)


def raw(vectors: Vectors) -> bytes:
    """The bytes of vectors, row by row, little-endian."""
    return np.ascontiguousarray(vectors.astype(vectors.dtype.newbyteorder("<"), copy=False)).tobytes()


def write_npy(path: Path, parts: Iterable[Part], shape: tuple[int, int], dtype: str, names: Iterable[str] = ()) -> None:
    """Vectors as numpy stores them."""
    with path.open("wb") as file:
        npy_header(file, shape, dtype)
        file.writelines(raw(vectors) for _, vectors in parts)


def write_safetensors(
    path: Path, parts: Iterable[Part], shape: tuple[int, int], dtype: str, names: Iterable[str] = ()
) -> None:
    """Vectors as one tensor called ``embeddings``."""
    offsets = [0, shape[0] * shape[1] * np.dtype(dtype).itemsize]
    tensor = {"dtype": SAFETENSORS_TYPES[dtype], "shape": shape, "data_offsets": offsets}
    header = json.dumps({"embeddings": tensor}).encode()
    header += b" " * (-len(header) % 8)  # so that the numbers are aligned
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.writelines(raw(vectors) for _, vectors in parts)


def json_numbers(vector: Vectors) -> str:
    """A vector as a JSON list, with the digits that give back each number exactly."""
    return f"[{', '.join(map(str, vector))}]"


def json_line(value: Any, finite: bool = True, where: str = "JSON") -> str:
    """A value, as the fields of a row, in a line of JSON.

    What JSON has no type for, such as a date, becomes a string, as bytes do in base64, and a number that is not finite
    null, which a line says of ``where``; or where it need not be ``finite`` what Python writes for it. Numbers and
    arrays of numpy are what they hold.

    Raises:
        InputError: JSON cannot hold it: a key is no string or number, or a value is within itself.
    """
    try:
        with suppress(ValueError):
            return json.dumps(value, ensure_ascii=False, default=plain, allow_nan=not finite)
        line = json.dumps(without_infinite(value), ensure_ascii=False, default=plain)
    except (RecursionError, TypeError, ValueError) as error:
        raise InputError(f"JSON cannot hold {shown(value)}: {one_line(error)}") from None
    say_infinite(where)
    return line


@cache
def say_infinite(where: str) -> None:
    """Said once of each."""
    log.warning("%s: numbers that are infinite become null, as JSON has none", where)


def plain(value: Any) -> Any:
    """What JSON has no type for, as something that it has."""
    return of_numpy(value) if isinstance(value, (np.generic, np.ndarray)) else as_text(value)


def of_numpy(value: Any) -> Any:
    """What a number or an array of numpy holds; as a string what Python has no type for, or a coarser one, as dates in
    nanoseconds and numbers longer than float64."""
    if value.dtype.kind in "biufcSUO" and value.dtype.char not in "gG":
        return value.tolist()
    return list(value) if value.ndim else str(value)


def as_text(value: Any) -> str:
    """What JSON and CSV have no type for, as a string."""
    return b64encode(value).decode() if isinstance(value, bytes) else str(value)


def without_infinite(value: Any) -> Any:
    """The same value with None for each number in it that is not finite."""
    if isinstance(value, (np.generic, np.ndarray)):
        value = of_numpy(value)
    if isinstance(value, dict):
        return {key: without_infinite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_infinite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_jsonl(
    path: Path, parts: Iterable[Part], shape: tuple[int, int], dtype: str, names: Iterable[str] = ()
) -> None:
    """Each row's fields, and its vector as ``embedding`` behind them."""
    where = str(finished(path))
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
        for rows, vectors in parts:
            for fields, vector in zip(rows, vectors, strict=True):
                before = json_line(fields, where=where)[:-1] + (", " if fields else "")
                file.write(f'{before}"{COLUMN}": {json_numbers(vector)}}}\n')


def csv_line(values: Iterable[Any]) -> str:
    """A line of a .csv file; a list or an object stands in it as JSON, bytes in base64."""
    line = io.StringIO()
    nested = (json_line(v) if isinstance(v, (list, dict)) else as_text(v) if isinstance(v, bytes) else v
              for v in values)  # fmt: skip
    csv.writer(line, lineterminator="\r\n").writerow(nested)  # both, so that either in a field has it quoted
    return line.getvalue().removesuffix("\r\n") + "\n"


def write_csv(path: Path, parts: Iterable[Part], shape: tuple[int, int], dtype: str, names: Iterable[str] = ()) -> None:
    """A column for each of ``names`` and each field of any row, and the vector, a JSON list, as ``embedding``."""
    columns = list(dict.fromkeys([*names, *(name for rows, _ in parts for fields in rows for name in fields)]))
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        file.write(csv_line([*columns, COLUMN]))
        for rows, vectors in parts:
            for fields, vector in zip(rows, vectors, strict=True):
                file.write(csv_line([*map(fields.get, columns), json_numbers(vector)]))


def write_parquet(
    path: Path, parts: Iterable[Part], shape: tuple[int, int], dtype: str, names: Iterable[str] = ()
) -> None:
    """A column for each of ``names`` and each field of any row, and the vector as ``embedding``, a list of one length.

    Columns that come from Parquet keep their types, and those without a value are of strings.

    Raises:
        InputError: pyarrow is not installed, or a field's name is no Unicode.
    """
    pyarrow, parquet = import_pyarrow(path)
    vector = pyarrow.field(COLUMN, pyarrow.list_(pyarrow.from_numpy_dtype(np.dtype(dtype)), shape[1]))
    first = next(iter(parts), None)
    try:
        if first and isinstance(first[0], pyarrow.Table):
            schema = first[0].schema
        else:
            strings = dict.fromkeys(names, pyarrow.string())
            schema = pyarrow.schema(strings | column_kinds(lambda: (rows for rows, _ in parts), finished(path)))
        with parquet.ParquetWriter(path, schema.append(vector)) as writer:
            for rows, vectors in parts:
                numbers = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vectors.ravel()), shape[1])
                if not isinstance(rows, pyarrow.Table):
                    columns = [column_of([fields.get(field.name) for fields in rows], field.type) for field in schema]
                    rows = pyarrow.table(columns, schema=schema)
                writer.write_table(rows.append_column(vector, numbers))
    except (pyarrow.ArrowException, UnicodeEncodeError) as error:
        raise InputError(f"{finished(path)} cannot be written as Parquet: {one_line(error)}; write .jsonl") from None


WRITERS = {
    ".npy": write_npy,
    ".safetensors": write_safetensors,
    ".jsonl": write_jsonl,
    ".csv": write_csv,
    ".parquet": write_parquet,
}
