"""Taggers: how spans are read, tagged, learned, measured and said."""

import csv
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from conftest import randomized
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from mtl import MultiTaskModel, Recipe, SentenceEncoder, TaskSpec, Training, evaluate, train
from mtl.checkpoints.load import Checkpoint
from mtl.cli import cli
from mtl.encode.tokenizer import Tokenizer
from mtl.errors import RecipeError, TrainingStopped
from mtl.model.losses import NO_LABEL
from mtl.tasks.spans import Span, bio, in_units, names, overall, runs, tagged, tallied, windows
from mtl.tasks.tally import by_label
from mtl.training import loop
from mtl.training.data import completed, load_data
from mtl.training.evaluate import bootstrap
from mtl.training.metrics import all_logits, measure

ROWS = [
    {"tokens": ["ab", "c", "d", "ef"], "tags": ["B-x", "I-x", "O", "B-y"]},
    {"tokens": ["g", "hi"], "tags": ["O", "B-y"]},
    {"text": "ab cd, ef", "spans": [[0, 2, "x"], {"start": 7, "end": 9, "label": "y"}]},
    {"tokens": list("abcdefghijklmnopqrst"), "tags": ["O", "B-x", *["O"] * 16, "B-y", "I-y"]},
]


def write(path: Path, rows: list) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def data(tmp_path: Path) -> str:
    return write(tmp_path / "rows.jsonl", ROWS)


@pytest.fixture
def still(folder: Path, edit_json: Callable[..., None]) -> Path:
    """The tiny model without dropout."""
    edit_json(folder / "config.json", dropout=0.0, attention_dropout=0.0)
    return folder


def tagger(**options: object) -> TaskSpec:
    return TaskSpec("ner", kind="tokens", **options)


# Tags and spans


def random_tags(source: random.Random, prefixes: str) -> list[str]:
    tags = ["O", *(f"{prefix}-{label}" for prefix in prefixes for label in ("x", "y", "long-label"))]
    return source.choices(tags, k=source.randint(1, 12))


def agreement(given: list[list[Span]], found: list[list[Span]], labels: tuple[str, ...]) -> dict[str, float]:
    counts = tallied(given, found, labels).sums()
    return {**overall(counts), **by_label(labels, counts)}


@pytest.mark.parametrize("prefixes", ["BI", "BIES"])
def test_spans_and_scores_are_those_of_seqeval(prefixes: str) -> None:
    """1,000 random pairs of sequences, most of them against the scheme: conlleval's rules say what each means."""
    metrics = pytest.importorskip("seqeval.metrics")
    entities = pytest.importorskip("seqeval.metrics.sequence_labeling").get_entities
    source = random.Random(len(prefixes))
    for _ in range(170):
        pairs = [(random_tags(source, prefixes), random_tags(source, prefixes)) for _ in range(3)]
        truth = [one for one, _ in pairs]
        given = [(other * 12)[: len(one)] for one, other in pairs]
        for tags in (*truth, *given):
            assert runs(tags) == [(start, last + 1, label) for label, start, last in entities(tags)]
        found = agreement([runs(tags) for tags in truth], [runs(tags) for tags in given], ("x", "y", "long-label"))
        report = metrics.classification_report(truth, given, output_dict=True, zero_division=0)
        for name in ("precision", "recall"):
            assert found[name] == pytest.approx(report["micro avg"][name])
        assert found["f1"] == pytest.approx(report["micro avg"]["f1-score"])
        for label in report.keys() - {"micro avg", "macro avg", "weighted avg"}:
            expected = [report[label][name] for name in ("precision", "recall", "f1-score", "support")]
            assert [found[f"{label}.{name}"] for name in ("precision", "recall", "f1", "support")] == pytest.approx(
                expected
            )


def test_iob1_and_bilou_and_tags_without_a_prefix() -> None:
    assert runs(["I-x", "B-x", "I-x", "O", "I-y"]) == [(0, 1, "x"), (1, 3, "x"), (4, 5, "y")]
    assert runs(["U-x", "B-x", "L-x", "O"]) == [(0, 1, "x"), (1, 3, "x")]
    assert runs(["x", "x", "O", "x"]) == [(0, 2, "x"), (3, 4, "x")]
    assert runs(["x", "x"], alone=True) == [(0, 1, "x"), (1, 2, "x")]


