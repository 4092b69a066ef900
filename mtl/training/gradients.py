"""The gradients of a window of micro-batches of several tasks.

Each task's loss is its mean over all labels that the window has of it: every piece of the window adds its summed loss
divided by that count, so that the gradient equals that of one large batch, whatever the sizes of the pieces. So it is
where a loss compares all rows of the window with each other.

A window is divided into shares, and these into pieces, by its rows alone. A thread, or a process, computes whole
shares; their gradients are added in a fixed tree, 0 + 1, 2 + 3, then both. So the outcome is the same to the bit on any
number of threads, and of processes that is a power of two. A matrix's gradient is added as soon as it is there, while
autograd goes on to those below it, so that few are in memory at once.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial, reduce
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from mtl.encode.batching import by_token_budget
from mtl.tasks.examples import Examples
from mtl.tasks.spec import TaskSpec
from mtl.training.distributed import ALONE, Processes
from mtl.training.optim import LossWeights, Map
from mtl.training.schedule import MicroBatch, one_seed

SHARE_TOKENS = 128  # of a share at least: below it, making and adding up its gradients costs more than it saves
TOKEN_BYTES = 3 * 2**19  # a share has at least a token for so many bytes of gradients, as several are in memory at once
FEW_SHARES = 4  # that many may have fewer tokens for their gradients, so that two threads or four do not stand idle,
FEW_BYTES = 2**29  # where gradients have at most so many bytes
MOST_SHARES = 8  # a power of two
PIECE_TOKENS = {"cpu": 1024, "cuda": 8192}  # of a piece at most, unless one row has more: its graph is in memory


@dataclasses.dataclass(frozen=True)
class Piece:
    """Rows of one task that are computed at once, their targets, and a seed of what each of them drops."""

    task: str
    rows: tuple[int, ...]
    targets: Tensor
    seeds: tuple[int, ...]


T = TypeVar("T")
Share = Sequence[Piece]
Gradients = list[Tensor | None]  # for each parameter


class Found(NamedTuple):
    """Mean losses by task, as far as they were computed here, and the gradients of their weighted sum."""

    losses: dict[str, float]
    gradients: Gradients


def share_count(window: Sequence[MicroBatch], data: Mapping[str, Examples], size: int = 0, device: str = "cpu") -> int:
    """In how many shares, of gradients of ``size`` bytes, a window is computed: a power of two; 1 on a GPU."""
    if device != "cpu":
        return 1
    tokens = sum(data[micro.task].tokens(row) for micro in window for row in micro.rows)
    few = min(FEW_SHARES, tokens // SHARE_TOKENS) if size <= FEW_BYTES else 1
    most = min(MOST_SHARES, max(1, few, tokens // max(SHARE_TOKENS, size // TOKEN_BYTES)))
    return 1 << (most.bit_length() - 1)


def divide(
    window: Sequence[MicroBatch],
    data: Mapping[str, Examples],
    count: int,
    tokens: int = PIECE_TOKENS["cpu"],
    seeds: Sequence[int] = (),
) -> list[list[Piece]]:
    """A window in ``count`` shares of nearly equal work: the rows of each micro-batch by length, dealt out in turn.

    A piece is of one micro-batch and has at most ``tokens`` tokens, or one row. What a row drops follows from the seeds
    and its place in the window.
    """
    found: list[list[Piece]] = [[] for _ in range(count)]
    for nth, micro in enumerate(window):
        examples = data[micro.task]
        lengths = [examples.tokens(row) for row in micro.rows]
        places = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
        for i, share in enumerate(found):
            own = places[(i + nth) % count :: count]  # the longest goes to another share each time
            for part in by_token_budget([lengths[place] for place in own], tokens):
                rows = tuple(micro.rows[own[k]] for k in part)
                drops = tuple(one_seed(*seeds, nth, own[k]) for k in part)
                share.append(Piece(micro.task, rows, examples.targets[list(rows)], drops))
    return found


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is differentiated, and by what.

    forward: The outputs of a piece, in float32; any thread may call it.
    trained: Which of the parameters each task trains, by their indices.
    of_words: Which parameter is the word embeddings, if any. Its gradient is kept as the rows of the window's
        ``words``, in their order; all others are 0.
    """

    tasks: Mapping[str, TaskSpec]
    forward: Callable[[Piece], Tensor]
    weights: LossWeights
    parameters: Sequence[Tensor]
    trained: Mapping[str, Sequence[int]]
    of_words: int | None
    words: Tensor

    def compares(self, piece: Piece) -> bool:
        """Whether the loss of a piece's task compares all rows of a window with each other."""
        return self.tasks[piece.task].handler.whole_window

    def gradients(self, task: str, outputs: Tensor, gradient: Tensor | None = None) -> Gradients:
        """The gradients of the parameters that a task trains, and None for the others."""
        found: Gradients = [None] * len(self.parameters)
        wanted = [self.parameters[i] for i in self.trained[task]]
        parts = torch.autograd.grad(outputs, wanted, gradient, allow_unused=True) if wanted else ()
        for i, part in zip(self.trained[task], parts, strict=True):
            found[i] = self.rows_of_words(part) if i == self.of_words and part is not None else part
        return found

    def rows_of_words(self, gradient: Tensor) -> Tensor:
        if not gradient.is_sparse:
            return gradient[self.words]
        places, values = torch.searchsorted(self.words, gradient._indices()[0]), gradient._values()
        return values.new_zeros(len(self.words), values.shape[1]).index_add_(0, places, values)

    def part(self, i: int) -> Tensor:
        """What of a parameter a gradient is kept of."""
        parameter = self.parameters[i]
        return parameter[: len(self.words)] if i == self.of_words else parameter

    def zeros(self, i: int) -> Tensor:
        """A gradient of a parameter, all 0."""
        return torch.zeros_like(self.part(i))

    def size(self, tasks: Iterable[str]) -> int:
        """The bytes that the gradients of these tasks take."""
        return sum(self.part(i).nbytes for i in {i for task in tasks for i in self.trained[task]})


