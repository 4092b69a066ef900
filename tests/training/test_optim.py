"""A step of the optimiser in parts, which threads share: torch's own step and norm, to the bit."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from mtl.training import optim
from mtl.training.optim import adamw_step, clip, parts_of

SHAPES = [(3,), (40, 7), (1,), (), (64, 33), (5, 5), (129,)]


def test_a_step_in_parts_is_torch_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optim, "PART", 100)
    generator = torch.Generator().manual_seed(0)
    ours, theirs = ([nn.Parameter(torch.ones(shape)) for shape in SHAPES] for _ in range(2))
    group = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-7, "weight_decay": 0.1}
    reference, states = torch.optim.AdamW(theirs, fused=True, **group), [{} for _ in SHAPES]
    with ThreadPoolExecutor(2) as pool:
        for most in (0.0, 1e9, 0.5):
            gradients = [torch.randn(shape, generator=generator) for shape in SHAPES]
            for parameter, gradient in zip(theirs, gradients, strict=True):
                parameter.grad = gradient.clone()
            expected = nn.utils.clip_grad_norm_(theirs, most or torch.inf)
            assert clip(gradients, most, pool.map) == float(expected)
            reference.step()
            parts = [*parts_of(gradients)]
            assert len(parts) == 3
            list(pool.map(lambda i: adamw_step(ours[i], gradients[i], states[i], group), parts))  # noqa: B023
            for one, other, state in zip(ours, theirs, states, strict=True):
                assert torch.equal(one, other)
                assert all(torch.equal(x, reference.state[other][name]) for name, x in state.items())


def test_nothing_to_step() -> None:
    assert clip([], 1.0) == 0.0
    assert [*parts_of([])] == []
