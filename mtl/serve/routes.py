"""What the server can be asked: TEI's routes, OpenAI's, and ours for all heads at once."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import functools
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mtl.display import version_of
from mtl.errors import MtlError, shown
from mtl.index.index import Hit
from mtl.kernels.activations import sigmoid
from mtl.kernels.threads import computing_with, end_team
from mtl.rows.vector_files import json_line
from mtl.serve.app import Call, Service, not_served
from mtl.serve.contracts import Fields, Refused, dumps, embedding, ranked
from mtl.serve.model import HEADS, PAIRS, TOKENS, VECTORS
from mtl.serve.openapi import docs, document
from mtl.serve.questions import (
    LABELS,
    MATRIX,
    NUMBER,
    PIECE,
    USAGE,
    WHOLE,
    WORD,
    Kinds,
    Question,
    a_list,
    a_record,
    choice,
    count,
    envelope,
    flag,
    inner,
    names,
    optional,
    string,
)
from mtl.serve.queue import Row

log = logging.getLogger("mtl")

Handler = Callable[[Call], Awaitable[Any]]

STARTED = int(time.time())
RESULTS, HITS = 1000, 1 << 15  # of a query of /search, and of all queries of a request
PIECES = 1 << 19  # characters whose tokens may be asked for at once
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}  # as TEI calls them


async def rows_of(call: Call, field: str) -> Sequence[Row]:
    """The rows of a field that holds texts, or token ids."""
    given = call.given[field]
    ids = bool(given) and isinstance(given[0], list)
    return await (call.from_ids if ids else call.tokenized)(given, field)


# text-embeddings-inference


async def embed(call: Call) -> Any:
    """A vector for each text, (texts, dimensions)."""
    return await call.vectors(await rows_of(call, "inputs"), call.given["normalize"])


async def embed_all(call: Call) -> Any:
    """The last hidden state of each token of each text."""
    rows = await rows_of(call, "inputs")
    if call.tokens > (most := call.service.limits.token_states):
        raise Refused(413, f"the texts have {call.tokens} tokens; expected at most {most} for /embed_all", "inputs")
    return await call.values(TOKENS, rows)


def other_model(what: str, field: str | None = None) -> Refused:
    """What the model cannot answer."""
    return Refused(424, what, field, failure="model_type")


async def predict(call: Call) -> Any:
    """One task's labels with their probabilities, the likeliest first."""
    items, batch = call.given["inputs"]
    answers = await labels_of(call, items, "inputs")
    return answers if batch else answers[0]


async def classify(call: Call) -> Any:
    """One task's labels of each text, as /predict has them, in infinity's envelope."""
    data = await labels_of(call, [[text] for text in call.given["input"]], "input")
    return {"object": "classify", "data": data, **usage(call)}


async def labels_of(call: Call, items: Sequence[list[str]], field: str) -> list[list[dict[str, Any]]]:
    """What one task says of each item, a text or two, the likeliest first."""
    if not call.served.heads and not call.served.judge:
        raise other_model("model is not a classifier model: it has no task heads")
    pairs = len(items[0]) == 2 if items else not call.served.heads
    name = head(call, pairs, field)
    if pairs:
        rows = await call.tokenized_pairs([(one, other) for one, other in items], field)
        tasks = await of_pairs(call, rows, [name])
    else:
        texts = [text for (text,) in items]
        _, tasks = await all_heads(call, await call.tokenized(texts, field), texts, [name])
    raw = call.given["raw_scores"]
    return [
        ranked(list(said["scores"]), said["logits"] if raw else np.array(list(said["scores"].values())))
        for said in (task[name] for task in tasks)
    ]


def head(call: Call, pairs: bool, field: str) -> str:
    """The task of a question about one."""
    if pairs and not call.served.judge:
        raise other_model(f"the model takes one text at a time; `{field}` holds a pair of texts", field)
    if not pairs and not call.served.heads:
        raise other_model(f'the model takes pairs of texts; `{field}` holds one text; /predict takes ["a", "b"]', field)
    return call.served.task(call.given["task"], pairs)


