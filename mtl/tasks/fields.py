"""Settings as data classes: each field is brought to its declared type, whether it comes from a file or from Python."""

from __future__ import annotations

import os
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from mtl.errors import RecipeError, is_unicode, shown

PLAIN = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
PLURAL = {int: "whole numbers", float: "numbers", str: "strings"}


def unexpected(name: str, value: Any, expected: str, verb: str = "is") -> RecipeError:
    """The error of a setting that has this value."""
    given = shown(list(value) if isinstance(value, tuple) else value)
    return RecipeError(f"{name} {verb} {given}; expected {expected}", name)


def coerce(settings: Any) -> None:
    """Give each field of a frozen data class the type that it declares, a list as a tuple, a path as a string, or raise
    a RecipeError; also of a string that no file can hold."""
    for name, hint in get_type_hints(type(settings)).items():
        value = coerced(name, getattr(settings, name), hint)
        for each in value if isinstance(value, tuple) else (value,):
            if isinstance(each, str) and not is_unicode(each):
                raise unexpected(name, each, "Unicode", "holds half of a surrogate pair:")
        object.__setattr__(settings, name, value)


def coerced(name: str, value: Any, hint: Any) -> Any:
    """One field's value as the type that it is declared as."""
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    listed = next((part for part in parts if get_origin(part) is tuple), None)
    if listed and (len(parts) == 1 or isinstance(value, (list, tuple))):
        kind = get_args(listed)[0]
        try:
            return tuple(coerced(name, item, kind) for item in (value if isinstance(value, (list, tuple)) else [value]))
        except RecipeError:
            raise unexpected(name, value, f"a list of {PLURAL[kind]}") from None
    if Path in parts:
        if not isinstance(value, (str, os.PathLike)):
            raise unexpected(name, value, "a path")
        return Path(value)
    allowed = [part for part in parts if part in PLAIN]
    if not allowed or any(get_origin(part) in (dict, Literal) for part in parts):
        return value  # the class looks at these itself
    if value is None and NoneType in get_args(hint):
        return None
    if float in allowed and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            raise unexpected(name, value, "a number that a float can hold") from None
    if str in allowed and isinstance(value, os.PathLike):
        return os.fspath(value)
    if type(value) not in allowed:
        expected = [PLAIN[kind] for kind in allowed] + ([f"a list of {PLURAL[get_args(listed)[0]]}"] if listed else [])
        raise unexpected(name, value, " or ".join(expected))
    return value


def one_of(name: str, value: Any, choices: Any) -> None:
    """Raise a RecipeError if a value is none of the choices."""
    if value not in tuple(choices):
        raise unexpected(name, value, f"one of {', '.join(choices)}")
