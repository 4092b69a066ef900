"""The order of the rooms: a module imports what stands before its own room, or beside it, and nothing above."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
ORDER = (
    "mtl.errors",
    "mtl.shadows",
    "mtl.disk",
    "mtl.display",
    "mtl.model",
    "mtl.kernels",
    "mtl.checkpoints",
    "mtl.search",
    "mtl.encode",
    "mtl.rows",
    "mtl.index",
    "mtl.tasks",
    "mtl.export",
    "mtl.check",
    "mtl.training",
    "mtl.serve",
    "mtl.cli",
)
FRAMEWORKS = {"torch"}  # all that the mathematics needs from outside
STANDARD = {
    "ctypes",
    "mmap",
    "sys",
    "__future__",
    "collections",
    "contextlib",
    "copy",
    "dataclasses",
    "functools",
    "itertools",
    "math",
    "threading",
    "typing",
}


def modules() -> dict[str, Path]:
    """Every module of the project by its dotted name."""
    paths = [path for room in ("mtl",) for path in (ROOT / room).rglob("*.py")]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def imported(path: Path) -> set[str]:
    """The dotted names that a module imports anywhere, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def floor(name: str) -> int | None:
    """Which room a dotted name belongs to, counted from the lowest; None for what is not ours."""
    rooms = [i for i, room in enumerate(ORDER) if name == room or name.startswith(f"{room}.")]
    return rooms[0] if rooms else None


def test_no_import_goes_up():
    found = modules()
    assert len(found) > 30
    for name, path in found.items():
        own = floor(name)
        for target in imported(path) if own is not None else ():
            above = floor(target)
            assert above is None or above <= own, f"{name} imports {target}, which stands above it"


def test_the_mathematics_imports_torch_alone():
    for name, path in modules().items():
        if name.startswith("mtl.model"):
            foreign = {target.split(".")[0] for target in imported(path)} - FRAMEWORKS - STANDARD - {"mtl"}
            assert not foreign, f"{name} imports {foreign}"


def test_every_room_says_what_lives_there():
    for room in (
        "",
        "model",
        "kernels",
        "checkpoints",
        "encode",
        "rows",
        "index",
        "tasks",
        "export",
        "training",
        "serve",
        "cli",
    ):
        assert ast.get_docstring(ast.parse((ROOT / "mtl" / room / "__init__.py").read_text(encoding="utf-8")))


def test_contributing_names_the_rooms():
    """And no file that is not there."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert " < ".join(ORDER) in page
    named = re.findall(r"\b(?:mtl|tests|benchmarks|docs)/[\w/]+\.\w+", page)
    assert len(named) > 3
    assert [name for name in named if not (ROOT / name).exists()] == []
