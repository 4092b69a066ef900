"""The losses, each as its sum and the number of labels in it.

Not as a mean: means of micro-batches of different sizes cannot be averaged, sums can be added.

The first are of the logits of single texts. The others train the embeddings themselves: they take the vectors
(rows, texts, dim), of any length, of the texts of all rows of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

NO_LABEL = -100  # the target of a token that has no label, as torch and transformers have it


def weight_sum(targets: Tensor, weights: Tensor | None) -> float:
    """How often labels count, ``NO_LABEL`` not at all: once each, or by the weight of their class, (classes,) float64.

    Targets are classes, or where they have decimals a 0 or 1 for each class, (texts, classes): a 0 counts once.
    """
    if targets.is_floating_point():
        return targets.numel() if weights is None else float(binary_weights(targets, weights).sum())
    labels = targets[targets != NO_LABEL].long()
    return labels.numel() if weights is None else float(weights.to(labels.device)[labels].sum())


def binary_weights(targets: Tensor, weights: Tensor) -> Tensor:
    """The weight of each 1 by its class, and 1 of each 0: (texts, classes) float64."""
    return torch.where(targets > 0.5, weights.to(targets.device), 1.0)


def cross_entropy(
    logits: Tensor, targets: Tensor, weights: Tensor | None = None, smoothing: float = 0.0
) -> tuple[Tensor, float]:
    """One class of several: logits (texts, outputs), targets (texts,) int64, weights (outputs,) float64.

    With weights and smoothing, sum and count divided are torch's own mean.
    """
    given = None if weights is None else weights.to(logits)
    found = F.cross_entropy(logits, targets, given, reduction="sum", ignore_index=NO_LABEL, label_smoothing=smoothing)
    return found, weight_sum(targets, weights)


def token_cross_entropy(
    logits: Tensor, targets: Tensor, weights: Tensor | None = None, smoothing: float = 0.0
) -> tuple[Tensor, float]:
    """One class for each token that has a label: logits (rows, length, outputs), targets (rows, length or more)."""
    labels = targets[:, : logits.shape[1]].flatten().long()
    return cross_entropy(logits.flatten(0, 1), labels, weights, smoothing)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, float]:
    """A teacher's probabilities of the classes, all 0 where there is no label: logits and targets (..., outputs)."""
    return -(F.log_softmax(logits, dim=-1) * targets).sum(), float(targets.any(dim=-1).sum())


def binary_cross_entropy(
    logits: Tensor, targets: Tensor, weights: Tensor | None = None, smoothing: float = 0.0
) -> tuple[Tensor, float]:
    """Any number of classes, each a yes or no: logits and targets (texts, outputs), targets 0 or 1.

    ``weights`` (outputs,) float64 are of a class's 1, as torch's ``pos_weight``. Smoothed, a target is that near to
    1/2.
    """
    given = None if weights is None else binary_weights(targets, weights).to(logits.dtype)
    smoothed = targets * (1 - smoothing) + smoothing / 2 if smoothing else targets
    found = F.binary_cross_entropy_with_logits(logits, smoothed, given, reduction="sum")
    return found, weight_sum(targets, weights)


def pairwise(logits: Tensor) -> tuple[Tensor, int]:
    """-log sigmoid(positive - negative) for each negative (Burges et al. 2005, RankNet): logits (queries, texts), of
    which the first is the positive's."""
    return F.softplus(logits[:, 1:] - logits[:, :1]).sum(), logits[:, 1:].numel()


def squared_error(values: Tensor, targets: Tensor) -> tuple[Tensor, int]:
    """Values against numbers: both (texts, outputs)."""
    return F.mse_loss(values, targets, reduction="sum"), targets.numel()


def cosines(vectors: Tensor) -> Tensor:
    """The cosine of each row's two vectors: (rows, 2, dim) -> (rows,)."""
    first, second = F.normalize(vectors, dim=-1).unbind(1)
    return (first * second).sum(dim=-1)


def cosent(cosine: Tensor, targets: Tensor, scale: float) -> tuple[Tensor, int]:
    """log(1 + sum of exp(scale (c_i - c_j)) over all rows i, j of which j has the higher score) (Su 2022, CoSENT).

    Cosines and targets (rows,); one label for all rows together, since each is compared with every other.
    """
    differences = scale * (cosine[:, None] - cosine[None, :])
    wrong_way = differences[targets[:, None] < targets[None, :]]
    return torch.cat([wrong_way, cosine.new_zeros(1)]).logsumexp(dim=0), 1


