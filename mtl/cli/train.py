"""mtl train"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import click

from mtl.cli.allocator import keep_memory
from mtl.cli.options import device_option, threads_option
from mtl.errors import TrainingStopped


@click.command()
@click.argument("recipe", default="demo")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The run's folder.  [default: runs/<recipe>]")
@click.option("--resume", is_flag=True, help="Go on with the run in the output folder.")
@device_option
@threads_option
@click.option("--tensorboard", is_flag=True, help="Write TensorBoard's files too.")
def train(recipe: str, output: Path | None, resume: bool, device: str, threads: int | None, tensorboard: bool) -> None:
    """Train the tasks of a RECIPE: a .toml file, or one that comes with the package (demo, the default; demo-pairs)."""
    keep_memory()
    from mtl.cli.terminal import Terminal
    from mtl.training.session import train as train_in_folder

    if os.environ.get("RANK", "0") != "0":  # of several processes, only the first one says what all would say
        logging.disable(logging.WARNING)
    terminal = Terminal()
    try:
        train_in_folder(
            recipe, output, resume=resume, device=device, threads=threads, tensorboard=tensorboard, report=terminal
        )
    except TrainingStopped as stopped:
        if terminal.run:
            onward = f"mtl train {recipe} --output {terminal.run.folder} --resume"
            click.echo(f"{str(stopped).partition(';')[0]}; go on with: {onward}", err=True)
        raise click.Abort from None
