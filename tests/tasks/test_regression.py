"""Numbers in any units: learned as ratings are, predicted, measured, saved and exported in their own."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import saved_tasks
from training.test_loop import go

from mtl import MultiTaskModel, Recipe, SentenceEncoder, TaskSpec, Training
from mtl.errors import RecipeError
from mtl.training.data import load_data
from mtl.training.run import Run, prepare
from mtl.training.start import create

TASK = TaskSpec("price", kind="regression", train="t.jsonl", dev="t.jsonl", pooling="cls", head="distilbert", dropout=0)
TEXTS = ["a b", "c d e", "f", "g h i j", "k"]
TRAINING = Training(epochs=4, batch_size=2, learning_rate=1e-3, head_learning_rate=1e-2, warmup=0)


def train(where: Path, model: Path, numbers: list[float], task: TaskSpec = TASK, name: str = "run") -> tuple[Run, list]:
    where.mkdir(exist_ok=True)
    rows = [{"text": text, "label": number} for text, number in zip(TEXTS, numbers, strict=True)]
    (where / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = Recipe(str(model), (task,), TRAINING, where)
    made = create(recipe)
    run = Run(prepare(recipe, made, load_data(recipe, made.embedder)[0]), where / name)
    records = go(run)
    return run, records


RATINGS = [1.0, 2.0, 3.0, 4.0, 5.0]


@pytest.mark.parametrize(("factor", "shift"), [(90_000.0, 250_000.0), (1e-9, 0.0), (40.0, 1.7e9), (1e37, 0.0)])
def test_prices_are_learned_as_ratings(tmp_path: Path, folder: Path, factor: float, shift: float) -> None:
    """The same losses, and the same predictions but for the units."""
    ratings, expected = train(tmp_path / "ratings", folder, RATINGS)
    run, records = train(tmp_path / "prices", folder, [number * factor + shift for number in RATINGS])
    losses = [[record["loss"]["price"] for record in found] for found in (records, expected)]
    np.testing.assert_allclose(*losses, rtol=1e-4, atol=1e-6)
    values = [np.float64(x.model.eval().predict(TEXTS).scores["price"][:, 0]) for x in (ratings, run)]
    np.testing.assert_allclose((values[1] - shift) / factor, values[0], atol=1e-3 + 1.3e-7 * shift / factor)
    last = [
        json.loads((x.folder / "metrics.jsonl").read_text().splitlines()[-1])["dev"]["price"] for x in (ratings, run)
    ]
    assert last[1]["rmse"] / factor == pytest.approx(last[0]["rmse"], rel=1e-2, abs=1e-7 * shift / factor)
    assert ratings.model.tasks["price"].target_scale == (3.0, 2**0.5)


def test_the_scale_is_kept_with_the_head(tmp_path: Path, folder: Path) -> None:
    """Saved and loaded to the bit; a model of before has none, and a run that begins from one goes on in its units."""
    run, _ = train(tmp_path, folder, [number * 1e5 for number in RATINGS])
    run.model.eval().save(tmp_path / "model")
    found = run.model.predict(TEXTS).scores["price"]
    again = MultiTaskModel.from_pretrained(tmp_path / "model")
    assert saved_tasks(again) == saved_tasks(run.model)
    assert np.array_equal(again.predict(TEXTS).scores["price"], found)
    assert np.array_equal(again.predict(TEXTS).logits["price"], found)
    assert abs(found.mean() - 3e5) < 2e5
    begun = create(Recipe(str(tmp_path / "model"), (TASK,), TRAINING, tmp_path)).eval()
    assert np.array_equal(begun.predict(TEXTS).scores["price"], found)

    tasks = json.loads((tmp_path / "model" / "tasks.json").read_text())
    del tasks[0]["target_scale"]
    (tmp_path / "model" / "tasks.json").write_text(json.dumps(tasks))
    old = MultiTaskModel.from_pretrained(tmp_path / "model")
    mean, deviation = run.model.tasks["price"].target_scale
    np.testing.assert_allclose(old.predict(TEXTS).scores["price"] * deviation + mean, found, rtol=1e-6)
    begun = create(Recipe(str(tmp_path / "model"), (TASK,), TRAINING, tmp_path)).eval()
    assert begun.tasks["price"].target_scale == (0.0, 1.0)
    assert np.array_equal(begun.predict(TEXTS).scores["price"], old.predict(TEXTS).scores["price"])


@pytest.mark.reference
def test_an_exported_head_is_in_the_data_s_units(tmp_path: Path, folder: Path) -> None:
    """The classifier that transformers reads gives what ``predict`` does."""
    run, _ = train(tmp_path, folder, [number * 1e5 for number in RATINGS])
    run.model.eval().save(tmp_path / "model")
    expected = run.model.predict(TEXTS).scores["price"]
    transformers = pytest.importorskip("transformers", reason="needs the reference extra")
    reference = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    rows = run.model.embedder.tokenizer(TEXTS, "truncate").rows
    with torch.no_grad():
        found = torch.cat([reference(torch.tensor([row])).logits for row in rows])
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


def test_equal_numbers(tmp_path: Path, folder: Path) -> None:
    run, records = train(tmp_path, folder, [250_000.0] * 5)
    assert run.model.tasks["price"].target_scale == (250_000.0, 1.0)
    assert np.abs(run.model.eval().predict(TEXTS).scores["price"] - 250_000).max() < 2
    assert all(np.isfinite(record["loss"]["price"]) for record in records)


def test_a_scale_may_be_declared(tmp_path: Path, folder: Path) -> None:
    run, _ = train(tmp_path, folder, RATINGS, dataclasses.replace(TASK, target_scale=[0, 1]))
    assert run.model.tasks["price"].target_scale == (0.0, 1.0)
    for given in ((1,), (0, 0), (0, -1), (0, 1, 2), (float("nan"), 1), (0, float("inf"))):
        with pytest.raises(RecipeError, match="target_scale is .*; expected a mean, and a deviation above 0"):
            dataclasses.replace(TASK, target_scale=given)
    with pytest.raises(RecipeError, match="a single-label task has no target_scale"):
        TaskSpec("topic", ("x", "y"), target_scale=(0, 1))


def test_resumed_to_the_bit(tmp_path: Path, folder: Path, tiny: SentenceEncoder) -> None:
    whole, _ = train(tmp_path, folder, [number * 1e5 for number in RATINGS], name="whole")
    recipe = whole.recipe
    for until in (3, None):
        made = create(recipe)
        run = Run(prepare(recipe, made, load_data(recipe, made.embedder)[0]), tmp_path / "parts")
        if until is None:
            run.restore()
        go(run, until)
    assert run.model.tasks == whole.model.tasks
    assert all(torch.equal(x, run.tensors()[name]) for name, x in whole.tensors().items())
