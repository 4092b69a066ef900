"""Settings on the command line, and many runs of one recipe: which there are, what is done again, what goes on."""

import dataclasses
import json
import random
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from test_cli import Done, mtl

from mtl.errors import CheckpointError, MtlError, RecipeError
from mtl.training import sweep as sweeping
from mtl.training.changes import changed, read_changes, read_values
from mtl.training.evaluate import evaluate
from mtl.training.recipe import read_recipe
from mtl.training.report import Reporter
from mtl.training.sweep import folder_name, plan, sweep

__all__ = ["mtl"]  # the fixture

RECIPE = """
model = "tiny"
[training]
epochs = 2
batch_size = 4
learning_rate = 1e-3
save_steps = 1
[[task]]
name = "vowel"
labels = ["yes", "no"]
train = "vowel.jsonl"
dev = 0.3
"""


@pytest.fixture
def recipe(folder: Path, tmp_path: Path) -> Path:
    generator = random.Random(1)
    texts = [" ".join(generator.choices("abcdefghijklmnop", k=generator.randint(1, 9))) for _ in range(30)]
    rows = [{"text": text, "label": "yes" if set(text) & set("aeo") else "no"} for text in texts]
    (tmp_path / "vowel.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "my.toml").write_text(RECIPE)
    return tmp_path / "my.toml"


@pytest.mark.parametrize(
    ("text", "name", "values"),
    [
        ("training.learning_rate=1e-5,5e-5", "training.learning_rate", [1e-5, 5e-5]),
        ("task.a.freeze = {1 = 'encoder', 2 = 4}", "task.a.freeze", [{"1": "encoder", "2": 4}]),
        ("task.a.pooling=['mean'],['cls', 'max']", "task.a.pooling", [["mean"], ["cls", "max"]]),
        ("training.schedule=cosine,linear", "training.schedule", ["cosine", "linear"]),
        ("model=all-MiniLM-L6-v2", "model", ["all-MiniLM-L6-v2"]),
        ("task.a.dev=true", "task.a.dev", [True]),
        ("model='a,b'", "model", ["a,b"]),
    ],
)
def test_values(text: str, name: str, values: list) -> None:
    assert read_values(text) == (name, values)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["training.seed"], "--set 'training.seed': expected name=value"),
        (["=1"], "expected name=value"),
        (["training.seed="], "expected name=value"),
        (["training.seed=[1"], "no value of TOML"),
        (["training.seed=1\ny = 2"], "no value of TOML"),
        (["training.seed=" + "[" * 5000], "no value of TOML"),
        (["training.seed=1,2"], "--set training.seed has 2 values; expected one"),
        (["training.seed=1", "training.seed=2"], "--set training.seed is there twice"),
        (["training.speed=1"], "--set 'training.speed' is unknown; expected one of epochs, batch_size"),
        (["task.vowel.wight=1"], "--set 'task.vowel.wight' is unknown; expected one of name, labels"),
        (["task.mood.weight=1"], "--set 'task.mood.weight' is unknown; expected .*task.vowel.X"),
        (["weight=1"], "--set 'weight' is unknown; expected model, layers, training.X, task.vowel.X"),
        (["training=1"], "--set 'training' is unknown"),
        (["training.epochs=0"], "--set training.epochs: epochs is 0; expected 1 to"),
        (["training.epochs=soon", "training.seed=1"], "--set training.epochs: epochs is 'soon'; expected a whole"),
        (["task.vowel.kind=regression"], "--set task.vowel.kind: labels are"),
        (["layers=[2, 1]"], r"--set layers: layers are \[2, 1\]; expected rising numbers"),
    ],
)
def test_mistakes(recipe: Path, texts: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        changed(read_recipe(recipe), read_changes(texts))
    assert "\n" not in str(caught.value)


def test_train_with_other_settings_and_go_on(mtl: Callable[..., Done], recipe: Path, tmp_path: Path) -> None:
    """They are shown, and kept: a resume without them is of the same run; it equals a run of a file that has them."""
    given = ("--set", "training.learning_rate=2e-3", "--set", "task.vowel.weight=2")
    done = mtl("train", recipe, "--output", tmp_path / "set", *given)
    assert done.returncode == 0, done.stderr
    assert "learning_rate=0.002" in done.stdout
    assert "note: set: training.learning_rate = 0.002, task.vowel.weight = 2" in done.stderr
    again = mtl("train", recipe, "--output", tmp_path / "set", "--resume")
    assert again.returncode == 0, again.stderr
    assert "learning_rate=0.002" in again.stdout
    other = mtl("train", recipe, "--output", tmp_path / "set", "--resume", "--set", "training.learning_rate=1e-4")
    assert "is another run: training.learning_rate was 0.002, is 0.0001" in other.stderr
    recipe.write_text(RECIPE.replace("1e-3", "2e-3") + "weight = 2\n")
    assert mtl("train", recipe, "--output", tmp_path / "file").returncode == 0
    weights = [load_file(tmp_path / run / "model" / "model.safetensors") for run in ("set", "file")]
    assert all(tensor.equal(weights[1][name]) for name, tensor in weights[0].items())
    unknown = mtl("train", recipe, "--output", tmp_path / "none", "--set", "training.speed=1")
    assert unknown.returncode == 1
    assert unknown.stderr.count("\n") == 1
    assert not (tmp_path / "none").exists()
    (tmp_path / "set" / "recipe.json").write_text("[]")
    assert "recipe.json is damaged" in mtl("train", recipe, "--output", tmp_path / "set", "--resume").stderr


class StopAt(Reporter):
    """Stops a run as Ctrl-C would, but for the signal: in the middle of a step."""

    def step(self, record: object, texts: int) -> None:
        raise KeyboardInterrupt


def test_a_sweep_runs_and_goes_on(
    mtl: Callable[..., Done], recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, asked = tmp_path / "sweep", ("--set", "training.learning_rate=1e-3,1e-2", "--seeds", 2)
    changes = {"training.learning_rate": [1e-3, 1e-2]}

    def report(number: int, trials: object) -> Reporter | None:
        return StopAt() if number == 1 else None

    with pytest.raises(KeyboardInterrupt):
        sweep(recipe, changes, 2, folder, threads=1, report=report)
    before = (next(folder.glob("*0.001,training.seed=0")) / "results.json").stat().st_mtime_ns
    done = mtl("sweep", recipe, "--output", folder, *asked)
    assert done.returncode == 0, done.stderr
    assert "run 1 of 4: training.learning_rate=0.001, training.seed=0: done before" in done.stderr
    assert "run 2 of 4: training.learning_rate=0.001, training.seed=1: goes on" in done.stderr
    assert "run 4 of 4: training.learning_rate=0.01, training.seed=1: begins" in done.stderr
    assert (next(folder.glob("*0.001,training.seed=0")) / "results.json").stat().st_mtime_ns == before
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")
    found = {name: json.loads((folder / name / "results.json").read_text())["metrics"]["dev"]["vowel"]["accuracy"]
             for name in sorted(path.name for path in folder.iterdir() if path.is_dir())}  # fmt: skip
    assert len(found) == 4
    monkeypatch.setattr(sweeping, "train", lambda *_, **__: pytest.fail("all are done"))
    rows = [json.loads(line) for line in mtl("sweep", recipe, "--output", folder, *asked, "--json").stdout.splitlines()]
    for row, rate in zip(rows, ("0.001", "0.01"), strict=True):
        values = [value for name, value in found.items() if f"learning_rate={rate}," in name]
        assert row["training.learning_rate"] == rate
        assert row["runs"] == 2
        assert row["vowel accuracy"] == statistics.fmean(values)
        assert row["vowel accuracy spread"] == statistics.stdev(values)
    # What is done is of these settings and data; others are noticed
    recipe.write_text(RECIPE.replace("epochs = 2", "epochs = 3"))
    with pytest.raises(CheckpointError, match="is another run: training.epochs was 2, is 3; delete it, or"):
        sweep(recipe, changes, 2, folder)
    recipe.write_text(RECIPE)
    with (tmp_path / "vowel.jsonl").open("a") as file:
        file.write('{"text": "p p p p", "label": "no"}\n')
    with pytest.raises(CheckpointError, match=r"is another run: (train|dev).vowel was"):
        sweep(recipe, changes, 2, folder)


def test_a_run_that_went_on_is_the_same(recipe: Path, tmp_path: Path) -> None:
    """Stopped after a step and gone on with, or not: the same bits."""
    weights = []
    for name in ("stopped", "whole"):
        if name == "stopped":
            with pytest.raises(KeyboardInterrupt):
                sweep(recipe, {}, 1, tmp_path / name, threads=1, report=lambda *_: StopAt())
        outcome = sweep(recipe, {}, 1, tmp_path / name, threads=1)
        assert outcome.best == ()
        weights.append(load_file(tmp_path / name / "training.seed=0" / "model" / "model.safetensors"))
    assert all(tensor.equal(weights[1][key]) for key, tensor in weights[0].items())


@pytest.mark.parametrize(
    ("changes", "seeds", "message"),
    [
        ({"training.speed": [1]}, 1, "'training.speed' is unknown"),
        ({"training.learning_rate": [1e-3, 2]}, 1, "--set training.learning_rate: learning_rate is 2"),
        ({"training.learning_rate": [1e-3, 1e-3]}, 1, "has 0.001 twice"),
        ({"training.seed": [1, 2]}, 2, "training.seed and --seeds are given"),
        ({}, 0, "seeds are 0; expected 1 or more"),
        ({"task.vowel.dev": ["no.jsonl"], "training.best": ["mean", "vowel.macro_f1"]}, 1, "expected the same metrics"),
    ],
)
def test_mistakes_in_sweeps(recipe: Path, tmp_path: Path, changes: dict, seeds: int, message: str) -> None:
    """All is checked before the first run begins."""
    with pytest.raises(MtlError, match=message):
        sweep(recipe, changes, seeds, tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()
    recipe.write_text(RECIPE.replace("dev = 0.3", ""))
    with pytest.raises(RecipeError, match="no task names any"):
        sweep(recipe, {}, 1, tmp_path / "sweep")


VALUES = st.one_of(st.integers(), st.floats(allow_nan=False), st.text(), st.booleans(), st.lists(st.text(), max_size=2))


@given(one=VALUES, other=VALUES)
def test_different_settings_have_different_folders(one: object, other: object) -> None:
    names = [folder_name({"training.x": value}) for value in (one, other)]
    assert all(name == Path(name).name and len(name.encode()) < 200 and name.isprintable() for name in names)
    assert (names[0] == names[1]) == (repr(one) == repr(other))


def test_seeds_begin_at_the_recipe_s(recipe: Path, tmp_path: Path) -> None:
    read = read_recipe(recipe)
    read = dataclasses.replace(read, training=dataclasses.replace(read.training, seed=7))
    assert [trial.recipe.training.seed for trial in plan(read, {}, 3, tmp_path)] == [7, 8, 9]


def test_few_shot_tasks_are_compared_by_what_they_become(recipe: Path, tmp_path: Path) -> None:
    text = recipe.read_text().replace('labels = ["yes", "no"]', 'kind = "few-shot"').replace("epochs = 2", "epochs = 1")
    recipe.write_text(text.replace("save_steps = 1", ""))
    outcome = sweep(recipe, {"task.vowel.pairs": [1, 2]}, folder=tmp_path / "few")
    assert [*next(iter(outcome.values.values()))] == ["vowel accuracy"]


def test_a_run_of_another_seed_is_evaluated_on_what_it_held_out(recipe: Path, tmp_path: Path, mtl, caplog) -> None:
    recipe.write_text(recipe.read_text().replace("epochs = 2", "epochs = 1"))
    sweep(recipe, {}, seeds=2, folder=tmp_path / "runs")
    first, second = (tmp_path / "runs" / f"training.seed={seed}" for seed in (0, 1))
    for run in (first, second):
        expected = json.loads((run / "results.json").read_text())["metrics"]["dev"]
        assert evaluate(run, recipe, "dev") == expected
    assert [record.getMessage() for record in caplog.records if "held out" in record.getMessage()] == [
        f"dev is what {second} held out of train by seed 1, and not the recipe's 0"
    ]
    common = ("evaluate", "-r", recipe, "--split", "dev", "--threads", 1, "--bootstrap", 10)
    assert f"note: dev is what {second} held out" in mtl(*common, "-m", second).stderr
    both = mtl(*common, "-m", first, "--against", second)
    assert both.returncode == 1
    assert f"by which {first} is measured; expected runs of one seed, or dev = a file" in both.stderr
    (tmp_path / "dev.jsonl").write_bytes((tmp_path / "vowel.jsonl").read_bytes())
    recipe.write_text(recipe.read_text().replace("dev = 0.3", 'dev = "dev.jsonl"'))
    assert mtl(*common, "-m", first, "--against", second).returncode == 0
