"""Rows as others write them: quotes, line ends, marks, empty lines, and every type of Parquet, in and out."""

import bz2
import csv
import gzip
import io
import json
import logging
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtl import embed_corpus
from mtl.errors import InputError
from mtl.rows.outputs import open_output
from mtl.rows.parquet import column_kinds, column_of, readable
from mtl.rows.read import column_names, read_rows, rows_of, texts_of
from mtl.rows.vector_files import json_line


def split(content: bytes) -> list[bytes]:
    """Lines as a binary file gives them."""
    return [line + b"\n" for line in content.split(b"\n")[:-1]] + [content.split(b"\n")[-1]] * (content[-1:] != b"\n")


def texts(folder: Path, name: str, content: bytes, **options: Any) -> list[str]:
    (folder / name).write_bytes(content)
    return [text for text, _ in texts_of(read_rows(folder / name, **options), name)]


def zstd(content: bytes) -> bytes:
    return pa.compress(content, "zstd", asbytes=True)


CASES = [
    ("lines.txt", b"a\n\nb\n\n", ["a", "", "b", ""]),
    ("one.csv", b"text\na\n\nb\n", ["a", "", "b"]),
    ("one.csv", b'text\r\na\r\n\r\n""\r\n', ["a", "", ""]),
    ("one.tsv", b"text\na\n\nb\n", ["a", "", "b"]),
    ("two.csv", b"id,text\n1,a\n\n2,b\n", ["a", "b"]),  # here an empty line is no row
    ("two.tsv", b"id\ttext\n1\t\n\n2\tb\n", ["", "b"]),
    ("returns.csv", b'id,text\n1,"a\r\nb\rc\nd"\n', ["a\r\nb\rc\nd"]),
    ("returns.csv", b'id,text\r\n1,"a\nb\rc\r\nd"\r\n', ["a\nb\rc\r\nd"]),
    ("old.csv", b'id,text\r1,a\r2,"b"\r', ["a", "b"]),
    ("old.csv", b'id,text\r1,a\r2,"b\rc"', ["a", "b\rc"]),
    ("old.tsv", b"id\ttext\r1\ta\r2\tb", ["a", "b"]),
    ("old.txt", b"a\r\rb\r", ["a", "", "b"]),
    ("mark.txt", b"\xef\xbb\xbfa\nb", ["a", "b"]),
    ("mark.csv", b'\xef\xbb\xbf"text",id\n"a",1\n', ["a"]),
    ("mark.tsv", b"\xef\xbb\xbftext\tid\na\t1\n", ["a"]),
    ("mark.jsonl", b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": "b", "of": {"x": [1, {"y": null}]}}', ["a", "b"]),
    ("UPPER.CSV", b"text\na\n", ["a"]),
    ("UPPER.JSONL.GZ", gzip.compress(b'{"text": "a"}\n', mtime=0), ["a"]),
    ("mark.txt", b"\xef\xbb\xbf", []),
    ("parts.txt.gz", gzip.compress(b"a\n", mtime=0) + gzip.compress(b"b\n", mtime=0), ["a", "b"]),
    ("long.tsv", b"text\n" + b"x" * 3_000_000 + b"\n", ["x" * 3_000_000]),
    ("null.csv", b"text,id\na\0b,1\n", ["a\0b"]),
    ("lines.ndjson", b'{"text": "a"}\n\n{"text": "b"}', ["a", "b"]),
    ("lines.json", b'{"text": "a"}\n{"text": "b"}\n', ["a", "b"]),
    ("array.json", b'\xef\xbb\xbf\n [\n {"text": "a"},\n\n {\n"text": "b"}]\n', ["a", "b"]),
    ("array.jsonl", b'[{"text": "a"}]', ["a"]),
    ("none.json", b"[]", []),
    ("UPPER.JSON.GZ", gzip.compress(b'[{"text": "a\xe2\x80\xa8b"}]', mtime=0), ["a\u2028b"]),
    ("parts.ndjson.bz2", bz2.compress(b'{"text": "a"}\n') + bz2.compress(b'{"text": "b"}'), ["a", "b"]),
    ("parts.txt.zst", zstd(b"a\n" * 99_999) + zstd(b"b"), [*"a" * 99_999, "b"]),
    ("joined.txt.bz2", bz2.compress(b"a\n") + bz2.compress(b"") + bz2.compress(b"b\n"), ["a", "b"]),
    ("old.txt.bz2", bz2.compress(b"a\rb"), ["a", "b"]),
]


@pytest.mark.parametrize(("name", "content", "expected"), CASES)
def test_lines_as_they_come(tmp_path: Path, name: str, content: bytes, expected: list[str]) -> None:
    assert texts(tmp_path, name, content) == expected


WRONG = [
    ("a.txt", "text".encode("utf-16"), "a.txt is not UTF-8, but UTF-16 or UTF-32; convert it"),
    ("a.csv", "text\na".encode("utf-16-be"), "a.csv is not UTF-8, but UTF-16 or UTF-32"),
    ("a.jsonl", '{"text": "a"}'.encode("utf-32"), "a.jsonl is not UTF-8, but UTF-16 or UTF-32"),
    ("a.tsv", "text\na".encode("utf-16-le"), "a.tsv is not UTF-8, but UTF-16 or UTF-32"),  # without a mark
    ("a.jsonl", b'{"text": "a", "text": "b"}', "line 1: not JSON .the key 'text' is there twice"),
    ("a.json", b'[\n{"text": "a"},\n["b"]]\n', "a.json, object 2: a list; expected an object"),
    ("a.json", b'[{"text": "a"}]\n[{"text": "b"}]', "a.json: not JSON .Extra data: line 2 .*; expected an"),
    ("a.json", b'[{"text": NaN}]', "a.json: not JSON .NaN is no number of JSON.; expected an object"),
    ("a.json", b'[{"text": "a"},\n{"text', "a.json: not JSON .Unterminated string starting at: line 2"),
    ("a.json", b'{\n"text": ["a"]}\n', "a.json, line 1: not JSON .*; expected an object on each line, or one array"),
    ("a.jsonl", b'{"text": "a"}\n["b"]', "a.jsonl, line 2: a list; expected an object"),
    ("a.json", b"[" * 200_000, "a.json: not JSON "),
    ("a.csv", b"text;label\na;b\n", "it has text;label; .*; or part fields as .csv or .tsv does, and not by ';'"),
    ("a.csv", b"text\tlabel\na\tb\n", r"and not by '.t'"),
    ("a.txt.bz2", b"a\n", "a.txt.bz2 cannot be read: "),
    ("a.txt.bz2", bz2.compress(b"abc\n" * 999)[:-9], "a.txt.bz2 is no whole .bz2 file"),
    ("a.txt.zst", zstd(b"abc\n" * 999)[:-5], "a.txt.zst cannot be read: "),
    ("a.txt.zst", zstd(bytes(range(33, 126)) * 99_999)[:-50], "a.txt.zst cannot be read: "),
    ("a.txt.xz", b"", "ends in '.xz'; expected one of .*, or .gz, .bz2, .zst behind it"),
    ("a.csv", b"text,id\na\rb,1\n", "line 2: a carriage return outside of quotes"),
    ("a.tsv", b'id\ttext\n1\t"a\nb"\n', "line 3: 1 field, expected 2 .id, text."),
    ("a.csv", b"text,text\na,b\n", "the field 'text' is there 2 times; expected each name once"),
    ("a.txt.gz", b"a\n", "is no whole .gz file: Not a gzipped file"),
]


@pytest.mark.parametrize(("name", "content", "message"), WRONG)
def test_what_is_not_understood(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        texts(tmp_path, name, content)


def test_an_array_is_held_whole_up_to_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtl.rows.read.WHOLE", 1 << 20)
    rows = '{"text": "' + "x" * 1000 + '"},\n'
    assert len(texts(tmp_path, "a.json", f"[{rows * 1000}{rows[:-2]}]".encode())) == 1001
    message = "a JSON array of more than 1 million characters, which would be held whole; expected JSON Lines, as jq"
    with pytest.raises(InputError, match=message):
        texts(tmp_path, "a.json", f"[{rows * 1100}{rows[:-2]}]".encode())


def test_many_columns_are_checked_at_once(tmp_path: Path) -> None:
    """By a count each, 100,000 names would take minutes."""
    names = [f"c{i}" for i in range(100_000)]
    assert texts(tmp_path, "wide.csv", f"text,{','.join(names)}\na{',' * len(names)}\n".encode()) == ["a"]
    with pytest.raises(InputError, match="the field 'c7' is there 2 times"):
        texts(tmp_path, "wide.csv", f"text,{','.join([*names, 'c7'])}\n".encode())
    row = ",".join(f'"{name}": 1' for name in [*names, "c99999"])
    with pytest.raises(InputError, match="line 1: not JSON .the key 'c99999' is there twice"):
        texts(tmp_path, "wide.jsonl", f"{{{row}}}\n".encode())


def test_a_struct_with_two_fields_of_a_name(tmp_path: Path) -> None:
    twice = pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], ["a", "a"])
    pq.write_table(pa.table({"text": ["x"], "s": twice}), tmp_path / "twice.parquet")
    with pytest.raises(InputError, match="struct<a: int64, a: int64>: the field 'a' is there 2 times"):
        [row["s"] for _, row in read_rows(tmp_path / "twice.parquet")]


