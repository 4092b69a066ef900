"""mtl predict with files and pipes; and what no command may do: end in a traceback."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pytest
from conftest import randomized
from pyarrow import parquet
from test_cli import Done, mtl
from tokenizers import processors

from mtl import MultiTaskModel, SentenceEncoder
from mtl.checkpoints.load import Checkpoint
from mtl.cli.predict import answer_table, marked
from mtl.tasks import predictions
from mtl.tasks.answer_files import write_answers
from mtl.tasks.predictions import answers
from mtl.tasks.spec import TaskSpec

__all__ = ["mtl"]  # the fixture

TASKS = (
    TaskSpec("topic", ("food", "旅行")),
    TaskSpec("tags", ("p", "q", "r"), kind="multi-label"),
    TaskSpec("stars", kind="regression"),
)
ROWS = [{"id": 7, "body": "a b"}, {"id": 8, "body": "日本, c"}, {"id": 9, "body": "d", "note": "x"}]


@pytest.fixture
def run(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """The folder of a run, as training leaves it."""
    model = randomized(MultiTaskModel(SentenceEncoder.from_checkpoint(checkpoint), TASKS))
    model.save(tmp_path / "runs" / "demo" / "model")
    return tmp_path / "runs" / "demo"


def test_files_in_and_out(mtl: Callable[..., Done], run: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    arguments = ["predict", "--model", run, "--input", tmp_path / "in.jsonl", "--field", "body", "--threads", 1]
    found = MultiTaskModel.from_pretrained(run).predict([row["body"] for row in ROWS])
    done = mtl(*arguments, "--output", tmp_path / "o.jsonl")
    assert done.returncode == 0, done.stderr
    assert f"wrote {tmp_path / 'o.jsonl'}: 3 rows" in done.stderr
    text = (tmp_path / "o.jsonl").read_text(encoding="utf-8")
    assert "日本, c" in text
    for i, answer in enumerate(map(json.loads, text.splitlines())):
        assert {key: answer[key] for key in ROWS[i]} == ROWS[i]
        assert np.array_equal(np.float32(answer["embedding"]), found.embeddings[i])
        for name, task in answer["tasks"].items():
            assert task["label"] == found.labels[name][i]
            assert np.array_equal(np.float32(list(task["scores"].values())), found.scores[name][i])
            assert np.array_equal(np.float32(task["logits"]), found.logits[name][i])
    assert mtl(*arguments, "--output", tmp_path / "o.csv").returncode == 0
    with (tmp_path / "o.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert [(row["id"], row["body"], row["note"]) for row in table] == [
        ("7", "a b", ""),
        ("8", "日本, c", ""),
        ("9", "d", "x"),
    ]
    for i, row in enumerate(table):
        assert row["topic"] == found.labels["topic"][i]
        assert row["tags"] == "|".join(found.labels["tags"][i])
        assert np.float32(row["topic.旅行"]) == found.scores["topic"][i, 1]
        assert np.float32(row["stars"]) == found.labels["stars"][i]
    done = mtl(*arguments, "--output", tmp_path / "o.csv")
    assert (done.returncode, "o.csv exists; --overwrite replaces it" in done.stderr) == (1, True)
    assert mtl(*arguments, "--output", tmp_path / "o.csv", "--overwrite").returncode == 0
    done = mtl(*arguments, "--output", tmp_path / "in.jsonl", "--overwrite")
    assert (done.returncode, "in.jsonl is the input itself" in done.stderr) == (1, True)


def test_parquet_in(mtl: Callable[..., Done], run: Path, tmp_path: Path) -> None:
    """With types that Python and JSON do not have, in values that can be read."""
    columns = {"at": pa.array([1, None], pa.timestamp("ns")), "of": pa.array([b"\0", None]), "body": ["a b", "c"]}
    parquet.write_table(pa.table(columns), tmp_path / "in.parquet")
    for suffix in (".jsonl", ".csv"):
        done = mtl(
            "predict", "-m", run, "-i", tmp_path / "in.parquet", "--field", "body", "-o", tmp_path / f"o{suffix}"
        )
        assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(a["at"], a["of"]) for a in answers] == [("1970-01-01T00:00:00.000000001", "AA=="), (None, None)]
    with (tmp_path / "o.csv").open(encoding="utf-8", newline="") as file:
        assert [row["at"] for row in csv.DictReader(file)] == ["1970-01-01T00:00:00.000000001", ""]


def test_texts_without_tokens(checkpoint: Checkpoint, caplog: pytest.LogCaptureFixture) -> None:
    """Where a tokenizer adds no special ones: zeros, and the others' as ever."""
    checkpoint.tokenizer.post_processor = processors.Sequence([])
    model = randomized(MultiTaskModel(SentenceEncoder.from_checkpoint(checkpoint), TASKS))
    found, alone = model.predict(["", "a"]), model.predict(["a"])
    assert not found.embeddings[0].any()
    assert np.array_equal(found.embeddings[1:], alone.embeddings)
    assert np.array_equal(found.logits["topic"][1:], alone.logits["topic"])
    assert caplog.records[0].getMessage() == "1 text without a single token: a vector of zeros for each"


