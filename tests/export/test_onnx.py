"""The padded twin against the textbook, and what onnxruntime makes of an exported folder."""

from __future__ import annotations

import builtins
import dataclasses
import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from checkpoints.test_families import written
from conftest import WORDS, golden, randomized
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from mtl import MultiTaskModel, SentenceEncoder, TaskSpec
from mtl.checkpoints.families import FAMILIES
from mtl.checkpoints.load import Checkpoint
from mtl.checkpoints.publish import model_files
from mtl.cli import main
from mtl.errors import InputError, WeightsError
from mtl.export import onnx as export
from mtl.export import twin
from mtl.export.onnx import Exported, add_labels, export_onnx, padded, twin_of
from mtl.export.twin import TRUNKS
from mtl.model.config import FULL, SLIDING, DebertaConfig, EncoderConfig, RotaryConfig
from mtl.model.deberta import Deberta
from mtl.model.encoder import DistilBert
from mtl.model.mpnet import MPNet
from mtl.model.packing import PackedBatch
from mtl.model.pooling import MODES, Dense, Normalize
from mtl.model.rotary import RotaryEncoder

TASKS = (
    TaskSpec("topic", ("x", "y", "z"), pooling=("max", "cls")),
    TaskSpec("tags", ("p", "q"), kind="multi-label", pooling=("attention",), head="distilbert", temperature=2.0,
             thresholds=(0.5, 0.25)),
    TaskSpec("price", kind="regression", target_scale=(250_000.0, 80_000.0), pooling=("weightedmean",)),
    TaskSpec("similar", kind="similarity", text_field=("text1", "text2")),
    TaskSpec("names", ("PER", "LOC"), kind="tokens"),
)  # fmt: skip
ROWS = [[2, 5, 6, 7, 3], [2, 9, 3], [2, 3], [2, *range(5, 18), 3], [2, 20, 3]]


