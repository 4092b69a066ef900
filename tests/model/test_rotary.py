"""The second encoder: what it refuses, its windows, its parts, and that its program computes the same."""

import dataclasses

import pytest
import torch
from conftest import randomized
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl.errors import ConfigError
from mtl.kernels.compile import compile
from mtl.kernels.rotary import Program
from mtl.model import encoder, rotary
from mtl.model.activations import ACTIVATIONS
from mtl.model.config import FULL, SLIDING, RotaryConfig
from mtl.model.dropout import Draws, drawing_from
from mtl.model.packing import PackedBatch
from mtl.model.positions import angles
from mtl.model.rotary import RotaryEncoder

CONFIG = RotaryConfig(
    vocab_size=30, n_layers=3, n_heads=2, dim=16, hidden_dim=9, layer_types=(FULL, SLIDING, SLIDING), local_attention=7
)


def batch(*lengths: int) -> PackedBatch:
    generator = torch.Generator().manual_seed(0)
    return PackedBatch.pack([torch.randint(30, (n,), generator=generator).tolist() for n in lengths])


@st.composite
def configs(draw) -> RotaryConfig:
    flags = {name: draw(st.booleans()) for name in ("pre_norm", "norm_bias", "attention_bias", "gate_bias", "mlp_bias")}
    n_layers, n_heads = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    return RotaryConfig(
        vocab_size=30,
        n_layers=n_layers,
        n_heads=n_heads,
        dim=n_heads * 2 * draw(st.integers(1, 9)),
        hidden_dim=draw(st.integers(1, 40)),
        activation=draw(st.sampled_from(list(ACTIVATIONS))),
        layer_types=draw(st.sampled_from([(), tuple(draw(st.sampled_from((FULL, SLIDING))) for _ in range(n_layers))])),
        local_attention=draw(st.integers(1, 20)),
        theta=draw(st.sampled_from([1.0, 1000.0, 160000.0])),
        ntk_factor=draw(st.sampled_from([1.0, 2.0])),
        **flags,
    )


