"""A model over padded batches, for runtimes whose graphs know no other: the textbook's modules, with masks.

Padding may stand on either side of a text, and changes nothing in what is computed of it: its tokens are neither seen
nor pooled. A text without tokens has zeros.

Shapes: ``texts`` rows of one ``length``; ``tokens`` is their product, over which the modules work as over the tokens of
a packed batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mtl.errors import WeightsError
from mtl.model import deberta, encoder
from mtl.model.deberta import Deberta, DebertaBlock, DisentangledAttention
from mtl.model.encoder import DistilBert
from mtl.model.heads import Branch
from mtl.model.interface import Encoder
from mtl.model.mpnet import MPNet, buckets
from mtl.model.packing import Group
from mtl.model.pooling import AttentionPooling, EachToken, Pooling
from mtl.model.positions import angles
from mtl.model.rotary import RotaryAttention, RotaryBlock, RotaryEncoder, rotated

LEAST = torch.finfo(torch.float32).min  # and not -inf, with which a text without tokens would be NaN


class PaddedBatch:
    """What the modules take for a PackedBatch: padded ids and mask, (texts, length) each, as one group of texts.

    kept, steps: Of each token, whether it is one, and its place in its text, (texts, length).
    counts: The tokens of each text, (texts, 1) int64.
    unseen: What is added to the scores of attention, (texts, 1, 1, length).
    apart: How far each key stands behind each query, (length, length) int64.
    segments: Of each token, which text of a pair it is of, (tokens,) int64, where the encoder tells them apart.
    """

    def __init__(self, ids: Tensor, mask: Tensor, types: Tensor | None = None) -> None:
        self.texts, self.length = ids.shape
        self.groups = (Group(self.texts, self.length),)
        self.kept = mask != 0
        self.steps = (self.kept.long().cumsum(dim=1) - 1).clamp(min=0)
        self.counts = self.kept.long().sum(dim=1, keepdim=True)
        self.ids, self.positions = ids.flatten(), self.steps.flatten()
        self.segments = None if types is None else types.flatten()
        self.unseen = torch.where(self.kept, 0.0, LEAST)[:, None, None]
        numbers = torch.arange(self.length)
        self.apart = numbers[None] - numbers[:, None]

    def position_ids(self, padding: int | None, beyond: int) -> Tensor:
        """As PackedBatch.position_ids, (tokens,)."""
        if padding is None:
            return self.positions
        counted = self.kept & (self.ids.unflatten(0, self.kept.shape) != padding)
        return torch.where(counted, counted.long().cumsum(dim=1) - 1, beyond).flatten()

    def split(self, x: Tensor) -> list[Tensor]:
        """x (tokens, ...) as one group (texts, length, ...)."""
        return [x.unflatten(0, (self.texts, self.length))]


class PlainTrunk(nn.Module):
    def __init__(self, model: DistilBert) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Any) -> Tensor:
        """The last hidden states, (tokens, dim)."""
        x = self.model.embed(batch)
        for block in self.model.blocks:
            x = block(x, batch, [self.bias(batch)])
        return x

    def bias(self, batch: Any) -> Tensor:
        """What is added to the scores of attention, (texts or 1, heads or 1, length or 1, length)."""
        unseen: Tensor = batch.unseen
        return unseen


class MPNetTrunk(PlainTrunk):
    """The buckets of distances are a table, since other runtimes round logarithms in other ways."""

    def __init__(self, model: MPNet) -> None:
        super().__init__(model)
        self.most = model.config.max_position_embeddings - 1
        self.table = model.relative_attention_bias
        self.register_buffer("buckets", buckets(self.most + 1))

    def bias(self, batch: Any) -> Tensor:
        by_distance = self.table(self.get_buffer("buckets")).T  # (heads, 2 length - 1)
        return batch.unseen + by_distance[:, batch.apart + self.most][None]


class RotaryTrunk(nn.Module):
    """The angles of all positions are tables, since other runtimes round powers and cosines in other ways."""

    def __init__(self, model: RotaryEncoder) -> None:
        super().__init__()
        self.model, config = model, model.config
        self.thetas = sorted({config.theta_of(layer) for layer in range(config.n_layers)})
        positions = torch.arange(config.max_position_embeddings)
        for i, theta in enumerate(self.thetas):
            tables = angles(positions, config.dim // config.n_heads, theta, *config.scaling)
            self.register_buffer(f"turns{i}", torch.stack(tables))

    def forward(self, batch: Any) -> Tensor:
        x = self.model.embed(batch)
        turns = [self.get_buffer(f"turns{i}")[:, batch.positions] for i in range(len(self.thetas))]
        for block in self.model.blocks:
            assert isinstance(block, RotaryBlock)
            attend = partial(self.attend, block.attn, batch, turns[self.thetas.index(block.attn.theta)])
            if block.pre_norm:
                x = x + attend(block.attn_norm(x))
                x = x + block.mlp(block.mlp_norm(x))
            else:
                x = block.attn_norm(x + attend(x))
                x = block.mlp_norm(x + block.mlp(x))
        normed: Tensor = self.model.final_norm(x)
        return normed

    def attend(self, attn: RotaryAttention, batch: Any, turns: Tensor, x: Tensor) -> Tensor:
        q, k, v = (y.unflatten(1, (attn.n_heads, -1)) for y in attn.Wqkv(x).chunk(3, dim=1))
        q, k, v = (batch.split(y)[0] for y in (rotated(q, *turns), rotated(k, *turns), v))
        bias = batch.unseen
        if attn.reach is not None:
            bias = torch.where((batch.apart.abs() <= attn.reach) & batch.kept[:, None, None], 0.0, LEAST)
        attended: Tensor = attn.Wo(encoder.attention(q, k, v, 0.0, bias).flatten(0, 1).flatten(1))
        return attended


class DebertaTrunk(nn.Module):
    """The table's rows by distance are a table too, as the buckets of MPNet."""

    def __init__(self, model: Deberta) -> None:
        super().__init__()
        self.model, self.most = model, model.config.max_position_embeddings - 1
        found = deberta.buckets(torch.arange(-self.most, self.most + 1), model.config) + model.config.span
        self.register_buffer("rows", found.clamp(0, 2 * model.config.span - 1))

    def forward(self, batch: Any) -> Tensor:
        x, table = self.model.embed(batch), self.model.table()
        rows = self.get_buffer("rows")[self.most - batch.apart]
        for block in self.model.blocks:
            assert isinstance(block, DebertaBlock)
            x = block.sa_layer_norm(x + self.attend(block.attention, x, batch, table, rows))
            x = block.output_layer_norm(x + block.ffn(x))
        return x

    def attend(self, attn: DisentangledAttention, x: Tensor, batch: Any, table: Tensor, rows: Tensor) -> Tensor:
        linears = (attn.q_lin, attn.k_lin, attn.v_lin)
        q, k, v = (batch.split(linear(x).unflatten(1, (attn.n_heads, -1)))[0] for linear in linears)
        pos_k, pos_q = attn.distances(table)
        compared = math.sqrt(1 + attn.c2p + attn.p2c)
        q, pos_q = q / compared, pos_q / compared
        bias = attn.bias(q, k, pos_k, pos_q, rows)
        bias = batch.unseen if bias is None else bias + batch.unseen
        attended: Tensor = attn.out_lin(encoder.attention(q, k, v, 0.0, bias).flatten(0, 1).flatten(1))
        return attended


