"""The training loop: exact accumulation, freezing to the bit, caching, resuming, and honest failures."""

import dataclasses
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch import Tensor

from mtl import MultiTaskModel, SentenceEncoder
from mtl.checkpoints.load import Checkpoint
from mtl.errors import CheckpointError, TrainingError
from mtl.kernels.encoder import Program
from mtl.model.encoder import DistilBert
from mtl.model.packing import PackedBatch
from mtl.tasks.examples import Examples
from mtl.tasks.kinds.single_label import SingleLabel
from mtl.tasks.spec import TaskSpec
from mtl.training import checkpoint as checkpoints
from mtl.training.gradients import Objective, Piece, backward, divide
from mtl.training.loop import train
from mtl.training.metrics import all_logits
from mtl.training.optim import LossWeights
from mtl.training.recipe import Recipe, Training
from mtl.training.report import Log
from mtl.training.run import Run, prepare
from mtl.training.schedule import MicroBatch

A = TaskSpec("topic", ("x", "y", "z"), dropout=0.0, train="-")
B = TaskSpec("mood", ("good", "bad"), dropout=0.0, train="-", pooling=("max", "cls"))
SETS = TaskSpec("tags", ("p", "q"), kind="multi-label", dropout=0.0, train="-", pooling=("attention",))
VALUE = TaskSpec("score", kind="regression", dropout=0.0, train="-", head="distilbert", pooling=("cls",))
TASKS = (A, B, SETS, VALUE)


def build(checkpoint: Checkpoint, tasks: tuple[TaskSpec, ...], dropout: float = 0.0) -> MultiTaskModel:
    """A new tiny model; each has tensors of its own."""
    config = dataclasses.replace(checkpoint.config, dropout=dropout, attention_dropout=dropout)
    encoder = DistilBert(config)
    encoder.load_state_dict(checkpoint.encoder.state_dict())
    torch.manual_seed(3)
    embedder = SentenceEncoder.from_checkpoint(dataclasses.replace(checkpoint, encoder=encoder))
    return MultiTaskModel(embedder, tasks)


def examples(task: TaskSpec, size: int, seed: int) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 12, (size,), generator=generator).tolist()
    rows = [[2, *torch.randint(5, 38, (n,), generator=generator).tolist(), 3] for n in lengths]
    if task.kind == "single-label":
        targets = torch.tensor([sum(row) % task.outputs for row in rows])
    else:
        targets = torch.tensor([[float(sum(row) % (k + 2) == 0) for k in range(task.outputs)] for row in rows])
    return Examples(rows, targets)


def dataset(tasks: tuple[TaskSpec, ...], size: int = 13) -> dict:
    return {
        "train": {task.name: examples(task, size + 4 * i, i) for i, task in enumerate(tasks)},
        "dev": {task.name: examples(task, 9, 50 + i) for i, task in enumerate(tasks)},
        "test": {},
    }


SETTINGS = Training(epochs=2, batch_size=4, accumulate=2, learning_rate=1e-2, head_learning_rate=1e-2, seed=5)


@pytest.fixture
def start(checkpoint: Checkpoint, tmp_path: Path) -> Callable[..., Run]:
    def start(
        tasks: tuple[TaskSpec, ...] = (A, B), folder: str = "run", dropout: float = 0.0, data=None, **changes: object
    ) -> Run:
        training = dataclasses.replace(SETTINGS, **changes)
        model = build(checkpoint, tasks, dropout)
        return Run(prepare(Recipe("tiny", tasks, training), model, data or dataset(tasks)), tmp_path / folder)

    return start


def go(run: Run, steps: int | None = None, threads: int | None = None) -> list[dict]:
    """Train to the end, or for some steps and no further; gives the records of all steps so far."""
    log = Log(run.folder, run.step)
    try:
        assert train(run, log, threads, until=run.step + steps if steps else None)
    finally:
        log.close()
    return log.steps


