"""DistilBERT, from the token ids to the last hidden state.

The model of Sanh et al. 2019 (arXiv 1910.01108): BERT (Devlin et al. 2018, arXiv 1810.04805) with fewer layers and no
pooler. Its blocks are those of Vaswani et al. 2017 (arXiv 1706.03762), with LayerNorm after each residual sum.
Submodules carry their checkpoint's names: a published DistilBERT loads by stripping a prefix.

Shapes: ``tokens`` counts those of a packed batch (packing.py); ``dim``, a state's width, is ``heads`` x ``head_dim``.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from mtl.model.activations import ACTIVATIONS
from mtl.model.config import EncoderConfig
from mtl.model.dropout import Dropout, dropout
from mtl.model.interface import Encoder
from mtl.model.packing import Biases, PackedBatch, within_texts
from mtl.model.positions import segment_table, sinusoids, with_segments


def attention(q: Tensor, k: Tensor, v: Tensor, p: float = 0.0, bias: Tensor | None = None) -> Tensor:
    """softmax(q kT / sqrt(head_dim) + bias) v within texts of one length (Vaswani et al. 2017, equation 1).

    q, k, v and the result are (texts, length, heads, head_dim), a bias (1, heads, length, length); p is of a dropout.
    """
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (texts, heads, length, head_dim)
    if p:
        scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(-2, -1)  # (texts, heads, length, length)
        context = dropout((scores if bias is None else scores + bias).softmax(dim=-1), p) @ v
    else:  # the same in one call, which never writes the scores down
        context = F.scaled_dot_product_attention(q, k, v, bias)
    return context.transpose(1, 2)


class Embeddings(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width = config.embedding_dim or config.dim
        self.word_embeddings = nn.Embedding(config.vocab_size, width)
        self.position_embeddings = nn.Embedding(config.position_rows, width)
        self.unplaced = config.padding, config.max_position_embeddings
        self.token_type_embeddings = segment_table(config.segments, width)  # BERT's; DistilBERT has none
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.dropout)
        self.project = nn.Linear(width, config.dim) if config.embedding_dim else nn.Identity()

    def forward(self, batch: PackedBatch) -> Tensor:
        x = self.word_embeddings(batch.ids)  # (tokens, width)
        x = x + self.position_embeddings(batch.position_ids(*self.unplaced))
        return self.project(self.dropout(self.LayerNorm(with_segments(x, self.token_type_embeddings, batch))))


class SelfAttention(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.dropout = config.attention_dropout
        self.q_lin = nn.Linear(config.dim, config.dim)
        self.k_lin = nn.Linear(config.dim, config.dim)
        self.v_lin = nn.Linear(config.dim, config.dim)
        self.out_lin = nn.Linear(config.dim, config.dim)

    def forward(self, x: Tensor, batch: PackedBatch, biases: Biases = ()) -> Tensor:
        q, k, v = (linear(x).unflatten(1, (self.n_heads, -1)) for linear in (self.q_lin, self.k_lin, self.v_lin))
        context = within_texts(attention, q, k, v, batch, self.dropout if self.training else 0.0, biases)
        return self.out_lin(context.flatten(1))  # (tokens, dim)


class FeedForward(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
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

    def forward(self, x: Tensor, batch: PackedBatch, biases: Biases = ()) -> Tensor:
        """(tokens, dim) in and out."""
        x = self.sa_layer_norm(x + self.attention(x, batch, biases))
        return self.output_layer_norm(x + self.ffn(x))


class DistilBert(Encoder):
    """Token ids in, one hidden state per token out. A new one has random weights; mtl.checkpoints.load fills it."""

    WORDS, BLOCKS = "embeddings.word_embeddings", "transformer.layer"

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        blocks = nn.ModuleList(TransformerBlock(config) for _ in range(config.n_layers))
        self.transformer = nn.ModuleDict({"layer": blocks})  # for its name in checkpoints
        self.initialize(config.initializer_range)
        if config.sinusoidal_pos_embds:
            table = self.embeddings.position_embeddings
            table.weight = nn.Parameter(sinusoids(*table.weight.shape), requires_grad=False)

    def embed(self, batch: PackedBatch) -> Tensor:
        return self.embeddings(batch)

    def run(self, x: Tensor, batch: PackedBatch, start: int = 0, stop: int | None = None) -> Tensor:
        """Blocks ``start`` up to ``stop``, not included: (tokens, dim) in and out."""
        for block in self.blocks[start:stop]:
            x = block(x, batch)
        return x

    @property
    def fixed(self) -> frozenset[str]:
        return frozenset({"embeddings.position_embeddings.weight"} if self.config.sinusoidal_pos_embds else ())
