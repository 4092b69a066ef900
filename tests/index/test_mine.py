"""Hard negatives equal those of a search by hand; a run that is killed goes on to the same bytes."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import randomized
from test_cli import Done, mtl

from mtl import SentenceEncoder
from mtl.errors import InputError
from mtl.index import mine as mining
from mtl.index.index import Index
from mtl.index.mine import mine
from mtl.index.mining_files import text_key
from mtl.training.recipe import read_recipe
from mtl.training.session import train
from mtl.training.start import keep_layers

__all__ = ["mtl"]  # the fixture


def write(path: Path, *rows: dict) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def data(tmp_path: Path) -> tuple[Path, Path]:
    """Pairs, some queries with several positives, and a corpus with all positives, twins of them, and blanks."""
    letters = random.Random(3)

    def text() -> str:
        return " ".join(letters.choices("abcdefghijklmnop", k=letters.randint(2, 9)))

    queries = [text() for _ in range(9)]
    pairs = [{"query": queries[i % 9], "answer": text(), "source": i} for i in range(14)]
    docs = [text() for _ in range(60)] + [str(pair["answer"]) for pair in pairs]
    docs += [str(pairs[0]["answer"]).upper(), f"  {queries[1]} ", docs[5], " ", ""]
    letters.shuffle(docs)
    write(tmp_path / "pairs.jsonl", *pairs)
    write(tmp_path / "docs.jsonl", *({"id": i, "text": doc} for i, doc in enumerate(docs)))
    return tmp_path / "pairs.jsonl", tmp_path / "docs.jsonl"


@pytest.fixture
def guide(tiny: SentenceEncoder, folder: Path) -> SentenceEncoder:
    """Another model of the same shape."""
    other = SentenceEncoder.from_pretrained(folder)
    randomized(other.encoder, seed=5)
    return other.eval()


def by_hand(
    pairs: list[dict], docs: list[dict], model: SentenceEncoder, guide: SentenceEncoder | None, n: int, skip: int,
    margin: float | None,
) -> list[tuple[str, str, str]]:  # fmt: skip
    """The negatives of each pair, from the whole matrix of cosines."""
    texts = list({text_key(row["text"]): row["text"] for row in reversed(docs) if row["text"].strip()}.values())[::-1]

    def cosines(by: SentenceEncoder) -> tuple[np.ndarray, np.ndarray]:
        """Of each pair's query with all texts, and with its answer."""
        queries, answers = (by.encode([pair[name] for pair in pairs]) for name in ("query", "answer"))
        return by.similarity(queries, by.encode(texts)), np.diag(by.similarity(queries, answers))

    by_model, by_guide = cosines(model), cosines(guide) if guide else None
    found = []
    for number, pair in enumerate(pairs):
        query, answer = pair["query"], pair["answer"]
        taken = {text_key(query), *(text_key(other["answer"]) for other in pairs if other["query"] == query)}
        alike, own = by_model[0][number], by_model[1][number]
        ranked = [i for i in np.argsort(-alike, kind="stable") if text_key(texts[i]) not in taken][skip:]
        if margin is not None:
            ranked = [i for i in ranked if alike[i] <= own - margin]
        if by_guide:
            ranked = [i for i in ranked if by_guide[0][number, i] < by_guide[1][number]]
        found += [(query, answer, texts[i]) for i in ranked[:n]]
    return found