@pytest.mark.parametrize("unit", ["s", "ms", "us"])
def test_instants_as_spark_writes_them(tmp_path: Path, unit: str) -> None:
    """Of 96 bits; in nanoseconds, those of other centuries would be of ours."""
    days = {"s": 86_400, "ms": 86_400_000, "us": 86_400_000_000}[unit]
    at = pa.array([-719_162 * days, 0, None, 2_932_896 * days], pa.timestamp(unit))
    pq.write_table(pa.table({"text": list("abcd"), "at": at}), tmp_path / "spark.parquet",
                   use_deprecated_int96_timestamps=True)  # fmt: skip
    expected = ["0001-01-01T00:00:00.000000", "1970-01-01T00:00:00.000000", None, "9999-12-31T00:00:00.000000"]
    assert [row["at"] for _, row in read_rows(tmp_path / "spark.parquet")] == expected
    near = pa.table({"text": ["a"], "at": pa.array([123_456_789], pa.timestamp("ns"))})
    pq.write_table(near, tmp_path / "impala.parquet", use_deprecated_int96_timestamps=True)
    assert [row["at"] for _, row in read_rows(tmp_path / "impala.parquet")] == ["1970-01-01T00:00:00.123456789"]


def test_instants_within_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of lists, structs and maps, with columns that are not read."""
    path, ns, us = tmp_path / "n.parquet", pa.timestamp("ns"), pa.timestamp("us")
    near: dict[str, pa.Array] = {
        "list": pa.array([[1, None], None], pa.list_(ns)),
        "struct": pa.array([{"x": 5, "at": 1}, None], pa.struct([("x", pa.int8()), ("at", ns)])),
        "map": pa.array([[("k", 1)], []], pa.map_(pa.string(), ns)),
        "deep": pa.array([[{"at": [1]}], None], pa.list_(pa.struct([("at", pa.list_(ns))]))),
        "a.b": pa.array([1, None], ns),
    }
    first, far = "1970-01-01T00:00:00.000000001", "9999-12-31T00:00:00.000000"
    found = [[first, None], {"x": 5, "at": first}, [["k", first]], [{"at": [first]}], first]
    text, late = pa.array(["a", "b"]), pa.array([[2_932_896 * 86_400_000_000], None], pa.list_(us))
    options: dict[str, Any] = {"use_deprecated_int96_timestamps": True}
    pq.write_table(pa.table({"text": text, **near}), path, **options)
    assert list(next(read_rows(path))[1].values()) == ["a", *found]
    pq.write_table(pa.table({"text": text, **near, "late": late}), path, **options)
    assert list(next(read_rows(path, [*near]))[1].values()) == found  # as nothing is known of the other
    assert next(read_rows(path, ["text", "late"]))[1]["late"] == [far]
    assert next(read_rows(path))[1]["a.b"] == first[:-3]
    monkeypatch.setattr("mtl.rows.parquet.leaves", None)
    assert next(read_rows(path, ["text"]))[1]["text"] == "a"
    assert column_names(path) == ["text", *near, "late"]


def test_json_of_any_depth_in_parquet() -> None:
    def nested(levels: int, leaf: object) -> object:
        for _ in range(levels):
            leaf = [leaf]
        return leaf

    for levels in (150, 500, 900):
        rows = [{"x": nested(levels, 0.5)}, {"x": nested(levels, True)}]
        assert column_kinds(lambda rows=rows: [rows], "x") == {"x": pa.string()}


HEADERS = {"none.csv": b"id,text,n\n", "none.tsv": b'id\t"text"\tn\r\n', "none.csv.gz": gzip.compress(b"id,text,n")}


@pytest.mark.parametrize("name", [*HEADERS, "none.parquet"])
def test_a_table_without_rows_keeps_its_columns(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    source, quoting = tmp_path / name, "minimal" if ".tsv" in name else "auto"
    if name in HEADERS:
        source.write_bytes(HEADERS[name])
    else:
        pq.write_table(pa.table({"id": pa.array([], pa.int32()), "text": pa.array([], pa.string()), "n": []}), source)
    assert column_names(source, quoting) == ["id", "text", "n"]  # type: ignore[arg-type]
    for end in (".csv", ".parquet", ".jsonl", ".npy", ".safetensors"):
        with open_output(tmp_path / f"o{end}", 3, "float32", {}, source=source, names=["id", "text", "n"]) as output:
            assert list(output.remaining(texts_of(read_rows(source, quoting=quoting), name))) == []
            output.finish()
    assert (tmp_path / "o.csv").read_bytes() == b"id,text,n,embedding\n"
    assert pq.read_schema(tmp_path / "o.parquet").names == ["id", "text", "n", "embedding"]
    assert pq.read_schema(tmp_path / "o.parquet").field("text").type == pa.string()
    assert (tmp_path / "o.jsonl").read_bytes() == b""
    assert np.load(tmp_path / "o.npy").shape == (0, 3)
    assert not caplog.records


def test_columns_of_no_table(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}')
    assert column_names(tmp_path / "a.jsonl") == []
    (tmp_path / "a.tsv").write_text('"id"\t"text"\n')
    assert column_names(tmp_path / "a.tsv") == ['"id"', '"text"']
    with pytest.raises(InputError, match="no.csv cannot be read: No such file"):
        column_names(tmp_path / "no.csv")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").mkdir()
    with pytest.raises(InputError, match=r"a\.csv is a folder; expected a file"):
        list(read_rows(tmp_path / "a.csv"))


def test_quotes_in_tsv(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As pandas writes it: read plainly with one line that says so, or as --quoting says."""
    content = b'text\tid\n"a ""b"" c"\t1\n"d\te"\t2\n'
    with pytest.raises(InputError, match="line 3: 3 fields, expected 2 .*; if fields are quoted, --quoting minimal"):
        texts(tmp_path, "q.tsv", content)
    assert texts(tmp_path, "q.tsv", content, quoting="minimal") == ['a "b" c', "d\te"]
    caplog.clear()
    plain = content.replace(b"d\te", b"d e")
    assert texts(tmp_path, "q.tsv", plain) == ['"a ""b"" c"', '"d e"']
    assert [record.getMessage().partition("q.tsv, ")[2] for record in caplog.records] == [
        "line 2: fields look quoted, and keep their quotes; --quoting minimal takes them away"
    ]
    caplog.clear()
    assert texts(tmp_path, "q.tsv", plain, quoting="none") == ['"a ""b"" c"', '"d e"']
    assert texts(tmp_path, "q.tsv", b'text\tid\n5" of "snow\t1\n') == ['5" of "snow']
    assert texts(tmp_path, "q.csv", b'text,id\n"a",1\n', quoting="none") == ['"a"']
    assert not caplog.records


