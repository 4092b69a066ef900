"""Indexes: equal to search over all vectors, whatever was added, replaced and deleted, and whoever was killed."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mtl
from mtl import Index, SentenceEncoder, search
from mtl.cli import main
from mtl.disk import lock
from mtl.errors import InputError, WeightsError
from mtl.index import index as indexes
from mtl.index import store
from mtl.index.store import State, View, change, clean, planes, prepared, read_state, together, write_state
from mtl.rows.vector_files import json_line, scaled

TEXTS = ["a b", "c d e", "f", "a g h", "i", "e j", "k l m n", "a b"]
SETTINGS = {"model": None, "field": "text", "id_field": None}
ROWS = [{"id": f"n{i}", "text": text, "size": len(text)} for i, text in enumerate(TEXTS)]


@pytest.fixture(autouse=True, scope="module")
def unsynced() -> Iterator[None]:
    """No power is lost here, and a write of many small files would wait for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mtl.disk.sync", lambda path: None)
        yield


def made(folder: Path, encoder: SentenceEncoder, **options: Any) -> Index:
    index = Index.create(folder, encoder, id_field="id", **options)
    index.add(ROWS)
    return index


def ids(hits: list[indexes.Hit]) -> list[Any]:
    return [hit.id for hit in hits]


def test_search_is_that_of_all_vectors(tiny: SentenceEncoder, tmp_path: Path) -> None:
    index = made(tmp_path / "idx", tiny)
    queries = ["a b", "e", "n m"]
    scores, places = tiny.search(queries, TEXTS, 5)
    found = index.search(queries, 5)
    assert [[hit.row for hit in hits] for hits in found] == [[ROWS[i] for i in row] for row in places.tolist()]
    assert np.array_equal(np.array([[hit.score for hit in hits] for hits in found], np.float32), scores)
    assert ids(index.search("a b", 2)) == ["n0", "n7"]  # of equal ones the first
    assert ids(index.search(tiny.encode("f"), 1)) == ["n2"]
    assert len(index.search("f", 99)) == len(index) == 8
    assert index.search([], 3) == []
    again = Index.open(tmp_path / "idx", tiny)
    assert again.search(queries, 5) == found
    assert sorted(path.name for path in (tmp_path / "idx").iterdir()) == ["index.json", "segment-00000001-0"]


@pytest.mark.parametrize("measure", ["dot", "euclidean", "manhattan"])
def test_other_measures(tiny: SentenceEncoder, tmp_path: Path, measure: str) -> None:
    tiny.similarity_fn_name = measure
    index = made(tmp_path / "idx", tiny)
    scores, places = tiny.search("a e", TEXTS, 8)
    hits = index.search("a e", 8)
    assert ids(hits) == [f"n{i}" for i in places[0]]
    assert np.array_equal(np.array([hit.score for hit in hits], np.float32), scores[0])


def test_append_replace_delete(tiny: SentenceEncoder, tmp_path: Path) -> None:
    index = made(tmp_path / "idx", tiny)
    assert index.add([{"id": "new", "text": "a b"}, {"id": 5, "text": "c"}]) == 2
    assert ids(index.search("a b", 3)) == ["n0", "n7", "new"]
    assert index.delete(["n0", "5"]) == 2
    assert ids(index.search("a b", 2)) == ["n7", "new"]
    assert "5" not in map(str, ids(index.search("c", 99)))
    with pytest.raises(InputError, match="no row has the id 'n0'; nothing was deleted"):
        index.delete(["n1", "n0"])
    assert len(index) == 8
    with pytest.raises(InputError, match="row 2, field 'id': the id 'n1' is in the index; --replace has the new row"):
        index.add([{"id": "x", "text": "x"}, {"id": "n1", "text": "y"}])
    with pytest.raises(InputError, match="another row has the id 1 too"):
        index.add([{"id": "1", "text": "x"}, {"id": 1, "text": "y"}], overwrite=True)
    assert index.add([{"id": "n7", "text": "f"}, {"id": "n0", "text": "f"}], replace=True, overwrite=True) == 2
    assert ids(index.search("f", 3)) == ["n2", "n7", "n0"]
    assert ids(index.search("a b", 1)) == ["new"]
    index.delete(["n7"])
    index.add([{"id": "n7", "text": "f"}])
    for row in ({"id": None, "text": "a"}, {"text": "a"}, {"id": 1.5, "text": "a"}, {"id": True, "text": "a"}):
        with pytest.raises(InputError, match="row 1, field 'id': the id is .*; expected a string or a whole number"):
            index.add([row])
    with pytest.raises(InputError, match="row 1 has no text in the field 'text'"):
        index.add([{"id": 1, "text": 2}])
    index.delete([hit.id for hit in index.search("a", 99)])
    assert len(index) == 0
    assert index.search("a", 3) == []


