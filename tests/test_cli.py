"""The command line as a user meets it: with files, pipes and mistakes."""

import csv
import dataclasses
import gzip
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet
from safetensors.numpy import load_file
from tokenizers import processors
from torch import Tensor

from mtl import SentenceEncoder
from mtl.checkpoints.load import Checkpoint
from mtl.checkpoints.save import save
from mtl.cli import main, options
from mtl.cli.options import PRECISIONS
from mtl.encode.precision import Precision
from mtl.kernels import int8
from mtl.kernels.linear import Packed
from mtl.rows.read import open_lines, read_rows

TEXTS = ["a b c", "d, e", "", 'f "g"']


@dataclasses.dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def mtl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Runs the program in this process, which saves loading torch each time."""

    def run(*arguments: object, stdin: bytes = b"") -> Done:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        try:
            main([str(argument) for argument in arguments])
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Done(code, *capsys.readouterr())

    return run


@pytest.fixture
def vectors(folder: Path) -> np.ndarray:
    return SentenceEncoder.from_pretrained(folder).encode(TEXTS)


def write_inputs(folder: Path) -> list[str]:
    """The same texts in every format, beside an id; TSV knows no quotes, and a text of a line has no fields."""
    rows = [{"id": i, "text": text} for i, text in enumerate(TEXTS)]
    (folder / "in.txt").write_text("\n".join(TEXTS) + "\n")
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "in.tsv").write_text("id\ttext\n" + "".join(f"{row['id']}\t{row['text']}\n" for row in rows))
    with (folder / "in.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("id", "text"), *(row.values() for row in rows)])
    (folder / "in.jsonl.gz").write_bytes(gzip.compress((folder / "in.jsonl").read_bytes()))
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "in.parquet")
    return ["in.txt", "in.jsonl", "in.csv", "in.tsv", "in.jsonl.gz", "in.parquet"]


def test_every_input_and_output(mtl: Callable[..., Done], folder: Path, tmp_path: Path, vectors: np.ndarray) -> None:
    names = write_inputs(tmp_path)
    suffixes = (".npy", ".safetensors", ".jsonl", ".csv", ".parquet", ".jsonl")
    for name, suffix in zip(names, suffixes, strict=True):
        output = tmp_path / f"out-{name}{suffix}"
        done = mtl("embed", "--model", folder, "--input", tmp_path / name, "--output", output)
        assert done.returncode == 0, done.stderr
        rows = None
        if suffix == ".npy":
            found = np.load(output)
        elif suffix == ".safetensors":
            found = load_file(output)["embeddings"]
        else:
            rows = [fields for _, fields in read_rows(output)]
            assert [(str(row["id"]), row["text"]) for row in rows] == [(str(i), text) for i, text in enumerate(TEXTS)]
            numbers = [json.loads(x) if isinstance(x := row["embedding"], str) else x for row in rows]
            found = np.array(numbers, dtype=np.float32)
        assert found.dtype == np.float32
        assert np.array_equal(found, vectors), name
        assert f"wrote {output}: (4, 12) float32" in done.stderr
    assert not list(tmp_path.glob("*.partial*"))
    assert not list(tmp_path.glob("*.lock"))


def test_table(mtl: Callable[..., Done], folder: Path) -> None:
    done = mtl("embed", "--model", folder, "a b", "c")
    out = done.stdout
    assert done.returncode == 0
    assert "shape (2, 12) float32" in out
    assert "cosine" in out
    assert "model=" in done.stderr


def test_standard_input(mtl: Callable[..., Done], folder: Path, tmp_path: Path, vectors: np.ndarray) -> None:
    """A byte order mark and Windows line ends are not part of a text."""
    stdin = b"\xef\xbb\xbf" + "\r\n".join(TEXTS).encode() + b"\r\n"
    for arguments in ([], ["--input", "-"]):
        output = tmp_path / f"o{len(arguments)}.npy"
        assert mtl("embed", "--model", folder, "--output", output, *arguments, stdin=stdin).returncode == 0
        assert np.array_equal(np.load(output), vectors)


def test_no_texts_at_all(mtl: Callable[..., Done], folder: Path, tmp_path: Path) -> None:
    for suffix in (".npy", ".safetensors", ".jsonl", ".csv", ".parquet"):
        assert mtl("embed", "--model", folder, "--output", tmp_path / f"o{suffix}").returncode == 0
    assert np.load(tmp_path / "o.npy").shape == (0, 12)
    assert load_file(tmp_path / "o.safetensors")["embeddings"].shape == (0, 12)
    assert (tmp_path / "o.jsonl").read_text() == ""
    assert (tmp_path / "o.csv").read_text() == "embedding\n"
    assert parquet.read_table(tmp_path / "o.parquet").num_rows == 0


def test_options_reach_the_model(mtl: Callable[..., Done], folder: Path, tmp_path: Path) -> None:
    model = SentenceEncoder.from_pretrained(folder)
    mtl("embed", "--model", folder, "--output", tmp_path / "o.npy", "--normalize", "--truncate-dim", 3,
        "--prompt", "z ", "--overflow", "chunk", "--max-length", 4, "--threads", 1, "a b c d")  # fmt: skip
    expected = model.encode(["a b c d"], normalize=True, truncate_dim=3, prompt="z ", overflow="chunk", max_length=4)
    assert np.array_equal(np.load(tmp_path / "o.npy"), expected)


def test_failures_are_one_line_and_write_nothing(mtl: Callable[..., Done], folder: Path, tmp_path: Path) -> None:
    bad = {
        "latin.txt": b"fine\ncaf\xe9\n",
        "bad.jsonl": b'{"text": "a"}\n{"text": \n',
        "array.jsonl": b'["a"]\n',
        "nofield.jsonl": b'{"text": "a"}\n{"body": "b"}\n',
        "number.jsonl": b'{"text": 7}\n',
        "short.csv": b"id,text\n1,a\n2\n",
        "empty.csv": b"",
        "open.csv": b'id,text\n1,a\n2,"b\n3,c\n',
        "stray.csv": b'label,text\nyes,"Great soup\nno,b\nyes,"c\nno,last\n',
        "twice.tsv": b"text\tid\ttext\na\t1\tb\n",
        "nan.jsonl": b'{"text": "a", "score": NaN}\n',
        "deep.jsonl": b"[" * 100_000 + b"\n",
        "cut.txt.gz": gzip.compress(b"some text\n" * 99)[:30],
        "plain.txt.gz": b"not compressed",
        "no.parquet": b"not parquet",
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
    cases: list[tuple[list[object], int, str]] = [
        (["--input", "latin.txt"], 1, "latin.txt, line 2: not UTF-8"),
        (["--input", "bad.jsonl", "--field", "text"], 1, "bad.jsonl, line 2: not JSON"),
        (["--input", "array.jsonl", "--field", "text"], 1, "array.jsonl, object 1: a str; expected an object"),
        (["--input", "nofield.jsonl"], 1, "2: no field 'text'; it has body; say with --field which holds the text"),
        (["--input", "number.jsonl", "--field", "text"], 1, "line 1: field 'text' is of type int; expected a string"),
        (["--input", "short.csv", "--field", "text"], 1, "short.csv, line 3: 1 field, expected 2 (id, text)"),
        (["--input", "open.csv"], 1, "open.csv, line 3: unexpected end of data (noticed in line 4); a field that"),
        (["--input", "stray.csv"], 1, "stray.csv, line 2: ',' expected after '\"' (noticed in line 4); a field that"),
        (["--input", "twice.tsv"], 1, "twice.tsv: the field 'text' is there 2 times; expected each name once"),
        (["--input", "nan.jsonl"], 1, "nan.jsonl, line 1: not JSON (NaN is no number of JSON)"),
        (["--input", "deep.jsonl"], 1, "deep.jsonl: not JSON"),
        (["--input", "cut.txt.gz"], 1, "cut.txt.gz is no whole .gz file"),
        (["--input", "plain.txt.gz"], 1, "plain.txt.gz is no whole .gz file: Not a gzipped file"),
        (["--input", "no.parquet"], 1, "no.parquet cannot be read as Parquet"),
        (["--input", "empty.csv", "--field", "text"], 1, "empty.csv is empty"),
        (["--input", "absent.txt"], 1, "absent.txt is no file"),
        (
            ["--input", "photo.png"],
            2,
            "expected one of .txt, .jsonl, .json, .ndjson, .csv, .tsv, .parquet, .conll",
        ),
        (["a", "--input", "latin.txt"], 2, "expected one of the two"),
        (["a", "--field", "text"], 2, "--field goes with --input FILE"),
        (["a", "--resume", "--overwrite"], 2, "--resume and --overwrite are given; expected one of the two"),
        (["a", "--overflow", "wrap"], 2, "'wrap' is not one of"),
        (["a", "--truncate-dim", 99], 1, "truncate_dim is 99; expected 1 to 12"),
        (["a b c d", "--overflow", "error", "--max-length", 4], 1, "text 0 has 6 tokens; the limit is 4"),
        (["a", "--device", "cuda:9"], 1, "device 'cuda:9' cannot be used"),
        (["a", "--device", "mps"], 1, "device is 'mps'; expected cpu, cuda, or cuda:1 and so on"),
        (["a", "--device", "toaster"], 1, "device is 'toaster'; expected cpu, cuda, or cuda:1"),
    ]
    for arguments, code, message in cases:
        arguments = [
            tmp_path / a if str(a).endswith((".txt", ".jsonl", ".csv", ".tsv", ".gz", ".parquet", ".png")) else a
            for a in arguments
        ]
        done = mtl("embed", "--model", folder, "--output", tmp_path / "out.npy", *arguments)
        assert done.returncode == code, (arguments, done.stderr)
        assert message in done.stderr, (arguments, done.stderr)
    assert not list(tmp_path.glob("out*"))


def test_json_is_utf_8_whatever_the_terminal_has() -> None:
    code = "from mtl.cli.options import echo_json; echo_json({'text': '\U0001f600', 'half': '\\ud800'})"
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    assert json.loads(done.stdout) == {"text": "\U0001f600", "half": "\ud800"}


def test_cosines_of_a_text_without_tokens(
    checkpoint: Checkpoint, tmp_path: Path, mtl: Callable[..., Done], recwarn: pytest.WarningsRecorder
) -> None:
    """They are 0, as those of a vector of zeros are everywhere."""
    checkpoint.tokenizer.post_processor = processors.Sequence([])
    save(checkpoint, tmp_path / "bare")
    done = mtl("embed", "-m", tmp_path / "bare", "a", "")
    assert done.stdout.splitlines()[-2:] == ["     0  1.0000  0.0000", "     1  0.0000  0.0000"]
    assert not [each for each in recwarn if issubclass(each.category, RuntimeWarning)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("check --all --precision bf16", "--precision goes with a check without --all"),
        ("check --training -m x", "--model goes with a check without --training"),
        ("embed a --quoting none", "--quoting goes with --input FILE, a .csv or .tsv file"),
        ("embed a --output-precision float16", "--output-precision goes with --output"),
        ("embed-corpus x -o y --number-rows --id-column id", "--id-column and --number-rows are given"),
        ("evaluate -m x --sts y --split dev", "--split goes with --recipe and --retrieval"),
        ("evaluate -m x --retrieval y --seed 1 --bootstrap 2", "--bootstrap and --seed go with --recipe"),
        ("evaluate -m x --retrieval y --depth 3", "--depth goes with --rerank"),
        ("index -o x --delete y --form int8", "--form goes with a FILE of rows to add"),
        ("index - -o x", "- is standard input; expected a FILE of rows to add"),
        ("index x -o y --resume --overwrite", "--resume and --overwrite are given; expected one of the two"),
        ("predict -m x a -o y.csv --json", "--output and --json are given; expected one of the two"),
        ("serve --api-keys x --without-key", "--api-keys and --without-key are given; expected one of the two"),
    ],
)
def test_an_option_that_nothing_reads_is_refused(mtl: Callable[..., Done], given: str, message: str) -> None:
    done = mtl(*given.split())
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize(
    ("output", "code", "message"),
    [
        ("out.pkl", 2, "expected one of .npy, .safetensors, .jsonl, .csv, .parquet"),
        ("nowhere/out.npy", 1, "is no folder that we may write to"),
        ("tiny/../here.npy", 1, "here.npy is a folder; expected the name of a file"),
    ],
)
def test_unwritable_output(
    mtl: Callable[..., Done], folder: Path, tmp_path: Path, output: str, code: int, message: str
) -> None:
    (tmp_path / "here.npy").mkdir()
    done = mtl("embed", "--model", folder, "--output", tmp_path / output, "a")
    assert done.returncode == code
    assert message in done.stderr


def test_a_file_s_name_among_the_texts(mtl: Callable[..., Done], folder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("a\n")
    done = mtl("embed", "--model", folder, tmp_path / "notes.txt", "b")
    assert done.returncode == 0, done.stderr
    assert f"note: {tmp_path}/notes.txt is taken as a text; --input {tmp_path}/notes.txt reads the file" in done.stderr


def test_unknown_model(mtl: Callable[..., Done]) -> None:
    done = mtl("embed", "--model", "all-MiniLM", "a")
    assert done.returncode == 1
    assert "error: no model is called 'all-MiniLM'; nearest: all-MiniLM-L6-v2" in done.stderr


def test_an_earlier_output_survives_a_failure(mtl: Callable[..., Done], folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out.npy").write_bytes(b"earlier")
    (tmp_path / "latin.txt").write_bytes(b"a\n\xe9\n")
    arguments = ["embed", "--model", folder, "--input", tmp_path / "latin.txt", "--output", tmp_path / "out.npy"]
    done = mtl(*arguments)
    assert done.returncode == 1
    assert "out.npy exists; --overwrite replaces it, or choose another name" in done.stderr
    assert mtl(*arguments, "--overwrite").returncode == 1
    assert (tmp_path / "out.npy").read_bytes() == b"earlier"


def interrupted(folder: Path, output: Path, lines: int, signals: int) -> str:
    """What embedding says that is interrupted once it has read so many lines, while its standard input stays open."""
    command = [sys.executable, "-m", "mtl", "embed", "--model", str(folder), "--output", str(output)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdin.write(b"".join(b"a b %d\n" % i for i in range(lines)))
    process.stdin.flush()
    done = output.with_name("out.npy.partial.json" if lines else "out.npy.partial")
    deadline = time.monotonic() + 60
    while not done.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    started = time.monotonic()
    for _ in range(signals):
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    assert process.wait(timeout=60) == 130
    assert time.monotonic() - started < 5  # a second, where nothing else runs
    stderr = process.stderr.read().decode()
    process.stdin.close()
    process.stderr.close()
    assert "Traceback" not in stderr
    assert "Fatal" not in stderr
    return stderr


def test_interrupt_leaves_no_output(folder: Path, tmp_path: Path) -> None:
    assert "interrupted" in interrupted(folder, tmp_path / "out.npy", 0, 1)
    assert not list(tmp_path.glob("out*"))


def test_interrupt_keeps_what_is_done(mtl: Callable[..., Done], folder: Path, tmp_path: Path) -> None:
    """And --resume goes on with it, with nothing lost and nothing twice; a second Ctrl-C changes nothing."""
    output = tmp_path / "out.npy"
    interrupted(folder, output, 5000, 3)
    texts = [f"a b {i}" for i in range(5500)]
    stdin = "\n".join(texts).encode()
    done = mtl("embed", "--model", folder, "--output", output, "--resume", stdin=stdin)
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.load(output), SentenceEncoder.from_pretrained(folder).encode(texts))


SWALLOWS = """
import sys, time, types
from mtl.__main__ import main

