"""The tokenizer of a model's folder, as transformers makes it of the same files.

Each of transformers' tokenizer classes takes the vocabulary alone of tokenizer.json, or of the older files beside it,
and what stands before and behind that from tokenizer_config.json (tokenizer_kinds.py); PreTrainedTokenizerFast takes
tokenizer.json as it stands. So a lower-casing tokenizer.json beside "do_lower_case": false keeps capitals, there as
here.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, Literal

from tokenizers import AddedToken, Tokenizer, models, processors

from mtl.checkpoints.encodings import encodings
from mtl.checkpoints.fields import TOKENIZER_CONFIG
from mtl.checkpoints.files import field, inside, read_object
from mtl.checkpoints.tokenizer_kinds import BERT, KINDS, Kind, Options, wordpiece_vocabulary
from mtl.errors import ConfigError, WeightsError, one_line, printable, shown

log = logging.getLogger("mtl")

SPECIAL = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
VERBATIM = ("PreTrainedTokenizerFast", "TokenizersBackend")  # the class that takes tokenizer.json as it stands


def read_options(folder: Path, part: str = "", more: Options | None = None) -> dict[str, Any]:
    """What tokenizer_config.json says, and special_tokens_map.json where that does not list its tokens; ``more`` are
    what sentence-transformers' own file says of the tokenizer."""
    source = inside(folder, part, "tokenizer_config.json")
    options = read_object(source, optional=True)
    if "added_tokens_decoder" not in options:
        options |= read_object(inside(folder, part, "special_tokens_map.json"), optional=True)
    options |= more or {}
    TOKENIZER_CONFIG.review(options, source, {name: None for name, value in options.items() if is_token(name, value)})
    for name in ("do_lower_case", "strip_accents", "tokenize_chinese_chars", "add_prefix_space", "split_by_punct",
                 "split_special_tokens"):  # fmt: skip
        field(options, name, bool, None, source)
    if field(options, "truncation_side", str, "right", source) not in ("left", "right"):
        raise ConfigError(f"{source}: truncation_side is {shown(options['truncation_side'])}; expected left or right")
    for name in options:
        if is_token(name, options[name]):
            added(options[name], name, source)
    if options.get("add_prefix_space", True) is None:  # not the class's own, as null is elsewhere, but no
        options["add_prefix_space"] = False
    return {name: value for name, value in options.items() if value is not None}


def is_token(name: str, value: Any) -> bool:
    """Whether a field names a special token, as eos_token does: by its text, or in older files by an object."""
    known = name.removesuffix("_token") in SPECIAL
    named = name.endswith("_token") and name not in TOKENIZER_CONFIG.inert.split()  # add_bos_token is a switch
    return named and value is not None and (known or isinstance(value, str))


def class_of(options: Options, config: Options, standard: str, whole: bool) -> str:
    """The name of transformers' class for a folder's tokenizer, without "Fast"; ``standard`` is the family's own, which
    is meant too where a tokenizer.json should be taken as it stands and there is none (``whole``)."""
    name = str(options.get("tokenizer_class") or config.get("tokenizer_class") or standard)
    if name in VERBATIM:
        return name if whole else standard
    return name.removesuffix("Fast")


def load_tokenizer(
    folder: Path, part: str, options: Options, name: str = "BertTokenizer"
) -> tuple[Tokenizer, Literal["left", "right"]]:
    """The tokenizer in a model's folder, or in the part of it that holds the transformer, and at which side it cuts
    texts; ``name`` is its class. A ConfigError or WeightsError if there is none, or its files are damaged."""
    path, kind, side = inside(folder, part, "tokenizer.json"), KINDS.get(name), "right"
    if path.exists():
        try:
            tokenizer = exact_pieces(path) if kind and kind.model == "Unigram" else Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises Exception itself
            raise WeightsError(f"{path} cannot be read as a tokenizer: {one_line(error)}") from None
        side = (tokenizer.truncation or {}).get("direction", side)  # where no other file says it, as in transformers
        tokenizer.no_truncation()
        tokenizer.no_padding()
        if kind is None and name not in VERBATIM:
            log.warning("%s: tokenizer_class is %s, which is not known here; it is taken as it stands", path, name)
        if kind is not None and type(tokenizer.model).__name__ != kind.model:
            held = type(tokenizer.model).__name__
            log.warning("%s holds a %s vocabulary, no %s's; it is taken as it stands", path, held, name)
            kind = None
    elif kind is None or kind.vocabulary is None:
        raise WeightsError(f"{path} is missing; expected it beside a {name}: transformers' AutoTokenizer makes it of "
                           "other files, with save_pretrained(folder)")  # fmt: skip
    else:
        tokenizer = vocabulary_of(kind, folder, part, options)
    tokenizer = add_tokens(tokenizer, kind, options, inside(folder, part, "added_tokens.json"))
    if kind is not None:
        follow(tokenizer, kind, options, path)
    else:
        check_verbatim(tokenizer, options, path)
    tokenizer.encode_special_tokens = options.get("split_special_tokens", False)
    return tokenizer, "left" if options.get("truncation_side", side) == "left" else "right"


