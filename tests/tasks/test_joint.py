"""Pairs of texts in one row: segments, cutting, what reads pairs and what does not, ranking."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import WORDS, randomized
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from mtl import MultiTaskModel, SentenceEncoder, TaskSpec
from mtl.checkpoints.load import Checkpoint, Origin
from mtl.cli import main
from mtl.encode.tokenizer import Tokenizer, kept_of_pair
from mtl.errors import InputError, MtlError, RecipeError
from mtl.export.onnx import padded, sample_rows, twin_of
from mtl.model.config import EncoderConfig
from mtl.model.encoder import DistilBert
from mtl.model.packing import PackedBatch
from mtl.training.recipe import Recipe
from mtl.training.start import create

PAIRS = [("a b c", "d"), ("e", "f g"), ("a b c", "d e"), ("h", "")]
LONG = [("a b c d e f g h i", "j"), ("a", "b c d e f g h i j k l m n o p q r"), ("a b c d e f g h i j", "k l m n o p")]
ALONE = TaskSpec("alone", ["x", "y"], text_field=("text",))
JOINT = TaskSpec("judge", ["no", "yes"], text_field=("one", "other"), joint=True)
SCORE = TaskSpec("score", kind="relevance", text_field=("query", "text"), activation="identity")


@pytest.fixture
def bert(tokenizer: Backend) -> Checkpoint:
    """A tiny random BERT: DistilBERT's blocks, and two segments."""
    config = EncoderConfig(
        vocab_size=len(WORDS), max_position_embeddings=16, n_layers=2, n_heads=3, dim=12, hidden_dim=20
    )
    types = torch.stack([torch.zeros(12), torch.randn(12, generator=torch.Generator().manual_seed(5))])
    fields = {"tokenizer_class": "BertTokenizer"}
    origin = Origin("bert", {}, fields, types)
    return Checkpoint(randomized(DistilBert(config)), tokenizer, 16, segments=True, origin=origin)


def judge(checkpoint: Checkpoint, *tasks: TaskSpec) -> MultiTaskModel:
    model = MultiTaskModel(SentenceEncoder.from_checkpoint(checkpoint), tasks)
    randomized(model.branches)
    return model.eval()


def test_a_second_segment_is_ids_turned_over() -> None:
    batch = PackedBatch.pack([[2, 5, 3, ~6, ~3], [2, 5, 3]])
    assert batch.ids.tolist() == [2, 5, 3, 6, 3, 2, 5, 3]
    assert batch.positions.tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert batch.segments is not None
    assert batch.segments.tolist() == [0, 0, 0, 1, 1, 0, 0, 0]
    assert PackedBatch.pack([[2, 5, 3]]).segments is None


def test_an_encoder_without_segments_refuses_one(tiny: SentenceEncoder) -> None:
    with pytest.raises(ValueError, match="tell_segments_apart"):
        tiny.encoder(PackedBatch.pack([[2, ~5, 3]]))


def test_the_second_text_gets_the_second_type_and_single_texts_keep_their_bits(bert: Checkpoint) -> None:
    plain = SentenceEncoder.from_checkpoint(dataclasses.replace(bert, encoder=DistilBert(bert.config)))
    plain.encoder.load_state_dict(bert.encoder.state_dict())
    model = judge(bert, ALONE, JOINT)
    assert np.array_equal(model.embedder.encode(["a b", "c"]), plain.encode(["a b", "c"]))
    assert model.embedder.fingerprint == plain.fingerprint
    row = model.embedder.tokenizer.pairs([("a b", "c")]).rows[0]
    at = {word: i for i, word in enumerate(WORDS)}
    assert row == [at["[CLS]"], at["a"], at["b"], at["[SEP]"], ~at["c"], ~at["[SEP]"]]
    parts = plain.encoder.embeddings
    ids = torch.tensor([token if token >= 0 else ~token for token in row])
    x = parts.word_embeddings(ids) + parts.position_embeddings(torch.arange(len(row)))
    x[4:] += bert.origin.types[1]
    batch = PackedBatch.pack([row])
    torch.testing.assert_close(model.encoder.embed(batch), parts.LayerNorm(x), rtol=0, atol=1e-6)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(2, 40))
