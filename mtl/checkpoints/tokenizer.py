"""The tokenizer of a model's folder: tokenizer.json, or BERT's WordPiece over vocab.txt where there is none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from mtl.checkpoints.files import field, inside, read_object
from mtl.errors import WeightsError, one_line


def load_tokenizer(folder: Path, part: str = "") -> Tokenizer:
    """The tokenizer in a model's folder, or in the part of it that holds the transformer.

    Raises:
        ConfigError, WeightsError: there is none, or its files are damaged.
    """
    path = inside(folder, part, "tokenizer.json")
    if not path.exists():
        config = inside(folder, part, "tokenizer_config.json")
        return wordpiece(inside(folder, part, "vocab.txt"), read_object(config, optional=True), config)
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises Exception itself
        raise WeightsError(f"{path} cannot be read as a tokenizer: {one_line(error)}") from None


def special_token(options: Mapping[str, Any], kind: str, source: Path) -> str:
    """What tokenizer_config.json calls a special token; older ones wrap it in an object."""
    name = f"{kind}_token"
    if isinstance(options.get(name), dict):
        options, name = options[name], "content"
    return field(options, name, str, f"[{kind.upper()}]", source)


def wordpiece(path: Path, options: Mapping[str, Any], source: Path = Path("tokenizer_config.json")) -> Tokenizer:
    """BERT's tokenizer from a vocabulary of one token a line (Devlin et al. 2018; tokenization_bert.py).

    ``options`` are those of a tokenizer_config.json, ``source`` its name in errors.
    """
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except FileNotFoundError:
        raise WeightsError(f"{path.parent} has neither tokenizer.json nor vocab.txt; expected one of them") from None
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path} cannot be read as UTF-8 text: {one_line(error)}") from None
    vocabulary = {token: i for i, token in enumerate(lines)}
    special = {kind: special_token(options, kind, source) for kind in ("unk", "cls", "sep")}
    absent = [token for token in special.values() if token not in vocabulary]
    if absent:
        raise WeightsError(f"{path} lacks {', '.join(absent)}; expected BERT's special tokens in it")
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=special["unk"], max_input_chars_per_word=100))
    tokenizer.add_special_tokens([t for t in ("[PAD]", *special.values(), "[MASK]") if t in vocabulary])
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=field(options, "do_lower_case", bool, True, source),
        strip_accents=field(options, "strip_accents", bool, None, source),
        handle_chinese_chars=field(options, "tokenize_chinese_chars", bool, True, source),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(
        *((special[kind], vocabulary[special[kind]]) for kind in ("sep", "cls"))
    )
    return tokenizer
