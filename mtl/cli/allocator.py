"""What the commands ask of glibc's allocator."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping

# The user's own settings, see mallopt(3)
OWN = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES")
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -2, -3, -8  # malloc.h
MAPPED = 2**23  # bytes: a large model's matrices, whose pieces would be scattered, and no temporary of a small one's
KEPT = 2**29  # bytes of each arena
SHARING = 4  # cores whose threads share an arena; were all to share one, they would wait for each other
PADDING = 2**26  # bytes that an arena grows by; else a thread's gives back its last 64 MiB whenever they are free


def keep_memory() -> bool:
    """Have glibc keep what is freed, up to ``KEPT``, and take no temporary smaller than ``MAPPED`` from the system.

    By itself it maps and unmaps large temporaries one by one, and Linux clears every page anew: 5 % of a training
    step's time, and 1.6 % so. A few threads share an arena, so that one takes what another has given back: training
    XLM-RoBERTa-base on two took 0.4 GB less, and 0.15 GB less again with ``MAPPED`` of 8 instead of 32 MiB. It holds
    for the whole process, so only a command does it, never the library; and where the user has set one of ``OWN``,
    that stays. Gives whether it was done.
    """
    return tuned({M_MMAP_THRESHOLD: MAPPED, M_TRIM_THRESHOLD: KEPT, M_TOP_PAD: PADDING, M_ARENA_MAX: arenas()})


def share_memory() -> bool:
    """Have a few threads share one of glibc's arenas, so that one takes what another has given back.

    By itself it gives eight to each core, and each keeps the most that any of its threads once had: over minutes of
    texts of all lengths memory grew by an eighth, and so it stays. Else as ``keep_memory``.
    """
    return tuned({M_ARENA_MAX: arenas()})


def arenas() -> int:
    return max(1, (os.cpu_count() or 1) // SHARING)


def tuned(settings: Mapping[int, int]) -> bool:
    """Set these of glibc's, where it is glibc and the user has set none; gives whether it was done."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if library is None or not hasattr(library, "gnu_get_libc_version") or any(name in os.environ for name in OWN):
        return False
    return all([library.mallopt(parameter, value) for parameter, value in settings.items()])
