"""A task, as data: what it is called, its labels, its own pooling and head, and what it holds fixed."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

from mtl.errors import RecipeError, shown
from mtl.model.pair_losses import matryoshka
from mtl.model.pooling import MODES
from mtl.tasks.fields import one_of, settle
from mtl.tasks.kinds import KINDS, Kind

Freeze = int | Literal["none", "encoder"]

BRANCH = {"pooling", "head", "dropout"}  # what makes a pooling and a head of a task's own
SIZES = {"matryoshka", "matryoshka_weights"}
OWN = {*BRANCH, *SIZES, *(name for kind in KINDS.values() for name in (*kind.options, *kind.reading))}


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """One task, as data.

    labels: The classes' names in the order of the logits; none for a regression.
    kind: Which of ``KINDS`` it is: "single-label", "multi-label", "regression", "similarity", "few-shot",
        "contrastive" or "distillation".
    train, dev, test: A .jsonl, .csv, .tsv or .parquet file, beside the recipe, or
        ``hf://datasets/owner/name@revision/path``.
        A row's label is for "single-label" a label's name, or its place as a number (0, 1, ...) where no label
        is itself a number; for "multi-label" a list of names, names as "a|b", or a list with a 0 or 1 for each
        declared label; for "regression" a number. What could be read in two ways is refused.
    text_field, label_field: The names of a row's fields; as many for its texts as the kind takes.
    pooling: Names of pooling modes side by side, or "attention" for a learned one.
    head: "linear", or "distilbert": a hidden layer with ReLU, as DistilBERT's own classifier has it.
    dropout: The share of the features that the head drops in training.
    weight: The loss is multiplied by it.
    freeze: Blocks held fixed, counted from the embeddings, which are held with the first: a number, "encoder" for
        all or "none"; or a table that says so from an epoch on, as {1 = "encoder", 2 = 4, 3 = "none"}.
    freeze_head: Hold the task's own pooling and head.

    Tasks about several texts, and "distillation", have no pooling and head of their own: they train the embeddings as
    they are, through the embedder's pooling and the layers behind it, which ``freeze_head`` holds.
    ``matryoshka`` = [384, 128, 64] trains the first 384, 128 and 64 dimensions to be vectors of their own, each size's
    loss times its ``matryoshka_weights`` (1).

    "similarity": Two texts and a score, of which only the order matters to the ``loss`` "cosent" (the default), while
        "squared" brings the cosine to the score's place in ``score_range`` = [lowest, highest], which is read from
        the data where it is not given. ``scale`` is what "cosent" multiplies cosines by (20).
    "few-shot": A text and its label, of few examples. ``pairs`` (20) times each text is drawn beside another of its
        label, whose cosine is to be 1, and beside one of another label, whose cosine is to be 0 (Tunstall et al. 2022,
        SetFit). freeze = {1 = "none", 2 = "encoder"} ends it after the first epoch, and a classifier of the same rows
        with freeze = "encoder" goes on with the trunk that it made.
    "contrastive": An anchor, its positive, and any number of hard negatives, each a field of ``text_field``; no label.
        All texts of a window's other rows are negatives too, so ``batch_size`` (times ``accumulate``) matters;
        ``micro_tokens`` bounds the memory, and changes nothing else. What equals the anchor or the positive is no
        negative, and rows are drawn so that no text stands twice in a window, as far as the data allow, and the window
        does not begin another pass through them.
        ``scale`` multiplies cosines (20); ``symmetric`` has positives find their anchors too.
    "distillation": A text, whose vector is to become the ``teacher``'s: a model by name, whose vectors are computed
        once and remembered, or an .npy or .safetensors file beside the recipe with one for each row, whose name holds
        "{split}" for train, dev and test. ``loss`` is "squared" (the default) or "cosine". A recipe's ``layers`` make
        the student smaller. ``matryoshka`` compares the first dimensions of both.
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
    freeze: Freeze | dict[str, Freeze] | dict[int, Freeze] = "none"
    freeze_head: bool = False
    loss: str | None = None
    scale: float | None = None
    score_range: tuple[float, ...] = ()
    symmetric: bool | None = None
    pairs: int = 20
    teacher: str = ""
    matryoshka: tuple[int, ...] = ()
    matryoshka_weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        settle(self)
        if isinstance(self.freeze, dict):  # TOML's keys are strings, Python's may be numbers
            object.__setattr__(self, "freeze", {str(first): value for first, value in self.freeze.items()})
        taken = hasattr(nn.ModuleDict, self.name)  # a submodule cannot be called as one of its methods
        if not re.fullmatch(r"[A-Za-z][\w-]*", self.name) or taken or self.name == "mean":
            expected = "letters, digits, - and _, and no word of PyTorch's own"
            raise RecipeError(f"name is {shown(self.name)}; expected {expected}", "name")
        one_of("kind", self.kind, KINDS)
        one_of("head", self.head, ("linear", "distilbert"))
        self._check_settings(KINDS[self.kind])
        self._check_labels(KINDS[self.kind])
        if self.pooling != ("attention",) and not (self.pooling and set(self.pooling) <= set(MODES)):
            expected = f"one or more of {', '.join(MODES)}, or attention"
            raise RecipeError(f"pooling is {shown(list(self.pooling))}; expected {expected}", "pooling")
        if not 0 <= self.dropout < 1:
            raise RecipeError(f"dropout is {self.dropout}; expected a number from 0 up to, not including, 1", "dropout")
        if not 0 < self.weight < math.inf:
            raise RecipeError(f"weight is {self.weight}; expected more than 0", "weight")
        self._check_pairs(KINDS[self.kind])
        self._check_matryoshka()
        self._check_freeze()

    def _check_settings(self, kind: Kind) -> None:
        """That nothing is set which a task of this kind has not."""
        known = {*kind.options, *kind.reading, *(SIZES if kind.embeds else BRANCH)}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in OWN - known and value != field.default:
                raise RecipeError(f"{field.name} is {shown(value)}; a {kind.name} task has no {field.name}", field.name)

    def _check_pairs(self, kind: Kind) -> None:
        if self.loss is not None:
            one_of("loss", self.loss, kind.losses)
        if kind.teacher and not self.teacher:
            expected = "a model, or a file of vectors as teacher-{split}.npy"
            raise RecipeError(f"teacher is missing; expected {expected}", "kind")
        if self.scale is not None and not 0 < self.scale < math.inf:
            raise RecipeError(f"scale is {self.scale}; expected more than 0", "scale")
        if self.score_range and (len(self.score_range) != 2 or not self.score_range[0] < self.score_range[1]):
            expected = "the lowest and the highest score"
            raise RecipeError(f"score_range is {shown(list(self.score_range))}; expected {expected}", "score_range")

        if self.pairs < 1:
            raise RecipeError(f"pairs is {self.pairs}; expected 1 or more", "pairs")

    def _check_matryoshka(self) -> None:
        if len(set(self.matryoshka)) < len(self.matryoshka) or min(self.matryoshka, default=1) < 1:
            raise RecipeError(
                f"matryoshka is {shown(list(self.matryoshka))}; expected different sizes from 1 on", "matryoshka"
            )
        weights = self.matryoshka_weights
        if weights and (len(weights) != len(self.matryoshka) or min(weights) <= 0 or not math.isfinite(sum(weights))):
            expected = f"a number above 0 for each of the {len(self.matryoshka)} sizes of matryoshka"
            raise RecipeError(
                f"matryoshka_weights are {shown(list(weights))}; expected {expected}", "matryoshka_weights"
            )

    def _check_labels(self, kind: Kind) -> None:
        if len(self.labels) < (kind.least_labels or 0) or (self.labels and kind.least_labels is None):
            expected = "no labels" if kind.least_labels is None else f"at least {kind.least_labels}"
            raise RecipeError(
                f"labels are {shown(list(self.labels))}; expected {expected} for a {self.kind} task", "labels"
            )
        if len(set(self.labels)) < len(self.labels):
            raise RecipeError(f"labels are {shown(list(self.labels))}; expected each of them once", "labels")
        if len(self.text_field) < kind.texts or (len(self.text_field) > kind.texts and not kind.negatives):
            expected = "1 field" if kind.texts == 1 else f"{kind.texts} fields{' or more' * kind.negatives}"
            given = f"text_field is {shown(list(self.text_field))}"
            raise RecipeError(f"{given}; expected {expected} for a {self.kind} task", "text_field")
        if len(set(self.text_field)) < len(self.text_field):
            raise RecipeError(f"text_field is {list(self.text_field)}; expected each of them once", "text_field")

    def _check_freeze(self) -> None:
        by_epoch: dict[Any, Freeze] = self.freeze if isinstance(self.freeze, dict) else {"1": self.freeze}
        if "1" not in by_epoch or not all(re.fullmatch(r"[1-9]\d*", epoch) for epoch in by_epoch):
            expected = "epochs, counted from 1, to start with 1"
            raise RecipeError(f"freeze is {self.freeze}; expected {expected}", "freeze")
        for value in by_epoch.values():
            number = isinstance(value, int) and not isinstance(value, bool) and value >= 0
            if not number and value not in ("none", "encoder"):
                expected = "a number of blocks, 'encoder' or 'none'"
                raise RecipeError(f"freeze is {shown(value)}; expected {expected}", "freeze")

    @property
    def criterion(self) -> Callable[[Tensor, Tensor], tuple[Tensor, int]]:
        """The loss of its kind, with this task's options."""
        given = {name: getattr(self, name) for name in KINDS[self.kind].options}
        options = {name: KINDS[self.kind].options[name] if value is None else value for name, value in given.items()}
        loss = partial(KINDS[self.kind].loss, **options)
        weights = self.matryoshka_weights or (1.0,) * len(self.matryoshka)
        return partial(matryoshka, loss, KINDS[self.kind].cut, self.matryoshka, weights) if self.matryoshka else loss

    @property
    def metrics(self) -> dict[str, int]:
        """Those of its kind, and the main one at each size of ``matryoshka``; 1 where more is better, else -1."""
        kind = KINDS[self.kind]
        sizes = {f"{kind.main_metric}-{size}": kind.metrics[kind.main_metric] for size in self.matryoshka}
        return {**kind.metrics, **sizes}

    @property
    def outputs(self) -> int:
        """The number of logits."""
        return len(self.labels) or 1

    @property
    def freezing(self) -> dict[int, Freeze]:
        """The epochs, counted from 1, from which on something else is held fixed, with what it is."""
        by_epoch: dict[Any, Freeze] = self.freeze if isinstance(self.freeze, dict) else {"1": self.freeze}
        return {int(first): by_epoch[first] for first in sorted(by_epoch, key=int)}

    def frozen_depth(self, epoch: int, n_layers: int) -> int | None:
        """How many blocks this task holds in an epoch (the first is 1), or None where it holds nothing at all."""
        value = [value for first, value in self.freezing.items() if first <= epoch][-1]
        return None if value == "none" else n_layers if value == "encoder" else int(value)
