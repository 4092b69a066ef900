"""Labelled data: from a recipe's files to token ids and targets."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtl.encode.files import Row, read_rows
from mtl.encode.sentence_encoder import SentenceEncoder
from mtl.encode.tasks import TaskSpec
from mtl.errors import InputError, RecipeError
from mtl.training.recipe import Recipe
from weights.fetch import fetch_data

SPLITS = ("train", "dev", "test")


@dataclasses.dataclass(frozen=True)
class Examples:
    """Texts as token ids, special tokens included, and their targets (see heads.loss_sum for the shapes)."""

    rows: list[list[int]]
    targets: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def fingerprint(self) -> str:
        """A hash of all rows and targets: equal data, equal fingerprint."""
        digest = hashlib.sha256(repr(self.rows).encode())
        digest.update(repr(self.targets.tolist()).encode())
        return digest.hexdigest()[:16]


Data = Mapping[str, Mapping[str, Examples]]  # split -> task -> examples


def parquet_rows(path: Path) -> Iterator[Row]:
    """The rows of a .parquet file, counted from 1.

    Raises:
        RecipeError: pyarrow is not installed.
    """
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise RecipeError(f"{path} needs pyarrow; pip install 'mtl[parquet]'") from None
    try:
        yield from enumerate(parquet.read_table(path).to_pylist(), 1)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as parquet: {' '.join(str(error).split())[:100]}") from None


def resolve(source: str, folder: Path) -> Path:
    """A local file for a recipe's source, fetched from the hub if it is there."""
    return fetch_data(source) if source.startswith("hf://") else folder / Path(source).expanduser()


def class_index(value: Any, labels: Sequence[str]) -> int | None:
    """The index of a label by its name, or by its number where no label is itself a number."""
    if str(value) in labels:
        return labels.index(str(value))
    numbered = not any(label.lstrip("-").isdigit() for label in labels) and not isinstance(value, bool)
    if numbered and str(value).isdecimal() and int(value) < len(labels):
        return int(value)
    return None


def target_of(task: TaskSpec, value: Any, where: str) -> int | list[float]:
    """A label as it stands in the data, as what the loss takes.

    Raises:
        RecipeError: the label is not declared, or is no finite number where one is expected.
    """
    if task.kind == "regression":
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise RecipeError(f"{where}: {task.label_field} is {value!r}; expected a finite number")
        return [number]
    values = [value]
    if task.kind == "multi-label":
        values = value if isinstance(value, list) else [part for part in str(value or "").split("|") if part]
    indices = [class_index(item, task.labels) for item in values]
    for item, index in zip(values, indices, strict=True):
        if index is None:
            raise RecipeError(f"{where}: label {item!r} is not declared; expected one of {', '.join(task.labels)}")
    if task.kind == "multi-label":
        return [float(i in indices) for i in range(len(task.labels))]
    assert indices[0] is not None
    return indices[0]


def read_split(task: TaskSpec, split: str, folder: Path) -> tuple[list[str], Tensor]:
    """The texts and targets of one split of a task.

    Raises:
        InputError, RecipeError: the file cannot be read, has no rows, or a row is wrong; it names the line.
    """
    source = getattr(task, split)
    path = resolve(source, folder)
    texts, targets = [], []
    for number, fields in parquet_rows(path) if path.suffix == ".parquet" else read_rows(path):
        where = f"{path}, line {number}"
        for field in (task.text_field, task.label_field):
            if field not in fields:
                raise RecipeError(f"{where}: no field {field!r}; it has {', '.join(fields)}")
        if not isinstance(fields[task.text_field], str):
            kind = type(fields[task.text_field]).__name__
            raise RecipeError(f"{where}: field {task.text_field!r} is a {kind}; expected a string")
        texts.append(fields[task.text_field])
        targets.append(target_of(task, fields[task.label_field], where))
    if not texts:
        raise RecipeError(f"task {task.name!r}: {path} has no rows; expected at least one for {split}")
    return texts, torch.tensor(targets)


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
        data[split][task.name] = Examples(tokenized.rows, targets)
        if tokenized.cut_texts:
            cut = f"{tokenized.cut_texts} texts were longer than {limit} tokens and lost {tokenized.cut_tokens}"
            notes.append(f"{task.name} {split}: {cut}")
    return data, notes