def plus(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """The sum of two gradients, in place of the first; None is nothing."""
    return other if one is None else one if other is None else one.add_(other)


def added(total: Gradients, other: Gradients) -> Gradients:
    return [plus(one, two) for one, two in zip(total, other, strict=True)]


class Tree(Generic[T]):
    """What shares give of one thing, added two by two until at most two sums are left; the second to be ready adds."""

    def __init__(self, shares: range, plus: Callable[[T, T], T]) -> None:
        self.plus, self.levels = plus, max(0, len(shares).bit_length() - 2)
        self.ready: dict[tuple[int, int], T] = {}  # by level and number of a node of the tree
        self.lock = threading.Lock()

    def add(self, number: int, value: T) -> None:
        for level in range(self.levels + 1):
            with self.lock:
                if level == self.levels or (level, number ^ 1) not in self.ready:
                    self.ready[level, number] = value
                    return
                other = self.ready.pop((level, number ^ 1))
            value = self.plus(other, value) if number % 2 else self.plus(value, other)
            number //= 2

    @property
    def sums(self) -> list[T]:
        return [self.ready[node] for node in sorted(self.ready, key=lambda node: node[1] << node[0])]


class Part:
    """The gradients of some of a share's pieces, and which of them have gone to their trees already."""

    def __init__(self, number: int, trees: Sequence[Tree[Tensor | None]]) -> None:
        self.number, self.trees = number, trees
        self.total: Gradients = [None] * len(trees)
        self.given: set[int] = set()

    def add(self, gradients: Gradients) -> None:
        self.total = added(self.total, gradients)

    def give(self, i: int, gradient: Tensor) -> None:
        """What the last piece adds to one parameter's goes into its tree."""
        self.given.add(i)
        total, self.total[i] = self.total[i], None
        self.trees[i].add(self.number, plus(total, gradient))


class Early(threading.local):
    """Hands over each matrix's gradient as soon as there is one, in the thread that has set to whom.

    What autograd keeps in its place takes no memory.
    """

    to: Part | None = None

    def hook(self, i: int, gradient: Tensor) -> Tensor | None:
        if self.to is None:
            return None
        self.to.give(i, gradient)
        return gradient.new_zeros(()).expand(gradient.shape)

    @contextmanager
    def hooked(self, objective: Objective) -> Iterator[None]:
        """Within it, the matrices have hooks; autograd gives no other tensor their gradients."""
        matrices = [(i, x) for i, x in enumerate(objective.parameters) if x.ndim == 2 and x.requires_grad]
        handles = [x.register_hook(partial(self.hook, i)) for i, x in matrices if i != objective.of_words]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def handing(self, part: Part | None) -> Iterator[None]:
        self.to = part
        try:
            yield
        finally:
            self.to = None


def summed(
    pieces: Share, labels: Mapping[str, float], objective: Objective, part: Part, early: Early | None
) -> dict[str, float]:
    """The losses of pieces that are sums over their rows; a window has so many ``labels`` of each task."""
    losses: dict[str, float] = defaultdict(float)
    for piece in pieces:
        task, count = piece.task, labels[piece.task] or 1  # a window of texts may have no word
        outputs = objective.forward(piece)
        loss, own = objective.tasks[task].criterion(outputs, piece.targets.to(outputs.device))
        losses[task] += float(loss.detach()) / count
        weighted = objective.weights(task, loss / count, own / count)
        # not bound to a name, which would keep these gradients alive while the next piece is computed
        with early.handing(part) if early and piece is pieces[-1] else nullcontext():
            part.add(objective.gradients(task, weighted))
    return losses


# GradCache (Gao et al. 2021, arXiv 2101.06983), for losses that compare all rows of a window with each other: every
# piece is embedded; the loss gives its gradient with respect to all vectors; each piece hands its part of that on to
# the parameters. Where the graphs of all pieces would take too much memory, the pieces are embedded without, and again
# then, dropping the same.


def joint(
    pieces: Share, vectors: list[Tensor], of_vectors: Mapping[int, Tensor], objective: Objective, part: Part,
    early: Early | None,
) -> None:  # fmt: skip
    """Pieces whose losses have these gradients with respect to their vectors, by the pieces' ids."""
    for piece in pieces:
        known = vectors.pop(0)
        outputs = known if known.requires_grad else objective.forward(piece)
        with early.handing(part) if early and piece is pieces[-1] else nullcontext():
            part.add(objective.gradients(piece.task, outputs, of_vectors[id(piece)]))


def compared(
    shares: Sequence[Share], vectors: Mapping[int, Tensor], objective: Objective, ranks: Processes
) -> tuple[Found, dict[int, Tensor]]:
    """The losses that compare rows, and their gradients with respect to the vectors of each piece, by its id.

    Each process finds these; the losses, and their own parameters' gradients, are the first one's to add to the sums.
    """
    losses: dict[str, float] = {}
    of_vectors: dict[int, Tensor] = {}
    total: Gradients = [None] * len(objective.parameters)
    of_task: dict[str, list[Piece]] = defaultdict(list)
    for piece in (piece for share in shares for piece in share):
        of_task[piece.task].append(piece)
    for task, pieces in of_task.items():
        sizes = [len(piece.rows) for piece in pieces]
        parts = [vectors[id(piece)].detach() if id(piece) in vectors else None for piece in pieces]
        whole = ranks.gathered(parts, sizes, objective.parameters[0].device).requires_grad_()
        targets = torch.cat([piece.targets for piece in pieces]).to(whole.device)
        loss, count = objective.tasks[task].criterion(whole, targets)
        weighted = objective.weights(task, loss / count, 1.0)
        gradient, *own = torch.autograd.grad(weighted, [whole, *objective.parameters], allow_unused=True)
        losses[task] = float(loss.detach()) / count if ranks.leads else 0.0
        total = added(total, list(own)) if ranks.leads else total
        of_vectors |= {id(piece): part for piece, part in zip(pieces, gradient.split(sizes), strict=True)}
    return Found(losses, total), of_vectors


def sum_of(one: dict[str, float], other: dict[str, float]) -> dict[str, float]:
    return {name: one.get(name, 0.0) + other.get(name, 0.0) for name in one | other}


def backward(
    shares: Sequence[Share], objective: Objective, mapped: Map = map, ranks: Processes = ALONE, graphs: bool = True
) -> Found:
    """A window's losses and gradients: this process's part of both sums, where there are several.

    ``shares`` are those of all processes. A parameter that nothing depends on has None, as torch's optimisers want it.
    ``graphs``: The graphs of all pieces whose rows are compared may be in memory together. It changes no bit.
    """
    mine = ranks.block(len(shares))
    alone = [[piece for piece in share if not objective.compares(piece)] for share in shares]
    together = [[piece for piece in share if objective.compares(piece)] for share in shares]
    labels = defaultdict[str, float](float)
    for piece in (piece for share in alone for piece in share):
        labels[piece.task] += objective.tasks[piece.task].handler.counted(piece.targets)

    def embed(number: int) -> list[Tensor]:
        forward = objective.forward
        # Not without gradients: torch has other kernels then
        return [forward(piece) if graphs else forward(piece).detach() for piece in together[number]]

    vectors = dict(zip(mine, mapped(embed, mine), strict=True))
    own = {id(piece): x.detach() for i in mine for piece, x in zip(together[i], vectors[i], strict=True)}
    of_losses, of_vectors = compared(together, own, objective, ranks)

    losses = Tree[dict[str, float]](mine, sum_of)
    trees = [Tree[Tensor | None](mine, plus) for _ in objective.parameters]
    early = Early()

    def add(number: int) -> None:
        """A share's losses and gradients to their sums."""
        one, other = Part(number, trees), Part(number, trees)
        single = early if not (alone[number] and together[number]) else None
        found = summed(alone[number], labels, objective, one, single)
        joint(together[number], vectors.pop(number), of_vectors, objective, other, single)
        for i, (total, rest) in enumerate(zip(one.total, other.total, strict=True)):
            if i not in one.given | other.given:
                trees[i].add(number, plus(total, rest))
        losses.add(number, found)

    with early.hooked(objective):
        list(mapped(add, mine))
    every = range(len(objective.parameters))
    gradients = list(mapped(lambda i: reduce(plus, [of_losses.gradients[i], *trees[i].sums]), every))
    drawn = {piece.task for share in shares for piece in share}
    parts = [of_losses.losses, *losses.sums]
    return Found(
        {name: sum(part.get(name, 0.0) for part in parts) for name in objective.tasks if name in drawn}, gradients
    )
