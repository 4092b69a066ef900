"""Folders as others made them, each against sentence-transformers: the same vectors, or one line that says why not.

Every case is a tiny random model that transformers wrote, with something changed in its folder.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints.folders import older_norms, rename_tensors, split_in_shards
from conftest import randomized
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers

from mtl import MultiTaskModel, SentenceEncoder
from mtl.errors import MtlError
from mtl.model.packing import PackedBatch
from mtl.model.pooling import DENSE_ACTIVATIONS

transformers = pytest.importorskip("transformers", reason="needs the reference extra")
sentence_transformers = pytest.importorskip("sentence_transformers", reason="needs the reference extra")
pytestmark = pytest.mark.reference

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = [*"abcdefghijklmnopqrstuvwxyzABCDEFGHéÉß日本.,!?'", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyzABCé")]
WORDS = [*SPECIAL, *LETTERS, "new", "york", "[", "]", "##MASK", "<", ">", "/"]
TEXTS = [
    "a b c",
    "Ab É é ABC",
    "",
    "日本 ab",
    "new york [MASK] [mask] [NEW] [new]",
    "a" * 30,
    "x y z " * 20,
    "ß <s> a </s> [PAD]",
    "İΑΣ fin",
    "  blanks\tand\nlines  ",
]
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
         "max_position_embeddings": 40, "initializer_range": 0.3}  # fmt: skip


def distilbert(**fields: Any) -> Any:
    names = {"hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads",
             "intermediate_size": "hidden_dim"}  # fmt: skip
    return transformers.DistilBertConfig(**{names.get(name, name): x for name, x in SHAPE.items()}, **fields)


def write(folder: Path, model: Any, vocabulary: list[str] = WORDS, **options: Any) -> Path:
    """A model and BERT's tokenizer, as transformers writes them."""
    randomized(model, 1).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    transformers.BertTokenizer(vocab={word: i for i, word in enumerate(vocabulary)}, **options).save_pretrained(folder)
    return folder


def bert(folder: Path, kind: str = "BertModel", rows: int = len(WORDS), **fields: Any) -> Path:
    config = transformers.BertConfig(vocab_size=rows, **{**SHAPE, **fields})
    return write(folder, getattr(transformers, kind)(config))


def sentence(folder: Path, pooling: dict[str, Any] | None = None, name: str = "bert", **fields: Any) -> Path:
    """What sentence-transformers 3 writes beside it."""
    places = {"Transformer": "", "Pooling": "1_Pooling"}
    modules = [
        {"idx": i, "name": str(i), "path": place, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, place) in enumerate(places.items())
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True, **(pooling or {})}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / f"sentence_{name}_config.json").write_text(json.dumps(fields or {"max_seq_length": 30}))
    return folder


def edit(path: Path, **fields: Any) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({k: v for k, v in (content | fields).items() if v != "gone"}))


def append(folder: Path, kind: str, config: dict[str, Any], tensors: dict[str, torch.Tensor] | None = None) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    place = f"{len(modules)}_X"
    entry = {"idx": len(modules), "name": str(len(modules)), "path": place, "type": kind}
    (folder / "modules.json").write_text(json.dumps([*modules, entry]))
    (folder / place).mkdir()
    (folder / place / "config.json").write_text(json.dumps(config))
    if tensors:
        save_file(tensors, folder / place / "model.safetensors")


def of_family(folder: Path, family: str, kind: str = "Model", rows: int = 0, **fields: Any) -> Path:
    """A model of another family with a tokenizer of its kind, trained on a few texts."""
    if family == "Electra":
        config = transformers.ElectraConfig(vocab_size=len(WORDS), **{**SHAPE, "embedding_size": 32, **fields})
        return write(folder, getattr(transformers, f"Electra{kind}")(config))
    if family == "MPNet":
        config = transformers.MPNetConfig(vocab_size=len(MPNET), **{**SHAPE, "layer_norm_eps": 1e-5, **fields})
        randomized(getattr(transformers, f"MPNet{kind}")(config), 1).save_pretrained(folder)
        tokenizer = transformers.MPNetTokenizer(vocab={word: i for i, word in enumerate(MPNET)}, model_max_length=38)
        tokenizer.save_pretrained(folder)
        return folder
    if family == "ModernBert":  # with a bare file of byte-level BPE, as its checkpoints have
        tokenizer = byte_level("Roberta")
        ids = {
            f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("pad", "bos", "eos", "cls", "sep")
        }
        fields = {**ids, "local_attention": 8, "num_hidden_layers": 4, "max_position_embeddings": 60, **fields}
        config = transformers.ModernBertConfig(**{**SHAPE, "vocab_size": len(tokenizer), **fields})
        randomized(getattr(transformers, f"ModernBert{kind}")(config), 1).save_pretrained(folder)
        tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
        options = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "model_max_length": 60}
        (folder / "tokenizer_config.json").write_text(json.dumps(options))
        return folder
    if family == "DebertaV2":
        tokenizer = unigram(family)
        fields = {"relative_attention": True, "position_biased_input": False, "pos_att_type": ["p2c", "c2p"],
                  "share_att_key": True, "norm_rel_ebd": "layer_norm", "position_buckets": 8, **fields}  # fmt: skip
        config = transformers.DebertaV2Config(**{**SHAPE, "vocab_size": len(tokenizer), **fields})
        randomized(getattr(transformers, f"DebertaV2{kind}")(config), 1).save_pretrained(folder)
        tokenizer.model_max_length = 40
        tokenizer.save_pretrained(folder)
        return folder
    tokenizer = {"Roberta": byte_level, "XLMRoberta": unigram, "Camembert": unigram}[family](family)
    shape = {**SHAPE, "layer_norm_eps": 1e-5, "type_vocab_size": 1, "vocab_size": rows or len(tokenizer)}
    shape |= {"pad_token_id": tokenizer.pad_token_id, **fields}
    model = getattr(transformers, f"{family}{kind}")(getattr(transformers, f"{family}Config")(**shape))
    randomized(model, 1).save_pretrained(folder)
    tokenizer.model_max_length = 40 - shape["pad_token_id"] - 1  # transformers itself would go on to 40, and fail
    tokenizer.save_pretrained(folder)
    return folder


