"""Losses and metrics of a user's own, by name; ``mtl.tasks.register`` puts them here, and tasks look here for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Own:
    """A function of a task's outputs and targets, for tasks of these kinds.

    sign: Of a metric, 1 where more is better, else -1.
    """

    function: Callable[[Tensor, Tensor], Tensor | float]
    kinds: Sequence[str]
    sign: int = 1


LOSSES: dict[str, Own] = {}
METRICS: dict[str, Own] = {}


def own_loss(kind: str, name: str | None) -> Own | None:
    """The registered loss of this name for tasks of a kind, if there is one."""
    found = LOSSES.get(name or "")
    return found if found and kind in found.kinds else None


def own_metrics(kind: str) -> dict[str, Own]:
    """The registered metrics of a kind's tasks."""
    return {name: own for name, own in METRICS.items() if kind in own.kinds}