async def all_heads(
    call: Call, rows: Sequence[Row], texts: Sequence[str], names: Sequence[str] | None = None
) -> Any:  # fmt: skip
    """Embeddings, and what the tasks say of each text, from one pass of the trunk."""
    served = call.served
    taggers = [name for name in served.taggers if names is None or name in names]
    if taggers and call.cut:
        raise Refused(call.status, "a text is over the limit of tokens; taggers read whole texts: send it in parts")
    values = await call.values(HEADS, rows)

    def answers() -> tuple[Any, list[dict[str, Any]]]:
        embeddings, logits = served.split(values)
        wanted = {name: x for name, x in logits.items() if names is None or name in names}
        said = served.said(wanted) or [{} for _ in rows]
        if taggers:
            for tasks, spans in zip(said, served.spans(texts, values, call.prompt), strict=True):
                tasks.update((name, spans[name]) for name in taggers)
        return embeddings, said

    embeddings, said = await call.aside(answers)
    note_labels(call, said)
    return embeddings, said


async def of_pairs(call: Call, rows: Sequence[Row], names: Sequence[str] | None) -> list[dict[str, Any]]:
    """What the tasks that read pairs say of each."""
    logits = call.served.of_pairs(await call.values(PAIRS, rows))
    wanted = {name: x for name, x in logits.items() if names is None or name in names}
    said = call.served.said(wanted) or [{} for _ in rows]
    note_labels(call, said)
    return said


def note_labels(call: Call, answers: Sequence[Mapping[str, Any]]) -> None:
    """Count the labels that were predicted."""
    for tasks in answers:
        for name, task in tasks.items():
            found = [span["label"] for span in task["spans"]] if "spans" in task else task["label"]
            labels = found if isinstance(found, list) else [found]
            for label in labels:
                if isinstance(label, str):
                    call.service.metrics.add("mtl_predicted_labels", task=name, label=label)


async def rerank(call: Call) -> Any:
    """Texts by how well each goes with the query, the best first: the logits, or their sigmoids, as TEI has them.

    Who calls the texts `documents` gets Cohere's answer, as infinity, Jina and vLLM give it.
    """
    served, given = call.served, call.given
    if not served.judge or all(served.judge.outputs(name) > 1 for name in served.judges):
        raise other_model("model is not a re-ranker model; /similarity compares embeddings")
    field = "texts" if given["documents"] is None else "documents"
    name, query, texts = served.judge.ranker(given["task"]), given["query"], given[field] or call.fields.get(field)
    call.count(len(texts), field)
    call.check([query], "query")
    call.check(texts, field)
    call.characters = 0
    rows = await call.tokenized_pairs([(query, text) for text in texts], field)
    logits = served.of_pairs(await call.values(PAIRS, rows))[name]
    scores = (logits if given["raw_scores"] else sigmoid(logits))[:, 0].contiguous().numpy()
    order = np.argsort(-scores, kind="stable").tolist()
    if field == "texts":
        return [{"index": i, "score": scores[i], **({"text": texts[i]} if given["return_text"] else {})} for i in order]
    versioned = call.request.scope["path"] != "/rerank"  # Cohere's own; infinity's document is the text itself
    results = [
        {"index": i, "relevance_score": scores[i]}
        | ({"document": {"text": texts[i]} if versioned else texts[i]} if given["return_documents"] else {})
        for i in order[: given["top_n"]]
    ]
    return {"object": "rerank", "results": results, **usage(call)}


async def embed_sparse(call: Call) -> Any:
    """Only a SPLADE model can."""
    raise other_model("model is not a sparse (SPLADE) model")


async def similarity(call: Call) -> Any:
    """The cosine of one sentence with each of several."""
    inputs = call.given["inputs"]
    call.count(len(inputs["sentences"]), "inputs.sentences")
    texts = [inputs["source_sentence"], *inputs["sentences"]]
    call.given |= call.given["parameters"]
    vectors = await call.vectors(await call.tokenized(texts, "inputs"))
    return (vectors[1:] * vectors[0]).sum(axis=1)  # of the same bits whatever stands beside it, as @ has not


async def tokenize(call: Call) -> Any:
    """The tokens of each text, with the characters that they stand for."""
    texts, special = call.given["inputs"], call.given["add_special_tokens"]
    call.count(len(texts), "inputs")
    call.characters = sum(map(len, texts))
    if call.characters > PIECES:
        raise Refused(413, f"the texts have {call.characters} characters; expected at most {PIECES}", "inputs")
    pieces = functools.partial(call.served.pieces, special=special, prompt=call.prompt)
    return await call.aside(lambda: [pieces(text) for text in texts])


