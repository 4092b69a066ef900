"""What can go wrong, as one line each: what was given, what was expected, what to do."""

from __future__ import annotations

import numbers
import os
import reprlib

BRIEF = reprlib.Repr()
BRIEF.maxstring = BRIEF.maxother = BRIEF.maxlong = 60


def shown(value: object) -> str:
    """A value's repr for a message of one line, cut where it is long or deep."""
    return BRIEF.repr(value)


def one_line(error: Exception, most: int = 200) -> str:
    """What another library's error says, without line ends, and cut where it is long."""
    text = " ".join(str(error).split())
    return text if len(text) <= most else text[: most - 3] + "..."


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


class CheckpointError(MtlError):
    """A training checkpoint cannot be written or read."""


def check_counts(**counts: int | None) -> None:
    """That each of these, where it is given, is a whole number of at least 1, and ``threads`` one that a machine bears.

    Raises:
        InputError: one is not.
    """
    most = max(64, 4 * (os.cpu_count() or 1))  # of threads; where too many begin, OpenMP ends the process
    for name, value in counts.items():
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if value is not None and (not whole or value < 1):
            raise InputError(f"{name} is {shown(value)}; expected {'1 or more' if whole else 'a whole number'}")
        if name == "threads" and value is not None and value > most:
            raise InputError(f"threads is {shown(value)}; expected at most {most} on this machine")
