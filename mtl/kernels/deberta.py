"""The program of model/deberta.py: the same blocks, of packed products, in a number format.

The table of distances is the same for every text: what words are compared with is computed once, and each head's part
of it is laid out as a linear layer's weights. In int8 these stay in float32.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mtl.kernels import encoder
from mtl.kernels.encoder import Norm, table_of
from mtl.kernels.int8 import Ranges
from mtl.kernels.linear import Product, product, release
from mtl.model.deberta import Deberta, DebertaBlock, rows_of
from mtl.model.packing import Biases, PackedBatch
from mtl.model.positions import with_segments


@dataclasses.dataclass(frozen=True)
class Block(encoder.Block):
    """A DebertaBlock; in place of biases it gets rows of the table, (length, length) for each group.

    ``c2p`` compares the queries of each head with all distances, ``p2c`` the keys; either may be empty. Queries are
    divided by ``compared`` before.
    """

    compared: float
    c2p: Sequence[Product]
    p2c: Sequence[Product]

    def attended(self, q: Tensor, k: Tensor, v: Tensor, batch: PackedBatch, first: bool, biases: Biases) -> Tensor:
        q, rows = q / self.compared, [row[:1] if first else row for row in biases if row is not None]
        return super().attended(q, k, v, batch, first, self.biases(q, k, batch, rows))

    def biases(self, q: Tensor, k: Tensor, batch: PackedBatch, rows: Sequence[Tensor]) -> list[Tensor]:
        """What distances add to the scores of each group, (texts, heads, queries, length); of ``q`` and ``k``
        (queries or tokens, heads, head_dim), with rows to spare."""
        parts = []
        if self.c2p:
            sizes = [group.texts * len(row) for group, row in zip(batch.groups, rows, strict=True)]
            of_q = against(q, self.c2p)[: sum(sizes)].split(sizes)
            each = zip((x.unflatten(0, (-1, len(row))) for x, row in zip(of_q, rows, strict=True)), rows, strict=True)
            parts.append([picked(x, row).permute(0, 2, 1, 3) for x, row in each])
        if self.p2c:
            each = zip(batch.split(against(k, self.p2c)[: len(batch.ids)]), rows, strict=True)
            parts.append([picked(x, row.T).permute(0, 2, 3, 1) for x, row in each])
        return [sum(more, first) for first, *more in zip(*parts, strict=True)]


def against(x: Tensor, products: Sequence[Product]) -> Tensor:
    """x (tokens, heads, head_dim), each head by a product of its own: (tokens, heads, 2 span)."""
    by_head = x.transpose(0, 1).contiguous()
    return torch.stack([product(of_head) for product, of_head in zip(products, by_head, strict=True)], dim=1)


def picked(x: Tensor, rows: Tensor) -> Tensor:
    """Of x (texts, n, heads, 2 span) what rows (n, m) of the table are: (texts, n, heads, m)."""
    return x.gather(3, rows[None, :, None].expand(x.shape[0], -1, x.shape[2], -1))


class Program(encoder.BlockProgram):
    """A Deberta."""

    def __init__(self, model: Deberta, dtype: torch.dtype, make: Callable[[int], Block]) -> None:
        parts, places = model.embeddings, model.embeddings.position_embeddings
        self.config = model.config
        self.words = parts.word_embeddings.weight.detach().to(dtype)
        self.positions = None if places is None else places.weight.detach().to(dtype)
        self.types = table_of(parts.token_type_embeddings, dtype)
        self.norm = Norm.of(parts.LayerNorm, dtype)
        self.make = make
        self.blocks = [make(i) for i in range(len(model.blocks))]

    def embed(self, batch: PackedBatch) -> Tensor:
        x = F.embedding(batch.ids, self.words)
        x = x if self.positions is None else x + F.embedding(batch.positions, self.positions)
        return self.norm(with_segments(x, self.types, batch))

    def shared(self, batch: PackedBatch) -> list[Tensor]:
        return [rows_of(group.length, self.config, batch.ids.device) for group in batch.groups]


def compile(model: Deberta, dtype: torch.dtype, ranges: Ranges, mapped: bool) -> Program:
    """As encoder.compile."""
    number = torch.float32 if dtype == torch.int8 else dtype
    compared = math.sqrt(1 + model.config.c2p + model.config.p2c)
    table, make_inner = model.table(), encoder.maker(model, dtype, ranges)

    def make(i: int, plain: bool = False) -> Block:
        block = model.blocks[i]
        assert isinstance(block, DebertaBlock)
        pos_k, pos_q = block.attention.distances(table)  # (heads, 2 span, head_dim)
        width = math.sqrt(pos_k.shape[-1])
        c2p = [product(of_head / width, None, number) for of_head in pos_k] if model.config.c2p else []
        p2c = [product(of_head / compared / width, None, number) for of_head in pos_q] if model.config.p2c else []
        made = Block(**vars(make_inner(i, plain)), compared=compared, c2p=c2p, p2c=p2c)
        if mapped:
            release(block.parameters())
        return made

    return Program(model, number, make)