async def decode(call: Call) -> Any:
    """The texts that token ids stand for."""
    rows, skip = call.given["ids"], call.given["skip_special_tokens"]
    call.count(len(rows), "ids")
    call.characters = sum(map(len, rows))  # a token has one, or more
    return await call.aside(lambda: [call.served.decode(row, skip) for row in rows])


async def info(call: Call) -> Any:
    """What the model is, and the server's limits."""
    served, limits, about, index = call.served, call.service.limits, call.served.about(), call.service.index
    kind: dict[str, Any] = {"embedding": {"pooling": about["pooling"]}}
    if len(about["tasks"]) == len({*served.tasks, *served.judges}) == 1:
        labels = next(iter(about["tasks"].values()))["labels"] or ["value"]
        kind = {
            "classifier" if served.heads or len(labels) > 1 else "reranker": {
                "id2label": {str(i): x for i, x in enumerate(labels)},
                "label2id": {x: i for i, x in enumerate(labels)},
            }
        }
    return {
        "model_id": served.name,
        "model_sha": None,
        "model_dtype": DTYPES.get(about["precision"], about["precision"]),
        "served_model_name": served.name,
        "model_type": kind,
        "max_concurrent_requests": limits.requests,
        "max_input_length": about["max_length"],
        "max_batch_tokens": served.turn_tokens,
        "max_batch_requests": None,
        "max_client_batch_size": limits.texts,
        "auto_truncate": call.service.truncate,
        "tokenization_workers": 2,
        "version": version_of("mtl"),
        "sha": None,
        "docker_label": None,
        "mtl": about | ({"index": {"rows": len(index), "form": index.state.form}} if index is not None else {}),
    }


async def root(call: Call, ask: Callable[[Handler], Awaitable[Any]]) -> Any:
    """What the shape of a request to the root asks for, as huggingface_hub's InferenceClient sends it."""
    values = call.fields.values
    if isinstance(values.get("inputs"), dict):
        return await ask(similarity)
    if "query" in values:
        return await ask(rerank)
    if not (call.served.heads or call.served.judge) or only_embeds(values, bool(call.served.judge)):
        call.fields.values = {**call.fields.inner("parameters").values, **values}
        return await ask(embed)
    if tagger := tagger_of(call):
        return await entities(call, tagger, ask)
    if "parameters" not in values:
        return await ask(predict)
    parameters = PIPELINE.read(call.fields, "parameters")
    function = FUNCTIONS.get(parameters["function_to_apply"])
    logits = {"raw_scores": True} if function else {}
    call.fields.values = {**(values["parameters"] or {}), **values, **logits}
    found = await ask(predict)
    several = found if found and isinstance(found[0], list) else [found]
    if function:
        for labels in several:
            scores = function(torch.tensor([label["score"] for label in labels])).numpy()
            labels[:] = [{**label, "score": score} for label, score in zip(labels, scores, strict=True)]
    return [labels[: parameters["top_k"]] for labels in several]


def only_embeds(values: Mapping[str, Any], pairs: bool) -> bool:
    """Whether a request can be meant for an encoder only: by its other fields, or since it has texts in one list, of
    which a classifier reads none but a pair. Who asks for labels says so by fields of theirs."""
    inputs = values.get("inputs")
    texts = inputs if isinstance(inputs, list) and not any(isinstance(item, list) for item in inputs) else []
    listed = len(texts) > 0 and not (pairs and len(texts) == 2)
    return not values.keys() & {"parameters", "task", "raw_scores"} and (listed or bool(values.keys() & EMBEDS))


def tagger_of(call: Call) -> str | None:
    """The tagger that a request to the root is for: one that it names, or the only one, where it says how spans are
    made or where no other head reads texts."""
    taggers, values = [*call.served.taggers], call.fields.values
    if values.get("task") is not None:
        return values["task"] if values["task"] in taggers else None
    spans = call.fields.inner("parameters").values.keys() & SPANS or not (call.served.tasks or call.served.judges)
    if spans and len(taggers) > 1:
        raise Refused(422, f"the model has the taggers {', '.join(taggers)}; name one as `task`", "task")
    return taggers[0] if spans and taggers else None


