"""The program of an encoder, a pooling and the layers after it: one vector per text."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from mtl.kernels.compile import Plain, Program, compile_part, overridden
from mtl.kernels.int8 import Quality
from mtl.kernels.threads import alone
from mtl.model.heads import Branch
from mtl.model.packing import PackedBatch

FORWARD = {kind: kind.forward for kind in (Branch, nn.Sequential)}  # as they are before anybody replaces one


@dataclasses.dataclass(frozen=True)
class Pooled:
    """The program of a pooling and a head: hidden states (tokens, dim) -> (texts, outputs)."""

    pooling: Callable[[Tensor, PackedBatch], Tensor]
    head: Callable[[Tensor], Tensor]

    @classmethod
    def of(cls, branch: nn.Module) -> Pooled | Plain:
        if plain := overridden(branch, FORWARD[Branch]):
            return plain
        return cls(*map(compile_part, branch.children()))

    def __call__(self, x: Tensor, batch: PackedBatch) -> Tensor:
        with alone():
            return self.head(self.pooling(x, batch))


@dataclasses.dataclass(frozen=True)
class Vectors:
    """PackedBatch -> (texts, dim) float32. With ``takes_first`` no more than each text's first token is computed.

    ``quality`` says of int8 how near it is to float32; see gate.py.
    """

    encoder: Program
    pooling: Callable[[Tensor, PackedBatch], Tensor]
    after: Sequence[Callable[[Tensor], Tensor]]
    takes_first: bool
    quality: Quality | None = None

    @classmethod
    def of(cls, encoder: Program, pooling: nn.Module, after: nn.Module) -> Vectors:
        """With the programs of a pooling and of a Sequential of layers."""
        whole = overridden(after, FORWARD[nn.Sequential])
        layers = (whole,) if whole else tuple(map(compile_part, after.children()))
        found = compile_part(pooling)
        plain = isinstance(encoder, Plain) or isinstance(found, Plain)
        return cls(encoder, found, layers, not plain and getattr(pooling, "modes", ()) == ("cls",))

    def __call__(self, batch: PackedBatch) -> Tensor:
        if self.takes_first:
            return self.finish(self.encoder.run(self.encoder.embed(batch), batch, first=True))
        return self.pooled(self.encoder(batch), batch)

    def hidden(self, batch: PackedBatch) -> Tensor:
        """The last hidden state of every token, (tokens, dim) float32."""
        return self.encoder(batch).float()

    def with_hidden(self, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """The vectors, to the bit as they are alone, and the last hidden state of every token, (tokens, dim)."""
        if not self.takes_first:
            x = self.encoder(batch).float()
            return self.pooled(x, batch), x
        x = self.encoder.run(self.encoder.embed(batch), batch, stop=-1)
        firsts, x = self.encoder.run(x, batch, start=-1, first=True), self.encoder.run(x, batch, start=-1)
        return self.finish(firsts), x.float()

    def pooled(self, x: Tensor, batch: PackedBatch) -> Tensor:
        with alone():
            return self.finish(self.pooling(x.float(), batch))

    def finish(self, x: Tensor) -> Tensor:
        x = x.float()
        with alone():
            for part in self.after:
                x = part(x)
        return x

    @property
    def plain(self) -> list[Plain]:
        return plain(self.encoder, self.pooling, *self.after)


def plain(*programs: object) -> list[Plain]:
    """The parts of programs that run as they are."""
    flat = (
        part for found in programs for part in ((found.pooling, found.head) if isinstance(found, Pooled) else (found,))
    )
    return [part for part in flat if isinstance(part, Plain)]
