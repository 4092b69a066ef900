"""Few-shot tasks: who is drawn beside whom, how evenly and fast; and the classifiers that they become."""

import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import saved_tasks
from hypothesis import given
from hypothesis import strategies as st

import mtl
from mtl import MultiTaskModel, SentenceEncoder, Training
from mtl.errors import MtlError, RecipeError
from mtl.tasks.kinds.few_shot import partners
from mtl.tasks.logistic import fit
from mtl.tasks.spec import TaskSpec
from mtl.training import loop
from mtl.training.data import load_data, read_files
from mtl.training.recipe import Recipe, read_recipe

TASK = TaskSpec("near", ("x", "y", "z"), kind="few-shot", train="rows.jsonl", pairs=3)


def drawn(labels: list[tuple[int, ...]], count: int) -> tuple[list[list[int]], list[list[int]]]:
    likes, unlikes = partners(labels, count, torch.Generator().manual_seed(3))
    return likes.tolist(), unlikes.tolist()


@given(st.lists(st.frozensets(st.integers(0, 4), max_size=3).map(lambda x: tuple(sorted(x))), min_size=1, max_size=12))
def test_partners_are_all_those_and_only_those(labels: list[tuple[int, ...]]) -> None:
    likes, unlikes = drawn(labels, 60)
    for i, own in enumerate(labels):
        alike = {j for j, other in enumerate(labels) if j != i and {*own} & {*other}}
        others = {*range(len(labels))} - alike - {i}
        assert {*likes[i]} <= (alike or {-1})
        assert {*unlikes[i]} <= (others or {-1})


def test_partners_are_drawn_evenly() -> None:
    likes, unlikes = drawn([(0,), (0,), (0,), (1,), (0, 1), (2,), ()], 12000)
    assert Counter(likes[0]).keys() == {1, 2, 4}
    assert all(abs(n - 4000) < 250 for n in Counter(likes[0]).values())  # a deviation is 52
    assert Counter(unlikes[4]).keys() == {5, 6}
    assert all(abs(n - 6000) < 300 for n in Counter(unlikes[4]).values())
    assert {*likes[5], *likes[6]} == {-1}


def test_a_label_with_nearly_all_rows_costs_no_more() -> None:
    """A million draws; by trial, each of them took a hundred thousand tries."""
    labels = [(0,)] * 50_000 + [(1,)] * 2
    _, unlikes = partners(labels, 20, torch.Generator().manual_seed(0))
    assert unlikes[:50_000].unique().tolist() == [50_000, 50_001]


def scores(folder: Path, model: SentenceEncoder, *labels: object, split: str = "train") -> list[tuple[str, str, float]]:
    """The pairs that are drawn of rows "a", "b", ... with these labels."""
    lines = [json.dumps({"text": chr(97 + i), "label": label}) + "\n" for i, label in enumerate(labels)]
    (folder / "rows.jsonl").write_text("".join(lines))
    task = TaskSpec("near", ("x", "y", "z"), kind="few-shot", pairs=3, **{split: "rows.jsonl"})
    data, _ = load_data(Recipe("tiny", (task,), folder=folder), model, [split])
    found = data[split]["near"]
    texts = {tuple(model.tokenizer([chr(97 + i)], "truncate").rows[0]): chr(97 + i) for i in range(len(labels))}
    names = [texts[tuple(row)] for row in found.rows]
    return [(*pair, score) for *pair, (score,) in zip(names[::2], names[1::2], found.targets.tolist(), strict=True)]


@pytest.mark.parametrize("split", ["train", "dev"])
def test_a_label_with_one_row_is_a_negative(tmp_path: Path, tiny: SentenceEncoder, split: str) -> None:
    found = scores(tmp_path, tiny, "x", "x", "y", split=split)
    assert [pair for pair in found if pair[0] == "c"]
    assert {pair[2] for pair in found if "c" in pair} == {0.0}
    assert {pair[:2] for pair in found if pair[2]} == {("a", "b"), ("b", "a")}
    assert len(found) == 3 * 5


def test_rows_of_several_labels(tmp_path: Path, tiny: SentenceEncoder) -> None:
    """Alike is what has a label in common, as in SetFit; names, "x|y" and flags are read as for a multi-label task."""
    found = scores(tmp_path, tiny, ["x", "y"], "y|z", [0, 0, 1], [], 0)
    alike = {frozenset(pair[:2]) for pair in found if pair[2]}
    assert alike == {frozenset("ab"), frozenset("bc"), frozenset("ae")}
    assert {frozenset(pair[:2]) for pair in found if not pair[2]}.isdisjoint(alike)
    assert not any(pair[2] for pair in found if "d" in pair)


