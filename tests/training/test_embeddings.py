"""A model's embeddings, measured on files without a recipe."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import randomized
from scipy.stats import pearsonr, spearmanr
from test_cli import Done, mtl

from mtl import MultiTaskModel, SentenceEncoder, TaskSpec
from mtl.cli import cli
from mtl.errors import MtlError
from mtl.training.embeddings import reranked, searched, sts

__all__ = ["mtl"]  # the fixture

PAIRS = [("a b", "a c", 3.5), ("d e", "f", 0.5), ("g h i", "g h", 5), ("k", "l m", 2), ("a b", "n o p", 1)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"one": a, "two": b, "score": c}) + "\n" for a, b, c in PAIRS))
    return path


def test_correlations_of_the_cosine(tiny: SentenceEncoder, file: Path) -> None:
    found, notes = sts(tiny, file)
    a, b = (tiny.encode([row[side] for row in PAIRS]).astype(np.float64) for side in (0, 1))
    cosines = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    scores = [row[2] for row in PAIRS]
    expected = {"pearson": pearsonr(cosines, scores).statistic, "spearman": spearmanr(cosines, scores).statistic}
    assert found == pytest.approx(expected, abs=1e-3)  # the cosines lie close together
    assert notes == []


def test_fields_that_do_not_fit(tiny: SentenceEncoder, file: Path, tmp_path: Path) -> None:
    with pytest.raises(MtlError, match="fields are one, two; expected three, two texts and a score; name them with"):
        sts(tiny, file, ["one", "two"])
    with pytest.raises(MtlError, match="line 1: no field 'three'; it has one, two, score"):
        sts(tiny, file, ["one", "three", "score"])
    (tmp_path / "wide.csv").write_text("id,a,b,score\n1,x,y,2\n2,z,y,3\n")
    with pytest.raises(
        MtlError, match="wide.csv has the fields id, a, b, score; expected three, two texts and a score"
    ):
        sts(tiny, tmp_path / "wide.csv")
    assert sts(tiny, tmp_path / "wide.csv", ["a", "b", "score"])[0].keys() == {"spearman", "pearson"}
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(MtlError, match="empty.jsonl has the fields of no row; expected three"):
        sts(tiny, tmp_path / "empty.jsonl")


DOCUMENTS = {"d1": ("", "a b c"), "d2": ("d e", "f"), "d3": ("", "g h i"), "d4": (None, "d e f")}
QUERIES = {"q1": "a b c", "q2": "d e f", "q3": "z", "d3": "g h i"}
QRELS = [("q1", "d1", 1), ("q1", "d2", 0), ("q2", "d2", 2), ("q2", "d4", 1), ("d3", "d3", 1), ("d3", "d1", 1)]


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    folder = tmp_path / "search"
    (folder / "qrels").mkdir(parents=True)
    corpus = [{"_id": key, "title": title, "text": text} for key, (title, text) in DOCUMENTS.items()]
    queries = [{"_id": key, "text": text} for key, text in QUERIES.items()]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in corpus))
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    rows = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, row)) for row in QRELS)]
    (folder / "qrels" / "test.tsv").write_text("\n".join(rows) + "\n")
    return folder


def test_a_search_by_hand(tiny: SentenceEncoder, beir: Path) -> None:
    """q1 finds itself first; q2 finds d2 and d4, equal texts; q3 has nothing relevant; d3 does not find itself."""
    found = searched(tiny, beir).metrics
    vectors = tiny.encode(["a b c", "d e f", "g h i"], normalize=True)
    first = vectors[2] @ vectors[0] > vectors[2] @ vectors[1]  # d3's result d1: before or behind d2 and d4
    rank = 1 if first else 3
    recall = (1 + 1 + 1 / 2) / 3  # d3 itself is relevant by the file, and never found
    ideal = 1 + 1 / math.log2(3)
    assert found == pytest.approx(
        {
            "ndcg@10": (1 + 1 + 1 / math.log2(rank + 1) / ideal) / 3,
            "mrr@10": (1 + 1 + 1 / rank) / 3,
            "recall@10": recall,
            "recall@100": recall,
        }
    )


def test_judgements_about_what_is_not_there(
    tiny: SentenceEncoder, beir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A missing document is never found, and counts among the relevant ones; a missing query is left out."""
    lines = ["query-id\tcorpus-id\tscore", "q1\td1\t1", "q1\tx1\t1", "q1\tx2\t2", "q1\tx3\t0", "q8\td1\t1"]
    (beir / "qrels" / "test.tsv").write_text("\n".join(lines) + "\n")
    found = searched(tiny, beir).metrics
    ideal = 2 + 1 / math.log2(3) + 1 / 2  # x2, then d1 and x1
    assert found == pytest.approx({"ndcg@10": 1 / ideal, "mrr@10": 1, "recall@10": 1 / 3, "recall@100": 1 / 3})
    assert [record.getMessage().partition("test.tsv: ")[2] for record in caplog.records] == [
        "3 judgements about documents that are not there: never found",
        "1 judgement about queries that are not there: left out",
    ]


