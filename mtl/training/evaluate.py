"""How good a model is at each task: scikit-learn's metrics over logits."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from mtl.encode.engine import Engine
from mtl.encode.multitask import MultiTaskModel
from mtl.encode.tasks import TaskSpec
from mtl.errors import TrainingError
from mtl.model.heads import scores
from mtl.model.packing import PackedBatch
from mtl.training.data import Examples

# Each kind's metrics; the first is the one by which a task is judged where none is named
METRICS = {
    "single-label": ("accuracy", "macro_f1"),
    "multi-label": ("macro_f1", "micro_f1", "accuracy"),
    "regression": ("spearman", "pearson", "rmse"),
}


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


def measure(task: TaskSpec, logits: Tensor, targets: Tensor) -> dict[str, float]:
    """A task's metrics.

    accuracy (for "multi-label", of whole sets of labels) and macro_f1 over the declared labels, which for
    "multi-label" comes with micro_f1; pearson, spearman and rmse for "regression".

    Raises:
        TrainingError: scikit-learn is not installed.
    """
    try:
        from scipy.stats import pearsonr, spearmanr
        from sklearn.metrics import accuracy_score, f1_score
    except ImportError:
        raise TrainingError("metrics need scikit-learn; pip install 'mtl[train]'") from None
    truth = targets.numpy()
    if task.kind == "regression":
        given, wanted = logits[:, 0].numpy(), truth[:, 0]
        rmse = float(np.sqrt(np.mean((given - wanted) ** 2)))
        if min(np.ptp(given), np.ptp(wanted)) == 0:  # no correlation is defined with a constant
            return {"pearson": 0.0, "spearman": 0.0, "rmse": rmse}
        return {
            "pearson": float(pearsonr(given, wanted).statistic),
            "spearman": float(spearmanr(given, wanted).statistic),
            "rmse": rmse,
        }
    if task.kind == "multi-label":
        given = (scores(task.kind, logits) >= 0.5).numpy()
        f1 = {f"{kind}_f1": float(f1_score(truth, given, average=kind, zero_division=0)) for kind in ("macro", "micro")}
        return {"accuracy": float(accuracy_score(truth, given)), **f1}
    given = logits.argmax(dim=1).numpy()
    labels = list(range(len(task.labels)))
    macro_f1 = f1_score(truth, given, labels=labels, average="macro", zero_division=0)
    return {"accuracy": float(accuracy_score(truth, given)), "macro_f1": float(macro_f1)}


def confusion(task: TaskSpec, logits: Tensor, targets: Tensor) -> list[list[int]]:
    """Counts of a single-label task: a row for each true label, a column for each predicted one."""
    from sklearn.metrics import confusion_matrix

    labels = list(range(len(task.labels)))
    counts: list[list[int]] = confusion_matrix(targets.numpy(), logits.argmax(dim=1).numpy(), labels=labels).tolist()
    return counts


def evaluate(
    model: MultiTaskModel, data: Mapping[str, Examples], threads: int | None = None
) -> tuple[dict[str, dict[str, float]], dict[str, list[list[int]]]]:
    """Every task's metrics on its examples, and the confusion matrices of the single-label ones."""
    metrics, matrices = {}, {}
    for name, examples in data.items():
        task = model.tasks[name]
        logits = task_logits(model, name, examples.rows, threads)
        metrics[name] = measure(task, logits, examples.targets)
        if task.kind == "single-label":
            matrices[name] = confusion(task, logits, examples.targets)
    return metrics, matrices


def check_metric(best: str, tasks: Mapping[str, TaskSpec]) -> None:
    """That "mean" or ``task.metric`` names a metric of these tasks.

    Raises:
        TrainingError: it does not.
    """
    known = [f"{name}.{metric}" for name, task in tasks.items() for metric in METRICS[task.kind]]
    if best != "mean" and best not in known:
        raise TrainingError(f"best is {best!r}; expected mean{''.join(f', {name}' for name in known)} (of dev data)")


def chosen_metric(best: str, tasks: Mapping[str, TaskSpec], metrics: Mapping[str, Mapping[str, float]]) -> float:
    """The value of ``task.metric``, or for "mean" the mean of the tasks' main ones; more is better."""
    if best == "mean":
        return sum(values[METRICS[tasks[name].kind][0]] for name, values in metrics.items()) / len(metrics)
    task, _, metric = best.partition(".")
    return -metrics[task][metric] if metric == "rmse" else metrics[task][metric]
