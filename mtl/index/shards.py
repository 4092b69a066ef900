"""Exact search of what embed-corpus writes: file by file, in this process or on a Ray cluster, and then merged.

A score depends on its two vectors alone (``mtl.search.search``), so that the results, ties too, are those of one index
of all rows in the order of the files' names. Only scores and places go through Ray.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from mtl import search
from mtl.encode.precision import Precision, number_format
from mtl.encode.sentence_encoder import SentenceEncoder
from mtl.encode.tokenizer import several
from mtl.errors import InputError, MtlError, WeightsError, check_counts, differences
from mtl.index.index import Hit
from mtl.kernels.int8 import LEAST_COSINE
from mtl.rows.blocks import ROW, SCALE, VECTOR
from mtl.rows.manifest import NAME, check_output, read_manifest
from mtl.rows.on_ray import connected, import_ray, tasks
from mtl.rows.parquet import readable
from mtl.rows.uris import Place, named, reading
from mtl.search import BLOCK, Similarity

Found = tuple[NDArray[np.float32], NDArray[np.int64]]  # scores and places, (queries, results)


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file of vectors; the place of its first row is counted over all files."""

    place: Place
    name: str
    rows: int
    start: int

    def blocks(self, dim: int) -> Iterator[torch.Tensor]:
        """Its vectors in float32, (rows, dim) at a time."""
        with reading(self.place), self.place.open_random() as opened, pq.ParquetFile(opened) as file:
            scaled = SCALE in file.schema_arrow.names
            for batch in file.iter_batches(BLOCK, columns=[VECTOR, *([SCALE] if scaled else [])]):
                vectors = batch.column(0).flatten().to_numpy(zero_copy_only=False).astype(np.float32)
                vectors = vectors.reshape(len(batch), dim)
                yield torch.from_numpy(vectors * batch.column(1).to_numpy()[:, None] if scaled else vectors)

    def search(self, queries: NDArray[np.float32], k: int, measure: Similarity) -> Found:
        """The best k of its rows for each of queries (queries, dim)."""
        with named(self.place):
            found, places = search.nearest(search.as_tensor(queries), self.blocks(queries.shape[1]), k, measure)
        return found.numpy(), places.numpy() + self.start

    def rows_at(self, places: Sequence[int]) -> Iterator[dict[str, Any]]:
        """The columns beside the vector of some rows, whose places are counted in this file and rise."""
        with reading(self.place), self.place.open_random() as opened, pq.ParquetFile(opened) as file:
            columns = [name for name in file.schema_arrow.names if name not in (VECTOR, SCALE)]
            sizes = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
            ends = np.cumsum(sizes)
            groups = np.searchsorted(ends, places, side="right")
            for group in np.unique(groups).tolist():
                inside = [place - int(ends[group] - sizes[group])
                          for place, of in zip(places, groups, strict=True) if of == group]  # fmt: skip
                table = file.read_row_group(group, columns).take(pa.array(inside)).combine_chunks()
                values = [readable(table.column(name).combine_chunks()) for name in columns]
                yield from (dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True))


def search_corpus(
    folder: str | os.PathLike[str],
    queries: str | Iterable[str] | search.Vectors,
    k: int = 10,
    *,
    model: str | SentenceEncoder | None = None,
    address: str | None = None,
    threads: int | None = None,
) -> Any:
    """The k rows of a folder that embed-corpus wrote that are the most similar to a query, best first: a list of
    ``Hit``; of several queries, a list of such lists. Of equal ones the first, by the files' names, comes first.

    folder: As a path or a URL. The files that are there are searched, each with bounded memory; where embed-corpus is
        not done yet, that is not all.
    queries: Texts, or vectors (queries, dim) or (dim,).
    model: By default, the one that made the vectors.
    address: Of a Ray cluster; see ``embed_corpus``. Each file is a task there. Without it, all is done in this process.
    threads: Of each task of a cluster; by default one, so that a machine searches as many files at once as it has
        processors.

    A hit's row has the columns that were kept. Its id is that of the row, or where rows have none, the file's name and
    the row's number in it, as in ``part-7:12``.

    Raises:
        InputError: it is no such folder, a file in it is another's or damaged, or the model is another one; or there is
            no cluster; threads are given without an address.
    """
    check_counts(threads=threads)
    check_counts(False, k=k)
    if threads is not None and address is None:
        raise InputError(f"threads is {threads}; it is of the tasks of a cluster, and no address is given")
    if address is not None:
        import_ray()
    place = Place.of(folder)
    manifest = read_manifest(place / NAME)
    if manifest is None:
        raise InputError(f"{place} has no {NAME}; expected a folder that embed-corpus wrote")
    settings = manifest["settings"]
    encoder = model_of(manifest, model, place)
    single = isinstance(queries, str) or (search.are_vectors(queries) and queries.ndim == 1)
    texts = [queries] if isinstance(queries, str) else queries
    given = texts if search.are_vectors(texts) else encoder.encode_query(
        several(texts), truncate_dim=settings["dim"], normalize=settings["normalize"]
    )  # fmt: skip
    wanted = search.check_finite(search.as_matrix(given, "queries").detach(), "queries").cpu().numpy()
    measure = encoder.similarity_fn_name
    search.check_measure(measure, (wanted.shape[1], settings["dim"]))
    shards = shards_of(place, settings)
    best: Found = np.empty((len(wanted), 0), np.float32), np.empty((len(wanted), 0), np.int64)
    for found in on_shards(shards, wanted, k, measure, address, threads):
        best = merged(best, found, k)
    hits = with_rows(shards, best, settings["columns"]["id"])
    return hits[0] if single else hits


