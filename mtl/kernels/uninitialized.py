"""Building modules whose tensors are about to be replaced: neither memory nor random numbers are spent on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

FILLING = {"normal_", "uniform_", "zero_", "fill_", "zeros_", "ones_"}


class NoInitialization(TorchFunctionMode):
    """Passes over whatever fills a tensor. On the meta device that does nothing, but the first time costs 1.6 s."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function.__name__ in FILLING:
            return args[0] if args else (kwargs or {})["tensor"]
        return function(*args, **(kwargs or {}))


@contextmanager
def uninitialized() -> Iterator[None]:
    """Within it, modules have tensors with shapes and no content, on the meta device."""
    with torch.device("meta"), NoInitialization():
        yield
