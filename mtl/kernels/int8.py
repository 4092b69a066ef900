"""int8 on a CPU: each linear layer's product in 8-bit integers, everything else as it was.

    x ~ (q_x - zero) * step       w ~ q_w * scale       y = step * scale * sum (q_x - zero) q_w + bias

Steps are fixed, from what a few sentences show, so that a text's vector depends on no other text, and that a layer's
result can leave its kernel as the integers of the next: the feed-forward network is two kernels, with nothing between.
Integers are exact in any order, so that bits depend on nothing else.

A channel whose activations are large takes bits from all others; moving half of that range, on a logarithmic scale,
into the weights gives them back (SmoothQuant, Xiao et al. 2022, arXiv 2211.10438, equation 4). Weights have a scale
for each output, and 8 bits where the kernel adds their products exactly. Without VNNI or AMX it adds pairs of them in
16 bits, which would overflow without a word, so that they have 7.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from mtl.errors import InputError
from mtl.kernels.linear import Product, product
from mtl.model.interface import Encoder
from mtl.model.packing import PackedBatch

SMOOTHING = 0.55
HIDDEN_SHARE = 0.65  # of the largest activation: clipping the few above it leaves finer steps for all others
OUTLIER = 25  # times a median channel's: where one is so large, the layer that reads it stays in float32
Ranges = dict[str, Tensor]  # a linear layer's name -> the least and the largest of each input, (2, in)


@lru_cache
def largest_weight() -> int:
    """127 where the kernel adds products of 8-bit integers exactly, else 63: tried out, not assumed.

    Raises:
        InputError: there is no such kernel.
    """
    try:
        weight = torch.ops.onednn.qlinear_prepack(torch.full((16, 64), 127, dtype=torch.int8, device="cpu"), None)
        ones = torch.ones(16, dtype=torch.float32, device="cpu")
        zeros = torch.zeros(16, dtype=torch.int32, device="cpu")
        x = torch.full((4, 64), 255, dtype=torch.uint8, device="cpu")
        found = torch.ops.onednn.qlinear_pointwise(
            x, 1.0, 0, weight, ones, zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
    except (RuntimeError, AttributeError, NotImplementedError):
        raise InputError("precision is 'int8'; this build of torch has no such kernel: use 'fp32'") from None
    return 127 if bool((found == 64 * 255 * 127).all()) else 63


class Int8Linear:
    """A linear layer in 8-bit integers: (tokens, in) -> (tokens, out) float32.

    The input is float32, or uint8 of the same step and zero. ``smooth`` (in,) is what each input is divided by. With
    ``leaves`` = (activation, step, zero), the output is activated and leaves as uint8.
    """

    kind = "int8"  # what a report calls it

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        step: float,
        zero: int,
        smooth: Tensor | None = None,
        leaves: tuple[str, float, int] | None = None,
    ) -> None:
        self.outputs, self.inputs = weight.shape
        self.dtype = torch.uint8 if smooth is None else torch.float32  # of what comes in
        weight = weight if smooth is None else weight * smooth
        scale = weight.abs().amax(dim=1).clamp(min=1e-12) / largest_weight()
        integers = (weight / scale[:, None]).round().to(torch.int8)
        self.weight = torch.ops.onednn.qlinear_prepack(integers, None)
        self.scale = scale
        self.zeros = torch.zeros_like(scale, dtype=torch.int32)
        self.bias = None if bias is None else bias.detach().clone()
        self.step, self.zero = step, zero
        self.factor = None if smooth is None else 1 / (smooth * step)
        self.leaves = leaves

    def __call__(self, x: Tensor) -> Tensor:
        if x.dtype != torch.uint8:
            x = x * self.factor if self.factor is not None else x / self.step
            x = x.add_(self.zero + 0.5).clamp_(0, 255)
            x = x.to(torch.int16).to(torch.uint8)  # cuts, so that adding a half rounds; straight it takes twice as long
        activation, step, zero = self.leaves or ("none", 1.0, 0)
        dtype = torch.uint8 if self.leaves else torch.float32
        product: Tensor = torch.ops.onednn.qlinear_pointwise(
            x, self.step, self.zero, self.weight, self.scale, self.zeros, self.bias,
            step, zero, dtype, activation, [], "none",
        )  # fmt: skip
        return product


def smoothed(weight: Tensor, bias: Tensor | None, ranges: Tensor) -> Int8Linear:
    """A layer of float32 input, whose ranges are shared with the weights."""
    largest = ranges.abs().amax(dim=0).clamp(min=1e-5)
    smooth = largest**SMOOTHING / weight.abs().amax(dim=0).clamp(min=1e-5) ** (1 - SMOOTHING)
    step = float((largest / smooth).max()) / 127
    return Int8Linear(weight, bias, step, 128, smooth)


def between(lin1: nn.Linear, lin2: nn.Linear, ranges: Ranges, name: str, fused: str | None) -> tuple[Product, Product]:
    """The layers of a feed-forward network, whose names are ``name`` and 1 or 2.

    With an activation that the kernel can compute, ``fused``, the first activates its output and gives it as the
    second's integers; but not where single channels are far larger than the others: there the second stays in float32.
    """
    if outlying(ranges[f"{name}2"]):
        return smoothed(lin1.weight, lin1.bias, ranges[f"{name}1"]), product(lin2.weight, lin2.bias)
    least, most = float(ranges[f"{name}2"].min()), float(ranges[f"{name}2"].max()) * HIDDEN_SHARE
    step = max(most - least, 1e-12) / 255
    zero = round(-least / step)
    first = smoothed(lin1.weight, lin1.bias, ranges[f"{name}1"])
    first.leaves = (fused, step, zero) if fused else None
    return first, Int8Linear(lin2.weight, lin2.bias, step, zero)


def outlying(ranges: Tensor) -> bool:
    """Whether one channel's range is far larger than most others'."""
    largest = ranges.abs().amax(dim=0)
    return bool(largest.max() > OUTLIER * largest.median())


def input_ranges(encoder: Encoder, rows: Sequence[Sequence[int]]) -> Ranges:
    """The least and the largest value of every input of every linear layer, by the layer's name in the encoder.

    ``rows`` are token ids of a few texts, which show how large inputs get.
    """
    ranges: Ranges = {}

    def watch(name: str, linear: nn.Linear) -> None:
        def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            ranges[name] = torch.stack([inputs[0].amin(dim=0), inputs[0].amax(dim=0)])

        linear.register_forward_pre_hook(note)

    watched = copy.deepcopy(encoder, {id(parameter): parameter for parameter in encoder.parameters()}).eval()
    for name, module in watched.named_modules():
        if isinstance(module, nn.Linear):
            watch(name, module)
    watched(PackedBatch.pack(rows))
    return ranges
