"""What int8 costs a model, measured when its program is made; and what stays in float32, so that it costs little.

The measure is the least cosine of a vector to that of float32, over the texts of the calibration. Where it is too low,
products go back to float32, one after another: of the block that errs the most, that by which its error falls the most.
Where that takes most of the work, int8 has no point, and the model is refused.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import torch.nn.functional as F
from torch import nn

from mtl.errors import InputError
from mtl.kernels.compile import Plain, Program, compile, exactly
from mtl.kernels.int8 import LEAST_COSINE, Calibration, Int8Linear, Quality
from mtl.kernels.vectors import Vectors
from mtl.model.interface import Encoder

log = logging.getLogger("mtl")

MOST_KEPT = 0.5  # of the multiplications
MARGIN = 0.25  # of what is allowed; so much better a model is made that has to be, since other texts may fare worse
FLAT = 1e-4  # of a mean channel's variance: the errors of one that varies less are not measured by it


class InBlocks(Program, Protocol):
    """A program in int8, which makes a block again, in float32."""

    blocks: list[Any]
    make: Callable[[int, bool], Any]


class Gate:
    """Measures a program in int8, and makes it err less."""

    def __init__(self, calibration: Calibration, vectors: Vectors) -> None:
        self.batch, self.states, self.vectors = calibration.batch, calibration.states, vectors
        self.program = cast(InBlocks, vectors.encoder)
        self.expected = vectors.pooled(self.states[-1], self.batch).double()
        self.whole = [*self.program.blocks]
        self.work = [sizes(block) for block in self.whole]
        self.kept: list[set[str]] = [set() for _ in self.whole]
        self.plain: dict[int, Any] = {}  # the blocks of which something is kept, in float32

    def cosine(self) -> float:
        found = self.vectors.pooled(self.program(self.batch), self.batch).double()
        return float(F.cosine_similarity(found, self.expected, dim=1).nan_to_num(-1).min())

    def quality(self, cosine: float) -> Quality:
        return Quality(cosine, sum(map(len, self.kept)), sum(map(len, self.work)))

    def mostly_kept(self) -> bool:
        kept = sum(sizes[name] for sizes, names in zip(self.work, self.kept, strict=True) for name in names)
        return kept > MOST_KEPT * sum(sum(sizes.values()) for sizes in self.work)

    def improve(self, cosine: float, least: float) -> float:
        """Leave products in float32 until the cosine is high enough, or most of the work is; gives the last cosine."""
        least += MARGIN * (1 - least)
        errors = [self.error(block, i) for i, block in enumerate(self.whole)]
        while cosine < least and any(errors) and not self.mostly_kept():
            i = errors.index(max(errors))
            errors[i] = self.keep_one(i)
            cosine = self.cosine()
        return cosine

    def keep_one(self, i: int) -> float:
        """Leave that product of a block in float32 by which its error falls the most; gives the error that is left."""
        plain = self.plain[i] = self.plain.get(i) or self.program.make(i, True)
        left = sorted(self.work[i].keys() - self.kept[i])
        trials = {name: self.whole[i].keeping(plain, {*self.kept[i], name}) for name in left}
        errors = {name: self.error(block, i) for name, block in trials.items()}
        best = min(errors, key=errors.__getitem__)
        self.kept[i].add(best)
        self.program.blocks[i] = trials[best]
        return errors[best] if len(left) > 1 else 0

    def error(self, block: Any, i: int) -> float:
        """How far block number i, in some form, is from float32 for the same input: of each channel the mean square
        over its variance, and of these the root of the mean, so that far larger channels say no more than others."""
        self.program.blocks[i] = block
        found, expected = self.program.run(self.states[i], self.batch, i, i + 1), self.states[i + 1]
        variance = expected.var(dim=0)
        variance = variance.clamp(min=float(variance.mean()) * FLAT)
        return float(((found - expected).square().mean(dim=0) / variance).mean().sqrt().nan_to_num(0))


def sizes(block: object) -> dict[str, int]:
    """By its name, how many multiplications each product in int8 has for a token."""
    return {name: x.inputs * x.outputs for name, x in vars(block).items() if isinstance(x, Int8Linear)}


def gated(
    encoder: Encoder,
    rows: Sequence[Sequence[int]],
    pooling: nn.Module,
    after: nn.Module,
    least: float = LEAST_COSINE,
    mapped: bool = False,
) -> Vectors:
    """The program in int8 of an encoder and what follows it, with its ``quality`` over texts of these token ids.

    An encoder that is not understood runs as it is, and has none. An InputError if its least cosine is less than
    ``least``, and half of the work in float32 does not mend it.
    """
    calibration = Calibration(rows)
    vectors = Vectors.of(compile(encoder, "int8", calibration, mapped), pooling, after)
    if isinstance(vectors.encoder, Plain):
        return vectors
    with exactly():
        gate = Gate(calibration, vectors)
        if not gate.expected.isfinite().all():  # encode refuses such vectors
            return vectors
        found = whole = gate.cosine()
        if whole < least:
            found = gate.improve(whole, least)
    if found < least:
        raise InputError(
            f"precision is 'int8', whose least cosine to fp32 is {whole:.3f} on the calibration's sentences; expected "
            f"{least:g}: choose 'fp32' or 'bf16', or insist with int8_least_cosine={whole - 0.0005:.3f}"
        )
    quality = gate.quality(found)
    log.log(logging.INFO if found >= LEAST_COSINE else logging.WARNING, "int8 against fp32: %s", quality)
    return dataclasses.replace(vectors, quality=quality)
