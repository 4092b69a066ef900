"""Heads against the definitions."""

import torch
from conftest import randomized

from mtl.model.heads import HiddenHead, LinearHead


def test_linear_head() -> None:
    head = randomized(LinearHead(4, 3, 0.5))
    x = torch.randn(2, 4)
    torch.testing.assert_close(head(x), x @ head.classifier.weight.T + head.classifier.bias)
    assert not torch.equal(head.train()(x), head(x))


def test_distilbert_head_step_by_step() -> None:
    head = randomized(HiddenHead(4, 3))
    x = torch.randn(2, 4)
    inner = (x @ head.pre_classifier.weight.T + head.pre_classifier.bias).clamp(min=0)
    torch.testing.assert_close(head(x), inner @ head.classifier.weight.T + head.classifier.bias)
