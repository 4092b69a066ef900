"""Training speed on SST-2 against transformers' Trainer: the same trunk, rows, batch size and learning rate.

    python -m benchmarks.training --data FOLDER     (FOLDER/sst2/{train,dev}.jsonl: {"text", "label"})

Rounds are interleaved, and each figure is the median of its rounds. All weights are trained, in fp32 and, where the
processor multiplies in it, in bf16 (autocast on both sides); then the trunk is frozen; then it stays frozen from the
second epoch on, when what it gives is remembered. --accuracy trains on so many rows and measures on the dev set.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import click
import torch

from benchmarks.machine import cpu_fields, describe, flags, native_bf16, result_path, write_result
from mtl.checkpoints.fetch import fetch
from mtl.display import table
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
PACKAGES = ("transformers", "accelerate")


def ours(
    folder: Path,
    precision: str,
    freeze: Freeze = "none",
    epochs: int = 1,
    dev: Path | None = None,
    batch: int = BATCH,
) -> Run:
    """A run of our loop over folder/rows.jsonl that keeps no checkpoints."""
    labels = ("negative", "positive")
    task = TaskSpec("sst2", labels, train=str(folder / "rows.jsonl"), dev=str(dev) if dev else None, freeze=freeze)
    changed: dict[str, Any] = {} if precision == "fp32" else {"precision": precision}
    training = Training(epochs=epochs, batch_size=batch, learning_rate=RATE, head_learning_rate=RATE, **changed)
    recipe = Recipe(MODEL, (task,), training)
    model = create(recipe)
    run = Run(prepare(recipe, model, load_data(recipe, model.embedder)[0]), folder / "run")
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


def our_accuracy(folder: Path, precision: str, dev: Path) -> float:
    """On the dev set, after one epoch."""
    run = ours(folder, precision, dev=dev)
    log = Log(run.folder)
    train(run, log)
    log.close()
    return float(log.epochs[-1]["dev"]["sst2"]["accuracy"])


def features(path: Path, tokenizer: Any) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{**tokenizer(row["text"], truncation=True, max_length=256), "label": int(row["label"])} for row in rows]


def trainer(folder: Path, precision: str, freeze: Freeze = "none") -> tuple[Any, Any]:
    """transformers' Trainer over folder/rows.jsonl, padding to the longest of each batch; and its tokenizer."""
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    source = str(fetch(MODEL))
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=2)
    model.base_model.requires_grad_(freeze == "none")
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"), per_device_train_batch_size=BATCH, num_train_epochs=1, learning_rate=RATE,
        warmup_steps=WARMUP, bf16=precision == "bf16", remove_unused_columns=False, report_to=[], save_strategy="no",
        logging_strategy="no", disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    rows = features(folder / "rows.jsonl", tokenizer)
    return Trainer(model, arguments, train_dataset=rows, data_collator=DataCollatorWithPadding(tokenizer)), tokenizer


def their_rate(folder: Path, precision: str, freeze: Freeze = "none") -> float:
    """Texts per second, by its own count."""
    return float(trainer(folder, precision, freeze)[0].train().metrics["train_samples_per_second"])


def their_accuracy(folder: Path, precision: str, dev: Path) -> float:
    """On the dev set, after one epoch."""
    made, tokenizer = trainer(folder, precision)
    made.train()
    found = made.predict(features(dev, tokenizer))
    return float((found.predictions.argmax(axis=1) == found.label_ids).mean())


def one_round(folder: Path, precisions: list[str]) -> dict[str, float]:
    """Texts per second by side and what is trained."""
    figures = {}
    for precision in precisions:
        figures[f"mtl {precision}"] = next(rates(ours(folder, precision), 1))
        figures[f"Trainer {precision}"] = their_rate(folder, precision)
    frozen = ours(folder, "fp32", "encoder", epochs=4)
    figures["mtl, frozen trunk"], figures["mtl, frozen trunk, later epochs"] = rates(frozen, 1, 3)
    figures["Trainer, frozen trunk"] = their_rate(folder, "fp32", "encoder")
    return figures


def accuracies(folder: Path, precisions: list[str], dev: Path) -> dict[str, float]:
    """Dev accuracy by side and number format."""
    found = {}
    for precision in precisions:
        found[f"mtl {precision}"] = our_accuracy(folder, precision, dev)
        found[f"Trainer {precision}"] = their_accuracy(folder, precision, dev)
    return found


def first_rows(source: Path, folder: Path, number: int) -> None:
    lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "rows.jsonl").write_text("".join(lines[:number]), encoding="utf-8")


@click.command(help=__doc__)
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Folder with sst2/{train,dev}.jsonl.")
@click.option("--steps", default=30, show_default=True, help="Steps a round.")
@click.option("--rounds", default=3, show_default=True, help="Interleaved rounds.")
@click.option("--accuracy", default=2000, show_default=True, help="Rows to train on for the accuracy; 0 leaves it out.")
@click.option("--save", type=click.Path(path_type=Path), help="Results folder to keep the result in.")
def main(data: Path, steps: int, rounds: int, accuracy: int, save: Path | None) -> None:
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    source, dev = data / "sst2" / "train.jsonl", data / "sst2" / "dev.jsonl"
    for path in (source, dev):
        if not path.is_file():
            raise click.ClickException(f"{path} is no file; expected rows of text and label (0, 1)")
    precisions = ["fp32", *(["bf16"] if native_bf16(flags(cpu_fields())) else [])]
    measured: dict[str, list[float]] = {}
    for number in range(1, rounds + 1):
        with tempfile.TemporaryDirectory() as name:
            first_rows(source, Path(name), steps * BATCH)
            figures = one_round(Path(name), precisions)
        print(f"round {number}: " + "  ".join(f"{key} {value:.1f}" for key, value in figures.items()), flush=True)
        for key, value in figures.items():
            measured.setdefault(key, []).append(value)
    found = {}
    if accuracy:
        with tempfile.TemporaryDirectory() as name:
            first_rows(source, Path(name), accuracy)
            found = accuracies(Path(name), precisions, dev)
    rows = [[key, statistics.median(values), found.get(key, "")] for key, values in measured.items()]
    print(table([["", "texts per second, median", "dev accuracy"], *rows]))
    settings = {"model": MODEL, "batch": BATCH, "steps": steps, "threads": torch.get_num_threads(), "rows": accuracy}
    result = {"machine": describe(*PACKAGES), "settings": settings, "texts_per_second": measured, "accuracy": found}
    write_result(result_path(save, "training"), result)


if __name__ == "__main__":
    main()
