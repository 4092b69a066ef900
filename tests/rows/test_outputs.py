"""Number formats of vectors, and outputs that were interrupted."""

import csv
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet
from safetensors.numpy import load_file
from test_cli import Done, mtl

from mtl.checkpoints.load import Checkpoint
from mtl.checkpoints.save import save
from mtl.errors import InputError
from mtl.rows.outputs import Output, open_output
from mtl.rows.read import read_rows
from mtl.rows.vector_files import convert, value_ranges

__all__ = ["mtl"]  # the fixture

VECTORS = np.array([[-1.0, 0.0, 2.0], [1.0, 0.5, -2.0], [0.0, 0.25, 1.0]], dtype=np.float32)
SETTINGS = {"model": "m", "overflow": "warn"}


def test_conversions_by_hand() -> None:
    ranges = np.array([[-1, 0, -2], [1.55, 0.51, 3.1]], dtype=np.float32)  # steps of 0.01, 0.002 and 0.02
    assert convert(VECTORS, "uint8", ranges).tolist() == [[0, 0, 200], [200, 250, 0], [100, 125, 150]]
    assert convert(VECTORS, "int8", ranges).tolist() == [[-128, -128, 72], [72, 122, -128], [-28, -3, 22]]
    assert convert(VECTORS, "ubinary").tolist() == [[0b00100000], [0b11000000], [0b01100000]]
    assert convert(VECTORS, "binary").tolist() == [[32 - 128], [192 - 128], [96 - 128]]
    assert convert(VECTORS, "float16").dtype == np.float16
    assert convert(VECTORS, "float32") is VECTORS


def test_values_beyond_the_ranges_stay_at_their_ends() -> None:
    assert convert(VECTORS * 3, "int8", value_ranges(VECTORS))[0].tolist() == [-128, -128, 127]
    assert convert(np.ones((2, 1), dtype=np.float32), "uint8").tolist() == [[0], [0]]


