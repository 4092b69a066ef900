"""Attention as training computes it: the texts of a batch side by side, in a few padded runs.

    w = softmax(q k^T / sqrt(head_dim) + bias)     d = w * kept / (1 - p)     context = d v

    dv = d^T g     dw = (g v^T) * kept / (1 - p)     ds = w * (dw - the sum of dw * w in the row)
    dq = ds k / sqrt(head_dim)     dk = ds^T q / sqrt(head_dim)     dbias = ds

The textbook computes each length that texts have by itself, and autograd some fifty small operations around it, which
take longer than all of the arithmetic. What a text drops is the same here and there. Where q, k and v are in bfloat16,
the products of short texts are in float32 on a CPU, as each shape of a product in bfloat16 costs oneDNN a kernel;
softmax always is.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import cached_property
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mtl.model.dropout import LANES, STEP, VALUES, Draws, mixed, stays, words_of
from mtl.model.packing import moved

LONG = 64  # tokens, from which products in bfloat16 are faster
PADDING = 1024  # scores of a head, at most, that a text may add to a run and that are not its own
PADDING_GPU = 2**14  # where each operation costs more than what it computes


@dataclasses.dataclass(frozen=True)
class Run:
    """Texts that stand side by side, padded to one length.

    before, tokens: Where the texts' tokens begin in the batch, and how many there are.
    into: For each row of (texts, heads, length) its row in (tokens, heads); for a row of padding, its text's first.
    back: For each row of (tokens, heads) its row in (texts, heads, length).
    mask: What is added to scores, (texts * heads, 1, length): -inf at padding; None where there is none.
    kept: 1 for each text's own rows, else 0: (texts, heads, length, 1).
    """

    texts: int
    length: int
    before: int
    tokens: int
    into: Tensor
    back: Tensor
    mask: Tensor | None
    kept: Tensor

    def to(self, device: torch.device) -> Run:
        tensors: dict[str, Any] = {name: moved(x, device) for name, x in vars(self).items() if isinstance(x, Tensor)}
        return dataclasses.replace(self, **tensors)


def runs_of(lengths: Sequence[int], padding: int = PADDING) -> list[list[int]]:
    """The lengths of neighbouring texts that are computed as one run; each is from half as long as its first on."""
    runs: list[list[int]] = []
    for length in lengths:
        longest = runs[-1][0] if runs else 0
        if length <= longest <= 2 * length and longest**2 - length**2 <= padding:
            runs[-1].append(length)
        else:
            runs.append([length])
    return runs


def run_of(lengths: Sequence[int], heads: int, before: int) -> Run:
    """A run of texts of these lengths, with so many tokens ``before`` it."""
    texts, length = len(lengths), -(-max(lengths) // LANES) * LANES
    own = torch.tensor(lengths, dtype=torch.int64, device="cpu")
    valid = torch.arange(length, device="cpu") < own[:, None]  # (texts, length)
    tokens = sum(lengths)
    places = (before + own.cumsum(0) - own)[:, None].repeat(1, length)  # padding is the text's own first token again
    places[valid] = torch.arange(before, before + tokens, device="cpu")
    each = torch.arange(heads, device="cpu")
    into = places[:, None] * heads + each[:, None]  # (texts, heads, length)
    text, position = valid.nonzero(as_tuple=True)
    back = (text[:, None] * heads + each) * length + position[:, None]  # (tokens, heads)
    mask = torch.zeros(texts, length, dtype=torch.float32, device="cpu").masked_fill_(~valid, -torch.inf)
    each_mask = None if valid.all() else mask.repeat_interleave(heads, dim=0)[:, None]
    kept = valid.float()[:, None, :, None].expand(-1, heads, -1, -1)
    return Run(texts, length, before, tokens, into.flatten(), back.flatten(), each_mask, kept)


def words_behind(lengths: Sequence[int], length: int, heads: int, device: torch.device) -> Tensor:
    """How far behind its first number each word of a text's scores is, in a run: (texts * heads * length * words,)."""
    own = moved(torch.tensor(lengths, dtype=torch.int64, device="cpu").view(-1, 1, 1), device)
    head, query, word = (torch.arange(n, device=device) for n in (heads, length, length // LANES))
    row = head.unsqueeze(1) * own + query  # (texts, heads, length)
    return ((row.unsqueeze(3) * words_of(own).unsqueeze(3) + word) * STEP).flatten()


class Plan:
    """The runs of one batch, and what each layer's scores drop of them."""

    def __init__(self, lengths: Sequence[int], heads: int, device: torch.device | str = "cpu") -> None:
        self.lengths, self.heads, self.device = lengths, heads, torch.device(device)
        self.each = runs_of(lengths, PADDING if self.device.type == "cpu" else PADDING_GPU)
        self.runs: list[Run] = []
        before = 0
        for own in self.each:
            self.runs.append(run_of(own, heads, before).to(self.device))
            before += sum(own)
        self.biases: tuple[Sequence[Tensor], list[Tensor]] = (), []  # the last ones that were padded, and what came

    @cached_property
    def words(self) -> tuple[Tensor, Tensor]:
        """How far behind its text's first number each word of all scores is, and how many words each text has."""
        each = zip(self.each, self.runs, strict=True)
        words = [words_behind(own, run.length, self.heads, self.device) for own, run in each]
        counts = [len(part) // run.texts for run, part in zip(self.runs, words, strict=True) for _ in range(run.texts)]
        return torch.cat(words), moved(torch.tensor(counts, dtype=torch.int64, device="cpu"), self.device)

    def kept(self, draws: Draws, p: float) -> list[Tensor]:
        """What the next layer's weights are multiplied by in each run, (texts * heads, length, length)."""
        dropped, (words, counts) = round(p * VALUES), self.words
        starts = draws.of_scores().repeat_interleave(counts, output_size=len(words))
        draws.attended += len(self.lengths)
        stay = stays(mixed(starts.add_(words)).view(torch.int16), dropped)
        shapes = [(run.texts, self.heads, run.length, run.length) for run in self.runs]
        parts = stay.split([math.prod(shape) for shape in shapes])
        scales = [run.kept * (VALUES / (VALUES - dropped)) for run in self.runs]
        together = zip(parts, shapes, scales, strict=True)
        return [(part.view(shape) * scale).flatten(0, 1) for part, shape, scale in together]

    def padded(self, biases: Sequence[Tensor]) -> list[Tensor]:
        """The biases of groups of equally long texts as those of runs, (texts * heads, length, length).

        Layers that share theirs share what is made of them.
        """
        known, found = self.biases
        if len(known) != len(biases) or any(one is not other for one, other in zip(known, biases, strict=True)):
            each, found = iter(biases), []
            for own, run in zip(self.each, self.runs, strict=True):
                parts = []
                for length, texts in groupby(own):  # a run has whole groups
                    more = run.length - length
                    parts.append(F.pad(next(each).expand(len([*texts]), -1, -1, -1), (0, more, 0, more)))
                whole = torch.cat(parts).flatten(0, 1)
                found.append(whole if run.mask is None else whole + run.mask)
            self.biases = biases, found
        return found


class Attention(torch.autograd.Function):
    """q, k and v (tokens, heads, head_dim) -> the same, in their format.

    ``kept`` is as Plan gives it, or without dropout None; ``biases``, of which there may be none, are as well.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: Plan, kept: Sequence[Tensor] | None, *biases: Tensor
    ) -> Tensor:
        width = q.shape[2]
        out = q.new_empty(q.shape)
        saved: list[Tensor | None] = []
        for i, run in enumerate(plan.runs):
            dtype = q.dtype if run.length >= LONG or q.is_cuda else torch.float32
            queries, keys, values = (rows_of(x, run, dtype) for x in (q, k, v))
            added = biases[i] if biases else run.mask
            scores = torch.baddbmm(
                queries.new_zeros(1) if added is None else added.to(dtype), queries, keys.transpose(1, 2),
                beta=int(added is not None), alpha=width**-0.5,
            )  # fmt: skip
            weights = scores.softmax(dim=-1, dtype=torch.float32)
            drops = kept[i] if kept is not None else None if run.mask is None else run.kept.flatten(0, 1)
            dropped = (weights if drops is None else weights * drops).to(dtype)
            put(dropped @ values, run, out)
            saved += [queries, keys, values, weights, drops, dropped]
        ctx.runs, ctx.formats = plan.runs, [bias.dtype for bias in biases]  # a plan holds biases, and their graph
        ctx.save_for_backward(*saved)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        of_q, of_k, of_v = (g.new_empty(g.shape) for _ in range(3))
        of_biases: list[Tensor | None] = [None] * len(ctx.formats)
        g = g.contiguous()
        scale = g.shape[2] ** -0.5
        for i, run in enumerate(ctx.runs):
            queries, keys, values, weights, drops, dropped = (next(saved) for _ in range(6))
            upper = rows_of(g, run, dropped.dtype)
            put(dropped.transpose(1, 2) @ upper, run, of_v)
            part = (upper @ values.transpose(1, 2)).float()
            part = part if drops is None else part.mul_(drops)
            part = torch._softmax_backward_data(part, weights, -1, torch.float32)
            if ctx.formats and ctx.needs_input_grad[5 + i]:
                of_biases[i] = part.to(ctx.formats[i])
            part = part.to(dropped.dtype)
            none = part.new_zeros(1)
            put(torch.baddbmm(none, part, keys, beta=0, alpha=scale), run, of_q)
            put(torch.baddbmm(none, part.transpose(1, 2), queries, beta=0, alpha=scale), run, of_k)
        return of_q, of_k, of_v, None, None, *of_biases


def rows_of(x: Tensor, run: Run, dtype: torch.dtype) -> Tensor:
    """A run's rows of (tokens, heads, head_dim), (texts * heads, length, head_dim) in a number format."""
    rows = x.reshape(-1, x.shape[2]).index_select(0, run.into)
    return rows.to(dtype).view(-1, run.length, x.shape[2])


def put(x: Tensor, run: Run, out: Tensor) -> None:
    """What ``rows_of`` took goes to where it was."""
    own = out.narrow(0, run.before, run.tokens).view(-1, out.shape[2])
    rows = x.view(-1, x.shape[2])
    if own.dtype == rows.dtype:
        torch.index_select(rows, 0, run.back, out=own)
    else:
        own.copy_(rows.index_select(0, run.back))
