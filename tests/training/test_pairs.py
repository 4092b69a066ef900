"""Tasks about several texts: exact windows, freezing to the bit, resuming, and what is wrong with their data."""

import dataclasses
import json
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from training.test_loop import A, build, go, start, state, window_gradients
from training.test_loop import examples as labelled

from mtl import MultiTaskModel, SentenceEncoder
from mtl.checkpoints.load import Checkpoint
from mtl.errors import MtlError, TrainingError
from mtl.model.packing import PackedBatch
from mtl.model.pooling import Dense, LayerNorm, Normalize
from mtl.tasks.examples import Examples, Split
from mtl.tasks.kinds.contrastive import text_numbers
from mtl.tasks.spec import TaskSpec
from mtl.training import gradients as gradients_module
from mtl.training.data import load_data, split_rows
from mtl.training.gradients import Piece, divide
from mtl.training.metrics import all_logits
from mtl.training.recipe import Recipe, Training, read_recipe
from mtl.training.run import Run, prepare
from mtl.training.schedule import MicroBatch

__all__ = ["start"]  # the fixture

SIMILAR = TaskSpec("alike", kind="similarity", text_field=("a", "b"), label_field="score", train="-", scale=5.0)
SQUARED = dataclasses.replace(SIMILAR, loss="squared", scale=None)
STUDENT = TaskSpec("alike", kind="distillation", text_field=("a",), train="-", teacher="-")
SIZES = dataclasses.replace(SIMILAR, matryoshka=(12, 4), matryoshka_weights=(1.0, 0.5))
NEGATIVES = TaskSpec("alike", kind="contrastive", text_field=("a", "b", "c"), train="-", scale=5.0, symmetric=True)
SHORT = dataclasses.replace(STUDENT, matryoshka=(6, 3), matryoshka_weights=(1.0, 0.5))
SAME = TaskSpec("alike", ("p", "q"), kind="few-shot", train="-")
KINDS_OF_PAIRS = pytest.mark.parametrize(
    "task",
    [SIMILAR, SQUARED, NEGATIVES, STUDENT, SHORT, SAME],
    ids=["cosent", "squared", "contrastive", "distillation", "distillation-sizes", "few-shot"],
)


def pairs(task: TaskSpec, size: int, seed: int, dim: int = 12) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    width = 2 if task.kind == "few-shot" else len(task.text_field)
    lengths = torch.randint(1, 12, (size * width,), generator=generator).tolist()
    rows = [[2, *torch.randint(5, 38, (n,), generator=generator).tolist(), 3] for n in lengths]
    targets = torch.rand(size, dim if task.kind == "distillation" else 1, generator=generator)
    if task.kind == "contrastive":
        rows[width + 1] = rows[1]  # rows 0 and 1 have one positive
        targets = text_numbers(rows, width)
    return Examples(rows, targets, width)


def dataset(*tasks: TaskSpec, size: int = 13, dim: int = 12) -> dict:
    def make(task: TaskSpec, size: int, seed: int) -> Examples:
        return pairs(task, size, seed, dim) if task.handler.embeds else labelled(task, size, seed)

    return {
        "train": {task.name: make(task, size, i) for i, task in enumerate(tasks)},
        "dev": {task.name: make(task, 9, 50 + i) for i, task in enumerate(tasks)},
        "test": {},
    }


def rich(checkpoint: Checkpoint) -> Checkpoint:
    """With layers behind the pooling, which pairs train too."""
    torch.manual_seed(0)
    return dataclasses.replace(checkpoint, after=(LayerNorm(12), Dense(12, 7, activation="SiLU"), Normalize()))


def gradients(run: Run, divided: list[list[Piece]]) -> dict[str, Tensor]:
    """Of one window."""
    return window_gradients(run, [MicroBatch(piece.task, piece.rows) for share in divided for piece in share], divided)