@pytest.mark.reference
@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
def test_as_sentence_transformers(precision: str) -> None:
    quantization = pytest.importorskip("sentence_transformers.util.quantization")
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(200, 16)).astype(np.float32)
    theirs = quantization.quantize_embeddings(vectors, precision)
    ours = convert(vectors, precision)
    assert ours.dtype == theirs.dtype
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("precision", "width", "dtype"),
    [("float16", 12, "float16"), ("int8", 12, "int8"), ("binary", 2, "int8"), ("ubinary", 2, "uint8")],
)
def test_embed_in_every_format(mtl: Callable[..., Done], folder: Path, tmp_path: Path, precision, width, dtype) -> None:
    options = ["--model", folder, "--output-precision", precision, "a b", "c", "d e f"]
    for suffix in (".npy", ".safetensors", ".jsonl", ".csv", ".parquet"):
        done = mtl("embed", *options, "--output", tmp_path / f"o{suffix}")
        assert done.returncode == 0, done.stderr
        assert f"wrote {tmp_path / 'o'}{suffix}: (3, {width}) {dtype}" in done.stderr
    array = np.load(tmp_path / "o.npy")
    assert (array.shape, array.dtype) == ((3, width), dtype)
    assert np.array_equal(load_file(tmp_path / "o.safetensors")["embeddings"], array)
    rows = [json.loads(line)["embedding"] for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    table = [json.loads(row["embedding"]) for row in csv.DictReader((tmp_path / "o.csv").open())]
    column = parquet.read_table(tmp_path / "o.parquet")["embedding"]
    assert column.type == pyarrow.list_(pyarrow.from_numpy_dtype(np.dtype(dtype)), width)
    for found in (rows, table, column.to_pylist()):
        assert np.array_equal(np.array(found, dtype=dtype), array)
    assert (tmp_path / "o.npy.ranges.npy").exists() == (precision == "int8")


def write_vectors(path: Path, vectors: np.ndarray, precision: str = "float32", rows: list | None = None) -> None:
    rows = rows or [(str(i), {"text": str(i)}) for i in range(len(vectors))]
    with open_output(path, vectors.shape[1], precision, SETTINGS) as output:
        output.remaining(iter(()))
        for start in range(0, len(vectors), 2):
            output.write(rows[start : start + 2], vectors[start : start + 2])
        output.finish()


@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_the_ranges_are_those_of_all_vectors(tmp_path: Path, precision: str) -> None:
    """After a first window of equal texts, too: every value can be read back to within a step."""
    vectors = np.concatenate([np.ones((4, 3), dtype=np.float32), VECTORS])
    write_vectors(tmp_path / "o.npy", vectors, precision)
    found, ranges = np.load(tmp_path / "o.npy"), np.load(tmp_path / "o.npy.ranges.npy")
    assert ranges.tolist() == [[-1, 0, -2], [1, 1, 2]]
    assert np.array_equal(found, convert(vectors, precision, ranges))
    steps = (ranges[1] - ranges[0]) / 255
    back = ranges[0] + (found.astype(np.float32) + (128 if precision == "int8" else 0)) * steps
    assert np.abs(back - vectors).max() <= steps.max()


def test_rows_keep_their_fields(tmp_path: Path) -> None:
    """In every format that has room for them; what only some rows have, in those that can say so."""
    rows = [{"id": 7, "body": "x"}, {"id": 8, "body": '日本語, \n"q"'}, {"id": 9, "body": "z", "tags": ["a"]}]
    pairs = [(row["body"], row) for row in rows]
    write_vectors(tmp_path / "o.jsonl", VECTORS, rows=pairs)
    found = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text(encoding="utf-8").splitlines()]
    assert found == [{**row, "embedding": x.tolist()} for row, x in zip(rows, VECTORS, strict=True)]
    assert "日本語" in (tmp_path / "o.jsonl").read_text(encoding="utf-8")
    write_vectors(tmp_path / "o.parquet", VECTORS, rows=pairs)
    table = parquet.read_table(tmp_path / "o.parquet").to_pylist()
    assert table == [{"tags": None, **row, "embedding": x.tolist()} for row, x in zip(rows, VECTORS, strict=True)]
    write_vectors(tmp_path / "o.csv", VECTORS, rows=pairs)
    with (tmp_path / "o.csv").open(encoding="utf-8", newline="") as file:
        table = [list(row.values())[:3] for row in csv.DictReader(file)]
    assert table == [["7", "x", ""], ["8", rows[1]["body"], ""], ["9", "z", '["a"]']]
    with (
        pytest.raises(InputError, match="a row has a field 'embedding' already; rename it, or write .npy"),
        open_output(tmp_path / "q.jsonl", 3, "float32", SETTINGS) as output,
    ):
        list(output.remaining(iter([("x", {"embedding": [], "text": "x"})])))


