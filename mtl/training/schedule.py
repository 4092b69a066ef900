"""Which task and which rows make up step s: a pure function of the seed and the step.

An epoch is a number of micro-batches, one task each. Every task goes through its rows in passes, each in an
order of its own, whose last micro-batch may be ragged. Micro-batches of all tasks are mixed, then taken
``accumulate`` at a time: a window, which is a step. The last window of an epoch may be short.

Nothing is stored between steps, so a run that goes on at step s sees what it would have seen.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache

import torch

TRIES = 1000  # rows that one is offered to, before it stays beside its like


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


@lru_cache(maxsize=16)
def permutation(size: int, *seeds: int) -> tuple[int, ...]:
    """An order of range(size) that the seeds decide."""
    generator = torch.Generator().manual_seed(one_seed(*seeds))
    return tuple(torch.randperm(size, generator=generator).tolist())


def shares(sizes: Mapping[str, int], sampling: str, temperature: float) -> dict[str, int]:
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


@lru_cache(maxsize=2)
def mix(counts: tuple[tuple[str, int], ...], seed: int, epoch: int) -> tuple[tuple[str, int], ...]:
    """An epoch's micro-batches, mixed: each one's task, and which of that task's in the epoch it is."""
    names = [task for task, count in counts for _ in range(count)]
    seen: Counter[str] = Counter()
    mixed = []
    for i in permutation(len(names), seed, 0, epoch):
        mixed.append((names[i], seen[names[i]]))
        seen[names[i]] += 1
    return tuple(mixed)


class Holding:
    """How many rows of each text every micro-batch holds."""

    def __init__(self, texts: Sequence[Sequence[int]], batch_size: int, near: int) -> None:
        rows = Counter(text for row in texts for text in {*row})
        self.texts = [{text for text in row if rows[text] > 1} for row in texts]  # the others clash with nothing
        self.batch_size, self.near = batch_size, near
        self.counts: dict[int, Counter[int]] = defaultdict(Counter)

    def put(self, row: int, place: int, count: int = 1) -> None:
        for text in self.texts[row]:
            self.counts[text][place // self.batch_size] += count

    def clashes(self, row: int, place: int) -> bool:
        """Whether a micro-batch near to a place holds one of the row's texts."""
        around = range(place // self.batch_size - self.near + 1, place // self.batch_size + self.near)
        return any(self.counts[text][batch] > 0 for text in self.texts[row] for batch in around)

    def exchange(self, order: list[int], place: int, other: int) -> bool:
        """Exchange the rows of two places, if neither clashes then; gives whether it was done."""
        row, peer = order[place], order[other]
        self.put(row, place, -1)
        self.put(peer, other, -1)
        done = not self.clashes(peer, place)
        self.put(peer, place)
        done = done and not self.clashes(row, other)
        self.put(row, other)
        if done:
            order[place], order[other] = peer, row
            return True
        for moved, at, count in ((row, other, -1), (peer, place, -1), (row, place, 1), (peer, other, 1)):
            self.put(moved, at, count)
        return False


def kept_apart(order: Sequence[int], texts: Sequence[Sequence[int]], batch_size: int, near: int) -> tuple[int, ...]:
    """The order, with rows exchanged so that no text stands twice in ``near`` micro-batches that follow each other.

    ``texts`` are those of each row. Where a text has more rows than there is room for, some stay where they are.
    """
    found, holding = list(order), Holding(texts, batch_size, near)
    for place, row in enumerate(found):
        holding.put(row, place)
    for place in range(len(found)):
        holding.put(found[place], place, -1)
        clashes = holding.clashes(found[place], place)
        holding.put(found[place], place)
        if clashes:
            others = ((place + near * batch_size + i) % len(found) for i in range(min(len(found), TRIES)))
            any(holding.exchange(found, place, other) for other in others if other != place)
    return tuple(found)


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
    orders: dict[tuple[str, int], tuple[int, ...]] = dataclasses.field(default_factory=dict, repr=False)  # a cache

    @cached_property
    def passes(self) -> dict[str, int]:
        """Micro-batches in one pass through each task's rows."""
        return {task: math.ceil(size / self.batch_size) for task, size in self.sizes.items()}

    @cached_property
    def counts(self) -> dict[str, int]:
        """Micro-batches of each task in one epoch."""
        return shares(self.passes, self.sampling, self.temperature)

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(sum(self.counts.values()) / self.accumulate)

    def effective_epochs(self, epochs: int) -> dict[str, float]:
        """How often each task's rows are seen in so many epochs."""
        return {task: epochs * count / self.passes[task] for task, count in self.counts.items()}

    def drawn(self, step: int) -> list[tuple[str, int]]:
        """A step's micro-batches: each one's task, and which of that task's it is, counted over all its passes."""
        epoch, place = divmod(step, self.steps_per_epoch)
        mixed = mix(tuple(self.counts.items()), self.seed, epoch)
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
        order = self.order(task, pass_)
        return MicroBatch(task, order[place * self.batch_size : (place + 1) * self.batch_size])

    def order(self, task: str, pass_: int) -> tuple[int, ...]:
        """A task's rows in the order of one of its passes; the last one that was asked for is remembered."""
        order = permutation(self.sizes[task], self.seed, list(self.sizes).index(task) + 1, pass_)
        if task not in self.apart:
            return order
        if (task, pass_) not in self.orders:
            for old in [key for key in self.orders if key[0] == task]:
                del self.orders[old]
            self.orders[task, pass_] = kept_apart(order, self.apart[task], self.batch_size, self.accumulate)
        return self.orders[task, pass_]
