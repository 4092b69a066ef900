"""What a model with task heads says of texts: row by row, and in files."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtl.disk import atomic_write, beside, lock, remove, sweep, writing
from mtl.errors import InputError, shown
from mtl.rows.outputs import ANEW, check_made_alike
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
    fields = without_answer(answer)
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


def resume_answers(
    path: Path,
    rows: Iterator[tuple[Any, Any]],
    answer: Callable[[Iterator[tuple[Any, Any]]], Iterable[Fields]],
    about: dict[str, Any],
) -> tuple[int, bool]:
    """As ``write_answers``, but what is done is kept in PATH.partial, and gone on with; an output that is whole stays.

    Gives how many answers there are, and whether all were there. ``answer`` gives those of rows, and ``about`` is all
    that they depend on, as JSON. PATH.made.json then says how the output was made.

    Raises:
        InputError: as ``write_answers``; or what is there was made otherwise, or of other rows.
    """
    partial, made = beside(path, ".partial"), beside(path, ".made.json")
    with lock(path, InputError), writing(path, InputError):
        sweep(path.parent, path.name)
        whole = path.exists()
        if whole or partial.exists():
            check_made(made, about, path if whole else partial)
        else:
            with atomic_write(made, InputError) as temporary:
                temporary.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        digest = hashlib.sha256()

        def noted() -> Iterator[tuple[Any, Any]]:
            for row in rows:
                digest.update((json_line(dict(row[1])) + "\n").encode(errors="backslashreplace"))
                yield row

        given = noted()
        if whole:
            before, count = read_made(made), sum(1 for _ in given)
            if before.get("input") != digest.hexdigest():
                raise InputError(f"the input differs from what {path} was made from; {ANEW}")
            return count, True
        count, size = 0, 0
        partial.touch()
        with partial.open("r+b") as file:
            for line in file:
                if not line.endswith(b"\n"):  # it was killed in the middle of it
                    break
                try:
                    done = dict(json.loads(line))
                except (RecursionError, ValueError, TypeError):
                    raise InputError(f"{partial} is damaged in line {count + 1}; {ANEW}") from None
                _, fields = next(given, ("", None))
                if fields is None or json.loads(json_line(dict(fields))) != without_answer(done):
                    raise InputError(f"the input differs in row {count + 1} from what is in {partial}; {ANEW}")
                count, size = count + 1, size + len(line)
            file.truncate(size)
            file.seek(size)
            for each in answer(given):
                file.write((json_line(each) + "\n").encode(errors="backslashreplace"))
                count += 1
        with atomic_write(made, InputError) as temporary:
            temporary.write_text(json.dumps({**about, "input": digest.hexdigest()}, indent=1) + "\n", encoding="utf-8")
        with ExitStack() as stack:
            temporary = stack.enter_context(atomic_write(path, InputError))
            lines = stack.enter_context(partial.open(encoding="utf-8", newline="\n"))
            target = stack.enter_context(temporary.open("w", encoding="utf-8", errors="backslashreplace", newline=""))
            if path.suffix == ".csv":
                write_csv(target, map(flat, map(json.loads, lines)), path.parent)
            else:
                target.writelines(lines)
        remove(partial)
    return count, False


def fingerprint(model: MultiTaskModel) -> str:
    """A hash of what answers depend on: all weights, tasks and settings of the model."""
    import torch  # not where a command is only asked for its help

    digest = hashlib.sha256(repr([model.embedder.fingerprint, model.embedder.max_seq_length, model.tasks]).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def without_answer(answer: Fields) -> Fields:
    return {name: value for name, value in answer.items() if name not in ("embedding", "tasks")}


def read_made(path: Path) -> dict[str, Any]:
    """How an output was made.

    Raises:
        InputError: nobody knows.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, RecursionError, ValueError, TypeError):
        raise InputError(f"{path}, which would say how the output was made, is missing or damaged; {ANEW}") from None


def check_made(path: Path, about: dict[str, Any], output: Path) -> None:
    """Raise an InputError that says what differs, if answers with these settings would not be the same."""
    before = {name: value for name, value in read_made(path).items() if name != "input"}
    check_made_alike(output, before, json.loads(json.dumps(about)))
