"""How an encoder is told a token's place in its text, and which text of a pair it belongs to."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mtl.model.packing import PackedBatch


def segment_table(segments: int, dim: int) -> nn.Embedding | None:
    """What a token's segment adds to its embedding, (segments, dim); none where there is one segment alone.

    Row 0 is 0, and stays 0 in training: what the first segment has stands in the table of positions, or of words.
    """
    return nn.Embedding(segments, dim, padding_idx=0) if segments > 1 else None


def with_segments(x: Tensor, table: Callable[[Tensor], Tensor] | None, batch: PackedBatch) -> Tensor:
    """Embeddings (tokens, dim), with what each token's segment adds; a ValueError where the encoder knows one alone."""
    if batch.segments is None:
        return x
    if table is None:
        raise ValueError("the batch has a second segment, but the encoder has one; see Encoder.tell_segments_apart")
    return x + table(batch.segments)


def sinusoids(positions: int, dim: int) -> Tensor:
    """The fixed position table (positions, dim) of Vaswani et al. 2017, section 3.5: sin and cos in turn."""
    rates = 10000 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angles = torch.arange(positions, dtype=torch.float64)[:, None] * rates  # (positions, dim / 2, rounded up)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)[:, :dim].float()


def angles(positions: Tensor, width: int, theta: float, ntk: float = 1.0, linear: float = 1.0) -> tuple[Tensor, Tensor]:
    """The cosines and sines by which rotary positions turn a head of some width: (tokens, width / 2) float32 each.

    The angle of pair i is position / theta^(2i / width) (Su et al. 2021, arXiv 2104.09864, section 3.2.2), computed in
    float32 as transformers does. Scaled by NTK as GTE has it, theta grows by the factor, and every rate is divided by
    factor^(2 / width); scaled linearly, every rate is divided by the factor.
    """
    powers = torch.arange(0, width, 2, device=positions.device).float() / width
    rates = 1.0 / (theta * ntk) ** powers / ntk ** (2 / width) / linear
    turned = positions[:, None].float() * rates
    return turned.cos(), turned.sin()
