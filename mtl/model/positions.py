"""How a token's place in its text is told to an encoder."""

from __future__ import annotations

import torch
from torch import Tensor


def sinusoids(positions: int, dim: int) -> Tensor:
    """The fixed position table (positions, dim) of Vaswani et al. 2017, section 3.5: sin and cos in turn."""
    rates = 10000 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angles = torch.arange(positions, dtype=torch.float64)[:, None] * rates  # (positions, dim / 2, rounded up)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)[:, :dim].float()