def gradients(
    model: MultiTaskModel,
    window: list[MicroBatch],
    data: dict,
    weights: LossWeights,
    count: int = 1,
    tokens: int = 10**6,
) -> dict[str, Tensor]:
    """By the plain forward pass, without freezing, in the model's precision."""
    dtype = next(model.parameters()).dtype
    examples = {
        name: dataclasses.replace(
            own, targets=own.targets.to(dtype) if own.targets.is_floating_point() else own.targets
        )
        for name, own in data["train"].items()
    }

    def forward(piece: Piece) -> Tensor:
        batch = PackedBatch.pack([examples[piece.task].rows[i] for i in piece.rows])
        return model.branch(piece.task)(model.hidden(batch), batch)

    model.train()
    named = {name: p for name, p in [*model.named_parameters(), *weights.named_parameters()] if p.requires_grad}
    every = dict.fromkeys(model.tasks, range(len(named)))
    objective = Objective(model.tasks, forward, weights, list(named.values()), every, None, torch.empty(0))
    found = backward(divide(window, examples, count, tokens), objective).gradients
    return {name: gradient for name, gradient in zip(named, found, strict=True) if gradient is not None}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("learned", [False, True])
def test_accumulating_equals_one_large_batch(
    checkpoint: Checkpoint, dtype: torch.dtype, tolerance: float, learned: bool
) -> None:
    """Ragged pieces of several tasks in one window, against one micro-batch per task."""
    model = build(checkpoint, TASKS).to(dtype)
    data = dataset(TASKS)
    weights = LossWeights([dataclasses.replace(t, weight=0.5 + i) for i, t in enumerate(TASKS)], learned).to(dtype)
    pieces = [MicroBatch("topic", (0, 1, 2)), MicroBatch("mood", (4,)), MicroBatch("topic", (3, 4, 5)),
              MicroBatch("tags", (0, 1)), MicroBatch("topic", (6,)), MicroBatch("score", (2, 3)),
              MicroBatch("mood", (1, 2, 3, 0, 7)), MicroBatch("tags", (5,)), MicroBatch("score", (9,))]  # fmt: skip
    rows = {task: tuple(i for piece in pieces if piece.task == task for i in piece.rows) for task in model.tasks}
    whole = [MicroBatch(task, indices) for task, indices in rows.items()]
    once = gradients(model, whole, data, weights)
    accumulated = gradients(model, pieces, data, weights)
    assert once.keys() == accumulated.keys()
    assert len(once) == len([*model.parameters()]) + (4 if learned else 0)
    largest = max(gradient.abs().max() for gradient in once.values())
    for found in (accumulated, *(gradients(model, pieces, data, weights, count) for count in (2, 3, 40))):
        assert found.keys() == once.keys()
        for name in once:
            assert (once[name] - found[name]).abs().max() <= tolerance * largest, name


def test_a_shared_parameter_s_gradient_is_the_sum_of_the_tasks(checkpoint: Checkpoint) -> None:
    model, data, weights = build(checkpoint, (A, B)), dataset((A, B)), LossWeights((A, B))
    one, other = MicroBatch("topic", (0, 1)), MicroBatch("mood", (2, 3, 4))
    both, first, second = (gradients(model, w, data, weights) for w in ([one, other], [one], [other]))
    for name in first.keys() & second.keys():
        torch.testing.assert_close(both[name], first[name] + second[name], atol=1e-6, rtol=1e-5)


def window_gradients(run: Run, window: list[MicroBatch], shares: list | None = None) -> dict[str, Tensor]:
    """As a step of a run computes them, in shares of its own unless these are given, by parameter."""
    objective = run.objective(window, 1)
    with run.training():
        found = (backward(shares, objective) if shares else run.gradients(window, objective)).gradients
    named = {name: x for (name, _), x in zip(run.parameters(), found, strict=True) if x is not None}
    words = "embedder.encoder.embeddings.word_embeddings.weight"
    if words in named:
        whole = torch.zeros_like(run.model.encoder.words.weight)
        named[words] = whole.index_copy_(0, objective.words, named[words])
    return named


