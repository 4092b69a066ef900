"""What /openapi.json says is what is taken and given: by schemathesis, and by bodies that nobody would send."""

from __future__ import annotations

import http.client
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import negative_data_rejection, not_a_server_error
from schemathesis.specs.openapi import checks

from mtl import Index, MultiTaskModel, SentenceEncoder, TaskSpec
from mtl.serve.app import Service
from mtl.serve.model import Served
from mtl.serve.openapi import REASONS
from mtl.serve.routes import questions

from .conftest import TASKS, Client, letters, randomized, running

AGREE = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]


PAIRS = (TaskSpec("rel", kind="relevance", text_field=("query", "text")),
         TaskSpec("nli", ["no", "yes"], text_field=("one", "other"), joint=True))  # fmt: skip
TAGGERS = (TaskSpec("ner", ("x",), kind="tokens"),)
HEADS = {"texts": TASKS, "pairs": PAIRS, "spans": TAGGERS, "all": TASKS + PAIRS + TAGGERS}


@pytest.fixture(scope="module", params=HEADS)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A server of a model with such heads, and an index."""
    folder = tmp_path_factory.mktemp("model")
    embedder = SentenceEncoder.from_checkpoint(letters(folder))
    index = Index.create(folder / "index", embedder)
    index.add(["a b", "c"])
    model = randomized(MultiTaskModel(embedder, HEADS[request.param]))
    with running(Service(Served(model, "model"), index=index)) as found:
        yield found


def test_the_document_has_every_route(client: Client, headed: Client) -> None:
    document = client.get("/openapi.json").json
    assert document == client.get("/api-doc/openapi.json").json
    asked = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert asked == {(each.method, path) for each in questions(client.service) for path in each.paths}
    for path, methods in document["paths"].items():
        assert all(operation["summary"] for operation in methods.values()), path
    embed = document["paths"]["/embed"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert embed["properties"]["dimensions"]["maximum"] == 12
    assert embed["properties"]["inputs"]["anyOf"][1]["maxItems"] == 40
    assert embed["required"] == ["inputs"]
    assert "security" not in document["paths"]["/embed"]["post"]
    page = client.get("/docs").body.decode()
    assert all(f"<code>{path}</code>" in page for path in document["paths"])
    assert "<code>inputs.source_sentence</code> (needed)" in page
    assert "://" not in page
    assert headed.get("/docs").headers["content-security-policy"].startswith("default-src 'none'")


@pytest.mark.slow
@pytest.mark.parametrize("served", ["all"], indirect=True)
@pytest.mark.parametrize("mode", schemathesis.GenerationMode)
def test_schemathesis(served: Client, mode: schemathesis.GenerationMode) -> None:
    """Of every route, with values that the document allows, and with others."""
    found = schemathesis.openapi.from_url(f"{served.url}/openapi.json").get_all_operations()
    for operation in (each.ok() for each in found):
        if mode == schemathesis.GenerationMode.NEGATIVE and not operation.body:
            continue

        @settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(generation_mode=mode))
        def agrees(case: schemathesis.Case) -> None:
            reply = case.call()
            refused = [negative_data_rejection] if reply.status_code != 424 else []  # it refuses whatever there is
            case.validate_response(reply, checks=[*AGREE, *refused])

        agrees()


WORDS = ["a b", "", "a" * 5000, "\ud800", "é", "right", "LEFT", "float", "base64", "topic", "none", "\0", "🙂"]
SCALARS = [None, True, False, 0, 1, -1, 2**31, 2**70, 1e308, 0.5, 5, 12, 13, *WORDS]
NAMES = ["inputs", "input", "query", "ids", "normalize", "dimensions", "truncate", "truncation_direction", "task", "k",
         "tasks", "raw_scores", "parameters", "encoding_format", "model", "embedding", "prompt_name", "sentences",
         "source_sentence", "add_special_tokens", "texts", "documents", "top_n", "top_k", "function_to_apply",
         "ignore_labels", "x"]  # fmt: skip


def anything(draw: random.Random, depth: int = 3) -> Any:
    kind = draw.random()
    if depth == 0 or kind < 0.5:
        return draw.choice(SCALARS)
    if kind < 0.8:
        return [anything(draw, depth - 1) for _ in range(draw.randrange(4))]
    return {draw.choice(NAMES): anything(draw, depth - 1) for _ in range(draw.randrange(5))}


def body(draw: random.Random) -> bytes:
    """A body of the fields that there are, with any values; one in five is damaged besides."""
    fields = {draw.choice(NAMES): anything(draw) for _ in range(draw.randrange(6))}
    fields |= {name: draw.choice(["a b", ["a", "b c"], [[2, 5, 3]]]) for name in NAMES[:3] if draw.random() < 0.5}
    raw = bytearray(json.dumps(fields, ensure_ascii=draw.random() < 0.5).encode(errors="surrogatepass"))
    if draw.random() < 0.2:
        for _ in range(draw.randrange(1, 4)):
            raw[draw.randrange(len(raw))] = draw.randrange(256)
        raw = raw[: draw.randrange(len(raw) + 1)]
    return bytes(raw)


@pytest.mark.parametrize("bodies", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_no_body_breaks_the_server(served: Client, bodies: int) -> None:
    """Every answer is one of those that are listed, in one line, and says nothing of this machine."""
    paths = [path for each in questions(served.service) if each.method == "POST" for path in each.paths]
    draw, seen = random.Random(0), set()
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
    for i in range(bodies):
        sent = body(draw)
        connection.request("POST", paths[i % len(paths)], sent, {"Content-Type": "application/json"})
        reply = connection.getresponse()
        said = reply.read()
        assert reply.status in {200, *REASONS} - {404}, (sent, said)
        assert reply.status < 500, (sent, said)
        assert b"Traceback" not in said
        assert b"/mtl/" not in said
        json.loads(said)
        seen.add(reply.status)
    connection.close()
    assert seen >= {200, 400, 422, 424}
    assert served.get("/health").status == 200
    assert served.service.held == served.service.requests == 0
