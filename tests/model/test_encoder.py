"""The encoder against transformers' output on tiny random models, every kept token, through our loader."""

import json
from pathlib import Path

import pytest
import torch
from conftest import golden, randomized
from safetensors.torch import save_file

from mtl.checkpoints.load import load_encoder
from mtl.errors import ConfigError
from mtl.model import attention
from mtl.model.config import EncoderConfig
from mtl.model.encoder import DistilBert, gelu, sinusoids
from mtl.model.packing import PackedBatch

CONFIG = EncoderConfig(vocab_size=30, max_position_embeddings=16, n_layers=3, n_heads=2, dim=8, hidden_dim=12)


def load_golden(name: str, folder: Path, prefix: str = "") -> DistilBert:
    case = golden(name)
    save_file({prefix + key: tensor for key, tensor in case.weights.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(case.config))
    return load_encoder(folder)[0]


@pytest.mark.parametrize("name", ["learned-gelu", "sinusoidal-gelu", "learned-relu", "bert"])
@pytest.mark.parametrize("prefixed", [False, True])
def test_equals_the_reference(name: str, prefixed: bool, tmp_path: Path) -> None:
    """Measured: at most 1.5e-6. A wrong GELU, eps, scale, mask or swapped tensor gives 1e-3 and more."""
    case = golden(name)
    model = load_golden(name, tmp_path, f"{case.config['model_type']}." if prefixed else "")
    with torch.no_grad():
        hidden = model(PackedBatch.from_padded(case.ids, case.mask))
    torch.testing.assert_close(hidden, case.hidden[case.mask.bool()], atol=1e-5, rtol=0)


def test_equals_the_reference_with_a_graph(tmp_path: Path) -> None:
    """With gradients enabled GELU takes its other branch; the values are the same bits."""
    case = golden("learned-gelu")
    model = load_golden("learned-gelu", tmp_path)
    batch = PackedBatch.from_padded(case.ids, case.mask)
    with torch.no_grad():
        without = model(batch)
    assert torch.equal(model(batch), without)


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_upper_goes_on_where_lower_stopped(depth: int) -> None:
    model = randomized(DistilBert(CONFIG))
    batch = PackedBatch.pack([[3, 4, 5], [6, 7]])
    with torch.no_grad():
        assert torch.equal(model.upper(model.lower(batch, depth), batch, depth), model(batch))


@pytest.mark.parametrize("texts", [[[3, 4, 5], [6, 7], [8, 9], [10]], [[3]], []])
def test_the_first_tokens_alone(texts: list[list[int]]) -> None:
    """The shortcut of CLS pooling. Measured: at most 1e-6."""
    model = randomized(DistilBert(CONFIG))
    batch = PackedBatch.pack(texts)
    with torch.no_grad():
        torch.testing.assert_close(model.first(batch), model(batch)[batch.firsts], atol=1e-5, rtol=0)


def test_no_texts_give_no_hidden_states() -> None:
    assert DistilBert(CONFIG)(PackedBatch.pack([])).shape == (0, 8)


def test_dropout_only_in_training() -> None:
    model = DistilBert(CONFIG)
    batch = PackedBatch.pack([[3, 4, 5]])
    assert not torch.equal(model.train()(batch), model.train()(batch))
    assert torch.equal(model.eval()(batch), model.eval()(batch))


@pytest.mark.parametrize("implementation", [attention.reference, attention.grouped])
def test_the_whole_model_on_each_attention(implementation, monkeypatch: pytest.MonkeyPatch) -> None:
    model = randomized(DistilBert(CONFIG))
    batch = PackedBatch.pack([[3, 4, 5], [6, 7, 8], [9]])
    expected = model(batch)
    monkeypatch.setattr("mtl.model.encoder.attend", implementation)
    torch.testing.assert_close(model(batch), expected, atol=1e-5, rtol=0)


def test_sinusoids_by_hand() -> None:
    table = sinusoids(3, 4)
    rows = [[0, 1, 0, 1], [0.841471, 0.540302, 0.0099998, 0.99995], [0.909297, -0.416147, 0.0199987, 0.9998]]
    torch.testing.assert_close(table, torch.tensor(rows), atol=1e-6, rtol=0)


def test_gelu_is_the_exact_one() -> None:
    x = torch.linspace(-4, 4, 101, dtype=torch.float64)
    exact = x * (1 + torch.erf(x / 2**0.5)) / 2
    with torch.no_grad():
        torch.testing.assert_close(gelu(x.clone()), exact, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"activation": "swish"}, "activation is 'swish'; expected one of gelu, relu"),
        ({"n_heads": 5}, "n_heads 5 does not divide dim 768"),
        ({"dim": -8}, "dim is -8; expected a positive integer"),
        ({"n_layers": 0}, "n_layers is 0; expected a positive integer"),
        ({"vocab_size": 3.5}, "vocab_size is 3.5; expected a positive integer"),
        ({"dropout": 1.0}, "dropout is 1.0; expected a number from 0"),
    ],
)
def test_bad_config(fields: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EncoderConfig(**fields)
