"""What clients of TEI and of OpenAI send, and what they get: values, errors, headers, limits."""

from __future__ import annotations

import base64
import dataclasses
import json
import socket
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import processors

from mtl import MultiTaskModel, SentenceEncoder, TaskSpec
from mtl.serve import app
from mtl.serve.app import Service, read_keys
from mtl.serve.contracts import Limits
from mtl.serve.model import Served, public_name
from mtl.tasks.spans import in_units

from .conftest import TASKS, Client, letters, randomized, running

TEXTS = ["a b c", "d", "e f g h i j", "a b c"]
LONG = " ".join("abcdefghijklmnopqrst")  # 22 tokens where the limit is 16


def floats(answer: Any) -> np.ndarray:
    return np.array(answer, dtype=np.float32)


def test_embed_gives_the_bytes_that_encode_gives(client: Client, encoder: SentenceEncoder) -> None:
    for body, options in (
        ({}, {"normalize": True}),
        ({"normalize": False}, {}),
        ({"dimensions": 5}, {"normalize": True, "truncate_dim": 5}),
        ({"normalize": False, "dimensions": 5, "prompt_name": "query"}, {"truncate_dim": 5, "prompt_name": "query"}),
    ):
        reply = client.post("/embed", {"inputs": TEXTS, **body})
        assert reply.status == 200, reply.body
        assert np.array_equal(floats(reply.json), encoder.encode(TEXTS, **options))
    assert np.array_equal(floats(client.post("/embed", {"inputs": "d"}).json), encoder.encode(["d"], normalize=True))
    assert client.post("/", {"inputs": "d"}).json == client.post("/embed", {"inputs": "d"}).json
    reply = client.post("/embed", {"inputs": TEXTS})
    assert reply.headers["x-compute-tokens"] == "21"
    assert reply.headers["x-compute-characters"] == "22"
    assert "x-mtl-truncated" not in reply.headers


def test_token_ids_are_taken_as_they_stand(client: Client, encoder: SentenceEncoder) -> None:
    rows = [[2, 5, 6, 3], [2, 9, 3]]
    expected = encoder.encode(["a b", "e"], normalize=True)
    assert np.array_equal(floats(client.post("/embed", {"inputs": rows}).json), expected)
    reply = client.post("/v1/embeddings", {"input": rows[0]}).json
    assert np.array_equal(floats(reply["data"][0]["embedding"]), expected[0])
    assert reply["usage"] == {"prompt_tokens": 4, "total_tokens": 4}


def test_embed_all_gives_each_token(client: Client, encoder: SentenceEncoder) -> None:
    reply = client.post("/embed_all", {"inputs": ["a b", "c"]}).json
    assert [len(tokens) for tokens in reply] == [4, 3]
    for tokens, text in zip(reply, ["a b", "c"], strict=True):
        np.testing.assert_allclose(floats(tokens).mean(axis=0), encoder.encode(text), atol=1e-6)


def test_openai_embeddings(client: Client, encoder: SentenceEncoder) -> None:
    expected = encoder.encode(TEXTS, normalize=True)
    reply = client.post("/v1/embeddings", {"input": TEXTS, "model": "text-embedding-3-small"}).json
    assert reply["object"] == "list"
    assert reply["model"] == "tiny"
    assert [row["index"] for row in reply["data"]] == [0, 1, 2, 3]
    assert np.array_equal(floats([row["embedding"] for row in reply["data"]]), expected)
    assert reply["usage"] == {"prompt_tokens": 21, "total_tokens": 21}
    reply = client.post("/v1/embeddings", {"input": "d", "encoding_format": "base64", "dimensions": 4}).json
    raw = base64.b64decode(reply["data"][0]["embedding"])
    assert raw == encoder.encode("d", normalize=True, truncate_dim=4).tobytes()
    assert [model["id"] for model in client.get("/v1/models").json["data"]] == ["tiny"]


