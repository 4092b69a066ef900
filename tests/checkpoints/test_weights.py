"""Loading and writing model folders: exact round trips, and one clear line for whatever is wrong."""

import copy
import dataclasses
import json
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import golden, randomized
from safetensors.torch import load_file, save_file

from mtl import SentenceEncoder
from mtl.checkpoints.families import FAMILIES
from mtl.checkpoints.fetch import sha256_of
from mtl.checkpoints.load import Checkpoint, load, load_encoder
from mtl.checkpoints.save import save, sha256_of_tensors, write_tensors
from mtl.errors import ConfigError, WeightsError
from mtl.model.pooling import Dense, LayerNorm, Normalize

TEXTS = ["a b c", "d", "e f g h i"]


def same_bytes(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and torch.equal(a[k], b[k]) for k in a
    )


def edit_tensors(folder: Path, **changes: torch.Tensor | None) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path) | changes
    save_file({k: v.clone() for k, v in tensors.items() if v is not None}, path)


def test_save_and_load_give_the_same_bits(checkpoint: Checkpoint, folder: Path) -> None:
    again = load(folder)
    assert same_bytes(again.encoder.state_dict(), checkpoint.encoder.state_dict())
    assert again.config == checkpoint.config
    assert (again.max_length, again.pooling, again.after) == (16, ("mean",), ())
    ours = SentenceEncoder.from_checkpoint(checkpoint).encode(TEXTS)
    assert (SentenceEncoder.from_pretrained(folder).encode(TEXTS) == ours).all()


def hf_checkpoint(tensors: dict[str, torch.Tensor], folder: Path, like: Path, **fields: object) -> None:
    """A DistilBERT folder as transformers writes it: the tokenizer and config of another, these tensors."""
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((like / name).read_bytes())
    config = json.loads((like / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_hf_to_ours_to_hf_with_a_head(checkpoint: Checkpoint, folder: Path, tmp_path: Path) -> None:
    dim = checkpoint.config.dim
    head = {"pre_classifier.weight": torch.randn(dim, dim), "pre_classifier.bias": torch.randn(dim)}
    head |= {"classifier.weight": torch.randn(2, dim), "classifier.bias": torch.randn(2)}
    original = {f"distilbert.{k}": v for k, v in checkpoint.encoder.state_dict().items()} | head
    hf_checkpoint(original, tmp_path / "hf", folder, id2label={"0": "NEGATIVE", "1": "POSITIVE"})
    loaded = load(tmp_path / "hf")
    assert loaded.classifier.labels == ("NEGATIVE", "POSITIVE")
    save(loaded, tmp_path / "again")
    assert same_bytes(load_file(tmp_path / "again" / "model.safetensors"), original)
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    assert written["id2label"] == {"0": "NEGATIVE", "1": "POSITIVE"}
    assert written["architectures"] == ["DistilBertForSequenceClassification"]


def test_hf_to_ours_to_hf_without_a_head(checkpoint: Checkpoint, folder: Path, tmp_path: Path) -> None:
    hf_checkpoint(checkpoint.encoder.state_dict(), tmp_path / "hf", folder)
    save(load(tmp_path / "hf"), tmp_path / "again")
    assert same_bytes(load_file(tmp_path / "again" / "model.safetensors"), checkpoint.encoder.state_dict())


def test_masked_lm_tensors_are_dropped(checkpoint: Checkpoint, folder: Path, tmp_path: Path) -> None:
    """As distilbert-base-uncased has them, the tied projector present or not."""
    extra = {f"vocab_{kind}": torch.zeros(3) for kind in ("transform.weight", "layer_norm.bias", "projector.weight")}
    prefixed = {f"distilbert.{k}": v for k, v in checkpoint.encoder.state_dict().items()}
    hf_checkpoint(prefixed | extra, tmp_path / "hf", folder)
    assert same_bytes(load(tmp_path / "hf").encoder.state_dict(), checkpoint.encoder.state_dict())


def test_bert_there_and_back(tmp_path: Path) -> None:
    """All names and bytes, but for the two tables that are folded into one: their sum is what stays."""
    case = golden("bert")
    original = {k: v for k, v in case.weights.items() if not k.startswith(("pooler.", "embeddings.position_ids"))}
    (tmp_path / "config.json").write_text(json.dumps(case.config))
    save_file(case.weights, tmp_path / "model.safetensors")
    encoder = load_encoder(tmp_path)[0]
    tensors = encoder.state_dict()
    names = FAMILIES["bert"].names(encoder.config.n_layers)
    assert len(set(names.values())) == len(names) == len(tensors)
    position, kind = "embeddings.position_embeddings.weight", "embeddings.token_type_embeddings.weight"
    again = {names[k]: v for k, v in tensors.items()}
    folded = again.pop(position)
    assert torch.equal(folded, original.pop(position) + original.pop(kind)[0])
    assert same_bytes(again, original)


def test_export_as_bert(checkpoint: Checkpoint, tmp_path: Path) -> None:
    save(checkpoint, tmp_path / "bert", "bert")
    again = load(tmp_path / "bert")
    assert same_bytes(again.encoder.state_dict(), checkpoint.encoder.state_dict())
    assert again.config == checkpoint.config


def test_all_that_sentence_transformers_keeps(checkpoint: Checkpoint, tmp_path: Path) -> None:
    rich = dataclasses.replace(
        checkpoint,
        pooling=("max", "cls", "mean"),
        after=(Dense(36, 5), randomized(LayerNorm(5)), Dense(5, 4, bias=False, activation="Mish")),
        max_length=9,
        lowercase=True,
        prompts={"query": "q: ", "passage": "p: "},
        default_prompt="q: ",
    )
    rich = dataclasses.replace(rich, after=(*rich.after, Normalize()))
    save(rich, tmp_path / "rich")
    again = load(tmp_path / "rich")
    for field in ("pooling", "max_length", "lowercase", "prompts", "default_prompt"):
        assert getattr(again, field) == getattr(rich, field), field
    vectors = SentenceEncoder.from_checkpoint(again).encode(TEXTS)
    assert vectors.shape == (3, 4)
    assert (vectors == SentenceEncoder.from_checkpoint(rich).encode(TEXTS)).all()


def test_a_bare_transformer_gets_the_mean(folder: Path) -> None:
    for path in ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"):
        (folder / path).unlink()
    assert load(folder).pooling == ("mean",)


@pytest.mark.parametrize(
    ("fields", "modes"),
    [
        ({"pooling_mode": "lasttoken"}, ("lasttoken",)),
        ({"pooling_mode": ["mean_sqrt_len_tokens", "cls"]}, ("mean_sqrt_len", "cls")),
        ({"pooling_mode_max_tokens": True, "pooling_mode_cls_token": True}, ("cls", "max")),
    ],
)
def test_pooling_config_old_and_new(folder: Path, fields: dict, modes: tuple) -> None:
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 12, **fields}))
    assert load(folder).pooling == modes


