"""Hard negatives: texts of a corpus that are near to a query and do not answer it, beside each pair of the two that do.

What is under way is in a folder beside the output, NAME.mining: an index of the corpus, the vectors of the pairs, and
the rows found so far, in blocks. So a run that was killed goes on, and ends with the same bytes.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mtl.disk import atomic_write, beside, lock, remove, writing
from mtl.display import counted
from mtl.encode.sentence_encoder import DOCUMENT, QUERY, SentenceEncoder
from mtl.errors import InputError, check_counts
from mtl.index.index import WINDOW, Index, is_index, made_with
from mtl.index.mining_files import (
    NEGATIVE,
    SETTINGS,
    Corpus,
    Pairs,
    check_made,
    check_under_way,
    finish,
    write_block,
)
from mtl.rows.outputs import open_output
from mtl.search import as_tensor, unit

BLOCK = 1024  # pairs whose negatives are found, and kept, at once
DEEP = 4096  # nearest texts of a query, beyond which all are ranked: merged block by block, more take longer than that
HELD = 2**26  # similarities of queries to all texts that are held at once
GUIDED = 256  # texts that the guide is asked about at once


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides which negatives are found.

    negatives: How many of each pair, at most.
    skip_top: How many of the nearest are left out, which most often do answer the query.
    margin: By how much less similar to the query than the pair's own text one has to be, by the model's measure; None:
        it may be more similar.
    """

    negatives: int = 5
    skip_top: int = 0
    margin: float | None = None

    def __post_init__(self) -> None:
        check_counts(False, negatives=self.negatives)
        if self.skip_top < 0:
            raise InputError(f"skip_top is {self.skip_top}; expected 0 or more")
        if self.margin is not None and not 0 <= self.margin < math.inf:
            raise InputError(f"margin is {self.margin}; expected 0 or more")


@dataclasses.dataclass(frozen=True)
class Mined:
    """What came of it. ``counts`` has, by name, what was left out and why."""

    path: Path
    counts: Mapping[str, int]
    before: bool = False  # the output was there already

    def __str__(self) -> str:
        found = self.counts
        said = "nothing is left to do for" if self.before else "wrote"
        rows, pairs = counted(found.get("rows", 0), "row"), counted(found.get("pairs", 0), "pair")
        lines = [f"{said} {self.path}: {rows} of {pairs}"]
        for name, noun, what in (
            ("few", "pair", "have fewer negatives than were asked for"),
            ("none", "pair", "have none, and no row"),
            ("own", "candidate", "are a query's own texts, or equal to them"),
            ("margin", "candidate", "are within the margin"),
            ("guide", "candidate", "are false negatives to the guide"),
            ("twice", "text", "of the corpus are equal to an earlier one"),
            ("blank", "text", "of the corpus are empty"),
        ):
            if count := found.get(name):
                of_one = what.replace("have ", "has ").replace("are ", "is ")
                lines.append(f"{counted(count, noun)} {of_one if count == 1 else what}")
        return "\n".join(lines)


class Side:
    """What one model says of the pairs and of the corpus, kept in files of a folder, where it goes on."""

    def __init__(
        self, folder: Path, encoder: SentenceEncoder, pairs: Pairs, corpus: Corpus, threads: int | None
    ) -> None:
        with writing(folder, InputError):
            folder.mkdir(parents=True, exist_ok=True)
        where = folder / "corpus"
        self.index = Index.open(where, encoder) if is_index(where) else Index.create(where, encoder)
        if not len(self.index):
            self.index.add(corpus, resume=True, threads=threads)
        texts = {"queries": list(dict.fromkeys(pairs.queries)), "positives": list(dict.fromkeys(pairs.positives))}
        self.places = {name: {text: i for i, text in enumerate(each)} for name, each in texts.items()}
        self.vectors = {
            name: embedded(folder / f"{name}.npy", encoder, texts[name], prompt, threads)
            for name, prompt in (("queries", QUERY), ("positives", DOCUMENT))
        }

    def of(self, name: str, texts: Sequence[str]) -> Tensor:
        """The vectors of some of the queries, or of the positives: (texts, dim)."""
        return as_tensor(self.vectors[name][[self.places[name][text] for text in texts]])

    def of_corpus(self, places: Sequence[int]) -> Tensor:
        """The vectors of some texts of the corpus, in the order given."""
        order = sorted({*places})
        found = as_tensor(self.index.view.at(np.array(order)))
        row = {place: i for i, place in enumerate(order)}
        return found[[row[place] for place in places]]

    def own(self, queries: Sequence[str], positives: Sequence[str]) -> list[float]:
        """The similarity of each query to its own positive, to the bit as if the index had it."""
        found = self.of("positives", positives)
        kept = unit(found) if self.index.state.measure == "cosine" else found
        pairs = zip(self.of("queries", queries), kept, strict=True)
        return [float(self.index.alike(query[None], positive[None])) for query, positive in pairs]


