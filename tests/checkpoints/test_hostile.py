"""A model's folder may come from anyone: what it says is checked before it is believed."""

import json
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import WORDS
from safetensors.torch import load_file, save_file

from mtl import MultiTaskModel, SentenceEncoder
from mtl.checkpoints.load import Checkpoint, load
from mtl.checkpoints.save import save
from mtl.errors import ConfigError, MtlError, WeightsError
from mtl.model.pooling import Dense, Normalize

BIAS = "transformer.layer.1.ffn.lin1.bias"


def edit_tensors(folder: Path, **changes: torch.Tensor) -> None:
    path = folder / "model.safetensors"
    save_file(load_file(path) | changes, path)


def append_module(folder: Path, kind: str, path: str) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([*modules, {"idx": 2, "name": "2", "path": path, "type": kind}]))


@pytest.fixture
def with_dense(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """A folder with two Dense layers, 12 to 5 to 4."""
    model = SentenceEncoder(
        checkpoint.encoder, SentenceEncoder.from_checkpoint(checkpoint).tokenizer,
        SentenceEncoder.from_checkpoint(checkpoint).pooling, (Dense(12, 5), Dense(5, 4), Normalize()),
    )  # fmt: skip
    model.save(tmp_path / "dense")
    return tmp_path / "dense"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_weights_that_are_not_finite(folder: Path, value: float, dtype: torch.dtype) -> None:
    tensor = torch.zeros(20, dtype=dtype)
    tensor[7] = value
    edit_tensors(folder, **{BIAS: tensor})
    with pytest.raises(WeightsError, match=rf"model.safetensors: {BIAS} holds an infinity or NaN; expected finite"):
        load(folder)


def test_weights_whose_sum_is_not_finite(folder: Path) -> None:
    edit_tensors(folder, **{BIAS: torch.full((20,), 3e38)})
    assert load(folder).encoder.state_dict()[BIAS].tolist() == torch.full((20,), 3e38).tolist()


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_weights_that_are_no_fractions(folder: Path, dtype: torch.dtype) -> None:
    edit_tensors(folder, **{BIAS: torch.zeros(20, dtype=dtype)})
    message = f"{BIAS} is of {str(dtype)[6:]}, expected floating-point numbers"
    with pytest.raises(WeightsError, match=message):
        load(folder)


def test_heads_that_are_not_finite(folder: Path, checkpoint: Checkpoint, tmp_path: Path) -> None:
    from mtl.tasks.spec import TaskSpec

    MultiTaskModel(SentenceEncoder.from_checkpoint(checkpoint), [TaskSpec("mood", ("a", "b"))]).save(tmp_path / "m")
    path = tmp_path / "m" / "tasks.safetensors"
    tensors = load_file(path)
    name = next(iter(tensors))
    save_file(tensors | {name: torch.full_like(tensors[name], torch.nan)}, path)
    with pytest.raises(WeightsError, match=f"tasks.safetensors: {name} holds an infinity or NaN"):
        MultiTaskModel.from_pretrained(tmp_path / "m")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_layers": 10**9}, "model.safetensors holds 2 layers, but its config says 1000000000"),
        ({"vocab_size": 10**9}, r"word_embeddings.weight is \(38, 12\), expected \(1000000000, 12\)"),
        (
            {"dim": 3 * 10**8, "sinusoidal_pos_embds": True},
            r"position_embeddings.weight is \(16, 12\), expected \(16, 3",
        ),
        ({"hidden_dim": 10**18}, "config.json: hidden_dim is 1000000000000000000; expected a positive integer up to"),
    ],
)
def test_sizes_are_checked_before_anything_is_allocated(
    folder: Path, edit_json: Callable, fields: dict, message: str
) -> None:
    edit_json(folder / "config.json", **fields)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(MtlError, match=message):
        load(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("config.json", {"dropout": "0.1"}, "config.json: dropout is '0.1'; expected a number from 0"),
        ("config.json", {"initializer_range": -1}, "initializer_range is -1; expected a number from 0"),
        ("config.json", {"sinusoidal_pos_embds": "no"}, "sinusoidal_pos_embds is 'no'; expected true or false"),
        ("sentence_bert_config.json", {"max_seq_length": "256"}, "max_seq_length is '256'; expected a positive number"),
        ("sentence_bert_config.json", {"max_seq_length": 0}, "max_seq_length is 0; expected a positive number"),
        ("sentence_bert_config.json", {"do_lower_case": "false"}, "do_lower_case is 'false'; expected true or false"),
        ("config_sentence_transformers.json", {"prompts": {"q": 1}}, "prompts.'q' is 1; expected a string"),
        ("config_sentence_transformers.json", {"prompts": ["q"]}, r"prompts is \['q'\]; expected an object"),
        (
            "config_sentence_transformers.json",
            {"prompts": {"q": "query: "}, "default_prompt_name": "query"},
            r"default_prompt_name is 'query'; expected one of the prompts \(q\)",
        ),
        ("1_Pooling/config.json", {"pooling_mode": 7}, "pooling_mode is 7; expected a name, or a list of names"),
        ("1_Pooling/config.json", {"pooling_mode": ["mean", "mean"]}, "expected one or more of .*, each once"),
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": "yes"}, "is 'yes'; expected true or false"),
    ],
)
def test_fields_of_another_type(folder: Path, edit_json: Callable, name: str, fields: dict, message: str) -> None:
    edit_json(folder / name, **fields)
    with pytest.raises(ConfigError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"in_features": 7}, "2_Dense/config.json: in_features is 7; what comes before it gives 12 values"),
        (
            {"out_features": 6},
            r"linear.bias is \(5,\), expected \(6,\); linear.weight is \(5, 12\), expected \(6, 12\)",
        ),
        ({"out_features": "5"}, "out_features is '5'; expected a whole number"),
        ({"out_features": 0}, "out_features is 0; expected 1 or more"),
        (
            {"activation_function": "os.system"},
            "Dense activation 'os.system' is unknown; expected one of Identity, Tanh",
        ),
    ],
)
def test_a_dense_layer_that_does_not_fit(with_dense: Path, edit_json: Callable, fields: dict, message: str) -> None:
    assert load(with_dense).after[1].linear.out_features == 4
    edit_json(with_dense / "2_Dense" / "config.json", **fields)
    with pytest.raises(ConfigError if "linear" not in message else WeightsError, match=message):
        load(with_dense)


