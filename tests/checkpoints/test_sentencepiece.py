"""Folders with a sentencepiece model and no tokenizer.json: transformers' own ids; see goldens/make_spm.py."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import GOLDENS
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from mtl.checkpoints.encodings import encodings
from mtl.checkpoints.families import FAMILIES
from mtl.checkpoints.sentencepiece import read
from mtl.checkpoints.tokenizer import class_of, load_tokenizer, read_options
from mtl.errors import WeightsError

PLACE = GOLDENS / "spm"
EXPECTED = json.loads((PLACE / "expected.json").read_text(encoding="utf-8"))
WHOLE = (PLACE / "fairseq.model").read_bytes()


def tokenizer_of(folder: Path, family: str, model: str, file: str, options: dict[str, Any]) -> Tokenizer:
    shutil.copy(PLACE / f"{model}.model", folder / file)
    (folder / "tokenizer_config.json").write_text(json.dumps(options))
    found = read_options(folder)
    return load_tokenizer(folder, "", found, class_of(found, {}, FAMILIES[family].tokenizer, False))[0]


@pytest.mark.parametrize("case", EXPECTED["cases"], ids=lambda case: f"{case['family']}{len(case['options'])}")
def test_the_same_ids(case: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = case.pop("ids")
    tokenizer = tokenizer_of(tmp_path, **case)
    assert [tokenizer.encode(text).ids for text in EXPECTED["texts"]] == expected
    assert bool(caplog.records) == (case["family"] == "deberta-v2")  # whose map of characters transformers leaves out
    again = Tokenizer.from_str(tokenizer.to_str())
    assert [again.encode(text).ids for text in EXPECTED["texts"]] == expected
    case["ids"] = expected


def test_what_is_in_it() -> None:
    found = read(PLACE / "berts.model")
    assert [text for text, _ in found.scores[:7]] == ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[CTRL]", "<foo>", "xyz"]
    assert found.whole == {"[PAD]": True, "[CLS]": True, "[SEP]": True, "[CTRL]": True, "<foo>": False, "xyz": False}
    assert (found.unknown, len(found.scores), len(found.charsmap) > 50) == (3, 150, True)


@pytest.mark.parametrize(
    ("model", "message"), [("bpe", "is of BPE; expected a Unigram model"), ("bytes", "falls back to bytes; expected a")]
)
def test_other_kinds(model: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=message):
        tokenizer_of(tmp_path, "xlm-roberta", model, "sentencepiece.bpe.model", {})


@pytest.mark.parametrize("family", ["xlm-roberta", "camembert", "deberta-v2"])
def test_a_folder_without_any(family: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"has neither tokenizer.json nor (sentencepiece.bpe|spm).model"):
        load_tokenizer(tmp_path, "", {}, FAMILIES[family].tokenizer)


@given(st.one_of(st.binary(max_size=60), st.integers(0, len(WHOLE) - 1).map(lambda n: WHOLE[:n]),
                 st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)).map(
                     lambda at: WHOLE[: at[0]] + bytes([at[1]]) + WHOLE[at[0] + 1 :])))  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_damaged_files(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """A tokenizer, or one line."""
    folder = tmp_path_factory.mktemp("spm")
    (folder / "sentencepiece.bpe.model").write_bytes(content)
    try:
        encodings(load_tokenizer(folder, "", {}, "XLMRobertaTokenizer")[0].encode_batch, ["a ﬁ 1"])
    except WeightsError as error:
        assert str(error).isprintable()  # noqa: PT017
