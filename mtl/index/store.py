"""The files of an index, of which a reader sees one state or the next, and never a part of one.

    index.json            the state: settings, segments, which file lists what is deleted; replaced in one step
    segment-00000001/     rows that were added together: vectors.npy, rows.jsonl, offsets.npy, ids.jsonl
    deleted-00000002.npy  the places of deleted rows, counted over all segments

What index.json does not name is of an older state, or of a write that did not end; the next writer removes it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from mtl.disk import atomic_write, remove, sweep
from mtl.errors import InputError, one_line, shown
from mtl.rows.vector_files import Part, Vectors, convert, json_line, scaled
from mtl.search import unit

Form = Literal["fp32", "int8", "binary"]
Id = str | int

STATE = "index.json"
FILES = {  # the .npy files of a segment
    "fp32": ("vectors",),
    "int8": ("vectors", "scales"),
    "binary": ("vectors", "bits"),
}
ROWS = 65536  # whose bits are compared at once, so that they stay in the processor's cache


@dataclasses.dataclass(frozen=True)
class State:
    """What index.json says. ``last`` is the digest of the input that was added last, ``number`` grows with each state.

    ``added`` counts all rows that there ever were, by which rows without an id of their own are numbered.
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


def read_state(folder: Path) -> State:
    """The state of an index.

    Raises:
        InputError: there is none, or it is damaged.
    """
    try:
        fields = json.loads((folder / STATE).read_text(encoding="utf-8"))
        fields["segments"] = tuple((str(name), int(rows)) for name, rows in fields["segments"])
        state = State(**fields)
        names = [name for name, _ in state.segments] + ([state.deleted] if state.deleted else [])
        if state.form not in FILES or not isinstance(state.settings, dict) or any(Path(n).name != n for n in names):
            raise ValueError("a field has a value that it cannot have")
        return state
    except FileNotFoundError:
        raise InputError(f"{folder} is no index; `mtl index FILE -o {folder}` makes one") from None
    except (OSError, RecursionError, ValueError, KeyError, TypeError) as error:
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