def state(model: MultiTaskModel) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("freeze", [0, 1, 2, "encoder"])
def test_what_a_task_freezes_keeps_its_bits(start, freeze: int | str) -> None:
    """With weight decay and dropout on; the rest moves."""
    run = start((dataclasses.replace(A, freeze=freeze, dropout=0.2),), dropout=0.2, weight_decay=0.5)
    before = state(run.model)
    go(run)
    depth = run.plan.phases[0].depths["topic"]
    for name, parameter in run.model.named_parameters():
        in_prefix = name.startswith("embedder.encoder.embeddings") or any(
            name.startswith(f"embedder.encoder.transformer.layer.{i}.") for i in range(depth)
        )
        assert torch.equal(parameter, before[name]) == in_prefix, name


def test_a_mixed_window_gives_the_other_task_s_gradient_alone(start) -> None:
    frozen, free = dataclasses.replace(A, freeze="encoder"), B
    run = start((frozen, free))

    def shared(window: list[MicroBatch]) -> dict[str, Tensor]:
        found, prefix = window_gradients(run, window), "embedder.encoder."
        return {n.removeprefix(prefix): x for n, x in found.items() if n.startswith(prefix)}

    one, other = MicroBatch("topic", (0, 1, 2)), MicroBatch("mood", (3, 4))
    assert shared([one]) == {}  # None, not zeros
    both, alone = shared([one, other]), shared([other])
    assert both.keys() == alone.keys() == {name for name, _ in run.model.encoder.named_parameters()}
    assert all(torch.equal(both[name], alone[name]) for name in both)


def test_steps_of_the_other_task_may_move_what_one_freezes(start) -> None:
    run = start((dataclasses.replace(A, freeze="encoder"), B))
    before = state(run.model)
    go(run)
    assert not torch.equal(state(run.model)["embedder.encoder.embeddings.word_embeddings.weight"],
                           before["embedder.encoder.embeddings.word_embeddings.weight"])  # fmt: skip


def test_freeze_head_holds_pooling_and_head(start) -> None:
    run = start((dataclasses.replace(SETS, freeze_head=True, dropout=0.5),), weight_decay=0.5)
    before = state(run.model)
    with run.training():
        assert not run.model.branch("tags").training
    go(run)
    for name, parameter in run.model.named_parameters():
        assert torch.equal(parameter, before[name]) == name.startswith("branches."), name


def test_evaluating_leaves_frozen_heads_as_they_are(start) -> None:
    """Between the epochs of a run, its held head stays without dropout, and all else goes on with it."""
    run = start((A, dataclasses.replace(SETS, freeze_head=True)), dropout=0.2)
    with run.training():
        before = [part.training for part in run.model.modules()]
        assert True in before
        assert False in before
        all_logits(run.model, run.data["dev"])
        assert [part.training for part in run.model.modules()] == before


def test_gradual_unfreezing(start) -> None:
    spec = dataclasses.replace(A, freeze={"1": "encoder", "2": 1, "3": "none"})
    run = start((spec,), epochs=3, save_steps=0)
    per_epoch = run.schedule.steps_per_epoch
    moved = []
    for _ in range(3):
        before = state(run.model)
        go(run, per_epoch)
        after = state(run.model)
        moved.append({name for name in before if not torch.equal(before[name], after[name])})
    layers = [{name.split(".")[4] for name in m if ".layer." in name} for m in moved]
    assert layers == [set(), {"1"}, {"0", "1"}]
    assert [any("embeddings" in name for name in m) for m in moved] == [False, False, True]
    assert all(any(name.startswith("branches.topic.head") for name in m) for m in moved)


