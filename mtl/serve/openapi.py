"""The server's routes as an OpenAPI document, and as a page for people. Both are written from ``Question``s."""

from __future__ import annotations

import html
import inspect
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from mtl.display import version_of
from mtl.serve.contracts import OPENAI_TYPES, TEI_TYPES
from mtl.serve.questions import WORD, Question, a_record, as_object

REASONS = {
    400: "No JSON, or an empty list; of OpenAI's routes, any field that is wrong",
    401: "No key that the server knows",
    404: "There is no model of this name",
    408: "The body did not come in time",
    413: "The request is too large",
    415: "The body is not called application/json",
    422: "A field is wrong, or a text is over a limit",
    424: "The model cannot answer this",
    429: "Too much waits already; the header Retry-After says when to come again",
    499: "The client has left",
    503: "The worker is stuck or dead, or the server about to stop",
}
TEI_ERROR = a_record(
    error=WORD, error_type={"type": "string", "enum": sorted({*TEI_TYPES.values(), "Empty", "Validation"})}
)
OPENAI_ERROR = a_record(error=a_record(
    message=WORD, type={"type": "string", "enum": sorted({*OPENAI_TYPES.values(), "invalid_request_error"})},
    param={"type": ["string", "null"]}, code={"type": ["string", "null"]},
))  # fmt: skip


def said(question: Question) -> str:
    """What a route does, by its handler's docstring."""
    return " ".join((inspect.getdoc(question.handler) or "").partition("\n\n")[0].split())


def in_json(schema: Any) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def operation(question: Question, keys: bool) -> dict[str, Any]:
    """One route's entry."""
    error = in_json({"$ref": f"#/components/schemas/{'OpenAI' if question.openai else 'TEI'}Error"})
    name = question.paths[0].partition("{")[2].rstrip("}")
    of_get = {401, 429, 503} | ({404} if name else set())
    statuses = of_get if question.method == "GET" else REASONS.keys() - {404}
    parameter = {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    body = {"requestBody": {"required": True, "content": in_json(as_object(question.fields))}}
    return {
        "summary": said(question),
        "operationId": question.method.lower() + re.sub(r"\W+", "_", question.paths[0]),
        **({"parameters": [parameter]} if name else {}),
        **(body if question.method == "POST" else {}),
        "responses": {
            "200": {"description": "The answer", "content": in_json(question.answer)},
            **{str(status): {"description": REASONS[status], "content": error} for status in sorted(statuses)},
        },
        **({"security": [{"key": []}]} if keys else {}),
    }


def document(questions: Iterable[Question], keys: bool) -> dict[str, Any]:
    """The OpenAPI document; ``keys`` says that requests need one."""
    paths: dict[str, dict[str, Any]] = {}
    for question in questions:
        for path in question.paths:
            paths.setdefault(path, {})[question.method.lower()] = operation(question, keys)
    by_key = {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}} if keys else {}
    return {
        "openapi": "3.1.0",
        "info": {"title": "mtl serve", "version": version_of("mtl")},
        "paths": paths,
        "components": {"schemas": {"TEIError": TEI_ERROR, "OpenAIError": OPENAI_ERROR}, **by_key},
    }


STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}"
    "table{border-collapse:collapse;width:100%}td,th{text-align:left;vertical-align:top;padding:.3rem .8rem .3rem 0;"
    "border-bottom:1px solid #8884}code{font-size:.9em}"
)


def docs(questions: Sequence[Question]) -> bytes:
    """The same as a page, without anything from elsewhere."""
    parts = ["<!doctype html><html lang=en><meta charset=utf-8><title>mtl serve: routes</title>",
             f"<meta name=viewport content='width=device-width'><style>{STYLE}</style><h1>Routes</h1>",
             "<p>As <a href=openapi.json>OpenAPI</a>. Fields that a route has not are passed over.</p>"]  # fmt: skip
    for question in questions:
        title = ", ".join(f"<code>{path}</code>" for path in question.paths)
        parts.append(f"<h2>{question.method} {title}</h2><p>{html.escape(said(question))}</p>")
        if question.fields:
            parts.append("<table><tr><th>field<th>values<th>what it does</tr>")
            parts += rows(as_object(question.fields))
            parts.append("</table>")
    return "".join(parts).encode()


def rows(schema: dict[str, Any], before: str = "") -> list[str]:
    """A row of the page's table for each field of an object, and of those in it."""
    found = []
    for name, field in schema["properties"].items():
        needed = " (needed)" if name in schema.get("required", ()) else ""
        found.append(f"<tr><td><code>{before}{name}</code>{needed}<td>{html.escape(values(field))}"
                     f"<td>{html.escape(field['description'])}</tr>")  # fmt: skip
        found += rows(field, f"{before}{name}.") if "properties" in field else []
    return found


def values(schema: dict[str, Any]) -> str:
    """What a field may hold, in words."""
    if "anyOf" in schema:
        return ", or ".join(values(each) for each in schema["anyOf"])
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    kind = "/".join(name for name in kinds if name != "null") or "null"
    if kind == "array":
        return f"a list of {values(schema['items'])}"
    if "examples" in schema:
        return ", ".join(schema["examples"])
    limits = f" {schema['minimum']} to {schema['maximum']}" if "maximum" in schema else ""
    default = f" ({json.dumps(schema['default'])})" if "default" in schema else ""
    return f"{kind}{limits}{default}"
