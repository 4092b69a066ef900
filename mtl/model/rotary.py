"""ModernBERT and its kin (NomicBERT, GTE), from the token ids to the last hidden state.

Warner et al. 2024 (arXiv 2412.13663), Nussbaum et al. 2024 (arXiv 2402.01613), Zhang et al. 2024 (arXiv 2407.19669).
Against encoder.py: queries and keys are turned by their position (Su et al. 2021, arXiv 2104.09864) instead of adding
one to the words; the feed-forward network is gated (Shazeer 2020, arXiv 2002.05202); in some blocks a token sees its
neighbourhood only. LayerNorm comes before each sublayer and after the last block, or as in BERT after each sum.
Submodules carry the names of ModernBERT's checkpoints, which the other families' records rename.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtl.model import encoder
from mtl.model.activations import ACTIVATIONS
from mtl.model.config import RotaryConfig
from mtl.model.dropout import Dropout
from mtl.model.interface import Encoder
from mtl.model.packing import PackedBatch
from mtl.model.positions import angles, segment_table, with_segments

QUERIES = 128  # of a text that are computed at once where there is a window


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (tokens, heads, head_dim), the pairs of its halves turned by angles (tokens, head_dim / 2) (equation 34)."""
    cos, sin = cos[:, None].to(x.dtype), sin[:, None].to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def windows(length: int, reach: int) -> list[tuple[range, range]]:
    """A text's queries in parts, and the keys that those of a part see."""
    parts = [range(start, min(start + QUERIES, length)) for start in range(0, length, QUERIES)]
    return [(part, range(max(0, part.start - reach), min(length, part.stop + reach))) for part in parts]


def near(queries: range, keys: range, reach: int, device: torch.device) -> Tensor:
    """Whether each query sees each key, which is at most ``reach`` tokens away: (1, 1, queries, keys) bool."""
    q, k = (torch.arange(x.start, x.stop, device=device) for x in (queries, keys))
    return ((q[:, None] - k).abs() <= reach)[None, None]


def attention(q: Tensor, k: Tensor, v: Tensor, reach: int | None, p: float = 0.0) -> Tensor:
    """As in encoder.py, (texts, length, heads, head_dim); with a reach, each token sees no others than are so near.

    Windows are computed for some queries at a time: memory and time grow with the length, not with its square. Where
    weights are dropped, they are all written down.
    """
    length = q.shape[1]
    if reach is None or length <= reach + 1:
        return encoder.attention(q, k, v, p)
    if p:
        seen = near(range(length), range(length), reach, q.device)
        return encoder.attention(q, k, v, p, torch.zeros_like(seen, dtype=q.dtype).masked_fill(~seen, -torch.inf))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (texts, heads, length, head_dim)
    contexts = []
    for queries, keys in windows(length, reach):
        some, others = slice(queries.start, queries.stop), slice(keys.start, keys.stop)
        seen = near(queries, keys, reach, q.device)
        contexts.append(F.scaled_dot_product_attention(q[:, :, some], k[:, :, others], v[:, :, others], seen))
    return torch.cat(contexts, dim=2).transpose(1, 2)


def norm(config: RotaryConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.dim, eps=config.norm_eps, bias=config.norm_bias)


class Embeddings(nn.Module):
    def __init__(self, config: RotaryConfig) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.token_type_embeddings = segment_table(config.segments, config.dim)  # NomicBERT's
        self.norm = norm(config)
        self.drop = Dropout(config.embedding_dropout)

    def forward(self, batch: PackedBatch) -> Tensor:
        return self.drop(self.norm(with_segments(self.tok_embeddings(batch.ids), self.token_type_embeddings, batch)))


class RotaryAttention(nn.Module):
    def __init__(self, config: RotaryConfig, layer: int) -> None:
        super().__init__()
        self.n_heads, self.head_dim = config.n_heads, config.dim // config.n_heads
        self.theta, self.scaling, self.reach = config.theta_of(layer), config.scaling, config.reach_of(layer)
        self.dropout = config.attention_dropout
        self.Wqkv = nn.Linear(config.dim, 3 * config.dim, bias=config.attention_bias)
        self.Wo = nn.Linear(config.dim, config.dim, bias=config.attention_bias)
        self.drop = Dropout(config.dropout)

    def forward(self, x: Tensor, batch: PackedBatch) -> Tensor:
        q, k, v = (y.unflatten(1, (self.n_heads, -1)) for y in self.Wqkv(x).chunk(3, dim=1))
        cos, sin = angles(batch.positions, self.head_dim, self.theta, *self.scaling)
        groups = zip(*map(batch.split, (rotated(q, cos, sin), rotated(k, cos, sin), v)), strict=True)
        p = self.dropout if self.training else 0.0
        contexts = [attention(q, k, v, self.reach, p).flatten(0, 1) for q, k, v in groups]
        context = torch.cat(contexts) if contexts else q  # (tokens, heads, head_dim)
        return self.drop(self.Wo(context.flatten(1)))


class GatedFeedForward(nn.Module):
    def __init__(self, config: RotaryConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.Wi = nn.Linear(config.dim, 2 * config.hidden_dim, bias=config.gate_bias)
        self.hidden_drop = Dropout(config.mlp_dropout)
        self.Wo = nn.Linear(config.hidden_dim, config.dim, bias=config.mlp_bias)
        self.drop = Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        activated, gate = self.Wi(x).chunk(2, dim=1)  # (tokens, hidden_dim) each
        return self.drop(self.Wo(self.hidden_drop(self.activation(activated) * gate)))


class RotaryBlock(nn.Module):
    def __init__(self, config: RotaryConfig, layer: int) -> None:
        super().__init__()
        self.pre_norm = config.pre_norm
        self.attn_norm = nn.Identity() if config.pre_norm and layer == 0 else norm(config)  # embeddings are normed
        self.attn = RotaryAttention(config, layer)
        self.mlp_norm = norm(config)
        self.mlp = GatedFeedForward(config)

    def forward(self, x: Tensor, batch: PackedBatch) -> Tensor:
        if self.pre_norm:
            x = x + self.attn(self.attn_norm(x), batch)
            return x + self.mlp(self.mlp_norm(x))
        x = self.attn_norm(x + self.attn(x, batch))
        return self.mlp_norm(x + self.mlp(x))


class RotaryEncoder(Encoder):
    """Token ids in, one hidden state per token out. A new one has random weights; mtl.checkpoints.load fills it."""

    WORDS, BLOCKS = "embeddings.tok_embeddings", "layers"
    config: RotaryConfig

    def __init__(self, config: RotaryConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(RotaryBlock(config, layer) for layer in range(config.n_layers))
        self.final_norm = norm(config) if config.pre_norm else nn.Identity()
        self.initialize(config.initializer_range)

    def embed(self, batch: PackedBatch) -> Tensor:
        return self.embeddings(batch)

    def run(self, x: Tensor, batch: PackedBatch, start: int = 0, stop: int | None = None) -> Tensor:
        """Blocks ``start`` up to ``stop``, not included, and with the last of all the norm behind it: (tokens, dim)."""
        for block in self.blocks[start:stop]:
            x = block(x, batch)
            x = self.final_norm(x) if block is self.blocks[-1] else x
        return x

    def depth_of(self, name: str) -> int:
        return self.config.n_layers if name.startswith("final_norm.") else super().depth_of(name)