@pytest.mark.parametrize(
    "freezes", [("encoder", "encoder", "encoder", "encoder"), (1, 2, "encoder", 1), (0, 0, 0, 0), (2, 1, 0, 2)]
)
@pytest.mark.parametrize("room", [0, 1024])
def test_a_cached_run_s_losses_equal_the_uncached_run_s(start, monkeypatch, freezes: tuple, room: int) -> None:
    tasks = tuple(dataclasses.replace(task, freeze=freeze) for task, freeze in zip(TASKS, freezes, strict=True))
    cached = start(tasks, "cached", cache_mb=room)
    losses = [record["loss"] for record in go(cached)]
    uncached = start(tasks, "uncached")
    phases = [dataclasses.replace(phase, common=None) for phase in uncached.plan.phases]
    uncached.plan = dataclasses.replace(uncached.plan, phases=phases)
    expected = [record["loss"] for record in go(uncached)]
    assert len(losses) == len(expected) > 10
    for ours, theirs in zip(losses, expected, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(abs(ours[task] - theirs[task]) <= 1e-6 for task in ours)


def test_a_text_of_two_tasks_is_computed_once(start, monkeypatch) -> None:
    """Under one frozen trunk, whatever their poolings; their losses are those of an uncached run (above)."""
    for other in ({"pooling": ("max", "cls")}, {"pooling": ("attention",)}, {"freeze": 1}):
        tasks = (dataclasses.replace(A, freeze="encoder"), dataclasses.replace(B, **{"freeze": "encoder", **other}))
        data = dataset(tasks)
        rows = data["train"]["topic"].rows[:13]
        data["train"] = {name: dataclasses.replace(own, rows=rows, targets=own.targets[:13])
                         for name, own in data["train"].items()}  # fmt: skip
        run = start(tasks, f"run-{'-'.join(other)}-{len(str(other))}", data=data)
        seen, forward = [], run.forward_of(1)
        prefix = forward.prefix
        monkeypatch.setattr(forward, "prefix", lambda rows, prefix=prefix, seen=seen: seen.extend(rows) or prefix(rows))
        go(run, threads=1)
        assert len(seen) == len({tuple(row) for row in rows})


def test_the_prefix_is_computed_once_per_text(start, monkeypatch) -> None:
    run = start((dataclasses.replace(A, freeze=1),), epochs=3)
    seen = []
    part = Program.run

    def watched(program: Program, *given: object, stop: int | None = None, **how: object) -> Tensor:
        seen.append(stop)
        return part(program, *given, stop=stop, **how)

    monkeypatch.setattr(Program, "run", watched)
    go(run)
    assert seen.count(1) == run.schedule.passes["topic"]  # one pass of three


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resume_to_the_bit(start, tmp_path: Path, precision: str) -> None:
    """2N steps equal N, stop, resume, N: weights, metrics and moments; dropout on, prefix cached, mid-epoch."""
    tasks = (dataclasses.replace(A, freeze=1, dropout=0.3), dataclasses.replace(B, freeze=1, dropout=0.3))
    options = {"dropout": 0.2, "epochs": 3, "save_steps": 3, "loss_weights": "uncertainty", "precision": precision}
    whole = start(tasks, "whole", **options)
    go(whole)
    first = start(tasks, "parts", **options)
    go(first, 7)  # the checkpoint is from step 6
    torch.manual_seed(99)
    second = start(tasks, "parts", **options)
    assert second.restore() == []
    assert second.step == 6
    go(second)
    for name, x in whole.tensors().items():
        assert torch.equal(x, second.tensors()[name]), name
    metrics = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "parts")]
    assert metrics[0] == metrics[1]
    for name in ("model", "optimizer"):
        paths = [
            sorted((tmp_path / run / "checkpoints").glob("step-*"))[-1] / f"{name}.safetensors"
            for run in ("whole", "parts")
        ]
        assert paths[0].read_bytes() == paths[1].read_bytes()


