"""Task heads: from hidden states to logits."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtl.model.dropout import Dropout
from mtl.model.packing import PackedBatch
from mtl.model.pooling import AttentionPooling, EachToken, Pooling


class LinearHead(nn.Module):
    """Dropout and one linear layer: (texts, features) -> (texts, outputs)."""

    def __init__(self, features: int, outputs: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.classifier = nn.Linear(features, outputs, dtype=torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.dropout(x))


# What stands between the two layers of a sequence classifier, by the family that began with it
BETWEEN: dict[str, Callable[[Tensor], Tensor]] = {
    "distilbert": F.relu,
    "bert": torch.tanh,
    "electra": F.gelu,
    "modernbert": F.gelu,  # and a norm; neither that nor the hidden layer has a bias
}


class HiddenHead(nn.Module):
    """A hidden layer and an output layer: the sequence classifiers of DistilBERT, BERT, RoBERTa, ELECTRA, ModernBERT.

    The names are those of transformers' DistilBertForSequenceClassification; ``kind`` is one of ``BETWEEN``.
    """

    def __init__(self, features: int, outputs: int, dropout: float = 0.2, kind: str = "distilbert") -> None:
        super().__init__()
        self.kind, self.between = kind, BETWEEN[kind]
        modern = kind == "modernbert"
        self.pre_classifier = nn.Linear(features, features, bias=not modern, dtype=torch.float32)
        self.norm = nn.LayerNorm(features, eps=1e-5, bias=False, dtype=torch.float32) if modern else nn.Identity()
        self.dropout = Dropout(dropout)
        self.classifier = nn.Linear(features, outputs, dtype=torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.dropout(self.norm(self.between(self.pre_classifier(x)))))


class Branch(nn.Module):
    """A pooling and a head: (tokens, dim) -> (texts, outputs), or (tokens, outputs) with ``EachToken``."""

    def __init__(self, pooling: Pooling | AttentionPooling | EachToken, head: nn.Module) -> None:
        super().__init__()
        self.pooling = pooling
        self.head = head

    def forward(self, x: Tensor, batch: PackedBatch) -> Tensor:
        return self.head(self.pooling(x, batch))
