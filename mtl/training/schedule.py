"""Which task and which rows make up step s: a pure function of the seed and the step.

An epoch is a number of micro-batches, one task each. Every task goes through its rows in passes, each in an
order of its own, whose last micro-batch may be ragged. Micro-batches of all tasks are mixed, then taken
``accumulate`` at a time: a window, which is a step. The last window of an epoch may be short.

Nothing is stored between steps, so a run that goes on at step s sees what it would have seen.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from functools import cached_property, lru_cache

import torch


@dataclasses.dataclass(frozen=True)
class MicroBatch:
    """Rows of one task's training data."""

    task: str
    rows: tuple[int, ...]


@lru_cache(maxsize=16)
def permutation(size: int, *seeds: int) -> tuple[int, ...]:
    """An order of range(size) that the seeds decide."""
    mixed = 0
    for seed in seeds:  # a polynomial in a large odd number keeps (1, 2) apart from (2, 1)
        mixed = (mixed * 6364136223846793005 + seed + 1442695040888963407) % 2**63
    generator = torch.Generator().manual_seed(mixed)
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


@dataclasses.dataclass(frozen=True)
class Schedule:
    """``sizes`` are the tasks' numbers of rows; ``batch_size`` rows make a micro-batch."""

    sizes: Mapping[str, int]
    batch_size: int
    accumulate: int = 1
    sampling: str = "proportional"
    temperature: float = 2.0
    seed: int = 0

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

    def window(self, step: int) -> list[MicroBatch]:
        """The micro-batches of a step, counted from 0."""
        epoch, place = divmod(step, self.steps_per_epoch)
        mixed = mix(tuple(self.counts.items()), self.seed, epoch)
        start = place * self.accumulate
        return [
            self.micro_batch(task, epoch * self.counts[task] + nth)
            for task, nth in mixed[start : start + self.accumulate]
        ]

    def micro_batch(self, task: str, nth: int) -> MicroBatch:
        """The nth micro-batch of a task, counted over all its passes."""
        number = list(self.sizes).index(task) + 1
        pass_, place = divmod(nth, self.passes[task])
        order = permutation(self.sizes[task], self.seed, number, pass_)
        return MicroBatch(task, order[place * self.batch_size : (place + 1) * self.batch_size])
