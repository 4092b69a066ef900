"""Training speed on SST-2 against transformers' Trainer: the same trunk, rows, batch size and learning rate.

    python -m benchmarks.training --data FOLDER     (FOLDER/sst2/{train,dev}.jsonl: {"text", "label"})

Rounds are interleaved, and each figure is the median of its rounds. All weights are trained, in fp32 and, where the
processor multiplies in it, in bf16 (autocast on both sides); then the trunk is frozen; then it stays frozen from the
second epoch on, when what it gives is remembered. --accuracy trains on so many rows and measures on the dev set.

In the same rounds a window is divided into one share for each thread: what equal bits on any number of threads cost.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import torch

from benchmarks.loops import BATCH, MODEL, features, first_rows, ours, rates, their_rate, trainer
from benchmarks.machine import cpu_fields, describe, flags, native_bf16, result_path, write_result
from mtl.display import table
from mtl.training import run
from mtl.training.loop import train
from mtl.training.report import Log

PACKAGES = ("transformers", "accelerate")


def our_accuracy(folder: Path, precision: str, dev: Path) -> float:
    """On the dev set, after one epoch."""
    run = ours(folder, precision, dev=dev)
    log = Log(run.folder)
    train(run, log)
    log.close()
    return float(log.epochs[-1]["dev"]["sst2"]["accuracy"])


def their_accuracy(folder: Path, precision: str, dev: Path) -> float:
    """On the dev set, after one epoch."""
    made, tokenizer = trainer(folder, precision)
    made.train()
    found = made.predict(features(dev, tokenizer))
    return float((found.predictions.argmax(axis=1) == found.label_ids).mean())


@contextmanager
def one_share_a_thread() -> Iterator[None]:
    """Within it, a window's shares are as many as there are threads, so that its bits follow their number."""
    threads = torch.get_num_threads()  # while a window is computed, it is 1
    before, run.share_count = run.share_count, lambda *_: threads
    try:
        yield
    finally:
        run.share_count = before


def one_round(folder: Path, precisions: list[str]) -> dict[str, float]:
    """Texts per second by side and what is trained."""
    figures = {}
    for precision in precisions:
        figures[f"mtl {precision}"] = next(rates(ours(folder, precision), 1))
        with one_share_a_thread():
            figures[f"mtl {precision}, one share a thread"] = next(rates(ours(folder, precision), 1))
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
    for precision in precisions:
        one, other = (measured[f"mtl {precision}{more}"] for more in (", one share a thread", ""))
        cost = statistics.median(a / b for a, b in zip(one, other, strict=True)) - 1
        print(f"{precision}: equal bits on any number of threads cost {cost:.1%} of the speed, the median of rounds")
    settings = {"model": MODEL, "batch": BATCH, "steps": steps, "threads": torch.get_num_threads(), "rows": accuracy}
    result = {"machine": describe(*PACKAGES), "settings": settings, "texts_per_second": measured, "accuracy": found}
    write_result(result_path(save, "training"), result)


if __name__ == "__main__":
    main()