def check_verbatim(tokenizer: Tokenizer, options: Options, source: Path) -> None:
    """What is done about a tokenizer.json that is taken as it stands: the same text has to give the same tokens, and
    the types of one text's tokens have to be 0 where the model is told them."""
    if getattr(tokenizer.model, "dropout", None):
        log.warning("%s leaves out merges by chance (dropout %g), as for training; here none is left out", source,
                    tokenizer.model.dropout)  # fmt: skip
        tokenizer.model.dropout = None
    typed = any(encodings(tokenizer.encode_batch, ["a"], True)[0].type_ids)
    inputs = field(options, "model_input_names", list, [], source.with_name("tokenizer_config.json"))
    if typed and "token_type_ids" in inputs:  # without them, every type is 0
        raise ConfigError(f"{source}: post_processor gives the tokens of one text a type other than 0; expected 0")


def exact_pieces(path: Path) -> Tokenizer:
    """A tokenizer.json with the scores of pieces that its decimals say, as transformers' classes read it.

    tokenizers' own reading misses one in seven by its last bit, which decides between "00" "0" and "0" "00".
    """
    content = read_object(path)
    model = content["model"]
    if model.get("type") != "Unigram":
        return Tokenizer.from_file(str(path))
    rest = {**content, "added_tokens": [], "model": {**model, "vocab": model["vocab"][:1], "unk_id": None}}
    tokenizer = Tokenizer.from_str(json.dumps(rest))
    pieces = [(text, score) for text, score in model["vocab"]]
    tokenizer.model = models.Unigram(pieces, model.get("unk_id"), model.get("byte_fallback", False))
    for fields in content.get("added_tokens") or []:
        token = added(fields, "added_tokens", path)
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
    return tokenizer


def vocabulary_of(kind: Kind, folder: Path, part: str, options: Options) -> Tokenizer:
    """The vocabulary of the older files; a WeightsError if one is missing or damaged."""
    paths = [inside(folder, part, file) for file in kind.files]
    absent = [path.name for path in paths if not path.exists()]
    if absent:
        raise WeightsError(
            f"{folder / part} has neither tokenizer.json nor {' and '.join(absent)}; expected one of them"
        )
    assert kind.vocabulary is not None
    return kind.vocabulary(paths[0], {role: text_of(token) for role, token in special_tokens(kind, options).items()})


def wordpiece(path: Path, options: Options) -> Tokenizer:
    """BERT's tokenizer (Devlin et al. 2018) from a vocabulary of one token a line."""
    tokenizer = wordpiece_vocabulary(path, {"unk": text_of(special_tokens(BERT, options)["unk"])})
    tokenizer = add_tokens(tokenizer, BERT, options, path.with_name("added_tokens.json"))
    follow(tokenizer, BERT, options, path)
    return tokenizer


def add_tokens(tokenizer: Tokenizer, kind: Kind | None, options: Options, more: Path) -> Tokenizer:
    """With the tokens that are never split: those that the options list, those of added_tokens.json, the special ones.

    A special token that the vocabulary lacks is not added, since the model has no row for it. Something other than
    tokens is a ConfigError, and one whose id is taken by another a WeightsError.
    """
    special = special_tokens(kind, options)
    texts = {text_of(token) for token in special.values()}
    listed: dict[int, AddedToken] = {}
    if "added_tokens_decoder" in options:
        for i, token in field(options, "added_tokens_decoder", dict, {}, more).items():
            listed[number(i, more)] = added(token, f"added_tokens_decoder.{i}", more)
    elif more.exists():
        for text, i in read_object(more).items():
            listed[number(i, more)] = AddedToken(text, normalized=text not in texts, special=text in texts)
    extra = options.get("extra_special_tokens") or options.get("additional_special_tokens") or []
    extra = [*extra.values()] if isinstance(extra, dict) else extra
    if not isinstance(extra, list):
        raise ConfigError(f"{more.parent}: extra_special_tokens is {shown(extra)}; expected a list of tokens")
    named = [added(token, f"{role}_token", more) for role, token in special.items()]
    absent = {token.content for token in named if tokenizer.token_to_id(token.content) is None}
    named = [token for token in named if token.content not in absent]
    if absent := absent & {text_of(value) for name, value in options.items() if is_token(name, value)}:
        log.warning("%s: the vocabulary lacks %s, named as special; in a text it is split as other words are",
                    more.parent, ", ".join(map(printable, sorted(absent))))  # fmt: skip
    kept = {token.content for token in (*listed.values(), *named)} | {text_of(token) for token in extra}
    held = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    if kind is not None and "added_tokens_decoder" in options and not held <= kept:  # the class knows no others
        normalizer, tokenizer = tokenizer.normalizer, Tokenizer(tokenizer.model)
        tokenizer.normalizer, held = normalizer, set()
    for i, token in sorted(listed.items(), key=lambda pair: pair[0]):
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
        if tokenizer.token_to_id(token.content) != i:
            raise WeightsError(f"{more.parent}: the added token {printable(token.content)} has the id {i}, but gets "
                               f"{tokenizer.token_to_id(token.content)}; expected added tokens to go on where the "
                               "vocabulary ends")  # fmt: skip
    tokenizer.add_special_tokens([token for token in named if token.content not in held])
    held = {token.content for token in tokenizer.get_added_tokens_decoder().values()}  # as the file has them
    more_tokens = [added(token, "extra_special_tokens", more) for token in extra]
    tokenizer.add_special_tokens([token for token in more_tokens if token.content not in held])
    return tokenizer