def test_numbers_that_are_not_finite_and_texts_that_are_no_unicode(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """null in JSON, which our own reader takes again; what has no type in Parquet is text there."""
    rows = [("a", {"x": math.inf, "y": [math.nan, {"z": -math.inf}, 1.5]})]
    write_vectors(tmp_path / "o.jsonl", VECTORS[:1], rows=rows)
    ((_, found),) = read_rows(tmp_path / "o.jsonl")
    assert found == {"x": None, "y": [None, {"z": None}, 1.5], "embedding": VECTORS[0].tolist()}
    assert caplog.messages == [f"{tmp_path / 'o.jsonl'}: numbers that are infinite become null, as JSON has none"]
    write_vectors(tmp_path / "o.csv", VECTORS[:1], rows=rows)
    assert 'inf,"[null, {""z"": null}, 1.5]"' in (tmp_path / "o.csv").read_text()
    write_vectors(tmp_path / "o.parquet", VECTORS[:1], rows=[("a", {"x": math.inf})])
    assert parquet.read_table(tmp_path / "o.parquet")["x"].to_pylist() == [math.inf]
    for name, value, written in (("large", 2**70, str(2**70)), ("half", "\ud800", "\\ud800")):
        write_vectors(tmp_path / f"{name}.parquet", VECTORS[:1], rows=[("a", {"x": value})])
        assert parquet.read_table(tmp_path / f"{name}.parquet")["x"].to_pylist() == [written]


def test_what_parquet_cannot_say(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is said under the name that was given, and what cannot be written before anything is computed."""
    path = tmp_path / "o.parquet"
    write_vectors(path, VECTORS[:2], rows=[("a", {"x": 1}), ("b", {"x": "s"})])
    assert caplog.messages == [
        f"{path}: values of 'x' are of several types, or none that Parquet has; they become text"
    ]
    with (
        pytest.raises(InputError, match="is called by half of a surrogate pair; rename it, or write .jsonl"),
        open_output(tmp_path / "q.parquet", 3, "float32", SETTINGS) as output,
    ):
        list(output.remaining(iter([("x", {"\udc80": 1, "text": "x"})])))


def test_ends_of_lines_within_fields(tmp_path: Path) -> None:
    """A carriage return alone ends a row for others' readers too, where no quotes stand around its field."""
    texts = ["a\rb", "a\nb", "a\r\nb\r", "plain"]
    write_vectors(tmp_path / "o.csv", np.zeros((4, 3), np.float32), rows=[(text, {"text": text}) for text in texts])
    assert [fields["text"] for _, fields in read_rows(tmp_path / "o.csv")] == texts


def test_a_tensor_s_column_there_and_back(tmp_path: Path) -> None:
    column = pyarrow.FixedShapeTensorArray.from_numpy_ndarray(np.arange(12, dtype=np.float32).reshape(3, 2, 2))
    parquet.write_table(pyarrow.table({"text": ["a", "b", "c"], "x": column}), tmp_path / "i.parquet")
    rows = [(fields["text"], fields) for _, fields in read_rows(tmp_path / "i.parquet")]
    with open_output(tmp_path / "o.parquet", 3, "float32", SETTINGS, source=tmp_path / "i.parquet") as output:
        output.write(list(output.remaining(iter(rows))), VECTORS)
        output.finish()
    assert parquet.read_table(tmp_path / "o.parquet").schema.field("x").type == column.type


def lines(path: Path, size: int) -> list[str]:
    letters = "abcdefghijklmnop"
    texts = [f"{letters[i % 16]} {letters[i // 16 % 16]} {letters[i // 256 % 16]}" for i in range(size)]
    path.write_text("\n".join(texts) + "\n")
    return texts


@pytest.mark.parametrize("suffix", [".npy", ".safetensors", ".jsonl"])
def test_kill_and_resume(mtl: Callable[..., Done], folder: Path, tmp_path: Path, suffix: str) -> None:
    """kill -9 in the middle; the end is the same to the byte, and nothing is computed twice."""
    lines(tmp_path / "in.txt", 30000)
    arguments = ["embed", "--model", str(folder), "--input", str(tmp_path / "in.txt")]
    arguments += ["--output-precision", "int8"] if suffix == ".npy" else []
    assert mtl(*arguments, "--output", tmp_path / f"whole{suffix}").returncode == 0
    output = tmp_path / f"parts{suffix}"
    process = subprocess.Popen([sys.executable, "-m", "mtl", *arguments, "--output", str(output)],
                               stderr=subprocess.DEVNULL)  # fmt: skip
    state = output.with_name(output.name + ".partial.json")
    deadline = time.monotonic() + 60
    while not state.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not output.exists()
    assert json.loads(state.read_text())["rows"] >= 2048
    done = mtl(*arguments, "--output", output, "--resume")
    assert done.returncode == 0, done.stderr
    assert output.read_bytes() == (tmp_path / f"whole{suffix}").read_bytes()
    assert not list(tmp_path.glob("*.partial*"))


def test_an_interrupt_keeps_what_is_done(folder: Path, tmp_path: Path) -> None:
    lines(tmp_path / "in.txt", 200000)
    output = tmp_path / "out.npy"
    command = [sys.executable, "-m", "mtl", "embed", "--model", str(folder), "--input", str(tmp_path / "in.txt")]
    process = subprocess.Popen([*command, "--output", str(output)], stderr=subprocess.PIPE, text=True)
    state = output.with_name("out.npy.partial.json")
    deadline = time.monotonic() + 60
    while not state.exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "rows kept in" in err
    assert "; --resume goes on\n" in err
    assert "Traceback" not in err


def test_a_mistake_far_into_the_input_loses_nothing(mtl: Callable[..., Done], folder: Path, tmp_path: Path) -> None:
    """The line is mended, and the run goes on."""
    texts = lines(tmp_path / "in.txt", 20000)
    arguments = ["embed", "--model", folder, "--input", tmp_path / "in.txt", "--output", tmp_path / "out.npy"]
    good = (tmp_path / "in.txt").read_bytes()
    (tmp_path / "in.txt").write_bytes(good[:-3] + b"\xe9\n")
    done = mtl(*arguments)
    assert done.returncode == 1
    assert "line 20000: not UTF-8" in done.stderr
    (tmp_path / "in.txt").write_bytes(good)
    assert mtl(*arguments, "--resume").returncode == 0
    assert len(np.load(tmp_path / "out.npy")) == len(texts)


TEXTS = [(text, {"text": text}) for text in "abc"]


def interrupted(path: Path, settings: dict = SETTINGS) -> None:
    """Two rows of three, and then something happens."""
    with pytest.raises(KeyboardInterrupt), open_output(path, 3, "float32", settings) as output:  # noqa: PT012
        output.remaining(iter(TEXTS))
        output.write(TEXTS[:2], VECTORS[:2])
        raise KeyboardInterrupt


def go_on(path: Path, rows: list = TEXTS, settings: dict = SETTINGS) -> Output:
    with open_output(path, 3, "float32", settings, resume=True) as output:
        left = list(output.remaining(iter(rows)))
        if left:
            output.write(left, VECTORS[len(rows) - len(left) : len(rows)])
        output.finish()
    return output


@pytest.mark.parametrize("suffix", [".npy", ".jsonl", ".parquet"])
def test_resume_in_all_three_states(tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / f"o{suffix}"
    assert not go_on(path).complete  # nothing there: it begins
    whole = path.read_bytes()
    assert go_on(path).complete  # all done: nothing is left to do
    assert path.read_bytes() == whole
    path.unlink()
    interrupted(path)
    for name in (path.name, f"{path.name}.partial.json", f"{path.name}.made.json"):
        (tmp_path / f".{name}.0123abcd.partial").write_text("as a process leaves it that is killed while it writes")
    assert caplog.messages == [f"2 rows kept in {path}.partial; --resume goes on"]
    assert go_on(path).shape == (3, 3)  # a part
    assert path.read_bytes() == whole
    assert sorted(os.listdir(tmp_path)) == [f"o{suffix}", f"o{suffix}.made.json"]


def test_nothing_is_thrown_away_unasked(tmp_path: Path) -> None:
    path = tmp_path / "o.npy"
    interrupted(path)
    message = "holds 2 rows of a run that was interrupted; --resume goes on with them, --overwrite starts anew"
    with pytest.raises(InputError, match=message), open_output(path, 3, "float32", SETTINGS):
        pass
    go_on(path)
    with pytest.raises(InputError, match="exists; --overwrite replaces it"), open_output(path, 3, "float32", SETTINGS):
        pass
    with open_output(path, 3, "float32", SETTINGS, overwrite=True) as output:
        output.remaining(iter(TEXTS))
        output.write(TEXTS[:1], VECTORS[:1])
        assert len(np.load(path)) == 3  # until the other is whole
        output.finish()
    assert np.array_equal(np.load(path), VECTORS[:1])
    (tmp_path / "foreign.npy").write_bytes(b"")
    with pytest.raises(InputError, match="foreign.npy exists, and .*made.json, which would say how it was made"):
        go_on(tmp_path / "foreign.npy")


def test_resume_refuses_what_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "o.npy"
    for _ in range(2):  # a part, and then all
        interrupted(path) if not path.exists() else None
        with pytest.raises(InputError, match=r"made otherwise: overflow was 'warn', is 'chunk'; --overwrite"):
            go_on(path, settings=SETTINGS | {"overflow": "chunk"})
        for other in (["a", "B", "c"], ["a"]):
            with pytest.raises(InputError, match="the input differs in its first . rows from what is in"):
                go_on(path, [(text, {"text": text}) for text in other])
        go_on(path, settings=SETTINGS | {"model": "another name"})
    with pytest.raises(InputError, match="is whole with 3 rows, but the input has more of them"):
        go_on(path, [*TEXTS, ("d", {"text": "d"})])
    assert np.array_equal(np.load(path), VECTORS)


def test_ids_are_input_too(tmp_path: Path) -> None:
    """Where they are kept, another id is another input."""
    interrupted(tmp_path / "o.jsonl")
    with pytest.raises(InputError, match="the input differs in its first 2 rows"):
        go_on(tmp_path / "o.jsonl", [(text, {"text": text, "id": 1}) for text, _ in TEXTS])


def test_a_shorter_or_damaged_state(tmp_path: Path) -> None:
    path = tmp_path / "o.npy"
    interrupted(path)
    content = (tmp_path / "o.npy.partial").read_bytes()
    (tmp_path / "o.npy.partial").write_bytes(b"short")
    with pytest.raises(InputError, match="is shorter than it was; --overwrite starts anew"):
        go_on(path)
    (tmp_path / "o.npy.partial").write_bytes(content + b"half a row")
    state = (tmp_path / "o.npy.partial.json").read_text()
    (tmp_path / "o.npy.partial.json").write_text("{")
    with pytest.raises(InputError, match="o.npy.partial.json is damaged; --overwrite starts anew"):
        go_on(path)
    (tmp_path / "o.npy.partial.json").write_text(state)
    go_on(path)
    assert np.array_equal(np.load(path), VECTORS)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "o.npy"
    with open_output(path, 3, "float32", SETTINGS) as output:
        output.remaining(iter(TEXTS))
        with pytest.raises(InputError, match=f"o.npy is being written by process {os.getpid()}"):
            interrupted(path)
        output.finish()
    assert sorted(os.listdir(tmp_path)) == ["o.npy", "o.npy.made.json"]


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (450_000, 450_000))  # the disk is full from here on
from mtl.cli import main
main(sys.argv[1:])
"""


def test_a_full_disk_keeps_what_is_done(mtl: Callable[..., Done], folder: Path, tmp_path: Path) -> None:
    texts = lines(tmp_path / "in.txt", 10000)  # 12 values of 4 bytes each: the second window does not fit
    output = tmp_path / "out.npy"
    arguments = ["embed", "--model", folder, "--input", tmp_path / "in.txt", "--output", output]
    done = subprocess.run([sys.executable, "-c", LIMITED, *arguments], capture_output=True, text=True)
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if not line.startswith(("model=", str(folder)))]
    assert errors == [
        f"8192 rows kept in {output}.partial; --resume goes on",
        f"error: {output} cannot be written: File too large",
    ]
    assert not output.exists()
    assert mtl(*arguments, "--resume").returncode == 0
    assert np.load(output).shape == (len(texts), 12)


def test_another_model_under_the_same_name(
    mtl: Callable[..., Done], checkpoint: Checkpoint, folder: Path, tmp_path: Path
) -> None:
    """What computes is compared, and not what it is called."""
    arguments = ["embed", "--model", folder, "--output", tmp_path / "o.npy", "a", "b"]
    assert mtl(*arguments).returncode == 0
    assert mtl(*arguments, "--resume").returncode == 0
    checkpoint.encoder.transformer.layer[1].ffn.lin2.bias.data[3] += 0.001
    shutil.rmtree(folder)
    save(checkpoint, folder)
    done = mtl(*arguments, "--resume")
    assert done.returncode == 1
    assert re.search(r"made otherwise: encoder was '\w{16}', is '\w{16}'; --overwrite starts anew", done.stderr)


@pytest.mark.parametrize("link", ["same", "symlink", "hardlink"])
def test_the_input_is_not_overwritten(mtl: Callable[..., Done], folder: Path, tmp_path: Path, link: str) -> None:
    source, output = tmp_path / "rows.jsonl", tmp_path / ("rows.jsonl" if link == "same" else "other.jsonl")
    source.write_text('{"text": "a"}\n')
    if link != "same":
        (output.symlink_to if link == "symlink" else output.hardlink_to)(source)
    done = mtl("embed", "--model", folder, "--input", source, "--output", output, "--overwrite")
    assert done.returncode == 1
    assert f"{output} is the input itself; expected another file" in done.stderr
    assert source.read_text() == '{"text": "a"}\n'


def test_resume_needs_an_output(mtl: Callable[..., Done], folder: Path) -> None:
    done = mtl("embed", "--model", folder, "a", "--resume")
    assert done.returncode == 2
    assert "--resume goes with --output" in done.stderr
