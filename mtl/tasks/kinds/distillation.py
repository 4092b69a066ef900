"""distillation: what a teacher says of a text."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import cosine_similarity

from mtl.errors import RecipeError
from mtl.model import losses
from mtl.tasks.correlation import correlations
from mtl.tasks.examples import Examples, Split
from mtl.tasks.fields import one_of, unexpected
from mtl.tasks.kinds.base import check_ranked_fields
from mtl.tasks.kinds.vectors import VectorKind, VectorOptions, check_scale
from mtl.tasks.teacher import teacher_scores, teacher_vectors


@dataclasses.dataclass(frozen=True)
class DistillationOptions(VectorOptions):
    """The settings of a student.

    teacher: A model by name, whose vectors are computed once and remembered, or an .npy or .safetensors file beside the
        recipe with one for each row, whose name holds "{split}" for train, dev and test.
    loss: "squared", or "cosine", of one text; or "margin", of a query, its positive and negatives, from a cross-encoder
        (Margin-MSE): by how much the positive's dot product is larger is to be what the teacher's logits say. Its file
        has a row of scores for each row of texts, one for each text behind the query.
    scale: What the student's margins are multiplied by; cosines need some 20 to reach a teacher's.
    """

    teacher: str = ""
    loss: str = "squared"
    scale: float = 1.0
    losses: ClassVar[tuple[str, ...]] = ("squared", "cosine", "margin")

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("loss", self.loss, self.losses)
        check_scale(self.scale)
        if self.loss != "margin" and self.scale != 1.0:
            raise unexpected("scale", self.scale, "it with loss = 'margin' alone")
        if not self.teacher:
            expected = "a model, or a file of vectors as teacher-{split}.npy"
            raise RecipeError(f"teacher is missing; expected {expected}", "kind")


class Distillation(VectorKind):
    """A text, whose vector is to become the ``teacher``'s: vectors and targets (rows, dim).

    A recipe's ``layers`` make the student smaller. ``matryoshka`` compares the first dimensions of both. With loss =
    "margin" a query, its positive and negatives, of which a cross-encoder says how they go together: vectors (rows,
    texts, dim), targets (rows, negatives).
    """

    name = "distillation"
    Options: ClassVar[type] = DistillationOptions
    labelled: ClassVar[bool] = False
    uncertainty: ClassVar[float] = 0.5

    @property
    def of_margins(self) -> bool:
        return bool(self.options.loss == "margin")

    def check_texts(self) -> None:
        if self.of_margins:
            check_ranked_fields(self.task.text_field)
        else:
            super().check_texts()

    @property
    def own_metrics(self) -> Mapping[str, int]:  # type: ignore[override]
        return {"spearman": 1, "mse": -1} if self.of_margins else {"cosine": 1, "mse": -1}

    def examples(self, texts: Sequence[str], targets: Tensor, split: Split) -> Examples:
        rows = split.tokenize(texts)
        if self.of_margins:
            width = len(self.task.text_field)
            scores = teacher_scores(self.task, split.name, texts, split.folder)
            return Examples(rows, scores[:, :1] - scores[:, 1:], width)
        return Examples(rows, teacher_vectors(self.task, split.name, texts, split.folder, split.embedder.width))

    def cut(self, vectors: Tensor, targets: Tensor, size: int) -> tuple[Tensor, Tensor]:
        return vectors[..., :size], targets if self.of_margins else targets[..., :size]

    def whole_loss(self, vectors: Tensor, targets: Tensor) -> tuple[Tensor, int]:
        if self.of_margins:
            return losses.margin_error(vectors, targets, self.options.scale)
        return losses.distillation(vectors, targets, self.options.loss)

    def whole_measure(self, vectors: Tensor, targets: Tensor) -> dict[str, float]:
        """The mean cosine of each vector with the teacher's, or how margins follow the teacher's; and the mean squared
        error."""
        if self.of_margins:
            given = self.options.scale * losses.margins(vectors.double())
            error = (given - targets.double()).square().mean()
            found = correlations(given.flatten().numpy(), targets.double().flatten().numpy())
            return {"spearman": found["spearman"], "mse": float(error)}
        cosine = cosine_similarity(vectors.double(), targets.double(), dim=-1)
        return {"cosine": float(cosine.mean()), "mse": float((vectors.double() - targets.double()).square().mean())}
