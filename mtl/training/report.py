"""What a training run says, to a file of metrics and to a reporter; the loop only hands over numbers."""

from __future__ import annotations

import json
import logging
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtl.disk import atomic_write, writing
from mtl.errors import CheckpointError

if TYPE_CHECKING:
    from mtl.training.run import Run

log = logging.getLogger("mtl")

Metrics = Mapping[str, Mapping[str, float]]  # by task
Confusions = Mapping[str, Sequence[Sequence[int]]]  # by task; see Kind.confusion
Hook = Callable[[Mapping[str, Any]], object]  # is told a line of metrics.jsonl


class Reporter:
    """Told of all that happens in a run; this one does nothing with it. Under torchrun the first process's is told."""

    def note(self, line: str) -> None:
        """Something that a user should know, in a line."""

    def begin(self, run: Run, name: str, threads: int) -> None:
        """Before the first step: the run of a recipe of this name."""

    def step(self, record: Mapping[str, Any], texts: int) -> None:
        """After a step over so many rows: its line of metrics.jsonl."""

    def epoch(self, record: Mapping[str, Any], losses: Mapping[str, float]) -> None:
        """After an epoch: its line of metrics.jsonl, and each task's mean loss."""

    def measured(self, run: Run, title: str, metrics: Metrics, confusions: Confusions) -> None:
        """Metrics and confusion matrices by task: before training, and of the best epoch."""

    def trained(self, run: Run) -> None:
        """After the last step: the model has the weights of the best epoch."""

    def end(self, run: Run, history: Log, threads: int) -> None:
        """The model is in the run's folder."""

    def close(self) -> None:
        """The run ended, however it did."""


class Notes(Reporter):
    """Quiet but for warnings in Python's log; what ``train`` has where no other is given."""

    def note(self, line: str) -> None:
        log.warning("%s", line)


class Log:
    """Every step and every epoch of a run, in ``metrics.jsonl``, as a JSON object a line.

    What depends on the clock is not written, so that equal runs write equal files. A run that goes on after ``step``
    steps cuts the file back to these.
    """

    def __init__(
        self,
        folder: Path,
        step: int = 0,
        report: Reporter | None = None,
        tensorboard: bool = False,
        on_step: Hook | None = None,
        on_epoch: Hook | None = None,
    ) -> None:
        self.report = report or Reporter()
        self.on_step, self.on_epoch = on_step, on_epoch
        self.path = folder / "metrics.jsonl"
        self.steps: list[dict[str, Any]] = []
        self.epochs: list[dict[str, Any]] = []
        with writing(self.path, CheckpointError):
            folder.mkdir(parents=True, exist_ok=True)
            self.file = self.path.open("ab")
            self.file.truncate(self.read(step))
        if len(self.steps) < step:
            known = f"{len(self.steps)} of {step} steps"
            self.report.note(f"{self.path} was deleted or damaged: it knows {known}; the rest is not shown")
        self.writer: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(folder / "tensorboard")

    def read(self, step: int) -> int:
        """Take over the records of the first steps, as far as the file is whole; gives their size in bytes."""
        size = 0
        for line in self.path.read_bytes().splitlines(keepends=True):
            try:
                record = json.loads(line)
                if record["step"] > step or not line.endswith(b"\n"):
                    break
                self.remember(record)
            except (ValueError, KeyError, TypeError):
                break
            size += len(line)
        return size

    def remember(self, record: dict[str, Any]) -> None:
        (self.steps if "loss" in record else self.epochs).append(record)

    def write(self, record: dict[str, Any]) -> None:
        with writing(self.path, CheckpointError):
            self.file.write(json.dumps(record).encode() + b"\n")
            self.file.flush()
        self.remember(record)

    def step(self, step: int, epoch: int, losses: Mapping[str, float], norm: float, rate: float, texts: int) -> None:
        """After a step: each task's mean loss, the gradient's norm before clipping, and the trunk's rate."""
        record = {"step": step, "epoch": epoch, "loss": losses, "gradient_norm": norm, "learning_rate": rate}
        self.write(record)
        self.report.step(record, texts)
        if self.on_step:
            self.on_step(record)
        if self.writer:
            for name, loss in losses.items():
                self.writer.add_scalar(f"loss/{name}", loss, step)

    def epoch(self, step: int, epoch: int, metrics: Metrics) -> None:
        """After an epoch: the dev metrics."""
        record = {"step": step, "epoch": epoch, "dev": metrics}
        self.write(record)
        self.report.epoch(record, self.epoch_losses(epoch))
        if self.on_epoch:
            self.on_epoch(record)
        if self.writer:
            for name, values in metrics.items():
                for key, value in values.items():
                    self.writer.add_scalar(f"dev/{name}/{key}", value, step)
            self.writer.flush()

    def epoch_losses(self, epoch: int) -> dict[str, float]:
        """Each task's mean loss over the steps of an epoch."""
        losses: dict[str, list[float]] = defaultdict(list)
        for record in self.steps:
            if record["epoch"] == epoch:
                for name, loss in record["loss"].items():
                    losses[name].append(loss)
        return {name: math.fsum(values) / len(values) for name, values in sorted(losses.items())}

    def close(self) -> None:
        with suppress(OSError):  # a full disk was an error when the line was written
            os.fsync(self.file.fileno())
        with suppress(OSError):
            self.file.close()
        if self.writer:
            self.writer.close()


