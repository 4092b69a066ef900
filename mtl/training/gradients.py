"""The gradients of a window of micro-batches of several tasks, and the random state that they draw from.

Each task's loss is its mean over all labels that the window has of it: every micro-batch adds its summed loss divided
by that count, so that the gradient equals that of one large batch, whatever the sizes of the pieces; only one
micro-batch's graph is alive at a time. So it is where a loss compares all rows of the window with each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from mtl.encode.batching import by_token_budget
from mtl.encode.kinds import KINDS
from mtl.encode.multitask import MultiTaskModel
from mtl.training.data import Examples
from mtl.training.optim import LossWeights
from mtl.training.schedule import MicroBatch

Criterion = Callable[[Tensor, Tensor], tuple[Tensor, int]]
Piece = tuple[MicroBatch, Tensor]  # with its targets
Outputs = Callable[[MicroBatch], Tensor]
Weigh = Callable[[Tensor, float], Tensor]  # a loss, and its share of the window's labels


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Where the generators stand that dropout draws from."""
    state = {"cpu": torch.get_rng_state()}
    return state | {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else state


def set_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def pieces(micro: MicroBatch, examples: Examples, tokens: int) -> list[MicroBatch]:
    """A micro-batch in parts of at most so many tokens, or of one row; whole where ``tokens`` is 0."""
    if not tokens:
        return [micro]
    parts = by_token_budget([examples.tokens(row) for row in micro.rows], tokens)
    return [MicroBatch(micro.task, tuple(micro.rows[i] for i in part)) for part in parts]


def backward(
    model: MultiTaskModel,
    window: Sequence[MicroBatch],
    targets: Sequence[Tensor],
    forward: Outputs,
    weights: LossWeights,
) -> dict[str, float]:
    """Add a window's gradients to the parameters, and give each task's mean loss over it."""
    by_task: dict[str, list[Piece]] = {}
    for micro, target in zip(window, targets, strict=True):
        by_task.setdefault(micro.task, []).append((micro, target.to(model.embedder.device)))
    losses = {}
    for name, own in by_task.items():
        task = model.tasks[name]
        add = add_joint if KINDS[task.kind].joint else add_sums
        losses[name] = add(task.criterion, own, forward, partial(weights, name))
    return losses


def add_sums(criterion: Criterion, pieces: Sequence[Piece], forward: Outputs, weigh: Weigh) -> float:
    """The mean loss, and its gradients, of a loss that is a sum over rows: one micro-batch after another."""
    labels = sum(target.numel() for _, target in pieces)
    sums = []
    for micro, target in pieces:
        loss, count = criterion(forward(micro).float(), target)
        weigh(loss / labels, count / labels).backward()
        sums.append(loss.detach())
    return float(torch.stack(sums).sum()) / labels


def add_joint(criterion: Criterion, pieces: Sequence[Piece], forward: Outputs, weigh: Weigh) -> float:
    """As ``add_sums``, of a loss that compares all rows with each other (Gao et al. 2021, arXiv 2101.06983).

    Every micro-batch is embedded without a graph; the loss gives its gradient with respect to all vectors; then each
    micro-batch is embedded again, under the same dropout, to hand its part of that on to the parameters.
    """
    device, alone = pieces[0][1].device, len(pieces) == 1
    states, parts = [], []
    for micro, _ in pieces:
        states.append(random_state(device))
        with torch.set_grad_enabled(alone):  # a single one needs no second time
            parts.append(forward(micro).float())
    vectors = parts[0] if alone else torch.cat(parts).requires_grad_()
    loss, count = criterion(vectors, torch.cat([target for _, target in pieces]))
    weigh(loss / count, 1.0).backward()
    if not alone:
        assert vectors.grad is not None
        for (micro, _), state, gradient in zip(
            pieces, states, vectors.grad.split([len(x) for x in parts]), strict=True
        ):
            set_random_state(state, device)
            forward(micro).float().backward(gradient)
    return float(loss.detach()) / count
