"""Whether a module has changed since its program was made, and the program itself, kept until it has.

What is compared at each use, in 0.1 ms for all-MiniLM-L6-v2: every part, its type, settings and hooks; of every tensor
the object, its count of writes, address and strides; and the content of all biases and norms, with samples of each
matrix. So only one way to change a model is missed: writing through ``.data``, which leaves no count, to a few values
of a matrix, or on a GPU, where content is not compared. ``model.compiled.clear()`` is for who does that.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from operator import is_
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from mtl.kernels.compile import Plain
from mtl.kernels.understood import EVERYWHERE, FORWARD, HOOKS

log = logging.getLogger("mtl")

T = TypeVar("T")
SAMPLES, SAMPLES_MAPPED = 32, 4  # values of a matrix that are compared; each may bring back a page of a mapped file


class Watched:
    """A module's state, but for the parts that run plain: of them only whether they still have to."""

    def __init__(self, module: nn.Module, plain: Sequence[Plain], samples: int = SAMPLES) -> None:
        self.plain = plain
        parts = list(walk(module, {id(found.module) for found in plain}))
        known = [part for part in parts if type(part) in FORWARD]
        self.containers = [vars(part) for part in parts if type(part) not in FORWARD]
        self.types = [(part, type(part), type(part).forward) for part in parts]
        self.hooks = [vars(part)[hooks] for part in parts for hooks in HOOKS] + EVERYWHERE
        self.dicts = [held for part in parts for held in (part._modules, part._parameters, part._buffers)]
        self.dicts += [vars(part) for part in known]
        self.lengths = list(map(len, self.dicts))
        self.values = list(chain.from_iterable(held.values() for held in self.dicts))
        self.tensors = [
            x for part in parts for x in (*part._parameters.values(), *part._buffers.values()) if x is not None
        ]
        self.traces = list(map(trace, self.tensors))
        self.views = [view for x in self.tensors if (view := compared(x, samples)) is not None]
        self.content = self.read()

    def read(self) -> np.ndarray:
        return np.concatenate(self.views) if self.views else np.empty(0, np.int32)

    def unchanged(self) -> bool:
        return (
            all(type(part) is kind and kind.forward is forward for part, kind, forward in self.types)
            and not any(self.hooks)
            and not any("forward" in settings for settings in self.containers)
            and list(map(len, self.dicts)) == self.lengths
            and all(map(is_, chain.from_iterable(held.values() for held in self.dicts), self.values))
            and list(map(trace, self.tensors)) == self.traces
            and np.array_equal(self.read(), self.content)
            and all(found.persists() for found in self.plain)
        )


def walk(module: nn.Module, left_out: set[int]) -> Iterator[nn.Module]:
    """A module and its parts, but for some and what is in them."""
    if id(module) not in left_out:
        yield module
        for part in module._modules.values():
            if part is not None:
                yield from walk(part, left_out)


def trace(x: Tensor) -> tuple[int, int, tuple[int, ...]]:
    """What a write to a tensor, or another storage or layout of it, leaves; inference mode counts no writes."""
    return 0 if x.is_inference() else x._version, x.data_ptr(), x.stride()


def compared(x: Tensor, samples: int) -> np.ndarray | None:
    """The values of a tensor that are compared, as integers, in which NaN equals itself: a view."""
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return None
    values = x.detach().numpy().view(np.int32)
    if values.ndim == 2:
        contiguous = values.flags.c_contiguous
        values = values.reshape(-1)[:: values.size // samples | 1] if contiguous else values.diagonal()
    return values if values.ndim == 1 else None


class Compiled(Generic[T]):
    """The program of a module. A copy of this, pickled or not, starts with none."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.program: T | None = None
        self.watched: Watched | None = None
        self.key: Any = None
        self.said = ""

    def of(self, module: nn.Module, key: Any, make: Callable[[], tuple[T, list[Plain]]], samples: int = SAMPLES) -> T:
        """The module's program; ``key`` is what else decides it, such as the number format.

        ``make`` gives a program, and which parts in it run plain: one line in the log names them.
        """
        with self.lock:
            if self.program is None or self.watched is None or self.key != key or not self.watched.unchanged():
                self.program = None  # frees its memory before the next one takes some
                program, plain = make()
                self.watched, self.key = Watched(module, plain, samples), key
                self.program = program
                self.say([found for found in plain if not found.said])
            return self.program

    def say(self, plain: Sequence[Plain]) -> None:
        """One line, until there is something else to say."""
        what = "; ".join(f"{type(found.module).__name__}: {found.why}" for found in plain)
        for found in plain:
            found.said = True
        if what and what != self.said:
            log.warning("%s; what is not understood runs as it is, in its own precision and slower", what)
        self.said = what

    def clear(self) -> None:
        with self.lock:
            self.program = self.watched = None

    def __reduce__(self) -> tuple[type[Compiled[T]], tuple[()]]:
        return Compiled, ()
