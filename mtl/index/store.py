"""The files of an index, of which a reader sees one state or the next, and never a part of one.

    index.json            the state: settings, segments, which file lists what is deleted; replaced in one step
    segment-00000001-0/   consecutive rows: vectors.npy, rows.jsonl, offsets.npy, ids.jsonl
    deleted-00000002.npy  the places of deleted rows, counted over all segments

What index.json does not name is of an older state, or of a write that did not end; a writer removes it, before its own
writes and behind them.

An addition leaves each segment at least twice as large as the one behind it: of those that would be smaller it makes
one. So there are few of them however many additions there were, and a row is copied few times. A deletion writes anew
what it leaves less than half of, and nothing else.
"""

from __future__ import annotations

import dataclasses
import json
import numbers
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain, compress, islice
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtl.disk import atomic_write, remove, reserve, sweep
from mtl.errors import InputError, one_line, shown
from mtl.rows.vector_files import Part, Vectors, convert, json_line, scaled
from mtl.search import BLOCK, MADE, Similarity, as_tensor, unit

Form = Literal["fp32", "int8", "binary"]
Id = str | int
Places = NDArray[np.int64] | range

STATE = "index.json"
NAMES = r"segment-[\d-]+|deleted-\d+\.npy"  # that stand in it
FILES = {  # the .npy files of a segment, beside offsets.npy
    "fp32": ("vectors",),
    "int8": ("vectors", "scales"),
    "binary": ("vectors", "bits"),
}
PART = 8192  # rows that are copied at once
FEW = 4096  # rows, below which a segment is read at once: each file that is mapped holds one of few descriptors
ROWS = 65536  # whose bits are compared at once, so that they stay in the processor's cache


@dataclasses.dataclass(frozen=True)
class State:
    """What index.json says. ``last`` is the digest of the input that was added last, ``number`` grows with each state.

    ``added`` counts all rows that there ever were, by which rows without an id of their own are numbered. ``made`` is
    drawn for each index, so that one in another's place is known by it.
    """

    form: Form
    dim: int
    measure: str
    settings: dict[str, Any]
    segments: tuple[tuple[str, int], ...] = ()
    deleted: str | None = None
    number: int = 0
    added: int = 0
    last: str = ""
    made: str = ""


def unread(path: Path, error: Exception) -> InputError:
    """That a file cannot be read. Only one that is damaged or gone helps a new index, not what the system withholds."""
    withheld = isinstance(error, (OSError, MemoryError)) and not isinstance(error, FileNotFoundError)
    return InputError(f"{path} cannot be read: {one_line(error)}{'' if withheld else '; make the index anew'}")


def read_state(folder: Path) -> State:
    """The state of an index.

    Raises:
        InputError: there is none, or it is damaged.
    """
    try:
        fields = json.loads((folder / STATE).read_text(encoding="utf-8"))
        fields["segments"] = tuple((str(name), int(rows)) for name, rows in fields["segments"])
        state = State(**fields)
        names = [*(name for name, _ in state.segments), *filter(None, [state.deleted])]
        whole = [state.dim, state.number, state.added, *(rows for _, rows in state.segments)]
        if (
            state.form not in FILES or state.measure not in get_args(Similarity)
            or not isinstance(state.settings["field"], str) or not all(type(number) is int for number in whole)
            or not all(isinstance(state.settings[name], str | None) for name in ("model", "id_field"))
            or state.dim < 1 or not all(re.fullmatch(NAMES, name) for name in names)
        ):  # fmt: skip
            raise ValueError("a field has a value that it cannot have")
        return state
    except NotADirectoryError:
        raise InputError(f"{folder} is a file, and no index; `mtl index FILE -o FOLDER` makes one of texts") from None
    except FileNotFoundError:
        raise InputError(f"{folder} is no index; `mtl index FILE -o {folder}` makes one") from None
    except OSError as error:
        raise unread(folder / STATE, error) from None
    except (RecursionError, ValueError, OverflowError, KeyError, TypeError) as error:
        raise InputError(f"{folder / STATE} is damaged ({one_line(error)}); make the index anew") from None


