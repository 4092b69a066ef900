"""Hypothesis strategies that damage a file: a value of a JSON document, or bytes anywhere."""

import copy
import json
from typing import Any

from hypothesis import strategies as st

NASTY = [
    None, True, False, 0, -1, 1, 2, 3, 7, 12, 10**9, 10**18, 10**30, 0.5, -0.0, 1e-320, 1e308, float("nan"),
    float("inf"), "", "\0", "a", "12", "true", "../..", "/etc/passwd", "x" * 3000, "\ud800", "line\nend", "[MASK]",
    [], [[]], [1], ["a"], {}, {"a": 1}, {"0": "x"}, [None] * 50, {"content": 1}, {"type": "Sequence"},
]  # fmt: skip
TOML = [
    "0", "-1", "1", "7", "10000000000", "1e400", "nan", "inf", "-0.5", '""', '"x"', '"\\u0000"', '"../../x"', "[]",
    "[[]]", "[1, 2]", '["a", "a"]', "{}", "{ a = 1 }", '{ 1 = "encoder" }', "{ 0 = 1 }", "true", "1979-05-27", "'''",
    "[" * 3000, '"' + "x" * 3000 + '"',
    "{ 1 = { 1 = 1 } }", '["x", "y"]', '"none"', '"attention"', '["mean", "mean"]', "07:32:00",
]  # fmt: skip


def places(content: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value of a document, itself included."""
    items: list[tuple[Any, Any]] = []
    if isinstance(content, dict):
        items = list(content.items())
    if isinstance(content, list):
        items = list(enumerate(content))
    return [here, *(place for key, value in items for place in places(value, (*here, key)))]


def replaced(content: Any, place: tuple[Any, ...], value: Any) -> Any:
    """The document with another value at a place; ``Ellipsis`` removes what is there."""
    if not place:
        return None if value is ... else value
    content = copy.deepcopy(content)
    parent = content
    for key in place[:-1]:
        parent = parent[key]
    if value is ...:
        del parent[place[-1]]
    else:
        parent[place[-1]] = value
    return content


@st.composite
def damaged_bytes(draw: st.DrawFn, data: bytes) -> bytes:
    """Cut short, or with a few bytes changed, removed or put in."""
    kind = draw(st.sampled_from(["cut", "change", "insert", "remove"]))
    at = draw(st.integers(0, max(0, len(data) - 1)))
    if kind == "cut":
        return data[:at]
    some = draw(st.binary(min_size=1, max_size=9))
    return data[:at] + (b"" if kind == "remove" else some) + data[at + (0 if kind == "insert" else len(some)) :]


@st.composite
def damaged_json(draw: st.DrawFn, data: bytes) -> bytes:
    """A JSON document with one or two values replaced or removed, or with its bytes damaged."""
    if draw(st.integers(0, 4)) == 0:
        return draw(damaged_bytes(data))
    content = json.loads(data)
    for _ in range(draw(st.integers(1, 2))):
        value = draw(st.sampled_from([*NASTY, ..., *NASTY]))
        content = replaced(content, draw(st.sampled_from(places(content))), value)
    return json.dumps(content).encode()


@st.composite
def damaged_toml(draw: st.DrawFn, text: str) -> bytes:
    """A TOML document with a value or two replaced, a line doubled or removed, or with its bytes damaged."""
    if draw(st.integers(0, 4)) == 0:
        return draw(damaged_bytes(text.encode()))
    lines = text.splitlines()
    for _ in range(draw(st.integers(1, 2))):
        at = draw(st.integers(0, len(lines) - 1))
        kind = draw(st.sampled_from(["value", "value", "value", "double", "remove"]))
        key = lines[at].split("=")[0]
        changed = {"value": [f"{key}= {draw(st.sampled_from(TOML))}"], "double": [lines[at]] * 2, "remove": [""]}
        lines[at : at + 1] = changed[kind]
    return "\n".join(lines).encode()
