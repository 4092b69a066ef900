"""What can go wrong, as one line each: what was given, what was expected, what to do."""

from __future__ import annotations

import numbers
import os
import re
import reprlib
from collections.abc import Mapping
from typing import Any

JOINERS = "\u200c\u200d"  # zero-width non-joiner and joiner


def shown(value: object, width: int = 60) -> str:
    """A value's repr for one line, cut where it is long or deep: of a text, the beginning is left."""
    if isinstance(value, str):
        text = repr(value[:width])
        return text if text == repr(value) and len(text) <= width else text[: width - 3] + "..."
    brief = reprlib.Repr()
    brief.maxstring = brief.maxother = brief.maxlong = width
    try:
        return brief.repr(value)
    except ValueError:  # a number of more digits than Python writes
        return f"a {type(value).__name__} with a number too long to be shown"


def printable(name: str) -> str:
    """A name as it stands, or its repr where it is long or holds what no line shows."""
    return name if len(name) < 100 and name.isprintable() else shown(name)


def escaped(text: str) -> str:
    """A text for a terminal, with what no line shows, or what a terminal acts on, as Python escapes it. Joiners stay,
    which are of Persian, Indic scripts and emoji."""
    return "".join(c if c.isprintable() or c in JOINERS else ascii(c)[1:-1] for c in text)


def one_line(error: BaseException, most: int = 200) -> str:
    """What another library's error says, in one line, cut where it is long, with what no line shows escaped; of files,
    in the system's own words."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)  # pyarrow's strerror holds more than that
    inner = re.search(r"([^:]+) \(os error \d+\)", str(error))  # as safetensors passes it on
    text = " ".join((inner[1] if inner else str(error)).split()) or type(error).__name__
    text = escaped(text[: most + 1])
    return text if len(text) <= most else text[: most - 3] + "..."


def extra(name: str) -> str:
    """What installs one of our extras. On the package index, the name ``mtl`` is another project's."""
    return f"in the clone of mtl: pip install -e '.[{name}]'"


def differing(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """What differs between two groups of settings: the dotted name, and both values."""
    found = []
    for key in [*before, *(key for key in now if key not in before)]:
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differing(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append((f"{prefix}{key}", old, new))
    return found


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two groups of settings, as ``training.seed was 0, is 1``."""
    return [f"{key} was {old!r}, is {new!r}" for key, old, new in differing(before, now)]


class MtlError(Exception):
    """Base of every error that this project raises on purpose; its text is one clear line."""


class ConfigError(MtlError):
    """A model's config.json, or a part of it, describes nothing that we can build."""


class WeightsError(MtlError):
    """A model's files are missing, unreachable, damaged, or not the files they should be."""


class InputError(MtlError):
    """Texts, token ids or options that a call cannot work with."""


class RecipeError(MtlError):
    """A recipe, or the labelled data that it names, is wrong; the text names file and line.

    ``field`` is the setting that is wrong, where it is one.
    """

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class TrainingError(MtlError):
    """Training cannot start, or had to stop."""


class TrainingStopped(TrainingError):
    """Ctrl-C or SIGTERM ended training after a step, which is saved: it goes on with ``resume=True``."""


class CheckpointError(MtlError):
    """A training checkpoint cannot be written or read."""


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can hold a string, as it cannot hold half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_flags(**flags: object) -> None:
    """Raise an InputError if one of these is given and neither true nor false: "no" would be taken for yes."""
    for name, value in flags.items():
        if not (value is None or type(value).__name__ in ("bool", "bool_") or (type(value) is int and 0 <= value <= 1)):
            raise InputError(f"{name} is {shown(value)}; expected True or False")


def check_counts(optional: bool = True, /, **counts: int | None) -> None:
    """Raise an InputError if one of these is given and no whole number from 1 on, or ``threads`` more than can be
    started; one that is not ``optional`` has to be given."""
    most = max(64, 4 * (os.cpu_count() or 1))  # of threads; where too many begin, OpenMP ends the process
    for name, value in counts.items():
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if (value is not None or not optional) and (not whole or value is None or value < 1):
            raise InputError(f"{name} is {shown(value)}; expected {'1 or more' if whole else 'a whole number'}")
        if name == "threads" and value is not None and value > most:
            raise InputError(f"threads is {shown(value)}; expected at most {most} on this machine")