async def entities(call: Call, tagger: str, ask: Callable[[Handler], Awaitable[Any]]) -> Any:
    """A tagger's spans in a text, as transformers' pipelines call what is in them."""
    fields = call.fields
    parameters, text = TAGGING.read(fields, "parameters"), fields.get("inputs")
    call.fields = Fields({**fields.values, "input": text, "tasks": tagger}, fields.status)
    found = [row["tasks"][tagger]["spans"] for row in (await ask(predictions))["data"]]
    answers = [
        [
            {"entity_group": span["label"], "score": span["score"], "word": span["text"],
             "start": span["start"], "end": span["end"]}
            for span in spans if span["label"] not in (parameters["ignore_labels"] or ())
        ]
        for spans in found
    ]  # fmt: skip
    return answers[0] if isinstance(text, str) else answers


# OpenAI, and ours beside it


def usage(call: Call) -> dict[str, Any]:
    """The model, and the tokens that it read."""
    return {"model": call.served.name, "usage": {"prompt_tokens": call.tokens, "total_tokens": call.tokens}}


def listed(call: Call, data: list[dict[str, Any]]) -> dict[str, Any]:
    """OpenAI's envelope."""
    return {"object": "list", "data": data, **usage(call)}


async def embeddings(call: Call) -> Any:
    """A vector of length 1 for each text, and how many tokens they have."""
    as_base64 = call.given["encoding_format"] == "base64"
    vectors = await call.vectors(await rows_of(call, "input"))
    data = [
        {"object": "embedding", "index": i, "embedding": embedding(vector, as_base64)}
        for i, vector in enumerate(vectors)
    ]
    return listed(call, data)


async def predictions(call: Call) -> Any:
    """What all heads say of each text, or pair of texts, and a text's embedding where it is asked for."""
    if not call.served.heads and not call.served.judge:
        raise other_model("the model has no task heads; /v1/embeddings gives embeddings")
    given, names, with_embedding = (call.given[name] for name in ("input", "tasks", "embedding"))
    pairs = bool(given) and not isinstance(given[0], str)
    for name in names or ():
        if pairs or name not in call.served.taggers:
            call.served.task(name, pairs)
    if pairs and with_embedding:
        raise Refused(400, "`embedding` is true; a pair of texts has none, each of them alone has one", "embedding")
    if pairs:
        said = await of_pairs(call, await call.tokenized_pairs(given, "input", empty=True), names)
        vectors = []
    else:
        vectors, said = await all_heads(call, await call.tokenized(given, "input", empty=True), given, names)
    data = [
        {"object": "prediction", "index": i, "tasks": tasks, **({"embedding": vectors[i]} if with_embedding else {})}
        for i, tasks in enumerate(said)
    ]
    return listed(call, data)


async def search(call: Call) -> Any:
    """The rows of the server's index that are the most similar to each query."""
    if call.service.index is None:
        raise other_model("the server has no index; start it with --index FOLDER", "query")
    if (hits := len(call.given["query"]) * call.given["k"]) > HITS:
        raise Refused(413, f"{hits} rows are asked for; expected at most {HITS}: fewer queries, or a smaller k", "k")
    rows = await call.tokenized(call.given["query"], "query", prompt=call.served.prompt(query=True))
    vectors = call.served.finished(await call.values(VECTORS, rows), False, None)

    def found() -> list[list[orjson.Fragment]]:
        assert call.service.index
        call.service.index = index = call.service.index.current()  # its newest state
        try:
            with computing_with(call.served.engine.threads):
                return [[as_json(hit) for hit in hits] for hits in index.search(vectors, call.given["k"])]
        finally:
            end_team()

    try:
        results = await asyncio.get_running_loop().run_in_executor(call.service.searches, found)
    except (MtlError, OSError) as error:  # what it says has a path in it, and is not the client's to mend
        log.error("the index cannot be searched: %s", error)
        raise Refused(424, "the index cannot be read; the server's log says more") from None
    return {"results": results[0] if isinstance(call.fields.get("query"), str) else results}


def as_json(hit: Hit) -> orjson.Fragment:
    """A row as it was kept: JSON has more numbers than orjson."""
    return orjson.Fragment(json_line(dataclasses.asdict(hit)).encode(errors="backslashreplace"))


async def models(call: Call) -> Any:
    """The one model that there is."""
    return {"object": "list", "data": [await model(call)]}


