"""Training pairs in one row: losses, bits, resuming, and a cross-encoder's margins."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from conftest import randomized
from training.test_loop import go

from mtl import MultiTaskModel, Recipe, SentenceEncoder, TaskSpec, Training, evaluate
from mtl.checkpoints.load import Checkpoint, Origin
from mtl.checkpoints.save import save
from mtl.cli import cli
from mtl.cli.rerank import the_best
from mtl.errors import MtlError, RecipeError
from mtl.model import losses
from mtl.training.data import load_data
from mtl.training.run import Run, prepare
from mtl.training.start import create

WORDS = "abcdefghij"
ROWS = [
    {"query": f"{WORDS[i % 10]} b", "text": f"c {WORDS[i % 7]}", "bad": f"{WORDS[i % 3]} d e", "label": (i % 4) / 3,
     "entails": ["no", "yes"][i % 2]}
    for i in range(14)
]  # fmt: skip
NLI = TaskSpec("nli", ["no", "yes"], text_field=("query", "text"), label_field="entails", joint=True,
               train="rows.jsonl", dev="rows.jsonl")  # fmt: skip
SCORE = TaskSpec("score", kind="relevance", text_field=("query", "text"), train="rows.jsonl", dev="rows.jsonl")
ORDER = TaskSpec("order", kind="relevance", loss="pairwise", text_field=("query", "text", "bad"), train="rows.jsonl",
                 dev="rows.jsonl")  # fmt: skip
ALONE = TaskSpec("alone", ["no", "yes"], text_field=("query",), label_field="entails", train="rows.jsonl")


@pytest.fixture
def bert(checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tiny BERT of two segments, and rows."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    types = torch.stack([torch.zeros(12), torch.full((12,), 0.5)])
    origin = Origin("bert", {}, {"tokenizer_class": "BertTokenizer"}, types)
    save(dataclasses.replace(checkpoint, segments=True, origin=origin), tmp_path / "bert")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def cross_encoder(folder: Path, name: str) -> MultiTaskModel:
    model = MultiTaskModel(SentenceEncoder.from_pretrained(folder / "bert"), [SCORE])
    randomized(model.branches)
    model.eval().save(folder / name)
    return model


def test_texts_are_no_measure_of_a_judge_of_pairs(bert: Path) -> None:
    model = MultiTaskModel(SentenceEncoder.from_pretrained(bert / "bert"), [NLI]).eval()
    one = TaskSpec("nli", ["no", "yes"], text_field=("query",), label_field="entails", dev="rows.jsonl")
    assert evaluate(model, Recipe("", [NLI], folder=bert), "dev").keys() == {"nli"}
    with pytest.raises(RecipeError, match="task 'nli': joint is false; expected true, as in the model"):
        evaluate(model, Recipe("", [one], folder=bert), "dev")


def recipe(folder: Path, *tasks: TaskSpec, **training: object) -> Recipe:
    settings = {"epochs": 2, "batch_size": 4, "learning_rate": 1e-3, **training}
    return Recipe("bert", tasks, Training(**settings), folder=folder)


def started(made: Recipe, name: str = "") -> Run:
    model = create(made)
    data, _ = load_data(made, model.embedder, ["train", "dev"])
    return Run(
        prepare(made, model, {**data, "test": {}}), made.folder / (name or f"run-{len([*made.folder.glob('run-*')])}")
    )


def test_every_loss_learns_and_no_thread_changes_a_bit(bert: Path) -> None:
    made = recipe(bert, NLI, SCORE, ORDER, ALONE)
    runs = [started(made), started(made)]
    before = runs[0].model.encoder.embeddings.token_type_embeddings.weight.clone()
    for threads, run in enumerate(runs, 1):
        go(run, threads=threads)
    one, two = (run.model.state_dict() for run in runs)
    assert all(torch.equal(one[name], two[name]) for name in one)
    table = runs[0].model.encoder.embeddings.token_type_embeddings.weight
    assert torch.equal(table[0], torch.zeros(12))
    assert not torch.equal(table[1], before[1])


def test_resume_to_the_bit(bert: Path) -> None:
    made = recipe(bert, NLI, ORDER, ALONE, save_steps=2)
    whole = started(made, "whole")
    go(whole)
    go(started(made, "torn"), steps=4)
    again = started(made, "torn")
    again.restore()
    assert again.step == 4
    go(again)
    one, two = whole.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_pairwise_loss_by_hand() -> None:
    logits = torch.tensor([[1.0, 0.5, 3.0], [0.0, 0.0, -1.0]])
    wanted = sum(-F.logsigmoid(row[0] - other) for row in logits for other in row[1:])
    found, count = losses.pairwise(logits)
    assert count == 4
    torch.testing.assert_close(found, wanted)


def test_margins_by_hand() -> None:
    vectors = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    teacher = torch.randn(3, 2, generator=torch.Generator().manual_seed(1))
    query, positive, *negatives = vectors.unbind(1)
    own = torch.stack([(query * positive).sum(1) - (query * other).sum(1) for other in negatives], dim=1)
    found, count = losses.margin_error(vectors, teacher, 20.0)
    assert count == 6
    torch.testing.assert_close(found, (20 * own - teacher).square().sum())


def test_a_cross_encoder_teaches_margins(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = cross_encoder(bert, "teacher")
    student = TaskSpec("student", kind="distillation", loss="margin", teacher="teacher", scale=20.0,
                       text_field=("query", "text", "bad"), train="rows.jsonl", dev="rows.jsonl")  # fmt: skip
    run = started(recipe(bert, student))
    good, bad = (
        teacher.predict([(row["query"], row[name]) for row in ROWS]).logits["score"] for name in ("text", "bad")
    )
    np.testing.assert_allclose(run.data["train"]["student"].targets.numpy(), good - bad, rtol=0, atol=1e-6)
    with monkeypatch.context() as patched:  # they are remembered
        patched.setattr(MultiTaskModel, "predict", None)
        again = started(recipe(bert, student))
        assert torch.equal(again.data["train"]["student"].targets, run.data["train"]["student"].targets)
    go(run)
    np.save(bert / "scores.npy", np.concatenate([good, bad], axis=1))
    filed = started(recipe(bert, dataclasses.replace(student, teacher="scores.npy")))
    assert torch.equal(filed.data["train"]["student"].targets, run.data["train"]["student"].targets)
    np.save(bert / "short.npy", good)
    for changes, said in (
        ({"teacher": "short.npy"}, "one for each text of train behind a query"),
        ({"teacher": "bert"}, "no task heads"),
    ):
        with pytest.raises(MtlError, match=said):
            started(recipe(bert, dataclasses.replace(student, **changes)))
    for changes in ({"text_field": ("query", "text")}, {"scale": 0.0}, {"loss": "squared"}):
        with pytest.raises(MtlError):
            dataclasses.replace(student, **changes)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"query": "a", "entails": "no"}, "line 15: no field 'text'; it has query, entails"),
        ({"query": "a", "text": "", "entails": "no"}, "line 15: field 'text' is empty"),
        ({"query": "a", "text": 3, "entails": "no"}, "line 15: field 'text' is a int"),
        ({"query": "a", "text": "b", "entails": "maybe"}, "line 15: entails 'maybe' is not declared"),
    ],
)
def test_wrong_rows_are_one_line(bert: Path, row: dict, said: str) -> None:
    with (bert / "rows.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    with pytest.raises(MtlError, match=said):
        started(recipe(bert, NLI))


def test_only_the_best_rows_are_held() -> None:
    scores = np.random.default_rng(0).integers(0, 50, 9000).astype(np.float32)
    rows = ((("text", {"i": i}), score) for i, score in enumerate(scores))
    found = [fields["i"] for _, fields, _ in the_best(rows, 60)]
    assert found == np.argsort(-scores, kind="stable")[:60].tolist()


def test_pairs_from_the_command_line(bert: Path) -> None:
    judge = cross_encoder(bert, "judge")
    wanted = judge.rank("a b", [row["text"] for row in ROWS])
    base, source = ["-m", str(bert / "judge")], ["-i", str(bert / "rows.jsonl")]

    def ran(*arguments: str) -> list[dict]:
        found = CliRunner().invoke(cli, arguments)
        assert found.exit_code == 0, found.output
        return [json.loads(line) for line in found.stdout.splitlines()]

    rows = ran("rerank", *base, *source, "-q", "a b", "-k", "5", "--json")
    assert [np.float32(row["score"]) for row in rows] == [np.float32(hit["score"]) for hit in wanted[:5]]
    assert [row["text"] for row in rows] == [ROWS[hit["corpus_id"]]["text"] for hit in wanted[:5]]
    assert [row["rank"] for row in rows] == [1, 2, 3, 4, 5]
    everything = ran("rerank", *base, *source, "-q", "a b", "--json")
    assert [row["text"] for row in everything] == [ROWS[hit["corpus_id"]]["text"] for hit in wanted]
    scores = judge.predict([(row["query"], row["text"]) for row in ROWS]).scores["score"][:, 0]
    for found in (
        ran("predict", *base, *source, "--json"),
        ran("predict", *base, *source, "--field", "query,text", "--json"),
    ):
        assert [np.float32(row["tasks"]["score"]["label"]) for row in found] == [*scores]
        assert "embedding" not in found[0]
    (alone,) = ran("predict", *base, "--json", ROWS[0]["query"], ROWS[0]["text"])
    assert np.float32(alone["tasks"]["score"]["label"]) == scores[0]
    for arguments, said in (
        (["predict", *base, "one"], "two by two"),
        (["predict", *base, *source, "--field", "a,b,c"], "expected one, or two of a pair"),
        (["predict", *base, *source, "--field", "query,none"], "no field 'none'"),
        (["rerank", *base, *source, "-q", "a", "--task", "x"], "expected one of score"),
        (["rerank", *base, "-i", str(bert / "none.jsonl"), "-q", "a"], "is no file"),
        (["evaluate", *base, "-r", "x.toml", "--rerank", "y"], "--rerank goes with --retrieval"),
    ):
        found = CliRunner().invoke(cli, arguments)
        assert found.exit_code != 0
        assert said in (found.stderr + str(found.exception))
