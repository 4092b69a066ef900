"""regression: a number."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from mtl.errors import shown
from mtl.model import losses
from mtl.tasks.correlation import errors
from mtl.tasks.examples import Examples
from mtl.tasks.fields import unexpected
from mtl.tasks.kinds.base import HeadKind, HeadOptions
from mtl.tasks.shares import levels
from mtl.tasks.tally import Sampled, Weights

if TYPE_CHECKING:
    from mtl.checkpoints.load import Classifier
    from mtl.tasks.spec import TaskSpec

LARGEST = torch.finfo(torch.float32).max


def finite_number(value: Any) -> float:
    """A number that float32 can hold; anything else is a ValueError."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not abs(number) <= LARGEST:
        raise ValueError(f"is {shown(value)}; expected a finite number, at most 3.4e38")
    return number


@dataclasses.dataclass(frozen=True)
class RegressionOptions(HeadOptions):
    """The scale of the numbers.

    target_scale: The mean and the deviation of the numbers, in whose units the head computes; [0, 1] takes them as
    they are. By default training takes them from its data, and the model keeps them.
    """

    target_scale: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        mean, deviation, *rest = (*self.target_scale, math.nan, math.nan) if self.target_scale else (0.0, 1.0)
        if len(rest) not in (0, 2) or not abs(mean) <= LARGEST or not 0 < deviation <= LARGEST:
            raise unexpected("target_scale", self.target_scale, "a mean, and a deviation above 0")


class Regression(HeadKind):
    """A number: values (texts, 1), targets (texts, 1) float64.

    The head computes (number - mean) / deviation of the training data's numbers, so that prices are learned as ratings
    are. Predictions and metrics are in the numbers' own units.
    """

    name = "regression"
    Options: ClassVar[type] = RegressionOptions
    uncertainty: ClassVar[float] = 0.5
    own_metrics: ClassVar[Mapping[str, int]] = {"spearman": 1, "pearson": 1, "rmse": -1}

    @property
    def scale(self) -> tuple[float, float]:
        """The mean and the deviation; a model of before they were kept has none, and computes numbers as they are."""
        mean, deviation = self.options.target_scale or (0.0, 1.0)
        return mean, deviation

    def target(self, value: Any) -> list[float]:
        return [finite_number(value)]

    def strata(self, targets: Sequence[list[float]]) -> list[str]:
        return levels([number for (number,) in targets])

    def stacked(self, targets: Sequence[list[float]]) -> Tensor:
        return torch.tensor(targets, dtype=torch.float64)  # dates in seconds differ by less than float32 tells apart

    def continued(self, before: TaskSpec) -> TaskSpec | None:
        scale = before.target_scale or (0.0, 1.0)  # the head's weights are for these units
        if super().continued(before) is None or (self.task.target_scale or scale) != scale:
            return None
        return dataclasses.replace(self.task, target_scale=scale)

    def begins_with(self, theirs: Classifier) -> bool:
        same = theirs.problem_type == "regression" and not theirs.activation
        return same and super().begins_with(dataclasses.replace(theirs, labels=()))  # a number has no label

    def fitted(self, examples: Examples) -> TaskSpec:
        """The task, with the mean and the deviation of these numbers; numbers that are all equal have a deviation of 1.

        What the task declares stays.
        """
        if self.options.target_scale:
            return self.task
        numbers = examples.targets.double()
        numbers = numbers[numbers.isfinite()]  # of others, the loop says that the loss is not finite
        mean, deviation = float(numbers.mean()), float(numbers.std(correction=0))
        even = deviation <= 1e-12 * abs(mean)  # no more than the mean's own rounding
        return dataclasses.replace(self.task, target_scale=(mean, 1.0 if even else deviation))

    def loss(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, float]:
        mean, deviation = self.scale
        return losses.squared_error(outputs, ((targets - mean) / deviation).to(outputs.dtype))

    def in_units(self, outputs: Tensor) -> Tensor:
        if self.scale == (0.0, 1.0):
            return outputs
        mean, deviation = self.scale
        return (outputs.double() * deviation + mean).clamp(-LARGEST, LARGEST).to(outputs.dtype)

    def folded(self, head: Mapping[str, Tensor]) -> dict[str, Tensor]:
        mean, deviation = self.scale
        weight, bias = head["classifier.weight"].double() * deviation, head["classifier.bias"].double() * deviation
        return {**head, "classifier.weight": weight.float(), "classifier.bias": (bias + mean).float()}

    def sampled(self, outputs: Tensor, examples: Examples) -> Sampled:
        def of(weights: Weights) -> dict[str, float]:
            rows = torch.arange(len(weights)).repeat_interleave(torch.from_numpy(weights))
            return self.measure(outputs[rows], examples.targets[rows])

        return of

    def words(self, scores: Tensor) -> list[float]:
        return [row[0] for row in scores.tolist()]

    def measure(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """The correlations of Spearman and Pearson, and the root of the mean squared error."""
        return errors(outputs[:, 0].double().numpy(), targets[:, 0].double().numpy())
