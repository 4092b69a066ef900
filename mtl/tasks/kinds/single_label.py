"""single-label: one label of several."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mtl.model import losses
from mtl.tasks.examples import Examples
from mtl.tasks.kinds.base import HeadKind, HeadOptions
from mtl.tasks.kinds.classes import ClassKind, ClassOptions, evenly, slope_of_softmax
from mtl.tasks.pictures import draw_map
from mtl.tasks.tally import GIVEN, RIGHT, Tally, by_label, calibration_error, rates

NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)")


def as_number(value: Any) -> int | None:
    """A whole number, as it may stand in data: 2, "2", and where a column had blanks, 2.0 or "2.0"; None otherwise."""
    if isinstance(value, str):
        whole, _, rest = value.partition(".")
        fits = len(value) < 20 and whole.isdecimal() and not rest.strip("0") and not value.endswith(".")
        return int(whole) if fits else None
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and value == value // 1
    return int(value) if number else None


def names_of(value: Any) -> list[str]:
    """The names of a label that a value may be: null is not the label "None"."""
    number = as_number(value)
    own = [str(value)] if isinstance(value, (str, int, float)) else []
    return own if number is None else [*own, str(number)]


def class_index(value: Any, labels: Sequence[str]) -> int:
    """The index of a label by its name, or by its place (0, 1, ...) where no label is itself a number.

    Raises:
        ValueError: it is not among the labels; or it is a number that would be one label by its name and
            another by its place.
    """
    numbered = any(map(NUMBER.fullmatch, labels))
    number = as_number(value)
    place = number if number is not None and 0 <= number < len(labels) else None
    name = next((labels.index(text) for text in names_of(value) if text in labels), None)
    if name is not None and place is not None and not isinstance(value, str) and place != name:
        by_name, by_place = f"the label named {labels[name]!r}", f"the one at place {place} from 0, {labels[place]!r}"
        raise ValueError(f'is {value}, which could be {by_name} or {by_place}; expected its name, "{number}" in quotes')
    if name is not None:
        return name
    if place is not None and not numbered:
        return place
    raise ValueError(f"{value!r} is not declared; expected one of {', '.join(labels)}")


def is_place(value: Any, labels: Sequence[str]) -> bool:
    """Whether ``class_index`` takes a value as a label's place, and not as its name."""
    return as_number(value) is not None and not {*names_of(value)} & {*labels}


@dataclasses.dataclass(frozen=True)
class SingleLabelOptions(ClassOptions, HeadOptions):
    """Those of a head, and of classes."""

    def __post_init__(self) -> None:
        HeadOptions.__post_init__(self)
        ClassOptions.__post_init__(self)


class SingleLabel(ClassKind, HeadKind):
    """One label of several: a label's name, or its place as a number (0, 1, ...) where no label is itself a number.

    Logits (texts, labels), of which the softmax gives probabilities; targets (texts,) int64.
    """

    name = "single-label"
    Options: ClassVar[type] = SingleLabelOptions
    least_labels: ClassVar[int | None] = 2
    has_picture: ClassVar[bool] = True
    own_metrics: ClassVar[Mapping[str, int]] = {"accuracy": 1, "macro_f1": 1}

    def target(self, value: Any) -> int:
        return class_index(value, self.labels)

    def labels_in(self, target: int) -> list[str]:
        return [self.labels[target]]

    def by_place(self, value: Any) -> bool:
        return is_place(value, self.labels)

    def balanced(self, examples: Examples) -> dict[str, float]:
        return evenly(examples.targets.bincount(minlength=len(self.labels)), self.labels)

    def loss(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, float]:
        return losses.cross_entropy(outputs, targets, self.weights, self.options.label_smoothing)

    def count(self, targets: Tensor) -> float:
        return losses.weight_sum(targets, self.weights)

    def slope(self, logits: Tensor, targets: Tensor, factor: float) -> float:
        return slope_of_softmax(logits, targets, factor)

    def scores(self, logits: Tensor) -> Tensor:
        return logits.softmax(dim=-1)

    def words(self, scores: Tensor) -> list[str]:
        return [self.labels[i] for i in scores.argmax(dim=1).tolist()]

    def measure(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """accuracy, and macro_f1 over all declared labels."""
        return self.of_sums(self.tallied(outputs, targets).sums())

    def tallied(self, outputs: Tensor, targets: Tensor) -> Tally:
        found, given = (F.one_hot(x, len(self.labels)).bool().numpy() for x in (outputs.argmax(dim=1), targets))
        return Tally.of(found, given)

    def tally(self, outputs: Tensor, examples: Examples) -> Tally:
        return self.tallied(outputs, examples.targets)

    def of_sums(self, counts: NDArray[np.float64]) -> dict[str, float]:
        accuracy = counts[:, RIGHT].sum() / max(1, counts[:, GIVEN].sum())
        return {"accuracy": float(accuracy), "macro_f1": float(rates(counts)["f1"].mean())}

    def detailed(self, outputs: Tensor, examples: Examples) -> dict[str, float]:
        confidence, said = self.scores(outputs).double().max(dim=1)
        error = calibration_error(confidence.numpy(), (said == examples.targets).numpy())
        counts = self.tally(outputs, examples).sums()
        return {**self.of_sums(counts), "ece": error, **by_label(self.labels, counts)}

    def confusion(self, outputs: Tensor, targets: Tensor) -> list[list[int]]:
        from sklearn.metrics import confusion_matrix

        truth, given, labels = targets.numpy(), outputs.argmax(dim=1).numpy(), list(range(len(self.labels)))
        counts: list[list[int]] = confusion_matrix(truth, given, labels=labels).tolist()
        return counts

    def draw(self, axes: Any, vectors: Tensor, targets: Tensor) -> None:
        draw_map(axes, self.task.name, vectors, targets, self.labels)
