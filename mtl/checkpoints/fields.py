"""What is done with each field of each file of a checkpoint: three lists a file, and a rule for all others.

A field is honoured; or it is known to change nothing in a vector, so that it is passed over; or it is held to the
values under which nothing changes, and refused with any other. A field that is on no list is refused where the file
says nothing but what changes vectors, and named in a line of the log elsewhere. weights/README.md has these lists as a
table (``python -m mtl.checkpoints.fields`` prints it).
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtl.checkpoints.families import FAMILIES
from mtl.checkpoints.files import read_object
from mtl.errors import ConfigError, printable, shown

log = logging.getLogger("mtl")

SENTENCE_CONFIGS = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)  # the first of them that says something, as in sentence-transformers
TEXT = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
NO_ARGUMENTS: dict[str, tuple[Any, ...]] = dict.fromkeys(
    ("processing_kwargs", "model_args", "model_kwargs", "config_args", "config_kwargs"), ({},)
)


@dataclasses.dataclass(frozen=True)
class File:
    """The fields of one kind of file; ``strict`` says that one on no list is refused."""

    name: str
    honoured: str
    inert: str = ""
    only: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    strict: bool = False

    def read(self, path: Path, optional: bool = False) -> dict[str, Any]:
        """The fields of such a file, reviewed; an optional file that is absent counts as an empty one."""
        fields = read_object(path, optional)
        self.review(fields, path)
        return fields

    def review(self, fields: Mapping[str, Any], source: Path, more: Mapping[str, Any] | None = None) -> None:
        """Raise a ConfigError if a field that is not null could make the vectors others; ``more`` are honoured or
        passed over too (those of a family)."""
        known = {*self.honoured.split(), *self.inert.split(), *self.only, *(more or ())}
        given = {name: value for name, value in fields.items() if value is not None}
        for name in given.keys() & self.only.keys():
            if not any(value == given[name] and type(value) is type(given[name]) for value in self.only[name]):
                expected = " or ".join(map(shown, self.only[name])) or "null"
                raise ConfigError(f"{source}: {name} is {shown(given[name])}; expected {expected}: it changes vectors")
        unknown = [printable(name) for name in sorted(given.keys() - known)]
        if unknown and self.strict:
            raise ConfigError(f"{source}: {', '.join(unknown[:9])}: unknown, and could change the vectors")
        if unknown:
            log.warning("%s: passed over, as unknown: %s", source, ", ".join(unknown[:20]))


CONFIG = File(
    "config.json",
    "model_type tokenizer_class id2label problem_type architectures sentence_transformers transformers_version "
    "sbert_ce_default_activation_function",
    "_name_or_path torch_dtype dtype return_dict output_hidden_states output_attentions "
    "output_past torchscript use_bfloat16 attn_implementation _attn_implementation _attn_implementation_autoset "
    "_attn_implementation_internal _experts_implementation gradient_checkpointing label2id num_labels _num_labels "
    "finetuning_task chunk_size_feed_forward tie_word_embeddings bos_token_id eos_token_id sep_token_id pad_token_id "
    "decoder_start_token_id cross_attention_hidden_size is_encoder_decoder use_cache classifier_dropout cls_dropout "
    "prefix task_specific_params "
    "max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k "
    "top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids "
    "num_return_sequences output_scores return_dict_in_generate forced_bos_token_id forced_eos_token_id "
    "remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens tf_legacy_loss "
    "model_name tie_encoder_decoder name_or_path use_return_dict is_composition transformers.js_config",
    {
        "quantization_config": (),
        "adapters": ({}, {"adapters": {}, "config_map": {}, "fusion_config_map": {}, "fusions": {}}),
        "pruned_heads": ({},),
        "is_causal": (False,),
        "per_layer_config": (),
    },
)
TOKENIZER_CONFIG = File(
    "tokenizer_config.json",
    "tokenizer_class do_lower_case strip_accents tokenize_chinese_chars add_prefix_space split_by_punct "
    "truncation_side model_max_length max_len split_special_tokens added_tokens_decoder additional_special_tokens "
    "extra_special_tokens model_specific_special_tokens unk_token sep_token pad_token cls_token mask_token bos_token "
    "eos_token model_input_names",
    "padding_side pad_token_type_id pad_to_multiple_of do_basic_tokenize never_split "
    "clean_up_tokenization_spaces clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output "
    "special_tokens_map_file name_or_path tokenizer_file vocab_file merges_file use_fast trim_offsets errors "
    "processor_class chat_template response_template response_schema chat_control_tokens verbose backend is_local "
    "local_files_only files_loaded from_slow legacy max_length stride truncation_strategy init_inputs add_bos_token "
    "add_eos_token fix_mistral_regex unk_id __version__",
    {"wordpieces_prefix": ("##",), "clean_text": (True,), "sp_model_kwargs": ({},), "vocab_type": ("spm",)},
)
SENTENCE_CONFIG = File(
    "sentence_bert_config.json",
    "max_seq_length do_lower_case tokenizer_args processor_kwargs",
    "unpad_inputs __version__",
    {
        "transformer_task": ("feature-extraction",),
        "modality_config": (TEXT,),
        "module_output_name": ("token_embeddings",),
        **NO_ARGUMENTS,
        **dict.fromkeys(("query_length", "document_length", "query_expansion", "tokenizer_name_or_path"), ()),
    },
    strict=True,
)
PROMPTS = File(
    "config_sentence_transformers.json",
    "prompts default_prompt_name similarity_fn_name truncate_dim",
    "__version__ requirements",
    {"model_type": ("SentenceTransformer",)},
)
CROSS_ENCODER = File(
    "config_sentence_transformers.json of a CrossEncoder",
    "activation_fn model_type",
    "__version__ prompts requirements",
    {"default_prompt_name": (), "keep_in_fp32_modules": ([],)},
)
CROSS_SENTENCE = File(
    "sentence_bert_config.json of a CrossEncoder",
    "max_seq_length processor_kwargs transformer_task",
    "unpad_inputs __version__",
    {
        "do_lower_case": (False,),
        "modality_config": ({"text": {"method": "forward", "method_output_name": "logits"}},),
        "module_output_name": ("scores",),
        **NO_ARGUMENTS,
    },
    strict=True,
)
MODULES = File("modules.json", "type path", "idx name", {"kwargs": ([],)})
POOLING = File(
    "1_Pooling/config.json",
    "pooling_mode pooling_mode_cls_token pooling_mode_max_tokens pooling_mode_mean_tokens "
    "pooling_mode_mean_sqrt_len_tokens pooling_mode_weightedmean_tokens pooling_mode_lasttoken",
    "word_embedding_dimension embedding_dimension __version__",
    {"include_prompt": (True,)},
    strict=True,
)
SENTENCE = {"module_input_name": ("sentence_embedding",), "module_output_name": ("sentence_embedding",)}
DENSE = File(
    "2_Dense/config.json",
    "in_features out_features bias activation_function",
    "__version__",
    {**SENTENCE, "use_residual": (False,)},
    strict=True,
)
NORMALIZE = File("2_Normalize/config.json", "", "__version__", SENTENCE, strict=True)
LAYER_NORM = File("2_LayerNorm/config.json", "dimension", "__version__", strict=True)
DROPOUT = File("2_Dropout/config.json", "", "dropout __version__", strict=True)
FILES = (
    CONFIG, TOKENIZER_CONFIG, SENTENCE_CONFIG, PROMPTS, CROSS_ENCODER, CROSS_SENTENCE, MODULES, POOLING, DENSE,
    NORMALIZE, LAYER_NORM, DROPOUT,
)  # fmt: skip


def table() -> str:
    """What is done with each field, as a table of Markdown."""
    lines = ["| file | honoured | other values are refused | passed over, as they change nothing | on no list |",
             "|---|---|---|---|---|"]  # fmt: skip

    def cells(names: Any) -> str:
        return " ".join(f"`{name}`" for name in names)

    def held(only: Mapping[str, tuple[Any, ...]]) -> str:
        allowed = {name: " or ".join(f"`{value!r}`" for value in values) or "null" for name, values in only.items()}
        return "; ".join(f"`{name}`: {values}" for name, values in allowed.items())

    for file in FILES:
        rest = "refused" if file.strict else "a line in the log"
        more = ", or the six other names of sentence-transformers" if file is SENTENCE_CONFIG else ""
        honoured, inert = cells(file.honoured.split()), cells(file.inert.split())
        lines.append(f"| `{file.name}`{more} | {honoured} | {held(file.only)} | {inert} | {rest} |")
    for family in FAMILIES.values():
        types = ["type_vocab_size"] * bool(family.token_types)
        read = [*family.config, *(name for name in family.aliases if name not in family.inert), *types]
        lines.append(f"| `config.json` of {family.model_type} | {cells(read)} | {held(family.fixed)} | "
                     f"{cells(name for name in family.inert if name not in types)} | |")  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
