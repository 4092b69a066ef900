"""What the server can be asked: TEI's routes, OpenAI's, and ours for all heads at once."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mtl.index.index import Hit
from mtl.rows.vector_files import json_line
from mtl.serve.app import Call, Service, not_served
from mtl.serve.contracts import Refused, embedding, ranked, to_classify
from mtl.serve.model import HEADS, TOKENS, VECTORS
from mtl.serve.queue import Row

STARTED = int(time.time())
RESULTS = 1000  # of a query of /search
PIECES = 1 << 19  # characters whose tokens may be asked for at once


# text-embeddings-inference


async def tei_rows(call: Call) -> Sequence[Row]:
    """The rows of `inputs`: texts, or token ids."""
    ids = call.fields.ids("inputs")
    return (
        await call.tokenized(call.fields.strings("inputs"), "inputs") if ids is None else call.from_ids(ids, "inputs")
    )


async def embed(call: Call) -> Any:
    """A vector for each text, (texts, dimensions)."""
    normalize = call.fields.flag("normalize", True)
    return await call.vectors(await tei_rows(call), normalize)


async def embed_all(call: Call) -> Any:
    """The last hidden state of each token of each text."""
    rows = await tei_rows(call)
    if call.tokens > (most := call.service.limits.token_states):
        raise Refused(413, f"the texts have {call.tokens} tokens; expected at most {most} for /embed_all", "inputs")
    return await call.values(TOKENS, rows)


async def predict(call: Call) -> Any:
    """One task's labels with their probabilities, the likeliest first."""
    name = head(call)
    raw = call.fields.flag("raw_scores", False)
    texts, batch = to_classify(call.fields)
    found = await all_heads(call, await call.tokenized(texts, "inputs"), texts, [name])
    answers = [
        ranked(list(said["scores"]), said["logits"] if raw else np.array(list(said["scores"].values())))
        for said in (tasks[name] for tasks in found[1])
    ]
    return answers if batch else answers[0]


def head(call: Call) -> str:
    """The task of a question about one."""
    if not call.served.heads:
        raise Refused(424, "model is not a classifier model: it has no task heads")
    return call.served.task(call.fields.string("task"))


async def all_heads(
    call: Call, rows: Sequence[Row], texts: Sequence[str], names: Sequence[str] | None = None
) -> Any:  # fmt: skip
    """Embeddings, and what the tasks say of each text, from one pass of the trunk."""
    served = call.served
    taggers = [name for name in served.taggers if names is None or name in names]
    if taggers and call.cut:
        raise Refused(call.status, "a text is over the limit of tokens; taggers read whole texts: send it in parts")
    values = await call.values(HEADS, rows)
    embeddings, logits = served.split(values)
    said = served.said({name: x for name, x in logits.items() if names is None or name in names}) or [{} for _ in rows]
    if taggers:
        for tasks, spans in zip(said, served.spans(texts, values), strict=True):
            tasks.update((name, spans[name]) for name in taggers)
    for tasks in said:
        for name, task in tasks.items():
            found = [span["label"] for span in task["spans"]] if "spans" in task else task["label"]
            labels = found if isinstance(found, list) else [found]
            for label in labels:
                if isinstance(label, str):
                    call.service.metrics.add("mtl_predicted_labels", task=name, label=label)
    return embeddings, said


async def rerank(call: Call) -> Any:
    """Only a model that reads pairs of texts can."""
    raise Refused(424, "model is not a re-ranker model; /similarity compares embeddings")


async def embed_sparse(call: Call) -> Any:
    raise Refused(424, "model is not a sparse (SPLADE) model")


async def similarity(call: Call) -> Any:
    """The cosine of one sentence with each of several."""
    inputs = call.fields.inner("inputs")
    source = inputs.strings("source_sentence")
    if len(source) != 1:
        raise Refused(422, "`inputs.source_sentence` is a list; expected a string", "inputs.source_sentence")
    sentences = inputs.strings("sentences")
    call.count(len(sentences), "inputs.sentences")
    rows = await call.tokenized([*source, *sentences], "inputs", call.fields.inner("parameters"))
    vectors = await call.vectors(rows)
    return np.ascontiguousarray(vectors[1:] @ vectors[0])


