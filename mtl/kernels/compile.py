"""Makes a program of a module: what inference computes with.

The float32 parameters are the one truth: they are trained, saved and exported. A program is made of them at first use,
and again when they have changed (watched.py). It stands only for a module that is understood (understood.py); any
other runs as it is, in eval mode, and a line in the log says why. So nothing is computed as something that it is not.

An architecture is two files: model/x.py to read, and kernels/x.py to run, which PROGRAMS names. Without the second,
the first is run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mtl.errors import MtlError, WeightsError
from mtl.kernels import deberta, rotary
from mtl.kernels import encoder as distilbert
from mtl.kernels.defaults import by_default
from mtl.kernels.int8 import Calibration, Ranges
from mtl.kernels.parts import PARTS
from mtl.kernels.threads import computing_with
from mtl.kernels.understood import (
    FORWARD,
    Compare,
    Difference,
    called,
    difference,
    foreign,
    hooked,
    made_otherwise,
    unknown,
)
from mtl.kernels.uninitialized import uninitialized
from mtl.model.deberta import Deberta
from mtl.model.encoder import DistilBert
from mtl.model.interface import Encoder
from mtl.model.mpnet import MPNet
from mtl.model.packing import PackedBatch
from mtl.model.rotary import RotaryEncoder

FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8}


class Program(Protocol):
    """An encoder as inference computes it.

    Blocks go from ``start`` up to ``stop``, not included, as in a slice. With ``first`` the last of them gives no more
    than each text's first token, (texts, dim), and most of it is spared.
    """

    def embed(self, batch: PackedBatch) -> Tensor: ...
    def run(
        self, x: Tensor, batch: PackedBatch, start: int = 0, stop: int | None = None, first: bool = False
    ) -> Tensor: ...
    def __call__(self, batch: PackedBatch, /) -> Tensor: ...


class Plain:
    """A module that runs as it is, in eval mode while it does, whatever mode it is in.

    ``why`` says in what it is not understood.
    """

    def __init__(self, module: nn.Module, why: Difference) -> None:
        self.module, self.why = module, why
        self.said = False  # whether the log has a line of it
        self.lock, self.users = threading.Lock(), 0
        self.training: list[nn.Module] = []

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        with self.lock:
            if not self.users:
                self.training = [part for part in self.module.modules() if part.training]
                set_training(self.training, False)
            self.users += 1
        try:
            yield
        finally:
            with self.lock:
                self.users -= 1
                if not self.users:
                    set_training(self.training, True)

    def __call__(self, *inputs: Any) -> Any:
        with self.evaluating():
            return self.module(*inputs)

    def persists(self) -> bool:
        return self.why.persists(self.module)


def set_training(parts: Sequence[nn.Module], training: bool) -> None:
    for part in parts:
        part.training = training


class PlainEncoder(Plain):
    """An encoder that runs as it is."""

    module: Encoder

    def embed(self, batch: PackedBatch) -> Tensor:
        with self.evaluating():
            return self.module.embed(batch)

    def run(
        self, x: Tensor, batch: PackedBatch, start: int = 0, stop: int | None = None, first: bool = False
    ) -> Tensor:
        with self.evaluating():
            x = self.module.run(x, batch, start, stop)
        return x[batch.firsts] if first else x


Compile = Callable[[Any, torch.dtype, Ranges, bool], Program]
PROGRAMS: dict[type[Encoder], Compile] = {
    DistilBert: distilbert.compile,
    MPNet: distilbert.compile,
    RotaryEncoder: rotary.compile,
    Deberta: deberta.compile,
}


def compile(
    encoder: Encoder, precision: str = "fp32", calibration: Calibration | None = None, mapped: bool = False
) -> Program:
    """An encoder's program in a number format, or where it is not understood, the encoder itself.

    ``calibration`` sees for int8 how large activations get. ``mapped`` says that the weights are mapped from a file,
    and need not be in memory twice.
    """
    maker = PROGRAMS.get(type(encoder))
    found = unlike(encoder, lambda: type(encoder)(encoder.config)) if maker else unknown(encoder)
    if found or not maker:
        assert found
        return PlainEncoder(encoder, found)
    with exactly():
        if calibration:
            calibration.watch(encoder)
        return maker(encoder, FORMATS[precision], calibration.ranges if calibration else {}, mapped)


def overridden(module: nn.Module, forward: Callable[..., Any]) -> Plain | None:
    """A module that is put together of programs, if calling it does anything but that forward."""

    def what() -> str:
        if type(module).forward is not forward:
            return f"is a {called(module)}, whose forward is not {forward.__qualname__}"
        return hooked(module)

    return Plain(module, Difference("", what(), module, what)) if what() else None


def compile_part(part: nn.Module) -> Callable[..., Tensor]:
    """The program of a pooling, a layer after it, or a head, always in float32; or the part itself."""
    if type(part) not in PARTS:
        return Plain(part, unknown(part))
    like, maker = PARTS[type(part)]
    found = unlike(part, lambda: like(part))
    if found:
        return Plain(part, found)
    with exactly():
        return maker(part)


def unlike(module: nn.Module, like: Callable[[], nn.Module], of: Compare | None = None) -> Difference | None:
    """In what a module differs from a new one of its config."""
    try:
        with uninitialized():
            expected = like()
    except (AttributeError, TypeError, ValueError, MtlError):
        return foreign(module) or unknown(module)
    return difference(module, expected, of)


def check_saveable(module: nn.Module) -> None:
    """Raise a WeightsError if an encoder, pooling, layer or head is not what its settings and weights bring back, as
    with an adapter."""
    kind = type(module)
    found: Difference | None = unknown(module)
    if kind in PARTS:
        found = unlike(module, lambda: PARTS[kind][0](module), made_otherwise)
    elif isinstance(module, Encoder) and kind in FORWARD:
        found = unlike(module, lambda: type(module)(module.config), made_otherwise)
    if found:
        raise WeightsError(
            f"{kind.__name__}: {found}; a folder could not say so: merge it into the weights, or take it out, to save"
        )


@contextmanager
def exactly() -> Iterator[None]:
    """Within it, what is computed follows no setting of the caller's: not autocast, device, number of threads, or
    precision of products."""
    cpu, cuda = (torch.autocast(kind, enabled=False) for kind in ("cpu", "cuda"))
    with torch.no_grad(), cpu, cuda, torch.device("cpu"), computing_with(1), by_default:
        yield