CORPUS = [*TEXTS, "a new town", "another and another one", "there is a house in New York"] * 3
MPNET = ["<s>", "<pad>", "</s>", "<unk>", *WORDS[1:], "<mask>"]
NAMES = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def byte_level(family: str) -> Any:
    """RoBERTa's kind of tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=NAMES, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return transformers.RobertaTokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])


def unigram(family: str) -> Any:
    """XLM-RoBERTa's, CamemBERT's and DeBERTa's kind, with sentencepiece's normalization left out."""
    names = NAMES if family != "DebertaV2" else ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    trainer = trainers.UnigramTrainer(vocab_size=90, special_tokens=names, unk_token=names[3], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    vocabulary = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["vocab"]]
    return getattr(transformers, f"{family}Tokenizer")(vocab=vocabulary)


Case = Callable[[Path], Any]
EQUAL: dict[str, Case] = {}
REFUSED: dict[str, tuple[Case, str]] = {}


def equal(case: Case) -> Case:
    EQUAL[case.__name__] = case
    return case


def refused(message: str) -> Callable[[Case], Case]:
    def note(case: Case) -> Case:
        REFUSED[case.__name__] = (case, message)
        return case

    return note


def ours(folder: Path) -> np.ndarray:
    return SentenceEncoder.from_pretrained(folder).encode(TEXTS, overflow="truncate")


def theirs(folder: Path) -> np.ndarray:
    return sentence_transformers.SentenceTransformer(str(folder), device="cpu").float().encode(TEXTS, batch_size=1)


# A. A folder's settings


@equal
def bare_bert(f: Path) -> None:
    bert(f)


@equal
def truncate_dim(f: Path) -> None:
    edit(sentence(bert(f)) / "config_sentence_transformers.json", truncate_dim=8)


for name in ("roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet"):
    EQUAL[f"length_in_{name}"] = lambda f, name=name: sentence(bert(f), name=name, max_seq_length=9, do_lower_case=True)


@equal
def two_length_files(f: Path) -> None:
    sentence(bert(f), name="xlnet", max_seq_length=9)
    (f / "sentence_bert_config.json").write_text("{}")
    (f / "sentence_roberta_config.json").write_text('{"max_seq_length": 7}')


@equal
def length_without_modules(f: Path) -> None:
    (bert(f) / "sentence_bert_config.json").write_text('{"max_seq_length": 9, "do_lower_case": true}')
    (f / "config_sentence_transformers.json").write_text('{"truncate_dim": 5}')


@equal
def capitals_kept(f: Path) -> None:
    edit(sentence(bert(f)) / "tokenizer_config.json", do_lower_case=False)


@equal
def accents_stripped(f: Path) -> None:
    edit(sentence(bert(f)) / "tokenizer_config.json", do_lower_case=False, strip_accents=True)


@equal
def accents_kept(f: Path) -> None:
    edit(sentence(bert(f)) / "tokenizer_config.json", strip_accents=False)


@equal
def chinese_together(f: Path) -> None:
    edit(sentence(bert(f)) / "tokenizer_config.json", tokenize_chinese_chars=False)


@equal
def cut_at_the_left(f: Path) -> None:
    edit(sentence(bert(f), max_seq_length=12) / "tokenizer_config.json", truncation_side="left")


@equal
def the_tokenizers_length(f: Path) -> None:
    edit(sentence(bert(f), do_lower_case=False) / "tokenizer_config.json", model_max_length=11)


@equal
def an_older_length(f: Path) -> None:
    edit(sentence(bert(f), do_lower_case=False) / "tokenizer_config.json", model_max_length="gone", max_len=11)


@equal
def no_tokenizer_config(f: Path) -> None:
    sentence(bert(f))
    (f / "tokenizer_config.json").unlink()
    content = json.loads((f / "tokenizer.json").read_text())
    content["normalizer"]["lowercase"] = False  # BertTokenizer's default wins
    (f / "tokenizer.json").write_text(json.dumps(content))


@equal
def taken_as_it_stands(f: Path) -> None:
    edit(sentence(bert(f)) / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", do_lower_case=False)


@equal
def class_in_config(f: Path) -> None:
    sentence(bert(f))
    edit(f / "tokenizer_config.json", tokenizer_class="gone", do_lower_case=False)
    edit(f / "config.json", tokenizer_class="PreTrainedTokenizerFast")


@equal
def special_tokens_of_other_names(f: Path) -> None:
    words = ["<pad>", "<unk>", "<s>", "</s>", "<mask>", *LETTERS]
    write(f, transformers.BertModel(transformers.BertConfig(vocab_size=len(words), **SHAPE)), words,
          pad_token="<pad>", unk_token="<unk>", cls_token="<s>", sep_token="</s>", mask_token="<mask>")  # fmt: skip


@equal
def special_tokens_in_their_own_file(f: Path) -> None:
    special_tokens_of_other_names(f)
    names = {k: v for k, v in json.loads((f / "tokenizer_config.json").read_text()).items() if k.endswith("_token")}
    edit(f / "tokenizer_config.json", added_tokens_decoder="gone", **dict.fromkeys(names, "gone"))
    flags = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    (f / "special_tokens_map.json").write_text(json.dumps({k: {"content": v, **flags} for k, v in names.items()}))
    (f / "tokenizer.json").unlink()


@equal
def added_tokens_and_vocab_alone(f: Path) -> None:
    bert(f, rows=len(WORDS) + 2)
    (f / "tokenizer.json").unlink()
    edit(f / "tokenizer_config.json", added_tokens_decoder="gone")
    (f / "added_tokens.json").write_text(json.dumps({"[NEW]": len(WORDS), "zz": len(WORDS) + 1}))


@equal
def added_tokens_decoder(f: Path) -> None:
    bert(f, rows=len(WORDS) + 2)
    (f / "tokenizer.json").unlink()
    token = {"lstrip": True, "rstrip": False, "single_word": False, "normalized": False, "special": False}
    edit(f / "tokenizer_config.json", added_tokens_decoder={str(len(WORDS)): {"content": "[NEW]", **token}})


@equal
def tokens_that_the_decoder_does_not_list(f: Path) -> None:
    bert(f, rows=len(WORDS) + 2)
    tokenizer = Tokenizer.from_file(str(f / "tokenizer.json"))
    tokenizer.add_tokens(["[NEW]"])
    tokenizer.save(str(f / "tokenizer.json"))
    edit(f / "tokenizer_config.json", added_tokens_decoder={"4": {"content": "[MASK]", "special": True}})


@equal
def extra_special_tokens(f: Path) -> None:
    edit(bert(f) / "tokenizer_config.json", extra_special_tokens=["york"])


@equal
def additional_special_tokens(f: Path) -> None:
    edit(bert(f) / "tokenizer_config.json", additional_special_tokens=["york", "new"])


@equal
def special_tokens_split(f: Path) -> None:
    edit(bert(f) / "tokenizer_config.json", split_special_tokens=True)


@equal
def baked_truncation(f: Path) -> None:
    sentence(bert(f))
    tokenizer = Tokenizer.from_file(str(f / "tokenizer.json"))
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(f / "tokenizer.json"))


@equal
def processor_kwargs(f: Path) -> None:
    sentence(bert(f), max_seq_length=25, processor_kwargs={"model_max_length": 9, "do_lower_case": False})


@equal
def lower_case_of_sentences(f: Path) -> None:
    edit(sentence(bert(f), do_lower_case=True) / "tokenizer_config.json", do_lower_case=False)


@equal
def newest_form(f: Path) -> None:
    bert(f / "start")
    model = sentence_transformers.SentenceTransformer(str(f / "start"), device="cpu", truncate_dim=9)
    model.append(sentence_transformers.models.Dense(32, 12, activation_function=torch.nn.GELU()))
    model.append(sentence_transformers.models.Normalize())
    model.save(str(f))
    shutil.rmtree(f / "start")


@equal
def lower_case_newest_form(f: Path) -> None:
    newest_form(f)
    edit(f / "sentence_bert_config.json", max_seq_length=8, do_lower_case=True)


@equal
def pooling_of_new_name_beside_old_switches(f: Path) -> None:
    sentence(bert(f), {"pooling_mode": ["max", "cls"], "pooling_mode_mean_tokens": True})


@equal
def activation_of_another_path(f: Path) -> None:
    sentence(bert(f))
    config = {"in_features": 32, "out_features": 6, "bias": False, "activation_function": "torch.nn.ReLU"}
    append(f, "sentence_transformers.models.Dense", config, {"linear.weight": torch.randn(6, 32)})


@equal
def unknown_fields(f: Path) -> None:
    edit(sentence(bert(f)) / "config.json", my_own=7)
    edit(f / "config_sentence_transformers.json", note="mine")
    edit(f / "tokenizer_config.json", also="mine")


@equal
def defaults_of_bert(f: Path) -> None:
    """Fields that config.json does not have are what the family has, 12 layers and not 6."""
    bert(f, num_hidden_layers=12)
    edit(f / "config.json", num_hidden_layers="gone", type_vocab_size="gone", layer_norm_eps="gone", hidden_act="gone")


@equal
def names_of_other_families(f: Path) -> None:
    """transformers takes BERT's names of a DistilBERT's fields too."""
    write(f, transformers.DistilBertModel(distilbert(vocab_size=len(WORDS))))
    edit(f / "config.json", n_heads="gone", dim="gone", n_layers="gone", hidden_size=32, num_attention_heads=4,
         num_hidden_layers=2)  # fmt: skip


@equal
def window_of_transformers_5(f: Path) -> None:
    edit(of_family(f, "ModernBert") / "config.json", sliding_window=4)


@equal
def no_word_on_a_blank_before_texts(f: Path) -> None:
    edit(of_family(f, "Camembert") / "tokenizer_config.json", add_prefix_space=None)


@equal
def chat_template_of_a_sentence_encoder(f: Path) -> None:
    edit(sentence(bert(f)) / "tokenizer_config.json", chat_template="x")


def as_it_stands(change: Callable[[dict[str, Any]], Any], **options: Any) -> Case:
    """A PreTrainedTokenizerFast, with something else in tokenizer.json."""

    def case(f: Path) -> None:
        edit(bert(f) / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", **options)
        content = json.loads((f / "tokenizer.json").read_text())
        change(content)
        (f / "tokenizer.json").write_text(json.dumps(content))

    return case


def template(*parts: Any, **more: Any) -> Callable[[dict[str, Any]], Any]:
    """A post-processor by its parts: a special token's name, or the type of the text's tokens."""
    single = [{"Sequence": {"id": "A", "type_id": part}} if isinstance(part, int)
              else {"SpecialToken": {"id": part, "type_id": 0}} for part in parts]  # fmt: skip
    special = {part: {"id": part, "ids": [WORDS.index(part)], "tokens": [part]} for part in SPECIAL}
    pair = [{"Sequence": {"id": side, "type_id": 0}} for side in "AB"]
    processor = {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}
    return lambda content: content.update(post_processor=processor)


EQUAL["more_ends"] = as_it_stands(template("[CLS]", "[MASK]", 0, "[SEP]", "[SEP]"))
EQUAL["no_ends"] = as_it_stands(template("[CLS]", 0))
EQUAL["types_unasked"] = as_it_stands(template("[CLS]", 1, "[SEP]"), model_input_names=["input_ids", "attention_mask"])


def two_features(**config: Any) -> Case:
    def case(f: Path) -> None:
        sentence(bert(f))
        append(f, "sentence_transformers.models.Dense", {"in_features": 32, "out_features": 32, **config},
               {"linear.weight": torch.randn(32, 32), "linear.bias": torch.randn(32)})  # fmt: skip

    return case


EQUAL |= {f"dense_{name}": two_features(activation_function=f"torch.nn.modules.activation.{name}")
          for name in DENSE_ACTIVATIONS if name != "Identity"}  # fmt: skip


@equal
def norm_and_dropout(f: Path) -> None:
    sentence(bert(f))
    drop = "sentence_transformers.models.Dropout", "sentence_transformers.sentence_transformer.modules.dropout.Dropout"
    append(f, drop[0], {"dropout": 0.4})
    norm = {"norm.weight": torch.randn(32), "norm.bias": torch.randn(32)}
    append(f, "sentence_transformers.models.LayerNorm", {"dimension": 32}, norm)
    append(f, drop[1], {"dropout": 0.1})
    norm = {name: tensor + 1 for name, tensor in norm.items()}
    append(f, "sentence_transformers.sentence_transformer.modules.layer_norm.LayerNorm", {"dimension": 32}, norm)


def narrow_norm(f: Path) -> None:
    norm = {"norm.weight": torch.randn(16), "norm.bias": torch.randn(16)}
    append(sentence(bert(f)), "sentence_transformers.models.LayerNorm", {"dimension": 16}, norm)


def weighted_layers(f: Path) -> None:
    append(sentence(bert(f)), "sentence_transformers.models.WeightedLayerPooling", {"layer_start": 1})


REFUSED |= {
    "narrow_norm": (narrow_norm, "dimension is 16; what comes before it gives 32 values"),
    "weighted_layers": (weighted_layers, "WeightedLayerPooling' is unknown; expected Transformer, Pooling, Dense, "),
    "another_activation": (two_features(activation_function="mine.nn.Identity"), "Dense activation 'mine.nn.Identity'"),
    "a_residual": (two_features(use_residual=True), "use_residual is True; expected False"),
    "of_tokens": (two_features(module_input_name="token_embeddings"), "module_input_name is 'token_embeddings'"),
    "a_newer_field": (two_features(gate="x"), "config.json: gate: unknown, and could change the vectors"),
    "prompt_left_out": (lambda f: sentence(bert(f), {"include_prompt": False}), "include_prompt is False"),
    "pooling_field": (lambda f: sentence(bert(f), {"pooling_power": 3}), "pooling_power: unknown"),
    "task": (lambda f: sentence(bert(f), transformer_task="fill-mask"), "transformer_task is 'fill-mask'"),
    "query_length": (lambda f: sentence(bert(f), query_length=5), "query_length is 5"),
    "sentence_field": (lambda f: sentence(bert(f), cut_from="left"), "cut_from: unknown"),
    "half_a_layer": (lambda f: edit(bert(f) / "config.json", pruned_heads={"0": [1]}), "pruned_heads is"),
    "decoder": (lambda f: edit(bert(f) / "config.json", is_decoder=True), "is_decoder is True"),
    "quantized": (lambda f: edit(bert(f) / "config.json", quantization_config={"bits": 4}), "quantization_config is"),
    "adapter": (lambda f: edit(bert(f) / "adapter_config.json", peft_type="LORA"), "holds an adapter; merge it"),
    "sparse": (
        lambda f: edit(sentence(bert(f)) / "config_sentence_transformers.json", model_type="SparseEncoder"),
        "model_type is 'SparseEncoder'",
    ),
    "japanese": (
        lambda f: (edit(bert(f) / "tokenizer_config.json", tokenizer_class="BertJapaneseTokenizer"),
                   (f / "tokenizer.json").unlink()),
        "expected it beside a BertJapaneseTokenizer",
    ),
    "causal": (lambda f: edit(bert(f) / "config.json", is_causal=True), "is_causal is True; expected False"),
    "layers_of_their_own": (
        lambda f: edit(bert(f) / "config.json", per_layer_config={"1": {"hidden_act": "relu"}}), "per_layer_config is"
    ),
    "two_numbers_of_heads": (
        lambda f: (write(f, transformers.DistilBertModel(distilbert(vocab_size=len(WORDS)))),
                   edit(f / "config.json", num_attention_heads=2)),
        "num_attention_heads is 2, but is 4 under another name",
    ),
    "wider_window": (
        lambda f: edit(of_family(f, "ModernBert") / "config.json", sliding_window=5), "sliding_window is 5; expected"
    ),
    "wider_heads": (lambda f: edit(of_family(f, "ModernBert") / "config.json", head_dim=4), "head_dim is 4;"),
    "text_twice": (as_it_stands(template(0, "[SEP]", 0)), "expected its tokens once"),
    "no_text": (as_it_stands(template("[CLS]")), "expected its tokens once|has no token that it ever gives"),
    "types": (
        as_it_stands(
            template("[CLS]", 1, "[SEP]"), model_input_names=["input_ids", "token_type_ids", "attention_mask"]
        ),
        "post_processor gives the tokens of one text a type other than 0",
    ),
    "holes_among_added_tokens": (
        lambda f: (added_tokens_and_vocab_alone(f), edit(f / "added_tokens.json", **{"[NEW]": 98})),
        r"the added token \S+ has the id \d+, but gets",
    ),
}  # fmt: skip


# B. What others call things


@pytest.mark.parametrize("prefix", ["bert.", "model.", "0.auto_model.", "module.bert.", "encoder."])
def test_any_prefix(tmp_path: Path, prefix: str) -> None:
    """transformers takes some of these for another model's, and draws new weights; the model is the one without it."""
    expected = SentenceEncoder.from_pretrained(bert(tmp_path)).encode(TEXTS, overflow="truncate")
    rename_tensors(tmp_path, lambda name: f"{prefix}{name}")
    again = SentenceEncoder.from_pretrained(tmp_path)
    assert again.encode(TEXTS, overflow="truncate").tolist() == expected.tolist()


