"""multi-label: any number of labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from mtl.kernels.activations import sigmoid
from mtl.model import losses
from mtl.tasks.kinds.base import HeadKind


def named_set(names: Sequence[Any], labels: Sequence[str]) -> list[float] | None:
    """The labels of these names; None where one of them is not declared."""
    given = {str(name) for name in names}
    return [float(label in given) for label in labels] if given <= set(labels) else None


def are_flags(values: Sequence[Any]) -> bool:
    return all(isinstance(value, (int, float)) and value in (0, 1) for value in values)


def multi_hot(values: Sequence[Any], labels: Sequence[str]) -> list[float] | None:
    """A 0 or 1 for each label, as it stands; None where it is something else."""
    return [float(value) for value in values] if are_flags(values) and len(values) == len(labels) else None


def label_set(value: Any, labels: Sequence[str]) -> list[float]:
    """1 for each label that a row has, 0 for the others, from a list of names, "a|b", or a 0 or 1 for each label.

    Raises:
        ValueError: it is none of these, or two of them with different outcomes.
    """
    if isinstance(value, list):
        names = value
        found = {"by name": named_set(names, labels), "as a 0 or 1 for each label": multi_hot(value, labels)}
    else:
        names = [part for part in value.split("|") if part] if isinstance(value, str) else [value]
        found = {"as one name": named_set([value], labels), "as names between |": named_set(names, labels)}
    readings = {how: reading for how, reading in found.items() if reading is not None}
    if not readings and isinstance(value, list) and are_flags(value):
        raise ValueError(f"is {value}; expected a 0 or 1 for each of the {len(labels)} labels, or names in a list")
    if not readings:
        undeclared = next(name for name in names if str(name) not in labels)
        forms = 'names in a list or as "a|b", or a list with a 0 or 1 for each'
        raise ValueError(f"{undeclared!r} is not declared; expected {forms} of {', '.join(labels)}")
    if len({tuple(reading) for reading in readings.values()}) > 1:
        said = [f"{likely_labels([reading], labels)[0]} {how}" for how, reading in readings.items()]
        raise ValueError(f"is {value!r}, which could be {' or '.join(said)}; rename the labels, or write names alone")
    return next(iter(readings.values()))


def likely_labels(scores: Sequence[Sequence[float]], labels: Sequence[str]) -> list[list[str]]:
    return [[labels[i] for i, score in enumerate(row) if score >= 0.5] for row in scores]


class MultiLabel(HeadKind):
    """Any number of labels: a list of names, names as "a|b", or a list with a 0 or 1 for each declared label.

    Logits (texts, labels), of which the sigmoid gives probabilities; targets (texts, labels), 0 or 1.
    """

    name = "multi-label"
    least_labels: ClassVar[int | None] = 1
    own_metrics: ClassVar[Mapping[str, int]] = {"macro_f1": 1, "micro_f1": 1, "accuracy": 1}

    def target(self, value: Any) -> list[float]:
        return label_set(value, self.labels)

    def loss(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, int]:
        return losses.binary_cross_entropy(outputs, targets)

    def scores(self, logits: Tensor) -> Tensor:
        return sigmoid(logits)  # torch's own has other bits where a tensor ends

    def words(self, scores: Tensor) -> list[list[str]]:
        return likely_labels(scores.tolist(), self.labels)

    def measure(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """macro_f1 over the labels, micro_f1 over all decisions, and accuracy of whole sets of labels."""
        from sklearn.metrics import accuracy_score, f1_score

        truth, given = targets.numpy(), (self.scores(outputs) >= 0.5).numpy()
        f1 = {f"{mean}_f1": float(f1_score(truth, given, average=mean, zero_division=0)) for mean in ("macro", "micro")}
        return {**f1, "accuracy": float(accuracy_score(truth, given))}