def test_resume_of_another_recipe_says_what_differs(start) -> None:
    run = start()
    run.save()
    other = start(learning_rate=2e-2, data=dataset((A, B), 14))
    with pytest.raises(CheckpointError, match=r"training.learning_rate was 0.01, is 0.02; data.train.topic was '") as e:
        other.restore()
    assert "\n" not in str(e.value)


def test_tensors_of_another_version(start) -> None:
    """A family's table of positions may have another row in the next version."""
    run = start()
    tensors = {name: x.detach().clone() for name, x in run.tensors().items()}
    name = next(name for name in tensors if name.endswith("position_embeddings.weight"))
    for other in ({**tensors, name: tensors[name][1:]}, {key: x for key, x in tensors.items() if key != name}):
        with pytest.raises(CheckpointError, match=f"was begun by another version of mtl: {name} is not as it is now"):
            run.load_tensors(other)


def test_bf16_stays_near_fp32_and_keeps_parameters_in_it(start) -> None:
    exact, low = (go(start(folder=precision, precision=precision)) for precision in ("fp32", "bf16"))
    assert len(exact) == len(low)
    for one, other in zip(exact, low, strict=True):
        assert one["loss"] != other["loss"]
        assert one["loss"] == pytest.approx(other["loss"], rel=0.1, abs=0.05)
    run = start(folder="again", precision="bf16")
    go(run, 3)
    assert {x.dtype for x in run.tensors().values()} == {torch.float32}
    assert {x.dtype for state in run.optimiser.state.values() for x in state.values()} == {torch.float32}


def test_auto_that_means_something_else_on_another_processor_is_another_run(start, monkeypatch) -> None:
    monkeypatch.setattr("mtl.encode.precision.native_bf16", lambda device: True)
    run = start(precision="auto")
    assert run.plan.precision == "bf16"
    run.save()
    monkeypatch.setattr("mtl.encode.precision.native_bf16", lambda device: False)
    with pytest.raises(CheckpointError, match="precision was 'bf16', is 'fp32'"):
        start(precision="auto").restore()


def test_a_damaged_checkpoint_falls_back(start, tmp_path: Path) -> None:
    run = start(save_steps=2)
    go(run)
    newest, before = checkpoints.saved(run.checkpoints)
    path = newest / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-3] + b"xyz")
    again = start(save_steps=2)
    (note,) = again.restore()
    assert "optimizer.safetensors is not what was written; it is set aside as damaged-step" in note
    assert again.step == int(before.name[5:])
    for damaged in checkpoints.saved(run.checkpoints):
        (damaged / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match="holds no whole checkpoint; start again in another folder"):
        start(save_steps=2).restore()


def test_the_last_two_checkpoints_and_the_best_are_kept(start) -> None:
    run = start(save_steps=1)
    go(run)
    names = sorted(path.name for path in run.checkpoints.iterdir())
    total = run.plan.total
    best = f"best-{run.best.epoch * run.schedule.steps_per_epoch:08d}.safetensors"
    assert names == [best, f"step-{total - 1:08d}", f"step-{total:08d}"]