HEADS = ("BertForSequenceClassification", "BertForMaskedLM", "BertForPreTraining", "BertForTokenClassification",
         "BertForQuestionAnswering", "BertForMultipleChoice", "BertForNextSentencePrediction")  # fmt: skip
for kind in HEADS:
    EQUAL[kind] = lambda f, kind=kind: bert(f, kind)
for kind in ("Model", "ForQuestionAnswering", "ForTokenClassification", "ForMaskedLM", "ForSequenceClassification",
             "ForMultipleChoice"):  # fmt: skip
    of_kind = getattr(transformers, f"DistilBert{kind}")
    EQUAL[f"DistilBert{kind}"] = lambda f, of_kind=of_kind: write(f, of_kind(distilbert(vocab_size=len(WORDS))))


@equal
def gamma_and_beta(f: Path) -> None:
    rename_tensors(bert(f, "BertForPreTraining"), older_norms)


@equal
def in_shards(f: Path) -> None:
    split_in_shards(bert(f, "BertForMaskedLM"), 3)


@equal
def older_layout(f: Path) -> None:
    bert(f / "0_Transformer")
    (f / "0_Transformer" / "tokenizer.json").unlink()
    sentence(f, max_seq_length=11)
    (f / "sentence_bert_config.json").rename(f / "0_Transformer" / "sentence_bert_config.json")
    modules = json.loads((f / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (f / "modules.json").write_text(json.dumps(modules))


@equal
def something_beside(f: Path) -> None:
    bert(f)
    path = f / "model.safetensors"
    save_file(load_file(path) | {"regressor.weight": torch.ones(3), "steps": torch.ones(1)}, path, {"format": "pt"})


def with_tensor(name: str) -> Case:
    def case(f: Path) -> None:
        path = bert(f) / "model.safetensors"
        save_file(load_file(path) | {name: torch.ones(3)}, path, {"format": "pt"})

    return case


REFUSED |= {
    "lora_inside": (
        with_tensor("encoder.layer.0.attention.self.query.lora_A.weight"),
        "unexpected encoder.layer.0.attention.self.query.lora",
    ),
    "embeddings_inside": (with_tensor("embeddings.segments.weight"), "unexpected embeddings.segments.weight"),
    "two_encoders": (
        lambda f: save_file(
            {f"{side}.{k}": v.clone() for k, v in load_file(bert(f) / "model.safetensors").items() for side in "ab"},
            f / "model.safetensors", {"format": "pt"},
        ),
        "holds tensors twice",
    ),
    "lost_shard": (lambda f: split_in_shards(bert(f))[1].unlink(), "model-00002-of-00002.safetensors is missing"),
    "no_trunk": (lambda f: save_file({"x": torch.ones(2)}, bert(f) / "model.safetensors"), "missing embeddings.word"),
}  # fmt: skip


# Families

for kind in ("Model", "ForSequenceClassification", "ForMaskedLM"):
    EQUAL[f"ModernBert{kind}"] = lambda f, kind=kind: of_family(f, "ModernBert", kind)
for name in ("Roberta", "XLMRoberta", "Camembert", "Electra", "MPNet", "DebertaV2"):
    EQUAL[f"{name}Model"] = lambda f, name=name: of_family(f, name)
    for kind in ("ForSequenceClassification", "ForMaskedLM", "ForTokenClassification", "ForQuestionAnswering"):
        EQUAL[f"{name}{kind}"] = lambda f, name=name, kind=kind: of_family(f, name, kind)

EQUAL["small_electra"] = lambda f: of_family(f, "Electra", "ForSequenceClassification", embedding_size=10)


@equal
def deberta_that_lowers_and_splits(f: Path) -> None:
    """And counts places, whose table others have but do not read."""
    of_family(f, "DebertaV2", position_biased_input=True, type_vocab_size=2)
    edit(f / "tokenizer_config.json", do_lower_case=True, split_by_punct=True, vocab_type="spm")


@equal
def deberta_with_a_table_that_is_not_read(f: Path) -> None:
    """As transformers does, which has no place for it."""
    of_family(f, "DebertaV2", position_biased_input=True)
    edit(f / "config.json", position_biased_input=False)


@equal
def roberta_of_older_files(f: Path) -> None:
    of_family(f, "Roberta")
    model = json.loads((f / "tokenizer.json").read_text())["model"]
    (f / "vocab.json").write_text(json.dumps(model["vocab"]))
    (f / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in model["merges"]) + "\n")
    (f / "tokenizer.json").unlink()


@equal
def mpnet_of_older_files(f: Path) -> None:
    of_family(f, "MPNet")
    (f / "tokenizer.json").unlink()
    (f / "vocab.txt").write_text("\n".join(MPNET) + "\n")


@equal
def mpnet_with_other_padding(f: Path) -> None:
    of_family(f, "MPNet", pad_token_id=0)


@equal
def roberta_with_a_blank_before(f: Path) -> None:
    edit(of_family(f, "Roberta") / "tokenizer_config.json", add_prefix_space=True)


@equal
def roberta_with_other_padding(f: Path) -> None:
    of_family(f, "Roberta", pad_token_id=4)


@equal
def xlm_roberta_with_more_rows(f: Path) -> None:
    of_family(f, "XLMRoberta", rows=200)


@equal
def unigram_tokenizer_of_bert(f: Path) -> None:
    """As paraphrase-multilingual-MiniLM-L12-v2, whose tokenizer has <s>, <pad>, </s>."""
    tokenizer = unigram("XLMRoberta")
    model = transformers.BertModel(transformers.BertConfig(**SHAPE, vocab_size=len(tokenizer)))
    randomized(model, 1).save_pretrained(f)
    tokenizer.save_pretrained(f)
    sentence(f)


@equal
def unigram_taken_as_it_stands(f: Path) -> None:
    unigram_tokenizer_of_bert(f)
    edit(f / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")


PADDING = {"null": None, "negative": -1, "beyond": 40, "far_beyond": 10**9, "words": "1", "fraction": 1.5}
for name, value in PADDING.items():
    make = lambda f, value=value: edit(of_family(f, "Roberta") / "config.json", pad_token_id=value)  # noqa: E731
    REFUSED[f"padding_{name}"] = (make, "pad_token_id is")
REFUSED |= {
    "mpnet_of_more_buckets": (
        lambda f: edit(of_family(f, "MPNet") / "config.json", relative_attention_num_buckets=64),
        "relative_attention_num_buckets is 64; expected 32",
    ),
    "odd_heads": (lambda f: edit(of_family(f, "Roberta") / "config.json", num_attention_heads=5), "does not divide"),
    "deberta_with_a_convolution": (
        lambda f: of_family(f, "DebertaV2", conv_kernel_size=3, conv_act="gelu"),
        "conv_kernel_size is 3; expected 0",
    ),
    "deberta_without_distances": (
        lambda f: of_family(f, "DebertaV2", relative_attention=False),
        "relative_attention is False; expected true",
    ),
    "deberta_of_other_parts": (
        lambda f: edit(of_family(f, "DebertaV2") / "config.json", pos_att_type="c2p|p2p"),
        "pos_att_type is 'c2p|p2p'",
    ),
    "deberta_of_other_heads": (
        lambda f: edit(of_family(f, "DebertaV2") / "config.json", attention_head_size=4),
        "attention_head_size is 4",
    ),
    "roberta_relative": (
        lambda f: edit(of_family(f, "Roberta") / "config.json", position_embedding_type="relative_key"),
        "position_embedding_type is 'relative_key'",
    ),
}


# Classifiers


def predicted(folder: Path) -> tuple[Any, list[Any]]:
    """transformers' own answers: the probabilities of each text, and the labels of more than a half."""
    pipe = transformers.pipeline("text-classification", model=str(folder), top_k=None)
    names = [pipe.model.config.id2label[i] for i in range(pipe.model.config.num_labels)]
    found = [{item["label"]: item["score"] for item in row} for row in pipe(SHORT, batch_size=1)]
    return np.array([[row[name] for name in names] for row in found]), names


SHORT = [text for text in TEXTS if 0 < len(text) < 25]
KINDS = {"Bert": bert, "Roberta": of_family, "XLMRoberta": of_family, "Camembert": of_family, "Electra": of_family,
         "MPNet": of_family}  # fmt: skip


def classifier(folder: Path, family: str, outputs: int, problem: str | None, **more: Any) -> Path:
    fields = {"num_labels": outputs, "problem_type": problem, **more}
    kind = "ForSequenceClassification"
    if family == "DistilBert":
        config = distilbert(vocab_size=len(WORDS), **fields)
        return write(folder, transformers.DistilBertForSequenceClassification(config))
    return bert(folder, f"Bert{kind}", **fields) if family == "Bert" else of_family(folder, family, kind, **fields)


@pytest.mark.parametrize(
    ("family", "outputs", "problem"),
    [
        *(
            (family, 3, None)
            for family in ("DistilBert", "Bert", "Roberta", "XLMRoberta", "Camembert", "Electra", "MPNet", "DebertaV2")
        ),
        ("Bert", 3, "multi_label_classification"),
        ("Bert", 1, None),
        ("Bert", 1, "regression"),
        ("Bert", 1, "multi_label_classification"),
        ("Roberta", 2, "single_label_classification"),
    ],
)
def test_classifiers(tmp_path: Path, family: str, outputs: int, problem: str | None) -> None:
    """A published classifier predicts what transformers' pipeline does, and is one again where it is saved."""
    check_classifier(classifier(tmp_path / "theirs", family, outputs, problem), tmp_path, family, problem)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_classifiers_of_deberta(tmp_path: Path, activation: str) -> None:
    folder = classifier(tmp_path / "theirs", "DebertaV2", 3, None, pooler_hidden_act=activation)
    check_classifier(folder, tmp_path, "DebertaV2", None)


def check_classifier(folder: Path, tmp_path: Path, family: str, problem: str | None) -> None:
    expected, names = predicted(folder)
    model = MultiTaskModel.from_pretrained(folder)
    found = model.predict(SHORT)
    np.testing.assert_allclose(found.scores["classification"], expected, atol=5e-6)
    assert model.tasks["classification"].labels == (() if problem == "regression" else tuple(names))
    model.save(tmp_path / "ours")
    again, _ = predicted(tmp_path / "ours")
    np.testing.assert_allclose(again, expected, atol=5e-6)
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config["architectures"] == [f"{family}ForSequenceClassification"]
    np.testing.assert_allclose(
        MultiTaskModel.from_pretrained(tmp_path / "ours").predict(SHORT).scores["classification"], expected, atol=5e-6
    )


@pytest.mark.parametrize("case", EQUAL)
def test_the_same_vectors(case: str, tmp_path: Path) -> None:
    """And again of what we save of it."""
    EQUAL[case](folder := tmp_path / "theirs")
    expected = theirs(folder)
    np.testing.assert_allclose(ours(folder), expected, atol=5e-6)
    SentenceEncoder.from_pretrained(folder).save(tmp_path / "ours")
    np.testing.assert_allclose(ours(tmp_path / "ours"), expected, atol=5e-6)
    np.testing.assert_allclose(theirs(tmp_path / "ours"), expected, atol=5e-6)


@pytest.mark.parametrize("case", REFUSED)
def test_one_line(case: str, tmp_path: Path) -> None:
    make, message = REFUSED[case]
    make(folder := tmp_path / "theirs")
    with pytest.raises(MtlError, match=message) as error:
        SentenceEncoder.from_pretrained(folder)
    assert str(error.value).isprintable()


def test_a_text_at_which_the_tokenizer_fails(tmp_path: Path) -> None:
    """No vocabulary without its unknown token can be told by its files alone: most texts do not need it."""
    as_it_stands(lambda content: content["model"].update(unk_token="[zz]"))(tmp_path)
    model = SentenceEncoder.from_pretrained(tmp_path)
    assert model.encode("a b").shape == (32,)
    with pytest.raises(MtlError, match="the tokenizer fails at a text .*UNK"):
        model.encode("%")


@pytest.mark.parametrize(("family", "padding"), [("Roberta", 1), ("Roberta", 0), ("Camembert", 1), ("MPNet", 1)])
def test_padding_in_a_text(family: str, padding: int, tmp_path: Path) -> None:
    """Positions count the tokens that are no padding, which has a row of its own; 0 stands around every text."""
    folder = of_family(tmp_path / "theirs", family)
    edit(folder / "config.json", pad_token_id=padding)
    tensors = load_file(folder / "model.safetensors")
    tensors["embeddings.position_embeddings.weight"] += 0.3
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    texts = ["a <pad> b", "c", "<pad><pad> a", "a <mask> b </s> a", "<pad>"]
    reference = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    expected = np.stack([reference.encode([text])[0] for text in texts])
    model = SentenceEncoder.from_pretrained(folder)
    np.testing.assert_allclose(model.encode(texts), expected, atol=5e-6)
    model.save(tmp_path / "ours")
    again = sentence_transformers.SentenceTransformer(str(tmp_path / "ours"), device="cpu")
    np.testing.assert_allclose(np.stack([again.encode([text])[0] for text in texts]), expected, atol=5e-6)


def test_a_special_token_stays_as_tokenizer_json_has_it(tmp_path: Path) -> None:
    """tokenizer_config.json lists it by its text alone, and says nothing of the blanks that it takes."""
    tokenizer = byte_level("Roberta")
    tokens = [AddedToken("new", rstrip=True, lstrip=True), AddedToken("<x>", normalized=True)]
    tokenizer.add_special_tokens({"additional_special_tokens": tokens})
    of_family(tmp_path, "Roberta", rows=len(tokenizer))
    tokenizer.save_pretrained(tmp_path)
    texts = ["a new b", "new", "a<x> b"]
    found = SentenceEncoder.from_pretrained(tmp_path).tokenizer(texts).rows
    assert found == transformers.AutoTokenizer.from_pretrained(tmp_path)(texts)["input_ids"]


def test_a_blank_before_each_text_is_said_to_transformers_4(tmp_path: Path) -> None:
    """It takes tokenizer_config.json's word, or no blank, over what tokenizer.json has."""
    of_family(tmp_path / "theirs", "ModernBert")
    edit(tmp_path / "theirs" / "tokenizer.json", pre_tokenizer={
        "type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True})  # fmt: skip
    model = SentenceEncoder.from_pretrained(tmp_path / "theirs")
    model.save(tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "tokenizer_config.json").read_text())["add_prefix_space"] is True
    again = SentenceEncoder.from_pretrained(tmp_path / "ours")
    assert again.tokenizer(TEXTS, "truncate") == model.tokenizer(TEXTS, "truncate")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert theirs(TEXTS, truncation=True, max_length=60)["input_ids"] == model.tokenizer(TEXTS, "truncate").rows


def test_scores_of_pieces_to_the_last_bit(tmp_path: Path) -> None:
    """It decides between "00" "0" and "0" "00"; tokenizers' own reading of decimals misses it for one in seven."""
    scores = {"<s>": 0.0, "<pad>": 0.0, "</s>": 0.0, "<unk>": 0.0, "▁": -2.0}
    drawn = np.random.default_rng(0).uniform(0, 15, 300)
    scores |= {f"{i}": -float(score) for i, score in enumerate(drawn)}
    tokenizer = transformers.XLMRobertaTokenizer(vocab=[*scores.items()])
    config = transformers.XLMRobertaConfig(vocab_size=len(tokenizer), pad_token_id=1, **SHAPE)
    transformers.XLMRobertaModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = SentenceEncoder.from_pretrained(tmp_path)
    assert dict(json.loads(model.tokenizer.backend.to_str())["model"]["vocab"]) == scores
    assert model.tokenizer(TEXTS, "truncate", 38).rows == tokenizer(TEXTS, truncation=True, max_length=38)["input_ids"]


def test_gte_without_a_word_of_its_tokenizer(tmp_path: Path) -> None:
    """transformers takes XLM-RoBERTa's then."""
    tokenizer = unigram("XLMRoberta")
    config = transformers.GteConfig(vocab_size=len(tokenizer), pad_token_id=1, **SHAPE)
    transformers.GteModel(config).save_pretrained(tmp_path)
    backend = tokenizer.backend_tokenizer
    backend.normalizer, backend.post_processor = normalizers.Lowercase(), None
    backend.save(str(tmp_path / "tokenizer.json"))
    found = SentenceEncoder.from_pretrained(tmp_path).tokenizer(TEXTS, "truncate").rows
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert found == theirs(TEXTS, truncation=True, max_length=40)["input_ids"]


def test_a_bare_folder_with_a_chat_template(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """sentence-transformers 6 puts texts into it, others do not."""
    (bert(tmp_path) / "chat_template.jinja").write_text("x")
    SentenceEncoder.from_pretrained(tmp_path)
    assert "has a chat_template, which is not followed" in caplog.text


# What we write is read by others

OLDER = Path(os.environ.get("MTL_OLDER_PYTHON", Path(__file__).parents[2] / ".venv-older" / "bin" / "python"))
PLAIN = ["a b c", "ab cd", "a", "x y z " * 20]
SAVED: dict[str, Case] = {
    "distilbert": lambda f: classifier(f, "DistilBert", 2, None),
    "bert": EQUAL["bare_bert"],
    "bert_classifier": lambda f: classifier(f, "Bert", 3, "multi_label_classification"),
    "bert_unigram": EQUAL["unigram_tokenizer_of_bert"],
    "bert_unigram_as_it_stands": EQUAL["unigram_taken_as_it_stands"],
    "bert_other_tokens": EQUAL["special_tokens_of_other_names"],
    "bert_other_tokens_in_a_file": EQUAL["special_tokens_in_their_own_file"],
    "bert_added_tokens": EQUAL["added_tokens_and_vocab_alone"],
    "roberta": lambda f: classifier(f, "Roberta", 2, None),
    "roberta_older_files": EQUAL["roberta_of_older_files"],
    "xlm_roberta": lambda f: classifier(f, "XLMRoberta", 2, None),
    "camembert": EQUAL["CamembertModel"],
    "electra": lambda f: classifier(f, "Electra", 2, None),
    "small_electra": EQUAL["small_electra"],
    "mpnet": lambda f: classifier(f, "MPNet", 2, None),
    "deberta": lambda f: classifier(f, "DebertaV2", 2, None),
    "deberta_that_lowers": EQUAL["deberta_that_lowers_and_splits"],
    "modernbert": EQUAL["ModernBertModel"],
    "mpnet_older_files": EQUAL["mpnet_of_older_files"],
    "lower_case": EQUAL["length_in_roberta"],
}


@pytest.mark.skipif(not OLDER.exists(), reason=f"{OLDER} is not here; `make .venv-older/.installed`")
def test_older_readers(tmp_path: Path) -> None:
    """transformers 4.57 and sentence-transformers 3.4 give our vectors and logits, each kind of tokenizer."""
    (tmp_path / "texts.json").write_text(json.dumps(PLAIN))
    for name, make in SAVED.items():
        make(folder := tmp_path / "theirs" / name)
        try:
            MultiTaskModel.from_pretrained(folder).save(tmp_path / name)
        except MtlError:
            SentenceEncoder.from_pretrained(folder).save(tmp_path / name)
    command = [OLDER, Path(__file__).with_name("older.py"), tmp_path / "texts.json", *(tmp_path / x for x in SAVED)]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    for name, found in zip(SAVED, json.loads(done.stdout), strict=True):
        model = SentenceEncoder.from_pretrained(tmp_path / name)
        vectors = model.encode(PLAIN, overflow="truncate")
        np.testing.assert_allclose(found["vectors"], vectors, atol=1e-5, err_msg=name)
        batch = PackedBatch.pack(model.tokenizer(PLAIN, "truncate").rows)
        with torch.no_grad():
            first = model.encoder(batch)[batch.firsts]
        np.testing.assert_allclose(found["first"], first, atol=1e-5, err_msg=name)
        if found["logits"]:
            logits = MultiTaskModel.from_pretrained(tmp_path / name).predict(PLAIN).logits["classification"]
            np.testing.assert_allclose(found["logits"], logits, atol=1e-5, err_msg=name)
