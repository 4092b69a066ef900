"""distillation: what a teacher says of a text."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import cosine_similarity

from mtl.errors import RecipeError
from mtl.model import losses
from mtl.tasks.examples import Examples, Split
from mtl.tasks.fields import one_of
from mtl.tasks.kinds.base import VectorKind, VectorOptions
from mtl.tasks.teacher import teacher_vectors


@dataclasses.dataclass(frozen=True)
class DistillationOptions(VectorOptions):
    """The settings of a student.

    teacher: A model by name, whose vectors are computed once and remembered, or an .npy or .safetensors file beside the
        recipe with one for each row, whose name holds "{split}" for train, dev and test.
    loss: "squared", or "cosine".
    """

    teacher: str = ""
    loss: str = "squared"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("loss", self.loss, ("squared", "cosine"))
        if not self.teacher:
            expected = "a model, or a file of vectors as teacher-{split}.npy"
            raise RecipeError(f"teacher is missing; expected {expected}", "kind")


class Distillation(VectorKind):
    """A text, whose vector is to become the ``teacher``'s: vectors and targets (rows, dim).

    A recipe's ``layers`` make the student smaller. ``matryoshka`` compares the first dimensions of both.
    """

    name = "distillation"
    Options: ClassVar[type] = DistillationOptions
    labelled: ClassVar[bool] = False
    uncertainty: ClassVar[float] = 0.5
    own_metrics: ClassVar[Mapping[str, int]] = {"cosine": 1, "mse": -1}

    def examples(self, texts: Sequence[str], targets: Tensor, split: Split) -> Examples:
        rows = split.tokenize(texts)
        return Examples(rows, teacher_vectors(self.task, split.name, texts, split.folder, split.embedder.width))

    def cut(self, vectors: Tensor, targets: Tensor, size: int) -> tuple[Tensor, Tensor]:
        return vectors[..., :size], targets[..., :size]

    def whole_loss(self, vectors: Tensor, targets: Tensor) -> tuple[Tensor, int]:
        return losses.distillation(vectors, targets, self.options.loss)

    def whole_measure(self, vectors: Tensor, targets: Tensor) -> dict[str, float]:
        """The mean cosine of each vector with the teacher's, and the mean squared error."""
        cosine = cosine_similarity(vectors.double(), targets.double(), dim=-1)
        return {"cosine": float(cosine.mean()), "mse": float((vectors.double() - targets.double()).square().mean())}
