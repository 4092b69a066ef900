"""What kinds with classes have in common: weights of classes, smoothed labels, and probabilities fitted to dev data."""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from mtl.errors import RecipeError, shown
from mtl.model.losses import weight_sum
from mtl.tasks.examples import Examples
from mtl.tasks.fields import unexpected
from mtl.tasks.kinds.base import HeadKind, HeadOptions, Kind, Target
from mtl.tasks.labels import ordered
from mtl.tasks.tally import Sampled, Tally

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mtl.tasks.spec import TaskSpec

BALANCED = "balanced"
SHARPEST = 20.0  # what logits are multiplied by at most, and divided by, to fit dev data


@dataclasses.dataclass(frozen=True)
class ClassOptions:
    """How classes count, and how probabilities are made of logits.

    class_weights: A table of how often each label's rows count, 1 where it names none; or "balanced", by which all
        labels count alike: rows / (labels * rows of the label). Of "multi-label" it is the rows that have the label
        which count so often, "balanced" rows without / rows with; of "tokens" the words, and tags can be named too. The
        loss of a window is its weighted mean, sum(weight * loss) / sum(weight), in whatever parts it is computed.
    label_smoothing: The share of a target that is spread over all classes evenly (Szegedy et al. 2016).
    calibrate: Divide the logits by the temperature at which the dev data are likeliest (Guo et al. 2017, arXiv
        1706.04599), of the best epoch. No label changes where the likeliest one is said.
    temperature: What logits are divided by; ``calibrate`` finds it, unless it is given.
    """

    class_weights: Literal["balanced"] | dict[str, float] | None = None
    label_smoothing: float = 0.0
    calibrate: bool = False
    temperature: float | None = None

    def __post_init__(self) -> None:
        given, expected = self.class_weights, f'"{BALANCED}", or a table of numbers above 0 by label'
        if given is not None and given != BALANCED and not (isinstance(given, dict) and given):
            raise unexpected("class_weights", given, expected, "are")
        for label, weight in given.items() if isinstance(given, dict) else ():
            number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
            if not number or not 0 < weight < math.inf:
                raise RecipeError(f"class_weights has {shown(weight)} for {label!r}; expected {expected}",
                                  "class_weights")  # fmt: skip
        if not 0 <= self.label_smoothing < 1:
            raise unexpected("label_smoothing", self.label_smoothing, "a number from 0 up to, not including, 1")
        if self.temperature is not None and not 0 < self.temperature < math.inf:
            raise unexpected("temperature", self.temperature, "more than 0")


class ClassKind(Kind):
    """A kind whose targets are classes. Its ``Options`` have those of ``ClassOptions``."""

    options: ClassOptions
    Options: ClassVar[type] = ClassOptions

    def __init__(self, task: TaskSpec) -> None:
        super().__init__(task)
        self.weights = self.weights_of(self.options.class_weights)

    @property
    def weighed(self) -> Mapping[str, Sequence[int]]:
        """What can have a weight, with the outputs that it is about; where two are about one, the last one counts."""
        return {label: [i] for i, label in enumerate(self.labels)}

    def weights_of(self, given: str | Mapping[str, float] | None) -> Tensor | None:
        """The weight of each output, (outputs,) float64; None where all have the same, or it is not known yet. A label
        that the task has not is a RecipeError."""
        if not isinstance(given, Mapping) or not self.weighed:
            return None
        if unknown := [name for name in given if name not in self.weighed]:
            expected = f"labels of {', '.join(self.weighed)}"
            raise RecipeError(f"class_weights has {shown(unknown[0])}; expected {expected}", "class_weights")
        weights = torch.ones(self.outputs, dtype=torch.float64)
        for name in (name for name in self.weighed if name in given):
            weights[list(self.weighed[name])] = float(given[name])
        return weights

    @abstractmethod
    def balanced(self, examples: Examples) -> dict[str, float]:
        """The weights with which all classes count alike; a class that has no rows, or all, is left out."""

    def fitted(self, examples: Examples) -> TaskSpec:
        if self.options.class_weights != BALANCED:
            return self.task
        return dataclasses.replace(self.task, class_weights=self.balanced(examples) or None)

    def count(self, targets: Tensor) -> float:
        return weight_sum(targets, self.weights)

    # Probabilities

    def in_units(self, outputs: Tensor) -> Tensor:
        """The logits at the task's temperature."""
        temperature = self.options.temperature
        return outputs if temperature is None else outputs / temperature

    def folded(self, head: Mapping[str, Tensor]) -> dict[str, Tensor]:
        temperature = self.options.temperature or 1.0
        return {name: x / temperature if name.startswith("classifier.") else x for name, x in head.items()}

    def about(self) -> dict[str, Any]:
        return {} if self.options.temperature is None else {"temperature": self.options.temperature}

    @property
    def wants_dev(self) -> str:
        return "calibrate" if self.options.calibrate and self.options.temperature is None else ""

    def slope(self, logits: Tensor, targets: Tensor, factor: float) -> float:
        """The derivative of the summed loss of ``factor * logits`` by the factor; this is cross-entropy's."""
        expected = ((factor * logits).softmax(dim=1) * logits).sum(dim=1)
        return float((expected - logits.gather(1, targets.long()[:, None])[:, 0]).sum())

    def fitted_on_dev(self, outputs: Tensor, examples: Examples) -> tuple[TaskSpec, list[str]]:
        if not self.options.calibrate or self.options.temperature is not None:
            return self.task, []
        logits, targets = self.labelled_examples(outputs, examples)
        factor = zero_of(lambda factor: self.slope(logits.double(), targets, factor))
        if factor is None:
            given = f"no temperature from {1 / SHARPEST:g} to {SHARPEST:g} is the likeliest"
            return self.task, [f"{self.task.name}: {given} on dev; the probabilities stay as they are"]
        found = dataclasses.replace(self.task, temperature=1 / factor)
        return found, [f"{self.task.name}: temperature {1 / factor:.3f}, fitted on dev"]

    # Measuring

    @abstractmethod
    def tally(self, outputs: Tensor, examples: Examples) -> Tally:
        """What was found and given of each label, by row."""

    @abstractmethod
    def of_sums(self, counts: NDArray[np.float64]) -> dict[str, float]:
        """The metrics, of a tally's sums (labels, 3)."""

    def sampled(self, outputs: Tensor, examples: Examples) -> Sampled:
        tally = self.tally(outputs, examples)
        return lambda weights: self.of_sums(tally.sums(weights))


