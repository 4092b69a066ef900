"""A user's own kinds, losses, metrics and hooks, and what is refused of them."""

import dataclasses
import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch
from conftest import saved_tasks
from torch import Tensor
from torch.nn.functional import cross_entropy

import mtl
from mtl import MultiTaskModel, Recipe, SentenceEncoder, TaskSpec, Training
from mtl.errors import ConfigError, InputError, MtlError, RecipeError, TrainingError
from mtl.tasks import registry
from mtl.tasks.kinds import KINDS
from mtl.tasks.kinds.base import HeadOptions
from mtl.tasks.kinds.classes import LabelOptions
from mtl.tasks.kinds.single_label import SingleLabel
from mtl.tasks.kinds.tokens import Tokens


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    known = [(place, dict(place)) for place in (KINDS, registry.LOSSES, registry.METRICS)]
    yield
    for place, before in known:
        place.clear()
        place.update(before)


ROWS = [("a b", "x"), ("c d e", "y"), ("f", "y"), ("a g h", "x"), ("i", "y"), ("e j", "y"), ("a c", "y"), ("b", "x")]


@pytest.fixture
def recipe(folder: Path, tmp_path: Path) -> Recipe:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in ROWS))
    task = TaskSpec("one", ("x", "y"), train=path, dev=path, dropout=0.0)
    return Recipe(folder, [task], Training(epochs=2, batch_size=3, accumulate=2, learning_rate=1e-3))


def changed(recipe: Recipe, **fields: object) -> Recipe:
    return dataclasses.replace(recipe, tasks=[dataclasses.replace(recipe.tasks[0], **fields)])


def by_row(outputs: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(outputs, targets, reduction="none")


def test_a_registered_loss_is_a_mean_over_the_window_s_rows(recipe: Recipe, tmp_path: Path) -> None:
    """Of rows' cross-entropies it is our own loss; the trained model needs it no more."""
    mtl.register_loss("rows", by_row)
    with_theirs = mtl.train(changed(recipe, loss="rows"), tmp_path / "theirs")
    ours = mtl.train(recipe, tmp_path / "ours")
    for name, x in ours.state_dict().items():
        torch.testing.assert_close(with_theirs.state_dict()[name], x, atol=2e-5, rtol=1e-4)
    registry.LOSSES.clear()
    saved = MultiTaskModel.from_pretrained(tmp_path / "theirs")
    assert saved.tasks["one"].loss is None
    assert saved.predict(["a b"]).labels == with_theirs.predict(["a b"]).labels
    with pytest.raises(RecipeError, match="loss is 'rows'; a single-label task has no loss"):
        changed(recipe, loss="rows")


def test_a_registered_loss_of_tokens_sees_those_with_a_label(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "marked.jsonl"
    path.write_text(json.dumps({"tokens": ["a", "b", "c"], "tags": ["B-x", "O", "O"]}) + "\n")
    seen = []
    mtl.register_loss("seen", lambda x, y: seen.append((x.shape, y.tolist())) or by_row(x, y), ["tokens"])
    task = TaskSpec("tags", ("x",), kind="tokens", train=path, loss="seen")
    mtl.train(Recipe(folder, [task], Training(epochs=1)), tmp_path / "run")
    assert seen == [(torch.Size([3, 3]), [1, 0, 0])]


def test_a_registered_metric_is_measured_and_chosen_by(recipe: Recipe, tmp_path: Path) -> None:
    mtl.register_metric("wrong", lambda x, y: (x.argmax(1) != y).float().mean(), less_is_better=True)
    best = dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, best="one.wrong"))
    mtl.train(best, tmp_path / "run")
    found = mtl.evaluate(tmp_path / "run", recipe, "dev")["one"]
    assert found["wrong"] == pytest.approx(1 - found["accuracy"])


class Cautious(SingleLabel):
    """single-label, whose first label is said where none is likely."""

    @dataclasses.dataclass(frozen=True)
    class Options(LabelOptions):
        least: float = 0.5

    name = "cautious"

    def words(self, scores: Tensor) -> list[str]:
        sure, said = scores.max(dim=1)
        return [self.labels[i] if p >= self.options.least else self.labels[0] for p, i in zip(sure, said, strict=True)]


