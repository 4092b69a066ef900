"""Processes that train one model together, started by torchrun; the one place that uses torch.distributed.

Every process draws the same windows and computes its own shares of them (gradients.py); what they find is added up, two
by two, as the shares are within a process: 2 or 4 processes end with the bits of one. So all hold the same weights
after every step, and decide alike. Tensors go through gloo on a CPU, NCCL on GPUs; what
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
        self.rounds: list[dist.ProcessGroup | None] = []  # in which sums are made, one after another; None: all of us
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

    def broadcast(self, make: Callable[[], T]) -> T:
        """What the first process makes, for all; plain values only. The others wait for it."""
        made: list[Any] = self.all_gather(make() if self.leads else None)
        return made[0]

    def all_gather(self, value: T) -> list[T]:
        """Each process's value, in their order; plain values only. A process that stopped, or said nothing for
        ``PATIENCE``, is a TrainingError."""
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

    def all_reduce(self, *tensors: Tensor) -> None:
        """Make each of these tensors the sum of all processes' tensors, in place; all of them travel at once."""
        for group in self.rounds:
            with self.together():
                works = [dist.all_reduce(tensor, group=group, async_op=True) for tensor in tensors]
                for work in works:
                    work.wait()
            self.bytes += sum(tensor.nbytes for tensor in tensors)

    def agree(self, values: Mapping[str, float], flag: bool) -> tuple[dict[str, float], bool]:
        """The sums of all processes' values, which have the same names in each, and whether any has the flag set."""
        added = torch.tensor([*values.values(), flag], dtype=torch.float64)
        self.all_reduce(added)
        *sums, flags = added.tolist()
        return dict(zip(values, sums, strict=True)), flags > 0

    def block(self, items: int) -> range:
        """Which of so many items are this process's: neighbours, nearly as many as each of the others has."""
        return range(items * self.rank // self.count, items * (self.rank + 1) // self.count)

    def gathered(self, parts: Sequence[Tensor | None], sizes: Sequence[int], device: torch.device) -> Tensor:
        """Parts (rows, texts, dim) float32 of so many rows in one tensor; each is None but in one of the processes."""
        given = [part for part in parts if part is not None]
        if self.count == 1:
            return torch.cat(given)
        shape = torch.tensor(given[0].shape[1:] if given else (0, 0))
        with self.together():
            dist.all_reduce(shape, dist.ReduceOp.MAX)
        whole = torch.zeros(sum(sizes), *shape.tolist(), dtype=torch.float32, device=device)
        for part, place in zip(parts, whole.split(list(sizes)), strict=True):
            if part is not None:
                place.copy_(part)
        self.all_reduce(whole)
        return whole

    def add_gradients(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """The sums of all processes' gradients: large ones travel as they are, small ones together."""
        if self.count == 1:
            return list(gradients)
        large = [gradient.contiguous() if gradient.nbytes >= LARGE else None for gradient in gradients]
        small = [gradient for gradient in gradients if gradient.nbytes < LARGE]
        flat = torch.cat([gradient.flatten() for gradient in small]) if small else None
        self.all_reduce(*(tensor for tensor in (*large, flat) if tensor is not None and tensor.numel()))
        parts = iter(flat.split([gradient.numel() for gradient in small]) if flat is not None else ())
        return [next(parts).view_as(one) if own is None else own for one, own in zip(gradients, large, strict=True)]


ALONE = Processes()


@contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """The processes that torchrun started, of which this is one; without torchrun, this one alone."""
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
            found.rounds = rounds(rank, count)
        yield found
    except MtlError as error:
        found.stopped(error)
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def rounds(rank: int, count: int) -> list[dist.ProcessGroup | None]:
    """The groups in which this process adds its sums: pairs, then pairs of pairs, so that the order is that of a tree.

    Where the number is no power of two, all add at once, in an order of the library's.
    """
    if count < 4 or count & (count - 1):
        return [None]
    found: list[dist.ProcessGroup | None] = []
    for distance in (1 << level for level in range(count.bit_length() - 1)):
        for first in (first for first in range(count) if not first & distance):
            pair = [first, first + distance]
            group = dist.new_group(pair, timeout=SILENCE)  # every process makes all of them
            found += [group] if rank in pair else []
    return found


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
