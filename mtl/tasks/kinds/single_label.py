"""single-label: one label of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from mtl.model import losses
from mtl.tasks.kinds.base import HeadKind
from mtl.tasks.pictures import draw_map


def class_index(value: Any, labels: Sequence[str]) -> int:
    """The index of a label by its name, or by its place (0, 1, ...) where no label is itself a number.

    Raises:
        ValueError: it is not among the labels; or it is a number that would be one label by its name and
            another by its place.
    """
    numbered = any(label.lstrip("-").isdecimal() for label in labels)
    number = isinstance(value, int) and not isinstance(value, bool)
    digits = number or (isinstance(value, str) and value.isdecimal())
    place = int(value) if digits and 0 <= int(value) < len(labels) else None
    name = labels.index(str(value)) if str(value) in labels else None
    if name is not None and place is not None and number and place != name:
        by_name, by_place = f"the label named {labels[name]!r}", f"the one at place {place} from 0, {labels[place]!r}"
        raise ValueError(f'is {value}, which could be {by_name} or {by_place}; expected its name, "{value}" in quotes')
    if name is not None:
        return name
    if place is not None and not numbered:
        return place
    raise ValueError(f"{value!r} is not declared; expected one of {', '.join(labels)}")


class SingleLabel(HeadKind):
    """One label of several: a label's name, or its place as a number (0, 1, ...) where no label is itself a number.

    Logits (texts, labels), of which the softmax gives probabilities; targets (texts,) int64.
    """

    name = "single-label"
    least_labels: ClassVar[int | None] = 2
    has_picture: ClassVar[bool] = True
    own_metrics: ClassVar[Mapping[str, int]] = {"accuracy": 1, "macro_f1": 1}

    def target(self, value: Any) -> int:
        return class_index(value, self.labels)

    def loss(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, int]:
        return losses.cross_entropy(outputs, targets)

    def scores(self, logits: Tensor) -> Tensor:
        return logits.softmax(dim=-1)

    def words(self, scores: Tensor) -> list[str]:
        return [self.labels[i] for i in scores.argmax(dim=1).tolist()]

    def measure(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """accuracy, and macro_f1 over all declared labels."""
        from sklearn.metrics import accuracy_score, f1_score

        truth, given, labels = targets.numpy(), outputs.argmax(dim=1).numpy(), list(range(len(self.labels)))
        macro_f1 = f1_score(truth, given, labels=labels, average="macro", zero_division=0)
        return {"accuracy": float(accuracy_score(truth, given)), "macro_f1": float(macro_f1)}

    def confusion(self, outputs: Tensor, targets: Tensor) -> list[list[int]]:
        from sklearn.metrics import confusion_matrix

        truth, given, labels = targets.numpy(), outputs.argmax(dim=1).numpy(), list(range(len(self.labels)))
        counts: list[list[int]] = confusion_matrix(truth, given, labels=labels).tolist()
        return counts

    def draw(self, axes: Any, vectors: Tensor, targets: Tensor) -> None:
        draw_map(axes, self.task.name, vectors, targets, self.labels)
