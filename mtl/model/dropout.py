"""Dropout (Srivastava et al. 2014), in which what a text drops may follow from a number of its own.

torch draws random numbers from one generator for the whole process, in the order in which they are asked for. Training
computes a window in pieces, on several threads: there each text has a key, and what it drops is a hash of the key, of
which dropout it is, and of the place in the tensor. So it is the same whatever stands beside the text, on any thread
and on any device. Unless a thread names keys, it draws as torch does.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def signed(number: int) -> int:
    """The same 64 bits as an int64."""
    return (number + 2**63) % 2**64 - 2**63


# SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators")
STEP, FIRST, SECOND = map(signed, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
LANES, VALUES = 4, 2**16  # an int64 holds four random numbers of 16 bits


def mixed(x: Tensor) -> Tensor:
    """SplitMix64's hash of each int64; the masks make torch's shift, which keeps the sign, a logical one."""
    x = (x ^ ((x >> 30) & (2**34 - 1))).mul_(FIRST)
    x ^= (x >> 27) & (2**37 - 1)
    x *= SECOND
    return x ^ ((x >> 31) & (2**33 - 1))


class Draws:
    """The random numbers of one packed batch: ``keys`` and ``lengths`` are its texts'.

    It counts the calls, so that a second forward pass needs a new one: that drops the same.
    """

    def __init__(self, keys: Sequence[int], lengths: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.keys = torch.tensor(keys, dtype=torch.int64, device=device)
        counts = torch.tensor(lengths, dtype=torch.int64, device=device)
        self.text = torch.arange(len(counts), device=device).repeat_interleave(counts)  # of each token
        self.position = torch.arange(len(self.text), device=device) - (counts.cumsum(0) - counts)[self.text]
        self.calls = self.attended = 0

    def kept(self, x: Tensor, dropped: int) -> Tensor:
        """Which values of x stay, bool in its shape, where ``dropped`` of 65,536 do not.

        x is (tokens, dim) or (texts, dim), or the attention weights of the next texts: (texts, heads, length, length),
        or (heads, length, length) of one, which are asked for in the order of the texts.
        """
        rows = x if x.ndim != 3 else x[None]
        words = -(-rows[0].numel() // LANES) if len(rows) else 0
        if x.ndim > 2:
            layer, first = divmod(self.attended, len(self.keys))
            self.attended += len(rows)
            starts = mixed(self.keys[first : first + len(rows)] + signed((2 * layer + 1) * STEP))
        else:
            starts = mixed(self.keys + signed(2 * self.calls * STEP))
            self.calls += 1
            if len(x) == len(self.text):
                starts = starts[self.text] + self.position * signed(words * STEP)
        steps = torch.arange(words, dtype=torch.int64, device=x.device) * STEP
        numbers = mixed(starts[:, None] + steps).view(torch.int16)[:, : words and rows[0].numel()]
        return (numbers >= dropped - VALUES // 2).view(x.shape)


class _Source(threading.local):
    """Where this thread's random numbers come from."""

    draws: Draws | None = None
    off = False


_source = _Source()


@contextmanager
def drawing_from(draws: Draws) -> Iterator[None]:
    """Within it, this thread's dropout follows the keys of a batch's texts."""
    before, _source.draws = _source.draws, draws
    try:
        yield
    finally:
        _source.draws = before


@contextmanager
def no_dropout() -> Iterator[None]:
    """Within it, this thread drops nothing, whatever mode the modules are in."""
    before, _source.off = _source.off, True
    try:
        yield
    finally:
        _source.off = before


def dropout(x: Tensor, p: float) -> Tensor:
    """x with each value set to zero with probability ``p``, and divided by 1 - p otherwise."""
    if p == 0 or _source.off:
        return x
    dropped = round(p * VALUES)
    if _source.draws is None or dropped == VALUES:
        return F.dropout(x, p)
    return x * _source.draws.kept(x, dropped) * (VALUES / (VALUES - dropped))


class Dropout(nn.Dropout):
    """Dropout in training, and nothing in eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p) if self.training else x
