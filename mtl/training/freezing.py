"""Freezing by task: which parameters each one trains, and the part of the trunk that none does.

A task that holds k blocks runs the embeddings and those blocks without a graph and without dropout, so it
neither pays for them nor touches them, while another task may still train them. Where all tasks hold at least
k, what those blocks give never changes, and is computed once per text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from mtl.encode.engine import ROWS, pack_padded
from mtl.encode.multitask import MultiTaskModel, held_fixed
from mtl.errors import TrainingError
from mtl.model.packing import PackedBatch
from mtl.model.pooling import Pooling
from mtl.training.data import Data, Examples
from mtl.training.recipe import Training
from mtl.training.schedule import MicroBatch, Schedule


class Trainables:
    """Which parameters each task trains in each epoch.

    Raises:
        TrainingError: a task holds more blocks than there are, or trains nothing in some epoch.
    """

    def __init__(self, model: MultiTaskModel, training: Training) -> None:
        self.model = model
        self.n_layers = model.encoder.config.n_layers
        self.epochs = range(1, training.epochs + 1)
        for name, task in model.tasks.items():
            for epoch in self.epochs:
                depth = task.frozen_depth(epoch, self.n_layers) or 0
                if depth > self.n_layers:
                    raise TrainingError(f"task {name!r}: freeze is {depth}; the encoder has {self.n_layers} blocks")
                if not self.names(name, epoch):
                    raise TrainingError(
                        f"task {name!r} freezes the encoder and its head in epoch {epoch}: nothing is left to train"
                    )

    def names(self, task: str, epoch: int) -> set[str]:
        """The parameters' names in the model."""
        spec = self.model.tasks[task]
        depth = spec.frozen_depth(epoch, self.n_layers)
        names = {name for name, _ in self.model.branch(task).named_parameters(f"branches.{task}")}
        names = set() if spec.freeze_head else names
        for name, parameter in self.model.encoder.named_parameters():
            fixed_table = name == "embeddings.position_embeddings.weight" and not parameter.requires_grad
            if layer_of(name) > (-1 if depth is None else depth) and not fixed_table:
                names.add(f"embedder.encoder.{name}")
        return names

    def depth(self, task: str, epoch: int) -> int | None:
        return self.model.tasks[task].frozen_depth(epoch, self.n_layers)

    def common_depth(self, epoch: int) -> int | None:
        """How many blocks all tasks hold, or None where one trains the embeddings."""
        depths = [self.depth(task, epoch) for task in self.model.tasks]
        return None if None in depths else min(depth for depth in depths if depth is not None)

    def ever(self) -> set[str]:
        """Whatever some task trains in some epoch."""
        return set().union(*(self.names(task, epoch) for task in self.model.tasks for epoch in self.epochs))

    def table(self, schedule: Schedule, data: Data) -> list[list[object]]:
        """What each task trains: a row per task and change of freezing."""
        sizes = {name: parameter.numel() for name, parameter in self.model.named_parameters()}
        effective = schedule.effective_epochs(len(self.epochs))
        rows: list[list[object]] = [
            ["task", "kind", "outputs", "from epoch", "frozen", "head", "trained", "train", "dev", "epochs"]
        ]
        for name, task in self.model.tasks.items():
            before: object = ""
            for epoch in self.epochs:
                depth = self.depth(name, epoch)
                if depth == before:
                    continue
                before = depth
                frozen = "nothing" if depth is None else f"embeddings + {depth} of {self.n_layers} blocks"
                count = f"{sum(sizes[parameter] for parameter in self.names(name, epoch)):,}"
                dev = len(data["dev"][name]) if name in data["dev"] else 0
                head = "frozen" if task.freeze_head else "trained"
                rows.append([name, task.kind, task.outputs, epoch, frozen, head, count,
                             schedule.sizes[name], dev, f"{effective[name]:.2f}"])  # fmt: skip
        return rows


def layer_of(name: str) -> int:
    """0 for the embeddings, i + 1 for block i, by an encoder parameter's name."""
    parts = name.split(".")
    return int(parts[2]) + 1 if parts[0] == "transformer" else 0


class Forward:
    """A micro-batch's logits. What no task trains in this epoch is computed once per text, and remembered.

    ``common`` is the number of blocks that all tasks hold. Their output is kept for each text, as long as there
    is room; where they are the whole trunk and a task's pooling has nothing to learn, the pooled vector is.
    """

    def __init__(self, model: MultiTaskModel, data: Mapping[str, Examples], depths: Mapping[str, int | None],
                 common: int | None, room: int) -> None:  # fmt: skip
        self.model = model
        self.data = data
        self.depths = depths
        self.common = common
        self.room = room
        self.kept: dict[tuple[str, int], Tensor] = {}

    def __call__(self, micro: MicroBatch) -> Tensor:
        encoder, branch = self.model.encoder, self.model.branch(micro.task)
        pooling, depth = branch.pooling, self.depths[micro.task]
        if self.common == encoder.config.n_layers and isinstance(pooling, Pooling):
            return branch.head(self.remembered(micro, lambda x, part: list(pooling(x, part))))
        rows = [self.data[micro.task].rows[i] for i in micro.rows]
        batch = PackedBatch.pack(rows).to(self.model.embedder.device)
        if self.common is None or depth is None:
            return branch(self.model.hidden(batch, depth), batch)
        x = self.remembered(micro, lambda x, part: list(x.split(part.lengths)))
        with held_fixed(encoder):  # this task may hold more than the others do
            for block in encoder.transformer.layer[self.common : depth]:
                x = block(x, batch)
        return branch(encoder.upper(x, batch, depth), batch)

    def remembered(self, micro: MicroBatch, pieces: Callable[[Tensor, PackedBatch], list[Tensor]]) -> Tensor:
        """What ``pieces`` makes of the common prefix of each text, all in one tensor."""
        assert self.common is not None
        keys = [(micro.task, i) for i in micro.rows]
        missing = [key for key in keys if key not in self.kept]
        found = {key: self.kept[key] for key in keys if key in self.kept}
        if missing:
            rows = [self.data[task].rows[i] for task, i in missing]
            batch = pack_padded(rows, ROWS * torch.get_num_threads()).to(self.model.embedder.device)
            with held_fixed(self.model.encoder):  # padded: the same bits whatever else is missing, as on resuming
                made = pieces(self.model.encoder.lower(batch, self.common), batch)[: len(rows)]
            new = dict(zip(missing, made, strict=True))
            found.update(new)
            size = sum(piece.nbytes for piece in made)
            if size <= self.room:
                self.room -= size
                self.kept.update(new)
        together = [found[key] for key in keys]
        return torch.stack(together) if together[0].ndim == 1 else torch.cat(together)
