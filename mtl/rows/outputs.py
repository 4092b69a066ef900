"""A file of vectors that grows part by part, and how one that was interrupted goes on.

An output appears under its name only when it is whole. Until then there are, beside it,

    NAME.partial        the vectors so far, in float32: a .npy file whose header is written last
    NAME.partial.rows   the rows' fields, where the format keeps them: JSON lines, or from Parquet to Parquet Arrow
    NAME.partial.json   how far they got, with which settings, and on which input
    NAME.lock           while a process writes

Only the last step makes of them what was asked for: so the ranges of int8 are those of all vectors, and every
format can go on where it was interrupted. NAME.made.json then says how the output was made.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from mtl.checkpoints.fetch import stamped_sha256
from mtl.disk import atomic_write, beside, lock, remove, sweep, writing
from mtl.display import counted
from mtl.errors import InputError, differences, is_unicode
from mtl.rows import vector_files as formats
from mtl.rows.parquet import ArrowRow, reading_parquet, restored, schema_of, stored, table_of
from mtl.rows.read import TextRow, kind_of
from mtl.rows.vector_files import OutputPrecision, Part, Vectors

log = logging.getLogger("mtl")

PART = 8192  # rows that are converted at once
NAME = "model"  # the one setting that may differ: with equal hashes, it is the same model under another name
ANEW = "--overwrite starts anew"


def refuse_input_as_output(source: Path | None, output: Path) -> None:
    """Raise an InputError if the output is the input (standard input, if there is no path), under whatever name."""
    with suppress(OSError):
        given = source.stat() if source else os.fstat(0)
        if os.path.samestat(given, output.stat()):
            raise InputError(f"{output} is the input itself; expected another file, so that the input stays as it is")


def read_state(path: Path) -> dict[str, Any] | None:
    """What a state file says, or None where there is none.

    Raises:
        InputError: it is damaged.
    """
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        kinds = {"settings": dict, "input": str, "rows": int, "bytes": int}
        return {name: kind(state[name]) for name, kind in kinds.items()}
    except FileNotFoundError:
        return None
    except (OSError, RecursionError, ValueError, KeyError, TypeError):
        raise InputError(f"{path} is damaged; {ANEW}") from None


def check_made_alike(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise an InputError that says what differs, if what is at a path was made with other settings than now."""
    if different := differences(before, now):
        raise InputError(f"{path} was made otherwise: {'; '.join(different)}; {ANEW}")