def test_half_precision_weights_are_widened(checkpoint: Checkpoint, folder: Path) -> None:
    edit_tensors(folder, **{k: v.half() for k, v in checkpoint.encoder.state_dict().items()})
    assert {x.dtype for x in load(folder).encoder.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transformer.layer.1.ffn.lin1.bias": None}, "missing transformer.layer.1.ffn.lin1.bias"),
        ({"transformer.layer.2.ffn.lin1.bias": torch.ones(2)}, "unexpected transformer.layer.2.ffn.lin1.bias"),
        (
            {"embeddings.LayerNorm.bias": torch.ones(7)},
            r"embeddings.LayerNorm.bias is \(7,\), expected \(12,\)",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_listed(folder: Path, change: dict, message: str) -> None:
    edit_tensors(folder, **change)
    with pytest.raises(WeightsError, match=message):
        load(folder)


def test_truncated_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="no whole safetensors file"):
        load(folder)


def test_not_safetensors(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x80\x02" + b"pickle" * 20)
    with pytest.raises(WeightsError, match="no whole safetensors file"):
        load(folder)


def test_only_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(
        WeightsError, match=r"found pytorch_model.bin, a pickle, which is never opened.*save_pretrained"
    ):
        load(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'; expected one of distilbert, bert, roberta"),
        ({"activation": "mish"}, "config.json: activation is 'mish'; expected one of gelu, relu"),
        ({"n_heads": 5}, "config.json: n_heads 5 does not divide dim 12"),
        ({"hidden_dim": -1}, "config.json: hidden_dim is -1; expected a positive integer"),
        (
            {"model_type": "bert", "position_embedding_type": "relative_key"},
            "position_embedding_type is 'relative_key'",
        ),
    ],
)
def test_bad_config(folder: Path, edit_json: Callable, fields: dict, message: str) -> None:
    edit_json(folder / "config.json", **fields)
    with pytest.raises(ConfigError, match=message):
        load(folder)


@pytest.mark.parametrize(
    "kind",
    ["LSTM", "sentence_transformers.models.CNN", "mine.Pooling", "sentence_transformers.cross_encoder.modules.Dense"],
)
def test_unknown_module(folder: Path, kind: str) -> None:
    path = folder / "modules.json"
    modules = json.loads(path.read_text())
    path.write_text(json.dumps([*modules, {"idx": 2, "name": "2", "path": "2_X", "type": kind}]))
    with pytest.raises(ConfigError, match=f"module '{kind}' is unknown"):
        load(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "modules.json"])