def test_nothing_to_draw(tmp_path: Path, tiny: SentenceEncoder) -> None:
    for labels, what in (("xyz", "no two rows have"), ("xxx", "all rows have"), ("x", "no two rows have")):
        with pytest.raises(MtlError, match=f"task 'near': in its dev data {what} a label in common; expected rows of"):
            scores(tmp_path, tiny, *labels, split="dev")


# The classifier


@pytest.mark.parametrize("strength", [0.1, 1.0, 50.0])
def test_the_head_is_scikit_learn_s(strength: float) -> None:
    from sklearn.linear_model import LogisticRegression

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(24, 10, generator=generator) * 3
    y = torch.arange(24) % 3
    x[torch.arange(24), y] += 2
    scaled = (x / x.square().sum(1).mean().sqrt()).double().numpy()
    weight, bias = fit(x, y, 3, strength)
    theirs = LogisticRegression(C=strength, tol=1e-10, max_iter=10000).fit(scaled, y.numpy()).decision_function(scaled)
    np.testing.assert_allclose((x @ weight.T + bias).numpy(), theirs, atol=1e-4)
    flags = torch.stack([y == 0, y != 1], dim=1).float()
    weight, bias = fit(x, flags, 2, strength)
    for i, own in enumerate(flags.T.numpy()):
        model = LogisticRegression(C=strength, tol=1e-10, max_iter=10000).fit(scaled, own)
        np.testing.assert_allclose((x @ weight[i] + bias[i]).numpy(), model.decision_function(scaled), atol=1e-4)


def few(folder: Path, rows: dict[str, object], **options: object) -> TaskSpec:
    path = folder / "few.jsonl"
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows.items()))
    return TaskSpec("kind", kind="few-shot", train=path, pairs=2, **options)


ONE = {"a b": "x", "a c": "x", "a d e": "x", "f g": "y", "f h": "y", "g h i": "y", "k": "z", "k l": "z"}
SETS = {"a b": ["x", "y"], "a c": ["x"], "f g": ["y"], "f h": "y", "k l": [], "k": "z|x"}


def recipe(folder: Path, task: TaskSpec, **changes: object) -> Recipe:
    return Recipe(folder, [task], Training(epochs=2, batch_size=4, learning_rate=1e-3, **changes))


@pytest.mark.parametrize(("rows", "kind"), [(ONE, "single-label"), (SETS, "multi-label")])
def test_one_declaration_gives_a_classifier(folder: Path, tmp_path: Path, rows: dict, kind: str, caplog) -> None:
    task = few(tmp_path, rows)
    task = dataclasses.replace(task, dev=task.train)
    model = mtl.train(recipe(folder, task), tmp_path / "run")
    assert caplog.messages == ["kind: labels found: x, y, z"]
    saved = MultiTaskModel.from_pretrained(tmp_path / "run")
    assert saved_tasks(saved) == saved_tasks(model)
    assert (saved.tasks["kind"].kind, saved.tasks["kind"].labels) == (kind, ("x", "y", "z"))
    found, again = model.predict([*rows]), saved.predict([*rows])
    assert found.labels == again.labels
    assert np.array_equal(found.logits["kind"], again.logits["kind"])
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    main = saved.tasks["kind"].handler.main_metric
    metrics = mtl.evaluate(saved, recipe(folder, task), "dev")["kind"]
    assert metrics[main] == max(record["dev"]["kind"][main] for record in records if "dev" in record)
    if kind == "single-label":
        right = [label == given for label, given in zip(found.labels["kind"], rows.values(), strict=True)]
        assert metrics["accuracy"] == np.mean(right)


def test_numbers_that_are_found_are_names(folder: Path, tmp_path: Path) -> None:
    """Also where one could be another label's place; they stand in the order of numbers."""
    rows = {text: int({"x": 10, "y": 1, "z": 2}[label]) for text, label in ONE.items()}
    model = mtl.train(recipe(folder, few(tmp_path, rows)), tmp_path / "run")
    assert model.tasks["kind"].labels == ("1", "2", "10")
    assert set(model.predict([*rows]).labels["kind"]) <= {"1", "2", "10"}
    found = read_files(few(tmp_path, rows, labels=("1", "2", "10")), "train", tmp_path)
    assert [("1", "2", "10")[label] for (label,) in found.targets] == [str(number) for number in rows.values()]
    assert found.places == 0


@pytest.mark.parametrize("kind", ["few-shot", "single-label"])
@pytest.mark.parametrize("value", ["Favr", "favor", "", None, True, 1.5, 7, {"a": 1}])
def test_a_label_called_none_stands_for_no_other(kind: str, value: object) -> None:
    handler = TaskSpec("stance", ("None", "Favor", "Against"), kind=kind, train="rows.jsonl").handler
    with pytest.raises(ValueError, match="label .* is not declared; expected one of None, Favor, Against"):
        handler.read({"text": "a", "label": value})


