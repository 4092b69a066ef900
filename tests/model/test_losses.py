"""Losses against PyTorch's means, and those of pairs worked by hand."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from mtl.model import losses

# Cosines 0.6, 0 and 1
VECTORS = torch.tensor([[[1.0, 0], [3, 4]], [[0, 2], [5, 0]], [[1, 1], [2, 2]]])


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


def test_cosines() -> None:
    torch.testing.assert_close(losses.cosines(VECTORS), torch.tensor([0.6, 0.0, 1.0]))


def test_cosent_by_hand() -> None:
    """Scores 1, 2, 2: only the first against the two others is compared; equal scores are not."""
    targets = torch.tensor([[0.0], [1.0], [1.0]])
    loss, count = losses.similarity(VECTORS, targets, "cosent", 5.0)
    assert count == 1
    assert loss.item() == pytest.approx(math.log(1 + math.exp(5 * 0.6) + math.exp(5 * (0.6 - 1))), abs=1e-5)


def test_cosent_of_equal_scores_is_nothing() -> None:
    loss, _ = losses.similarity(VECTORS, torch.ones(3, 1), "cosent", 20.0)
    assert loss.item() == 0


def test_contrastive_by_hand() -> None:
    """Two rows of anchor, positive and hard negative, all of them different."""
    vectors = torch.tensor([[[1.0, 0], [0.6, 0.8], [0, 1]], [[0, 1], [0.8, 0.6], [1, 0]]])
    loss, count = losses.contrastive(vectors, torch.arange(6).view(2, 3), 2.0, False)
    scores = [[0.6, 0.8, 0, 1], [0.8, 0.6, 1, 0]]  # positives, then hard negatives

    def cross_entropy(row: list[float], right: int) -> float:
        return math.log(sum(math.exp(2 * score) for score in row)) - 2 * row[right]

    forward = cross_entropy(scores[0], 0) + cross_entropy(scores[1], 1)
    assert count == 2
    assert loss.item() == pytest.approx(forward, abs=1e-5)
    loss, _ = losses.contrastive(vectors, torch.arange(6).view(2, 3), 2.0, True)
    backward = cross_entropy([0.6, 0.8], 0) + cross_entropy([0.8, 0.6], 1)
    assert loss.item() == pytest.approx((forward + backward) / 2, abs=1e-5)


def test_what_equals_anchor_or_positive_is_no_negative() -> None:
    """Row 1 has row 0's positive, row 2's positive is row 0's anchor: nothing is left that row 0 must differ from."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(3, 2, 4, generator=generator)
    numbers = torch.tensor([[0, 1], [2, 1], [3, 0]])
    loss, _ = losses.contrastive(vectors, numbers, 20.0, False)
    units = torch.nn.functional.normalize(vectors, dim=-1)
    scores = 20 * units[:, 0] @ units[:, 1].T
    expected = 0 + (scores[1, 1:].logsumexp(0) - scores[1, 1]) + (scores[2].logsumexp(0) - scores[2, 2])
    torch.testing.assert_close(loss, expected)


def test_squared_error_by_hand() -> None:
    loss, count = losses.similarity(VECTORS, torch.tensor([[0.5], [0.0], [0.0]]), "squared", 20.0)
    assert count == 3
    assert loss.item() == pytest.approx(0.01 + 1, abs=1e-6)


def test_matryoshka_by_hand() -> None:
    """The first dimension alone has cosines of 1, 0 (a vector of nothing) and 1."""
    criterion = partial(losses.similarity, loss="squared", scale=1.0)
    targets = torch.tensor([[0.5], [0.0], [0.0]])

    def cut(x: torch.Tensor, other: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        return x[..., :size], other

    loss, count = losses.matryoshka(criterion, cut, (2, 1), (1.0, 0.25), VECTORS, targets)
    assert count == 3
    assert loss.item() == pytest.approx(1.01 + 0.25 * (0.25 + 1), abs=1e-6)


def test_a_teacher_is_cut_with_its_student() -> None:
    """The mean over all labels is the sum of the sizes' own means, whether or not a size is the whole."""
    student, teacher = torch.tensor([[3.0, 1.0], [0.0, 0.0]]), torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    criterion = partial(losses.distillation, loss="squared")

    def cut(x: torch.Tensor, other: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        return x[:, :size], other[:, :size]

    loss, count = losses.matryoshka(criterion, cut, (2, 1), (1.0, 0.5), student, teacher)
    assert count == 4
    assert loss / count == (4 + 1 + 9 + 0) / 4 + 0.5 * (4 + 9) / 2
    loss, count = losses.matryoshka(criterion, cut, (1,), (1.0,), student, teacher)
    assert (loss / count, count) == ((4 + 9) / 2, 4)
