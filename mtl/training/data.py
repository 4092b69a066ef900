"""Labelled data: from a recipe's files to token ids and targets."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from mtl.display import counted
from mtl.encode.sentence_encoder import SentenceEncoder
from mtl.errors import RecipeError, TrainingError
from mtl.rows.files import files_of
from mtl.rows.parquet import class_names
from mtl.rows.read import kind_of, read_rows
from mtl.tasks.examples import Examples, Split
from mtl.tasks.kinds.base import Target
from mtl.tasks.shares import shares_of
from mtl.tasks.spec import TaskSpec
from mtl.training.recipe import Recipe
from mtl.training.schedule import Schedule

log = logging.getLogger("mtl")

SPLITS = ("train", "dev", "test")


Data = Mapping[str, Mapping[str, Examples]]  # split -> task -> examples


@dataclasses.dataclass
class Rows:
    """The labelled rows of one split of a task: each row's texts and target, and what is to be said of them."""

    texts: list[list[str]] = dataclasses.field(default_factory=list)
    targets: list[Target] = dataclasses.field(default_factory=list)
    places: int = 0  # labels that were numbers, and stand for the label at that place
    blanks: int = 0  # rows without a label, which are left out

    def take(self, rows: Sequence[int]) -> Rows:
        """Some of the rows."""
        chosen = ([self.texts[i] for i in rows], [self.targets[i] for i in rows])
        return Rows(*chosen, self.places, self.blanks)

    def stacked(self, task: TaskSpec) -> tuple[list[str], Any]:
        """The texts, row by row, and the targets as the task's kind stacks them."""
        targets = task.handler.stacked(self.targets) if task.handler.labelled else None
        return [text for row in self.texts for text in row], targets

    def notes(self, task: TaskSpec) -> list[str]:
        """What is to be said, in words."""
        notes = []
        if self.places:
            notes.append(f"{counted(self.places, 'label')} given as numbers: {places_in_words(task.labels)}")
        if self.blanks:
            notes.append(f"{counted(self.blanks, 'row')} without a label left out")
        return notes


def places_in_words(labels: Sequence[str]) -> str:
    """Which numbers the first few labels have."""
    return ", ".join([f"{place} is {label}" for place, label in enumerate(labels[:5])] + ["..."] * (len(labels) > 5))


class Read(NamedTuple):
    """A row as it was read: where, its fields, its texts and target; or that its label is blank, or what is wrong."""

    where: tuple[Path, int]
    fields: Mapping[str, Any]
    texts: list[str]
    target: Target = None
    by_place: bool = False
    blank: bool = False
    wrong: str = ""


def each_row(task: TaskSpec, split: str, folder: Path) -> Iterator[Read]:
    """The rows of the files that a task names for a split, one at a time, whether or not they are right."""
    handler = task.handler
    for path in files_of(getattr(task, split), split, folder):
        is_table = kind_of(path) not in (".jsonl", ".conll")  # where a field may be left blank
        named = handler.labelled and class_names(path, task.label_field)
        as_names = named if named and {*named} == {*task.labels} else ()
        for number, fields in read_rows(path):
            given, place = fields.get(task.label_field), False
            blank = "" if given is None and kind_of(path) == ".parquet" else given
            if is_table and task.label_field in fields and handler.is_blank(blank):
                yield Read((path, number), fields, [], blank=True)
                continue
            if as_names and isinstance(given, int) and 0 <= given < len(as_names):
                fields = {**fields, task.label_field: as_names[given]}
            else:
                place = handler.by_place(given)
            try:
                yield Read((path, number), fields, *handler.read(fields), place)
            except ValueError as error:
                yield Read((path, number), fields, [], wrong=str(error))


def read_files(task: TaskSpec, split: str, folder: Path) -> Rows:
    """The rows of the files that a task names for a split; an error names the file, or the line of a wrong row."""
    found = Rows()
    for row in each_row(task, split, folder):
        if row.wrong:
            raise RecipeError(f"{row.where[0]}, line {row.where[1]}: {row.wrong}")
        found.blanks += row.blank
        found.places += row.by_place
        if not row.blank:
            found.texts.append(row.texts)
            found.targets.append(row.target)
    if not found.texts:
        path = files_of(getattr(task, split), split, folder)[0]
        what = f"no row of {found.blanks} with a label" if found.blanks else "no rows"
        raise RecipeError(f"task {task.name!r}: {path} has {what}; expected at least one for {split}")
    return found