@given(st.integers(1, 400), st.integers(1, 40))
def test_windows_cover_all_pieces_with_context_on_both_sides(pieces: int, room: int) -> None:
    found = windows(pieces, room)
    edges = [*(first for _, first in found), pieces]
    assert edges[0] == 0
    assert found[0][0] == 0
    for (start, first), last in zip(found, edges[1:], strict=True):
        assert first < last <= start + room  # it decides over something, all of which it sees
        assert first - start >= room // 4 // 2 or start == 0
        assert start + room - last >= room // 4 - room // 4 // 2 or last == pieces


@given(st.text("ab c,.é\U0001f600\n", max_size=40), st.data())
def test_tags_say_the_spans_of_whole_words(text: str, source: st.DataObject) -> None:
    backend = Backend(models.WordPiece({"[UNK]": 0, "a": 1, "b": 2, "##a": 3, "##b": 4, ",": 5, ".": 6}))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    (units,) = in_units(Tokenizer(backend, 8), [text], 8)
    assert all(text[start:end].strip() == text[start:end] != "" for start, end in units.words)
    spans, at = [], 0
    while at < len(units.words):
        last = source.draw(st.integers(at, len(units.words)))
        if last > at:
            spans.append((units.words[at][0], units.words[last - 1][1], source.draw(st.sampled_from("xy"))))
        at = last + source.draw(st.integers(0 if last > at else 1, 2))
    for known in (bio("xy"), ("O", *(f"{p}-{label}" for p in "BIES" for label in "xy"))):
        tags = tagged(units, spans, known)
        assert set(tags) <= set(known)
        assert [(units.words[i][0], units.words[j - 1][1], label) for i, j, label in runs(tags)] == spans


def test_tags_in_the_scheme_of_the_outputs() -> None:
    """Whatever prefixes there are; and a label that is called as another's tag stays what it is."""
    bioes, bilou = ({"O", *(f"{prefix}-x" for prefix in prefixes)} for prefixes in ("BIES", "BILU"))
    for words, expected in ((1, ["S-x"]), (2, ["B-x", "E-x"]), (4, ["B-x", "I-x", "I-x", "E-x"])):
        assert names("x", words, bioes) == expected
        assert names("x", words, bilou) == [tag.replace("E", "L").replace("S", "U") for tag in expected]
    assert names("x", 2, {"O", "I-x"}) == ["I-x", "I-x"]
    assert names("x", 2, {"O", "x"}) == ["x", "x"]
    labels = ["x", "B-x", "O"]
    for label in labels:
        assert runs(names(label, 3, bio(labels))) == [(0, 3, label)]


# Texts as they are tagged


