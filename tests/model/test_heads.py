"""Heads and losses against the definitions."""

import pytest
import torch
import torch.nn.functional as F
from conftest import randomized

from mtl.model.heads import DistilBertHead, LinearHead, loss_sum, scores


def test_linear_head() -> None:
    head = randomized(LinearHead(4, 3, 0.5))
    x = torch.randn(2, 4)
    torch.testing.assert_close(head(x), x @ head.classifier.weight.T + head.classifier.bias)
    assert not torch.equal(head.train()(x), head(x))


def test_distilbert_head_step_by_step() -> None:
    head = randomized(DistilBertHead(4, 3))
    x = torch.randn(2, 4)
    inner = (x @ head.pre_classifier.weight.T + head.pre_classifier.bias).clamp(min=0)
    torch.testing.assert_close(head(x), inner @ head.classifier.weight.T + head.classifier.bias)


def test_losses_are_sums_and_counts() -> None:
    logits = torch.randn(3, 4)
    classes, sets = torch.tensor([0, 3, 1]), torch.tensor([[1.0, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]])
    loss, count = loss_sum("single-label", logits, classes)
    torch.testing.assert_close(loss / count, F.cross_entropy(logits, classes))
    loss, count = loss_sum("multi-label", logits, sets)
    assert count == 12
    torch.testing.assert_close(loss / count, F.binary_cross_entropy_with_logits(logits, sets))
    loss, count = loss_sum("regression", logits[:, :1], torch.ones(3, 1))
    torch.testing.assert_close(loss / count, ((logits[:, 0] - 1) ** 2).mean())


@pytest.mark.parametrize("kind", ["single-label", "multi-label", "regression"])
def test_scores(kind: str) -> None:
    logits = torch.tensor([[0.0, 2.0]])
    expected = {"single-label": [0.1192, 0.8808], "multi-label": [0.5, 0.8808], "regression": [0.0, 2.0]}
    torch.testing.assert_close(scores(kind, logits), torch.tensor([expected[kind]]), atol=1e-4, rtol=0)
