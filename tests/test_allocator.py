"""mtl train keeps freed memory, unless the user has settings of their own for glibc."""

import subprocess
import sys

import pytest

from mtl.cli.allocator import OWN

FAULTS = """
import resource
from mtl.cli.allocator import keep_memory
import torch
done = keep_memory()
def use(times):
    for _ in range(times):
        parts = [torch.ones(6_000_000) for _ in range(6)]  # 24 MB each
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
