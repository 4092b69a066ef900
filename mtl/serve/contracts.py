"""What clients may send, read field by field, and the shapes of what they get back.

Two contracts: that of text-embeddings-inference (TEI, router/src/http/types.rs) and that of OpenAI's embeddings. Fields
that a contract has not are passed over, as both of them do; of those that it has, a wrong type or value is refused.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from mtl.encode.tokenizer import Pair
from mtl.errors import MtlError, shown
from mtl.rows.read import repeated

CHARACTERS = 250  # that a text may have for each token of the limit, as in TEI
TEI_TYPES = {401: "Unauthorized", 424: "Backend", 429: "Overloaded", 503: "Unhealthy"}  # others: by what is wrong
FAILURES = {424: "inference", 429: "overloaded", 500: "inference", 503: "unhealthy"}  # others are "validation"
PAIR = ("text", "text_pair")  # what transformers' pipelines call two texts that are read as one row
OPENAI_TYPES = {401: "authentication_error", 429: "rate_limit_error", 424: "server_error"}


class Refused(MtlError):
    """A request that is not answered: an HTTP status, and why; ``param`` is the field that is wrong.

    ``failure`` is what TEI's metrics call it, by default by the status. A field that is "empty" is of a type of its own
    in TEI's answers.
    """

    def __init__(
        self, status: int, message: str, param: str | None = None, retry_after: int | None = None, failure: str = ""
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.retry_after = status, param, retry_after
        self.failure = failure or FAILURES.get(status, "validation")

    def body(self, openai: bool) -> bytes:
        """The error as a contract has it."""
        message = str(self)
        if openai:
            kind = OPENAI_TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
            return orjson.dumps({"error": {"message": message, "type": kind, "param": self.param, "code": None}})
        kind = "Empty" if self.failure == "empty" else "Backend" if self.status >= 500 else "Validation"
        kind = TEI_TYPES.get(self.status, kind)
        return orjson.dumps({"error": message, "error_type": kind})


def wrong(field: str, value: object, expected: str, status: int = 422) -> Refused:
    return Refused(status, f"`{field}` is {shown(value)}; expected {expected}", field)


class Fields:
    """A request's fields; what is wrong with one is refused with ``status``."""

    def __init__(self, values: Mapping[str, Any], status: int = 422, path: str = "") -> None:
        self.values, self.status, self.path = values, status, path

    def wrong(self, name: str, value: object, expected: str) -> Refused:
        return wrong(self.path + name, value, expected, self.status)

    def get(self, name: str) -> Any:
        """A field that has to be there.

        Raises:
            Refused: it is not.
        """
        if self.values.get(name) is None:
            raise Refused(self.status, f"`{self.path}{name}` is missing", self.path + name)
        return self.values[name]

    def flag(self, name: str, default: bool | None) -> bool | None:
        value = self.values.get(name)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(name, value, "true or false")
        return default if value is None else value

    def string(self, name: str) -> str | None:
        value = self.values.get(name)
        if value is not None and not isinstance(value, str):
            raise self.wrong(name, value, "a string")
        return value

    def choice(self, name: str, choices: Sequence[str]) -> str | None:
        """One of several words, in any case."""
        value = self.string(name)
        if value is not None and value.lower() not in choices:
            raise self.wrong(name, value, f"one of {', '.join(choices)}")
        return value and value.lower()

    def count(self, name: str, most: int) -> int | None:
        value = self.values.get(name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most):
            raise self.wrong(name, value, f"a whole number from 1 to {most}")
        return value

    def strings(self, name: str) -> list[str]:
        """A list of strings; a single one counts as a list of one."""
        value = self.get(name)
        listed = [value] if isinstance(value, str) else value
        if not isinstance(listed, list):
            raise self.wrong(name, value, "a string or a list of strings")
        for i, text in enumerate(listed):
            if not isinstance(text, str):
                raise self.wrong(f"{name}[{i}]", text, "a string")
        return listed

    def ids(self, name: str) -> list[list[int]] | None:
        """Lists of token ids, where the field holds numbers and no strings; one list counts as a list of one."""
        value = self.get(name)
        if not isinstance(value, list) or not value or isinstance(value[0], str):
            return None
        rows = value if isinstance(value[0], list) else [value]
        for i, row in enumerate(rows):
            if not isinstance(row, list) or not row or not all(type(token) is int for token in row):
                raise self.wrong(f"{name}[{i}]" if rows is value else name, row, "a string, or a list of token ids")
        return rows

    def inner(self, name: str) -> Fields:
        """The fields of an object in a field; none where it is not there."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(name, value, "an object")
        return Fields(value or {}, self.status, f"{self.path}{name}.")


def read_fields(body: bytes | bytearray, status: int) -> Fields:
    """A body's fields.

    Raises:
        Refused: it is no JSON, or no object, or an object in it has a field twice.
    """

    def check(pairs: list[tuple[str, Any]]) -> None:
        """orjson keeps the last value of a name that is there twice, and says nothing."""
        if len(dict(pairs)) < len(pairs):
            twice = repeated(pairs)
            raise Refused(status, f"a field is there twice: {shown(twice)}; expected each once", twice)

    try:
        values = orjson.loads(body)
        if not isinstance(values, dict):
            raise Refused(status, f"the body is {type(values).__name__}; expected a JSON object")
        json.loads(body, object_pairs_hook=check)
    except (orjson.JSONDecodeError, RecursionError) as error:
        raise Refused(400, f"the body is no JSON: {str(error)[:100]}") from None
    return Fields(values, status)


def to_classify(fields: Fields) -> tuple[list[list[str]], bool]:
    """The texts of TEI's /predict, and whether they came as a batch: "a" or ["a"], or [["a"], ["b"]]; a pair is
    ["a", "b"].

    Raises:
        Refused: single texts beside pairs, or something else.
    """
    value = fields.get("inputs")
    if isinstance(value, str):
        return [[value]], False
    if not isinstance(value, list):
        raise fields.wrong("inputs", value, "a string, or a list of lists of one string each")
    if value and all(isinstance(text, str) for text in value):
        if len(value) <= 2:
            return [value], False
        wanted = 'a batch has each text in a list of its own, as [["a"], ["b"]]'
        raise fields.wrong("inputs", value, f"a text, or several: {wanted}")
    for i, item in enumerate(value):
        if not isinstance(item, list) or not item or len(item) > 2 or not all(isinstance(text, str) for text in item):
            raise fields.wrong(f"inputs[{i}]", item, "a list of one string, or of a pair")
        if len(item) != len(value[0]):
            raise fields.wrong(f"inputs[{i}]", item, "single texts alone, or pairs alone")
    return value, True


def to_predict(fields: Fields, name: str, called: Sequence[Pair], alone: bool) -> list[str] | list[Pair]:
    """A text or several; or pairs of texts: two in a list of their own, or an object with the names that they are
    ``called`` by. ``alone``: single texts are read too, so that two strings are two texts; else they are a pair.

    Raises:
        Refused: single texts beside pairs, or something else.
    """
    value = fields.get(name)
    listed = value if isinstance(value, list) else [value]
    strings = [isinstance(item, str) for item in listed]
    if all(strings) and (alone or not strings):
        return listed
    if all(strings) and len(listed) == 2:
        listed = [listed]
    pairs = [as_pair(item, called) for item in listed]
    for i, (item, pair) in enumerate(zip(listed, pairs, strict=True)):
        if pair is None:
            objects = " or ".join(str(dict.fromkeys(each, "...")).replace("'", '"') for each in called)
            expected = f'a pair of texts, as ["...", "..."] or {objects}'
            expected = "a string or " * (alone and not isinstance(item, str)) + expected
            where = f"{name}[{i}]" if isinstance(value, list) else name
            raise fields.wrong(where, item, f"{expected}; texts alone, or pairs alone" if any(strings) else expected)
    return [pair for pair in pairs if pair]


def as_pair(item: Any, called: Sequence[Pair]) -> Pair | None:
    """Two texts as a request may hold them, if they are two texts."""
    found = item
    if isinstance(item, dict):
        found = next(([item[name] for name in names] for names in called if item.keys() == {*names}), None)
    two = isinstance(found, list) and len(found) == 2 and all(isinstance(text, str) for text in found)
    return (found[0], found[1]) if two else None


def ranked(names: Sequence[str], values: NDArray[np.float32]) -> list[dict[str, Any]]:
    """Labels with their scores, the highest first, as TEI's /predict has them."""
    order = np.argsort(-values, kind="stable")
    return [{"score": values[i], "label": names[i]} for i in order]


def embedding(vector: NDArray[np.float32], as_base64: bool) -> Any:
    """A vector as OpenAI's API gives it: numbers, or little-endian float32 in base64."""
    return base64.b64encode(vector.astype("<f4", copy=False).tobytes()).decode("ascii") if as_base64 else vector


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one client, and all together, may ask for."""

    texts: int = 2048  # of a request
    body_bytes: int = 8 << 20  # of a request
    queued_tokens: int = 1 << 18
    requests: int = 512  # that wait for an answer at once
    held_bytes: int = 256 << 20  # of their bodies together
    unread_bytes: int = 512 << 20  # of answers together that their clients have still to read
    token_states: int = 16384  # tokens whose hidden states a request may ask for
    body_seconds: float = 30  # until a request has come whole
    answer_seconds: float = 120  # until it is computed
    stuck_seconds: float = 60  # of a turn, until the server counts as broken


def dumps(value: Any) -> bytes:
    """As JSON; float32 as the fewest digits that give back each number exactly."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