@pytest.mark.parametrize(
    ("n", "skip", "margin", "guided"),
    [(5, 0, None, False), (3, 2, None, False), (4, 1, 0.05, False), (3, 1, None, True), (2, 1, 0.02, True),
     (500, 0, None, False), (1, 70, None, False)],
)  # fmt: skip
def test_equal_to_a_search_by_hand(
    tmp_path: Path, data: tuple[Path, Path], minilm: SentenceEncoder, n: int, skip: int, margin: float | None,
    guided: bool, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The real model, since cosines of a random one lie too close together to be told apart in another order."""
    monkeypatch.setattr(mining, "HELD", 200)  # a few queries at once, where all texts of each are looked at
    monkeypatch.setattr(mining, "DEEP", 30)
    monkeypatch.setattr(mining, "GUIDED", 3)
    guide = SentenceEncoder.from_pretrained("all-MiniLM-L6-v2")
    keep_layers(guide.encoder, [0, 1])
    expected = by_hand(read(data[0]), read(data[1]), minilm, guide if guided else None, n, skip, margin)
    output = tmp_path / "triplets.jsonl"
    done = mine(*data, output, minilm, guide=guide if guided else None, negatives=n, skip_top=skip, margin=margin,
                fields=("query", "answer"), threads=1)  # fmt: skip
    rows = read(output)
    assert [(row["query"], row["answer"], row["negative"]) for row in rows] == expected
    assert all(row["source"] in range(14) for row in rows)
    by_pair = [sum(row["source"] == i for row in rows) for i in range(14)]
    assert done.counts.get("few", 0) == sum(0 < count < n for count in by_pair)
    assert done.counts.get("none", 0) == by_pair.count(0)
    assert (done.counts["twice"], done.counts["blank"], done.counts["pairs"]) == (2, 2, 14)
    assert not (tmp_path / "triplets.jsonl.mining").exists()
    if margin is not None:
        assert all(row["negative_score"] <= row["positive_score"] - margin + 2e-6 for row in rows)


AT = {"vectors": "embedded", "block": "write_block"}


@pytest.mark.parametrize("stage", ["corpus", "vectors", "block"])
def test_killed_and_gone_on_with(
    tmp_path: Path, data: tuple[Path, Path], tiny: SentenceEncoder, guide: SentenceEncoder, stage: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Whatever is under way when it ends: what is there is kept, nothing is done twice, and the bytes are the same."""
    options = {"guide": guide, "negatives": 3, "fields": ("query", "answer"), "threads": 1}
    monkeypatch.setattr(mining, "BLOCK", 4)
    monkeypatch.setattr(mining, "WINDOW", 4)
    monkeypatch.setattr("mtl.index.index.WINDOW", 8)
    mine(*data, tmp_path / "whole.jsonl", tiny, **options)
    output = tmp_path / "killed.jsonl"
    times, real = [0], Index.take if stage == "corpus" else getattr(mining, AT[stage])

    def dies(*arguments: object) -> object:
        times[0] += 1
        if times[0] == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        target, name = (Index, "take") if stage == "corpus" else (mining, AT[stage])
        patch.setattr(target, name, dies)
        with pytest.raises(KeyboardInterrupt):
            mine(*data, output, tiny, **options)
    assert not output.exists()
    with pytest.raises(InputError, match="holds what an interrupted run has found; --resume goes on with it"):
        mine(*data, output, tiny, **options)
    with pytest.raises(InputError, match="was made otherwise: negatives was 3, is 4; --overwrite starts anew"):
        mine(*data, output, tiny, **{**options, "negatives": 4}, resume=True)
    mine(*data, output, tiny, **options, resume=True)
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert mine(*data, output, tiny, **options, resume=True).before
    with data[1].open("a") as file:
        file.write('{"text": "q q q"}\n')
    with pytest.raises(InputError, match="was made otherwise: corpus was"):
        mine(*data, output, tiny, **options, resume=True)
    mine(*data, output, tiny, **options, overwrite=True)


def test_killed_between_the_output_and_what_says_how_it_was_made(
    tmp_path: Path, data: tuple[Path, Path], tiny: SentenceEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run goes on, also where it replaces an older one, of which nothing is taken for its own."""
    options = {"fields": ("query", "answer"), "threads": 1}
    output = tmp_path / "triplets.jsonl"

    def dies(output: Path, blocks: list[Path]) -> None:
        finish(output, blocks)
        raise KeyboardInterrupt

    for n, overwrite in ((3, False), (2, True)):
        with monkeypatch.context() as patch:
            finish = mining.finish
            patch.setattr(mining, "finish", dies)
            with pytest.raises(KeyboardInterrupt):
                mine(*data, output, tiny, negatives=n, overwrite=overwrite, **options)
        with pytest.raises(InputError, match=f"was made otherwise: negatives was {n}, is 4"):
            mine(*data, output, tiny, negatives=4, resume=True, **options)
        assert not mine(*data, output, tiny, negatives=n, resume=True, **options).before
        assert mine(*data, output, tiny, negatives=n, resume=True, **options).before
        assert not (tmp_path / "triplets.jsonl.mining").exists()
    (tmp_path / "triplets.jsonl.made.json").unlink()
    (tmp_path / "triplets.jsonl.mining").mkdir()  # of a run that was killed before it began
    with pytest.raises(InputError, match=r"triplets\.jsonl exists; --overwrite replaces it"):
        mine(*data, output, tiny, **options)


def test_the_command_and_training_on_its_output(
    mtl: Callable[..., Done], tmp_path: Path, data: tuple[Path, Path], folder: Path
) -> None:
    output = tmp_path / "triplets.jsonl"
    given = ("mine", data[0], "--corpus", data[1], "-m", folder, "-o", output, "-n", 2, "--skip-top", 1, "--fields",
             "query,answer", "--guide", folder)  # fmt: skip
    done = mtl(*given)
    assert done.returncode == 0, done.stderr
    assert f"wrote {output}: " in done.stderr
    assert "candidates are a query's own texts" in done.stderr
    assert "2 texts of the corpus are equal to an earlier one" in done.stderr
    assert f"{output} exists; --overwrite" in mtl(*given).stderr
    assert "nothing is left to do for" in mtl(*given, "--resume").stderr
    (tmp_path / "my.toml").write_text(
        'model = "tiny"\n[training]\nepochs = 1\nbatch_size = 4\n[[task]]\nname = "pairs"\nkind = "contrastive"\n'
        'train = "triplets.jsonl"\ndev = 0.2\ntext_field = ["query", "answer", "negative"]\n'
    )
    assert train(read_recipe(tmp_path / "my.toml"), tmp_path / "run").tasks.keys() == {"pairs"}


def mistakes() -> Iterator[tuple[list[dict], list[dict], dict, str]]:
    pair, doc = {"query": "a", "answer": "b"}, {"text": "c"}
    yield [], [doc], {}, "pairs.jsonl has no rows; expected pairs"
    yield [{"query": "a"}], [doc], {}, "line 1: it has the fields query; expected two"
    yield [{**pair, "score": 1}], [doc], {}, "it has the fields query, answer, score; expected two.* --fields"
    yield [pair], [doc], {"fields": ("query", "reply")}, "line 1: no field 'reply'; it has query, answer"
    yield [pair], [doc], {"fields": ("query",)}, "fields are query; expected two"
    yield [pair, {"query": "", "answer": "b"}], [doc], {}, "line 2: field 'query' is empty; expected a text"
    yield [pair, {"query": "a", "answer": 5}], [doc], {}, "line 2: field 'answer' is of type int"
    yield [{"query": "a", "negative": "b"}], [doc], {}, "it has a field 'negative' already; rename it"
    yield [pair], [{"body": "c"}], {}, "docs.jsonl, line 1: no field 'text'"
    yield [pair], [{"text": " "}], {}, "docs.jsonl has no text in 'text' that is not blank"
    yield [pair], [doc], {"negatives": 0}, "negatives is 0; expected 1 or more"
    yield [pair], [doc], {"skip_top": -1}, "skip_top is -1; expected 0 or more"
    yield [pair], [doc], {"margin": float("nan")}, "margin is nan; expected 0 or more"


@pytest.mark.parametrize(("pairs", "docs", "options", "message"), list(mistakes()))
def test_mistakes(
    tmp_path: Path, tiny: SentenceEncoder, pairs: list[dict], docs: list[dict], options: dict, message: str
) -> None:
    write(tmp_path / "pairs.jsonl", *pairs)
    write(tmp_path / "docs.jsonl", *docs)
    with pytest.raises(InputError, match=message) as caught:
        mine(tmp_path / "pairs.jsonl", tmp_path / "docs.jsonl", tmp_path / "out.jsonl", tiny, **options)
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} <= {"pairs.jsonl", "docs.jsonl", "tiny", "letters.txt"}


@pytest.mark.parametrize("measure", ["cosine", "dot"])
def test_what_a_guide_finds_as_near_as_the_positive_is_left_out(
    tiny: SentenceEncoder, tmp_path: Path, measure: str
) -> None:
    """Texts that are cut to the same tokens have one vector, and one similarity, to the bit, alone and among others."""
    tiny.similarity_fn_name = measure
    letters = random.Random(0)
    texts = [" ".join(letters.choices("abcdefghijklmnop", k=15)) for _ in range(150)]
    write(tmp_path / "pairs.jsonl", *({"q": text[::-1], "a": f"{text} a"} for text in texts))
    write(tmp_path / "docs.jsonl", *({"text": f"{text} b"} for text in texts))
    mine(tmp_path / "pairs.jsonl", tmp_path / "docs.jsonl", tmp_path / "out.jsonl", tiny, guide=tiny, negatives=3)
    rows = read(tmp_path / "out.jsonl")
    assert len(rows) > 100
    assert not [row for row in rows if row["a"][:-2] == row["negative"][:-2]]
    assert all(row["negative_score"] <= row["positive_score"] for row in rows)
