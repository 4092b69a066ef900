"""Recipes and labelled data: what is right is read, and what is wrong is named with file and line."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from mtl import SentenceEncoder
from mtl.errors import InputError, MtlError, RecipeError
from mtl.tasks.spec import TaskSpec
from mtl.training.data import completed, fingerprints, load_data, split_rows, splits_of
from mtl.training.recipe import BUNDLED, Recipe, find_recipe, read_recipe

RECIPE = """
model = "tiny"

[training]
epochs = 2

[[task]]
name = "topic"
labels = ["x", "y"]
train = "train.jsonl"

[[task]]
name = "mood"
labels = ["good", "bad"]
train = "train.jsonl"
freeze = { 1 = "encoder", 2 = 1, 3 = "none" }
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


def test_a_recipe(tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path, RECIPE))
    assert recipe.model == "tiny"
    assert recipe.training.epochs == 2
    topic, mood = recipe.tasks
    assert topic.labels == ("x", "y")
    assert [topic.frozen_depth(epoch, 6) for epoch in (1, 2, 3)] == [None] * 3
    assert [mood.frozen_depth(epoch, 6) for epoch in (1, 2, 3, 9)] == [6, 1, None, None]
    assert json.loads(json.dumps(recipe.as_dict()))["task"]["mood"]["freeze"]["1"] == "encoder"


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("epochs = 2", "epoch = 2", "recipe.toml, line 5: 'epoch' is unknown; expected one of epochs, batch_size"),
        ("epochs = 2", "epochs = 0", "recipe.toml, line 5: epochs is 0; expected 1 to"),
        ("epochs = 2", "epochs = 2.5", "recipe.toml, line 5: epochs is 2.5; expected a whole number"),
        ("epochs = 2", "epochs = true", "recipe.toml, line 5: epochs is True; expected a whole number"),
        ("epochs = 2", 'schedule = "steps"', "line 5: schedule is 'steps'; expected one of linear, cosine, constant"),
        ("epochs = 2", 'sampling = "all"', "line 5: sampling is 'all'; expected one of proportional"),
        ("epochs = 2", "epochs = ", "recipe.toml: not TOML"),
        ('model = "tiny"', "", 'recipe.toml: expected model = "name" and at least one'),
        ('model = "tiny"', 'model = "tiny"\nmodle = 1', "recipe.toml, line 3: 'modle' is unknown"),
        ('name = "mood"', 'name = "topic"', "recipe.toml, line 13: two tasks are called 'topic'"),
        ('name = "mood"', 'name = "a.b"', "line 13: name is 'a.b'; expected letters"),
        ('name = "mood"', 'name = "type"', "line 13: name is 'type'; expected letters, digits, - and _, and no word"),
        ('name = "mood"', "", r"\[\[task\]\]: a name is missing"),
        ('["good", "bad"]', '["good"]', r"line 14: labels are \['good'\]; expected at least 2"),
        ('["good", "bad"]', '["good", "good"]', "line 14: labels are .*; expected each of them once"),
        ('["good", "bad"]', "[1, 2]", r"line 14: labels is \[1, 2\]; expected a list of strings"),
        ('{ 1 = "encoder"', '{ 4 = "encoder"', "expected epochs, counted from 1, to start with 1"),
        ('2 = 1, 3 = "none"', '2 = "half"', "freeze is 'half'; expected a number of blocks"),
        ('{ 1 = "encoder", 2 = 1, 3 = "none" }', "-1", "line 16: freeze is -1; expected a number of blocks"),
        ('labels = ["good", "bad"]', 'kind = "ranking"', "line 14: kind is 'ranking'; expected one of single-label"),
        ('labels = ["x", "y"]', 'labels = ["x", "y"]\npooling = "median"', r"pooling is \['median'\]; expected one or"),
        ('labels = ["x", "y"]', 'labels = ["x", "y"]\nhead = "mlp"', "line 10: head is 'mlp'; expected one of linear"),
        ('labels = ["x", "y"]', 'labels = ["x", "y"]\nweight = 0', "line 10: weight is 0.0; expected more than 0"),
        (
            'labels = ["x", "y"]',
            'labels = ["x", "y"]\ntext_field = ["a", "b"]',
            r"line 10: text_field is \['a', 'b'\]; expected 1 field for a single-label task",
        ),
        ('labels = ["x", "y"]', 'labels = ["x", "y"]\nkind = "regression"', "expected no labels for a regression task"),
    ],
)
def test_mistakes_in_a_recipe(tmp_path: Path, before: str, after: str, message: str) -> None:
    assert before in RECIPE
    with pytest.raises(RecipeError, match=message):
        read_recipe(write(tmp_path, RECIPE.replace(before, after)))


