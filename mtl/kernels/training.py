"""The one place that chooses how training computes.

Modules know nothing of it: within ``Faster`` torch's ``F.linear`` and the textbook's ``within_texts`` are other
functions of the same tensors, with the same value but for rounding. So hooks, adapters and subclasses are what they
are, and where they call something else, that is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mtl.kernels.training_attention import Attention, Plan
from mtl.kernels.training_linear import Linear, onednn, suits
from mtl.model.dropout import VALUES, drawn
from mtl.model.encoder import attention as textbook
from mtl.model.packing import PackedBatch, within_texts


class Faster(TorchFunctionMode):
    """Within it, this thread computes one forward pass, whose layers share ``plan``, in the faster way, and so its
    gradients."""

    plan: Plan | None = None

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        named, found = named or {}, None
        if function is F.linear:
            found = self.linear(*arguments, **named)
        elif function is within_texts:
            found = self.attention(*arguments, **named)
        return function(*arguments, **named) if found is None else found

    def linear(self, input: Any, weight: Any, bias: Any = None) -> Tensor | None:
        """A linear layer, or None where torch is to compute it, as in autocast."""
        if not onednn() or torch.is_autocast_enabled("cpu") or not suits(input, weight, bias):
            return None
        y: Tensor = Linear.apply(input, weight, bias)
        return y

    def attention(
        self, attention: Any, q: Tensor, k: Tensor, v: Tensor, batch: PackedBatch, p: float,
        biases: Sequence[Tensor | None],
    ) -> Tensor | None:  # fmt: skip
        """Attention of a whole layer at once, or None where the textbook is to compute it: torch's own call is as fast
        without dropout and bias."""
        draws, given = drawn(), [bias for bias in biases if bias is not None]
        if attention is not textbook or not batch.lengths or len(given) < len(biases) or not (p or given):
            return None
        if p and (not 0 < round(p * VALUES) < VALUES or draws is None or draws.lengths.tolist() != [*batch.lengths]):
            return None
        if q.dtype not in (torch.float32, torch.bfloat16) or q.device.type not in ("cpu", "cuda"):
            return None
        if any((x.device, x.dtype) != (q.device, q.dtype) for x in (k, v)):
            return None
        if self.plan is None or (self.plan.lengths, self.plan.heads) != (batch.lengths, q.shape[1]):
            self.plan = Plan(batch.lengths, q.shape[1], q.device)
        with torch.autocast(q.device.type, enabled=False):
            kept = self.plan.kept(draws, p) if p and draws is not None else None
            context: Tensor = Attention.apply(q, k, v, self.plan, kept, *(self.plan.padded(given) if given else ()))
        return context