def write_state(folder: Path, state: State) -> None:
    """Make a state the index's, in one step."""
    with atomic_write(folder / STATE, InputError) as partial:
        partial.write_text(json.dumps(dataclasses.asdict(state), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def clean(folder: Path, state: State) -> None:
    """Remove what the state does not name. For the holder of the lock, before it writes."""
    sweep(folder)
    kept = {name for name, _ in state.segments} | {state.deleted}
    for path in [*folder.glob("segment-*"), *folder.glob("deleted-*.npy")]:
        if path.name not in kept:
            remove(path)


def planes(vectors: Vectors) -> NDArray[np.uint64]:
    """A bit for each dimension, set where it is positive: (dim / 64 rounded up, rows), a word of each row a plane."""
    bits = convert(vectors, "ubinary")
    bits = np.pad(bits, [(0, 0), (0, -bits.shape[1] % 8)])
    return np.ascontiguousarray(bits.view(np.uint64).T)


@dataclasses.dataclass(frozen=True)
class Rows:
    """Consecutive rows as a segment's files have them: arrays by name, and the lines of rows.jsonl and ids.jsonl."""

    arrays: dict[str, NDArray[Any]]
    lines: Sequence[bytes]
    ids: Sequence[bytes]


def arrays_of(form: Form, dim: int, rows: int) -> dict[str, tuple[type, tuple[int, ...]]]:
    """What the .npy files of a segment hold: the number type and the shape."""
    vectors = (np.int8 if form == "int8" else np.float32, (rows, dim))
    bits = (np.uint64, (-(-dim // 64), rows))
    known = {"vectors": vectors, "scales": (np.float32, (rows,)), "bits": bits}
    return {"offsets": (np.int64, (rows + 1,))} | {name: known[name] for name in FILES[form]}


def some_of(name: str, array: NDArray[Any], where: slice | NDArray[np.int64]) -> NDArray[Any]:
    """Some rows of a segment's array."""
    return array[:, where] if name == "bits" else array[where]


def prepared(state: State, parts: Iterable[Part], ids: Iterable[Id]) -> Iterator[Rows]:
    """Rows to be written, of parts of fields and float32 vectors, with an id for each.

    Where the measure is the cosine, vectors are kept at length 1, so that no search has to make them so.
    """
    given = iter(ids)
    for fields, vectors in parts:
        if state.measure == "cosine":
            vectors = unit(as_tensor(vectors)).numpy()
        arrays = {"vectors": vectors}
        if state.form == "int8":
            arrays["vectors"], arrays["scales"] = scaled(vectors)
        if state.form == "binary":
            arrays["bits"] = planes(vectors)
        own = list(islice(given, len(vectors)))
        lines = [json_line({"id": name, "row": row}) for name, row in zip(own, fields, strict=True)]
        yield Rows(arrays, [line.encode(errors="backslashreplace") + b"\n" for line in lines],
                   [json.dumps(name).encode() for name in own])  # fmt: skip


def write_segment(path: Path, state: State, parts: Iterable[Rows], rows: int) -> None:
    """Write so many rows, one or more, as a segment.

    Raises:
        InputError: it cannot be written.
    """
    with atomic_write(path, InputError, folder=True) as partial:
        files = {
            name: np.lib.format.open_memmap(partial / f"{name}.npy", "w+", dtype, shape)
            for name, (dtype, shape) in arrays_of(state.form, state.dim, rows).items()
        }
        for name in files:
            reserve(partial / f"{name}.npy")
        offsets, start = files["offsets"], 0
        with (partial / "rows.jsonl").open("wb") as lines, (partial / "ids.jsonl").open("wb") as names:
            for part in parts:
                for name, array in part.arrays.items():
                    some_of(name, files[name], slice(start, start + len(part.lines)))[...] = array
                lines.writelines(part.lines)
                names.writelines(name + b"\n" for name in part.ids)
                end = start + len(part.lines)
                offsets[start + 1 : end + 1] = offsets[start] + np.cumsum([*map(len, part.lines)])
                start = end
        for file in files.values():
            file.flush()


def mapped(path: Path) -> NDArray[Any]:
    """The array of a .npy file, mapped into memory.

    Raises:
        InputError: it cannot be read.
    """
    try:
        # "c": nobody writes, but torch warns of an array that cannot be written to
        return np.lib.format.open_memmap(path, "c")
    except Exception as error:  # numpy has Python's tokenizer read a damaged header, which fails in many ways
        raise unread(path, error) from None


class Segment:
    """Consecutive rows; where they are many, files are mapped into memory, and read where they are looked at.

    Raises:
        InputError: they cannot be read, or are not what they should be.
    """

    def __init__(self, folder: Path, rows: int, state: State) -> None:
        self.folder, self.rows = folder, rows
        expected, kept = arrays_of(state.form, state.dim, rows), np.array if rows < FEW else np.asarray
        found = {name: kept(mapped(folder / f"{name}.npy")) for name in expected}
        try:
            self.lines = kept(np.memmap(folder / "rows.jsonl", np.uint8, "r"))
        except (OSError, ValueError) as error:
            raise unread(folder / "rows.jsonl", error) from None
        if any(found[name].dtype != kind or found[name].shape != shape for name, (kind, shape) in expected.items()):
            raise InputError(f"{folder} does not hold the {rows} rows that it should; make the index anew")
        self.offsets = found.pop("offsets")
        self.arrays = found
        if len(self.lines) != self.offsets[-1]:
            raise self.damaged("rows.jsonl")

    def damaged(self, name: str) -> InputError:
        return InputError(f"{self.folder / name} is damaged; make the index anew")

    def vectors(self, places: Places, out: Tensor | None = None) -> Vectors:
        """Float32 vectors of rising places, one or more; of an index in int8, what its integers stand for.

        ``out`` is where they are put if they do not lie as they are wanted: memory that is new costs more than they.
        """
        kept, first, last = self.arrays["vectors"], int(places[0]), int(places[-1])
        where = slice(first, last + 1) if last - first == len(places) - 1 else np.asarray(places)
        if "scales" not in self.arrays and isinstance(where, slice):
            return kept[where]
        made = torch.empty(len(places), kept.shape[1]) if out is None else out[: len(places)]
        if "scales" in self.arrays:
            scales = torch.from_numpy(self.arrays["scales"][where])
            return made.copy_(torch.from_numpy(kept[where])).mul_(scales[:, None]).numpy()
        return np.take(kept, np.asarray(places), axis=0, out=made.numpy(), mode="clip")  # "raise" copies

    def id_lines(self) -> Iterator[bytes]:
        """Each row's id, as JSON."""
        number = 0
        try:
            with (self.folder / "ids.jsonl").open("rb") as lines:
                for line in lines:
                    yield line.rstrip(b"\n")
                    number += 1
        except OSError as error:
            raise unread(self.folder / "ids.jsonl", error) from None
        if number != self.rows:
            raise self.damaged("ids.jsonl")

    def ids(self) -> list[Id]:
        try:
            return [json.loads(line) for line in self.id_lines()]
        except ValueError:
            raise self.damaged("ids.jsonl") from None

    def line(self, place: int) -> bytes:
        return self.lines[int(self.offsets[place]) : int(self.offsets[place + 1])].tobytes()

    def row(self, place: int) -> dict[str, Any]:
        """A row as {"id": ..., "row": its fields}."""
        try:
            found = dict(json.loads(self.line(place)))
            return {"id": found["id"], "row": dict(found["row"])}
        except (RecursionError, ValueError, KeyError, TypeError):
            raise self.damaged("rows.jsonl") from None

    def parts(self, places: NDArray[np.int64]) -> Iterator[Rows]:
        """Some of the rows, at rising places, as they are."""
        ids = compress(self.id_lines(), np.isin(np.arange(self.rows), places))
        for some in np.split(places, range(PART, len(places), PART)):
            arrays = {name: some_of(name, array, some) for name, array in self.arrays.items()}
            yield Rows(arrays, [*map(self.line, some.tolist())], [*islice(ids, len(some))])
        for _ in ids:  # what is behind them is counted, too
            pass


class View:
    """The rows of one state that are not deleted, in the order in which they were added."""

    def __init__(self, folder: Path, state: State) -> None:
        self.folder, self.state = folder, state
        self.segments = [Segment(folder / name, rows, state) for name, rows in state.segments if rows]
        self.starts = np.cumsum([0, *(segment.rows for segment in self.segments)])
        self.deleted: NDArray[np.int64] = np.empty(0, np.int64)
        if state.deleted:
            self.deleted = read_deleted(folder / state.deleted, int(self.starts[-1]))

    @cached_property
    def live(self) -> NDArray[np.int64]:
        """The places, counted over all segments, of what is not deleted."""
        kept = np.ones(self.starts[-1], bool)
        kept[self.deleted] = False
        return np.flatnonzero(kept)

    def __len__(self) -> int:
        return int(self.starts[-1]) - len(self.deleted)

    def blocks(self) -> Iterator[Tensor]:
        """All rows' float32 vectors, (rows of a block, dim) each, which are there until the next block is made."""
        made = torch.empty(MADE, self.state.dim)
        size = MADE if len(self.deleted) or self.state.form == "int8" else BLOCK
        for segment, first in zip(self.segments, self.starts, strict=False):
            places: Places = range(segment.rows)
            if len(self.deleted):
                low, high = np.searchsorted(self.live, [first, first + segment.rows])
                places = self.live[low:high] - first
            for start in range(0, len(places), size):
                yield torch.from_numpy(segment.vectors(places[start : start + size], made))

    def at(self, places: NDArray[np.int64]) -> Vectors:
        """The vectors of rising places, counted over all segments."""
        bounds = np.searchsorted(places, self.starts)
        parts = [
            segment.vectors(places[low:high] - first)
            for segment, first, low, high in zip(self.segments, self.starts, bounds, bounds[1:], strict=False)
            if low < high
        ]
        return np.concatenate(parts) if parts else np.empty((0, self.state.dim), np.float32)

    def row(self, place: int) -> dict[str, Any]:
        """The row of a place, counted over all segments."""
        segment = int(np.searchsorted(self.starts, place, side="right")) - 1
        return self.segments[segment].row(place - int(self.starts[segment]))

    def places_by_id(self) -> dict[str, int]:
        """Where each id is that is not deleted. Two ids are equal where they read the same."""
        ids = [str(name) for segment in self.segments for name in segment.ids()]
        return {ids[place]: place for place in self.live.tolist()}

    def differing_bits(self, query: NDArray[np.uint64]) -> NDArray[np.uint16]:
        """In how many bits each place, deleted ones too, differs from a query (words,)."""
        found = np.empty(self.starts[-1], np.uint16)
        for segment, first in zip(self.segments, self.starts, strict=False):
            for start in range(0, segment.rows, ROWS):
                words = segment.arrays["bits"][:, start : start + ROWS]
                counts = found[first + start : first + start + words.shape[1]]
                counts[:] = 0
                for word, plane in zip(query, words, strict=True):
                    counts += np.bitwise_count(plane ^ word)
        return found

    def candidates(self, query: NDArray[np.uint64], count: int) -> NDArray[np.int64]:
        """The rising places of the ``count`` nearest by bits; of equally near ones the first."""
        bits = self.differing_bits(query)
        most = self.state.dim + 1
        bits[self.deleted] = most
        upto = np.cumsum(np.bincount(bits, minlength=most + 1)[:most])
        count = min(count, len(self))
        border = int(np.searchsorted(upto, count))
        nearer = np.flatnonzero(bits < border)
        return np.sort(np.concatenate([nearer, np.flatnonzero(bits == border)[: count - len(nearer)]]))


def read_deleted(path: Path, rows: int) -> NDArray[np.int64]:
    """The rising places of the rows, of so many, that are deleted.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    found = np.array(mapped(path))
    rising = found.ndim == 1 and found.dtype == np.int64 and bool((np.diff(found, prepend=-1, append=rows) > 0).all())
    if not rising:
        raise InputError(f"{path} is damaged; make the index anew")
    return found


def together(sizes: Sequence[int]) -> list[list[int]]:
    """Which of consecutive segments are to be one, by number: no group has less than twice the rows of that behind it.

    Those without rows are in none.
    """
    groups: list[list[int]] = []
    totals: list[int] = []
    for number, size in enumerate(sizes):
        if size:
            groups.append([number])
            totals.append(size)
        while len(totals) > 1 and totals[-2] < 2 * totals[-1]:
            last, total = groups.pop(), totals.pop()
            groups[-1] += last
            totals[-1] += total
    return groups


def change(view: View, removed: Iterable[int] = (), more: Iterable[Rows] = (), count: int = 0, **fields: Any) -> None:
    """Make the index's a state without the rows at some places of a view, and with ``count`` more rows at its end.

    ``fields`` are those of the state that are changed, too. A segment of which less than half is left is written anew.
    """
    folder, state, number = view.folder, view.state, view.state.number + 1
    gone = np.union1d(view.deleted, np.fromiter(removed, np.int64))
    parts: list[Iterable[Rows]] = []
    kept: list[NDArray[np.int64]] = []
    for segment, start in zip(view.segments, view.starts, strict=False):
        own = gone[np.searchsorted(gone, start) : np.searchsorted(gone, start + segment.rows)] - start
        kept.append(np.delete(np.arange(segment.rows), own))
        parts.append(segment.parts(kept[-1]))
    segments: list[tuple[str, int]] = []
    deleted, start = [np.empty(0, np.int64)], 0
    sizes = [*map(len, kept), count]
    for group in together(sizes) if count else [[i] for i, size in enumerate(sizes) if size]:
        first, rows = group[0], sum(sizes[i] for i in group)
        if len(group) == 1 and first < len(kept) and 2 * rows >= (old := view.segments[first]).rows:
            segments.append((old.folder.name, old.rows))
            deleted.append(start + np.delete(np.arange(old.rows), kept[first]))
        else:
            segments.append((f"segment-{number:08d}-{len(segments)}", rows))
            every = chain.from_iterable([*parts, more][i] for i in group)
            write_segment(folder / segments[-1][0], state, every, rows)
        start += segments[-1][1]
    places = np.concatenate(deleted)
    name = f"deleted-{number:08d}.npy" if len(places) else None
    if name:
        with atomic_write(folder / name, InputError) as partial, partial.open("wb") as file:
            np.save(file, places)
    write_state(folder, dataclasses.replace(state, segments=tuple(segments), deleted=name, number=number, **fields))


def check_id(name: Any, where: str, seen: set[str], known: Mapping[str, int]) -> None:
    """Note an id, which no other row has.

    Raises:
        InputError: it is no string or whole number, or another row's.
    """
    if isinstance(name, bool) or not isinstance(name, (str, numbers.Integral)):
        raise InputError(f"{where}: the id is {shown(name)}; expected a string or a whole number")
    if str(name) in seen:
        raise InputError(f"{where}: another row has the id {shown(name)} too; expected each id once")
    if str(name) in known:
        raise InputError(f"{where}: the id {shown(name)} is in the index; --replace has the new row in its place")
    seen.add(str(name))
