"""Attention of programs against the equation, and the bits of every shape on 1, 2 and 3 threads."""

import pytest
import torch
from torch import Tensor

from mtl.kernels.attention import LONGEST, SHORTEST, attend, attend_first, fused, grouped, has_products, varlen
from mtl.kernels.threads import computing_with
from mtl.model.encoder import attention
from mtl.model.packing import PackedBatch

LENGTHS = [[5, 5, 3, 1], [1], [7, 2, 7, 2], [300, 40, 40]]


def tensors(lengths: list[int], heads: int = 4, width: int = 16, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(sum(lengths), heads, width, generator=generator) for _ in range(3))
    return q, k, v


def by_the_equation(q: Tensor, k: Tensor, v: Tensor, batch: PackedBatch) -> Tensor:
    """Text by text, in double precision: (tokens, heads, head_dim)."""
    out = []
    for q_text, k_text, v_text in zip(*(x.double().split(batch.lengths) for x in (q, k, v)), strict=True):
        scores = torch.einsum("qhd,khd->hqk", q_text, k_text) / q.shape[-1] ** 0.5
        out.append(torch.einsum("hqk,khd->qhd", scores.softmax(dim=-1), v_text))
    return torch.cat(out)


@pytest.mark.parametrize("lengths", LENGTHS)
def test_programs_follow_the_equation(lengths: list[int]) -> None:
    """Measured: at most 4e-7."""
    batch, (q, k, v) = PackedBatch.pack([[0] * length for length in lengths]), tensors(lengths)
    expected = by_the_equation(q, k, v, batch).float()
    torch.testing.assert_close(attend(q, k, v, batch), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(attend_first(q[batch.firsts], k, v, batch), expected[batch.firsts], atol=1e-6, rtol=0)


@pytest.mark.parametrize("p", [0.0, 1e-30])
def test_the_specification_follows_the_equation_and_its_gradients(p: float) -> None:
    """Both of its ways: the fused call, and the lines that drop weights, here with a probability of nothing."""
    q, k, v = (x.unflatten(0, (3, 7)).requires_grad_() for x in tensors([7, 7, 7]))
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    scores = torch.einsum("tqhd,tkhd->thqk", exact[0], exact[1]) / 4
    expected = torch.einsum("thqk,tkhd->tqhd", scores.softmax(dim=-1), exact[2])
    found = attention(q, k, v, p)
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=0)
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(2))
    found.backward(weight)
    expected.backward(weight.double())
    for x, y in zip((q, k, v), exact, strict=True):
        torch.testing.assert_close(x.grad.double(), y.grad, atol=2e-6, rtol=0)


def test_dropout_drops_weights() -> None:
    q, k, v = (x.unflatten(0, (1, 6)) for x in tensors([6]))
    assert not torch.allclose(attention(q, k, v, 0.5), attention(q, k, v))


def test_a_text_sees_only_itself() -> None:
    q, k, v = tensors([4, 3], 2, 4, seed=2)
    both = attend(q, k, v, PackedBatch.pack([[0] * 4, [0] * 3]))
    alone = attend(q[4:], k[4:], v[4:], PackedBatch.pack([[0] * 3]))
    torch.testing.assert_close(both[4:], alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("heads", "width"), [(2, 8), (2, 10), (3, 16), (12, 32), (2, 64), (1, 64), (64, 1), (4, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_the_same_bits_on_any_number_of_threads(heads: int, width: int, dtype: torch.dtype) -> None:
    """One query and 17 keys gave other bits on two threads, and so did all tokens of narrow heads."""
    q, k, v = (x.unflatten(0, (3, 70)).transpose(1, 2).to(dtype) for x in tensors([70] * 3, heads, width))
    for keys in (2, 9, 10, 17, 31, 33, 65, 70):
        for queries in {1, 2, keys // 2 + 1, keys}:
            with computing_with(1):
                alone = fused(q[:1, :, :queries], k[:1, :, :keys], v[:1, :, :keys])
            for threads in (1, 2, 3):
                for texts in (1, 3):
                    with computing_with(threads):
                        found = fused(q[:texts, :, :queries], k[:texts, :, :keys], v[:texts, :, :keys])
                    assert torch.equal(found[:1], alone), (queries, keys, threads, texts)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="varlen attention needs a CUDA GPU")
@pytest.mark.parametrize("lengths", LENGTHS)
def test_varlen_within_the_error_of_its_precision(lengths: list[int]) -> None:
    """Its error against float64 is under 3 times that of the grouped calls in the same precision."""
    batch, found = PackedBatch.pack([[0] * length for length in lengths]), tensors(lengths)
    exact = by_the_equation(*found, batch)
    q, k, v = (x.to("cuda", torch.bfloat16) for x in found)
    ours, low = (way(q, k, v, batch.to("cuda")).double().cpu() for way in (varlen, grouped))
    assert (ours - exact).abs().max() < 3 * (low - exact).abs().max()


@pytest.mark.skipif(not has_products(), reason="needs AVX512_BF16")
@pytest.mark.parametrize(("heads", "width"), [(12, 32), (12, 64), (1, 16), (3, 48)])
@torch.inference_mode()
def test_products_in_bfloat16(heads: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors against float64 are of the order of the fused call's; memory that others used before changes nothing, nor
    does the number of threads."""
    lengths = [SHORTEST, SHORTEST, 75, 300, 65, LONGEST, 79]
    batch, found = PackedBatch.pack([[0] * length for length in lengths]), tensors(lengths, heads, width)
    q, k, v = (x.bfloat16() for x in found)
    exact = by_the_equation(q, k, v, batch)
    ours = attend(q, k, v, batch)
    assert torch.equal(attend(q * torch.inf, k, v, batch).isnan(), torch.ones_like(ours, dtype=torch.bool))
    for threads in (1, 2, 3):
        with computing_with(threads):
            assert torch.equal(attend(q, k, v, batch), ours)
            for own, *text in zip(*(x.split(lengths) for x in (ours, q, k, v)), strict=True):
                assert torch.equal(attend(*text, PackedBatch.pack([[0] * len(own)])), own)
    monkeypatch.setattr("mtl.kernels.attention.SHORTEST", LONGEST + 1)
    errors = [(x.double() - exact).abs() for x in (ours, attend(q, k, v, batch))]
    assert not torch.equal(*errors)
    assert errors[0].mean() < 3 * errors[1].mean()  # 2.0 measured: scores are bfloat16 too, as in eager code
    assert errors[0].max() < 5 * errors[1].max()  # 3.5 measured
