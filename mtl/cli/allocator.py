"""Memory that a command gives back and asks for again at once, kept instead."""

from __future__ import annotations

import ctypes
import os
import sys

OWN = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")  # the user's own settings, see mallopt(3)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
MAPPED = 2**25  # bytes; the most that glibc takes
KEPT = 2**29  # bytes of each arena


def keep_memory() -> bool:
    """Have glibc keep what is freed, up to ``KEPT``, and take no temporary smaller than ``MAPPED`` from the system.

    By itself it maps and unmaps large temporaries one by one, and Linux clears every page anew: in training a seventh
    of the time. It holds for the whole process, so only a command does it, never the library; and where the user has
    set one of ``OWN``, that stays. Gives whether it was done.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if library is None or not hasattr(library, "gnu_get_libc_version") or any(name in os.environ for name in OWN):
        return False
    return bool(library.mallopt(M_MMAP_THRESHOLD, MAPPED) and library.mallopt(M_TRIM_THRESHOLD, KEPT))