@given(st.lists(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), min_size=2, max_size=2)))
def test_whatever_csv_writes(rows: list[list[str]]) -> None:
    """Python's own writer and our reader agree, with either line end and either delimiter."""
    for kind, delimiter, end in ((".csv", ",", "\n"), (".csv", ",", "\r\n"), (".tsv", "\t", "\n")):
        quoting = csv.QUOTE_ALL if end == "\n" else csv.QUOTE_MINIMAL  # which leaves a bare return unquoted there
        file = io.StringIO(newline="")
        csv.writer(file, delimiter=delimiter, lineterminator=end, quoting=quoting).writerows([["a", "b"], *rows])
        lines = split(file.getvalue().encode())
        found = [list(fields.values()) for _, fields in rows_of(lines, "x", kind, "minimal")]
        assert found == rows


VALUES: list[tuple[Any, list[Any], list[Any]]] = [
    (pa.timestamp("ns"), [1, None], ["1970-01-01T00:00:00.000000001", None]),
    (pa.timestamp("us"), [-62167219200 * 10**6], ["0000-01-01T00:00:00.000000"]),
    (pa.timestamp("ms", "Europe/Berlin"), [0], ["1970-01-01T01:00:00.000+01:00"]),
    (pa.timestamp("us", "No/Where"), [0], ["1970-01-01T00:00:00.000000Z"]),
    (pa.duration("ns"), [1_500_000_000, -1, None], ["PT1.500000000S", "PT-0.000000001S", None]),
    (pa.date32(), [1, -800000], ["1970-01-02", "-0221-09-04"]),
    (pa.time64("ns"), [1], ["00:00:00.000000001"]),
    (pa.decimal128(10, 2), [Decimal("1.50"), None], ["1.50", None]),
    (pa.binary(), [b"", b"\0\1", None], ["", "AAE=", None]),
    (pa.float32(), [0.1, float("nan"), None], [0.1, None, None]),
    (pa.float64(), [0.1, float("nan"), None], [0.1, None, None]),
    (pa.uint64(), [2**64 - 1, None], [2**64 - 1, None]),
    (pa.null(), [None], [None]),
    (pa.string_view(), ["a", None], ["a", None]),
    (pa.list_(pa.timestamp("ms")), [[0, None], None, []], [["1970-01-01T00:00:00.000", None], None, []]),
    (pa.list_(pa.int8(), 2), [[1, 2], None], [[1, 2], None]),
    (pa.map_(pa.string(), pa.date32()), [[("a", 0)], None, []], [[["a", "1970-01-01"]], None, []]),
    (pa.struct([("a", pa.binary()), ("b", pa.list_(pa.float16()))]),
     [{"a": b"x", "b": [0.5]}, None], [{"a": "eA==", "b": [0.5]}, None]),
    (pa.dictionary(pa.int8(), pa.string()), ["x", "y", None, "x"], ["x", "y", None, "x"]),
]  # fmt: skip


