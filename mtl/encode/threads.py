"""How many threads OpenMP and BLAS use while a model computes; a caller's own settings stay as they are.

``torch.set_num_threads`` sets two numbers: OpenMP's, which belongs to the calling thread, and that of the BLAS, which
belongs to the process. Attention's small products go to the BLAS, which divides them by its number even where it runs
on one thread, so that a text's bits would depend on it: it is 1 while anything computes here.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def find_openmp() -> Callable[[int], Any] | None:
    """OpenMP's own setting of the calling thread's number, where torch is seen to follow it."""
    setting = getattr(ctypes.CDLL(None), "omp_set_num_threads", None) if sys.platform != "win32" else None
    if setting is None:
        return None
    before = torch.get_num_threads()
    setting(before + 1)
    followed = torch.get_num_threads() == before + 1
    setting(before)
    return setting if followed else None


set_openmp = find_openmp()


class _Blas:
    """The BLAS's number of threads: the first to compute sets it to 1, the last puts it back."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running = self.before = 0
        self.setter: ThreadPoolExecutor | None = None
        self.forked = False

    def set(self, threads: int) -> None:
        """Set the BLAS's number alone: OpenMP's is put back, or is that of a thread whose number nobody minds."""
        if set_openmp is not None:
            own = torch.get_num_threads()
            torch.set_num_threads(threads)
            set_openmp(own)
        else:
            self.setter = self.setter or ThreadPoolExecutor(1, "mtl-threads")
            self.setter.submit(torch.set_num_threads, threads).result()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self.lock:
            if self.running == 0:
                self.before = torch.get_num_threads()
                self.set(1)
            self.running += 1
        try:
            yield
        finally:
            with self.lock:
                self.running -= 1
                if self.running == 0:
                    self.set(self.before)

    def after_fork(self) -> None:
        """In a forked child, the parent's threads are gone: OpenMP would wait for its own for ever."""
        self.__init__()  # type: ignore[misc]
        self.forked = True
        torch.set_num_threads(1)


_blas = _Blas()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_blas.after_fork)


def settle(threads: int) -> None:
    """Make a new thread compute with so many threads, and leave the BLAS at 1."""
    torch.get_num_threads()  # asked for the first time, a thread takes over the process's number: not after this
    if set_openmp is not None:
        set_openmp(threads)
    else:
        torch.set_num_threads(threads)
        _blas.set(1)


@contextmanager
def side_by_side(workers: int, inside: int = 1) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads that compute with ``inside`` threads each."""
    with _blas.alone():
        initargs = (1 if _blas.forked else inside,)
        pool = ThreadPoolExecutor(workers, "mtl", initializer=settle, initargs=initargs)
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)


def with_threads(threads: int, compute: Callable[..., T], *arguments: Any) -> T:
    """What a call gives, computed with so many threads inside."""
    own = torch.get_num_threads()
    threads = 1 if _blas.forked else threads
    if threads == own:
        with _blas.alone():
            return compute(*arguments)
    if set_openmp is None:
        with side_by_side(1, threads) as pool:
            return pool.submit(compute, *arguments).result()
    with _blas.alone():
        set_openmp(threads)
        try:
            return compute(*arguments)
        finally:
            set_openmp(own)