def test_truncation_is_an_error_or_a_header(client: Client, encoder: SentenceEncoder) -> None:
    for path, field in (("/embed", "inputs"), ("/v1/embeddings", "input")):
        refused = client.post(path, {field: ["a", LONG]})
        assert refused.status == (422 if path == "/embed" else 400)
        assert b"must have less than 17 tokens. Given: 22 (text 1)" in refused.body
        cut = client.post(path, {field: ["a", LONG, LONG], "truncate": True})
        assert cut.status == 200
        assert cut.headers["x-mtl-truncated"] == "2"
    expected = encoder.encode(["a", LONG, LONG], overflow="truncate", normalize=True)
    assert np.array_equal(floats([row["embedding"] for row in cut.json["data"]]), expected)
    left = client.post("/embed", {"inputs": LONG, "truncate": True, "truncation_direction": "Left"}).json
    assert np.array_equal(floats(left), encoder.encode([" ".join("ghijklmnopqrst")], normalize=True))


def test_the_server_may_cut_by_itself(serving: Callable[..., Client]) -> None:
    client = serving(truncate=True)
    assert client.post("/embed", {"inputs": LONG}).headers["x-mtl-truncated"] == "1"
    assert client.post("/embed", {"inputs": LONG, "truncate": False}).status == 422
    assert client.get("/info").json["auto_truncate"] is True


def test_similarity(client: Client, encoder: SentenceEncoder) -> None:
    inputs = {"source_sentence": "a b", "sentences": ["a", "c d"]}
    vectors = encoder.encode(["a b", "a", "c d"], normalize=True)
    for path in ("/similarity", "/"):
        reply = client.post(path, {"inputs": inputs, "parameters": {}}).json
        np.testing.assert_allclose(reply, vectors[1:] @ vectors[0], atol=1e-6)
    inputs["sentences"].append(LONG)
    assert client.post("/similarity", {"inputs": inputs}).status == 422
    cut = client.post("/similarity", {"inputs": inputs, "parameters": {"truncate": True}})
    assert cut.headers["x-mtl-truncated"] == "1"


def test_tokenize_and_decode(client: Client) -> None:
    (tokens,) = client.post("/tokenize", {"inputs": "A fé"}).json
    assert tokens[0] == {"id": 2, "text": "[CLS]", "special": True, "start": None, "stop": None}
    assert tokens[1] == {"id": 5, "text": "A", "special": False, "start": 0, "stop": 1}
    assert [token["text"] for token in tokens[2:-1]] == ["f", "é"]
    assert len(client.post("/tokenize", {"inputs": [LONG, "a"], "add_special_tokens": False}).json[0]) == 20
    assert client.post("/decode", {"ids": [2, 5, 6, 3]}).json == ["a b"]
    assert client.post("/decode", {"ids": [[2, 5, 3]], "skip_special_tokens": False}).json == ["[CLS] a [SEP]"]


def test_all_heads_from_one_pass(headed: Client, heads: MultiTaskModel) -> None:
    found = heads.predict([*TEXTS, ""])
    reply = headed.post("/v1/predict", {"input": [*TEXTS, ""], "embedding": True}).json
    for i, row in enumerate(reply["data"]):
        assert np.array_equal(floats(row["embedding"]), found.embeddings[i])
        assert row["tasks"].keys() == {"topic", "tags", "score"}
        for name, task in row["tasks"].items():
            assert task["label"] == found.labels[name][i]
            assert np.array_equal(floats(task["logits"]), found.logits[name][i])
            assert np.array_equal(floats(list(task["scores"].values())), found.scores[name][i])
    some = headed.post("/v1/predict", {"input": "a", "tasks": ["topic"]}).json["data"][0]
    assert some["tasks"].keys() == {"topic"}
    assert "embedding" not in some
    metrics = headed.get("/metrics").body.decode()
    assert 'mtl_predicted_labels{task="topic",label="' in metrics


