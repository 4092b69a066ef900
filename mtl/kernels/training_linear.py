"""Linear layers as training computes them where oneDNN's product is the faster one.

    y = x W^T + b        dX = g W        dW = g^T x        db = the sum of g's rows

torch leaves float32 products to MKL, which takes AVX2's path on AMD's processors: on Zen 5 all three run at 110 GFLOP/s
a core, and at 200 to 250 in oneDNN, in float32 too. Weights laid out once a step, and rows rounded up to a multiple,
so that oneDNN makes fewer kernels, were tried: both cost more than they saved.
"""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mtl.errors import ConfigError
from mtl.kernels.linear import has_packed

SMALLEST = 16  # rows, inputs and outputs: below it a product takes no time
CHOICE = "MTL_TRAINING_LINEAR"  # "onednn" or "torch": what computes linear layers, whatever the processor is


@cache
def onednn() -> bool:
    """Whether oneDNN's product is taken: on AMD's processors with AVX-512, unless the environment chooses.

    It follows from what the processor is, and from no timing: a resumed run is to take the same.

    Raises:
        ConfigError: the environment chooses what there is not.
    """
    choice = os.environ.get(CHOICE, "")
    if choice not in ("", "onednn", "torch"):
        raise ConfigError(f"{CHOICE} is {choice!r}; expected onednn or torch")
    if choice == "onednn" and not has_packed():
        raise ConfigError(f"{CHOICE} is 'onednn', which this build of torch has not")
    return choice == "onednn" or (not choice and has_packed() and amd_with_avx512())


def amd_with_avx512(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    about = cpuinfo.read_text() if cpuinfo.is_file() else platform.processor()
    return "AuthenticAMD" in about and torch.backends.cpu.get_cpu_capability() == "AVX512"


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y


class Linear(torch.autograd.Function):
    """x (rows, inputs), weight (outputs, inputs) and bias (outputs,) -> (rows, outputs), in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        g = g.contiguous()
        return (
            product(g, weight.t()) if of_x else None,
            product(g.t(), x.t()) if of_weight else None,
            g.sum(0) if of_bias else None,
        )


def suits(x: Any, weight: Any, bias: Any) -> bool:
    """Whether a call is one that ``Linear`` computes."""
    return (
        x.ndim == weight.ndim == 2
        and min(*x.shape, len(weight)) >= SMALLEST
        and all(
            type(part) in (Tensor, nn.Parameter)
            and part.dtype == torch.float32
            and part.device.type == "cpu"
            and part.layout == torch.strided
            and part.is_contiguous()
            for part in (x, weight, bias)
            if part is not None
        )
    )