def graph_of_all(run: Run, divided: list[list[Piece]]) -> dict[str, Tensor]:
    """The same, with the graphs of all pieces alive at once, one loss per task and one backward pass."""
    run.model.train()
    run.model.zero_grad(set_to_none=True)
    total = torch.zeros(())
    pieces = [piece for share in divided for piece in share]
    for name in dict.fromkeys(piece.task for piece in pieces):
        own = [piece for piece in pieces if piece.task == name]
        outputs = torch.cat([run.compute(1)(piece) for piece in own])
        targets = torch.cat([piece.targets for piece in own])
        loss, count = run.model.tasks[name].criterion(outputs, targets)
        total = total + loss / count
    total.backward()
    return {name: p.grad.clone() for name, p in run.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("freeze", ["none", 1])
@KINDS_OF_PAIRS
def test_a_window_is_one_batch(start, checkpoint: Checkpoint, task: TaskSpec, dropout: float, freeze) -> None:
    """Ragged micro-batches of two tasks, mixed, against one graph over all of them."""
    tasks = (dataclasses.replace(task, freeze=freeze), dataclasses.replace(A, freeze=freeze))
    run = start(tasks, dropout=dropout, data=dataset(*tasks))
    window = [MicroBatch("alike", (0, 1, 2)), MicroBatch("topic", (4, 5)), MicroBatch("alike", (7,)),
              MicroBatch("topic", (1,)), MicroBatch("alike", (3, 4, 5, 6))]  # fmt: skip
    whole = divide([MicroBatch("alike", tuple(range(8))), MicroBatch("topic", (4, 5, 1))], run.data["train"], 1)
    alone = gradients(run, whole)
    largest = max(gradient.abs().max() for gradient in alone.values())

    def near(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
        return one.keys() == other.keys() and all((one[n] - other[n]).abs().max() <= 1e-6 * largest for n in one)

    for count, tokens in ((1, 999), (1, 14), (2, 999), (3, 14)):
        divided = divide(window, run.data["train"], count, tokens, (7,))
        assert sum(map(len, divided)) >= len(window)
        found = gradients(run, divided)
        assert near(found, graph_of_all(run, divided))
        assert near(found, alone) == (dropout == 0)


@KINDS_OF_PAIRS
@pytest.mark.parametrize("freeze", [0, 1, 2])
def test_what_pairs_freeze_keeps_its_bits(checkpoint: Checkpoint, tmp_path: Path, task: TaskSpec, freeze: int) -> None:
    """The rest moves: the blocks above, and the layer behind the embedder's pooling."""
    task = dataclasses.replace(task, freeze=freeze)
    model = build(rich(checkpoint), (task,), dropout=0.2)
    recipe = Recipe("tiny", (task,), Training(epochs=1, batch_size=4, accumulate=2, learning_rate=1e-2))
    run = Run(prepare(recipe, model, dataset(task, dim=7)), tmp_path / "run")
    before = state(model)
    go(run)
    held = ["embeddings", *(f"transformer.layer.{i}." for i in range(freeze))]
    for name, parameter in model.named_parameters():
        frozen = any(name.startswith(f"embedder.encoder.{part}") for part in held)
        assert torch.equal(parameter, before[name]) == frozen, name


def test_freeze_head_holds_the_layers_behind_the_pooling(checkpoint: Checkpoint, tmp_path: Path) -> None:
    task = dataclasses.replace(SIMILAR, freeze_head=True)
    model = build(rich(checkpoint), (task,))
    run = Run(
        prepare(Recipe("tiny", (task,), Training(epochs=1, batch_size=4)), model, dataset(task)), tmp_path / "run"
    )
    before = state(model)
    go(run)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == name.startswith("embedder.after."), name


def test_a_task_leaves_the_layers_that_it_holds_to_others(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Steps of its rows alone do not move them."""
    tasks = (SIMILAR, dataclasses.replace(NEGATIVES, name="belong", freeze_head=True))
    model, data = build(rich(checkpoint), tasks), dataset(*tasks)
    training = Training(epochs=1, batch_size=4, weight_decay=0.0)
    run = Run(prepare(Recipe("tiny", tasks, training), model, data), tmp_path / "run")
    layer, moved = model.embedder.after[1].linear.weight, []
    while run.step < run.plan.total:
        ((task,),) = [{micro.task for micro in run.schedule.window(run.step)}]
        before = layer.detach().clone(), model.encoder.transformer.layer[0].ffn.lin1.weight.detach().clone()
        go(run, 1)
        moved.append((task, not torch.equal(layer, before[0])))
        assert not torch.equal(model.encoder.transformer.layer[0].ffn.lin1.weight, before[1])
    assert set(moved) == {("alike", True), ("belong", False)}


@KINDS_OF_PAIRS
def test_resume_to_the_bit(start, tmp_path: Path, task: TaskSpec) -> None:
    """Several micro-batches a window, beside a classifier, dropout on, prefix remembered, mid-epoch."""
    tasks = (dataclasses.replace(task, freeze=1), dataclasses.replace(A, freeze=1, dropout=0.3))
    options = {"dropout": 0.2, "save_steps": 1, "accumulate": 3, "data": dataset(*tasks)}
    whole = start(tasks, "whole", **options)
    go(whole)
    go(start(tasks, "parts", **options), 3)
    torch.manual_seed(99)
    second = start(tasks, "parts", **options)
    second.restore()
    go(second)
    for name, x in whole.tensors().items():
        assert torch.equal(x, second.tensors()[name]), name
    metrics = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "parts")]
    assert metrics[0] == metrics[1]


def test_a_lone_pair_and_pieces_by_tokens(start) -> None:
    """micro_tokens changes no bit; a batch of one pair is refused, but with hard negatives."""
    two = dataclasses.replace(NEGATIVES, text_field=("a", "b"), symmetric=None)
    for options in ({"batch_size": 4}, {"batch_size": 1}):
        with pytest.raises(TrainingError, match=r"13 pairs in batches of \d leave one alone in step \d, which has no"):
            start((two,), data=dataset(two), accumulate=1, **options)
    with pytest.raises(TrainingError, match="13 pairs in batches of 1 leave one alone in step 4, which has no"):
        start((two,), data=dataset(two), accumulate=4, batch_size=1)
    start((two,), data=dataset(two), accumulate=7, batch_size=2)  # the one that is left over has company
    start((NEGATIVES,), data=dataset(NEGATIVES), accumulate=1)
    options = {"data": dataset(two), "batch_size": 13, "accumulate": 1, "dropout": 0.3}
    assert go(start((two,), "whole", **options)) == go(start((two,), "parts", micro_tokens=40, **options))


def test_only_one_micro_batch_s_graph_is_alive(start, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest number of tokens with a graph at once is that of a piece."""
    monkeypatch.setitem(gradients_module.PIECE_TOKENS, "cpu", 40)
    run = start((NEGATIVES,), data=dataset(NEGATIVES), batch_size=13, micro_tokens=40)
    graphs: list[tuple[int, weakref.ref[Tensor]]] = []
    alive: list[int] = []
    embed = run.model.encoder.embed

    def watched(batch: PackedBatch) -> Tensor:
        x = embed(batch)
        graphs.append((len(batch.ids), weakref.ref(x)))
        alive.append(sum(tokens for tokens, x in graphs if x() is not None))
        return x

    monkeypatch.setattr(run.model.encoder, "embed", watched)
    with run.training():
        window = run.window(1)
        run.gradients(window, run.objective(window, 1))
    half = len(graphs) // 2
    assert [tokens for tokens, _ in graphs[:half]] == [tokens for tokens, _ in graphs[half:]]
    assert half > 5
    assert max(alive) <= 40


def test_the_best_epoch_is_chosen_by_the_correlation(start) -> None:
    run = start((SIMILAR,), data=dataset(SIMILAR), best="alike.spearman")
    go(run)
    dev = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines() if "dev" in line]
    assert [record["dev"]["alike"].keys() for record in dev] == [{"spearman", "pearson"}] * 2
    assert run.best is not None
    assert run.best.value == max(record["dev"]["alike"]["spearman"] for record in dev)


def test_every_size_is_measured_and_may_choose_the_epoch(start) -> None:
    """The metric of 4 dimensions is that of a model whose vectors end there."""
    run = start((SIZES,), data=dataset(SIZES), best="alike.spearman-4")
    go(run)
    dev = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines() if "dev" in line]
    assert [*dev[-1]["dev"]["alike"]] == ["spearman", "pearson", "spearman-12", "spearman-4"]
    assert dev[-1]["dev"]["alike"]["spearman-12"] == dev[-1]["dev"]["alike"]["spearman"]
    vectors = all_logits(run.model, run.data["dev"])["alike"][..., :4]
    expected = SIMILAR.handler.measure(vectors, run.data["dev"]["alike"].targets)["spearman"]
    assert dev[-1]["dev"]["alike"]["spearman-4"] == expected
    assert run.best is not None
    assert run.best.value == max(record["dev"]["alike"]["spearman-4"] for record in dev)


def test_sizes_above_the_model_s(start) -> None:
    task = dataclasses.replace(SIMILAR, matryoshka=(4, 13))
    with pytest.raises(MtlError, match=r"task 'alike': matryoshka is \[4, 13\]; expected at most 12, the model's dim"):
        start((task,), data=dataset(task))


FEW = TaskSpec("near", ("x", "y", "z"), kind="few-shot", train="few.jsonl", pairs=3)


def few(folder: Path, labels: str, task: TaskSpec = FEW) -> Examples:
    write(folder / "few.jsonl", *({"text": chr(97 + i) * 2, "label": label} for i, label in enumerate(labels)))
    texts, targets = split_rows(task, "train", folder).stacked(task)
    split = Split("train", folder, None, seed=7)
    split.tokenize = lambda texts: [[2, 5 + i, 3] for i in range(len(texts))]
    return task.handler.examples(texts, targets, split)


def test_pairs_are_drawn_as_setfit_does(tmp_path: Path) -> None:
    """Each text, `pairs` times: beside another of its label, and beside one of another label."""
    labels = "xxyyyzz"
    found = few(tmp_path, labels)
    assert len(found) == 2 * 3 * 7
    firsts, others = ([row[1] - 5 for row in found.rows[side::2]] for side in (0, 1))
    assert firsts == [i for i in range(7) for _ in range(2)] * 3
    assert found.targets.tolist() == [[1.0], [0.0]] * 21
    for first, other, (same,) in zip(firsts, others, found.targets.tolist(), strict=True):
        assert first != other
        assert (labels[first] == labels[other]) == bool(same)
    assert {other for first, other in zip(firsts, others, strict=True) if first == 0} > {1}
    assert found.rows == few(tmp_path, labels).rows


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("xxx", "task 'near': in its train data all rows have a label in common; expected rows of two or more labels"),
        ("xyz", "task 'near': in its train data no two rows have a label in common; expected rows of two or more"),
    ],
)
def test_too_few_for_few_shot(tmp_path: Path, labels: str, message: str) -> None:
    with pytest.raises(MtlError, match=message):
        few(tmp_path, labels)
    with pytest.raises(MtlError, match="labels are .*; expected at least 2 for a few-shot task"):
        TaskSpec("near", ("x",), kind="few-shot")