async def model(call: Call) -> Any:
    """The model, by its name where the path has one."""
    name = call.served.name
    if (asked := call.request.path_params.get("model", name)) != name:
        raise Refused(404, f"there is no model {shown(asked)} here; expected {shown(name)}", "model")
    return {"id": name, "object": "model", "created": STARTED, "owned_by": "mtl", **call.served.about()}


# What transformers' pipelines make of logits; all keep their order
FUNCTIONS: dict[str | None, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda logits: logits,
    "sigmoid": sigmoid,
    "softmax": lambda logits: logits.softmax(dim=-1),
}
PIPELINE = inner(
    "What transformers' pipelines are told.",
    {
        "function_to_apply": choice(
            "What makes scores of logits; by default, as the task has it.", *filter(None, FUNCTIONS)
        ),
        "top_k": count("The most labels.", 1 << 31),
    },
)


EMBEDS = {"normalize", "dimensions", "prompt_name", "encoding_format"}
SPANS = {"aggregation_strategy", "ignore_labels", "stride"}
TAGGING = inner(
    "What transformers' pipelines of taggers are told.",
    {
        "aggregation_strategy": choice("How spans are made of words: each has the tag of its first piece.", "first"),
        "ignore_labels": names("No spans with these labels."),
    },
)


def of_tei(kinds: Kinds) -> list[Question]:
    """What TEI's clients ask for, and infinity's."""
    cutting, alone = kinds.cutting, {name: kinds.cutting[name] for name in ("truncate", "truncation_direction")}
    inputs = {"inputs": kinds.texts_or_ids("A text or several, or their token ids, special ones included.")}
    text, task = kinds.texts("A text or several."), {"task": string("Which of several tasks.")}
    sentences = {
        "source_sentence": kinds.source("The sentence that the others are compared with."),
        "sentences": kinds.texts("The others."),
    }
    scaled = {"normalize": flag("Scale vectors to length 1.", True), "dimensions": kinds.dimensions}
    classified = kinds.classified("A text or a pair of texts, or several, each in a list of its own.")
    ranked = {
        "query": kinds.source("What is asked."),
        "texts": optional(kinds.texts("A text or several, that are ranked.")),
        "raw_scores": flag("Logits instead of their sigmoids.", False),
        "return_text": flag("With the texts.", False),
        "documents": optional(kinds.texts("The texts, where the answer is to be Cohere's: a list in `results`.")),
        "top_n": count("Of `documents`, the best so many.", 1 << 31),
        "return_documents": flag("With the documents.", False),
    }
    compared = {"inputs": inner("What is compared.", sentences, True), "parameters": inner("How it is read.", cutting)}
    pieces = {
        "inputs": kinds.texts("A text or several.", limited=False),
        "add_special_tokens": flag("With those that the model's texts begin and end with.", True),
        "prompt_name": cutting["prompt_name"],
    }
    ids = {
        "ids": kinds.ids("Token ids, of one text or several."),
        "skip_special_tokens": flag("Without the special ones.", True),
    }
    raw = {"raw_scores": flag("Logits instead of probabilities.", False)}
    labels = {"anyOf": [LABELS, a_list(LABELS)]}
    classes = a_record(object=WORD, data=a_list(LABELS), model=WORD, usage=USAGE)
    hits, results = a_list(a_record(index=WHOLE, score=NUMBER)), a_list(a_record(index=WHOLE, relevance_score=NUMBER))
    reranked = {"anyOf": [hits, a_record(object=WORD, results=results, model=WORD, usage=USAGE)]}
    return [
        Question(("/embed",), embed, inputs | scaled | cutting, MATRIX),
        Question(("/embed_all",), embed_all, inputs | cutting, a_list(MATRIX)),
        Question(("/embed_sparse",), embed_sparse, {}, a_list({})),
        Question(("/predict",), predict, {"inputs": classified} | task | raw | cutting, labels),
        Question(("/classify",), classify, {"input": text} | task | raw | cutting, classes, openai=True),
        Question(("/rerank", "/v1/rerank", "/v2/rerank"), rerank, ranked | task | alone, reranked),
        Question(("/similarity",), similarity, compared, a_list(NUMBER)),
        Question(("/tokenize",), tokenize, pieces, a_list(a_list(PIECE))),
        Question(("/decode",), decode, ids, a_list(WORD)),
        Question(("/info",), info, {}, a_record(model_id=WORD, max_input_length=WHOLE), method="GET"),
    ]