def test_a_registered_kind_with_options_of_its_own(recipe: Recipe, tmp_path: Path) -> None:
    assert mtl.register_kind(Cautious) is Cautious
    mtl.register_kind(Cautious)  # as a notebook does that runs a cell again
    model = mtl.train(changed(recipe, kind="cautious", options={"least": 1.1}), tmp_path / "run")
    assert set(model.predict([text for text, _ in ROWS]).labels["one"]) == {"x"}
    saved = MultiTaskModel.from_pretrained(tmp_path / "run")
    assert saved_tasks(saved) == saved_tasks(model)
    with pytest.raises(RecipeError, match=r"options are {'most': 1}; expected a table of least for a cautious task"):
        changed(recipe, kind="cautious", options={"most": 1})
    with pytest.raises(RecipeError, match=r"options are {'least': 1}; expected a table of nothing for a sing"):
        changed(recipe, options={"least": 1})
    del KINDS["cautious"]
    with pytest.raises(ConfigError, match="kind is 'cautious'; expected one of .*, or one that mtl.register_kind was"):
        MultiTaskModel.from_pretrained(tmp_path / "run")


def test_hooks_see_every_step_and_epoch(recipe: Recipe, tmp_path: Path) -> None:
    steps, epochs = [], []
    mtl.train(recipe, tmp_path / "run", on_step=lambda model, record: steps.append((model, record)),
              on_epoch=lambda model, record: epochs.append((model.predict(["a"]).labels, record)))  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record for _, record in steps] == [line for line in lines if "loss" in line]
    assert [record for _, record in epochs] == [line for line in lines if "dev" in line]
    assert all(isinstance(model, MultiTaskModel) for model, _ in steps)


def test_a_hook_that_raises_ends_the_run_which_can_go_on(recipe: Recipe, tmp_path: Path) -> None:
    def stop(model: MultiTaskModel, record: dict) -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        mtl.train(recipe, tmp_path / "run", on_epoch=stop)
    mtl.train(recipe, tmp_path / "run", resume=True)
    mtl.train(recipe, tmp_path / "whole")
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def kind(**content: object) -> type:
    return type("Theirs", (SingleLabel,), content)


@dataclasses.dataclass(frozen=True)
class Bare(HeadOptions):
    needed: int = dataclasses.field(kw_only=True)


@pytest.mark.parametrize(
    ("register", "message"),
    [
        (lambda: mtl.register_kind(3), "kind is 3; expected a class of mtl.Kind"),
        (lambda: mtl.register_kind(SingleLabel), "kind has the name 'single-label', which is one of ours"),
        (lambda: mtl.register_kind(kind(name="a b")), "kind has the name 'a b'; expected letters, digits, - and _"),
        (lambda: mtl.register_kind(kind(name=None)), "kind has the name None; expected letters"),
        (lambda: mtl.register_kind(type("K", (mtl.HeadKind,), {"name": "k"})), "kind 'k' lacks loss, measure, words"),
        (lambda: mtl.register_kind(kind(name="k", own_metrics={})), "kind 'k' has no own_metrics; expected each"),
        (lambda: mtl.register_kind(kind(name="k", own_metrics=["a"])), r"has own_metrics \['a'\]; expected each"),
        (lambda: mtl.register_kind(kind(name="k", own_metrics={"a": 2})), "has own_metrics {'a': 2}; expected each"),
        (lambda: mtl.register_kind(kind(name="k", level="token")), "kind 'k' lacks logits, spans; expected"),
        (lambda: mtl.register_kind(kind(name="k", Options=int)), "kind 'k' has Options that are no dataclass"),
        (lambda: mtl.register_kind(kind(name="k", Options=Bare)), "kind 'k' has no default for needed; expected one"),
        (lambda: mtl.register_loss("cosent", by_row), "loss has the name 'cosent', which is one of ours"),
        (lambda: mtl.register_loss("pairwise", by_row, "relevance"), "loss has the name 'pairwise', which is one of"),
        (lambda: mtl.register_loss("margin", by_row, "distillation"), "loss has the name 'margin', which is one of"),
        (lambda: mtl.register_loss("", by_row), "loss has the name ''; expected letters"),
        (lambda: mtl.register_loss("mine", "focal"), "loss 'mine' is 'focal'; expected a function of outputs"),
        (lambda: mtl.register_loss("mine", lambda x: x), "loss 'mine' is <function .*; expected a function"),
        (lambda: mtl.register_loss("mine", by_row, "multi"), "loss 'mine' is for 'multi'; expected one or"),
        (lambda: mtl.register_loss("mine", by_row, []), r"loss 'mine' is for \[\]; expected one or"),
        (lambda: mtl.register_metric("accuracy", by_row), "metric has the name 'accuracy', which is one of ours"),
        (lambda: mtl.register_metric("ece", by_row), "metric has the name 'ece', which is one of ours"),
        (lambda: mtl.register_metric("mine", 4, "tokens"), "metric 'mine' is 4; expected a function of out"),
    ],
)  # fmt: skip
def test_what_cannot_be_registered(register, message: str) -> None:
    with pytest.raises(InputError, match=message):
        register()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": lambda x, y: by_row(x, y).mean()}, r"its loss 'mine' gives a tensor of shape \(\); expected one"),
        ({"loss": lambda x, y: 1.0}, "its loss 'mine' gives 1.0; expected one number for each of"),
        ({"metric": lambda x, y: float("nan")}, "task 'one': the metric 'mine' is nan; expected a finite number"),
        ({"metric": lambda x, y: None}, "task 'one': the metric 'mine' is None; expected a finite number"),
    ],
)  # fmt: skip
def test_functions_that_give_something_else(recipe: Recipe, tmp_path: Path, changes: dict, message: str) -> None:
    if "loss" in changes:
        mtl.register_loss("mine", changes["loss"])
        recipe = changed(recipe, loss="mine")
    else:
        mtl.register_metric("mine", changes["metric"])
    with pytest.raises(TrainingError, match=message):
        mtl.train(recipe, tmp_path / "run")


