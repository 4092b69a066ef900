"""Batches by number of tokens, longest texts first.

Work is proportional to tokens and not to texts, so tokens are what a batch is measured in. Longest first
makes equal lengths neighbours, lets the largest batch fail before all others where memory is short, and ends
with small ones, which even out what parallel workers do.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def longest_first(lengths: Sequence[int]) -> list[int]:
    """Indices by falling length; equal lengths keep their order."""
    return sorted(range(len(lengths)), key=lambda i: -lengths[i])


def in_order(parts: Sequence[Tensor], order: Sequence[int], lengths: Sequence[int] | None = None) -> Tensor:
    """What was computed of rows in another order, in their own: (rows, ...).

    ``order`` are the rows' numbers as they were computed. Where ``lengths`` gives the tokens of each row, parts are
    (tokens, ...), and so is this.
    """
    if len(order) == 1:
        return parts[0].clone()  # outside inference mode, so that a caller may train on it
    outputs, back = torch.cat([*parts]), torch.tensor(order, device="cpu").argsort()
    if lengths is None:
        return outputs[back.to(outputs.device)]  # the one wait for a GPU
    pieces = outputs.split([lengths[i] for i in order])
    return torch.cat([pieces[i] for i in back.tolist()])


def by_token_budget(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices in batches of at most ``budget`` tokens, longest first; a longer text gets its own batch."""
    batches: list[list[int]] = []
    room = 0
    for i in longest_first(lengths):
        if lengths[i] > room:
            batches.append([])
            room = budget
        batches[-1].append(i)
        room -= lengths[i]
    return batches


def in_shares(lengths: Sequence[int], count: int) -> list[list[int]]:
    """Indices in at most ``count`` batches of about as many tokens each, longest first."""
    batches: list[list[int]] = [[] for _ in range(count)]
    total, before = sum(lengths), 0
    for i in longest_first(lengths):
        middle = before + lengths[i] / 2  # of the text, among all tokens
        batches[min(count - 1, int(middle * count / total))].append(i)
        before += lengths[i]
    return [batch for batch in batches if batch]
