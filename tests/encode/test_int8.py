"""int8: the kernel is exact integer arithmetic, the vectors stay near, and the same bits rule holds."""

import numpy as np
import pytest
import torch

from mtl import SentenceEncoder
from mtl.encode.int8 import ACTIVATION_MAX, WEIGHT_MAX, ZERO_POINT, Int8Linear
from mtl.errors import InputError, WeightsError
from mtl.model.packing import PackedBatch

TEXTS = ["Hi", "", "The ferry left without us.", "the old clock on the landing struck " * 9, "no", "Rain, again."]


@pytest.fixture(scope="module")
def quantized() -> SentenceEncoder:
    return SentenceEncoder.from_pretrained("all-MiniLM-L6-v2", precision="int8")


def test_the_kernel_never_overflows() -> None:
    """The largest sums that can occur; with weights of 8 bits they were off by a factor of 100."""
    layer = Int8Linear(torch.ones(32, 384), torch.zeros(32), torch.ones(384))
    assert layer.scale.allclose(torch.tensor(1 / WEIGHT_MAX))
    torch.testing.assert_close(layer(torch.ones(20, 384)), torch.full((20, 32), 384.0))
    torch.testing.assert_close(layer(-torch.ones(20, 384)), torch.full((20, 32), -384.0))


def test_a_layer_equals_its_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias, x = (torch.randn(*shape, generator=generator) for shape in ((24, 40), (24,), (17, 40)))
    x[:, 3] *= 30  # an outlier channel
    largest = x.abs().amax(dim=0)
    layer = Int8Linear(weight, bias, largest)
    smooth = (largest / weight.abs().amax(dim=0)) ** 0.5
    w_scale = (weight * smooth).abs().amax(dim=1) / WEIGHT_MAX
    w = (weight * smooth / w_scale[:, None]).round()
    x_scale = (x / smooth).abs().amax(dim=1, keepdim=True) / ACTIVATION_MAX
    q = (x / smooth / x_scale).round()
    expected = (q.double() @ w.double().T) * w_scale * x_scale + bias
    torch.testing.assert_close(layer(x).double(), expected, atol=0.2, rtol=0)  # a rounding may fall the other way
    assert (layer(x).double() - expected).abs().median() < 1e-4
    assert torch.nn.functional.cosine_similarity(layer(x), x @ weight.T + bias, dim=1).min() > 0.999
    assert ZERO_POINT == 128


def test_zeros_stay_zeros() -> None:
    layer = Int8Linear(torch.ones(8, 16), torch.arange(8.0), torch.zeros(16))
    torch.testing.assert_close(layer(torch.zeros(5, 16)), torch.arange(8.0).expand(5, 8))


def test_near_fp32(minilm: SentenceEncoder, quantized: SentenceEncoder) -> None:
    """Measured on all of STS-B dev: at least 0.991, 0.998 in the mean."""
    assert (minilm.encode(TEXTS) * quantized.encode(TEXTS)).sum(axis=1).min() > 0.985


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
    with torch.inference_mode():
        first, every = quantized.encoder.first(batch), quantized.encoder(batch)[batch.firsts]
    torch.testing.assert_close(first, every, atol=1e-5, rtol=0)


def test_it_cannot_be_saved(quantized: SentenceEncoder, tmp_path) -> None:
    with pytest.raises(WeightsError, match="a model in int8 cannot be saved; load it with precision='fp32'"):
        quantized.save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_by_its_error_budget(minilm: SentenceEncoder, precision: str) -> None:
    """On a CPU too, so that its every line runs; within 3 times the rounding of its number format."""
    low = SentenceEncoder.from_pretrained("all-MiniLM-L6-v2", precision=precision)
    vectors = low.encode(TEXTS)
    assert vectors.dtype == np.float32
    error = np.abs(vectors - minilm.encode(TEXTS)).max()
    assert 0 < error < {"bf16": 2e-2, "fp16": 2e-3}[precision]


def test_unknown_precision() -> None:
    with pytest.raises(InputError, match="precision is 'fp64'; expected one of fp32, bf16, fp16, int8"):
        SentenceEncoder.from_pretrained("all-MiniLM-L6-v2", precision="fp64")
