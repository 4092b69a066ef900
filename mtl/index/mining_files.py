"""What mining reads and writes: pairs and a corpus, the folder of what is under way, blocks of rows, the output."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtl.disk import atomic_write, remove
from mtl.errors import InputError
from mtl.rows.outputs import ANEW, check_made_alike
from mtl.rows.read import check_text, folded, read_rows, rows_with, texts_of
from mtl.rows.vector_files import json_line

NEGATIVE = "negative"  # the field of what is found
SETTINGS = "settings.json"  # of what is under way


def text_key(text: str) -> bytes:
    """What stands for a text, the same for texts that differ in case, blanks and forms of Unicode alone."""
    return hashlib.blake2b(folded(text).encode(), digest_size=16).digest()


@dataclasses.dataclass
class Pairs:
    """The pairs of a file: each row's fields, and its query and positive; ``own`` has what no query may be given."""

    names: tuple[str, str]
    rows: list[Mapping[str, Any]]
    queries: list[str]
    positives: list[str]
    own: dict[str, set[bytes]]

    @classmethod
    def read(cls, path: Path, fields: Sequence[str] = ()) -> Pairs:
        """The pairs of a file whose rows have two fields, or these two.

        Raises:
            InputError: the file cannot be read, has no rows, or a row is wrong; it names the line.
        """
        found: Pairs | None = None
        for number, row in read_rows(path):
            where = f"{path}, line {number}"
            names = tuple(fields) or tuple(row) if found is None else found.names
            if len({*names}) != 2 or len(names) != 2:
                given = f"fields are {', '.join(names)}" if fields else f"{where}: it has the fields {', '.join(names)}"
                raise InputError(f"{given}; expected two, a query and what answers it; name them with --fields")
            if NEGATIVE in row:
                raise InputError(f"{where}: it has a field {NEGATIVE!r} already; rename it")
            if missing := [name for name in names if name not in row]:
                raise InputError(f"{where}: no field {missing[0]!r}; it has {', '.join(row)}")
            texts = [check_text(row[name], name, where) for name in names]
            if blank := [name for name, text in zip(names, texts, strict=True) if not text.strip()]:
                raise InputError(f"{where}: field {blank[0]!r} is empty; expected a text")
            found = found or cls((names[0], names[1]), [], [], [], {})
            found.rows.append(dict(row))
            found.queries.append(texts[0])
            found.positives.append(texts[1])
            found.own.setdefault(texts[0], {text_key(texts[0])}).add(text_key(texts[1]))
        if found is None:
            raise InputError(f"{path} has no rows; expected pairs, a query and what answers it")
        return found

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps([self.names, self.rows], default=str).encode()).hexdigest()


class Corpus:
    """The different texts of a file that are not blank, in its order; they need not fit in memory.

    ``places`` says where each is, by what stands for it, as ``text_key``.
    """

    def __init__(self, path: Path, field: str) -> None:
        self.path, self.field = path, field
        self.places: dict[bytes, int] = {}
        self.twice = self.blank = 0
        digest = hashlib.sha256()
        for text in self.every():
            if not text.strip():
                self.blank += 1
            elif self.places.setdefault(text_key(text), number := len(self.places)) == number:
                digest.update(len(text).to_bytes(8, "little") + text.encode())
            else:
                self.twice += 1
        self.digest = digest.hexdigest()
        if not self.places:
            raise InputError(f"{path} has no text in {field!r} that is not blank; expected some to choose from")

    def __len__(self) -> int:
        return len(self.places)

    def every(self) -> Iterator[str]:
        """All texts of the file."""
        rows = rows_with(self.path, [self.field], whole=False)
        return (text for text, _ in texts_of(rows, str(self.path), self.field))

    def __iter__(self) -> Iterator[str]:
        number = 0
        for text in self.every():
            if self.places.get(text_key(text)) == number:
                number += 1
                yield text


def check_made(made: Path, output: Path, about: Mapping[str, Any], resume: bool) -> dict[str, int]:
    """What came of an output that is whole.

    Raises:
        InputError: it was made otherwise, or nobody asked to go on with it.
    """
    if not resume:
        raise InputError(f"{output} exists; --overwrite replaces it, or choose another name")
    before = read_json(made)
    if before is None:
        raise InputError(f"{output} exists, and {made}, which would say how it was made, does not; {ANEW}")
    check_made_alike(output, before.get("settings", {}), json.loads(json.dumps(about)))
    return {name: int(count) for name, count in before.get("counts", {}).items()}


def check_under_way(folder: Path, about: Mapping[str, Any], resume: bool) -> None:
    """Begin a run's folder, or see that the one that is there is of the same run."""
    path = folder / SETTINGS
    before = read_json(path)
    if before is not None and not resume:
        raise InputError(f"{folder} holds what an interrupted run has found; --resume goes on with it, {ANEW}")
    if before is None:
        remove(folder)
        with atomic_write(path, InputError) as partial:
            partial.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    else:
        check_made_alike(folder, before, json.loads(json.dumps(about)))


def read_json(path: Path) -> dict[str, Any] | None:
    """An object in a file of ours, or None where there is no file.

    Raises:
        InputError: it is damaged.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, RecursionError, ValueError, TypeError):
        raise InputError(f"{path} is damaged; {ANEW}") from None


def write_block(path: Path, counts: Counter[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write the negatives of some pairs: a line of counts, and one for each row."""
    with atomic_write(path, InputError) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        file.write(json.dumps(counts) + "\n")
        file.writelines(json_line(row) + "\n" for row in rows)


def finish(output: Path, blocks: Iterable[Path]) -> Counter[str]:
    """Put the blocks together; gives the sums of their counts."""
    counts: Counter[str] = Counter()
    with atomic_write(output, InputError) as partial, partial.open("wb") as file:
        for block in blocks:
            with block.open("rb") as lines:
                counts += Counter(json.loads(next(lines)))
                file.writelines(lines)
    return counts
