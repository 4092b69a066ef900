"""Folders as others made them, without the reference packages: what is honoured, said, left out and refused."""

import dataclasses
import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints.folders import older_norms, rename_tensors, split_in_shards
from conftest import WORDS, randomized
from safetensors.torch import load_file, save_file

from mtl import MultiTaskModel, SentenceEncoder, TaskSpec
from mtl.checkpoints import fields
from mtl.checkpoints.families import FAMILIES
from mtl.checkpoints.load import Checkpoint, Classifier, load
from mtl.checkpoints.save import save
from mtl.errors import MtlError, WeightsError
from mtl.model.encoder import DistilBert
from mtl.model.mpnet import MPNet

README = Path(__file__).parents[2] / "weights" / "README.md"
TEXTS = ["a b c", "d", "a b c d e f g h i j k l m n o p"]


def vectors(folder: Path) -> np.ndarray:
    return SentenceEncoder.from_pretrained(folder).encode(TEXTS, overflow="truncate")


@pytest.fixture
def bert(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    save(checkpoint, tmp_path / "bert", "bert")
    return tmp_path / "bert"


def test_the_table_is_what_is_done() -> None:
    """`python -m mtl.checkpoints.fields` prints it."""
    assert fields.table() in README.read_text(encoding="utf-8")


def test_what_we_write_we_know(bert: Path, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for place in (bert, folder):
        vectors(place)
    assert caplog.messages == []


def test_dimensions_kept(folder: Path, edit_json: Callable, tmp_path: Path) -> None:
    """truncate_dim: the first so many, unless the caller asks for others, and again after saving."""
    whole = vectors(folder)
    edit_json(folder / "config_sentence_transformers.json", truncate_dim=5)
    model = SentenceEncoder.from_pretrained(folder)
    assert (model.dim, model.width) == (5, 12)
    assert model.encode(TEXTS, overflow="truncate").tolist() == whole[:, :5].tolist()
    assert model.encode(TEXTS, overflow="truncate", truncate_dim=7).tolist() == whole[:, :7].tolist()
    assert model.encode([]).shape == (0, 5)
    model.save(tmp_path / "again")
    assert vectors(tmp_path / "again").tolist() == whole[:, :5].tolist()
    tasks = MultiTaskModel(model, [TaskSpec("x", ("a", "b"))]).eval()
    assert tasks.predict(TEXTS).embeddings.shape == (3, 5)


@pytest.mark.parametrize("value", [0, -1, "8", 1.5])
def test_no_number_of_dimensions(folder: Path, edit_json: Callable, value: object) -> None:
    edit_json(folder / "config_sentence_transformers.json", truncate_dim=value)
    with pytest.raises(MtlError, match="truncate_dim is"):
        load(folder)


@pytest.mark.parametrize("name", fields.SENTENCE_CONFIGS)
def test_the_seven_names_of_the_length_file(folder: Path, edit_json: Callable, name: str) -> None:
    (folder / "sentence_bert_config.json").unlink()
    (folder / name).write_text('{"max_seq_length": 5, "do_lower_case": true}')
    edit_json(folder / "tokenizer_config.json", model_max_length=None)
    model = SentenceEncoder.from_pretrained(folder)
    assert [len(row) for row in model.tokenizer(TEXTS).rows] == [5, 3, 5]
    assert model.tokenizer.lowercase


def test_texts_cut_at_their_beginning(folder: Path, edit_json: Callable, tmp_path: Path) -> None:
    edit_json(folder / "tokenizer_config.json", truncation_side="left")
    edit_json(folder / "sentence_bert_config.json", max_seq_length=5)
    model = SentenceEncoder.from_pretrained(folder)
    a, c = (model.tokenizer.backend.token_to_id(letter) for letter in "ac")
    assert model.tokenizer(["b b b c a c"]).rows == [[2, c, a, c, 3]]
    model.save(tmp_path / "again")
    assert SentenceEncoder.from_pretrained(tmp_path / "again").tokenizer(["b b b c a c"]).rows == [[2, c, a, c, 3]]


def test_texts_cut_where_tokenizer_json_says(folder: Path, edit_json: Callable, tmp_path: Path) -> None:
    """transformers takes the side from there, where tokenizer_config.json has none; and what is saved says it."""
    cut = {"direction": "Left", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    edit_json(folder / "tokenizer.json", truncation=cut)
    edit_json(folder / "sentence_bert_config.json", max_seq_length=5)
    model = SentenceEncoder.from_pretrained(folder)
    a, b, c = (model.tokenizer.backend.token_to_id(letter) for letter in "abc")
    assert model.tokenizer(["b b b c a c"]).rows == [[2, c, a, c, 3]]
    model.save(tmp_path / "again")
    assert SentenceEncoder.from_pretrained(tmp_path / "again").tokenizer(["b b b c a c"]).rows == [[2, c, a, c, 3]]
    edit_json(folder / "tokenizer_config.json", truncation_side="right")
    assert SentenceEncoder.from_pretrained(folder).tokenizer(["b b b c a c"]).rows == [[2, b, b, b, 3]]


def test_no_merge_is_left_out_by_chance(folder: Path, edit_json: Callable, caplog: pytest.LogCaptureFixture) -> None:
    """Byte-pair encoding may drop merges, as for training; then a text would have another vector each time."""
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "a": 2, "b": 3, "ab": 4}
    model = {"type": "BPE", "dropout": 0.9, "vocab": vocabulary, "merges": [["a", "b"]], "unk_token": "[UNK]"}
    edit_json(folder / "tokenizer.json", model=model, added_tokens=[], post_processor=None, pre_tokenizer=None)
    edit_json(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    tokenizer = SentenceEncoder.from_pretrained(folder).tokenizer
    assert tokenizer(["ab"] * 50).rows == [[4]] * 50
    assert any("leaves out merges by chance (dropout 0.9)" in message for message in caplog.messages)


@pytest.mark.parametrize(("name", "said"), [("dtype", "bfloat16"), ("torch_dtype", "torch.float16")])
def test_fewer_bits_said_than_there_are(bert: Path, edit_json: Callable, name: str, said: str, caplog) -> None:
    """The weights are used as they are, which is said; transformers 5 rounds them unless it is given a dtype."""
    expected = vectors(bert)
    edit_json(bert / "config.json", **{name: said})
    assert vectors(bert).tolist() == expected.tolist()
    (line,) = caplog.messages
    assert line.partition("config.json ")[2].startswith(f"says dtype {said.removeprefix('torch.')}, but weights are ")


@pytest.mark.parametrize(("version", "told"), [("4.57.6", True), ("5.23.0", False), (None, False)])
def test_pairs_as_the_writer_told_them(bert: Path, edit_json: Callable, version: str, told: bool, tmp_path) -> None:
    """By a tokenizer of no class of its own: transformers 4 has it tell segments apart, and 5 does not."""
    edit_json(bert / "config.json", transformers_version=version)
    edit_json(bert / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", model_input_names=None)
    found = load(bert)
    save(found, tmp_path / "again")
    names = json.loads((tmp_path / "again" / "tokenizer_config.json").read_text())["model_input_names"]
    assert (found.segments, load(tmp_path / "again").segments, "token_type_ids" in names) == (told, told, told)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_narrow_numbers(bert: Path, dtype: torch.dtype) -> None:
    """What a folder holds is widened before anything is computed of it, the types of a pair's texts too."""
    path = bert / "model.safetensors"
    narrow = {name: (torch.randn(x.shape) / 3).to(dtype) for name, x in load_file(path).items()}
    save_file(narrow, path, metadata={"format": "pt"})
    table = narrow["embeddings.token_type_embeddings.weight"].float()
    types = load(bert).origin.types
    assert types is not None
    assert torch.equal(types, table - table[0])


def test_lower_case_keeps_special_tokens(tokenizer, checkpoint: Checkpoint) -> None:
    tokenizer.normalizer = None
    model = SentenceEncoder.from_checkpoint(dataclasses.replace(checkpoint, tokenizer=tokenizer, lowercase=True))
    assert model.tokenizer(["[MASK] A"]).rows == [[2, 4, WORDS.index("a"), 3]]


def test_unknown_settings_are_named(folder: Path, edit_json: Callable, caplog: pytest.LogCaptureFixture) -> None:
    edit_json(folder / "config.json", rotary=True, other=1)
    edit_json(folder / "tokenizer_config.json", shout="yes")
    load(folder)
    assert [re.sub(".*/", "", message) for message in caplog.messages] == [
        "config.json: passed over, as unknown: other, rotary",
        "tokenizer_config.json: passed over, as unknown: shout",
    ]


@pytest.mark.parametrize("prefix", ["", "bert.", "model.", "0.auto_model.", "module.bert."])
def test_the_trunk_by_any_name(bert: Path, prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    expected = vectors(bert)
    rename_tensors(bert, lambda name: prefix + older_norms(name))
    path = bert / "model.safetensors"
    save_file(load_file(path) | {"cls.predictions.bias": torch.ones(3), "my_head": torch.ones(1)}, path)
    assert vectors(bert).tolist() == expected.tolist()
    assert caplog.messages == [f"{path}: left out, beside the encoder: cls.predictions.bias, my_head"]


def test_a_pooler_and_counters_go_without_saying(bert: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = bert / "model.safetensors"
    more = {"pooler.dense.weight": torch.ones(12, 12), "embeddings.position_ids": torch.arange(16)}
    save_file(load_file(path) | more, path)
    with caplog.at_level(logging.INFO):
        load(bert)
    (record,) = caplog.records
    assert (record.levelname, "pooler.dense.weight" in record.message) == ("INFO", True)


def test_shards(folder: Path, tmp_path: Path) -> None:
    expected = vectors(folder)
    files = split_in_shards(folder, 3)
    assert vectors(folder).tolist() == expected.tolist()
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    shutil.copy(files[0], tmp_path / "outside.safetensors")
    for place, message in {
        "../outside.safetensors": "leads to .* out of the model's folder",
        "/etc/passwd": "leads to /etc/passwd, out of the model's folder",
        "config.json": "names config.json; expected a file of safetensors",
        "absent.safetensors": "absent.safetensors is missing, which model.safetensors.index.json names",
        files[1].name: "lacks embeddings.LayerNorm.bias; expected what model.safetensors.index.json says",
    }.items():
        changed = content["weight_map"] | {"embeddings.LayerNorm.bias": place}
        index.write_text(json.dumps({"weight_map": changed}))
        with pytest.raises(WeightsError, match=message):
            load(folder)
    for damage in ('{"weight_map": {}}', '{"weight_map": {"a": 1}}', "[]", "{}"):
        index.write_text(damage)
        with pytest.raises(MtlError, match="index.json"):
            load(folder)
    index.write_text(json.dumps(content))
    files[2].unlink()
    with pytest.raises(WeightsError, match=f"{files[2].name} is missing"):
        load(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "1_Pooling/config.json"])
def test_pointers_of_git_lfs(folder: Path, name: str) -> None:
    (folder / name).write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 90868376\n")
    with pytest.raises(WeightsError, match=f"{name} is a pointer of git-lfs, .*; run `git lfs pull` in {folder}"):
        load(folder)


def cached(folder: Path, cache: Path, blobs: Path | None = None) -> Path:
    """A folder as the hub's client keeps it; its blobs perhaps on another disk."""
    repository = cache / "models--me--tiny"
    (repository / "snapshots").mkdir(parents=True)
    store = blobs or repository / "blobs"
    store.mkdir(parents=True)
    if blobs:
        (repository / "blobs").symlink_to(blobs)
    snapshot = folder.rename(repository / "snapshots" / "0123")
    for number, path in enumerate(sorted(p for p in snapshot.rglob("*") if p.is_file())):
        path.rename(store / str(number))
        depth = len(path.relative_to(repository).parts) - 1
        path.symlink_to(Path(*[".."] * depth, "blobs", str(number)))
    return snapshot


@pytest.mark.parametrize("elsewhere", [False, True])
def test_links_into_the_hub_s_cache(folder: Path, tmp_path: Path, elsewhere: bool) -> None:
    """The snapshot itself, a link to it, and a folder of links to its files, or to its blobs."""
    expected = vectors(folder).tolist()
    snapshot = cached(folder, tmp_path / "hub", tmp_path / "disk" / "blobs" if elsewhere else None)
    (tmp_path / "link").symlink_to(snapshot)
    for name, target in {"files": Path.absolute, "blobs": Path.resolve}.items():
        for path in snapshot.rglob("*"):
            place = tmp_path / name / path.relative_to(snapshot)
            place.parent.mkdir(parents=True, exist_ok=True)
            if path.is_file():
                place.symlink_to(target(path))
    whole = [snapshot, tmp_path / "link", tmp_path / "files", *([] if elsewhere else [tmp_path / "blobs"])]
    assert [vectors(place).tolist() == expected for place in whole] == [True] * len(whole)
    (tmp_path / "files" / "config.json").unlink()
    (tmp_path / "files" / "config.json").symlink_to("/etc/hostname")
    with pytest.raises(
        WeightsError, match="leads to /etc/hostname, out of .*; expected a file inside it, or in the hub"
    ):
        load(tmp_path / "files")


def test_a_cache_within_the_folder_is_none(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    shutil.copy(folder / "config.json", tmp_path / "secret" / "config.json")
    (folder / "snapshots" / "0").mkdir(parents=True)
    (folder / "blobs").symlink_to(tmp_path / "secret")
    (folder / "snapshots" / "0" / "config.json").symlink_to("../../blobs/config.json")
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("snapshots/0/config.json")
    with pytest.raises(WeightsError, match="out of the model's folder"):
        load(folder)


def with_classifier(checkpoint: Checkpoint, folder: Path, outputs: int = 2, **about: object) -> Path:
    head = {"pre_classifier.weight": torch.randn(12, 12), "pre_classifier.bias": torch.randn(12)}
    head |= {"classifier.weight": torch.randn(outputs, 12), "classifier.bias": torch.randn(outputs)}
    save(dataclasses.replace(checkpoint, classifier=Classifier("distilbert", head, **about)), folder)
    return folder


@pytest.mark.parametrize(
    ("named", "labels"),
    [
        (["no", "yes"], ("no", "yes")),
        (None, ("LABEL_0", "LABEL_1")),
        ({"0": 3, "1": 4}, ("3", "4")),
    ],
)
def test_labels(checkpoint: Checkpoint, tmp_path: Path, edit_json: Callable, named: object, labels: tuple) -> None:
    folder = with_classifier(checkpoint, tmp_path / "m")
    edit_json(folder / "config.json", id2label=named)
    assert MultiTaskModel.from_pretrained(folder).tasks["classification"].labels == labels


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ({"id2label": ["one"]}, r"id2label is \{0: 'one'\}; expected another name for each of 0 to 1"),
        ({"id2label": "yes"}, "id2label is 'yes'; expected another name"),
        ({"id2label": ["same", "same"]}, "id2label is .* expected another name for each"),
        ({"problem_type": "ranking"}, "problem_type is 'ranking'; expected one of multi_label_classification, s"),
        ({"problem_type": "regression"}, "problem_type is 'regression'; expected .* with 2 outputs"),
    ],
)
def test_a_classifier_that_cannot_be_used(
    checkpoint: Checkpoint, tmp_path: Path, edit_json: Callable, edits: dict, message: str
) -> None:
    """Predicting says what is wrong; the embeddings are none the worse."""
    folder = with_classifier(checkpoint, tmp_path / "m")
    expected = vectors(folder).tolist()
    edit_json(folder / "config.json", **edits)
    with pytest.raises(MtlError, match=message):
        MultiTaskModel.from_pretrained(folder)
    assert vectors(folder).tolist() == expected


def test_embedding_says_that_the_classifier_is_left_out(
    checkpoint: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = with_classifier(checkpoint, tmp_path / "m")
    SentenceEncoder.from_pretrained(folder)
    assert caplog.messages == [f"{folder}: left out, beside the encoder: its classifier"]


@pytest.mark.parametrize("outputs", [1, 2])
def test_sigmoids(checkpoint: Checkpoint, tmp_path: Path, edit_json: Callable, outputs: int) -> None:
    """A multi-label classifier's are no softmax, and one output alone is one of it."""
    folder = with_classifier(checkpoint, tmp_path / "m", outputs, problem_type="multi_label_classification")
    if outputs == 1:
        edit_json(folder / "config.json", problem_type=None)
    model = MultiTaskModel.from_pretrained(folder)
    found = model.predict(TEXTS)
    logits = torch.tensor(found.logits["classification"])
    assert found.scores["classification"].tolist() == logits.sigmoid().tolist()
    model.save(tmp_path / "again")
    (tmp_path / "again" / "tasks.json").unlink()
    assert MultiTaskModel.from_pretrained(tmp_path / "again").tasks["classification"].kind == "multi-label"


@pytest.mark.parametrize(
    "architecture",
    ["DistilBertForMultipleChoice", "DistilBertForQuestionAnswering"],
)
def test_no_sequence_classifier(checkpoint: Checkpoint, tmp_path: Path, edit_json: Callable, architecture: str) -> None:
    """Tensors of a classifier's names, which another task's head has too."""
    folder = with_classifier(checkpoint, tmp_path / "m")
    edit_json(folder / "config.json", architectures=[architecture])
    with pytest.raises(WeightsError, match="has no task heads"):
        MultiTaskModel.from_pretrained(folder)


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.encoder is DistilBert])
def test_each_family_there_and_back(checkpoint: Checkpoint, tmp_path: Path, name: str) -> None:
    """Every family that can say the shape, with the bits that it was saved with, and its own names."""
    if first := FAMILIES[name].start({}):
        with pytest.raises(WeightsError, match=f"a DistilBert cannot be saved as {name}: its config.json cannot say"):
            save(checkpoint, tmp_path / "m", name)
        config = dataclasses.replace(checkpoint.config, padding=first - 1)
        checkpoint = dataclasses.replace(checkpoint, encoder=randomized(DistilBert(config)))
    save(checkpoint, tmp_path / "m", name)
    again = load(tmp_path / "m")
    assert again.origin.model_type == name
    for key, tensor in checkpoint.encoder.state_dict().items():
        assert torch.equal(again.encoder.state_dict()[key], tensor), key
    save(again, tmp_path / "again")
    written = [load_file(tmp_path / place / "model.safetensors") for place in ("m", "again")]
    assert written[0].keys() == written[1].keys()
    assert all(torch.equal(written[0][key], written[1][key]) for key in written[0])
    configs = [json.loads((tmp_path / place / "config.json").read_text()) for place in ("m", "again")]
    assert configs[0] == configs[1]


def test_an_encoder_is_saved_as_what_it_is(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Whatever it came from, and whatever head it was given; as a family of another architecture it is refused."""
    with pytest.raises(WeightsError, match="a DistilBert cannot be saved as mpnet"):
        save(checkpoint, tmp_path / "x", "mpnet")
    mpnet = dataclasses.replace(
        checkpoint, encoder=randomized(MPNet(dataclasses.replace(checkpoint.config, padding=1)))
    )
    head = {"pre_classifier.weight": torch.ones(12, 12), "pre_classifier.bias": torch.ones(12),
            "classifier.weight": torch.ones(2, 12), "classifier.bias": torch.ones(2)}  # fmt: skip
    save(dataclasses.replace(mpnet, classifier=Classifier("distilbert", head, ("a", "b"))), tmp_path / "m")
    again = load(tmp_path / "m")
    assert again.origin.model_type == "mpnet"
    for key, tensor in mpnet.encoder.state_dict().items():
        assert torch.equal(again.encoder.state_dict()[key], tensor), key


def test_what_a_tokenizer_s_options_change_is_said(
    folder: Path, edit_json: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    edit_json(folder / "tokenizer_config.json", tokenizer_class="BertTokenizer", do_lower_case=False)
    model = SentenceEncoder.from_pretrained(folder)
    assert model.tokenizer(["A"]).rows == [[2, 1, 3]]
    (message,) = caplog.messages
    assert "not it but tokenizer_config.json is followed" in message


def test_a_folder_that_cannot_be_read_as_utf8(folder: Path) -> None:
    os.remove(folder / "tokenizer.json")
    (folder / "vocab.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(WeightsError, match="vocab.txt cannot be read as UTF-8 text"):
        load(folder)
