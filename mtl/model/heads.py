"""Task heads: from hidden states to logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtl.model.dropout import Dropout
from mtl.model.packing import PackedBatch
from mtl.model.pooling import AttentionPooling, Pooling


class LinearHead(nn.Module):
    """Dropout and one linear layer: (texts, features) -> (texts, outputs)."""

    def __init__(self, features: int, outputs: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.classifier = nn.Linear(features, outputs, dtype=torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.dropout(x))


class DistilBertHead(nn.Module):
    """The head of transformers' DistilBertForSequenceClassification, under its names."""

    def __init__(self, features: int, outputs: int, dropout: float = 0.2) -> None:
        super().__init__()
        self.pre_classifier = nn.Linear(features, features, dtype=torch.float32)
        self.dropout = Dropout(dropout)
        self.classifier = nn.Linear(features, outputs, dtype=torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.dropout(F.relu(self.pre_classifier(x))))


class Branch(nn.Module):
    """A pooling and a head: (tokens, dim) -> (texts, outputs)."""

    def __init__(self, pooling: Pooling | AttentionPooling, head: nn.Module) -> None:
        super().__init__()
        self.pooling = pooling
        self.head = head

    def forward(self, x: Tensor, batch: PackedBatch) -> Tensor:
        return self.head(self.pooling(x, batch))
