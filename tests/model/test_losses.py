"""Losses against PyTorch's means."""

import torch
import torch.nn.functional as F

from mtl.model import losses


def test_losses_are_sums_and_counts() -> None:
    logits = torch.randn(3, 4)
    classes, sets = torch.tensor([0, 3, 1]), torch.tensor([[1.0, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]])
    loss, count = losses.cross_entropy(logits, classes)
    assert count == 3
    torch.testing.assert_close(loss / count, F.cross_entropy(logits, classes))
    loss, count = losses.binary_cross_entropy(logits, sets)
    assert count == 12
    torch.testing.assert_close(loss / count, F.binary_cross_entropy_with_logits(logits, sets))
    loss, count = losses.squared_error(logits[:, :1], torch.ones(3, 1))
    assert count == 3
    torch.testing.assert_close(loss / count, ((logits[:, 0] - 1) ** 2).mean())
