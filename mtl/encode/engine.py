"""Runs a model over many packed batches: on CPU threads, several at once, or on a GPU, one after another.

On a CPU, batches side by side with one thread each are faster than one batch on all threads, since nothing
ever waits for the slowest part of a product. A single batch has all threads to itself instead.

A text's vector must not depend on what stands beside it, to the bit. The packed layout sees to that, but for
one thing: BLAS takes another kernel for products of very few rows. ``ROWS`` keeps every product above that.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from mtl.encode.batching import by_token_budget
from mtl.errors import InputError
from mtl.model.packing import PackedBatch

T = TypeVar("T")

ROWS = 8  # per thread; kernels were seen to change below 4 at one thread, below 12 at two (`mtl check` looks)
BATCH_TOKENS = 768  # on a CPU: large enough for the products, small enough for the caches
BATCH_TOKENS_GPU = 65536

_lock = threading.Lock()
_running = 0
_threads_before = 0


def usable(device: str) -> torch.device:
    """A device by name.

    Raises:
        InputError: there is none of that name, or it cannot be used.
    """
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from None
    return found


@contextmanager
def one_thread_each(workers: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads that compute with one thread inside each; the settings are as before afterwards.

    OpenMP's setting belongs to a thread, so that of the caller is never touched. MKL's belongs to the
    process: the first to come saves it and the last to go restores it, in a thread of its own.
    """
    global _running, _threads_before
    with _lock:
        if _running == 0:
            _threads_before = torch.get_num_threads()
        _running += 1
    pool = ThreadPoolExecutor(workers, "mtl", initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        with _lock:
            _running -= 1
            if _running == 0:
                restore = threading.Thread(target=torch.set_num_threads, args=(_threads_before,))
                restore.start()
                restore.join()


def pack_padded(rows: Sequence[Sequence[int]], least: int, least_texts: int = 0) -> PackedBatch:
    """Rows packed, with texts of one token behind them until there are enough tokens (and texts)."""
    tokens = sum(map(len, rows))
    missing = max(0, least - tokens, least_texts - len(rows))
    return PackedBatch.pack([*rows, *[rows[0][:1]] * missing])


class Engine:
    """Runs ``model``, which takes a PackedBatch and gives (texts, dim), without gradients.

    ``per_text`` says that the model has matrix products over texts, behind its pooling. ``threads`` is the
    number of CPU threads; by default, torch's own.
    """

    def __init__(
        self,
        model: Callable[[PackedBatch], Tensor],
        device: torch.device,
        batch_tokens: int | None = None,
        threads: int | None = None,
        per_text: bool = False,
    ) -> None:
        self.model = model
        self.device = device
        self.on_cpu = device.type == "cpu"
        self.batch_tokens = batch_tokens or (BATCH_TOKENS if self.on_cpu else BATCH_TOKENS_GPU)
        self.threads = threads or torch.get_num_threads()
        self.per_text = per_text

    def run(self, rows: Sequence[Sequence[int]], done: Callable[[int], object] = lambda texts: None) -> Tensor:
        """One vector per row of token ids, in the order of rows: (rows, dim) on the model's device.

        ``done`` is called with the number of texts each time that some are finished.
        """
        if not rows:
            raise ValueError("rows is empty; expected at least one text")
        batches = self.batches(rows)
        parts = []
        for indices, vectors in zip(batches, self.vectors(rows, batches), strict=True):
            parts.append(vectors)
            done(len(indices))
        order = torch.tensor([i for indices in batches for i in indices])
        back = torch.argsort(order).to(self.device)  # the one wait for a GPU
        return torch.cat(parts)[back]

    def batches(self, rows: Sequence[Sequence[int]]) -> list[list[int]]:
        """Indices by token budget; where there are fewer batches than threads, smaller batches."""
        lengths = [len(row) for row in rows]
        share = -(-sum(lengths) // self.threads) if self.on_cpu else self.batch_tokens
        return by_token_budget(lengths, min(self.batch_tokens, max(share, ROWS * 4)))

    def vectors(self, rows: Sequence[Sequence[int]], batches: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        """Each batch's vectors, in the order of the batches."""
        if not self.on_cpu:
            yield from (self.compute([rows[i] for i in batch], 1) for batch in batches)
        elif len(batches) == 1:
            yield self.compute([rows[i] for i in batches[0]], torch.get_num_threads())
        else:
            with one_thread_each(min(self.threads, len(batches))) as pool:
                yield from pool.map(lambda batch: self.compute([rows[i] for i in batch], 1), batches)

    @torch.inference_mode()
    def compute(self, rows: Sequence[Sequence[int]], threads: int) -> Tensor:
        """One batch's vectors (rows, dim), computed with ``threads`` threads inside."""
        if self.on_cpu:
            least = ROWS * threads
            return self.model(pack_padded(rows, least, least if self.per_text else 0))[: len(rows)]
        batch = PackedBatch.pack(rows)
        pinned = PackedBatch(batch.ids.pin_memory(), batch.positions.pin_memory(), batch.lengths)
        return self.model(pinned.to(self.device))


def prefetch(items: Iterable[T]) -> Iterator[T]:
    """The same items, the next of which is made in a thread while the caller works on the last."""
    iterator = iter(items)
    with ThreadPoolExecutor(1, "mtl-prefetch") as pool:
        upcoming = pool.submit(lambda: [next(iterator)])
        while True:
            try:
                (item,) = upcoming.result()
            except StopIteration:
                return
            upcoming = pool.submit(lambda: [next(iterator)])
            yield item
