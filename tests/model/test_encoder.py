"""The encoder against transformers' output on tiny random models, every kept token, through our loader."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from conftest import golden, randomized
from safetensors.torch import save_file
from torch import nn

from mtl.checkpoints.load import load_encoder
from mtl.errors import ConfigError
from mtl.kernels.compile import compile
from mtl.model import encoder
from mtl.model.activations import ACTIVATIONS
from mtl.model.config import EncoderConfig
from mtl.model.encoder import DistilBert
from mtl.model.packing import PackedBatch
from mtl.model.positions import sinusoids

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


def test_embeddings_of_another_width() -> None:
    model = randomized(DistilBert(dataclasses.replace(CONFIG, embedding_dim=5)))
    batch = PackedBatch.pack([[3, 4, 5], [6, 7]])
    parts = model.embeddings
    x = parts.LayerNorm(parts.word_embeddings.weight[batch.ids] + parts.position_embeddings.weight[batch.positions])
    expected = x @ parts.project.weight.T + parts.project.bias
    torch.testing.assert_close(model.embed(batch), expected)
    torch.testing.assert_close(compile(model).embed(batch), expected, atol=1e-6, rtol=0)
    assert "embedding_dim" not in repr(CONFIG)  # fingerprints of what has no other width stay as they were
    with pytest.raises(ConfigError, match="embedding_dim is 0; expected a positive integer"):
        dataclasses.replace(CONFIG, embedding_dim=0)


@pytest.mark.parametrize("name", ["encoder", "mpnet", "rotary", "deberta"])
def test_the_models_are_short(name: str) -> None:
    path = Path(encoder.__file__).with_name(f"{name}.py")
    assert len(path.read_text(encoding="utf-8").splitlines()) <= (130 if name == "encoder" else 160)


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_a_run_goes_on_where_another_stopped(depth: int) -> None:
    model = randomized(DistilBert(CONFIG))
    batch = PackedBatch.pack([[3, 4, 5], [6, 7]])
    with torch.no_grad():
        x = model.run(model.embed(batch), batch, stop=depth)
        assert torch.equal(model.run(x, batch, depth), model(batch))


def test_what_a_parameter_belongs_to() -> None:
    model = DistilBert(dataclasses.replace(CONFIG, sinusoidal_pos_embds=True))
    assert model.words.weight.shape == (30, 8)
    depths = {model.depth_of(name): name for name, _ in model.named_parameters()}
    assert list(depths) == [0, 1, 2, 3]
    assert depths[0] == "embeddings.LayerNorm.bias"
    assert depths[3] == "transformer.layer.2.output_layer_norm.bias"
    assert model.fixed == {"embeddings.position_embeddings.weight"}
    assert not DistilBert(CONFIG).fixed


def test_no_texts_give_no_hidden_states() -> None:
    assert DistilBert(CONFIG)(PackedBatch.pack([])).shape == (0, 8)


def test_dropout_only_in_training() -> None:
    model = DistilBert(CONFIG)
    batch = PackedBatch.pack([[3, 4, 5]])
    assert not torch.equal(model.train()(batch), model.train()(batch))
    assert torch.equal(model.eval()(batch), model.eval()(batch))


def test_sinusoids_by_hand() -> None:
    table = sinusoids(3, 4)
    rows = [[0, 1, 0, 1], [0.841471, 0.540302, 0.0099998, 0.99995], [0.909297, -0.416147, 0.0199987, 0.9998]]
    torch.testing.assert_close(table, torch.tensor(rows), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_by_their_definitions(name: str) -> None:
    x = torch.linspace(-4, 4, 101, dtype=torch.float64)
    tanh_gelu = x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2
    exact = {
        **dict.fromkeys(("gelu", "gelu_python"), x * (1 + torch.erf(x / 2**0.5)) / 2),
        "relu": x * (x > 0),
        **dict.fromkeys(("silu", "swish"), x / (1 + torch.exp(-x))),
        "quick_gelu": x / (1 + torch.exp(-1.702 * x)),
    }.get(name, tanh_gelu)
    torch.testing.assert_close(
        ACTIVATIONS[name](x.clone()), exact, atol=1e-9, rtol=0
    )  # gelu_fast's constant is shorter


def test_a_config_is_written_as_before_it_had_an_eps() -> None:
    """Fingerprints of models are made of it, and of corpora of them."""
    assert repr(CONFIG) == (
        "EncoderConfig(vocab_size=30, max_position_embeddings=16, sinusoidal_pos_embds=False, n_layers=3, n_heads=2, "
        "dim=8, hidden_dim=12, dropout=0.1, attention_dropout=0.1, activation='gelu', initializer_range=0.02)"
    )
    assert repr(dataclasses.replace(CONFIG, layer_norm_eps=1e-5)).endswith("0.02, layer_norm_eps=1e-05)")


def test_norms_have_the_configs_eps() -> None:
    model = DistilBert(dataclasses.replace(CONFIG, layer_norm_eps=1e-5))
    assert {part.eps for part in model.modules() if isinstance(part, nn.LayerNorm)} == {1e-5}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"activation": "mish"}, "activation is 'mish'; expected one of gelu, relu"),
        ({"n_heads": 5}, "n_heads 5 does not divide dim 768"),
        ({"dim": -8}, "dim is -8; expected a positive integer"),
        ({"n_layers": 0}, "n_layers is 0; expected a positive integer"),
        ({"vocab_size": 3.5}, "vocab_size is 3.5; expected a positive integer"),
        ({"layer_norm_eps": -1e-5}, "layer_norm_eps is -1e-05; expected a number from 0"),
        ({"dropout": 1.0}, "dropout is 1.0; expected a number from 0"),
    ],
)
def test_bad_config(fields: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EncoderConfig(**fields)
