"""/rerank and pairs in /predict, of a model that reads two texts in one row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import randomized
from serve.conftest import Client, letters, running

from mtl import MultiTaskModel, SentenceEncoder, TaskSpec
from mtl.serve.app import Service
from mtl.serve.model import Served

SCORE = TaskSpec("score", kind="relevance", text_field=("query", "text"), activation="identity")
NLI = TaskSpec("nli", ["no", "yes"], text_field=("one", "other"), joint=True)
TEXTS = ["b c", "a", "d e f", "a"]


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> MultiTaskModel:
    embedder = SentenceEncoder.from_checkpoint(letters(tmp_path_factory.mktemp("judge")))
    return randomized(MultiTaskModel(embedder, [SCORE, NLI]))


@pytest.fixture(scope="module")
def judged(judge: MultiTaskModel) -> Iterator[Client]:
    with running(Service(Served(judge, "judge"))) as found:
        yield found


def test_rerank_has_the_models_bits(judged: Client, judge: MultiTaskModel) -> None:
    body = {"query": "a b", "texts": TEXTS, "raw_scores": True, "return_text": True}
    reply = judged.post("/rerank", body).json
    wanted = judge.rank("a b", TEXTS, return_documents=True, task="score")
    assert [(hit["index"], hit["text"]) for hit in reply] == [(hit["corpus_id"], hit["text"]) for hit in wanted]
    assert [np.float32(hit["score"]) for hit in reply] == [np.float32(hit["score"]) for hit in wanted]
    sigmoids = judged.post("/rerank", {"query": "a b", "texts": TEXTS}).json
    assert [set(hit) for hit in sigmoids] == [{"index", "score"}] * 4
    logits = np.array([hit["score"] for hit in reply])
    np.testing.assert_allclose([hit["score"] for hit in sigmoids], 1 / (1 + np.exp(-logits)), rtol=0, atol=1e-6)
    assert judged.post("/", body).json == reply


def test_documents_get_coheres_answer(judged: Client) -> None:
    """As infinity has it at /rerank, and Cohere, Jina and vLLM at the others."""
    hits = judged.post("/rerank", {"query": "a b", "texts": TEXTS}).json
    body = {"query": "a b", "documents": TEXTS, "model": "any"}
    reply = judged.post("/rerank", body).json
    assert reply["results"] == [{"index": hit["index"], "relevance_score": hit["score"]} for hit in hits]
    assert (reply["object"], reply["model"]) == ("rerank", "judge")
    assert reply["usage"] == {"prompt_tokens": 27, "total_tokens": 27}
    for path, document in (("/rerank", str), ("/v1/rerank", "{{'text': {!r}}}".format), ("/v2/rerank", None)):
        found = judged.post(path, {**body, "top_n": 2, "return_documents": document is not None}).json["results"]
        assert [hit["index"] for hit in found] == [hit["index"] for hit in hits[:2]]
        if document:
            assert [str(hit["document"]) for hit in found] == [document(TEXTS[hit["index"]]) for hit in found]
        else:
            assert "document" not in found[0]
    assert judged.post("/", {**body, "top_n": 1}).json["results"] == reply["results"][:1]
    assert judged.post("/v1/rerank", {"query": "a b", "texts": TEXTS}).json == hits


def test_a_query_is_tokenized_once(judge: MultiTaskModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long query beside many texts would take its length times their number of memory."""
    tokenizer, seen = judge.embedder.tokenizer, list[str]()
    alone = [tokenizer.pairs([("a b", text)]).rows[0] for text in TEXTS]
    ids = tokenizer.ids
    monkeypatch.setattr(tokenizer, "ids", lambda texts: (seen.extend(texts), ids(texts))[1])
    assert tokenizer.pairs([("a b", text) for text in TEXTS]).rows == alone
    assert sorted(seen) == sorted({"a b", *TEXTS})


def test_pairs_are_classified(judged: Client, judge: MultiTaskModel) -> None:
    scores = judge.predict([("a", "b c")]).scores["nli"][0]
    reply = judged.post("/predict", {"inputs": ["a", "b c"], "task": "nli"}).json
    assert {row["label"]: np.float32(row["score"]) for row in reply} == dict(zip(["no", "yes"], scores, strict=True))
    assert judged.post("/predict", {"inputs": [["a", "b c"], ["d", "e"]], "task": "nli"}).json[0] == reply


@pytest.mark.parametrize("first", [["a", "b c"], {"text": "a", "text_pair": "b c"}, {"one": "a", "other": "b c"}])
def test_all_tasks_answer_pairs(judged: Client, judge: MultiTaskModel, first: object) -> None:
    found = judge.predict([("a", "b c"), ("d", "")])
    reply = judged.post("/v1/predict", {"input": [first, ["d", ""]]}).json
    assert reply["usage"]["prompt_tokens"] == 6 + 4  # each in one row: [CLS] a [SEP] b c [SEP]
    for i, answer in enumerate(reply["data"]):
        for name in ("score", "nli"):
            logits, scores = np.float32(answer["tasks"][name]["logits"]), [*answer["tasks"][name]["scores"].values()]
            np.testing.assert_array_equal(logits, found.logits[name][i])
            np.testing.assert_array_equal(np.float32(scores), found.scores[name][i])
        assert answer["tasks"]["nli"]["label"] == found.labels["nli"][i]
    none = judged.post("/v1/predict", {"input": [first, ["d", ""]], "tasks": []}).json["data"]
    assert [answer["tasks"] for answer in none] == [{}, {}]
    alone = judged.post("/v1/predict", {"input": first, "tasks": "nli"}).json["data"]
    assert [answer["tasks"] for answer in alone] == [{"nli": reply["data"][0]["tasks"]["nli"]}]


