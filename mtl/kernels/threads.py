"""How many threads OpenMP and BLAS use while a model computes; all other threads' settings stay as they are.

Both numbers belong to the calling thread. ``torch.set_num_threads`` sets both to the same, and what threads begin with
that are new; an engine wants OpenMP's as it is asked for and the BLAS's at 1, since attention's small products go to
the BLAS, which divides them by its number even where it runs on one thread: a text's bits would depend on it.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch

Setting = Callable[[int], int]
SOFT = 1  # omp_pause_soft, OpenMP 5.0: what the thread has set stays
forked = False


def find_openmp() -> Setting | None:
    """OpenMP's own setting of the calling thread's number, where torch is seen to follow it."""
    library = ctypes.CDLL(None) if sys.platform != "win32" else None
    setting, asking = (getattr(library, name, None) for name in ("omp_set_num_threads", "omp_get_max_threads"))
    if setting is None or asking is None:
        return None
    ours, before = torch.get_num_threads(), asking()
    setting(ours + 1)
    followed = torch.get_num_threads() == ours + 1
    setting(before)
    return setting if followed else None


def find_blas() -> Setting | None:
    """MKL's setting of the calling thread's number, which gives the number before. Other BLASes have nothing to set."""
    if not torch.backends.mkl.is_available():
        return lambda threads: threads
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    except OSError:
        return None
    return getattr(library, "MKL_Set_Num_Threads_Local", None)


def find_setters() -> tuple[Setting, Setting] | None:
    """OpenMP's and the BLAS's, where both are found."""
    openmp, blas = find_openmp(), find_blas()
    return None if openmp is None or blas is None else (openmp, blas)


setters = find_setters()


def set_threads(openmp: int, blas: int) -> int:
    """Set the calling thread's numbers, and give the BLAS's from before; both to ``openmp``, where nothing better is
    found than torch's own function."""
    if setters is None:
        torch.set_num_threads(openmp)
        return openmp
    set_openmp, set_blas = setters
    set_openmp(openmp)
    return set_blas(blas)


@contextmanager
def computing_with(threads: int) -> Iterator[None]:
    """Within it, the calling thread computes with so many threads."""
    before = torch.get_num_threads()
    blas = set_threads(1 if forked else threads, 1)
    try:
        yield
    finally:
        set_threads(before, blas)


def alone() -> AbstractContextManager[None]:
    """Within it, the calling thread computes by itself."""
    return nullcontext() if torch.get_num_threads() == 1 else computing_with(1)


def settle() -> None:
    """Make a new thread compute alone."""
    torch.get_num_threads()  # torch sets a thread's number when it first asks for it: that would undo the next line
    set_threads(1, 1)


def end_team() -> None:
    """End the OpenMP threads that wait for the calling thread's next operation, which makes others.

    A thread that has computed has its team for as long as it lives. Once all teams together are more than the cores,
    libgomp lets none of them spin until the next operation, but has the system wake them each time (``wait.h``,
    ``gomp_throttled_spin_count``): a text of 50 tokens took 7.5 instead of 5 ms.
    """
    end = getattr(ctypes.CDLL(None), "omp_pause_resource_all", None) if sys.platform != "win32" else None
    if end:
        end(SOFT)


@contextmanager
def side_by_side(workers: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads that compute alone, each."""
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, "mtl", initializer=settle)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        if setters is None:  # they have set what new threads begin with
            torch.set_num_threads(before)


def after_fork() -> None:
    """In a forked child, the parent's threads are gone: OpenMP would wait for its own for ever."""
    global forked
    forked = True
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=after_fork)
