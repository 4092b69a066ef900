"""DeBERTa: how distances are told apart, its scores by hand, and that its program computes the same."""

import dataclasses
import math

import pytest
import torch
from conftest import randomized
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl.errors import ConfigError
from mtl.kernels.compile import compile
from mtl.kernels.deberta import Program
from mtl.kernels.int8 import Calibration
from mtl.model.config import DebertaConfig
from mtl.model.deberta import Deberta, rows_of, rows_within
from mtl.model.dropout import Draws, drawing_from
from mtl.model.packing import PackedBatch

CONFIG = DebertaConfig(vocab_size=30, max_position_embeddings=60, n_layers=2, n_heads=2, dim=12, hidden_dim=9,
                       position_buckets=6, max_relative_positions=60)  # fmt: skip


def batch(*lengths: int) -> PackedBatch:
    generator = torch.Generator().manual_seed(0)
    return PackedBatch.pack([torch.randint(30, (n,), generator=generator).tolist() for n in lengths])


def expected_row(distance: int, config: DebertaConfig) -> int:
    """The v2 code's buckets, in Python's own numbers."""
    near, away = config.position_buckets // 2, abs(distance)
    if near and away > near:
        grown = math.log(away / near) / math.log((config.max_relative_positions - 1) / near) * (near - 1)
        distance = int(math.copysign(math.ceil(grown - 1e-6) + near, distance))
    return min(max(distance + config.span, 0), 2 * config.span - 1)


@pytest.mark.parametrize(("buckets", "most"), [(6, 60), (7, 60), (0, 10), (0, 60), (2, 60), (256, 512), (32, 20)])
def test_rows_by_hand(buckets: int, most: int) -> None:
    config = dataclasses.replace(CONFIG, position_buckets=buckets, max_relative_positions=most)
    for length in (1, 2, 9, 60):
        found = rows_of(length, config)
        assert found.tolist() == [[expected_row(i - j, config) for j in range(length)] for i in range(length)]
        assert rows_within(length, config) == slice(int(found.min()), int(found.max()) + 1)


def test_scores_by_hand() -> None:
    """Equation 4, entry by entry, with what distances have of their own."""
    model = randomized(Deberta(dataclasses.replace(CONFIG, share_att_key=False)))
    attention, length = model.blocks[0].attention, 9
    q, k = torch.randn(2, 1, length, 2, 6).unbind()
    pos_k, pos_q = attention.distances(model.table())
    bias, rows = attention.bias(q, k, pos_k, pos_q, rows_of(length, CONFIG)), rows_of(length, CONFIG)
    for i in range(length):
        for j in range(length):
            row = rows[i, j]
            scores = (q[0, i] * pos_k[:, row]).sum(-1) + (k[0, j] * pos_q[:, row]).sum(-1)
            torch.testing.assert_close(bias[0, :, i, j], scores / math.sqrt(6))


@given(
    st.builds(
        lambda heads, width, **fields: dataclasses.replace(CONFIG, n_heads=heads, dim=heads * width, **fields),
        st.integers(1, 3),
        st.integers(1, 9),
        position_buckets=st.sampled_from([0, 2, 5, 8]),
        max_relative_positions=st.sampled_from([7, 20]),
        **{name: st.booleans() for name in ("position_biased_input", "c2p", "p2c", "share_att_key", "norm_rel_ebd")},
    ),
    st.lists(st.integers(1, 40), max_size=5),
    st.data(),
)
@settings(max_examples=60, deadline=None)
def test_the_program_is_the_model(config: DebertaConfig, lengths: list[int], data) -> None:
    """All tokens and the first, whole or begun anywhere. Measured: at most 3e-6 of hidden states up to 4."""
    model = randomized(Deberta(config))
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


def test_int8_takes_the_ranges_of_words() -> None:
    """Not those of the table of distances, which the same layers project."""
    model = randomized(Deberta(CONFIG))
    with torch.no_grad():
        model.rel_norm.weight.mul_(1e4)  # far beyond any word
        model.blocks[0].attention.k_lin.weight.mul_(1e-4)  # so that scores stay as they were
        model.blocks[0].attention.q_lin.weight.mul_(1e-4)
    small = compile(model, "int8", Calibration([[1, 2, 3, 4, 5, 6]])).blocks[0]
    assert small.qkv.step < 1


def test_it_trains_and_drops_by_keys() -> None:
    """The same keys drop the same, beside whatever other texts; every parameter gets a gradient."""
    model = randomized(Deberta(dataclasses.replace(CONFIG, dropout=0.3, attention_dropout=0.3))).train()
    texts = batch(9, 9, 4)
    with drawing_from(Draws([5, 6, 7], texts.lengths)):
        together = model(texts)
    with drawing_from(Draws([6], (9,))):
        alone = model(PackedBatch(texts.ids[9:18], texts.positions[9:18], (9,)))
    torch.testing.assert_close(together[9:18], alone, atol=1e-5, rtol=1e-5)
    together.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
    assert {model.depth_of(name) for name, _ in model.named_parameters() if "rel_" in name} == {0}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"position_buckets": 1}, "position_buckets is 1; expected 0, or 2 to"),
        ({"position_buckets": True}, "position_buckets is True"),
        ({"max_relative_positions": 4}, "max_relative_positions is 4; expected more than 4"),
        ({"max_relative_positions": 0}, "max_relative_positions is 0; expected a positive integer"),
        ({"c2p": 1}, "c2p is 1; expected true or false"),
        ({"embedding_dim": 4}, "embedding_dim or padding is set"),
        ({"n_heads": 5}, "n_heads 5 does not divide dim 12"),
    ],
)
def test_bad_config(fields: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(CONFIG, **fields)