async def tokenize(call: Call) -> Any:
    """The tokens of each text, with the characters that they stand for."""
    texts = call.fields.strings("inputs")
    call.count(len(texts), "inputs")
    special, prompt = call.fields.flag("add_special_tokens", True), call.fields.string("prompt_name")
    call.characters = sum(map(len, texts))
    if call.characters > PIECES:
        raise Refused(413, f"the texts have {call.characters} characters; expected at most {PIECES}", "inputs")
    pieces = functools.partial(call.served.pieces, special=special, prompt_name=prompt)
    return await asyncio.get_running_loop().run_in_executor(call.service.pool, lambda: list(map(pieces, texts)))


async def decode(call: Call) -> Any:
    """The texts that token ids stand for."""
    rows = call.fields.ids("ids")
    if rows is None:
        raise call.fields.wrong("ids", call.fields.get("ids"), "a list of token ids, or of such lists")
    call.count(len(rows), "ids")
    skip = call.fields.flag("skip_special_tokens", True)
    return [call.served.decode(row, skip) for row in rows]


async def info(call: Call) -> Any:
    served, limits, about, index = call.served, call.service.limits, call.served.about(), call.service.index
    kind: dict[str, Any] = {"embedding": {"pooling": about["pooling"]}}
    if len(about["tasks"]) == len(served.tasks) == 1:
        labels = next(iter(about["tasks"].values()))["labels"] or ["value"]
        kind = {
            "classifier": {
                "id2label": dict(enumerate_strings(labels)),
                "label2id": {x: i for i, x in enumerate(labels)},
            }
        }
    return {
        "model_id": served.name,
        "model_sha": None,
        "model_dtype": about["precision"],
        "served_model_name": served.name,
        "model_type": kind,
        "max_concurrent_requests": limits.requests,
        "max_input_length": about["max_length"],
        "max_batch_tokens": served.turn_tokens,
        "max_batch_requests": None,
        "max_client_batch_size": limits.texts,
        "auto_truncate": call.service.truncate,
        "tokenization_workers": 2,
        "version": version("mtl"),
        "sha": None,
        "docker_label": None,
        "mtl": about | ({"index": {"rows": len(index), "form": index.state.form}} if index is not None else {}),
    }


def enumerate_strings(labels: Sequence[str]) -> list[tuple[str, str]]:
    return [(str(i), label) for i, label in enumerate(labels)]


async def root(call: Call) -> Any:
    """What the shape of the request asks for, as huggingface_hub's InferenceClient sends it to the root."""
    values = call.fields.values
    if isinstance(values.get("inputs"), dict):
        return await similarity(call)
    if "parameters" in values:
        return await classification(call)
    embeds = values.keys() & {"normalize", "dimensions", "prompt_name", "encoding_format"}
    return await (predict(call) if call.served.heads and not embeds else embed(call))


async def classification(call: Call) -> Any:
    """As ``predict``, in the form of transformers' pipelines: a list for each text, and their parameters."""
    parameters = call.fields.inner("parameters")
    function, most = parameters.string("function_to_apply"), parameters.count("top_k", 1 << 31)
    if function is not None and function != "none":
        raise parameters.wrong("function_to_apply", function, "none, or nothing for the task's own")
    call.fields.values = {"raw_scores": function == "none", **parameters.values, **call.fields.values}
    said = await predict(call)
    return [labels[:most] for labels in (said if said and isinstance(said[0], list) else [said])]


# OpenAI, and ours beside it


async def openai_rows(call: Call) -> Sequence[Row]:
    ids = call.fields.ids("input")
    return await call.tokenized(call.fields.strings("input"), "input") if ids is None else call.from_ids(ids, "input")


def listed(call: Call, data: list[dict[str, Any]]) -> dict[str, Any]:
    """OpenAI's envelope, with the tokens that were read."""
    usage = {"prompt_tokens": call.tokens, "total_tokens": call.tokens}
    return {"object": "list", "data": data, "model": call.served.name, "usage": usage}


async def embeddings(call: Call) -> Any:
    """POST /v1/embeddings"""
    as_base64 = call.fields.choice("encoding_format", ("float", "base64")) == "base64"
    call.fields.string("model")
    vectors = await call.vectors(await openai_rows(call))
    data = [
        {"object": "embedding", "index": i, "embedding": embedding(vector, as_base64)}
        for i, vector in enumerate(vectors)
    ]
    return listed(call, data)