def write_segment(path: Path, state: State, parts: Iterable[tuple[Sequence[Id], Part]], rows: int) -> None:
    """Write so many rows as a segment: ids, fields and float32 vectors come in parts.

    Where the measure is the cosine, vectors are kept at length 1, so that no search has to make them so.

    Raises:
        InputError: it cannot be written.
    """
    shapes: dict[str, tuple[type, tuple[int, ...]]] = {
        "vectors": (np.int8 if state.form == "int8" else np.float32, (rows, state.dim)),
        "scales": (np.float32, (rows,)),
        "bits": (np.uint64, (-(-state.dim // 64), rows)),
    }
    with atomic_write(path, InputError, folder=True) as partial:
        files = {
            name: np.lib.format.open_memmap(partial / f"{name}.npy", "w+", shapes[name][0], shapes[name][1])
            for name in (FILES[state.form] if rows else ())
        }
        offsets, start = [0], 0
        with (partial / "rows.jsonl").open("wb") as lines, (partial / "ids.jsonl").open("wb") as names:
            for ids, (fields, vectors) in parts if rows else ():
                stop = start + len(vectors)
                if state.measure == "cosine":
                    vectors = unit(torch.from_numpy(vectors.copy())).numpy()
                if state.form == "int8":
                    files["vectors"][start:stop], files["scales"][start:stop] = scaled(vectors)
                else:
                    files["vectors"][start:stop] = vectors
                if state.form == "binary":
                    files["bits"][:, start:stop] = planes(vectors)
                for name, row in zip(ids, fields, strict=True):
                    line = json_line({"id": name, "row": row}).encode(errors="backslashreplace") + b"\n"
                    lines.write(line)
                    names.write(json.dumps(name).encode() + b"\n")
                    offsets.append(offsets[-1] + len(line))
                start = stop
        for file in files.values():
            file.flush()
        np.save(partial / "offsets.npy", np.array(offsets))


class Segment:
    """Rows that were added together; their files are mapped into memory, and read where they are looked at."""

    def __init__(self, folder: Path, rows: int, form: Form) -> None:
        self.folder, self.rows = folder, rows
        try:
            self.offsets = np.load(folder / "offsets.npy", mmap_mode="r")
            # "c": nobody writes, but torch warns of an array that cannot be written to
            self.arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="c") for name in FILES[form]}
        except (OSError, ValueError) as error:
            raise InputError(f"{folder} cannot be read: {one_line(error)}; make the index anew") from None
        lengths = {name: array.shape[1 if name == "bits" else 0] for name, array in self.arrays.items()}
        if len(self.offsets) != rows + 1 or any(length != rows for length in lengths.values()):
            raise InputError(f"{folder} does not hold the {rows} rows that it should; make the index anew")

    def vectors(self, where: slice | NDArray[np.int64]) -> Vectors:
        """Float32 vectors of some rows; of an index in int8, what its integers stand for."""
        found = self.arrays["vectors"][where]
        if "scales" in self.arrays:
            scales = torch.from_numpy(self.arrays["scales"][where])
            return torch.from_numpy(found).float().mul_(scales[:, None]).numpy()
        return found

    def ids(self) -> list[Id]:
        return [json.loads(line) for line in (self.folder / "ids.jsonl").read_bytes().splitlines()]

    def row(self, place: int) -> dict[str, Any]:
        """A row as {"id": ..., "row": its fields}."""
        with (self.folder / "rows.jsonl").open("rb") as file:
            file.seek(int(self.offsets[place]))
            return dict(json.loads(file.read(int(self.offsets[place + 1] - self.offsets[place]))))


class View:
    """The rows of one state that are not deleted, in the order in which they were added.

    Its slices are float32 vectors, so that ``mtl.search.search`` takes it for a matrix (rows, dim).
    """

    ndim = 2

    def __init__(self, folder: Path, state: State) -> None:
        self.state = state
        self.segments = [Segment(folder / name, rows, state.form) for name, rows in state.segments if rows]
        self.starts = np.cumsum([0, *(segment.rows for segment in self.segments)])
        self.deleted: NDArray[np.int64] = np.empty(0, np.int64)
        if state.deleted:
            try:
                self.deleted = np.load(folder / state.deleted)
            except (OSError, ValueError) as error:
                raise InputError(f"{folder / state.deleted} cannot be read: {one_line(error)}") from None

    @cached_property
    def live(self) -> NDArray[np.int64]:
        """The places, counted over all segments, of what is not deleted."""
        kept = np.ones(self.starts[-1], bool)
        kept[self.deleted] = False
        return np.flatnonzero(kept)

    def __len__(self) -> int:
        return int(self.starts[-1]) - len(self.deleted)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), self.state.dim

    def __getitem__(self, where: slice) -> Vectors:
        start, stop, _ = where.indices(len(self))
        if not len(self.deleted):
            return self.between(start, stop)
        return self.at(self.live[start:stop])

    def between(self, start: int, stop: int) -> Vectors:
        """The vectors of places that follow each other."""
        parts = [
            segment.vectors(slice(max(0, start - first), max(0, stop - first)))
            for segment, first in zip(self.segments, self.starts, strict=False)
            if first < stop and start < first + segment.rows
        ]
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.empty((0, self.state.dim), np.float32)

    def at(self, places: NDArray[np.int64]) -> Vectors:
        """The vectors of rising places."""
        if len(places) and places[-1] - places[0] == len(places) - 1:
            return self.between(int(places[0]), int(places[-1]) + 1)
        bounds = np.searchsorted(places, self.starts)
        parts = [
            segment.vectors(places[low:high] - first)
            for segment, first, low, high in zip(self.segments, self.starts, bounds, bounds[1:], strict=False)
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


def delete(folder: Path, state: State, places: Iterable[int], **changed: Any) -> None:
    """Make the index's a state without these places, in which other fields are changed too."""
    view, number = View(folder, state), state.number + 1
    deleted = np.union1d(view.deleted, np.fromiter(places, np.int64))
    name = f"deleted-{number:08d}.npy" if len(deleted) else None
    if name:
        with atomic_write(folder / name, InputError) as partial, partial.open("wb") as file:
            np.save(file, deleted)
    write_state(folder, dataclasses.replace(state, deleted=name, number=number, **changed))


def check_id(name: Any, where: str, seen: set[str], known: Mapping[str, int]) -> None:
    """Note an id, which no other row has.

    Raises:
        InputError: it is no string or whole number, or another row's.
    """
    if isinstance(name, bool) or not isinstance(name, (str, int)):
        raise InputError(f"{where}: the id is {shown(name)}; expected a string or a whole number")
    if str(name) in seen:
        raise InputError(f"{where}: another row has the id {shown(name)} too; expected each id once")
    if str(name) in known:
        raise InputError(f"{where}: the id {shown(name)} is in the index; --replace has the new row in its place")
    seen.add(str(name))