def special_tokens(kind: Kind | None, options: Options) -> dict[str, Any]:
    """The special tokens by role: what the options call them, else what the class does."""
    named = {name.removesuffix("_token"): value for name, value in options.items() if is_token(name, value)}
    return {**(kind.special if kind else {}), **named}


def text_of(token: Any) -> str:
    """A token's text, whether or not it stands in an object."""
    return str(token.get("content", "") if isinstance(token, dict) else token)


def number(value: Any, source: Path) -> int:
    text = str(value)
    if not text.isdecimal() or len(text) > 9:
        raise ConfigError(f"{source.parent}: {shown(value)} is no token's id; expected a whole number")
    return int(text)


def added(token: Any, name: str, source: Path) -> AddedToken:
    """An added token, of its text or of its fields; ``name`` is the field that names it. Anything else is a
    ConfigError."""
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    if isinstance(token, str):
        return AddedToken(token, normalized=False, special=True)
    if not isinstance(token, dict):
        raise ConfigError(f"{source}: {name} is {shown(token)}; expected a string")
    given = {flag: field(token, flag, bool, False, source) for flag in flags if token.get(flag) is not None}
    return AddedToken(field(token, "content", str, "", source), **given)


def follow(tokenizer: Tokenizer, kind: Kind, options: Options, source: Path) -> None:
    """Put before and behind the vocabulary what the class does, by the options; what is already so is left alone. A
    vocabulary that lacks a special token which stands around each text is a WeightsError."""
    special = {role: text_of(token) for role, token in special_tokens(kind, options).items()}
    ends = [special[role] for role in kind.ends]
    absent = [text for text in (special["unk"], *ends) if tokenizer.token_to_id(text) is None]
    if (absent and kind.model != "BPE") or set(ends) & set(absent):
        raise WeightsError(f"{source} lacks {', '.join(map(printable, absent))}; expected its special tokens in it")
    if kind.model == "WordPiece":
        tokenizer.model.unk_token = special["unk"]
        tokenizer.model.max_input_chars_per_word = 100
        tokenizer.model.continuing_subword_prefix = "##"
    if kind.model == "BPE":
        tokenizer.model.unk_token = tokenizer.model.dropout = None
        tokenizer.model.fuse_unk = tokenizer.model.byte_fallback = tokenizer.model.ignore_merges = False
    changed = []
    for name, wanted in {
        "normalizer": kind.normalizer(options, tokenizer.normalizer),
        "pre_tokenizer": kind.pre_tokenizer(options),
    }.items():
        before = state(getattr(tokenizer, name))
        if before != state(wanted):
            setattr(tokenizer, name, wanted)
            changed += [f"{name} {json.dumps(before)}"] if before else []
    if changed and source.name == "tokenizer.json":
        log.warning("%s has the %s; not it but tokenizer_config.json is followed, as by transformers", source,
                    " and the ".join(changed)[:300])  # fmt: skip
    first, last = (tokenizer.token_to_id(text) for text in ends)
    ids = encodings(tokenizer.encode_batch, ["a"])[0].ids
    one, both = (encodings(tokenizer.encode_batch, [text], True)[0] for text in ("a", ("a", "a")))
    pair = [first, *ids, *[last] * kind.between, *ids, last]
    types = [0] * (len(ids) + 2) + [1] * (len(ids) + 1)
    if one.ids != [first, *ids, last] or both.ids != pair or (kind.segments and both.type_ids != types):
        around = (ends[1], last or 0), (ends[0], first or 0)
        bert = kind.between == 1
        tokenizer.post_processor = processors.BertProcessing(*around) if bert else processors.RobertaProcessing(
            *around, trim_offsets=False, add_prefix_space=False)  # fmt: skip


def takes_segments(options: Options, name: str) -> bool:
    """Whether a model is told the segments of a pair, as tokenizer_config.json names what it takes, or by its class."""
    kind, named = KINDS.get(name), options.get("model_input_names")
    return "token_type_ids" in named if isinstance(named, list) else kind is not None and kind.segments


def state(part: Any) -> Any:
    """What a part of a tokenizer is, to compare."""
    return json.loads(part.__getstate__()) if part is not None else None