def model_of(manifest: Mapping[str, Any], model: str | SentenceEncoder | None, place: Place) -> SentenceEncoder:
    """The model that made the vectors.

    Raises:
        InputError: it is another one.
    """
    settings = manifest["settings"]
    numbers: tuple[Precision, float] = settings["precision"], settings.get("int8_least_cosine", LEAST_COSINE)
    if not isinstance(model, SentenceEncoder):
        try:
            model = SentenceEncoder.from_pretrained(model or manifest["model"], None, "cpu", *numbers)
        except WeightsError as error:
            hint = "" if model else f"; {place} was made with it: search with model=..., or -m"
            raise WeightsError(f"{error}{hint}") from None
    expected = {"fingerprint": settings["fingerprint"], **number_format(*numbers)}
    now = {"fingerprint": dict(model.fingerprint), **number_format(model.precision, model.int8_least_cosine)}
    if different := differences(expected, now):
        raise InputError(f"{place} was made with another model: {'; '.join(different)}")
    return model


def shards_of(place: Place, settings: Mapping[str, Any]) -> list[Shard]:
    """The files of a folder, by name.

    Raises:
        InputError: one is damaged, or no output of the run that the manifest tells of.
    """
    found: list[Shard] = []
    start = 0
    for info in place.files():
        if info.base_name.endswith(".parquet"):  # a README is none of ours
            each = Place(place.filesystem, info.path)
            rows, _ = check_output(each, settings)
            found.append(Shard(each, info.path[len(place.path) + 1 :], rows, start))
            start += rows
    if not found:
        raise InputError(f"{place} has no vectors yet; expected a folder in which embed-corpus has written some")
    return found


def on_shards(
    shards: Sequence[Shard], queries: NDArray[np.float32], k: int, measure: Similarity, address: str | None,
    threads: int | None,
) -> Iterator[Found]:  # fmt: skip
    """What each file has found, in any order."""
    if address is None:
        yield from (shard.search(queries, k, measure) for shard in shards)
        return
    with connected(address) as ray:
        for found, error in tasks(ray, search_shard, shards, (queries, k, measure, threads or 1), threads or 1):
            if error:
                raise InputError(error)
            yield found


def search_shard(
    shard: Shard, queries: NDArray[np.float32], k: int, measure: Similarity, threads: int
) -> tuple[Found | None, str]:
    """As ``Shard.search``, in a process of Ray's; what goes wrong is a line, which Ray will not try again."""
    try:
        torch.set_num_threads(threads)
        return shard.search(queries, k, measure), ""
    except MtlError as error:
        return None, str(error)


def merged(best: Found, found: Found, k: int) -> Found:
    """The best k of two findings; of equal ones, those of lower places."""
    scores, places = np.concatenate([best[0], found[0]], axis=1), np.concatenate([best[1], found[1]], axis=1)
    order = np.lexsort((places, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(places, order, 1)


def with_rows(shards: Sequence[Shard], found: Found, id_column: str | None) -> list[list[Hit]]:
    """What was found with the rows that it stands for; each row is read once."""
    rows: dict[int, tuple[Any, dict[str, Any]]] = {}
    for shard in shards:
        places = np.unique(found[1][(found[1] >= shard.start) & (found[1] < shard.start + shard.rows)]).tolist()
        if places:
            for place, row in zip(places, shard.rows_at([place - shard.start for place in places]), strict=True):
                name = row[id_column] if id_column else f"{shard.name.removesuffix('.parquet')}:{row[ROW]}"
                rows[place] = name, row
    return [[Hit(float(score), *rows[place]) for score, place in zip(scores, places.tolist(), strict=True)]
            for scores, places in zip(*found, strict=True)]  # fmt: skip
