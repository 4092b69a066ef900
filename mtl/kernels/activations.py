"""Activations as inference computes them: they may overwrite what they are given, the widest tensor of all.

torch computes what fills no whole register one by one, and for sigmoid, silu and its GELU by a tanh that has other
bits: where a tensor ends, or what a thread got of it, would decide. Here they are made of functions that have the same
bits either way.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mtl.model.activations import ACTIVATIONS

Activation = Callable[[Tensor], Tensor]


def silu(x: Tensor) -> Tensor:
    """x / (1 + exp(-x))."""
    return x.div_(x.neg().exp_().add_(1))


def quick_gelu(x: Tensor) -> Tensor:
    """x / (1 + exp(-1.702 x))."""
    return x.div_((x * -1.702).exp_().add_(1))


def tanh_gelu(x: Tensor) -> Tensor:
    """x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    inner = (x * x).mul_(0.044715).add_(1).mul_(x).mul_(0.7978845608028654)
    return x.mul_(0.5).mul_(inner.tanh_().add_(1))


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x))."""
    return x.neg().exp_().add_(1).reciprocal_()


FASTER: dict[Activation, Activation] = {
    F.gelu: torch.ops.aten.gelu_,
    F.relu: torch.relu_,
    F.silu: silu,
    ACTIVATIONS["quick_gelu"]: quick_gelu,
    **{ACTIVATIONS[name]: tanh_gelu for name in ("gelu_new", "gelu_fast", "gelu_pytorch_tanh")},
}
IN_INT8: dict[Activation, str] = {F.gelu: "gelu", F.relu: "relu"}  # what oneDNN's integer product can compute itself


def inplace(activation: Activation) -> Activation:
    """The same activation, by a faster function."""
    return FASTER[activation]
