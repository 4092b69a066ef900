"""Pooling against sentence-transformers, on a packed batch, for every mode."""

import pytest
import torch
from conftest import GOLDENS
from safetensors.torch import load_file

from mtl.errors import ConfigError
from mtl.model.packing import PackedBatch
from mtl.model.pooling import MODES, AttentionPooling, Pooling

CASE = load_file(GOLDENS / "pooling.safetensors")
BATCH = PackedBatch.from_padded(torch.zeros_like(CASE["mask"]), CASE["mask"])
HIDDEN = CASE["hidden"][CASE["mask"].bool()]
GOLDEN = {mode: CASE["mean_sqrt_len_tokens" if mode == "mean_sqrt_len" else mode] for mode in MODES}


@pytest.mark.parametrize("mode", MODES)
def test_mode(mode: str) -> None:
    """Measured: at most 2.4e-7. The input stays as it was."""
    before = HIDDEN.clone()
    torch.testing.assert_close(Pooling(mode)(HIDDEN, BATCH), GOLDEN[mode], atol=1e-6, rtol=0)
    assert torch.equal(HIDDEN, before)


def test_concatenation_keeps_the_order_given() -> None:
    pooled = Pooling("max", "cls", "mean")(HIDDEN, BATCH)
    torch.testing.assert_close(pooled, torch.cat([GOLDEN[m] for m in ("max", "cls", "mean")], 1), atol=1e-6, rtol=0)


def test_attention_pooling_text_by_text() -> None:
    pooling = AttentionPooling(6)
    pooled = pooling(HIDDEN, BATCH)
    for text, vector in zip(HIDDEN.split(BATCH.lengths), pooled, strict=True):
        expected = pooling.score(text).softmax(dim=0).T @ text
        torch.testing.assert_close(vector, expected[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("pooling", [Pooling("mean", "max"), AttentionPooling(6)])
def test_no_texts(pooling: torch.nn.Module) -> None:
    width = 12 if isinstance(pooling, Pooling) else 6
    assert pooling(torch.zeros(0, 6), PackedBatch.pack([])).shape == (0, width)


@pytest.mark.parametrize("modes", [(), ("mean", "median")])
def test_unknown_mode(modes: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="expected one or more of cls, lasttoken, max, mean"):
        Pooling(*modes)