def test_closed_streams(folder: Path, tmp_path: Path) -> None:
    """No file of ours takes the number of a stream that is closed."""
    for closed in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
        done = shell(f"mtl embed --model {folder} a -o {tmp_path}/o.npy --overwrite {closed}")
        assert (done.returncode, np.load(tmp_path / "o.npy").shape) == (0, (1, 12)), done.stderr


def test_nobody_s_home(folder: Path, tmp_path: Path) -> None:
    """Neither HOME nor a line in /etc/passwd, as in some containers."""
    nobody = "import pwd\ndef no(_):\n    raise KeyError\npwd.getpwuid = pwd.getpwnam = no\n"
    (tmp_path / "sitecustomize.py").write_text(nobody)
    unset = f"unset HOME XDG_CACHE_HOME; export PYTHONPATH={tmp_path}; cd {tmp_path};"
    done = shell(f"{unset} mtl embed --model {folder} a -o o.npy && mtl embed a > o.txt")
    assert done.returncode == 0, done.stderr
    done = shell(f"{unset} mtl embed --model '~nobody/x' a")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr


@pytest.mark.parametrize("options", [(), ("--resume",)])
def test_a_table_without_rows_keeps_its_columns(
    mtl: Callable[..., Done], run: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """Those that it has with rows: its own, and those of the tasks."""
    given = ["predict", "--model", run, "--threads", 1, *options]
    for name, content in (("none", "id,text\n"), ("one", "id,text\n7,a\n")):
        (tmp_path / f"{name}.csv").write_text(content)
        done = mtl(*given, "--input", tmp_path / f"{name}.csv", "--output", tmp_path / f"{name}.o.csv")
        assert done.returncode == 0, done.stderr
    header, _ = (tmp_path / "one.o.csv").read_text().splitlines()
    assert (tmp_path / "none.o.csv").read_text().splitlines() == [header]
    assert header.startswith("id,text,topic,")


def test_half_of_a_surrogate_pair_in_a_table(run: Path, tmp_path: Path) -> None:
    rows = [("a", {"text": "a", "x": "\ud800"})]
    write_answers(tmp_path / "o.csv", (fields for _, fields in answers(MultiTaskModel.from_pretrained(run), rows)))
    assert "\\ud800" in (tmp_path / "o.csv").read_text()


def test_standard_input_and_tables(mtl: Callable[..., Done], run: Path) -> None:
    """Text is printed as itself, and every kind of task says something."""
    done = mtl("predict", "--model", run, "--json", stdin="日本\n".encode())
    assert '"text": "日本"' in done.stdout
    answer = json.loads(done.stdout)
    done = mtl("predict", "--model", run, "日本")
    assert done.stdout.startswith("'日本'\n  embedding (12,)  ")
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith(("  topic", "  tags"))]
    labels = {name: answer["tasks"][name]["label"] for name in ("topic", "tags")}
    assert {row[0]: row[1] for row in rows} == labels | {"tags": "|".join(labels["tags"]) or "(none)"}
    assert mtl("predict", "--model", run, "--input", "-", stdin=b"a\nb\n").stdout.count("embedding (12,)") == 2


