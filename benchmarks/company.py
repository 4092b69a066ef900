"""A training step, and one text, alone on the machine and beside one and two processes that keep all cores busy.

    python -m benchmarks.company --data FOLDER     (FOLDER/sst2/train.jsonl: {"text", "label"})

A step is computed in shares, one on each thread, which meet once; beside it stands the usual way, one operation after
another on all threads, whose threads spin while they wait for each other.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from time import perf_counter, sleep
from unittest import mock

import click
import torch

from benchmarks.loops import first_rows, ours
from benchmarks.machine import describe, result_path, write_result
from mtl import SentenceEncoder
from mtl.display import table
from mtl.training import loop, run
from mtl.training.report import Log

MODEL = "all-MiniLM-L6-v2"
TEXT = "How do I reset the password of my account when I no longer have the phone?"
BUSY = "import torch; torch.set_num_threads({threads}); a = torch.randn(512, 512)\nwhile True: a @ a"


@contextmanager
def neighbours(number: int) -> Iterator[None]:
    """So many processes beside, each with as many busy threads as this one has."""
    command = [sys.executable, "-c", BUSY.format(threads=torch.get_num_threads())]
    processes = [subprocess.Popen(command) for _ in range(number)]
    try:
        sleep(5 if number else 0)  # until they compute
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def step_ms(data: Path, steps: int) -> float:
    """The median of so many training steps, in ms."""
    with tempfile.TemporaryDirectory() as name:
        first_rows(data / "sst2" / "train.jsonl", Path(name), 32 * (steps + 1))
        made = ours(Path(name), "fp32")
        log = Log(made.folder)
        loop.train(made, log, until=1)
        seconds = []
        for _ in range(steps):
            started = perf_counter()
            loop.train(made, log, until=made.step + 1)
            seconds.append(perf_counter() - started)
        log.close()
    return statistics.median(seconds) * 1000


@contextmanager
def all_at_once() -> Iterator[None]:
    """Within it, a window is one share, and each operation is computed by all threads."""
    one_share = mock.patch.object(run, "share_count", return_value=1)
    with one_share, mock.patch.object(loop, "computing", return_value=nullcontext(map)):
        yield


def usual_ms(data: Path, steps: int) -> float:
    with all_at_once():
        return step_ms(data, steps)


def text_ms(model: SentenceEncoder, threads: int | None, repeats: int) -> float:
    """The median time of one text, in ms."""
    seconds = []
    for _ in range(repeats):
        started = perf_counter()
        model.encode([TEXT], threads=threads)
        seconds.append(perf_counter() - started)
    return statistics.median(seconds) * 1000


@click.command(help=__doc__)
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True, help="Folder with sst2/.")
@click.option("--steps", default=8, show_default=True, help="Training steps of 32 rows for each figure.")
@click.option("--repeats", default=50, show_default=True, help="Texts for each figure.")
@click.option("--save", type=click.Path(path_type=Path), help="Results folder to keep the result in.")
def main(data: Path, steps: int, repeats: int, save: Path | None) -> None:
    threads, model = torch.get_num_threads(), SentenceEncoder.from_pretrained(MODEL)
    model.encode([TEXT])
    measures: dict[str, Callable[[], float]] = {
        "a step, in shares": lambda: step_ms(data, steps),
        "a step, all threads at once": lambda: usual_ms(data, max(2, steps // 4)),
        "one text": lambda: text_ms(model, None, repeats),
        "one text, all threads": lambda: text_ms(model, threads, repeats),
        "one text, one thread": lambda: text_ms(model, 1, repeats),
    }
    found: dict[str, list[float]] = {name: [] for name in measures}
    for number in range(3):
        with neighbours(number):
            for name, measure in measures.items():
                found[name].append(measure())
                print(f"{number} beside: {name} {found[name][-1]:.1f} ms", flush=True)
    print(table([["median ms", "alone", "beside 1", "beside 2"], *([name, *ms] for name, ms in found.items())]))
    settings = {"model": MODEL, "steps": steps, "repeats": repeats, "threads": threads, "batch": 32}
    result = {"machine": describe(), "settings": settings, "milliseconds": found}
    write_result(result_path(save, "company"), result)


if __name__ == "__main__":
    main()