def test_longest_first_cuts_the_longer_text(first: int, second: int, room: int) -> None:
    a, b = kept_of_pair(first, second, room)
    assert a <= first
    assert b <= second
    assert a + b == min(first + second, room)
    assert min(a, b) == min(first, second) or abs(a - b) <= 1  # the shorter one is cut only where both are as short


@pytest.mark.parametrize("keep_last", [False, True])
def test_pairs_are_cut_as_tokenizers_cuts_them(tokenizer: Backend, keep_last: bool) -> None:
    ours = Tokenizer(tokenizer, 11, keep_last=keep_last, segments=True).pairs(PAIRS + LONG, "truncate")
    tokenizer.enable_truncation(11, strategy="longest_first", direction="left" if keep_last else "right")
    for pair, row in zip(PAIRS + LONG, ours.rows, strict=True):
        theirs = tokenizer.encode(*pair)
        assert [x if x >= 0 else ~x for x in row] == theirs.ids
        assert [int(x < 0) for x in row] == theirs.type_ids
    assert ours.cuts == [0, 0, 0, 0, 2, 10, 8]


def test_cut_pairs_are_counted(bert: Checkpoint, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "mtl"):
        judge(bert, JOINT).predict(LONG)
    assert "2 pairs were longer than 16 tokens and lost 8 tokens" in caplog.text


def test_a_pair_has_the_same_bits_alone_and_among_others(bert: Checkpoint) -> None:
    model = judge(bert, ALONE, JOINT, SCORE)
    whole = model.predict(PAIRS + LONG, threads=2)
    for i, pair in enumerate(PAIRS + LONG):
        alone = model.predict([pair], threads=1)
        assert set(alone.logits) == {"judge", "score"}
        for name, x in alone.logits.items():
            assert x.tobytes() == whole.logits[name][i : i + 1].tobytes()
    assert whole.embeddings.shape == (7, 0)
    assert set(model.predict(["a"]).logits) == {"alone"}
    ((_, listed),) = model.predict_rows(PAIRS, lambda pair: [*pair], pairs=True)  # lists are pairs too
    assert np.array_equal(listed.logits["judge"], whole.logits["judge"][: len(PAIRS)])
    streamed = [*model.predict_stream(iter(PAIRS), window=3)]
    assert np.array_equal(np.concatenate([x.logits["judge"] for x in streamed]), whole.logits["judge"][:4])


def test_saving_keeps_both_types(bert: Checkpoint, tmp_path: Path) -> None:
    SentenceEncoder.from_checkpoint(bert).save(tmp_path / "vectors")
    joint = MultiTaskModel(SentenceEncoder.from_pretrained(tmp_path / "vectors"), [JOINT])
    assert torch.equal(joint.encoder.embeddings.token_type_embeddings.weight, bert.origin.types)
    model = judge(bert, ALONE, JOINT)
    with torch.no_grad():
        model.encoder.embeddings.token_type_embeddings.weight[1] += 1
    model.save(tmp_path / "saved")
    again = MultiTaskModel.from_pretrained(tmp_path / "saved")
    assert np.array_equal(again.predict(PAIRS).logits["judge"], model.predict(PAIRS).logits["judge"])


def test_the_padded_form_reads_token_types(bert: Checkpoint) -> None:
    """What an exported graph computes of a pair."""
    model = judge(bert, JOINT)
    rows = sample_rows(model)[-3:]
    assert any(token < 0 for row in rows for token in row)
    ids, mask = map(torch.from_numpy, padded(rows))
    with torch.inference_mode():
        logits = twin_of(model)(torch.where(ids < 0, ~ids, ids), (ids < 0).long(), mask)[2]
        torch.testing.assert_close(logits, model(PackedBatch.pack(rows))[1]["judge"], rtol=0, atol=1e-5)


def test_rank_orders_texts_by_their_score(bert: Checkpoint) -> None:
    model = judge(bert, SCORE)
    texts = ["a", "b c", "a", "", "d e f"]
    scores = model.predict([("q", text) for text in texts]).scores["score"][:, 0]
    found = model.rank("q", texts, return_documents=True)
    assert [hit["score"] for hit in found] == sorted(map(float, scores), reverse=True)
    assert all(hit["text"] == texts[hit["corpus_id"]] for hit in found)
    places = [hit["corpus_id"] for hit in found]
    assert places.index(0) + 1 == places.index(2)  # equal scores: the first of the texts comes first
    assert model.rank("q", texts, top_k=2) == [{k: hit[k] for k in ("corpus_id", "score")} for hit in found[:2]]
    assert model.rank("q", []) == []
    assert model.predict([]).logits["score"].shape == (0, 1)


