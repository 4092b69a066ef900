"""Losses of pairs, worked by hand."""

import math

import pytest
import torch

from mtl.model import pair_losses

# Cosines 0.6, 0 and 1
VECTORS = torch.tensor([[[1.0, 0], [3, 4]], [[0, 2], [5, 0]], [[1, 1], [2, 2]]])


def test_cosines() -> None:
    torch.testing.assert_close(pair_losses.cosines(VECTORS), torch.tensor([0.6, 0.0, 1.0]))


def test_cosent_by_hand() -> None:
    """Scores 1, 2, 2: only the first against the two others is compared; equal scores are not."""
    targets = torch.tensor([[0.0], [1.0], [1.0]])
    loss, count = pair_losses.similarity(VECTORS, targets, "cosent", 5.0)
    assert count == 1
    assert loss.item() == pytest.approx(math.log(1 + math.exp(5 * 0.6) + math.exp(5 * (0.6 - 1))), abs=1e-5)


def test_cosent_of_equal_scores_is_nothing() -> None:
    loss, _ = pair_losses.similarity(VECTORS, torch.ones(3, 1), "cosent", 20.0)
    assert loss.item() == 0


def test_squared_error_by_hand() -> None:
    loss, count = pair_losses.similarity(VECTORS, torch.tensor([[0.5], [0.0], [0.0]]), "squared", 20.0)
    assert count == 3
    assert loss.item() == pytest.approx(0.01 + 1, abs=1e-6)
