"""int8 on a CPU: each linear layer's product in 8-bit integers, everything else as it was.

    y = scale_token * (q_x q_w) * scale_output + bias,     x ~ q_x * scale_token,    w ~ q_w * scale_output

Activations are quantized as they come, with a scale for each token, so that a text's vector still depends on no
other text. Weights get a scale for each output and 7 bits: without special instructions, the kernel adds pairs of
products in 16 bits, which 8 bits times 8 bits would overflow without a word (measured: a sum of 48,960 where
6,193,536 is right). A channel whose activations are large takes bits from all others; moving half of that range,
on a logarithmic scale, into the weights gives them back (SmoothQuant, Xiao et al. 2022, arXiv 2211.10438,
equation 4). How large activations get is seen on a few bundled sentences.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from mtl.errors import InputError
from mtl.model.attention import attend, attend_first
from mtl.model.encoder import DistilBert, SelfAttention
from mtl.model.packing import PackedBatch

WEIGHT_MAX, ACTIVATION_MAX, ZERO_POINT = 63, 127, 128
SMOOTHING = 0.5
CALIBRATION_TEXTS = 64
CALIBRATION = sorted((Path(__file__).parents[1] / "recipes" / "demo").glob("*-train.jsonl"))


class Int8Linear(nn.Module):
    """A linear layer in 8-bit integers: (tokens, in) float32 -> (tokens, out) float32.

    ``largest`` (in,) is the largest magnitude seen of each input. A layer that ``consumes`` its input overwrites
    it, where nobody else reads it: memory that is written to for the first time is slow.
    """

    def __init__(self, weight: Tensor, bias: Tensor, largest: Tensor, consumes: bool = False) -> None:
        super().__init__()
        self.consumes = consumes
        ranges = weight.abs().amax(dim=0).clamp(min=1e-5)
        smooth = largest.clamp(min=1e-5) ** SMOOTHING / ranges ** (1 - SMOOTHING)
        weight = weight * smooth
        scale = weight.abs().amax(dim=1).clamp(min=1e-12) / WEIGHT_MAX
        integers = (weight / scale[:, None]).round().to(torch.int8)
        self.weight = torch.ops.onednn.qlinear_prepack(integers, None)
        self.scale = scale
        self.zero_points = torch.zeros(len(scale), dtype=torch.int32)
        self.unsmooth = 1 / smooth
        self.bias = bias.clone()

    def forward(self, x: Tensor) -> Tensor:
        x = x.mul_(self.unsmooth) if self.consumes else x * self.unsmooth
        largest = torch.maximum(x.amax(dim=1, keepdim=True), -x.amin(dim=1, keepdim=True))
        token_scale = largest.clamp_(min=1e-12) / ACTIVATION_MAX
        integers = x.mul_(1 / token_scale).round_().to(torch.int8).view(torch.uint8).add_(ZERO_POINT)  # -127 is 1
        y = torch.ops.onednn.qlinear_pointwise(
            integers, 1.0, ZERO_POINT, self.weight, self.scale, self.zero_points, None,
            1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return y.mul_(token_scale).add_(self.bias)


class Int8SelfAttention(nn.Module):
    """As SelfAttention, with q, k and v from one product, since they quantize the same input."""

    def __init__(self, attention: SelfAttention, largest: Tensor, largest_context: Tensor) -> None:
        super().__init__()
        self.n_heads = attention.n_heads
        projections = (attention.q_lin, attention.k_lin, attention.v_lin)
        weight = torch.cat([linear.weight for linear in projections])
        self.qkv_lin = Int8Linear(weight, torch.cat([linear.bias for linear in projections]), largest)
        self.out_lin = Int8Linear(attention.out_lin.weight, attention.out_lin.bias, largest_context, True)

    def forward(self, x: Tensor, batch: PackedBatch) -> Tensor:
        q, k, v = self.qkv_lin(x).unflatten(1, (3, self.n_heads, -1)).unbind(1)  # (tokens, heads, head_dim)
        return self.out_lin(attend(q, k, v, batch).flatten(1))

    def first(self, x: Tensor, batch: PackedBatch) -> Tensor:
        q, k, v = self.qkv_lin(x).unflatten(1, (3, self.n_heads, -1)).unbind(1)
        return self.out_lin(attend_first(q[batch.firsts], k, v, batch).flatten(1))


def calibration_texts() -> list[str]:
    """The bundled sentences that activations are measured on."""
    lines = [line for path in CALIBRATION for line in path.read_text("utf-8").splitlines()[: CALIBRATION_TEXTS // 2]]
    return [json.loads(line)["text"] for line in lines]


@torch.no_grad()
def largest_inputs(encoder: DistilBert, rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """The largest magnitude of every input of every linear layer, by the layer's name."""
    largest: dict[str, Tensor] = {}

    def watch(name: str, linear: nn.Linear) -> torch.utils.hooks.RemovableHandle:
        def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            largest[name] = inputs[0].abs().amax(dim=0)

        return linear.register_forward_pre_hook(note)

    hooks = [watch(name, module) for name, module in encoder.named_modules() if isinstance(module, nn.Linear)]
    encoder(PackedBatch.pack(rows))
    for hook in hooks:
        hook.remove()
    return largest


@torch.no_grad()
def quantize(encoder: DistilBert, rows: Sequence[Sequence[int]]) -> None:
    """Replace every linear layer of an encoder by its int8 form, in place; for inference only.

    ``rows`` are token ids of a few texts, on which activations are measured.

    Raises:
        InputError: this build of torch has no int8 kernel for this machine.
    """
    if not torch.backends.mkldnn.is_available() or next(encoder.parameters()).device.type != "cpu":
        raise InputError("precision is 'int8'; expected a CPU, and a torch that was built with oneDNN")
    largest = largest_inputs(encoder, rows)
    for i, block in enumerate(encoder.transformer.layer):
        name = f"transformer.layer.{i}"
        inputs = largest[f"{name}.attention.q_lin"], largest[f"{name}.attention.out_lin"]
        assert isinstance(block.attention, SelfAttention)
        block.attention = Int8SelfAttention(block.attention, *inputs)
        for linear in ("lin1", "lin2"):
            old = getattr(block.ffn, linear)
            setattr(
                block.ffn, linear, Int8Linear(old.weight, old.bias, largest[f"{name}.ffn.{linear}"], linear == "lin2")
            )
    encoder.eval()
