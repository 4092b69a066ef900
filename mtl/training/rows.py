"""AdamW's step for a table of which a window sees few rows, as the word embeddings are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mtl.training.optim import adamw_step

SPARE = 0.25  # of the rows that have moments: so many more have room, before all are copied to where there is more


class Rows:
    """A table's rows that ever had a gradient. The others have moments of 0, which are not kept, and only decay.

    The outcome is AdamW's with the gradient of all rows, to the bit where a row's values fill whole registers: torch's
    kernel rounds the last few values of a tensor in another way. ``rows`` are in the order in which they were met;
    ``exp_avg`` and ``exp_avg_sq``, (rows, dim), belong to them.
    """

    def __init__(self, table: Tensor) -> None:
        self.table = table
        self.rows = torch.empty(0, dtype=torch.int64, device=table.device)
        self.place = torch.full((len(table),), -1, dtype=torch.int64, device=table.device)  # of a row, or -1
        self.held = [torch.zeros_like(table[:0]) for _ in range(2)]  # the moments, with some room
        self.steps = torch.zeros((), dtype=torch.float32, device=table.device)

    def state(self) -> dict[str, Tensor]:
        """What an optimiser would keep of the table, and the rows that it is of; nothing before the first step."""
        exp_avg, exp_avg_sq = (x[: len(self.rows)] for x in self.held)
        found = {"step": self.steps, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq, "rows": self.rows}
        return found if len(self.rows) else {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take what ``state`` gave; without ``rows`` it is of all."""
        every = torch.arange(len(self.table), device=self.table.device)
        self.rows, self.steps = state.get("rows", every), state["step"]
        self.held = [state["exp_avg"], state["exp_avg_sq"]]
        self.place.fill_(-1)[self.rows] = torch.arange(len(self.rows), device=self.table.device)

    def meet(self, rows: Tensor) -> None:
        """Make room for those of the rows that were not met before."""
        new, count = rows[self.place[rows] < 0], len(self.rows)
        self.rows = torch.cat([self.rows, new])
        self.place[new] = torch.arange(count, len(self.rows), device=self.table.device)
        if len(self.rows) > len(self.held[0]):
            room = min(len(self.table), int(len(self.rows) * (1 + SPARE)))
            self.held = [torch.cat([x[:count], x.new_zeros(room - count, x.shape[1])]) for x in self.held]

    @torch.no_grad()
    def step(self, rows: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        """A step with the gradient (rows, dim) of some rows, by the settings of an optimiser's group."""
        self.meet(rows)
        count = len(self.rows)
        full = gradient.new_zeros(count, gradient.shape[1]).index_copy_(0, self.place[rows], gradient)
        own, (exp_avg, exp_avg_sq) = self.table[self.rows], (x[:count] for x in self.held)
        if group["weight_decay"] and count < len(self.table):
            self.table.mul_(1 - group["lr"] * group["weight_decay"])
        adamw_step([own], [full], [{"step": self.steps, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}], group)
        self.table.index_copy_(0, self.rows, own)
