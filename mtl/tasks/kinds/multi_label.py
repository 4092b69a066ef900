"""multi-label: any number of labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtl.errors import shown
from mtl.kernels.activations import sigmoid
from mtl.model import losses
from mtl.tasks.examples import Examples
from mtl.tasks.fields import unexpected
from mtl.tasks.kinds.classes import LabelKind, LabelOptions
from mtl.tasks.labels import are_flags, chosen, found_names, label_set, names_in
from mtl.tasks.tally import GIVEN, RIGHT, Tally, by_label, calibration_error, rates

if TYPE_CHECKING:
    from mtl.tasks.spec import TaskSpec


@dataclasses.dataclass(frozen=True)
class MultiLabelOptions(LabelOptions):
    """From which probability on a label is said.

    thresholds: A probability for each label, or one for all; 0.5 by default.
    fit_thresholds: Take for each label the one at which its F1 on the dev data is highest, of the best epoch, unless
        ``thresholds`` are given.
    """

    thresholds: tuple[float, ...] = ()
    fit_thresholds: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(0 <= x <= 1 for x in self.thresholds):
            raise unexpected("thresholds", self.thresholds, "numbers from 0 to 1", "are")


class MultiLabel(LabelKind):
    """Any number of labels: a list of names, names as "a|b", or a list with a 0 or 1 for each declared label.

    Logits (texts, labels), of which the sigmoid gives probabilities; targets (texts, labels), 0 or 1. The metrics are
    macro_f1 over the labels, micro_f1 over all decisions, and accuracy of whole sets of labels.
    """

    name = "multi-label"
    Options: ClassVar[type] = MultiLabelOptions
    options: MultiLabelOptions
    least_labels: ClassVar[int | None] = 1
    own_metrics: ClassVar[Mapping[str, int]] = {"macro_f1": 1, "micro_f1": 1, "accuracy": 1}

    def __init__(self, task: TaskSpec) -> None:
        super().__init__(task)
        given = self.options.thresholds if self.labels else ()  # without labels, they are not known yet
        given = given or (0.5,)
        if len(given) not in (1, len(self.labels)):
            raise unexpected("thresholds", given, f"one, or one for each of the {len(self.labels)} labels", "are")
        self.thresholds = torch.tensor(given, dtype=torch.float32, device="cpu").expand(len(self.labels))

    def target(self, value: Any) -> Sequence[Any]:
        """A 0 or 1 for each label, or names, where the task's are not known yet."""
        if self.labels:
            return label_set(value, self.labels)
        listed = value if isinstance(value, list) else names_in(value) if isinstance(value, str) else [value]
        if listed and are_flags(listed):
            raise ValueError(
                f"is {shown(value)}; expected names, or labels = [...] in the recipe, of which 0 and 1 say"
            )
        return found_names(listed)

    def labels_in(self, target: Sequence[Any]) -> list[str]:
        return chosen(target, self.labels) if self.labels else [*target]

    def spelled(self, fields: Mapping[str, Any]) -> list[str]:
        return names_in(fields.get(self.task.label_field))

    def is_blank(self, value: Any) -> bool:
        """Never: an empty string is a row without any of the labels."""
        return False

    def balanced(self, examples: Examples) -> dict[str, float]:
        held = examples.targets.double().sum(dim=0)
        pairs = zip(self.labels, held.tolist(), strict=True)
        return {label: (len(examples) - n) / n for label, n in pairs if 0 < n < len(examples)}

    def loss(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, float]:
        return losses.binary_cross_entropy(outputs, targets, self.weights, self.options.label_smoothing)

    def slope(self, logits: Tensor, targets: Tensor, factor: float) -> float:
        return float((((factor * logits).sigmoid() - targets) * logits).sum())

    def about(self) -> dict[str, Any]:
        return super().about() | ({"thresholds": self.thresholds.tolist()} if self.options.thresholds else {})

    @property
    def wants_dev(self) -> str:
        return super().wants_dev or ("fit_thresholds" if self.fits_thresholds else "")

    @property
    def fits_thresholds(self) -> bool:
        return self.options.fit_thresholds and not self.options.thresholds

    def fitted_on_dev(self, outputs: Tensor, examples: Examples) -> tuple[TaskSpec, list[str]]:
        task, notes = super().fitted_on_dev(outputs, examples)
        if not self.fits_thresholds:
            return task, notes
        scores = self.scores(outputs if task is self.task else task.handler.in_units(outputs))
        found = [best_threshold(x, y) for x, y in zip(scores.T, examples.targets.T, strict=True)]
        said = ", ".join(f"{label} {x:.3f}" for label, x in zip(self.labels, found, strict=True))
        notes = [*notes, f"{self.task.name}: thresholds fitted on dev: {said}"]
        return dataclasses.replace(task, thresholds=tuple(found)), notes

    def scores(self, logits: Tensor) -> Tensor:
        return sigmoid(logits)  # torch.sigmoid gives the last few values of a tensor other bits

    def words(self, scores: Tensor) -> list[list[str]]:
        return [chosen(row, self.labels) for row in self.said(scores).tolist()]

    def said(self, scores: Tensor) -> Tensor:
        """Which labels are said of texts: (texts, labels) bool."""
        return scores >= self.thresholds.to(scores.device)

    def tallied(self, outputs: Tensor, targets: Tensor) -> Tally:
        """Of the labels, and behind them of whole sets of labels."""
        found, given = self.said(self.scores(outputs)), targets > 0.5
        same = (found == given).all(dim=1, keepdim=True)
        every = torch.ones_like(same)
        return Tally.of(torch.cat([found, same], dim=1).numpy(), torch.cat([given, every], dim=1).numpy())

    def of_sums(self, counts: NDArray[np.float64]) -> dict[str, float]:
        labels, whole = counts[:-1], counts[-1]
        macro, micro = float(rates(labels)["f1"].mean()), float(rates(labels.sum(axis=0))["f1"])
        return {"macro_f1": macro, "micro_f1": micro, "accuracy": float(whole[RIGHT] / max(1, whole[GIVEN]))}

    def detailed(self, outputs: Tensor, examples: Examples) -> dict[str, float]:
        """The calibration error is that of all decisions, between a label's probability and how often it is there."""
        error = calibration_error(self.scores(outputs).double().flatten().numpy(), examples.targets.flatten().numpy())
        counts = self.tally(outputs, examples).sums()
        return {**self.of_sums(counts), "ece": error, **by_label(self.labels, counts)}


def best_threshold(scores: Tensor, targets: Tensor) -> float:
    """The threshold with the highest F1 of scores and targets (rows,): in the middle of two neighbouring scores.

    Of several it is the one nearest to 0.5, which is also that of a label that no row has.
    """
    given = targets > 0.5
    if not given.any():
        return 0.5
    values = scores.unique()  # in order
    cuts = torch.cat([values[:1], (values[:-1] + values[1:]) / 2, scores.new_tensor([0.5])])

    def from_on(sorted_scores: Tensor) -> Tensor:
        """How many of the scores are found by each cut."""
        return len(sorted_scores) - torch.searchsorted(sorted_scores, cuts)

    f1 = 2 * from_on(scores[given].sort()[0]).double() / (from_on(scores.sort()[0]) + given.sum())
    best = cuts[f1 >= f1.max() - 1e-12]
    return float(best[(best - 0.5).abs().argmin()])
