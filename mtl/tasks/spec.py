"""A task, as data: what it is called, its labels, its data, the options of its kind, and what it holds fixed."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from mtl.checkpoints.fetch import HUB_ID, local_folder
from mtl.errors import RecipeError, shown
from mtl.tasks.fields import coerce, unexpected
from mtl.tasks.kinds import KINDS
from mtl.tasks.kinds.base import Kind
from mtl.tasks.registry import Own, own_loss, own_metrics

Freeze = int | Literal["none", "encoder"]

TAKEN = {"mean", *dir(nn.ModuleDict()), *dir(nn.ParameterDict())}  # torch refuses a submodule of such a name
# Fields that are written only where they are set: models that were saved before these existed lack them
LATER = {
    "target_scale", "tags", "class_weights", "label_smoothing", "calibrate", "temperature", "thresholds",
    "fit_thresholds", "several", "options", "joint", "activation",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """One task, as data.

    labels: The classes' names in the order of the logits; none for a regression. Where a kind with labels is given
        none, they are those of train, in order.
    kind: Which of ``KINDS`` it is: "single-label", "multi-label", "regression", "relevance", "tokens",
        "similarity", "few-shot", "contrastive" or "distillation". What its rows are and what it does is
        said of each (mtl/tasks/kinds, docs/api.md).
    train, dev, test: Files of rows (.jsonl, .json, .csv, .tsv, .parquet or .conll), beside the recipe: one, a glob, a
        folder, a dataset on the hub (``hf://datasets/owner/name@revision/path``, or ``owner/name``), or a list of
        these. Of a folder or dataset whose files are named after splits, those of the split are taken.
    dev, test: Also a share of train, as 0.1, which is taken away from it: each label's share, and of equal texts (of
        kinds with queries, of equal queries) all or none.
    text_field, label_field: The names of a row's fields; as many for its texts as the kind takes.
    joint: Two texts, as in text_field = ["premise", "hypothesis"], become one row of tokens, which the encoder reads as
        a whole (a cross-encoder). "either": a published classifier, whose folder does not say whether it reads pairs.
    weight: The loss is multiplied by it.
    freeze: Blocks held fixed, counted from the embeddings, which are held with the first: a number, "encoder" for
        all or "none"; or a table that says so from an epoch on, as {1 = "encoder", 2 = 4, 3 = "none"}.
    freeze_head: Hold the task's own pooling and head, or the layers behind the embedder's pooling where it has none.

    options: What a registered kind has besides (see ``mtl.register_kind``), as a table.

    The other fields are options of some kinds, and are said in their ``Options``; what a kind has not is refused. Tasks
    of any kind take a registered loss by ``loss`` (see ``mtl.register_loss``).
    """

    name: str
    labels: tuple[str, ...] = ()
    kind: str = "single-label"
    train: str | tuple[str, ...] | None = None
    dev: str | tuple[str, ...] | float | None = None
    test: str | tuple[str, ...] | float | None = None
    text_field: tuple[str, ...] = ("text",)
    label_field: str = "label"
    pooling: tuple[str, ...] = ("mean",)
    head: str = "linear"
    dropout: float = 0.1
    weight: float = 1.0
    freeze: Freeze | dict[str, Freeze] | dict[int, Freeze] = "none"
    freeze_head: bool = False
    loss: str | None = None
    scale: float | None = None
    score_range: tuple[float, ...] = ()
    target_scale: tuple[float, ...] = ()
    symmetric: bool | None = None
    pairs: int = 20
    teacher: str = ""
    matryoshka: tuple[int, ...] = ()
    matryoshka_weights: tuple[float, ...] = ()
    tags: tuple[str, ...] = ()
    class_weights: Literal["balanced"] | dict[str, float] | None = None
    label_smoothing: float = 0.0
    calibrate: bool = False
    temperature: float | None = None
    thresholds: tuple[float, ...] = ()
    fit_thresholds: bool = False
    several: bool | None = None
    joint: bool | Literal["either"] = False
    activation: str | None = None
    options: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        coerce(self)
        if isinstance(self.freeze, dict):  # TOML's keys are strings, Python's may be numbers
            object.__setattr__(self, "freeze", {str(first): value for first, value in self.freeze.items()})
        if not re.fullmatch(r"[A-Za-z][\w-]*", self.name) or self.name in TAKEN:
            raise unexpected("name", self.name, "letters, digits, - and _, and no word of PyTorch's own")
        if self.kind not in KINDS:
            known = f"one of {', '.join(KINDS)}, or one that mtl.register_kind was given before"
            raise unexpected("kind", self.kind, known)
        self._check_options(KINDS[self.kind])
        if not 0 < self.weight < math.inf:
            raise unexpected("weight", self.weight, "more than 0")
        self._check_freeze()
        self._check_data()
        assert self.handler  # made here, so that what is wrong is said here

    def _check_options(self, kind: type[Kind]) -> None:
        """That nothing is set which a task of this kind has not."""
        others = {name for other in KINDS.values() for name in other.settings()} - {*kind.settings()}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            own = field.name == "loss" and own_loss(kind.name, self.loss)
            if field.name in others and value != field.default and not own:
                raise RecipeError(f"{field.name} is {shown(value)}; a {kind.name} task has no {field.name}", field.name)

    def _check_data(self) -> None:
        for split in ("train", "dev", "test"):
            value = getattr(self, split)
            if value is not None and not isinstance(value, float) and not (value and all(value)):
                raise unexpected(split, value, "a file, or several")
        for split, share in self.shares.items():
            if not 0 < share < 1 or sum(self.shares.values()) >= 1:
                expected = "files, or a share of train above 0 and below 1" + ", all together below 1" * (0 < share < 1)
                raise RecipeError(f"{split} is {share:g}; expected {expected}", split)
            if not self.train:
                raise RecipeError(f"{split} is {share:g}, a share of train, and train is missing; expected both", split)

    def _check_freeze(self) -> None:
        by_epoch = self._freeze_by_epoch
        if "1" not in by_epoch or not all(re.fullmatch(r"[1-9]\d*", epoch) for epoch in by_epoch):
            raise unexpected("freeze", self.freeze, "epochs, counted from 1, to start with 1")
        for value in by_epoch.values():
            number = isinstance(value, int) and not isinstance(value, bool) and value >= 0
            if not number and value not in ("none", "encoder"):
                raise unexpected("freeze", value, "a number of blocks, 'encoder' or 'none'")

    @property
    def _freeze_by_epoch(self) -> dict[Any, Freeze]:
        return self.freeze if isinstance(self.freeze, dict) else {"1": self.freeze}

    @cached_property
    def handler(self) -> Kind:
        """The object of its kind: how it is read, computed, learned, measured and shown."""
        return KINDS[self.kind](self)

    @property
    def criterion(self) -> Callable[[Tensor, Tensor], tuple[Tensor, float]]:
        """The loss of its kind, with this task's options."""
        return self.handler.criterion

    @property
    def metrics(self) -> Mapping[str, int]:
        """Those of its kind, with this task's options; 1 where more is better, else -1."""
        return {**self.handler.metrics, **{name: own.sign for name, own in self.registered_metrics.items()}}

    @property
    def registered_metrics(self) -> dict[str, Own]:
        # Those of mtl.register_metric for its kind; a RecipeError if the task has one of that name itself
        found = own_metrics(self.kind)
        if twice := found.keys() & self.handler.metrics.keys():
            given = f"task {self.name!r}: the metric {min(twice)!r} is registered, and one of the task's own"
            raise RecipeError(f"{given}; expected another name")
        return found

    @property
    def shares(self) -> dict[str, float]:
        """The splits that are a share of train, and how much of it."""
        return {split: value for split in ("dev", "test") if isinstance(value := getattr(self, split), float)}

    @property
    def outputs(self) -> int:
        """The number of logits."""
        return self.handler.outputs

    def as_dict(self) -> dict[str, Any]:
        """Its fields in plain values, as they are written."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in LATER or getattr(self, field.name) != field.default
        }

    def as_saved(self) -> dict[str, Any]:
        """Its fields as a model's folder has them, which others may read: without where its data lie."""
        nowhere = dict.fromkeys(("train", "dev", "test"))
        on_the_hub = re.fullmatch(HUB_ID, self.teacher) and not local_folder(self.teacher)
        return self.as_dict() | nowhere | {"teacher": self.teacher if on_the_hub else Path(self.teacher).name}

    @property
    def freezing(self) -> dict[int, Freeze]:
        """The epochs, counted from 1, from which on something else is held fixed, with what it is."""
        by_epoch = self._freeze_by_epoch
        return {int(first): by_epoch[first] for first in sorted(by_epoch, key=int)}

    def frozen_depth(self, epoch: int, n_layers: int) -> int | None:
        """How many blocks this task holds in an epoch (the first is 1), or None where it holds nothing at all."""
        value = [value for first, value in self.freezing.items() if first <= epoch][-1]
        return None if value == "none" else n_layers if value == "encoder" else int(value)


def checked_tasks(tasks: Any) -> list[TaskSpec]:
    """The tasks of a model; a RecipeError if something among them is no task, or two have one name."""
    listed = [*tasks] if isinstance(tasks, Iterable) and not isinstance(tasks, str) else [tasks]
    if wrong := [task for task in listed if not isinstance(task, TaskSpec)]:
        raise RecipeError(f"tasks hold {shown(wrong[0])}; expected a list of TaskSpec", "tasks")
    names = [task.name for task in listed]
    if twice := [name for name in names if names.count(name) > 1]:
        raise RecipeError(f"two tasks are called {shown(twice[0])}; expected different names", "tasks")
    return listed
