"""MultiTaskModel: one pass for everything, saved and loaded whole."""

import dataclasses
import json
import multiprocessing
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import WORDS, randomized
from safetensors.torch import load_file, save_file

from mtl import MultiTaskModel, SentenceEncoder
from mtl.checkpoints.load import Checkpoint, Classifier
from mtl.checkpoints.save import save
from mtl.errors import ConfigError, InputError, RecipeError, WeightsError
from mtl.kernels import encoder
from mtl.tasks.spec import TaskSpec

TASKS = (
    TaskSpec("topic", ("x", "y", "z"), pooling=("max", "cls")),
    TaskSpec("tags", ("p", "q"), kind="multi-label", pooling=("attention",), head="distilbert"),
    TaskSpec("score", kind="regression", freeze={"1": "encoder", "2": "none"}),
)
TEXTS = ["a b c", "d", "", "e f g h i j"]


@pytest.fixture
def model(checkpoint: Checkpoint) -> MultiTaskModel:
    return randomized(MultiTaskModel(SentenceEncoder.from_checkpoint(checkpoint), TASKS))


def test_a_default_device_is_not_the_heads(checkpoint: Checkpoint) -> None:
    model = MultiTaskModel(SentenceEncoder.from_checkpoint(checkpoint), TASKS)
    expected = model.predict(["a b", "c"])
    torch.set_default_device("meta")
    try:
        again = MultiTaskModel(SentenceEncoder.from_checkpoint(checkpoint), TASKS)
        assert {x.device.type for x in again.parameters()} == {"cpu"}
        assert model.predict(["a b", "c"]).labels == expected.labels
    finally:
        torch.set_default_device(None)


def test_save_and_load_give_equal_logits(model: MultiTaskModel, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    again = MultiTaskModel.from_pretrained(tmp_path / "model")
    assert again.tasks == model.tasks
    assert not again.training
    for name, x in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], x), name
    before, after = model.predict(TEXTS), again.predict(TEXTS)
    for name in model.tasks:
        assert np.array_equal(before.logits[name], after.logits[name])
    assert np.array_equal(before.embeddings, after.embeddings)


