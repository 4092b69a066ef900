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


def test_comments_are_lines_before_a_sentence_with_other_columns(tmp_path: Path) -> None:
    text = (
        "\ufeff# global columns\n\n# id 7\tdomain=en\na _ _ O\n# _ _ B-x\n\n"
        "# id 8\tdomain=en\n# _ _ O\nb _ _ O\n-DOCSTART-\n# end"
    )
    assert rows(tmp_path, text) == [(4, ["a", "#"], ["O", "B-x"]), (8, ["#", "b"], ["O", "O"])]
    assert rows(tmp_path, "#\tO\n\na\tB-x\n") == [(1, ["#"], ["O"]), (3, ["a"], ["B-x"])]
    assert rows(tmp_path, "# O\n") == [(1, ["#"], ["O"])]


def test_empty_columns_at_the_end_count_for_nothing(tmp_path: Path) -> None:
    assert rows(tmp_path, "a\tO\t\nb\tB-x \t \t\nc B-x  \n") == [(1, ["a", "b", "c"], ["O", "B-x", "B-x"])]


@pytest.mark.parametrize("words", [["Hello", "1", "1 2"], ["1 .", "1", "1 2"], ["1", "a 1 2", "1 2"]])
def test_sentences_of_numbers(tmp_path: Path, words: list[str]) -> None:
    """Where words stand first in many columns, some of them may be numbers."""
    lines = ("".join(f"{word}\ta\tb\tc\td\te\tf\tO\n" for word in sentence.split()) for sentence in words)
    assert [tokens for _, tokens, _ in rows(tmp_path, "\n".join(lines))] == [sentence.split() for sentence in words]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a O\nb\n", "line 2: 1 column; expected 2, as before"),
        ("word\nother\n", "line 1: 1 column; expected two or more: a word, and at last its tag"),
        ("a x O\nb O\n", "line 2: 2 columns; expected 3, as before"),
        ("a\tO\n\nb\t\n", "line 3: 1 column; expected 2, as before"),
        ("a\t\tO\n\n\tb\tO\n", "line 3: 3 columns; expected 3, as before"),
        (
            "# text\n1\ta\t_\t_\t_\t_\t_\t_\n2-3\tb\t_\t_\t_\t_\t_\t_\n",
            "line 2: the first of 8 columns or more counts the words",
        ),
        ("".join(f"1\t{word}\t_\t_\t_\t_\t_\t_\n\n" for word in "ab"), "line 1: the first of 8 columns or more"),
        (
            "1\ta\t_\t_\t_\t_\t_\t_\n\n1-2\tb\t_\t_\t_\t_\t_\t_\n1\tb\t_\t_\t_\t_\t_\t_\n1.1\tb\t_\t_\t_\t_\t_\t_\n",
            "line 1: the first of 8 columns or more",
        ),
        ("a O\n# about it\n", "line 2: 3 columns; expected 2, as before"),
    ],
)
def test_bad_columns(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        rows(tmp_path, text)
