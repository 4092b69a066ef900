"""Does this machine give a text the same bits, whatever stands beside it? What a user runs is tried out.

First kernel by kernel (kernels/check.py), so that one that does not is known by its name; then every program that the
model can be asked for, on whole texts in many companies; then ``encode`` and ``predict``.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import product
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from mtl.encode.engine import Engine
from mtl.encode.precision import calibration_texts, native_bf16
from mtl.encode.sentence_encoder import SentenceEncoder
from mtl.encode.tokenizer import filled
from mtl.errors import InputError
from mtl.kernels.check import THREADS, kernel_trials, levels
from mtl.kernels.compile import FORMATS, Plain, compile_part
from mtl.kernels.vectors import Vectors
from mtl.model.config import EncoderConfig
from mtl.model.encoder import DistilBert
from mtl.model.packing import PackedBatch
from mtl.model.pooling import MODES, AttentionPooling, Normalize, Pooling
from mtl.tasks.multitask import MultiTaskModel
from mtl.tasks.spec import TaskSpec

T = TypeVar("T")

DISTILBERT_SHAPE = "distilbert-shape"  # the name under which the command line checks it
BUDGETS = (1, 64, 300, 768, 4096)  # tokens of a batch
TASKS = (
    TaskSpec("first", ("a", "b"), pooling=("cls",), head="distilbert"),
    TaskSpec("all", ("a", "b", "c"), kind="multi-label", pooling=("mean", "max")),
    TaskSpec("learned", kind="regression", pooling=("attention",)),
)


def sample_texts(seed: int = 0) -> list[str]:
    """Bundled sentences, cut and joined to lengths from nothing to beyond the limit."""
    generator = random.Random(seed)
    sentences = calibration_texts()
    short = ["", "a", *(" ".join(s.split()[:n]) for n, s in enumerate(sentences[:14]))]
    joined = [" ".join(generator.choices(sentences, k=k)) for k in (2, 3, 5, 8, 13, 21, 34)]
    return [*short, *sentences[14:40], *joined]


def seeded(make: Callable[[], T]) -> T:
    """A module with the same random weights each time; the process's own random numbers stay where they are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


def poolings(dim: int) -> dict[str, Callable[[Tensor, PackedBatch], Tensor]]:
    """The program of every pooling."""
    found = {name: compile_part(Pooling(name)) for name in MODES}
    return {**found, "attention": compile_part(seeded(lambda: AttentionPooling(dim)).eval())}


def every_program(model: SentenceEncoder) -> tuple[list[str], Callable[[PackedBatch], Tensor]]:
    """Names of all that the model can be asked for, and what computes them at once, (texts, names, dim). An InputError
    says that the model runs plain, so that nothing is promised."""
    program = model.program()
    if isinstance(program, Plain) or program.plain:
        raise InputError("the model runs as plain modules, whose bits depend on the batch; see the line above")
    encoder, pooled = program.encoder, poolings(model.encoder.config.dim)
    names = [*(f"{name} pooling" for name in pooled), "the first token alone"]

    def outputs(batch: PackedBatch) -> Tensor:
        vectors = Vectors(encoder, lambda x, batch: torch.stack([of(x, batch) for of in pooled.values()], 1), (), False)
        first = Vectors(encoder, lambda x, batch: x, (), True)
        return torch.cat([vectors(batch), first(batch)[:, None]], dim=1)

    return names, outputs


def companies(texts: int, seed: int = 0) -> Iterator[tuple[str, int, int | None, list[list[int]]]]:
    """Ways to compute so many texts: a name, threads, tokens of a batch, and which texts go together."""
    generator = random.Random(seed)
    for threads in sorted({*THREADS[1:], torch.get_num_threads()}):
        yield f"alone, {threads} threads inside", threads, None, [[i] for i in range(texts)]
    for threads in sorted({1, 2, torch.get_num_threads()}):
        for budget in BUDGETS:
            order = generator.sample(range(texts), texts)
            yield f"shuffled, {threads} batches at once of {budget} tokens", threads, budget, [order]