def column(kind: Any, values: list[Any]) -> pa.Array:
    return pa.array(values, pa.string()).cast(kind) if pa.types.is_dictionary(kind) else pa.array(values, kind)


@pytest.mark.parametrize(("kind", "values", "expected"), VALUES, ids=[str(kind) for kind, _, _ in VALUES])
def test_values_to_read(kind: Any, values: list[Any], expected: list[Any]) -> None:
    """Of a whole array, of a slice of one, and of none, as they are written."""
    array = column(kind, values)
    for part, wanted in (
        (array, expected),
        (pa.concat_arrays([array, array])[len(array) + 1 :], expected[1:]),
        (array[:0], []),
    ):
        assert json.loads(json_line(readable(part), finite=False)) == wanted


def test_numbers_of_numpy_in_json() -> None:
    """What Python has no type for is text: an integer of nanoseconds would be no date, and a long double recurses."""
    instant, long = np.datetime64("2020-01-01", "ns"), np.longdouble(1.5)
    text = "2020-01-01T00:00:00.000000000"
    for value, expected in (
        (instant, text), (np.array([[instant]]), [[text]]), (np.array(instant), text), (np.datetime64("NaT"), "NaT"),
        (np.timedelta64(5, "ns"), "5 nanoseconds"), (long, "1.5"), (np.array([long]), ["1.5"]),
        (np.clongdouble(1.5), "(1.5+0j)"), (np.complex64(1.5), "(1.5+0j)"), (np.float16(1.5), 1.5),
        (np.array([b"a", b"b"]), ["YQ==", "Yg=="]), (np.array([1.5, instant], object), [1.5, text]),
        (np.zeros(1, [("at", "M8[ns]")]), ["('1970-01-01T00:00:00.000000000',)"]),
    ):  # fmt: skip
        assert json.loads(json_line({"x": value})) == {"x": expected}
        assert json.loads(json_line({"x": value, "y": np.float32("inf")})) == {"x": expected, "y": None}
        assert json.loads(json_line({"x": value, "y": float("inf")})) == {"x": expected, "y": None}


