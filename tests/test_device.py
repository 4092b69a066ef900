"""What holds on any device: tried on a GPU where there is one (`make bench-gpu` runs this file), else on the CPU."""

import dataclasses
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints.test_families import family, folder, recipe, written
from conftest import Golden, golden, randomized
from test_cli import Done, mtl
from tokenizers import Tokenizer
from torch import Tensor
from training.test_loop import go

from mtl import MultiTaskModel, SentenceEncoder, TaskSpec
from mtl.checkpoints.load import Checkpoint
from mtl.checkpoints.save import save
from mtl.errors import InputError
from mtl.model.encoder import DistilBert
from mtl.model.packing import PackedBatch
from mtl.training import check
from mtl.training.data import load_data
from mtl.training.recipe import Recipe
from mtl.training.run import Run, prepare
from mtl.training.start import create

__all__ = ["family", "folder", "mtl"]  # fixtures
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TEXTS = ["a b c", "d", "a b c d e f g h i j", "", "b c d", "d c b a", "j " * 14]


def close(found: np.ndarray | Tensor, expected: np.ndarray | Tensor, error: float = 1e-5) -> None:
    torch.testing.assert_close(torch.as_tensor(found).cpu(), torch.as_tensor(expected), atol=error, rtol=error)


@pytest.fixture
def case(family: str) -> Golden:
    return golden(f"families/{family}")


def test_a_family_equals_the_reference(case: Golden, folder: Path) -> None:
    """The modules and the program, in fp32; bf16 beside it; and texts alone beside those in a batch."""
    model = MultiTaskModel.from_pretrained(folder, device=DEVICE)
    batch = PackedBatch.from_padded(case.ids, case.mask).to(DEVICE)
    with torch.no_grad():
        close(model.encoder(batch), case.hidden[case.mask.bool()])
        close(model.embedder.program().encoder(batch), case.hidden[case.mask.bool()])
        close(model(batch)[1]["classification"], case.logits)
    expected = MultiTaskModel.from_pretrained(folder).predict(TEXTS)
    found = model.predict(TEXTS)
    close(found.embeddings, expected.embeddings)
    close(found.scores["classification"], expected.scores["classification"])
    close(np.concatenate([model.embedder.encode([text]) for text in TEXTS]), found.embeddings)
    low = SentenceEncoder.from_pretrained(folder, device=DEVICE, precision="bf16").encode(TEXTS)
    norms = np.linalg.norm(low, axis=1) * np.linalg.norm(expected.embeddings, axis=1)
    assert ((low * expected.embeddings).sum(1) / norms).min() > 0.999


