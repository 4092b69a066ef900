"""What inspect finds in data that were made odd on purpose, and that it finds nothing in those that are not."""

import json
import random
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_cli import Done, mtl

from mtl import evaluate, train
from mtl.errors import RecipeError
from mtl.training.inspect import alike, inspect

__all__ = ["mtl"]  # the fixture

RECIPE = """
model = "tiny"
[[task]]
name = "topic"
labels = ["Caf\\u00e9", "bar"]
train = "train.jsonl"
dev = "dev.jsonl"
"""


def write(path: Path, *rows: tuple[object, object]) -> None:
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))


@pytest.fixture
def recipe(folder: Path, tmp_path: Path) -> Path:
    """A recipe beside the tiny model; 24 rows of the one label to two of the other, and much that is odd."""
    letters = random.Random(1)
    plain = [" ".join(letters.choices("abcdefghij", k=6)) for _ in range(24)]
    cafe = "Cafe\u0301"  # the same label as declared, decomposed
    write(
        tmp_path / "train.jsonl", *((text, "bar") for text in plain), ("x y z", "Caf\u00e9"), ("x y z", "bar"),
        ("", "Caf\u00e9"), ("q " * 30, 1), ("a", cafe), ("b", " BAR"), (plain[0], "bar"), (5, "bar"),
    )  # fmt: skip
    write(tmp_path / "dev.jsonl", (plain[1], "bar"), ("x y z .", "bar"), ("m n o p", "bar"))
    (tmp_path / "my.toml").write_text(RECIPE)
    return tmp_path / "my.toml"


def test_what_is_odd_is_found(recipe: Path) -> None:
    report = inspect(recipe, near=0.9999)
    train, dev = (report.splits["topic"][split].as_dict() for split in ("train", "dev"))
    counts = {key: train[key] for key in ("rows", "wrong", "empty", "duplicates", "conflicting", "labels_by_place")}
    assert counts == {"rows": 29, "wrong": 3, "empty": 1, "duplicates": 2, "conflicting": 1, "labels_by_place": 1}
    assert (train["labels"], dev["labels"]) == ({"Caf\u00e9": 2, "bar": 27}, {"Caf\u00e9": 0, "bar": 3})
    assert (train["cut_texts"], train["cut_tokens"]) == (1, 16)
    assert train["tokens"] == {"least": 2, "median": 8, "p95": 8, "most": 32}
    notes = "\n".join(report.notes)
    for expected in (
        f"topic: train: 3 rows cannot be read: {recipe.parent / 'train.jsonl'}, line 29: label 'Cafe",
        "topic: train: 1 label given as numbers, taken as places: 0 is Caf\u00e9, 1 is bar",
        "topic: train: 1 row with an empty text",
        "topic: train: 1 text was longer than 16 tokens and lost 16 tokens",
        "topic: train: 1 text with different labels",
        "topic: a label is spelled in several ways: 'Caf\u00e9' (2), 'Cafe\u0301' (1)",
        "topic: a label is spelled in several ways: 'bar' (30), ' BAR' (1)",
        "topic: train is uneven: bar has 27 rows, Caf\u00e9 2; see class_weights",
        "topic: dev has no row of Caf\u00e9",
        "topic: train: 2 rows with the texts of an earlier one: train.jsonl, line 1; train.jsonl, line 25",
        "topic: dev: 1 row with the texts of a row of train: dev.jsonl, line 1 and train.jsonl, line 2",
    ):
        assert expected in notes


def test_near_rows(recipe: Path) -> None:
    """Each pair that is named is as near as it says by the model's own vectors; nothing nearer is left out."""
    from mtl import SentenceEncoder

    write(recipe.parent / "train.jsonl", ("a b c", "bar"), ("a b c d", "bar"), ("z", "bar"))
    write(recipe.parent / "dev.jsonl", ("a b c", "bar"), ("z z", "bar"))
    texts = ["a b c", "a b c d", "z", "z z"]
    vectors = SentenceEncoder.from_pretrained(recipe.parent / "tiny").encode(texts, normalize=True)
    cosines = vectors @ vectors.T
    notes = inspect(recipe, near=float(cosines[2, 3]) - 1e-4).notes
    assert any(f"dev.jsonl, line 2 and train.jsonl, line 3 ({cosines[2, 3]:.3f})" in note for note in notes)
    assert not any("near" in note for note in inspect(recipe, near=1).notes)
    assert [note for note in inspect(recipe, most=2).notes if "not sought" in note] == [
        "topic: train: near rows are not sought: there are 3 different ones, more than 2"
    ]


