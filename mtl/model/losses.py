"""A loss per kind of task, each as its sum and the number of labels in it.

Not as a mean: means of micro-batches of different sizes cannot be averaged, sums can be added.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, int]:
    """One class of several: logits (texts, outputs), targets (texts,) int64."""
    return F.cross_entropy(logits, targets, reduction="sum"), targets.numel()


def binary_cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, int]:
    """Any number of classes, each a yes or no: logits and targets (texts, outputs), targets 0 or 1."""
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum"), targets.numel()


def squared_error(values: Tensor, targets: Tensor) -> tuple[Tensor, int]:
    """Values against numbers: both (texts, outputs)."""
    return F.mse_loss(values, targets, reduction="sum"), targets.numel()
