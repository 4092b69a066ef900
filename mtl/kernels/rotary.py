"""The program of model/rotary.py: the same blocks, of packed products, in a number format.

In int8 all four products of a block are in integers; the gated activations between them are float32. Where only each
text's first token is asked for, the last block computes no more of the others than its keys and values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtl.kernels.activations import inplace
from mtl.kernels.attention import attend, attend_first
from mtl.kernels.encoder import BlockProgram, Norm, table_of
from mtl.kernels.int8 import Ranges, smoothed
from mtl.kernels.linear import Product, product, release, rounded
from mtl.kernels.threads import alone
from mtl.model.packing import PackedBatch
from mtl.model.positions import angles, with_segments
from mtl.model.rotary import RotaryBlock, RotaryEncoder

ROWS = 1024  # positions that are computed at once; the longest texts decide how many times as many
Turns = tuple[Tensor, Tensor]  # cosines and sines, (tokens, head_dim / 2) each, with rows to spare


class Angles:
    """The cosines and sines of every position, in a table that grows with the longest text.

    A processor computes several at once, and how exactly depends on all of them: so each stands at its place in the
    table, whatever the batch.
    """

    def __init__(self, width: int, theta: float, scaling: tuple[float, float]) -> None:
        self.width, self.theta, self.scaling = width, theta, scaling
        self.table = self.of(torch.arange(0))

    def of(self, positions: Tensor) -> Turns:
        return angles(positions, self.width, self.theta, *self.scaling)

    def __call__(self, batch: PackedBatch) -> Turns:
        if batch.ids.is_cuda:
            return self.of(batch.positions)
        table, rows = self.table, int(batch.positions.max()) + 1 if batch.lengths else 0
        if len(table[0]) < rows:
            with alone():
                table = self.table = self.of(torch.arange(-(-rows // ROWS) * ROWS, device="cpu"))
        cos, sin = (rounded(each[batch.positions]) for each in table)
        return cos, sin


def rotated(x: Tensor, turns: Turns) -> Tensor:
    """x (tokens, n, heads, head_dim), each head turned by its token's position."""
    cos, sin = (each[:, None, None] for each in turns)
    a, b = x.chunk(2, dim=-1)
    return torch.cat(((a * cos).sub_(b * sin), (b * cos).add_(a * sin)), dim=-1).to(x.dtype)


@dataclasses.dataclass(frozen=True)
class Block:
    """A RotaryBlock: (tokens, dim) to (tokens, dim), or with ``first`` to (texts, dim); see linear.rounded."""

    heads: int
    angles: Angles
    reach: int | None
    pre_norm: bool
    norm1: Callable[[Tensor], Tensor]
    qkv: Product
    out: Product
    norm2: Callable[[Tensor], Tensor]
    wi: Product
    activation: Callable[[Tensor], Tensor]  # may overwrite what it is given
    wo: Product
    last_norm: Callable[[Tensor], Tensor]  # behind the last block of all
    narrow: bool  # see attention.attend

    def __call__(self, x: Tensor, batch: PackedBatch, shared: Mapping[Angles, Turns], first: bool = False) -> Tensor:
        turns = shared[self.angles]
        qkv = self.qkv(self.norm1(x) if self.pre_norm else x).unflatten(1, (3, self.heads, -1))
        q, k = rotated(qkv[:, :2], turns).unbind(1)
        if first:
            context = attend_first(q[batch.firsts], k, qkv[:, 2], batch, reach=self.reach).flatten(1)
            x, context = rounded(x[batch.firsts]), rounded(context)
        else:
            context = attend(q, k, qkv[:, 2], batch, reach=self.reach, narrow=self.narrow).flatten(1)
        x = x + self.out(context)
        if self.pre_norm:
            return self.last_norm(x + self.feed_forward(self.norm2(x)))
        x = self.norm1(x)
        return self.norm2(x + self.feed_forward(x))

    def keeping(self, plain: Block, names: Collection[str]) -> Block:
        """As encoder.Block.keeping."""
        return dataclasses.replace(self, **{name: getattr(plain, name) for name in names})

    def feed_forward(self, x: Tensor) -> Tensor:
        activated, gate = self.wi(x).chunk(2, dim=1)
        return self.wo(self.activation(activated) * gate)


class Program(BlockProgram):
    """A RotaryEncoder."""

    def __init__(self, encoder: RotaryEncoder, dtype: torch.dtype, make: Callable[[int], Block]) -> None:
        self.words = encoder.embeddings.tok_embeddings.weight.detach().to(dtype)
        self.types = table_of(encoder.embeddings.token_type_embeddings, dtype)
        self.norm = Norm.of(encoder.embeddings.norm, dtype)
        self.make = make
        self.blocks = [make(i) for i in range(len(encoder.blocks))]

    def embed(self, batch: PackedBatch) -> Tensor:
        return self.norm(with_segments(F.embedding(batch.ids, self.words), self.types, batch))

    def shared(self, batch: PackedBatch) -> dict[Angles, Turns]:
        return {angles: angles(batch) for angles in {block.angles for block in self.blocks}}


def normed(norm: nn.Module, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return Norm.of(norm, dtype) if isinstance(norm, nn.LayerNorm) else norm


def compile(encoder: RotaryEncoder, dtype: torch.dtype, ranges: Ranges, mapped: bool) -> Program:
    """As encoder.compile."""
    int8 = dtype == torch.int8
    number = torch.float32 if int8 else dtype
    tables: dict[float, Angles] = {}

    def make(i: int, plain: bool = False) -> Block:
        block = encoder.blocks[i]
        assert isinstance(block, RotaryBlock)
        attn, mlp = block.attn, block.mlp

        def linear(name: str, part: nn.Linear) -> Product:
            if int8 and not plain:
                return smoothed(part.weight, part.bias, ranges[f"layers.{i}.{name}"])
            return product(part.weight, part.bias, number)

        made = Block(
            attn.n_heads,
            tables.setdefault(attn.theta, Angles(attn.head_dim, attn.theta, attn.scaling)),
            attn.reach,
            block.pre_norm,
            normed(block.attn_norm, number),
            linear("attn.Wqkv", attn.Wqkv),
            linear("attn.Wo", attn.Wo),
            normed(block.mlp_norm, number),
            linear("mlp.Wi", mlp.Wi),
            inplace(mlp.activation),
            linear("mlp.Wo", mlp.Wo),
            normed(encoder.final_norm, number) if i == len(encoder.blocks) - 1 else nn.Identity(),
            int8,
        )
        if mapped:
            release(block.parameters())
        return made

    return Program(encoder, number, make)
