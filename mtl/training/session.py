"""What a user sees of training and evaluating: settings before, tables and pictures after, and what to do next."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path

import click
import torch

from mtl.encode.engine import usable
from mtl.encode.multitask import MultiTaskModel
from mtl.errors import CheckpointError, RecipeError
from mtl.training.data import Examples, load_data
from mtl.training.evaluate import all_logits, confusions, measure
from mtl.training.loop import Run, create, train
from mtl.training.recipe import Recipe, read_recipe
from mtl.training.report import Log, confusion_table, metrics_table, plot, tasks_table
from weights.files import read_tensors


def free_folder(name: str) -> Path:
    """runs/<name>, or where there is something already, runs/<name>-2 and so on."""
    number = 1
    while (folder := Path("runs") / (name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return folder


def train_recipe(
    path: Path,
    output: Path | None = None,
    resume: bool = False,
    device: str = "cpu",
    threads: int | None = None,
    tensorboard: bool = False,
) -> Path:
    """Train a recipe in a folder, or go on there; the run's folder ends up with a model, a picture and metrics.

    Raises:
        MtlError: see mtl.errors.
        KeyboardInterrupt: Ctrl-C; a checkpoint was saved.
    """
    recipe = read_recipe(path)
    folder = output or (Path("runs") / path.stem if resume else free_folder(path.stem))
    if resume and not folder.is_dir():
        raise CheckpointError(f"{folder} holds no run to go on with; train without --resume, or say --output")
    if not resume and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists and is not empty; --resume goes on there, or choose another --output")
    if threads:
        torch.set_num_threads(threads)
    place = usable(device)
    model = create(recipe, place)
    data, notes = load_data(recipe, model.embedder)
    run = Run(recipe, model, data, folder)
    resume = resume and run.checkpoints.is_dir()  # it is not, where a run was stopped before its first step
    notes += run.restore() if resume else []
    show_settings(run, path, notes)
    log = Log(folder, run.step, run.total, tensorboard)
    command = f"mtl train {path} --output {folder} --resume"
    try:
        if run.step == 0 and not resume:
            run.save()  # from here on there is always something to go on from
        if not train(run, log, threads):
            click.echo(f"stopped after step {run.step} of {run.total}; go on with: {command}", err=True)
            raise KeyboardInterrupt
        finish(run, log, threads)
    finally:
        log.close()
    return folder


def show_settings(run: Run, path: Path, notes: list[str]) -> None:
    """The effective settings, before anything long begins."""
    recipe = run.recipe
    values = {"recipe": path, "model": recipe.model, "output": run.folder, "device": run.model.embedder.device,
              "threads": torch.get_num_threads(), **dataclasses.asdict(recipe.training)}  # fmt: skip
    click.echo(click.wrap_text("  ".join(f"{name}={value}" for name, value in values.items()), 110))
    for note in notes:
        click.echo(f"note: {note}", err=True)
    epochs = recipe.training.epochs
    click.echo("\n" + tasks_table(run.model, run.phases, run.schedule, run.data, epochs))
    common = run.phases[0].common
    if common is not None:
        click.echo(
            f"no task trains the embeddings and the first {common} blocks: they are computed only once for each text"
        )
    at = f", going on after step {run.step}" if run.step else ""
    click.echo(f"\n{run.schedule.steps_per_epoch} steps an epoch, {run.total} in all{at}")


def finish(run: Run, log: Log, threads: int | None) -> None:
    """Take the best weights, measure them, and write the model and the picture."""
    model_folder = run.folder / "model"
    run.load_tensors(read_tensors(run.best_path))
    run.model.eval()
    best = f"best epoch: {run.best[0]} ({run.recipe.training.best} {run.best[1]:.4f})" if run.best else "no dev data"
    click.echo(f"\n{best}")
    for split in ("dev", "test"):
        show_metrics(run.model, run.data[split], split, threads)
    if not (model_folder / "config.json").exists():
        run.model.save(model_folder)
    plot(log, run.folder / "loss.png")
    click.echo(f"\nmodel    {model_folder}\npicture  {run.folder / 'loss.png'}\nmetrics  {log.path}")


def show_metrics(model: MultiTaskModel, data: Mapping[str, Examples], split: str, threads: int | None) -> None:
    if not data:
        return
    logits = all_logits(model, data, threads)
    click.echo(f"\n{split}\n{metrics_table(measure(model.tasks, logits, data))}")
    for name, counts in confusions(model.tasks, logits, data).items():
        click.echo(f"\n{split} {name}\n{confusion_table(model.tasks[name].labels, counts)}")


def evaluate_split(model: MultiTaskModel, recipe: Recipe, split: str, threads: int | None = None) -> None:
    """Print a model's metrics on one split of a recipe's tasks.

    Raises:
        RecipeError: the model has no such task, or other labels for it; no task has this split.
    """
    for task in recipe.tasks:
        ours = model.tasks.get(task.name)
        if ours is None or ours.labels != task.labels or ours.kind != task.kind:
            has = ", ".join(f"{name} ({', '.join(t.labels) or t.kind})" for name, t in model.tasks.items())
            raise RecipeError(f"the model has no task {task.name!r} with labels {list(task.labels)}; it has {has}")
    data, notes = load_data(recipe, model.embedder, [split])
    for note in notes:
        click.echo(f"note: {note}", err=True)
    if not data[split]:
        raise RecipeError(f"no task of the recipe names {split} data")
    started = time.perf_counter()
    show_metrics(model, data[split], split, threads)
    seconds = time.perf_counter() - started
    texts = sum(map(len, data[split].values()))
    click.echo(f"\n{texts} texts in {seconds:.1f} s", err=True)
