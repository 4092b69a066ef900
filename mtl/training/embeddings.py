"""How good a model's embeddings are, measured on files without a recipe."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Unpack

import torch

from mtl.display import counted
from mtl.encode.options import EncodeOptions
from mtl.encode.sentence_encoder import DOCUMENT, SentenceEncoder
from mtl.errors import InputError, shown
from mtl.rows.read import read_rows
from mtl.search import BLOCK, DEPTH, ranking_metrics, rankings
from mtl.tasks.multitask import MultiTaskModel
from mtl.tasks.spec import TaskSpec
from mtl.training.data import load_data
from mtl.training.metrics import all_logits, measure
from mtl.training.plots import check_picture, plot_vectors
from mtl.training.recipe import Recipe

log = logging.getLogger("mtl")


def sts(
    model: SentenceEncoder,
    path: Path,
    fields: Sequence[str] = (),
    threads: int | None = None,
    picture: Path | None = None,
) -> tuple[dict[str, float], list[str]]:
    """How the cosines of pairs of texts follow their scores, and a line for what was cut.

    ``fields`` are the names of the two texts and the score; by default the file's own, of which it must have three.
    ``picture`` is a file to draw scores and cosines to. An error names the line of a wrong row.
    """
    if picture:
        check_picture(picture)
    names = list(fields) or list(next(read_rows(path), (0, {}))[1])
    if len(names) != 3:
        given = "fields are" if fields else f"{path} has the fields"
        expected = "three, two texts and a score; name them with --fields"
        raise InputError(f"{given} {', '.join(names) or 'of no row'}; expected {expected}")
    *texts, score = names
    task = TaskSpec("sts", kind="similarity", test=str(path.absolute()), text_field=tuple(texts), label_field=score)
    data, notes = load_data(Recipe("", (task,)), model, ["test"])
    both = MultiTaskModel(model, (task,))
    found = measure(both.tasks, all_logits(both, data["test"], threads), data["test"])["sts"]
    if picture:
        plot_vectors(both, data["test"], picture, threads)
    return found, notes


def texts_by_id(path: Path) -> dict[str, str]:
    """The texts of a .jsonl file of BEIR by their ids: a document's title, where it has one, and its text. An
    InputError names the line of a wrong row."""
    found: dict[str, str] = {}
    for number, fields in read_rows(path):
        where = f"{path}, line {number}"
        key, title, text = fields.get("_id"), fields.get("title") or "", fields.get("text")
        if not (isinstance(key, str) and isinstance(title, str) and isinstance(text, str)):
            expected = 'strings "_id" and "text", and maybe "title"'
            raise InputError(f"{where}: fields are {', '.join(fields)}; expected {expected}")
        if key in found:
            raise InputError(f"{where}: the id {shown(key)} stands there twice; expected each of them once")
        found[key] = f"{title} {text}".strip()
    if not found:
        raise InputError(f"{path} is empty; expected at least one text")
    return found


def judgements(path: Path, queries: Mapping[str, str], documents: dict[str, int]) -> dict[str, dict[int, float]]:
    """By query, the places of the documents that are relevant to it, and how much; queries without one are left out.

    A document that is not there has a place of its own, which no search finds: so BEIR counts it. A line in the log
    says how many judgements are about such documents, and about queries that are not there, which are left out. A file
    that says of no document that it is relevant is an InputError.
    """
    found: dict[str, dict[int, float]] = {}
    missing: dict[str, int] = {}
    lost = unasked = 0
    for number, fields in read_rows(path):
        where, expected = f"{path}, line {number}", ("query-id", "corpus-id", "score")
        if not fields.keys() >= {*expected}:
            raise InputError(f"{where}: fields are {', '.join(fields)}; expected {', '.join(expected)}")
        query, document, score = (fields[name] for name in expected)
        try:
            value = float(score)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise InputError(f"{where}: score is {shown(score)}; expected a number, above 0 where it is relevant")
        lost += document not in documents
        unasked += query not in queries
        if value > 0 and query in queries:
            known = documents if document in documents else missing
            found.setdefault(query, {})[known.setdefault(document, -len(missing) - 1)] = value
    for count, what, means in ((lost, "documents", "never found"), (unasked, "queries", "left out")):
        if count:
            log.warning("%s: %s about %s that are not there: %s", path, counted(count, "judgement"), what, means)
    if not found:
        raise InputError(f"{path} says of no document that it is relevant to a query that is there")
    return found


@dataclasses.dataclass(frozen=True)
class Searched:
    """The results of a search: by query, its text, the places of its results in ``texts``, and what is relevant."""

    queries: list[str]
    texts: list[str]
    rankings: list[list[int]]
    relevant: list[dict[int, float]]

    @property
    def metrics(self) -> dict[str, float]:
        return ranking_metrics(self.rankings, self.relevant)


def searched(model: SentenceEncoder, folder: Path, split: str = "test", **options: Unpack[EncodeOptions]) -> Searched:
    """What a model finds, by exact search in a folder of BEIR's layout.

    The folder has corpus.jsonl, queries.jsonl and qrels/<split>.tsv. The checkpoint's prompts for queries and documents
    go before the texts, and vectors are compared by the model's own measure. Queries without a relevant document are
    left out, relevant documents that are not there are never found, and a document with the query's own id is no
    result. Memory holds the texts, the queries' vectors and one window of the corpus's. An InputError names the line of
    a wrong row.
    """
    corpus, queries = (texts_by_id(folder / name) for name in ("corpus.jsonl", "queries.jsonl"))
    places = {key: place for place, key in enumerate(corpus)}
    relevant = judgements(folder / "qrels" / f"{split}.tsv", queries, places)
    asked, texts = [queries[key] for key in relevant], [*corpus.values()]
    vectors = torch.from_numpy(model.encode_query(asked, **options))
    of_documents = model.prompted(DOCUMENT, options)
    blocks = map(torch.from_numpy, model.encode_stream(texts, window=BLOCK, **of_documents))
    found = rankings(vectors, blocks, [places.get(key) for key in relevant], model.similarity_fn_name)
    return Searched(asked, texts, found, [*relevant.values()])


def reranked(found: Searched, model: MultiTaskModel, depth: int = DEPTH, threads: int | None = None) -> Searched:
    """The same results, of which each query's first ``depth`` are in the order of a cross-encoder's scores."""
    task = model.ranker()
    rows = [(query, place) for query, ranking in enumerate(found.rankings) for place in ranking[:depth]]
    scores: list[list[float]] = [[] for _ in found.rankings]

    def pair(row: tuple[int, int]) -> tuple[str, str]:
        return found.queries[row[0]], found.texts[row[1]]

    for part, predicted in model.predict_rows(rows, pair, threads, pairs=True):
        for (query, _), score in zip(part, predicted.scores[task][:, 0].tolist(), strict=True):
            scores[query].append(score)
    again = []
    for ranking, own in zip(found.rankings, scores, strict=True):
        order = sorted(range(len(own)), key=own.__getitem__, reverse=True)  # stable: equal ones stay as they were
        again.append([ranking[i] for i in order] + ranking[depth:])
    return dataclasses.replace(found, rankings=again)
