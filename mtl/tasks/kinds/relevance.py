"""relevance: how well the second text of a pair answers the first."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from mtl.errors import RecipeError, shown
from mtl.kernels.activations import sigmoid
from mtl.model import losses
from mtl.search import ranking_metrics
from mtl.tasks.correlation import errors
from mtl.tasks.examples import Examples, Split
from mtl.tasks.fields import one_of, unexpected
from mtl.tasks.kinds.base import HeadKind, HeadOptions, check_ranked_fields
from mtl.tasks.kinds.regression import finite_number

if TYPE_CHECKING:
    from mtl.checkpoints.load import Classifier

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": sigmoid,
    "identity": lambda logits: logits,
    "softmax": lambda logits: logits.softmax(dim=-1),
}


@dataclasses.dataclass(frozen=True)
class RelevanceOptions(HeadOptions):
    """The settings of a judge of pairs.

    loss: "binary", of a label from 0 to 1; or "pairwise", of a query, its positive and negatives, without a label.
    activation: What a score is of the logit: its "sigmoid", the logit itself ("identity"), or of several "softmax".
    """

    joint: bool | Literal["either"] = True
    loss: str = "binary"
    activation: str = "sigmoid"
    losses: ClassVar[tuple[str, ...]] = ("binary", "pairwise")

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("loss", self.loss, self.losses)
        one_of("activation", self.activation, ACTIVATIONS)


class Relevance(HeadKind):
    """A query, a text, and a number from 0 to 1; or with loss = "pairwise" a query, what answers it, and what does not.

    Both texts are one row of tokens, as ``joint`` has it for other kinds: a cross-encoder, as MultiTaskModel.rank and
    `mtl rerank` want one. Logits and targets (pairs, 1); with "pairwise" logits (queries, pairs, 1) and targets
    (queries, negatives), which say nothing. A published cross-encoder with several outputs has a label for each.
    """

    name = "relevance"
    Options: ClassVar[type] = RelevanceOptions
    least_labels: ClassVar[int | None] = 0
    queries: ClassVar[bool] = True
    own_metrics: ClassVar[Mapping[str, int]] = {"spearman": 1, "pearson": 1, "rmse": -1}

    @property
    def activation(self) -> str:
        return str(self.options.activation)

    @property
    def pairwise(self) -> bool:
        return bool(self.options.loss == "pairwise")

    @property
    def labelled(self) -> bool:  # type: ignore[override]
        return not self.pairwise

    def check_texts(self) -> None:
        if self.options.joint is not True:
            given = f"joint is {shown(self.options.joint)}"
            raise RecipeError(f"{given}; a {self.name} task has both texts in one row", "joint")
        if self.pairwise:
            check_ranked_fields(self.task.text_field)
        else:
            super().check_texts()

    def check_labels(self) -> None:
        super().check_labels()
        if self.task.train and self.labels:
            raise unexpected("labels", self.labels, "none: training is of one score for a pair", "are")
        if self.task.train and self.activation == "softmax":
            raise unexpected("activation", "softmax", "sigmoid or identity: of one score softmax is always 1")

    def begins_with(self, theirs: Classifier) -> bool:
        judges = theirs.outputs == 1 and (theirs.activation != "" or theirs.problem_type != "regression")
        return judges and super().begins_with(dataclasses.replace(theirs, labels=()))  # a score has no label

    def target(self, value: Any) -> list[float]:
        number = finite_number(value)
        if not 0 <= number <= 1:
            raise ValueError(f"is {shown(value)}; expected a number from 0 to 1")
        return [number]

    def examples(self, texts: Sequence[str], targets: Any, split: Split) -> Examples:
        if not self.pairwise:
            return super().examples(texts, targets, split)
        width = len(self.task.text_field)
        queries = texts[::width]
        pairs = [text for i, query in enumerate(queries) for other in texts[i * width + 1 : (i + 1) * width]
                 for text in (query, other)]  # fmt: skip
        return Examples(split.tokenize(pairs, pairs=True), torch.zeros(len(queries), width - 2), width - 1)

    def loss(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, float]:
        return losses.pairwise(outputs[..., 0]) if self.pairwise else losses.binary_cross_entropy(outputs, targets)

    def scores(self, logits: Tensor) -> Tensor:
        return ACTIVATIONS[self.options.activation](logits)

    def words(self, scores: Tensor) -> list[Any]:
        if self.labels:
            return [self.labels[i] for i in scores.argmax(dim=1).tolist()]
        return [row[0] for row in scores.tolist()]

    @property
    def columns(self) -> tuple[str, ...]:
        return self.labels or ("score",)

    @property
    def metrics(self) -> Mapping[str, int]:
        """Correlations of scores and labels; or of a query's texts, how high its positive stands among them."""
        return {"mrr@10": 1, "ndcg@10": 1, "accuracy": 1} if self.pairwise else self.own_metrics

    def measure(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        if not self.pairwise:
            return errors(self.scores(outputs)[:, 0].double().numpy(), targets[:, 0].double().numpy())
        logits = outputs[..., 0]
        worse = (logits[:, 1:] >= logits[:, :1]).sum(dim=1)  # of equal scores the positive has the last
        first = ((logits[:, 1:] < logits[:, :1]).float().mean(dim=1)).mean()
        rankings = [[*range(1, count + 1), 0] for count in worse.tolist()]
        found = ranking_metrics(rankings, [{0: 1.0}] * len(rankings))
        return {"mrr@10": found["mrr@10"], "ndcg@10": found["ndcg@10"], "accuracy": float(first)}
