"""mtl sweep"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mtl.cli.allocator import keep_memory
from mtl.cli.options import device_option, echo_json, set_option, threads_option
from mtl.display import table
from mtl.errors import TrainingError, TrainingStopped

if TYPE_CHECKING:
    from mtl.training.report import Reporter
    from mtl.training.sweep import Trial


@click.command()
@click.argument("recipe")
@set_option
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, help="Runs of each combination.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder of runs.  [default: runs/<recipe>-sweep]")
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each combination, instead of a table.")
@device_option
@threads_option
def sweep(
    recipe: str, settings: tuple[str, ...], seeds: int, output: Path | None, as_json: bool, device: str,
    threads: int | None,
) -> None:  # fmt: skip
    """Train a RECIPE with every combination of values: --set training.learning_rate=1e-5,5e-5, and several seeds.

    Each run has a folder. The same command again does what is missing: a run that is done is not run again, and one
    that was stopped goes on. At the end there are means and spreads on dev data, and a picture, sweep.png.
    """
    keep_memory()
    from mtl.cli.terminal import Quiet
    from mtl.training.changes import read_values
    from mtl.training.sweep import plot
    from mtl.training.sweep import sweep as run

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise TrainingError("a sweep runs in one process; expected mtl sweep without torchrun")
    changes: dict[str, list[object]] = {}
    for name, values in map(read_values, settings):
        if name in changes:
            raise click.UsageError(f"--set {name} is there twice; expected its values in one, as {name}=1,2")
        changes[name] = values

    def report(number: int, trials: Sequence[Trial]) -> Reporter:
        trial = trials[number]
        known = "done before" if trial.done else "goes on" if trial.folder.exists() else "begins"
        click.echo(f"run {number + 1} of {len(trials)}: {trial.name}: {known}", err=True)
        return Quiet()

    try:
        outcome = run(recipe, changes, seeds, output, device=device, threads=threads, report=report)
    except TrainingStopped as stopped:
        click.echo(f"{str(stopped).partition(';')[0]}; the same command goes on", err=True)
        raise click.Abort from None
    header, *rows = outcome.rows()
    if as_json:
        for row in rows:
            echo_json(named(header, row))
    else:
        click.echo(table([header, *rows]))
        click.echo(f"\nbest: {' '.join(f'{name}={value}' for name, value in outcome.best) or 'the recipe as it is'}")
    if find_spec("matplotlib"):
        plot(outcome, outcome.folder / "sweep.png")
        click.echo(f"picture  {outcome.folder / 'sweep.png'}", err=True)


def named(header: Sequence[object], row: Sequence[object]) -> Mapping[str, object]:
    """A table's row by its header; a spread is named after what it is of."""
    names = [f"{header[i - 1]} spread" if name == "spread" else str(name) for i, name in enumerate(header)]
    return dict(zip(names, row, strict=True))
