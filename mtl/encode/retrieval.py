"""Exact search, and how good a ranking is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 2048  # vectors of each side that are compared at once
DEPTH = 100  # results of a query that the metrics look at
METRICS = {"ndcg@10": 1, "mrr@10": 1, "recall@10": 1, "recall@100": 1}

Relevance = Mapping[int, float]  # a document's place, and how relevant it is


def nearest(queries: Tensor, corpus: Tensor, k: int) -> list[list[int]]:
    """For each query the places of the k vectors of highest cosine, best first; of equal ones, the first."""
    queries, corpus = (F.normalize(vectors.float(), dim=-1) for vectors in (queries, corpus))
    found: list[list[int]] = []
    for some in queries.split(BLOCK):
        scores, places = some.new_empty(len(some), 0), torch.empty(len(some), 0, dtype=torch.long)
        for start in range(0, len(corpus), BLOCK):
            part = some @ corpus[start : start + BLOCK].T
            scores = torch.cat([scores, part], dim=1)
            places = torch.cat([places, torch.arange(start, start + part.shape[1]).expand_as(part)], dim=1)
            best = scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
            scores, places = scores.gather(1, best), places.gather(1, best)
        found += places.tolist()
    return found


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
    queries: Tensor, corpus: Tensor, relevant: Sequence[Relevance], same: Sequence[int | None]
) -> dict[str, float]:
    """Those of exact search. ``same[i]`` is the place of query i itself in the corpus, which does not count."""
    found = nearest(queries, corpus, DEPTH + 1)
    others = [[place for place in places if place != own][:DEPTH] for places, own in zip(found, same, strict=True)]
    return ranking_metrics(others, relevant)
