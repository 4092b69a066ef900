"""Runs a model over many packed batches: on CPU threads, several at once, or on a GPU, one after another.

On a CPU, batches side by side with one thread each are faster than one batch on all threads, since nothing
ever waits for the slowest part of a product. A single batch has all threads to itself instead.

A text's vector must not depend, to the bit, on what stands beside it. The packed layout, the prepacked linear
layers and their one-row rule (linear.py) see to that, and threads.py to attention.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from queue import SimpleQueue
from typing import Any, TypeVar

import torch
from torch import Tensor

from mtl.encode.batching import by_token_budget, in_order, in_shares
from mtl.errors import InputError, check_counts, one_line, shown
from mtl.kernels.cores import default_threads, idle
from mtl.kernels.defaults import by_default
from mtl.kernels.threads import computing_with, side_by_side
from mtl.model.packing import PackedBatch

S = TypeVar("S")
T = TypeVar("T")

BATCH_TOKENS = 768  # on a CPU: large enough for the products, small enough for the caches
BATCH_TOKENS_GPU = 65536
LEAST_TOKENS = 32  # per batch, where few texts are shared among threads
PATIENCE = 0.5  # seconds that a caller who stops early waits for what is being worked on

# oneDNN keeps the code of its last 1,024 products, 0.4 MB for each number of rows; up to 768 rows there are 256 of one
# model (see ``linear.rounded``)
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")


def usable(device: str | torch.device) -> torch.device:
    """A device by name; an InputError if there is none, or it cannot be used."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise InputError(f"device is {shown(str(device))}; expected cpu, cuda, or cuda:1 and so on")
    try:
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {str(device)!r} cannot be used: {one_line(error)}") from None
    return found


def on_the_cpu() -> AbstractContextManager[object]:
    """Within it, tensors are made on the CPU unless they say otherwise, whatever default device the caller has set.

    A device as a context costs Python code at every operation, 5 % of the time, so that it is entered only where the
    default is another.
    """
    return nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")


class Engine:
    """Runs ``model``, which takes a PackedBatch and gives (texts, dim), without gradients.

    ``threads`` is the number of CPU threads; see cores.py for the default.
    """

    def __init__(
        self,
        model: Callable[[PackedBatch], Any],
        device: torch.device,
        batch_tokens: int | None = None,
        threads: int | None = None,
    ) -> None:
        check_counts(batch_tokens=batch_tokens, threads=threads)
        if device.type not in ("cpu", "cuda"):
            raise InputError(f"the model is on device {str(device)!r}; expected cpu or cuda: model.to('cpu')")
        self.model = model
        self.device = device
        self.on_cpu = device.type == "cpu"
        self.batch_tokens = batch_tokens or (BATCH_TOKENS if self.on_cpu else BATCH_TOKENS_GPU)
        self.given = int(threads) if threads else None  # ctypes takes no numpy integer
        self.threads = self.given or default_threads()

    def run(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """One vector per row of token ids, in the order of rows: (rows, dim) on the model's device."""
        order, parts = self.computed(rows)
        return in_order(parts, order)

    def computed(self, rows: Sequence[Sequence[int]]) -> tuple[list[int], list[Any]]:
        """What the model gives of each batch, and the numbers of the rows, in the order in which batches have them."""
        if not rows:
            raise ValueError("rows is empty; expected at least one text")
        batches = self.batches(rows)
        return [i for batch in batches for i in batch], list(self.vectors(rows, batches))

    def batches(self, rows: Sequence[Sequence[int]]) -> list[list[int]]:
        """Indices by number of tokens; on a CPU as many batches as give each thread the same work, where that pays."""
        lengths = [len(row) for row in rows]
        if not self.on_cpu:
            return by_token_budget(lengths, self.batch_tokens)
        total = sum(lengths)
        rounds = -(-total // (self.batch_tokens * self.threads))
        return in_shares(lengths, max(1, min(rounds * self.threads, total // LEAST_TOKENS)))

    def vectors(self, rows: Sequence[Sequence[int]], batches: Sequence[Sequence[int]]) -> Iterator[Any]:
        """Each batch's vectors, in the order of the batches."""
        packed = [[rows[i] for i in batch] for batch in batches]
        if not self.on_cpu:
            yield from map(self.compute, packed)
        elif len(packed) > 1:
            with side_by_side(min(self.threads, len(packed))) as pool:
                yield from pool.map(self.compute, packed)
        else:
            yield self.alone(packed[0])

    def alone(self, rows: Sequence[Sequence[int]]) -> Any:
        """One batch's vectors, on all threads; by default on no more than there are idle cores.

        Threads that wait for each other would wait for the other processes too.
        """
        with computing_with(self.given or min(self.threads, idle())):
            return self.compute(rows)

    def compute(self, rows: Sequence[Sequence[int]]) -> Any:
        """One batch's vectors, (rows, dim). A caller's autocast, default device or precision of products says nothing
        of them."""
        with torch.inference_mode(), torch.autocast(self.device.type, enabled=False), on_the_cpu():
            batch = PackedBatch.pack(rows)
            if self.on_cpu:
                with by_default:
                    return self.model(batch)
            return self.model(batch.pinned().to(self.device))


def prefetch(items: Iterable[S], step: Callable[[S], T]) -> Iterator[T]:
    """``step`` of each item, the next of which is read and worked on in a thread while the caller has the last.

    The thread is a daemon's, and nobody waits for it while it reads: a source that blocks, as an open pipe does, holds
    up neither a caller who stops early nor the end of the process. An error comes where its item would have come.
    """
    iterator = iter(items)
    wanted: SimpleQueue[bool] = SimpleQueue()
    made: SimpleQueue[list[T] | BaseException] = SimpleQueue()
    working, stopped = threading.Lock(), threading.Event()

    def work() -> None:
        while wanted.get():
            try:
                read = list(islice(iterator, 1))  # none at the end
                with working:
                    if stopped.is_set():
                        return
                    made.put(list(map(step, read)))
            except BaseException as error:
                made.put(error)

    threading.Thread(target=work, name="mtl-prefetch", daemon=True).start()
    wanted.put(True)
    try:
        while found := made.get():
            if isinstance(found, BaseException):
                raise found
            wanted.put(True)
            yield from found
    finally:
        stopped.set()
        wanted.put(False)
        if working.acquire(timeout=PATIENCE):  # a thread in native code would abort a process that ends meanwhile
            working.release()