def test_predict_answers_for_one_task(headed: Client, heads: MultiTaskModel) -> None:
    found = heads.predict(["a b"])
    reply = headed.post("/predict", {"inputs": "a b", "task": "topic"}).json
    assert [row["score"] for row in reply] == sorted((row["score"] for row in reply), reverse=True)
    assert {row["label"]: np.float32(row["score"]) for row in reply} == dict(
        zip("xyz", found.scores["topic"][0], strict=True)
    )
    batch = headed.post("/predict", {"inputs": [["a b"], ["c"]], "task": "score", "raw_scores": True}).json
    assert batch[0] == [{"score": pytest.approx(found.logits["score"][0, 0]), "label": "value"}]
    pipeline = headed.post("/", {"inputs": "a b", "task": "topic", "parameters": {"top_k": 2}}).json
    assert pipeline == [reply[:2]]
    with_vectors = headed.post("/", {"inputs": "a b", "normalize": False}).json
    assert np.array_equal(floats(with_vectors), heads.embedder.encode(["a b"]))


def test_one_text_in_a_list_is_one_text(one_head: Client) -> None:
    """As TEI reads it; the answer is not a list of answers."""
    expected = one_head.post("/predict", {"inputs": "a b"}).json
    assert one_head.post("/predict", {"inputs": ["a b"]}).json == expected
    assert one_head.post("/predict", {"inputs": [["a b"]]}).json == [expected]
    assert one_head.post("/", {"inputs": ["a b"], "parameters": {}}).json == [expected]


def test_infinitys_clients(one_head: Client, client: Client) -> None:
    """Their routes have no prefix."""
    answers = one_head.post("/predict", {"inputs": [["a b"], ["c"]], "raw_scores": True}).json
    reply = one_head.post("/classify", {"input": ["a b", "c"], "model": "any", "raw_scores": True}).json
    usage = {"prompt_tokens": 7, "total_tokens": 7}
    assert reply == {"object": "classify", "data": answers, "model": "classifier", "usage": usage}
    assert "text 1" in one_head.post("/classify", {"input": ["a", ""]}).json["error"]["message"]
    assert client.post("/classify", {"input": ["a"]}).status == 424
    assert client.get("/models").json == client.get("/v1/models").json
    assert client.post("/embeddings", {"input": "a"}).json == client.post("/v1/embeddings", {"input": "a"}).json


def test_a_model_whose_name_has_a_slash(encoder: SentenceEncoder) -> None:
    with running(Service(Served(encoder, "org/name"))) as client:
        for path in ("org/name", "org%2Fname"):
            assert client.get(f"/v1/models/{path}").json["id"] == "org/name"
        assert client.get("/v1/models/name").json["error"]["type"] == "invalid_request_error"


def test_a_pair_is_refused_as_one(headed: Client) -> None:
    for inputs in (["a", "b"], [["a", "b"]]):
        reply = headed.post("/predict", {"inputs": inputs, "task": "topic"})
        assert reply.status == 424
        assert "pair of texts" in reply.json["error"]
    assert headed.post("/predict", {"inputs": ["a", "b", "c"], "task": "topic"}).status == 422


