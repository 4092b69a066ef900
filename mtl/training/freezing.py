"""Freezing by task: which parameters each one trains, and the part of the trunk that none does.

A task that holds k blocks runs the embeddings and those blocks without a graph and without dropout, so it
neither pays for them nor touches them, while another task may still train them. Where all tasks hold at least
k, what those blocks give never changes, and is computed once per text.

All of it follows from one plain value, the ``Phase`` that an epoch is in.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from mtl.encode.batching import longest_first
from mtl.encode.kinds import KINDS
from mtl.encode.multitask import MultiTaskModel, held_fixed
from mtl.errors import TrainingError
from mtl.model.forms import packed
from mtl.model.packing import PackedBatch
from mtl.model.pooling import Pooling
from mtl.training.data import Examples
from mtl.training.schedule import MicroBatch

Ids = tuple[int, ...]  # a text's tokens


@dataclasses.dataclass(frozen=True)
class Phase:
    """What stands still from one epoch on, until the next phase.

    first: The epoch it begins with; the first of all is 1.
    trained: The names of the parameters that each task trains.
    depths: How many blocks each task holds; None where it trains the embeddings.
    common: How many blocks all tasks hold; None where one trains the embeddings.
    """

    first: int
    trained: Mapping[str, frozenset[str]]
    depths: Mapping[str, int | None]
    common: int | None


def phases(model: MultiTaskModel, epochs: int) -> list[Phase]:
    """The phases of so many epochs, in order.

    Raises:
        TrainingError: a task holds more blocks than there are, or trains nothing in some epoch; but a task of the
            embeddings may end, while another goes on.
    """
    starts = {first for task in model.tasks.values() for first in task.freezing if first <= epochs}
    found = [phase_from(model, first) for first in sorted(starts)]
    n_layers = model.encoder.config.n_layers
    for phase in found:
        for task, depth in phase.depths.items():
            if depth is not None and depth > n_layers:
                raise TrainingError(f"task {task!r}: freeze is {depth}; the encoder has {n_layers} blocks")
            ended = KINDS[model.tasks[task].kind].embeds and found[0].trained[task] and any(phase.trained.values())
            if not phase.trained[task] and not ended:
                raise TrainingError(
                    f"task {task!r} freezes the encoder and its head in epoch {phase.first}: nothing is left to train"
                )
    return found


def phase_from(model: MultiTaskModel, first: int) -> Phase:
    """The phase that begins with an epoch."""
    depths = {name: task.frozen_depth(first, model.encoder.config.n_layers) for name, task in model.tasks.items()}
    trained = {name: frozenset(trained_names(model, name, depth)) for name, depth in depths.items()}
    held = [depth for depth in depths.values() if depth is not None]
    return Phase(first, trained, depths, min(held) if len(held) == len(depths) else None)


def trained_names(model: MultiTaskModel, task: str, depth: int | None) -> list[str]:
    """The parameters that a task trains which holds so many blocks, by their names in the model."""
    branch = [] if model.tasks[task].freeze_head else list(model.branch(task).parameters())
    own = {id(parameter) for parameter in branch}
    names = [name for name, parameter in model.named_parameters() if id(parameter) in own]
    for name, parameter in model.encoder.named_parameters():
        fixed_table = name == "embeddings.position_embeddings.weight" and not parameter.requires_grad
        if layer_of(name) > (-1 if depth is None else depth) and not fixed_table:
            names.append(f"embedder.encoder.{name}")
    return names


def layer_of(name: str) -> int:
    """0 for the embeddings, i + 1 for block i, by an encoder parameter's name."""
    parts = name.split(".")
    return int(parts[2]) + 1 if parts[0] == "transformer" else 0


def phase_of(found: Sequence[Phase], epoch: int) -> Phase:
    """The phase that an epoch is in."""
    return [phase for phase in found if phase.first <= epoch][-1]


def ever_trained(found: Sequence[Phase]) -> set[str]:
    """Whatever some task trains in some phase."""
    return {name for phase in found for names in phase.trained.values() for name in names}


