"""How much memory this process uses, now and while a corpus is embedded (Linux)."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def resident_mib() -> float:
    """What is in memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def held_mib() -> float:
    """The same, once the allocator (glibc) has given back what it only keeps for later."""
    ctypes.CDLL(None).malloc_trim(0)
    return resident_mib()


@contextmanager
def peaks(output: Path) -> Iterator[dict[int, float]]:
    """The most memory that there was, five times a second, by the number of files that were done at that moment."""
    found: dict[int, float] = {}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.2):
            done = len(list(output.glob("*.parquet")))
            found[done] = max(found.get(done, 0.0), resident_mib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        over.set()
        watcher.join()
