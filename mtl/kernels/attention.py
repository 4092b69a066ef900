"""Attention of inference within each text of a packed batch: the one place that chooses how it is computed.

torch's fused kernel on a CPU divides its work among threads, and at some shapes what a thread computes by itself has
other bits than what it computes among others: one query and 16 keys, heads of 8 to 11, a single head in bfloat16.
Only shapes that keep their bits are divided (`mtl check` tries them out); all others are computed by one thread.
"""

from __future__ import annotations

import threading
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from mtl.kernels.threads import alone
from mtl.model.packing import Biases, PackedBatch
from mtl.model.rotary import near, windows

SHORTEST, LONGEST = 64, 1024  # tokens of a text, between which products are faster; of longer ones scores are many
SHORTEST_OF_FLOATS = 128  # where q, k and v are to be rounded first
STEP = 16  # tokens; the kernels of 16 lengths are one
SCORES = 2**18  # computed at once: 0.5 MB
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


class Scratch(threading.local):
    """Memory of the calling thread that products write to, kept from text to text."""

    def __init__(self) -> None:
        self.memory = torch.empty(0, dtype=torch.bfloat16, device="cpu")

    def parts(self, *shapes: tuple[int, int, int]) -> list[Tensor]:
        """Tensors of these shapes, with whatever was there."""
        sizes = [a * b * c for a, b, c in shapes]
        if len(self.memory) < sum(sizes):
            with torch.inference_mode(False):  # else it could be written to in no other mode
                self.memory = torch.empty(sum(sizes), dtype=torch.bfloat16, device="cpu")
        parts = self.memory[: sum(sizes)].split(sizes)
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


scratch = Scratch()


def has_products() -> bool:
    """Whether this processor multiplies in bfloat16 itself, and torch's products of matrices have oneDNN do so."""
    return torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_bf16_supported()


def by_products(q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
    """As ``fused`` of one text, by oneDNN's products in bfloat16, into ``out``; all are (length, heads, head_dim).

    Scores are computed of a few heads at once, as many as leave them in the cache. The length is rounded up to a
    multiple of ``STEP``, so that few kernels are made; what a text gets depends on its length alone.
    """
    length, heads, width = q.shape
    padded = -(-length // STEP) * STEP
    most = max(1, SCORES // padded**2)
    some = max(n for n in range(1, heads + 1) if heads % n == 0 and n <= most)
    queries, keys, values, contexts, scores = scratch.parts(
        (heads, padded, width), (heads, width, padded), (heads, padded, width), (heads, padded, width),
        (some, padded, padded),
    )  # fmt: skip
    torch.mul(q.transpose(0, 1), width**-0.5, out=queries[:, :length])
    queries[:, length:] = 0
    keys[:, :, :length] = k.permute(1, 2, 0)
    keys[:, :, length:] = 0
    values[:, :length] = v.transpose(0, 1)
    values[:, length:] = 0
    for i in range(0, heads, some):
        torch.bmm(queries[i : i + some], keys[i : i + some], out=scores)
        scores[:, :, length:] = -torch.inf
        torch.softmax(scores, dim=-1, out=scores)
        torch.bmm(scores, values[i : i + some], out=contexts[i : i + some])
    out.copy_(contexts[:, :length].transpose(0, 1))


def grouped(
    q: Tensor, k: Tensor, v: Tensor, batch: PackedBatch, biases: Biases = (), reach: int | None = None,
    narrow: bool = False,
) -> Tensor:  # fmt: skip
    """One fused call for each group of equally long texts, which needs no mask, or one for each part of a window; in
    bfloat16 on a CPU products for each text instead, where these are faster."""
    tokens, out = len(batch.ids), q.new_empty(q.shape)
    out[tokens:] = 0
    low = q.dtype == torch.bfloat16
    shortest = SHORTEST if low else SHORTEST_OF_FLOATS
    products = (low or narrow) and not q.is_cuda and q.shape[2] % 16 == 0 and not biases and has_products()
    groups = zip(*(batch.split(x[:tokens]) for x in (q, k, v, out)), strict=True)
    for (*group, found), bias in zip(groups, biases or [None] * len(batch.groups), strict=True):
        length = found.shape[1]
        divided = reach is not None and length > reach + 1
        if products and not divided and shortest <= length <= LONGEST:
            for text in zip(*group, found, strict=True):
                by_products(*text)
            continue
        q_group, k_group, v_group = (x.transpose(1, 2) for x in group)  # (texts, heads, length, head_dim)
        if reach is not None and divided:
            context = windowed(q_group, k_group, v_group, reach)
        else:
            context = fused(q_group, k_group, v_group, bias)
        found.copy_(context.transpose(1, 2))
    return out


def attend(
    q: Tensor, k: Tensor, v: Tensor, batch: PackedBatch, biases: Biases = (), reach: int | None = None,
    narrow: bool = False,
) -> Tensor:  # fmt: skip
    """What each token gets: q, k, v and the result are (tokens, heads, head_dim), on a CPU with more rows at the end,
    which get zeros.

    ``biases`` are added to the scores, (1, heads, length, length) for each group of equally long texts. With a
    ``reach``, no token sees others that are farther away. ``narrow``: float32 may be rounded to bfloat16 where that is
    faster, as in a model whose other products are in integers. gate.py's sentences are too short for it; the
    mean cosine of MiniLM's long texts fell by 6e-5 (benchmarks/README.md).
    """
    low_precision = q.dtype in (torch.bfloat16, torch.float16)
    if q.is_cuda and low_precision and not biases and reach is None:
        return varlen(q, k, v, batch)
    return grouped(q, k, v, batch, biases, reach, narrow)


def attend_first(
    q: Tensor, k: Tensor, v: Tensor, batch: PackedBatch, biases: Biases = (), reach: int | None = None
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