REFUSED: list[tuple[str, Any, int, str]] = [
    ("/embed", b"{", 400, "no JSON"),
    ("/embed", b"\xff", 400, "no JSON"),
    ("/embed", b"[" * 10_000, 400, "no JSON"),
    ("/embed", b'{"inputs": "\\ud800"}', 400, "no JSON"),
    ("/embed", b'{"inputs": NaN}', 400, "no JSON"),
    ("/embed", b'{"inputs": "a", "dimensions": Infinity}', 400, "no JSON"),
    ("/embed", b"", 400, "no JSON"),
    ("/embed", b'\xef\xbb\xbf{"inputs": "a"}', 400, "no JSON"),
    ("/embed", b'{"inputs": %s"a"%s}' % (b"[" * 900, b"]" * 900), 422, "token ids"),
    ("/embed", b'{"inputs": "a", "inputs": "b"}', 422, "a field is there twice: 'inputs'"),
    ("/embed", b'{"inputs": "a", "inputs": %s1%s}' % (b"[" * 900, b"]" * 900), 422, "a field is there twice"),
    ("/embed", b'{"x1": 0, %s' % json.dumps({f"x{i}": i for i in range(100)}).encode()[1:], 422, "twice: 'x1'"),
    ("/similarity", b'{"inputs": {"source_sentence": "a", "sentences": ["a"], "sentences": ["b"]}}', 422, "twice"),
    ("/embed", rb'{"inputs": "a", "\u0069nputs": "b"}', 422, "a field is there twice: 'inputs'"),
    ("/embed", b'{"inputs": "a", "x": [%s{"y": 1, "y": 2}]}' % (b"{}," * 5000), 422, "a field is there twice: 'y'"),
    ("/embed", {"inputs": [[2, 5, 3]], "prompt_name": "query"}, 422, "`inputs` holds token ids"),
    ("/embed", [1], 422, "expected a JSON object"),
    ("/embed", {}, 422, "`inputs` is missing"),
    ("/embed", {"inputs": None}, 422, "`inputs` is missing"),
    ("/embed", {"inputs": 3}, 422, "expected a string"),
    ("/embed", {"inputs": []}, 400, "cannot be empty"),
    ("/embed", {"inputs": ""}, 422, "cannot be empty"),
    ("/embed", {"inputs": ["a", ""]}, 422, "(text 1)"),
    ("/embed", {"inputs": ["a", 3]}, 422, "`inputs[1]` is 3"),
    ("/embed", {"inputs": [["a"]]}, 422, "token ids"),
    ("/embed", {"inputs": [[]]}, 422, "token ids"),
    ("/embed", {"inputs": [[True]]}, 422, "token ids"),
    ("/embed", {"inputs": [[2, 9999]]}, 422, "token id 9999 is unknown"),
    ("/embed", {"inputs": [[2, -1]]}, 422, "token id -1 is unknown"),
    ("/embed", {"inputs": [[2] * 17]}, 422, "Given: 17"),
    ("/embed", {"inputs": ["a"] * 41}, 422, "batch size 41 > maximum allowed batch size 40"),
    ("/embed", {"inputs": "a" * 4001}, 422, "4001 characters"),
    ("/embed", {"inputs": "a", "dimensions": 0}, 422, "from 1 to 12"),
    ("/embed", {"inputs": "a", "dimensions": 13}, 422, "from 1 to 12"),
    ("/embed", {"inputs": "a", "dimensions": True}, 422, "from 1 to 12"),
    ("/embed", {"inputs": "a", "normalize": "yes"}, 422, "true or false"),
    ("/embed", {"inputs": "a", "truncation_direction": "up"}, 422, "right, left"),
    ("/embed", {"inputs": "a", "prompt_name": "nope"}, 422, "prompts are: query"),
    ("/similarity", {"inputs": {"source_sentence": "a", "sentences": []}}, 400, "cannot be empty"),
    ("/similarity", {"inputs": {"sentences": ["a"]}}, 422, "`inputs.source_sentence` is missing"),
    ("/similarity", {"inputs": "a"}, 422, "an object"),
    ("/decode", {"ids": "a"}, 422, "token ids"),
    ("/decode", {"ids": [99999]}, 422, "unknown"),
    ("/predict", {"inputs": "a"}, 424, "not a classifier model"),
    ("/rerank", {"query": "a", "texts": ["b"]}, 424, "not a re-ranker model"),
    ("/embed_sparse", {"inputs": "a"}, 424, "not a sparse"),
    ("/v1/embeddings", b'{"input": "a", "input": "b"}', 400, "there twice"),
    ("/v1/embeddings", {"input": [2, 5, 3], "prompt_name": "query"}, 400, "`input` holds token ids"),
    ("/v1/embeddings", {"input": ""}, 400, "cannot be empty"),
    ("/v1/embeddings", {"input": []}, 400, "cannot be empty"),
    ("/v1/embeddings", {"input": [[100_000]]}, 400, "send texts instead"),
    ("/v1/embeddings", {"input": "a", "encoding_format": "hex"}, 400, "float, base64"),
    ("/v1/predict", {"input": "a"}, 424, "no task heads"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "status", "said"), REFUSED)