def test_extension_types() -> None:
    uuid = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([bytes(16), None], pa.binary(16)))
    assert readable(uuid) == ["00000000-0000-0000-0000-000000000000", None]
    assert readable(pa.ExtensionArray.from_storage(pa.json_(), pa.array(["[1]", None]))) == ["[1]", None]


def every_type(rows: int) -> pa.Table:
    """A column of each type beside the texts, with missing values."""
    columns = {"text": pa.array([f"a {'bcdef'[i % 5]}" for i in range(rows)])}
    for kind, given_, _ in VALUES:
        values = [value for value in given_ if value == value]  # NaN equals nothing
        columns[str(kind)] = column(kind, [values[i % len(values)] for i in range(rows)])
    return pa.table(columns).replace_schema_metadata({"pandas": "{}"})


def write(path: Path, source: Path, stop: int | None = None) -> None:
    """An output of a file's rows in small windows; ``stop`` interrupts it after so many rows."""
    with open_output(path, 2, "float32", {"model": "m"}, resume=True, source=source) as output:
        rows = list(output.remaining(texts_of(read_rows(source), "x")))
        for start in range(0, len(rows), 3):
            if stop is not None and start >= stop:
                raise KeyboardInterrupt
            part = rows[start : start + 3]
            output.write(part, np.array([[len(text), 1] for text, _ in part], dtype=np.float32))
        output.finish()