def test_no_room_for_vectors(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(recipe.parent / "gone"))
    with pytest.raises(RecipeError, match="a temporary file cannot be written: No such file or directory"):
        inspect(recipe)


@pytest.mark.parametrize("named", ["encode", "nearest"])
def test_what_else_cannot_be_read_is_not_called_the_temporary_file(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise OSError("the model's file")

    place = {"encode": "mtl.SentenceEncoder.encode", "nearest": "mtl.training.inspect.nearest"}[named]
    monkeypatch.setattr(place, fail)
    with pytest.raises(OSError, match=r"^the model's file"):
        inspect(recipe)


def test_a_full_disk(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtl.training.inspect.TemporaryFile", partial(Path("/dev/full").open, "wb"))
    with pytest.raises(RecipeError, match="a temporary file cannot be written: No space left on device"):
        inspect(recipe)


def test_a_share_is_looked_at_as_training_takes_it(recipe: Path) -> None:
    recipe.write_text(RECIPE.replace('dev = "dev.jsonl"', "dev = 0.2"))
    report = inspect(recipe, near=1)
    train, dev = (report.splits["topic"][split] for split in ("train", "dev"))
    assert (train.rows + dev.rows, train.wrong, dev.wrong) == (29, 3, 0)
    assert not train.seen.keys() & dev.seen.keys()


def test_the_command(recipe: Path, mtl: Done) -> None:
    shown = mtl("inspect", recipe, "--plot", recipe.parent / "picture.png")
    assert shown.stdout.splitlines()[1].split()[:4] == ["train", "29", "0", "3"]
    assert "note: topic: train is uneven" in shown.stdout
    assert (recipe.parent / "picture.png").read_bytes()[:4] == b"\x89PNG"
    found = json.loads(mtl("inspect", recipe, "--json", "--near", 1).stdout)
    assert found["tasks"]["topic"]["dev"]["rows"] == 3
    assert found["max_length"] == 16
    bad = mtl("inspect", recipe, "--near", "1.5")
    assert bad.returncode == 2


def test_joint_pairs_are_measured_in_one_row(recipe: Path) -> None:
    recipe.write_text(RECIPE.replace('dev = "dev.jsonl"', 'text_field = ["text", "other"]\njoint = true'))
    rows = [{"text": "a b", "other": "c", "label": "bar"}, {"text": "a " * 9, "other": "b " * 9, "label": "bar"}]
    (recipe.parent / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = inspect(recipe, near=1)
    assert report.splits["topic"]["train"].lengths == {6: 1, 21: 1}
    assert "topic: train: 1 pair was longer than 16 tokens and lost 5 tokens" in report.notes


@given(name=st.text(min_size=1).filter(str.strip))
def test_spellings(name: str) -> None:
    """Another case, other blanks: the same label; but another name is another."""
    upper = name.upper()
    assert alike([name, f"  {name} "]) == [[name, f"  {name} "]]
    assert alike([name, f"{name}-"]) == []
    if name.casefold() == upper.casefold() and name != upper:
        assert alike([name, upper]) == [[name, upper]]


def test_labels_that_no_recipe_names_are_found(folder: Path, tmp_path: Path) -> None:
    """They are counted in order, one that train lacks is wrong elsewhere, and what is trained measures by them."""
    letters = random.Random(1)
    rows = [(" ".join(letters.choices("abcdefghij", k=6)), "yx"[i % 2]) for i in range(40)]
    write(tmp_path / "train.jsonl", *rows)
    write(tmp_path / "dev.jsonl", *rows[:4], ("a b", "z"))
    text = RECIPE.replace('labels = ["Caf\\u00e9", "bar"]\n', "").replace('"dev.jsonl"', '0.25\ntest = "dev.jsonl"')
    (tmp_path / "my.toml").write_text(text)
    report = inspect(tmp_path / "my.toml")
    assert list(report.splits["topic"]["train"].as_dict()["labels"].items()) == [("x", 15), ("y", 15)]
    assert any("test: 1 row cannot be read" in note and "'z' is not declared" in note for note in report.notes)
    write(tmp_path / "dev.jsonl", *rows[:4])
    model = train(tmp_path / "my.toml", tmp_path / "run")
    assert model.tasks["topic"].labels == ("x", "y")
    found = evaluate(tmp_path / "run", tmp_path / "my.toml", "dev")["topic"]["accuracy"]
    assert found == json.loads((tmp_path / "run" / "results.json").read_text())["metrics"]["dev"]["topic"]["accuracy"]
