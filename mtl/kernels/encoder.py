"""The program of model/encoder.py and model/mpnet.py: the same blocks, of packed products, in a number format.

One product gives q, k and v. In int8 the feed-forward network is two kernels with integers between them. Where only
each text's first token is asked for, the last block computes no more of the others than its keys and values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtl.kernels.activations import IN_INT8, inplace
from mtl.kernels.attention import attend, attend_first
from mtl.kernels.int8 import Ranges, between, input_ranges, outlying, smoothed
from mtl.kernels.linear import Product, cast, joined, product, release
from mtl.model.encoder import DistilBert, TransformerBlock
from mtl.model.mpnet import MPNet, biases
from mtl.model.packing import PackedBatch


@dataclasses.dataclass(frozen=True)
class Norm:
    """LayerNorm of each row."""

    weight: Tensor
    bias: Tensor | None
    eps: float

    @classmethod
    def of(cls, norm: nn.LayerNorm, dtype: torch.dtype) -> Norm:
        return cls(norm.weight.detach().to(dtype), cast(norm.bias, dtype), norm.eps)

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)


@dataclasses.dataclass(frozen=True)
class Block:
    """A TransformerBlock: (tokens, dim) to (tokens, dim), or with ``first`` to (texts, dim)."""

    heads: int
    qkv: Product
    out: Product
    norm1: Norm
    lin1: Product
    activation: Callable[[Tensor], Tensor]  # may overwrite what it is given
    lin2: Product
    norm2: Norm

    def __call__(
        self, x: Tensor, batch: PackedBatch, first: bool = False, biases: Sequence[Tensor | None] = ()
    ) -> Tensor:
        q, k, v = (y.unflatten(1, (self.heads, -1)) for y in self.qkv(x).chunk(3, dim=1))
        if first:
            x, q = x[batch.firsts], q[batch.firsts]
        context = (attend_first if first else attend)(q, k, v, batch, biases)
        x = self.norm1(x + self.out(context.flatten(1)))
        return self.norm2(x + self.lin2(self.activation(self.lin1(x))))


class Program:
    """A DistilBert or an MPNet in a number format; it shares the tensors that need no other form."""

    def __init__(self, encoder: DistilBert, dtype: torch.dtype, blocks: Sequence[Block]) -> None:
        parts = encoder.embeddings
        self.words = parts.word_embeddings.weight.detach().to(dtype)
        self.positions = parts.position_embeddings.weight.detach().to(dtype)
        self.norm = Norm.of(parts.LayerNorm, dtype)
        self.biases = encoder.relative_attention_bias.weight.detach().to(dtype) if isinstance(encoder, MPNet) else None
        self.blocks = blocks

    def embed(self, batch: PackedBatch) -> Tensor:
        return self.norm(F.embedding(batch.ids, self.words) + F.embedding(batch.positions, self.positions))

    def run(
        self, x: Tensor, batch: PackedBatch, start: int = 0, stop: int | None = None, first: bool = False
    ) -> Tensor:
        blocks = self.blocks[start:stop]
        bias = () if self.biases is None else biases(self.biases, batch)
        for i, block in enumerate(blocks, 1):
            x = block(x, batch, first and i == len(blocks), bias)
        return x

    def __call__(self, batch: PackedBatch) -> Tensor:
        return self.run(self.embed(batch), batch)


def compile(encoder: DistilBert, dtype: torch.dtype, rows: Sequence[Sequence[int]], mapped: bool) -> Program:
    """An encoder's program in a number format, in int8 with ranges from a few texts' token ids, ``rows``.

    ``mapped`` says that its weights are mapped from a file, and need not be in memory twice.
    """
    int8 = dtype == torch.int8
    ranges = input_ranges(encoder, rows) if int8 else {}
    blocks = []
    for i, block in enumerate(encoder.blocks):
        assert isinstance(block, TransformerBlock)
        own = f"transformer.layer.{i}."
        inputs = {name.removeprefix(own): found for name, found in ranges.items() if name.startswith(own)}
        blocks.append(int8_block(block, inputs) if int8 else packed_block(block, dtype))
        if mapped:
            release(block)
    return Program(encoder, torch.float32 if int8 else dtype, blocks)


def packed_block(block: TransformerBlock, dtype: torch.dtype) -> Block:
    attention, ffn = block.attention, block.ffn
    return Block(
        attention.n_heads,
        product(*joined(attention.q_lin, attention.k_lin, attention.v_lin), dtype),
        product(attention.out_lin.weight, attention.out_lin.bias, dtype),
        Norm.of(block.sa_layer_norm, dtype),
        product(ffn.lin1.weight, ffn.lin1.bias, dtype),
        inplace(ffn.activation),
        product(ffn.lin2.weight, ffn.lin2.bias, dtype),
        Norm.of(block.output_layer_norm, dtype),
    )


def int8_block(block: TransformerBlock, ranges: Ranges) -> Block:
    """A block with its six linear layers in integers. ``ranges`` go by the layers' names in the block."""
    attention, ffn = block.attention, block.ffn
    fused = None if outlying(ranges["ffn.lin2"]) else IN_INT8.get(ffn.activation)
    lin1, lin2 = between(ffn.lin1, ffn.lin2, ranges, "ffn.lin", fused)
    return Block(
        attention.n_heads,
        smoothed(*joined(attention.q_lin, attention.k_lin, attention.v_lin), ranges["attention.q_lin"]),
        smoothed(attention.out_lin.weight, attention.out_lin.bias, ranges["attention.out_lin"]),
        Norm.of(block.sa_layer_norm, torch.float32),
        lin1,
        nn.Identity() if fused else inplace(ffn.activation),
        lin2,
        Norm.of(block.output_layer_norm, torch.float32),
    )
