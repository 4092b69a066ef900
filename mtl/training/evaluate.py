"""How good a model is at each task: scikit-learn's metrics over logits."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mtl.encode.engine import Engine
from mtl.encode.kinds import KINDS
from mtl.encode.multitask import MultiTaskModel
from mtl.encode.tasks import TaskSpec
from mtl.errors import TrainingError
from mtl.model.packing import PackedBatch
from mtl.training.data import Examples


def task_logits(model: MultiTaskModel, task: str, rows: list[list[int]], threads: int | None = None) -> Tensor:
    """A task's logits (texts, outputs), on the CPU. The model is in eval mode meanwhile."""
    training = model.training
    model.eval()

    def forward(batch: PackedBatch) -> Tensor:
        return model.branch(task)(model.encoder(batch), batch)

    try:
        return Engine(forward, model.embedder.device, threads=threads, per_text=True).run(rows).float().cpu()
    finally:
        model.train(training)


def evaluate(
    model: MultiTaskModel, data: Mapping[str, Examples], threads: int | None = None
) -> tuple[dict[str, dict[str, float]], dict[str, list[list[int]]]]:
    """Every task's metrics on its examples, and the confusion matrices of those kinds that have one.

    Raises:
        TrainingError: scikit-learn is not installed.
    """
    metrics, matrices = {}, {}
    for name, examples in data.items():
        task = model.tasks[name]
        kind = KINDS[task.kind]
        logits = task_logits(model, name, examples.rows, threads)
        try:
            metrics[name] = kind.measure(logits, examples.targets, len(task.labels))
            if kind.confusion:
                matrices[name] = kind.confusion(logits, examples.targets, len(task.labels))
        except ImportError:
            raise TrainingError("metrics need scikit-learn; pip install 'mtl[train]'") from None
    return metrics, matrices


def check_metric(best: str, tasks: Mapping[str, TaskSpec]) -> None:
    """That "mean" or ``task.metric`` names a metric of these tasks.

    Raises:
        TrainingError: it does not.
    """
    known = [f"{name}.{metric}" for name, task in tasks.items() for metric in KINDS[task.kind].metrics]
    if best != "mean" and best not in known:
        raise TrainingError(f"best is {best!r}; expected mean{''.join(f', {name}' for name in known)} (of dev data)")


def chosen_metric(best: str, tasks: Mapping[str, TaskSpec], metrics: Mapping[str, Mapping[str, float]]) -> float:
    """The value of ``task.metric``, or for "mean" the mean of the tasks' main ones; more is better."""
    if best == "mean":
        return sum(values[KINDS[tasks[name].kind].main_metric] for name, values in metrics.items()) / len(metrics)
    task, _, metric = best.partition(".")
    return metrics[task][metric] * KINDS[tasks[task].kind].metrics[metric]
