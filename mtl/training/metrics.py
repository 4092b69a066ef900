"""How good a model is at each task: scikit-learn's metrics over logits."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from mtl.encode.batching import in_order
from mtl.encode.engine import Engine
from mtl.errors import TrainingError, extra, shown
from mtl.tasks.examples import Examples
from mtl.tasks.multitask import MultiTaskModel
from mtl.tasks.spec import TaskSpec
from mtl.training.distributed import ALONE, Processes
from mtl.training.report import Confusions


def task_logits(
    model: MultiTaskModel, task: str, examples: Examples, threads: int | None = None, ranks: Processes = ALONE
) -> Tensor:
    """A task's logits (rows, outputs), those of tokens (tokens of all rows, outputs), or vectors (rows, texts, dim).

    They are on the CPU. Each process computes a part.
    """
    own, tokens = [*range(ranks.rank, len(examples.rows), ranks.count)], model.tasks[task].handler.level == "token"
    engine = Engine(model.outputs_of(task), model.embedder.device, threads=threads)
    order, parts = engine.computed([examples.rows[i] for i in own] or examples.rows[:1])
    lengths = [*map(len, examples.rows)] if tokens else [1] * len(examples.rows)
    part = in_order(parts, order, [lengths[i] for i in own or [0]] if tokens else None).cpu()
    outputs = part.new_zeros(sum(lengths), part.shape[1])
    whole = outputs.split(lengths)
    for i, found in zip(own, part.split([lengths[i] for i in own or [0]]), strict=False):
        whole[i].copy_(found)
    ranks.all_reduce(outputs)
    return outputs.unflatten(0, (-1, examples.width)) if examples.width > 1 else outputs


def all_logits(
    model: MultiTaskModel, data: Mapping[str, Examples], threads: int | None = None, ranks: Processes = ALONE
) -> dict[str, Tensor]:
    """Each task's logits on its examples."""
    return {name: task_logits(model, name, examples, threads, ranks) for name, examples in data.items()}


def measure(
    tasks: Mapping[str, TaskSpec], logits: Mapping[str, Tensor], data: Mapping[str, Examples], closely: bool = False
) -> dict[str, dict[str, float]]:
    """Each task's metrics, with ``closely`` those of each class, too, and of the probabilities; a TrainingError without
    scikit-learn, or for outputs that are not finite."""
    if broken := [name for name, x in logits.items() if not x.isfinite().all()]:
        raise TrainingError(f"task {broken[0]!r}: the model's outputs are not finite; look for damage in its weights")
    handlers = {name: tasks[name].handler for name in logits}
    try:
        return {
            name: {**(of.detailed if closely else of.measured)(logits[name], data[name]),
                   **own_values(tasks[name], logits[name], data[name])}
            for name, of in handlers.items()
        }  # fmt: skip
    except ImportError:
        raise TrainingError(f"metrics need scikit-learn; {extra('train')}") from None


def own_values(task: TaskSpec, outputs: Tensor, examples: Examples) -> dict[str, float]:
    """The registered metrics of a task; one that gives no finite number is a TrainingError."""
    found = {}
    for name, own in task.registered_metrics.items():
        value = own.function(*task.handler.labelled_examples(outputs, examples))
        try:
            found[name] = float(value)
        except (TypeError, ValueError):
            found[name] = math.nan
        if not math.isfinite(found[name]):
            raise TrainingError(f"task {task.name!r}: the metric {name!r} is {shown(value)}; expected a finite number")
    return found


def fitted_on_dev(
    tasks: Mapping[str, TaskSpec], logits: Mapping[str, Tensor], data: Mapping[str, Examples]
) -> tuple[dict[str, TaskSpec], dict[str, Tensor]]:
    """Tasks with what they would keep of these dev data, as their thresholds, and the logits that they have then."""
    found = {name: tasks[name].handler.fitted_on_dev(x, data[name])[0] for name, x in logits.items()}
    changed = {name: task.handler for name, task in found.items() if task is not tasks[name]}
    return found, {name: changed[name].in_units(x) if name in changed else x for name, x in logits.items()}


def confusions(tasks: Mapping[str, TaskSpec], logits: Mapping[str, Tensor], data: Mapping[str, Examples]) -> Confusions:
    """The confusion matrices of the tasks whose kind has one."""
    return {
        name: counts for name, x in logits.items() if (counts := tasks[name].handler.confusion(x, data[name].targets))
    }


def check_metric(best: str, tasks: Mapping[str, TaskSpec]) -> None:
    """Raise a TrainingError if neither "mean" nor ``task.metric`` of these tasks is named."""
    known = [f"{name}.{metric}" for name, task in tasks.items() for metric in task.metrics]
    if best != "mean" and best not in known:
        raise TrainingError(f"best is {best!r}; expected mean{''.join(f', {name}' for name in known)} (of dev data)")


def chosen_metric(best: str, tasks: Mapping[str, TaskSpec], metrics: Mapping[str, Mapping[str, float]]) -> float:
    """The value of ``task.metric``, or for "mean" the mean of the tasks' main ones; more is better."""
    if best == "mean":
        return sum(values[tasks[name].handler.main_metric] for name, values in metrics.items()) / len(metrics)
    task, _, metric = best.partition(".")
    return metrics[task][metric] * metric_sign(best, tasks)


def metric_sign(best: str, tasks: Mapping[str, TaskSpec]) -> int:
    """1 where more of "mean" or ``task.metric`` is better, else -1."""
    task, _, metric = best.partition(".")
    return 1 if best == "mean" else tasks[task].metrics[metric]