def embedded(path: Path, encoder: SentenceEncoder, texts: Sequence[str], names: Sequence[str], threads: Any) -> Any:
    """The vectors of texts, behind the first of the prompts that the model has, in a file that is gone on with."""
    options = encoder.prompted(names, {"threads": threads})
    made = made_with(encoder) | {"prompt": options["prompt"]}
    with open_output(path, encoder.dim, "float32", made, resume=True) as output:
        rows = output.remaining((text, {"text": text}) for text in texts)
        for part in encoder.encode_rows(rows, itemgetter(0), window=WINDOW, **options):
            output.write(*part)
        output.finish()
    return np.load(path, mmap_mode="r", allow_pickle=False)


def mine(
    pairs: Path,
    corpus: Path,
    output: Path,
    model: SentenceEncoder,
    *,
    guide: SentenceEncoder | None = None,
    negatives: int = 5,
    skip_top: int = 0,
    margin: float | None = None,
    fields: Sequence[str] = (),
    field: str = "text",
    resume: bool = False,
    overwrite: bool = False,
    threads: int | None = None,
) -> Mined:
    """Find hard negatives of pairs in a corpus by exact search, and write a row for each: the pair's, and ``negative``.

    A contrastive task, or one of kind "relevance" with pairs, trains on the output as it lies, with text_field = the
    pair's two fields and "negative". A row also has ``positive_score`` and ``negative_score``.

    Args:
        pairs: A file whose rows have two fields, a query and what answers it, or ``fields`` among others.
        corpus: A file of texts in ``field``. Of those that differ in case, blanks and forms of Unicode alone, the first
            is taken.
        output: A .jsonl file.
        model: By whose vectors and measure texts are near; queries and texts are behind the prompts that it has.
        guide: A better model, say a larger one: what is as near to the query as the positive by its vectors is false.
        negatives, skip_top, margin: See ``Settings``. A query's own positives, in all pairs, and what equals them or
            the query are never taken, and count for nothing.
        resume: Go on with what there is of the output: nothing, a part, or all of it.
        overwrite: Throw away what there is.

    Raises:
        InputError: a file cannot be read, a row is wrong, or there is something that may be neither thrown away nor
            continued.
    """
    settings = Settings(negatives, skip_top, margin)
    if output.is_dir():
        raise InputError(f"{output} is a folder; expected the name of a file")
    if output.suffix != ".jsonl":
        raise InputError(f"{output} ends in {output.suffix!r}; expected .jsonl")
    read, among = Pairs.read(pairs, fields), Corpus(corpus, field)
    about = {
        "pairs": read.digest, "corpus": among.digest, **dataclasses.asdict(settings), "model": made_with(model),
        "guide": made_with(guide) if guide else None,
    }  # fmt: skip
    under_way, made = beside(output, ".mining"), beside(output, ".made.json")
    with lock(output, InputError):
        if overwrite:
            remove(under_way)
        elif output.exists() and (made.exists() or not (under_way / SETTINGS).exists()):
            counts = check_made(made, output, about, resume)
            remove(under_way)
            return Mined(output, counts, before=True)
        remove(made)  # it is of another output, or of none; a run that is killed before it writes its own goes on
        check_under_way(under_way, about, resume)
        counts = Counter(twice=among.twice, blank=among.blank)
        sides = [Side(under_way / name, encoder, read, among, threads)
                 for name, encoder in (("model", model), ("guide", guide)) if encoder]  # fmt: skip
        blocks = []
        for start in range(0, len(read.rows), BLOCK):
            block = under_way / f"block-{start // BLOCK:06d}.jsonl"
            if not block.exists():
                rows = range(start, min(start + BLOCK, len(read.rows)))
                write_block(block, *Search(read, among, sides, settings).negatives(rows))
            blocks.append(block)
        counts += finish(output, blocks)
        with atomic_write(made, InputError) as partial:
            partial.write_text(json.dumps({"settings": about, "counts": counts}, indent=1) + "\n", encoding="utf-8")
        del sides
        remove(under_way)
    return Mined(output, counts)


@dataclasses.dataclass(frozen=True)
class Ranked:
    """The texts of the corpus that are nearest to a query, by falling similarity: the places and similarities of those
    that it may be given, and the similarities of its own."""

    places: NDArray[np.int64]
    scores: NDArray[np.float64]
    own: NDArray[np.float64]


