"""few-shot: a classifier from a few rows: pairs of them train the trunk, then a head is fitted (Tunstall et al. 2022,
SetFit)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from mtl.errors import RecipeError
from mtl.model.heads import Branch
from mtl.tasks.examples import Examples, Split
from mtl.tasks.fields import unexpected
from mtl.tasks.kinds.base import HeadKind
from mtl.tasks.kinds.classes import labels_of
from mtl.tasks.kinds.similarity import CosineKind, CosineOptions
from mtl.tasks.labels import class_index, found_names, is_place, label_set, named, names_in, ordered
from mtl.tasks.logistic import fit
from mtl.tasks.pictures import draw_map
from mtl.tasks.tally import Sampled

if TYPE_CHECKING:
    from mtl.checkpoints.load import Classifier
    from mtl.encode.sentence_encoder import SentenceEncoder
    from mtl.tasks.spec import TaskSpec

# Of the head's loss against its weights' squares: on 8 examples a class, 1.5 points above 1 (SST-2, TREC)
STRENGTH = 100.0


@dataclasses.dataclass(frozen=True)
class FewShotOptions(CosineOptions):
    """The drawing of pairs; the ``loss`` is "squared" by default.

    pairs: How often each text is drawn beside one with which it has a label in common, and beside one with which not.
    several: Whether a row may have several labels, or none; by default that is seen in the training data.
    """

    loss: str = "squared"
    pairs: int = 20
    several: bool | None = None
    pooling: tuple[str, ...] = ()
    losses: ClassVar[tuple[str, ...]] = ("squared", "cosent")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pairs < 1:
            raise unexpected("pairs", self.pairs, "1 or more")


@dataclasses.dataclass(frozen=True)
class FewExamples(Examples):
    """Drawn pairs, and the texts that they are of with their labels, as a classifier's targets: single-label or, where
    rows may have several, multi-label."""

    texts: Sequence[list[int]] = ()
    labels: Tensor = dataclasses.field(default_factory=lambda: torch.empty(0))


class FewShot(CosineKind, HeadKind):
    """A text and its label, or labels, as for "single-label" or "multi-label", of few examples.

    ``pairs`` times, each text is drawn beside another with which it has a label in common, whose cosine is to be 1, and
    beside one with which it has none, whose cosine is to be 0. After each epoch a linear head is fitted to convergence
    on the texts' pooled hidden states (logistic regression, as scikit-learn's with C = 100), dev data are measured
    with it, and what is trained is a "single-label" or "multi-label" task of this name. Labels that are not given are
    those of the training data. Where a recipe has only such tasks, epochs = 1, batch_size = 16 and learning_rate = 2e-5
    are the defaults.
    """

    name = "few-shot"
    Options: ClassVar[type] = FewShotOptions
    least_labels: ClassVar[int | None] = 0
    training: ClassVar[Mapping[str, Any]] = {"epochs": 1, "batch_size": 16, "learning_rate": 2e-5}

    def check_labels(self) -> None:
        super().check_labels()
        if len(self.labels) == 1:
            raise unexpected("labels", self.labels, "at least 2 for a few-shot task", "are")

    # Data

    def target(self, value: Any) -> tuple[Any, ...]:
        """The indices of a row's labels, or their names, where the task's are not known yet."""
        if not self.labels:
            listed = value.split("|") if isinstance(value, str) and value else value
            return found_names(listed if isinstance(listed, list) else [listed])
        several = isinstance(value, list) or (isinstance(value, str) and "|" in value and value not in self.labels)
        if not several:  # a number is a label's name before it is a place: so are those that were found in the data
            name = named(value, self.labels)
            return (class_index(value if name is None else name, self.labels),)
        return tuple(i for i, flag in enumerate(label_set(value, self.labels)) if flag)

    def labels_in(self, target: tuple[Any, ...]) -> list[str]:
        return [self.labels[label] if self.labels else label for label in target]

    def spelled(self, fields: Mapping[str, Any]) -> list[str]:
        value = fields.get(self.task.label_field)
        return [value] if value in self.labels else names_in(value)

    def by_place(self, value: Any) -> bool:
        return is_place(value, self.labels)

    def strata(self, targets: Sequence[tuple[Any, ...]]) -> list[str]:
        """As the classifier that it becomes has them, so that this one's shares are the same rows."""
        labels = range(len(self.labels)) if self.labels else ordered({label for own in targets for label in own})
        if self.have_several(targets):
            return [repr([float(label in own) for label in labels]) for own in targets]
        return [repr(labels.index(own[0])) if len(own) == 1 else repr(own) for own in targets]

    def have_several(self, targets: Sequence[tuple[Any, ...]]) -> bool:
        several = self.options.several
        return any(len(own) != 1 for own in targets) if several is None else bool(several)

    def stacked(self, targets: Sequence[tuple[int, ...]]) -> Sequence[tuple[int, ...]]:
        return targets

    @property
    def finds_labels(self) -> bool:
        return not self.labels or self.options.several is None

    def complete(self, targets: Sequence[tuple[Any, ...]]) -> TaskSpec:
        """The task with the labels of its training data, two or more, and whether rows have several."""
        labels = self.labels or labels_of(self.task, (label for own in targets for label in own), 2)
        return dataclasses.replace(self.task, labels=labels, several=self.have_several(targets))

    def declared(self, known: TaskSpec | None) -> TaskSpec:
        """What it has become, on this task's own data."""
        if known is None or known.kind not in ("single-label", "multi-label"):
            return self.task
        labels = self.labels or known.labels
        own = {name: getattr(self.task, name) for name in ("train", "dev", "test", "text_field", "label_field")}
        return dataclasses.replace(known, labels=labels, **own)

    def examples(self, texts: Sequence[str], targets: Sequence[tuple[int, ...]], split: Split) -> Examples:
        """The drawn pairs, with a score of 1 or 0; of data that are not trained on the rows, if it has a head. Where no
        two rows have a label in common, or all have, there is nothing to draw: a RecipeError."""
        rows = split.tokenize(texts)
        labels = torch.empty(0)
        if self.options.several is not None:
            labels = self.class_targets(targets, split)
            if split.name != "train":
                return Examples(rows, labels)
        generator = torch.Generator().manual_seed(split.seed)
        likes, unlikes = partners(targets, self.options.pairs, generator)
        for found, given in ((likes, "no two rows have a label"), (unlikes, "all rows have a label")):
            if (found < 0).all():
                given = f"task {self.task.name!r}: in its {split.name} data {given} in common"
                raise RecipeError(f"{given}; expected rows of two or more labels, and two or more of one of them")
        firsts = torch.arange(len(rows)).repeat(self.options.pairs)
        others = torch.stack([likes.T.flatten(), unlikes.T.flatten()], dim=1)  # (texts drawn, 2)
        drawn = others >= 0
        scores = torch.tensor([1.0, 0.0], dtype=torch.float32).expand(drawn.shape)[drawn]
        both = torch.stack([firsts[:, None].expand(drawn.shape)[drawn], others[drawn]], dim=1)
        return FewExamples([rows[i] for i in both.flatten().tolist()], scores[:, None], 2, rows, labels)

    def class_targets(self, targets: Sequence[tuple[int, ...]], split: Split) -> Tensor:
        """The targets of what it becomes; a RecipeError if a row has not exactly one label, where all of the training
        data have one."""
        if self.options.several:
            flags = [[i in own for i in range(len(self.labels))] for own in targets]
            return torch.tensor(flags, dtype=torch.float32)
        for number, own in enumerate(targets, 1):
            if len(own) != 1:
                given = f"task {self.task.name!r}: text {number} of {split.name} has {len(own)} labels"
                raise RecipeError(f"{given}; expected one, as in all of the training data, or several = true")
        return torch.tensor([own[0] for own in targets])

    # Computing

    def on(self, embedder: SentenceEncoder) -> TaskSpec:
        return dataclasses.replace(self.task, pooling=tuple(embedder.pooling.modes))

    @property
    def becomes(self) -> TaskSpec:
        """The classifier; where it is not known which, the task as it is."""
        if self.options.several is None:
            return self.task
        kept = ("name", "labels", "train", "dev", "test", "text_field", "label_field", "pooling")
        fields = {name: getattr(self.task, name) for name in kept}
        return type(self.task)(**fields, kind="multi-label" if self.options.several else "single-label")

    @property
    def head(self) -> HeadKind:
        """The handler of what the task becomes."""
        found = self.becomes.handler
        assert isinstance(found, HeadKind)
        return found

    def branch(self, dim: int) -> Branch | None:  # type: ignore[override]
        return None if self.options.several is None else self.head.branch(dim)

    def begins_with(self, theirs: Classifier) -> bool:
        return False

    def texts_to_fit(self, examples: Examples) -> Sequence[list[int]]:
        return examples.texts if isinstance(examples, FewExamples) and len(examples.labels) else ()

    def fit_head(self, vectors: Tensor, examples: Examples) -> tuple[Tensor, Tensor]:
        assert isinstance(examples, FewExamples)
        return fit(vectors, examples.labels, len(self.labels), STRENGTH)

    # Measuring and showing

    def scores(self, logits: Tensor) -> Tensor:
        return self.head.scores(logits)

    def words(self, scores: Tensor) -> list[Any]:
        return self.head.words(scores)

    @property
    def metrics(self) -> Mapping[str, int]:
        return super().metrics if self.options.several is None else self.head.metrics

    def measure(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        of_pairs = self.options.several is None
        return super().measure(outputs, targets) if of_pairs else self.head.measure(outputs, targets)

    def sampled(self, outputs: Tensor, examples: Examples) -> Sampled | None:
        return None if self.options.several is None else self.head.sampled(outputs, examples)

    def confusion(self, outputs: Tensor, targets: Tensor) -> list[list[int]] | None:
        return None if self.options.several is None else self.head.confusion(outputs, targets)

    def draw(self, axes: Any, vectors: Tensor, targets: Tensor) -> None:
        if targets.ndim == 1:
            draw_map(axes, self.task.name, vectors, targets, self.labels)
        else:
            super().draw(axes, vectors, targets)


def partners(
    labels: Sequence[tuple[int, ...]], count: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """For each row ``count`` others that have a label in common with it, and ``count`` that have none.

    ``labels`` are those of each row; both results are (rows, count) int64, where -1 stands for a row that has no such
    partner. Each is drawn evenly from all of them, in time and memory that grow with what is drawn: rows of equal
    labels are put side by side, so what has a label in common with a row is a few blocks of rows.
    """
    numbers: dict[tuple[int, ...], int] = {}
    of_row = torch.tensor([numbers.setdefault(row, len(numbers)) for row in labels])
    sets: dict[int, list[int]] = {}
    for own, number in numbers.items():
        for label in own:
            sets.setdefault(label, []).append(number)
    having = {label: torch.tensor(found) for label, found in sets.items()}  # the sets of labels that have each label
    order, sizes = of_row.argsort(stable=True), of_row.bincount()
    starts, total = sizes.cumsum(0) - sizes, len(labels)
    likes, unlikes = (torch.full((total, count), -1) for _ in range(2))

    for own, number in numbers.items():
        size = int(sizes[number])
        members = torch.arange(size) + starts[number]  # where its rows stand in the order
        rows = order[members]

        def drawn(choices: int, without: Tensor, size: int = size) -> Tensor:
            """Numbers below ``choices`` for each of its rows, all but the one that is the row itself."""
            found = torch.randint(choices - 1, (size, count), generator=generator)
            return found + (found >= without[:, None])

        if not own:  # without labels, it has none in common with any, as in SetFit
            if total > 1:
                unlikes[rows] = order[drawn(total, members)]
            continue
        shared = torch.zeros(len(numbers), dtype=torch.bool)
        for label in own:
            shared[having[label]] = True
        blocks = shared.nonzero()[:, 0]
        ends = sizes[blocks].cumsum(0)  # of the blocks, among their own rows
        before = starts[blocks] - (ends - sizes[blocks])  # how many rows of no block stand before each
        alike = int(ends[-1])
        if alike > 1:
            chosen = drawn(alike, members - before[blocks == number])
            likes[rows] = order[chosen + before[torch.searchsorted(ends, chosen, right=True)]]
        if alike < total:
            chosen = torch.randint(total - alike, (size, count), generator=generator)
            skipped = torch.cat([ends.new_zeros(1), ends])[torch.searchsorted(before, chosen, right=True)]
            unlikes[rows] = order[chosen + skipped]
    return likes, unlikes