def run():
    while True:
        try:
            print("begun", flush=True)
            time.sleep(60)
        except KeyboardInterrupt:
            pass

sys.modules["mtl.cli"] = types.SimpleNamespace(main=run)
main()
"""


def test_an_interrupt_that_a_library_swallows() -> None:
    process = subprocess.Popen([sys.executable, "-c", SWALLOWS], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == b"begun\n"
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1] == b"interrupted\n"
    assert process.returncode == 130
    assert time.monotonic() - started < 5


def test_lines_of_a_pipe_as_they_come() -> None:
    """In pieces of any size, from a descriptor that waits or does not, with a last line without an end."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)

    def write() -> None:
        for piece in (b"a\n", b"b", b"c\n\nd" + b"x" * 100_000, b"\n", b"last"):
            os.write(writer, piece)
            time.sleep(0.01)
        os.close(writer)

    thread = threading.Thread(target=write)
    thread.start()
    with os.fdopen(reader, "rb") as file:
        assert list(open_lines(file, "it")) == [b"a\n", b"bc\n", b"\n", b"d" + b"x" * 100_000 + b"\n", b"last"]
    thread.join()


def test_a_reader_that_stops_reading(folder: Path) -> None:
    command = f"yes 'a b' | head -n 20000 | '{sys.executable}' -m mtl embed --model '{folder}' | head -n 2"
    done = subprocess.run(["bash", "-c", command], capture_output=True, timeout=120, env=os.environ)
    assert done.stdout.count(b"\n") == 2
    assert b"Traceback" not in done.stderr


