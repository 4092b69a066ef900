"""Processes that train one model together, started by torchrun; the one place that uses torch.distributed.

Every process draws the same windows and computes its own shares of them (gradients.py); what they find is added up.
So all hold the same weights after every step, and decide alike. Tensors go through gloo on a CPU, NCCL on GPUs; what
has to be said in words goes through gloo as JSON. Where there is one process, nothing here does anything.

A process that dies closes its connections, at which the others stop at once; one that is silent, because its machine
is gone, is waited for a minute. Why it stopped, and where a run began, stands in the store that torchrun keeps.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from mtl.errors import MtlError, TrainingError, one_line
from mtl.kernels.cores import cores

T = TypeVar("T")

SILENCE = timedelta(seconds=60)  # for which a process may leave the others waiting for its tensors
PATIENCE = timedelta(minutes=30)  # and for its words: it may be loading, measuring or saving
LARGE = 2**18  # bytes of a gradient that is not copied to travel with others


class Processes:
    """This process, ``rank``, among ``count``; all of them call the same methods in the same order."""

    def __init__(self, rank: int = 0, count: int = 1, store: Store | None = None, launch: Store | None = None) -> None:
        self.rank, self.count = rank, count
        self.store = store  # of this attempt
        self.launch = launch  # of all attempts that torchrun makes
        self.words: dist.ProcessGroup | None = None  # the group that waits longer
        self.bytes = 0  # of tensors that this process had added up

    @property
    def leads(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    @property
    def begun(self) -> str | None:
        """The folder in which an earlier attempt of the same torchrun began to train."""
        with self.together():
            return self.launch.get("folder").decode() if self.launch and self.launch.check(["folder"]) else None

    def begin(self, folder: Path) -> None:
        """Let later attempts know where to go on."""
        if self.launch:
            with self.together():
                self.launch.set("folder", str(folder))

    def told(self, make: Callable[[], T]) -> T:
        """What the first process makes, for all; plain values only. The others wait for it."""
        made: list[Any] = self.heard(make() if self.leads else None)
        return made[0]

    def heard(self, value: T) -> list[T]:
        """Each process's value, in their order; plain values only.

        Raises:
            TrainingError: a process stopped, or said nothing for ``PATIENCE``.
        """
        if self.words is None:
            return [value]
        said = json.dumps(value).encode()
        with self.together():
            sizes = torch.zeros(self.count, dtype=torch.int64)
            sizes[self.rank] = len(said)
            dist.all_reduce(sizes, group=self.words)
            texts = torch.zeros(self.count, int(sizes.max()), dtype=torch.uint8)
            texts[self.rank, : len(said)] = torch.frombuffer(bytearray(said), dtype=torch.uint8)
            dist.all_reduce(texts, group=self.words)
        return [json.loads(bytes(row[:size].tolist())) for row, size in zip(texts, sizes.tolist(), strict=True)]

    def stopped(self, error: MtlError) -> None:
        """Let the others know why this process stops."""
        if self.store is not None and not self.reason():  # of several, the first knows why
            with self.together():
                self.store.set("stopped", f"process {self.rank} of {self.count} stopped: {error}")

    @contextmanager
    def together(self) -> Iterator[None]:
        """Turn what goes wrong between processes into one line."""
        try:
            yield
        except RuntimeError as error:
            what = re.sub(r"^\[\S+\] ", "", one_line(error)).split(". ")[0]  # without the place in gloo's source
            raise TrainingError(self.reason() or "another process died, or its machine cannot be reached "
                                f"({what}); the last checkpoint is kept") from None  # fmt: skip

    def reason(self) -> str:
        """What a process that stopped said of it."""
        try:
            return self.store.get("stopped").decode() if self.store and self.store.check(["stopped"]) else ""
        except RuntimeError:
            return ""

    def add(self, tensor: Tensor) -> None:
        """Make a tensor the sum of all processes' tensors, in place."""
        if self.count > 1:
            self.begin_to_add(tensor)()

    def begin_to_add(self, tensor: Tensor) -> Callable[[], None]:
        """As ``add``, under way until what this gives is called."""
        self.bytes += tensor.nbytes
        with self.together():
            work = dist.all_reduce(tensor, async_op=True)

        def finish() -> None:
            with self.together():
                work.wait()

        return finish

    def agree(self, values: Mapping[str, float], flag: bool) -> tuple[dict[str, float], bool]:
        """The sums of all processes' values, which have the same names in each, and whether any has the flag set."""
        added = torch.tensor([*values.values(), flag], dtype=torch.float64)
        self.add(added)
        *sums, flags = added.tolist()
        return dict(zip(values, sums, strict=True)), flags > 0

    def block(self, items: int) -> range:
        """Which of so many items are this process's: neighbours, as many as each of the others has."""
        each = items // self.count
        return range(self.rank * each, (self.rank + 1) * each)

    def gathered(self, parts: Sequence[Tensor | None], sizes: Sequence[int], device: torch.device) -> Tensor:
        """Parts (rows, texts, dim) float32 of so many rows in one tensor; each is None but in one of the processes."""
        given = [part for part in parts if part is not None]
        if self.count == 1:
            return torch.cat(given)
        shape = torch.tensor(given[0].shape[1:] if given else (0, 0))
        with self.together():
            dist.all_reduce(shape, dist.ReduceOp.MAX)
        whole = torch.zeros(sum(sizes), *shape.tolist(), device=device)
        for part, place in zip(parts, whole.split(list(sizes)), strict=True):
            if part is not None:
                place.copy_(part)
        self.add(whole)
        return whole

    def add_gradients(self, parameters: Sequence[Tensor], rows: Mapping[int, Tensor]) -> None:
        """Make the gradients of these parameters the sums of all processes'; who has none of one adds 0.

        ``rows`` has, by place in ``parameters``, the rows beside which a gradient is 0 in every process: only they are
        sent. Large gradients travel as they are, small ones together; all are under way at once.
        """
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad.contiguous() for p in parameters]
        parts = {i: gradients[i][own] for i, own in rows.items()}
        alone = [x for i, x in enumerate(gradients) if i not in rows and x.nbytes >= LARGE]
        small = [x for i, x in enumerate(gradients) if i not in rows and x.nbytes < LARGE]
        flat = torch.cat([x.flatten() for x in small]) if small else torch.zeros(0)
        for finish in [self.begin_to_add(x) for x in (*parts.values(), *alone, flat) if x.numel()]:
            finish()
        for i, part in parts.items():
            gradients[i][rows[i]] = part
        for gradient, part in zip(small, flat.split([x.numel() for x in small]), strict=True):
            gradient.copy_(part.view_as(gradient))
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient


