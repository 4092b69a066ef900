"""Which task and which rows make up step s: a pure function of the seed and the step.

An epoch is a number of micro-batches, one task each. Every task goes through its rows in passes, each in an
order of its own, whose last micro-batch may be ragged. Micro-batches of all tasks are mixed, then taken
``accumulate`` at a time: a window, which is a step. The last window of an epoch may be short.

No step depends on those before it, so a run that goes on at step s sees what it would have seen.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

SWEEPS = 5  # a later one finds room that the first one made


@dataclasses.dataclass(frozen=True)
class MicroBatch:
    """Rows of one task's training data."""

    task: str
    rows: tuple[int, ...]


def one_seed(*seeds: int) -> int:
    """One seed that several numbers decide, in their order."""
    found = 0
    for seed in seeds:  # a polynomial in a large odd number keeps (1, 2) apart from (2, 1)
        found = (found * 6364136223846793005 + seed + 1442695040888963407) % 2**63
    return found


def permutation(size: int, *seeds: int) -> Tensor:
    """An order of range(size) that the seeds decide, int64."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(one_seed(*seeds)), device="cpu")


def batches_per_task(sizes: Mapping[str, int], sampling: str, temperature: float) -> dict[str, int]:
    """How many micro-batches each task gets per epoch, as many in all as the tasks have.

    ``sizes`` are the tasks' own micro-batches. Each gets at least one; the largest remainders are rounded up.
    """
    if sampling == "proportional":
        return dict(sizes)
    power = 0.0 if sampling == "uniform" else 1 / temperature
    weights = {task: size**power for task, size in sizes.items()}
    total, whole = sum(sizes.values()), sum(weights.values())
    exact = {task: total * weight / whole for task, weight in weights.items()}
    counts = {task: max(1, math.floor(share)) for task, share in exact.items()}
    by_remainder = sorted(exact, key=lambda task: counts[task] - exact[task])
    for task in by_remainder[: max(0, total - sum(counts.values()))]:
        counts[task] += 1
    return counts


def mix(counts: Mapping[str, int], seed: int, epoch: int) -> list[tuple[str, int]]:
    """An epoch's micro-batches, mixed: each one's task, and which of that task's in the epoch it is."""
    names = [task for task, count in counts.items() for _ in range(count)]
    seen: Counter[str] = Counter()
    mixed = []
    for i in permutation(len(names), seed, 0, epoch).tolist():
        mixed.append((names[i], seen[names[i]]))
        seen[names[i]] += 1
    return mixed


