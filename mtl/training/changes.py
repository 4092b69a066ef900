"""Settings changed without another file, as ``training.learning_rate=1e-5`` or ``task.topic.weight=2``.

A run keeps the ones that it was started with in recipe.json, and goes on with them.
"""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtl.disk import atomic_write
from mtl.errors import CheckpointError, RecipeError, one_line, shown
from mtl.tasks.spec import TaskSpec
from mtl.training.recipe import Recipe, Training

KEPT = "recipe.json"
BARE = re.compile(r"[^\s\"'\[\]{}=,]+")  # a word that needs no quotes on a command line


def read_values(text: str) -> tuple[str, list[Any]]:
    """The name of a setting and the values behind it, as in ``training.seed=1,2``: of TOML, or bare words."""
    name, equals, given = (part.strip() for part in text.partition("="))
    if not equals or not name or not given:
        raise RecipeError(f"--set {shown(text)}: expected name=value, as training.learning_rate=1e-5")
    try:
        return name, toml(f"[{given}\n]")
    except ValueError:
        return name, [single(name, part.strip()) for part in given.split(",")]


def toml(text: str) -> Any:
    """One value of TOML; a ValueError if it is none, or more than that."""
    try:
        found = tomllib.loads(f"x = {text}")
    except RecursionError:
        raise ValueError("nested too deep") from None
    if found.keys() != {"x"}:
        raise ValueError("more than a value")
    return found["x"]


def single(name: str, text: str) -> Any:
    try:
        return toml(text)
    except ValueError as error:
        if BARE.fullmatch(text):
            return text
        raise RecipeError(f"--set {name}={shown(text)}: no value of TOML ({one_line(error)})") from None


def read_changes(texts: Sequence[str]) -> dict[str, Any]:
    """The settings by name, each with one value; a RecipeError if one has several, or is there twice."""
    found: dict[str, Any] = {}
    for name, values in map(read_values, texts):
        if len(values) != 1:
            raise RecipeError(f"--set {name} has {len(values)} values; expected one (mtl sweep tries several)")
        if name in found:
            raise RecipeError(f"--set {name} is there twice; expected each setting once")
        found[name] = values[0]
    return found


def changed(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """A recipe with other values of some settings, by name: ``model``, ``layers``, ``training.X``, ``task.NAME.X``. A
    name that is unknown, or a value that will not do, is a RecipeError."""
    names = [task.name for task in recipe.tasks]
    whole: dict[str, Any] = {}
    training: dict[str, Any] = {}
    tasks: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        group, _, rest = name.partition(".")
        task, _, key = rest.partition(".")
        if name in ("model", "layers"):
            whole[name] = value
        elif group == "training":
            check_known(name, rest, Training)
            training[rest] = value
        elif group == "task" and task in names:
            check_known(name, key, TaskSpec)
            tasks.setdefault(task, {})[key] = value
        else:
            tasks_by_name = ", ".join(f"task.{task}.X" for task in names)
            expected = f"expected model, layers, training.X, {tasks_by_name}"
            raise RecipeError(f"--set {shown(name)} is unknown; {expected}")
    found = [replaced(task, tasks.get(task.name, {}), f"task.{task.name}.") for task in recipe.tasks]
    whole |= {"tasks": found, "training": replaced(recipe.training, training, "training.")}
    return replaced(recipe, whole, "")


def check_known(name: str, key: str, cls: Any) -> None:
    """Raise a RecipeError if a data class has no such field."""
    known = [field.name for field in dataclasses.fields(cls)]
    if key not in known:
        raise RecipeError(f"--set {shown(name)} is unknown; expected one of {', '.join(known)} behind the last dot")


def replaced(settings: Any, values: Mapping[str, Any], prefix: str) -> Any:
    """A data class with other values."""
    try:
        return dataclasses.replace(settings, **values) if values else settings
    except RecipeError as error:
        own = [name for name in values if name == error.field] or [*values]
        raise RecipeError(f"--set {', '.join(prefix + name for name in own)}: {error}", error.field) from None


def keep(folder: Path, changes: Mapping[str, Any], recipe: Recipe, data: Mapping[str, Any]) -> None:
    """Write what a run is of: its changes, the recipe that came of them, and the fingerprints of its data."""
    content = {"set": changes, "recipe": recipe.as_dict(), "data": data}
    with atomic_write(folder / KEPT, CheckpointError) as partial:
        text = json.dumps(content, indent=1, ensure_ascii=False, default=str)
        partial.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def kept(folder: Path) -> dict[str, Any]:
    """What ``keep`` wrote of a run; nothing where there is none, and a CheckpointError where it is damaged."""
    path = folder / KEPT
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {name: dict(found[name]) for name in ("set", "recipe", "data")}
    except FileNotFoundError:
        return {}
    except (OSError, RecursionError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is damaged ({one_line(error)}); give the same --set again once it is deleted"
        ) from None
