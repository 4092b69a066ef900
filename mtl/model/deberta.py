"""DeBERTa-v2 and -v3, from the token ids to the last hidden state.

He et al. 2020 (arXiv 2006.03654) and 2021 (arXiv 2111.09543). Against encoder.py, attention is disentangled: words say
nothing of where they are. Each distance between two tokens has a vector, in one table for all blocks, and a block
compares the query with the distance to the key, and the key with the distance to the query, beside the two with each
other (equation 4 of the first). Distances beyond half the table share vectors on a logarithmic scale (the v2 code).

In training the table of distances is not dropped: it belongs to no text, and what a text drops is its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtl.model.config import DebertaConfig
from mtl.model.dropout import Dropout
from mtl.model.encoder import FeedForward, attention
from mtl.model.interface import Encoder
from mtl.model.packing import PackedBatch, within_texts
from mtl.model.positions import segment_table, with_segments


def buckets(distances: Tensor, config: DebertaConfig) -> Tensor:
    """Distances query - key, int64, as the table tells them apart: -span to span, and beyond it what is too far."""
    near = config.position_buckets // 2
    if not near:
        return distances
    away, last = distances.abs(), torch.tensor((config.max_relative_positions - 1) / near)
    grown = (away.clamp(min=near) / near).log() / last.log() * (near - 1)
    return torch.where(away <= near, distances, (grown.ceil().long() + near) * distances.sign())


def rows_of(length: int, config: DebertaConfig, device: torch.device | None = None) -> Tensor:
    """The row of the table for each query and key: (length, length) int64."""
    farthest = torch.arange(1 - length, length, device="cpu")
    found = (buckets(farthest, config) + config.span).clamp(0, 2 * config.span - 1).to(device)  # (2 length - 1,)
    return found.unfold(0, length, 1).flip(1)  # query i begins at the distance i, that to the first key


def rows_within(length: int, config: DebertaConfig) -> slice:
    """The rows of the table that texts of up to so many tokens have."""
    ends = torch.tensor((1 - length, length - 1), dtype=torch.int64, device="cpu")
    first, last = (buckets(ends, config) + config.span).clamp(0, 2 * config.span - 1).tolist()
    return slice(first, last + 1)


class Embeddings(nn.Module):
    def __init__(self, config: DebertaConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.position_embeddings = None  # v3 has no other positions than distances
        if config.position_biased_input:
            self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.dim)
        self.token_type_embeddings = segment_table(config.segments, config.dim)
        self.LayerNorm = nn.LayerNorm(config.dim, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.dropout)

    def forward(self, batch: PackedBatch) -> Tensor:
        x = self.word_embeddings(batch.ids)  # (tokens, dim)
        if self.position_embeddings is not None:
            x = x + self.position_embeddings(batch.positions)
        return self.dropout(self.LayerNorm(with_segments(x, self.token_type_embeddings, batch)))


class DisentangledAttention(nn.Module):
    def __init__(self, config: DebertaConfig) -> None:
        super().__init__()
        self.n_heads, self.shared, self.dropout = config.n_heads, config.share_att_key, config.attention_dropout
        self.c2p, self.p2c = config.c2p, config.p2c
        self.q_lin = nn.Linear(config.dim, config.dim)
        self.k_lin = nn.Linear(config.dim, config.dim)
        self.v_lin = nn.Linear(config.dim, config.dim)
        self.out_lin = nn.Linear(config.dim, config.dim)
        if not self.shared:  # with words' projections, distances need none of their own
            self.pos_k_lin = nn.Linear(config.dim, config.dim) if self.c2p else nn.Identity()
            self.pos_q_lin = nn.Linear(config.dim, config.dim) if self.p2c else nn.Identity()

    def distances(self, table: Tensor) -> tuple[Tensor, Tensor]:
        """A table of distances (rows, dim) as keys and as queries, each (heads, rows, head_dim)."""
        k_lin, q_lin = (self.k_lin, self.q_lin) if self.shared else (self.pos_k_lin, self.pos_q_lin)
        k, q = (linear(table).unflatten(1, (self.n_heads, -1)).transpose(0, 1) for linear in (k_lin, q_lin))
        return k, q

    def bias(self, q: Tensor, k: Tensor, pos_k: Tensor, pos_q: Tensor, rows: Tensor) -> Tensor | None:
        """What distances add to scores, (texts, heads, length, length); q, k are (texts, length, heads, head_dim)."""
        parts: list[Tensor] = []
        if self.c2p:
            found = q.transpose(1, 2) @ pos_k.transpose(1, 2)  # (texts, heads, length, rows)
            parts.append(found.gather(3, rows.expand(*found.shape[:2], -1, -1)))
        if self.p2c:
            found = k.transpose(1, 2) @ pos_q.transpose(1, 2)
            parts.append(found.gather(3, rows.T.expand(*found.shape[:2], -1, -1)).transpose(2, 3))
        return sum(parts[1:], parts[0]) / math.sqrt(q.shape[-1]) if parts else None

    def forward(self, x: Tensor, batch: PackedBatch, table: Tensor, rows: Sequence[Tensor]) -> Tensor:
        pos_k, pos_q = self.distances(table)
        q, k, v = (linear(x).unflatten(1, (self.n_heads, -1)) for linear in (self.q_lin, self.k_lin, self.v_lin))
        compared = math.sqrt(1 + self.c2p + self.p2c)  # scores are a sum of so many, and scaled down as such
        q, pos_q = q / compared, pos_q / compared
        p = self.dropout if self.training else 0.0
        groups = zip(batch.split(q), batch.split(k), rows, strict=True)  # of equally long texts
        biases = [self.bias(of_q, of_k, pos_k, pos_q, own) for of_q, of_k, own in groups]
        context = within_texts(attention, q, k, v, batch, p, biases)
        return self.out_lin(context.flatten(1))  # (tokens, dim)


class DebertaBlock(nn.Module):
    def __init__(self, config: DebertaConfig) -> None:
        super().__init__()
        self.attention = DisentangledAttention(config)
        self.drop = Dropout(config.dropout)
        self.sa_layer_norm = nn.LayerNorm(config.dim, eps=config.layer_norm_eps)
        self.ffn = FeedForward(config)
        self.output_layer_norm = nn.LayerNorm(config.dim, eps=config.layer_norm_eps)

    def forward(self, x: Tensor, batch: PackedBatch, table: Tensor, rows: Sequence[Tensor]) -> Tensor:
        """(tokens, dim) in and out; ``rows`` are those of the table, for each group of equally long texts."""
        x = self.sa_layer_norm(x + self.drop(self.attention(x, batch, table, rows)))
        return self.output_layer_norm(x + self.ffn(x))


class Deberta(Encoder):
    """Token ids in, one hidden state per token out. A new one has random weights; mtl.checkpoints.load fills it."""

    WORDS, BLOCKS = "embeddings.word_embeddings", "transformer.layer"
    config: DebertaConfig

    def __init__(self, config: DebertaConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.rel_embeddings = nn.Embedding(2 * config.span, config.dim)
        self.rel_norm = nn.LayerNorm(config.dim, eps=config.layer_norm_eps) if config.norm_rel_ebd else nn.Identity()
        blocks = nn.ModuleList(DebertaBlock(config) for _ in range(config.n_layers))
        self.transformer = nn.ModuleDict({"layer": blocks})
        self.initialize(config.initializer_range)

    def embed(self, batch: PackedBatch) -> Tensor:
        return self.embeddings(batch)

    def table(self, rows: slice = slice(None)) -> Tensor:
        """The vectors of distances, (2 span, dim), or some of them."""
        return self.rel_norm(self.rel_embeddings.weight[rows])

    def run(self, x: Tensor, batch: PackedBatch, start: int = 0, stop: int | None = None) -> Tensor:
        """Blocks ``start`` up to ``stop``, not included: (tokens, dim) in and out."""
        seen = rows_within(max(batch.lengths, default=1), self.config)
        table = self.table(seen)
        each = [rows_of(group.length, self.config, x.device) - seen.start for group in batch.groups]
        for block in self.blocks[start:stop]:
            x = block(x, batch, table, each)
        return x
