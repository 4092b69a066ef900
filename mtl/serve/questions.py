"""What each route reads of a request and gives back: said once, for the check, for /openapi.json and for /docs."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from mtl.serve.contracts import CHARACTERS, Fields, Limits, to_classify, to_predict

if TYPE_CHECKING:
    from mtl.serve.app import Call
    from mtl.serve.model import Served

Schema = Mapping[str, Any]  # of JSON, as OpenAPI 3.1 has it


@dataclasses.dataclass(frozen=True)
class Field:
    """A field: how it is read, the values that are taken, and what it does. null is as good as nothing."""

    read: Callable[[Fields, str], Any]
    schema: Schema
    said: str
    required: bool = False


@dataclasses.dataclass(frozen=True)
class Question:
    """A route: who answers, what is read of the body by name, and the schema of the answer.

    ``openai``: Errors are OpenAI's, else TEI's. ``method`` is GET where nothing is read.
    """

    paths: tuple[str, ...]
    handler: Callable[[Call], Awaitable[Any]]
    fields: Mapping[str, Field]
    answer: Schema
    openai: bool = False
    method: str = "POST"

    def read(self, fields: Fields) -> dict[str, Any]:
        """Every field's value.

        Raises:
            Refused: one that is none, or is missing.
        """
        return {name: field.read(fields, name) for name, field in self.fields.items()}


# Kinds of field


def flag(said: str, default: bool | None = None) -> Field:
    shown = {} if default is None else {"default": default}
    return Field(lambda fields, name: fields.flag(name, default), {"type": ["boolean", "null"], **shown}, said)


def string(said: str) -> Field:
    return Field(lambda fields, name: fields.string(name), {"type": ["string", "null"]}, said)


def choice(said: str, *choices: str, default: str | None = None) -> Field:
    """One of several words, in any case."""

    def read(fields: Fields, name: str) -> str | None:
        return fields.choice(name, choices) or default

    cases = ("".join(f"[{letter.lower()}{letter.upper()}]" if letter.isalpha() else letter for letter in word)
             for word in choices)  # fmt: skip
    schema = {"type": ["string", "null"], "pattern": f"^({'|'.join(cases)})$", "examples": list(choices)}
    return Field(read, schema, said)


def count(said: str, most: int, default: int | None = None) -> Field:
    def read(fields: Fields, name: str) -> int | None:
        return fields.count(name, most) or default

    shown = {} if default is None else {"default": default}
    return Field(read, {"type": ["integer", "null"], "minimum": 1, "maximum": most, **shown}, said)


def inner(said: str, fields: Mapping[str, Field], required: bool = False) -> Field:
    """An object in a field."""

    def read(outer: Fields, name: str) -> dict[str, Any]:
        if required:
            outer.get(name)
        found = outer.inner(name)
        return {each: field.read(found, each) for each, field in fields.items()}

    schema = as_object(fields)
    return Field(read, schema if required else {**schema, "type": ["object", "null"]}, said, required)


def optional(field: Field) -> Field:
    """A field of several kinds that may be left out."""

    def read(fields: Fields, name: str) -> Any:
        return None if fields.values.get(name) is None else field.read(fields, name)

    return Field(read, {"anyOf": [*field.schema["anyOf"], {"type": "null"}]}, field.said)


def names(said: str) -> Field:
    """Some words or none."""
    words = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
    return optional(Field(lambda fields, name: fields.strings(name), words, said))


def as_object(fields: Mapping[str, Field]) -> dict[str, Any]:
    """The schema of an object with these fields."""
    needed = [name for name, field in fields.items() if field.required]
    properties = {name: {**field.schema, "description": field.said} for name, field in fields.items()}
    return {"type": "object", "properties": properties, **({"required": needed} if needed else {})}


@dataclasses.dataclass(frozen=True)
class Kinds:
    """The fields that depend on the model and on the server's limits."""

    served: Served
    limits: Limits

    def text(self, least: int = 1) -> dict[str, Any]:
        return {"type": "string", "minLength": least, "maxLength": self.served.limit * CHARACTERS}

    def several(self, item: Schema) -> dict[str, Any]:
        return {"type": "array", "items": item, "minItems": 1, "maxItems": self.limits.texts}

    @property
    def row(self) -> dict[str, Any]:
        token = {"type": "integer", "minimum": 0, "maximum": self.served.vocabulary - 1}
        return {"type": "array", "items": token, "minItems": 1}

    def texts(self, said: str, least: int = 1, limited: bool = True) -> Field:
        """A text or several; ``limited``: of no more characters than the model could read."""
        text = self.text(least) if limited else {"type": "string"}
        schema = {"anyOf": [text, self.several(text)]}
        return Field(lambda fields, name: fields.strings(name), schema, said, required=True)

    def texts_or_ids(self, said: str) -> Field:
        """A text or several, or their token ids."""

        def read(fields: Fields, name: str) -> list[str] | list[list[int]]:
            rows = fields.ids(name)
            return fields.strings(name) if rows is None else rows

        text = self.text()
        schema = {"anyOf": [text, self.several(text), self.row, self.several(self.row)]}
        return Field(read, schema, said, required=True)

    def ids(self, said: str) -> Field:
        """Token ids, of one text or several."""

        def read(fields: Fields, name: str) -> list[list[int]]:
            rows = fields.ids(name)
            if rows is None:
                raise fields.wrong(name, fields.get(name), "a list of token ids, or of such lists")
            return rows

        return Field(read, {"anyOf": [self.row, self.several(self.row)]}, said, required=True)

    def classified(self, said: str) -> Field:
        """A text or a pair of texts, or several of them, each in a list of its own."""
        alone, pair = ({"type": "array", "items": self.text(), "minItems": n, "maxItems": n} for n in (1, 2))
        schema = {"anyOf": [self.text(), alone, pair, self.several(alone), self.several(pair)]}
        return Field(lambda fields, name: to_classify(fields), schema, said, required=True)

    def predicted(self, said: str) -> Field:
        """A text or several, which may be empty, or pairs, by what the model reads."""
        if not self.served.judges:
            return self.texts(said, 0)
        text, alone, called = self.text(0), self.served.heads is not None, self.served.pair_names
        two = {"type": "array", "items": text, "minItems": 2, "maxItems": 2}
        objects = [
            {"type": "object", "properties": dict.fromkeys(names, text), "required": [*names],
             "additionalProperties": False}
            for names in called
        ]  # fmt: skip
        pairs: list[Schema] = [two, *objects]
        schema = {"anyOf": [*([text, self.several(text)] if alone else pairs[:1]), *objects, *map(self.several, pairs)]}
        return Field(lambda fields, name: to_predict(fields, name, called, alone), schema, said, required=True)

    def source(self, said: str) -> Field:
        """One text alone."""

        def read(fields: Fields, name: str) -> str:
            if not isinstance(fields.get(name), str):
                raise fields.wrong(name, fields.get(name), "a string")
            return str(fields.get(name))

        return Field(read, self.text(), said, required=True)

    @property
    def cutting(self) -> dict[str, Field]:
        """How texts are read."""
        return {
            "truncate": flag("Cut texts over the limit of tokens, which is an error else."),
            "truncation_direction": choice("The side on which they are cut; by default, the model's own.",
                                           "right", "left"),
            "prompt_name": string("The prompt of the model that goes before each text."),
        }  # fmt: skip

    @property
    def dimensions(self) -> Field:
        return count("Keep the first so many.", self.served.dim)


# Shapes of answers

NUMBER: Schema = {"type": "number"}
WORD: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer"}


def a_list(item: Schema) -> dict[str, Any]:
    return {"type": "array", "items": item}


def a_record(**properties: Schema) -> dict[str, Any]:
    """An object that has these fields."""
    return {"type": "object", "properties": properties, "required": [*properties]}


MATRIX = a_list(a_list(NUMBER))
LABELS = a_list(a_record(score=NUMBER, label=WORD))
PIECE = a_record(id=WHOLE, text=WORD, special={"type": "boolean"}, start={"type": ["integer", "null"]},
                 stop={"type": ["integer", "null"]})  # fmt: skip
USAGE = a_record(prompt_tokens=WHOLE, total_tokens=WHOLE)


def envelope(**row: Schema) -> dict[str, Any]:
    """OpenAI's list of rows."""
    return a_record(object=WORD, data=a_list(a_record(object=WORD, index=WHOLE, **row)), model=WORD, usage=USAGE)