def test_a_byte_order_mark(tmp_path: Path) -> None:
    assert read_recipe(write(tmp_path, "\ufeff" + RECIPE)) == read_recipe(write(tmp_path, RECIPE))


def test_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"nothing.toml is no recipe; expected a .toml file, or one of demo"):
        find_recipe("nothing.toml")
    with pytest.raises(RecipeError, match="cannot be read: No such file"):
        read_recipe(tmp_path / "nothing.toml")


def rows(path: Path, *fields: dict) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in fields))


TOPIC = TaskSpec("topic", ("x", "y"), train="train.jsonl")
MANY = TaskSpec("tags", ("x", "y", "z"), kind="multi-label", train="train.jsonl")
SCORE = TaskSpec("score", kind="regression", train="train.jsonl")


@pytest.mark.parametrize(
    ("task", "labels", "targets"),
    [
        (TOPIC, ["y", "x", 1, "0"], [1, 0, 1, 0]),
        (MANY, [["x", "z"], [], "y|z", "", [0, 0, 1]], [[1, 0, 1], [0, 0, 0], [0, 1, 1], [0, 0, 0], [0, 0, 1]]),
        (SCORE, [1, "2.5", -3.0], [[1.0], [2.5], [-3.0]]),
    ],
)
def test_targets(tmp_path: Path, task: TaskSpec, labels: list, targets: list) -> None:
    rows(tmp_path / "train.jsonl", *({"text": "a", "label": label} for label in labels))
    texts, found = split_rows(task, "train", tmp_path).stacked(task)
    assert texts == ["a"] * len(labels)
    assert found.tolist() == targets
    assert found.dtype == {"topic": torch.int64, "score": torch.float64}.get(task.name, torch.float32)


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        (TOPIC, {"text": "a", "label": "q"}, r"train.jsonl, line 2: label 'q' is not declared; expected one of x, y"),
        (TOPIC, {"text": "a", "label": None}, "line 2: label None is not declared"),
        (MANY, {"text": "a", "label": ["x", "q"]}, "line 2: label 'q' is not declared; expected names in a list"),
        (
            MANY,
            {"text": "a", "label": [1, 0]},
            r"line 2: label is \[1, 0\]; expected a 0 or 1 for each of the 3 labels, or names in a list",
        ),
        (SCORE, {"text": "a", "label": "high"}, "line 2: label is 'high'; expected a finite number"),
        (SCORE, {"text": "a", "label": "nan"}, "line 2: label is 'nan'; expected a finite number"),
        (SCORE, {"text": "a", "label": 1e39}, "line 2: label is 1e\\+39; expected a finite number, at most 3.4e38"),
        (SCORE, {"text": "a", "label": 10**400}, "line 2: label is 10+.*; expected a finite number"),
        (TOPIC, {"body": "a", "label": "x"}, "line 2: no field 'text'; it has body, label"),
        (TOPIC, {"text": 5, "label": "x"}, "line 2: field 'text' is a int; expected a string"),
        (
            TOPIC,
            {"text": "\ud83d", "label": "x"},
            "line 2: field 'text' holds half of a surrogate pair: .*; expected Un",
        ),
    ],
)
def test_mistakes_in_data(tmp_path: Path, task: TaskSpec, row: dict, message: str) -> None:
    good = {"text": "a", "label": 1.0 if task is SCORE else "x"}
    rows(tmp_path / "train.jsonl", good, row)
    with pytest.raises(MtlError, match=message):
        split_rows(task, "train", tmp_path)


def test_missing_and_empty_files(tmp_path: Path, tiny: SentenceEncoder) -> None:
    with pytest.raises(InputError, match=r"train.jsonl cannot be read: No such file"):
        split_rows(TOPIC, "train", tmp_path)
    (tmp_path / "train.jsonl").write_text("")
    with pytest.raises(RecipeError, match=r"task 'topic': .*train.jsonl has no rows; expected at least one for train"):
        split_rows(TOPIC, "train", tmp_path)
    path = write(tmp_path, 'model = "tiny"\n[[task]]\nname = "topic"\nlabels = ["x", "y"]\n')
    with pytest.raises(RecipeError, match="task 'topic' has no training data"):
        load_data(read_recipe(path), tiny)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_format(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"train{suffix}"
    if suffix == ".jsonl":
        rows(path, {"text": "a, b", "label": "x"}, {"text": "c", "label": "y"})
    elif suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.table({"text": ["a, b", "c"], "label": [0, 1]}), path)
    else:
        path.write_text('text,label\n"a, b",x\nc,y\n' if suffix == ".csv" else "text\tlabel\na, b\tx\nc\ty\n")
    task = TaskSpec("t", ("x", "y"), train=path.name)
    texts, targets = split_rows(task, "train", tmp_path).stacked(task)
    assert texts == ["a, b", "c"]
    assert targets.tolist() == [0, 1]


