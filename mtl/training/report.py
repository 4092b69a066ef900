"""What a training run says: a file of metrics, a bar, tables and a picture. The loop only hands it numbers."""

from __future__ import annotations

import json
import math
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from mtl.disk import atomic_write, writing
from mtl.display import table
from mtl.errors import CheckpointError
from mtl.tasks.multitask import MultiTaskModel
from mtl.training.data import Data
from mtl.training.phases import Phase
from mtl.training.schedule import Schedule


def metrics_table(metrics: Mapping[str, Mapping[str, float]]) -> str:
    """A row per task; tasks of different kinds have different columns."""
    columns = list(dict.fromkeys(key for values in metrics.values() for key in values))
    rows = [[name, *(values.get(key, "") for key in columns)] for name, values in metrics.items()]
    return table([["task", *columns], *rows])


def confusion_table(labels: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    return table([["true \\ predicted", *labels], *([label, *row] for label, row in zip(labels, counts, strict=True))])


def tasks_table(model: MultiTaskModel, found: Sequence[Phase], schedule: Schedule, data: Data, epochs: int) -> str:
    """What each task trains: a row per task and change of freezing."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    n_layers, effective = model.encoder.config.n_layers, schedule.effective_epochs(epochs)
    rows: list[list[object]] = [
        ["task", "kind", "outputs", "from epoch", "frozen", "head", "trained", "train", "dev", "epochs"]
    ]
    for name, task in model.tasks.items():
        before: object = ""
        for phase in found:
            depth = phase.depths[name]
            if depth == before:
                continue
            before = depth
            frozen = "nothing" if depth is None else f"embeddings + {depth} of {n_layers} blocks"
            trained = f"{sum(sizes[parameter] for parameter in phase.trained[name]):,}"
            dev = len(data["dev"][name]) if name in data["dev"] else 0
            head = "frozen" if task.freeze_head else "trained"
            rows.append([name, task.kind, model.outputs(name), phase.first, frozen, head, trained,
                         schedule.sizes[name], dev, f"{effective[name]:.2f}"])  # fmt: skip
    return table(rows)


class Log:
    """Every step and every epoch of a run, in ``metrics.jsonl``, as a JSON object a line.

    What depends on the clock is shown and not written, so that equal runs write equal files. A run that goes
    on after ``step`` steps cuts the file back to these.
    """

    def __init__(self, folder: Path, step: int = 0, total: int = 0, tensorboard: bool = False) -> None:
        self.path = folder / "metrics.jsonl"
        self.steps: list[dict[str, Any]] = []
        self.epochs: list[dict[str, Any]] = []
        with writing(self.path, CheckpointError):
            folder.mkdir(parents=True, exist_ok=True)
            self.file = self.path.open("ab")
            self.file.truncate(self.read(step))
        if len(self.steps) < step:
            known = f"{len(self.steps)} of {step} steps"
            click.echo(f"note: {self.path} was deleted or damaged: it knows {known}; the rest is not shown", err=True)
        self.bar = tqdm(total=total, initial=step, unit="step", disable=None, leave=False)
        self.writer: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(folder / "tensorboard")
        self.texts = 0
        self.started = time.perf_counter()

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

    def step(self, step: int, epoch: int, losses: dict[str, float], norm: float, rate: float, texts: int) -> None:
        """After a step: each task's mean loss, the gradient's norm before clipping, and the trunk's rate."""
        self.write({"step": step, "epoch": epoch, "loss": losses, "gradient_norm": norm, "learning_rate": rate})
        self.texts += texts
        self.bar.update()
        self.bar.set_postfix({name: f"{loss:.3f}" for name, loss in losses.items()}, refresh=False)
        if self.writer:
            for name, loss in losses.items():
                self.writer.add_scalar(f"loss/{name}", loss, step)

    def epoch(self, step: int, epoch: int, metrics: Mapping[str, Mapping[str, float]]) -> None:
        """After an epoch: the dev metrics. Prints a line, with the losses' means over the epoch."""
        self.write({"step": step, "epoch": epoch, "dev": metrics})
        seconds = time.perf_counter() - self.started
        losses = "  ".join(f"{name} {loss:.4f}" for name, loss in self.epoch_losses(epoch).items())
        dev = "  ".join(
            f"{name} {' '.join(f'{key} {value:.4f}' for key, value in values.items())}"
            for name, values in metrics.items()
        )
        dev = f"  |  dev {dev}" if dev else ""
        self.say(f"epoch {epoch}  loss {losses}{dev}  |  {seconds:.1f} s, {self.texts / seconds:.0f} texts/s")
        if self.writer:
            for name, values in metrics.items():
                for key, value in values.items():
                    self.writer.add_scalar(f"dev/{name}/{key}", value, step)
            self.writer.flush()
        self.texts, self.started = 0, time.perf_counter()

    def epoch_losses(self, epoch: int) -> dict[str, float]:
        """Each task's mean loss over the steps of an epoch."""
        losses: dict[str, list[float]] = defaultdict(list)
        for record in self.steps:
            if record["epoch"] == epoch:
                for name, loss in record["loss"].items():
                    losses[name].append(loss)
        return {name: math.fsum(values) / len(values) for name, values in sorted(losses.items())}

    def say(self, line: str) -> None:
        """A line above the bar, on standard output."""
        with self.bar.external_write_mode():
            click.echo(line)

    def close(self) -> None:
        self.bar.close()
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
    """Axes side by side, of a picture of so many inches that is written in the end; its suffix says in which format.

    Raises:
        CheckpointError: it cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, panels, figsize=size, layout="constrained", squeeze=False)
    try:
        yield axes[0]
        with atomic_write(path, CheckpointError) as partial:
            figure.savefig(partial, dpi=120, format=path.suffix[1:].lower())
    finally:
        pyplot.close(figure)


def plot(log: Log, path: Path) -> None:
    """A picture of the losses, step by step and as means over epochs, and of the dev metrics."""
    with drawing(path, 2, (11, 4)) as (left, right):
        draw_curves(left, right, log)


def draw_curves(left: Any, right: Any, log: Log) -> None:
    """The losses on the left, the dev metrics on the right."""
    names = sorted({name for record in log.steps for name in record["loss"]})
    epochs = sorted({record["epoch"] for record in log.steps})
    ends = {epoch: max(r["step"] for r in log.steps if r["epoch"] == epoch) for epoch in epochs}
    for i, name in enumerate(names):
        points = [(record["step"], record["loss"][name]) for record in log.steps if name in record["loss"]]
        left.plot(*zip(*points, strict=True), color=f"C{i}", alpha=0.3, linewidth=0.8)
        means = [(ends[epoch], log.epoch_losses(epoch).get(name, math.nan)) for epoch in epochs]
        left.plot(*zip(*means, strict=True), color=f"C{i}", marker="o", label=name)
    left.set(xlabel="step", ylabel="training loss", title="loss: each step, and the mean of each epoch")
    for i, name in enumerate(names):
        for style, key in zip("-:", list(log.epochs[0]["dev"].get(name, {}))[:2] if log.epochs else [], strict=False):
            values = [(record["epoch"], record["dev"][name][key]) for record in log.epochs]
            right.plot(*zip(*values, strict=True), style, color=f"C{i}", marker="o", label=f"{name} {key}")
    right.set(xlabel="epoch", ylabel="dev metric", title="dev", xticks=epochs)
    for axes in (left, right):
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
