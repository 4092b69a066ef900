"""The program of model/encoder.py and model/mpnet.py: the same blocks, of packed products, in a number format.

One product gives q, k and v. In int8 the feed-forward network is two kernels with integers between them. Where only
each text's first token is asked for, the last block computes no more of the others than its keys and values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtl.kernels.activations import IN_INT8, inplace
from mtl.kernels.attention import attend, attend_first
from mtl.kernels.int8 import Ranges, leaving_as_float, of_hidden, smoothed
from mtl.kernels.linear import Product, cast, joined, product, release, rounded
from mtl.model.deberta import Deberta, DebertaBlock
from mtl.model.encoder import DistilBert, TransformerBlock
from mtl.model.mpnet import MPNet, biases
from mtl.model.packing import Biases, PackedBatch
from mtl.model.positions import with_segments


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


def table_of(types: nn.Embedding | None, dtype: torch.dtype) -> Callable[[Tensor], Tensor] | None:
    """The table of segments in a number format, as a function of segments."""
    return None if types is None else partial(F.embedding, weight=types.weight.detach().to(dtype))


@dataclasses.dataclass(frozen=True)
class Block:
    """A TransformerBlock: (tokens, dim) to (tokens, dim), or with ``first`` to (texts, dim); see linear.rounded."""

    heads: int
    qkv: Product
    out: Product
    norm1: Norm
    lin1: Product
    activation: Callable[[Tensor], Tensor]  # may overwrite what it is given
    lin2: Product
    norm2: Norm
    narrow: bool  # see attention.attend

    def __call__(self, x: Tensor, batch: PackedBatch, biases: Biases = (), first: bool = False) -> Tensor:
        q, k, v = (y.unflatten(1, (self.heads, -1)) for y in self.qkv(x).chunk(3, dim=1))
        if first:
            x, q = x[batch.firsts], q[batch.firsts]
        context = self.attended(q, k, v, batch, first, biases).flatten(1)
        if first:
            x, context = rounded(x), rounded(context)
        x = self.norm1(x + self.out(context))
        return self.norm2(x + self.lin2(self.activation(self.lin1(x))))

    def attended(self, q: Tensor, k: Tensor, v: Tensor, batch: PackedBatch, first: bool, biases: Biases) -> Tensor:
        if first:
            return attend_first(q, k, v, batch, biases)
        return attend(q, k, v, batch, biases, narrow=self.narrow)

    def keeping(self, plain: Block, names: Collection[str]) -> Block:
        """This block in int8 with some of its products, by their names, from ``plain``, the same block in float32."""
        found = dataclasses.replace(self, **{name: getattr(plain, name) for name in names})
        if {"lin1", "lin2"}.isdisjoint(names):
            return found
        return dataclasses.replace(found, lin1=leaving_as_float(found.lin1), activation=plain.activation)


class BlockProgram:
    """An encoder in a number format, block by block; it shares the tensors that need no other form."""

    blocks: list[Any]
    make: Callable[[int], Any]  # of a program in int8, with True a block in float32

    def embed(self, batch: PackedBatch) -> Tensor:
        """What the first block gets, (tokens, dim)."""
        raise NotImplementedError

    def shared(self, batch: PackedBatch) -> Any:
        """What all blocks get of a batch besides: biases, distances or angles."""
        raise NotImplementedError

    def run(
        self, x: Tensor, batch: PackedBatch, start: int = 0, stop: int | None = None, first: bool = False
    ) -> Tensor:
        blocks, shared = self.blocks[start:stop], self.shared(batch)
        x = rounded(x)
        for i, block in enumerate(blocks, 1):
            x = block(x, batch, shared, first and i == len(blocks))
        return x[: len(batch.lengths if first else batch.ids)]

    def __call__(self, batch: PackedBatch) -> Tensor:
        return self.run(self.embed(batch), batch)


class Program(BlockProgram):
    """A DistilBert or an MPNet."""

    def __init__(self, encoder: DistilBert, dtype: torch.dtype, make: Callable[[int], Block]) -> None:
        parts = encoder.embeddings
        self.words = parts.word_embeddings.weight.detach().to(dtype)
        self.positions = parts.position_embeddings.weight.detach().to(dtype)
        self.unplaced = parts.unplaced
        self.types = table_of(parts.token_type_embeddings, dtype)
        self.norm = Norm.of(parts.LayerNorm, dtype)
        wider = parts.project
        self.project = product(wider.weight, wider.bias, dtype) if isinstance(wider, nn.Linear) else nn.Identity()
        self.biases = encoder.relative_attention_bias.weight.detach().to(dtype) if isinstance(encoder, MPNet) else None
        self.make = make
        self.blocks = [make(i) for i in range(len(encoder.blocks))]

    def embed(self, batch: PackedBatch) -> Tensor:
        x = F.embedding(batch.ids, self.words) + F.embedding(batch.position_ids(*self.unplaced), self.positions)
        return self.project(self.norm(with_segments(x, self.types, batch)))

    def shared(self, batch: PackedBatch) -> Sequence[Tensor]:
        return () if self.biases is None else biases(self.biases, batch)


def compile(encoder: DistilBert, dtype: torch.dtype, ranges: Ranges, mapped: bool) -> Program:
    """An encoder's program in a number format, in int8 with the ranges of what each layer reads.

    ``mapped`` says that its weights are mapped from a file, and need not be in memory twice.
    """
    make_block = maker(encoder, dtype, ranges)

    def make(i: int, plain: bool = False) -> Block:
        made = make_block(i, plain)
        if mapped:
            release(encoder.blocks[i].parameters())
        return made

    return Program(encoder, torch.float32 if dtype == torch.int8 else dtype, make)


def maker(encoder: DistilBert | Deberta, dtype: torch.dtype, ranges: Ranges) -> Callable[[int, bool], Block]:
    """What makes block number i, of a program in int8 with True in float32."""

    def make(i: int, plain: bool) -> Block:
        block = encoder.blocks[i]
        assert isinstance(block, (TransformerBlock, DebertaBlock))
        if dtype != torch.int8 or plain:
            return packed_block(block, torch.float32 if plain else dtype)
        own = f"transformer.layer.{i}."
        inputs = {name.removeprefix(own): found for name, found in ranges.items() if name.startswith(own)}
        return int8_block(block, inputs)

    return make


def packed_block(block: TransformerBlock | DebertaBlock, dtype: torch.dtype) -> Block:
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
        narrow=False,
    )


def int8_block(block: TransformerBlock | DebertaBlock, ranges: Ranges) -> Block:
    """A block with its six linear layers in integers. ``ranges`` go by the layers' names in the block.

    Where the kernel can compute the activation, the output of the first layer of the feed-forward network leaves it as
    the integers of the second.
    """
    attention, ffn = block.attention, block.ffn
    fused = IN_INT8.get(ffn.activation)
    lin1 = smoothed(ffn.lin1.weight, ffn.lin1.bias, ranges["ffn.lin1"])
    lin2 = of_hidden(ffn.lin2, ranges["ffn.lin2"])
    lin1.leaves = (fused, lin2.step, lin2.zero) if fused else None
    return Block(
        attention.n_heads,
        smoothed(*joined(attention.q_lin, attention.k_lin, attention.v_lin), ranges["attention.q_lin"]),
        smoothed(attention.out_lin.weight, attention.out_lin.bias, ranges["attention.out_lin"]),
        Norm.of(block.sa_layer_norm, torch.float32),
        lin1,
        nn.Identity() if fused else inplace(ffn.activation),
        lin2,
        Norm.of(block.output_layer_norm, torch.float32),
        narrow=True,
    )
