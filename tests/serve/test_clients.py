"""The clients that people have, unchanged, against a server."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import InferenceClient

from mtl import MultiTaskModel, SentenceEncoder
from mtl.serve.app import Service, read_keys
from mtl.serve.contracts import Limits
from mtl.serve.model import Served

from .conftest import Client, running

TEXTS = ["a b c", "d", "e f g h"]


def test_openai(client: Client, encoder: SentenceEncoder) -> None:
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{client.url}/v1", api_key="none", max_retries=0) as ours:
        for options in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"}):
            reply = ours.embeddings.create(model="any", input=TEXTS, dimensions=8, **options)
            vectors = [row.embedding for row in reply.data]
            if isinstance(vectors[0], str):
                continue
            expected = encoder.encode(TEXTS, normalize=True, truncate_dim=8)
            assert np.array_equal(np.array(vectors, np.float32), expected)
            assert reply.usage.prompt_tokens == 14
        assert [model.id for model in ours.models.list()] == ["tiny"]
        assert ours.models.retrieve("tiny") == ours.models.list().data[0]
        with pytest.raises(openai.NotFoundError, match="there is no model 'org/other' here; expected 'tiny'"):
            ours.models.retrieve("org/other")
        with pytest.raises(openai.BadRequestError, match="cannot be empty"):
            ours.embeddings.create(model="any", input="")
        with pytest.raises(openai.BadRequestError, match="token id 50000 is unknown"):
            ours.embeddings.create(model="any", input=[[50000]])


def test_openai_learns_of_keys_and_load(serving: Callable[..., Client]) -> None:
    openai = pytest.importorskip("openai")
    client = serving(keys=read_keys("secret"), limits=Limits(requests=0))
    for key, kind in (("wrong", openai.AuthenticationError), ("secret", openai.RateLimitError)):
        with openai.OpenAI(base_url=f"{client.url}/v1", api_key=key, max_retries=0) as ours:
            with pytest.raises(kind, match="expected a key|overloaded") as refused:
                ours.embeddings.create(model="any", input="a")
            assert refused.value.response.headers.get("retry-after") == (None if key == "wrong" else "1")


def test_huggingface_hub(client: Client, headed: Client, encoder: SentenceEncoder, heads: MultiTaskModel) -> None:
    ours = InferenceClient(model=client.url)
    found = ours.feature_extraction("a b", normalize=False, truncate=True, truncation_direction="right")
    assert np.array_equal(found, encoder.encode(["a b"]))
    assert np.array_equal(
        ours.feature_extraction("a b", dimensions=3), encoder.encode(["a b"], normalize=True, truncate_dim=3)
    )
    vectors = encoder.encode(["a b", "a", "c d"], normalize=True)
    np.testing.assert_allclose(ours.sentence_similarity("a b", ["a", "c d"]), vectors[1:] @ vectors[0], atol=1e-6)
    only = InferenceClient(model=f"{headed.url}/embed")
    assert np.array_equal(only.feature_extraction("a b", normalize=False), heads.embedder.encode(["a b"]))


def test_huggingface_hub_classifies(one_head: Client, classifier: MultiTaskModel) -> None:
    found = InferenceClient(model=one_head.url).text_classification("a b", top_k=2)
    scores = dict(zip("xyz", classifier.predict(["a b"]).scores["topic"][0], strict=True))
    assert [(row.label, np.float32(row.score)) for row in found] == sorted(scores.items(), key=lambda row: -row[1])[:2]


@pytest.mark.parametrize("function", ["none", "sigmoid", "softmax"])
def test_huggingface_hub_says_what_scores_are(one_head: Client, classifier: MultiTaskModel, function: str) -> None:
    found = InferenceClient(model=one_head.url).text_classification("a b", function_to_apply=function)
    x = classifier.predict(["a b"]).logits["topic"][0]
    expected = {"none": x, "sigmoid": 1 / (1 + np.exp(-x)), "softmax": np.exp(x) / np.exp(x).sum()}[function]
    assert [row.label for row in found] == ["xyz"[i] for i in np.argsort(-x)]
    np.testing.assert_allclose([row.score for row in found], np.sort(expected)[::-1], rtol=1e-5)


def test_huggingface_hub_finds_spans(tagging: MultiTaskModel) -> None:
    """Of a tagger alone, and of one beside a classifier where the request can mean no other."""
    alone = MultiTaskModel(tagging.embedder, [tagging.tasks["ner"]])
    alone.branches["ner"].load_state_dict(tagging.branches["ner"].state_dict())
    text = "a b c d e f g h i j k"
    spans = tagging.predict([text]).labels["ner"][0]
    expected = [(one["label"], np.float32(one["score"]), one["text"], one["start"], one["end"]) for one in spans]
    assert expected
    for model, asked in (
        (alone.eval(), {}),
        (tagging, {"aggregation_strategy": "first"}),
        (tagging, {"ignore_labels": []}),
    ):
        with running(Service(Served(model, "tagger"))) as client:
            ours = InferenceClient(model=client.url)
            found = ours.token_classification(text, **asked)
            assert [(x.entity_group, np.float32(x.score), x.word, x.start, x.end) for x in found] == expected
            some = ours.token_classification(text, ignore_labels=["PER"])
            assert [x.entity_group for x in some] == ["LOC" for label, *_ in expected if label == "LOC"]
            several = client.post("/", {"inputs": [text, "e"], "parameters": asked, "task": "ner"}).json
            assert list(map(len, several)) == list(map(len, tagging.predict([text, "e"]).labels["ner"]))
            refused = client.post("/", {"inputs": text, "parameters": {"aggregation_strategy": "max"}})
            assert "`parameters.aggregation_strategy` is 'max'; expected one of first" in refused.json["error"]


def test_texts_in_one_list_are_embedded(one_head: Client, classifier: MultiTaskModel) -> None:
    """By a model with heads too: what a LangChain adapter sends says no more, and a classifier reads no such list."""
    ours = InferenceClient(model=one_head.url)
    for texts in (["a"], ["a", "b c"], TEXTS):
        found = ours.feature_extraction(texts)
        assert np.array_equal(found, classifier.embedder.encode(texts, normalize=True))
    for fields in ({"task": "nonsense"}, {"raw_scores": True}, {"task": "nonsense", "normalize": True}):
        assert one_head.post("/", {"inputs": ["a", "b", "c"], **fields}).status == 422


def test_what_the_documentation_shows(minilm: SentenceEncoder, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openai")
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    with running(Service(Served(minilm, "all-MiniLM-L6-v2"))) as client:
        exec(code.replace("http://127.0.0.1:8080", client.url), {})
        for path in set(re.findall(r"`(?:GET |POST )?(/[a-z0-9_/]*)`", page)):
            assert {client.get(path).status, client.post(path, {}).status} != {404}, path
    assert capsys.readouterr().out.startswith("384 7\n[0.5")
