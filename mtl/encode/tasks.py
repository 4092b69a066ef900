"""A task, as data: what it is called, its labels, its own pooling and head, and what it holds fixed."""

from __future__ import annotations

import dataclasses
import re
from typing import Literal

from torch import nn

from mtl.encode.kinds import KINDS
from mtl.errors import RecipeError
from mtl.model.pooling import MODES

Freeze = int | Literal["none", "encoder"]


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """One task, as data.

    labels: The classes' names in the order of the logits; none for a regression.
    kind: Which of ``KINDS`` it is: "single-label", "multi-label" or "regression".
    train, dev, test: A .jsonl, .csv, .tsv or .parquet file, beside the recipe, or
        ``hf://datasets/owner/name@revision/path``.
    text_field, label_field: The names of a row's fields; as many for its texts as the kind takes.
    pooling: Names of pooling modes side by side, or "attention" for a learned one.
    weight: The loss is multiplied by it.
    freeze: Blocks held fixed, counted from the embeddings, which are held with the first: a number, "encoder" for
        all or "none"; or a table that says so from an epoch on, as {1 = "encoder", 2 = 4, 3 = "none"}.
    freeze_head: Hold the task's own pooling and head.
    """

    name: str
    labels: tuple[str, ...] = ()
    kind: str = "single-label"
    train: str | None = None
    dev: str | None = None
    test: str | None = None
    text_field: tuple[str, ...] = ("text",)
    label_field: str = "label"
    pooling: tuple[str, ...] = ("mean",)
    head: Literal["linear", "distilbert"] = "linear"
    dropout: float = 0.1
    weight: float = 1.0
    freeze: Freeze | dict[str, Freeze] = "none"
    freeze_head: bool = False

    def __post_init__(self) -> None:
        for field in ("labels", "text_field", "pooling"):  # JSON and people have lists, or a single name
            value = getattr(self, field)
            object.__setattr__(self, field, (value,) if isinstance(value, str) else tuple(value))
        taken = hasattr(nn.ModuleDict, self.name)  # a submodule cannot be called as one of its methods
        if not re.fullmatch(r"[A-Za-z][\w-]*", self.name) or taken or self.name == "mean":
            raise RecipeError(f"name is {self.name!r}; expected letters, digits, - and _, and no word of PyTorch's own")
        if self.kind not in KINDS:
            raise RecipeError(f"kind is {self.kind!r}; expected one of {', '.join(KINDS)}")
        kind = KINDS[self.kind]
        if len(self.labels) < (kind.least_labels or 0) or (self.labels and kind.least_labels is None):
            expected = "no labels" if kind.least_labels is None else f"at least {kind.least_labels}"
            raise RecipeError(f"labels are {list(self.labels)}; expected {expected} for a {self.kind} task")
        if len(self.text_field) != kind.texts:
            fields = "1 field" if kind.texts == 1 else f"{kind.texts} fields"
            raise RecipeError(f"text_field is {list(self.text_field)}; expected {fields} for a {self.kind} task")
        if len(set(self.labels)) < len(self.labels):
            raise RecipeError(f"labels are {list(self.labels)}; expected each of them once")
        if self.pooling != ("attention",) and not (self.pooling and set(self.pooling) <= set(MODES)):
            known = ", ".join(MODES)
            raise RecipeError(f"pooling is {list(self.pooling)}; expected one or more of {known}, or attention")
        if not 0 <= self.dropout < 1:
            raise RecipeError(f"dropout is {self.dropout}; expected a number from 0 up to, not including, 1")
        if not self.weight > 0:
            raise RecipeError(f"weight is {self.weight}; expected more than 0")
        if self.head not in ("linear", "distilbert"):
            raise RecipeError(f"head is {self.head!r}; expected linear or distilbert")
        self._check_freeze()

    def _check_freeze(self) -> None:
        by_epoch = self.freeze if isinstance(self.freeze, dict) else {"1": self.freeze}
        for epoch, value in by_epoch.items():
            if not (re.fullmatch(r"[1-9]\d*", epoch) and "1" in by_epoch):
                raise RecipeError(f"freeze is {self.freeze}; expected epochs, counted from 1, to start with 1")
            number = isinstance(value, int) and not isinstance(value, bool) and value >= 0
            if not number and value not in ("none", "encoder"):
                raise RecipeError(f"freeze is {value!r}; expected a number of blocks, 'encoder' or 'none'")

    @property
    def outputs(self) -> int:
        """The number of logits."""
        return len(self.labels) or 1

    def frozen_depth(self, epoch: int, n_layers: int) -> int | None:
        """How many blocks this task holds in an epoch (the first is 1), or None where it holds nothing at all."""
        by_epoch = self.freeze if isinstance(self.freeze, dict) else {"1": self.freeze}
        value = by_epoch[str(max(int(first) for first in by_epoch if int(first) <= epoch))]
        return None if value == "none" else n_layers if value == "encoder" else int(value)
