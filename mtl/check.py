"""Does this machine give a text the same bits, whatever stands beside it? Kernels decide, so they are tried out.

First kernel by kernel, so that one that does not is known by its name, then whole texts in many companies. A processor
can play its elders: ``levels`` says which, by the variables that oneDNN, MKL and torch read when they start.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mtl.encode.precision import DTYPES, calibration_texts
from mtl.encode.sentence_encoder import SentenceEncoder
from mtl.kernels.threads import computing_with
from mtl.model.config import EncoderConfig
from mtl.model.encoder import DistilBert
from mtl.model.int8 import Int8Linear
from mtl.model.linear import Packed
from mtl.model.pooling import Normalize, Pooling

ROWS = (1, 2, 3, 5, 8, 12, 16, 17, 31, 33, 64, 96, 129, 200, 257, 384, 512)
TEXTS = (1, 2, 3, 7, 16)  # of one length, beside each other in attention
LENGTHS = (2, 5, 10, 17, 32, 40, 64, 100, 200)
THREADS = (1, 2, 3)
DISTILBERT_SHAPE = "distilbert-shape"  # the name under which the command line checks it

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


def kernels(model: SentenceEncoder) -> dict[tuple[str, int, int], Packed | Int8Linear]:
    """One linear layer of each kind and shape that the model is computed with: (kind, in, out) -> layer."""
    layers = [layer for layer in model.form().modules() if isinstance(layer, (Packed, Int8Linear))]
    return {(f"{layer.kind} linear", layer.inputs, layer.outputs): layer for layer in layers}


def linear_trials(model: SentenceEncoder, threads: int) -> Iterator[tuple[str, list[int]]]:
    """Each linear kernel, and the numbers of rows at which a row gets other bits than among many on one thread."""
    generator = torch.Generator().manual_seed(0)
    for (kind, inputs, outputs), layer in kernels(model).items():
        x = torch.randn(max(ROWS) + 40, inputs, generator=generator)
        x = (x * 40 + 100).clamp(0, 255).to(layer.dtype) if layer.dtype == torch.uint8 else x.to(layer.dtype)
        whole = compute(1, layer, x)
        parts = {rows: compute(threads, layer, x[23 : 23 + rows].contiguous()) for rows in ROWS}
        wrong = [rows for rows, part in parts.items() if not torch.equal(part, whole[23 : 23 + rows])]
        yield f"{kind} {inputs} -> {outputs}", wrong


def attention_trials(
    config: EncoderConfig, threads: int, dtype: torch.dtype = torch.float32
) -> Iterator[tuple[str, list[int]]]:
    """Attention at several lengths, and the numbers of texts at which one gets other bits than alone on one thread."""
    generator = torch.Generator().manual_seed(0)
    size = (max(TEXTS), config.n_heads, max(LENGTHS), config.dim // config.n_heads)
    q, k, v = (torch.randn(size, generator=generator).to(dtype) for _ in range(3))

    def attention(texts: int, length: int) -> Tensor:
        return F.scaled_dot_product_attention(q[:texts, :, :length], k[:texts, :, :length], v[:texts, :, :length])

    for length in LENGTHS:
        alone = compute(1, attention, 1, length)
        parts = {texts: compute(threads, attention, texts, length) for texts in TEXTS}
        yield f"attention of {length} tokens", [n for n, part in parts.items() if not torch.equal(part[:1], alone)]


def sample_texts(seed: int = 0) -> list[str]:
    """Bundled sentences, cut and joined to lengths from nothing to beyond the limit."""
    generator = random.Random(seed)
    sentences = calibration_texts()
    short = ["", "a", *(" ".join(s.split()[:n]) for n, s in enumerate(sentences[:14]))]
    joined = [" ".join(generator.choices(sentences, k=k)) for k in (2, 3, 5, 8, 13, 21, 34)]
    return [*short, *sentences[14:40], *joined]


def text_trials(model: SentenceEncoder, seed: int = 0) -> Iterator[tuple[str, int]]:
    """Each way to encode the sample, and how many texts got other bits than alone on one thread."""
    texts = sample_texts(seed)
    generator = random.Random(seed)

    def alone(threads: int) -> np.ndarray:
        return np.stack([model.encode(text, overflow="truncate", threads=threads) for text in texts])

    expected = alone(1)
    for threads in sorted({2, 3, torch.get_num_threads()}):
        yield f"alone, {threads} threads inside", int((alone(threads) != expected).any(axis=1).sum())
    for threads in sorted({1, 2, torch.get_num_threads()}):
        for budget in (1, 64, 300, 768, 4096):
            order = generator.sample(range(len(texts)), len(texts))
            shuffled = [texts[i] for i in order]
            vectors = model.encode(shuffled, overflow="truncate", batch_tokens=budget, threads=threads)
            different = (vectors != expected[order]).any(axis=1).sum()
            yield f"shuffled, {threads} batches at once of {budget} tokens", int(different)


def trials(model: SentenceEncoder) -> Iterator[tuple[str, str]]:
    """Everything that is tried, and what differed in it, if anything did."""
    for threads in THREADS:
        for name, rows in linear_trials(model, threads):
            yield f"{name}, {threads} threads", f"{', '.join(map(str, rows))} rows" if rows else ""
        dtype = DTYPES.get(model.precision, torch.float32)
        for name, texts in attention_trials(model.encoder.config, threads, dtype):
            yield f"{name}, {threads} threads", f"{', '.join(map(str, texts))} texts" if texts else ""
    for name, different in text_trials(model):
        yield name, f"{different} texts" if different else ""


def distilbert_shape(model: SentenceEncoder) -> SentenceEncoder:
    """Two blocks of DistilBERT's size with random weights, and a model's tokenizer and precision."""
    torch.manual_seed(0)
    config = EncoderConfig(n_layers=2)
    shape = SentenceEncoder(DistilBert(config), model.tokenizer, Pooling("mean"), [Normalize()])
    shape.precision = model.precision
    return shape.eval()
