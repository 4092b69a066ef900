"""A share of labelled rows, held out: as much of each label, and of equal texts all rows or none.

What is taken follows from a seed and the rows' texts alone: not from their order, nor from what files they are in.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence


def shares_of(
    texts: Sequence[Sequence[str]], strata: Sequence[str], shares: Mapping[str, float], seed: int
) -> dict[str, list[int]]:
    """The rows of each share, rising; no row is in two.

    Args:
        texts: Each row's texts. Rows that have one in common, directly or through others, stay together.
        strata: What each row counts as, and a group as most of its rows; of each stratum, the share is taken as nearly
            as whole groups allow, and what then is missing of any.
        shares: By name, above 0 and all together below 1.
        seed: Another one takes other rows.
    """
    groups = together(texts)
    keys = [min(digest(seed, text) for i in group for text in texts[i]) for group in groups]
    kind_of = [Counter(sorted(strata[i] for i in group)).most_common(1)[0][0] for group in groups]
    by_row = [kind for group, kind in zip(groups, kind_of, strict=True) for _ in group]
    order = sorted(range(len(groups)), key=keys.__getitem__)
    found: dict[str, list[int]] = {}
    taken: set[int] = set()
    for name, share in shares.items():
        left, missing = quotas(by_row, share, seed), round(share * len(strata))
        rows = found[name] = []
        for of_stratum in (True, False):
            for number in order:
                group, stratum = groups[number], kind_of[number]
                if number not in taken and len(group) <= (left[stratum] if of_stratum else missing):
                    left[stratum] -= len(group)
                    missing -= len(group)
                    taken.add(number)
                    rows += group
        rows.sort()
    return found


def digest(seed: int, text: str) -> bytes:
    """A number that stands for a text under a seed."""
    return hashlib.sha256(json.dumps([seed, text]).encode()).digest()


def together(texts: Sequence[Sequence[str]]) -> list[list[int]]:
    """The rows in groups: those that have a text in common, directly or through others."""
    leader: dict[str, str] = {}

    def first(text: str) -> str:
        while (above := leader.setdefault(text, text)) != text:
            leader[text] = leader[above]
            text = above
        return text

    for row in texts:
        for text in row[1:]:
            leader[first(text)] = first(row[0])
    groups: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(texts):
        groups[first(row[0])].append(i)
    return [*groups.values()]


def quotas(strata: Sequence[str], share: float, seed: int) -> dict[str, int]:
    """How many rows of each stratum make up a share of all: rounded down, and what is then missing where most was lost.

    Strata of which nothing would be left come last. Of equal remainders those of the seed's choice come first, so that
    of labels with few rows not always the same are.
    """
    sizes = Counter(strata)
    found = {stratum: math.floor(share * size) for stratum, size in sizes.items()}

    def rank(each: str) -> tuple[bool, float, bytes]:
        return found[each] + 1 >= sizes[each], found[each] - share * sizes[each], digest(seed, each)

    lost = sorted(sizes, key=rank)
    for stratum in lost[: max(0, round(share * len(strata)) - sum(found.values()))]:
        found[stratum] += 1
    return found


def levels(numbers: Sequence[float], count: int = 10) -> list[str]:
    """Strata of numbers: the tenth in which each is, by rank; equal ones are in one."""
    ranks = {number: rank for rank, number in reversed([*enumerate(sorted(numbers))])}
    return [f"{ranks[number] * count // len(numbers):03}" for number in numbers]
