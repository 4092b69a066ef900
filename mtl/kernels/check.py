"""Does this machine give a row, or a text, the same bits whatever stands beside it? Kernel by kernel, tried out.

A processor can compute as an older one: ``levels`` says as which, by variables that oneDNN, MKL and torch read when
they start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from mtl.kernels.attention import fused, windowed
from mtl.kernels.int8 import Int8Linear
from mtl.kernels.linear import Packed
from mtl.kernels.threads import computing_with

ROWS = (1, 2, 3, 5, 8, 12, 16, 17, 31, 33, 64, 96, 129, 200, 257, 384, 512)
TEXTS = (1, 2, 3, 7, 16)  # of one length, beside each other in attention
LENGTHS = (2, 5, 10, 17, 32, 33, 40, 64, 65, 100, 200)
HEADS = ((2, 8), (2, 10), (4, 16), (2, 32), (2, 64), (1, 64), (16, 1))  # their number and width, beside the model's own
THREADS = (1, 2, 3)
Trial = tuple[str, list[int]]  # what was tried, and at how many rows or texts it gave other bits

# Instruction sets, oldest first: the variables that cap oneDNN, MKL and torch's own kernels at each
LEVELS = {
    "SSE4.1": ("SSE41", "SSE4_2", "default"),
    "AVX2": ("AVX2", "AVX2", "avx2"),
    "AVX-512": ("AVX512_CORE_VNNI", "AVX512", "avx512"),
}
VARIABLES = ("ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "ATEN_CPU_CAPABILITY")


def levels() -> dict[str, dict[str, str]]:
    """The instruction sets that this machine can play, and the environment for each; the last is all that it has."""
    cpu = torch.cpu
    has = {"SSE4.1": True, "AVX2": cpu._is_avx2_supported(), "AVX-512": cpu._is_avx512_supported()}
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512", "DEFAULT"):
        has = {}  # no x86: there is nothing to cap
    capped = {name: dict(zip(VARIABLES, LEVELS[name], strict=True)) for name, found in has.items() if found}
    return {**capped, "as it is": {}}


@torch.inference_mode()
def compute(threads: int, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """As an engine computes: with so many threads inside, and without gradients."""
    with computing_with(threads):
        return function(*arguments)


def products(program: Any) -> Iterator[Packed | Int8Linear]:
    """Every product that a program is made of, whatever holds it."""
    if isinstance(program, (Packed, Int8Linear)):
        yield program
    elif isinstance(program, (list, tuple)):
        for part in program:
            yield from products(part)
    elif isinstance(program, Mapping):
        yield from products(list(program.values()))
    elif type(program).__module__.startswith("mtl.") and hasattr(program, "__dict__"):
        yield from products(list(vars(program).values()))


def linear_trials(program: Any, threads: int) -> Iterator[Trial]:
    """Each product's kind and shape, and the numbers of rows at which a row differs from the same among many."""
    generator = torch.Generator().manual_seed(0)
    shapes = {(f"{layer.kind} linear {layer.inputs} -> {layer.outputs}"): layer for layer in products(program)}
    for name, layer in shapes.items():
        x = torch.randn(max(ROWS) + 40, layer.inputs, generator=generator)
        x = (x * 40 + 100).clamp(0, 255).to(layer.dtype) if layer.dtype == torch.uint8 else x.to(layer.dtype)
        whole = compute(1, layer, x)
        parts = {rows: compute(threads, layer, x[23 : 23 + rows].contiguous()) for rows in ROWS}
        yield name, [rows for rows, part in parts.items() if not torch.equal(part, whole[23 : 23 + rows])]


def attention_trials(heads: int, width: int, threads: int, dtype: torch.dtype = torch.float32) -> Iterator[Trial]:
    """Each way of attention, and the numbers of texts at which the first of them differs from alone."""
    generator = torch.Generator().manual_seed(0)
    most = max(LENGTHS)
    q, k, v = (torch.randn(max(TEXTS), heads, most, width, generator=generator).to(dtype) for _ in range(3))
    bias = torch.randn(max(TEXTS), heads, most, most, generator=generator).to(dtype)

    def of_queries(queries: int, bias: Tensor | None = None) -> Callable[[int, int], Tensor]:
        return lambda texts, n: fused(
            q[:texts, :, : min(queries, n)], k[:texts, :, :n], v[:texts, :, :n],
            None if bias is None else bias[:texts, :, : min(queries, n), :n],
        )  # fmt: skip

    def some(texts: int, n: int) -> tuple[Tensor, Tensor, Tensor]:
        return q[:texts, :, :n], k[:texts, :, :n], v[:texts, :, :n]

    ways: dict[str, Callable[[int, int], Tensor]] = {
        "of all tokens": of_queries(most),
        "of the first token": of_queries(1),
        "of two tokens": of_queries(2),
        "of 32 tokens": of_queries(32),
        "with a bias": of_queries(most, bias[:1]),
        "with a bias for each text": of_queries(most, bias),
        "in windows": lambda texts, n: windowed(*some(texts, n), 15),
    }
    for name, way in ways.items():
        wrong = set()
        for n in LENGTHS:
            alone = compute(1, way, 1, n)
            parts = {texts: compute(threads, way, texts, n) for texts in TEXTS}
            wrong |= {texts for texts, part in parts.items() if not torch.equal(part[:1], alone)}
        yield f"attention {name}, {heads} heads of {width}", sorted(wrong)


def kernel_trials(program: Any, heads: int, width: int, dtype: torch.dtype, threads: int) -> Iterator[Trial]:
    """All kernels of a program whose attention has so many heads of some width, and attention of other shapes."""
    yield from linear_trials(program, threads)
    for shape in {(heads, width): None, **dict.fromkeys(HEADS)}:
        yield from attention_trials(*shape, threads, dtype)
