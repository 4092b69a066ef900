"""Labels as they stand in data: by their names, by their places, or as a 0 or 1 for each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from mtl.errors import shown

NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)")


def as_number(value: Any) -> int | None:
    """A whole number, as it may stand in data: 2, "2", and where a column had blanks, 2.0 or "2.0"; None otherwise, as
    of "02", which is a code."""
    if isinstance(value, str):
        whole, _, rest = value.partition(".")
        fits = len(value) < 20 and whole.isdecimal() and not rest.strip("0") and not value.endswith(".")
        return int(whole) if fits and whole == str(int(whole)) else None
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and value == value // 1
    return int(value) if number else None


def named(value: Any, labels: Sequence[str]) -> str | None:
    """The label that a value names: 2.0 may be "2.0" or "2", and null is not "None"; None where it names none."""
    number = as_number(value)
    names = [str(value)] * isinstance(value, (str, int, float)) + [str(number)] * (number is not None)
    return next((name for name in names if name in labels), None)


def found_names(values: Sequence[Any]) -> tuple[str, ...]:
    """The names of a row's labels, where none are declared yet; a ValueError if something cannot be one."""
    numbers = [as_number(value) for value in values]  # a column of numbers with blanks holds 2.0, or "2.0"
    known = [value if n is None else str(n) for n, value in zip(numbers, values, strict=True)]
    if wrong := [name for name in known if type(name) is not str or name == ""]:
        given = shown(values[0] if len(values) == 1 else [*values])
        raise ValueError(f"is {given}; expected a label, or labels; {shown(wrong[0])} is none")
    return tuple(known)


def ordered(labels: set[str]) -> list[str]:
    """Labels by name, or where all are numbers by these, so that 0, 1, ... are at their places."""
    numbers = [(number, label) for label in labels if (number := as_number(label)) is not None]
    return [label for _, label in sorted(numbers)] if len(numbers) == len(labels) else sorted(labels)


def class_index(value: Any, labels: Sequence[str]) -> int:
    """The index of a label by its name, or by its place (0, 1, ...) where no label is itself a number.

    Raises:
        ValueError: it is not among the labels; or it is a number that would be one label by its name and
            another by its place.
    """
    number = as_number(value)
    place = number if number is not None and 0 <= number < len(labels) else None
    name = None if (label := named(value, labels)) is None else labels.index(label)
    if name is not None and place is not None and not isinstance(value, str) and place != name:
        by_name, by_place = f"the label named {labels[name]!r}", f"the one at place {place} from 0, {labels[place]!r}"
        raise ValueError(f'is {value}, which could be {by_name} or {by_place}; expected its name, "{number}" in quotes')
    if name is not None:
        return name
    if place is not None and not any(map(NUMBER.fullmatch, labels)):
        return place
    raise ValueError(f"{value!r} is not declared; expected one of {', '.join(labels)}")


def is_place(value: Any, labels: Sequence[str]) -> bool:
    """Whether ``class_index`` takes a value as a label's place, and not as its name."""
    number = as_number(value)
    return number is not None and 0 <= number < len(labels) and named(value, labels) is None


def named_set(names: Sequence[Any], labels: Sequence[str]) -> list[float] | None:
    """The labels of these names; None where one of them is not declared."""
    given = {named(name, labels) for name in names}
    return None if None in given else [float(label in given) for label in labels]


def are_flags(values: Sequence[Any]) -> bool:
    return all(isinstance(value, (int, float)) and value in (0, 1) for value in values)


def names_in(value: Any) -> list[str]:
    """The names in a list, or in "a|b", whether or not they are declared."""
    names = value if isinstance(value, list) else value.split("|") if isinstance(value, str) else []
    return [name for name in names if isinstance(name, str) and name]


def multi_hot(values: Sequence[Any], labels: Sequence[str]) -> list[float] | None:
    """A 0 or 1 for each label, as it stands; None where it is something else."""
    return [float(value) for value in values] if are_flags(values) and len(values) == len(labels) else None


def label_set(value: Any, labels: Sequence[str]) -> list[float]:
    """1 for each label that a row has, 0 for the others, from a list of names, "a|b", or a 0 or 1 for each label; a
    ValueError if it is none of these, or two of them with different outcomes. Floats, a 0 or 1 for each label as
    transformers has them, are no names."""
    if isinstance(value, list):
        names, flags = value, multi_hot(value, labels)
        if flags and all(isinstance(each, float) for each in value):
            return flags
        found = {"by name": named_set(names, labels), "as a 0 or 1 for each label": flags}
    else:
        names = [part for part in value.split("|") if part] if isinstance(value, str) else [value]
        found = {"as one name": named_set([value], labels), "as names between |": named_set(names, labels)}
    readings = {how: reading for how, reading in found.items() if reading is not None}
    if not readings and isinstance(value, list) and are_flags(value):
        raise ValueError(f"is {value}; expected a 0 or 1 for each of the {len(labels)} labels, or names in a list")
    if not readings:
        undeclared = next(name for name in names if named(name, labels) is None)
        forms = 'names in a list or as "a|b", or a list with a 0 or 1 for each'
        raise ValueError(f"{undeclared!r} is not declared; expected {forms} of {', '.join(labels)}")
    if len({tuple(reading) for reading in readings.values()}) > 1:
        said = [f"{chosen(reading, labels)} {how}" for how, reading in readings.items()]
        raise ValueError(f"is {value!r}, which could be {' or '.join(said)}; rename the labels, or write names alone")
    return next(iter(readings.values()))


def chosen(flags: Sequence[float], labels: Sequence[str]) -> list[str]:
    """The labels whose flag is not 0."""
    return [label for label, flag in zip(labels, flags, strict=True) if flag]
