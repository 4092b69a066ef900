"""int8 on a CPU: each linear layer's product in 8-bit integers, everything else as it was.

    x ~ (q_x - zero) * step       w ~ q_w * scale       y = step * scale * sum (q_x - zero) q_w + bias

Steps are fixed, from what a few sentences show, so that a text's vector depends on no other text, and that a layer's
result can leave its kernel as the integers of the next: the feed-forward network is two kernels, with nothing between.
Integers are exact in any order, so that bits depend on nothing else.

A channel whose activations are large takes bits from all others; moving half of that range, on a logarithmic scale,
into the weights gives them back (SmoothQuant, Xiao et al. 2022, arXiv 2211.10438, equation 4). Weights have a scale
for each output, and 8 bits where the kernel adds their products exactly. Without VNNI or AMX it adds pairs of them in
16 bits, which would overflow without a word, so that they have 7. What all this costs is measured: see gate.py.

With AMX, oneDNN has several kernels for a small product, by its number of rows, and what follows the sum is rounded in
another order in each. Where that is seen, the kernel gives the sums alone, and torch does what follows.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtl.errors import InputError, WeightsError
from mtl.kernels.linear import Product, rounded_rows
from mtl.kernels.threads import computing_with
from mtl.model.interface import Encoder
from mtl.model.packing import PackedBatch

SMOOTHING = 0.55
LEAST_COSINE = 0.98  # of a vector to that of float32; gate.py measures it
HIDDEN_SHARE = 0.65  # of the largest activation: clipping the few above it leaves finer steps for all others
ROWS = sorted({rounded_rows(rows) for rows in range(1, 769)})  # of products that are tried out
ACTIVATED = {"none": lambda x: x, "gelu": F.gelu, "relu": F.relu}  # what a kernel computes after the sum, in torch
Ranges = dict[str, Tensor]  # a linear layer's name -> the least and the largest of each input, (2, in)


@lru_cache
def largest_weight() -> int:
    """127 where the kernel adds products of 8-bit integers exactly, else 63: tried out, not assumed. Without such a
    kernel it is an InputError."""
    try:
        weight = torch.ops.onednn.qlinear_prepack(torch.full((16, 64), 127, dtype=torch.int8, device="cpu"), None)
        ones = torch.ones(16, dtype=torch.float32, device="cpu")
        zeros = torch.zeros(16, dtype=torch.int32, device="cpu")
        x = torch.full((4, 64), 255, dtype=torch.uint8, device="cpu")
        found = pointwise(x, 1.0, 0, weight, ones, zeros, None, 1.0, 0, torch.float32, "none")
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
        activation = self.leaves[0] if self.leaves else "none"
        return self.whole(x) if in_one_kernel(self.inputs, self.outputs, activation) else self.apart(x)

    def whole(self, x: Tensor) -> Tensor:
        """What the layer makes of uint8, in one kernel."""
        activation, step, zero = self.leaves or ("none", 1.0, 0)
        dtype = torch.uint8 if self.leaves else torch.float32
        return pointwise(x, self.step, self.zero, self.weight, self.scale, self.zeros, self.bias,
                         step, zero, dtype, activation)  # fmt: skip

    def apart(self, x: Tensor) -> Tensor:
        """The same, of which each operation is rounded by itself."""
        y = self.sums(x).mul_(self.scale * self.step)
        if self.bias is not None:
            y.add_(self.bias)
        if self.leaves is None:
            return y
        activation, step, zero = self.leaves
        return ACTIVATED[activation](y).div_(step).add_(zero).round_().clamp_(0, 255).to(torch.int16).to(torch.uint8)

    def sums(self, x: Tensor) -> Tensor:
        """sum (q_x - zero) q_w, (tokens, out) float32."""
        ones = torch.ones_like(self.scale)
        return pointwise(x, 1.0, self.zero, self.weight, ones, self.zeros, None, 1.0, 0, torch.float32, "none")


def pointwise(*given: Any) -> Tensor:
    """oneDNN's product of integers, and what follows it."""
    product: Tensor = torch.ops.onednn.qlinear_pointwise(*given, [], "none")
    return product