def test_what_is_frozen_is_written_once(start, monkeypatch) -> None:
    """Weights and moments of a trunk that a phase holds; they change with the phase, and come back to the bit."""
    task = dataclasses.replace(A, freeze={"1": "none", "3": "encoder"})
    written: list[tuple[str, int]] = []
    real = checkpoints.write_tensors
    monkeypatch.setattr(
        checkpoints, "write_tensors", lambda path, x: (written.append((path.name, len(x))), real(path, x))
    )
    options = {"epochs": 5, "save_steps": 1, "best": "topic.accuracy"}
    run = start((task,), **options)
    steps = run.schedule.steps_per_epoch
    go(run, 2 * steps)
    assert not [*run.checkpoints.glob("frozen-*")]
    go(run, 2 * steps)
    trunk = len(run.model.encoder.state_dict())
    frozen = [count for name, count in written if name.startswith(".frozen-")]
    assert frozen == [trunk, 3 * trunk + 1]  # in four epochs: the weights, and step and two moments of each
    assert len([*run.checkpoints.glob("frozen-*")]) == 2
    again = start((task,), **options)
    assert again.restore() == []
    assert all(torch.equal(x, again.tensors()[name]) for name, x in run.tensors().items())
    for (name, one), (_, other) in zip(run.parameters(), again.parameters(), strict=True):
        for key, moment in run.state(one).items():
            assert torch.equal(moment, again.state(other)[key]), (name, key)
    go(run)
    go(again)
    assert run.fingerprint == again.fingerprint
    run.take_best()
    again.take_best()
    assert run.fingerprint == again.fingerprint
    damaged(max(run.checkpoints.glob("frozen-*"), key=lambda path: path.stat().st_size))
    with pytest.raises(CheckpointError, match="holds no whole checkpoint; .*frozen-.* is not what was written"):
        start((task,), **options).restore()


def test_a_damaged_file_of_what_is_frozen_is_written_again(start) -> None:
    """Else all later checkpoints would name it, and none of them could be read."""
    task = dataclasses.replace(A, freeze={"1": "encoder", "2": "none", "3": "encoder"})
    options = {"epochs": 4, "save_steps": 1, "best": "topic.accuracy"}
    run = start((task,), **options)
    steps = run.schedule.steps_per_epoch
    go(run, 2 * steps + 1)  # of the two checkpoints, only the last one has something that is frozen
    paths = [path for path in run.checkpoints.glob("frozen-*") if path.name != run.best.frozen]
    for path in paths:
        damaged(path)
    again = start((task,), **options)
    (note,) = again.restore()
    assert paths
    assert "frozen-" in note
    assert again.step == 2 * steps
    go(again)
    assert start((task,), **options).restore() == []
    go(run)
    assert run.fingerprint == again.fingerprint


def test_frozen_weights_of_the_best_epoch(start) -> None:
    """Damaged, they are refused by a line that says what to do; deleted, the epochs from here on count."""
    task = dataclasses.replace(A, freeze={"1": "encoder", "2": "none"})
    options = {"epochs": 3, "save_steps": 1, "best": "topic.accuracy"}
    run = start((task,), **options)
    steps = run.schedule.steps_per_epoch
    go(run, steps)
    assert run.best.frozen
    best = run.best
    go(run, 2)
    run.best = best  # whatever the dev data say
    path = run.checkpoints / best.frozen
    damaged(path)
    with pytest.raises(CheckpointError, match="frozen-.* is not what was written; put back a copy of it, or delete it"):
        checkpoints.read_best(run.checkpoints, best)
    path.unlink()
    assert checkpoints.read_best(run.checkpoints, best) is None