def compare(
    names: list[str], run: Callable[[list[int], int, int | None], np.ndarray], texts: int
) -> Iterator[tuple[str, int]]:
    """Each way to compute each of some outputs (texts, names, ...), and how many texts differ from alone on one thread.

    ``run`` computes texts by their numbers, with so many threads and tokens of a batch.
    """
    alone = np.concatenate([run([i], 1, None) for i in range(texts)])
    for way, threads, budget, groups in companies(texts):
        order = [i for group in groups for i in group]
        found = np.concatenate([run(group, threads, budget) for group in groups])
        different = (found != alone[order]).reshape(texts, len(names), -1).any(axis=2).sum(axis=0)
        yield from ((f"{name}, {way}", int(count)) for name, count in zip(names, different, strict=True))


def text_trials(model: SentenceEncoder) -> Iterator[tuple[str, int]]:
    """Each way to compute the sample, and how many texts got other bits than alone on one thread."""
    texts = sample_texts()
    rows = filled(model.tokenizer(texts, "truncate").rows)
    names, outputs = every_program(model)

    def programs(which: list[int], threads: int, budget: int | None) -> np.ndarray:
        return Engine(outputs, model.device, budget, threads).run([rows[i] for i in which]).numpy()

    yield from compare(names, programs, len(texts))

    def encoded(which: list[int], threads: int, budget: int | None) -> np.ndarray:
        given = [texts[i] for i in which]
        return model.encode(given, overflow="truncate", threads=threads, batch_tokens=budget, progress=False)

    yield from compare(["encode"], encoded, len(texts))
    tasks = seeded(lambda: MultiTaskModel(model, TASKS)).eval()
    expected = model.encode(texts, overflow="truncate", progress=False)
    alone = [tasks.predict([text], threads=1) for text in texts]
    for threads in THREADS:
        found = tasks.predict(texts, threads=threads)
        different = (found.embeddings != expected).any(axis=1)
        for name, logits in found.logits.items():
            different |= (logits != np.concatenate([one.logits[name] for one in alone])).any(axis=1)
        yield f"predict as encode, and as alone, {threads} batches at once", int(different.sum())


def trials(model: SentenceEncoder) -> Iterator[tuple[str, str]]:
    """Everything that is tried, and what differed in it, if anything did."""
    config, dtype = model.encoder.config, FORMATS[model.precision]
    dtype = dtype if dtype.is_floating_point else torch.float32
    for threads in THREADS:
        tried = kernel_trials(model.program(), config.n_heads, config.dim // config.n_heads, dtype, threads)
        for name, numbers in tried:
            found = f"{', '.join(map(str, numbers))} {'rows' if 'linear' in name else 'texts'}"
            yield f"{name}, {threads} threads", found if numbers else ""
    for name, different in text_trials(model):
        yield name, f"{different} texts" if different else ""


def distilbert_shape(model: SentenceEncoder) -> SentenceEncoder:
    """Two blocks of DistilBERT's size with random weights, and a model's tokenizer and precision."""
    encoder = seeded(lambda: DistilBert(EncoderConfig(n_layers=2)))
    shape = SentenceEncoder(encoder, model.tokenizer, Pooling("mean"), [Normalize()])
    shape.precision, shape.int8_least_cosine = model.precision, -1  # of random weights nobody asks for good vectors
    return shape.eval()


def every_level(
    model: str, int8_least_cosine: float, training: bool = False
) -> Iterator[tuple[str, str, str, int, list[str]]]:
    """Runs the check in processes of its own: instruction set, model, precision, number of ways, those that differ. A
    process that fails in another way is an InputError."""
    names, precisions = (("",), ("fp32",)) if training else ((model, DISTILBERT_SHAPE), ("fp32", "int8"))
    for level, environment in levels().items():
        bf16 = ("bf16",) if not environment and native_bf16(torch.device("cpu")) else ()
        for name, precision in product(names, (*precisions, *bf16)):
            what = ["--training"] if training else ["--model", name, "--int8-least-cosine", str(int8_least_cosine)]
            command = [sys.executable, "-m", "mtl", "check", *what, "--precision", precision]
            done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
            lines = done.stdout.splitlines()
            differ = [line.removeprefix("differ  ") for line in lines if line.startswith("differ")]
            if done.returncode and not differ:
                raise InputError(f"`mtl {' '.join(command[3:])}` failed under {level}: {done.stderr.strip()}")
            ways = len(differ) + sum(line.startswith("same ") for line in lines)
            yield level, name or "training", precision, ways, differ
