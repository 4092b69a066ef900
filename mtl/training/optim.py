"""The optimiser of a run, its steps and learning rates, and what the tasks' losses are weighted by."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from mtl.tasks.multitask import MultiTaskModel
from mtl.tasks.spec import TaskSpec
from mtl.training.recipe import Training

PART = 2**20  # values that one call goes over, at least: threads share the parts of a step

Map = Callable[..., Iterable[Any]]  # as the builtin, perhaps side by side


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


def parts_of(tensors: Iterable[Tensor]) -> Iterator[slice]:
    """Neighbours together, of about ``PART`` values; each tensor is whole, so that parts change no bit of it."""
    start = values = 0
    for stop, tensor in enumerate(tensors, 1):
        values += tensor.numel()
        if values >= PART:
            yield slice(start, stop)
            start, values = stop, 0
    if values:
        yield slice(start, None)


@torch.no_grad()
def adamw_step(
    parameters: Sequence[Tensor], gradients: Sequence[Tensor], states: Sequence[dict[str, Tensor]],
    group: dict[str, Any],
) -> None:  # fmt: skip
    """A step of AdamW by the settings of an optimiser's group, and the moments of its states; empty ones begin."""
    for parameter, state in zip(parameters, states, strict=True):
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = (torch.zeros_like(parameter) for _ in range(2))
    exp_avg, exp_avg_sq, steps = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step"))
    beta1, beta2 = group["betas"]
    adamw([*parameters], [*gradients], exp_avg, exp_avg_sq, [], steps, fused=True, amsgrad=False, maximize=False,
          beta1=beta1, beta2=beta2, lr=group["lr"], weight_decay=group["weight_decay"], eps=group["eps"])  # fmt: skip


def clip(gradients: Sequence[Tensor], most: float, mapped: Map = map) -> float:
    """The norm of all gradients together, which are scaled down to ``most`` where that is less and not 0."""
    parts = [gradients[part] for part in parts_of(gradients)]
    norms = [norm for part in mapped(torch._foreach_norm, parts) for norm in part]
    norm = torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())
    if 0 < most < norm:  # otherwise they stay as they are, and a pass over all of them is saved
        factor = most / (norm + 1e-6)  # as torch's clip_grad_norm_
        list(mapped(lambda part: torch._foreach_mul_(part, factor), parts))
    return float(norm)


def rate_factor(step: int, total: int, training: Training) -> float:
    """What full learning rates are multiplied by at a step, counted from 0: linear up, then down as chosen."""
    warmup = math.ceil(training.warmup * total)
    if step < warmup:
        return (step + 1) / warmup
    left = (total - step) / max(1, total - warmup)
    return {"linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2, "constant": 1.0}[training.schedule]
