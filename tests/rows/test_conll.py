"""Sentences of words and tags in columns."""

from pathlib import Path

import pytest

from mtl.errors import InputError
from mtl.rows.read import read_rows


def rows(tmp_path: Path, text: str) -> list:
    (tmp_path / "x.conll").write_text(text, encoding="utf-8")
    return [(number, row["tokens"], row["tags"]) for number, row in read_rows(tmp_path / "x.conll")]


def test_columns_blank_lines_and_documents(tmp_path: Path) -> None:
    text = "-DOCSTART- -X- -X- O\n\nEU NNP I-NP B-ORG\n. . O O\n\n \n\nPeter NNP I-NP B-PER"
    assert rows(tmp_path, text) == [(3, ["EU", "."], ["B-ORG", "O"]), (8, ["Peter"], ["B-PER"])]


def test_tabs_keep_what_stands_between_them(tmp_path: Path) -> None:
    assert rows(tmp_path, "a b\tO\r\n#\tB-x\r\n\r\n") == [(1, ["a b", "#"], ["O", "B-x"])]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a O\nb\n", "line 2: 1 column; expected 2, as before"),
        ("word\nother\n", "line 1: 1 column; expected two or more: a word, and at last its tag"),
        ("a x O\nb O\n", "line 2: 2 columns; expected 3, as before"),
        ("a\tO\n\nb\t\n", "line 3: 2 columns; expected 2, as before"),
    ],
)
def test_bad_columns(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        rows(tmp_path, text)
