"""DistilBERT, from the token ids to the last hidden state.

The model of Sanh et al. 2019 (arXiv 1910.01108): BERT (Devlin et al. 2018, arXiv 1810.04805) with fewer
layers, one segment and no pooler. Its blocks are those of Vaswani et al. 2017 (arXiv 1706.03762), with
LayerNorm after each residual sum. All submodules carry their checkpoint's names, so that loading a
published DistilBERT is no more than stripping a prefix.

Shapes: ``tokens`` counts all tokens of a packed batch, text after text with no padding (see packing.py);
``dim`` is the width of a hidden state, split into ``heads`` of ``head_dim`` for attention.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtl.model.attention import attend, attend_first
from mtl.model.config import EncoderConfig
from mtl.model.dropout import Dropout
from mtl.model.linear import linears
from mtl.model.packing import PackedBatch


def sinusoids(positions: int, dim: int) -> Tensor:
    """The fixed position table (positions, dim) of Vaswani et al. 2017, section 3.5: sin and cos in turn."""
    rates = 10000 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angles = torch.arange(positions, dtype=torch.float64)[:, None] * rates  # (positions, dim / 2, rounded up)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)[:, :dim].float()


def gelu(x: Tensor) -> Tensor:
    """x Phi(x), in its exact form (Hendrycks and Gimpel 2016, arXiv 1606.08415).

    Where no gradient is wanted it overwrites x, the widest tensor of all, and saves writing another.
    """
    return F.gelu(x) if torch.is_grad_enabled() else torch.ops.aten.gelu_(x)


class Embeddings(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.dim)
        self.LayerNorm = nn.LayerNorm(config.dim, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.dropout)

    def forward(self, batch: PackedBatch) -> Tensor:
        x = self.word_embeddings(batch.ids) + self.position_embeddings(batch.positions)  # (tokens, dim)
        return self.dropout(self.LayerNorm(x))


class SelfAttention(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.dropout = config.attention_dropout
        self.q_lin = nn.Linear(config.dim, config.dim)
        self.k_lin = nn.Linear(config.dim, config.dim)
        self.v_lin = nn.Linear(config.dim, config.dim)
        self.out_lin = nn.Linear(config.dim, config.dim)

    def project(self, x: Tensor) -> Iterator[Tensor]:
        """q, k and v, (tokens, heads, head_dim) each."""
        return (y.unflatten(1, (self.n_heads, -1)) for y in linears(x, self.q_lin, self.k_lin, self.v_lin))

    def forward(self, x: Tensor, batch: PackedBatch) -> Tensor:
        q, k, v = self.project(x)
        context = attend(q, k, v, batch, self.dropout if self.training else 0.0)
        return self.out_lin(context.flatten(1))  # (tokens, dim)

    def first(self, x: Tensor, batch: PackedBatch) -> Tensor:
        """As forward, for each text's first token alone: (texts, dim)."""
        q, k, v = self.project(x)
        return self.out_lin(attend_first(q[batch.firsts], k, v, batch).flatten(1))


class FeedForward(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.activation = gelu if config.activation == "gelu" else F.relu
        self.lin1 = nn.Linear(config.dim, config.hidden_dim)
        self.lin2 = nn.Linear(config.hidden_dim, config.dim)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.lin2(self.activation(self.lin1(x))))


class TransformerBlock(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config)
        self.sa_layer_norm = nn.LayerNorm(config.dim, eps=config.layer_norm_eps)
        self.ffn = FeedForward(config)
        self.output_layer_norm = nn.LayerNorm(config.dim, eps=config.layer_norm_eps)

    def forward(self, x: Tensor, batch: PackedBatch) -> Tensor:
        x = self.sa_layer_norm(x + self.attention(x, batch))
        return self.output_layer_norm(x + self.ffn(x))

    def first(self, x: Tensor, batch: PackedBatch) -> Tensor:
        """As forward, for each text's first token alone: (texts, dim)."""
        x = self.sa_layer_norm(x[batch.firsts] + self.attention.first(x, batch))
        return self.output_layer_norm(x + self.ffn(x))


class Transformer(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(TransformerBlock(config) for _ in range(config.n_layers))


class DistilBert(nn.Module):
    """Token ids in, one hidden state per token out. A new one has random weights; mtl.checkpoints.load fills it."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.transformer = Transformer(config)
        self.apply(self._initialize)
        if config.sinusoidal_pos_embds:
            table = sinusoids(config.max_position_embeddings, config.dim)
            self.embeddings.position_embeddings.weight = nn.Parameter(table, requires_grad=False)

    def _initialize(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)

    def lower(self, batch: PackedBatch, depth: int = 0) -> Tensor:
        """The embeddings and the first ``depth`` blocks: hidden states (tokens, dim)."""
        x = self.embeddings(batch)
        for block in self.transformer.layer[:depth]:
            x = block(x, batch)
        return x

    def upper(self, x: Tensor, batch: PackedBatch, depth: int = 0) -> Tensor:
        """The blocks above ``depth``, on what ``lower`` gave: (tokens, dim) in and out."""
        for block in self.transformer.layer[depth:]:
            x = block(x, batch)
        return x

    def forward(self, batch: PackedBatch) -> Tensor:
        """The last hidden state of every token, (tokens, dim)."""
        return self.upper(self.lower(batch), batch)

    def first(self, batch: PackedBatch) -> Tensor:
        """The last hidden state of each text's first token, (texts, dim): most of the last block is spared."""
        last = self.transformer.layer[-1]
        assert isinstance(last, TransformerBlock)
        return last.first(self.lower(batch, self.config.n_layers - 1), batch)
