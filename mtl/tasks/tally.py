"""What was found of each label, row by row, and the metrics of rows that are drawn again and again (the bootstrap)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Weights = NDArray[np.int64]  # how often each row counts
Sampled = Callable[[Weights], dict[str, float]]  # the metrics of rows that count so often
RIGHT, FOUND, GIVEN = range(3)
BINS = 15


@dataclasses.dataclass(frozen=True)
class Tally:
    """For each label how often it was found rightly, found, and given, as single events that are counted by row.

    rows: The row of each event, (events,).
    columns: Its label's number times 3, plus ``RIGHT``, ``FOUND`` or ``GIVEN``, (events,).
    count, width: How many rows and labels there are.
    """

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    count: int
    width: int

    @classmethod
    def of(cls, found: NDArray[Any], given: NDArray[Any]) -> Tally:
        """Of labels that rows have, (rows, labels) bool both."""
        events = [np.nonzero(flags) for flags in (found & given, found, given)]
        rows = np.concatenate([row for row, _ in events])
        columns = np.concatenate([label * 3 + kind for kind, (_, label) in enumerate(events)])
        return cls(rows, columns, *found.shape)

    def sums(self, weights: Weights | None = None) -> NDArray[np.float64]:
        """(labels, 3), of rows that count so often; by default once each."""
        known = None if weights is None else weights[self.rows]
        counts = np.bincount(self.columns, known, minlength=3 * self.width)
        return counts.astype(np.float64).reshape(-1, 3)


def rates(counts: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Precision, recall and F1 of counts (..., 3): (...). What divides by 0 is 0."""
    right, found, given = np.moveaxis(counts, -1, 0)

    def share(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)

    return {"precision": share(right, found), "recall": share(right, given), "f1": share(2 * right, found + given)}


def by_label(labels: Sequence[str], counts: NDArray[np.float64]) -> dict[str, float]:
    """Precision, recall, F1 and support of each label, as ``label.f1``, of counts (labels, 3)."""
    columns = {**rates(counts), "support": counts[:, GIVEN]}
    return {f"{label}.{name}": float(x[i]) for i, label in enumerate(labels) for name, x in columns.items()}


def calibration_error(confidence: NDArray[Any], right: NDArray[Any]) -> float:
    """The expected calibration error (Guo et al. 2017, arXiv 1706.04599): how far shares and confidence are apart.

    Both (n,), from 0 to 1. In each of 15 bins of equal width it is the distance of the mean of ``right`` from that of
    ``confidence``; the bins count by what is in them. 0 of nothing.
    """
    bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    apart = np.bincount(bins, right.astype(np.float64) - confidence, minlength=BINS)
    return float(np.abs(apart).sum() / max(1, len(confidence)))


def draws(rows: int, count: int, seed: int) -> Iterator[Weights]:
    """How often each of ``rows`` rows is drawn, ``count`` times, where as many as there are are drawn, evenly."""
    generator = np.random.default_rng(seed)
    for _ in range(count):
        yield np.bincount(generator.integers(rows, size=rows), minlength=rows)


def intervals(
    sampled: Sequence[Sampled], rows: int, count: int = 1000, seed: int = 0, share: float = 0.95
) -> dict[str, tuple[float, float, float]]:
    """Each metric with the interval in which the bootstrap has it (Efron 1979): value, low, high.

    The rows are drawn ``count`` times, and the interval is that of the percentiles which leave out half of
    ``1 - share`` on either side. Of two models it is that of the first's metrics less the second's, on the same draws.
    """

    def of(weights: Weights) -> Mapping[str, float]:
        first, *second = (each(weights) for each in sampled)
        return {name: x - second[0][name] for name, x in first.items()} if second else first

    whole = of(np.ones(rows, np.int64))
    found = [[*of(weights).values()] for weights in draws(rows, count, seed)]
    low, high = np.quantile(found, [(1 - share) / 2, (1 + share) / 2], axis=0)
    return {name: (x, float(low[i]), float(high[i])) for i, (name, x) in enumerate(whole.items())}
