"""Taggers that transformers wrote, and ours in its pipeline: the same logits and the same spans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import randomized
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from mtl import MultiTaskModel, Recipe, SentenceEncoder, TaskSpec, Training, train

transformers = pytest.importorskip("transformers", reason="needs the reference extra")
pytestmark = pytest.mark.reference

TAGS = ["B-PER", "O", "I-LOC", "I-PER", "B-LOC"]
TEXTS = [
    "Ann Lee went to New-York, by train.",
    "x",
    "ab cab a.b (Paris) zz",
    "é \U0001f600 café! and naïve Ann's",
    "Par\U0001f600is\U0001f600\U0001f600 a漢b \U0001f600Ann",  # with unknown characters within words
]
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
         "max_position_embeddings": 60, "initializer_range": 0.3}  # fmt: skip
DISTIL = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 60}


def word_pieces() -> Any:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz,.!()'-"]
    vocabulary = [*words, *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"), "ann", "new", "par", "##is"]
    return transformers.BertTokenizer(vocab={word: i for i, word in enumerate(vocabulary)})


def mpnet_pieces() -> Any:
    words = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>", *"abcdefghijklmnopqrstuvwxyz,.!()'-"]
    vocabulary = [*words, *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"), "ann", "new", "par", "##is"]
    return transformers.MPNetTokenizer(vocab={word: i for i, word in enumerate(vocabulary)})


def bytes_() -> Any:
    """Byte pairs of a blank and the character behind it, as any large vocabulary has them, and of little else."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        special_tokens=special, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator(["".join(f" {c}" for c in "abcdefghijklmnopqrstuvwxyzLNA(é\U0001f600")] * 3, trainer)
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), special, strict=True))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, **names, cls_token="<s>", sep_token="</s>", model_max_length=58
    )


def pieces() -> Any:
    words = "abcdefghijklmnopqrstuvwxyzANLPY,.!()'-é"
    special = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    known = [*((c, -5.0) for c in words), *((f"▁{c}", -4.0) for c in words), ("▁Ann", -3.0), ("▁and", -3.0)]
    backend = Tokenizer(models.Unigram([*special, *known], unk_id=3))
    backend.add_special_tokens([token for token, _ in special])
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    backend.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", pad_token="<pad>", cls_token="<s>", sep_token="</s>"
    )


def deberta_pieces() -> Any:
    letters = "abcdefghijklmnopqrstuvwxyzANLPY,.!()'-é"
    words = [*((c, -5.0) for c in letters), *((f"▁{c}", -4.0) for c in letters), ("▁Ann", -3.0), ("[MASK]", 0.0)]
    special = [(token, 0.0) for token in ("[PAD]", "[CLS]", "[SEP]", "[UNK]")]
    return transformers.DebertaV2Tokenizer(vocab=[*special, *words])


V3 = {"relative_attention": True, "position_biased_input": False, "pos_att_type": "p2c|c2p", "share_att_key": True,
      "norm_rel_ebd": "layer_norm", "position_buckets": 8, "max_relative_positions": 20}  # fmt: skip
CASES = [
    ("Bert", word_pieces, SHAPE),
    ("DistilBert", word_pieces, DISTIL),
    ("Electra", word_pieces, {**SHAPE, "embedding_size": 32}),
    ("Roberta", bytes_, {**SHAPE, "pad_token_id": 1}),
    ("XLMRoberta", pieces, {**SHAPE, "pad_token_id": 1}),
    ("MPNet", mpnet_pieces, {**SHAPE, "pad_token_id": 1}),
    ("DebertaV2", deberta_pieces, {**SHAPE, **V3}),
    ("ModernBert", bytes_, {**SHAPE, "pad_token_id": 1, "cls_token_id": 0, "sep_token_id": 2, "local_attention": 8}),
]


def published(folder: Path, kind: str, tokenizer: Any, shape: dict[str, Any]) -> Any:
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(tokenizer), id2label=dict(enumerate(TAGS)), label2id={x: i for i, x in enumerate(TAGS)}, **shape
    )
    model = randomized(getattr(transformers, f"{kind}ForTokenClassification")(config), 3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def theirs(folder: Path, texts: list[str]) -> list[list[tuple]]:
    pipeline = transformers.pipeline("token-classification", str(folder), aggregation_strategy="first", device="cpu")
    found = [[(s["start"], s["end"], s["entity_group"], float(s["score"])) for s in pipeline(text)] for text in texts]
    return [  # a piece of DeBERTa's has the blank before it, a span of ours has not
        [(start + text[start:end].startswith(" "), end, *rest) for start, end, *rest in spans]
        for text, spans in zip(texts, found, strict=True)
    ]


def check_spans(model: MultiTaskModel, task: str, folder: Path) -> None:
    for ours, expected in zip(model.predict(TEXTS).labels[task], theirs(folder, TEXTS), strict=True):
        found = [(span["start"], span["end"], span["label"]) for span in ours]
        assert found == [span[:3] for span in expected]
        assert [span["score"] for span in ours] == pytest.approx([span[3] for span in expected], abs=1e-5)


@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
@pytest.mark.parametrize(("kind", "tokenizer", "shape"), CASES, ids=[kind for kind, *_ in CASES])
def test_published_taggers(tmp_path: Path, kind: str, tokenizer: Any, shape: dict[str, Any]) -> None:
    words = tokenizer()
    reference = published(tmp_path / "theirs", kind, words, shape)
    model = MultiTaskModel.from_pretrained(tmp_path / "theirs")
    assert model.tasks["tokens"].tags == tuple(TAGS)
    found = model.predict(TEXTS)
    for text, logits in zip(TEXTS, found.logits["tokens"], strict=True):
        encoded = words(text, return_tensors="pt")
        with torch.no_grad():
            expected = reference(**{k: x for k, x in encoded.items() if k != "token_type_ids"}).logits[0]
        closest = (torch.from_numpy(logits)[:, None] - expected[None]).abs().amax(dim=2).amin(dim=1)
        assert closest.max() <= 1e-5  # each word has the logits of one of their tokens; spans say which
    check_spans(model, "tokens", tmp_path / "theirs")
    model.save(tmp_path / "again")
    check_spans(model, "tokens", tmp_path / "again")
    assert f"{kind}ForTokenClassification" in (tmp_path / "again" / "config.json").read_text()
    head = "modernbert" if kind == "ModernBert" else "linear"
    begun = Recipe(str(tmp_path / "theirs"), [TaskSpec("ner", kind="tokens", tags=tuple(TAGS), head=head)])
    from mtl.training.start import create

    assert torch.equal(create(begun).branches["ner"].head.classifier.weight, reference.classifier.weight)


def test_what_we_train_is_a_tagger_to_transformers(tmp_path: Path, minilm: SentenceEncoder) -> None:
    rows = '{"text": "Ann Lee went to New-York.", "spans": [[0, 7, "PER"], [16, 24, "LOC"]]}\n'
    (tmp_path / "rows.jsonl").write_text(rows * 8)
    task = TaskSpec("ner", kind="tokens", train=str(tmp_path / "rows.jsonl"))
    training = Training(epochs=4, batch_size=4, learning_rate=5e-4, head_learning_rate=5e-3)
    model = train(Recipe("all-MiniLM-L6-v2", [task], training), tmp_path / "run")
    check_spans(model, "ner", tmp_path / "run" / "model")
    found = model.predict(TEXTS[0]).labels["ner"][0]
    assert [(span["text"], span["label"]) for span in found] == [("Ann Lee", "PER"), ("New-York", "LOC")]
