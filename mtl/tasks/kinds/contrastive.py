"""contrastive: which text belongs to which."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from mtl import search
from mtl.model import losses
from mtl.tasks.examples import Examples, Split
from mtl.tasks.kinds.vectors import VectorKind, VectorOptions, check_distinct, check_scale
from mtl.tasks.pictures import draw_map


@dataclasses.dataclass(frozen=True)
class ContrastiveOptions(VectorOptions):
    """The scale, and the direction of the search.

    scale: What cosines are multiplied by.
    symmetric: Positives find their anchors too.
    """

    scale: float = 20.0
    symmetric: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_scale(self.scale)


class Contrastive(VectorKind):
    """An anchor, its positive, and any number of hard negatives, each a field of ``text_field``; no label.

    All texts of a window's other rows are negatives too, so ``batch_size`` (times ``accumulate``) matters;
    ``micro_tokens`` bounds the memory, and changes nothing else. What equals the anchor or the positive is no negative,
    and rows are drawn so that no text stands twice in a window, as far as the data allow, and the window does not begin
    another pass through them. Targets are the texts' numbers (rows, texts), equal for equal texts.
    """

    name = "contrastive"
    Options: ClassVar[type] = ContrastiveOptions
    labelled: ClassVar[bool] = False
    texts: ClassVar[int] = 2
    more_texts: ClassVar[bool] = True
    queries: ClassVar[bool] = True
    whole_window: ClassVar[bool] = True
    has_picture: ClassVar[bool] = True
    own_metrics: ClassVar[Mapping[str, int]] = search.METRICS

    def examples(self, texts: Sequence[str], targets: Tensor, split: Split) -> Examples:
        rows, width = split.tokenize(texts), len(self.task.text_field)
        check_distinct(self.task, rows, split)
        return Examples(rows, text_numbers(rows, width), width)

    def apart(self, examples: Examples) -> list[list[int]]:
        numbers: list[list[int]] = examples.targets.tolist()
        return numbers

    def whole_loss(self, vectors: Tensor, targets: Tensor) -> tuple[Tensor, int]:
        return losses.contrastive(vectors, targets, self.options.scale, self.options.symmetric)

    def whole_measure(self, vectors: Tensor, targets: Tensor) -> dict[str, float]:
        """Search for each anchor's positives among all positives and hard negatives."""
        places: dict[int, int] = {}  # of a text, by its number, among the candidates
        for number in targets[:, 1:].flatten().tolist():
            places.setdefault(number, len(places))
        relevant: dict[int, dict[int, float]] = {}
        for anchor, positive, *_ in targets.tolist():
            relevant.setdefault(anchor, {})[places[positive]] = 1.0
        vector_of = dict(zip(targets.flatten().tolist(), vectors.flatten(0, 1), strict=True))
        queries, corpus = (torch.stack([vector_of[number] for number in side]) for side in (relevant, places))
        return search.search_metrics(
            queries, corpus.split(search.BLOCK), list(relevant.values()), [places.get(anchor) for anchor in relevant]
        )

    def draw(self, axes: Any, vectors: Tensor, targets: Tensor) -> None:
        """Anchors and positives, by the field that they stood in."""
        groups = torch.arange(2).repeat(len(vectors))
        draw_map(axes, self.task.name, vectors[:, :2].flatten(0, 1), groups, self.task.text_field[:2])


def text_numbers(rows: Sequence[Sequence[int]], width: int) -> Tensor:
    """A number for each text, the same for equal ones: (examples, width) int64."""
    known: dict[tuple[int, ...], int] = {}
    return torch.tensor([known.setdefault(tuple(row), len(known)) for row in rows]).view(-1, width)