def test_texts_and_pairs_of_one_model(tmp_path: Path) -> None:
    """Texts go to the classifier and the tagger, pairs to the judge; two strings are two texts."""
    tasks = [TaskSpec("topic", ["x", "y"]), TaskSpec("ner", ["P"], kind="tokens"), NLI]
    model = randomized(MultiTaskModel(SentenceEncoder.from_checkpoint(letters(tmp_path)), tasks))
    with running(Service(Served(model, "both"))) as client:
        texts = client.post("/v1/predict", {"input": ["a", "b c"]}).json["data"]
        assert [[*answer["tasks"]] for answer in texts] == [["topic", "ner"]] * 2
        (pair,) = client.post("/v1/predict", {"input": [["a", "b c"]]}).json["data"]
        assert pair["tasks"]["nli"]["label"] == model.predict([("a", "b c")]).labels["nli"][0]
        assert "topic" not in pair["tasks"]
        refused = client.post("/v1/predict", {"input": ["a", ["a", "b"]]})
        assert (refused.status, "texts alone, or pairs alone" in refused.json["error"]["message"]) == (400, True)
        refused = client.post("/v1/predict", {"input": [["a", "b"]], "tasks": ["topic"]})
        assert (refused.status, "expected one of nli" in refused.json["error"]["message"]) == (400, True)
        schema = client.get("/openapi.json").json["paths"]["/v1/predict"]["post"]["requestBody"]
        assert "text_pair" in str(schema)
        assert "'other'" in str(schema)


def test_a_tagger_alone_is_served(tmp_path: Path) -> None:
    embedder = SentenceEncoder.from_checkpoint(letters(tmp_path))
    model = randomized(MultiTaskModel(embedder, [TaskSpec("ner", ["P", "L"], kind="tokens")]))
    with running(Service(Served(model, "tagger"))) as client:
        (answer,) = client.post("/v1/predict", {"input": "a b c"}).json["data"]
        wanted = model.predict(["a b c"]).labels["ner"][0]
        assert [{**span, "score": np.float32(span["score"])} for span in answer["tasks"]["ner"]["spans"]] == wanted
        refused = client.post("/predict", {"inputs": "a b c"})
        assert (refused.status, "finds spans; ask /v1/predict" in refused.json["error"]) == (422, True)


def test_the_server_says_that_it_reads_pairs(judged: Client) -> None:
    tasks = judged.get("/info").json["mtl"]["tasks"]
    assert tasks["score"] == {"kind": "relevance", "labels": [], "pairs": True}


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/rerank", {"texts": ["b"]}, 422, "`query` is missing"),
        ("/rerank", {"query": ["a"], "texts": ["b"]}, 422, "a string"),
        ("/rerank", {"query": "", "texts": ["b"]}, 422, "cannot be empty"),
        ("/rerank", {"query": "a", "texts": [""]}, 422, "cannot be empty"),
        ("/rerank", {"query": "a", "texts": []}, 400, "cannot be empty"),
        ("/rerank", {"query": "a", "texts": [1]}, 422, "a string"),
        ("/rerank", {"query": "a"}, 422, "`texts` is missing"),
        ("/rerank", {"query": "a", "documents": []}, 400, "`documents` cannot be empty"),
        ("/v1/rerank", {"query": "a", "documents": ["b", {"text": "c"}]}, 422, "`documents[1]`"),
        ("/v1/rerank", {"query": "a", "documents": ["b"], "top_n": 0}, 422, "`top_n` is 0"),
        ("/classify", {"input": ["a"]}, 424, "takes pairs"),
        ("/rerank", {"query": "a", "texts": ["b " * 20]}, 422, "must have less than 17 tokens"),
        ("/predict", {"inputs": "a", "task": "nli"}, 424, "takes pairs"),
        ("/predict", {"inputs": [["a"], ["a", "b"]], "task": "nli"}, 422, "pairs alone"),
        ("/predict", {"inputs": [["a", "b"]]}, 422, "name one"),
        ("/v1/predict", {"input": "a"}, 400, "expected a pair of texts"),
        ("/v1/predict", {"input": [["a", "b"], ["a"]]}, 400, "`input[1]`"),
        ("/v1/predict", {"input": [{"text": "a"}]}, 400, "text_pair"),
        ("/v1/predict", {"input": [{"text": "a", "text_pair": None}]}, 400, "expected a pair"),
        ("/v1/predict", {"input": [{"text": "a", "text_pair": "b", "one": "c"}]}, 400, "expected a pair"),
        ("/v1/predict", {"input": []}, 400, "cannot be empty"),
        ("/v1/predict", {"input": [["a", "b " * 20]]}, 400, "must have less than 17 tokens"),
        ("/v1/predict", {"input": [["a", "b"]], "embedding": True}, 400, "`embedding`"),
        ("/v1/predict", {"input": [["a", "b"]], "tasks": ["none"]}, 400, "expected one of"),
    ],
)
def test_bad_requests(judged: Client, path: str, body: object, status: int, said: str) -> None:
    reply = judged.post(path, body)
    error = reply.json["error"]
    assert (reply.status, said in (error if isinstance(error, str) else error["message"])) == (status, True), reply.body
