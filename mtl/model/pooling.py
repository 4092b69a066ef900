"""Pooling: from a hidden state per token to one vector per text.

The modes and their definitions are those of sentence-transformers' Pooling module. Each works on a dense
group of equally long texts, x (texts, length, dim), since a packed batch holds nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtl.errors import ConfigError, shown
from mtl.model.packing import PackedBatch


def cls(x: Tensor) -> Tensor:
    """The first token, [CLS]."""
    return x[:, 0]


def lasttoken(x: Tensor) -> Tensor:
    """The last token, [SEP]."""
    return x[:, -1]


def max_tokens(x: Tensor) -> Tensor:
    """The largest value of each dimension."""
    return x.amax(dim=1)


def mean(x: Tensor) -> Tensor:
    """The mean over all tokens, special ones included."""
    return x.mean(dim=1)


def mean_sqrt_len(x: Tensor) -> Tensor:
    """The sum over all tokens, divided by the square root of their number."""
    return x.sum(dim=1) / math.sqrt(x.shape[1])


def weightedmean(x: Tensor) -> Tensor:
    """The mean with weights 1, 2, 3, ...: later tokens count more (SGPT, arXiv 2202.08904)."""
    weights = torch.arange(1, x.shape[1] + 1, dtype=x.dtype, device=x.device)
    return (x * weights[:, None]).sum(dim=1) / weights.sum()


MODES: dict[str, Callable[[Tensor], Tensor]] = {
    "cls": cls,
    "lasttoken": lasttoken,
    "max": max_tokens,
    "mean": mean,
    "mean_sqrt_len": mean_sqrt_len,
    "weightedmean": weightedmean,
}

# torch's own that look at one number at a time, have no weights and draw nothing, as their classes make them
DENSE_ACTIVATIONS: dict[str, type[nn.Module]] = {
    kind.__name__: kind
    for kind in (
        nn.Identity, nn.Tanh, nn.ReLU, nn.GELU, nn.Sigmoid, nn.SiLU, nn.CELU, nn.ELU, nn.Hardshrink, nn.Hardsigmoid,
        nn.Hardswish, nn.Hardtanh, nn.LeakyReLU, nn.LogSigmoid, nn.Mish, nn.ReLU6, nn.SELU, nn.Softplus, nn.Softshrink,
        nn.Softsign, nn.Tanhshrink,
    )
}  # fmt: skip


class Pooling(nn.Module):
    """One vector per text: the named modes, side by side. (tokens, dim) -> (texts, modes * dim).

    Raises:
        ConfigError: no mode, an unknown one, or one twice.
    """

    def __init__(self, *modes: str) -> None:
        super().__init__()
        if not modes or not set(modes) <= set(MODES) or len(set(modes)) < len(modes):
            raise ConfigError(f"pooling is {shown(list(modes))}; expected one or more of {', '.join(MODES)}, each once")
        self.modes = modes

    def forward(self, x: Tensor, batch: PackedBatch) -> Tensor:
        pooled = [torch.cat([MODES[mode](group) for mode in self.modes], dim=-1) for group in batch.split(x)]
        return torch.cat(pooled) if pooled else x.new_empty(0, len(self.modes) * x.shape[-1])


class EachToken(nn.Module):
    """No pooling: (tokens, dim) -> (tokens, dim)."""

    def forward(self, x: Tensor, batch: PackedBatch) -> Tensor:
        return x


class AttentionPooling(nn.Module):
    """A learned weight per token: softmax over the text of a linear score. (tokens, dim) -> (texts, dim)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.score = nn.Linear(dim, 1, dtype=torch.float32)

    def forward(self, x: Tensor, batch: PackedBatch) -> Tensor:
        return weighted(self.score(x), x, batch)


def weighted(scores: Tensor, x: Tensor, batch: PackedBatch) -> Tensor:
    """The mean of each text's tokens, weighted by the softmax of their scores (tokens, 1): (texts, dim)."""
    groups = zip(batch.split(scores), batch.split(x), strict=True)
    pooled = [(group_scores.softmax(dim=1) * group).sum(dim=1) for group_scores, group in groups]
    return torch.cat(pooled) if pooled else x.new_empty(0, x.shape[-1])


class Dense(nn.Module):
    """A layer on pooled vectors, as sentence-transformers' Dense: activation(linear(x)).

    Raises:
        ConfigError: an activation that none of DENSE_ACTIVATIONS is called.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, activation: str = "Tanh") -> None:
        super().__init__()
        if activation not in DENSE_ACTIVATIONS:
            known = ", ".join(DENSE_ACTIVATIONS)
            raise ConfigError(f"Dense activation {shown(activation)} is unknown; expected one of {known}")
        self.linear = nn.Linear(in_features, out_features, bias=bias, dtype=torch.float32)
        self.activation = DENSE_ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        activated: Tensor = self.activation(self.linear(x))
        return activated


class LayerNorm(nn.Module):
    """Layer normalization of pooled vectors, as sentence-transformers' LayerNorm."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, dtype=torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm(x)
        return normed


class Normalize(nn.Module):
    """Scales each vector to Euclidean length 1."""

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1)


After = Dense | LayerNorm | Normalize  # what may follow a pooling
