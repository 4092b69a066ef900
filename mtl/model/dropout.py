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
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtl.model.packing import moved


def signed(number: int) -> int:
    """The same 64 bits as an int64."""
    return (number + 2**63) % 2**64 - 2**63


# SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators")
STEP, FIRST, SECOND = map(signed, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
LANES, VALUES = 4, 2**16  # an int64 holds four random numbers of 16 bits
Number = TypeVar("Number", int, Tensor)


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
        self.keys = moved(torch.tensor(keys, dtype=torch.int64, device="cpu"), device)
        self.lengths = torch.tensor(lengths, dtype=torch.int64, device="cpu")  # a GPU would be waited for to ask it
        self.text, self.position = places(self.lengths, device)  # of each token
        self.calls = self.attended = 0
        self.of_layer: tuple[Tensor, ...] = ()

    def kept(self, x: Tensor, dropped: int) -> Tensor:
        """Which values of x stay, bool in its shape, where ``dropped`` of 65,536 do not.

        x is (tokens, dim) or (texts, dim), or the attention weights of the next texts: (texts, heads, length, length),
        or (heads, length, length) of one, which are asked for in the order of the texts.
        """
        if not x.numel():
            return torch.ones_like(x, dtype=torch.bool)
        numbers = self.of_rows(x) if x.ndim == 2 else self.of_attention(x if x.ndim == 4 else x[None])
        return stays(numbers, dropped).view(x.shape)

    def of_rows(self, x: Tensor) -> Tensor:
        """Numbers of 16 bits, one for each value of x."""
        words = -(-x.shape[1] // LANES)
        starts = mixed(self.keys + signed(2 * self.calls * STEP))
        self.calls += 1
        if len(x) == len(self.text):
            starts = starts[self.text] + self.position * signed(words * STEP)
        steps = torch.arange(words, dtype=torch.int64, device=x.device) * STEP
        return mixed(starts[:, None] + steps).view(torch.int16)[:, : x.shape[1]]

    def of_attention(self, x: Tensor) -> Tensor:
        """The same, (texts, heads * length, length); a whole layer's are drawn at once: cheaper than by group."""
        first, length = self.attended % len(self.keys), x.shape[-1]
        if first == 0:
            counts = x.shape[1] * self.lengths * words_of(self.lengths)
            text, word = places(counts, self.keys.device)
            self.of_layer = (
                mixed(self.of_scores()[text] + word * STEP).view(torch.int16).split((counts * LANES).tolist())
            )
        self.attended += len(x)
        numbers = torch.stack(self.of_layer[first : first + len(x)])
        return numbers.view(len(x), -1, words_of(length) * LANES)[..., :length]

    def of_scores(self) -> Tensor:
        """Where each text's numbers of the next layer's scores begin, (texts,).

        One text's follow word by word: those of each head, query by query, which begins with a word of its own.
        """
        layer = self.attended // len(self.keys)
        return mixed(self.keys + signed((2 * layer + 1) * STEP))


def stays(numbers: Tensor, dropped: int) -> Tensor:
    """Which random numbers of 16 bits are none of the ``dropped`` smallest."""
    return numbers >= dropped - VALUES // 2


def words_of(length: Number) -> Number:
    """How many words hold so many numbers."""
    return (length + LANES - 1) // LANES


def places(counts: Tensor, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Of things that stand group after group, so many in each: every one's group, and its place there, on a device."""
    total, counts = int(counts.sum()), moved(counts, device)
    group = torch.arange(len(counts), device=device).repeat_interleave(counts, output_size=total)
    return group, torch.arange(total, device=device) - (counts.cumsum(0) - counts)[group]


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


def drawn() -> Draws | None:
    """What this thread's dropout follows; None where it drops nothing, or as torch does."""
    return None if _source.off else _source.draws


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
    kept = _source.draws.kept(x, dropped).to(torch.promote_types(x.dtype, torch.float32))
    return (x * kept.mul_(VALUES / (VALUES - dropped))).to(x.dtype)


class Dropout(nn.Dropout):
    """Dropout in training, and nothing in eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p) if self.training else x