async def predictions(call: Call) -> Any:
    """POST /v1/predict: what all heads say of each text, and its embedding where it is asked for."""
    if not call.served.heads:
        raise Refused(424, "the model has no task heads; /v1/embeddings gives embeddings")
    with_embedding = call.fields.flag("embedding", False)
    names = call.fields.strings("tasks") if call.fields.values.get("tasks") is not None else None
    for name in names or ():
        if name not in call.served.taggers:
            call.served.task(name)
    texts = call.fields.strings("input")
    rows = await call.tokenized(texts, "input", empty=True)
    vectors, said = await all_heads(call, rows, texts, names)
    data = [
        {"object": "prediction", "index": i, "tasks": tasks, **({"embedding": vectors[i]} if with_embedding else {})}
        for i, tasks in enumerate(said)
    ]
    return listed(call, data)


async def search(call: Call) -> Any:
    """POST /search: the rows of the index that are the most similar to each query, from its newest state."""
    if call.service.index is None:
        raise Refused(424, "the server has no index; start it with --index FOLDER", "query")
    k = call.fields.count("k", RESULTS) or 5
    single = isinstance(call.fields.get("query"), str)
    rows = await call.tokenized(call.fields.strings("query"), "query", query=True)
    vectors = call.served.finished(await call.values(VECTORS, rows), False, None)

    def found() -> list[list[orjson.Fragment]]:
        assert call.service.index
        call.service.index = index = call.service.index.current()
        return [[as_json(hit) for hit in hits] for hits in index.search(vectors, k)]

    results = await asyncio.get_running_loop().run_in_executor(call.service.pool, found)
    return {"results": results[0] if single else results}


def as_json(hit: Hit) -> orjson.Fragment:
    """A row as it was kept: JSON has more numbers than orjson."""
    return orjson.Fragment(json_line(dataclasses.asdict(hit)).encode(errors="backslashreplace"))


async def models(call: Call) -> Any:
    """GET /v1/models"""
    return {
        "object": "list",
        "data": [
            {"id": call.served.name, "object": "model", "created": STARTED, "owned_by": "mtl", **call.served.about()}
        ],
    }


# Of the server itself

PAGE = (Path(__file__).parent / "page.html").read_bytes()
INSIDE = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'"
)


async def page(request: Request) -> Response:
    """The page to try the model on; it asks for a key where the server wants one."""
    headers = {"content-security-policy": INSIDE, "x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}
    return Response(PAGE, 200, headers, "text/html; charset=utf-8")


def application(service: Service, origins: Sequence[str] = ()) -> Starlette:
    """The server's ASGI application; pages of ``origins`` may use it from a browser."""

    async def health(request: Request) -> Response:
        """200 where requests are answered, 503 where the worker is dead or stuck, or the server about to stop."""
        fault = service.fault
        return service.refuse(Refused(503, fault, retry_after=10), False) if fault else Response(b"", 200)

    async def metrics(request: Request) -> Response:
        service.metrics.set("te_queue_size", len(service.queue.pending))
        service.metrics.set("mtl_queue_tokens", service.queue.tokens)
        return Response(str(service.metrics), media_type="text/plain; version=0.0.4")

    tei = {
        "embed": embed, "embed_all": embed_all, "embed_sparse": embed_sparse, "predict": predict, "rerank": rerank,
        "similarity": similarity, "tokenize": tokenize, "decode": decode,
    }  # fmt: skip
    openai = {
        "/embeddings": embeddings, "/v1/embeddings": embeddings, "/v1/predict": predictions, "/search": search,
    }  # fmt: skip
    routes = [
        *(Route(f"/{name}", service.endpoint(name, handler), methods=["POST"]) for name, handler in tei.items()),
        *(
            Route(path, service.endpoint(handler.__name__, handler, openai=True), methods=["POST"])
            for path, handler in openai.items()
        ),
        *(Route(path, service.endpoint("root", root), methods=["POST"]) for path in ("/", "/invocations")),
        Route("/", page),
        Route("/v1/models", service.endpoint("models", models, openai=True, reads=False)),
        Route("/info", service.endpoint("info", info, reads=False)),
        *(Route(path, health) for path in ("/health", "/ping")),
        Route("/metrics", metrics),
    ]
    cors = Middleware(CORSMiddleware, allow_origins=list(origins), allow_methods=["*"], allow_headers=["*"])
    return Starlette(
        routes=routes,
        middleware=[cors] if origins else [],
        exception_handlers={HTTPException: not_served},
        lifespan=service.lifespan,
    )
