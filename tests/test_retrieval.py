"""Exact search and ranking metrics, against what was worked by hand."""

import math

import pytest
import torch

from mtl import retrieval
from mtl.tasks.spec import TaskSpec


def test_metrics_by_hand() -> None:
    """Query 0: relevances 0, 3, 0, 1 of an ideal 3, 2, 1; query 1: nothing found but at rank 11."""
    rankings = [[9, 0, 8, 2], [*range(10, 20), 5]]
    relevant = [{0: 3.0, 1: 2.0, 2: 1.0, 8: 0.0}, {5: 1.0}]
    found = retrieval.ranking_metrics(rankings, relevant)
    ndcg = (3 / math.log2(3) + 1 / math.log2(5)) / (3 + 2 / math.log2(3) + 1 / 2)
    expected = {"ndcg@10": ndcg / 2, "mrr@10": 1 / 4, "recall@10": 1 / 3, "recall@100": (2 / 3 + 1) / 2}
    assert found == pytest.approx(expected)
    assert found.keys() == retrieval.METRICS.keys()


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    queries, corpus = torch.randn(7, 5, generator=generator), torch.randn(23, 5, generator=generator)
    corpus[20] = corpus[3]  # equal scores: the first comes first
    cosines = torch.nn.functional.cosine_similarity(queries[:, None], corpus[None], dim=2)
    expected = cosines.sort(dim=1, descending=True, stable=True).indices[:, :9].tolist()
    assert retrieval.nearest(queries, [corpus], 9) == expected
    monkeypatch.setattr(retrieval, "BLOCK", 4)
    assert retrieval.nearest(queries, corpus.split(5), 9) == expected
    assert [sorted(places) for places in retrieval.nearest(queries, corpus.split(9), 99)] == [list(range(23))] * 7


def test_rows_of_pairs_as_a_search() -> None:
    """Anchors 0 (positives 1, 2) and 3 (positive 4); hard negatives 5 and 3, which does not find itself."""
    vectors = {0: [1.0, 0], 1: [0.9, 0.1], 2: [0.0, 1], 3: [0.0, -1], 4: [0.1, -1], 5: [0.8, 0.2]}
    numbers = torch.tensor([[0, 1, 5], [0, 2, 3], [3, 4, 5]])
    rows = torch.tensor([[vectors[number] for number in row] for row in numbers.tolist()])
    found = TaskSpec("t", kind="contrastive", text_field=("a", "b")).handler.measure(
        rows, numbers
    )  # of 0: 1, 5, 4, 2, 3, where 4 and 3 are near 0
    ndcg = (1 + 1 / math.log2(5)) / (1 + 1 / math.log2(3))
    assert found == pytest.approx({"ndcg@10": (ndcg + 1) / 2, "mrr@10": 1.0, "recall@10": 1.0, "recall@100": 1.0})