class Search:
    """The negatives of pairs: by the first of the ``sides``, checked by the second where there is one."""

    def __init__(self, pairs: Pairs, corpus: Corpus, sides: Sequence[Side], settings: Settings) -> None:
        self.pairs, self.corpus, self.settings = pairs, corpus, settings
        self.side, self.guide = sides[0], sides[1] if sides[1:] else None

    def negatives(self, rows: range) -> tuple[Counter[str], list[dict[str, Any]]]:
        """Of some pairs, by number: what is counted, and a row for each negative."""
        queries, positives = ([texts[i] for i in rows] for texts in (self.pairs.queries, self.pairs.positives))
        own = self.side.own(queries, positives)
        guided = self.guide.own(queries, positives) if self.guide else [math.inf] * len(rows)
        counts = Counter(pairs=len(rows))
        chosen: dict[int, list[tuple[int, float]]] = {}
        pending, depth = list(range(len(rows))), 2 * (self.settings.negatives + self.settings.skip_top) + 8
        depth = min(depth, DEEP)  # a first search looks at whether all can be compared
        while pending:
            depth = min(depth if depth <= DEEP else len(self.corpus), len(self.corpus))
            of_query: dict[str, list[int]] = {}
            for i in pending:
                of_query.setdefault(queries[i], []).append(i)
            pending = []
            for query, ranked in self.ranked([*of_query], depth):
                for i in of_query[query]:
                    found, dropped = self.choose(query, ranked, own[i], guided[i])
                    if len(found) < self.settings.negatives and depth < len(self.corpus):
                        pending.append(i)
                        continue
                    chosen[i] = found
                    counts += dropped
            depth *= 4
        found_rows = [self.row(rows[i], own[i], *negative) for i in range(len(rows)) for negative in chosen[i]]
        lengths = [len(found) for found in chosen.values()]
        counts += Counter(
            rows=len(found_rows), none=lengths.count(0),
            few=sum(0 < length < self.settings.negatives for length in lengths),
        )  # fmt: skip
        return counts, found_rows

    def ranked(self, queries: Sequence[str], depth: int) -> Iterator[tuple[str, Ranked]]:
        """Each query with so many of the nearest texts."""
        for query, values, places in self.nearest(queries, depth):
            known = (self.corpus.places.get(key) for key in self.pairs.own[query])
            own = np.isin(places, [place for place in known if place is not None])
            yield query, Ranked(places[~own], values[~own].astype(np.float64), values[own].astype(np.float64))

    def nearest(self, queries: Sequence[str], depth: int) -> Iterator[tuple[str, NDArray[Any], NDArray[np.int64]]]:
        """Each query with the similarities and places of the nearest texts; of equal ones the first comes first."""
        index, vectors = self.side.index, self.side.of("queries", queries)
        if depth <= DEEP:
            yield from zip(queries, *index.nearest(vectors, depth), strict=True)
            return
        size = max(1, HELD // depth)
        for start in range(0, len(queries), size):
            found = index.similarities(vectors[start : start + size])
            for query, values in zip(queries[start : start + size], found, strict=True):
                places = np.argsort(-values, kind="stable")
                yield query, values[places], places

    def choose(
        self, query: str, ranked: Ranked, own: float, guided: float
    ) -> tuple[list[tuple[int, float]], Counter[str]]:
        """The negatives of one pair, among texts by their rank, and how many of these were left out before the last."""
        skip, wanted, margin = self.settings.skip_top, self.settings.negatives, self.settings.margin
        near = 0 if margin is None else int((ranked.scores[skip:] > own - margin).sum())
        found: list[tuple[int, float]] = []
        false = 0
        for place, score, right in self.judged(query, ranked, skip + near, guided):
            if right:
                found.append((place, score))
            else:
                false += 1
            if len(found) == wanted:
                break
        last = found[-1][1] if len(found) == wanted else -math.inf
        return found, Counter(own=int((ranked.own >= last).sum()), margin=near, guide=false)

    def judged(self, query: str, ranked: Ranked, start: int, guided: float) -> Iterator[tuple[int, float, bool]]:
        """The texts from a rank on: place, similarity, and whether the guide agrees."""
        for first in range(start, len(ranked.places), GUIDED):
            places, values = (x[first : first + GUIDED].tolist() for x in (ranked.places, ranked.scores))
            yield from zip(places, values, self.agreed(query, places, guided), strict=True)

    def agreed(self, query: str, places: Sequence[int], guided: float) -> list[bool]:
        """Whether the guide finds each text less similar to the query than its positive."""
        if self.guide is None or not places:
            return [True] * len(places)
        found = self.guide.index.alike(self.guide.of("queries", [query]), self.guide.of_corpus(places))
        return (found[0].double() < guided).tolist()

    def row(self, number: int, own: float, place: int, score: float) -> dict[str, Any]:
        """The row of a negative."""
        text = self.side.index.fields(place)[1][self.side.index.state.settings["field"]]
        said = {"positive_score": round(own, 6), "negative_score": round(score, 6)}
        first, second = self.pairs.names
        row = self.pairs.rows[number]
        rest = {name: value for name, value in row.items() if name not in (first, second, *said)}
        return {first: row[first], second: row[second], NEGATIVE: text, **said, **rest}
