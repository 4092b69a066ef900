"""The forward pass of training, for one micro-batch of one task.

Where all tasks hold at least k blocks, what those give never changes, and is computed once for each text.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from mtl.encode.batching import longest_first
from mtl.model.forms import packed
from mtl.model.packing import PackedBatch
from mtl.model.pooling import Pooling
from mtl.tasks.examples import Examples
from mtl.tasks.multitask import MultiTaskModel, held_fixed
from mtl.training.phases import Phase
from mtl.training.schedule import MicroBatch

Ids = tuple[int, ...]  # a text's tokens


class Cache:
    """What was computed for a text's token ids by a task, remembered as long as there is room."""

    def __init__(self, room: int) -> None:
        self.room = room  # bytes
        self.lock = threading.Lock()  # threads compute side by side
        self.kept: dict[tuple[str, Ids], Tensor] = {}

    def get(self, task: str, rows: Sequence[Ids], make: Callable[[Sequence[Ids]], list[Tensor]]) -> list[Tensor]:
        """A tensor per text; ``make`` gives those of the texts that are not remembered."""
        missing = [row for row in dict.fromkeys(rows) if (task, row) not in self.kept]
        made = dict(zip(missing, make(missing), strict=True)) if missing else {}
        found = [made[row] if row in made else self.kept[task, row] for row in rows]
        size = sum(tensor.nbytes for tensor in made.values())
        with self.lock:
            if size <= self.room:
                self.room -= size
                self.kept.update({(task, row): tensor for row, tensor in made.items()})
        return found


class Forward:
    """A micro-batch's outputs in one phase: (rows, outputs), or (rows, texts, dim) where a row has several texts.

    What no task trains is computed once per text, and remembered.

    That is the output of the blocks that all tasks hold; where they are the whole trunk and a task's pooling
    has nothing to learn, it is the pooled vector.
    """

    def __init__(self, model: MultiTaskModel, data: Mapping[str, Examples], phase: Phase, cache: Cache) -> None:
        self.model = model
        self.data = data
        self.phase = phase
        self.cache = cache
        # What no task trains is computed in this form; the blocks above it are not used
        self.frozen = model.encoder if phase.common is None else packed(model.encoder)

    def __call__(self, micro: MicroBatch) -> Tensor:
        examples = self.data[micro.task]
        places = examples.places(micro.rows)
        order = longest_first([len(examples.rows[place]) for place in places])  # equal lengths become neighbours
        outputs = self.of_texts(micro.task, [places[i] for i in order])
        outputs = outputs[torch.tensor(order, device=outputs.device).argsort()]
        return outputs.unflatten(0, (-1, examples.width)) if examples.width > 1 else outputs

    def of_texts(self, task: str, places: Sequence[int]) -> Tensor:
        """What the task's branch makes of the texts at some places, (texts, outputs)."""
        encoder, branch = self.model.encoder, self.model.branch(task)
        pooling, depth, common = branch.pooling, self.phase.depths[task], self.phase.common
        if common == encoder.config.n_layers and isinstance(pooling, Pooling):
            pooled = self.prefix(task, places, common, lambda x, batch: list(pooling(x, batch)))
            return branch.head(torch.stack(pooled))
        batch = PackedBatch.pack([self.data[task].rows[place] for place in places]).to(self.model.embedder.device)
        if common is None or depth is None:
            return branch(self.model.hidden(batch, depth), batch)
        x = torch.cat(self.prefix(task, places, common, lambda x, batch: list(x.split(batch.lengths))))
        with held_fixed():  # this task may hold more than the others do
            for block in encoder.transformer.layer[common:depth]:
                x = block(x, batch)
        return branch(encoder.upper(x, batch, depth), batch)

    def prefix(
        self,
        task: str,
        places: Sequence[int],
        depth: int,
        pieces: Callable[[Tensor, PackedBatch], list[Tensor]],
    ) -> list[Tensor]:
        """For each text, what ``pieces`` makes of the output of the embeddings and ``depth`` blocks."""

        def make(missing: Sequence[Ids]) -> list[Tensor]:
            batch = PackedBatch.pack(missing).to(self.model.embedder.device)
            # The packed form gives the same bits whatever else is missing, as on resuming; it is fp32, always
            with torch.no_grad(), torch.autocast(batch.ids.device.type, enabled=False):
                return pieces(self.frozen.lower(batch, depth), batch)

        return self.cache.get(task, [tuple(self.data[task].rows[place]) for place in places], make)
