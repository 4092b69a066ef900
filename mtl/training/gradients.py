"""The gradients of a window of micro-batches of several tasks.

Each task's loss is its mean over all labels that the window has of it: every piece of the window adds its summed loss
divided by that count, so that the gradient equals that of one large batch, whatever the sizes of the pieces. So it is
where a loss compares all rows of the window with each other.

A window is computed in shares, side by side, each on a thread of its own. Their gradients are added up in a fixed
order, and what a piece drops follows from the seed and its place in the window alone: the outcome depends on the
number of shares, but not on which thread was the quicker one.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mtl.encode.batching import by_token_budget
from mtl.tasks.examples import Examples
from mtl.tasks.spec import TaskSpec
from mtl.training.distributed import ALONE, Processes
from mtl.training.optim import LossWeights
from mtl.training.schedule import MicroBatch, one_seed


@dataclasses.dataclass(frozen=True)
class Piece:
    """Rows of one task that are computed at once, their targets, and what its dropout is drawn from."""

    micro: MicroBatch
    targets: Tensor
    seed: int


Share = Sequence[Piece]
Outputs = Callable[[Piece], Tensor]  # in float32
Gradients = list[Tensor | None]  # for each parameter
Map = Callable[..., Iterable[Any]]  # as the builtin, perhaps side by side


def shares(
    window: Sequence[MicroBatch], data: Mapping[str, Examples], count: int, tokens: int = 0, seeds: Sequence[int] = ()
) -> list[list[Piece]]:
    """A window in ``count`` parts of nearly equal work: the rows of each micro-batch by length, dealt out in turn.

    The pieces that are computed at once, one of each share, have at most ``tokens`` tokens together, or a row each;
    where that is 0, a piece is a share's part of a micro-batch.
    """
    budget = max(1, tokens // count)
    found: list[list[Piece]] = [[] for _ in range(count)]
    for nth, micro in enumerate(window):
        examples = data[micro.task]
        rows = sorted(micro.rows, key=examples.tokens, reverse=True)
        for i, share in enumerate(found):
            own = rows[(i + nth) % count :: count]  # the longest goes to another share each time
            budgets = by_token_budget([examples.tokens(row) for row in own], budget) if tokens else [range(len(own))]
            for j, part in enumerate(budgets if own else []):
                piece = MicroBatch(micro.task, tuple(own[k] for k in part))
                share.append(Piece(piece, examples.targets[list(piece.rows)], one_seed(*seeds, nth, i, j)))
    return found


def backward(
    divided: Sequence[Share],
    tasks: Mapping[str, TaskSpec],
    forward: Outputs,
    weights: LossWeights,
    parameters: Sequence[Tensor],
    trained: Mapping[str, Sequence[int]] | None = None,
    mapped: Map = map,
    ranks: Processes = ALONE,
) -> dict[str, float]:
    """Set a window's gradients as those of the parameters, and give each task's mean loss over it.

    A parameter that nothing depends on has None, as torch's optimisers want it. ``trained`` says by their places which
    parameters each task trains, all by default. ``divided`` are the shares of all processes; gradients and losses are
    this process's part of the sums.
    """
    places = trained or dict.fromkeys(tasks, range(len(parameters)))
    mine = ranks.block(len(divided))
    joint = {name for name, task in tasks.items() if task.handler.whole_window}
    firsts: list[list[Tensor | None]] = [[None] * len(share) for share in divided]
    firsts[mine.start : mine.stop] = mapped(lambda i: list(vectors_of(divided[i], joint, forward)), mine)
    losses, handed, of_losses = joint_losses(divided, joint, firsts, tasks, weights, parameters, ranks)
    labels: Counter[str] = Counter()
    for piece in (piece for share in divided for piece in share if piece.micro.task not in joint):
        labels[piece.micro.task] += piece.targets.numel()

    def of_share(number: int) -> tuple[dict[str, float], Gradients]:
        sums: defaultdict[str, float] = defaultdict(float)
        total: Gradients = [None] * len(parameters)
        for piece, first, gradient in zip(divided[number], firsts[number], handed[number], strict=True):
            name = piece.micro.task
            outputs = forward(piece) if first is None or not first.requires_grad else first
            if gradient is None:
                loss, count = tasks[name].criterion(outputs, piece.targets.to(outputs.device))
                sums[name] += float(loss.detach()) / labels[name]
                outputs = weights(name, loss / labels[name], count / labels[name])
            # by no name of their own, which would keep them while the next piece computes
            total = added(total, gradients_at(places[name], parameters, outputs, gradient))
        return sums, total

    results = list(mapped(of_share, mine))
    for sums, _ in results:
        for name, loss in sums.items():
            losses[name] = losses.get(name, 0.0) + loss
    gradients = [of_losses, *(total for _, total in results)]

    def set_gradient(i: int) -> None:
        (parameters[i].grad,) = added([None], *([total[i]] for total in gradients))

    list(mapped(set_gradient, range(len(parameters))))
    drawn = {piece.micro.task for share in divided for piece in share}
    return {name: losses.get(name, 0.0) for name in tasks if name in drawn}


def gradients_at(
    places: Sequence[int], parameters: Sequence[Tensor], outputs: Tensor, gradient: Tensor | None
) -> Gradients:
    """The gradients of the parameters at these places, and None for the others."""
    found: Gradients = [None] * len(parameters)
    wanted = [parameters[i] for i in places]
    parts = torch.autograd.grad(outputs, wanted, gradient, allow_unused=True) if wanted else ()
    for i, part in zip(places, parts, strict=True):
        found[i] = part
    return found


def added(total: Sequence[Tensor | None], *others: Sequence[Tensor | None]) -> Gradients:
    """Sums of gradients, made in place where there is something to add to; None where there are none."""
    sums = list(total)
    for other in others:
        for i, gradient in enumerate(other):
            before = sums[i]
            if gradient is not None:
                sums[i] = gradient if before is None else before.add_(gradient)
    return sums


# Losses that compare all rows of a window with each other (Gao et al. 2021, arXiv 2101.06983): every piece is embedded
# without a graph; the loss gives its gradient with respect to all vectors; then each piece is embedded again, under
# the same dropout, to hand its part of that on to the parameters.


def vectors_of(share: Share, joint: set[str], forward: Outputs) -> Iterator[Tensor | None]:
    """The vectors of each piece of such a task, None for the others; with a graph where a share has one piece of it."""
    pieces = Counter(piece.micro.task for piece in share)
    for piece in share:
        if piece.micro.task not in joint:
            yield None
            continue
        with torch.set_grad_enabled(pieces[piece.micro.task] == 1):  # it needs no second time
            yield forward(piece)


def joint_losses(
    divided: Sequence[Share],
    joint: set[str],
    firsts: Sequence[Sequence[Tensor | None]],
    tasks: Mapping[str, TaskSpec],
    weights: LossWeights,
    parameters: Sequence[Tensor],
    ranks: Processes,
) -> tuple[dict[str, float], list[list[Tensor | None]], Gradients]:
    """The mean losses of such tasks, their gradients with respect to each piece's vectors, and the losses' own.

    Each process finds them; the losses, and their own gradients, are the first one's to add to the sums.
    """
    losses = {}
    handed: list[list[Tensor | None]] = [[None] * len(share) for share in divided]
    own: Gradients = [None] * len(parameters)
    places: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for i, share in enumerate(divided):
        for j, piece in enumerate(share):
            if piece.micro.task in joint:
                places[piece.micro.task].append((i, j))
    for name, at in places.items():
        sizes = [len(divided[i][j].micro.rows) for i, j in at]
        parts = [None if (first := firsts[i][j]) is None else first.detach() for i, j in at]
        vectors = ranks.gathered(parts, sizes, parameters[0].device).requires_grad_()
        targets = torch.cat([divided[i][j].targets for i, j in at]).to(vectors.device)
        loss, count = tasks[name].criterion(vectors, targets)
        losses[name] = float(loss.detach()) / count if ranks.leads else 0.0
        weighted = weights(name, loss / count, 1.0)
        gradient, *of_parameters = torch.autograd.grad(weighted, [vectors, *parameters], allow_unused=True)
        own = added(own, of_parameters if ranks.leads else [])
        for (i, j), part in zip(at, gradient.split(sizes), strict=True):
            handed[i][j] = part
    return losses, handed, own