def held_out(task: TaskSpec, rows: Rows, seed: int) -> dict[str, list[int]]:
    """The rows that a task's shares take of train, by split; a RecipeError if one takes none, or all that there are."""
    texts = [row[:1] for row in rows.texts] if task.handler.queries else rows.texts
    found = shares_of(texts, task.handler.strata(rows.targets), task.shares, seed)
    left = len(texts) - sum(map(len, found.values()))
    for name, part in found.items():
        share, taken = task.shares[name], "no row" if not part else "all rows" if not left else f"{len(part)} rows"
        given = f"task {task.name!r}: {name} = {share:g} takes {taken} of {len(texts)}, of which those with "
        given += f"{'a query' if task.handler.queries else 'a text'} in common stay together"
        if not part or not left:
            size = "smaller" if part else "larger"
            raise RecipeError(f'{given}; expected a {size} share, or rows of their own: {name} = "FILE"')
        if abs(len(part) - share * len(texts)) > max(1, share * len(texts) / 5):
            log.warning("%s", given)
    return found


def splits_of(task: TaskSpec, splits: Sequence[str], folder: Path, seed: int = 0) -> dict[str, Rows]:
    """The rows of splits of a task: of their files, or shares of train's, of which train has what is left."""
    shared = {"train", *task.shares} & {*splits} if task.shares else set()
    found = {split: read_files(task, split, folder) for split in splits if split not in shared}
    if shared:
        rows = read_files(task, "train", folder)
        held = held_out(task, rows, seed)
        out = {i for part in held.values() for i in part}
        held["train"] = [i for i in range(len(rows.texts)) if i not in out]
        found |= {split: rows.take(held[split]) for split in shared}
    return found


def split_rows(task: TaskSpec, split: str, folder: Path, seed: int = 0) -> Rows:
    """As ``splits_of``, the rows of one split."""
    return splits_of(task, [split], folder, seed)[split]


def fingerprints(data: Data) -> dict[str, dict[str, str]]:
    """The fingerprint of every task's examples, by split."""
    return {split: {task: rows.fingerprint for task, rows in tasks.items()} for split, tasks in data.items()}


def completed(recipe: Recipe) -> tuple[Recipe, list[str]]:
    """A recipe whose tasks have the labels of their training data, where they name none; a line for each such task."""
    tasks, notes = list(recipe.tasks), []
    for i, task in enumerate(tasks):
        if task.handler.finds_labels and task.train:
            rows = read_files(task, "train", recipe.folder)
            tasks[i] = task.handler.complete(task.handler.stacked(rows.targets))
            if (found := tasks[i].labels or tasks[i].tags) != task.labels:
                names = ", ".join([*found[:50], *["..."] * (len(found) > 50)])
                notes.append(f"{task.name}: labels found: {names}")
    return dataclasses.replace(recipe, tasks=tasks), notes


def load_data(
    recipe: Recipe, embedder: SentenceEncoder, splits: Sequence[str] = SPLITS
) -> tuple[dict[str, dict[str, Examples]], list[str]]:
    """All splits of a recipe, split -> task -> examples, and a line for each thing to know, as what was cut; a
    RecipeError if a task has no training data where that is asked for."""
    data: dict[str, dict[str, Examples]] = {split: {} for split in splits}
    shared: dict[str, dict[str, Rows]] = {}  # by task; train is read once for all of its shares
    notes = []
    for split, task in product(splits, recipe.tasks):
        if getattr(task, split) is None:
            if split == "train":
                raise RecipeError(f"task {task.name!r} has no training data; expected train = a file")
            continue
        if task.shares and task.name not in shared:
            given = [each for each in splits if getattr(task, each) is not None]
            shared[task.name] = splits_of(task, given, recipe.folder, recipe.training.seed)
        rows = shared[task.name].pop(split) if task.shares else split_rows(task, split, recipe.folder)
        texts, targets = rows.stacked(task)
        reading = Split(split, recipe.folder, embedder, recipe.training.max_length, recipe.training.seed)
        data[split][task.name] = task.handler.examples(texts, targets, reading)
        notes += [f"{task.name} {split}: {note}" for note in [*rows.notes(task), reading.cut] if note]
    return data, notes


def told_apart(tasks: Mapping[str, TaskSpec], data: Mapping[str, Examples]) -> dict[str, list[list[int]]]:
    """The texts, as numbers and by row, of the tasks in whose windows no text may stand twice."""
    found = {name: tasks[name].handler.apart(examples) for name, examples in data.items()}
    return {name: texts for name, texts in found.items() if texts is not None}


def check_company(data: Mapping[str, Examples], schedule: Schedule, steps: int) -> None:
    """Raise a TrainingError if a window of these steps holds one pair alone, which has no negatives."""
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
