"""A training run: its recipe, model, data and schedule, and all that a checkpoint holds of it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtl.encode.precision import effective
from mtl.errors import CheckpointError, differences
from mtl.kernels.linear import release
from mtl.kernels.threads import computing_with
from mtl.kernels.training import Faster
from mtl.tasks.multitask import MultiTaskModel
from mtl.training import checkpoint
from mtl.training.data import Data, check_company, fingerprints, told_apart
from mtl.training.distributed import ALONE, Processes
from mtl.training.forward import Cache, Forward
from mtl.training.gradients import (
    MOST_SHARES,
    PIECE_TOKENS,
    Found,
    Gradients,
    Objective,
    Piece,
    backward,
    divide,
    share_count,
)
from mtl.training.metrics import check_metric
from mtl.training.optim import LossWeights, Map, adamw_step, optimiser, parts_of
from mtl.training.phases import Phase, ever_trained, phase_of, phases
from mtl.training.recipe import Recipe
from mtl.training.rows import Rows
from mtl.training.schedule import MicroBatch, Schedule

NUMBERS = 3  # raised when the same run gives other numbers: it cannot go on from a checkpoint of before
GRAPHS = 8  # pieces of which graphs are in memory together, where no limit is set


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be trained: all that follows from the recipe, the model as it is before, and the data.

    ``identity`` decides the outcome, in plain values: two runs with equal ones are the same run.
    """

    recipe: Recipe
    model: MultiTaskModel
    data: Data
    precision: str
    phases: Sequence[Phase]
    schedule: Schedule
    identity: dict[str, Any]

    @property
    def total(self) -> int:
        """Steps of all epochs."""
        return self.recipe.training.epochs * self.schedule.steps_per_epoch


def prepare(recipe: Recipe, model: MultiTaskModel, data: Data) -> Plan:
    """A plan; a TrainingError if the recipe does not fit the model or the data, of which nothing is changed."""
    training = recipe.training
    check_metric(training.best, {task: model.tasks[task] for task in data["dev"]})
    schedule = Schedule(
        {task: len(examples) for task, examples in data["train"].items()},
        training.batch_size,
        training.accumulate,
        training.sampling,
        training.temperature,
        training.seed,
        told_apart(model.tasks, data["train"]),
    )
    precision = effective(training.precision, model.embedder.device)
    about = {**recipe.as_dict(), "data": fingerprints(data), "precision": precision, "numbers": NUMBERS}
    identity = json.loads(json.dumps(about))  # as a checkpoint gives it back: lists, not tuples
    plan = Plan(recipe, model, data, precision, phases(model, training.epochs), schedule, identity)
    check_company(data["train"], schedule, plan.total)
    return plan