def feeds(path: Path, rows: list[list[int]], left: bool = False) -> dict[str, np.ndarray]:
    """What a session of a graph gives of rows."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    ids, mask = padded(rows)
    if left:
        ids, mask = ids[:, ::-1], mask[:, ::-1]
        ids = np.stack([np.concatenate([x[: len(x) - len(row)], row]) for x, row in zip(ids, rows, strict=True)])
    given = {"input_ids": ids, "attention_mask": np.ascontiguousarray(mask), "token_type_ids": np.zeros_like(ids)}
    names = [each.name for each in session.get_inputs()]
    outputs = [output.name for output in session.get_outputs()]
    return dict(zip(outputs, session.run(None, {name: given[name] for name in names}), strict=True))


def own(model: MultiTaskModel, rows: list[list[int]]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    with torch.inference_mode():
        return model(PackedBatch.pack(rows))


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Exported]:
    """A model with every kind of head, and what is exported of it."""
    from mtl.checkpoints.tokenizer import wordpiece

    root = tmp_path_factory.mktemp("heads")
    (root / "letters.txt").write_text("\n".join(WORDS) + "\n")
    config = EncoderConfig(vocab_size=len(WORDS), max_position_embeddings=16, n_layers=2, n_heads=3, dim=12,
                           hidden_dim=20)  # fmt: skip
    after = (randomized(Dense(24, 10)), Normalize())
    found = Checkpoint(randomized(DistilBert(config)), wordpiece(root / "letters.txt", {}), 16,
                       pooling=("mean", "max"), after=after, truncate_dim=7)  # fmt: skip
    model = randomized(MultiTaskModel(SentenceEncoder.from_checkpoint(found), TASKS))
    model.save(root / "model")
    (root / "model" / "LICENSE").write_text("mine")
    return root / "model", root / "out", export_onnx(root / "model", root / "out")


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("rows", [ROWS, ROWS[1:2], [[7]], [[7], [8, 9]]])
def test_every_head_has_an_output(heads: tuple[Path, Path, Exported], rows: list[list[int]], left: bool) -> None:
    """Measured: at most 2e-6; texts that stand beside longer ones too, whichever side is filled."""
    folder, out, exported = heads
    model = MultiTaskModel.from_pretrained(folder)
    vectors, logits = own(model, rows)
    found = feeds(out / "onnx" / "model.onnx", rows, left)
    assert (*found,) == exported.outputs
    assert [*found] == [
        "last_hidden_state", "sentence_embedding", "logits_topic", "logits_tags", "logits_price", "logits_names"
    ]  # fmt: skip
    np.testing.assert_allclose(found["sentence_embedding"], vectors[:, :7], atol=1e-5)
    for name in ("topic", "tags", "price"):
        np.testing.assert_allclose(found[f"logits_{name}"], logits[name], rtol=1e-5, atol=1e-5)
    kept = padded(rows)[1][:, :: -1 if left else 1] == 1
    with torch.inference_mode():
        hidden = model.encoder(PackedBatch.pack(rows))
    np.testing.assert_allclose(found["last_hidden_state"][kept], hidden, atol=1e-5)
    np.testing.assert_allclose(found["logits_names"][kept], logits["names"], atol=1e-5)


def test_what_a_graph_says(heads: tuple[Path, Path, Exported]) -> None:
    folder, out, exported = heads
    assert exported.difference < 1e-5
    assert exported.texts == 200
    assert 0.9 < exported.cosine < 1
    said = {each.key: each.value for each in onnx.load(exported.graph).metadata_props}
    about = json.loads(said["mtl"])
    assert about["outputs"]["logits_topic"] == {"task": "topic", "kind": "single-label", "labels": ["x", "y", "z"]}
    assert about["outputs"]["logits_names"]["labels"] == ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    assert about["outputs"]["logits_tags"]["thresholds"] == [0.5, 0.25]
    assert about["max_length"] == 16
    for path in (exported.graph, exported.quantized):  # no path, neither the folder's nor those of the code's lines
        assert str(folder.parent).encode() not in path.read_bytes()
        assert b".py" not in path.read_bytes()
    weights = {each.data_type for each in onnx.load(exported.quantized).graph.initializer}
    assert onnx.TensorProto.INT8 in weights
    assert model_files(out)[1] == []
    before, after = (MultiTaskModel.from_pretrained(each).predict(["a b c", "d"]) for each in (folder, out))
    assert np.array_equal(before.embeddings, after.embeddings)
    assert np.array_equal(before.logits["topic"], after.logits["topic"])
    for name in ("README.md", "LICENSE"):
        assert (out / name).read_text() == (folder / name).read_text()
    assert not [*out.parent.glob(".*")]


def test_a_text_without_tokens_has_zeros(heads: tuple[Path, Path, Exported]) -> None:
    session = onnxruntime.InferenceSession(str(heads[2].graph), providers=["CPUExecutionProvider"])
    ids = np.full((2, 3), 5)
    found = session.run(["sentence_embedding", "logits_topic"], {"input_ids": ids, "attention_mask": ids * 0})
    assert all((x == 0).all() for x in found)


def test_one_task_alone(heads: tuple[Path, Path, Exported], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["export", "-m", str(heads[0]), "-o", str(tmp_path / "topic"), "--task", "topic"])
    said = capsys.readouterr()
    assert said.out == ""
    assert "onnx/model.onnx, 0.1 MB: last_hidden_state, sentence_embedding, logits; at most " in said.err
    assert said.err.count("\n") == 2
    model = MultiTaskModel.from_pretrained(heads[0])
    found = feeds(tmp_path / "topic" / "onnx" / "model.onnx", ROWS)
    np.testing.assert_allclose(found["logits"], own(model, ROWS)[1]["topic"], atol=1e-5)
    config = json.loads((tmp_path / "topic" / "config.json").read_text())
    assert config["id2label"] == {"0": "x", "1": "y", "2": "z"}
    assert [*MultiTaskModel.from_pretrained(tmp_path / "topic").tasks] == ["topic"]
    assert "\n# topic\n" in (tmp_path / "topic" / "README.md").read_text()
    for name in ("similar", "nothing"):
        with pytest.raises(InputError, match=f"task is '{name}'; expected a task that has a head: topic, tags, price"):
            export_onnx(heads[0], tmp_path / "other", name)


def encoders() -> dict[str, Any]:
    rotary = {"vocab_size": len(WORDS), "max_position_embeddings": 16, "n_layers": 3, "n_heads": 2, "dim": 12}
    plain = {**rotary, "hidden_dim": 20, "n_heads": 3}
    layers = (FULL, SLIDING, SLIDING)
    return {
        "plain": DistilBert(EncoderConfig(**plain, activation="gelu_new")),
        "sinusoids": DistilBert(EncoderConfig(**plain, sinusoidal_pos_embds=True)),
        "projected": DistilBert(EncoderConfig(**plain, embedding_dim=8)),
        "mpnet": MPNet(EncoderConfig(**plain)),
        "deberta": Deberta(DebertaConfig(**plain, position_buckets=6, max_relative_positions=10)),
        "own keys": Deberta(DebertaConfig(**plain, position_buckets=0, max_relative_positions=9, share_att_key=False,
                                          norm_rel_ebd=False, position_biased_input=True)),
        "words alone": Deberta(DebertaConfig(**plain, c2p=False, p2c=False)),
        "windows": RotaryEncoder(RotaryConfig(**rotary, hidden_dim=10, layer_types=layers, local_attention=4)),
        "behind": RotaryEncoder(RotaryConfig(**rotary, hidden_dim=10, pre_norm=False, norm_bias=True, ntk_factor=2.0)),
    }  # fmt: skip


@pytest.mark.parametrize("name", encoders())
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_the_twin_equals_the_textbook(name: str, data: st.DataObject, tokenizer_of_letters: Tokenizer) -> None:
    """In every architecture, by every pooling, in batches of any lengths, with padding of any ids on either side.

    Measured: at most 4e-6.
    """
    encoder = randomized(encoders()[name])
    modes = data.draw(st.lists(st.sampled_from(sorted(MODES)), min_size=1, max_size=3, unique=True))
    model = SentenceEncoder.from_checkpoint(Checkpoint(encoder, tokenizer_of_letters, 16, pooling=tuple(modes)))
    word = st.integers(0, len(WORDS) - 1)
    rows = data.draw(st.lists(st.lists(word, min_size=1, max_size=16), min_size=1, max_size=5))
    width = data.draw(st.integers(max(map(len, rows)), 16))
    sides = [data.draw(st.booleans()) for _ in rows]
    ids = torch.randint(0, len(WORDS), (len(rows), width), generator=torch.Generator().manual_seed(0))
    mask = torch.zeros_like(ids)
    for i, (row, left) in enumerate(zip(rows, sides, strict=True)):
        place = slice(width - len(row), None) if left else slice(0, len(row))
        ids[i, place], mask[i, place] = torch.tensor(row), 1
    with torch.inference_mode():
        hidden, vectors = twin_of(model)(ids, mask)
        batch = PackedBatch.pack(rows)
        torch.testing.assert_close(hidden[mask.bool()], encoder(batch), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(vectors, model(batch), atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def tokenizer_of_letters(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    from mtl.checkpoints.tokenizer import wordpiece

    path = tmp_path_factory.mktemp("tokenizer") / "letters.txt"
    path.write_text("\n".join(WORDS) + "\n")
    return wordpiece(path, {})


def test_every_architecture_and_pooling_has_a_padded_form() -> None:
    assert {*TRUNKS} == {family.encoder for family in FAMILIES.values()}
    assert {*twin.MODES} == {*MODES}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str, tokenizer: Tokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Measured: at most 3e-6."""
    folder = written(golden(f"families/{family}"), tokenizer, tmp_path / "theirs")
    exported = export_onnx(folder, tmp_path / "ours")
    assert not [each for each in caplog.records if each.name == "root"]
    assert exported.difference < 1e-5
    model = MultiTaskModel.from_pretrained(tmp_path / "ours")
    rows = [[*range(5, 5 + length)] for length in (16, 1, 9, 12)]
    vectors, logits = own(model, rows)
    found = feeds(exported.graph, rows)
    np.testing.assert_allclose(found["sentence_embedding"], vectors, atol=1e-5)
    np.testing.assert_allclose(found["logits"], logits["classification"], atol=1e-5)
    inputs = [each.name for each in onnxruntime.InferenceSession(str(exported.graph)).get_inputs()]
    assert inputs == [name for name in ("input_ids", "token_type_ids", "attention_mask")
                      if name in FAMILIES[family].inputs]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("least", "files"),
    [
        (0, {"model.onnx", "model.onnx_data", "model_quantized.onnx", "model_quantized.onnx_data"}),
        (20_000, {"model.onnx", "model.onnx_data", "model_quantized.onnx"}),
    ],
)
def test_a_tagger_and_files_apart(
    tiny: SentenceEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, least: int, files: set[str]
) -> None:
    """Weights beyond what protobuf holds stand in a file of their own, which is the model's too; those of the quantized
    graph only where they too are beyond it."""
    monkeypatch.setattr(export, "ONE_FILE", least)
    wide = dataclasses.replace(tiny.to_checkpoint(), after=(randomized(Dense(12, 300)),))
    model = randomized(MultiTaskModel(SentenceEncoder.from_checkpoint(wide), TASKS[-1:]))
    model.save(tmp_path / "tagger")
    exported = export_onnx(tmp_path / "tagger", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out" / "onnx").iterdir()} == files
    assert model_files(tmp_path / "out")[1] == []
    found = feeds(exported.graph, ROWS)
    np.testing.assert_allclose(found["logits"][padded(ROWS)[1] == 1], own(model, ROWS)[1]["names"], atol=1e-5)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["id2label"]["1"] == "B-PER"
    apart = {name.removesuffix("_data"): 1 for name in files if name.endswith("_data")}
    assert config["transformers.js_config"] == {"use_external_data_format": apart}
    assert feeds(exported.quantized, ROWS).keys() == found.keys()


def test_what_is_not_the_models_own_gets_no_name(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(twin.MODES, "mean", lambda x, batch: twin.total(x, batch.kept) / (batch.counts + 0.001))
    with pytest.raises(WeightsError, match="graph's sentence_embedding differs by .*, more than 1e-05"):
        export_onnx(folder, tmp_path / "out")
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]


def test_a_quantized_graph_that_is_far_off(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(export, "least_cosine", lambda *given: 0.678)
    assert export_onnx(folder, tmp_path / "out").cosine == 0.678
    (said,) = [each.getMessage() for each in caplog.records if each.name == "mtl"]
    assert said.startswith("onnx/model_quantized.onnx has cosines down to 0.68 with the model's own embeddings, below")
    caplog.clear()
    monkeypatch.setattr(export, "least_cosine", lambda *given: math.nan)
    export_onnx(folder, tmp_path / "none")
    assert "has cosines down to nan" in caplog.text


def test_what_others_raise_is_one_line(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The quantizer writes a file of its own beside the graph, and does not see that the disk is full."""
    from onnxruntime.quantization import quant_utils

    def cut(source: str, target: str) -> None:
        Path(target).write_bytes(Path(source).read_bytes()[:-9])

    monkeypatch.setattr(quant_utils.onnx.shape_inference, "infer_shapes_path", cut)
    with pytest.raises(WeightsError, match=r"out cannot be written \(DecodeError: .*\)$"):
        export_onnx(folder, tmp_path / "out")
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_remarks_of_others_leave_no_trace(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """The quantizer makes its own on the root logger, which sets up a handler where there is none."""
    from onnxruntime.quantization import onnx_quantizer

    monkeypatch.setattr(logging.root, "handlers", [])
    with export.quiet():
        exec(compile("import logging; logging.warning('theirs')", onnx_quantizer.__file__, "exec"))
        logging.getLogger("mtl").warning("ours")
    assert logging.root.handlers == []
    assert capfd.readouterr().err == "ours\n"


def test_refusals(folder: Path, tiny: SentenceEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WeightsError, match="exists and is not empty; choose another name, or delete it first"):
        export_onnx(folder, folder)
    with pytest.raises(WeightsError, match="x cannot be written: File name too long"):
        export_onnx(folder, tmp_path / ("x" * 300))

    class Other(DistilBert):
        pass

    other = dataclasses.replace(tiny.to_checkpoint(), encoder=Other(tiny.encoder.config))
    with pytest.raises(WeightsError, match="an? Other has no padded form; expected one of this project's encoders"):
        twin_of(SentenceEncoder.from_checkpoint(other))
    real = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name == "onnxruntime":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"needs onnxruntime; in the clone of mtl: pip install -e '\.\[onnx\]'"):
        export_onnx(folder, tmp_path / "out")


def test_a_cross_encoder_has_no_problem_type(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """transformers 4 refuses a config.json that has one it does not know, as the empty one."""
    judge = TaskSpec("judge", kind="relevance", text_field=("a", "b"))
    model = MultiTaskModel(SentenceEncoder.from_checkpoint(checkpoint), [judge]).eval()
    model.save(tmp_path / "model")
    add_labels(model, tmp_path / "model" / "config.json")
    fields = json.loads((tmp_path / "model" / "config.json").read_text())
    assert "problem_type" not in fields
    assert fields["id2label"] == {"0": "LABEL_0"}