def test_damaged_parquet(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "train.parquet").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"train.parquet cannot be read as Parquet"):
        split_rows(TaskSpec("t", ("x", "y"), train="train.parquet"), "train", tmp_path)


def test_what_is_cut_is_noted(tmp_path: Path, tiny: SentenceEncoder) -> None:
    rows(tmp_path / "train.jsonl", {"text": "a b c d e f", "label": "x"}, {"text": "a", "label": "y"})
    task = '[[task]]\nname = "topic"\nlabels = ["x", "y"]\ntrain = "train.jsonl"\n'
    text = f'model = "t"\n[training]\nmax_length = 5\n{task}'
    data, notes = load_data(read_recipe(write(tmp_path, text)), tiny)
    assert [len(row) for row in data["train"]["topic"].rows] == [5, 3]
    assert notes == ["topic train: 1 text was longer than 5 tokens and lost 3 tokens"]


@pytest.mark.parametrize("path", sorted(BUNDLED.glob("*.toml")), ids=lambda path: path.stem)
def test_bundled_recipes_are_whole(path: Path) -> None:
    recipe = read_recipe(path)
    assert all(task.train for task in recipe.tasks)


def test_the_demo_s_sentences_are_distinct() -> None:
    """No sentence, and nothing near to one, is in two splits."""

    def words(text: str) -> frozenset[str]:
        return frozenset("".join(c if c.isalnum() else " " for c in text.lower()).split())

    recipe = read_recipe(BUNDLED / "demo.toml")
    for task in recipe.tasks:
        splits = {split: split_rows(task, split, BUNDLED).stacked(task) for split in ("train", "dev", "test")}
        texts = [text for found, _ in splits.values() for text in found]
        assert len(set(texts)) == len(texts)
        bags = [words(text) for text in texts]
        for i, a in enumerate(bags):
            for b in bags[:i]:
                assert len(a & b) / len(a | b) < 0.6, (a, b)
        for _, targets in splits.values():
            assert set(targets.tolist()) == set(range(len(task.labels)))


def test_the_demo_s_pairs_are_distinct() -> None:
    """No line is in two splits, or twice in one; what is a row's negative is another row's answer."""
    (task,) = read_recipe(BUNDLED / "demo-pairs.toml").tasks
    seen: set[str] = set()
    for split, rows in (("train", 90), ("dev", 30), ("test", 30)):
        texts, _ = split_rows(task, split, BUNDLED).stacked(task)
        questions, answers, others = texts[::3], texts[1::3], texts[2::3]
        assert len(set(questions)) == len(set(answers)) == rows
        assert set(others) == set(answers)
        assert not seen & set(texts)
        seen |= set(texts)


def test_labels_as_tables_have_them(tmp_path: Path, tiny: SentenceEncoder) -> None:
    """Names, numbers, numbers of a column that had blanks, and blanks, which are left out: each said and counted."""
    (tmp_path / "train.csv").write_text("text,label\na,x\nb,1\nc,\nd,0.0\ne,  \nf,1.00\n")
    (tmp_path / "number.csv").write_text("text,label\na,0.5\nb,\nc,2\n")
    topic = dataclasses.replace(TOPIC, train="train.csv")
    assert split_rows(topic, "train", tmp_path).targets == [0, 1, 0, 1]
    recipe = Recipe("tiny", [topic, dataclasses.replace(SCORE, train="number.csv")], folder=tmp_path)
    data, notes = load_data(recipe, tiny, ["train"])
    assert notes == [
        "topic train: 3 labels given as numbers: 0 is x, 1 is y",
        "topic train: 2 rows without a label left out",
        "score train: 1 row without a label left out",
    ]
    assert data["train"]["score"].targets.tolist() == [[0.5], [2.0]]
    (tmp_path / "train.csv").write_text("text,label\na,\n")
    with pytest.raises(RecipeError, match="train.csv has no row of 1 with a label"):
        split_rows(topic, "train", tmp_path)
    (tmp_path / "train.csv").write_text("text,labels\na,x\n")
    with pytest.raises(RecipeError, match="no field 'label'; it has text, labels"):
        split_rows(topic, "train", tmp_path)


