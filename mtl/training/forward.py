"""The forward pass of training, for one piece of a window.

Where all tasks hold at least k blocks, what those give never changes, and is computed once for each text.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from mtl.encode.batching import longest_first
from mtl.kernels.compile import Plain, compile
from mtl.model.dropout import Draws, drawing_from
from mtl.model.packing import PackedBatch
from mtl.model.pooling import MODES, Pooling
from mtl.tasks.examples import Examples
from mtl.tasks.multitask import MultiTaskModel, held_fixed
from mtl.training.gradients import Piece
from mtl.training.phases import Phase
from mtl.training.schedule import one_seed

Ids = tuple[int, ...]  # a text's tokens


class Cache:
    """What was computed for a text's token ids, remembered as long as there is room."""

    def __init__(self, room: int) -> None:
        self.room = room  # bytes
        self.lock = threading.Lock()  # threads compute side by side
        self.kept: dict[Ids, Tensor] = {}

    def get(self, rows: Sequence[Ids], make: Callable[[Sequence[Ids]], list[Tensor]]) -> list[Tensor]:
        """A tensor per text; ``make`` gives those of the texts that are not remembered."""
        missing = [row for row in dict.fromkeys(rows) if row not in self.kept]
        made = dict(zip(missing, make(missing), strict=True)) if missing else {}
        found = [made[row] if row in made else self.kept[row] for row in rows]
        with self.lock:
            new = {row: tensor for row, tensor in made.items() if row not in self.kept}  # another thread's may be there
            size = sum(tensor.nbytes for tensor in new.values())
            if size <= self.room:
                self.room -= size
                self.kept.update(new)
        return found


class Forward:
    """A piece's outputs in one phase: (rows, outputs), or (rows, texts, dim) where a row has several texts.

    What no task trains is computed once per text, whichever tasks the text is of, and remembered: the output of the
    blocks that all tasks hold, or where these are the whole trunk, and no task's pooling has anything to learn, the
    text's vector by each mode of pooling that a task has.
    """

    def __init__(self, model: MultiTaskModel, data: Mapping[str, Examples], phase: Phase, cache: Cache) -> None:
        self.model = model
        self.data = data
        self.phase = phase
        self.cache = cache
        # What no task trains is computed by this program; the blocks above it are not used
        program = None if phase.common is None else compile(model.encoder)
        self.frozen = model.encoder if program is None or isinstance(program, Plain) else program
        poolings = [model.branch(task).pooling for task in model.tasks]
        plain = [pooling for pooling in poolings if isinstance(pooling, Pooling)]
        fixed = phase.common == model.encoder.config.n_layers and len(plain) == len(poolings)
        self.modes = [mode for mode in MODES if fixed and any(mode in pooling.modes for pooling in plain)]

    def __call__(self, piece: Piece) -> Tensor:
        examples = self.data[piece.task]
        places = examples.text_indices(piece.rows)
        keys = [one_seed(seed, text) for seed in piece.seeds for text in range(examples.width)]
        lengths = [len(examples.rows[place]) for place in places]
        order = longest_first(lengths)  # equal lengths become neighbours
        draws = Draws([keys[i] for i in order], [lengths[i] for i in order], self.model.embedder.device)
        with drawing_from(draws):
            outputs = self.of_texts(piece.task, [tuple(examples.rows[places[i]]) for i in order])
        outputs = self.model.tasks[piece.task].handler.by_row(outputs, order, lengths)
        return outputs.unflatten(0, (-1, examples.width)) if examples.width > 1 else outputs

    def of_texts(self, task: str, rows: Sequence[Ids]) -> Tensor:
        """What the task's branch makes of texts, (texts, outputs)."""
        encoder, branch = self.model.encoder, self.model.branch(task)
        pooling, depth, common = branch.pooling, self.phase.depths[task], self.phase.common
        if self.modes and isinstance(pooling, Pooling):
            vectors = torch.stack(self.cache.get(rows, self.pooled))  # (texts, modes, dim)
            return branch.head(vectors[:, [self.modes.index(mode) for mode in pooling.modes]].flatten(1))
        batch = PackedBatch.pack(rows).to(self.model.embedder.device)
        if common is None or depth is None:
            return branch(self.model.hidden(batch, depth), batch)
        x = torch.cat(self.cache.get(rows, self.hidden))
        with held_fixed():  # this task may hold more than the others do
            x = encoder.run(x, batch, common, depth)
        return branch(encoder.run(x, batch, depth), batch)

    def hidden(self, rows: Sequence[Ids]) -> list[Tensor]:
        """The output of the embeddings and the blocks that all tasks hold, (length, dim) for each text."""
        x, batch = self.prefix(rows)
        return list(x.split(batch.lengths))

    def pooled(self, rows: Sequence[Ids]) -> list[Tensor]:
        """By each mode of pooling, the vector of that output: (modes, dim) for each text."""
        x, batch = self.prefix(rows)
        return list(Pooling(*self.modes)(x, batch).unflatten(1, (len(self.modes), -1)))

    def prefix(self, rows: Sequence[Ids]) -> tuple[Tensor, PackedBatch]:
        batch = PackedBatch.pack(rows).to(self.model.embedder.device)
        # The program gives the same bits whatever else is missing, as on resuming; it is fp32, always
        with held_fixed(), torch.autocast(batch.ids.device.type, enabled=False):
            return self.frozen.run(self.frozen.embed(batch), batch, stop=self.phase.common or 0), batch