def test_bad_requests_are_refused_in_one_line(client: Client, path: str, body: Any, status: int, said: str) -> None:
    reply = client.post(path, body)
    assert reply.status == status, reply.body
    error = reply.json["error"]
    message = error["message"] if path.startswith("/v1/") else error
    assert said in message
    assert "\n" not in message
    if path.startswith("/v1/"):
        assert error.keys() == {"message", "type", "param", "code"}
    else:
        empty = status == 400 and "cannot be empty" in said
        assert reply.json["error_type"] == ("Empty" if empty else {424: "Backend"}.get(status, "Validation"))


def test_what_is_twice_in_a_text_is_no_field(client: Client) -> None:
    for text in ("inputs", '"inputs": "inputs"', "x"):
        body = {"inputs": [text] * 2, "x": [{"y": 1}, {"y": 1}], "user": "inputs"}
        assert client.post("/embed", body).status == 200


def test_large_bodies_are_read_beside_the_event_loop(
    serving: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fields, and what they hold: nobody else's request waits for it."""
    client, threads = serving(), []

    def noting(work: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any) -> Any:
            threads.append(threading.current_thread().name.rpartition("_")[0] == "mtl-tokenize")
            return work(*arguments)

        return noted

    monkeypatch.setattr(app, "read_fields", noting(app.read_fields))
    monkeypatch.setattr(client.service.served, "check_ids", noting(client.service.served.check_ids))
    for ids, aside in (([2, 5, 3], False), ([2, 5, 3] * 2000, True)):
        threads.clear()
        assert client.post("/embed", {"inputs": ids, "truncate": True}).status == 200
        assert threads == [aside, aside]


def test_what_failed_is_counted_by_its_cause(serving: Callable[..., Client]) -> None:
    client = serving(limits=Limits(texts=1))
    for path, body in (("/embed", {"inputs": ["a", "b"]}), ("/predict", {"inputs": "a"}), ("/embed", {"inputs": 3})):
        client.post(path, body)
    failures = client.service.metrics.values["te_request_failure"]
    assert failures == {'err="batch_size"': 1, 'err="model_type"': 1, 'err="validation"': 1}


def test_odd_requests_of_the_protocol(client: Client) -> None:
    body = b'{"inputs": "a b"}'
    expected = client.post("/embed", body).body
    for kind in ("application/json; charset=utf-8", "Application/JSON", "application/vnd.api+json"):
        assert client.post("/embed", body, **{"Content-Type": kind}).body == expected
    assert client.post("/embed?inputs=c&%ff", body).body == expected
    assert client.post("/embed", body, Host="[nowhere").body == expected
    for path in ("/embed/", "//embed", "/embed/%ff?%ff", "/EMBED"):
        assert client.post(path, body, Host="[nowhere").status == 404
    assert client.send("HEAD", "/info").body == b""
    for method, path in (("OPTIONS", "/embed"), ("HEAD", "/embed"), ("PUT", "/embed")):
        reply = client.send(method, path)
        assert (reply.status, reply.headers["allow"]) == (405, "POST")
    for kind in ("", "application/jsonx", "text/json", "multipart/form-data"):
        assert client.post("/embed", body, **{"Content-Type": kind}).status == 415


def test_the_root_embeds_where_there_is_no_head(client: Client) -> None:
    """As TEI's does; what stands among the parameters counts."""
    expected = client.post("/embed", {"inputs": ["a", "b"], "normalize": False}).body
    assert client.post("/", {"inputs": ["a", "b"], "parameters": {"normalize": False}}).body == expected
    assert client.post("/", {"inputs": ["a", "b"], "parameters": None, "normalize": False}).body == expected
    assert client.post("/", {"inputs": "a", "parameters": 3}).status == 422


def test_a_similarity_has_the_same_bits_whatever_stands_beside_it(client: Client) -> None:
    sentences = [" ".join("abcdefghijkl"[i : i + 5]) for i in range(8)]
    ask = {"source_sentence": "a b"}
    together = client.post("/similarity", {"inputs": {**ask, "sentences": sentences}}).json
    alone = [client.post("/similarity", {"inputs": {**ask, "sentences": [text]}}).json for text in sentences]
    assert together == [one for (one,) in alone]


def test_a_prompt_that_leaves_no_room(encoder: SentenceEncoder, tmp_path: Any) -> None:
    """The server starts, and says so of each text."""
    made = dataclasses.replace(letters(tmp_path), default_prompt=f"{LONG} ")
    with running(Service(Served(SentenceEncoder.from_checkpoint(made), "long"))) as client:
        assert client.post("/embed", {"inputs": "a"}).status == 422
        assert client.post("/embed", {"inputs": "a", "truncate": True}).headers["x-mtl-truncated"] == "1"


def test_unknown_tasks_are_refused(headed: Client) -> None:
    assert "topic, tags, score; name one" in headed.post("/predict", {"inputs": "a"}).json["error"]
    assert "expected one of topic" in headed.post("/predict", {"inputs": "a", "task": "nope"}).json["error"]
    assert headed.post("/v1/predict", {"input": "a", "tasks": ["nope"]}).status == 400
    refused = headed.post("/", {"inputs": "a", "task": "topic", "parameters": {"function_to_apply": "relu"}})
    assert "`parameters.function_to_apply` is 'relu'; expected one of none, sigmoid, softmax" in refused.json["error"]


def test_another_path_method_or_type(client: Client) -> None:
    assert client.get("/nope").status == 404
    assert client.get("/embed").status == 405
    assert client.post("/nope", {}).json["error_type"] == "Validation"
    assert client.post("/v1/nope", {}).json["error"]["message"] == "no such path: POST /v1/nope"
    for path in ("/v1/models/a%0Ab", "/models/a%0Ab"):  # no name has a line break, which the routes know
        said = client.get(path).json["error"]["message"]
        assert said == f"no such path: GET '{path}'".replace("%0A", r"\n")
    reply = client.send("POST", "/embed", b'{"inputs": "a"}', **{"Content-Type": "text/plain"})
    assert reply.status == 415


def test_large_bodies_are_refused_unread(client: Client) -> None:
    assert client.post("/embed", {"inputs": "a" * 30_000}).status == 413
    with socket.create_connection(("127.0.0.1", client.port)) as raw:
        head = "POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        raw.sendall(f"{head}Content-Length: 999999999\r\n\r\n".encode())
        assert raw.recv(100).startswith(b"HTTP/1.1 413")
    with socket.create_connection(("127.0.0.1", client.port)) as raw:
        chunk = b"1000\r\n" + b"x" * 4096 + b"\r\n"
        raw.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + 6 * chunk)
        assert raw.recv(100).startswith(b"HTTP/1.1 413")
    assert client.service.held == 0


