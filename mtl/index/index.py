"""Index: rows of texts with their vectors in a folder, searched by texts or vectors, appended to, deleted from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from itertools import count, islice
from operator import itemgetter
from pathlib import Path
from secrets import token_hex
from typing import Any, Self, cast, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mtl import search
from mtl.checkpoints.fetch import lasting_name
from mtl.disk import lock, writing
from mtl.encode.precision import number_format
from mtl.encode.sentence_encoder import DOCUMENT, SentenceEncoder
from mtl.encode.tokenizer import several
from mtl.errors import InputError, WeightsError, check_counts, differences, shown
from mtl.index.store import (
    STATE,
    Form,
    Id,
    State,
    View,
    change,
    check_id,
    clean,
    planes,
    prepared,
    read_state,
    write_state,
)
from mtl.kernels.int8 import LEAST_COSINE
from mtl.rows.outputs import Output, open_output
from mtl.rows.read import TextRow
from mtl.search import Similarity, Vectors, as_matrix, unit

ADDING = "adding.jsonl"  # what an addition under way is called: adding.jsonl.partial and so on
WINDOW = 2048  # texts that are embedded, and kept, at once
CANDIDATES, PER_RESULT = 256, 32  # rows whose vectors are compared, of an index in bits: so many, and so many a result
SAME = (
    "encoder",
    "tokenizer",
    "pooling",
    "precision",
    "int8_least_cosine",
    "prompt",
    "max_length",
)  # what makes equal vectors of equal texts


@dataclasses.dataclass(frozen=True)
class Hit:
    """A row that was found: how similar it is, its id, and its fields."""

    score: float
    id: Id
    row: dict[str, Any]


class Index:
    """Rows with an id, a text and its vector, in a folder; what was added, replaced or deleted is so in one step.

    ``form`` is how vectors are kept: "fp32"; "int8", a quarter of that, each with a scale; or "binary", whose bits find
    candidates that are then compared by their float32 vectors, which stay on the disk. Searches in fp32 are exact;
    those of the other forms are so over what they keep, or over the candidates.

    An object sees the state in which the index was when it was opened, whatever others write; ``refresh`` sees the
    newest.
    """

    def __init__(self, folder: Path, model: SentenceEncoder | None = None) -> None:
        self.folder, self._model = folder, model
        self.checked: dict[str, Any] = {}  # the settings with which the model was found to go
        self.refresh()

    @classmethod
    def open(cls, folder: str | Path, model: SentenceEncoder | None = None) -> Self:
        """An index that is there. ``model`` is by default the one that it was made with, loaded when it is needed.

        Raises:
            InputError: there is none, it is damaged, or the model is another one.
        """
        return cls(Path(folder), model)

    @classmethod
    def create(
        cls,
        folder: str | Path,
        model: SentenceEncoder | str,
        form: Form = "fp32",
        *,
        field: str = "text",
        id_field: str | None = None,
        model_name: str | None = None,
    ) -> Self:
        """A new index without rows. ``model`` makes the vectors; of one that comes as an object, ``model_name`` is the
        name by which ``open`` finds it, or else ``open`` has to be given it. Rows have their text in ``field``, and
        their id in ``id_field``; without that they are numbered from 0.

        Raises:
            InputError: there is something in the folder, but an index that never had a row; or an unknown form.
        """
        folder = Path(folder)
        if form not in get_args(Form):
            raise InputError(f"form is {shown(form)}; expected one of {', '.join(get_args(Form))}")
        if not isinstance(field, str) or not isinstance(id_field, str | None):
            raise InputError(f"the fields are {shown(field)} and {shown(id_field)}; expected the names of fields")
        encoder = SentenceEncoder.from_pretrained(model) if isinstance(model, str) else model
        with writing(folder, InputError):
            folder.mkdir(parents=True, exist_ok=True)
        with lock(folder, InputError):
            if any(path.name != ".lock" for path in folder.iterdir()) and not is_blank(folder):
                raise InputError(f"{folder} exists and is not empty; append to an index, or choose another name")
            name = model if isinstance(model, str) else model_name
            settings = {
                "model": name and lasting_name(name),
                "field": field,
                "id_field": id_field,
                **made_with(encoder),
            }
            write_state(folder, State(form, encoder.dim, encoder.similarity_fn_name, settings, made=token_hex(8)))
        index = cls(folder)
        index._model, index.checked = encoder, index.state.settings
        return index

    def refresh(self) -> None:
        """See the newest state.

        Raises:
            InputError: it is damaged, or another index is in its place, which was made with another model.
        """
        while True:
            state = read_state(self.folder)
            try:
                view = View(self.folder, state)
                break
            except InputError:  # two states have followed each other in between, or something is damaged
                if read_state(self.folder) == state:
                    raise
        if self._model is not None and self.checked != state.settings:
            self.check_model(self._model, state.settings)
        self.state, self.view = state, view

    def current(self) -> Index:
        """The index in its newest state: this object, or where another has changed it, a new one."""
        if read_state(self.folder) == self.state:
            return self
        newest = copy(self)
        newest.refresh()
        return newest

    def __len__(self) -> int:
        return len(self.view)

    def __bool__(self) -> bool:
        return True  # without rows, too

    @property
    def model(self) -> SentenceEncoder:
        """The model that made the vectors.

        Raises:
            InputError, WeightsError: it is not known, not there, or no longer the same.
        """
        if self._model is None:
            name = self.state.settings["model"]
            if name is None:
                raise InputError(f"{self.folder} was made with a model that has no name; open it with model=...")
            try:
                loaded = self.load(name)
            except WeightsError as error:
                raise WeightsError(f"{error}; {self.folder} was made with it: open it with model=..., or -m") from None
            self.check_model(loaded)
            self._model = loaded
        return self._model

    def load(self, name: str) -> SentenceEncoder:
        """A model that computes as the one that made the vectors."""
        settings = self.state.settings
        least = settings.get("int8_least_cosine", LEAST_COSINE)
        return SentenceEncoder.from_pretrained(name, precision=settings["precision"], int8_least_cosine=least)

    def check_model(self, model: SentenceEncoder, settings: dict[str, Any] | None = None) -> None:
        """Raise an InputError that says what differs, if a model's vectors do not go with those of the index, or of one
        with other settings."""
        settings = settings or self.state.settings
        before = {key: settings.get(key) for key in SAME}
        before |= number_format(settings.get("precision", "fp32"), settings.get("int8_least_cosine", LEAST_COSINE))
        if different := differences(before, made_with(model)):
            raise InputError(f"{self.folder} was made with another model: {'; '.join(different)}")
        self.checked = settings

    def rows(self, rows: Iterable[str | Mapping[str, Any]], replace: bool) -> Iterator[TextRow]:
        """Each row's text, and its fields; a string is a row whose text it is."""
        field, id_field = self.state.settings["field"], self.state.settings["id_field"]
        known = self.view.places_by_id() if id_field and not replace else {}
        seen: set[str] = set()
        for number, row in enumerate(rows, 1):
            if not isinstance(row, (str, Mapping)):
                raise InputError(f"row {number} is {shown(row)}; expected a text, or fields by name")
            fields = {field: row} if isinstance(row, str) else dict(row)
            if not all(isinstance(name, str) for name in fields):
                raise InputError(f"row {number} has the fields {shown([*fields])}; expected strings as their names")
            if not isinstance(fields.get(field), str):
                raise InputError(f"row {number} has no text in the field {field!r}; expected a string there")
            if id_field:
                check_id(fields.get(id_field), f"row {number}, field {id_field!r}", seen, known)
            yield fields[field], fields

    def add(
        self, rows: Iterable[str | Mapping[str, Any]], *, replace: bool = False, resume: bool = False,
        overwrite: bool = False, threads: int | None = None,
    ) -> int:  # fmt: skip
        """Add rows, which are there when all of them are; gives their number. They need not fit in memory.

        Of an addition that was interrupted, vectors are kept: ``resume`` goes on with the same rows, ``overwrite``
        begins anew. With ``replace``, rows whose id is there already take the place of the older ones.

        Raises:
            InputError: a row has no text or no id, or an id that another has, or rows without ids are to be replaced;
                the index is as it was.
        """
        target, settings = self.folder / ADDING, self.state.settings
        if replace and not settings["id_field"]:
            raise InputError(f"the rows of {self.folder} have numbers for ids; expected an index with an id_field, "
                             "whose rows can be replaced")  # fmt: skip
        rows = several(rows)
        with (
            self.changing(),
            open_output(target, self.state.dim, "float32", settings, resume, overwrite, taken=None) as output,
        ):
            model, before = self.model, output.expected
            remaining = output.remaining(self.rows(rows, replace or (bool(before) and before == self.state.last)))
            if before and before == self.state.last:  # it was killed between its last step and this one
                if more := next(remaining, None):
                    raise InputError(f"{self.folder} has these rows, but not {shown(more[0])}; add that alone")
                output.discard()
                return 0
            options = model.prompted(DOCUMENT, {"threads": threads})
            for part in model.encode_rows(remaining, itemgetter(0), window=WINDOW, **options):
                output.write(*part)
            self.take(output)
            output.discard()
            return output.rows

    def take(self, output: Output) -> None:
        """Make an output's rows the index's, in the place of those with the same ids."""
        state, parts, field = self.state, output.parts("float32"), self.state.settings["id_field"]
        given = (fields[field] for rows, _ in parts for fields in rows) if field else count(state.added)
        ids: list[Id] = list(islice(given, output.rows))
        known = self.view.places_by_id() if field else {}
        change(
            self.view, [known[str(one)] for one in ids if str(one) in known], prepared(state, parts, ids),
            output.rows, added=state.added + output.rows, last=output.digest.hexdigest(),
        )  # fmt: skip

    def delete(self, ids: Iterable[Id]) -> int:
        """Delete the rows with these ids, all or none; gives their number.

        Raises:
            InputError: one is not there.
        """
        if isinstance(ids, (str, bytes)) or not isinstance(ids, Iterable):
            raise InputError(f"ids is {shown(ids)}; expected several, as in [{shown(ids)}]")
        with self.changing():
            known, wanted = self.view.places_by_id(), {str(name) for name in ids}
            if missing := sorted(wanted - known.keys()):
                raise InputError(f"no row has the id {shown(missing[0])}; nothing was deleted")
            change(self.view, [known[name] for name in wanted])
            return len(wanted)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Within it, nobody else writes; it begins and ends with the newest state."""
        with lock(self.folder, InputError):
            self.refresh()
            clean(self.folder, self.state)
            yield
            self.refresh()
            clean(self.folder, self.state)  # who opens the state before this one begins again where a file is gone

    def search(self, queries: str | Iterable[str] | Vectors, k: int = 10) -> Any:
        """The k rows that are the most similar to a query, best first, of equal ones the first: a list of ``Hit``.

        Of several queries, a list of such lists. Queries are texts, or vectors (queries, dim) or (dim,).
        """
        single = isinstance(queries, str) or (search.are_vectors(queries) and queries.ndim == 1)
        vectors = queries if search.are_vectors(queries) else self.model.encode_query(queries)
        scores, places = self.nearest(vectors, k)
        found = [
            [Hit(float(score), *self.fields(place)) for score, place in zip(*each, strict=True)]
            for each in zip(scores, places, strict=True)
        ]
        return found[0] if single else found

    def fields(self, place: int) -> tuple[Id, dict[str, Any]]:
        row = self.view.row(int(place))
        return row["id"], row["row"]

    def nearest(self, queries: Vectors, k: int) -> tuple[Any, Any]:
        """The scores and places, counted over all segments, of what is nearest to each of queries (queries, dim)."""
        check_counts(False, k=k)
        wanted, measure = as_matrix(queries, "queries").detach().cpu(), cast(Similarity, self.state.measure)
        search.check_measure(measure, (wanted.shape[1], self.state.dim))
        search.check_finite(wanted, "queries")
        longest = None
        if measure == "cosine":  # the vectors are at length 1 already, to rounding or to that of int8
            wanted, measure, longest = unit(wanted), "dot", 2.0
        if self.state.form == "binary":
            return self.rescored(wanted, k, measure, longest)
        found, at = search.nearest(wanted, self.view.blocks(), k, measure, longest)
        places = at.numpy()
        return found.numpy(), self.view.live[places] if len(self.view.deleted) else places

    def similarities(self, queries: Tensor) -> NDArray[np.float32]:
        """What ``nearest`` compares of queries (queries, dim), of all rows: (queries, rows)."""
        found = np.empty((len(queries), len(self)), np.float32)
        start = 0
        for part in self.view.blocks():
            found[:, start : start + len(part)] = self.alike(queries, part).numpy()
            start += len(part)
        return found

    def alike(self, queries: Tensor, vectors: Tensor) -> Tensor:
        """As ``similarities``, of queries and some vectors (vectors, dim) as they are kept."""
        measure = cast(Similarity, self.state.measure)
        wanted = unit(queries) if measure == "cosine" else queries
        if measure in ("cosine", "dot"):
            return search.products(wanted, vectors)
        return search.scores(wanted, vectors, measure)

    def rescored(self, queries: Any, k: int, measure: Similarity, longest: float | None) -> tuple[list[Any], list[Any]]:
        """As ``nearest``, among candidates by bits."""
        scores, places = [], []
        for query, bits in zip(queries, planes(queries.numpy()).T, strict=True):
            candidates = self.view.candidates(bits, max(CANDIDATES, PER_RESULT * k))
            found, order = search.search(query, self.view.at(candidates), k, measure, longest)
            scores.append(found[0])
            places.append(candidates[order[0]])
        return scores, places


def made_with(model: SentenceEncoder) -> dict[str, Any]:
    """What a text's vector depends on."""
    return {
        **number_format(model.precision, model.int8_least_cosine),
        "prompt": model.prompted(DOCUMENT, {})["prompt"],
        "max_length": model.max_seq_length,
        **model.fingerprint,
    }


def is_index(folder: Path) -> bool:
    return (folder / STATE).is_file()


def is_blank(folder: Path) -> bool:
    """Whether an index never had a row, nor has a part of an addition: what a first one leaves that was refused."""
    only = {path.name for path in folder.iterdir()} <= {STATE, ".lock"}
    return only and is_index(folder) and read_state(folder).number == 0
