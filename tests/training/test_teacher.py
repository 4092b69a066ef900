"""Distillation: a teacher's vectors from files and models, and students with fewer blocks."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from training.test_loop import go

from mtl import SentenceEncoder
from mtl.errors import MtlError
from mtl.tasks.spec import TaskSpec
from mtl.training.data import load_data
from mtl.training.recipe import Recipe, Training, read_recipe
from mtl.training.run import Run, prepare
from mtl.training.start import create

TEXTS = ["a b", "c d e", "f", "g h i j", "k"]
TASK = TaskSpec("student", kind="distillation", train="train.jsonl", dev="train.jsonl", teacher="tiny")


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return tmp_path


def load(task: TaskSpec, model: SentenceEncoder, folder: Path) -> torch.Tensor:
    data, _ = load_data(Recipe("tiny", (task,), folder=folder), model, ["train"])
    return data["train"]["student"].targets


def test_a_model_s_vectors_are_computed_once(
    rows: Path, folder: Path, tiny: SentenceEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = torch.from_numpy(tiny.encode(TEXTS))
    assert torch.equal(load(TASK, tiny, rows), expected)
    with monkeypatch.context() as patched:
        patched.setattr(SentenceEncoder, "encode", None)
        assert torch.equal(load(TASK, tiny, rows), expected)
    (kept,) = (rows / "cache" / "mtl" / "teachers").iterdir()
    assert np.array_equal(np.load(kept), expected.numpy())
    kept.write_bytes(kept.read_bytes()[:-9])  # cut short: made again
    assert torch.equal(load(TASK, tiny, rows), expected)
    assert np.array_equal(np.load(kept), expected.numpy())


def test_teachers_that_differ_in_prompt_or_length_alone(rows: Path, folder: Path, tiny: SentenceEncoder) -> None:
    for name, change in (("prompt", {"default_prompt": "z z "}), ("short", {"max_length": 4})):
        teacher = SentenceEncoder.from_checkpoint(dataclasses.replace(tiny.to_checkpoint(), **change))
        teacher.save(rows / name)
        found = load(dataclasses.replace(TASK, teacher=name), tiny, rows)
        assert torch.equal(found, torch.from_numpy(teacher.encode(TEXTS, overflow="truncate"))), name
        assert not torch.equal(found, load(TASK, tiny, rows))


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_vectors_from_a_file(rows: Path, tiny: SentenceEncoder, suffix: str) -> None:
    vectors = np.random.default_rng(0).normal(size=(5, 12)).astype(np.float32)
    path = rows / f"teacher-train{suffix}"
    np.save(path, vectors) if suffix == ".npy" else save_file({"vectors": vectors}, path)
    found = load(dataclasses.replace(TASK, teacher=f"teacher-{{split}}{suffix}"), tiny, rows)
    assert np.array_equal(found.numpy(), vectors)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            (4, 12),
            r"'student': v.npy has vectors \(4, 12\); expected \(5, 12\): one for each text of train, as",
        ),
        ((5, 11), r"'student': v.npy has vectors \(5, 11\); expected \(5, 12\)"),
        ((60,), r"'student': v.npy has vectors \(60,\); expected \(5, 12\)"),
    ],
)
def test_vectors_of_another_shape(rows: Path, tiny: SentenceEncoder, shape: tuple, message: str) -> None:
    np.save(rows / "v.npy", np.zeros(shape))
    with pytest.raises(MtlError, match=message):
        load(dataclasses.replace(TASK, teacher="v.npy"), tiny, rows)


def test_files_that_are_no_vectors(rows: Path, tiny: SentenceEncoder) -> None:
    task = dataclasses.replace(TASK, teacher="v.npy")
    with pytest.raises(MtlError, match=r"v.npy cannot be read as .npy: "):
        load(task, tiny, rows)
    np.save(rows / "v.npy", np.array([{}] * 5))  # a pickle
    with pytest.raises(MtlError, match=r"v.npy cannot be read as .npy: "):
        load(task, tiny, rows)
    np.save(rows / "v.npy", np.full((5, 12), np.nan))
    with pytest.raises(MtlError, match=r"v.npy has a vector that is not finite"):
        load(task, tiny, rows)
    save_file({"a": np.zeros(1), "b": np.zeros(1)}, rows / "v.safetensors")
    with pytest.raises(MtlError, match=r"v.safetensors has 2 tensors; expected the teacher's vectors alone"):
        load(dataclasses.replace(TASK, teacher="v.safetensors"), tiny, rows)
    with pytest.raises(MtlError, match="teacher is missing; expected a model, or a file of vectors"):
        TaskSpec("student", kind="distillation")
    with pytest.raises(MtlError, match="loss is 'cosent'; expected one of squared, cosine"):
        dataclasses.replace(TASK, loss="cosent")


@pytest.mark.parametrize("loss", ["squared", "cosine"])
def test_a_smaller_student_learns(rows: Path, folder: Path, tiny: SentenceEncoder, loss: str) -> None:
    """The upper block alone, from its weights; a saved student has one block."""
    recipe = Recipe(
        "tiny", (dataclasses.replace(TASK, loss=loss),), Training(epochs=9, learning_rate=3e-3), rows, layers=[1]
    )
    model = create(recipe)
    block = tiny.encoder.transformer.layer[1].state_dict()
    found = model.encoder.transformer.layer.state_dict()
    assert found.keys() == {f"0.{name}" for name in block}
    assert all(torch.equal(found[f"0.{name}"], x) for name, x in block.items())
    data, _ = load_data(recipe, model.embedder, ["train", "dev"])
    run = Run(prepare(recipe, model, {**data, "test": {}}), rows / "run")
    losses = [record["loss"]["student"] for record in go(run)]
    assert losses[-1] < 0.7 * losses[0]
    model.eval().save(rows / "student")
    assert SentenceEncoder.from_pretrained(rows / "student").encoder.config.n_layers == 1


def test_layers_that_are_not_there(rows: Path, folder: Path) -> None:
    with pytest.raises(MtlError, match=r"layers are \[2\]; expected numbers below 2, the model's blocks"):
        create(Recipe("tiny", (TASK,), folder=rows, layers=[2]))
    text = 'model = "tiny"\nlayers = [1, 0]\n[[task]]\nname = "student"\nkind = "distillation"\nteacher = "tiny"\n'
    (rows / "recipe.toml").write_text(text)
    with pytest.raises(MtlError, match=r"recipe.toml, line 2: layers are \[1, 0\]; expected rising numbers from 0 on"):
        read_recipe(rows / "recipe.toml")