def test_a_request_of_more_tokens_than_may_ever_wait(serving: Callable[..., Client]) -> None:
    client = serving(limits=Limits(queued_tokens=8))
    assert client.post("/embed", {"inputs": TEXTS}).status == 413
    assert client.post("/embed", {"inputs": "a"}).status == 200


def test_keys(serving: Callable[..., Client]) -> None:
    client = serving(keys=read_keys("\ufefffirst\r\n\r\n# ours\r\n second \r\nsecond\nschl\u00fcssel"))
    for headers in ({}, {"Authorization": "Bearer nope"}, {"Authorization": "first"}, {"Authorization": "Bearer"}):
        for path in ("/embed", "/v1/embeddings"):
            reply = client.post(path, {"inputs": "a", "input": "a"}, **headers)
            assert reply.status == 401
            assert reply.headers["www-authenticate"] == "Bearer"
        assert client.get("/info", **headers).status == 401
    for key in ("first", "second", "schl\u00fcssel".encode().decode("latin-1")):  # as it goes over the wire
        assert client.post("/embed", {"inputs": "a"}, Authorization=f"Bearer {key}").status == 200
    assert client.get("/health").status == 200
    assert client.get("/metrics").status == 200


def test_cross_origin_use_is_off_unless_told(client: Client, serving: Callable[..., Client]) -> None:
    ask = {"Origin": "http://page.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in client.send("OPTIONS", "/embed", **ask).headers
    allowing = serving(["http://page.example"])
    reply = allowing.send("OPTIONS", "/embed", **ask)
    assert reply.headers["access-control-allow-origin"] == "http://page.example"
    other = {"Origin": "http://evil.example"}
    assert "access-control-allow-origin" not in allowing.post("/embed", {"inputs": "a"}, **other).headers


def test_info_health_and_metrics(client: Client, headed: Client) -> None:
    info = client.get("/info").json
    assert info["model_id"] == "tiny"
    assert (info["max_input_length"], info["model_dtype"]) == (16, "float32")
    assert info["model_type"] == {"embedding": {"pooling": "mean"}}
    assert headed.get("/info").json["mtl"]["tasks"]["topic"] == {"kind": "single-label", "labels": ["x", "y", "z"]}
    assert client.get("/health").status == 200
    client.post("/embed", {"inputs": "a"})
    client.post("/embed", {"inputs": ""})
    metrics = client.get("/metrics").body.decode()
    for line in ('te_request_count{method="single"} ', 'te_request_failure{err="validation"} ', "te_queue_size 0",
                 'te_request_duration_bucket{le="+Inf"} ', "te_batch_next_tokens_sum ", "te_embed_count "):  # fmt: skip
        assert line in metrics


def test_a_record_of_each_request_without_its_texts(serving: Callable[..., Client]) -> None:
    records: list[dict[str, Any]] = []
    client = serving(report=records.append)
    client.post("/embed", {"inputs": ["a b", LONG], "truncate": True})
    client.post("/embed", {"inputs": 3})
    assert [(r["path"], r["status"], r["texts"], r["tokens"], r["cut"]) for r in records] == [
        ("/embed", 200, 2, 20, 1),
        ("/embed", 422, 0, 0, 0),
    ]
    assert LONG not in json.dumps(records)


def test_nothing_of_ours_in_an_answer(serving: Callable[..., Client], caplog: pytest.LogCaptureFixture) -> None:
    client = serving()

    def broken(*args: object) -> None:
        raise OSError("/home/secret/file")

    client.service.served.tokenize = broken
    reply = client.post("/embed", {"inputs": "a"})
    assert reply.status == 500
    assert b"secret" not in reply.body
    assert b"Traceback" not in reply.body
    assert "secret" in caplog.text


def test_a_vector_that_is_not_finite_is_an_error(serving: Callable[..., Client]) -> None:
    client = serving()
    served = client.service.served
    good = served.vectors
    served.programs["vectors"] = lambda rows: good(rows) * np.array([[np.nan if len(row) == 3 else 1] for row in rows])
    assert client.post("/embed", {"inputs": ["a", "a b"]}).status == 424
    assert client.post("/embed", {"inputs": ["a b"]}).status == 200
    assert client.get("/health").status == 200


def test_names_of_folders_show_no_path(tmp_path: Any) -> None:
    (tmp_path / "demo" / "model").mkdir(parents=True)
    assert public_name(str(tmp_path / "demo" / "model")) == "demo"
    assert public_name(str(tmp_path / "demo")) == "demo"
    assert public_name("org/name@main") == "org/name"


def test_a_name_that_json_cannot_hold(encoder: SentenceEncoder) -> None:
    with running(Service(Served(encoder, "a\udcffb"))) as client:
        assert client.get("/info").json["model_id"] == client.get("/v1/models").json["data"][0]["id"] == "a?b"


def test_taggers_are_served_beside_heads(tagging: MultiTaskModel) -> None:
    with running(Service(Served(tagging, "tagging"))) as client:
        texts = ["a b c d", "e", "a b", "f g h i j"]
        expected = tagging.predict(texts)
        rows = client.post("/v1/predict", {"input": texts}).json["data"]
        assert [row["tasks"]["ner"]["spans"] for row in rows] == expected.labels["ner"]
        assert any(expected.labels["ner"])
        assert [row["tasks"]["topic"]["label"] for row in rows] == expected.labels["topic"]
        alone = client.post("/v1/predict", {"input": texts[0], "tasks": ["ner"]}).json["data"][0]["tasks"]
        assert alone == {"ner": {"spans": expected.labels["ner"][0]}}
        assert client.get("/info").json["mtl"]["tasks"].keys() == {"topic", "ner"}
        assert client.post("/predict", {"inputs": "a", "task": "ner"}).json["error"].endswith("ask /v1/predict")
        assert client.post("/predict", {"inputs": "a", "task": "topic"}).status == 200
        prompted = [f"q {text}" for text in texts]
        rows = client.post("/v1/predict", {"input": texts, "prompt_name": "query"}).json["data"]
        assert [row["tasks"]["topic"]["label"] for row in rows] == tagging.predict(prompted).labels["topic"]
        for row, text, found in zip(rows, texts, tagging.predict(prompted).logits["ner"], strict=True):
            spans = tagging.tasks["ner"].handler.spans
            (units,) = in_units(tagging.embedder.tokenizer, [text], 16, "q ")
            assert row["tasks"]["ner"]["spans"] == spans(units, torch.from_numpy(found[1:]))
        reply = client.post("/v1/predict", {"input": LONG, "truncate": True})
        assert (reply.status, "send it in parts" in reply.json["error"]["message"]) == (400, True)
        assert client.post("/v1/predict", {"input": LONG, "truncate": True, "tasks": ["topic"]}).status == 200


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> MultiTaskModel:
    """Heads and a tagger, over a tokenizer that adds no special tokens; the last tokens of a long text are kept."""
    made = letters(tmp_path_factory.mktemp("bare"))
    made.tokenizer.post_processor = processors.Sequence([])
    embedder = SentenceEncoder.from_checkpoint(dataclasses.replace(made, truncate_left=True))
    return randomized(MultiTaskModel(embedder, (*TASKS, TaskSpec("ner", ("x",), kind="tokens"))))


def test_a_text_without_a_token_is_served_as_it_is_embedded(bare: MultiTaskModel) -> None:
    """A vector of zeros, no hidden state, no span; the texts beside it are as they would be without."""
    texts = ["a b", " ", "c"]
    expected = bare.predict(texts)
    assert not expected.embeddings[1].any()
    with running(Service(Served(bare, "bare"))) as client:
        for inputs in (texts, [" "]):
            found = client.post("/embed", {"inputs": inputs, "normalize": False})
            assert found.status == 200
            assert np.array_equal(floats(found.json), bare.predict(inputs).embeddings)
        assert [len(rows) for rows in client.post("/embed_all", {"inputs": texts}).json] == [2, 0, 1]
        answers = client.post("/v1/predict", {"input": texts}).json["data"]
    for i, answer in enumerate(answers):
        assert np.array_equal(floats([*answer["tasks"]["topic"]["logits"]]), expected.logits["topic"][i])
        assert answer["tasks"]["ner"]["spans"] == expected.labels["ner"][i]
    assert answers[1]["tasks"]["ner"]["spans"] == []


def test_long_texts_are_cut_where_the_model_cuts_them(bare: MultiTaskModel) -> None:
    """At their beginning, where the checkpoint says so; a request may say otherwise."""
    expected = bare.embedder.encode([LONG], overflow="truncate")
    first = bare.embedder.encode([" ".join(LONG.split()[:16])])
    assert not np.array_equal(expected, first)
    with running(Service(Served(bare, "bare"))) as client:
        ask = {"inputs": LONG, "truncate": True, "normalize": False}
        assert np.array_equal(floats(client.post("/embed", ask).json), expected)
        right = client.post("/embed", {**ask, "truncation_direction": "right"}).json
        assert np.array_equal(floats(right), first)
