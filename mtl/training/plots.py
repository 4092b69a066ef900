"""Pictures of vectors: a panel for each task whose kind draws one."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor

from mtl.encode.engine import Engine
from mtl.errors import InputError, TrainingError, extra
from mtl.tasks.examples import Examples
from mtl.tasks.multitask import MultiTaskModel
from mtl.training.report import drawing

POINTS = 2000  # a picture shows no more of a task's rows
FORMATS = (".png", ".svg", ".pdf")


def check_picture(path: Path) -> None:
    """Raise an error before work begins if no picture can be written under this name, or matplotlib is missing."""
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"--plot is {path}; expected a name that ends in {', '.join(FORMATS)}")
    if not find_spec("matplotlib"):
        raise TrainingError(f"a picture needs matplotlib; {extra('train')}")


def task_vectors(model: MultiTaskModel, examples: Examples, threads: int | None = None) -> Tensor:
    """The embeddings of examples on the CPU: (rows, dim), or (rows, texts, dim) where a row has several texts."""
    vectors = Engine(model.embedder.program(), model.embedder.device, threads=threads).run(examples.rows).cpu()
    return vectors.unflatten(0, (-1, examples.width)) if examples.width > 1 else vectors


def some(examples: Examples) -> Examples:
    """At most POINTS of the examples, evenly spaced."""
    chosen = range(0, len(examples), -(-len(examples) // POINTS))
    return examples.take(chosen)


def plot_vectors(model: MultiTaskModel, data: Mapping[str, Examples], path: Path, threads: int | None = None) -> bool:
    """Write a picture with a panel for each task that has one; gives whether there is any."""
    chosen = {name: some(examples) for name, examples in data.items() if model.tasks[name].handler.has_picture}
    if not chosen:
        return False
    with drawing(path, len(chosen), (5.5 * len(chosen), 4.5)) as panels:
        for axes, (name, examples) in zip(panels, chosen.items(), strict=True):
            model.tasks[name].handler.draw(axes, task_vectors(model, examples, threads), examples.targets)
    return True
