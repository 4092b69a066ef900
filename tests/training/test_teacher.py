"""Distillation: a teacher's vectors from files and models, its tags, and students with fewer blocks."""

import dataclasses
import json
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import randomized
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from tokenizers.pre_tokenizers import WhitespaceSplit
from training.test_loop import go

import mtl
from mtl import MultiTaskModel, SentenceEncoder
from mtl.errors import MtlError
from mtl.model.losses import NO_LABEL
from mtl.tasks.spans import Units, word_at
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
    for wrong in (np.nan, 1e300, 1j):  # none is one in float32
        np.save(rows / "v.npy", np.full((5, 12), wrong))
        with pytest.raises(MtlError, match=r"v.npy has a vector that is not finite, or not real; expected numbers"):
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


# A teacher that tags


@pytest.fixture
def teacher(folder: Path, rows: Path) -> MultiTaskModel:
    """A tagger whose words stand between blanks; its outputs are in another order than the student's."""
    embedder = SentenceEncoder.from_pretrained(folder)
    embedder.tokenizer.backend.pre_tokenizer = WhitespaceSplit()
    task = TaskSpec("theirs", kind="tokens", tags=("I-x", "O", "B-x"))
    model = randomized(MultiTaskModel(embedder, [task]), 0)
    with torch.no_grad():
        model.branches["theirs"].head.classifier.weight.mul_(4)
    model.save(rows / "teacher")
    return model


MARKED = [
    {"tokens": ["ab", "c", "d"], "tags": ["O", "O", "O"]},
    {"text": "a b, c", "spans": []},
    {"text": " ".join("abcdefghijklmnopqrstuvwxyz"), "spans": []},
]
STUDENT = TaskSpec("ner", ("x",), kind="tokens", train="marked.jsonl", teacher="teacher", dropout=0.0)


@pytest.fixture
def marked(rows: Path, tiny: SentenceEncoder) -> Path:
    (rows / "marked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in MARKED))
    return rows


def test_a_tagger_s_probabilities_stand_on_the_student_s_words(
    marked: Path, teacher: MultiTaskModel, tiny: SentenceEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, notes = load_data(Recipe("tiny", (STUDENT,), folder=marked), tiny, ["train"])
    examples = data["train"]["ner"]
    assert notes == []
    said = [x[:, [1, 2, 0]] for x in teacher.predict(["ab c d", "a b, c", MARKED[2]["text"]]).scores["theirs"]]
    found = [
        torch.stack([examples.targets[at + window, place] for window, place in units.places]).numpy()
        for at, units in zip((0, 1, 2), examples.texts, strict=True)
    ]
    assert np.array_equal(found[0], said[0])
    assert np.array_equal(found[1][[0, 1, 3]], said[1])  # the comma is within their word, and goes on with it
    assert np.array_equal(found[1][2], [said[1][1][0], 0, said[1][1][1:].sum()])
    assert np.array_equal(found[2], said[2])
    assert examples.targets.any(dim=2).sum() == 3 + 4 + 26
    with monkeypatch.context() as patched:
        patched.setattr(MultiTaskModel, "outputs_of", None)
        again, _ = load_data(Recipe("tiny", (STUDENT,), folder=marked), tiny, ["train"])
    assert torch.equal(again["train"]["ner"].targets, examples.targets)


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_a_tagger_s_probabilities_are_float32_whatever_is_the_default(kind: torch.dtype) -> None:
    said = torch.tensor([[0.1, 0.2, 0.7]], dtype=torch.float32)
    units, marks = Units("a", [[1, 2, 3]], [(0, 1)], [(0, 1)]), torch.full((1, 3), NO_LABEL)
    before = torch.get_default_dtype()
    torch.set_default_dtype(kind)
    try:
        found = STUDENT.handler.soft_marks([units], marks, [([(0, 1)], said)])
    finally:
        torch.set_default_dtype(before)
    assert found.dtype == torch.float32
    assert torch.equal(found, torch.stack([torch.zeros(3), said[0], torch.zeros(3)])[None])


@given(st.lists(st.integers(1, 3), max_size=9), st.lists(st.integers(1, 3), max_size=9), st.integers(0, 2))
def test_which_of_another_s_words_a_word_is_in(ours: list[int], theirs: list[int], gap: int) -> None:
    def words(sizes: list[int]) -> list[tuple[int, int]]:
        ends = list(accumulate(sizes, lambda end, size: end + gap + size))
        return [(end - size, end) for end, size in zip(ends, sizes, strict=True)]

    for first, last in words(ours):
        has = [i for i, (start, end) in enumerate(words(theirs)) if start <= first < end]
        begins = [i for i, (start, _) in enumerate(words(theirs)) if first <= start < last]
        assert word_at((first, last), words(theirs)) == next(iter(has or begins), None)


def test_a_student_comes_to_say_what_its_teacher_says(
    marked: Path, folder: Path, teacher: MultiTaskModel, edit_json: Callable[..., None]
) -> None:
    """Beside a classifier, with accumulation; what is trained knows no teacher, and is measured against the data."""
    edit_json(folder / "config.json", dropout=0.0, attention_dropout=0.0)
    (marked / "topics.jsonl").write_text('{"text": "ab", "label": "p"}\n{"text": "c d", "label": "q"}\n')
    tasks = [STUDENT, TaskSpec("topic", ("p", "q"), train="topics.jsonl")]
    training = Training(epochs=60, batch_size=2, accumulate=2, schedule="constant", learning_rate=1e-2,
                        head_learning_rate=5e-2)  # fmt: skip
    model = mtl.train(Recipe(str(folder), tasks, training, marked), marked / "run")
    expected, found = (each.predict([MARKED[2]["text"]]).scores for each in (teacher, model))
    assert np.abs(found["ner"][0] - expected["theirs"][0][:, [1, 2, 0]]).mean() < 0.05
    saved = MultiTaskModel.from_pretrained(marked / "run")
    assert saved.tasks["ner"].teacher == ""
    recipe = Recipe(str(folder), tasks, training, marked)
    assert mtl.evaluate(saved, recipe, "train", closely=True)["ner"]["x.support"] == 0


def test_teachers_that_cannot_tag(marked: Path, teacher: MultiTaskModel, tiny: SentenceEncoder) -> None:
    def load(task: TaskSpec) -> None:
        load_data(Recipe("tiny", (task,), folder=marked), tiny, ["train"])

    with pytest.raises(
        MtlError, match="'ner': the teacher teacher has I-x, O, B-x; expected one tagger with .*: O, B-y, I-y"
    ):
        load(dataclasses.replace(STUDENT, labels=("y",)))
    MultiTaskModel(tiny, [TaskSpec("topic", ("p", "q"))]).save(marked / "topics")
    with pytest.raises(MtlError, match="the teacher topics has no tags; expected one tagger"):
        load(dataclasses.replace(STUDENT, teacher="topics"))
    with pytest.raises(MtlError, match="label_smoothing is given beside a teacher, who says how likely each tag is"):
        dataclasses.replace(STUDENT, label_smoothing=0.1)
    with pytest.raises(MtlError, match="class_weights is given beside a teacher"):
        dataclasses.replace(STUDENT, class_weights="balanced")
