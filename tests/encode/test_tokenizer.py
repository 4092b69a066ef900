"""Truncation is explicit and counted; a vocabulary file alone gives the same ids as the ready tokenizer."""

from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from mtl import SentenceEncoder
from mtl.checkpoints.tokenizer import wordpiece
from mtl.encode.tokenizer import Tokenizer
from mtl.errors import InputError, WeightsError

CLS, SEP = 2, 3


def test_truncation_and_padding_of_the_file_are_off(tokenizer: tokenizers.Tokenizer) -> None:
    """The trap of all-MiniLM-L6-v2's tokenizer.json, which cuts and pads every text to 128 tokens."""
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=8)
    rows = Tokenizer(tokenizer, 16)(["a b c d e f", "a"]).rows
    assert [len(row) for row in rows] == [8, 3]


def test_real_texts_beyond_128_tokens(minilm: SentenceEncoder) -> None:
    assert [len(row) for row in minilm.tokenizer(["word " * 200, "word"]).rows] == [202, 3]


def test_warn_and_truncate_cut_and_count(tokenizer: tokenizers.Tokenizer) -> None:
    ours = Tokenizer(tokenizer, 5)
    for policy in ("warn", "truncate"):
        cut = ours(["a b c d e", "a b c", "a b c d"], policy)
        assert [row[0] == CLS and row[-1] == SEP for row in cut.rows] == [True] * 3
        assert [len(row) for row in cut.rows] == [5, 5, 5]
        assert (cut.cut_texts, cut.cut_tokens, cut.owners) == (2, 3, [0, 1, 2])


def test_error_names_the_text(tokenizer: tokenizers.Tokenizer) -> None:
    with pytest.raises(InputError, match=r"text 1 has 6 tokens; the limit is 5: 'a b c d'"):
        Tokenizer(tokenizer, 5)(["a", "a b c d"], "error")


def test_chunk_loses_nothing(tokenizer: tokenizers.Tokenizer) -> None:
    ours = Tokenizer(tokenizer, 5)
    chunks = ours(["a b c d e f g", "h", ""], "chunk")
    assert chunks.owners == [0, 0, 0, 1, 2]
    kept = [token for row, owner in zip(chunks.rows, chunks.owners, strict=True) if owner == 0 for token in row[1:-1]]
    assert kept == ours.ids(["a b c d e f g"])[0]
    assert chunks.rows[-1] == [CLS, SEP]


def test_a_prompt_before_every_chunk(tokenizer: tokenizers.Tokenizer) -> None:
    """Its tokens count in each; the text's own tokens each come once."""
    ours = Tokenizer(tokenizer, 6)
    chunks = ours(["a b c d e", "h"], "chunk", prompt="y z ")
    y, z, *letters = ours.ids(["y z a b c d e h"])[0]
    assert chunks.rows == [[CLS, y, z, *pair, SEP] for pair in (letters[:2], letters[2:4], letters[4:5], letters[5:])]
    assert chunks.owners == [0, 0, 0, 1]
    assert ours(["a b c d e"], prompt="y z ").rows == chunks.rows[:1]
    with pytest.raises(InputError, match="the prompt has 4 tokens; expected fewer than 4, all that a chunk holds"):
        ours(["a"], "chunk", prompt="w x y z ")


def test_bad_values(tokenizer: tokenizers.Tokenizer) -> None:
    ours = Tokenizer(tokenizer, 5)
    with pytest.raises(InputError, match=r"texts\[1\] is int \(7\); expected a string"):
        ours(["a", 7])
    with pytest.raises(InputError, match=r"texts\[0\] holds half of a surrogate pair"):
        ours(["\ud800"])
    with pytest.raises(InputError, match="overflow is 'wrap'; expected one of warn, truncate, error, chunk"):
        ours(["a"], "wrap")
    with pytest.raises(InputError, match="max_length is 2; expected at least 3"):
        ours(["a"], max_length=2)
    with pytest.raises(InputError, match="max_length is 0; expected at least 3"):
        Tokenizer(tokenizer, 0)
    with pytest.raises(InputError, match="max_length is 0; expected at least 5 for pairs"):
        ours.pairs([("a", "b")], max_length=0)


@pytest.fixture(scope="module")
def rebuilt(minilm: SentenceEncoder, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A tokenizer from nothing but the real vocabulary's lines."""
    vocabulary = minilm.tokenizer.backend.get_vocab()
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    path.write_text("\n".join(sorted(vocabulary, key=vocabulary.__getitem__)) + "\n", encoding="utf-8")
    return Tokenizer(wordpiece(path, {}), 256)


@pytest.mark.parametrize(
    "text",
    [
        "It's 3.5 °C — naïve café, isn't it?",
        "日本語 and 한국어 混在",
        "antidisestablishmentarianism " + "x" * 120,
        "[MASK] [CLS] tab\tnew\nline\u00a0nbsp \u200bzero",
        "",
        "🙂🙃 e\u0301 É",
    ],
)
def test_vocab_txt_equals_tokenizer_json(minilm: SentenceEncoder, rebuilt: Tokenizer, text: str) -> None:
    assert rebuilt([text]).rows == minilm.tokenizer([text]).rows


@given(st.text(max_size=60))
def test_vocab_txt_equals_tokenizer_json_on_any_text(minilm, rebuilt, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    assert rebuilt([text]).rows == minilm.tokenizer([text]).rows


def test_vocab_without_special_tokens(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("a\nb\n[UNK]\n")
    with pytest.raises(WeightsError, match=r"lacks \[CLS\], \[SEP\]; expected its special tokens"):
        wordpiece(tmp_path / "vocab.txt", {})


def test_unknown_pieces_begin_words() -> None:
    """Where the vocabulary does not mark what goes on with a word; in transformers' pipeline as well."""
    pieces = [("<unk>", 0.0), *((letter, -2.0) for letter in "abc"), *((f"▁{letter}", -1.0) for letter in "abc")]
    backend = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, 0))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    (found,) = Tokenizer(backend, 20).pieces(["abéb ca\nb"])
    assert found.offsets == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 6), (6, 7), (7, 8), (8, 9)]
    assert found.begins == [True, False, True, False, True, False, True, True]


@pytest.mark.parametrize(
    ("model", "begins"),
    [
        (tokenizers.models.WordPiece({"a": 0, "##b": 1}, unk_token="[UNK]"), [True, True, False]),
        (tokenizers.models.WordPiece({"a": 0, "b": 1}, continuing_subword_prefix=""), [True, True, False]),
        (tokenizers.models.WordLevel({"a": 0, "ab": 1}, unk_token="[UNK]"), [True, True]),
        (tokenizers.models.BPE({"a": 0, "b": 1}, [], unk_token="[UNK]"), [True, True, False]),
        (tokenizers.models.BPE({"a": 0, "b": 1}, []), [True, True, False]),
        (tokenizers.models.Unigram([("a", -1.0), ("b", -1.0)], None), [True, True, False]),
    ],
    ids=["WordPiece", "WordPiece-unmarked", "WordLevel", "BPE", "BPE-without", "Unigram"],
)
def test_vocabularies_without_an_unknown_piece(model: tokenizers.models.Model, begins: list[bool]) -> None:
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    (found,) = Tokenizer(backend, 16).pieces(["a ab"])
    assert found.begins == begins