TRUNKS: dict[type[Encoder], Callable[[Any], nn.Module]] = {
    DistilBert: PlainTrunk,
    MPNet: MPNetTrunk,
    Deberta: DebertaTrunk,
    RotaryEncoder: RotaryTrunk,
}


def total(x: Tensor, chosen: Tensor) -> Tensor:
    """The sum of the chosen tokens, x (texts, length, dim) and chosen (texts, length): (texts, dim)."""
    return torch.where(chosen[..., None], x, 0.0).sum(dim=1)


# As model.pooling.MODES, of x (texts, length, dim) and a padded batch
MODES: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "cls": lambda x, batch: total(x, batch.kept & (batch.steps == 0)),
    "lasttoken": lambda x, batch: total(x, batch.kept & (batch.steps == batch.counts - 1)),
    "max": lambda x, batch: torch.where(batch.kept[..., None], x, LEAST).amax(dim=1),
    "mean": lambda x, batch: total(x, batch.kept) / batch.counts.clamp(min=1),
    "mean_sqrt_len": lambda x, batch: total(x, batch.kept) / batch.counts.clamp(min=1).float().sqrt(),
    "weightedmean": lambda x, batch: (
        total(x * (batch.steps[..., None] + 1), batch.kept)
        / total(batch.steps[..., None] + 1.0, batch.kept).clamp(min=1)
    ),
}


def pooled(pooling: nn.Module, x: Tensor, batch: Any) -> Tensor:
    """What a pooling gives of hidden states (texts, length, dim)."""
    if type(pooling) is Pooling:
        return torch.cat([MODES[mode](x, batch) for mode in pooling.modes], dim=-1)
    if type(pooling) is AttentionPooling:
        weights = (pooling.score(x) + batch.unseen[:, 0].transpose(1, 2)).softmax(dim=1)
        return (weights * x).sum(dim=1)
    if type(pooling) is EachToken:
        return x
    raise WeightsError(f"a {type(pooling).__name__} has no padded form; expected one of this project's poolings")


class Padded(nn.Module):
    """ids and mask, (texts, length) int64 each, to the last hidden states (texts, length, dim), the embeddings (texts,
    dimensions), and each branch's logits: (texts, outputs), or of each token (texts, length, outputs).

    ``in_units`` turns what a branch gives into the units of its data. What comes between ids and mask are token types,
    which change something where the encoder tells the texts of a pair apart.

    Raises:
        WeightsError: an architecture or a pooling that is none of this project's.
    """

    def __init__(
        self,
        model: Encoder,
        pooling: nn.Module,
        after: nn.Module,
        dimensions: int,
        branches: Mapping[str, nn.Module],
        in_units: Callable[[str, Tensor], Tensor],
    ) -> None:
        super().__init__()
        if type(model) not in TRUNKS:
            raise WeightsError(f"a {type(model).__name__} has no padded form; expected one of this project's encoders")
        self.trunk, self.pooling, self.after = TRUNKS[type(model)](model), pooling, after
        self.branches = nn.ModuleDict(branches)
        self.dimensions, self.in_units, self.segments = dimensions, in_units, model.config.segments

    def forward(self, ids: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        batch: Any = PaddedBatch(ids, rest[-1], rest[0] if self.segments > 1 else None)
        (x,) = batch.split(self.trunk(batch))
        some = batch.counts > 0
        vectors = torch.where(some, self.after(pooled(self.pooling, x, batch)), 0.0)
        return x, vectors[:, : self.dimensions], *(self.logits(name, x, batch) for name in self.branches)

    def logits(self, name: str, x: Tensor, batch: Any) -> Tensor:
        branch = self.branches[name]
        assert isinstance(branch, Branch)
        found = self.in_units(name, branch.head(pooled(branch.pooling, x, batch)))
        return found if type(branch.pooling) is EachToken else torch.where(batch.counts > 0, found, 0.0)