def test_help_is_quick_to_import() -> None:
    """Neither torch nor the model files are loaded for --help."""
    code = "import sys; sys.argv = ['mtl', '--help']\nfrom mtl.cli import cli\n"
    code += "try: cli()\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    code += " and 'mtl.checkpoints.load' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_check(mtl: Callable[..., Done], folder: Path, precision: str) -> None:
    """Kernels of every shape, and texts in many companies, on 1, 2 and 3 threads."""
    done = mtl("check", "--model", str(folder), "--precision", precision, "--int8-least-cosine", "-1")
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("same    ") >= 40
    assert "differ" not in done.stdout


def test_int8_says_what_it_costs(mtl: Callable[..., Done], folder: Path) -> None:
    """And is refused where that is too much."""
    done = mtl("embed", "--model", str(folder), "--precision", "int8", "--int8-least-cosine", "-1", "a")
    assert re.search(r"precision=int8 \(least cosine 0\.9\d{3}\)", done.stderr), done.stderr
    done = mtl("embed", "--model", str(folder), "--precision", "int8", "--int8-least-cosine", "1", "a")
    assert done.returncode == 1
    assert re.fullmatch(
        r"error: precision is 'int8', whose least cosine to fp32 is 0\.9\d\d on the calibration's sentences; "
        r"expected 1: choose 'fp32' or 'bf16', or insist with int8_least_cosine=0\.9\d\d\n",
        done.stderr,
    ), done.stderr


def test_check_names_the_kernel_that_differs(mtl: Callable[..., Done], folder: Path, monkeypatch) -> None:
    """A machine whose kernel adds otherwise for few rows, as BLAS does."""
    exact = Packed.__call__

    def otherwise(layer: Packed, x: Tensor) -> Tensor:
        return exact(layer, x) * (1 + 1e-6 * (len(x) in (5, 8)))

    monkeypatch.setattr(Packed, "__call__", otherwise)
    done = mtl("check", "--model", str(folder))
    assert done.returncode == 1
    assert "differ  packed fp32 linear 12 -> 36, 2 threads: 5, 8 rows" in done.stdout
    assert re.search(r"\d+ of \d+ ways gave other bits; please report them", done.stderr)


def test_the_precisions_are_those_of_the_model() -> None:
    assert get_args(Precision) == PRECISIONS
    assert options.LEAST_COSINE == int8.LEAST_COSINE