def byte_level() -> Tokenizer:
    backend = Backend(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    texts = ["Paris is in France.", "é\U0001f600 and so on"]
    backend.train_from_iterator(
        texts, trainers.BpeTrainer(show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    )
    return Tokenizer(backend, 64)


def test_words_of_a_vocabulary_of_bytes_stand_between_blanks() -> None:
    text = "Paris is,  é\U0001f600\nok."
    (units,) = in_units(byte_level(), [text], 64)
    assert [text[start:end] for start, end in units.words] == ["Paris", "is,", "é\U0001f600", "ok."]


def test_given_words_have_pieces_that_begin_with_a_blank() -> None:
    """Vocabularies of bytes have it in the piece, and not all tokenizers leave it out of the piece's place."""
    text, words = "Paris  is in", [(0, 5), (7, 9), (10, 12)]
    (units,) = in_units(byte_level(), [text], 64, words=[words])
    assert units.words == words
    pieces = byte_level().backend.encode(text, add_special_tokens=False).tokens
    assert ["".join(pieces[place:]).lstrip("\u0120") for _, place in units.places] == [
        "Paris\u0120\u0120is\u0120in",
        "is\u0120in",
        "in",
    ]


def test_a_prompt_is_no_part_of_the_text(tiny: SentenceEncoder) -> None:
    (units,) = in_units(tiny.tokenizer, ["ab c"], 16, "q: ")
    assert units.words == [(0, 2), (3, 4)]
    assert units.places == [(0, 3), (0, 5)]  # behind [CLS], q and :


def test_targets_stand_on_first_pieces(tiny: SentenceEncoder, data: str) -> None:
    recipe, notes = completed(Recipe("", [tagger(train=data)]))
    assert recipe.tasks[0].labels == ("x", "y")
    assert notes == ["ner: labels found: x, y"]
    examples = load_data(recipe, tiny, ["train"])[0]["train"]["ner"]
    words = [tiny.tokenizer.backend.id_to_token(i) for i in examples.rows[0]]
    assert words == ["[CLS]", "a", "##b", "c", "d", "e", "##f", "[SEP]"]
    assert examples.targets[0, :8].tolist() == [NO_LABEL, 1, NO_LABEL, 2, 0, 3, NO_LABEL, NO_LABEL]
    assert len(examples.rows) == 5  # the last text has 20 tokens, the model room for 14
    assert int((examples.targets[3:] != NO_LABEL).sum()) == 20
    assert sorted({*examples.targets[3:].flatten().tolist()}) == [NO_LABEL, 0, 1, 3, 4]


def test_parts_of_speech(tiny: SentenceEncoder, tmp_path: Path) -> None:
    path = write(tmp_path / "pos.jsonl", [{"tokens": ["a", "b", "c"], "tags": ["DET", "NOUN", "NOUN"]}])
    recipe, _ = completed(Recipe("", [tagger(train=path)]))
    assert recipe.tasks[0].tags == ("DET", "NOUN")
    data, _ = load_data(recipe, tiny, ["train"])
    assert data["train"]["ner"].spans == [[(0, 1, "DET"), (2, 3, "NOUN"), (4, 5, "NOUN")]]
    model = MultiTaskModel(tiny, recipe.tasks).eval()
    found = model.predict("a b c").labels["ner"][0]
    assert [(span["start"], span["end"]) for span in found] == [(0, 1), (2, 3), (4, 5)]


def test_spans_beside_a_label_or_in_its_place(tiny: SentenceEncoder, tmp_path: Path) -> None:
    rows = [{"text": "ab c", "label": "good", "spans": [[3, 4, "x"]]}, {"text": "ab c", "label": [[3, 4, "x"]]}]
    recipe, _ = completed(Recipe("", [tagger(train=write(tmp_path / "rows.jsonl", rows))]))
    assert load_data(recipe, tiny, ["train"])[0]["train"]["ner"].spans == [[(3, 4, "x")]] * 2


# Computing


def test_learns_beside_a_classifier(still: Path, tmp_path: Path) -> None:
    topics = write(tmp_path / "topics.jsonl", [{"text": "ab", "label": "p"}, {"text": "c d", "label": "q"}] * 4)
    rows = [{"tokens": list("xdfz"), "tags": ["B-x", "O", "O", "B-y"]}, {"text": "d x", "spans": [[2, 3, "x"]]}] * 4
    path = write(tmp_path / "easy.jsonl", rows)
    tasks = [tagger(train=path, dropout=0.0), TaskSpec("topic", ("p", "q"), train=topics)]
    training = Training(epochs=40, batch_size=4, schedule="constant", learning_rate=1e-2, head_learning_rate=5e-2)
    model = train(Recipe(str(still), tasks, training), tmp_path / "run", threads=2)
    found = model.predict(["ab c d ef", "x d f z", "d x"])
    spans = [[(s["start"], s["text"], s["label"]) for s in of_text] for of_text in found.labels["ner"]]
    assert spans[1:] == [[(0, "x", "x"), (6, "z", "y")], [(2, "x", "x")]]
    loaded = MultiTaskModel.from_pretrained(tmp_path / "run")
    assert loaded.tasks["ner"].labels == ("x", "y")
    again = loaded.predict(["ab c d ef"])
    assert again.labels["ner"][0] == found.labels["ner"][0]
    assert again.labels["topic"] == loaded.predict("ab c d ef").labels["topic"]


def test_accumulation_is_exact(still: Path, tmp_path: Path) -> None:
    """The loss is the mean over all tokens of a window, however many stand in each micro-batch."""
    logs = []
    for batch, accumulate in ((4, 1), (1, 4)):
        options = Training(epochs=2, batch_size=batch, accumulate=accumulate, weight_decay=0.0)
        task = tagger(train=write(tmp_path / "four.jsonl", ROWS[:3] + ROWS[:1]), dropout=0.0, labels=("x", "y"))
        out = tmp_path / f"run{batch}"
        train(Recipe(str(still), [task], options), out)
        logs.append([json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()])
    for one, other in zip(*([record for record in log if "loss" in record] for log in logs), strict=True):
        assert one["loss"]["ner"] == pytest.approx(other["loss"]["ner"], rel=1e-5)
        assert one["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-4)


@pytest.mark.parametrize("freeze", ["encoder", 1])
def test_a_frozen_prefix_that_is_remembered_changes_nothing(folder: Path, data: str, tmp_path: Path, freeze) -> None:
    outcomes = []
    for cache in (0, 64):
        task = tagger(train=data, freeze=freeze, labels=("x", "y"))
        options = Training(epochs=3, batch_size=2, cache_mb=cache)
        model = train(Recipe(str(folder), [task], options), tmp_path / f"run{cache}")
        outcomes.append(model.state_dict())
    for name, tensor in outcomes[0].items():
        torch.testing.assert_close(tensor, outcomes[1][name], rtol=0, atol=0)


def test_a_long_text_is_tagged_whole_and_to_the_bit_as_alone(tiny: SentenceEncoder) -> None:
    model = MultiTaskModel(tiny, [tagger(labels=("x",)), TaskSpec("topic", ("p", "q"))]).eval()
    long = " ".join("abcdefghijklmnopqrstuvwxyz")
    together = model.predict(["ab", long, "", "c d e", long])
    for i, text in enumerate(["ab", long, "", "c d e"]):
        for threads in (1, 2, 3):
            alone = model.predict(text, threads=threads)
            assert (alone.logits["ner"][0] == together.logits["ner"][i]).all()
            assert (alone.logits["topic"][0] == together.logits["topic"][i]).all()
            assert alone.labels["ner"][0] == together.labels["ner"][i]
    assert together.logits["ner"][1].shape == (26, 3)
    assert together.logits["ner"][2].shape == (0, 3)
    assert (together.embeddings[1] == tiny.encode(long, overflow="truncate")).all()
    whole = in_units(tiny.tokenizer, [long], 16)[0]
    assert len(whole.rows) == 3
    first = model.predict(" ".join("abcdefghijklmn")).logits["ner"][0]  # the first window, alone
    assert (first[:12] == together.logits["ner"][1][:12]).all()
    assert model.predict([]).labels["ner"] == []


def test_metrics_are_of_whole_texts(tiny: SentenceEncoder, data: str) -> None:
    recipe, _ = completed(Recipe("", [tagger(train=data)]))
    model = MultiTaskModel(tiny, recipe.tasks).eval()
    examples = load_data(recipe, tiny, ["train"])[0]["train"]
    found = measure(model.tasks, all_logits(model, examples), examples)["ner"]
    texts = [units.text for units in examples["ner"].texts]
    said = [[(s["start"], s["end"], s["label"]) for s in spans] for spans in model.predict(texts).labels["ner"]]
    assert found == agreement(examples["ner"].spans, said, ("x", "y"))


def test_a_tagger_is_measured_by_its_own_tags_alone(tiny: SentenceEncoder, data: str) -> None:
    """In another order, the data's tags are those of the model; others would be taken for them."""
    model = MultiTaskModel(tiny, [tagger(tags=("O", "I-x", "B-x", "B-y", "I-y"))]).eval()
    expected = evaluate(model, Recipe("", [tagger(tags=model.tasks["ner"].tags, test=data)]))
    for same in ({"labels": ("x", "y")}, {"tags": ("O", "B-x", "I-x", "B-y", "I-y")}):
        assert evaluate(model, Recipe("", [tagger(**same, test=data)])) == expected
    for tags in (("O", "B-x", "I-x", "B-y"), ("O", "B-x", "I-x", "B-y", "I-y", "B-z")):
        with pytest.raises(RecipeError, match=r"no task 'ner' with labels .*; it has ner \(O, I-x, B-x, B-y, I-y\)"):
            evaluate(model, Recipe("", [tagger(tags=tags, test=data)]))


def test_predict_says_spans_in_every_form(tiny: SentenceEncoder, tmp_path: Path) -> None:
    model = MultiTaskModel(tiny, [tagger(labels=("x",)), TaskSpec("topic", ("p", "q"))]).eval()
    with torch.no_grad():
        model.branches["ner"].head.classifier.bias.copy_(torch.tensor([0.0, 9.0, 0.0]))
    model.save(tmp_path / "model")
    expected = model.predict("ab, c").labels["ner"][0]
    assert [(span["start"], span["end"], span["text"]) for span in expected] == [(0, 2, "ab"), (2, 3, ","), (4, 5, "c")]

    def run(*options: str) -> str:
        found = CliRunner().invoke(cli, ["predict", "-m", str(tmp_path / "model"), "ab, c", *options])
        assert found.exit_code == 0, found.output
        return found.stdout

    answer = json.loads(run("--json"))["tasks"]
    assert answer["ner"] == {"spans": expected}
    assert answer["topic"].keys() == {"label", "scores", "logits"}
    lines = run().splitlines()
    assert "  [ab x][, x] [c x]" in lines
    assert any(line.split()[:2] == ["ab", "x"] and line.split()[-2:] == ["0", "2"] for line in lines)
    run("-o", str(tmp_path / "out.csv"))
    (row,) = csv.DictReader((tmp_path / "out.csv").open())
    assert json.loads(row["ner"]) == expected
    assert row["topic"] in ("p", "q")


# Bad input: one line each


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "2 tokens and 1 tags; expected a tag for each"),
        ({"tokens": ["a"], "tags": ["B-z"]}, "tags has 'B-z'; expected O, or B- or I- and one of x, y"),
        ({"tokens": ["a"], "tags": ["x"]}, r"say tags = \[...\], not labels"),
        ({"tokens": ["a"], "tags": [3]}, r"tags has the number 3; expected a name, or a place"),
        ({"tokens": [], "tags": []}, "tokens is empty; expected at least one word"),
        ({"tokens": ["a", " "], "tags": ["O", "O"]}, r"tokens\[1\] is ' '; expected a word"),
        ({"tokens": "a b", "tags": ["O", "O"]}, "tags has 'O'; expected a list of"),
        ({"tokens": ["a"], "tags": [""]}, "tags has ''; expected O, or a tag with the name of a label"),
        ({"tokens": ["a"], "tags": ["B- "]}, "tags has 'B- '; expected O, or a tag with the name of a label"),
        ({"text": None, "spans": []}, "text is None; expected a text, or a list of words"),
        ({"tokens": [1], "tags": ["O"]}, r"tokens is \[1\]; expected a list of strings"),
        ({"text": "ab", "spans": [[0, 1, "x"], [0, 2, "y"]]}, "which overlap; expected spans apart from each other"),
        ({"text": "a b", "spans": [[1, 2, "x"]]}, "which is ' '; expected no blanks at its ends"),
        ({"text": "a b", "spans": [[0, 2, "x"]]}, "which is 'a '; expected no blanks at its ends"),
        ({"text": "a\U0001f600", "spans": [[1, 3, "x"]]}, r"expected characters from 0 to 2 \(3 in UTF-16"),
        ({"text": "a\ud83d", "spans": []}, "text holds half of a surrogate pair"),
        ({"text": "ab", "spans": [[0, 1, "z"]]}, "spans has the label 'z'; expected one of x, y"),
        ({"text": "ab", "spans": [[1, 0, "x"]]}, "expected characters from 0 to 2, the end behind the start"),
        ({"text": "ab", "spans": [[0, 1]]}, r"spans has \[0, 1\]; expected a list of \[start, end, label\]"),
        ({"text": " ", "spans": []}, "text is empty; expected a text"),
        ({"text": "a", "tags": []}, "fields are text, tags; expected 'tokens' and 'tags' or 'text' and 'spans'; name"),
        ({"text": "a", "label": "x"}, r"label is a str; expected a list of \[start, end, label\]"),
        ({"text": "ab", "spans": [[0, 1, " "]]}, r"spans has \[0, 1, ' '\]; expected a list of"),
        ({"text": "ab", "spans": [[0, 1, "\ud83d"]]}, r"expected a list of \[start, end, label\]"),
        ({"text": "ab", "spans": [["0", 1, "x"]]}, "expected characters from 0 to 2"),
        ({"text": "ab", "spans": [[0.0, 1.0, "x"]]}, "expected characters from 0 to 2"),
        ({"text": "ab", "spans": [[False, True, "x"]]}, "expected characters from 0 to 2"),
        ({"text": "ab", "spans": [[-2, 1, "x"]]}, "expected characters from 0 to 2"),
        ({"text": "ab", "spans": [[1, 1, "x"]]}, "expected characters from 0 to 2, the end behind the start"),
        ({"text": "ab", "spans": {"start": 0}}, "spans is a dict; expected a list of"),
        ({"text": "a", "spans": [], "tokens": ["a"], "tags": ["O"]}, "name them with text_field and label_field"),
    ],
)
def test_bad_rows(tiny: SentenceEncoder, tmp_path: Path, row: dict, message: str) -> None:
    path = write(tmp_path / "bad.jsonl", [ROWS[0], row])
    with pytest.raises(RecipeError, match=rf"bad.jsonl, line 2: .*{message}") as caught:
        load_data(Recipe("", [tagger(train=path, labels=("x", "y"))]), tiny, ["train"])
    assert "\n" not in str(caught.value)


