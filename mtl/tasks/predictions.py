"""What a model with task heads says of texts: row by row, and in files."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtl.disk import atomic_write, lock, sweep
from mtl.errors import InputError, shown
from mtl.rows.vector_files import Fields, Vectors, csv_line, json_line

if TYPE_CHECKING:
    from mtl.tasks.multitask import MultiTaskModel

SUFFIXES = (".jsonl", ".csv")


def plain(values: Vectors) -> list[float]:
    """The numbers of a vector, with the fewest digits that give back each exactly."""
    return [float(str(value)) for value in values]


def answers(
    model: MultiTaskModel, rows: Iterable[tuple[Any, Any]], threads: int | None = None, pairs: bool = False
) -> Iterator[tuple[Any, Fields]]:
    """Each row's text, and its fields with ``embedding`` and ``tasks`` behind them; of ``pairs``, without the former.

    ``tasks`` has, by task, its ``label``, and ``scores`` and ``logits`` by label (by "value" for a regression); of a
    tagger, its ``spans``.

    Raises:
        InputError: a row has a field of one of these names already.
    """
    for part, found in model.predict_rows(rows, itemgetter(0), threads, pairs=pairs):
        for i, (text, fields) in enumerate(part):
            if taken := {"embedding", "tasks"} & fields.keys():
                raise InputError(f"a row has a field {min(taken)!r} already; rename it: {shown(text)}")
            tasks = {
                name: {"spans": label[i]}
                if model.tasks[name].handler.level == "token"
                else {
                    "label": label[i],
                    "scores": dict(zip(model.head_kind(name).columns, plain(found.scores[name][i]), strict=True)),
                    "logits": plain(found.logits[name][i]),
                }
                for name, label in found.labels.items()
            }
            vector = {} if pairs else {"embedding": plain(found.embeddings[i])}
            yield text, {**fields, **vector, "tasks": tasks}


def said(label: Any) -> str:
    """A task's label as a word: the labels of a multi-label task side by side."""
    return "|".join(label) if isinstance(label, list) else str(label)


def flat(answer: Fields) -> Fields:
    """An answer as a row of a table: the fields, and of each task its label and, as ``task.label``, its scores.

    Of a tagger, the column has its spans as JSON.

    Raises:
        InputError: a row has a field of one of these names already.
    """
    columns: Fields = {}
    for name, task in answer["tasks"].items():
        columns[name] = json_line(task["spans"]) if "spans" in task else said(task["label"])
        columns |= {f"{name}.{label}": score for label, score in task.get("scores", {}).items()}
    fields = {name: value for name, value in answer.items() if name not in ("embedding", "tasks")}
    if taken := fields.keys() & columns.keys():
        raise InputError(f"a row has a field {min(taken)!r} already, the name of a task; rename it, or write .jsonl")
    return fields | columns


def write_csv(file: Any, rows: Iterable[Fields], folder: Path) -> None:
    """Rows as .csv, a column for each field of any row; they are kept aside until all fields are known."""
    names: dict[str, None] = {}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="surrogatepass", dir=folder) as aside:
        for row in rows:
            names |= dict.fromkeys(row)
            aside.write(json_line(row) + "\n")
        aside.seek(0)
        file.write(csv_line(names))
        file.writelines(csv_line(map(json.loads(line).get, names)) for line in aside)


def write_answers(path: Path, found: Iterable[Fields], overwrite: bool = False) -> int:
    """Write answers as .jsonl, or flat as .csv, which appears under its name when it is whole; how many there are.

    Raises:
        InputError: it exists and may not be overwritten, is another process's, or cannot be written.
    """
    count = 0

    def counting() -> Iterator[Fields]:
        nonlocal count
        for answer in found:
            count += 1
            yield answer

    with ExitStack() as stack:
        stack.enter_context(lock(path, InputError))
        sweep(path.parent, path.name)
        if path.exists() and not overwrite:
            raise InputError(f"{path} exists; --overwrite replaces it, or choose another name")
        temporary = stack.enter_context(atomic_write(path, InputError))
        with temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            if path.suffix == ".csv":
                write_csv(file, map(flat, counting()), path.parent)
            else:
                file.writelines(json_line(answer) + "\n" for answer in counting())
    return count