def test_the_head_is_fitted_to_the_vectors_that_predict_has(folder: Path, tmp_path: Path) -> None:
    model = mtl.train(recipe(folder, few(tmp_path, ONE)), tmp_path / "run")
    vectors = torch.from_numpy(model.embedder.encode([*ONE]))  # the tiny model has a mean pooling and nothing behind it
    weight, bias = fit(vectors, torch.tensor(["xyz".index(label) for label in ONE.values()]), 3, 100.0)
    found = torch.from_numpy(model.predict([*ONE]).logits["kind"])
    torch.testing.assert_close(found, vectors @ weight.T + bias, atol=1e-2, rtol=1e-3)


def test_any_threads_and_going_on_give_the_same_bits(folder: Path, tmp_path: Path, monkeypatch) -> None:
    task = few(tmp_path, ONE)
    task = dataclasses.replace(task, dev=task.train)
    for threads in (1, 2):
        mtl.train(recipe(folder, task), tmp_path / str(threads), threads=threads)
    whole = loop.train
    monkeypatch.setattr(loop, "train", lambda run, log, threads: whole(run, log, threads, until=12) and False)
    with pytest.raises(mtl.TrainingStopped):
        mtl.train(recipe(folder, task, save_steps=1), tmp_path / "on")
    monkeypatch.undo()
    mtl.train(recipe(folder, task, save_steps=1), tmp_path / "on", resume=True)
    for name in ("model/model.safetensors", "model/tasks.safetensors", "model/tasks.json", "metrics.jsonl"):
        first = (tmp_path / "1" / name).read_bytes()
        assert first == (tmp_path / "2" / name).read_bytes() == (tmp_path / "on" / name).read_bytes(), name


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ({"a": "x", "b": "x"}, {}, r"the labels of its training data are \['x'\]; expected at least 2"),
        ({"a": 0.5, "b": "x"}, {}, "few.jsonl, line 1: label is 0.5; expected a label, or labels; 0.5 is none"),
        ({"a": "x", "b": "q"}, {"labels": ("x", "y")}, "line 2: label 'q' is not declared; expected one of x, y"),
        (
            {"a": ["x", "y"], "b": "x"},
            {"several": False},
            "text 1 of train has 2 labels; expected one, as",
        ),
    ],
)
def test_rows_that_give_no_classifier(folder: Path, tmp_path: Path, rows: dict, options: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        mtl.train(recipe(folder, few(tmp_path, rows, **options)), tmp_path / "run")
    with pytest.raises(RecipeError, match=r"labels are \['x'\]; expected at least 2"):
        few(tmp_path, ONE, labels=("x",))


@pytest.mark.parametrize(("rows", "kind"), [(ONE, "single-label"), (SETS, "multi-label")])
@pytest.mark.parametrize("named", [False, True])
def test_a_share_is_the_same_rows_once_it_is_a_classifier(
    tmp_path: Path, rows: dict[str, object], kind: str, named: bool
) -> None:
    """Before labels are known (inspect), with them (training), and as the classifier (evaluate)."""
    labels = ("x", "y", "z") if named else ()
    task = few(tmp_path, rows, labels=labels)
    found = read_files(task, "train", tmp_path)
    complete = dataclasses.replace(task, labels=("x", "y", "z"), several=kind == "multi-label")
    become = complete.handler.becomes
    assert become.kind == kind
    expected = become.handler.strata(read_files(become, "train", tmp_path).targets)
    assert task.handler.strata(found.targets) == expected
    assert complete.handler.strata(read_files(complete, "train", tmp_path).targets) == expected


def test_its_defaults_of_training(tmp_path: Path) -> None:
    """What nobody says is right for few examples, from Python and from a file; beside another kind, Training's own."""
    other = TaskSpec("topic", ("a", "b"), train="rows.jsonl")
    assert Recipe("m", [TASK]).training == Training(epochs=1, batch_size=16, learning_rate=2e-5)
    assert Recipe("m", [TASK, other]).training == Recipe("m", [other]).training == Training()
    assert Recipe("m", [TASK], Training()).training == Training()
    path = tmp_path / "few.toml"
    path.write_text(
        'model = "m"\n[training]\nepochs = 2\n[[task]]\nname = "t"\nkind = "few-shot"\ntrain = "rows.jsonl"\n'
    )
    assert read_recipe(path).training == Training(epochs=2, batch_size=16, learning_rate=2e-5)