def test_bad_tasks(tiny: SentenceEncoder, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="a tokens task has no pooling"):
        tagger(pooling="cls")
    with pytest.raises(RecipeError, match="tags are of x, and labels are y; expected one of the two"):
        tagger(labels=("y",), tags=("O", "B-x"))
    with pytest.raises(RecipeError, match=r"tags are \['a', 'a'\]; expected a name for each output, each once"):
        tagger(tags=("a", "a"))
    with pytest.raises(RecipeError, match="its labels are not known; name them in labels"):
        MultiTaskModel(tiny, [tagger()])
    mixed = write(tmp_path / "mixed.jsonl", [{"tokens": ["a", "b"], "tags": ["B-x", "NOUN"]}])
    with pytest.raises(RecipeError, match="have tags as 'NOUN' and as 'B-x'; expected all of them"):
        completed(Recipe("", [tagger(train=mixed)]))
    small = write(tmp_path / "small.jsonl", [{"tokens": ["a", "b"], "tags": ["b-x", "o"]}])
    with pytest.raises(RecipeError, match="have tags as 'b-x' and 'o'; expected capital letters before the label"):
        completed(Recipe("", [tagger(train=small)]))
    inside = write(tmp_path / "inside.jsonl", [{"tokens": ["a", "b"], "tags": ["O", "x"]}])
    with pytest.raises(RecipeError, match=r"as 'x' and as 'O'; .*; tags = \['O', 'x'\] takes them as they are") as said:
        completed(Recipe("", [tagger(train=inside)]))
    assert said.value.field == "tags"
    data = load_data(Recipe("", [tagger(train=inside, tags=("O", "x"))]), tiny, ["train"])[0]["train"]["ner"]
    assert data.spans == [[(2, 3, "x")]]
    none = write(tmp_path / "none.jsonl", [{"tokens": ["a"], "tags": ["O"]}])
    with pytest.raises(RecipeError, match="have no labelled span; expected some, or labels"):
        completed(Recipe("", [tagger(train=none)]))


