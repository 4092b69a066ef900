"""int8: the kernel is exact integer arithmetic, each layer is its definition, and the vectors stay near."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mtl import SentenceEncoder
from mtl.kernels import int8
from mtl.kernels.int8 import Int8Linear, between, largest_weight, smoothed
from mtl.model.packing import PackedBatch

TEXTS = ["Hi", "", "The ferry left without us.", "the old clock on the landing struck " * 9, "no", "Rain, again."]


@pytest.fixture(scope="module")
def quantized() -> SentenceEncoder:
    return SentenceEncoder.from_pretrained("all-MiniLM-L6-v2", precision="int8")


@pytest.mark.parametrize("rows", [1, 2, 7, 20])
def test_the_kernel_never_overflows(rows: int) -> None:
    """The largest sums that can occur: weights of 8 bits without VNNI gave 48,960 where 6,193,536 was right."""
    layer = Int8Linear(torch.ones(32, 384), torch.zeros(32), step=1.0, zero=0)
    assert layer.scale.allclose(torch.tensor(1 / largest_weight()))
    torch.testing.assert_close(layer(torch.full((rows, 384), 255.0)), torch.full((rows, 32), 255 * 384.0))
    torch.testing.assert_close(
        Int8Linear(-torch.ones(32, 384), torch.zeros(32), 1.0, 0)(torch.full((rows, 384), 255.0)),
        torch.full((rows, 32), -255 * 384.0),
    )


def test_a_layer_equals_its_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias, x = (torch.randn(*shape, generator=generator) for shape in ((24, 40), (24,), (17, 40)))
    x[:, 3] *= 30  # an outlier channel
    largest = x.abs().amax(dim=0)
    layer = smoothed(weight, bias, torch.stack([-largest, largest]))
    smooth = largest**0.55 / weight.abs().amax(dim=0) ** 0.45
    w_scale = (weight * smooth).abs().amax(dim=1) / largest_weight()
    w = (weight * smooth / w_scale[:, None]).round()
    step = (largest / smooth).max() / 127
    q = (x / smooth / step).round()
    expected = (q.double() @ w.double().T) * w_scale * step + bias
    torch.testing.assert_close(layer(x).double(), expected, atol=0.2, rtol=0)  # a rounding may fall the other way
    assert (layer(x).double() - expected).abs().median() < 1e-4
    assert F.cosine_similarity(layer(x), x @ weight.T + bias, dim=1).min() > 0.995


def test_what_is_beyond_the_range_is_clipped_and_never_wraps() -> None:
    layer = Int8Linear(torch.ones(16, 16), torch.zeros(16), step=1.0, zero=128)
    inputs = torch.tensor([[-1e6], [-200.0], [-128.0], [-1.0], [0.0], [1.0], [127.0], [200.0], [1e6]]).expand(-1, 16)
    expected = inputs.clamp(-128, 127).sum(dim=1, keepdim=True).expand(-1, 16)
    torch.testing.assert_close(layer(inputs.contiguous()), expected)


@pytest.mark.parametrize(("activation", "reference"), [("gelu", F.gelu), ("relu", F.relu)])
def test_the_output_may_leave_as_the_next_input(activation: str, reference) -> None:
    generator = torch.Generator().manual_seed(1)
    weight, x = torch.randn(24, 40, generator=generator), torch.randn(9, 40, generator=generator)
    ranges = torch.stack([x.amin(dim=0), x.amax(dim=0)])
    plain, leaving = (smoothed(weight, torch.zeros(24), ranges) for _ in range(2))
    leaving.leaves = (activation, 0.1, 2)
    found = leaving(x)
    assert found.dtype == torch.uint8
    expected = (reference(plain(x)) / 0.1).add(2).clamp(0, 255)
    torch.testing.assert_close(found.float(), expected, atol=0.51, rtol=0)


def test_zeros_stay_zeros() -> None:
    layer = smoothed(torch.ones(8, 16), torch.arange(8.0), torch.zeros(2, 16))
    torch.testing.assert_close(layer(torch.zeros(5, 16)), torch.arange(8.0).expand(5, 8))


def test_near_fp32(minilm: SentenceEncoder, quantized: SentenceEncoder) -> None:
    """Measured with weights of 7 bits: at least 0.973 for single words, 0.992 for the sentences of STS-B dev."""
    cosines = (minilm.encode(TEXTS) * quantized.encode(TEXTS)).sum(axis=1)
    assert cosines.min() > 0.97
    assert cosines[[2, 3]].min() > 0.99


def test_the_same_bits(quantized: SentenceEncoder) -> None:
    alone = np.stack([quantized.encode(text) for text in TEXTS])
    for threads in (1, 2):
        for batch_tokens in (20, 768):
            vectors = quantized.encode(TEXTS[::-1], batch_tokens=batch_tokens, threads=threads)
            assert np.array_equal(vectors[::-1], alone)


def test_it_is_the_same_each_time(quantized: SentenceEncoder) -> None:
    again = SentenceEncoder.from_pretrained("all-MiniLM-L6-v2", precision="int8")
    assert np.array_equal(again.encode(TEXTS), quantized.encode(TEXTS))


def test_the_first_tokens_alone(quantized: SentenceEncoder) -> None:
    batch = PackedBatch.pack(quantized.tokenizer(TEXTS).rows)
    encoder = quantized.program().encoder
    with torch.inference_mode():
        first, every = encoder.run(encoder.embed(batch), batch, first=True), encoder(batch)[batch.firsts]
    torch.testing.assert_close(first, every, atol=1e-5, rtol=0)


def test_measuring_leaves_the_encoder_as_it_was(tiny: SentenceEncoder) -> None:
    rows = [[2, 5, 6, 3], [2, 7, 3]]
    ranges = int8.input_ranges(tiny.encoder, rows)
    assert len(ranges) == 12
    assert all(not module._forward_pre_hooks for module in tiny.encoder.modules())
    assert ranges["transformer.layer.1.ffn.lin2"].shape == (2, 20)


def test_a_layer_whose_inputs_have_one_huge_channel_stays_in_float32(minilm: SentenceEncoder) -> None:
    """all-mpnet-base-v2's least cosine is 0.9876 by it, and 0.54 without. MiniLM's largest is 17 times the median."""
    block = minilm.encoder.blocks[0]
    ranges = {f"ffn.lin{i}": torch.tensor([[-1.0], [2.0]]).repeat(1, n) for i, n in ((1, 384), (2, 1536))}
    assert isinstance(between(block.ffn.lin1, block.ffn.lin2, ranges, "ffn.lin", "gelu")[1], Int8Linear)
    ranges["ffn.lin2"][1, 7] = 60.0
    first, second = between(block.ffn.lin1, block.ffn.lin2, ranges, "ffn.lin", "gelu")
    assert isinstance(first, Int8Linear)
    assert first.leaves is None
    x = torch.randn(3, 1536)
    torch.testing.assert_close(second(x), block.ffn.lin2(x), atol=1e-4, rtol=0)
