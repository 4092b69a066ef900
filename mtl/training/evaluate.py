"""How good a model is on a recipe's data."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from mtl.checkpoints.fetch import local_folder
from mtl.errors import RecipeError, check_flags
from mtl.tasks.examples import Examples
from mtl.tasks.fields import one_of
from mtl.tasks.multitask import MultiTaskModel
from mtl.tasks.tally import intervals
from mtl.training.changes import kept
from mtl.training.data import SPLITS, load_data
from mtl.training.metrics import all_logits, measure
from mtl.training.recipe import Recipe, as_recipe

log = logging.getLogger("mtl")


def evaluate(
    model: MultiTaskModel | str | Path,
    recipe: Recipe | str | Path,
    split: str = "test",
    threads: int | None = None,
    *,
    closely: bool = False,
) -> dict[str, dict[str, float]]:
    """A model's metrics on one split of a recipe's data, by task.

    Args:
        model: A model, or the folder of one or of a run.
        recipe: A ``Recipe``, a .toml file, or the name of a recipe that comes with the package.
        split: "train", "dev" or "test". A task that names no such data is left out, with a warning in the log.
        threads: CPU threads; by default, torch's setting.
        closely: Of classes give also ``ece``, the expected calibration error of the probabilities (15 bins of equal
            width), and of each one ``label.precision``, ``label.recall``, ``label.f1`` and ``label.support``.

    Raises:
        RecipeError: the model lacks a task, or has other labels for it; no task names data of this split.
        MtlError: see mtl.errors.
    """
    check_flags(closely=closely)
    loaded = model if isinstance(model, MultiTaskModel) else MultiTaskModel.from_pretrained(model)
    read, notes = as_recipe(recipe)[0], list[str]()
    if not isinstance(model, MultiTaskModel):
        read, notes = as_held_out(read, model, split)
    data, more = split_of(loaded, read, split)
    for note in notes + more:
        log.warning("%s", note)
    return measure(loaded.tasks, all_logits(loaded, data, threads), data, closely)


def bootstrap(
    models: Sequence[MultiTaskModel],
    logits: Sequence[Mapping[str, Tensor]],
    data: Sequence[Mapping[str, Examples]],
    count: int,
    seed: int,
) -> dict[str, dict[str, tuple[float, float, float]]]:
    """By task and metric its value and the ends of its interval; of two models those of their difference.

    ``data`` are the same rows for each model, in its own tokens. See ``mtl.tasks.tally.intervals``. Tasks are left out
    whose rows say nothing one by one, as those of a search.
    """
    found = {}
    for name, examples in data[0].items():
        each = zip(models, logits, data, strict=True)
        sampled = [model.tasks[name].handler.sampled(x[name], rows[name]) for model, x, rows in each]
        known = [one for one in sampled if one is not None]
        if known:
            found[name] = intervals(known, examples.measured_rows, count, seed)
    return found


def as_held_out(recipe: Recipe, model: str | Path, split: str) -> tuple[Recipe, list[str]]:
    """A recipe with the seed by which the run of a model's folder held out a split; a line, if it has another.

    By another seed, rows that were trained on would be measured. A split that is files of its own needs none.
    """
    seed, own = seed_of(model), recipe.training.seed
    if seed in (None, own) or not any(split in (*task.shares, "train") for task in recipe.tasks if task.shares):
        return recipe, []
    note = f"{split} is what {model} held out of train by seed {seed}, and not the recipe's {own}"
    return dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, seed=seed)), [note]


def seed_of(model: str | Path) -> int | None:
    """The seed of the run that trained a model; None of one that is in no run's folder."""
    folder = local_folder(str(model))
    if folder is None or folder.resolve().name != "model":
        return None
    seed = kept(folder.resolve().parent).get("recipe", {}).get("training", {}).get("seed")
    return seed if isinstance(seed, int) else None


def split_of(model: MultiTaskModel, recipe: Recipe, split: str) -> tuple[dict[str, Examples], list[str]]:
    """One split of a recipe's tasks, which must be the model's too, and a line for each thing that is left out."""
    one_of("split", split, SPLITS)
    recipe = dataclasses.replace(recipe, tasks=[t.handler.declared(model.tasks.get(t.name)) for t in recipe.tasks])
    for task in recipe.tasks:
        ours = model.tasks.get(task.name)
        if ours is None or ours.kind != task.kind or ours.handler.output_names != task.handler.output_names:
            has = ", ".join(f"{name} ({', '.join(t.labels or t.tags) or t.kind})" for name, t in model.tasks.items())
            labels = list(task.labels or task.tags)
            raise RecipeError(f"the model has no task {task.name!r} with labels {labels}; it has {has}")
        if ours.handler.joint != task.handler.joint and "either" not in (ours.handler.joint, task.handler.joint):
            given = f"task {task.name!r}: joint is {str(task.handler.joint).lower()}"
            raise RecipeError(f"{given}; expected {str(ours.handler.joint).lower()}, as in the model")
    without = [task.name for task in recipe.tasks if getattr(task, split) is None]
    if len(without) == len(recipe.tasks):
        others = [name for name in SPLITS if any(getattr(task, name) for task in recipe.tasks)]
        raise RecipeError(f"no task of the recipe names {split} data; expected another split: {', '.join(others)}")
    named = dataclasses.replace(recipe, tasks=[task for task in recipe.tasks if task.name not in without])
    data, notes = load_data(named, model.embedder, [split])
    return data[split], notes + [f"task {name!r} names no {split} data; it is left out" for name in without]
