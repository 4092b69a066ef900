"""How good a model is on a recipe's data, on scored pairs or at retrieval: numbers, and what a user sees of them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from mtl.encode.engine import usable
from mtl.encode.sentence_encoder import SentenceEncoder
from mtl.errors import InputError, RecipeError
from mtl.tasks.examples import Examples
from mtl.tasks.fields import one_of
from mtl.tasks.kinds import KINDS
from mtl.tasks.multitask import MultiTaskModel
from mtl.training import embeddings
from mtl.training.data import SPLITS, load_data
from mtl.training.distributed import ALONE, Processes
from mtl.training.metrics import all_logits, confusions, measure
from mtl.training.plots import check_picture, plot_vectors
from mtl.training.recipe import Recipe, as_recipe
from mtl.training.report import confusion_table, metrics_table


def evaluate(
    model: MultiTaskModel | str | Path, recipe: Recipe | str | Path, split: str = "test", threads: int | None = None
) -> dict[str, dict[str, float]]:
    """A model's metrics on one split of a recipe's data, by task.

    Args:
        model: A model, or the folder of one or of a run.
        recipe: A ``Recipe``, a .toml file, or the name of a recipe that comes with the package.
        split: "train", "dev" or "test". A task that names no such data is left out, with a note on stderr.
        threads: CPU threads; by default, torch's setting.

    Raises:
        RecipeError: the model lacks a task, or has other labels for it; no task names data of this split.
        MtlError: see mtl.errors.
    """
    loaded = model if isinstance(model, MultiTaskModel) else MultiTaskModel.from_pretrained(model)
    data = split_of(loaded, as_recipe(recipe)[0], split)
    return measure(loaded.tasks, all_logits(loaded, data, threads), data)


def show_evaluation(
    model: str, recipe: str, split: str, device: str = "cpu", threads: int | None = None, picture: Path | None = None
) -> None:
    """Print a model's metrics and confusion matrices on one split of a recipe's data; see ``evaluate``.

    ``picture`` is a file to draw its vectors to.

    Raises:
        InputError: no task of the recipe has a picture, or the file's name ends in no format of ours.
    """
    if picture:
        check_picture(picture)
    loaded = MultiTaskModel.from_pretrained(model, device=usable(device))
    data = split_of(loaded, as_recipe(recipe)[0], split)
    if picture and not any(loaded.tasks[name].handler.has_picture for name in data):
        kinds = ", ".join(kind.name for kind in KINDS.values() if kind.has_picture)
        raise InputError(f"--plot has nothing to draw: no task of the recipe is {kinds}")
    started = time.perf_counter()
    show_metrics(loaded, data, split, threads)
    texts, seconds = sum(map(len, data.values())), time.perf_counter() - started
    click.echo(f"\n{texts} texts in {seconds:.1f} s", err=True)
    if picture:
        plot_vectors(loaded, data, picture, threads)
        click.echo(f"vectors  {picture}")


def show_sts(
    model: str, path: Path, fields: Sequence[str], device: str, threads: int | None = None, picture: Path | None = None
) -> None:
    """Print how the cosines of a model's vectors follow the scores of pairs of texts, and draw it."""
    embedder = SentenceEncoder.from_pretrained(model, device=device)
    found, notes = embeddings.sts(embedder, path, fields, threads, picture)
    for note in notes:
        click.echo(f"note: {note}", err=True)
    click.echo(metrics_table({path.stem: found}))
    if picture:
        click.echo(f"picture  {picture}")


def show_retrieval(model: str, folder: Path, split: str, device: str, threads: int | None = None) -> None:
    """Print how well a model's vectors find what is relevant."""
    found = embeddings.retrieval(SentenceEncoder.from_pretrained(model, device=device), folder, split, threads=threads)
    click.echo(metrics_table({folder.resolve().name: found}))


def split_of(model: MultiTaskModel, recipe: Recipe, split: str) -> dict[str, Examples]:
    """One split of a recipe's tasks, which must be the model's too; what is left out is said on stderr."""
    one_of("split", split, SPLITS)
    for task in recipe.tasks:
        ours = model.tasks.get(task.name)
        if ours is None or ours.labels != task.labels or ours.kind != task.kind:
            has = ", ".join(f"{name} ({', '.join(t.labels) or t.kind})" for name, t in model.tasks.items())
            raise RecipeError(f"the model has no task {task.name!r} with labels {list(task.labels)}; it has {has}")
    without = [task.name for task in recipe.tasks if getattr(task, split) is None]
    if len(without) == len(recipe.tasks):
        others = [name for name in SPLITS if any(getattr(task, name) for task in recipe.tasks)]
        raise RecipeError(f"no task of the recipe names {split} data; expected another split: {', '.join(others)}")
    named = dataclasses.replace(recipe, tasks=[task for task in recipe.tasks if task.name not in without])
    data, notes = load_data(named, model.embedder, [split])
    for note in [*notes, *(f"task {name!r} names no {split} data; it is left out" for name in without)]:
        click.echo(f"note: {note}", err=True)
    return data[split]


def show_metrics(
    model: MultiTaskModel,
    data: Mapping[str, Examples],
    split: str,
    threads: int | None,
    ranks: Processes = ALONE,
) -> None:
    """Print tables of each task's metrics and confusion matrix."""
    logits = all_logits(model, data, threads, ranks)
    if not ranks.leads:
        return
    click.echo(f"\n{split}\n{metrics_table(measure(model.tasks, logits, data))}")
    for name, counts in confusions(model.tasks, logits, data).items():
        click.echo(f"\n{split} {name}\n{confusion_table(model.tasks[name].labels, counts)}")
