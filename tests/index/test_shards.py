"""What embed-corpus wrote, searched file by file, against one index of all rows."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mtl import Index, InputError, SentenceEncoder, embed_corpus, search_corpus
from mtl.cli import main
from mtl.errors import WeightsError

WORDS = [*"abcdefgh"]
SIZES = (40, 3, 0, 17)
QUERIES = ["a b", "h", "c d e f"]


@pytest.fixture
def rows(tmp_path: Path) -> list[dict[str, str]]:
    """Rows in four files, many texts twice, in the order of the files' names."""
    generator, found = np.random.default_rng(0), []
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for i, size in enumerate(SIZES):
        texts = [" ".join(generator.choice(WORDS, generator.integers(1, 4))) for _ in range(size)]
        part = [{"text": text, "id": f"{i}-{j}"} for j, text in enumerate(texts)]
        table = pa.Table.from_pylist(part, pa.schema({"text": pa.string(), "id": pa.string()}))
        pq.write_table(table, tmp_path / "in" / ("sub" if i == 3 else "") / f"{i}.parquet")
        found += part
    return found


def as_index(folder: Path, tmp_path: Path, rows: list[dict[str, str]]) -> Index:
    index = Index.create(tmp_path / "idx", str(folder), id_field="id")
    index.add(rows)
    return index


@pytest.mark.parametrize("k", [1, 9, 99])
def test_the_hits_of_one_index(
    folder: Path, tmp_path: Path, rows: list[dict[str, str]], k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed_corpus([tmp_path / "in"], tmp_path / "out", model=folder, keep=["text"])
    monkeypatch.setattr("mtl.index.shards.BLOCK", 7)
    index = as_index(folder, tmp_path, rows)
    for queries in (QUERIES, QUERIES[0]):
        assert search_corpus(tmp_path / "out", queries, k) == index.search(queries, k)
    vectors = index.model.encode(QUERIES)
    assert search_corpus(tmp_path / "out", vectors, k) == index.search(vectors, k)


def test_other_numbers_and_rows_without_ids(folder: Path, tmp_path: Path, rows: list[dict[str, str]]) -> None:
    exact = as_index(folder, tmp_path, rows).search(QUERIES, 5)
    for kind in ("float16", "scaled-int8"):
        embed_corpus([tmp_path / "in"], tmp_path / kind, model=folder, id_column=None, output_precision=kind)
        found = search_corpus(tmp_path / kind, QUERIES, 5)
        for ours, theirs in zip(found, exact, strict=True):
            np.testing.assert_allclose([hit.score for hit in ours], [hit.score for hit in theirs], atol=0.02)
            assert all(hit.id.endswith(f":{hit.row['row']}") for hit in ours)


def test_what_is_refused(
    folder: Path, tmp_path: Path, rows: list[dict[str, str]], tiny: SentenceEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"has no manifest.json; expected a folder that embed-corpus wrote"):
        search_corpus(tmp_path, "a")
    embed_corpus([tmp_path / "in"], out, model=folder)
    with pytest.raises(InputError, match=r"the vectors have 3 and \d+ dimensions"):
        search_corpus(out, np.ones((1, 3), np.float32))
    with pytest.raises(InputError, match="k is 0"):
        search_corpus(out, "a", 0)
    other = SentenceEncoder.from_pretrained(folder)
    next(other.encoder.parameters()).data += 1
    with pytest.raises(InputError, match="was made with another model: fingerprint.encoder was"):
        search_corpus(out, "a", model=other)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match="an address needs Ray"):
        search_corpus(out, "a", address="local")
    with pytest.raises(InputError, match="expected"):
        search_corpus(out, 5)
    with pytest.raises(InputError, match="threads is 2; it is of the tasks of a cluster, and no address is given"):
        search_corpus(out, "a", threads=2)
    folder.rename(tmp_path / "moved")
    with pytest.raises(WeightsError, match=r"is no folder; .* was made with it: search with model=\.\.\., or -m"):
        search_corpus(out, "a")
    assert search_corpus(out, "a", model=str(tmp_path / "moved"))
    (tmp_path / "moved").rename(folder)
    (out / "README.md").write_text("a page")  # passed over
    graph = torch.ones(1, other.dim, requires_grad=True)
    assert search_corpus(out, graph, 3) == search_corpus(out, graph.detach().numpy(), 3)
    shutil.copytree(out, tmp_path / "none", ignore=shutil.ignore_patterns("*.parquet"))
    with pytest.raises(InputError, match="has no vectors yet"):
        search_corpus(tmp_path / "none", "a")
    pq.write_table(pa.table({"x": [1]}), out / "foreign.parquet")
    with pytest.raises(InputError, match=r"foreign.parquet is no output of embed-corpus"):
        search_corpus(out, "a")
    (out / "foreign.parquet").write_bytes(b"cut short")
    with pytest.raises(InputError, match=r"foreign.parquet cannot be read"):
        search_corpus(out, "a")


def test_on_the_command_line(
    folder: Path, tmp_path: Path, rows: list[dict[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    embed_corpus([tmp_path / "in"], tmp_path / "out", model=folder, keep=["text"])
    with pytest.raises(SystemExit, match="0"):
        main(["search", str(tmp_path / "out"), "a b", "-k", "2", "--json"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["id"], line["row"]) for line in lines] == [
        (hit.id, hit.row) for hit in search_corpus(tmp_path / "out", "a b", 2)
    ]
    with pytest.raises(SystemExit, match="0"):
        main(["search", str(tmp_path / "out"), "a b"])
    assert capsys.readouterr().out.startswith("'a b'\n  ")


def test_a_column_of_bytes_is_shown(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"text": ["a", "b"], "more": [b"xy", b"z"]}), tmp_path / "in" / "0.parquet")
    embed_corpus([tmp_path / "in"], tmp_path / "out", model=folder, id_column=None, keep=["more"])
    with pytest.raises(SystemExit, match="0"):
        main(["search", str(tmp_path / "out"), "a"])
    assert "eHk=" in capsys.readouterr().out


@pytest.mark.slow
def test_on_ray(folder: Path, tmp_path: Path, rows: list[dict[str, str]]) -> None:
    pytest.importorskip("ray")
    embed_corpus([tmp_path / "in"], tmp_path / "out", model=folder, keep=["text"])
    expected = as_index(folder, tmp_path, rows).search(QUERIES, 9)
    assert search_corpus(tmp_path / "out", QUERIES, 9, address="local") == expected
    part = next((tmp_path / "out").glob("0.parquet"))
    table = pq.read_table(part)
    place, width = table.schema.get_field_index("embedding"), table.schema.field("embedding").type.list_size
    lists = pa.FixedSizeListArray.from_arrays(pa.array(np.full(len(table) * width, np.nan, np.float32)), width)
    pq.write_table(table.set_column(place, "embedding", lists), part)
    with pytest.raises(InputError, match="is not finite"):
        search_corpus(tmp_path / "out", QUERIES, 9, address="local")