class Run:
    """A plan under way in a folder: step, best epoch, optimiser, and all else that a checkpoint holds.

    ``ranks`` are the processes that share it; the first of them writes.
    """

    def __init__(self, plan: Plan, folder: Path, ranks: Processes = ALONE) -> None:
        self.plan, self.folder, self.ranks = plan, folder, ranks
        self.recipe, self.model, self.data, self.schedule = plan.recipe, plan.model, plan.data, plan.schedule
        self.checkpoints = folder / "checkpoints"
        with computing_with(1):  # a long sum's bits follow the number of threads
            self.model.fit(self.data["train"])
        training, names = plan.recipe.training, ever_trained(plan.phases)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in names)
        self.weights = LossWeights(plan.recipe.tasks, training.loss_weights == "uncertainty").to(self.device)
        self.optimiser = optimiser(self.model, self.weights, names, training)
        self.step = 0
        self.best: checkpoint.Best | None = None
        self.forward: Forward | None = None
        self.of_words = Rows(self.model.encoder.words.weight)

    @property
    def device(self) -> torch.device:
        return self.model.embedder.device

    def parameters(self) -> list[tuple[str, Tensor]]:
        """The optimiser's parameters with their names."""
        groups = self.optimiser.param_groups
        return [pair for group in groups for pair in zip(group["names"], group["params"], strict=True)]

    def state(self, parameter: Tensor) -> dict[str, Tensor]:
        """What the optimiser keeps of a parameter."""
        if parameter is self.of_words.table:
            return self.of_words.state()
        return self.optimiser.state.get(parameter, {})

    # Checkpoints

    def save(self) -> None:
        self.ranks.broadcast(self.write)

    def write(self) -> None:
        """A checkpoint."""
        moments = {}
        for name, parameter in self.parameters():
            for key, value in self.state(parameter).items():
                moments[f"{name}.{key}"] = value
        tensors = {"model": self.tensors(), "optimizer": moments}
        state = checkpoint.State(self.step, self.best, self.plan.identity, tensors)
        checkpoint.save(self.checkpoints, state, self.frozen)

    def keep_best(self, epoch: int, value: float) -> None:
        """Write the weights as those of the best epoch so far."""

        def write() -> dict[str, Any]:
            tensors, frozen = self.tensors(), self.frozen
            best = checkpoint.save_best(self.checkpoints, epoch, value, self.step, tensors, frozen)
            return dataclasses.asdict(best)

        self.best = checkpoint.Best(**self.ranks.broadcast(write))

    def tensors(self) -> dict[str, Tensor]:
        """All weights, those of the losses included."""
        return {**self.model.state_dict(), **self.weights.state_dict(prefix="weights.")}

    @property
    def frozen(self) -> set[str]:
        """The names of the weights that the last step could not change."""
        epoch = max(0, self.step - 1) // self.schedule.steps_per_epoch + 1
        names = [name for name, _ in self.parameters()]
        trained = {names[i] for indices in self.trained(epoch).values() for i in indices}
        return self.tensors().keys() - trained

    @property
    def fingerprint(self) -> str:
        """A hash of all weights."""
        digest = hashlib.sha256()
        for _, tensor in sorted(self.tensors().items()):
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()[:16]

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        own = self.tensors()
        names = own.keys() | tensors.keys()
        shapes, found = ({name: x.shape for name, x in each.items()} for each in (own, tensors))
        if other := [name for name in names if shapes.get(name) != found.get(name)]:
            raise CheckpointError(f"{self.folder} was begun by another version of mtl: {min(other)} is not as it is "
                                  "now; go on with that version, or begin in another folder")  # fmt: skip
        for name, x in own.items():
            x.copy_(tensors[name])
            release([tensors[name]])  # the file need not be in memory as a whole

    def restore(self) -> list[str]:
        """Go back to the newest whole checkpoint; gives a line for each that was not whole. One of another run is a
        CheckpointError that says what differs."""
        state, notes = checkpoint.latest(self.checkpoints)
        if found := differences(state.run, self.plan.identity):
            advice = "start one in another folder"
            if [line.split()[0] for line in found] == ["training.epochs"]:  # the rates follow from the epochs
                advice += f', with model = "{self.folder}" to start from its weights'
            raise CheckpointError(f"{self.folder} is another run: {'; '.join(found)}; {advice}")
        self.step, self.best = state.step, state.best
        if self.best and checkpoint.read_best(self.checkpoints, self.best) is None:
            gone = f"{self.checkpoints / self.best.file}, the weights of epoch {self.best.epoch}, the best so far"
            notes.append(f"{gone}, were deleted; the best of the epochs from here on is kept")
            self.best = None
        self.load_tensors(state.tensors["model"])
        moments = state.tensors["optimizer"]
        for name, parameter in self.parameters():
            keys = [key for key in ("step", "exp_avg", "exp_avg_sq", "rows") if f"{name}.{key}" in moments]
            kept = {key: moments[f"{name}.{key}"].clone().to(parameter.device) for key in keys}
            release(moments[f"{name}.{key}"] for key in keys)
            if kept and parameter is self.of_words.table:
                self.of_words.restore(kept)
            elif kept:
                self.optimiser.state[parameter] = kept
        return notes

    def take_best(self) -> None:
        """Go back to the weights of the best epoch; without dev data, those of the last one stay."""
        tensors = checkpoint.read_best(self.checkpoints, self.best) if self.best else None
        if tensors:
            self.load_tensors(tensors)
        self.model.eval()

    # A step

    def phase(self, epoch: int) -> Phase:
        return phase_of(self.plan.phases, epoch)

    def window(self, epoch: int) -> list[MicroBatch]:
        """The micro-batches of the next step; a task of the embeddings may have ended."""
        return [micro for micro in self.schedule.window(self.step) if self.phase(epoch).trained[micro.task]]

    def forward_of(self, epoch: int) -> Forward:
        """The forward pass of an epoch; what earlier phases remembered stays, where it is still right."""
        phase, before = self.phase(epoch), self.forward
        if before is None or before.phase is not phase:
            same = before is not None and before.phase.common == phase.common
            cache = before.cache if before and same else Cache(self.recipe.training.cache_mb * 2**20)
            self.forward = before = Forward(self.model, self.data["train"], phase, cache)
        return before

    def compute(self, epoch: int) -> Callable[[Piece], Tensor]:
        """What gives the outputs of a piece in an epoch, in float32: any thread may call it."""
        forward, bf16 = self.forward_of(epoch), self.plan.precision == "bf16"

        def outputs(piece: Piece) -> Tensor:
            # autocast's cache is all threads', and each empties it: the moment would decide how the gradients of a
            # weight that is used twice are added
            with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16, cache_enabled=False), Faster():
                return forward(piece).float()

        return outputs

    def trained(self, epoch: int) -> dict[str, list[int]]:
        """Which parameters each task trains in an epoch, its loss weight among them, by their indices."""
        found = {}
        for task, own in self.phase(epoch).trained.items():
            names = own | {f"weights.log_variance.{task}"}
            found[task] = [i for i, (name, _) in enumerate(self.parameters()) if name in names]
        return found

    def objective(self, window: Sequence[MicroBatch], epoch: int) -> Objective:
        """What a window's gradients are of."""
        words, parameters = self.model.encoder.words.weight, [parameter for _, parameter in self.parameters()]
        return Objective(
            self.model.tasks,
            self.compute(epoch),
            self.weights,
            parameters,
            self.trained(epoch),
            next((i for i, parameter in enumerate(parameters) if parameter is words), None),
            self.words(window),
        )

    def words(self, window: Sequence[MicroBatch]) -> Tensor:
        """The ids of all words of a window, in order."""
        data = self.data["train"]
        rows = (data[micro.task].rows[at] for micro in window for at in data[micro.task].text_indices(micro.rows))
        ids = sorted({max(word, ~word) for row in rows for word in row})  # ~word is in a second segment
        return torch.tensor(ids, dtype=torch.int64, device=self.device)

    def gradients(self, window: Sequence[MicroBatch], objective: Objective, mapped: Map = map) -> Found:
        """A window's losses, as far as this process computes them, and its gradients, added up over all processes."""
        data, training, most = self.data["train"], self.recipe.training, PIECE_TOKENS[self.device.type]
        size = objective.size({micro.task for micro in window})
        count = share_count(window, data, size, self.device.type)
        shares = divide(window, data, count, most, (training.seed, self.step))
        tokens = sum(data[piece.task].tokens(row) for share in shares for piece in share for row in piece.rows)
        graphs = tokens <= (training.micro_tokens or GRAPHS * most)
        losses, gradients = backward(shares, objective, mapped, self.ranks, graphs)
        if self.ranks.count > 1:  # another process may have a gradient of what this one has none of
            indices = sorted({i for micro in window for i in objective.trained[micro.task]})
            parts = [(i, gradients[i]) for i in indices]
            given = torch.tensor([float(part is not None) for _, part in parts], device=self.device)
            own = [objective.zeros(i) if part is None else part for i, part in parts]
            givers, *totals = self.ranks.add_gradients([given, *own])
            for i, count, total in zip(indices, givers.tolist(), totals, strict=True):
                gradients[i] = total if count else None  # without one, the optimiser leaves a parameter as it is
        return Found(losses, gradients)

    def update(self, gradients: Gradients, objective: Objective, factor: float, mapped: Map = map) -> None:
        """Make a step with these gradients, at so much of the full learning rates."""
        found, steps = iter(gradients), []
        for group in self.optimiser.param_groups:
            group["lr"] = group["full_rate"] * factor
            parameters, own = [], []
            for parameter, gradient in zip(group["params"], found, strict=False):
                if gradient is not None and parameter is self.of_words.table:
                    steps.append(partial(self.of_words.step, objective.words, gradient, group))
                elif gradient is not None:
                    parameters.append(parameter)
                    own.append(gradient)
            states = [self.optimiser.state[parameter] for parameter in parameters]
            steps += [partial(adamw_step, parameters[i], own[i], states[i], group) for i in parts_of(own)]
        list(mapped(lambda step: step(), steps))
        self.step += 1

    # Limits and modes

    def workers(self, threads: int) -> int:
        """How many threads compute shares: on a GPU one, and no more than ``micro_tokens`` gives work."""
        micro_tokens = self.recipe.training.micro_tokens
        most = max(1, micro_tokens // PIECE_TOKENS["cpu"]) if micro_tokens else MOST_SHARES
        return min(threads, most, MOST_SHARES) if self.device.type == "cpu" else 1

    @contextmanager
    def training(self) -> Iterator[None]:
        """Within it, dropout is on, but for heads that are frozen, and gradients of word embeddings are sparse."""
        self.model.train()
        for name, task in self.model.tasks.items():
            self.model.branch(name).train(not task.freeze_head)
        words = self.model.encoder.words
        before = words.sparse
        words.sparse = type(words) is nn.Embedding and self.device.type == "cpu"
        try:
            yield
        finally:
            words.sparse = before