def test_a_metric_that_the_task_has_by_its_options() -> None:
    mtl.register_metric("cosine", by_row, "distillation")
    task = mtl.TaskSpec("t", kind="distillation", teacher="x")
    with pytest.raises(RecipeError, match="task 't': the metric 'cosine' is registered, and one of the task's own"):
        assert task.metrics
    assert mtl.TaskSpec("t", kind="distillation", teacher="x", loss="margin", text_field=("q", "a", "b")).metrics


@pytest.mark.parametrize(
    "own_metrics",
    [MappingProxyType({"a": 1, "b": -1}), property(lambda self: {"a": 1}), cached_property(lambda self: {"a": 1})],
    ids=["mapping", "property", "cached"],
)
def test_metrics_of_any_form(own_metrics: object) -> None:
    mtl.register_kind(kind(name="k", own_metrics=own_metrics))
    assert TaskSpec("one", ("x", "y"), kind="k").handler.main_metric == "a"
    mtl.register_metric("mine", lambda x, y: 0.0, ["k", "distillation"])  # whose own depend on the task
    assert "mine" in TaskSpec("one", ("x", "y"), kind="k").metrics


def test_a_kind_s_attributes_may_be_called_classes() -> None:
    def start(self: SingleLabel, task: TaskSpec) -> None:
        SingleLabel.__init__(self, task)
        self.classes = len(task.labels)

    mtl.register_kind(kind(name="k", __init__=start))
    handler = TaskSpec("one", ("x", "y"), kind="k").handler
    assert handler.classes == handler.outputs == 2


def test_a_kind_of_tokens_is_no_token_classifier_to_others(tiny: SentenceEncoder, tmp_path: Path) -> None:
    mtl.register_kind(type("Theirs", (Tokens,), {"name": "theirs"}))
    model = MultiTaskModel(tiny, [TaskSpec("one", ("x",), kind="theirs")]).eval()
    model.save(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["architectures"] == ["DistilBertModel"]
    saved = MultiTaskModel.from_pretrained(tmp_path / "model")
    assert saved_tasks(saved) == saved_tasks(model)
    assert np.array_equal(saved.predict(["a b"]).logits["one"][0], model.predict(["a b"]).logits["one"][0])


def test_a_kind_s_loss_may_be_a_list() -> None:
    mtl.register_kind(kind(name="k", loss=lambda self, x, y: [x.sum(), len(x)]))
    handler = TaskSpec("one", ("x", "y"), kind="k").handler
    found, count = handler.criterion(torch.full((3, 2), 0.5), torch.tensor([0, 1, 1]))
    assert (found.item(), count) == (3.0, 3)


@pytest.mark.parametrize(
    "given",
    [lambda x: x.sum(), lambda x: (x.sum(dim=1), 1), lambda x: (0.5, 1), lambda x: (np.float32(1), 1), lambda x: None],
    ids=["sum", "rows", "float", "numpy", "nothing"],
)
def test_a_kind_s_loss_that_is_no_sum_and_count(recipe: Recipe, tmp_path: Path, given) -> None:
    mtl.register_kind(kind(name="theirs", loss=lambda self, outputs, targets: given(outputs)))
    with pytest.raises(
        TrainingError, match="task 'one': its kind's loss gives .*; expected the sum over all rows, a te"
    ):
        mtl.train(changed(recipe, kind="theirs"), tmp_path / "run")


def test_a_hook_that_is_none(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(MtlError, match="on_step is 'print'; expected a function of the model and a record"):
        mtl.train(recipe, tmp_path / "run", on_step="print")
