"""single-label: one label of several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mtl.model import losses
from mtl.tasks.examples import Examples
from mtl.tasks.kinds.classes import LabelKind, evenly
from mtl.tasks.labels import class_index, found_names, is_place
from mtl.tasks.pictures import draw_map
from mtl.tasks.tally import GIVEN, RIGHT, Tally, by_label, calibration_error, rates


class SingleLabel(LabelKind):
    """One label of several: a label's name, or its place as a number (0, 1, ...) where no label is itself a number.

    Logits (texts, labels), of which the softmax gives probabilities; targets (texts,) int64. The metrics are accuracy,
    and macro_f1 over all declared labels.
    """

    name = "single-label"
    least_labels: ClassVar[int | None] = 2
    has_picture: ClassVar[bool] = True
    own_metrics: ClassVar[Mapping[str, int]] = {"accuracy": 1, "macro_f1": 1}

    def target(self, value: Any) -> int | str:
        return class_index(value, self.labels) if self.labels else found_names([value])[0]

    def labels_in(self, target: int | str) -> list[str]:
        return [target if isinstance(target, str) else self.labels[target]]

    def by_place(self, value: Any) -> bool:
        return is_place(value, self.labels)

    def balanced(self, examples: Examples) -> dict[str, float]:
        return evenly(examples.targets.bincount(minlength=len(self.labels)), self.labels)

    def loss(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, float]:
        return losses.cross_entropy(outputs, targets, self.weights, self.options.label_smoothing)

    def scores(self, logits: Tensor) -> Tensor:
        return logits.softmax(dim=-1)

    def words(self, scores: Tensor) -> list[str]:
        return [self.labels[i] for i in scores.argmax(dim=1).tolist()]

    def tallied(self, outputs: Tensor, targets: Tensor) -> Tally:
        found, given = (F.one_hot(x, len(self.labels)).bool().numpy() for x in (outputs.argmax(dim=1), targets))
        return Tally.of(found, given)

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
