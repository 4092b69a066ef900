"""Task heads: from hidden states to logits, and from logits to a loss.

A loss comes as its sum and the number of labels in it, not as a mean: means of micro-batches of different
sizes cannot be averaged, sums can be added.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from mtl.model.packing import PackedBatch
from mtl.model.pooling import AttentionPooling, Pooling

Kind = Literal["single-label", "multi-label", "regression"]


class LinearHead(nn.Module):
    """Dropout and one linear layer: (texts, features) -> (texts, outputs)."""

    def __init__(self, features: int, outputs: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(features, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.dropout(x))


class DistilBertHead(nn.Module):
    """The head of transformers' DistilBertForSequenceClassification, under its names."""

    def __init__(self, features: int, outputs: int, dropout: float = 0.2) -> None:
        super().__init__()
        self.pre_classifier = nn.Linear(features, features)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(features, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.dropout(F.relu(self.pre_classifier(x))))


class Branch(nn.Module):
    """What is one task's own: its pooling and its head. (tokens, dim) -> logits (texts, outputs)."""

    def __init__(self, pooling: Pooling | AttentionPooling, head: LinearHead | DistilBertHead) -> None:
        super().__init__()
        self.pooling = pooling
        self.head = head

    def forward(self, x: Tensor, batch: PackedBatch) -> Tensor:
        return self.head(self.pooling(x, batch))


def loss_sum(kind: Kind, logits: Tensor, targets: Tensor) -> tuple[Tensor, int]:
    """The summed loss, and the number of labels that it is a sum over.

    Args:
        kind: Cross-entropy for "single-label", binary cross-entropy per label for "multi-label", squared
            error for "regression".
        logits: (texts, outputs).
        targets: (texts,) int64 for "single-label", (texts, outputs) float for the others.
    """
    if kind == "single-label":
        return F.cross_entropy(logits, targets, reduction="sum"), len(targets)
    if kind == "multi-label":
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum"), targets.numel()
    return F.mse_loss(logits, targets, reduction="sum"), targets.numel()


def scores(kind: Kind, logits: Tensor) -> Tensor:
    """What the logits say: probabilities that sum to 1, one probability per label, or the values themselves."""
    if kind == "single-label":
        return logits.softmax(dim=-1)
    return logits.sigmoid() if kind == "multi-label" else logits