class Batches:
    """An order of rows, cut into micro-batches, in which rows are exchanged until few texts stand twice near together.

    ``texts`` are those of each row; ``near`` micro-batches that follow each other are to hold a text once.
    """

    def __init__(self, order: Sequence[int], texts: Sequence[Sequence[int]], batch_size: int, near: int) -> None:
        rows = Counter(text for row in texts for text in {*row})
        self.texts = [[text for text in {*row} if rows[text] > 1] for row in texts]  # the others clash with nothing
        self.order, self.rows, self.batch_size, self.near = list(order), rows, batch_size, near
        self.count = math.ceil(len(order) / batch_size)
        self.held: dict[int, Counter[int]] = defaultdict(Counter)  # how many rows of a text each micro-batch holds
        for place, row in enumerate(self.order):
            self.put(row, place)
        self.at: Counter[int] = Counter()  # the micro-batch to which a text's rows were offered last
        self.hopeless: set[int] = set()  # texts that went round all of them in vain

    def put(self, row: int, place: int, count: int = 1) -> None:
        for text in self.texts[row]:
            self.held[text][place // self.batch_size] += count

    def clashes(self, row: int, place: int) -> bool:
        """Whether a micro-batch near to a place holds one of the texts of a row that is not there."""
        batch = place // self.batch_size
        around = range(batch - self.near + 1, batch + self.near)
        return any(self.held[text][near] > 0 for text in self.texts[row] for near in around)

    def resolve(self, place: int) -> bool:
        """Exchange a place's row for another, if it clashes there; gives whether it was done.

        A text whose row went round all micro-batches in vain has more rows than there is room for: it is not offered
        again.
        """
        row = self.order[place]
        text = max(self.texts[row], key=self.rows.__getitem__, default=None)
        if text is None or text in self.hopeless:
            return False
        self.put(row, place, -1)
        clashes = self.clashes(row, place)
        for _ in range(self.count if clashes else 0):
            self.at[text] = batch = (self.at[text] + 1) % self.count
            others = range(batch * self.batch_size, min((batch + 1) * self.batch_size, len(self.order)))
            if not self.clashes(row, others[0]) and any(self.exchange(place, other) for other in others):
                return True
        self.put(row, place)
        if clashes:
            self.hopeless.add(text)
        return False

    def exchange(self, place: int, other: int) -> bool:
        """Exchange the rows of two places, if the first, which was taken out, clashes no longer, and the second no more
        than before."""
        row, peer = self.order[place], self.order[other]
        self.put(peer, other, -1)
        fits = self.clashes(peer, other) or not self.clashes(peer, place)
        self.put(peer, place)
        if fits and not self.clashes(row, other):
            self.put(row, other)
            self.order[place], self.order[other] = peer, row
            return True
        self.put(peer, place, -1)
        self.put(peer, other)
        return False


def kept_apart(order: Sequence[int], texts: Sequence[Sequence[int]], batch_size: int, near: int) -> list[int]:
    """The order, with rows exchanged so that no text stands twice in ``near`` micro-batches that follow each other.

    Where a text has more rows than there is room for, some stay where they are.
    """
    batches = Batches(order, texts, batch_size, near)
    for _ in range(SWEEPS):
        batches.hopeless.clear()
        if not any([batches.resolve(place) for place in range(len(order))]):
            break
    return batches.order


@dataclasses.dataclass(frozen=True)
class Schedule:
    """``sizes`` are the tasks' numbers of rows; ``batch_size`` rows make a micro-batch.

    ``apart`` has, for tasks whose windows are to hold no text twice, the texts of each row, as numbers.
    """

    sizes: Mapping[str, int]
    batch_size: int
    accumulate: int = 1
    sampling: str = "proportional"
    temperature: float = 2.0
    seed: int = 0
    apart: Mapping[str, Sequence[Sequence[int]]] = dataclasses.field(default_factory=dict)
    orders: dict[str, tuple[int, Any]] = dataclasses.field(default_factory=dict, repr=False)  # the last ones, see held

    @cached_property
    def passes(self) -> dict[str, int]:
        """Micro-batches in one pass through each task's rows."""
        return {task: math.ceil(size / self.batch_size) for task, size in self.sizes.items()}

    @cached_property
    def counts(self) -> dict[str, int]:
        """Micro-batches of each task in one epoch."""
        return batches_per_task(self.passes, self.sampling, self.temperature)

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(sum(self.counts.values()) / self.accumulate)

    def effective_epochs(self, epochs: int) -> dict[str, float]:
        """How often each task's rows are seen in so many epochs."""
        return {task: epochs * count / self.passes[task] for task, count in self.counts.items()}

    def held(self, name: str, number: int, make: Callable[[], T]) -> T:
        """What ``make`` gives; of each name the last number's is remembered."""
        if self.orders.get(name, (None,))[0] != number:
            self.orders[name] = number, make()
        found: T = self.orders[name][1]
        return found

    def drawn(self, step: int) -> list[tuple[str, int]]:
        """A step's micro-batches: each one's task, and which of that task's it is, counted over all its passes."""
        epoch, place = divmod(step, self.steps_per_epoch)
        mixed = self.held("", epoch, lambda: mix(self.counts, self.seed, epoch))  # no task has an empty name
        start = place * self.accumulate
        return [(task, epoch * self.counts[task] + nth) for task, nth in mixed[start : start + self.accumulate]]

    def window(self, step: int) -> list[MicroBatch]:
        """The micro-batches of a step, counted from 0."""
        return [self.micro_batch(task, nth) for task, nth in self.drawn(step)]

    def rows(self, task: str, nth: int) -> int:
        """How many rows the nth micro-batch of a task has."""
        place = nth % self.passes[task]
        return min(self.batch_size, self.sizes[task] - place * self.batch_size)

    def micro_batch(self, task: str, nth: int) -> MicroBatch:
        """The nth micro-batch of a task, counted over all its passes."""
        pass_, place = divmod(nth, self.passes[task])
        order = self.held(task, pass_, lambda: self.order(task, pass_))
        rows = order[place * self.batch_size : (place + 1) * self.batch_size]
        return MicroBatch(task, tuple(rows.tolist()))

    def order(self, task: str, pass_: int) -> Tensor:
        """A task's rows in the order of one of its passes."""
        order = permutation(self.sizes[task], self.seed, list(self.sizes).index(task) + 1, pass_)
        if task not in self.apart:
            return order
        return torch.tensor(kept_apart(order.tolist(), self.apart[task], self.batch_size, self.accumulate))
