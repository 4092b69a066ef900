"""Linear layers as inference computes them: the one place that chooses how.

    y = x W^T + b

What is trained, saved and exported is torch's ``nn.Linear`` in float32. Its product has one drawback: BLAS changes its
arithmetic with the number of rows, at other numbers on every processor, so that a text's bits would depend on the
texts beside it. ``Packed`` has its weights laid out once as oneDNN's kernel reads them, and that kernel gives a row
the same bits whatever stands above and below it (`mtl check` tries it out). int8.py has the same in integers.

bfloat16 on AMX is the exception: that kernel adds up a long sum in another order at some numbers of rows. It is given
sums of ``AMX_DEPTH`` values, one after another.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

AMX_DEPTH = 384  # up to 448, no number of rows was seen to change the order; from 512 on, many were
MADV_PAGEOUT = 21  # linux/mman.h, since Linux 5.4

Product = Callable[[Tensor], Tensor]  # (rows, in) -> (rows, out)


def has_packed(dtype: torch.dtype = torch.float32) -> bool:
    """Whether this build of torch and this processor have oneDNN's prepacked product for a number format."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def rounded_rows(rows: int) -> int:
    """The number of rows that a product of so many is given."""
    step = 4 if rows <= 64 else 8 if rows <= 128 else 16
    return rows + -rows % step


def rounded(x: Tensor) -> Tensor:
    """x, on a CPU with rows of zeros after its own, so that few numbers of rows come up: each costs oneDNN a kernel.

    To make four for a layer's products costs 2 ms, and a text of 100 tokens 15; those that are kept cost memory.
    """
    more = 0 if x.is_cuda else rounded_rows(len(x)) - len(x)
    return F.pad(x, (0, 0, 0, more)) if more else x


class Packed:
    """A linear layer with prepacked weights: (rows, in) -> (rows, out), in the weights' float32 or bfloat16."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.outputs, self.inputs = weight.shape
        self.dtype = weight.dtype
        amx = self.dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported()
        self.depth = AMX_DEPTH if amx else self.inputs  # how many inputs are summed at a time
        pieces = weight.split(self.depth, dim=1)
        self.weights = [torch.ops.mkldnn._reorder_linear_weight(piece.contiguous(), None) for piece in pieces]
        self.bias = bias

    @property
    def kind(self) -> str:
        """What a report calls it."""
        return f"packed {'fp32' if self.dtype == torch.float32 else 'bf16'}"

    def __call__(self, x: Tensor) -> Tensor:
        if len(x) == 1:  # AVX-512 has another kernel for one row alone, which gives other bits
            return self(x.expand(2, -1).contiguous())[:1]
        weight, *weights = self.weights
        piece, *pieces = x.split(self.depth, dim=1) if weights else (x,)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(piece, weight, self.bias, "none", [], "")
        for piece, weight in zip(pieces, weights, strict=True):
            product = torch.ops.mkldnn._linear_pointwise.binary(piece, product, weight, None, "add")
        return product


def cast(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if x is None else x.detach().to(dtype)


def product(weight: Tensor, bias: Tensor | None, dtype: torch.dtype = torch.float32) -> Product:
    """A linear layer in a number format: prepacked where there is such a kernel, else torch's own."""
    weight, bias = weight.detach().to(dtype), cast(bias, dtype)
    if weight.device.type == "cpu" and has_packed(dtype):
        return Packed(weight, bias)
    return lambda x: F.linear(x, weight, bias)


def joined(*layers: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """The weight and bias of several layers that read the same input, as one's: their outputs stand side by side."""
    weights: list[Tensor] = [layer.weight for layer in layers]
    biases: list[Tensor] = [layer.bias for layer in layers if layer.bias is not None]
    return torch.cat(weights), torch.cat(biases) if biases else None


def release(tensors: Iterable[Tensor]) -> None:
    """Tell Linux that memory-mapped tensors need not stay in memory; what reads them reads the file again.

    Nothing is lost by it, whatever the memory is.
    """
    advise = getattr(ctypes.CDLL(None), "madvise", None) if sys.platform == "linux" else None
    for weight in tensors:
        first = -(-weight.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        size = (weight.data_ptr() + weight.nbytes - first) // mmap.PAGESIZE * mmap.PAGESIZE
        if advise and size > 0 and weight.device.type == "cpu":
            advise(ctypes.c_void_p(first), ctypes.c_size_t(size), MADV_PAGEOUT)
