"""What sets one kind of task apart: a class for each kind, and for each task an object of its kind, its ``handler``.

A kind is one file of this folder. It reads rows, makes the task's branch, and gives loss, scores, words, metrics and
picture. Nobody else asks of which kind a task is: what differs is asked of the handler.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from mtl.encode.batching import in_order
from mtl.errors import RecipeError, TrainingError, is_unicode, shown
from mtl.model.heads import BETWEEN, Branch, HiddenHead, LinearHead
from mtl.model.pooling import MODES, AttentionPooling, Pooling
from mtl.tasks.examples import Examples, Split
from mtl.tasks.fields import one_of, unexpected
from mtl.tasks.registry import own_loss
from mtl.tasks.tally import Sampled

if TYPE_CHECKING:
    from mtl.checkpoints.load import Classifier
    from mtl.encode.sentence_encoder import SentenceEncoder
    from mtl.tasks.spans import Units
    from mtl.tasks.spec import TaskSpec

Target = Any  # a row's label, as its kind's ``target`` gives it


@dataclasses.dataclass(frozen=True)
class NoOptions:
    """A kind without settings of its own."""


class Kind(ABC):
    """How a task of one kind is read, computed, learned, measured and shown.

    name: What recipes call it.
    Options: The settings that tasks of this kind have besides those of all tasks, with the kind's defaults. Its
        ``__post_init__`` refuses wrong values. Each setting is a field of TaskSpec too, whose default stands for
        "not set".
    level: What has an output: each text, or each token of it.
    least_labels: How many labels a task must declare; None: it has none.
    labelled: Whether a row has a label, in ``label_field``.
    texts, more_texts: How many texts a row has; and whether it may have more.
    queries: The first text is a query: where a share of the rows is taken, those of a query stay together, whatever
        else they have in common. Of other kinds those with any text in common do.
    embeds: It trains the embeddings themselves, through the embedder's own pooling and the layers behind it, and has
        no branch. Where others have logits, it has a vector for each text: (rows, texts, dim).
    whole_window: Its loss compares all rows of a window with each other, and is no sum over the rows.
    uncertainty: What the loss is multiplied by under learned loss weights (see training/optim.py).
    has_picture: Whether ``draw`` draws something.
    training: Defaults of training where a recipe's tasks are all of this kind, as ``{"epochs": 1}``.
    own_metrics: Each metric's name, with 1 where more is better and -1 where less is. The first is the main one.

    Raises:
        RecipeError: the task's labels, fields or options are not those of its kind.
    """

    name: ClassVar[str]
    Options: ClassVar[type] = NoOptions
    level: ClassVar[Literal["text", "token"]] = "text"
    least_labels: ClassVar[int | None] = None
    labelled: ClassVar[bool] = True
    texts: ClassVar[int] = 1
    more_texts: ClassVar[bool] = False
    queries: ClassVar[bool] = False
    embeds: ClassVar[bool] = False
    whole_window: ClassVar[bool] = False
    uncertainty: ClassVar[float] = 1.0
    has_picture: ClassVar[bool] = False
    training: ClassVar[Mapping[str, Any]] = {}
    own_metrics: ClassVar[Mapping[str, int]]

    def __init__(self, task: TaskSpec) -> None:
        self.task, self.labels = task, task.labels
        self.own_loss = own_loss(self.name, task.loss)
        defaults = {field.name: field.default for field in dataclasses.fields(task)}
        given = {name: getattr(task, name) for name in self.settings() if name in defaults}
        given = {name: value for name, value in given.items() if value != defaults[name]}
        if self.own_loss:
            given.pop("loss", None)
        more = {} if task.options is None else task.options
        names = [name for name in self.settings() if name not in defaults]
        if not isinstance(more, dict) or more.keys() - names:
            expected = f"a table of {', '.join(names) or 'nothing'} for a {self.name} task"
            raise unexpected("options", more, expected, "are")
        self.options = self.Options(**given, **more)
        self.check_labels()
        self.check_texts()
        if self.labelled and task.label_field in task.text_field:
            raise RecipeError(f"label_field is {task.label_field!r}, as a text_field; expected another", "label_field")

    @classmethod
    def settings(cls) -> list[str]:
        """The names of the options."""
        return [field.name for field in dataclasses.fields(cls.Options)]

    @property
    def joint(self) -> bool | Literal["either"]:
        """Whether it reads a pair of texts in one row; "either": it reads both pairs and single texts."""
        return False

    def check_labels(self) -> None:
        labels, least = self.labels, self.least_labels
        if len(labels) < (least or 0) or (labels and least is None):
            expected = "no labels" if least is None else f"at least {least}"
            raise unexpected("labels", labels, f"{expected} for a {self.name} task", "are")
        if len(set(labels)) < len(labels):
            raise unexpected("labels", labels, "each of them once", "are")

    def check_texts(self) -> None:
        fields = self.task.text_field
        if len(fields) < self.texts or (len(fields) > self.texts and not self.more_texts):
            expected = "1 field" if self.texts == 1 else f"{self.texts} fields{' or more' * self.more_texts}"
            raise unexpected("text_field", fields, f"{expected} for a {self.name} task")
        if len(set(fields)) < len(fields):
            raise unexpected("text_field", fields, "each of them once")

    # Data

    def is_blank(self, value: Any) -> bool:
        """Whether a label as it stands in the data says that there is none, so that the row is left out."""
        blank = isinstance(value, str) and not value.strip() and value not in self.labels
        return self.labelled and self.level == "text" and blank

    def by_place(self, value: Any) -> bool:
        """Whether a label as it stands in the data is a number that says the label's place."""
        return False

    def labels_in(self, target: Target) -> list[str]:
        """The labels that a row's target has, by name, as they are counted: none where it is a number, or nothing."""
        return []

    def spelled(self, fields: Mapping[str, Any]) -> list[str]:
        """The labels of a row as they are spelled there, whether or not they are declared."""
        value = fields.get(self.task.label_field)
        return [value] if self.labels and isinstance(value, str) and value.strip() else []

    def strata(self, targets: Sequence[Target]) -> list[str]:
        """What each row counts as where a share of each is taken."""
        return [repr(target) for target in targets]

    def read(self, fields: Mapping[str, Any]) -> tuple[list[str], Target]:
        """A row's texts, and its target, which is None where rows have no label.

        Raises:
            ValueError: the row is wrong; the message is the end of a sentence that begins with the row's place.
        """
        wanted = (*self.task.text_field, *([self.task.label_field] if self.labelled else []))
        if missing := [name for name in wanted if name not in fields]:
            raise ValueError(f"no field {missing[0]!r}; it has {', '.join(fields)}")
        texts = [fields[name] for name in self.task.text_field]
        for name, text in zip(self.task.text_field, texts, strict=True):
            if not isinstance(text, str):
                raise ValueError(f"field {name!r} is a {type(text).__name__}; expected a string")
            if not is_unicode(text):
                raise ValueError(f"field {name!r} holds half of a surrogate pair: {shown(text)}; expected Unicode")
            if len(texts) > 1 and not text.strip():
                raise ValueError(f"field {name!r} is empty; expected a text")
        if not self.labelled:
            return texts, None
        try:
            return texts, self.target(fields[self.task.label_field])
        except ValueError as error:
            raise ValueError(f"{self.task.label_field} {error}") from None

    def target(self, value: Any) -> Target:
        """A label as it stands in the data, as the loss takes it.

        Raises:
            ValueError: what is wrong with it, as the end of a sentence that begins with the field's name.
        """
        raise NotImplementedError(f"rows of a {self.name} task have no label")

    def stacked(self, targets: Sequence[Target]) -> Any:
        """The targets of all rows together, as ``examples`` takes them: (rows, ...)."""
        whole = all(isinstance(target, int) for target in targets)
        return torch.tensor(targets, dtype=torch.long if whole else torch.float32)

    def examples(self, texts: Sequence[str], targets: Any, split: Split) -> Examples:
        """The examples of a split, from the texts of all rows, one after another, and the stacked targets."""
        return Examples(split.tokenize(texts), targets, len(self.task.text_field))

    def apart(self, examples: Examples) -> list[list[int]] | None:
        """Each row's texts, as numbers, where no window may hold a text twice; else None."""
        return None

    @property
    def finds_labels(self) -> bool:
        """Whether its labels are those of its training data, and are not known yet."""
        return False

    def complete(self, targets: Sequence[Target]) -> TaskSpec:
        """The task with the labels of its training data."""
        return self.task

    def declared(self, known: TaskSpec | None) -> TaskSpec:
        """The task with a trained model's labels, where it leaves them to be found."""
        return self.task

    def continued(self, before: TaskSpec) -> TaskSpec | None:
        """The task as it goes on with a head that was trained for another; None where that head is not right for it."""
        same = all(
            getattr(before, field) == getattr(self.task, field) for field in ("labels", "kind", "pooling", "head")
        )
        return self.task if same else None

    def begins_with(self, theirs: Classifier) -> bool:
        """Whether a published classifier's head is right for the task."""
        return False

    def fitted(self, examples: Examples) -> TaskSpec:
        """The task, with what it keeps of its training data."""
        return self.task

    @property
    def wants_dev(self) -> str:
        """The option for which the task needs dev data; "" where it has none such."""
        return ""

    def fitted_on_dev(self, outputs: Tensor, examples: Examples) -> tuple[TaskSpec, list[str]]:
        """The task, with what it keeps of its dev data and the outputs of these, and a line for each such thing."""
        return self.task, []

    @property
    def becomes(self) -> TaskSpec:
        """The task of the trained model, which predicts without a registered loss."""
        return dataclasses.replace(self.task, loss=None) if self.own_loss else self.task

    # Computing

    @property
    def output_names(self) -> tuple[str, ...]:
        """What its outputs are called, one by one; nothing where there is one, which is a number."""
        return self.labels

    @property
    def outputs(self) -> int:
        """The number of logits."""
        return len(self.output_names) or 1

    def on(self, embedder: SentenceEncoder) -> TaskSpec:
        """The task as it is on this embedder."""
        return self.task

    @abstractmethod
    def branch(self, dim: int) -> Branch | None:
        """A new pooling and head with random weights, on hidden states of ``dim`` numbers; None where it embeds."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, float]:
        """The summed loss, and the number of labels in it, or the sum of their weights."""

    def texts_to_fit(self, examples: Examples) -> Sequence[list[int]]:
        """The texts, as tokens, on which the head is fitted after each epoch; none where steps train it."""
        return ()

    def fit_head(self, vectors: Tensor, examples: Examples) -> tuple[Tensor, Tensor]:
        """Weight (outputs, dim) and bias (outputs,) of the linear head, of these texts' pooled hidden states."""
        raise NotImplementedError(f"a {self.name} task's head is trained")

    def by_row(self, outputs: Tensor, order: Sequence[int], lengths: Sequence[int]) -> Tensor:
        """The outputs of rows that were computed in another order, in their own: (rows, ...).

        ``order`` are the rows' numbers as they were computed, and ``lengths`` their tokens by number.
        """
        return in_order([outputs], order)

    def criterion(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, float]:
        """As ``loss``, by the registered loss that the task names, if it names one.

        Raises:
            TrainingError: that does not give one number for each row, or a registered kind's no sum and count.
        """
        if self.own_loss is None:
            found: Any = self.loss(outputs, targets)
            both = isinstance(found, (tuple, list)) and len(found) == 2
            if both and isinstance(found[0], Tensor) and found[0].ndim == 0:
                return found[0], found[1]
            expected = "the sum over all rows, a tensor without dimensions, and the number of these"
            raise TrainingError(f"task {self.task.name!r}: its kind's loss gives {shown(found)}; expected {expected}")
        found = self.own_loss.function(*self.with_label(outputs, targets))
        if not isinstance(found, Tensor) or found.shape != (self.counted(targets),):
            given = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else shown(found)
            expected = f"one number for each of {self.counted(targets)} rows, or tokens with a label"
            raise TrainingError(
                f"task {self.task.name!r}: its loss {self.task.loss!r} gives {given}; expected {expected}"
            )
        return found.sum(), self.counted(targets)

    def counted(self, targets: Tensor) -> float:
        """As ``count``, of the loss that the task has."""
        return self.count(targets) if self.own_loss is None else len(self.with_label(targets, targets)[1])

    def with_label(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """What functions of a user's own are given of outputs and targets."""
        return outputs, targets

    def labelled_examples(self, outputs: Tensor, examples: Examples) -> tuple[Tensor, Any]:
        """As ``with_label``, of the outputs of examples."""
        return outputs, examples.targets

    def count(self, targets: Tensor) -> float:
        """How many labels there are in targets, as ``loss`` counts them."""
        return targets.numel()

    def in_units(self, outputs: Tensor) -> Tensor:
        """What the branch gives, in the units of the data."""
        return outputs

    def folded(self, head: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A head's tensors, changed so that its outputs are in the units of the data."""
        return dict(head)

    def logits(self, outputs: Tensor, texts: Sequence[Units]) -> Iterator[Tensor]:
        """Of each text, the logits of its words (words, outputs), from those of all tokens of its windows."""
        raise NotImplementedError(f"a {self.name} task has no output for each token")

    def spans(self, units: Units, logits: Tensor) -> list[dict[str, Any]]:
        """What the logits of a text's words say: its spans, in order."""
        raise NotImplementedError(f"a {self.name} task has no output for each token")

    # Measuring

    @property
    def metrics(self) -> Mapping[str, int]:
        """Those of its kind, and what the task's options add."""
        return self.own_metrics

    @property
    def main_metric(self) -> str:
        return next(iter(self.metrics))

    @abstractmethod
    def measure(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """All metrics, of outputs in the units of the data."""

    def measured(self, outputs: Tensor, examples: Examples) -> dict[str, float]:
        """All metrics of the outputs of examples."""
        return self.measure(outputs, examples.targets)

    def about(self) -> dict[str, Any]:
        """What else there is to know of how its answers are made, by the names of its options."""
        return {}

    def detailed(self, outputs: Tensor, examples: Examples) -> dict[str, float]:
        """All metrics, and what takes a closer look: of each label, as ``label.f1``, and of the probabilities."""
        return self.measured(outputs, examples)

    def sampled(self, outputs: Tensor, examples: Examples) -> Sampled | None:
        """What gives the metrics of rows that are drawn from the examples; None where rows say nothing one by one."""
        return None

    def confusion(self, outputs: Tensor, targets: Tensor) -> list[list[int]] | None:
        """Counts, with a row for each true label and a column for each predicted one, where that makes sense."""
        return None

    def draw(self, axes: Any, vectors: Tensor, targets: Tensor) -> None:
        """Draw the embeddings, (rows, dim) or (rows, texts, dim), of examples and their targets."""
        raise NotImplementedError(f"a {self.name} task has no picture")


@dataclasses.dataclass(frozen=True)
class HeadOptions:
    """The settings of a task with a pooling and a head of its own.

    pooling: Names of pooling modes side by side, or "attention" for a learned one.
    head: "linear", or a hidden layer before it with ReLU ("distilbert"), tanh ("bert") or GELU ("electra"), as the own
        classifiers of DistilBERT, of BERT and RoBERTa, and of ELECTRA have it.
    dropout: The share of the features that the head drops in training.
    joint: The two texts of a row become one row of tokens.
    """

    pooling: tuple[str, ...] = ("mean",)
    head: str = "linear"
    dropout: float = 0.1
    joint: bool | Literal["either"] = False

    def __post_init__(self) -> None:
        if self.joint not in (True, False, "either") or type(self.joint) not in (bool, str):
            raise unexpected("joint", self.joint, "true or false")
        if self.pooling != ("attention",) and not (self.pooling and set(self.pooling) <= set(MODES)):
            raise unexpected("pooling", self.pooling, f"one or more of {', '.join(MODES)}, or attention")
        check_head(self.head, self.dropout)


class HeadKind(Kind):
    """A kind with a pooling and a head: logits (texts, outputs)."""

    Options: ClassVar[type] = HeadOptions

    @property
    def activation(self) -> str:
        """What a cross-encoder's score is of its logit, where the folder has to say it."""
        return ""

    @property
    def joint(self) -> bool | Literal["either"]:
        return self.options.joint if isinstance(self.options, HeadOptions) else False

    def check_texts(self) -> None:
        fields = self.task.text_field
        if self.joint is True and len(fields) != 2:
            raise unexpected("text_field", fields, "2 fields, since joint has two texts in one row")
        if not self.joint and len(fields) == 2 == self.texts + 1:
            expected = f"1 field for a {self.name} task, or joint = true, which has two texts in one row"
            raise unexpected("text_field", fields, expected)
        if not self.joint:
            super().check_texts()
        elif len(set(fields)) < len(fields):
            raise unexpected("text_field", fields, "each of them once")

    def examples(self, texts: Sequence[str], targets: Any, split: Split) -> Examples:
        if len(self.task.text_field) == 1:
            return super().examples(texts, targets, split)
        return Examples(split.tokenize(texts, pairs=True), targets)

    def branch(self, dim: int) -> Branch:
        attention = self.options.pooling == ("attention",)
        pooling = AttentionPooling(dim) if attention else Pooling(*self.options.pooling)
        features = dim * len(self.options.pooling)
        return Branch(pooling, new_head(self.options.head, features, self.outputs, self.options.dropout))

    def begins_with(self, theirs: Classifier) -> bool:
        same = self.options.head == theirs.kind and self.labels == theirs.labels
        return same and self.options.pooling == (theirs.pooling,)

    def scores(self, logits: Tensor) -> Tensor:
        """What logits say, in numbers that people read: (texts, outputs)."""
        return logits

    @abstractmethod
    def words(self, scores: Tensor) -> list[Any]:
        """What scores mean: one value per text."""

    @property
    def columns(self) -> tuple[str, ...]:
        """What the scores of a text are called, one by one."""
        return self.output_names or ("value",)


def check_head(head: str, dropout: float) -> None:
    """Raise a RecipeError if no head is called so, or the dropout before it is no share of the features."""
    one_of("head", head, ("linear", *BETWEEN))
    if not 0 <= dropout < 1:
        raise unexpected("dropout", dropout, "a number from 0 up to, not including, 1")


def new_head(head: str, features: int, outputs: int, dropout: float) -> LinearHead | HiddenHead:
    """A head of this kind, with random weights."""
    return LinearHead(features, outputs, dropout) if head == "linear" else HiddenHead(features, outputs, dropout, head)


def check_ranked_fields(fields: tuple[str, ...]) -> None:
    """Raise a RecipeError if ``text_field`` does not name a query, what answers it, and texts that do not."""
    if len(fields) < 3 or len({*fields}) < len(fields):
        raise unexpected("text_field", fields, "a query, its positive, and one negative or more, each once")