@given(configs(), st.lists(st.integers(1, 40), max_size=5), st.data())
@settings(max_examples=60, deadline=None)
def test_the_program_is_the_model(config: RotaryConfig, lengths: list[int], data) -> None:
    """All tokens and the first, whole or begun anywhere. Measured: at most 3e-6 of hidden states up to 5."""
    model = randomized(RotaryEncoder(config))
    program, texts = compile(model), batch(*lengths)
    assert isinstance(program, Program)
    start = data.draw(st.integers(0, config.n_layers))
    with torch.inference_mode():
        x = model.embed(texts)
        torch.testing.assert_close(program.embed(texts), x, atol=1e-5, rtol=0)
        middle, whole = model.run(x, texts, stop=start), model.run(x, texts)
        assert torch.equal(model.run(middle, texts, start), whole)
        torch.testing.assert_close(program.run(middle, texts, start), whole, atol=1e-5, rtol=1e-5)
        firsts = program.run(middle, texts, start, first=True) if start < config.n_layers else whole[texts.firsts]
        torch.testing.assert_close(firsts, whole[texts.firsts], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("length", [1, 4, 5, 16, 17, 33, 300])
@pytest.mark.parametrize("reach", [0, 1, 3, 64])
def test_windows_are_exact(monkeypatch: pytest.MonkeyPatch, length: int, reach: int) -> None:
    """As the whole square of scores, of which most are masked."""
    monkeypatch.setattr(rotary, "QUERIES", 16)
    q, k, v = torch.randn(3, 2, length, 3, 8, dtype=torch.float64).unbind()
    place = torch.arange(length)
    far = (place[:, None] - place).abs() > reach
    scores = torch.einsum("tqhd,tkhd->thqk", q, k) / 8**0.5
    expected = torch.einsum("thqk,tkhd->tqhd", scores.masked_fill(far, -torch.inf).softmax(-1), v)
    torch.testing.assert_close(rotary.attention(q, k, v, reach), expected)
    monkeypatch.setattr(encoder, "dropout", lambda x, p: x)  # weights that might be dropped are all written down
    torch.testing.assert_close(rotary.attention(q, k, v, reach, p=0.5), expected)


def test_a_token_sees_its_neighbours_only() -> None:
    config = dataclasses.replace(CONFIG, n_layers=1, layer_types=(SLIDING,))
    model = randomized(RotaryEncoder(config))
    one, other = batch(20), batch(20)
    other.ids[10] = (other.ids[10] + 1) % 30
    with torch.inference_mode():
        differs = (model(one) != model(other)).any(dim=1)
    assert differs.nonzero().flatten().tolist() == list(range(7, 14))


def test_angles_by_hand() -> None:
    cos, sin = angles(torch.tensor([0, 3]), 4, 100.0)
    expected = torch.tensor([[0.0, 0.0], [3.0, 0.3]])
    torch.testing.assert_close(cos, expected.cos())
    torch.testing.assert_close(sin, expected.sin())
    cos, _ = angles(torch.tensor([3]), 4, 100.0, ntk=4.0)  # rates 1 / 2 and 1 / 20 / 2
    torch.testing.assert_close(cos, torch.tensor([[1.5, 0.075]]).cos())


def test_only_distances_count() -> None:
    model = randomized(RotaryEncoder(dataclasses.replace(CONFIG, layer_types=())))
    text = batch(9)
    moved = PackedBatch(text.ids, text.positions + 50, text.lengths)
    with torch.inference_mode():
        torch.testing.assert_close(model(moved), model(text), atol=1e-4, rtol=0)


def test_what_a_parameter_belongs_to() -> None:
    model = RotaryEncoder(CONFIG)
    assert model.words.weight.shape == (30, 16)
    depths = {name: model.depth_of(name) for name, _ in model.named_parameters()}
    assert depths["embeddings.norm.weight"] == 0
    assert depths["layers.0.attn.Wqkv.weight"] == 1
    assert depths["final_norm.weight"] == depths["layers.2.mlp.Wo.weight"] == 3
    assert "layers.0.attn_norm.weight" not in depths


def test_it_trains_and_drops_by_keys() -> None:
    """The same keys drop the same, beside whatever other texts; every parameter gets a gradient."""
    drop = dict.fromkeys(("embedding_dropout", "attention_dropout", "mlp_dropout", "dropout"), 0.3)
    model = randomized(RotaryEncoder(dataclasses.replace(CONFIG, **drop))).train()
    texts = batch(9, 9, 4)
    with drawing_from(Draws([5, 6, 7], texts.lengths)):
        together = model(texts)
    with drawing_from(Draws([6], (9,))):
        alone = model(PackedBatch(texts.ids[9:18], texts.positions[9:18], (9,)))
    torch.testing.assert_close(together[9:18], alone, atol=1e-5, rtol=1e-5)
    together.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
    assert not torch.equal(together, model.eval()(texts))


def test_fewer_blocks() -> None:
    kept = CONFIG.keeping([0, 2])
    assert (kept.n_layers, kept.layer_types) == (2, (FULL, SLIDING))
    with pytest.raises(ConfigError, match=r"layers are \[1, 2\]; expected to begin with 0"):
        CONFIG.keeping([1, 2])
    assert dataclasses.replace(CONFIG, pre_norm=False).keeping([1, 2]).n_layers == 2


def test_a_long_text_takes_memory_by_its_length() -> None:
    """8,192 tokens: a square of scores would be 268 MB for each head."""
    config = dataclasses.replace(CONFIG, n_layers=1, layer_types=(SLIDING,), local_attention=128)
    program, text = compile(randomized(RotaryEncoder(config))), batch(8192)
    with torch.inference_mode(), torch.profiler.profile(profile_memory=True) as profile:
        assert program(text).isfinite().all()
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert largest < 8192 * 3 * 16 * 4 * 2  # twice what q, k and v take


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_heads": 3}, "n_heads 3 does not divide dim 16"),
        ({"dim": 10}, "dim 10 and n_heads 2 make heads of 5; expected an even number"),
        (
            {"layer_types": (FULL, "linear_attention", FULL)},
            "layer_types is .*linear_attention.*expected full_attention",
        ),
        ({"layer_types": (FULL,)}, "layer_types is .*for each of the 3 layers"),
        ({"layer_types": [FULL] * 3}, "layer_types is"),
        ({"layer_types": (FULL, FULL, {})}, "layer_types is"),
        ({"local_attention": 0}, "local_attention is 0; expected a positive integer"),
        ({"theta": 0.5}, "theta is 0.5; expected a number of 1 or more"),
        ({"theta": float("inf")}, "theta is inf; expected a number from 0"),
        ({"theta": None}, "theta is None; expected a number from 0"),
        ({"local_theta": float("nan")}, "local_theta is nan"),
        ({"ntk_factor": 0}, "ntk_factor is 0; expected a number of 1 or more"),
        ({"norm_bias": 1}, "norm_bias is 1; expected true or false"),
        ({"mlp_dropout": 1.0}, "mlp_dropout is 1.0; expected a number from 0"),
        ({"activation": ["gelu"]}, "activation is .*; expected one of gelu"),
        ({"hidden_dim": True}, "hidden_dim is True; expected a positive integer"),
    ],
)
def test_bad_config(fields: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(CONFIG, **fields)
