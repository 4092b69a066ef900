"""What kinds that train the embeddings themselves have in common: sizes of the vectors, and what a row needs."""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from mtl.errors import RecipeError
from mtl.model.losses import matryoshka
from mtl.tasks.examples import Split
from mtl.tasks.fields import unexpected
from mtl.tasks.kinds.base import Kind

if TYPE_CHECKING:
    from mtl.tasks.spec import TaskSpec


@dataclasses.dataclass(frozen=True)
class VectorOptions:
    """The settings of a task that trains the embeddings.

    matryoshka: [384, 128, 64] trains the first 384, 128 and 64 dimensions to be vectors of their own.
    matryoshka_weights: What each size's loss is multiplied by; 1 where none is given.
    """

    matryoshka: tuple[int, ...] = ()
    matryoshka_weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(set(self.matryoshka)) < len(self.matryoshka) or min(self.matryoshka, default=1) < 1:
            raise unexpected("matryoshka", self.matryoshka, "different sizes from 1 on")
        weights = self.matryoshka_weights
        if weights and (len(weights) != len(self.matryoshka) or min(weights) <= 0 or not math.isfinite(sum(weights))):
            expected = f"a number above 0 for each of the {len(self.matryoshka)} sizes of matryoshka"
            raise unexpected("matryoshka_weights", weights, expected, "are")


class VectorKind(Kind):
    """A kind that trains the embeddings: of vectors (rows, dim) or (rows, texts, dim), each size of them alike."""

    Options: ClassVar[type] = VectorOptions
    embeds: ClassVar[bool] = True

    @property
    def metrics(self) -> Mapping[str, int]:
        """Those of its kind, and the main one at each size of ``matryoshka``."""
        main, sign = next(iter(self.own_metrics.items()))
        return {**self.own_metrics, **{f"{main}-{size}": sign for size in self.options.matryoshka}}

    def branch(self, dim: int) -> None:
        return None

    def cut(self, vectors: Tensor, targets: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """The first so many dimensions of vectors, and the targets that these have."""
        return vectors[..., :size], targets

    @abstractmethod
    def whole_loss(self, vectors: Tensor, targets: Tensor) -> tuple[Tensor, int]:
        """The loss of vectors as they are."""

    @abstractmethod
    def whole_measure(self, vectors: Tensor, targets: Tensor) -> dict[str, float]:
        """The metrics of vectors as they are."""

    def loss(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, float]:
        sizes = self.options.matryoshka
        if not sizes:
            return self.whole_loss(outputs, targets)
        weights = self.options.matryoshka_weights or (1.0,) * len(sizes)
        return matryoshka(self.whole_loss, self.cut, sizes, weights, outputs, targets)

    def measure(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        found = self.whole_measure(outputs, targets)
        for size in self.options.matryoshka:
            cut = self.whole_measure(*self.cut(outputs, targets, size))
            found[f"{self.main_metric}-{size}"] = cut[self.main_metric]
        return found


def check_scale(scale: float) -> None:
    """Raise a RecipeError if cosines cannot be multiplied by it."""
    if not 0 < scale < math.inf:
        raise unexpected("scale", scale, "more than 0")


def check_distinct(task: TaskSpec, rows: Sequence[Sequence[int]], split: Split) -> None:
    """Raise a RecipeError if all texts of a task's training data are the same: there is nothing to tell apart."""
    if split.name == "train" and all(row == rows[0] for row in rows):
        raise RecipeError(f"task {task.name!r}: all texts of its training data are the same; expected different ones")