def test_damaged_json(folder: Path, name: str) -> None:
    (folder / name).write_text('{"a": ')
    with pytest.raises(WeightsError, match=f"{name} cannot be read"):
        load(folder)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"config.json is missing"):
        load(tmp_path)


def test_tokenizer_of_another_model(folder: Path, edit_json: Callable, checkpoint: Checkpoint) -> None:
    """A vocabulary larger than the embedding table would index past its end."""
    edit_json(folder / "config.json", vocab_size=30)
    edit_tensors(folder, **{"embeddings.word_embeddings.weight": torch.randn(30, 12)})
    with pytest.raises(WeightsError, match="ids up to 37, but the encoder's vocabulary has 30 rows"):
        SentenceEncoder.from_pretrained(folder)


def test_save_refuses_a_folder_in_use(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(WeightsError, match="exists and is not empty"):
        save(checkpoint, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_tensors_are_written_as_the_library_writes_them(tmp_path: Path) -> None:
    """Byte by byte, whatever their layout, type and size: below and above what is written at a time, and none."""
    tensors = {"b": torch.randn(1_100_001), "a": torch.randn(7, 9).t(), "é": torch.arange(5), "z": torch.tensor(3.0),
               "h": torch.randn(3).half(), "e": torch.zeros(0, 4), "m": torch.ones(3, dtype=torch.bool)}  # fmt: skip
    write_tensors(tmp_path / "ours", tensors)
    floats = {name: (x.float() if x.is_floating_point() else x).contiguous() for name, x in tensors.items()}
    save_file(floats, tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert sha256_of_tensors(tensors) == sha256_of(tmp_path / "ours")


def test_a_failed_save_leaves_nothing(checkpoint: Checkpoint, tmp_path: Path, monkeypatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mtl.checkpoints.save.write_parts", full)
    with pytest.raises(WeightsError, match="cannot be written: No space left on device"):
        save(checkpoint, tmp_path / "out" / "model")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_full_disk(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """As a limit on the size of files: the first file that is too large fails half-way."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (4000, 12):  # model.safetensors; any file
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            with pytest.raises(WeightsError, match="model cannot be written: File too large$"):
                save(checkpoint, tmp_path / "out" / "model")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert list((tmp_path / "out").iterdir()) == []


def test_the_umask_decides_who_may_read(checkpoint: Checkpoint, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save(dataclasses.replace(checkpoint, after=(Dense(12, 3),)), tmp_path / "model")
    finally:
        os.umask(before)
    modes = {str(p.relative_to(tmp_path)): oct(p.stat().st_mode & 0o777) for p in (tmp_path / "model").rglob("*")}
    assert oct((tmp_path / "model").stat().st_mode & 0o777) == "0o750"
    assert modes["model/model.safetensors"] == modes["model/2_Dense/model.safetensors"] == "0o640"
    assert set(modes.values()) == {"0o640", "0o750"}


def test_what_is_saved_is_float32(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Whatever the model computes in."""
    half = dataclasses.replace(checkpoint, encoder=copy.deepcopy(checkpoint.encoder).bfloat16(), after=(Dense(12, 3),))
    half.after[0].half()
    save(half, tmp_path / "half")
    tensors = load_file(tmp_path / "half" / "model.safetensors") | load_file(
        tmp_path / "half" / "2_Dense" / "model.safetensors"
    )
    assert {x.dtype for x in tensors.values()} == {torch.float32}
    assert same_bytes(
        tensors, {k: v.float() for k, v in (half.encoder.state_dict() | half.after[0].state_dict()).items()}
    )


def test_a_default_prompt_without_a_name_is_kept(checkpoint: Checkpoint, tmp_path: Path) -> None:
    save(dataclasses.replace(checkpoint, prompts={"q": "query: "}, default_prompt="text: "), tmp_path / "model")
    again = load(tmp_path / "model")
    assert (again.prompts, again.default_prompt) == ({"q": "query: ", "default": "text: "}, "text: ")


def test_a_layer_that_no_folder_describes(tiny: SentenceEncoder, tmp_path: Path) -> None:
    tiny.after.append(torch.nn.Softmax(dim=1))
    with pytest.raises(WeightsError, match="a Softmax after the pooling cannot be saved; expected Dense, Layer"):
        tiny.save(tmp_path / "model")