def test_first_the_pairs_then_the_head(start, tmp_path: Path) -> None:
    """In the first epoch the trunk moves, from the second on the classifier's head alone; resumed to the bit."""
    near = dataclasses.replace(FEW, freeze={"1": "none", "2": "encoder"})
    head = dataclasses.replace(A, name="topic", freeze="encoder")
    data = {"train": {"near": few(tmp_path, "xxyyzz"), "topic": labelled(head, 9, 1)}, "dev": {}, "test": {}}
    options = {"data": data, "epochs": 3, "sampling": "uniform", "save_steps": 1}
    run = start((near, head), "whole", **options)
    go(run, run.schedule.steps_per_epoch)
    trunk = {name: x for name, x in state(run.model).items() if name.startswith("embedder")}
    records = go(run)
    after = state(run.model)
    assert all(torch.equal(after[name], x) for name, x in trunk.items())
    per_epoch = run.schedule.steps_per_epoch
    assert any("near" in record["loss"] for record in records[:per_epoch])
    assert not any("near" in record["loss"] for record in records[per_epoch:])
    assert any("topic" in record["loss"] for record in records[per_epoch:])
    go(start((near, head), "parts", **options), per_epoch + 2)
    again = start((near, head), "parts", **options)
    again.restore()
    go(again)
    assert all(torch.equal(x, again.tensors()[name]) for name, x in run.tensors().items())
    with pytest.raises(TrainingError, match="task 'near' freezes the encoder and its head in epoch 2: nothing is left"):
        start((near,), data={**data, "train": {"near": data["train"]["near"]}}, epochs=3)