def test_a_search_as_a_user_gets_it(tiny: SentenceEncoder, beir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the model's prompts, and by its own measure."""
    about = {"prompts": {"query": "q ", "document": "z "}, "similarity_fn_name": "dot"}
    model = SentenceEncoder.from_checkpoint(dataclasses.replace(tiny.to_checkpoint(), **about))
    ids, texts, measures = model.tokenizer.ids, [], []
    monkeypatch.setattr(model.tokenizer, "ids", lambda given: texts.extend(given) or ids(given))
    monkeypatch.setattr("mtl.search.scores", lambda a, b, measure: measures.append(measure) or a @ b.T)
    searched(model, beir)
    assert {text[:2] for text in texts} == {"q ", "z "}
    assert measures == ["dot"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("corpus.jsonl", "", "corpus.jsonl is empty; expected at least one text"),
        ("corpus.jsonl", '{"id": "a"}\n', 'corpus.jsonl, line 1: fields are id; expected strings "_id" and "text"'),
        ("queries.jsonl", '{"_id": "a", "text": "b"}\n' * 2, "queries.jsonl, line 2: the id 'a' stands there twice"),
        (
            "qrels/test.tsv",
            "query-id\tcorpus-id\tscore\nq9\td1\t1\n",
            "no document that it is relevant to a query that",
        ),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq1\td1\tx\n", "line 2: score is 'x'; expected a number, above"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq1\td1\t0\n", "test.tsv says of no document that it is rel"),
        (
            "qrels/test.tsv",
            "query\tdocument\nq1\td1\n",
            "line 2: fields are query, document; expected query-id,",
        ),
    ],
)
def test_mistakes_in_a_search(tiny: SentenceEncoder, beir: Path, name: str, content: str, message: str) -> None:
    (beir / name).write_text(content)
    with pytest.raises(MtlError, match=message):
        searched(tiny, beir)


def test_the_command(mtl: Callable[..., Done], folder: Path, file: Path, beir: Path) -> None:
    done = mtl("evaluate", "--model", folder, "--sts", file, "--plot", file.with_suffix(".png"))
    assert done.returncode == 0, done.stderr
    assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert done.stdout.split()[:3] == ["task", "spearman", "pearson"]
    assert "pairs" in done.stdout
    done = mtl("evaluate", "--model", folder, "--retrieval", beir)
    assert done.stdout.split()[:5] == ["task", "ndcg@10", "mrr@10", "recall@10", "recall@100"], done.stderr
    done = mtl("evaluate", "--model", folder, "--retrieval", beir, "--split", "dev")
    assert "dev.tsv cannot be read: No such file" in done.stderr
    assert mtl("evaluate", "--model", folder).returncode == 2
    done = mtl("evaluate", "--model", folder, "--retrieval", beir, "--plot", "a.png")
    assert done.returncode == 2
    assert "--plot goes with --recipe and --sts; a search has no picture" in done.stderr


def test_a_search_is_reranked(tiny: SentenceEncoder, beir: Path, tmp_path: Path) -> None:
    """What a cross-encoder of these results says by hand, of the first two and of all."""
    task = TaskSpec("score", kind="relevance", text_field=("query", "text"), activation="identity")
    judge = randomized(MultiTaskModel(tiny, [task]))
    first = searched(tiny, beir)
    for depth in (2, 100):
        again = reranked(first, judge, depth)
        for query, before, after in zip(first.queries, first.rankings, again.rankings, strict=True):
            texts = [first.texts[place] for place in before[:depth]]
            order = [hit["corpus_id"] for hit in judge.rank(query, texts)]
            assert after == [before[i] for i in order] + before[depth:]
    judge.save(tmp_path / "judge")
    tiny.save(tmp_path / "encoder")
    arguments = ["-m", str(tmp_path / "encoder"), "--retrieval", str(beir), "--rerank", str(tmp_path / "judge")]
    out = CliRunner().invoke(cli, ["evaluate", *arguments])
    assert out.exit_code == 0, out.output
    assert "search, reranked" in out.stdout
    wrong = CliRunner().invoke(cli, ["evaluate", *arguments[:4], "--rerank", str(tmp_path / "encoder")])
    assert isinstance(wrong.exception, MtlError)
