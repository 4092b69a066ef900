"""One classifier trained by our loop and by transformers' Trainer: the same trunk, rows, batch size and learning rate.

Nothing is imported that a machine with torch alone may lack, but for the Trainer, where it is used.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from mtl.checkpoints.fetch import fetch
from mtl.tasks.spec import Freeze, TaskSpec
from mtl.training.data import load_data
from mtl.training.loop import train
from mtl.training.recipe import Recipe, Training
from mtl.training.report import Log
from mtl.training.run import Run, prepare
from mtl.training.start import create

BATCH = 32
RATE = 5e-5
WARMUP = 0.1
MODEL = "all-MiniLM-L6-v2"


def ours(
    folder: Path,
    precision: str,
    freeze: Freeze = "none",
    epochs: int = 1,
    dev: Path | None = None,
    batch: int = BATCH,
    device: str = "cpu",
    model: str = MODEL,
) -> Run:
    """A run of our loop over folder/rows.jsonl that keeps no checkpoints."""
    labels = ("negative", "positive")
    task = TaskSpec("sst2", labels, train=str(folder / "rows.jsonl"), dev=str(dev) if dev else None, freeze=freeze)
    changed: dict[str, Any] = {} if precision == "fp32" else {"precision": precision}
    training = Training(epochs=epochs, batch_size=batch, learning_rate=RATE, head_learning_rate=RATE, **changed)
    recipe = Recipe(model, (task,), training)
    made = create(recipe, torch.device(device))
    run = Run(prepare(recipe, made, load_data(recipe, made.embedder)[0]), folder / "run")
    run.save = lambda: None  # type: ignore[method-assign]
    return run


def rates(run: Run, *epochs: int) -> Iterator[float]:
    """Texts per second of so many epochs, one figure for each of these numbers."""
    log = Log(run.folder)
    for number in epochs:
        steps = number * run.schedule.steps_per_epoch
        started = perf_counter()
        train(run, log, until=run.step + steps)
        yield steps * BATCH / (perf_counter() - started)
    log.close()


def features(path: Path, tokenizer: Any) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{**tokenizer(row["text"], truncation=True, max_length=256), "label": int(row["label"])} for row in rows]


def trainer(
    folder: Path, precision: str, freeze: Freeze = "none", device: str = "cpu", name: str = MODEL
) -> tuple[Any, Any]:
    """transformers' Trainer over folder/rows.jsonl, padding to the longest of each batch; and its tokenizer."""
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    source = str(fetch(name))
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=2)
    model.base_model.requires_grad_(freeze == "none")
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"), per_device_train_batch_size=BATCH, num_train_epochs=1, learning_rate=RATE,
        warmup_steps=WARMUP, bf16=precision == "bf16", remove_unused_columns=False, report_to=[], save_strategy="no",
        logging_strategy="no", disable_tqdm=True, use_cpu=device == "cpu",
    )  # fmt: skip
    rows = features(folder / "rows.jsonl", tokenizer)
    return Trainer(model, arguments, train_dataset=rows, data_collator=DataCollatorWithPadding(tokenizer)), tokenizer


def their_rate(folder: Path, precision: str, freeze: Freeze = "none", device: str = "cpu", name: str = MODEL) -> float:
    """Texts per second, by its own count."""
    made, _ = trainer(folder, precision, freeze, device, name)
    return float(made.train().metrics["train_samples_per_second"])


def first_rows(source: Path, folder: Path, number: int) -> None:
    lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "rows.jsonl").write_text("".join(lines[:number]), encoding="utf-8")
