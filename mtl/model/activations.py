"""The activations of feed-forward networks, under the names that transformers' configs give them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor


def gelu_new(x: Tensor) -> Tensor:
    """GELU by a tanh (Hendrycks and Gimpel 2016, arXiv 1606.08415, section 2), as OpenAI's GPT wrote it down."""
    return 0.5 * x * (1.0 + (math.sqrt(2.0 / math.pi) * (x + 0.044715 * x.pow(3.0))).tanh())


def gelu_fast(x: Tensor) -> Tensor:
    """The same, with a shorter constant and one power less."""
    return 0.5 * x * (1.0 + (x * 0.7978845608 * (1.0 + 0.044715 * x * x)).tanh())


def quick_gelu(x: Tensor) -> Tensor:
    """GELU by a sigmoid (the same section)."""
    return x * (1.702 * x).sigmoid()


def gelu_pytorch_tanh(x: Tensor) -> Tensor:
    """The same, in one call."""
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,  # x Phi(x), in its exact form
    "relu": F.relu,
    "silu": F.silu,
    "gelu_new": gelu_new,
    "gelu_fast": gelu_fast,
    "gelu_pytorch_tanh": gelu_pytorch_tanh,
    "quick_gelu": quick_gelu,
    # The same under names of transformers' own code, which older configs have
    "gelu_python": F.gelu,
    "swish": F.silu,
    "gelu_accurate": gelu_pytorch_tanh,
    "gelu_python_tanh": gelu_pytorch_tanh,
}
