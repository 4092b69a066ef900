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

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtl.errors import InputError
from mtl.model.encoder import DistilBert, SelfAttention, TransformerBlock
from mtl.model.forms import joined, rebuilt, release, with_attention
from mtl.model.packing import PackedBatch

SMOOTHING = 0.55
HIDDEN_SHARE = 0.65  # of the largest activation: clipping the few above it leaves finer steps for all others
Ranges = dict[str, Tensor]  # a linear layer's name -> the least and the largest of each input, (2, in)


@lru_cache
def largest_weight() -> int:
    """127 where the kernel adds products of 8-bit integers exactly, else 63: tried out, not assumed.

    Raises:
        InputError: there is no such kernel.
    """
    try:
        weight = torch.ops.onednn.qlinear_prepack(torch.full((16, 64), 127, dtype=torch.int8), None)
        ones, zeros = torch.ones(16), torch.zeros(16, dtype=torch.int32)
        x = torch.full((4, 64), 255, dtype=torch.uint8)
        found = torch.ops.onednn.qlinear_pointwise(
            x, 1.0, 0, weight, ones, zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
    except (RuntimeError, AttributeError, NotImplementedError):
        raise InputError("precision is 'int8'; this build of torch has no such kernel: use 'fp32'") from None
    return 127 if bool((found == 64 * 255 * 127).all()) else 63


class Int8Linear(nn.Module):
    """A linear layer in 8-bit integers: (tokens, in) -> (tokens, out) float32.

    The input is float32, or uint8 of the same step and zero. ``smooth`` (in,) is what each input is divided by. With
    ``leaves`` = (activation, step, zero), the output is activated and leaves as uint8.
    """

    kind = "int8"  # what a report calls it

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        step: float,
        zero: int,
        smooth: Tensor | None = None,
        leaves: tuple[str, float, int] | None = None,
    ) -> None:
        super().__init__()
        self.outputs, self.inputs = weight.shape
        self.dtype = torch.uint8 if smooth is None else torch.float32  # of what comes in
        weight = weight if smooth is None else weight * smooth
        scale = weight.abs().amax(dim=1).clamp(min=1e-12) / largest_weight()
        integers = (weight / scale[:, None]).round().to(torch.int8)
        self.weight = torch.ops.onednn.qlinear_prepack(integers, None)
        self.scale = scale
        self.zeros = torch.zeros(len(scale), dtype=torch.int32)
        self.bias = bias.detach().clone()
        self.step, self.zero = step, zero
        self.factor = None if smooth is None else 1 / (smooth * step)
        self.leaves = leaves

    def forward(self, x: Tensor) -> Tensor:
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


def smoothed(weight: Tensor, bias: Tensor, ranges: Tensor) -> Int8Linear:
    """A layer of float32 input, whose ranges are shared with the weights."""
    largest = ranges.abs().amax(dim=0).clamp(min=1e-5)
    smooth = largest**SMOOTHING / weight.abs().amax(dim=0).clamp(min=1e-5) ** (1 - SMOOTHING)
    step = float((largest / smooth).max()) / 127
    return Int8Linear(weight, bias, step, 128, smooth)


def int8_block(block: TransformerBlock, ranges: Ranges) -> TransformerBlock:
    """A block with its six linear layers in integers. ``ranges`` go by the layers' names in the block."""
    attention, ffn = block.attention, block.ffn
    assert isinstance(attention, SelfAttention)
    out = smoothed(attention.out_lin.weight, attention.out_lin.bias, ranges["attention.out_lin"])
    qkv = joined(attention, lambda weight, bias: smoothed(weight, bias, ranges["attention.q_lin"]))
    least, most = float(ranges["ffn.lin2"].min()), float(ranges["ffn.lin2"].max()) * HIDDEN_SHARE
    step = max(most - least, 1e-12) / 255
    zero = round(-least / step)
    new, new_ffn = rebuilt(block), rebuilt(ffn)
    lin1 = smoothed(ffn.lin1.weight, ffn.lin1.bias, ranges["ffn.lin1"])
    lin1.leaves = ("relu" if ffn.activation is F.relu else "gelu", step, zero)
    new_ffn._modules |= {"lin1": lin1, "lin2": Int8Linear(ffn.lin2.weight, ffn.lin2.bias, step, zero)}
    new_ffn.activation = nn.Identity()
    new._modules |= {"attention": with_attention(attention, qkv, out), "ffn": new_ffn}
    return new


@torch.no_grad()
def input_ranges(encoder: DistilBert, rows: Sequence[Sequence[int]]) -> Ranges:
    """The least and the largest value of every input of every linear layer, by the layer's name in the encoder."""
    ranges: Ranges = {}

    def watch(name: str, linear: nn.Linear) -> torch.utils.hooks.RemovableHandle:
        def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            ranges[name] = torch.stack([inputs[0].amin(dim=0), inputs[0].amax(dim=0)])

        return linear.register_forward_pre_hook(note)

    watched = rebuilt(encoder)
    for part in watched.modules():
        part._forward_pre_hooks = part._forward_pre_hooks.copy()
    for name, module in watched.named_modules():
        if isinstance(module, nn.Linear):
            watch(name, module)
    watched(PackedBatch.pack(rows))
    return ranges


@torch.no_grad()
def int8(encoder: DistilBert, rows: Sequence[Sequence[int]], mapped: bool = False) -> DistilBert:
    """An encoder's form in 8-bit integers. ``rows`` are token ids of a few texts, which show how large inputs get.

    ``mapped`` is as in forms.packed.

    Raises:
        InputError: this build of torch has no kernel for it, or the encoder is on another device than a CPU.
    """
    device = next(encoder.parameters()).device
    if device.type != "cpu":
        raise InputError(f"precision is 'int8' and device {str(device)!r}; int8 is for a CPU")
    largest_weight()
    ranges = input_ranges(encoder, rows)

    def replace(part: nn.Module) -> nn.Module | None:
        if not isinstance(part, TransformerBlock):
            return None
        prefix = f"{names[part]}."
        new = int8_block(part, {n.removeprefix(prefix): r for n, r in ranges.items() if n.startswith(prefix)})
        if mapped:
            release(part)
        return new

    names = {module: name for name, module in encoder.named_modules()}
    return rebuilt(encoder, replace)