def test_spans_within_words_are_said(tiny: SentenceEncoder, tmp_path: Path) -> None:
    path = write(tmp_path / "within.jsonl", [{"text": "ab c", "spans": [[0, 1, "x"], [3, 4, "x"]]}])
    _, notes = load_data(Recipe("", [tagger(train=path, labels=("x",))]), tiny, ["train"])
    assert notes == ["ner train: 1 span cut through words; whole words are tagged, so such are never found"]


def test_texts_without_a_token(checkpoint: Checkpoint) -> None:
    """No span, and what stands beside them is as it is without them."""
    checkpoint.tokenizer.post_processor = processors.Sequence([])
    torch.manual_seed(0)
    tasks = (tagger(labels=["x", "y"]), TaskSpec("mood", ("good", "bad")))
    model = MultiTaskModel(SentenceEncoder.from_checkpoint(checkpoint), tasks).eval()
    expected = model.predict(["a b c", "d e"])
    found = model.predict(["", "a b c", " ", "d e"])
    assert found.labels["ner"] == [[], expected.labels["ner"][0], [], expected.labels["ner"][1]]
    assert (found.embeddings[[1, 3]] == expected.embeddings).all()
    assert not found.embeddings[[0, 2]].any()
    assert model.predict([""]).labels["ner"] == [[]]


