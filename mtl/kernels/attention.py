"""Attention of inference within each text of a packed batch: the one place that chooses how it is computed.

torch's fused kernel on a CPU divides its work among threads, and at some shapes what a thread computes by itself has
other bits than what it computes among others: one query and 16 keys, heads of 8 to 11, a single head in bfloat16.
Only shapes that keep their bits are divided (`mtl check` tries them out); all others are computed by one thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from mtl.kernels.threads import alone
from mtl.model.packing import PackedBatch
from mtl.model.rotary import near, windows

LEAST_HEAD = 16  # the width of a head from which on a fused call was seen to keep its bits on any number of threads


def divisible(q: Tensor, k: Tensor) -> bool:
    """Whether any number of threads gives the same bits; q and k are (texts, heads, length, head_dim)."""
    _, heads, queries, width = q.shape
    return queries == k.shape[2] and heads > 1 and width >= LEAST_HEAD


def fused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q kT / sqrt(head_dim) + bias) v in one call, whose bits depend on no number of threads.

    q and the result are (texts, heads, queries, head_dim), k and v (texts, heads, keys, head_dim).
    """
    with nullcontext() if q.is_cuda or divisible(q, k) else alone():
        return F.scaled_dot_product_attention(q, k, v, bias)


def varlen(q: Tensor, k: Tensor, v: Tensor, batch: PackedBatch) -> Tensor:
    """All texts in one kernel that knows where each begins: CUDA, bfloat16 or float16."""
    from torch.nn.attention.varlen import varlen_attn

    longest = max(batch.lengths, default=0)
    context = varlen_attn(q, k, v, batch.offsets, batch.offsets, longest, longest)
    assert isinstance(context, Tensor)  # a pair only where the log-sum-exp is asked for
    return context


def windowed(q: Tensor, k: Tensor, v: Tensor, reach: int) -> Tensor:
    """As ``fused`` of all tokens, of which each sees those that are at most ``reach`` away; see model/rotary.py."""
    parts = []
    for queries, keys in windows(q.shape[2], reach):
        some, others = slice(queries.start, queries.stop), slice(keys.start, keys.stop)
        seen = near(queries, keys, reach, q.device)
        parts.append(fused(q[:, :, some], k[:, :, others], v[:, :, others], seen))
    return torch.cat(parts, dim=2)


def grouped(
    q: Tensor, k: Tensor, v: Tensor, batch: PackedBatch, biases: Sequence[Tensor | None] = (), reach: int | None = None
) -> Tensor:
    """One fused call for each group of equally long texts, which needs no mask, or one for each part of a window."""
    out = []
    tokens = len(batch.ids)
    groups = zip(*(batch.split(x[:tokens]) for x in (q, k, v)), strict=True)
    for group, bias in zip(groups, biases or [None] * len(batch.groups), strict=True):
        q_group, k_group, v_group = (x.transpose(1, 2) for x in group)  # (texts, heads, length, head_dim)
        if reach is not None and q_group.shape[2] > reach + 1:
            context = windowed(q_group, k_group, v_group, reach)
        else:
            context = fused(q_group, k_group, v_group, bias)
        out.append(context.transpose(1, 2).flatten(0, 1))
    if tokens < len(q):
        out.append(torch.zeros_like(q[tokens:]))
    return torch.cat(out) if out else q


def attend(
    q: Tensor, k: Tensor, v: Tensor, batch: PackedBatch, biases: Sequence[Tensor | None] = (), reach: int | None = None
) -> Tensor:
    """What each token gets: q, k, v and the result are (tokens, heads, head_dim), on a CPU with more rows at the end,
    which get zeros.

    ``biases`` are added to the scores, (1, heads, length, length) for each group of equally long texts. With a
    ``reach``, no token sees others that are farther away.
    """
    low_precision = q.dtype in (torch.bfloat16, torch.float16)
    if q.is_cuda and low_precision and not biases and reach is None:
        return varlen(q, k, v, batch)
    return grouped(q, k, v, batch, biases, reach)


def attend_first(
    q: Tensor, k: Tensor, v: Tensor, batch: PackedBatch, biases: Sequence[Tensor | None] = (), reach: int | None = None
) -> Tensor:
    """What each text's first token gets: q and the result are (texts, heads, head_dim), k and v as everywhere."""
    out = []
    seen = None if reach is None else reach + 1
    k, v = k[: len(batch.ids)], v[: len(batch.ids)]
    groups = zip(q.split([group.texts for group in batch.groups]), *map(batch.split, (k, v)), strict=True)
    for (q_group, *group), bias in zip(groups, biases or [None] * len(batch.groups), strict=True):
        k_group, v_group = (x[:, :seen].transpose(1, 2) for x in group)  # (texts, heads, length, head_dim)
        own = None if bias is None else bias[:, :, :1]
        out.append(fused(q_group.unsqueeze(2), k_group, v_group, own).squeeze(2))
    return torch.cat(out) if out else q