def test_classes_of_parquet_are_named(tmp_path: Path) -> None:
    """The hub's writers say what numbers stand for, which may be another order than the recipe's; nulls are blanks."""
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    feature = {"info": {"features": {"label": {"names": ["y", "x"], "_type": "ClassLabel"}}}}
    table = pa.table({"text": ["a", "b", "c"], "label": pa.array([0, None, 1], pa.int64())})
    for part in range(2):
        shard = tmp_path / f"train-0000{part}-of-00002.parquet"
        parquet.write_table(table.replace_schema_metadata({"huggingface": json.dumps(feature)}), shard)
    found = split_rows(dataclasses.replace(TOPIC, train="."), "train", tmp_path)
    assert (found.targets, found.texts, found.blanks) == ([1, 0, 1, 0], [["a"], ["c"], ["a"], ["c"]], 2)


@pytest.mark.parametrize(
    ("kind", "values", "labels"),
    [
        ("single-label", ["b", "a|c", "a|c", "", "d", "b"], ("a|c", "b", "d")),
        ("single-label", ["10", "9", "2", "2.0", "10", "9"], ("2", "9", "10")),
        ("multi-label", ["b|a", "", "c", "a", "b", "c"], ("a", "b", "c")),
        ("multi-label", [["b", "a"], [], ["c"], ["a", "a"], ["b"], "c"], ("a", "b", "c")),
    ],
)
@pytest.mark.parametrize("kind_of_file", ["jsonl", "csv"])
def test_labels_are_found(tmp_path: Path, kind: str, values: list, labels: tuple, kind_of_file: str) -> None:
    """A recipe without labels has those of train, in order; so has the trained model's on its own data."""
    if kind_of_file == "csv":
        if any(isinstance(value, list) for value in values):
            return
        text = "text,label\n" + "".join(f"text {i},{value}\n" for i, value in enumerate(values * 5))
    else:
        rows = [{"text": f"text {i}", "label": value} for i, value in enumerate(values * 5) if value or kind[0] == "m"]
        rows = [{**row, "label": str(row["label"])} if kind[0] == "s" else row for row in rows]
        text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / f"train.{kind_of_file}").write_text(text)
    task = TaskSpec("t", kind=kind, train=f"train.{kind_of_file}", dev=0.3)
    recipe, notes = completed(Recipe("tiny", [task], folder=tmp_path))
    (found,) = recipe.tasks
    assert (found.labels, notes) == (labels, [f"t: labels found: {', '.join(labels)}"])
    assert completed(recipe)[1] == []
    assert task.handler.declared(found) == found
    if kind[0] == "m":
        assert dataclasses.replace(task, thresholds=(0.1, 0.2, 0.3)).handler.labels == ()


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("single-label", ["a"], r"label is \['a'\]; expected a label"),
        ("single-label", 0.5, "label is 0.5; expected a label"),
        ("single-label", None, "label is None; expected a label"),
        ("single-label", "a", r"the labels of its training data are \['a'\]; expected at least 2"),
        ("multi-label", [0, 1, 0], r"label is \[0, 1, 0\]; expected names, or labels = "),
        ("multi-label", "", r"the labels of its training data are \[\]; expected at least 1"),
    ],
)
def test_what_gives_no_labels(tmp_path: Path, kind: str, value: object, message: str) -> None:
    (tmp_path / "train.jsonl").write_text(json.dumps({"text": "x", "label": value}) + "\n")
    task = TaskSpec("t", kind=kind, train="train.jsonl")
    with pytest.raises(RecipeError, match=message):
        completed(Recipe("tiny", [task], folder=tmp_path))
    with pytest.raises(RecipeError, match=r"labels are \[\]; expected at least"):
        dataclasses.replace(task, train=None, dev="train.jsonl")


