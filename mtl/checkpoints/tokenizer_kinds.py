"""transformers' tokenizer classes: what each puts around a vocabulary, and which files it reads one of."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from mtl.checkpoints.files import read_json
from mtl.checkpoints.sentencepiece import read as read_pieces
from mtl.errors import WeightsError, one_line

log = logging.getLogger("mtl")

BERTS = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
ROBERTAS = {"bos": "<s>", "eos": "</s>", "sep": "</s>", "cls": "<s>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask>"}
MASK = {"content": "<mask>", "lstrip": True, "special": True}  # it takes the blank before it

Options = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Kind:
    """What one of transformers' tokenizer classes makes of a vocabulary.

    model: The kind of vocabulary.
    special: Its special tokens by role, where no file names others.
    ends: The roles of what it puts before and behind a text.
    between: How often it puts what is behind a text between those of a pair.
    segments: Whether its model is told which of the two a token belongs to.
    normalizer, pre_tokenizer: What it puts before the vocabulary, by the options and what tokenizer.json has there.
    vocabulary: From the older files and the special tokens' texts, where there is no tokenizer.json; ``files`` are
        their names.
    """

    model: str
    special: Mapping[str, Any]
    normalizer: Callable[[Options, Any], Any]
    pre_tokenizer: Callable[[Options], Any]
    ends: tuple[str, str] = ("cls", "sep")
    files: tuple[str, ...] = ()
    vocabulary: Callable[[Path, Mapping[str, str]], Tokenizer] | None = None
    between: int = 2
    segments: bool = False


def bert_normalizer(options: Options, before: Any) -> Any:
    return normalizers.BertNormalizer(
        lowercase=options.get("do_lower_case", True),
        strip_accents=options.get("strip_accents"),
        handle_chinese_chars=options.get("tokenize_chinese_chars", True),
    )


def charsmap(options: Options, before: Any) -> Any:
    """Of what tokenizer.json has there, sentencepiece's own map of characters alone."""
    parts: list[Any] = list(before) if isinstance(before, normalizers.Sequence) else [before]  # type: ignore[call-overload]
    return next((part for part in parts if isinstance(part, normalizers.Precompiled)), None)


def metaspace(options: Options) -> Any:
    scheme = "always" if options.get("add_prefix_space", True) else "never"
    words = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme)
    return pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), words])


def deberta_normalizer(options: Options, before: Any) -> Any:
    blanks = normalizers.Replace(Regex(r"\s{2,}|[\n\r\t]"), " ")
    parts = [blanks, normalizers.NFC(), normalizers.Strip(left=False, right=True)]
    return normalizers.Sequence([normalizers.Lowercase(), *parts] if options.get("do_lower_case") else parts)


def deberta_words(options: Options) -> Any:
    scheme = "always" if options.get("add_prefix_space", True) else "first"
    words = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme)
    marks = [pre_tokenizers.Punctuation(behavior="isolated")] * options.get("split_by_punct", False)
    return pre_tokenizers.Sequence([*marks, words])


def wordpiece_vocabulary(path: Path, special: Mapping[str, str]) -> Tokenizer:
    """A vocabulary of one token a line."""
    tokens = read_text(path).removesuffix("\n").split("\n")
    return Tokenizer(models.WordPiece({token.rstrip(): i for i, token in enumerate(tokens)}, unk_token=special["unk"]))


