"""Freezing by task: which parameters each one trains, and how much of the trunk it holds fixed.

A task that holds k blocks runs the embeddings and those blocks without a graph and without dropout, so it
neither pays for them nor touches them, while another task may still train them (forward.py).

All of it follows from one plain value, the ``Phase`` that an epoch is in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from mtl.errors import TrainingError
from mtl.tasks.multitask import MultiTaskModel


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
    """The phases of so many epochs, in order; a TrainingError if a task holds more blocks than there are, or trains
    nothing in some epoch: only a task of the embeddings may end, while another goes on."""
    starts = {first for task in model.tasks.values() for first in task.freezing if first <= epochs}
    found = [phase_from(model, first) for first in sorted(starts)]
    n_layers = model.encoder.config.n_layers
    for phase in found:
        for task, depth in phase.depths.items():
            if depth is not None and depth > n_layers:
                raise TrainingError(f"task {task!r}: freeze is {depth}; the encoder has {n_layers} blocks")
            ended = model.tasks[task].handler.embeds and found[0].trained[task] and any(phase.trained.values())
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
    for name, _ in model.encoder.named_parameters():
        if model.encoder.depth_of(name) > (-1 if depth is None else depth) and name not in model.encoder.fixed:
            names.append(f"embedder.encoder.{name}")
    return names


def phase_of(found: Sequence[Phase], epoch: int) -> Phase:
    """The phase that an epoch is in."""
    return [phase for phase in found if phase.first <= epoch][-1]


def ever_trained(found: Sequence[Phase]) -> set[str]:
    """Whatever some task trains in some phase."""
    return {name for phase in found for names in phase.trained.values() for name in names}