def matryoshka(
    criterion: Callable[[Tensor, Tensor], tuple[Tensor, int]],
    cut: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]],
    sizes: Sequence[int],
    weights: Sequence[float],
    vectors: Tensor,
    targets: Tensor,
) -> tuple[Tensor, int]:
    """The weighted sum of a loss of the first so many dimensions, for each size (Kusupati et al. 2022, 2205.13147).

    ``cut`` gives vectors and targets of a size. Where it leaves fewer labels, each counts for more.
    """
    total, count = vectors.new_zeros(()), 0
    for size, weight in zip(sizes, weights, strict=True):
        shorter, labels = cut(vectors, targets, size)
        loss, own = criterion(shorter, labels)
        total = total + loss * (weight * targets.numel() / labels.numel())
        count = own * targets.numel() // labels.numel()
    return total, count


def contrastive(vectors: Tensor, numbers: Tensor, scale: float, symmetric: bool) -> tuple[Tensor, int]:
    """Each row's anchor against the positives and hard negatives of all rows (van den Oord et al. 2018, InfoNCE).

    Vectors (rows, texts, dim) of anchor, positive and hard negatives, and the texts' numbers (rows, texts), which are
    equal for equal texts: what equals a row's own anchor or positive is not one of its negatives. ``scale`` multiplies
    the cosines; ``symmetric`` takes the mean with the loss of each positive against all anchors.
    """
    units = F.normalize(vectors, dim=-1)
    anchors, candidates = units[:, 0], units[:, 1:].transpose(0, 1).flatten(0, 1)  # positives first
    own = numbers[:, :2]
    loss = told_apart(anchors, candidates, own, numbers[:, 1:].T.flatten(), scale)
    if symmetric:
        loss = (loss + told_apart(units[:, 1], anchors, own, numbers[:, 0], scale)) / 2
    return loss, len(vectors)


def told_apart(queries: Tensor, candidates: Tensor, own: Tensor, numbers: Tensor, scale: float) -> Tensor:
    """The summed cross-entropy of query i choosing candidate i; others with a number of its own (rows, 2) are out."""
    right = torch.arange(len(queries), device=queries.device)
    same = (numbers[None, :, None] == own[:, None, :]).any(dim=2)  # (queries, candidates)
    same[right, right] = False
    scores = scale * (queries @ candidates.T)
    return F.cross_entropy(scores.masked_fill(same, -torch.inf), right, reduction="sum")


def distillation(vectors: Tensor, teacher: Tensor, loss: str) -> tuple[Tensor, int]:
    """Of vectors and the teacher's, both (texts, dim): the squared error, or the cosine's distance from 1."""
    if loss == "squared":
        return F.mse_loss(vectors, teacher, reduction="sum"), teacher.numel()
    distance = 1 - F.cosine_similarity(vectors, teacher, dim=-1)
    return distance.sum() * teacher.shape[-1], teacher.numel()  # each text counts as many labels as it has dimensions


def margins(vectors: Tensor) -> Tensor:
    """By how much the first text of a row goes better with the second than with each other: dot products, of vectors
    (rows, texts, dim): (rows, texts - 2)."""
    scores = (vectors[:, :1] * vectors[:, 1:]).sum(dim=-1)
    return scores[:, :1] - scores[:, 1:]


def margin_error(vectors: Tensor, teacher: Tensor, scale: float) -> tuple[Tensor, int]:
    """The squared error of the scaled margins (Hofstaetter et al. 2020, arXiv 2010.02666, Margin-MSE): those of the
    teacher (rows, texts - 2)."""
    return F.mse_loss(scale * margins(vectors), teacher, reduction="sum"), teacher.numel()


def similarity(vectors: Tensor, targets: Tensor, loss: str, scale: float) -> tuple[Tensor, int]:
    """Of vectors (rows, 2, dim) and scores (rows, 1) from 0 to 1: CoSENT, or the squared error of the cosine."""
    cosine = cosines(vectors)
    if loss == "cosent":
        return cosent(cosine, targets[:, 0], scale)
    return F.mse_loss(cosine, targets[:, 0], reduction="sum"), len(cosine)
