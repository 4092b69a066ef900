"""Pictures of vectors: how cosines follow scores, and where texts of different labels lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtl.encode.engine import Engine
from mtl.errors import InputError, TrainingError
from mtl.model.pair_losses import cosines
from mtl.tasks.kinds import KINDS, Kind
from mtl.tasks.multitask import MultiTaskModel
from mtl.tasks.spec import TaskSpec
from mtl.training.data import Examples
from mtl.training.report import drawing

POINTS = 2000  # a picture shows no more of a task's rows
FORMATS = (".png", ".svg", ".pdf")


def check_picture(path: Path) -> None:
    """That a picture can be drawn, before work begins.

    Raises:
        InputError: the file's name ends in no format of ours.
        TrainingError: matplotlib is not installed.
    """
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"--plot is {path}; expected a name that ends in {', '.join(FORMATS)}")
    if not find_spec("matplotlib"):
        raise TrainingError("a picture needs matplotlib; pip install 'mtl[train]'")


def drawable(kind: Kind) -> bool:
    """Whether there is a picture for tasks of a kind: those of several texts, and those of one label each."""
    return kind.joint or kind.confusion is not None


def flat(vectors: Tensor) -> Tensor:
    """The two directions in which vectors (rows, dim) differ most, of their principal components: (rows, 2)."""
    centred = vectors.double() - vectors.double().mean(dim=0)
    left, sizes, _ = torch.linalg.svd(torch.nn.functional.pad(centred, (0, 2, 0, 2)), full_matrices=False)
    return (left * sizes)[: len(vectors), :2]


def draw_cosines(axes: Any, name: str, vectors: Tensor, scores: Tensor) -> None:
    """A point for each row's two vectors (rows, 2, dim): its score (rows, 1) from 0 to 1, and their cosine."""
    axes.scatter(scores[:, 0], cosines(vectors), s=12, alpha=0.4, linewidths=0)
    axes.set(xlabel="score, from the lowest to the highest", ylabel="cosine", title=f"{name}: score and cosine")


def draw_map(axes: Any, name: str, vectors: Tensor, groups: Tensor, labels: Sequence[str]) -> None:
    """A point for each vector (rows, dim), in its group's colour."""
    points = flat(vectors)
    for group, label in enumerate(labels):
        axes.scatter(*points[groups == group].T, s=12, alpha=0.6, linewidths=0, color=f"C{group}", label=label)
    axes.set(xlabel="first principal component", ylabel="second", title=f"{name}: where the vectors lie")
    axes.legend(markerscale=2)


def draw_task(axes: Any, task: TaskSpec, vectors: Tensor, targets: Tensor) -> None:
    kind = KINDS[task.kind]
    if kind.negatives:  # anchors and positives, by the field that they stood in
        groups = torch.arange(2).repeat(len(vectors))
        draw_map(axes, task.name, vectors[:, :2].flatten(0, 1), groups, task.text_field[:2])
    elif kind.joint:
        draw_cosines(axes, task.name, vectors, targets)
    else:
        draw_map(axes, task.name, vectors, targets, task.labels)


def task_vectors(model: MultiTaskModel, examples: Examples, threads: int | None = None) -> Tensor:
    """The embeddings of examples on the CPU: (rows, dim), or (rows, texts, dim) where a row has several texts."""
    vectors = Engine(model.form().embedder, model.embedder.device, threads=threads).run(examples.rows).cpu()
    return vectors.unflatten(0, (-1, examples.width)) if examples.width > 1 else vectors


def some(examples: Examples) -> Examples:
    """At most POINTS of the examples, evenly spaced."""
    chosen = range(0, len(examples), -(-len(examples) // POINTS))
    rows = [examples.rows[place] for place in examples.places(chosen)]
    return Examples(rows, examples.targets[list(chosen)], examples.width)


def plot_vectors(model: MultiTaskModel, data: Mapping[str, Examples], path: Path, threads: int | None = None) -> bool:
    """Write a picture with a panel for each task that has one; gives whether there is any.

    Raises:
        CheckpointError: it cannot be written.
    """
    chosen = {name: some(examples) for name, examples in data.items() if drawable(KINDS[model.tasks[name].kind])}
    if not chosen:
        return False
    with drawing(path, len(chosen), (5.5 * len(chosen), 4.5)) as panels:
        for axes, (name, examples) in zip(panels, chosen.items(), strict=True):
            draw_task(axes, model.tasks[name], task_vectors(model, examples, threads), examples.targets)
    return True