def pieces_vocabulary(path: Path, special: Mapping[str, str], before: Sequence[str] = (), skip: int = 0) -> Tokenizer:
    """A sentencepiece model's pieces, some of which give way to others, by their roles or texts, and to the mask's."""
    found = read_pieces(path)
    first = [(special.get(token, token), -100.0 if token == "<unk>NOTUSED" else 0.0) for token in before]
    pieces = [*first, *found.scores[skip:], *[(special["mask"], 0.0)] * bool(before)]
    unknown = (special["unk"], 0.0)
    try:
        tokenizer = Tokenizer(models.Unigram(pieces, pieces.index(unknown) if unknown in pieces else found.unknown))
        if found.charsmap and before:
            tokenizer.normalizer = normalizers.Precompiled(found.charsmap)
        elif found.charsmap:
            log.warning("%s has a map of characters; not it but NFC is followed, as by transformers", path)
    except Exception as error:  # tokenizers raises Exception itself
        raise WeightsError(f"{path} cannot be read as a sentencepiece model: {one_line(error)}") from None
    for text, of_control in {**found.whole, special["mask"]: True}.items():
        token = AddedToken(text, normalized=False, special=of_control)
        (tokenizer.add_special_tokens if of_control else tokenizer.add_tokens)([token])
    return tokenizer


def bpe_vocabulary(path: Path, special: Mapping[str, str]) -> Tokenizer:
    """vocab.json, and the merges in merges.txt beside it, the most frequent first."""
    vocabulary = read_json(path)
    if not isinstance(vocabulary, dict) or not all(type(i) is int and 0 <= i < 2**32 for i in vocabulary.values()):
        raise WeightsError(f"{path}: expected an object with a whole number for each token")
    lines = [line.split() for line in read_text(path.with_name("merges.txt")).split("\n")]
    merges = [(line[0], line[1]) for line in lines if len(line) == 2 and not line[0].startswith("#version")]
    try:
        return Tokenizer(models.BPE(vocabulary, merges))
    except Exception as error:  # tokenizers raises Exception itself
        raise WeightsError(f"{path} and merges.txt do not belong together: {one_line(error)}") from None


BERT = Kind("WordPiece", BERTS, bert_normalizer, lambda options: pre_tokenizers.BertPreTokenizer(),
            files=("vocab.txt",), vocabulary=wordpiece_vocabulary, between=1, segments=True)  # fmt: skip
ROBERTA = Kind("BPE", ROBERTAS, lambda options, before: None,
               lambda options: pre_tokenizers.ByteLevel(add_prefix_space=options.get("add_prefix_space", False)),
               files=("vocab.json", "merges.txt"), vocabulary=bpe_vocabulary)  # fmt: skip
XLM_ROBERTA = Kind("Unigram", ROBERTAS, charsmap, metaspace, ends=("bos", "eos"), files=("sentencepiece.bpe.model",),
                   vocabulary=partial(pieces_vocabulary, before=("bos", "pad", "eos", "unk"), skip=3))  # fmt: skip
CAMEMBERTS = ("<s>NOTUSED", "pad", "</s>NOTUSED", "unk", "<unk>NOTUSED")
KINDS = {
    **dict.fromkeys(("BertTokenizer", "ElectraTokenizer"), BERT),
    "DistilBertTokenizer": dataclasses.replace(BERT, segments=False),
    "MPNetTokenizer": dataclasses.replace(
        BERT, special={**ROBERTAS, "unk": "[UNK]", "mask": MASK}, between=2, segments=False
    ),
    "RobertaTokenizer": ROBERTA,
    "XLMRobertaTokenizer": XLM_ROBERTA,
    "CamembertTokenizer": dataclasses.replace(XLM_ROBERTA, special={**ROBERTAS, "mask": MASK},
                          vocabulary=partial(pieces_vocabulary, before=CAMEMBERTS, skip=1)),
    "DebertaV2Tokenizer": Kind("Unigram", {"bos": "[CLS]", "eos": "[SEP]", **BERTS}, deberta_normalizer, deberta_words,
                               files=("spm.model",), vocabulary=pieces_vocabulary, between=1, segments=True),
}  # fmt: skip


def read_text(path: Path) -> str:
    """A file of UTF-8 text; a WeightsError if it cannot be read as that."""
    try:
        with path.open(encoding="utf-8", newline="\n") as file:  # a carriage return may be a token
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path} cannot be read as UTF-8 text: {one_line(error)}") from None
