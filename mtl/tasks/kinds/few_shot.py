"""few-shot: whether two texts have a label in common, of pairs drawn from a few rows (Tunstall et al. 2022, SetFit)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from mtl.errors import RecipeError
from mtl.tasks.examples import Examples, Split
from mtl.tasks.kinds.multi_label import label_set, names_in
from mtl.tasks.kinds.similarity import CosineKind, CosineOptions
from mtl.tasks.kinds.single_label import class_index, is_place


@dataclasses.dataclass(frozen=True)
class FewShotOptions(CosineOptions):
    """The drawing of pairs; the ``loss`` is "squared" by default.

    pairs: How often each text is drawn beside one with which it has a label in common, and beside one with which not.
    """

    loss: str = "squared"
    pairs: int = 20
    losses: ClassVar[tuple[str, ...]] = ("squared", "cosent")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pairs < 1:
            raise RecipeError(f"pairs is {self.pairs}; expected 1 or more", "pairs")


class FewShot(CosineKind):
    """A text and its label, or labels, as for "single-label" or "multi-label", of few examples.

    ``pairs`` times, each text is drawn beside another with which it has a label in common, whose cosine is to be 1, and
    beside one with which it has none, whose cosine is to be 0. freeze = {1 = "none", 2 = "encoder"} ends that after the
    first epoch, and a classifier of the same rows with freeze = "encoder" goes on with the trunk that it made.
    """

    name = "few-shot"
    Options: ClassVar[type] = FewShotOptions
    least_labels: ClassVar[int | None] = 2

    def target(self, value: Any) -> tuple[int, ...]:
        """The indices of a row's labels."""
        several = isinstance(value, list) or (isinstance(value, str) and "|" in value and value not in self.labels)
        if not several:
            return (class_index(value, self.labels),)
        return tuple(i for i, flag in enumerate(label_set(value, self.labels)) if flag)

    def labels_in(self, target: tuple[int, ...]) -> list[str]:
        return [self.labels[i] for i in target]

    def spelled(self, fields: Mapping[str, Any]) -> list[str]:
        value = fields.get(self.task.label_field)
        return [value] if value in self.labels else names_in(value)

    def by_place(self, value: Any) -> bool:
        return is_place(value, self.labels)

    def stacked(self, targets: Sequence[tuple[int, ...]]) -> Sequence[tuple[int, ...]]:
        return targets

    def examples(self, texts: Sequence[str], targets: Sequence[tuple[int, ...]], split: Split) -> Examples:
        """The drawn pairs, with a score of 1 or 0.

        Raises:
            RecipeError: there is nothing to draw: no two rows have a label in common, or all have.
        """
        rows = split.tokenize(texts)
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
        return Examples([rows[i] for i in both.flatten().tolist()], scores[:, None], 2)


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
    having: dict[int, list[int]] = {}  # the sets of labels that have each label
    for own, number in numbers.items():
        for label in own:
            having.setdefault(label, []).append(number)
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
        blocks = torch.tensor(sorted({other for label in own for other in having[label]}))
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
