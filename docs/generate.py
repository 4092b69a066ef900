"""Writes docs/api.md from the docstrings of what ``import mtl`` offers, and CONTRIBUTING.md's tree from the modules'.

python docs/generate.py
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

import mtl
from mtl.tasks.kinds import KINDS

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "api.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
TREE = re.compile(r"(?<=<!-- tree:begin -->\n).*(?=<!-- tree:end -->)", re.DOTALL)
HEAD = """# What `import mtl` offers

Written from the docstrings by `python docs/generate.py`. `mtl COMMAND --help` lists the options of the command line.
"""


class Shown(str):
    """A default as the page shows it."""

    __repr__ = str.__str__


def default_of(parameter: inspect.Parameter) -> Any:
    """A parameter's default; of an object of ours just its class, since that class has an entry of its own."""
    value = parameter.default
    return Shown(f"{type(value).__name__}()") if dataclasses.is_dataclass(value) and value is not None else value


def signature(name: str, thing: Any) -> str:
    """How something is called, without types."""
    parameters = [p for p in inspect.signature(thing).parameters.values() if p.name not in ("self", "cls")]
    kept = [p.replace(annotation=p.empty, default=default_of(p)) for p in parameters]
    return f"{name}{inspect.Signature(kept)}"


def own_docstring(thing: Any) -> str:
    """What stands in the thing itself, and not in what it inherits from."""
    return inspect.cleandoc(thing.__doc__ or "")


def described(thing: Any) -> str:
    """A docstring as it stands, as an indented block, so that its lines stay lines."""
    return "\n".join(f"    {line}".rstrip() for line in own_docstring(thing).splitlines())


def members(kind: type) -> list[tuple[str, Any]]:
    """The public methods and properties that a class itself defines and documents, in its own order."""
    found = []
    for name, raw in vars(kind).items():
        thing = raw.__func__ if isinstance(raw, (classmethod, staticmethod)) else raw
        documented = inspect.isfunction(thing) or isinstance(thing, property)
        if documented and not name.startswith("_") and own_docstring(thing):
            found.append((name, thing))
    return found


def entry(name: str) -> str:
    """All that is said of one public name."""
    thing = getattr(mtl, name)
    if not isinstance(thing, type):
        return f"## `mtl.{signature(name, thing)}`\n\n{described(thing)}\n"
    if issubclass(thing, Exception):
        return f"## `mtl.{name}`\n\n{described(thing)}\n"
    parts = [f"## `mtl.{signature(name, thing)}`\n\n{described(thing)}\n"]
    for member, raw in members(thing):
        title = member if isinstance(raw, property) else signature(member, raw)
        parts.append(f"### `{name}.{title}`\n\n{described(raw)}\n")
    return "\n".join(parts)


def kinds() -> str:
    """What the tasks of each kind are, and the options that they have besides those of all tasks."""
    parts = ["## The kinds of task\n"]
    for name, kind in KINDS.items():
        options = [cls for cls in reversed(kind.Options.__mro__) if "__dataclass_fields__" in vars(cls)]
        defaults = {field.name: field.default for field in dataclasses.fields(kind.Options)}
        title = ", ".join(f"{option}={default!r}" for option, default in defaults.items())
        parts.append(f'### `kind="{name}", {title}`\n\n' + "\n\n".join(map(described, (kind, *options))) + "\n")
    return "\n".join(parts)


def page() -> str:
    """The whole page: classes and functions first, then the kinds of task, and the errors."""
    names = [name for name in mtl.__all__ if not name.startswith("__")]
    errors = [
        name for name in names if isinstance(getattr(mtl, name), type) and issubclass(getattr(mtl, name), Exception)
    ]
    return "\n".join([HEAD, *(entry(name) for name in names if name not in errors), kinds(), *map(entry, errors)])


def purpose(path: Path) -> str:
    """What a module's docstring begins with, up to the first line that ends a sentence; none where it has none."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return re.split(r"[.:](?:\n|$)", docstring)[0].replace("\n", " ")


def tree() -> str:
    """Every room with what lives there, and every module in it with what it is for."""
    lines = []
    for room in sorted({path.parent for path in (ROOT / "mtl").rglob("*.py")}):
        indent = "    " * len(room.relative_to(ROOT).parts)
        lines.append(f"{indent}{room.name + '/':<{44 - len(indent)}}{purpose(room / '__init__.py')}")
        for path in sorted(room.glob("[!_]*.py")):
            lines.append(f"{indent}    {path.name:<{40 - len(indent)}}{purpose(path)}")
    return "\n".join(lines) + "\n"


def contributing() -> str:
    """CONTRIBUTING.md with the tree as it is."""
    return TREE.sub(lambda _: "\n" + tree() + "\n", CONTRIBUTING.read_text(encoding="utf-8"))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    CONTRIBUTING.write_text(contributing(), encoding="utf-8")