def test_a_share_of_train(tmp_path: Path, tiny: SentenceEncoder) -> None:
    """Train and dev are parts of one; they do not depend on files or order; changed data have another fingerprint."""
    lines = [json.dumps({"text": f"text {i % 45}", "label": "xy"[i % 45 % 3 == 0]}) + "\n" for i in range(60)]
    (tmp_path / "train.jsonl").write_text("".join(lines))
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "1.jsonl").write_text("".join(lines[40:]))
    (tmp_path / "parts" / "2.jsonl").write_text("".join(lines[:40]))
    task, parts = (dataclasses.replace(TOPIC, train=train, dev=0.2, test=0.1) for train in ("train.jsonl", "parts"))
    splits = {split: split_rows(task, split, tmp_path) for split in ("train", "dev", "test")}
    texts = {split: {text for row in rows.texts for text in row} for split, rows in splits.items()}
    assert sum(len(rows.texts) for rows in splits.values()) == 60
    assert [len(splits[split].texts) for split in ("dev", "test")] == [12, 6]
    assert sum(map(len, texts.values())) == len(set.union(*texts.values()))  # no text is in two
    for split, rows in splits.items():
        assert sorted(split_rows(parts, split, tmp_path).texts) == sorted(rows.texts)

    def prints() -> dict:
        return fingerprints(load_data(Recipe("tiny", [task], folder=tmp_path), tiny)[0])

    before = prints()
    assert before == prints()
    (tmp_path / "train.jsonl").write_text("".join([*lines[:-1], '{"text": "other", "label": "x"}\n']))
    assert before["train"] != prints()["train"] or before["dev"] != prints()["dev"]
    few = dataclasses.replace(TOPIC, dev=0.001)
    with pytest.raises(
        RecipeError, match=r"dev = 0.001 takes no row of 60.*; expected a larger share, or rows of their own"
    ):
        split_rows(few, "dev", tmp_path)
    (tmp_path / "train.jsonl").write_text(lines[0])
    with pytest.raises(
        RecipeError, match=r"dev = 0.9 takes all rows of 1,.*; expected a smaller share, or rows of their own"
    ):
        split_rows(dataclasses.replace(TOPIC, dev=0.9), "train", tmp_path)


def test_a_share_of_pairs_keeps_queries_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Queries that draw on the same documents are in one split each, with as many rows as was asked for."""
    rows = [
        {"query": f"query {i}", "doc": f"text {(7 * i + 13 * j) % 100}", "label": j / 4 if i % 2 else int(not j)}
        for i in range(200) for j in range(4)
    ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "alike.csv").write_text("query,doc,label\n" + "".join(f"q{i // 9},d{i},{i % 2}\n" for i in range(18)))
    task = TaskSpec("rank", kind="relevance", train="rows.jsonl", dev=0.2, test=0.1, text_field=("query", "doc"))
    pairs = TaskSpec("pairs", kind="contrastive", train="rows.jsonl", dev=0.2, test=0.1, text_field=("query", "doc"))
    for each in (task, pairs):
        found = splits_of(each, ("train", "dev", "test"), tmp_path)
        assert {split: len(part.texts) for split, part in found.items()} == {"train": 560, "dev": 160, "test": 80}
        assert len({(split, row[0]) for split, part in found.items() for row in part.texts}) == 200
    alike = dataclasses.replace(task, kind="similarity", test=None)
    with pytest.raises(RecipeError, match=r"takes no row of 800, of which those with a text.*: dev = \"FILE\""):
        split_rows(alike, "dev", tmp_path)
    assert not caplog.messages
    split_rows(dataclasses.replace(task, train="alike.csv", dev=0.7, test=None), "dev", tmp_path)
    assert caplog.messages == [
        "task 'rank': dev = 0.7 takes 9 rows of 18, of which those with a query in common stay together"
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("dev = 0", "line 15: dev is 0; expected files, or a share of train above 0 and below 1"),
        ("dev = 1", "line 15: dev is 1; expected files"),
        ("dev = 1.5", "line 15: dev is 1.5; expected files"),
        ("dev = nan", "line 15: dev is nan; expected files"),
        ("dev = true", "line 15: dev is True; expected a string or a number or a list of strings"),
        ("train = 0.5", "line 15: train is 0.5; expected a string or a list of strings"),
        ("dev = 0.5\ntest = 0.5", "line 15: dev is 0.5; expected .*, all together below 1"),
        ("dev = []", r"line 15: dev is \[\]; expected a file, or several"),
        ("dev = ''", "line 15: dev is ''; expected a file, or several"),
        ("dev = ['a.csv', 5]", "line 15: dev is .*; expected a list of strings"),
    ],
)
def test_mistakes_in_splits(tmp_path: Path, data: str, message: str) -> None:
    train = "" if data.startswith("train") else 'train = "train.jsonl"\n'
    text = RECIPE.replace('train = "train.jsonl"\nfreeze', f"{train}{data}\nfreeze")
    line = text[: text.index(data)].count("\n") + 1
    with pytest.raises(RecipeError, match=message.replace("line 15", f"line {line}")):
        read_recipe(write(tmp_path, text))


def test_a_share_of_nothing() -> None:
    with pytest.raises(RecipeError, match="dev is 0.1, a share of train, and train is missing; expected both"):
        TaskSpec("t", ("x", "y"), dev=0.1)
