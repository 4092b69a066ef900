"""A corpus in one process: files in every format, what is kept, resuming, and every bad input."""

import bz2
import dataclasses
import gzip
import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from test_cli import Done, mtl

from mtl import SentenceEncoder, embed_corpus
from mtl.disk import PARTIAL
from mtl.errors import InputError
from mtl.rows.blocks import Ids

__all__ = ["mtl"]  # the fixture

TEXTS = ["a b c", "d, e", "", 'f "g"', "a b c", "é"]
TABLE = {"text": TEXTS, "id": ["r0", "r1", "r2", "r3", "r4", "r5"], "stars": [5, None, 3, 1, 0, 2]}


def write_parquet(path: Path, table: dict[str, list[Any]] = TABLE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), path)
    return path


def write_lines(path: Path, table: dict[str, list[Any]] = TABLE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


@pytest.fixture
def embed(folder: Path, tmp_path: Path) -> Callable[..., Any]:
    """Embeds with the tiny model into ``out``, unless told otherwise."""

    def run(*inputs: Path, output: Path = tmp_path / "out", **options: Any) -> Any:
        return embed_corpus(inputs, output, **{"model": folder} | options)

    return run


def vectors_of(path: Path) -> np.ndarray:
    column = pq.read_table(path)["embedding"].combine_chunks()
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), column.type.list_size)


