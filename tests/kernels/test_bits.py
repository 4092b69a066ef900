"""The same text, the same bits: every pooling, narrow heads and wide, alone on 1, 2, 3 threads and among others."""

import numpy as np
import pytest
import torch
from conftest import WORDS, randomized

from mtl import MultiTaskModel, SentenceEncoder
from mtl.encode.tokenizer import Tokenizer
from mtl.kernels.compile import compile_part
from mtl.kernels.linear import Packed
from mtl.model import rotary
from mtl.model.config import FULL, SLIDING, DebertaConfig, EncoderConfig, RotaryConfig
from mtl.model.deberta import Deberta
from mtl.model.encoder import DistilBert
from mtl.model.pooling import DENSE_ACTIVATIONS, MODES, Dense, LayerNorm, Pooling
from mtl.model.rotary import RotaryEncoder
from mtl.tasks.spec import TaskSpec

TASKS = (
    TaskSpec("mood", ("good", "bad"), pooling=("cls",), head="distilbert"),
    TaskSpec("value", kind="regression", pooling=("attention",)),
)
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def texts() -> list[str]:
    """Of every length from 2 to 40 tokens, and some of the same."""
    generator = np.random.default_rng(0)
    return [" ".join(generator.choice(list(LETTERS), size=n)) for n in [0, 1, 3, 8, 13, 15, 15, 16, 22, 29, 30, 31, 38]]


def shaped(tokenizer, heads: int, width: int, *modes: str, activation: str = "gelu") -> SentenceEncoder:
    dim = heads * width
    config = EncoderConfig(
        vocab_size=len(WORDS),
        max_position_embeddings=64,
        n_layers=2,
        n_heads=heads,
        dim=dim,
        hidden_dim=2 * dim + 3,  # rows that fill no whole register
        activation=activation,
    )
    after = [Dense(dim * len(modes), 7, activation="Sigmoid")]
    model = SentenceEncoder(DistilBert(config), Tokenizer(tokenizer, 64), Pooling(*modes), after)
    return randomized(model)


def turned(tokenizer, heads: int, width: int, *modes: str, **fields: object) -> SentenceEncoder:
    """A RotaryEncoder, with windows that most texts are longer than."""
    dim = heads * width
    config = RotaryConfig(
        vocab_size=len(WORDS),
        max_position_embeddings=64,
        n_layers=2,
        n_heads=heads,
        dim=dim,
        hidden_dim=dim + 3,
        layer_types=(FULL, SLIDING),
        local_attention=9,
        **fields,
    )
    model = SentenceEncoder(RotaryEncoder(config), Tokenizer(tokenizer, 64), Pooling(*modes), [])
    return randomized(model)


def check(model: SentenceEncoder) -> None:
    """By encode and by predict."""
    given = texts()
    several = randomized(MultiTaskModel(model, TASKS))
    expected = np.stack([model.encode(text, threads=1) for text in given])
    logits = [several.predict([text], threads=1).logits for text in given]
    for threads in (1, 2, 3):
        assert np.array_equal(np.stack([model.encode(text, threads=threads) for text in given]), expected)
        for budget in (40, 768):
            assert np.array_equal(model.encode(given, threads=threads, batch_tokens=budget), expected)
        found = several.predict(given, threads=threads)
        assert np.array_equal(found.embeddings, expected)
        for name, x in found.logits.items():
            assert np.array_equal(x, np.concatenate([one[name] for one in logits]))
        alone = [several.predict([text], threads=threads) for text in given]
        assert np.array_equal(np.concatenate([one.embeddings for one in alone]), expected)


@pytest.mark.parametrize("mode", MODES)
def test_every_pooling(tokenizer, mode: str) -> None:
    check(shaped(tokenizer, 2, 16, mode))


@pytest.mark.parametrize(("heads", "width"), [(2, 8), (2, 10), (4, 8), (2, 32), (2, 64), (1, 64), (16, 1)])
def test_every_width_of_a_head(tokenizer, heads: int, width: int) -> None:
    """The first token's alone, and with the tasks of ``check`` all tokens' too."""
    check(shaped(tokenizer, heads, width, "cls"))


@pytest.mark.parametrize("precision", ["int8", "bf16"])
@pytest.mark.parametrize("modes", [("cls",), ("mean",)])
def test_other_precisions(tokenizer, precision: str, modes: tuple[str, ...]) -> None:
    model = shaped(tokenizer, 2, 10, *modes)
    model.precision = precision
    check(model)


