"""Dropout (Srivastava et al. 2014), whose random numbers come from where the calling thread says.

torch draws them from one generator for the whole process. Threads that compute side by side would take turns at it in
an order that nobody decides, so each says where its own come from; unless it does, they are torch's.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class _Source(threading.local):
    """Where this thread's random numbers come from."""

    generator: torch.Generator | None = None
    off = False


_source = _Source()


@contextmanager
def drawing_from(generator: torch.Generator) -> Iterator[None]:
    """Within it, this thread's dropout draws from a generator."""
    before, _source.generator = _source.generator, generator
    try:
        yield
    finally:
        _source.generator = before


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
    kept = torch.empty_like(x).bernoulli_(1 - p, generator=_source.generator)
    return x * kept.div_(1 - p)


class Dropout(nn.Dropout):
    """Dropout in training, and nothing in eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p) if self.training else x