def test_a_name_that_is_taken(mtl: Callable[..., Done], run: Path, tmp_path: Path) -> None:
    for field, output, message in (
        ("tasks", "o.jsonl", "a row has a field 'tasks' already; rename it"),
        ("topic", "o.csv", "a row has a field 'topic' already, the name of a task; rename it, or write .jsonl"),
    ):
        (tmp_path / "in.jsonl").write_text(json.dumps({"text": "a", field: "b"}) + "\n")
        done = mtl("predict", "--model", run, "--input", tmp_path / "in.jsonl", "--output", tmp_path / output)
        assert (done.returncode, message in done.stderr) == (1, True), done.stderr
        assert not (tmp_path / output).exists()


def shell(command: str) -> subprocess.CompletedProcess[str]:
    prefix = f"'{sys.executable}' -m mtl"
    return subprocess.run(["bash", "-c", command.replace("mtl", prefix)], capture_output=True, text=True, timeout=120)


def test_closed_and_full_streams(folder: Path) -> None:
    done = shell("mtl embed <&-")
    assert (done.returncode, done.stderr.count("\n")) == (2, 4)
    assert "Error: no texts; expected arguments" in done.stderr
    done = shell(f"mtl embed --model {folder} a >&-")  # what it says goes nowhere
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "error: standard output: Bad file descriptor")
    if os.path.exists("/dev/full"):
        done = shell(f"mtl embed --model {folder} a > /dev/full")
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1] == "error: standard output: No space left on device"
        assert "Traceback" not in done.stderr


