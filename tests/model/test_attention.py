"""All implementations agree on the same tensors, forward and backward."""

import pytest
import torch
from torch import Tensor

from mtl.model.attention import Attention, attend, grouped, reference, varlen
from mtl.model.packing import PackedBatch

LENGTHS = [[5, 5, 3, 1], [1], [7, 2, 7, 2], [300, 40, 40]]


def run(
    implementation: Attention, lengths: list[int], device: str = "cpu", dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """The output and the three gradients, in float32 on the CPU."""
    generator = torch.Generator().manual_seed(1)
    batch = PackedBatch.pack([[0] * length for length in lengths]).to(device)
    q, k, v, weight = (torch.randn(sum(lengths), 4, 16, generator=generator) for _ in range(4))
    q, k, v = (x.to(device, dtype).requires_grad_() for x in (q, k, v))
    out = implementation(q, k, v, batch, 0.0)
    out.backward(weight.to(device, dtype))
    return [x.detach().float().cpu() for x in (out, q.grad, k.grad, v.grad)]


@pytest.mark.parametrize("lengths", LENGTHS)
def test_grouped_equals_reference(lengths: list[int]) -> None:
    """Measured: at most 4e-7."""
    for ours, expected in zip(run(grouped, lengths), run(reference, lengths), strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)


def test_a_text_sees_only_itself() -> None:
    generator = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(7, 2, 4, generator=generator) for _ in range(3))
    both = grouped(q, k, v, PackedBatch.pack([[0] * 4, [0] * 3]))
    alone = grouped(q[4:], k[4:], v[4:], PackedBatch.pack([[0] * 3]))
    torch.testing.assert_close(both[4:], alone, atol=1e-6, rtol=0)


def test_attend_takes_grouped_on_a_cpu() -> None:
    q, k, v = (torch.randn(6, 2, 4) for _ in range(3))
    batch = PackedBatch.pack([[0] * 4, [0] * 2])
    assert torch.equal(attend(q, k, v, batch), grouped(q, k, v, batch))


def test_dropout_drops() -> None:
    q, k, v = (torch.randn(6, 2, 4) for _ in range(3))
    batch = PackedBatch.pack([[0] * 6])
    for implementation in (reference, grouped):
        dropped = implementation(q, k, v, batch, 0.5)
        assert not torch.allclose(dropped, implementation(q, k, v, batch, 0.0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="varlen attention needs a CUDA GPU")
@pytest.mark.parametrize("lengths", LENGTHS)
def test_varlen_within_the_error_of_its_precision(lengths: list[int]) -> None:
    """Its error against float32 is under 3 times that of the reference in the same precision."""
    exact = run(reference, lengths)
    low = run(reference, lengths, "cuda", torch.bfloat16)
    ours = run(varlen, lengths, "cuda", torch.bfloat16)
    for a, b, c in zip(ours, low, exact, strict=True):
        assert (a - c).abs().max() < 3 * (b - c).abs().max()