@dataclasses.dataclass(frozen=True)
class LabelOptions(ClassOptions, HeadOptions):
    """Those of a head, and of classes."""

    def __post_init__(self) -> None:
        HeadOptions.__post_init__(self)
        ClassOptions.__post_init__(self)


class LabelKind(ClassKind, HeadKind):
    """A kind of whole texts with labels, by a head: logits (texts, labels). Labels that are not given are those of the
    training data, whose targets are names until they are known."""

    Options: ClassVar[type] = LabelOptions

    def check_labels(self) -> None:
        if not self.finds_labels:
            super().check_labels()

    @property
    def finds_labels(self) -> bool:
        return not self.labels and bool(self.task.train)

    def complete(self, targets: Sequence[Target]) -> TaskSpec:
        found = (name for target in targets for name in self.labels_in(target))
        return dataclasses.replace(self.task, labels=labels_of(self.task, found, self.least_labels or 0))

    def declared(self, known: TaskSpec | None) -> TaskSpec:
        if self.labels or known is None or known.kind != self.name:
            return self.task
        return dataclasses.replace(self.task, labels=known.labels)

    def stacked(self, targets: Sequence[Target]) -> Any:
        return targets if self.finds_labels else super().stacked(targets)

    @abstractmethod
    def tallied(self, outputs: Tensor, targets: Tensor) -> Tally:
        """As ``tally``, of outputs and targets."""

    def tally(self, outputs: Tensor, examples: Examples) -> Tally:
        return self.tallied(outputs, examples.targets)

    def measure(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        return self.of_sums(self.tallied(outputs, targets).sums())


def labels_of(task: TaskSpec, names: Iterable[str], least: int) -> tuple[str, ...]:
    """The labels of a task's training data, in order; a RecipeError if they are fewer than ``least``."""
    labels = ordered({*names})
    if len(labels) < least:
        given = f"task {task.name!r}: the labels of its training data are {shown(labels)}"
        raise RecipeError(f"{given}; expected at least {least}", "labels")
    return tuple(labels)


def zero_of(slope: Callable[[float], float]) -> float | None:
    """Where a rising function is 0, from 1 / SHARPEST to SHARPEST; None where it is not 0 there."""
    low, high = -math.log(SHARPEST), math.log(SHARPEST)
    if not slope(math.exp(low)) < 0 < slope(math.exp(high)):
        return None
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(math.exp(middle)) < 0 else (low, middle)
    return math.exp((low + high) / 2)


def evenly(counts: Tensor, names: Sequence[str]) -> dict[str, float]:
    """Weights by which classes of these counts have the same sum: all / (classes * count), as scikit-learn has it."""
    held = counts > 0
    total, classes = float(counts.sum()), int(held.sum())
    return {name: total / (classes * float(n)) for name, n, any_ in zip(names, counts, held, strict=True) if any_}