def test_what_is_saved_gives_the_trained_vectors(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """As an encoder and as a multi-task model, whose prediction is the embedding alone."""
    model = build(rich(checkpoint), (SIMILAR,))
    run = Run(prepare(Recipe("tiny", (SIMILAR,), Training(epochs=1)), model, dataset(SIMILAR)), tmp_path / "run")
    start = model.embedder.encode(["a b", "c"])
    go(run)
    vectors = model.eval().embedder.encode(["a b", "c"])
    assert not np.allclose(vectors, start, atol=1e-4)
    model.save(tmp_path / "model")
    assert np.array_equal(SentenceEncoder.from_pretrained(tmp_path / "model").encode(["a b", "c"]), vectors)
    prediction = MultiTaskModel.from_pretrained(tmp_path / "model").predict(["a b", "c"])
    np.testing.assert_allclose(prediction.embeddings, vectors, atol=1e-6, rtol=0)
    assert prediction.logits == {}


def write(path: Path, *rows: dict) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


GOOD = {"a": "a b", "b": "b", "score": 3}


def test_scores_are_shares_of_their_range(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", GOOD, GOOD | {"score": 1}, GOOD | {"score": 2.5})
    task = dataclasses.replace(SIMILAR, train="rows.jsonl")
    texts, targets = split_rows(task, "train", tmp_path).stacked(task)
    assert texts == ["a b", "b"] * 3
    torch.testing.assert_close(targets, torch.tensor([[1.0], [0.0], [0.75]]))
    task = dataclasses.replace(task, score_range=(0, 5))
    _, targets = split_rows(task, "train", tmp_path).stacked(task)
    torch.testing.assert_close(targets, torch.tensor([[0.6], [0.2], [0.5]]))


@pytest.mark.parametrize(
    ("changes", "row", "message"),
    [
        ({}, {"a": "a", "score": 3}, "rows.jsonl, line 2: no field 'b'; it has a, score"),
        ({}, GOOD | {"b": " "}, "rows.jsonl, line 2: field 'b' is empty; expected a text"),
        ({}, GOOD | {"b": None}, "rows.jsonl, line 2: field 'b' is a NoneType; expected a string"),
        ({}, GOOD | {"score": "nan"}, "rows.jsonl, line 2: score is 'nan'; expected a finite number"),
        ({"score_range": (0, 5)}, GOOD | {"score": 6}, "line 2: score is 6; expected 0 to 5, the task's score_range"),
        ({}, GOOD, "task 'alike': all scores are 3; expected different ones, or a score_range"),
        ({"kind": "contrastive"}, {"a": "a"}, "rows.jsonl, line 2: no field 'b'; it has a"),
        (
            {"kind": "contrastive"},
            {"a": "a b", "b": "a b"},
            "task 'alike': all texts of its training data are the same",
        ),
        (
            {"score_range": (0, 5)},
            {"a": "a b", "b": "a b", "score": 1},
            "task 'alike': all texts of its training data are the same; expected different ones",
        ),
    ],
)
def test_mistakes_in_pairs(tmp_path: Path, tiny: SentenceEncoder, changes: dict, row: dict, message: str) -> None:
    first = {"a": "a b", "b": "a b", "score": 3} if "same" in message else GOOD
    write(tmp_path / "rows.jsonl", first, row)
    task = dataclasses.replace(SIMILAR, train="rows.jsonl", **changes)
    with pytest.raises(MtlError, match=message):
        load_data(Recipe("tiny", (task,), folder=tmp_path), tiny)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('loss = "triplet"', "line 7: loss is 'triplet'; expected one of cosent, squared"),
        ("scale = 0", "line 7: scale is 0.0; expected more than 0"),
        ("score_range = [5, 0]", r"line 7: score_range is \[5.0, 0.0\]; expected the lowest and the highest score"),
        ("score_range = [-inf, 5]", r"line 7: score_range is \[-inf, 5.0\]; expected the lowest and the highest score"),
        ('score_range = ["0"]', r"line 7: score_range is \['0'\]; expected a list of numbers"),
        ("matryoshka = [4, 4]", r"line 7: matryoshka is \[4, 4\]; expected different sizes from 1 on"),
        ("matryoshka = [0]", r"line 7: matryoshka is \[0\]; expected different sizes from 1 on"),
        ("matryoshka = [4.5]", r"line 7: matryoshka is \[4.5\]; expected a list of whole numbers"),
        (
            "matryoshka_weights = [1]",
            r"line 7: matryoshka_weights are \[1.0\]; expected a number above 0 for each",
        ),
        ('pooling = "cls"', r"line 7: pooling is \('cls',\); a similarity task has no pooling"),
        ('labels = ["x", "y"]', "expected no labels for a similarity task"),
    ],
)
def test_mistakes_in_a_recipe(tmp_path: Path, line: str, message: str) -> None:
    lines = ['model = "tiny"', "[[task]]", 'name = "alike"', 'kind = "similarity"', 'text_field = ["a", "b"]', "", line]
    (tmp_path / "recipe.toml").write_text("\n".join(lines))
    with pytest.raises(MtlError, match=message):
        read_recipe(tmp_path / "recipe.toml")


