"""What every encoder offers, whatever its architecture: all that the rest of the project knows of one."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from mtl.model.packing import PackedBatch
from mtl.model.positions import segment_table


class Encoder(nn.Module):
    """From token ids to hidden states; ``tokens`` counts all tokens of a packed batch.

    An architecture gives ``config``, ``embed``, ``run``, and where in it the words and the blocks are.
    """

    WORDS: ClassVar[str]
    BLOCKS: ClassVar[str]
    config: Any  # a frozen dataclass of the architecture's own, with vocab_size, max_position_embeddings, n_layers, dim

    @property
    def words(self) -> nn.Embedding:
        """The table of word embeddings, (vocab_size, dim)."""
        return cast(nn.Embedding, self.get_submodule(self.WORDS))

    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks, lowest first; ``block(x, batch)`` maps (tokens, dim) to (tokens, dim)."""
        return cast(nn.ModuleList, self.get_submodule(self.BLOCKS))

    def forward(self, batch: PackedBatch) -> Tensor:
        """The last hidden state of every token, (tokens, dim)."""
        return self.run(self.embed(batch), batch)

    def embed(self, batch: PackedBatch) -> Tensor:
        """What the first block gets, (tokens, dim)."""
        raise NotImplementedError

    def run(self, x: Tensor, batch: PackedBatch, start: int = 0, stop: int | None = None) -> Tensor:
        """Blocks ``start`` up to ``stop``, not included, and what stands above the last: (tokens, dim) in and out."""
        raise NotImplementedError

    def tell_segments_apart(self, types: Tensor) -> None:
        """Have the second text of a pair told apart: ``types``, (segments, dim), are added to its tokens' embeddings.

        Row 0 is 0, so that what is one text keeps its bits.
        """
        self.config = dataclasses.replace(self.config, segments=len(types))
        table = segment_table(*types.shape)
        assert table is not None
        table.weight = nn.Parameter(types.to(self.device, copy=True))
        self.get_submodule("embeddings").token_type_embeddings = table.train(self.training)

    def initialize(self, std: float) -> None:
        """Draw all matrices anew, with a standard deviation; linear biases are 0, and what stands for nothing."""
        for part in self.modules():
            if isinstance(part, (nn.Linear, nn.Embedding)):
                nn.init.normal_(part.weight, std=std)
            if isinstance(part, nn.Linear) and part.bias is not None:
                nn.init.zeros_(part.bias)
            if isinstance(part, nn.Embedding) and part.padding_idx is not None:
                nn.init.zeros_(part.weight[part.padding_idx])

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.words.weight.device

    @property
    def fixed(self) -> frozenset[str]:
        """The names of parameters that no training changes."""
        return frozenset()

    def depth_of(self, name: str) -> int:
        """Of a parameter, by its name: i + 1 in block i, 0 below them, and the number of blocks above them."""
        parameter = self.get_parameter(name)
        within = [i for i, block in enumerate(self.blocks, 1) if any(parameter is own for own in block.parameters())]
        return within[0] if within else 0