class Output:
    """An output under way, of which ``rows`` rows are done. ``open_output`` gives one."""

    def __init__(
        self, path: Path, dim: int, precision: OutputPrecision, settings: dict[str, Any], source: Path | None,
        names: Sequence[str], taken: str | None,
    ) -> None:  # fmt: skip
        self.taken = taken
        self.path, self.dim, self.precision = path, dim, precision
        self.settings = {**settings, "output_precision": precision}
        self.keeps_rows = path.suffix in formats.WITH_ROWS
        self.source = source if source and (path.suffix, kind_of(source)) == (".parquet", ".parquet") else None
        self.schema = schema_of(self.source) if self.source else None
        self.names = names or (self.schema.names if self.schema else ())
        self.check_names(self.names)
        self.partial, self.rows_path, self.state_path, self.made_path, self.ranges_path = (
            beside(path, end) for end in (".partial", ".partial.rows", ".partial.json", ".made.json", ".ranges.npy")
        )
        self.rows, self.rows_bytes, self.digest = 0, 0, hashlib.sha256()
        self.complete = False  # whether the output was whole before we came
        self.expected: str | None = None  # the digest of the rows that are done
        self.files = ExitStack()

    @property
    def shape(self) -> tuple[int, int]:
        """How many vectors there are so far, and how wide they will be in the output."""
        return self.rows, formats.converted_shape(self.dim, self.precision)[0]

    @property
    def dtype(self) -> str:
        return formats.converted_shape(self.dim, self.precision)[1]

    def find(self, resume: bool, overwrite: bool) -> None:
        """See what is there already, and remove what is left of writes in the middle of which a process was killed.

        Raises:
            InputError: something that may be neither thrown away nor continued; both are asked for.
        """
        if resume and overwrite:
            raise InputError("resume goes on with what is there, overwrite throws it away; expected one of them")
        for path in (self.path, self.state_path, self.made_path, self.ranges_path):
            sweep(path.parent, path.name)
        if overwrite:
            self.discard()
        state = read_state(self.state_path)
        if state and not resume:
            kept = f"{self.partial} holds {counted(state['rows'], 'row')} of a run that was interrupted"
            raise InputError(f"{kept}; --resume goes on with them, {ANEW}")
        if not state and self.path.exists() and not overwrite:
            state, self.complete = read_state(self.made_path) if resume else None, True
            if not state:
                why = f", and {self.made_path}, which would say how it was made, does not" if resume else ""
                raise InputError(f"{self.path} exists{why}; --overwrite replaces it, or choose another name")
        if state:
            self.check_settings(state["settings"])
            self.rows, self.rows_bytes, self.expected = state["rows"], state["bytes"], state["input"]

    def check_settings(self, before: dict[str, Any]) -> None:
        """Raise an InputError that says what differs, if vectors made with these settings would not be the same."""
        before = {key: before.get(key) for key in self.settings}  # an older version may have had others
        path = self.path if self.complete else self.partial
        check_made_alike(path, {**before, NAME: None}, {**self.settings, NAME: None})

    def remaining(self, rows: Iterator[TextRow]) -> Iterator[TextRow]:
        """The rows that are still to do, once those that are done were passed over.

        Raises:
            InputError: those that are done come from another input; or the files cannot be written.
        """
        if self.source:  # its rows are kept as they are, so what stands for them all is the file
            with reading_parquet(self.source):
                self.digest.update(bytes.fromhex(stamped_sha256(self.source)))
        for row in islice(rows, self.rows):
            self.note(row)
        if self.expected is not None and self.digest.hexdigest() != self.expected:
            where = self.path if self.complete else self.partial
            place = "" if self.source else f" in its first {counted(self.rows, 'row')}"
            raise InputError(f"the input differs{place} from what is in {where}; {ANEW}")
        if not self.complete:
            self.open()
            return map(self.checked, rows)
        if next(rows, None) is not None:
            raise InputError(f"{self.path} is whole with {counted(self.rows, 'row')}, but the input has more of them; "
                             f"{ANEW}")  # fmt: skip
        return iter(())

    def open(self) -> None:
        """Open the files where they were left, or anew; what they hold beyond that is cut off."""
        with writing(self.path, InputError):
            self.partial.touch()
            self.rows_path.touch()
            self.file = self.files.enter_context(self.partial.open("r+b"))
            self.rows_file = self.files.enter_context(self.rows_path.open("r+b"))
            sizes = self.file.seek(0, 2), self.rows_file.seek(0, 2)
            self.write_header()
            ends = self.file.tell() + self.rows * self.dim * 4, self.rows_bytes
            if self.rows and (sizes[0] < ends[0] or sizes[1] < ends[1]):
                raise InputError(f"{self.partial} is shorter than it was; {ANEW}")
            for file, end in zip((self.file, self.rows_file), ends, strict=True):
                file.truncate(end)
                file.seek(end)

    def write_header(self) -> None:
        self.file.seek(0)
        formats.npy_header(self.file, (self.rows, self.dim), "float32")

    def check_names(self, names: Iterable[str]) -> None:
        """Raise an InputError if one of the fields that go to the output is called as its column of vectors."""
        if self.keeps_rows and self.taken and self.taken in names:
            raise InputError(f"a row has a field {self.taken!r} already; rename it, or write .npy")

    def checked(self, row: TextRow) -> TextRow:
        """The row itself, once ``check_names`` found nothing."""
        self.check_names(row[1])
        if self.path.suffix == ".parquet" and not all(map(is_unicode, row[1])):
            name = next(name for name in row[1] if not is_unicode(name))
            raise InputError(f"the field {name!r} is called by half of a surrogate pair; rename it, or write .jsonl")
        return row

    def note(self, row: TextRow) -> bytes:
        """Add a row to the input's digest; gives the line that is kept of it."""
        text, fields = row
        line = b""
        if self.keeps_rows and not self.source:
            line = (formats.json_line(dict(fields), finite=False) + "\n").encode(errors="backslashreplace")
        data = line or text.encode()
        if line and fields.get("text") != text:  # the rows alone do not say which of their fields is embedded
            data += text.encode(errors="backslashreplace")
        self.digest.update(len(data).to_bytes(8, "little") + data)
        return line

    def write(self, rows: Sequence[TextRow], vectors: Vectors) -> None:
        """Add rows and their float32 vectors (rows, dim).

        Raises:
            InputError: the disk is full, or the like; what was there before can be continued.
        """
        with writing(self.path, InputError):
            self.file.write(formats.raw(vectors))
            self.rows_file.writelines([self.note(row) for row in rows])
            if self.source and rows:
                self.rows_file.write(stored([cast(ArrowRow, fields) for _, fields in rows]))
            for file in (self.file, self.rows_file):
                file.flush()
                os.fsync(file.fileno())
        self.rows, self.rows_bytes = self.rows + len(rows), self.rows_file.tell()
        self.save_state(self.state_path)

    def save_state(self, path: Path) -> None:
        state = {"settings": self.settings, "rows": self.rows, "bytes": self.rows_bytes,
                 "input": self.digest.hexdigest()}  # fmt: skip
        with atomic_write(path, InputError) as temporary:
            temporary.write_text(json.dumps(state, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    def finish(self) -> None:
        """Make the file that was asked for, and remove the others.

        Raises:
            InputError: it cannot be written; what is done is kept.
        """
        if self.complete:
            return
        with writing(self.path, InputError):
            self.write_header()
            self.files.close()
        with atomic_write(self.path, InputError) as temporary:
            if self.path.suffix == ".npy" and self.precision == "float32":
                self.hand_over(temporary)
            else:
                ranges = self.save_ranges() if self.precision in ("int8", "uint8") and self.rows else None
                write = formats.WRITERS[self.path.suffix]
                write(temporary, self.parts(self.precision, ranges), self.shape, self.dtype, self.names)
        self.save_state(self.made_path)
        self.discard()

    def hand_over(self, temporary: Path) -> None:
        """The partial file is what was asked for; a second name for it will do, where the file system has that."""
        temporary.unlink()
        try:
            os.link(self.partial, temporary)
        except OSError:
            shutil.copyfile(self.partial, temporary)

    def save_ranges(self) -> Vectors:
        """The ranges of all vectors (2, dim), without which int8 and uint8 cannot be read back."""
        ends = [formats.value_ranges(vectors) for _, vectors in self.parts("float32")]
        ranges = formats.value_ranges(np.concatenate(ends))
        with atomic_write(self.ranges_path, InputError) as temporary:
            formats.write_npy(temporary, [((), ranges)], (2, self.dim), "float32")
        return ranges

    def parts(self, precision: OutputPrecision, ranges: Vectors | None = None) -> Parts:
        rows_path = self.rows_path if self.keeps_rows else None
        return Parts(self.partial, rows_path, self.schema, self.rows, self.rows_bytes, self.dim, precision, ranges)

    def close(self) -> None:
        """After a failure: keep what can be continued, remove what cannot. It never raises."""
        with suppress(OSError):
            self.files.close()
        if self.rows and not self.complete:
            log.warning("%s kept in %s; --resume goes on", counted(self.rows, "row"), self.partial)
        elif not self.complete:
            self.discard()

    def discard(self) -> None:
        for path in (self.state_path, self.partial, self.rows_path):  # without the first, the others are nothing
            remove(path)


@dataclasses.dataclass(frozen=True)
class Parts:
    """What is in a partial output, some rows at a time and as often as it is asked for: fields and vectors."""

    partial: Path
    rows_path: Path | None
    schema: Any  # of rows that are kept as Arrow
    rows: int
    rows_bytes: int
    dim: int
    precision: OutputPrecision
    ranges: Vectors | None

    def __iter__(self) -> Iterator[Part]:
        with ExitStack() as files:
            vectors_file = files.enter_context(self.partial.open("rb"))
            np.lib.format.read_magic(vectors_file)
            np.lib.format.read_array_header_1_0(vectors_file)
            rows_file = files.enter_context(self.rows_path.open("rb")) if self.rows_path else None
            for rows, size in self.fields(rows_file):
                vectors = np.frombuffer(vectors_file.read(size * self.dim * 4), "<f4").reshape(size, self.dim)
                yield rows, formats.convert(vectors, self.precision, self.ranges)

    def fields(self, file: BinaryIO | None) -> Iterator[tuple[Any, int]]:
        """The rows' fields, some at a time, and how many they are."""
        if file and self.schema is not None:
            yield table_of([], self.schema), 0
            yield from ((table, len(table)) for table in restored(file, self.rows_bytes))
            return
        for start in range(0, self.rows, PART):
            size = min(PART, self.rows - start)
            yield ([json.loads(line) for line in islice(file, size)] if file else []), size


@contextmanager
def open_output(
    path: Path,
    dim: int,
    precision: OutputPrecision,
    settings: dict[str, Any],
    resume: bool = False,
    overwrite: bool = False,
    source: Path | None = None,
    names: Sequence[str] = (),
    taken: str | None = formats.COLUMN,
) -> Iterator[Output]:
    """An output to add rows to, locked: a new one, or with ``resume`` what is there of it already.

    ``settings`` are all that a vector depends on, as JSON; ``source`` is the file that the rows come from, if they do,
    and ``names`` are its columns, which keep their types from .parquet to .parquet. No field may be called as the
    output's own column of vectors, ``taken``. With ``resume``, a partial output
    goes on, one that is whole has nothing left to do, and where nothing is, it begins. Nothing is thrown away but with
    ``overwrite``.

    Raises:
        InputError: the file cannot be written, is another process's, or is there already; it was made from
            another input or with other settings, in which case the line says which.
    """
    with lock(path, InputError):
        output = Output(path, dim, precision, settings, source, names, taken)
        output.find(resume, overwrite)
        try:
            yield output
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and not output.rows:
                log.warning("no part of %s was finished yet", path)
            output.close()
            raise