def refusals(bert: Checkpoint) -> list[tuple[Callable[[], Any], str]]:
    one, two, both = judge(bert, ALONE), judge(bert, JOINT), judge(bert, SCORE, dataclasses.replace(SCORE, name="more"))
    score = judge(bert, SCORE)
    return [
        (lambda: one.predict([("a", "b")]), "no task that reads pairs"),
        (lambda: one.rank("a", ["b"]), "read one text at a time"),
        (lambda: two.predict("a"), "reads pairs"),
        (lambda: two.rank("a", ["b"]), "several outputs"),
        (lambda: both.rank("a", ["b"]), "name one as task"),
        (lambda: score.rank("a", ["b"], task="x"), "expected one of score"),
        (lambda: score.rank(("a", "b"), ["b"]), "expected a string"),  # type: ignore[arg-type]
        (lambda: score.rank("a", "b"), "single string"),
        (lambda: score.rank("a", [1]), r"texts\[0\] is int"),  # type: ignore[list-item]
        (lambda: score.predict([("a", "b"), "c"]), r"texts\[1\]"),
        (lambda: score.predict([("a", "b", "c")]), "a pair of strings"),
        (lambda: score.predict([("a", "\ud800")]), "surrogate"),
        (lambda: TaskSpec("t", ["a", "b"], joint=True), "expected 2 fields"),
        (lambda: TaskSpec("t", ["a", "b"], text_field=("a", "b")), "joint = true"),
        (lambda: TaskSpec("t", ["a", "b"], text_field=("a", "b"), joint=1), "true or false"),  # type: ignore[arg-type]
        (lambda: TaskSpec("t", kind="similarity", text_field=("a", "b"), joint=True), "has no joint"),
        (lambda: TaskSpec("t", kind="relevance", text_field=("a", "b"), loss="mse"), "binary, pairwise"),
        (lambda: TaskSpec("t", kind="relevance", text_field=("a", "b"), loss="pairwise"), "one negative or more"),
        (lambda: TaskSpec("t", kind="relevance", text_field=("a", "b"), activation="tanh"), "sigmoid"),
        (lambda: dataclasses.replace(SCORE, activation="softmax", train="x.jsonl"), "of one score softmax is always 1"),
        (lambda: dataclasses.replace(SCORE, labels=("p", "q"), train="x.jsonl"), "of one score for a pair"),
        (lambda: JOINT.handler.read({"one": "a", "label": "no"}), "no field 'other'"),
        (lambda: JOINT.handler.read({"one": "a", "other": " ", "label": "no"}), "field 'other' is empty"),
        (lambda: SCORE.handler.read({"query": "a", "text": "b", "label": 2}), "from 0 to 1"),
    ]


def test_what_is_wrong_is_one_line(bert: Checkpoint) -> None:
    for number, (call, said) in enumerate(refusals(bert)):
        with pytest.raises((MtlError, ValueError), match=said) as error:
            call()
        assert "\n" not in str(error.value), number
        assert isinstance(error.value, (InputError, RecipeError, ValueError)), number