@pytest.mark.parametrize("activation", ["silu", "gelu_new", "quick_gelu"])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_every_activation(tokenizer, activation: str, precision: str) -> None:
    model = shaped(tokenizer, 2, 16, "mean", activation=activation)
    model.precision = precision
    check(model)


@pytest.mark.parametrize("precision", ["fp32", "int8", "bf16"])
@pytest.mark.parametrize(("width", "queries"), [(32, 128), (16, 16), (10, 8), (2, 5)])
def test_rotary(tokenizer, monkeypatch: pytest.MonkeyPatch, precision: str, width: int, queries: int) -> None:
    """With windows in one part and in several, before and after the norms, with biases and without."""
    monkeypatch.setattr(rotary, "QUERIES", queries)
    activation, after = ("silu", {"pre_norm": False, "norm_bias": True}) if width in (16, 2) else ("gelu", {})
    model = turned(tokenizer, 2, width, "cls" if width == 16 else "mean", activation=activation, **after)
    model.precision = precision
    check(model)


@pytest.mark.parametrize("precision", ["fp32", "int8", "bf16"])
@pytest.mark.parametrize("width", [32, 10])
def test_deberta(tokenizer, precision: str, width: int) -> None:
    """With distances told apart in full and on a logarithmic scale, and a bias of each text's own."""
    dim = 2 * width
    config = DebertaConfig(
        vocab_size=len(WORDS), max_position_embeddings=64, n_layers=2, n_heads=2, dim=dim, hidden_dim=dim + 3,
        position_buckets=12, max_relative_positions=64,
    )  # fmt: skip
    tokens, mode = Tokenizer(tokenizer, 64), "cls" if width == 10 else "mean"
    model = randomized(SentenceEncoder(Deberta(config), tokens, Pooling(mode), []))
    model.precision = precision
    check(model)


@pytest.mark.parametrize("modes", [("cls",), ("mean",)])
def test_a_real_model(minilm: SentenceEncoder, modes: tuple[str, ...]) -> None:
    """142 of 200 sentences had other bits on two threads, and predict's were others than encode's in all."""
    model = SentenceEncoder(minilm.encoder, minilm.tokenizer, Pooling(*modes)).eval()
    given = [" ".join(["the ferry left without us in the rain"] * 9)[: 3 * n] for n in range(1, 60)]
    expected = model.encode(given, threads=2)
    for threads in (1, 2):
        assert np.array_equal(np.stack([model.encode(text, threads=threads) for text in given]), expected)
    several = MultiTaskModel(model, TASKS).eval()
    assert np.array_equal(several.predict(given).embeddings, expected)


@pytest.mark.parametrize("modes", [("mean",), ("cls",)])
@pytest.mark.parametrize("make", [shaped, turned])
def test_few_numbers_of_rows_come_up(tokenizer, monkeypatch, make, modes: tuple[str, ...]) -> None:
    """Each that does costs the time and memory of a kernel for each layer."""
    model = make(tokenizer, 2, 16, *modes)
    seen: set[int] = set()
    call = Packed.__call__

    def watched(self: Packed, x):
        if self.outputs != 7:  # the head's
            seen.add(len(x))
        return call(self, x)

    monkeypatch.setattr(Packed, "__call__", watched)
    for number in range(1, 50):
        model.encode(" ".join("a" * number), threads=1)
    assert seen <= set(range(4, 65, 4))
    assert len(seen) > 1


@pytest.mark.parametrize("part", [*DENSE_ACTIVATIONS, "LayerNorm"])
def test_layers_behind_a_pooling(part: str) -> None:
    """Of widths that fill no whole register, where torch computes some activations in another way."""
    x = 3 * torch.randn(41, 7, generator=torch.Generator().manual_seed(0))
    layer = randomized(LayerNorm(7) if part == "LayerNorm" else Dense(7, 7, activation=part))
    program = compile_part(layer)
    with torch.no_grad():
        among, expected = program(x.clone()), layer(x)
        assert torch.equal(among, torch.cat([program(row[None].clone()) for row in x]))
        torch.testing.assert_close(among, expected, atol=1e-6, rtol=1e-6)
        assert program(x[:0]).shape == (0, 7)
