"""What a process may have set of products and of attention, and that nothing here is computed by."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from typing import Any

from torch.backends import cuda, mkldnn

matmul: Any = mkldnn.matmul  # type: ignore[attr-defined]
# The precision of products in float32; whether flash and plain attention may be taken
Settings = tuple[str, bool, bool]


class ByDefault(AbstractContextManager[None]):
    """While a thread is within it, products on a CPU are float32's and attention may take any of a CPU's kernels.

    Programs for a GPU often say otherwise, as by ``torch.set_float32_matmul_precision("medium")``. These settings are
    the whole process's: where they are others, the first thread sets them, and the last that leaves sets them back.
    """

    def __init__(self) -> None:
        self.lock, self.users = threading.Lock(), 0
        self.before: Settings | None = None  # what is to be set back

    def __enter__(self) -> None:
        with self.lock:
            if not self.users:
                told = matmul.fp32_precision, cuda.flash_sdp_enabled(), cuda.math_sdp_enabled()
                self.before = None if told in (("none", True, True), ("ieee", True, True)) else told
                if self.before:
                    self.set("ieee", True, True)
            self.users += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.users -= 1
            if not self.users and self.before:
                self.set(*self.before)

    def set(self, precision: str, flash: bool, math: bool) -> None:
        matmul.fp32_precision = "none"  # as all of oneDNN's; another is set only where that differs
        if matmul.fp32_precision != precision:
            matmul.fp32_precision = precision
        cuda.enable_flash_sdp(flash)
        cuda.enable_math_sdp(math)


by_default = ByDefault()