def test_every_format_gives_the_vectors_of_encode(embed: Callable[..., Any], folder: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    write_parquet(corpus / "deep" / "a.parquet")
    write_lines(corpus / "b.jsonl")
    write_lines(corpus / "c.v2.jsonl.gz")
    (corpus / "d.csv").write_text('text,id,stars\na b c,r0,5\n"d, e",r1,\n')
    (corpus / "e.tsv.gz").write_bytes(gzip.compress(b"text\tid\tstars\na b c\tr0\t5\n"))
    row = b'{"text": "a b c", "id": "r0", "stars": 5}\n'
    (corpus / "f.ndjson.zst").write_bytes(pa.compress(row, "zstd", asbytes=True))
    (corpus / "g.jsonl.BZ2").write_bytes(bz2.compress(row))
    (corpus / "_SUCCESS").touch()
    done = embed(corpus, keep=["stars"])
    assert (done.files, done.there, done.rows) == (7, 0, 23)
    expected = SentenceEncoder.from_pretrained(folder).encode(TEXTS)
    for name, rows in (("deep/a", 6), ("b", 6), ("c.v2", 6), ("d", 2), ("e", 1), ("f", 1), ("g", 1)):
        table = pq.read_table(tmp_path / "out" / f"{name}.parquet")
        assert table.column_names == ["id", "stars", "embedding"]
        assert table.schema.field("embedding").type == pa.list_(pa.float32(), 12)
        assert np.array_equal(vectors_of(tmp_path / "out" / f"{name}.parquet"), expected[:rows]), name
        assert table["id"].to_pylist() == TABLE["id"][:rows]
    assert pq.read_table(tmp_path / "out" / "b.parquet")["stars"].to_pylist() == TABLE["stars"]
    assert not list((tmp_path / "out").rglob(".*"))


def test_one_file_and_one_column(folder: Path, tmp_path: Path) -> None:
    """As they stand, and not letter by letter."""
    source = write_parquet(tmp_path / "a.parquet")
    assert embed_corpus(str(source), tmp_path / "out", model=folder, keep="stars").files == 1
    assert pq.read_schema(tmp_path / "out" / "a.parquet").names == ["id", "stars", "embedding"]


def test_keywords_of_sentence_transformers(embed: Callable[..., Any], tmp_path: Path) -> None:
    """They mean in the manifest what they mean in the vectors; numbers of numpy's are numbers."""
    source = write_parquet(tmp_path / "a.parquet")
    embed(source, normalize_embeddings=True, show_progress_bar=False, max_length=np.int64(8))
    settings = json.loads((tmp_path / "out" / "manifest.json").read_text())["settings"]
    assert (settings["normalize"], settings["max_length"]) == (True, 8)
    np.testing.assert_allclose(np.linalg.norm(vectors_of(tmp_path / "out" / "a.parquet"), axis=1), 1, rtol=1e-5)
    with pytest.raises(InputError, match="embed_corpus has no option 'as_tensor'"):
        embed(source, as_tensor=True)


@pytest.mark.parametrize(("kind", "step"), [("float32", 0), ("float16", 1e-3), ("scaled-int8", 1 / 254)])
def test_number_formats(embed: Callable[..., Any], folder: Path, tmp_path: Path, kind: Any, step: float) -> None:
    """int8 comes back to half a step of each vector's own largest value."""
    embed(write_parquet(tmp_path / "a.parquet"), output_precision=kind)
    table = pq.read_table(tmp_path / "out" / "a.parquet")
    found = vectors_of(tmp_path / "out" / "a.parquet")
    assert found.dtype == kind.removeprefix("scaled-")
    scales = table["embedding_scale"].to_numpy()[:, None] if kind == "scaled-int8" else 1
    expected = SentenceEncoder.from_pretrained(folder).encode(TEXTS)
    largest = np.abs(expected).max(axis=1, keepdims=True)
    assert (np.abs(found.astype(np.float32) * scales - expected) <= 1.0001 * step * largest).all()
    if kind == "scaled-int8":
        assert (np.abs(found).max(axis=1) == 127).all()
        embed(tmp_path / "a.parquet", vectors="int8", output=tmp_path / "older")  # what it was called before
        assert pq.read_table(tmp_path / "older" / "a.parquet").equals(table)
    written = pq.ParquetFile(tmp_path / "out" / "a.parquet").metadata.row_group(0).column(1)
    # In a dictionary an int8 takes one byte and not four
    assert ("RLE_DICTIONARY" in written.encodings) == (kind == "scaled-int8")


def test_windows_do_not_show(embed: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that do not fill windows or row groups keep their ids, and numbers, and vectors."""
    pq.write_table(pa.table({"text": TEXTS * 5, "id": range(30)}), tmp_path / "a.parquet", row_group_size=7)
    embed(tmp_path / "a.parquet")
    monkeypatch.setattr("mtl.rows.work.WINDOW", 4)
    assert embed(tmp_path / "a.parquet", output=tmp_path / "four", id_column=None).rows == 30
    assert pq.read_table(tmp_path / "four" / "a.parquet")["row"].to_pylist() == list(range(1, 31))
    embed(tmp_path / "a.parquet", output=tmp_path / "same")
    whole, parts = (pq.read_table(tmp_path / out / "a.parquet") for out in ("out", "same"))
    assert whole.equals(parts)


def test_instants_of_all_files_have_one_unit(embed: Callable[..., Any], tmp_path: Path) -> None:
    """Of 96 bits, as Spark writes them: one file with an instant of another century, and all are in microseconds."""
    (tmp_path / "in").mkdir()
    for name, at in (("near", 1_000), ("far", 2_932_896 * 86_400_000_000)):
        table = pa.table({"id": [name], "text": ["a"], "at": pa.array([at], pa.timestamp("us"))})
        pq.write_table(table, tmp_path / "in" / f"{name}.parquet", use_deprecated_int96_timestamps=True)
    for source, output, unit in (("in", "both", "us"), ("in/near.parquet", "one", "ns")):
        embed(tmp_path / source, output=tmp_path / output, keep=["at"])
        parts = [pq.read_table(part) for part in (tmp_path / output).rglob("*.parquet")]
        assert {str(part.schema.field("at").type) for part in parts} == {f"timestamp[{unit}]"}
        assert {str(part["at"][0].as_py().year) for part in parts} <= {"1970", "9999"}
    embed(tmp_path / "in", output=tmp_path / "without")  # where none of them is kept, nothing hangs on them
    assert "at" not in pq.read_schema(next((tmp_path / "without").rglob("*.parquet"))).names


def test_ids_among_many() -> None:
    """Each part is looked for among all before it, whose sorted runs stay few: no part costs all that came before."""
    ids, names = Ids(), [f"id {i}" for i in range(3000)]
    for start in range(0, 3000, 10):
        ids.add(names[start : start + 10], names[start : start + 10])
    assert len(ids.runs) <= 10
    assert sum(map(len, ids.runs)) == 3000
    for again in (0, 1499, 2999):
        with pytest.raises(InputError, match=f"x has the id 'id {again}', as a row before it"):
            ids.add(["new", names[again]], ["w", "x"])
    with pytest.raises(InputError, match="y has the id 'twice'"):
        ids.add(["twice", "twice"], ["x", "y"])
    ids.add([], [])


def test_files_without_rows(embed: Callable[..., Any], tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    write_parquet(corpus / "a.parquet", {"text": pa.array([], pa.string()), "id": pa.array([], pa.int64())})
    (corpus / "b.jsonl").touch()
    (corpus / "c.csv").write_text("text,id\n")
    assert embed(corpus).rows == 0
    for name, kind in (("a", pa.int64()), ("b", pa.string()), ("c", pa.string())):
        table = pq.read_table(tmp_path / "out" / f"{name}.parquet")
        assert (len(table), table.schema.types) == (0, [kind, pa.list_(pa.float32(), 12)])


def test_what_is_said_at_the_end(embed: Callable[..., Any], tmp_path: Path) -> None:
    done = embed(write_parquet(tmp_path / "a.parquet"), max_length=4)
    assert (done.tokens, done.cut_texts, done.cut_tokens) == (4 + 4 + 2 + 4 + 3, 3, 1 + 1 + 2)  # five distinct texts
    lines = str(dataclasses.replace(done, seconds=3.0, span=2.0, busy=1.5, there=1)).splitlines()
    assert lines == [
        "1 file, 6 rows, 17 tokens in 3.0 s; 1 file already there",
        "too long: 3 texts, which lost 4 tokens; --overflow chunk embeds them whole",
        "3 rows per second once it had begun, 4 per second and actor (1 of them)",
    ]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_second_run_does_what_is_missing(embed: Callable[..., Any], tmp_path: Path) -> None:
    """One file was bad: what was finished stays as it is, what is mended is added, and the bytes are the same."""
    corpus, out = tmp_path / "corpus", tmp_path / "out"
    for name in "abc":
        write_parquet(corpus / f"{name}.parquet", TABLE | {"id": [f"{name}{i}" for i in range(6)]})
    embed(corpus, output=tmp_path / "whole")
    good = (corpus / "c.parquet").read_bytes()
    time = (corpus / "c.parquet").stat()
    for damaged in (b'{"text": "a", "id": 1}\n', good[:-9], good[: len(good) // 2], b""):  # no Parquet, or cut short
        (corpus / "c.parquet").write_bytes(damaged)
        with pytest.raises(InputError, match=r"c\.parquet cannot be read: Parquet .*(magic bytes|size is 0 bytes)"):
            embed(corpus)
        assert not out.exists()  # seen before anything began
    (corpus / "c.parquet").write_bytes(good)
    os.utime(corpus / "c.parquet", ns=(time.st_atime_ns, time.st_mtime_ns))
    (corpus / "d.jsonl").write_text('{"text": "a", "id": 1}\n{"text": null, "id": 2}\n')
    with pytest.raises(InputError, match=r"d\.jsonl: line 2: field 'text' is missing; expected a string"):
        embed(corpus)
    first = {path.name: path.stat().st_ino for path in out.glob("*.parquet")}
    assert first
    assert "d.parquet" not in first
    (corpus / "d.jsonl").unlink()
    (out / f".b.parquet.12345678{PARTIAL}").touch()  # as a process that was killed leaves it
    done = embed(corpus)
    assert (done.files, done.there) == (3 - len(first), len(first))
    assert {name: (out / name).stat().st_ino for name in first} == first
    assert contents(out) == contents(tmp_path / "whole")
    assert embed(corpus).files == 0


def test_an_output_of_another_input_is_not_taken_for_this_one(embed: Callable[..., Any], tmp_path: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl")
    embed(source)
    write_lines(source, {name: values[:3] for name, values in TABLE.items()})
    with pytest.raises(InputError, match=r"out/a\.parquet was made from another .*a\.jsonl than .*; remove it"):
        embed(source)
    (tmp_path / "out" / "a.parquet").unlink()
    assert embed(source).rows == 3
    data = (tmp_path / "out" / "a.parquet").read_bytes()
    (tmp_path / "out" / "a.parquet").write_bytes(data[:-9])
    with pytest.raises(InputError, match=r"out/a\.parquet cannot be read: .*; remove it to have it made again"):
        embed(source)
    pq.write_table(pa.table(TABLE), tmp_path / "out" / "a.parquet")
    with pytest.raises(InputError, match="is no output of embed-corpus; choose another folder"):
        embed(source)


def test_a_folder_of_another_model_or_settings(
    embed: Callable[..., Any], folder: Path, checkpoint: Any, tmp_path: Path
) -> None:
    source = write_lines(tmp_path / "a.jsonl")
    embed(source)
    with pytest.raises(InputError, match="out was made otherwise: normalize was False, is True; vectors was 'float32'"):
        embed(source, normalize=True, vectors="int8")
    shutil.copytree(folder, tmp_path / "renamed")
    assert embed(source, model=tmp_path / "renamed").there == 1
    other = SentenceEncoder.from_pretrained(folder)
    with torch.no_grad():
        other.encoder.embeddings.word_embeddings.weight[7] += 1
    other.save(tmp_path / "other")
    with pytest.raises(InputError, match=r"otherwise with the model .*tiny': fingerprint.encoder was .*; choose"):
        embed(source, model=tmp_path / "other")
    int8 = {"output": tmp_path / "int8", "precision": "int8"}
    embed(source, int8_least_cosine=0, **int8)  # which decides what stays in float32
    with pytest.raises(InputError, match=r"was made otherwise: int8_least_cosine was 0, is 0\.1"):
        embed(source, int8_least_cosine=0.1, **int8)
    assert embed(source, threads=1, batch_tokens=64, overflow="truncate").there == 1  # these change no bit
    manifest = tmp_path / "out" / "manifest.json"
    for damaged in (manifest.read_text()[:-20], manifest.read_text().replace("false", "true"), "[]"):
        manifest.write_text(damaged)
        with pytest.raises(InputError, match=r"manifest\.json is damaged; restore it, or choose another output"):
            embed(source)
    manifest.unlink()
    with pytest.raises(InputError, match=r"out holds a\.parquet but no manifest\.json"):
        embed(source)


ROWS = {"text": ["a", "b", "c"], "id": [1, 2, 3]}
BAD_TABLES = [
    ({"body": ["a"], "id": [1]}, {}, "no column 'text'; it has body, id: name one with --field"),
    ({"text": ["a"], "key": [1]}, {}, "no column 'id'; it has text, key: name one with --id-column, or number"),
    (ROWS, {"keep": ["x"]}, "no column 'x'; it has text, id: name one with --keep"),
    (ROWS | {"text": ["a", None, "c"]}, {}, "row 2: field 'text' is missing; expected a string"),
    (ROWS | {"id": [1, 2, None]}, {}, "row 3 has no id; expected one for each row, each once in a file"),
    (ROWS | {"id": [1, 2, 1]}, {}, "row 3 has the id 1, as a row before it"),
    (ROWS | {"id": [1, 1, 2]}, {}, "row 2 has the id 1, as a row before it"),
    (ROWS, {"field": "id"}, "column 'id' is of type int64; expected strings"),
    (ROWS, {"column": "id"}, "column 'id' is of type int64; expected strings"),
]
BAD_LINES = [
    ('{"text": "a", "id": 1}\n{"id": 2}\n', "line 2: no column 'text'; it has id"),
    ('{"text": "a", "id": 1}\n{"text": 7, "id": 2}\n', "line 2: field 'text' is of type int; expected a string"),
    ('{"text": "\\ud800", "id": 1}\n', "line 1: field 'text' holds half of a surrogate pair"),
    ('{"text": "a", "id": 1}\n{"text": "b", "id": "1"}\n', "line 2 has the id '1', as a row before it"),
    ('{"text": "a", "id": 1}\n\n{"text": "b", "id": 1}\n', "line 3 has the id 1, as a row before it"),
    ('{"text": "a", "id"', "line 1: not JSON"),
]


@pytest.mark.parametrize(("table", "options", "message"), BAD_TABLES)
def test_bad_parquet(
    embed: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: Any, options: Any, message: str
) -> None:
    monkeypatch.setattr("mtl.rows.work.WINDOW", 2)
    with pytest.raises(InputError, match=rf"^\S+/in/a\.parquet: {message}"):
        embed(write_parquet(tmp_path / "in" / "a.parquet", table), **options)
    assert not list((tmp_path / "out").glob("*.parquet"))


@pytest.mark.parametrize(("lines", "message"), BAD_LINES)
def test_bad_lines(embed: Callable[..., Any], tmp_path: Path, lines: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text(lines)
    with pytest.raises(InputError, match=rf"^\S+/a\.jsonl[:,] {message}"):
        embed(tmp_path / "a.jsonl")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["manifest.json"]


def test_bad_places(embed: Callable[..., Any], tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in" / "a.jsonl")
    (tmp_path / "empty").mkdir()
    (tmp_path / "photo.png").touch()
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a", "id": 1}\n')[:-9])
    (tmp_path / "file").touch()
    write_parquet(tmp_path / "a.parquet")
    cases: list[tuple[list[Path], dict[str, Any], str]] = [
        ([tmp_path / "no"], {}, "/no is not there; expected a file or a folder"),
        ([tmp_path / "empty"], {}, "/empty holds no file that ends in one of .parquet, .jsonl"),
        ([tmp_path / "photo.png"], {}, "photo.png ends in none of .parquet"),
        ([tmp_path / "cut.jsonl.gz"], {}, "cut.jsonl.gz is no whole .gz file"),
        ([tmp_path], {}, "the output folder .*/out lies in the input"),
        ([source, tmp_path / "a.parquet"], {}, "would both become a.parquet; give each file once"),
        ([source], {"output": "nfs://key:word@x/y?z=1"}, "^nfs://x/y cannot be used: Unrecognized .*: nfs://x/y$"),
        ([source], {"output": tmp_path / "file"}, "file cannot be made: File exists"),
        ([source], {"output": "/proc/out"}, "/proc/out cannot be made: No such file"),
        ([], {}, "no inputs; expected at least one file or folder"),
        (
            [source],
            {"output_precision": "int8"},
            "output_precision is 'int8'; expected .*, scaled-int8",
        ),
        ([source], {"truncate_dim": 99}, "truncate_dim is 99; expected 1 to 12"),
        ([source], {"keep": ["embedding"]}, "a column 'embedding' cannot be kept"),
        ([source], {"actors": 2}, "actors is 2 without an address; expected an address"),
    ]
    for inputs, options, message in cases:
        with pytest.raises(InputError, match=message):
            embed(*inputs, **options)


def test_what_is_left_out_of_a_folder(
    embed: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said: links that lead nowhere, pipes, other endings. A folder that a link leads back to is read once."""
    corpus = tmp_path / "corpus"
    write_lines(corpus / "a.jsonl")
    write_lines(tmp_path / "elsewhere" / "b.jsonl")
    for name, target in (("gone.jsonl", "no"), ("c.jsonl", "a.jsonl"), ("loop", "."), ("d", tmp_path / "elsewhere")):
        (corpus / name).symlink_to(target)
    os.mkfifo(corpus / "pipe.jsonl")
    (corpus / "photo.png").touch()
    assert embed(corpus).files == 3
    assert {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.parquet")} == {
        "a.parquet",
        "c.parquet",
        "d/b.parquet",
    }
    assert [line.partition(": they ")[0] for line in caplog.messages] == [
        f"1 file in {corpus} left out, photo.png among them",
        f"2 files in {corpus} left out, gone.jsonl among them",
    ]
    with pytest.raises(InputError, match=r"pipe\.jsonl is neither a file nor a folder"):
        embed(corpus / "pipe.jsonl")


def test_a_full_disk(embed: Callable[..., Any], tmp_path: Path) -> None:
    """A limit on the size of a file stands in for it."""
    source = write_parquet(tmp_path / "a.parquet", {"text": TEXTS * 500, "id": range(3000)})
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
    try:
        with pytest.raises(InputError, match=r"out/a\.parquet cannot be written: File too large$"):
            embed(source)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["manifest.json"]
    assert embed(source).rows == 3000


def test_the_command(mtl: Callable[..., Done], folder: Path, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in" / "a.jsonl.gz")
    command = ["embed-corpus", source, "--output", tmp_path / "out", "--model", folder, "--keep", "stars"]
    done = mtl(*command, "--normalize", "--vectors", "float16")
    assert done.returncode == 0, done.stderr
    assert "1 file, 6 rows, 21 tokens in" in done.stderr
    assert "rows per second" in done.stderr
    assert pq.read_table(tmp_path / "out" / "a.parquet").column_names == ["id", "stars", "embedding"]
    again = mtl(*command, "--normalize", "--output-precision", "float16")
    assert "0 files, 0 rows, 0 tokens in" in again.stderr
    assert "1 file already there" in again.stderr
    other = mtl(*command)
    assert other.returncode == 1
    assert "was made otherwise: normalize was True, is False; vectors was 'float16', is 'float32'" in other.stderr
    assert mtl("embed-corpus", "--output", tmp_path / "out").returncode == 2


def test_without_pyarrow(mtl: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("mtl.rows.") and name != "mtl.rows.read"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    done = mtl("embed-corpus", tmp_path, "--output", tmp_path / "out")
    assert done.returncode == 1
    assert "needs pyarrow, which is not installed; in the clone of mtl: pip install -e '.[parquet]'" in done.stderr


def test_a_first_run_that_was_refused_leaves_nothing_in_the_way(embed: Callable[..., Any], tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text('{"text": "a"}\n')
    with pytest.raises(InputError, match="no column 'id'; it has text: name one with --id-column, or number the rows"):
        embed(source)
    assert embed(source, id_column=None).rows == 1
    with pytest.raises(InputError, match="was made otherwise: normalize was False, is True"):
        embed(source, id_column=None, normalize=True)