def test_too_few_text_fields_name_those_of_the_data(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(
        'model = "tiny"\n[[task]]\nname = "sts"\nkind = "similarity"\ntrain = "sts.csv"\n'
    )
    expected = r"line 3: text_field is \['text'\]; expected 2 fields for a similarity task"
    with pytest.raises(MtlError, match=expected + "$"):
        read_recipe(tmp_path / "recipe.toml")
    (tmp_path / "sts.csv").write_text("text_a,text_b,score\na,b,1\n")
    more = r'; sts.csv has text_a, text_b, score: name them by text_field = \["...", "..."\] and label_field$'
    with pytest.raises(MtlError, match=expected + more):
        read_recipe(tmp_path / "recipe.toml")


def test_settings_of_other_kinds_are_refused() -> None:
    with pytest.raises(MtlError, match=r"scale is 2.0; a single-label task has no scale"):
        TaskSpec("topic", ("x", "y"), scale=2)
    with pytest.raises(MtlError, match=r"text_field is \['a'\]; expected 2 fields or more for a contrastive task"):
        TaskSpec("alike", kind="contrastive", text_field="a")
    with pytest.raises(MtlError, match=r"text_field is \['a', 'a'\]; expected each of them once"):
        TaskSpec("alike", kind="contrastive", text_field=("a", "a"))
    with pytest.raises(MtlError, match=r"text_field is \['text'\]; expected 2 fields for a similarity task"):
        TaskSpec("alike", kind="similarity")
