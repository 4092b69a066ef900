"""Inference is inference: no dropout within it, and afterwards each module is in the mode that it was in."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

_lock = threading.Lock()
_within: dict[nn.Module, tuple[int, list[nn.Module]]] = {}  # a model -> how many are within, what to put back


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Within it, the model and all its parts are in eval mode; the last thread to leave restores each part's own."""
    with _lock:
        users, training = _within.get(model, (0, [part for part in model.modules() if part.training]))
        _within[model] = users + 1, training
        for part in training:
            part.training = False
    try:
        yield
    finally:
        with _lock:
            users, training = _within.pop(model)
            if users > 1:
                _within[model] = users - 1, training
            else:
                for part in training:
                    part.training = True
