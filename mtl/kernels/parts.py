"""The programs of what stands behind an encoder: poolings, the layers after them, and heads; always in float32.

Each takes what its module takes, and holds its products by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mtl.kernels.activations import sigmoid
from mtl.kernels.linear import Product, product
from mtl.model.heads import HiddenHead, LinearHead
from mtl.model.packing import PackedBatch
from mtl.model.pooling import AttentionPooling, Dense, EachToken, LayerNorm, Normalize, Pooling, weighted

# Of torch's activations those that have the same bits wherever a number stands in a tensor; see activations.py
ANYWHERE = (nn.Identity, nn.Tanh, nn.ReLU, nn.GELU)


@dataclasses.dataclass(frozen=True)
class DenseProgram:
    linear: Product
    activation: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        return self.activation(self.linear(x))


@dataclasses.dataclass(frozen=True)
class AttentionPoolingProgram:
    score: Product

    def __call__(self, x: Tensor, batch: PackedBatch) -> Tensor:
        return weighted(self.score(x), x, batch)


@dataclasses.dataclass(frozen=True)
class HiddenHeadProgram:
    pre_classifier: Product
    between: Callable[[Tensor], Tensor]
    norm: Callable[[Tensor], Tensor]
    classifier: Product

    def __call__(self, x: Tensor) -> Tensor:
        return self.classifier(self.norm(self.between(self.pre_classifier(x))))


def of(linear: nn.Linear) -> Product:
    return product(linear.weight, linear.bias)


def dense(part: Dense) -> DenseProgram:
    kind = type(part.activation)
    if kind is nn.Sigmoid:
        return DenseProgram(of(part.linear), sigmoid)
    return DenseProgram(of(part.linear), part.activation if kind in ANYWHERE else partial(by_row, part.activation))


def by_row(activation: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """An activation of each row by itself, so that on a CPU its bits do not depend on the others: (rows, features)."""
    return torch.stack([activation(row) for row in x]) if len(x) and not x.is_cuda else activation(x)


def like_dense(part: Dense) -> Dense:
    linear, activation = part.linear, type(part.activation).__name__
    return Dense(linear.in_features, linear.out_features, linear.bias is not None, activation)


def hidden_head(part: HiddenHead) -> HiddenHeadProgram:
    return HiddenHeadProgram(of(part.pre_classifier), part.between, part.norm, of(part.classifier))


def like_hidden_head(part: HiddenHead) -> HiddenHead:
    return HiddenHead(part.classifier.in_features, part.classifier.out_features, kind=part.kind)


# A part's type -> a new one of the same settings, and what makes its program
PARTS: dict[type[nn.Module], tuple[Callable[[Any], nn.Module], Callable[[Any], Callable[..., Tensor]]]] = {
    Pooling: (lambda part: Pooling(*part.modes), lambda part: part.forward),
    Normalize: (lambda part: Normalize(), lambda part: part.forward),
    LayerNorm: (lambda part: LayerNorm(*part.norm.normalized_shape), lambda part: part.norm),
    EachToken: (lambda part: EachToken(), lambda part: part.forward),
    AttentionPooling: (
        lambda part: AttentionPooling(part.score.in_features),
        lambda part: AttentionPoolingProgram(of(part.score)),
    ),
    Dense: (like_dense, dense),
    LinearHead: (
        lambda part: LinearHead(part.classifier.in_features, part.classifier.out_features),
        lambda part: of(part.classifier),
    ),
    HiddenHead: (like_hidden_head, hidden_head),
}