def test_rows_are_numbered_where_they_have_no_id(tiny: SentenceEncoder, tmp_path: Path) -> None:
    index = Index.create(tmp_path / "idx", tiny, field="body")
    assert index.search("a", 3) == []
    with pytest.raises(InputError, match="have numbers for ids; expected an index with an id_field"):
        index.add(["a"], replace=True)
    with pytest.raises(InputError, match="resume goes on with what is there, overwrite throws it away"):
        index.add(["a"], resume=True, overwrite=True)
    index.add(["a", {"body": "b", "more": [1]}])
    index.delete([1])
    index.add(row for row in ["c"])
    assert sorted(ids(index.search("a", 9))) == [0, 2]
    assert index.search("b", 9)[0].row.keys() == {"body"}
    index.add([{"body": "d", "embedding": [0.5]}])  # as `mtl embed` writes rows
    assert index.search("d")[0].row["embedding"] == [0.5]
    assert index.add([]) == 0


def random_state(
    folder: Path, form: str, vectors: np.ndarray, cuts: list[int], gone: list[int], measure: str = "cosine"
) -> Index:
    """An index of vectors, in segments, some of them deleted."""
    folder.mkdir(parents=True)
    write_state(folder, State(form, vectors.shape[1], measure, SETTINGS))
    start = 0
    for part in np.split(vectors, cuts):
        ids, state = range(start, start + len(part)), read_state(folder)
        rows = prepared(state, [([{"text": str(i)} for i in ids], part)] if len(part) else [], ids)
        change(View(folder, state), [], rows, len(part))
        start += len(part)
    change(View(folder, read_state(folder)), gone)
    return Index(folder)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_history_is_searched_as_what_is_left(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    rows, dim = data.draw(st.integers(1, 60)), data.draw(st.sampled_from([3, 8, 65]))
    generator = np.random.default_rng(data.draw(st.integers(0, 99)))
    vectors = generator.integers(-2, 3, (rows, dim)).astype(np.float32)  # with many equal ones
    cuts = sorted(data.draw(st.lists(st.integers(0, rows), max_size=4)))
    gone = sorted(data.draw(st.sets(st.integers(0, rows - 1))))
    kept = np.delete(np.arange(rows), gone)
    queries = generator.integers(-2, 3, (4, dim)).astype(np.float32)
    k = data.draw(st.integers(1, 70))
    for form in ("fp32", "int8", "binary"):
        index = random_state(tmp_path_factory.mktemp("any") / "idx", form, vectors, cuts, gone)
        corpus = search.unit(search.as_matrix(vectors, "x")).numpy()
        if form == "int8":
            integers, scales = scaled(corpus)
            corpus = integers * scales[:, None]
        unit = search.unit(search.as_matrix(queries, "q"))
        scores, places = search.search(unit, corpus[kept], k, "dot")
        found = index.nearest(queries, k)
        if form != "binary":  # of few rows, all are candidates, compared one query at a time
            named = [[index.fields(place)[0] for place in row] for row in found[1]]
            assert np.array_equal(np.array(named).reshape(places.shape), kept[places])
            assert np.array_equal(np.array(found[0]), scores)
        np.testing.assert_allclose(np.array(found[0]), scores, atol=1e-6)


@pytest.mark.parametrize("form", ["fp32", "binary"])
def test_queries_with_a_graph(tmp_path: Path, form: str) -> None:
    vectors = np.random.default_rng(0).standard_normal((50, 70)).astype(np.float32)
    index = random_state(tmp_path / "idx", form, vectors, [20], [])
    graph = torch.from_numpy(vectors[:2]).requires_grad_()
    for one, same in zip(index.nearest(graph, 3), index.nearest(vectors[:2], 3), strict=True):
        np.testing.assert_array_equal(one, same)


def test_candidates_are_the_nearest_by_bits(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((500, 70)).astype(np.float32)
    vectors[100:120] = vectors[7]
    index = random_state(tmp_path / "idx", "binary", vectors, [200], [7, 300, 499])
    query = generator.standard_normal((1, 70)).astype(np.float32)
    for one in (query, vectors[7:8]):
        bits = ((vectors > 0) != (one > 0)).sum(axis=1)
        order = [i for i in np.argsort(bits, kind="stable") if i not in (7, 300, 499)]
        for count in (1, 5, 19, 20, 21, 250, 497, 600):
            assert index.view.candidates(planes(one)[:, 0], count).tolist() == sorted(order[:count])


@pytest.mark.parametrize("form", ["int8", "binary"])
def test_compressed_forms_find_what_is_near(tiny: SentenceEncoder, tmp_path: Path, form: str) -> None:
    index = made(tmp_path / "idx", tiny, form=form)
    exact = made(tmp_path / "exact", tiny)
    for text in TEXTS:
        hits, best = index.search(text, 8), exact.search(text, 8)
        np.testing.assert_allclose([hit.score for hit in hits], [hit.score for hit in best], atol=0.01)
        assert {hit.id for hit in hits} == {hit.id for hit in best}
        assert form == "int8" or ids(hits)[0] == ids(best)[0]


def test_an_open_index_sees_its_own_state(tiny: SentenceEncoder, tmp_path: Path) -> None:
    made(tmp_path / "idx", tiny)
    reader, writer = Index.open(tmp_path / "idx", tiny), Index.open(tmp_path / "idx", tiny)
    writer.delete(["n2"])
    assert ids(reader.search("f", 1)) == ["n2"]
    reader.refresh()
    assert ids(reader.search("f", 1)) != ["n2"]
    with lock(tmp_path / "idx", InputError), pytest.raises(InputError, match="is being written by process"):
        writer.delete(["n1"])


def test_what_is_no_index(tiny: SentenceEncoder, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no index; `mtl index FILE"):
        Index.open(tmp_path)
    with pytest.raises(InputError, match="form is 'pq'; expected one of fp32, int8, binary"):
        Index.create(tmp_path / "x", tiny, form="pq")  # type: ignore[arg-type]
    index = made(tmp_path / "idx", tiny)
    with pytest.raises(InputError, match="exists and is not empty"):
        Index.create(tmp_path / "idx", tiny)
    with pytest.raises(InputError, match="made with a model that has no name; open it with model="):
        Index.open(tmp_path / "idx").search("a")
    with pytest.raises(InputError, match="3 and 12 dimensions"):
        index.search(np.ones(3, np.float32))
    for k in (0, None, 1.5):
        with pytest.raises(InputError, match=f"k is {k}; expected "):
            index.search("a", k)  # type: ignore[arg-type]
    for field, id_field in ((None, None), ("text", 5)):
        with pytest.raises(InputError, match=f"the fields are {field!r} and {id_field}; expected the names of fields"):
            Index.create(tmp_path / "none", tiny, field=field, id_field=id_field)  # type: ignore[arg-type]
    assert not (tmp_path / "none").exists()
    tiny.max_seq_length = 7
    with pytest.raises(InputError, match="made with another model: max_length was 16, is 7"):
        Index.open(tmp_path / "idx", tiny)
    tiny.precision, tiny.int8_least_cosine = "int8", 0
    made(tmp_path / "int8", tiny)
    Index.open(tmp_path / "int8", tiny)
    tiny.int8_least_cosine = 0.1
    with pytest.raises(InputError, match=r"made with another model: int8_least_cosine was 0, is 0\.1"):
        Index.open(tmp_path / "int8", tiny)
    state = (tmp_path / "idx" / "index.json").read_text()
    name = "segment-00000001-0"
    for text in (
        "{", "[]", "{}", state.replace("fp32", "fp64"), *(state.replace(name, bad) for bad in (f"../{name}", "..", "")),
        state.replace('"segments": [', '"segments": [["segment-1", Infinity],'),
        *(state.replace(f'"{name}":', '"other":') for name in ("model", "field", "id_field")),
        state.replace('"id_field": "id"', '"id_field": 3'),
    ):  # fmt: skip
        (tmp_path / "idx" / "index.json").write_text(text)
        with pytest.raises(InputError, match="index.json is damaged"):
            Index.open(tmp_path / "idx")
    (tmp_path / "idx" / "index.json").write_text(state)
    vectors = tmp_path / "idx" / name / "vectors.npy"
    vectors.write_bytes(vectors.read_bytes()[:200])
    with pytest.raises(InputError, match="segment-00000001"):
        Index.open(tmp_path / "idx")


@given(st.lists(st.integers(0, 40), max_size=60))
def test_segments_are_few(sizes: list[int]) -> None:
    groups = together(sizes)
    assert [i for group in groups for i in group if sizes[i]] == [i for i, size in enumerate(sizes) if size]
    totals = [sum(sizes[i] for i in group) for group in groups]
    assert sum(totals) == sum(sizes)
    assert all(one >= 2 * other for one, other in itertools.pairwise(totals))


@pytest.mark.parametrize("measure", ["cosine", "dot", "euclidean", "manhattan"])
def test_similarities_are_those_of_the_nearest(tmp_path: Path, measure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, whatever the blocks."""
    vectors = np.random.default_rng(0).standard_normal((60, 70)).astype(np.float32)
    vectors[40:] = vectors[:20]
    index = random_state(tmp_path / "idx", "fp32", vectors, [24, 36], [3], measure)
    queries = torch.from_numpy(vectors[5:15] * 2 + 1)
    scores, places = index.nearest(queries, 59)
    monkeypatch.setattr(search, "BLOCK", 7)
    found = index.similarities(queries)
    order = np.argsort(-found, kind="stable")
    assert np.array_equal(index.view.live[order], places)
    assert np.array_equal(np.take_along_axis(found, order, 1), scores)


@pytest.mark.parametrize("form", ["fp32", "int8", "binary"])
def test_many_small_changes(tmp_path: Path, form: str) -> None:
    """Its files stay few, those of deleted rows are given back, and every row is where it was."""
    vectors = np.random.default_rng(0).standard_normal((40, 70)).astype(np.float32)
    index = random_state(tmp_path / "idx", form, vectors, list(range(1, 40)), [])
    assert len(index.state.segments) <= 6
    at_once = random_state(tmp_path / "once", form, vectors, [], [])
    for one, other in zip(index.nearest(vectors[:9], 40), at_once.nearest(vectors[:9], 40), strict=True):
        assert np.array_equal(one, other)
    assert [index.fields(place) for place in range(40)] == [at_once.fields(place) for place in range(40)]
    reader = Index(tmp_path / "idx")
    size = sum(path.stat().st_size for path in (tmp_path / "idx").rglob("*"))
    left = 40
    while left > 3:
        change(index.view, index.view.live[: left // 2])
        index.refresh()
        clean(tmp_path / "idx", index.state)
        left -= left // 2
        assert [index.fields(place)[0] for place in index.view.live] == list(range(40 - left, 40))
        every = np.concatenate([block.numpy().copy() for block in index.view.blocks()])
        assert np.array_equal(every, at_once.view.at(np.arange(40 - left, 40)))
    assert sum(path.stat().st_size for path in (tmp_path / "idx").rglob("*")) < size / 4
    assert [reader.fields(place) for place in range(40)] == [at_once.fields(place) for place in range(40)]


def test_few_rows_hold_no_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older index may have a segment of each addition, more than the files that a process can open."""
    state = State("int8", 5, "cosine", SETTINGS, tuple((f"segment-{i:08d}", 1) for i in range(50)), added=50)
    vectors = np.random.default_rng(0).standard_normal((50, 5)).astype(np.float32)
    for i, (name, _) in enumerate(state.segments):
        store.write_segment(tmp_path / name, state, prepared(state, [([{}], vectors[i : i + 1])], [i]), 1)
    write_state(tmp_path, state)
    before = len(os.listdir("/dev/fd"))
    index = Index(tmp_path)
    index.delete([3])
    assert len(os.listdir("/dev/fd")) <= before
    assert [index.fields(place)[0] for place in index.view.live] == [i for i in range(50) if i != 3]

    def refused(*arguments: object) -> None:
        raise OSError(errno.EMFILE, "")

    monkeypatch.setattr(np.lib.format, "open_memmap", refused)
    with pytest.raises(InputError, match=r"offsets\.npy cannot be read: Too many open files$"):  # it is not damaged
        Index(tmp_path)


def test_a_deletion_writes_little(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((40, 5)).astype(np.float32)
    index = random_state(tmp_path / "idx", "fp32", vectors, [24, 36], [])
    before = index.state.segments
    assert [rows for _, rows in before] == [24, 12, 4]
    index.delete([3])
    assert index.state.segments == before
    index.delete(range(24, 31))
    assert [rows for _, rows in index.state.segments] == [24, 5, 4]
    names = [*(name for name, _ in index.state.segments), index.state.deleted, "index.json"]
    assert sorted(path.name for path in (tmp_path / "idx").iterdir()) == sorted(map(str, names))
    assert [index.fields(place)[0] for place in index.view.live] == [0, 1, 2, *range(4, 24), *range(31, 40)]


def test_rows_as_numpy_has_them(tiny: SentenceEncoder, tmp_path: Path) -> None:
    index = Index.create(tmp_path / "idx", tiny, id_field="id")
    index.add([{"id": np.int64(7), "text": np.str_("a b"), "x": np.float32(0.5), "y": np.arange(2), "z": np.bool_(1)}])
    (hit,) = index.search("a")
    assert (hit.id, hit.row) == (7, {"id": 7, "text": "a b", "x": 0.5, "y": [0, 1], "z": True})
    for rows in ("a b", {"id": 1, "text": "a"}):  # whose letters, or fields, are no rows
        with pytest.raises(InputError, match="texts is "):
            index.add(rows)
    for name in ("7", b"7", 7, np.int64(7), None):
        with pytest.raises(InputError, match=re.escape(f"ids is {name!r}; expected several, as in [{name!r}]")):
            index.delete(name)  # type: ignore[arg-type]
    assert index.delete([np.int64(7)]) == 1
    for row in (5, None, ["text", "a"], {1: "a", "text": "b", "id": 3}):
        with pytest.raises(InputError, match="row 1 "):
            index.add([row])  # type: ignore[list-item]


@pytest.mark.parametrize("form", ["fp32", "int8", "binary"])
def test_any_damage_is_said(tiny: SentenceEncoder, tmp_path: Path, form: str) -> None:
    """Every file emptied, cut, longer, of other numbers or gone: a line that names it, and never another row."""
    index = made(tmp_path / "idx", tiny, form=form)
    index.delete(["n1"])
    before = index.search("a b", 99)

    def look() -> list[indexes.Hit] | str:
        try:
            opened = Index.open(tmp_path / "idx", tiny)
            opened.view.places_by_id()
            return list(opened.search("a b", 99))
        except InputError as error:
            return str(error)

    for path in [path for path in (tmp_path / "idx").rglob("*") if path.is_file()]:
        content = path.read_bytes()
        other = content.replace(b"<f4", b"<i4").replace(b"<i8", b"<f8").replace(b"|i1", b"|u1").replace(b"<u8", b"<i8")
        half = len(content) // 2
        numbers = path.stem in ("vectors", "scales", "bits")  # of which any may be right
        filled = content if numbers else content[:half] + b"}" * half
        for damage in (b"", content[:half], content[:-3], content + b"x\n", filled, other, None):
            path.unlink()
            if damage is not None:
                path.write_bytes(damage)
            found = look()
            if isinstance(found, str):
                assert path.name in found or path.parent.name in found
            else:
                assert found == before, (path, damage)  # nothing hangs on what stands behind an array
            path.write_bytes(content)
    assert look() == before


STEPS = """
import os, sys
from pathlib import Path
import mtl.disk, mtl.index.store, mtl.index.index as indexes
from mtl import Index, SentenceEncoder
folder, model, step, kind = sys.argv[1:]
left = [int(step)]

def counted(function):
    def call(*args, **options):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), 9)
        return function(*args, **options)
    return call

for name in ("replace", "touch", "mkdir"):
    setattr(Path, name, counted(getattr(Path, name)))
mtl.disk.sync = counted(mtl.disk.sync)
indexes.WINDOW = 3
index = Index.open(folder, SentenceEncoder.from_pretrained(model))
if kind == "add":
    index.add([{"id": i, "text": "f " + "abcdefgh"[i]} for i in range(8)], resume=True)
else:
    index.delete(["n2", "n4"])
print("done")
"""


@pytest.mark.parametrize("kind", ["add", "delete"])
@pytest.mark.slow
def test_kill_at_any_step(tiny: SentenceEncoder, folder: Path, tmp_path: Path, kind: str) -> None:
    """Before each of its writes, the process is killed; the index is the old or the new one, and the rest goes on."""
    made(tmp_path / "start", tiny)
    before = sorted(map(str, ids(Index.open(tmp_path / "start", tiny).search("f", 99))))
    new = [*before, *map(str, range(8))] if kind == "add" else [name for name in before if name not in ("n2", "n4")]
    states = set()
    for step in range(1, 200):
        where = tmp_path / f"{step}"
        shutil.copytree(tmp_path / "start", where)
        done = subprocess.run(
            [sys.executable, "-c", STEPS, str(where), str(folder), str(step), kind], capture_output=True, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        index = Index.open(where, tiny)
        found = sorted(map(str, ids(index.search("f", 99))))
        assert found in (before, sorted(new)), step
        states.add(len(found))
        rows = [{"id": i, "text": "f " + "abcdefgh"[i]} for i in range(8)]
        if kind == "add":
            index.add(rows, resume=True, replace=len(found) != len(before))
        elif found == before:
            index.delete(["n2", "n4"])
        assert sorted(map(str, ids(index.search("f", 99)))) == sorted(new), step
        left = {path.name for path in where.iterdir()} - {"index.json", ".lock"}
        assert all(name.startswith(("segment-", "deleted-")) for name in left), left
    assert step > 5
    assert states == {len(before), len(new)}


def test_an_interrupted_addition_goes_on(
    tiny: SentenceEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = made(tmp_path / "idx", tiny)
    monkeypatch.setattr(indexes, "WINDOW", 2)
    rows = [{"id": i, "text": text} for i, text in enumerate(TEXTS)]

    def broken() -> Any:
        yield from rows[:5]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index.add(broken())
    index.refresh()
    assert len(index) == 8
    with pytest.raises(InputError, match="--resume goes on with them"):
        index.add(rows)
    with pytest.raises(InputError, match="the input differs"):
        index.add(rows[1:], resume=True)
    embedded: list[str] = []
    encode = SentenceEncoder.encode_rows

    def watched(self: Any, given: Any, *args: Any, **options: Any) -> Any:
        return encode(self, (embedded.append(row[0]) or row for row in given), *args, **options)

    monkeypatch.setattr(SentenceEncoder, "encode_rows", watched)
    assert index.add(rows, resume=True) == 8
    assert embedded == TEXTS[4:]
    assert len(index) == 16


def test_the_commands(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(map(str, arguments)))
        return ended.value.code, *capsys.readouterr()

    source, idx = tmp_path / "docs.jsonl", tmp_path / "idx"
    source.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    code, _, said = call("index", source, "-o", idx, "-m", folder, "--id-field", "id")
    assert code == 0, said
    assert said.endswith(f"added 8 rows to {idx}, which has 8\n")
    code, shown, _ = call("search", idx, "a b", "f", "-k", 2)
    assert [line.split()[1] for line in shown.splitlines() if line.startswith("  ")][:3] == ["n0", "n7", "n2"]
    code, printed, _ = call("search", idx, "f", "-k", "1", "--json")
    assert json.loads(printed) | {"score": 1} == {"query": "f", "score": 1, "id": "n2", "row": ROWS[2]}
    assert "--append adds to it" in call("index", source, "-o", idx)[2]
    (tmp_path / "more.txt").write_text("a\n")
    assert "row 1, field 'id': the id is None" in call("index", tmp_path / "more.txt", "-o", idx, "--append")[2]
    source.write_text('{"id": "new", "text": "a b"}\n')
    assert (
        f"--form is int8; {idx} was made with fp32" in call("index", source, "-o", idx, "--append", "--form", "int8")[2]
    )
    same = ("--form", "fp32", "--id-field", "id", "-m", folder)
    assert call("index", source, "-o", idx, "--append", "--overwrite", *same)[2].endswith("which has 9\n")
    assert call("index", "-o", idx, "--delete", "n0", "--delete", "n7")[2] == "deleted 2 rows\n"
    assert json.loads(call("search", idx, "a b", "-k", 1, "--json")[1])["id"] == "new"
    assert call("index", "-o", idx)[0] == 2
    assert "is no index; without --append, one is made" in call("index", source, "-o", tmp_path / "x", "--append")[2]
    assert mtl.Index.open(idx).state.form == "fp32"
    left = [str(hit.id) for hit in mtl.Index.open(idx).search("a", 99)]
    call("index", "-o", idx, *(word for name in left for word in ("--delete", name)))
    assert mtl.Index.open(idx)  # though it has no rows
    assert call("index", source, "-o", idx, "--append")[2].endswith("which has 1\n")
    assert f"{source} is a file, and no index" in call("search", source, "a")[2]
    assert len(View(idx, read_state(idx))) == 1


def test_an_index_that_was_made_anew_in_its_place(tiny: SentenceEncoder, tmp_path: Path) -> None:
    """It has as many states as the one before; who has that open sees it, and refuses that of another model."""
    served = made(tmp_path / "idx", tiny)
    assert served.current() is served
    shutil.rmtree(tmp_path / "idx")
    other = Index.create(tmp_path / "idx", tiny, id_field="id")
    other.add([{"id": "new", "text": "f"}])
    assert other.state.number == served.state.number
    newest = served.current()
    assert ids(newest.search("f", 9)) == ["new"]
    assert ids(served.search("f", 1)) == ["n2"]  # what it had opened
    for deleted, left in ("n0", ["n1", "n2"]), ("n1", ["n0", "n2"]):  # states that are alike but for what is deleted
        shutil.rmtree(tmp_path / "idx")
        index = Index.create(tmp_path / "idx", tiny, id_field="id")
        index.add(ROWS[:3])
        index.delete([deleted])
        newest = newest.current()
        assert sorted(ids(newest.search("f", 9))) == left
    shutil.rmtree(tmp_path / "idx")
    next(tiny.encoder.parameters()).data += 1
    Index.create(tmp_path / "idx", tiny, id_field="id").add([{"id": "else", "text": "f"}])
    next(tiny.encoder.parameters()).data -= 1
    for look in (newest.current, newest.refresh, lambda: newest.add([{"id": 1, "text": "a"}])):
        with pytest.raises(InputError, match="was made with another model: encoder was"):
            look()
    assert sorted(ids(newest.search("f", 9))) == left


def test_a_first_addition_that_was_refused_leaves_nothing_in_the_way(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, idx = tmp_path / "docs.jsonl", tmp_path / "idx"
    source.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    wrong, right = (["--field", "body"], ["--id-field", "size"]), ["--form", "int8", "--resume"]
    for options, code in ((wrong[0], 1), (wrong[1], 1), (right, 0), (["--form", "int8"], 1)):
        with pytest.raises(SystemExit, match=str(code)):
            main(["index", str(source), "-o", str(idx), "-m", str(folder), *options])
    assert "is an index already; --append adds to it" in capsys.readouterr().err
    opened = Index.open(idx)
    opened.delete(range(8))
    with pytest.raises(InputError, match="exists and is not empty"):  # it had rows
        Index.create(idx, str(folder))


def test_a_folder_of_a_model_is_found_from_anywhere(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder.parent)
    Index.create(tmp_path / "idx", folder.name).add(["a b"])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(Index.open(tmp_path / "idx").search("a")) == 1
    folder.rename(tmp_path / "moved")
    with pytest.raises(WeightsError, match=r"is no folder; .* was made with it: open it with model=\.\.\., or -m"):
        Index.open(tmp_path / "idx").search("a")
    with pytest.raises(SystemExit, match="0"):
        main(["search", str(tmp_path / "idx"), "a", "-m", str(tmp_path / "moved")])


def test_ids_and_texts_of_any_kind_on_the_command_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What no terminal shows, or acts on, stands escaped; JSON has it as it is."""
    odd = ["", " ", "a\nb", "\x1b[2J", "\ud800", "\u202e", "名" * 40, "x" * 500, 2**70, -1, "é"]
    index = Index.create(tmp_path / "idx", str(folder), id_field="id")
    index.add([{"id": name, "text": f"a\x1b[31m{name!r}" + "\0 b" * 99} for name in odd])
    for options, lines in ((["--json"], len(odd)), ([], len(odd) + 1)):
        with pytest.raises(SystemExit, match="0"):
            main(["search", str(tmp_path / "idx"), "a\x1b[0m", "-k", "99", *options])
        printed = capsys.readouterr().out.splitlines()
        assert len(printed) == lines
        assert all(line.isprintable() for line in printed if not options)
        assert not options or sorted(map(str, odd)) == sorted(str(json.loads(line)["id"]) for line in printed)
    with pytest.raises(SystemExit, match="0"):
        main(["index", "-o", str(tmp_path / "idx"), "--delete", "é", "--delete", "", "--delete=-1"])
    assert sorted(map(str, ids(index.current().search("a", 99)))) == sorted(map(str, odd[1:9]))


def test_what_json_cannot_hold(tiny: SentenceEncoder, tmp_path: Path) -> None:
    index = Index.create(tmp_path / "idx", tiny)
    ring: list[Any] = []
    ring.append(ring)
    for value in ({(1, 2): 3}, ring, 10**5000):
        with pytest.raises(InputError, match="JSON cannot hold "):
            index.add([{"text": "a", "more": value}])
    assert index.add([{"text": "a", "more": [float("nan"), b"xy", {"at": np.datetime64("2026-01-02")}]}]) == 1
    assert index.search("a")[0].row["more"] == [None, "eHk=", {"at": "2026-01-02"}]


ODD = ("", " ", "0", "-1", "é", "\ud800", "a\nb", "\0", 2**70, "x" * 300)
IDS = st.one_of(st.integers(-2, 3), st.sampled_from(ODD))
VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=3) | st.binary(max_size=3) | st.dates(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2), max_leaves=4,
)  # fmt: skip
GIVEN = st.fixed_dictionaries({"id": IDS, "text": st.sampled_from(["", "a b", "f \0", "\x1b[0m"]), "more": VALUES})
STEP = st.one_of(
    st.tuples(st.just("add"), st.lists(GIVEN, max_size=6)), st.tuples(st.just("replace"), st.lists(GIVEN, max_size=6)),
    st.tuples(st.just("delete"), st.lists(IDS, max_size=4)), st.tuples(st.just("move"), st.just([])),
)  # fmt: skip


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["fp32", "int8", "binary"]), st.lists(STEP, max_size=9))
def test_any_steps_are_those_of_a_dict(
    tiny: SentenceEncoder, tmp_path_factory: pytest.TempPathFactory, form: Any, steps: list[tuple[str, list[Any]]]
) -> None:
    """Rows are added, replaced and deleted, some wrongly, and the folder renamed; what is left is in its order, each
    row as JSON has it, and is found by its text."""
    index = Index.create(tmp_path_factory.mktemp("any") / "0", tiny, form, id_field="id")
    kept: dict[str, dict[str, Any]] = {}
    for number, (step, rows) in enumerate(steps, 1):
        names = [str(each["id"] if step in ("add", "replace") else each) for each in rows]
        twice, there = len({*names}) < len(names), kept.keys() & {*names}
        if step == "move":
            index.folder.rename(index.folder.with_name(str(number)))
            index = Index.open(index.folder.with_name(str(number)), tiny)
        elif step == "delete":
            if there == {*names}:
                assert index.delete(rows) == len(there)
                kept = {name: row for name, row in kept.items() if name not in there}
            else:
                with pytest.raises(InputError, match="no row has the id"):
                    index.delete(rows)
        elif twice or (there and step == "add"):
            with pytest.raises(InputError, match="the id "):
                index.add(rows, replace=step == "replace")
        else:
            assert index.add(rows, replace=step == "replace") == len(rows)
            more = dict(zip(names, (json.loads(json_line(row)) for row in rows), strict=True))
            kept = {name: row for name, row in kept.items() if name not in there} | more
        for opened in (index, Index(index.folder)):
            assert [opened.fields(place) for place in opened.view.live] == [(row["id"], row) for row in kept.values()]
    for text in ("a b", ""):
        hits = index.search(text, 99)
        assert sorted(str(hit.id) for hit in hits) == sorted(kept)
        same = [hit.row for hit in hits if hit.row["text"] == text]
        assert same == [row for row in kept.values() if row["text"] == text]


def test_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room is there before anything is written to a mapping, where the system could only end the process."""
    vectors = np.random.default_rng(0).standard_normal((40, 5)).astype(np.float32)
    index = random_state(tmp_path / "idx", "binary", vectors, [], [])
    asked = []

    def full(file: int, start: int, size: int) -> None:
        asked.append((start, size - os.fstat(file).st_size))
        raise OSError(errno.EINVAL if len(asked) < 3 else errno.ENOSPC, "")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(InputError, match=r"segment-00000003-0 cannot be written: No space left on device"):
        index.delete(range(30))
    assert asked == [(0, 0)] * 3
    assert len(Index(tmp_path / "idx")) == 40
    assert not [path for path in (tmp_path / "idx").iterdir() if path.name.endswith(".partial")]
