"""The programs of what stands behind an encoder: poolings, the layers after them, and heads; always in float32.

Each takes what its module takes, and holds its products by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from mtl.kernels.activations import sigmoid
from mtl.kernels.linear import Product, product
from mtl.model.heads import HiddenHead, LinearHead
from mtl.model.packing import PackedBatch
from mtl.model.pooling import AttentionPooling, Dense, EachToken, Normalize, Pooling, weighted


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
    return DenseProgram(of(part.linear), sigmoid if type(part.activation) is nn.Sigmoid else part.activation)


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
