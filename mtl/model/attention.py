"""Attention within each text of a packed batch: the one place that chooses how it is computed.

    softmax(q kT / sqrt(head_dim)) v            (Vaswani et al. 2017, arXiv 1706.03762, equation 1)

Every implementation takes q, k, v of shape (tokens, heads, head_dim), the batch, and a dropout
probability for the attention weights, and returns (tokens, heads, head_dim).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mtl.model.dropout import dropout as drop
from mtl.model.packing import PackedBatch

Attention = Callable[[Tensor, Tensor, Tensor, PackedBatch, float], Tensor]


def reference(q: Tensor, k: Tensor, v: Tensor, batch: PackedBatch, dropout: float = 0.0) -> Tensor:
    """The equation, text by text: the documentation, and what the others are tested against."""
    out = []
    for q_text, k_text, v_text in zip(*(x.split(batch.lengths) for x in (q, k, v)), strict=True):
        scores = torch.einsum("qhd,khd->hqk", q_text, k_text) / math.sqrt(q.shape[-1])
        weights = drop(scores.softmax(dim=-1), dropout)
        out.append(torch.einsum("hqk,khd->qhd", weights, v_text))
    return torch.cat(out) if out else torch.empty_like(q)


def dropping(q: Tensor, k: Tensor, v: Tensor, p: float) -> Tensor:
    """The equation with dropout: q, k, v and the result are (texts, heads, length, head_dim)."""
    scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(-2, -1)  # (texts, heads, length, length)
    return drop(scores.softmax(dim=-1), p) @ v


def grouped(q: Tensor, k: Tensor, v: Tensor, batch: PackedBatch, dropout: float = 0.0) -> Tensor:
    """One fused call per group of equally long texts, which needs no mask."""
    out = []
    for group in zip(*map(batch.split, (q, k, v)), strict=True):
        q_group, k_group, v_group = (x.transpose(1, 2) for x in group)  # (texts, heads, length, head_dim)
        if dropout:  # the fused call knows none on a CPU
            context = dropping(q_group, k_group, v_group, dropout)
        else:
            context = F.scaled_dot_product_attention(q_group, k_group, v_group)
        out.append(context.transpose(1, 2).flatten(0, 1))
    return torch.cat(out) if out else torch.empty_like(q)


def varlen(q: Tensor, k: Tensor, v: Tensor, batch: PackedBatch, dropout: float = 0.0) -> Tensor:
    """All texts in one kernel that knows where each begins: CUDA, bfloat16 or float16, no dropout."""
    from torch.nn.attention.varlen import varlen_attn

    if dropout:
        return grouped(q, k, v, batch, dropout)
    longest = max(batch.lengths, default=0)
    context = varlen_attn(q, k, v, batch.offsets, batch.offsets, longest, longest)
    assert isinstance(context, Tensor)  # a pair only where the log-sum-exp is asked for
    return context


def attend_first(q: Tensor, k: Tensor, v: Tensor, batch: PackedBatch) -> Tensor:
    """What each text's first token gets: q and the result are (texts, heads, head_dim), k and v as everywhere."""
    out = []
    firsts = q.split([group.texts for group in batch.groups])
    for q_group, *group in zip(firsts, *map(batch.split, (k, v)), strict=True):
        k_group, v_group = (x.transpose(1, 2) for x in group)  # (texts, heads, length, head_dim)
        out.append(F.scaled_dot_product_attention(q_group.unsqueeze(2), k_group, v_group).squeeze(2))
    return torch.cat(out) if out else torch.empty_like(q)


def attend(q: Tensor, k: Tensor, v: Tensor, batch: PackedBatch, dropout: float = 0.0) -> Tensor:
    """The fastest implementation for where q lives and what it is made of."""
    low_precision = q.dtype in (torch.bfloat16, torch.float16)
    implementation: Attention = varlen if q.is_cuda and low_precision else grouped
    return implementation(q, k, v, batch, dropout)