def damaged(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def test_damaged_best_weights(start) -> None:
    """They are refused on resuming and at the end, by a line that says what to do; deleted, they are not reported."""
    options = {"epochs": 3, "save_steps": 1, "best": "topic.accuracy"}
    run = start(**options)
    go(run, run.schedule.steps_per_epoch + 3)  # the two checkpoints that are kept are from after the best epoch
    assert run.best.epoch == 1
    path = run.checkpoints / run.best.file
    damaged(path)
    line = r"best-\d+.safetensors, the weights of epoch 1, the best so far, is not what was written; put back a copy of"
    with pytest.raises(CheckpointError, match=line):
        start(**options).restore()
    with pytest.raises(CheckpointError, match=line):
        run.take_best()
    path.unlink()
    again = start(**options)
    (note,) = again.restore()
    assert note.endswith(
        "the weights of epoch 1, the best so far, were deleted; the best of the epochs from here on is kept"
    )
    assert again.best is None
    go(again)
    assert again.best.epoch > 1
    again.take_best()


def test_the_checkpoint_of_the_best_epoch_stands_in_for_its_weights(start) -> None:
    run = start(best="topic.accuracy")
    go(run, run.schedule.steps_per_epoch)
    expected = {name: x.clone() for name, x in run.tensors().items()}
    damaged(run.checkpoints / run.best.file)
    again = start(best="topic.accuracy")
    assert again.restore() == []
    again.take_best()
    assert all(torch.equal(expected[name], x) for name, x in again.tensors().items())


@pytest.mark.parametrize("better", [False, True])
def test_killed_between_the_best_weights_and_their_checkpoint(start, monkeypatch, better: bool) -> None:
    """Gone on with where the numbers are others, the epoch may not be the best again: its weights are of no account."""
    run = start(epochs=2, best="topic.accuracy", save_steps=1)
    steps = run.schedule.steps_per_epoch
    values = iter([0.1, 0.9])

    def pretend(tasks, logits, data):
        return {name: {"accuracy": next(values) if name == "topic" else 0.0, "macro_f1": 0.0} for name in tasks}

    monkeypatch.setattr("mtl.training.loop.measure", pretend)
    go(run, 2 * steps - 1)
    first = checkpoints.read_best(run.checkpoints, run.best)
    with monkeypatch.context() as patch:
        patch.setattr(Run, "save", lambda run: sys.exit("killed"))
        with pytest.raises(SystemExit):
            go(run)
    assert len([*run.checkpoints.glob("best-*")]) == 2
    values = iter([0.8 if better else 0.05])
    again = start(epochs=2, best="topic.accuracy", save_steps=1)
    again.restore()
    assert again.best.epoch == 1
    go(again)
    assert again.best.epoch == 1 + better
    last = {name: x.clone() for name, x in again.tensors().items()}
    again.take_best()
    for name, x in again.tensors().items():
        assert torch.equal(x, last[name] if better else first[name]), name
    third = start(epochs=2, best="topic.accuracy", save_steps=1)
    third.restore()
    assert third.best == again.best
    assert len([*run.checkpoints.glob("best-*")]) == 1 + better  # the checkpoint before the last names the first


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_no_room_on_the_disk(start, monkeypatch, error: Exception) -> None:
    run = start(save_steps=2)
    run.save()

    def full(*args: object, **kwargs: object) -> None:
        Path(args[0]).write_bytes(b"half of it")
        raise error

    monkeypatch.setattr("mtl.checkpoints.save.write_parts", full)
    with pytest.raises(CheckpointError, match="step-00000002 cannot be written: No space left on device$"):
        go(run)
    monkeypatch.undo()
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-00000000"]
    assert start(save_steps=2).restore() == []


def test_nan_stops_and_names_task_and_step(start, monkeypatch) -> None:
    run = start(save_steps=1)
    go(run, 3)
    real = SingleLabel.loss

    def loss(self: SingleLabel, logits: Tensor, targets: Tensor) -> tuple[Tensor, int]:
        return real(self, logits, targets) if self.task.name == "topic" else (logits.sum() * math.nan, len(targets))

    monkeypatch.setattr(SingleLabel, "loss", loss)
    with pytest.raises(TrainingError, match=r"the loss of task 'mood' is nan at step \d+; the last checkpoint is kept"):
        go(run)
    kept = start(save_steps=1)
    kept.restore()
    assert all(torch.isfinite(x).all() for x in kept.model.state_dict().values())
    assert kept.step >= 3


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ((dataclasses.replace(A, freeze=3),), "task 'topic': freeze is 3; the encoder has 2 blocks"),
        (
            (A, dataclasses.replace(B, freeze="encoder", freeze_head=True)),
            "task 'mood' freezes the encoder and its head in epoch 1: nothing is left to train",
        ),
        (
            (dataclasses.replace(A, freeze={"1": "none", "2": 2}, freeze_head=True),),
            "task 'topic' freezes the encoder and its head in epoch 2",
        ),
    ],
)
def test_nothing_to_train(start, tasks: tuple, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        start(tasks)


def test_unknown_metric(start) -> None:
    with pytest.raises(TrainingError, match=r"best is 'topic.f1'; expected mean, topic.accuracy, topic.macro_f1"):
        start(best="topic.f1")


def test_early_stopping_and_the_best_epoch(start, monkeypatch) -> None:
    run = start(epochs=9, patience=2, best="topic.accuracy")
    accuracies = iter([0.1, 0.5, 0.5, 0.2, 0.9])

    def pretend(tasks, logits, data):
        value = next(accuracies)
        return {"topic": {"accuracy": value, "macro_f1": 0.0}, "mood": {"accuracy": 0.0, "macro_f1": 0.0}}

    monkeypatch.setattr("mtl.training.loop.measure", pretend)
    records = go(run)
    assert records[-1]["epoch"] == 4
    best = checkpoints.read_best(run.checkpoints, run.best)
    second = [record["step"] for record in records if record["epoch"] == 2][-1]
    again = start(folder="again", epochs=9, patience=2, best="topic.accuracy")
    accuracies = iter([0.1, 0.5, 0.5, 0.2, 0.9])
    go(again, second)
    assert all(torch.equal(best[name], x) for name, x in again.tensors().items())


def test_every_trainable_parameter_is_in_the_optimiser_and_moves(start) -> None:
    run = start(TASKS, loss_weights="uncertainty")
    names = {name for name, _ in run.parameters()}
    assert names == {name for name, _ in run.model.named_parameters()} | {
        f"weights.log_variance.{task.name}" for task in TASKS
    }
    before = {name: x.clone() for name, x in run.tensors().items()}
    go(run)
    same = [name for name, x in run.tensors().items() if torch.equal(x, before[name])]
    assert same == []


def test_decay_and_rates_by_group(start) -> None:
    run = start((A,), learning_rate=1e-3, head_learning_rate=1e-2, layer_decay=0.5, weight_decay=0.1)
    rates = {}
    for group in run.optimiser.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            assert group["weight_decay"] == (0.1 if parameter.ndim == 2 else 0.0), name
            rates[name] = group["full_rate"]
    assert rates["branches.topic.head.classifier.weight"] == 1e-2
    assert rates["embedder.encoder.transformer.layer.1.ffn.lin1.weight"] == 1e-3
    assert rates["embedder.encoder.transformer.layer.0.ffn.lin1.weight"] == 5e-4
    assert rates["embedder.encoder.embeddings.word_embeddings.weight"] == 2.5e-4


def test_uncertainty_is_kendall_s(start) -> None:
    weights = LossWeights((A, VALUE), learned=True)
    with torch.no_grad():
        weights.log_variance["topic"].fill_(0.7)
        weights.log_variance["score"].fill_(-0.2)
    loss = torch.tensor(2.0)
    torch.testing.assert_close(weights("topic", loss, 1.0), torch.tensor(2 * math.exp(-0.7) + 0.35))
    torch.testing.assert_close(weights("score", loss, 0.5), torch.tensor(math.exp(0.2) - 0.05))


def test_the_metrics_file(start) -> None:
    run = start()
    go(run)
    records = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if "loss" in record]
    assert [record["step"] for record in steps] == list(range(1, run.plan.total + 1))
    dev = [record for record in records if "dev" in record]
    assert [record["epoch"] for record in dev] == [1, 2]
    assert dev[0]["dev"].keys() == {"topic", "mood"}


def test_no_dev_data(start) -> None:
    data = dataset((A, B)) | {"dev": {}}
    run = start(data=data)
    go(run)
    assert run.best is None
    assert not [*run.checkpoints.glob("best-*")]
    before = {name: x.clone() for name, x in run.tensors().items()}
    run.take_best()
    assert all(torch.equal(before[name], x) for name, x in run.tensors().items())
