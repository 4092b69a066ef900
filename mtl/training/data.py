"""Labelled data: from a recipe's files to token ids and targets."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtl.checkpoints.fetch import fetch_data
from mtl.encode.sentence_encoder import SentenceEncoder
from mtl.encode.windows import cuts_in_words
from mtl.errors import RecipeError, TrainingError, shown
from mtl.rows.read import read_rows
from mtl.tasks.kinds import KINDS, Target
from mtl.tasks.spec import TaskSpec
from mtl.training.recipe import Recipe
from mtl.training.schedule import Schedule
from mtl.training.teacher import teacher_vectors

SPLITS = ("train", "dev", "test")


@dataclasses.dataclass(frozen=True)
class Examples:
    """Texts as token ids, special tokens included, and their targets (see mtl/model/losses.py for the shapes).

    An example has ``width`` texts, which are neighbours in ``rows``.
    """

    rows: list[list[int]]
    targets: Tensor
    width: int = 1

    def __len__(self) -> int:
        return len(self.rows) // self.width

    def tokens(self, example: int) -> int:
        """How many tokens an example has."""
        return sum(map(len, self.rows[example * self.width : (example + 1) * self.width]))

    def places(self, examples: Sequence[int]) -> list[int]:
        """Where the texts of some examples stand in ``rows``."""
        return [example * self.width + i for example in examples for i in range(self.width)]

    @property
    def fingerprint(self) -> str:
        """A hash of all rows and targets: equal data, equal fingerprint."""
        digest = hashlib.sha256(repr(self.rows).encode())
        digest.update(self.targets.numpy().tobytes())
        return digest.hexdigest()[:16]


Data = Mapping[str, Mapping[str, Examples]]  # split -> task -> examples


def resolve(source: str, folder: Path) -> Path:
    """A local file for a recipe's source, fetched from the hub if it is there."""
    return fetch_data(source) if source.startswith("hf://") else folder / Path(source).expanduser()


def read_split(task: TaskSpec, split: str, folder: Path) -> tuple[list[str], Tensor]:
    """The texts of one split of a task, row by row, and the targets, which are none where rows have no label.

    Raises:
        InputError, RecipeError: the file cannot be read, has no rows, or a row is wrong; it names the line.
    """
    source, kind = getattr(task, split), KINDS[task.kind]
    path = resolve(source, folder)
    texts: list[str] = []
    targets: list[Target] = []
    for number, fields in read_rows(path):
        where = f"{path}, line {number}"
        for field in (*task.text_field, *([task.label_field] if kind.target else [])):
            if field not in fields:
                raise RecipeError(f"{where}: no field {field!r}; it has {', '.join(fields)}")
        for field in task.text_field:
            if not isinstance(fields[field], str):
                found = type(fields[field]).__name__
                raise RecipeError(f"{where}: field {field!r} is a {found}; expected a string")
            if kind.texts > 1 and not fields[field].strip():
                raise RecipeError(f"{where}: field {field!r} is empty; expected a text")
            texts.append(fields[field])
        try:
            targets += [target_of(task, fields[task.label_field])] if kind.target else []
        except ValueError as error:
            raise RecipeError(f"{where}: {task.label_field} {error}") from None
    if not texts:
        raise RecipeError(f"task {task.name!r}: {path} has no rows; expected at least one for {split}")
    stacked = torch.tensor(targets)
    return texts, unit_scores(task, stacked) if "score_range" in kind.reading else stacked


def target_of(task: TaskSpec, value: Any) -> Target:
    """A label as the task's loss takes it; a ValueError says what is wrong with it."""
    read = KINDS[task.kind].target
    assert read is not None
    target = read(value, task.labels)
    if task.score_range:
        low, high = task.score_range
        if isinstance(target, list) and not low <= target[0] <= high:
            raise ValueError(f"is {value!r}; expected {low:g} to {high:g}, the task's score_range")
    return target


def unit_scores(task: TaskSpec, scores: Tensor) -> Tensor:
    """Scores as shares of the task's range, or of their own where none is given.

    Raises:
        RecipeError: all scores are equal, and no range is given.
    """
    low, high = task.score_range or (float(scores.min()), float(scores.max()))
    if low == high:
        raise RecipeError(f"task {task.name!r}: all scores are {low:g}; expected different ones, or a score_range")
    return (scores - low) / (high - low)