ALONE = Processes()


@contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """The processes that torchrun started, of which this is one; without torchrun, this one alone.

    Raises:
        TrainingError: they cannot reach each other.
    """
    if not dist.is_torchelastic_launched():
        yield ALONE
        return
    attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]  # torchrun's store outlives its attempts
    with ALONE.together():
        store, rank, count = next(iter(rendezvous("env://", timeout=PATIENCE)))
    own = PrefixStore(f"attempt/{attempt}", store)
    found = Processes(rank, count, own, PrefixStore("launch", store))
    try:
        with found.together():
            own.set(str(rank), "here")
            own.wait([str(other) for other in range(count)], PATIENCE)  # some machines start sooner
            backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
            group = PrefixStore(f"group/{attempt}", store)
            dist.init_process_group(backend, store=group, rank=rank, world_size=count, timeout=SILENCE)
            found.words = dist.new_group(backend="gloo", timeout=PATIENCE)
        yield found
    except MtlError as error:
        found.stopped(error)
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def own_device(name: str) -> str:
    """The GPU of this process, where several share a machine and none is named."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if name == "cuda" and dist.is_torchelastic_launched() else name


def own_threads() -> int | None:
    """Under torchrun, this process's equal part of the cores; None where the user chose, or there is no torchrun.

    torchrun sets one thread where the user says nothing.
    """
    if not dist.is_torchelastic_launched() or os.environ.get("OMP_NUM_THREADS", "1") != "1":
        return None
    return max(1, cores() // int(os.environ["LOCAL_WORLD_SIZE"]))
