"""Training and evaluating from Python, and a run's folder in the states that people find it in."""

import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from conftest import saved_tasks
from safetensors import SafetensorError

import mtl
from mtl import MultiTaskModel, Recipe, TaskSpec, Training
from mtl.cli import terminal
from mtl.disk import lock
from mtl.errors import CheckpointError, InputError, RecipeError, TrainingError
from mtl.training import session
from mtl.training.report import Reporter
from mtl.training.run import Run
from mtl.training.start import create

TEXTS = ["a b", "c d e", "f", "a g h", "i", "e j"]


@pytest.fixture
def recipe(folder: Path, tmp_path: Path) -> Recipe:
    """A recipe built in Python: lists and paths as they come, and a task without test data."""
    rows = [{"text": text, "label": "yes" if set(text) & set("ae") else "no", "size": len(text)} for text in TEXTS]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = [
        TaskSpec("vowel", ["yes", "no"], train=path, dev=path, test=path, freeze={1: 1}),
        TaskSpec("size", kind="regression", train=path, dev=path, label_field="size"),
    ]
    return Recipe(folder, tasks, Training(epochs=1, batch_size=2, learning_rate=1e-3))


def test_train_and_evaluate_from_python(recipe: Recipe, tmp_path: Path, capfd, caplog) -> None:
    """Nothing is printed; what is left out is logged."""
    model = mtl.train(recipe, tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "checkpoints",
        "metrics.jsonl",
        "model",
        "recipe.json",
        "results.json",
    ]
    assert not any(part.training for part in model.modules())
    saved = MultiTaskModel.from_pretrained(tmp_path / "run")
    for name, x in model.state_dict().items():
        assert torch.equal(saved.state_dict()[name], x), name
    assert saved_tasks(saved) == saved_tasks(model)
    metrics = mtl.evaluate(model, recipe, "dev")
    assert metrics.keys() == {"vowel", "size"}
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert metrics == last["dev"]
    assert mtl.evaluate(tmp_path / "run", recipe).keys() == {"vowel"}
    assert caplog.messages == ["task 'size' names no test data; it is left out"]
    assert capfd.readouterr() == ("", "")
    with pytest.raises(RecipeError, match="split is 'valid'; expected one of train, dev, test"):
        mtl.evaluate(model, recipe, "valid")
    with pytest.raises(InputError, match="closely is 'no'; expected True or False"):
        mtl.evaluate(model, recipe, "dev", closely="no")
    with pytest.raises(InputError, match="threads is 1000000; expected at most"):
        mtl.evaluate(model, recipe, "dev", threads=10**6)  # OpenMP would end the process
    with pytest.raises(InputError, match="threads is 1000000; expected at most"):
        mtl.train(recipe, tmp_path / "other", threads=10**6)
    with pytest.raises(InputError, match="resume is 'no'; expected True or False"):
        mtl.train(recipe, tmp_path / "other", resume="no")
    assert not (tmp_path / "other").exists()


def test_a_folder_may_be_a_string() -> None:
    assert Recipe("m", [TaskSpec("a", ["x", "y"])], folder="data").folder == Path("data")


@pytest.mark.parametrize(
    ("make", "message", "field"),
    [
        (lambda: TaskSpec("a", ["x", 3]), r"labels is \['x', 3\]; expected a list of strings", "labels"),
        (lambda: Recipe("m", [TaskSpec("a", ["x", "y"])], folder=3), "folder is 3; expected a path", "folder"),
        (lambda: TaskSpec("a", ["x", "y"], weight="2"), "weight is '2'; expected a number", "weight"),
        (lambda: TaskSpec("a", ["x", "y"], pooling="median"), r"pooling is \['median'\]; expected one or", "pooling"),
        (lambda: Training(epochs="3"), "epochs is '3'; expected a whole number", "epochs"),
        (lambda: Training(max_length=1.5), "max_length is 1.5; expected a whole number", "max_length"),
        (lambda: Recipe("tiny", []), "tasks are none; expected at least one TaskSpec", "tasks"),
        (lambda: Recipe("m", [{"name": "a"}]), "tasks hold {'name': 'a'}; expected a list of TaskSpec", "tasks"),
        (lambda: Recipe("m", TaskSpec("a", ["x", "y"])), "tasks hold TaskSpec.*; expected a list of TaskSpec", "tasks"),
        (lambda: Recipe("m", "demo"), "tasks hold 'd'; expected a list of TaskSpec", "tasks"),
        (lambda: Recipe("m", None), "tasks hold None; expected a list of TaskSpec", "tasks"),
        (lambda: Recipe("m", [TaskSpec("a", ["x", "y"])], {"epochs": 1}), "training is {'epochs': 1}; exp", "training"),
        (lambda: Recipe("tiny", [TaskSpec("a", ["", "y"])] * 2), "two tasks are called 'a'", "tasks"),
    ],
)
def test_mistakes_in_python(make: Callable[[], object], message: str, field: str) -> None:
    with pytest.raises(RecipeError, match=message) as error:
        make()
    assert error.value.field == field


def test_nothing_of_torch_is_imported_by_the_face() -> None:
    code = "import sys, mtl; assert 'torch' not in sys.modules; mtl.RecipeError; print(mtl.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count(".") == 2
    assert all(hasattr(mtl, name) for name in mtl.__all__)


def test_killed_while_the_first_checkpoint_is_written(recipe: Recipe, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints" / ".step-00000000.0a1b2c3d.partial").mkdir(parents=True)
    (run / "metrics.jsonl").touch()
    with pytest.raises(CheckpointError, match="is not empty; go on there with --resume"):
        mtl.train(recipe, run)
    mtl.train(recipe, run, resume=True)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "best-00000006.safetensors", "step-00000000", "step-00000006",
    ]  # fmt: skip


