"""Cross-encoders that transformers wrote: the same ids, logits, scores and ranking; and ours, read by the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import randomized
from tasks.test_reference_tokens import DISTIL, SHAPE, bytes_, pieces, word_pieces

from mtl import MultiTaskModel

transformers = pytest.importorskip("transformers", reason="needs the reference extra")
CrossEncoder = pytest.importorskip("sentence_transformers", reason="needs the reference extra").CrossEncoder
pytestmark = pytest.mark.reference

TEXTS = ["Ann Lee went to New-York, by train.", "x", "ab cab a.b (Paris) zz", "é café! and naïve Ann's", " a b ", ""]
PAIRS = [(a, b) for a in TEXTS for b in TEXTS if a] + [("ab " * n, "cd " * m) for n, m in ((30, 9), (9, 30), (40, 41))]
MODERN = {**SHAPE, "pad_token_id": 1, "cls_token_id": 0, "sep_token_id": 2, "bos_token_id": 0, "eos_token_id": 2}
DEBERTA = {**SHAPE, "relative_attention": True, "position_buckets": 16, "pos_att_type": ["p2c", "c2p"],
           "norm_rel_ebd": "layer_norm", "share_att_key": True, "position_biased_input": False, "type_vocab_size": 2,
           "pooler_hidden_size": 32}  # fmt: skip
CASES = [
    ("Bert", word_pieces, {**SHAPE, "type_vocab_size": 3}),
    ("Electra", word_pieces, {**SHAPE, "embedding_size": 32}),
    ("DistilBert", word_pieces, DISTIL),
    ("Roberta", bytes_, {**SHAPE, "pad_token_id": 1}),
    ("XLMRoberta", pieces, {**SHAPE, "pad_token_id": 1}),
    ("ModernBert", bytes_, MODERN),
    ("MPNet", word_pieces, SHAPE),
    ("DebertaV2", word_pieces, DEBERTA),
]
IDENTITY = "torch.nn.modules.linear.Identity"
SAYS: list[dict[str, Any]] = [
    {"sbert_ce_default_activation_function": IDENTITY},
    {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid", "version": "4.1.0"}},
]
SOFTMAX: dict[str, Any] = {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Softmax"}}


def published(folder: Path, kind: str, tokenizer: Any, shape: dict[str, Any], outputs: int, says: Any) -> Any:
    config = getattr(transformers, f"{kind}Config")(vocab_size=len(tokenizer), num_labels=outputs, **shape)
    model = randomized(getattr(transformers, f"{kind}ForSequenceClassification")(config), 3)
    model.save_pretrained(folder)
    tokenizer.model_max_length = 40
    tokenizer.save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | says))


def logits_of(folder: Path) -> np.ndarray:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(*map(list, zip(*PAIRS, strict=True)), truncation=True, padding=True, return_tensors="pt")
    with torch.no_grad():
        return model(**batch).logits.numpy()


@pytest.mark.parametrize(("outputs", "says"), [(1, SAYS[0]), (1, SAYS[1]), (3, SOFTMAX)])
@pytest.mark.parametrize(("kind", "make", "shape"), CASES, ids=[kind for kind, *_ in CASES])
def test_logits_scores_and_ranking(
    kind: str, make: Any, shape: dict[str, Any], outputs: int, says: Any, tmp_path: Path
) -> None:
    published(tmp_path / "theirs", kind, make(), shape, outputs, says)
    ours, theirs = MultiTaskModel.from_pretrained(tmp_path / "theirs"), CrossEncoder(str(tmp_path / "theirs"))
    found = ours.predict(PAIRS)
    wanted = logits_of(tmp_path / "theirs")
    np.testing.assert_allclose(found.logits["classification"], wanted, rtol=0, atol=1e-5)
    scores = theirs.predict(PAIRS).reshape(len(PAIRS), outputs)
    np.testing.assert_allclose(found.scores["classification"], scores, rtol=0, atol=1e-5)
    if outputs == 1:
        ranked = [hit["corpus_id"] for hit in theirs.rank(TEXTS[0], TEXTS)]
        assert [hit["corpus_id"] for hit in ours.rank(TEXTS[0], TEXTS)] == ranked
    ours.save(tmp_path / "ours")
    np.testing.assert_allclose(logits_of(tmp_path / "ours"), wanted, rtol=0, atol=1e-5)
    again = CrossEncoder(str(tmp_path / "ours")).predict(PAIRS).reshape(len(PAIRS), outputs)
    np.testing.assert_allclose(again, scores, rtol=0, atol=1e-5)


def test_what_sentence_transformers_6_writes(tmp_path: Path) -> None:
    published(tmp_path / "theirs", "Bert", word_pieces(), SHAPE, 1, SAYS[0])
    theirs = CrossEncoder(str(tmp_path / "theirs"))
    theirs.save_pretrained(str(tmp_path / "six"))
    found = MultiTaskModel.from_pretrained(tmp_path / "six").predict(PAIRS).scores["classification"][:, 0]
    np.testing.assert_allclose(found, theirs.predict(PAIRS), rtol=0, atol=1e-5)
