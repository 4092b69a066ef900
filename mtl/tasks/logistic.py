"""Logistic regression, fitted to convergence: the head of a classifier over vectors that stay as they are."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mtl.kernels.threads import computing_with

STEPS, TOLERANCE = 1000, 1e-7


def fit(vectors: Tensor, targets: Tensor, classes: int, strength: float = 1.0) -> tuple[Tensor, Tensor]:
    """The weight (classes, dim) and bias (classes,), float32, of vectors (rows, dim) and their targets.

    They minimize ``strength`` times the summed loss plus half the weight's squares, as scikit-learn's
    LogisticRegression with ``C=strength``, on vectors that are scaled by one number to a mean square of 1. Targets are
    classes (rows,), or a 0 or 1 for each class (rows, classes). It is computed in float64, by one thread: the bits do
    not depend on how many there are.
    """
    with computing_with(1), torch.inference_mode(False), torch.enable_grad():
        x = vectors.detach().cpu().double().clone()
        scale = float(x.square().sum(dim=1).mean().sqrt()) or 1.0
        x, y = x / scale, targets.cpu()
        weight = torch.zeros(classes, x.shape[1], dtype=torch.float64, requires_grad=True)
        bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.LBFGS(
            [weight, bias], max_iter=STEPS, max_eval=2 * STEPS, tolerance_grad=TOLERANCE, tolerance_change=1e-12,
            history_size=20, line_search_fn="strong_wolfe",
        )  # fmt: skip

        def loss() -> Tensor:
            optimiser.zero_grad()
            logits = F.linear(x, weight, bias)
            if y.is_floating_point():
                of_rows = F.binary_cross_entropy_with_logits(logits, y.double(), reduction="sum")
            else:
                of_rows = F.cross_entropy(logits, y, reduction="sum")
            found = strength * of_rows + weight.square().sum() / 2
            found.backward()
            return found

        optimiser.step(loss)
    return (weight.detach() / scale).float(), bias.detach().float()
