"""Files of what a model says of rows, .jsonl or .csv: written at once, or kept row by row and gone on with.

Beside an output that is gone on with there are

    NAME.partial    the answers so far, as JSON lines
    NAME.made.json  what the answers depend on, and once all are there, a hash of the rows that they are of
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from mtl.disk import atomic_write, beside, lock, remove, sweep, writing
from mtl.errors import InputError
from mtl.rows.outputs import ANEW, check_made_alike
from mtl.rows.vector_files import Fields, csv_line, json_line
from mtl.tasks.predictions import said

SUFFIXES = (".jsonl", ".csv")
TextRow = tuple[Any, Any]  # a text, or a pair of texts, and the fields of its row


def without_answer(answer: Fields) -> Fields:
    """The fields of the row that an answer is of."""
    return {name: value for name, value in answer.items() if name not in ("embedding", "tasks")}


def flat(answer: Fields) -> Fields:
    """An answer as a row of a table: the fields, and of each task its label and, as ``task.label``, its scores.

    Of a tagger, the column has its spans as JSON. A row that has a field of one of these names already is an
    InputError.
    """
    columns: Fields = {}
    for name, task in answer["tasks"].items():
        columns[name] = json_line(task["spans"]) if "spans" in task else said(task["label"])
        columns |= {f"{name}.{label}": score for label, score in task.get("scores", {}).items()}
    fields = without_answer(answer)
    if taken := fields.keys() & columns.keys():
        raise InputError(f"a row has a field {min(taken)!r} already, the name of a task; rename it, or write .jsonl")
    return fields | columns


def write_csv(file: Any, answers: Iterable[Fields], folder: Path, blank: Callable[[], Fields]) -> None:
    """Answers as .csv, flat, a column for each field of any; they are kept aside until all fields are known.

    Where there are none, the columns are those of ``blank``, an answer to nothing.
    """
    names: dict[str, None] = {}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="surrogatepass", dir=folder) as aside:
        for row in map(flat, answers):
            names |= dict.fromkeys(row)
            aside.write(json_line(row, finite=False) + "\n")
        aside.seek(0)
        file.write(csv_line(names or flat(blank())))
        file.writelines(csv_line(map(json.loads(line).get, names)) for line in aside)


@contextmanager
def appearing(path: Path) -> Iterator[TextIO]:
    """A file of text that takes its name when it is whole."""
    with (
        atomic_write(path, InputError) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        yield file


def state_paths(path: Path) -> tuple[Path, Path]:
    """Where the answers so far are, and how they are made."""
    return beside(path, ".partial"), beside(path, ".made.json")


def nothing() -> Fields:
    return {"tasks": {}}


def write_answers(
    path: Path, found: Iterable[Fields], overwrite: bool = False, blank: Callable[[], Fields] = nothing
) -> int:
    """Write answers as .jsonl, or flat as .csv, which appears under its name when it is whole; how many there are.

    ``blank`` gives an answer to nothing, for the columns of a .csv without rows.

    Raises:
        InputError: it exists, or a part of it, and may not be overwritten; it is another process's, or cannot be
            written.
    """
    count = 0

    def counting() -> Iterator[Fields]:
        nonlocal count
        for answer in found:
            count += 1
            yield answer

    partial, made = state_paths(path)
    with lock(path, InputError):
        sweep(path.parent, path.name)
        if path.exists() and not overwrite:
            raise InputError(f"{path} exists; --overwrite replaces it, or choose another name")
        if partial.exists() and not overwrite:
            raise InputError(f"{partial} holds answers of a run that was interrupted; --resume goes on with them, "
                             f"{ANEW}")  # fmt: skip
        remove(made)  # first of all: it is about another output, or about none
        remove(partial)
        with appearing(path) as file:
            if path.suffix == ".csv":
                write_csv(file, counting(), path.parent, blank)
            else:
                file.writelines(json_line(answer, where=str(path)) + "\n" for answer in counting())
    return count


class Hashed:
    """Rows one after another, with a hash of those that were asked for."""

    def __init__(self, rows: Iterator[TextRow]) -> None:
        self.rows, self.hash = rows, hashlib.sha256()

    def __iter__(self) -> Iterator[TextRow]:
        return self

    def __next__(self) -> TextRow:
        row = next(self.rows)
        self.hash.update((json_line(dict(row[1]), finite=False) + "\n").encode(errors="backslashreplace"))
        return row


def resume_answers(
    path: Path,
    rows: Iterator[TextRow],
    answer: Callable[[Iterator[TextRow]], Iterable[Fields]],
    about: dict[str, Any],
    blank: Callable[[], Fields] = nothing,
) -> tuple[int, bool]:
    """As ``write_answers``, but what is done is kept in PATH.partial, and gone on with; an output that is whole stays.

    Gives how many answers there are, and whether all were there. ``answer`` gives those of rows, and ``about`` is all
    that they depend on, as JSON.

    Raises:
        InputError: what is there was made otherwise, or of other rows, or is damaged; it is another process's, or
            cannot be written.
    """
    (partial, made), given = state_paths(path), Hashed(rows)
    with lock(path, InputError), writing(path, InputError):
        sweep(path.parent, path.name)
        if path.exists():
            check_made(made, about, path)
            count = sum(1 for _ in given)
            if read_made(made).get("input") != given.hash.hexdigest():
                raise InputError(f"the input differs from what {path} was made from; {ANEW}")
            remove(partial)  # a process that was killed behind its last step but one has left it
            return count, True
        if partial.exists():
            check_made(made, about, partial)
        else:
            write_made(made, about)
            partial.touch()
        with partial.open("r+b") as file:
            count = pass_over(file, given, path)
            for each in answer(given):
                file.write((kept(each, path) + "\n").encode(errors="backslashreplace"))
                count += 1
        write_made(made, {**about, "input": given.hash.hexdigest()})
        with partial.open(encoding="utf-8", newline="\n") as lines, appearing(path) as target:
            if path.suffix == ".csv":
                write_csv(target, map(json.loads, lines), path.parent, blank)
            else:
                target.writelines(lines)
        remove(partial)
    return count, False


def kept(value: Fields, path: Path) -> str:
    """A line of PATH.partial: as in a .jsonl, or with infinite numbers, which a .csv has."""
    return json_line(value, path.suffix != ".csv", str(path))


def pass_over(file: BinaryIO, given: Iterator[TextRow], path: Path) -> int:
    """Go past the answers that are there, and past their rows; gives their number.

    A line in the middle of which a process was killed is cut off. One that is damaged, or the answer to another row, is
    an InputError.
    """
    partial, _ = state_paths(path)
    count = size = 0
    for line in file:
        if not line.endswith(b"\n"):
            break
        try:
            done = dict(json.loads(line))
        except (RecursionError, ValueError, TypeError):
            raise InputError(f"{partial} is damaged in line {count + 1}; {ANEW}") from None
        _, fields = next(given, ("", None))
        if fields is None or json.loads(kept(dict(fields), path)) != without_answer(done):
            raise InputError(f"the input differs in row {count + 1} from what is in {partial}; {ANEW}")
        count, size = count + 1, size + len(line)
    file.truncate(size)
    file.seek(size)
    return count


def read_made(path: Path) -> dict[str, Any]:
    """How an output was made; an InputError if nobody knows."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, RecursionError, ValueError, TypeError):
        raise InputError(f"{path}, which would say how the output was made, is missing or damaged; {ANEW}") from None


def check_made(path: Path, about: dict[str, Any], output: Path) -> None:
    """Raise an InputError that says what differs, if answers with these settings would not be the same."""
    before = {name: value for name, value in read_made(path).items() if name != "input"}
    check_made_alike(output, before, json.loads(json.dumps(about)))


def write_made(path: Path, about: dict[str, Any]) -> None:
    """Say how an output is made."""
    with atomic_write(path, InputError) as temporary:
        temporary.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