def test_what_nobody_foresaw_is_one_line(mtl: Callable[..., Done], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("once\nin a while")

    monkeypatch.setattr("mtl.cli.embed.choose_rows", fail)
    done = mtl("embed", "a")
    hint = "this was not foreseen: please report it, with what `mtl --debug ...` shows"
    assert (done.returncode, done.stderr) == (1, f"error: ZeroDivisionError: once in a while; {hint}\n")
    assert "Traceback (most recent call last)" in mtl("--debug", "embed", "a").stderr


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_resume(
    mtl: Callable[..., Done], run: Path, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an interrupted run has said is kept; the end is the same to the byte, and other input is refused."""
    rows = [{"id": i, "body": "abcdefg"[i % 7] * (i % 5 + 1), "half": "\ud800"} for i in range(20)]
    source, output = tmp_path / "in.jsonl", tmp_path / f"o{suffix}"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ["predict", "--model", run, "--input", source, "--field", "body", "--threads", 1, "--output"]
    assert mtl(*given, tmp_path / f"whole{suffix}").returncode == 0
    whole, real = (tmp_path / f"whole{suffix}").read_bytes(), predictions.answers

    def dies(*arguments: object) -> Iterator[tuple]:
        for number, answer in enumerate(real(*arguments)):
            if number == 7:
                raise KeyboardInterrupt
            yield answer

    with monkeypatch.context() as patch:
        patch.setattr("mtl.cli.predict.answers", dies)
        assert mtl(*given, output, "--resume").returncode == 130
    partial = tmp_path / f"o{suffix}.partial"
    assert partial.read_bytes().count(b"\n") == 7
    with partial.open("ab") as file:
        file.write(b'{"id": 7, "bo')  # as after a kill in the middle of a line
    source.write_text(source.read_text().replace('"id": 3', '"id": 33'))
    assert f"the input differs in row 4 from what is in {partial}" in mtl(*given, output, "--resume").stderr
    source.write_text(source.read_text().replace('"id": 33', '"id": 3'))
    other = mtl(*given, output, "--resume", "--precision", "bf16").stderr
    assert "was made otherwise: precision was 'fp32', is 'bf16'" in other
    kept = partial.read_bytes()
    partial.write_bytes(b"\0\0\n" + kept)
    assert f"{partial} is damaged in line 1" in mtl(*given, output, "--resume").stderr
    partial.write_bytes(kept)
    done = mtl(*given, output, "--resume")
    assert done.returncode == 0, done.stderr
    assert output.read_bytes() == whole
    assert not partial.exists()
    assert f"nothing is left to do for {output}: 20 rows" in mtl(*given, output, "--resume").stderr
    with source.open("a") as file:
        file.write('{"id": 20, "body": "a"}\n')
    assert "the input differs from what" in mtl(*given, output, "--resume").stderr
    assert "which would say how the output was made, is missing" in mtl(*given, tmp_path / f"whole{suffix}",
                                                                        "--resume").stderr  # fmt: skip
    assert mtl("predict", "--model", run, "a", "--resume").returncode == 2


def test_what_a_terminal_would_act_on_is_escaped() -> None:
    """In a text whose spans are marked, in labels and in tables; line ends are blanks."""
    text = "a\x1b[31m b\u202e\r\nc\x07"
    spans = [{"text": "b\u202e", "label": "x\x1b]", "start": 7, "end": 9, "score": 0.5}]
    assert click.unstyle(marked(text, spans)) == r"a\x1b[31m [b\u202e x\x1b]] c\x07"
    joined = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u062f \U0001f468\u200d\U0001f469"  # Persian, and an emoji
    assert marked(joined, []) == joined
    scores = {"label": "y\n", "scores": {"y\n": 0.75}, "logits": [0.5]}
    shown = answer_table(text, {"embedding": [0.0], "tasks": {"t\x1b": scores, "spans": {"spans": spans}}})
    assert click.unstyle(shown).replace("\n", "").isprintable()
    assert r"y\n" in shown


def test_a_file_of_words_is_tagged_as_its_texts(mtl: Callable[..., Done], run: Path, tmp_path: Path) -> None:
    """A row of tokens without a text has theirs, with a blank between them, in all that reads texts."""
    (tmp_path / "x.conll").write_text("Ada X B-PER\nsaw X O\n\nit X O\n", encoding="utf-8")
    (tmp_path / "x.jsonl").write_text('{"tokens": ["Ada", "saw"]}\n{"tokens": ["it"]}\n', encoding="utf-8")
    found = MultiTaskModel.from_pretrained(run).predict(["Ada saw", "it"])
    for name in ("x.conll", "x.jsonl"):
        done = mtl("predict", "-m", run, "-i", tmp_path / name, "--json", "--threads", 1)
        assert done.returncode == 0, done.stderr
        answers = [*map(json.loads, done.stdout.splitlines())]
        assert [(each["text"], each["tokens"]) for each in answers] == [("Ada saw", ["Ada", "saw"]), ("it", ["it"])]
        assert [np.float32(each["embedding"]).tolist() for each in answers] == found.embeddings.tolist()
    (tmp_path / "wrong.jsonl").write_text('{"tokens": ["Ada", 1]}\n', encoding="utf-8")
    done = mtl("predict", "-m", run, "-i", tmp_path / "wrong.jsonl")
    assert (done.returncode, "no field 'text'; it has tokens" in done.stderr) == (1, True)


def test_folders_and_headers_without_the_text(mtl: Callable[..., Done], run: Path, tmp_path: Path) -> None:
    """A folder where a file is expected is called one; a header without the field is refused, as where rows follow."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "pairs.tsv").write_text("query\tanswer\na\tb\n")
    for name, content in (("x.tsv", "a\tb\n"), ("x.csv", "a,b\n"), ("text.tsv", "text\tb\n")):
        (tmp_path / name).write_text(content)
    parquet.write_table(pa.table({"a": pa.array([], pa.string())}), tmp_path / "x.parquet")
    model = ("-m", run / "model")
    cases = [
        (("embed", *model, "-i", tmp_path / "folder"), "folder is a folder; expected a file, or mtl embed-corpus"),
        (("embed", *model, "a", "-o", f"{tmp_path / 'folder'}/"), "folder is a folder; expected the name of a file"),
        (("mine", tmp_path / "pairs.tsv", *model, "--corpus", tmp_path / "folder", "-o", tmp_path / "m.jsonl"),
         "folder is a folder; expected a file"),
        *((("embed", *model, "-i", tmp_path / f"x.{kind}", "-o", tmp_path / f"{kind}.npy"), "no field 'text'; it has a")
          for kind in ("csv", "tsv", "parquet")),
        (("predict", *model, "-i", tmp_path / "x.tsv", "-o", tmp_path / "o.jsonl"), "no field 'text'; it has a, b"),
    ]  # fmt: skip
    for arguments, said in cases:
        done = mtl(*arguments)
        assert done.returncode, arguments
        assert said in done.stderr, (arguments, done.stderr)
    assert not [*tmp_path.glob("*.npy"), *tmp_path.glob("o.jsonl")]
    assert mtl("embed", *model, "-i", tmp_path / "text.tsv", "-o", tmp_path / "text.npy").returncode == 0