@lru_cache
def in_one_kernel(inputs: int, outputs: int, activation: str) -> bool:
    """Whether a row has the same bits among any number of rows if one kernel computes all of it. Other processors than
    those with AMX have one kernel for all numbers of rows; there it is tried out. An InputError if not even the sums
    keep their bits."""
    if not torch.cpu._is_amx_tile_supported():
        return True
    generator = torch.Generator("cpu").manual_seed(0)
    here: dict[str, Any] = {"generator": generator, "device": "cpu"}
    weight, bias = (torch.randn(size, dtype=torch.float32, **here) for size in ((outputs, inputs), (outputs,)))
    x = torch.randint(256, (ROWS[-1], inputs), dtype=torch.uint8, **here)
    layer = Int8Linear(weight, bias, 0.013, 117, None, None if activation == "none" else (activation, 0.021, 9))

    def same(compute: Callable[[Tensor], Tensor]) -> bool:
        for threads in (1, 2, 3):
            with computing_with(threads):
                expected = compute(x)
                if not all(torch.equal(compute(x[:rows]), expected[:rows]) for rows in ROWS):
                    return False
        return True

    with torch.inference_mode(), torch.device("cpu"):
        if same(layer.whole):
            return True
        if same(layer.sums):
            return False
    raise InputError("precision is 'int8', whose kernels give a text other bits beside others here: use 'fp32'")


def smoothed(weight: Tensor, bias: Tensor | None, ranges: Tensor) -> Int8Linear:
    """A layer of float32 input, whose ranges are shared with the weights."""
    largest = ranges.abs().amax(dim=0).clamp(min=1e-5)
    smooth = largest**SMOOTHING / weight.abs().amax(dim=0).clamp(min=1e-5) ** (1 - SMOOTHING)
    step = float((largest / smooth).max()) / 127
    return Int8Linear(weight, bias, step, 128, smooth)


def of_hidden(linear: nn.Linear, ranges: Tensor) -> Int8Linear:
    """A layer that reads what an activation gives: one step for all its inputs, float32 or integers."""
    least, most = float(ranges.min()), float(ranges.max()) * HIDDEN_SHARE
    step = max(most - least, 1e-12) / 255
    return Int8Linear(linear.weight, linear.bias, step, round(-least / step))


@dataclasses.dataclass(frozen=True)
class Quality:
    """The least cosine of a vector to that of float32, and how many of the products are computed in float32."""

    least_cosine: float
    kept: int
    products: int

    def __str__(self) -> str:
        kept = f", {self.kept} of {self.products} products in fp32" if self.kept else ""
        return f"least cosine {self.least_cosine:.4f}{kept}"


def leaving_as_float(layer: Product) -> Product:
    """The same layer, whose output is float32 and not activated."""
    if isinstance(layer, Int8Linear):
        layer = copy.copy(layer)
        layer.leaves = None
    return layer


class Calibration:
    """What a few texts show of an encoder in float32.

    ``ranges`` are the least and the largest value of every input of every linear layer, by its name in the encoder;
    ``states`` what each block reads, (tokens, dim), and last what the encoder gives. ``rows`` are the texts' token ids.
    """

    def __init__(self, rows: Sequence[Sequence[int]]) -> None:
        self.batch = PackedBatch.pack(rows)
        self.ranges: Ranges = {}
        self.states: list[Tensor] = []

    def watch(self, encoder: Encoder) -> None:
        """See the texts through the encoder, which stays as it is; a value that is not finite is a WeightsError."""
        watched = copy.deepcopy(encoder, {id(parameter): parameter for parameter in encoder.parameters()}).eval()
        for name, module in watched.named_modules():
            if isinstance(module, nn.Linear):
                self.note(name, module)
        self.states = [watched.embed(self.batch)]
        for i in range(len(watched.blocks)):
            self.states.append(watched.run(self.states[-1], self.batch, i, i + 1))
        if not all(x.isfinite().all() for x in (*self.ranges.values(), self.states[-1])):
            raise WeightsError("in the encoder a value is not finite; look for damage in the weights")

    def note(self, name: str, linear: nn.Linear) -> None:
        def ranges(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self.ranges[name] = torch.stack([inputs[0].amin(dim=0), inputs[0].amax(dim=0)])

        linear.register_forward_pre_hook(ranges)
