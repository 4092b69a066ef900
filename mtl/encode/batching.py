"""Token-budget batches: as many texts as fit a number of tokens, longest first.

Work is proportional to tokens and not to texts, so tokens are what a batch is measured in. Longest first
makes equal lengths neighbours, lets the largest batch fail before all others where memory is short, and ends
with small ones, which even out what parallel workers do.
"""

from __future__ import annotations

from collections.abc import Sequence


def longest_first(lengths: Sequence[int]) -> list[int]:
    """Indices by falling length; equal lengths keep their order."""
    return sorted(range(len(lengths)), key=lambda i: -lengths[i])


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