@pytest.mark.parametrize(
    ("fields", "activation"),
    [
        ({"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, "identity"),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}}, "sigmoid"),
        ({"sentence_transformers": {"version": "4.0.1"}}, "sigmoid"),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Tanh"}}, None),
        ({"sentence_transformers": {"activation_fn": "my.own.Sigmoid"}}, None),
    ],
)
def test_a_cross_encoders_activation(
    bert: Checkpoint, tmp_path: Path, edit_json: Callable[..., None], fields: dict[str, Any], activation: str | None
) -> None:
    task = dataclasses.replace(SCORE, head="bert", pooling=("cls",))
    model = judge(bert, task)
    model.save(tmp_path / "m")
    for file in ("tasks.json", "tasks.safetensors", "modules.json", "config_sentence_transformers.json"):
        (tmp_path / "m" / file).unlink()
    edit_json(tmp_path / "m" / "config.json", **{"sbert_ce_default_activation_function": None,
              "sentence_transformers": None, **fields})  # fmt: skip
    if activation is None:
        with pytest.raises(MtlError, match="activation is .*expected one of torch.nn.Identity"):
            MultiTaskModel.from_pretrained(tmp_path / "m")
        return
    found = MultiTaskModel.from_pretrained(tmp_path / "m")
    assert found.tasks["classification"].activation == activation
    logits = found.predict(PAIRS).logits["classification"]
    assert np.array_equal(logits, model.predict(PAIRS).logits["score"])
    scores = found.predict(PAIRS).scores["classification"]
    assert np.allclose(scores, logits if activation == "identity" else 1 / (1 + np.exp(-logits)), atol=1e-6)
    assert found.rank("a", ["b", "c"])


def test_a_published_classifier_reads_both(bert: Checkpoint, tmp_path: Path) -> None:
    """A reranker without a word of it, as bge-reranker-base is."""
    task = TaskSpec("t", ["LABEL_0"], "multi-label", head="bert", pooling=("cls",))
    judge(bert, task).save(tmp_path / "m")
    for file in ("tasks.json", "tasks.safetensors"):
        (tmp_path / "m" / file).unlink()
    model = MultiTaskModel.from_pretrained(tmp_path / "m")
    assert model.predict(["a"]).logits["classification"].shape == (1, 1)
    assert len(model.rank("a", ["b", "c"])) == 2
    model.save(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "tasks.json").read_text())[0]["joint"] == "either"
    again = MultiTaskModel.from_pretrained(tmp_path / "again")
    assert again.rank("a", ["b", "c"]) == model.rank("a", ["b", "c"])


@pytest.mark.parametrize("kind", ["relevance", "regression"])
def test_training_begins_with_a_published_head_of_one_number(bert: Checkpoint, tmp_path: Path, kind: str) -> None:
    task = TaskSpec("t", kind=kind, head="bert", pooling=("cls",), text_field=("a", "b"), joint=True)
    expected = judge(bert, task)
    expected.save(tmp_path / "m")
    for file in ("tasks.json", "tasks.safetensors"):
        (tmp_path / "m" / file).unlink()
    begun = create(Recipe(str(tmp_path / "m"), [task])).own_branch("t").head.state_dict()
    theirs = expected.own_branch("t").head.state_dict()
    assert all(torch.equal(theirs[name], x) for name, x in begun.items())
    other = TaskSpec("t", kind="regression" if kind == "relevance" else "relevance", head="bert", pooling=("cls",),
                     text_field=("a", "b"), joint=True)  # fmt: skip
    drawn = create(Recipe(str(tmp_path / "m"), [other])).own_branch("t").head.state_dict()
    assert not any(torch.equal(theirs[name], x) for name, x in drawn.items())


@pytest.mark.parametrize("task", [JOINT, SCORE])
def test_a_page_shows_pairs_where_a_model_reads_no_texts(bert: Checkpoint, tmp_path: Path, task: TaskSpec) -> None:
    judge(bert, dataclasses.replace(task, head="bert", pooling=("cls",))).save(tmp_path / "m")
    page = (tmp_path / "m" / "README.md").read_text()
    assert 'model.predict([("How was' in page
    read = 'CrossEncoder("PLACE")\nprint(model.predict([("How' if task is SCORE else 'PLACE")({"text": "How'
    assert read in page.replace("OWNER/NAME", "PLACE")
    assert 'model.encode(["The train' in page
    judge(bert, task, ALONE).save(tmp_path / "both")
    assert 'model.predict(["The train' in (tmp_path / "both" / "README.md").read_text()


def test_rerank_in_int8(bert: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judge(bert, SCORE).save(tmp_path / "m")
    given = ["rerank", "-m", str(tmp_path / "m"), "-q", "a", "b", "c d", "--precision", "int8", "--threads", "1"]
    with pytest.raises(SystemExit) as done:
        main([*given, "--int8-least-cosine", "-1"])
    assert not done.value.code
    assert "precision=int8 (" in capsys.readouterr().err
