"""Two processes of one thread against one process of two threads: training all of all-MiniLM-L6-v2 on SST-2.

    python -m benchmarks.distributed --data FOLDER     (FOLDER/sst2/train.jsonl: {"text", "label"})

Rounds are interleaved, every run is a process (or two) of its own, and steps are counted after the first five. Where
processes add up gradients, they wait for each other first, so that waiting and adding up can be told apart.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import click
import torch
from torch import Tensor

from benchmarks.loops import MODEL, first_rows, ours
from benchmarks.machine import describe, result_path, write_result
from mtl.display import table
from mtl.training.distributed import joined
from mtl.training.loop import train
from mtl.training.report import Log, NoLog

WARM_UP = 5  # steps
SIDES = {"1 process, 2 threads": (1, 2), "2 processes, 1 thread": (2, 1)}


def measured(folder: Path, batch: int, steps: int, threads: int) -> dict[str, float]:
    """Steps per second, and for each step what was added up, how long that took, and how long was waited for it."""
    torch.set_num_threads(threads)
    with joined(torch.device("cpu")) as ranks, tempfile.TemporaryDirectory() as name:
        (Path(name) / "rows.jsonl").symlink_to(folder / "rows.jsonl")
        run = ours(Path(name), "fp32", batch=batch)
        run.ranks = ranks
        add_gradients, seconds = ranks.add_gradients, {"waiting": 0.0, "adding": 0.0}

        def timed(gradients: list[Tensor]) -> list[Tensor]:
            started = perf_counter()
            ranks.agree({}, False)
            waited = perf_counter()
            found = add_gradients(gradients)
            seconds["waiting"] += waited - started
            seconds["adding"] += perf_counter() - waited
            return found

        log = Log(run.folder) if ranks.leads else NoLog()
        train(run, log, threads, until=WARM_UP)
        ranks.add_gradients = timed  # type: ignore[method-assign]
        ranks.bytes, started = 0, perf_counter()
        train(run, log, threads, until=WARM_UP + steps)
        took = perf_counter() - started
        log.close()
        parts = {f"ms {key}": 1e3 * value / steps for key, value in seconds.items()}
        found = {"steps per second": steps / took, "MB added up": ranks.bytes / steps / 1e6, **parts}
        return found if ranks.leads else {}


def one_side(folder: Path, batch: int, steps: int, processes: int, threads: int) -> dict[str, float]:
    """What ``measured`` gives in processes of their own."""
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    settings = [f"--data={folder}", f"--batch={batch}", f"--steps={steps}", f"--inside={threads}"]
    command = [sys.executable, *launch, "-m", "benchmarks.distributed", *settings]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise click.ClickException(f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}")
    return dict(json.loads(lines[-1]))


@click.command(help=__doc__)
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Folder with sst2/train.jsonl.")
@click.option("--batch", default=32, show_default=True, help="Rows a step.")
@click.option("--steps", default=20, show_default=True, help="Steps a round.")
@click.option("--rounds", default=3, show_default=True, help="Interleaved rounds.")
@click.option("--inside", type=int, hidden=True, help="Measure in this process, with so many threads.")
@click.option("--save", type=click.Path(path_type=Path), help="Results folder to keep the result in.")
def main(data: Path, batch: int, steps: int, rounds: int, inside: int | None, save: Path | None) -> None:
    if inside:
        found = measured(data, batch, steps, inside)
        print(json.dumps(found) if found else "", flush=True)
        return
    source = data / "sst2" / "train.jsonl"
    if not source.is_file():
        raise click.ClickException(f"{source} is no file; expected rows of text and label (0, 1)")
    figures: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as name:
        first_rows(source, Path(name), (steps + WARM_UP) * batch)
        for number in range(1, rounds + 1):
            for side, (processes, threads) in SIDES.items():
                figures[side].append(one_side(Path(name), batch, steps, processes, threads))
                print(f"round {number}, {side}: {figures[side][-1]['steps per second']:.3f} steps/s", flush=True)
    medians = {
        side: {key: statistics.median(found[key] for found in every) for key in every[0]}
        for side, every in figures.items()
    }
    print(table([["", *next(iter(medians.values()))], *([side, *values.values()] for side, values in medians.items())]))
    one, two = (values["steps per second"] for values in medians.values())
    print(f"two processes: {two / one:.2f} times the steps of one")
    settings = {"model": MODEL, "batch": batch, "steps": steps}
    write_result(
        result_path(save, "distributed"),
        {"machine": describe(), "settings": settings, "rounds": figures, "ratio": two / one},
    )


if __name__ == "__main__":
    main()
