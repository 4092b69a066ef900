"""A training run: its recipe, model, data and schedule, and all that a checkpoint holds of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mtl.encode.precision import effective
from mtl.errors import CheckpointError
from mtl.model.dropout import drawing_from
from mtl.tasks.multitask import MultiTaskModel
from mtl.training import checkpoint
from mtl.training.data import Data, check_company, fingerprints, told_apart
from mtl.training.distributed import ALONE, Processes
from mtl.training.forward import Cache, Forward
from mtl.training.gradients import Piece
from mtl.training.metrics import check_metric
from mtl.training.optim import LossWeights, optimiser
from mtl.training.phases import Phase, ever_trained, phase_of, phases
from mtl.training.recipe import Recipe
from mtl.training.schedule import MicroBatch, Schedule

WORDS = "embedder.encoder.embeddings.word_embeddings.weight"  # a window's gradient touches few of its rows


class Run:
    """A training run in a folder: the recipe, the model and its data, and all that a checkpoint holds.

    ``ranks`` are the processes that share it; the first of them writes.
    """

    def __init__(
        self, recipe: Recipe, model: MultiTaskModel, data: Data, folder: Path, ranks: Processes = ALONE
    ) -> None:
        training = recipe.training
        self.recipe, self.model, self.data, self.folder, self.ranks = recipe, model, data, folder, ranks
        self.precision = effective(training.precision, model.embedder.device)
        # through JSON, so that it equals what a checkpoint gives back: lists, not tuples
        about = {**recipe.as_dict(), "data": fingerprints(data), "precision": self.precision}
        self.identity = json.loads(json.dumps(about))
        check_metric(training.best, {task: model.tasks[task] for task in data["dev"]})
        model.fit(data["train"])
        self.phases = phases(model, training.epochs)
        self.weights = LossWeights(recipe.tasks, training.loss_weights == "uncertainty").to(model.embedder.device)
        names = ever_trained(self.phases)
        self.optimiser = optimiser(model, self.weights, names, training)
        self.places = {phase.first: self.places_in(phase) for phase in self.phases}
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in names)
        sizes = {task: len(examples) for task, examples in data["train"].items()}
        self.schedule = Schedule(
            sizes,
            training.batch_size,
            training.accumulate,
            training.sampling,
            training.temperature,
            training.seed,
            told_apart(model.tasks, data["train"]),
        )
        self.total = training.epochs * self.schedule.steps_per_epoch
        check_company(data["train"], self.schedule, self.total)
        self.checkpoints = folder / "checkpoints"
        self.step = 0
        self.best: tuple[int, float] | None = None  # the best epoch on the dev data and its metric
        self.forward: Forward | None = None

    def parameters(self) -> list[tuple[str, Tensor]]:
        """The optimiser's parameters with their names."""
        groups = self.optimiser.param_groups
        return [pair for group in groups for pair in zip(group["names"], group["params"], strict=True)]

    def save(self) -> None:
        self.ranks.told(self.write)

    def write(self) -> None:
        """A checkpoint."""
        moments = {}
        for name, parameter in self.parameters():
            for key, value in self.optimiser.state.get(parameter, {}).items():
                moments[f"{name}.{key}"] = value
        tensors = {"model": self.tensors(), "optimizer": moments}
        checkpoint.save(self.checkpoints, checkpoint.State(self.step, self.best, self.identity, tensors))

    def tensors(self) -> dict[str, Tensor]:
        """All weights, those of the losses included."""
        return {**self.model.state_dict(), **self.weights.state_dict(prefix="weights.")}

    @property
    def fingerprint(self) -> str:
        """A hash of all weights."""
        digest = hashlib.sha256()
        for _, tensor in sorted(self.tensors().items()):
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()[:16]

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        weights = {key.removeprefix("weights."): x for key, x in tensors.items() if key.startswith("weights.")}
        self.model.load_state_dict({key: x for key, x in tensors.items() if not key.startswith("weights.")})
        self.weights.load_state_dict(weights)

    def restore(self) -> list[str]:
        """Go back to the newest whole checkpoint; gives a line for each that was not whole.

        Raises:
            CheckpointError: there is none, or it is of another run; it says what differs.
        """
        state, notes = checkpoint.latest(self.checkpoints)
        differing = checkpoint.differences(state.run, self.identity)
        if differing:
            advice = "start one in another folder"
            if [line.split()[0] for line in differing] == ["training.epochs"]:  # the rates follow from the epochs
                advice += f', with model = "{self.folder}" to start from its weights'
            raise CheckpointError(f"{self.folder} is another run: {'; '.join(differing)}; {advice}")
        self.load_tensors(state.tensors["model"])
        moments = state.tensors["optimizer"]
        for name, parameter in self.parameters():
            keys = [key for key in ("step", "exp_avg", "exp_avg_sq") if f"{name}.{key}" in moments]
            if keys:
                self.optimiser.state[parameter] = {
                    key: moments[f"{name}.{key}"].clone().to(parameter.device) for key in keys
                }
        self.step, self.best = state.step, state.best
        return notes

    def forward_of(self, epoch: int) -> Forward:
        """The forward pass of an epoch; what earlier phases remembered stays, where it is still right."""
        phase, before = phase_of(self.phases, epoch), self.forward
        if before is None or before.phase is not phase:
            same = before is not None and before.phase.common == phase.common
            cache = before.cache if before and same else Cache(self.recipe.training.cache_mb * 2**20)
            self.forward = before = Forward(self.model, self.data["train"], phase, cache)
        return before

    def compute(self, epoch: int) -> Callable[[Piece], Tensor]:
        """What gives the outputs of a piece in an epoch, in float32: any thread may call it."""
        forward, device = self.forward_of(epoch), self.model.embedder.device

        def outputs(piece: Piece) -> Tensor:
            generator = torch.Generator(device).manual_seed(piece.seed)
            with drawing_from(generator), torch.autocast(device.type, torch.bfloat16, self.precision == "bf16"):
                return forward(piece.micro).float()

        return outputs

    def places_in(self, phase: Phase) -> dict[str, list[int]]:
        """Which parameters each task trains in a phase, its loss weight among them, by their places."""
        found = {}
        for task, own in phase.trained.items():
            names = own | {f"weights.log_variance.{task}"}
            found[task] = [i for i, (name, _) in enumerate(self.parameters()) if name in names]
        return found

    def trained(self, epoch: int) -> dict[str, list[int]]:
        """Which parameters each task trains in an epoch, by their places."""
        return self.places[phase_of(self.phases, epoch).first]

    def add_gradients(self, window: Sequence[MicroBatch], epoch: int) -> None:
        """Make the gradients of a window, of which each process has a part, the whole window's."""
        if self.ranks.count == 1:
            return
        parameters, by_task = self.parameters(), self.trained(epoch)
        trained = dict(parameters[i] for i in sorted({i for micro in window for i in by_task[micro.task]}))
        rows = {}
        if WORDS in trained:
            data = self.data["train"]
            places = [(micro.task, place) for micro in window for place in data[micro.task].places(micro.rows)]
            ids = {word for task, place in places for word in data[task].rows[place]}
            rows = {[*trained].index(WORDS): torch.tensor(sorted(ids), device=self.model.embedder.device)}
        self.ranks.add_gradients([*trained.values()], rows)

    def window_tokens(self) -> int:
        """About how many tokens a window has."""
        data, training = self.data["train"].values(), self.recipe.training
        mean = sum(len(row) for examples in data for row in examples.rows) / sum(map(len, data))
        return int(mean * training.batch_size * training.accumulate)

    def train_mode(self) -> None:
        """Dropout on, but for heads that are frozen."""
        self.model.train()
        for name, task in self.model.tasks.items():
            self.model.branch(name).train(not task.freeze_head)

    @property
    def best_path(self) -> Path:
        return self.checkpoints / "best.safetensors"
