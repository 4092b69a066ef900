"""MPNet (Song et al. 2020, arXiv 2004.09297), from the token ids to the last hidden state.

Its blocks are those of encoder.py. To the scores of attention each head adds a number for how far apart two tokens
are, from a table of 32 buckets that all blocks share (T5's, Raffel et al. 2019, arXiv 1910.10683, section 2.1).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mtl.model.config import EncoderConfig
from mtl.model.encoder import DistilBert
from mtl.model.packing import PackedBatch

BUCKETS, FARTHEST = 32, 128


def buckets(length: int) -> Tensor:
    """The buckets of the distances key - query from 1 - length to length - 1: (2 length - 1,) int64.

    Half of them are for keys behind the query. Of each half the first half are distances of their own, the others grow
    by a factor, up to 128 tokens.
    """
    distances = torch.arange(1 - length, length)
    half, exact, away = BUCKETS // 2, BUCKETS // 4, distances.abs()
    grown = (away.clamp(min=1).float() / exact).log() / math.log(FARTHEST / exact) * (half - exact)
    far = (exact + grown.long()).clamp(max=half - 1)
    return torch.where(away < exact, away, far) + half * (distances > 0)


def biases(table: Tensor, batch: PackedBatch) -> list[Tensor]:
    """What is added to the scores in each group of equally long texts, (1, heads, length, length), of (32, heads)."""
    made = {}
    for length in {group.length for group in batch.groups}:
        values = table[buckets(length).to(table.device)].T  # (heads, 2 length - 1)
        made[length] = values.unfold(1, length, 1).flip(1)[None]  # query i begins at the distance -i
    return [made[group.length] for group in batch.groups]


class MPNet(DistilBert):
    """Token ids in, one hidden state per token out; see encoder.py."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        self.relative_attention_bias = nn.Embedding(BUCKETS, config.n_heads)
        nn.init.normal_(self.relative_attention_bias.weight, std=config.initializer_range)

    def run(self, x: Tensor, batch: PackedBatch, start: int = 0, stop: int | None = None) -> Tensor:
        bias = biases(self.relative_attention_bias.weight, batch)
        for block in self.blocks[start:stop]:
            x = block(x, batch, bias)
        return x
