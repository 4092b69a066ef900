"""Labelled data: from a recipe's files to token ids and targets."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from mtl.checkpoints.fetch import fetch_data
from mtl.disk import expanded
from mtl.encode.sentence_encoder import SentenceEncoder
from mtl.errors import RecipeError, TrainingError
from mtl.rows.read import read_rows
from mtl.tasks.examples import Examples, Split
from mtl.tasks.kinds.base import Target
from mtl.tasks.spec import TaskSpec
from mtl.training.recipe import Recipe
from mtl.training.schedule import Schedule

SPLITS = ("train", "dev", "test")


Data = Mapping[str, Mapping[str, Examples]]  # split -> task -> examples


def resolve(source: str, folder: Path) -> Path:
    """A local file for a recipe's source, fetched from the hub if it is there."""
    return fetch_data(source) if source.startswith("hf://") else folder / expanded(source)


def read_split(task: TaskSpec, split: str, folder: Path) -> tuple[list[str], Any]:
    """The texts of one split of a task, row by row, and the targets as the task's kind stacks them.

    Raises:
        InputError, RecipeError: the file cannot be read, has no rows, or a row is wrong; it names the line.
    """
    path = resolve(getattr(task, split), folder)
    texts: list[str] = []
    targets: list[Target] = []
    for number, fields in read_rows(path):
        try:
            of_row, target = task.handler.read(fields)
        except ValueError as error:
            raise RecipeError(f"{path}, line {number}: {error}") from None
        texts += of_row
        targets.append(target)
    if not texts:
        raise RecipeError(f"task {task.name!r}: {path} has no rows; expected at least one for {split}")
    return texts, task.handler.stacked(targets) if task.handler.labelled else None


def fingerprints(data: Data) -> dict[str, dict[str, str]]:
    """The fingerprint of every task's examples, by split."""
    return {split: {task: rows.fingerprint for task, rows in tasks.items()} for split, tasks in data.items()}


def completed(recipe: Recipe) -> tuple[Recipe, list[str]]:
    """A recipe whose tasks have the labels of their training data, where they name none; a line for each such task."""
    tasks, notes = list(recipe.tasks), []
    for i, task in enumerate(tasks):
        if task.handler.finds_labels and task.train:
            tasks[i] = task.handler.complete(read_split(task, "train", recipe.folder)[1])
            notes.append(f"{task.name}: labels found: {', '.join(tasks[i].labels or tasks[i].tags)}")
    return dataclasses.replace(recipe, tasks=tasks), notes


def load_data(
    recipe: Recipe, embedder: SentenceEncoder, splits: Sequence[str] = SPLITS
) -> tuple[dict[str, dict[str, Examples]], list[str]]:
    """All splits of a recipe, split -> task -> examples, and a line for each one of which something was cut.

    Raises:
        InputError, RecipeError: data are wrong, or a task has no training data where that is asked for.
    """
    data: dict[str, dict[str, Examples]] = {split: {} for split in splits}
    notes = []
    for split, task in product(splits, recipe.tasks):
        if getattr(task, split) is None:
            if split == "train":
                raise RecipeError(f"task {task.name!r} has no training data; expected train = a file")
            continue
        texts, targets = read_split(task, split, recipe.folder)
        reading = Split(split, recipe.folder, embedder, recipe.training.max_length, recipe.training.seed)
        data[split][task.name] = task.handler.examples(texts, targets, reading)
        if reading.cut:
            notes.append(f"{task.name} {split}: {reading.cut}")
    return data, notes


def told_apart(tasks: Mapping[str, TaskSpec], data: Mapping[str, Examples]) -> dict[str, list[list[int]]]:
    """The texts, as numbers and by row, of the tasks in whose windows no text may stand twice."""
    found = {name: tasks[name].handler.apart(examples) for name, examples in data.items()}
    return {name: texts for name, texts in found.items() if texts is not None}


def check_company(data: Mapping[str, Examples], schedule: Schedule, steps: int) -> None:
    """That no window holds one pair alone, which has nothing to be told apart from.

    Raises:
        TrainingError: one of so many steps' does.
    """
    # The last micro-batch of a pass is the smallest; where it has more than one row, all windows have
    pairs = {name for name in schedule.apart if data[name].width == 2 and schedule.rows(name, -1) == 1}
    for step in range(steps if pairs else 0):
        rows: Counter[str] = Counter()
        for name, nth in schedule.drawn(step):
            rows[name] += schedule.rows(name, nth)
        for name in pairs:
            if rows[name] == 1:
                given = (
                    f"{len(data[name])} pairs in batches of {schedule.batch_size} leave one alone in step {step + 1}"
                )
                expected = "another batch_size, or more rows"
                raise TrainingError(f"task {name!r}: {given}, which has no negatives; expected {expected}")
