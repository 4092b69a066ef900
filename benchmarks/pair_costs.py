"""What training on pairs costs: time beside sentence-transformers' trainer, and memory by the size of a batch."""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import click
import torch

from benchmarks import workloads
from benchmarks.machine import describe, result_path, write_result
from benchmarks.pair_quality import BASE, MODEL, PACKAGES, splits, tasks_of, their_trainer
from benchmarks.worker import peak_mib
from mtl.display import table
from mtl.encode.sentence_encoder import SentenceEncoder
from mtl.tasks.spec import TaskSpec
from mtl.training.data import load_data
from mtl.training.loop import train
from mtl.training.recipe import Recipe, Training
from mtl.training.report import Log
from mtl.training.run import Run, prepare
from mtl.training.start import create

BATCH = 32
MICRO_TOKENS = 1024  # what has a graph at once: some 46 pairs of the memory's texts


def seconds(task: TaskSpec, training: Training, folder: Path) -> float:
    """How long our loop trains on a task, from its texts on, keeping no checkpoints."""
    recipe = Recipe(MODEL, (task,), training)
    model = create(recipe)
    started = perf_counter()
    data = load_data(recipe, model.embedder, ["train"])[0]
    run = Run(prepare(recipe, model, {**data, "dev": {}, "test": {}}), folder)
    run.save = lambda: None  # type: ignore[method-assign]
    log = Log(folder)
    train(run, log)
    log.close()
    return perf_counter() - started


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Folder with stsb/, sst2/ and trec/.")
@click.option("--steps", default=15, show_default=True, help="Steps a round, of 32 pairs.")
@click.option("--rounds", default=3, show_default=True, help="Interleaved rounds.")
@click.option("--save", type=click.Path(path_type=Path), help="Results folder to keep the result in.")
def speed(data: Path, steps: int, rounds: int, save: Path | None) -> None:
    """STS-B pairs per second with CoSENT, beside sentence-transformers' trainer: rows, batch and rates are the same."""
    rates: dict[str, list[float]] = {"mtl": [], "sentence-transformers": []}
    found = splits(data, steps * BATCH)
    training = dataclasses.replace(BASE, batch_size=BATCH)
    for number in range(rounds):
        with tempfile.TemporaryDirectory() as name:
            stsb = tasks_of(found, Path(name), 0)["stsb"]
            rates["mtl"].append(steps * BATCH / seconds(stsb, training, Path(name) / "run"))
            trainer = their_trainer(stsb, Path(name), 0, BATCH)
            rates["sentence-transformers"].append(float(trainer.train().metrics["train_samples_per_second"]))
        print(f"round {number + 1}: " + "  ".join(f"{side} {values[-1]:.1f}" for side, values in rates.items()))
    medians = {side: statistics.median(values) for side, values in rates.items()}
    print(table([["", "pairs per second, median"], *map(list, medians.items())]))
    print(f"ratio {medians['mtl'] / medians['sentence-transformers']:.2f}")
    settings = {"model": MODEL, "batch": BATCH, "steps": steps, "threads": torch.get_num_threads()}
    result = {"machine": describe(*PACKAGES), "settings": settings, "pairs_per_second": rates}
    write_result(result_path(save, "pairs-speed"), result)


def peak(pairs: int) -> float:
    """The most MiB that this process holds, once it took a step on one contrastive batch of so many pairs."""
    tokenizer = SentenceEncoder.from_pretrained(MODEL).tokenizer
    texts = workloads.texts(workloads.ONE_TEXT, tokenizer, 2 * pairs)
    rows = [{"a": a, "b": b} for a, b in zip(texts[::2], texts[1::2], strict=True)]
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        task = TaskSpec("pairs", kind="contrastive", text_field=("a", "b"), train=str(path))
        seconds(task, Training(epochs=1, batch_size=pairs, micro_tokens=MICRO_TOKENS), Path(name) / "run")
    return peak_mib()


@click.command()
@click.option("--pairs", type=click.IntRange(2), help="Measure one batch of so many pairs, in this process.")
@click.option("--save", type=click.Path(path_type=Path), help="Results folder to keep the result in.")
def memory(pairs: int | None, save: Path | None) -> None:
    """Peak memory of contrastive batches of 512 and of 1,024 pairs: both fill pieces of nearly as many tokens."""
    if pairs:
        print(peak(pairs))
        return
    command = [sys.executable, "-m", "benchmarks.pairs", "memory", "--pairs"]
    found: dict[str, Any] = {}
    for size in ("512", "1024"):
        found[size] = float(subprocess.check_output([*command, size], text=True).splitlines()[-1])
        print(f"{size} pairs: {found[size]:.0f} MiB", flush=True)
    print(f"ratio {found['1024'] / found['512']:.2f}")
    settings = {"model": MODEL, "micro_tokens": MICRO_TOKENS, "threads": torch.get_num_threads()}
    result = {"machine": describe(), "settings": settings, "peak_mib": found}
    write_result(result_path(save, "pairs-memory"), result)
