"""What commands ask of glibc's allocator, unless the user has settings of their own for it."""

import os
import subprocess
import sys

import pytest

from mtl.cli.allocator import OWN, SHARING

FAULTS = """
import resource
from mtl.cli.allocator import keep_memory
import torch
done = keep_memory()
def use(times):
    for _ in range(times):
        parts = [torch.ones(1_900_000) for _ in range(20)]  # 7.6 MB each
        del parts
use(6)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use(3)
print(done, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_memory_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then no page is cleared anew for what was freed just before; a user's own settings stay."""
    for name in OWN:
        monkeypatch.delenv(name, raising=False)

    def faults() -> tuple[str, int]:
        found = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
        done, pages = found.stdout.split()
        return done, int(pages)

    done, kept = faults()
    assert done == "True"
    assert kept < 1000
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    done, given_back = faults()
    assert done == "False"
    assert given_back > 10_000


ARENAS = """
import ctypes, sys, threading
from mtl.cli.allocator import share_memory
done = share_memory()
barrier = threading.Barrier(5)
def use():
    barrier.wait()
    held = [ctypes.create_string_buffer(2**16) for _ in range(200)]
    barrier.wait()
threads = [threading.Thread(target=use) for _ in range(5)]
for thread in threads: thread.start()
for thread in threads: thread.join()
library = ctypes.CDLL(None)
library.malloc_info.argtypes, library.fdopen.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
print(done, flush=True)
library.malloc_info(0, library.fdopen(1, b"w"))
library.fflush(None)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_threads_share_arenas(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that memory does not grow by what each thread once had."""
    for name in OWN:
        monkeypatch.delenv(name, raising=False)

    def arenas() -> tuple[str, int]:
        found = subprocess.run([sys.executable, "-c", ARENAS], capture_output=True, text=True, check=True)
        done, _, told = found.stdout.partition("\n")
        return done, told.count("<heap nr=")

    most = max(1, (os.cpu_count() or 1) // SHARING)
    done, shared = arenas()
    assert done == "True"
    assert shared <= most
    monkeypatch.setenv("MALLOC_ARENA_MAX", "5")
    assert arenas() == ("False", 5)
