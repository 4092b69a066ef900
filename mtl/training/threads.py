"""The threads that compute a window's shares, side by side.

One operation on several threads makes them wait for each other at its end, hundreds of times a step, and OpenMP's spin
while they wait: beside one other busy process, a step took twenty times as long. A thread with a share of its own meets
the others once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch.backends import cuda, mkldnn

from mtl.kernels.threads import computing_with, side_by_side

matmul: Any = mkldnn.matmul  # type: ignore[attr-defined]


class ByDefault(AbstractContextManager[None]):
    """While a thread is within it, products on a CPU are float32's and attention may take any of a CPU's kernels.

    Programs for a GPU often say otherwise, as by ``torch.set_float32_matmul_precision("medium")``. These settings are
    the whole process's: the last thread that leaves brings back what there was.
    """

    def __init__(self) -> None:
        self.lock, self.users = threading.Lock(), 0

    def __enter__(self) -> None:
        with self.lock:
            if not self.users:
                self.before = matmul.fp32_precision, cuda.flash_sdp_enabled(), cuda.math_sdp_enabled()
                self.set("ieee", True, True)
            self.users += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.users -= 1
            if not self.users:
                self.set(*self.before)

    def set(self, precision: str, flash: bool, math: bool) -> None:
        matmul.fp32_precision = precision
        cuda.enable_flash_sdp(flash)
        cuda.enable_math_sdp(math)


by_default = ByDefault()


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