@pytest.fixture
def data(family: str, folder: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Rows of labels, and a teacher of another family."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    written(golden(f"families/{'bert' if family != 'bert' else 'roberta'}"), tokenizer, tmp_path / "teacher")
    letters = "abcdefghij"
    rows = [{"text": " ".join(letters[i % 7 : i % 7 + 1 + i % 4]), "label": "xy"[i % 2]} for i in range(12)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def run_of(recipe: Recipe, folder: Path, device: str = DEVICE) -> Run:
    model = create(recipe, device)
    found, _ = load_data(recipe, model.embedder, ["train", "dev"])
    return Run(prepare(recipe, model, {**found, "test": {}}), folder)


def states(run: Run) -> dict[str, Tensor]:
    return {name: x.to("cpu", copy=True) for name, x in run.model.state_dict().items()}


def test_a_family_learns(data: Path) -> None:
    """The losses are those of a CPU; a run that is stopped and goes on ends with the bits of one that is not."""
    whole, cut, cpu = (run_of(recipe(data), data / name, at) for name, at in
                       (("whole", DEVICE), ("cut", DEVICE), ("cpu", "cpu")))  # fmt: skip
    for ours, other in zip(go(whole), go(cpu), strict=True):
        assert ours["loss"] == pytest.approx(other["loss"], rel=2e-3)
    go(cut, 3)
    cut.save()
    again = run_of(recipe(data), data / "cut")
    assert again.restore() == []
    go(again)
    for name, x in states(again).items():
        assert torch.equal(x, states(whole)[name]), name


@pytest.mark.parametrize("family", ["distilbert", "mpnet", "modernbert"], indirect=True)
def test_what_is_held_is_remembered(data: Path) -> None:
    frozen = recipe(data)
    frozen = dataclasses.replace(frozen, tasks=tuple(dataclasses.replace(task, freeze=1) for task in frozen.tasks))
    losses = []
    for megabytes in (0, 64):
        training = dataclasses.replace(frozen.training, cache_mb=megabytes)
        run = run_of(dataclasses.replace(frozen, training=training), data / f"run{megabytes}")
        before = states(run)
        losses.append([sum(record["loss"].values()) for record in go(run)])
        after = states(run)
        for name, _ in run.model.encoder.named_parameters():
            whole, held = f"embedder.encoder.{name}", run.model.encoder.depth_of(name) <= 1
            assert torch.equal(after[whole], before[whole]) == held, name
    assert losses[0] == pytest.approx(losses[1], rel=1e-6 if DEVICE == "cpu" else 2e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_all_kinds_of_task_at_once(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The losses and gradients of a window are a CPU's, but for rounding, and the same bits each time."""
    monkeypatch.setattr(check, "CONFIG", dataclasses.replace(check.CONFIG, n_heads=4, dim=64, hidden_dim=128))
    made = check.random_model
    cpu = check.gradients(check.random_run(precision), 1)
    monkeypatch.setattr(check, "random_model", lambda: made().to(DEVICE))
    run = check.random_run(precision)
    found, again = check.gradients(run, 1), check.gradients(run, 1)
    assert found.losses == pytest.approx(cpu.losses, rel=1e-3 if precision == "fp32" else 0.03)
    assert found.losses == again.losses
    for (name, _), ours, same, other in zip(
        run.parameters(), found.gradients, again.gradients, cpu.gradients, strict=True
    ):
        if other is None:
            assert ours is None
            continue
        assert torch.equal(ours, same), name
        if precision == "fp32":
            close(ours, other, 1e-4 * max(1.0, float(other.abs().max())))


def test_spans_pairs_and_their_files(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """A tagger, a judge of pairs and a classifier on one trunk: made on a CPU, saved, and loaded on the device."""
    tasks = (
        TaskSpec("spans", ("p", "q"), kind="tokens"),
        TaskSpec("judge", kind="relevance", text_field=("query", "text")),
        TaskSpec("topic", ("x", "y", "z"), pooling=("attention",)),
    )
    config = dataclasses.replace(checkpoint.config, segments=2)
    made = dataclasses.replace(checkpoint, encoder=randomized(DistilBert(config)))
    MultiTaskModel(SentenceEncoder.from_checkpoint(made), tasks).save(tmp_path / "model")
    cpu, model = (MultiTaskModel.from_pretrained(tmp_path / "model", device=at) for at in ("cpu", DEVICE))
    texts = [text for text in TEXTS if text]
    ours, other = model.predict(texts), cpu.predict(texts)
    close(ours.scores["topic"], other.scores["topic"])
    assert [[(s["start"], s["end"], s["label"]) for s in each] for each in ours.labels["spans"]] == [
        [(s["start"], s["end"], s["label"]) for s in each] for each in other.labels["spans"]
    ]
    found, expected = model.rank("a b", texts), cpu.rank("a b", texts)
    close(np.array([each["score"] for each in found]), np.array([each["score"] for each in expected]))
    model.save(tmp_path / "again")
    close(MultiTaskModel.from_pretrained(tmp_path / "again").predict(texts).embeddings, other.embeddings, 1e-6)


def test_callers_side_by_side(checkpoint: Checkpoint) -> None:
    model = SentenceEncoder.from_checkpoint(checkpoint).to(DEVICE)
    expected = model.encode(TEXTS)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: model.encode(TEXTS), range(12)):
            close(found, expected, 1e-6)


def test_it_moves(checkpoint: Checkpoint) -> None:
    """To the device and back it has the CPU's bits."""
    model = SentenceEncoder.from_checkpoint(checkpoint)
    before = model.encode(TEXTS)
    close(model.to(DEVICE).encode(TEXTS), before)
    close(model.encode(TEXTS, convert_to_tensor=True), before)
    assert model.to("cpu").encode(TEXTS).tolist() == before.tolist()


@pytest.mark.parametrize(("precision", "device"), [("int8", "cuda"), ("fp16", "cpu")])
def test_a_format_that_the_device_has_not(checkpoint: Checkpoint, precision: str, device: str, tmp_path: Path) -> None:
    """It is refused where a model is loaded, and where it was moved since."""
    if device == "cuda" and DEVICE == "cpu":
        pytest.skip("needs a GPU")
    save(checkpoint, tmp_path / "model")
    refused = pytest.raises(InputError, match=f"precision is '{precision}' and device '{device}.*'; expected")
    with refused:
        SentenceEncoder.from_pretrained(tmp_path / "model", device=device, precision=precision)
    if DEVICE != "cpu":
        other = "cpu" if device == "cuda" else "cuda"
        model = SentenceEncoder.from_pretrained(tmp_path / "model", device=other, precision=precision)
        with refused:
            model.to(device).encode(TEXTS)


@pytest.mark.parametrize("family", ["bert"], indirect=True)
def test_the_command(mtl: Callable[..., Done], folder: Path, tmp_path: Path) -> None:
    texts = [text or "a" for text in TEXTS]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    done = mtl("embed", "-m", folder, "--device", DEVICE, "--input", tmp_path / "texts.txt", "-o", tmp_path / "x.npy")
    assert done.returncode == 0, done.stderr
    close(np.load(tmp_path / "x.npy"), SentenceEncoder.from_pretrained(folder).encode(texts))