@pytest.mark.parametrize("name", ["config.json", "modules.json", "config_sentence_transformers.json", "tokenizer.json"])
def test_json_nested_deep(folder: Path, name: str) -> None:
    (folder / name).write_text('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(WeightsError, match=f"{name} cannot be read as"):
        load(folder)


@pytest.mark.parametrize("place", ["../elsewhere/2_Dense", "/etc", "2_Dense/../../elsewhere/2_Dense", "\0", "x" * 5000])
def test_a_module_outside_the_folder(with_dense: Path, place: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (with_dense / "2_Dense").rename(tmp_path / "elsewhere" / "2_Dense")
    modules = json.loads((with_dense / "modules.json").read_text())
    modules[2]["path"] = place
    (with_dense / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(WeightsError) as error:
        load(with_dense)
    assert ("out of the model's folder" in str(error.value)) == (place[0] not in "\0x")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "1_Pooling"])
def test_a_link_out_of_the_folder(folder: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    (folder / name).rename(tmp_path / "elsewhere" / name)
    (folder / name).symlink_to(tmp_path / "elsewhere" / name)
    with pytest.raises(WeightsError, match=f"{name}.* leads to .*elsewhere/{name}.*, out of the model's folder"):
        load(folder)


def test_links_in_the_hub_s_cache_and_within_a_folder(folder: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--me--tiny"
    (repository / "blobs").mkdir(parents=True)
    (repository / "snapshots").mkdir()
    folder = folder.rename(repository / "snapshots" / "0123")
    for name in ("config.json", "model.safetensors"):
        (folder / name).rename(repository / "blobs" / name)
        (folder / name).symlink_to(f"../../blobs/{name}")
    (folder / "tokenizer.json").rename(folder / "letters.json")
    (folder / "tokenizer.json").symlink_to("letters.json")
    assert load(folder).config.dim == 12
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("/etc/hostname")
    with pytest.raises(WeightsError, match="leads to /etc/hostname, out of the model's folder"):
        load(folder)


def test_a_pipe_is_not_waited_for(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    with pytest.raises(WeightsError, match="config.json is neither file nor folder"):
        load(folder)


@pytest.mark.parametrize("target", ["nowhere", "modules.json"])
def test_a_link_to_nowhere(folder: Path, target: str) -> None:
    """An optional file that is a broken link is not simply absent: the model would be another."""
    (folder / "modules.json").unlink()
    (folder / "modules.json").symlink_to(target)
    with pytest.raises(WeightsError, match=f"modules.json is a link to {target}, which is not there"):
        load(folder)


def test_a_classifier_s_labels(folder: Path, edit_json: Callable) -> None:
    head = {"pre_classifier.weight": torch.randn(12, 12), "pre_classifier.bias": torch.randn(12)}
    edit_tensors(folder, **head, **{"classifier.weight": torch.randn(2, 12)})
    assert "missing classifier.bias" in load(folder).classifier.problem
    with pytest.raises(WeightsError, match="missing classifier.bias"):
        MultiTaskModel.from_pretrained(folder)
    edit_tensors(folder, **{"classifier.bias": torch.randn(2)})
    edit_json(folder / "config.json", id2label={"0": "no", "2": "yes"})
    with pytest.raises(
        WeightsError, match=r"id2label is {'0': 'no', '2': 'yes'}; expected another name for each of 0 to 1"
    ):
        MultiTaskModel.from_pretrained(folder)
    assert SentenceEncoder.from_pretrained(folder).encode(["a"]).shape == (1, 12)


def test_bert_without_token_types(checkpoint: Checkpoint, tmp_path: Path) -> None:
    save(checkpoint, tmp_path / "bert", "bert")
    path = tmp_path / "bert" / "model.safetensors"
    tensors = load_file(path)
    types = tensors.pop("embeddings.token_type_embeddings.weight")
    save_file(tensors, path)
    with pytest.raises(WeightsError, match="missing embeddings.token_type_embeddings.weight"):
        load(tmp_path / "bert")
    save_file(tensors | {"embeddings.token_type_embeddings.weight": types[:, :1].clone()}, path)
    with pytest.raises(WeightsError, match=r"token_type_embeddings.weight is \(2, 1\), expected \(2, 12\)"):
        load(tmp_path / "bert")


def test_a_tensor_twice(folder: Path, checkpoint: Checkpoint) -> None:
    edit_tensors(folder, **{f"distilbert.{BIAS}": torch.zeros(20)})
    with pytest.raises(
        WeightsError, match="holds tensors twice: distilbert.transformer.layer.1.ffn.lin1.bias is the encoder's too"
    ):
        load(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cls_token": 7}, "cls_token is 7; expected a string"),
        ({"sep_token": {"text": "[SEP]"}, "unk_token": {"content": []}}, r"content is \[\]; expected a string"),
        ({"do_lower_case": "no"}, "do_lower_case is 'no'; expected true or false"),
    ],
)
def test_tokenizer_options_of_another_type(folder: Path, edit_json: Callable, options: dict, message: str) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    edit_json(folder / "tokenizer_config.json", **options)
    with pytest.raises(ConfigError, match=message):
        load(folder)