class Cache:
    """What was computed for a text's token ids by a task, remembered as long as there is room."""

    def __init__(self, room: int) -> None:
        self.room = room  # bytes
        self.lock = threading.Lock()  # threads compute side by side
        self.kept: dict[tuple[str, Ids], Tensor] = {}

    def get(self, task: str, rows: Sequence[Ids], make: Callable[[Sequence[Ids]], list[Tensor]]) -> list[Tensor]:
        """A tensor per text; ``make`` gives those of the texts that are not remembered."""
        missing = [row for row in dict.fromkeys(rows) if (task, row) not in self.kept]
        made = dict(zip(missing, make(missing), strict=True)) if missing else {}
        found = [made[row] if row in made else self.kept[task, row] for row in rows]
        size = sum(tensor.nbytes for tensor in made.values())
        with self.lock:
            if size <= self.room:
                self.room -= size
                self.kept.update({(task, row): tensor for row, tensor in made.items()})
        return found


class Forward:
    """A micro-batch's outputs in one phase: (rows, outputs), or (rows, texts, dim) where a row has several texts.

    What no task trains is computed once per text, and remembered.

    That is the output of the blocks that all tasks hold; where they are the whole trunk and a task's pooling
    has nothing to learn, it is the pooled vector.
    """

    def __init__(self, model: MultiTaskModel, data: Mapping[str, Examples], phase: Phase, cache: Cache) -> None:
        self.model = model
        self.data = data
        self.phase = phase
        self.cache = cache
        # What no task trains is computed in this form; the blocks above it are not used
        self.frozen = model.encoder if phase.common is None else packed(model.encoder)

    def __call__(self, micro: MicroBatch) -> Tensor:
        examples = self.data[micro.task]
        places = examples.places(micro.rows)
        order = longest_first([len(examples.rows[place]) for place in places])  # equal lengths become neighbours
        outputs = self.of_texts(micro.task, [places[i] for i in order])
        outputs = outputs[torch.tensor(order, device=outputs.device).argsort()]
        return outputs.unflatten(0, (-1, examples.width)) if examples.width > 1 else outputs

    def of_texts(self, task: str, places: Sequence[int]) -> Tensor:
        """What the task's branch makes of the texts at some places, (texts, outputs)."""
        encoder, branch = self.model.encoder, self.model.branch(task)
        pooling, depth, common = branch.pooling, self.phase.depths[task], self.phase.common
        if common == encoder.config.n_layers and isinstance(pooling, Pooling):
            pooled = self.prefix(task, places, common, lambda x, batch: list(pooling(x, batch)))
            return branch.head(torch.stack(pooled))
        batch = PackedBatch.pack([self.data[task].rows[place] for place in places]).to(self.model.embedder.device)
        if common is None or depth is None:
            return branch(self.model.hidden(batch, depth), batch)
        x = torch.cat(self.prefix(task, places, common, lambda x, batch: list(x.split(batch.lengths))))
        with held_fixed():  # this task may hold more than the others do
            for block in encoder.transformer.layer[common:depth]:
                x = block(x, batch)
        return branch(encoder.upper(x, batch, depth), batch)

    def prefix(
        self,
        task: str,
        places: Sequence[int],
        depth: int,
        pieces: Callable[[Tensor, PackedBatch], list[Tensor]],
    ) -> list[Tensor]:
        """For each text, what ``pieces`` makes of the output of the embeddings and ``depth`` blocks."""

        def make(missing: Sequence[Ids]) -> list[Tensor]:
            batch = PackedBatch.pack(missing).to(self.model.embedder.device)
            # The packed form gives the same bits whatever else is missing, as on resuming; it is fp32, always
            with torch.no_grad(), torch.autocast(batch.ids.device.type, enabled=False):
                return pieces(self.frozen.lower(batch, depth), batch)

        return self.cache.get(task, [tuple(self.data[task].rows[place]) for place in places], make)