def test_the_saved_folder_is_a_sentence_encoder_too(model: MultiTaskModel, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    vectors = SentenceEncoder.from_pretrained(tmp_path / "model").encode(TEXTS)
    assert np.array_equal(vectors, model.predict(TEXTS).embeddings)


def test_predictions(model: MultiTaskModel) -> None:
    found = model.predict(TEXTS)
    assert found.embeddings.shape == (4, 12)
    assert found.logits["topic"].shape == (4, 3)
    np.testing.assert_allclose(found.scores["topic"].sum(axis=1), 1, atol=1e-6)
    assert found.labels["topic"] == ["xyz"[i] for i in found.logits["topic"].argmax(axis=1)]
    for row, labels in zip(found.logits["tags"], found.labels["tags"], strict=True):
        assert labels == [label for label, logit in zip("pq", row, strict=True) if logit >= 0]
    np.testing.assert_allclose(found.labels["score"], found.logits["score"][:, 0])
    assert model.predict([]).logits["topic"].shape == (0, 3)
    assert model.predict("a b c").labels["topic"] == found.labels["topic"][:1]
    with pytest.raises(InputError, match=r"texts\[1\] is int"):
        model.predict(["a", 3])
    with pytest.raises(InputError, match="threads is -3; expected 1 or more"):
        model.predict("a", threads=-3)
    with pytest.raises(InputError, match="texts is of type set"):
        model.predict({"a"})


def test_what_is_not_finite_is_no_prediction(model: MultiTaskModel) -> None:
    model.encoder.embeddings.word_embeddings.weight.data[WORDS.index("q")] = float("nan")
    with pytest.raises(WeightsError, match=r"texts\[1\] \('a q'\) has a vector that is not finite"):
        model.predict(["a", "a q"])


def test_inference_in_training_mode(model: MultiTaskModel) -> None:
    """No dropout in what is predicted and embedded, and training goes on in its mode, part by part."""
    expected = model.predict(TEXTS)
    model.train()
    model.branch("tags").eval()
    modes = [part.training for part in model.modules()]
    for _ in range(2):
        found = model.predict(TEXTS)
        assert all(np.array_equal(found.logits[name], expected.logits[name]) for name in model.tasks)
        assert np.array_equal(model.embedder.encode(TEXTS), expected.embeddings)
    assert [part.training for part in model.modules()] == modes


def test_windows(model: MultiTaskModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Texts are tokenized a window at a time; the outcome is the same, and cuts are counted over all."""
    texts = [*TEXTS, "a b c d e f g h i j k l m n o p q r s"] * 2
    whole = model.predict(texts)
    (cut,) = {record.getMessage() for record in caplog.records}
    assert cut.startswith("2 texts were longer than 16 tokens")
    sizes = []
    tokenize = type(model.embedder.tokenizer).__call__
    monkeypatch.setattr(
        type(model.embedder.tokenizer),
        "__call__",
        lambda self, x, *rest: sizes.append(len(x)) or tokenize(self, x, *rest),
    )
    caplog.clear()
    parts = list(model.predict_stream(iter(texts), window=4))
    assert sizes == [len(part.embeddings) for part in parts] == [4, 4, 2]
    assert {record.getMessage() for record in caplog.records} == {cut}
    assert np.array_equal(np.concatenate([part.embeddings for part in parts]), whole.embeddings)
    for name in model.tasks:
        assert np.array_equal(np.concatenate([part.logits[name] for part in parts]), whole.logits[name])
        assert [label for part in parts for label in part.labels[name]] == whole.labels[name]
    with pytest.raises(InputError, match=r"texts\[5\] is int"):
        list(model.predict_stream(["a"] * 5 + [3], window=4))
    with pytest.raises(InputError, match="texts is a single string .'hello'.; expected several"):
        next(model.predict_stream("hello"))
    for option in ("threads", "window"):
        with pytest.raises(InputError, match=f"{option} is -3; expected 1 or more"):
            next(model.predict_stream(["a"], **{option: -3}))


def test_a_forked_child_computes(model: MultiTaskModel) -> None:
    """After the parent used its threads, which a child does not have."""
    texts = TEXTS * 40
    expected = model.predict(texts).logits["topic"]
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def child() -> None:
        theirs.send((model.predict(texts).logits["topic"], model.embedder.encode(texts[:1])))

    process = context.Process(target=child)
    process.start()
    try:
        assert ours.poll(60), "the child hangs"
        logits, vectors = ours.recv()
    finally:
        process.kill()
        process.join()
    assert np.array_equal(logits, expected)
    assert np.array_equal(vectors, model.embedder.encode(texts[:1]))


def test_one_pass_of_the_trunk(model: MultiTaskModel, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    embed = encoder.Program.embed
    monkeypatch.setattr(encoder.Program, "embed", lambda program, batch: calls.append(1) or embed(program, batch))
    model.predict("a b c")
    assert len(calls) == 1


def classifier(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """A folder as transformers' DistilBertForSequenceClassification saves one."""
    dim = checkpoint.config.dim
    shapes = {"pre_classifier": (dim, dim), "classifier": (2, dim)}
    head = {f"{name}.weight": torch.randn(shape) for name, shape in shapes.items()}
    head |= {f"{name}.bias": torch.randn(shape[0]) for name, shape in shapes.items()}
    with_head = dataclasses.replace(checkpoint, classifier=Classifier("distilbert", head, ("NEGATIVE", "POSITIVE")))
    save(with_head, folder)
    return with_head


def test_a_published_classifier(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """As the SST-2 checkpoint: its head becomes a task, and is written back under the same names."""
    original = classifier(checkpoint, tmp_path / "theirs")
    model = MultiTaskModel.from_pretrained(tmp_path / "theirs")
    (task,) = model.tasks.values()
    assert (task.name, task.labels, task.pooling) == ("classification", ("NEGATIVE", "POSITIVE"), ("cls",))
    hidden = model.embedder.encoder
    assert set(model.predict(TEXTS).labels["classification"]) <= {"NEGATIVE", "POSITIVE"}
    model.save(tmp_path / "ours")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "ours"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(torch.equal(original.classifier.tensors[n], after[n]) for n in original.classifier.tensors)
    assert hidden is model.encoder


def test_no_heads(folder: Path) -> None:
    with pytest.raises(WeightsError, match=r"has no task heads; train some with `mtl train`"):
        MultiTaskModel.from_pretrained(folder)


def test_damaged_heads(model: MultiTaskModel, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    path = tmp_path / "model" / "tasks.safetensors"
    tensors = load_file(path)
    tensors.pop("topic.head.classifier.bias")
    save_file(tensors, path)
    with pytest.raises(
        WeightsError, match="tasks.safetensors: tensors do not fit the config: missing topic.head.classifier.bias"
    ):
        MultiTaskModel.from_pretrained(tmp_path / "model")
    fields = json.loads((tmp_path / "model" / "tasks.json").read_text())
    (tmp_path / "model" / "tasks.json").write_text(json.dumps([fields[0] | {"colour": "red"}]))
    with pytest.raises(ConfigError, match=r"tasks.json: .*colour"):
        MultiTaskModel.from_pretrained(tmp_path / "model")
    (tmp_path / "model" / "tasks.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"tasks.json: expected a list of objects, one per task"):
        MultiTaskModel.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (None, "tasks hold None; expected a list of TaskSpec"),
        (["topic"], "tasks hold 'topic'; expected"),
        ([TaskSpec("one", ("a", "b")), TaskSpec("one", ("c", "d"))], "two tasks are called 'one'"),
    ],
)
def test_what_are_no_tasks_of_a_model(tiny: SentenceEncoder, tasks: object, message: str) -> None:
    """A task of another's name would take its place."""
    with pytest.raises(RecipeError, match=message):
        MultiTaskModel(tiny, tasks)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=re.escape("MultiTaskModel.from_pretrained('runs/demo') loads a model")):
        MultiTaskModel("runs/demo", [])  # type: ignore[arg-type]