def text_numbers(rows: Sequence[Sequence[int]], width: int) -> Tensor:
    """A number for each text, the same for equal ones: (examples, width) int64."""
    known: dict[tuple[int, ...], int] = {}
    return torch.tensor([known.setdefault(tuple(row), len(known)) for row in rows]).view(-1, width)


def drawn_pairs(task: TaskSpec, split: str, examples: Examples, seed: int) -> Examples:
    """Pairs of texts: each text with one of its label (1.0) and with one of another (0.0), ``pairs`` times.

    Raises:
        RecipeError: all texts have one label, or a label has one text.
    """
    labels, everyone = examples.targets.tolist(), range(len(examples))
    of_label = {label: [i for i in everyone if labels[i] == label] for label in sorted(set(labels))}
    lone = [task.labels[label] for label, rows in of_label.items() if len(rows) == 1]
    if lone or len(of_label) < 2:
        given = f"one example of {shown(lone[0])}" if lone else f"examples of {shown(task.labels[labels[0]])} alone"
        given = f"task {task.name!r}: its {split} data have {given}"
        raise RecipeError(f"{given}; expected two or more labels, and examples of each")
    generator = random.Random(seed)
    drawn: list[tuple[int, int, float]] = []
    for i in [*everyone] * task.pairs:
        like = unlike = i
        while like == i:
            like = generator.choice(of_label[labels[i]])
        while labels[unlike] == labels[i]:
            unlike = generator.choice(everyone)
        drawn += [(i, like, 1.0), (i, unlike, 0.0)]
    rows = [examples.rows[i] for one, other, _ in drawn for i in (one, other)]
    return Examples(rows, torch.tensor([[score] for *_, score in drawn]), 2)


def check_distinct(task: TaskSpec, rows: Sequence[Sequence[int]]) -> None:
    """That there is something to tell apart.

    Raises:
        RecipeError: the task is about several texts, and all of them are the same.
    """
    if KINDS[task.kind].texts > 1 and all(row == rows[0] for row in rows):
        raise RecipeError(f"task {task.name!r}: all texts of its training data are the same; expected different ones")


def fingerprints(data: Data) -> dict[str, dict[str, str]]:
    """The fingerprint of every task's examples, by split."""
    return {split: {task: rows.fingerprint for task, rows in tasks.items()} for split, tasks in data.items()}


def load_data(
    recipe: Recipe, embedder: SentenceEncoder, splits: Sequence[str] = SPLITS
) -> tuple[dict[str, dict[str, Examples]], list[str]]:
    """All splits of a recipe, split -> task -> examples, and a line for each one of which something was cut.

    Raises:
        InputError, RecipeError: data are wrong, or a task has no training data where that is asked for.
    """
    data: dict[str, dict[str, Examples]] = {split: {} for split in splits}
    notes = []
    limit = embedder.length_limit(recipe.training.max_length)
    for split, task in product(splits, recipe.tasks):
        if getattr(task, split) is None:
            if split == "train":
                raise RecipeError(f"task {task.name!r} has no training data; expected train = a file")
            continue
        texts, targets = read_split(task, split, recipe.folder)
        tokenized = embedder.tokenizer([embedder.default_prompt + text for text in texts], "truncate", limit)
        if KINDS[task.kind].teacher:
            targets = teacher_vectors(task, split, texts, recipe.folder, embedder.dim)
        if KINDS[task.kind].negatives:
            targets = text_numbers(tokenized.rows, len(task.text_field))
        examples = Examples(tokenized.rows, targets, len(task.text_field))
        if "pairs" in KINDS[task.kind].reading:
            examples = drawn_pairs(task, split, examples, recipe.training.seed)
        data[split][task.name] = examples
        if split == "train":
            check_distinct(task, tokenized.rows)
        if tokenized.cut_texts:
            cut = cuts_in_words(tokenized.cut_texts, tokenized.cut_tokens, limit)
            notes.append(f"{task.name} {split}: {cut}")
    return data, notes


def told_apart(tasks: Mapping[str, TaskSpec], data: Mapping[str, Examples]) -> dict[str, list[list[int]]]:
    """The texts, as numbers and by row, of the tasks in whose windows no text may stand twice."""
    found = {name: examples for name, examples in data.items() if KINDS[tasks[name].kind].negatives}
    return {name: examples.targets.tolist() for name, examples in found.items()}


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
