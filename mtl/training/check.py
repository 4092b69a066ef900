"""Does this machine give training the same bits on any number of threads? Kernels decide, so it is tried out.

A window of all kinds of task, with dropout, of two blocks of all-MiniLM-L6-v2's shape with random weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers.models import WordPiece

from mtl.encode.sentence_encoder import SentenceEncoder
from mtl.encode.tokenizer import Tokenizer
from mtl.kernels.check import THREADS
from mtl.model.config import EncoderConfig
from mtl.model.encoder import DistilBert
from mtl.model.losses import NO_LABEL
from mtl.model.pooling import Pooling
from mtl.tasks.examples import Examples
from mtl.tasks.kinds.contrastive import text_numbers
from mtl.tasks.multitask import MultiTaskModel
from mtl.tasks.spans import bio
from mtl.tasks.spec import TaskSpec
from mtl.training.gradients import Found
from mtl.training.recipe import Recipe, Training
from mtl.training.run import Run, prepare
from mtl.training.threads import computing

ROWS = 16  # of each task
CONFIG = EncoderConfig(vocab_size=1000, n_layers=2, n_heads=12, dim=384, hidden_dim=1536, segments=2)
TWO = {"text_field": ("a", "b"), "train": "-"}
TASKS = (
    TaskSpec("classes", ("a", "b", "c"), train="-"),
    TaskSpec("tags", ("a", "b"), kind="multi-label", train="-", pooling=("attention",)),
    TaskSpec("spans", ("a",), kind="tokens", train="-"),
    TaskSpec("value", kind="regression", train="-", head="distilbert"),
    TaskSpec("alike", kind="similarity", label_field="score", **TWO),  # type: ignore[arg-type]
    TaskSpec("belong", kind="contrastive", **TWO),  # type: ignore[arg-type]
    TaskSpec("few", ("a", "b"), kind="few-shot", train="-"),
    TaskSpec("learn", kind="distillation", text_field=("a",), train="-", teacher="-"),
    TaskSpec("judge", kind="relevance", **TWO),  # type: ignore[arg-type]
)


def examples(task: TaskSpec, generator: torch.Generator) -> Examples:
    """Random token ids and targets for a task."""
    joint = task.handler.joint
    width = 2 if task.kind == "few-shot" else 1 if joint else len(task.text_field)
    lengths = torch.randint(2, 40, (ROWS * width,), generator=generator).tolist()
    rows = [torch.randint(1, CONFIG.vocab_size, (length,), generator=generator).tolist() for length in lengths]
    if joint:  # ~id is a token of the second text
        rows = [[*row[: len(row) // 2], *(~each for each in row[len(row) // 2 :])] for row in rows]
    if task.kind == "single-label":
        targets = torch.randint(len(task.labels), (ROWS,), generator=generator)
    elif task.kind == "tokens":
        targets = torch.full((ROWS, max(lengths)), NO_LABEL, dtype=torch.int16)
        for row, length in zip(targets, lengths, strict=True):
            row[1:length] = torch.randint(len(bio(task.labels)), (length - 1,), generator=generator)
    elif task.kind == "contrastive":
        targets = text_numbers(rows, width)
    else:
        outputs = {"multi-label": len(task.labels), "distillation": CONFIG.dim}.get(task.kind, 1)
        targets = torch.rand(ROWS, outputs, generator=generator).round()
    return Examples(rows, targets, width)


def random_model() -> MultiTaskModel:
    """Random weights that a seed decides; torch's own generator stays where it is."""
    words = tokenizers.Tokenizer(WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        embedder = SentenceEncoder(DistilBert(CONFIG), Tokenizer(words, 64), Pooling("mean"))
        return MultiTaskModel(embedder, TASKS)


def random_run(precision: Any) -> Run:
    """A run of which every step is a window of all tasks; it writes nothing before it is saved."""
    model, generator = random_model(), torch.Generator().manual_seed(0)
    data = {"train": {task.name: examples(task, generator) for task in TASKS}, "dev": {}, "test": {}}
    training = Training(epochs=1, batch_size=ROWS, accumulate=len(TASKS), precision=precision)
    return Run(prepare(Recipe("", TASKS, training), model, data), Path())


def gradients(run: Run, threads: int) -> Found:
    """The losses and gradients of the first window."""
    window = run.window(1)
    with run.training(), computing(threads) as mapped:
        return run.gradients(window, run.objective(window, 1), mapped)


def trials(precision: str = "fp32") -> Iterator[tuple[str, str]]:
    """Every number of threads that is tried, and what gets other bits than on one thread, if anything."""
    run = random_run(precision)
    losses, expected = gradients(run, 1)
    names = [name for name, _ in run.parameters()]
    for threads in (*THREADS, 4):
        found = gradients(run, threads)
        wrong = [f"the loss of {task}" for task, loss in losses.items() if found.losses[task] != loss]
        for name, one, other in zip(names, expected, found.gradients, strict=True):
            same = other is None if one is None else other is not None and torch.equal(one, other)
            wrong += [] if same else [f"the gradient of {name}"]
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        yield f"a window of training, {threads} threads", wrong[0] + more if wrong else ""
