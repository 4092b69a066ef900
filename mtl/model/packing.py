"""PackedBatch: several texts' tokens one after another, with no padding between them.

    texts      [CLS] a b [SEP]   [CLS] c [SEP]   [CLS] [SEP]
    ids        101  7 8   102    101  9   102    101   102      (tokens,)
    positions   0   1 2    3      0   1    2      0     1       (tokens,)
    lengths     4                 3               2             (texts)

What is computed for each token by itself (embeddings, Linear, LayerNorm, GELU) runs on (tokens, dim) and
never sees where a text ends. Attention and pooling do see it: they walk over ``groups``, the runs of
neighbours of equal length, each of which is a dense (texts, length, dim) view with nothing to mask.
Any order of texts is right; sorting them by length makes the groups few.

A pair of texts in one row (BERT's "sentence A" and "sentence B") is a text like any other. Where an encoder tells the
two apart, a row has each token of the second segment as ``~id``, a negative number, so that rows stay plain lists of
numbers; ``pack`` turns them into ids and segments.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import groupby

import torch
from torch import Tensor
from torch.overrides import wrap_torch_function

Biases = Sequence[Tensor | None]  # of attention, one for each group of equally long texts; or none at all


@dataclasses.dataclass(frozen=True)
class Group:
    """A run of ``texts`` neighbours of one ``length``."""

    texts: int
    length: int


@dataclasses.dataclass(frozen=True)
class PackedBatch:
    """Token ids and positions, (tokens,) int64 each, and the length of every text, all at least 1.

    ``segments`` is 0 or 1 for each token, (tokens,) int64, where a row has a second segment.
    """

    ids: Tensor
    positions: Tensor
    lengths: tuple[int, ...]
    segments: Tensor | None = None

    def __post_init__(self) -> None:
        tokens = sum(self.lengths)
        if self.ids.shape != (tokens,) or self.positions.shape != (tokens,) or min(self.lengths, default=1) < 1:
            raise ValueError(
                f"ids {tuple(self.ids.shape)} and positions {tuple(self.positions.shape)} do not fit "
                f"lengths {list(self.lengths)}; expected their sum, {tokens}, and no empty text"
            )

    @classmethod
    def pack(cls, texts: Sequence[Sequence[int]]) -> PackedBatch:
        """From one list of token ids per text, special tokens included, those of a second segment as ``~id``."""
        ids = torch.tensor([token for text in texts for token in text], dtype=torch.long, device="cpu")
        positions = torch.tensor([i for text in texts for i in range(len(text))], dtype=torch.long, device="cpu")
        second, lengths = ids < 0, tuple(map(len, texts))
        if second.any():
            return cls(torch.where(second, ~ids, ids), positions, lengths, second.long())
        return cls(ids, positions, lengths)

    @classmethod
    def from_padded(cls, ids: Tensor, mask: Tensor) -> PackedBatch:
        """From padded ids and mask, (texts, length) each; every kept token keeps its own position."""
        kept = mask.bool()
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        return cls(ids[kept], positions[kept], tuple(kept.sum(dim=1).tolist()))

    def position_ids(self, padding: int | None, beyond: int) -> Tensor:
        """The rows of a table of positions, (tokens,): their positions, but that a token of padding which a text itself
        holds takes none, and has the row ``beyond``, as in RoBERTa."""
        if padding is None:
            return self.positions
        passed = self.ids == padding
        if not passed.is_cuda and not passed.any():  # to ask costs more than to compute on a GPU
            return self.positions
        before = torch.cat((self.ids.new_zeros(1), passed.cumsum(0)))  # of all tokens before each
        in_text = before[:-1] - before[self.firsts].repeat_interleave(self.offsets.diff(), output_size=len(passed))
        return torch.where(passed, beyond, self.positions - in_text)

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The runs of equal lengths, in order."""
        return tuple(Group(len(list(run)), length) for length, run in groupby(self.lengths))

    def split(self, x: Tensor) -> list[Tensor]:
        """Each group's part of x (tokens, ...) as a view (texts, length, ...)."""
        parts = x.split_with_sizes([group.texts * group.length for group in self.groups])
        return [part.unflatten(0, (group.texts, group.length)) for group, part in zip(self.groups, parts, strict=True)]

    @cached_property
    def offsets(self) -> Tensor:
        """Where each text starts, and the end: (texts + 1,) int32, on the device of ids."""
        offsets = torch.tensor((0, *self.lengths), dtype=torch.int32, device="cpu").cumsum(0, dtype=torch.int32)
        return moved(offsets, self.ids.device)

    @property
    def firsts(self) -> Tensor:
        """Where each text's first token is: (texts,) int32, on the device of ids."""
        return self.offsets[:-1]

    def to(self, device: torch.device | str) -> PackedBatch:
        """The same batch on a device. From pinned memory, the copy does not wait for the device."""
        return self.each(lambda x: x.to(device, non_blocking=True))

    def pinned(self) -> PackedBatch:
        """The same batch in pinned memory."""
        return self.each(Tensor.pin_memory)

    def each(self, function: Callable[[Tensor], Tensor]) -> PackedBatch:
        ids, positions = function(self.ids), function(self.positions)
        return PackedBatch(ids, positions, self.lengths, None if self.segments is None else function(self.segments))


def moved(x: Tensor, device: torch.device | str) -> Tensor:
    """A tensor on a device; a GPU is not waited for."""
    return x.pin_memory().to(device, non_blocking=True) if torch.device(device).type == "cuda" else x.to(device)


@wrap_torch_function(lambda *given, **_: given[1:4])  # so that training may compute it in another way, as F.linear
def within_texts(
    attention: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, batch: PackedBatch, p: float, biases: Biases
) -> Tensor:
    """Attention within each text of a batch: q, k, v and the result are (tokens, heads, head_dim).

    ``attention`` is that of equally long texts, which need no mask; p is of a dropout.
    """
    groups = zip(*map(batch.split, (q, k, v)), biases or [None] * len(batch.groups), strict=True)
    contexts = [attention(q, k, v, p, bias).flatten(0, 1) for q, k, v, bias in groups]
    return torch.cat(contexts) if contexts else q