def of_openai(kinds: Kinds) -> list[Question]:
    """What OpenAI's clients ask for."""
    fields = {
        "input": kinds.texts_or_ids("A text or several, or their token ids, special ones included."),
        "model": string("Any name; there is one model."),
        "encoding_format": choice("Numbers, or little-endian float32 in base64.", "float", "base64", default="float"),
        "dimensions": kinds.dimensions,
    }
    answer = envelope(embedding={"anyOf": [a_list(NUMBER), WORD]})
    known = a_record(object=WORD, data=a_list(a_record(id=WORD)))
    return [
        Question(("/embeddings", "/v1/embeddings"), embeddings, fields | kinds.cutting, answer, openai=True),
        Question(("/models", "/v1/models"), models, {}, known, openai=True, method="GET"),
        Question(("/models/{model}", "/v1/models/{model}"), model, {}, a_record(id=WORD), openai=True, method="GET"),
    ]


def of_ours(kinds: Kinds) -> list[Question]:
    """What no other server answers: all heads at once, and searches."""
    cutting = kinds.cutting
    predicted = {
        "input": kinds.predicted("A text or several, or pairs, each in a list or an object of its own."),
        "tasks": names("No others than these."),
        "embedding": flag("With the embedding of each text.", False),
    }
    searched = {
        "query": kinds.texts("A text or several."),
        "k": count("The rows of each.", RESULTS, 5),
        "truncate": cutting["truncate"],
        "truncation_direction": cutting["truncation_direction"],
    }
    labels = envelope(tasks={"type": "object"})
    return [
        Question(("/v1/predict",), predictions, predicted | cutting, labels, openai=True),
        Question(("/search",), search, searched, a_record(results=a_list({})), openai=True),
    ]


def questions(service: Service) -> list[Question]:
    """All that clients may ask of a server, of those who can be asked for a key."""
    kinds = Kinds(service.served, service.limits)
    found = [*of_openai(kinds), *of_tei(kinds), *of_ours(kinds)]
    by_handler = {question.handler: question for question in found}

    async def by_shape(call: Call) -> Any:
        """What the shape of the request asks for: vectors of `inputs`, similarities of an object in it, or labels."""

        async def ask(handler: Handler) -> Any:
            call.given = await call.aside(by_handler[handler].read, call.fields)
            return await handler(call)

        return await root(call, ask)

    return [*found, Question(("/", "/invocations"), by_shape, {}, {})]


# Of the server itself

PAGE = (Path(__file__).parent / "page.html").read_bytes()
SCRIPT = base64.b64encode(hashlib.sha256(PAGE.partition(b"<script>")[2].partition(b"</script>")[0]).digest()).decode()
INSIDE = (
    f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{SCRIPT}'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {"content-security-policy": INSIDE, "x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}


async def page(request: Request) -> Response:
    """The page to try the model on; it asks for a key where the server wants one."""
    return Response(PAGE, 200, HEADERS, "text/html; charset=utf-8")


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

    asked = questions(service)
    written = dumps(document(asked, bool(service.keys)))

    async def openapi(request: Request) -> Response:
        return Response(written, media_type="application/json")

    async def listed_routes(request: Request) -> Response:
        return Response(docs(asked), 200, HEADERS, "text/html; charset=utf-8")

    routes = [
        Route(path.replace("}", ":path}"), service.endpoint(each.handler.__name__, each), methods=[each.method])
        for each in asked
        for path in each.paths
    ]
    routes += [
        Route("/", page),
        *(Route(path, health) for path in ("/health", "/ping")),
        Route("/metrics", metrics),
        *(Route(path, openapi) for path in ("/openapi.json", "/api-doc/openapi.json")),
        Route("/docs", listed_routes),
    ]
    cors = Middleware(
        CORSMiddleware, allow_origins=list(origins), allow_methods=["*"], allow_headers=["*"], expose_headers=["*"]
    )
    app = Starlette(
        routes=routes,
        middleware=[cors] if origins else [],
        exception_handlers={HTTPException: not_served},
        lifespan=service.lifespan,
    )
    app.router.redirect_slashes = False  # a client that does not follow would take an empty answer for its own
    return app