def test_parquet_keeps_every_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over row groups, batches, windows and an interruption; names and metadata too."""
    monkeypatch.setattr("mtl.rows.parquet.BATCH_ROWS", 4)
    table, source, output = every_type(20), tmp_path / "in.parquet", tmp_path / "out.parquet"
    pq.write_table(table, source, row_group_size=7)
    with pytest.raises(KeyboardInterrupt):
        write(output, source, stop=9)
    assert (tmp_path / "out.parquet.partial.rows").exists()
    write(output, source)
    found = pq.read_table(output)
    assert found.drop_columns("embedding").equals(pq.read_table(source))
    assert found.schema.metadata == {b"pandas": b"{}"}
    assert found["embedding"].to_pylist() == [[3, 1]] * 20
    pq.write_table(table.set_column(1, "other", table[1]), source)
    with pytest.raises(InputError, match="the input differs from what is in .*out.parquet; --overwrite starts anew"):
        write(output, source)


@pytest.mark.parametrize("suffix", [".jsonl", ".npy"])
def test_another_field_is_another_input(tmp_path: Path, suffix: str) -> None:
    """Though the rows are the same ones."""
    (tmp_path / "in.jsonl").write_text('{"text": "a", "body": "b"}\n')

    def run(field: str) -> bool:
        """Whether there was nothing left to do."""
        with open_output(tmp_path / f"out{suffix}", 1, "float32", {}, resume=True) as output:
            left = list(output.remaining(texts_of(read_rows(tmp_path / "in.jsonl"), "x", field)))
            if not output.complete:
                output.write(left, np.ones((len(left), 1), np.float32))
            output.finish()
            return output.complete

    assert [run("text"), run("text")] == [False, True]
    with pytest.raises(InputError, match="the input differs in its first 1 row from"):
        run("body")


def test_parquet_to_text(tmp_path: Path) -> None:
    source = tmp_path / "in.parquet"
    pq.write_table(every_type(4), source)
    write(tmp_path / "out.jsonl", source)
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    expected = [[x for x, v in zip(expected, values, strict=True) if v == v] for _, values, expected in VALUES]
    assert [list(row.values())[1:-1] for row in found] == [[x[i % len(x)] for x in expected] for i in range(4)]
    write(tmp_path / "out.csv", source)
    with (tmp_path / "out.csv").open(newline="") as file:
        assert next(csv.DictReader(file))["timestamp[ns]"] == "1970-01-01T00:00:00.000000001"


def test_no_rows_and_names_that_are_taken(tmp_path: Path) -> None:
    source = tmp_path / "in.parquet"
    pq.write_table(every_type(0), source)
    write(tmp_path / "out.parquet", source)
    assert pq.read_schema(tmp_path / "out.parquet").names == [*every_type(0).column_names, "embedding"]
    for rows in (0, 2):
        pq.write_table(every_type(rows).append_column("embedding", pa.nulls(rows)), source)
        with pytest.raises(InputError, match="a row has a field 'embedding' already; rename it, or write .npy"):
            write(tmp_path / "taken.parquet", source)
        write(tmp_path / f"{rows}.npy", source)
    pq.write_table(pa.table([pa.array(["a"]), pa.array(["b"])], ["text", "text"]), source)
    with pytest.raises(InputError, match="the field 'text' is there 2 times"):
        list(read_rows(source))


def test_only_what_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a row, no other column becomes Python objects; and where fields are named, no other is read."""
    pq.write_table(every_type(3), tmp_path / "in.parquet")
    made: list[int] = []
    monkeypatch.setattr("mtl.rows.parquet.readable", lambda array: made.append(len(array)) or array.to_pylist())
    rows = [row for _, row in texts_of(read_rows(tmp_path / "in.parquet"), "x")]
    assert (made, len(rows[0])) == ([3], len(VALUES) + 1)
    assert next(fields.keys() for _, fields in read_rows(tmp_path / "in.parquet", ["text"])) == {"text"}
    with pytest.raises(InputError, match=r"line 1: no field 'body'; it has text, timestamp\[ns\],"):
        list(texts_of(read_rows(tmp_path / "in.parquet", ["body"]), "x", "body"))


