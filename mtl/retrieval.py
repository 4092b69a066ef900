"""Exact search, and how good a ranking is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from mtl.search import Similarity, scores

BLOCK = 2048  # vectors of either side that are compared at once
DEPTH = 100  # results of a query that the metrics look at
METRICS = {"ndcg@10": 1, "mrr@10": 1, "recall@10": 1, "recall@100": 1}

Relevance = Mapping[int, float]  # a document's place, and how relevant it is


def nearest(queries: Tensor, corpus: Iterable[Tensor], k: int, measure: Similarity = "cosine") -> list[list[int]]:
    """For each query the places of the k most similar vectors, best first; of equal ones, the first.

    ``corpus`` comes in blocks (any number, dim), none of which is needed any more once the next one comes.
    """
    groups = queries.float().split(BLOCK)
    best = [(group.new_empty(len(group), 0), torch.empty(len(group), 0, dtype=torch.long)) for group in groups]
    start = 0
    for block in corpus:
        places = torch.arange(start, start + len(block))
        found = (scores(group, block.float(), measure) for group in groups)
        best = [merged(*kept, others, places, k) for others, kept in zip(found, best, strict=True)]
        start += len(block)
    return [row for _, places in best for row in places.tolist()]


def merged(found: Tensor, places: Tensor, others: Tensor, new: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of (queries, any) scores and of others, at new places (any,), with where they are."""
    found = torch.cat([found, others], dim=1)
    places = torch.cat([places, new.expand_as(others)], dim=1)
    order = found.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return found.gather(1, order), places.gather(1, order)


def gain(relevances: Sequence[float]) -> float:
    """Discounted cumulative gain of a ranking (Jarvelin and Kekalainen 2002)."""
    return sum(relevance / math.log2(rank + 2) for rank, relevance in enumerate(relevances))


def ranking_metrics(rankings: Sequence[Sequence[int]], relevant: Sequence[Relevance]) -> dict[str, float]:
    """Means over queries; a query's ranking holds places, best first, and what is relevant to it is above 0.

    ndcg@10 is the gain of the first ten by that of the best ten; mrr@10 one by the rank of the first relevant one among
    ten; recall@k the share of the relevant ones that are among the first k.
    """
    sums = dict.fromkeys(METRICS, 0.0)
    for ranking, judged in zip(rankings, relevant, strict=True):
        gains = [judged.get(place, 0.0) for place in ranking]
        ideal = sorted((value for value in judged.values() if value > 0), reverse=True)
        first = next((rank for rank, value in enumerate(gains[:10], 1) if value > 0), None)
        sums["ndcg@10"] += gain(gains[:10]) / gain(ideal[:10])
        sums["mrr@10"] += 1 / first if first else 0.0
        for k in (10, 100):
            sums[f"recall@{k}"] += sum(value > 0 for value in gains[:k]) / len(ideal)
    return {name: total / len(rankings) for name, total in sums.items()}


def search_metrics(
    queries: Tensor, corpus: Iterable[Tensor], relevant: Sequence[Relevance], same: Sequence[int | None],
    measure: Similarity = "cosine",
) -> dict[str, float]:  # fmt: skip
    """Those of exact search. ``same[i]`` is the place of query i itself in the corpus, which does not count."""
    found = nearest(queries, corpus, DEPTH + 1, measure)
    others = [[place for place in places if place != own][:DEPTH] for places, own in zip(found, same, strict=True)]
    return ranking_metrics(others, relevant)