class Stopping(Reporter):
    """Remembers what it is told, and sends SIGINT after the second step: the third is the last."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def begin(self, run: Run, name: str, threads: int) -> None:
        self.told.append(f"begin {name}")

    def step(self, record: Mapping, texts: int) -> None:
        self.told.append(f"step {record['step']}")
        if record["step"] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    def epoch(self, record: Mapping, losses: Mapping) -> None:
        assert losses.keys() == {"vowel", "size"}
        self.told.append(f"epoch {record['epoch']}")

    def measured(self, run: Run, title: str, metrics: Mapping, confusions: Mapping) -> None:
        self.told.append(f"{title}: {', '.join(metrics)}; {', '.join(confusions)}")

    def close(self) -> None:
        self.told.append("close")


def test_a_reporter_and_a_stop(recipe: Recipe, tmp_path: Path, capfd) -> None:
    first, second = Stopping(), Stopping()
    message = r"stopped after step 3 of 6; go on in .*run with resume=True$"
    with pytest.raises(mtl.TrainingStopped, match=message) as stopped:
        mtl.train(recipe, tmp_path / "run", report=first)
    assert isinstance(stopped.value, TrainingError)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert first.told == ["begin recipe", "step 1", "step 2", "step 3", "close"]
    limits = dataclasses.replace(recipe.training, micro_tokens=30, cache_mb=0, save_steps=1, patience=3)
    mtl.train(dataclasses.replace(recipe, training=limits), tmp_path / "run", resume=True, report=second)
    ends = ["epoch 1", "dev: vowel, size; vowel", "test: vowel; vowel", "close"]
    assert second.told == ["begin recipe", "step 4", "step 5", "step 6", *ends]
    mtl.train(recipe, tmp_path / "whole")
    for file in ("metrics.jsonl", "model/model.safetensors"):
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert capfd.readouterr() == ("", "")


def test_two_runs_in_one_folder(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with (
        lock(tmp_path / "run", CheckpointError),
        pytest.raises(CheckpointError, match=r"run is being written by process \d+"),
    ):
        mtl.train(recipe, tmp_path / "run")
    mtl.train(recipe, tmp_path / "run")


def without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    find = importlib.util.find_spec
    for module in (session, terminal):
        monkeypatch.setattr(module, "find_spec", lambda name: None if name == package else find(name))
    monkeypatch.setitem(sys.modules, package, None)


def test_missing_extras(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Metrics are refused before any work; a picture is left out with a line."""
    with monkeypatch.context() as patch:
        without(patch, "sklearn")
        patch.setattr("mtl.training.session.create", lambda *_: pytest.fail("work began"))
        with pytest.raises(
            TrainingError,
            match=r"metrics of dev and test data need scikit-learn; in the clone of mtl: pip install -e '\.\[tr",
        ):
            mtl.train(recipe, tmp_path / "run")
        assert not (tmp_path / "run").exists()
    without(monkeypatch, "matplotlib")
    mtl.train(recipe, tmp_path / "run", report=terminal.Terminal())
    assert "note: no picture of the losses: it needs matplotlib" in capsys.readouterr().err
    assert not (tmp_path / "run" / "loss.png").exists()


def test_a_deleted_metrics_file(recipe: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mtl.train(recipe, tmp_path / "run")
    weights = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    path = tmp_path / "run" / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    for content in (None, "".join(lines[:2]) + lines[2][:9]):
        path.unlink()
        if content:
            path.write_text(content)
        mtl.train(recipe, tmp_path / "run", resume=True)
        known = 2 if content else 0
        assert f"metrics.jsonl was deleted or damaged: it knows {known} of 6 steps" in caplog.messages[-1]
        assert path.read_text().splitlines(keepends=True) == lines[:known]
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() == weights


def test_more_epochs_start_from_the_run_s_weights(recipe: Recipe, tmp_path: Path) -> None:
    first = mtl.train(recipe, tmp_path / "run")
    longer = dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, epochs=2))
    with pytest.raises(
        CheckpointError, match=r"training.epochs was 1, is 2; start one in another folder, with model = "
    ):
        mtl.train(longer, tmp_path / "run", resume=True)
    onward = dataclasses.replace(longer, model=str(tmp_path / "run"))
    model = create(onward)
    for name, x in first.state_dict().items():
        assert torch.equal(model.state_dict()[name], x), name
    tasks = [dataclasses.replace(recipe.tasks[0], labels=("no", "yes")), recipe.tasks[1]]
    other = create(dataclasses.replace(onward, tasks=tasks))
    same = {name for name, x in first.state_dict().items() if torch.equal(other.state_dict()[name], x)}
    new = {f"branches.vowel.head.classifier.{name}" for name in ("weight", "bias")}
    assert first.state_dict().keys() - same == new


def test_a_full_disk_at_the_end(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, no half of a model, and --resume finishes."""
    real = MultiTaskModel.save

    def full(self: MultiTaskModel, folder: Path) -> None:
        monkeypatch.setattr("mtl.checkpoints.save.write_parts", fail)
        real(self, folder)

    def fail(path: Path, parts: object) -> None:
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(MultiTaskModel, "save", full)
        with pytest.raises(mtl.MtlError, match="model cannot be written: No space left on device$"):
            mtl.train(recipe, tmp_path / "run")
    monkeypatch.undo()
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == ["checkpoints", "metrics.jsonl", "recipe.json", "results.json"]
    mtl.train(recipe, tmp_path / "run", resume=True)
    assert MultiTaskModel.from_pretrained(tmp_path / "run").tasks.keys() == {"vowel", "size"}