def test_strings_that_are_no_unicode(tmp_path: Path) -> None:
    broken = pa.array([b"a", b"\xff"]).view(pa.string())
    pq.write_table(pa.table({"text": ["a", "b"], "x": broken}), tmp_path / "in.parquet")
    assert [text for text, _ in texts_of(read_rows(tmp_path / "in.parquet"), "x")] == ["a", "b"]
    with pytest.raises(InputError, match="row 1 to 2: field 'x' is not UTF-8"):
        list(texts_of(read_rows(tmp_path / "in.parquet"), "x", "x"))


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary(1), pa.dictionary(pa.int8(), pa.binary())])
def test_bytes_are_no_text(tmp_path: Path, kind: pa.DataType) -> None:
    """Whatever they hold: not the base64 as which they are written is embedded."""
    pq.write_table(pa.table({"text": pa.array([b"a", b"b"]).cast(kind)}), tmp_path / "in.parquet")
    with pytest.raises(InputError, match="line 1: field 'text' is of type bytes; expected a string"):
        list(texts_of(read_rows(tmp_path / "in.parquet"), "x"))


MIXED: list[tuple[list[Any], Any, list[Any]]] = [
    ([1, "a", None], pa.string(), ["1", "a", None]),
    ([1, 2.5, None], pa.float64(), [1.0, 2.5, None]),
    ([2**53 + 1, 0.5], pa.string(), ["9007199254740993", "0.5"]),
    ([1, 2**64 - 1], pa.uint64(), [1, 2**64 - 1]),
    ([-1, 2**63], pa.string(), ["-1", "9223372036854775808"]),
    ([True, 1], pa.string(), ["true", "1"]),
    ([0.5, True], pa.string(), ["0.5", "true"]),
    ([[0.5, False]], pa.string(), ["[0.5, false]"]),
    ([{"a": [{"b": 0.5}, {"b": True}]}], pa.string(), ['{"a": [{"b": 0.5}, {"b": true}]}']),
    ([{"a": 0.5}, {"b": True}], pa.struct([("a", pa.float64()), ("b", pa.bool_())]),
     [{"a": 0.5, "b": None}, {"a": None, "b": True}]),
    ([{}, None], pa.string(), ["{}", None]),
    ([{"a": 1}, {"b": "x"}], pa.struct([("a", pa.int64()), ("b", pa.string())]),
     [{"a": 1, "b": None}, {"a": None, "b": "x"}]),
    ([[], ["a"]], pa.list_(pa.string()), [[], ["a"]]),
    ([[1], "a"], pa.string(), ["[1]", "a"]),
    ([None, None], pa.null(), [None, None]),
]  # fmt: skip


