"""similarity: how alike two texts are."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from mtl.errors import RecipeError
from mtl.model import losses
from mtl.tasks.correlation import correlations
from mtl.tasks.examples import Examples, Split
from mtl.tasks.fields import one_of, unexpected
from mtl.tasks.kinds.regression import LARGEST, finite_number
from mtl.tasks.kinds.vectors import VectorKind, VectorOptions, check_distinct, check_scale
from mtl.tasks.pictures import draw_cosines
from mtl.tasks.shares import levels


@dataclasses.dataclass(frozen=True)
class CosineOptions(VectorOptions):
    """The settings of a task whose cosines are to follow scores.

    loss: "cosent", to which only the order of the scores matters, or "squared", which brings the cosine to the score.
    scale: What "cosent" multiplies cosines by.
    """

    loss: str = "cosent"
    scale: float = 20.0
    losses: ClassVar[tuple[str, ...]] = ("cosent", "squared")

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("loss", self.loss, self.losses)
        check_scale(self.scale)


class CosineKind(VectorKind):
    """A kind with two texts and a score: vectors (rows, 2, dim), scores (rows, 1) from 0 to 1."""

    whole_window: ClassVar[bool] = True
    has_picture: ClassVar[bool] = True
    own_metrics: ClassVar[Mapping[str, int]] = {"spearman": 1, "pearson": 1}

    def whole_loss(self, vectors: Tensor, targets: Tensor) -> tuple[Tensor, int]:
        return losses.similarity(vectors, targets, self.options.loss, self.options.scale)

    def whole_measure(self, vectors: Tensor, targets: Tensor) -> dict[str, float]:
        """The correlations of the cosine of each row's two vectors with its score."""
        return correlations(losses.cosines(vectors.double()).numpy(), targets[:, 0].double().numpy(), magnitude=1.0)

    def draw(self, axes: Any, vectors: Tensor, targets: Tensor) -> None:
        draw_cosines(axes, self.task.name, vectors, targets)


@dataclasses.dataclass(frozen=True)
class SimilarityOptions(CosineOptions):
    """The range of the scores.

    score_range: The lowest and the highest score; by default those of the data.
    """

    score_range: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        ends = self.score_range
        if ends and (len(ends) != 2 or not -LARGEST <= ends[0] < ends[1] <= LARGEST):
            raise unexpected("score_range", ends, "the lowest and the highest score")


class Similarity(CosineKind):
    """Two texts and a score: their cosine is to follow it."""

    name = "similarity"
    Options: ClassVar[type] = SimilarityOptions
    texts: ClassVar[int] = 2

    def target(self, value: Any) -> list[float]:
        number = finite_number(value)
        if self.options.score_range:
            low, high = self.options.score_range
            if not low <= number <= high:
                raise ValueError(f"is {value!r}; expected {low:g} to {high:g}, the task's score_range")
        return [number]

    def strata(self, targets: Sequence[list[float]]) -> list[str]:
        return levels([number for (number,) in targets])

    def stacked(self, targets: Sequence[list[float]]) -> Tensor:
        """Scores as shares of the task's range, or of their own where none is given, (rows, 1); if then all are equal,
        a RecipeError."""
        scores = torch.tensor(targets, dtype=torch.float32)
        low, high = self.options.score_range or (float(scores.min()), float(scores.max()))
        if not max(abs(low), abs(high)) / 1000 < high - low <= LARGEST:  # too few digits, or none
            scores = torch.tensor(targets, dtype=torch.float64)
            low, high = self.options.score_range or (float(scores.min()), float(scores.max()))
        if low == high:
            given = f"task {self.task.name!r}: all scores are {low:g}"
            raise RecipeError(f"{given}; expected different ones, or a score_range")
        return ((scores - low) / (high - low)).float()

    def examples(self, texts: Sequence[str], targets: Tensor, split: Split) -> Examples:
        found = super().examples(texts, targets, split)
        check_distinct(self.task, found.rows, split)
        return found
