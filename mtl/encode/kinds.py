"""The kinds of task: for each one record with all that sets it apart, so that a new kind is one edit.

A kind's functions stand above its record; ``KINDS`` at the end lists the records. scikit-learn and SciPy are
imported where metrics are computed and nowhere else: they are an extra.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from mtl.model import losses

Target = int | list[float]


@dataclasses.dataclass(frozen=True)
class Kind:
    """What sets one kind of task apart.

    least_labels: How many labels a task must declare; None: it has none.
    loss: Of logits (rows, outputs) and targets (rows, ...), the summed loss and the number of labels in it.
    scores: What the logits say, in numbers that people read: (rows, outputs).
    target: A label as it stands in the data, given the declared labels, as what the loss takes. A ValueError
        says what is wrong with it, as the end of a sentence that begins with the field's name.
    words: What scores mean: one value per row, given the declared labels.
    metrics: Each metric's name, with 1 where more is better and -1 where less is. The first is the main one.
    measure: All of these, of logits, targets and the number of labels.
    confusion: Counts by true and by predicted label, where that makes sense; it takes what ``measure`` takes.
    texts: How many texts a row has.
    uncertainty: What the loss is multiplied by under learned loss weights (see training/optim.py).
    """

    name: str
    least_labels: int | None
    loss: Callable[[Tensor, Tensor], tuple[Tensor, int]]
    scores: Callable[[Tensor], Tensor]
    target: Callable[[Any, Sequence[str]], Target]
    words: Callable[[Tensor, Sequence[str]], list[Any]]
    metrics: Mapping[str, int]
    measure: Callable[[Tensor, Tensor, int], dict[str, float]]
    confusion: Callable[[Tensor, Tensor, int], list[list[int]]] | None = None
    texts: int = 1
    uncertainty: float = 1.0

    @property
    def main_metric(self) -> str:
        return next(iter(self.metrics))


# Labels by name


def class_index(value: Any, labels: Sequence[str]) -> int:
    """The index of a label by its name, or by its number where no label is itself a number.

    Raises:
        ValueError: it is not among the labels.
    """
    if str(value) in labels:
        return labels.index(str(value))
    numbered = not any(label.lstrip("-").isdigit() for label in labels) and not isinstance(value, bool)
    if numbered and str(value).isdecimal() and int(value) < len(labels):
        return int(value)
    raise ValueError(f"{value!r} is not declared; expected one of {', '.join(labels)}")


# One label of several


def best_label(scores: Tensor, labels: Sequence[str]) -> list[str]:
    return [labels[i] for i in scores.argmax(dim=1).tolist()]


def single_label_metrics(logits: Tensor, targets: Tensor, labels: int) -> dict[str, float]:
    """accuracy, and macro_f1 over all declared labels."""
    from sklearn.metrics import accuracy_score, f1_score

    truth, given = targets.numpy(), logits.argmax(dim=1).numpy()
    macro_f1 = f1_score(truth, given, labels=list(range(labels)), average="macro", zero_division=0)
    return {"accuracy": float(accuracy_score(truth, given)), "macro_f1": float(macro_f1)}


def confusion(logits: Tensor, targets: Tensor, labels: int) -> list[list[int]]:
    """A row for each true label, a column for each predicted one."""
    from sklearn.metrics import confusion_matrix

    given = logits.argmax(dim=1).numpy()
    counts: list[list[int]] = confusion_matrix(targets.numpy(), given, labels=list(range(labels))).tolist()
    return counts


SINGLE_LABEL = Kind(
    name="single-label",
    least_labels=2,
    loss=losses.cross_entropy,
    scores=lambda logits: logits.softmax(dim=-1),
    target=class_index,
    words=best_label,
    metrics={"accuracy": 1, "macro_f1": 1},
    measure=single_label_metrics,
    confusion=confusion,
)


# Any number of labels


def label_set(value: Any, labels: Sequence[str]) -> list[float]:
    """1 for each label that a row has, 0 for the others."""
    named = value if isinstance(value, list) else [part for part in str(value or "").split("|") if part]
    indices = [class_index(item, labels) for item in named]
    return [float(i in indices) for i in range(len(labels))]


def likely_labels(scores: Tensor, labels: Sequence[str]) -> list[list[str]]:
    return [[labels[i] for i, score in enumerate(row) if score >= 0.5] for row in scores.tolist()]


def multi_label_metrics(logits: Tensor, targets: Tensor, labels: int) -> dict[str, float]:
    """accuracy of whole sets of labels, macro_f1 over the labels and micro_f1 over all decisions."""
    from sklearn.metrics import accuracy_score, f1_score

    truth, given = targets.numpy(), (logits.sigmoid() >= 0.5).numpy()
    f1 = {f"{mean}_f1": float(f1_score(truth, given, average=mean, zero_division=0)) for mean in ("macro", "micro")}
    return {"accuracy": float(accuracy_score(truth, given)), **f1}


MULTI_LABEL = Kind(
    name="multi-label",
    least_labels=1,
    loss=losses.binary_cross_entropy,
    scores=lambda logits: logits.sigmoid(),
    target=label_set,
    words=likely_labels,
    metrics={"macro_f1": 1, "micro_f1": 1, "accuracy": 1},
    measure=multi_label_metrics,
)


# A number


def finite_number(value: Any, labels: Sequence[str]) -> list[float]:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"is {value!r}; expected a finite number")
    return [number]


def regression_metrics(values: Tensor, targets: Tensor, labels: int) -> dict[str, float]:
    """The correlations of Pearson and Spearman, and the root of the mean squared error."""
    from scipy.stats import pearsonr, spearmanr

    given, wanted = values[:, 0].numpy(), targets[:, 0].numpy()
    rmse = float(np.sqrt(np.mean((given - wanted) ** 2)))
    if min(np.ptp(given), np.ptp(wanted)) == 0:  # no correlation is defined with a constant
        return {"pearson": 0.0, "spearman": 0.0, "rmse": rmse}
    return {
        "pearson": float(pearsonr(given, wanted).statistic),
        "spearman": float(spearmanr(given, wanted).statistic),
        "rmse": rmse,
    }


REGRESSION = Kind(
    name="regression",
    least_labels=None,
    loss=losses.squared_error,
    scores=lambda values: values,
    target=finite_number,
    words=lambda values, labels: [row[0] for row in values.tolist()],
    metrics={"spearman": 1, "pearson": 1, "rmse": -1},
    measure=regression_metrics,
    uncertainty=0.5,
)

KINDS = {kind.name: kind for kind in (SINGLE_LABEL, MULTI_LABEL, REGRESSION)}