def parts(values: list[Any], size: int) -> Callable[[], Iterator[list[dict[str, Any]]]]:
    return lambda: ([{"x": value} for value in values[i : i + size]] for i in range(0, len(values), size))


@pytest.mark.parametrize(("values", "kind", "expected"), MIXED)
@pytest.mark.parametrize("size", [1, 9])
def test_values_of_several_types(values: list[Any], kind: Any, expected: list[Any], size: int) -> None:
    """In one part or in several, in either order: never refused, and no number is rounded."""
    for given_, wanted in ((values, expected), (values[::-1], expected[::-1])):
        kinds = column_kinds(parts(given_, size), "x")
        assert column_of(given_, kinds["x"]).to_pylist() == wanted
        if not pa.types.is_struct(kind):
            assert kinds["x"] == kind


@given(st.lists(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab"), inner, max_size=3), max_leaves=5,
), max_size=6))  # fmt: skip
def test_any_json_goes_to_parquet(values: list[Any]) -> None:
    kinds = column_kinds(parts(values, 2), "x")
    for i in range(0, len(values), 2):
        array = column_of(values[i : i + 2], kinds["x"])
        pq.write_table(pa.table({"x": array}), pa.BufferOutputStream())
        assert [v is None for v in array.to_pylist()] == [v is None for v in values[i : i + 2]]


def test_a_corpus_of_mixed_rows(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Ids that are numbers and strings, far from each other; a quoted .tsv; capitals; types that Python has not."""
    lines = [{"id": i if i < 9000 else f"x{i}", "text": "a", "big": 2**63} for i in range(9002)]
    (tmp_path / "a.JSONL").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with caplog.at_level(logging.WARNING, "mtl"):
        embed_corpus([tmp_path / "a.JSONL"], tmp_path / "out", model=folder, keep=["big"])
    table = pq.read_table(tmp_path / "out" / "a.parquet")
    assert table["id"].to_pylist() == [str(line["id"]) for line in lines]
    assert (table["big"].type, len(caplog.records)) == (pa.uint64(), 1)
    (tmp_path / "b.tsv").write_text('id\ttext\n1\t"a ""b"""\n')
    embed_corpus([tmp_path / "b.tsv"], tmp_path / "b", model=folder, keep=["text"], quoting="minimal")
    assert pq.read_table(tmp_path / "b" / "b.parquet")["text"].to_pylist() == ['a "b"']
    times = pa.table({"id": pa.array([1, 2], pa.timestamp("ns")), "text": ["a", ""]})
    pq.write_table(times.append_column("of", times["text"].dictionary_encode()), tmp_path / "c.parquet")
    embed_corpus([tmp_path / "c.parquet"], tmp_path / "c", model=folder, field="of", keep=["of"])
    found = pq.read_table(tmp_path / "c" / "c.parquet")
    assert found.schema.types[:2] == [pa.timestamp("ns"), pa.dictionary(pa.int32(), pa.string())]