def test_words_without_a_token_are_said(folder: Path, tmp_path: Path) -> None:
    """A control character goes with the normalizer, and its tag with it; a text of nothing else is refused."""
    rows = [{"tokens": ["a", "\x01", "b"], "tags": ["B-x", "B-x", "O"]}]
    recipe = Recipe(str(folder), (tagger(labels=["x"], train=write(tmp_path / "some.jsonl", rows)),))
    embedder = SentenceEncoder.from_pretrained(folder)
    assert load_data(recipe, embedder, ["train"])[1] == [
        "ner train: 1 word without a token: such tags are neither learned nor found"
    ]
    write(tmp_path / "some.jsonl", [*rows, {"tokens": ["\x01"], "tags": ["O"]}])
    embedder.tokenizer.prefix = embedder.tokenizer.suffix = []
    with pytest.raises(RecipeError, match="text 2 of train has no tokens; expected one or more"):
        load_data(recipe, embedder, ["train"])


def test_any_threads_and_going_on_give_the_same_bits(folder: Path, data: str, tmp_path: Path, monkeypatch) -> None:
    """With weights of tags, a temperature and dropout; and stopped in the middle of an epoch."""
    options = {"class_weights": "balanced", "label_smoothing": 0.1, "calibrate": True}
    training = Training(epochs=3, batch_size=1, accumulate=2, learning_rate=1e-3, save_steps=1)
    recipe = Recipe(str(folder), [tagger(train=data, dev=data, **options)], training)
    for threads in (1, 2):
        train(recipe, tmp_path / str(threads), threads=threads)
    whole = loop.train
    monkeypatch.setattr(loop, "train", lambda run, log, threads: whole(run, log, threads, until=4) and False)
    with pytest.raises(TrainingStopped):
        train(recipe, tmp_path / "on")
    monkeypatch.undo()
    train(recipe, tmp_path / "on", resume=True)
    for name in ("model/model.safetensors", "model/tasks.safetensors", "model/tasks.json", "metrics.jsonl"):
        first = (tmp_path / "1" / name).read_bytes()
        assert first == (tmp_path / "2" / name).read_bytes() == (tmp_path / "on" / name).read_bytes(), name


def test_taggers_of_other_tokens_are_compared(folder: Path, data: str) -> None:
    """Each model's outputs belong to its own tokens, of the same rows: here one of them needs several windows."""
    found, task = [], tagger(labels=("x", "y"), test=data)
    for seed, limit in ((0, 64), (1, 5)):
        embedder = SentenceEncoder.from_pretrained(folder)
        embedder.max_seq_length = min(limit, embedder.encoder.config.max_position_embeddings)
        model = randomized(MultiTaskModel(embedder, [task]), seed)
        rows = load_data(Recipe("", [task]), embedder, ["test"])[0]["test"]
        logits = all_logits(model, rows)
        found.append((model, logits, rows, measure(model.tasks, logits, rows)["ner"]))
    models, logits, rows, metrics = zip(*found, strict=True)
    assert len(logits[0]["ner"]) < len(logits[1]["ner"])
    for name, (difference, low, high) in bootstrap(models, logits, rows, 20, 0)["ner"].items():
        assert difference == pytest.approx(metrics[0][name] - metrics[1][name], abs=1e-12)
        assert low <= high