class NoLog(Log):
    """What all processes but the first have instead."""

    def __init__(self) -> None:
        pass

    def step(self, *_: object) -> None:
        pass

    def epoch(self, *_: object) -> None:
        pass

    def close(self) -> None:
        pass


@contextmanager
def drawing(path: Path, panels: int, size: tuple[float, float]) -> Iterator[Any]:
    """Axes side by side, of a picture of so many inches that is written in the end; its suffix says in which format."""
    from matplotlib.figure import Figure  # not pyplot, which would choose a window system for the whole process

    figure = Figure(figsize=size, layout="constrained")
    yield figure.subplots(1, panels, squeeze=False)[0]
    with atomic_write(path, CheckpointError) as partial:
        figure.savefig(partial, dpi=120, format=path.suffix[1:].lower())


def plot(history: Log, path: Path) -> None:
    """A picture of the losses, step by step and as means over epochs, and of the dev metrics."""
    with drawing(path, 2, (11, 4)) as (left, right):
        draw_curves(left, right, history)


def draw_curves(left: Any, right: Any, history: Log) -> None:
    """The losses on the left, the dev metrics on the right."""
    names = sorted({name for record in history.steps for name in record["loss"]})
    epochs = sorted({record["epoch"] for record in history.steps})
    ends = {epoch: max(r["step"] for r in history.steps if r["epoch"] == epoch) for epoch in epochs}
    for i, name in enumerate(names):
        points = [(record["step"], record["loss"][name]) for record in history.steps if name in record["loss"]]
        left.plot(*zip(*points, strict=True), color=f"C{i}", alpha=0.3, linewidth=0.8)
        means = [(ends[epoch], history.epoch_losses(epoch).get(name, math.nan)) for epoch in epochs]
        left.plot(*zip(*means, strict=True), color=f"C{i}", marker="o", label=name)
    left.set(xlabel="step", ylabel="training loss", title="loss: each step, and the mean of each epoch")
    for i, name in enumerate(names):
        keys = [*history.epochs[0]["dev"].get(name, {})][:2] if history.epochs else []
        for style, key in zip("-:", keys, strict=False):
            values = [(record["epoch"], record["dev"][name][key]) for record in history.epochs]
            right.plot(*zip(*values, strict=True), style, color=f"C{i}", marker="o", label=f"{name} {key}")
    right.set(xlabel="epoch", ylabel="dev metric", title="dev", xticks=epochs)
    for axes in (left, right):
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
