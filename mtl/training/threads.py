"""The threads that compute a window's shares, side by side.

One operation on several threads makes them wait for each other at its end, hundreds of times a step, and OpenMP's spin
while they wait: beside one other busy process, a step took twenty times as long. A thread with a share of its own meets
the others once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from mtl.kernels.threads import computing_with, side_by_side


@contextmanager
def computing(workers: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """A map over shares on as many threads; within it, the caller's own computes alone.

    Numbers too small for full precision count as 0: they can take a processor ten times as long, and AdamW's moments
    of words that were not seen for long sink among them. A new thread takes that setting over from its maker (POSIX).
    """
    flushed = flushes()
    torch.set_flush_denormal(True)
    try:
        with computing_with(1), side_by_side(workers) as pool:
            yield pool.map
    finally:
        torch.set_flush_denormal(flushed)


def flushes() -> bool:
    """Whether this thread takes numbers too small for full precision for 0."""
    return not float(torch.tensor(1e-39, dtype=torch.float32) * 1)
