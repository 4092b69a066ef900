"""Memory that a command gives back and asks for again at once, kept instead."""

from __future__ import annotations

import ctypes
import os
import sys

# The user's own settings, see mallopt(3)
OWN = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h
MAPPED = 2**25  # bytes; the most that glibc takes
KEPT = 2**29  # bytes of each arena
PADDING = 2**26  # bytes that an arena grows by; else a thread's gives back its last 64 MiB whenever they are free


def keep_memory() -> bool:
    """Have glibc keep what is freed, up to ``KEPT``, and take no temporary smaller than ``MAPPED`` from the system.

    By itself it maps and unmaps large temporaries one by one, and Linux clears every page anew: 5 % of a training
    step's time, and 1.6 % so. It holds for the whole process, so only a command does it, never the library; and where
    the user has set one of ``OWN``, that stays. Gives whether it was done.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if library is None or not hasattr(library, "gnu_get_libc_version") or any(name in os.environ for name in OWN):
        return False
    settings = {M_MMAP_THRESHOLD: MAPPED, M_TRIM_THRESHOLD: KEPT, M_TOP_PAD: PADDING}
    return all([library.mallopt(parameter, value) for parameter, value in settings.items()])
