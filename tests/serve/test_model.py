"""A model as the server sees it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints.test_families import written
from conftest import golden
from tokenizers import Tokenizer
from torch import nn

from mtl import MultiTaskModel, SentenceEncoder
from mtl.checkpoints.families import FAMILIES
from mtl.encode.precision import Precision
from mtl.model.pooling import Dense
from mtl.serve.model import Served
from mtl.serve.queue import Row

from .conftest import letters, randomized

TEXTS = ["a b", "c d e f", "g", "a b c d e f g h i j"]


def everything(served: Served, rows: Sequence[Row]) -> list[Any]:
    """What each program gives of each row, together and alone."""
    return [
        value
        for name in served.programs
        for value in [*served.compute(name, rows), *(value for row in rows for value in served.compute(name, [row]))]
    ]


def check_stays(folder: Path, **settings: Any) -> Served:
    """That a folder's model gives the same bits once its weights are written over in place, as `cp` does: they are
    mapped into memory, and what is read of them later would be others."""
    served = Served.load(str(folder), **settings)
    rows = [tuple(row) for row in served.tokenize(TEXTS).rows]
    before = everything(served, rows)
    for path in folder.rglob("*.safetensors"):
        with path.open("r+b") as file:
            file.write(bytes(path.stat().st_size))
    assert all(map(np.array_equal, before, everything(served, rows)))
    return served


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_its_files_may_be_written_over(tagging: MultiTaskModel, tmp_path: Path, precision: Precision) -> None:
    tagging.save(tmp_path / "model")
    assert check_stays(tmp_path / "model", precision=precision, int8_least_cosine=0).programs.keys() == {
        "vectors", "tokens", "heads",
    }  # fmt: skip


def test_so_may_those_of_a_layer_behind_the_pooling(tmp_path: Path) -> None:
    made = dataclasses.replace(letters(tmp_path), pooling=("cls",), after=(randomized(Dense(12, 7, nn.Tanh())),))
    SentenceEncoder.from_checkpoint(made).save(tmp_path / "model")
    check_stays(tmp_path / "model")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_served_as_it_computes(family: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = written(golden(f"families/{family}"), tokenizer, tmp_path / "model")
    expected = MultiTaskModel.from_pretrained(folder).predict(TEXTS)
    vectors, logits = expected.embeddings.copy(), expected.logits["classification"].copy()
    served = check_stays(folder)
    rows = [tuple(row) for row in served.tokenize(TEXTS).rows]
    embeddings, found = served.split(served.compute("heads", rows))
    assert np.array_equal(embeddings, vectors)
    assert np.array_equal(found["classification"], logits)
    assert np.array_equal(np.stack(served.compute("vectors", rows)), vectors)
