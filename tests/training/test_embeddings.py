"""A model's embeddings, measured on files without a recipe."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from test_cli import Done, mtl

from mtl import SentenceEncoder
from mtl.errors import MtlError
from mtl.training.embeddings import sts

__all__ = ["mtl"]  # the fixture

PAIRS = [("a b", "a c", 3.5), ("d e", "f", 0.5), ("g h i", "g h", 5), ("k", "l m", 2), ("a b", "n o p", 1)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"one": a, "two": b, "score": c}) + "\n" for a, b, c in PAIRS))
    return path


def test_correlations_of_the_cosine(tiny: SentenceEncoder, file: Path) -> None:
    found, notes = sts(tiny, file)
    a, b = (tiny.encode([row[side] for row in PAIRS], normalize=True).astype(np.float64) for side in (0, 1))
    cosines, scores = (a * b).sum(axis=1), [row[2] for row in PAIRS]
    expected = {"pearson": pearsonr(cosines, scores).statistic, "spearman": spearmanr(cosines, scores).statistic}
    assert found == pytest.approx(expected, abs=1e-6)
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


def test_the_command(mtl: Callable[..., Done], folder: Path, file: Path) -> None:
    done = mtl("evaluate", "--model", folder, "--sts", file)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[:3] == ["task", "pearson", "spearman"]
    assert "pairs" in done.stdout
    assert mtl("evaluate", "--model", folder).returncode == 2
